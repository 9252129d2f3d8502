//! What a plugin asks of other plugins and of providers, by its channel: in the time, the
//! workspace and the chain of the call on whose behalf it asks, and no longer than
//! somebody waits for that call.

use std::time::{Duration, Instant};

use stockade_proto::host as wire;
use tonic::{Response, Status};

use super::{
    channel::{Channel, Reply},
    providers,
};
use crate::{
    calls::ToolCall,
    capacity::Held,
    plugin::{Attachment, CallScope},
};

impl Channel {
    pub(super) async fn answer_call_tool(
        &self,
        request: wire::CallToolRequest,
    ) -> Reply<wire::CallToolResponse> {
        let wire::CallToolRequest { scope, plugin, tool, args, attachments, timeout_ms } = request;
        let permission = format!("plugin:call:{plugin}");
        let Some(granted) = self.ask("plugin.call", &[&permission], scope)? else {
            let denied = wire::CallToolResponse { denied: true, ..Default::default() };
            return Ok(Response::new(denied));
        };
        let bytes = attachments.iter().map(|one| one.data.len()).sum::<usize>() + args.len();
        let held = self.held(bytes)?;
        let attachments = attachments.into_iter().map(|one| Attachment {
            name: one.name,
            content_type: one.content_type,
            data: one.data,
        });
        let call = ToolCall {
            plugin,
            tool,
            args,
            attachments: attachments.collect(),
            timeout: time_left(granted.call.as_ref(), timeout_ms),
            workspace: granted.author.workspace.to_string(),
            chain: self.chain(granted.call.as_ref()),
            enabled_plugins: self.enabled(granted.call.as_ref()),
            held,
            ..ToolCall::default()
        };
        let calls = self.host.calls().await;
        let Some(outcome) = wanted(granted.call.as_ref(), calls.run(call)).await else {
            return Err(unwanted());
        };
        let call_id = outcome.call_id.to_string();
        let answer = match outcome.result {
            Ok(success) => wire::CallToolResponse {
                ok: true,
                result: success.result,
                attachments: success
                    .attachments
                    .into_iter()
                    .map(|one| wire::Attachment {
                        name: one.name,
                        content_type: one.content_type,
                        data: one.data,
                    })
                    .collect(),
                call_id,
                ..Default::default()
            },
            Err(error) => wire::CallToolResponse {
                error: error.to_string(),
                error_type: error.error_type().to_owned(),
                call_id,
                ..Default::default()
            },
        };
        Ok(Response::new(answer))
    }

    pub(super) async fn answer_call_provider(
        &self,
        request: wire::CallProviderRequest,
    ) -> Reply<wire::CallProviderResponse> {
        let wire::CallProviderRequest { scope, name, request, timeout_ms } = request;
        self.within(&self.requests, "requests")?;
        let call = scope.as_ref().and_then(|scope| self.caller.session()?.scope(scope.call_id));
        let patience = time_left(call.as_ref(), timeout_ms);
        // Who may nothing starts nobody.
        let wakes = !self.caller.manifest.permissions.granted.is_empty();
        let permission = providers::permission(&self.host, &name, patience, wakes).await;
        let Some(permission) = permission else {
            return Err(Status::not_found(format!("there is no provider {name:?} now")));
        };
        let capability = format!("provider.{name}");
        let Some(granted) = self.ask(&capability, &[&permission], scope)? else {
            let denied = wire::CallProviderResponse {
                response: bytes::Bytes::from_static(b"null"),
                denied: true,
            };
            return Ok(Response::new(denied));
        };
        let held = self.held(request.len())?;
        let asked = providers::Asked {
            plugin: self.name.clone(),
            workspace: granted.author.workspace,
            call_id: granted.author.call,
            timeout: time_left(granted.call.as_ref(), timeout_ms),
            chain: self.chain(granted.call.as_ref()),
            enabled: self.enabled(granted.call.as_ref()),
            request: self.valid_json(request).await?,
            held,
            account: self.caller.account.clone(),
        };
        let asking = providers::call(&self.host, &name, asked);
        let Some(response) = wanted(granted.call.as_ref(), asking).await else {
            return Err(unwanted());
        };
        let response = response?;
        Ok(Response::new(wire::CallProviderResponse { response, denied: false }))
    }
}

impl Channel {
    /// What a request takes of the budget for as long as somebody works on it.
    fn held(&self, bytes: usize) -> Result<Held, Status> {
        let charge = self.caller.account.charge(bytes);
        charge.map(Held::new).map_err(|why| {
            Status::resource_exhausted(format!("there is no room for the request: {why}"))
        })
    }
}

/// What is done on behalf of a call, as long as somebody waits for the call.
async fn wanted<T>(call: Option<&CallScope>, work: impl Future<Output = T>) -> Option<T> {
    let Some(call) = call else { return Some(work.await) };
    tokio::select! {
        done = work => Some(done),
        () = call.unwanted() => None,
    }
}

fn unwanted() -> Status {
    Status::cancelled("the call on whose behalf this was asked is over, or its caller is gone")
}

/// What is left for something that a call asks for.
fn time_left(call: Option<&CallScope>, wanted_ms: u64) -> Option<Duration> {
    let wanted = (wanted_ms > 0).then(|| Duration::from_millis(wanted_ms));
    let left = call.map(|call| call.deadline.saturating_duration_since(Instant::now()));
    match (wanted, left) {
        (Some(wanted), Some(left)) => Some(wanted.min(left)),
        (wanted, left) => wanted.or(left),
    }
}
