//! Python exceptions as errors: class, message, traceback.

use pyo3::{exceptions::PyBaseException, prelude::*};
use stockade_plugin_sdk::Error;

/// What an exception says. `stockade._failure` formats it; when even that
/// fails (no memory), the class remains.
pub(crate) fn describe(py: Python<'_>, error: &PyErr) -> Error {
    let exception: &Bound<'_, PyBaseException> = error.value(py);
    // Before 3.12 an exception that was caught here does not hold its traceback.
    if let Some(traceback) = error.traceback(py) {
        let _ = exception.setattr("__traceback__", traceback);
    }
    let described = py
        .import("stockade._failure")
        .and_then(|module| module.getattr("describe"))
        .and_then(|describe| describe.call1((exception,)))
        .and_then(|described| described.extract::<(String, String, String)>());
    match described {
        Ok((kind, message, traceback)) => Error::new(kind, message).with_traceback(traceback),
        Err(_) => {
            let kind = exception.get_type().name().map(|name| name.to_string());
            let message = exception.str().map(|text| text.to_string_lossy().into_owned());
            let kind = kind.unwrap_or_else(|_| "Exception".to_owned());
            Error::new(kind, message.unwrap_or_default())
        }
    }
}
