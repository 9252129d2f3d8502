//! Who may be called where, and through whom: before anything is sent.

use std::sync::Arc;

use super::{CallError, ToolCall};
use crate::{
    capacity::limits,
    store::{Data, check_workspace},
};

/// Calls within calls.
const MAX_DEPTH: usize = limits::CALL_DEPTH;

/// It may run in this workspace, and is not waiting for this very call.
pub(super) fn admit(data: &Data, call: &ToolCall, plugin: &Arc<str>) -> Result<(), CallError> {
    if !call.workspace.is_empty() {
        check_workspace(&call.workspace)
            .map_err(|error| CallError::InvalidArguments(error.to_string()))?;
    }
    let enabled = match &call.enabled_plugins {
        Some(enabled) => enabled.contains(&**plugin),
        None => data.workspaces.allows(&call.workspace, plugin),
    };
    if !enabled {
        return Err(CallError::PermissionDenied(match &call.enabled_plugins {
            Some(_) => format!("Plugin '{plugin}' is not among the call's enabled_plugins."),
            None if let Some(why) = data.workspaces.why_closed(&call.workspace) => {
                format!("Plugin '{plugin}' is not run in workspace '{}': {why}.", call.workspace)
            }
            None => format!(
                "Plugin '{plugin}' is not enabled in workspace '{0}'. Run `stockade workspace \
                 enable {0} {plugin}`.",
                call.workspace
            ),
        }));
    }
    let way = || call.chain.iter().map(|name| &**name).collect::<Vec<_>>().join(" -> ");
    if call.chain.contains(plugin) {
        return Err(CallError::CallCycle(format!(
            "Plugin '{plugin}' waits for this very call: {} -> {plugin}.",
            way()
        )));
    }
    if call.chain.len() > MAX_DEPTH {
        return Err(CallError::CallCycle(format!(
            "The call is {} plugins deep; {MAX_DEPTH} are allowed: {} -> {plugin}.",
            call.chain.len(),
            way()
        )));
    }
    Ok(())
}
