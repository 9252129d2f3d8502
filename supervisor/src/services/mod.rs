//! What plugins may ask of us over their host channel. The caller is the
//! channel itself; nothing in a message says who it is.

use stockade_proto::host::GetSelfResponse;

use crate::plugin::{Caller, HostHandler};

/// Answers the host channel of every plugin.
#[derive(Debug, Default)]
pub struct HostServices;

impl HostHandler for HostServices {
    fn get_self(&self, caller: &Caller) -> GetSelfResponse {
        GetSelfResponse {
            plugin: caller.manifest.name.clone(),
            version: caller.manifest.version.clone().unwrap_or_default(),
            generation: caller.generation,
            data_dir: caller.data_dir.display().to_string(),
            // Nothing is granted before there is something to grant.
            permissions: Vec::new(),
        }
    }
}
