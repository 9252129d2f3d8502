//! What stands behind a `stockade_call`: the arguments, and where the outcome
//! gathers.

use std::sync::{Mutex, MutexGuard, PoisonError};

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
    outcome: Mutex<Gathered>,
}

/// What the library has said so far.
#[derive(Default)]
struct Gathered {
    json: Option<Vec<u8>>,
    blobs: Vec<(String, Blob)>,
    error: Option<Error>,
}

impl OpenCall {
    pub(crate) fn new(args: Vec<u8>, attachments: Vec<(String, Blob)>, progress: Progress) -> Self {
        OpenCall { args, attachments, progress, outcome: Mutex::default() }
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn result(&self, json: Vec<u8>) {
        self.gathered().json = Some(json);
    }

    pub(crate) fn attach(&self, name: String, blob: Blob) {
        self.gathered().blobs.push((name, blob));
    }

    pub(crate) fn fail(&self, error: Error) {
        self.gathered().error = Some(error);
    }

    /// A bad result is the library's mistake, not the protocol's.
    pub(crate) fn outcome(&self) -> Result<Parts, Error> {
        let Gathered { json, blobs, error } = std::mem::take(&mut *self.gathered());
        if let Some(error) = error {
            return Err(error);
        }
        let json = json.unwrap_or_else(|| b"null".to_vec());
        match serde_json::from_slice::<&serde_json::value::RawValue>(&json) {
            Ok(_) => Ok((json, blobs)),
            Err(error) => {
                Err(Error::new("InvalidResult", format!("the result is not JSON: {error}")))
            }
        }
    }

    /// Runs `work` as this call: a fatal signal names it.
    pub(crate) fn run(&self, id: u64, work: impl FnOnce()) -> Result<Parts, Error> {
        during_call(id, work);
        self.outcome()
    }
}
