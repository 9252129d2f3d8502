//! What operators wanted and nobody could tell at the start: the plugins run until the
//! store can be read, then they are as they were to be.

use std::sync::Arc;

use tokio::sync::watch;

use super::RegistrySnapshot;
use crate::{lifecycle::Wanted, plugin::Command, store::Recovered};

/// Gives the orders once; ends with the store.
pub async fn obey(
    mut recovered: watch::Receiver<Recovered>,
    registry: watch::Receiver<Arc<RegistrySnapshot>>,
) {
    let known = recovered.wait_for(|wishes| !wishes.is_empty()).await;
    let Ok(wishes) = known.map(|wishes| wishes.clone()) else { return };
    for (name, wanted) in wishes {
        let who = "stockade.db, which could not be read at the start".to_owned();
        let command = match wanted {
            Wanted::Disabled => Command::Disable(who),
            Wanted::Stopped => Command::Stop(who),
            Wanted::Run | Wanted::Removed => continue,
        };
        let handle = registry.borrow().get(&name).cloned();
        if let Some(handle) = handle
            && let Err(error) = handle.order(command).await
        {
            tracing::error!("plugin {name} was to be {wanted:?}, and runs: {error}");
        }
    }
}
