//! Who asks: with `SECRET` in the environment, only who knows it.

use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, Mac as _};
use sha2::Sha256;

/// A signature is good for so many seconds.
const AGE: u64 = 300;

/// Checks the headers of a request (of a connection, whose body is empty).
pub(crate) fn check<'h>(header: impl Fn(&str) -> Option<&'h str>, body: &[u8]) -> bool {
    let Ok(secret) = std::env::var("SECRET") else { return true };
    let (Some(timestamp), Some(signature)) =
        (header("stockade-timestamp"), header("stockade-signature"))
    else {
        return false;
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let fresh = timestamp.parse::<u64>().is_ok_and(|then| now.abs_diff(then) <= AGE);
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else { return false };
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(body);
    let digits = signature.strip_prefix("sha256=").unwrap_or_default();
    let bytes: Option<Vec<u8>> = (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok())
        .collect();
    fresh && bytes.is_some_and(|bytes| mac.verify_slice(&bytes).is_ok())
}
