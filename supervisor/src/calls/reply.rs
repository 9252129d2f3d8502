//! The way of a reply: it races the deadlines, updates come before it, and what comes
//! with it is paid for by who asked.

use std::time::Instant;

use super::{
    CallError, Success,
    run::{Attempt, CallEvent},
};
use crate::{
    capacity::{Account, Held, limits},
    manifest::Timeouts,
    plugin::{Reply, Running, Session, Update, call_timeout},
};

impl Attempt<'_> {
    /// The reply, racing the caller's deadline and the plugin's own. Only the
    /// latter kills.
    pub(super) async fn finish(
        &self,
        mut running: Running,
        session: &Session,
        deadline: Option<Instant>,
        mut own: Instant,
    ) -> Result<Success, CallError> {
        let reply = self.reply(&mut running, deadline, &mut own).await?;
        let timeouts = session.manifest.timeouts;
        match reply {
            Some(reply) => return self.judge(reply),
            None if deadline.is_some_and(|deadline| deadline < own) => {
                // Dropping it cancels it; the slot stays the tool's.
                let message =
                    format!("Tool {} did not answer within the caller's deadline.", self.tool);
                return Err(CallError::Timeout { message, cause: None });
            }
            None => running.time_is_up(timeouts.cancel_grace),
        }
        Box::pin(self.overrun(running, timeouts, own)).await
    }

    /// The tool has been told to stop; if it does not, its process must.
    async fn overrun(
        &self,
        mut running: Running,
        timeouts: Timeouts,
        own: Instant,
    ) -> Result<Success, CallError> {
        let grace = own + timeouts.cancel_grace;
        match tokio::time::timeout_at(grace.into(), running.reply()).await {
            Ok(Reply::Closed(cause)) => Err(CallError::of_death(cause)),
            Ok(_) => {
                let call = humantime::format_duration(timeouts.call);
                let message = format!("Tool {} ran past {call} and was cancelled.", self.tool);
                Err(CallError::Timeout { message, cause: None })
            }
            Err(_) => {
                running.overran();
                let cause = call_timeout(self.tool, timeouts);
                // The kill is on its way; its cause is known.
                match running.reply().await {
                    Reply::Closed(other) if other.code != cause.code => {
                        Err(CallError::of_death(other))
                    }
                    _ => {
                        let message = cause.reason.clone();
                        Err(CallError::Timeout { message, cause: Some(cause) })
                    }
                }
            }
        }
    }

    /// Passes updates on until the reply is there; None when a deadline has passed.
    /// What the client takes its time for is not the tool's: `own` moves on by it.
    async fn reply(
        &self,
        running: &mut Running,
        deadline: Option<Instant>,
        own: &mut Instant,
    ) -> Result<Option<Reply>, CallError> {
        loop {
            let first = deadline.unwrap_or(*own).min(*own);
            let Some(updates) = &self.updates else {
                return Ok(tokio::time::timeout_at(first.into(), running.reply()).await.ok());
            };
            // The stream of updates ends when the call has its reply (its entry
            // goes, and the sender with it), so nothing is left behind.
            let update = match tokio::time::timeout_at(first.into(), running.update()).await {
                Ok(Some(update)) => update,
                Ok(None) => return Ok(Some(running.reply().await)),
                Err(_) => return Ok(None),
            };
            let update = match update {
                Update::Item(value, attachments, held) => {
                    Update::Item(value, attachments, paid_by(self.payer, held, self.tool)?)
                }
                progress @ Update::Progress(..) => progress,
            };
            running.pause();
            let sent = updates.send(CallEvent::Update(update));
            let sent = tokio::time::timeout(limits::WRITE_PAUSE, sent).await;
            *own += running.resume();
            // Nobody reads any more.
            if !matches!(sent, Ok(Ok(()))) {
                return Err(CallError::Cancelled);
            }
        }
    }

    fn is_remote(&self) -> bool {
        let snapshot = self.handle.snapshot();
        snapshot.manifest.as_ref().is_some_and(|manifest| manifest.remote().is_some())
    }

    fn judge(&self, reply: Reply) -> Result<Success, CallError> {
        match reply {
            Reply::Done(result, attachments, held) => Ok(Success { result, attachments, held }),
            Reply::NoRoom(why) => Err(CallError::Overloaded(format!(
                "The result of tool {} was dropped: {why}.",
                self.tool
            ))),
            // Its library has not even sent it.
            Reply::Failed(kind, message) if kind == "InvalidResult" => {
                Err(CallError::InvalidResult(message))
            }
            Reply::Failed(kind, _) if kind == "Cancelled" => Err(CallError::Cancelled),
            // A service elsewhere that is late: its process here says so.
            Reply::Failed(kind, message) if kind == "TimeoutError" && self.is_remote() => {
                Err(CallError::Timeout { message, cause: None })
            }
            Reply::Failed(kind, message) => Err(CallError::Raised { kind, message }),
            Reply::TooLarge(size, most) => Err(CallError::InvalidResult(format!(
                "Tool {} returned {size} bytes, more than max_result allows ({most}). Return less, \
                 or raise max_result in stockade.toml.",
                self.tool
            ))),
            Reply::Closed(cause) => Err(CallError::of_death(cause)),
        }
    }
}

/// What the plugin has given is its caller's to take, and to pay for: who does not read
/// uses up nothing that others need of the plugin's share.
pub(super) fn paid_by(payer: Option<&Account>, held: Held, tool: &str) -> Result<Held, CallError> {
    let Some(payer) = payer else { return Ok(held) };
    held.moved_to(payer).map_err(|why| {
        CallError::Overloaded(format!("The result of tool {tool} was dropped: {why}."))
    })
}
