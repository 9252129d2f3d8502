//! The error of a tool or a hook: a type and a message.

use std::fmt;

/// What went wrong, as the caller will read it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Error {
    kind: String,
    message: String,
    missing: Vec<String>,
    traceback: String,
}

/// The result of a tool or a hook.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with a type of the plugin's own (`error_type` of the outcome),
    /// for instance `"BadImage"`, and a message.
    pub fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Error { kind: kind.into(), message: message.into(), ..Error::default() }
    }

    /// The call was cancelled; a tool returns it when it stopped for that.
    pub fn cancelled() -> Self {
        Error::new("Cancelled", "the call was cancelled")
    }

    /// For `init` only: something outside is missing (a file, a device, a
    /// package). The plugin becomes UNAVAILABLE, not FAILED, and is started
    /// again when the thing appears.
    pub fn missing(what: impl Into<String>, how_to_get_it: impl Into<String>) -> Self {
        Error::all_missing(vec![what.into()], how_to_get_it)
    }

    /// As [`Error::missing`], for several things.
    pub fn all_missing(what: Vec<String>, how_to_get_it: impl Into<String>) -> Self {
        Error { missing: what, ..Error::new("Missing", how_to_get_it) }
    }

    /// With where it happened: for the plugin's log and the crash record,
    /// never for remote clients.
    #[must_use]
    pub fn with_traceback(mut self, traceback: impl Into<String>) -> Self {
        self.traceback = traceback.into();
        self
    }

    /// The type of the error.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The message.
    pub fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn traceback(&self) -> &str {
        &self.traceback
    }

    pub(crate) fn missing_things(&self) -> &[String] {
        &self.missing
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)
    }
}

// Not `std::error::Error` itself, so that `?` can turn any such error into one.
impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            source = cause.source();
        }
        Error::new(type_name::<E>(), message)
    }
}

/// `std::io::error::Error` → `io::Error`, `image::error::ImageError` → `ImageError`.
fn type_name<E>() -> String {
    let full = std::any::type_name::<E>();
    let full = full.split('<').next().unwrap_or(full);
    let parts: Vec<&str> = full.split("::").collect();
    match parts.as_slice() {
        [.., module, "error", "Error"] | [.., module, "Error"] => format!("{module}::Error"),
        [.., last] => (*last).to_owned(),
        [] => "Error".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_error_keeps_its_type_and_message() {
        let error: Error = std::io::Error::other("disk on fire").into();
        assert_eq!(error.kind(), "io::Error");
        assert_eq!(error.message(), "disk on fire");
        let error: Error = "x".parse::<u8>().unwrap_err().into();
        assert_eq!(error.kind(), "ParseIntError");
    }
}
