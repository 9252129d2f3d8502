//! Other plugins' tools, and providers.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use stockade_proto::host::{Attachment, CallProviderRequest, CallToolRequest};

use super::{Ask, Host};
use crate::{Blob, Error, Result};

/// Another plugin.
#[derive(Clone, Debug)]
pub struct Plugin {
    pub(super) host: Host,
    pub(super) name: String,
}

/// What another plugin's tool gave.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolResult {
    /// JSON; attachments stand as `"attachment:NAME"`. Null when the call was refused.
    pub result: Value,
    /// Bytes by name.
    pub attachments: Vec<(String, Blob)>,
}

impl ToolResult {
    /// The result as what it should be.
    ///
    /// # Errors
    /// It is something else.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        Ok(T::deserialize(&self.result)?)
    }
}

impl Plugin {
    /// Calls a tool. Its deadline is this call's; a call that would come back to a
    /// plugin that waits for it is refused (`CallCycle`).
    pub fn call<A: Serialize + ?Sized>(&self, tool: &str, args: &A) -> Ask<ToolResult> {
        self.call_with(tool, args, Vec::new())
    }

    /// As [`Plugin::call`], with binary arguments by name.
    pub fn call_with<A: Serialize + ?Sized>(
        &self,
        tool: &str,
        args: &A,
        blobs: Vec<(String, Blob)>,
    ) -> Ask<ToolResult> {
        let args = match serde_json::to_vec(args) {
            Ok(text) => text,
            Err(error) => return self.host.cannot(error),
        };
        let (plugin, tool) = (self.name.clone(), tool.to_owned());
        let attachments = blobs.into_iter().map(|(name, blob)| Attachment {
            name,
            content_type: blob.content_type().to_owned(),
            data: blob.bytes().clone(),
        });
        let attachments = attachments.collect();
        self.host.ask(|mut client, scope| async move {
            let reply = client
                .call_tool(CallToolRequest {
                    scope: Some(scope),
                    plugin,
                    tool,
                    args: args.into(),
                    attachments,
                    timeout_ms: 0,
                })
                .await?
                .into_inner();
            if reply.denied {
                return Ok(ToolResult { result: Value::Null, attachments: Vec::new() });
            }
            if !reply.ok {
                return Err(Error::new(reply.error_type, reply.error).into());
            }
            let blobs = reply
                .attachments
                .into_iter()
                .map(|one| (one.name, Blob::typed(one.data, one.content_type)));
            Ok(ToolResult {
                result: serde_json::from_slice(&reply.result)?,
                attachments: blobs.collect(),
            })
        })
    }
}

pub(super) fn provider<Q: Serialize>(host: &Host, name: &str, request: &Q) -> Ask<Value> {
    let request = match serde_json::to_vec(request) {
        Ok(text) => text,
        Err(error) => return host.cannot(error),
    };
    let name = name.to_owned();
    host.ask(|mut client, scope| async move {
        let request = CallProviderRequest {
            scope: Some(scope),
            name,
            request: request.into(),
            timeout_ms: 0,
        };
        let reply = client.call_provider(request).await?.into_inner();
        Ok(serde_json::from_slice(&reply.response)?)
    })
}
