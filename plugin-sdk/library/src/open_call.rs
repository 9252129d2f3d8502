//! What stands behind a `stockade_call`: the arguments, and where the outcome
//! gathers.

use std::sync::Mutex;

use stockade_plugin_sdk::{
    Blob, Context, Error, InitContext,
    guest::{Parts, during_call},
};

/// Says how far a call or a start is.
pub(crate) enum Progress {
    Call(Context),
    Start(InitContext),
}

/// One call of a tool, or the start.
pub(crate) struct OpenCall {
    pub(crate) args: Vec<u8>,
    pub(crate) attachments: Vec<(String, Blob)>,
    pub(crate) progress: Progress,
    /// The library may answer from any thread of its own.
    outcome: Mutex<(Option<Vec<u8>>, Vec<(String, Blob)>, Option<Error>)>,
}

impl OpenCall {
    pub(crate) fn new(args: Vec<u8>, attachments: Vec<(String, Blob)>, progress: Progress) -> Self {
        OpenCall { args, attachments, progress, outcome: Mutex::default() }
    }

    fn with<T>(
        &self,
        change: impl FnOnce(&mut (Option<Vec<u8>>, Vec<(String, Blob)>, Option<Error>)) -> T,
    ) -> T {
        change(&mut self.outcome.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    pub(crate) fn result(&self, json: Vec<u8>) {
        self.with(|outcome| outcome.0 = Some(json));
    }

    pub(crate) fn attach(&self, name: String, blob: Blob) {
        self.with(|outcome| outcome.1.push((name, blob)));
    }

    pub(crate) fn fail(&self, error: Error) {
        self.with(|outcome| outcome.2 = Some(error));
    }

    /// A bad result is the library's mistake, not the protocol's.
    pub(crate) fn outcome(&self) -> Result<Parts, Error> {
        self.with(|(json, blobs, error)| {
            if let Some(error) = error.take() {
                return Err(error);
            }
            let json = json.take().unwrap_or_else(|| b"null".to_vec());
            match serde_json::from_slice::<&serde_json::value::RawValue>(&json) {
                Ok(_) => Ok((json, std::mem::take(blobs))),
                Err(error) => {
                    Err(Error::new("InvalidResult", format!("the result is not JSON: {error}")))
                }
            }
        })
    }

    /// Runs `work` as this call: a fatal signal names it.
    pub(crate) fn run(&self, id: u64, work: impl FnOnce()) -> Result<Parts, Error> {
        during_call(id, work);
        self.outcome()
    }
}
