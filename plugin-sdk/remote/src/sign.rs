//! Proves to the service who asks: an HMAC over the time and the body.

use hmac::{Hmac, Mac as _};
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::Sha256;

/// The name of the plugin.
const PLUGIN: HeaderName = HeaderName::from_static("stockade-plugin");
/// Seconds since 1970.
const TIMESTAMP: HeaderName = HeaderName::from_static("stockade-timestamp");
/// `sha256=` and the HMAC over `TIMESTAMP.BODY` in hexadecimal digits.
const SIGNATURE: HeaderName = HeaderName::from_static("stockade-signature");

/// The headers of a request (or of a connection, whose body is empty).
pub(crate) fn headers(plugin: &str, secret: Option<&str>, body: &[u8]) -> HeaderMap {
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    let seconds = now.map_or(0, |now| now.as_secs());
    let mut headers = HeaderMap::new();
    let mut add = |name, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    };
    add(PLUGIN, plugin.to_owned());
    if let Some(secret) = secret {
        add(TIMESTAMP, seconds.to_string());
        add(SIGNATURE, signature(secret, seconds, body));
    }
    headers
}

fn signature(secret: &str, seconds: u64, body: &[u8]) -> String {
    // An HMAC takes a key of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else {
        return String::new();
    };
    mac.update(format!("{seconds}.").as_bytes());
    mac.update(body);
    let digits: String =
        mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={digits}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_the_one_that_other_languages_make() {
        // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac secret
        let made = signature("secret", 1_700_000_000, b"{\"a\":1}");
        assert_eq!(made, "sha256=49f24e537407743fa4a0242bb63b94b9a47ee99cbbe071ccd8a22550ae411686");
        assert_eq!(headers("p", None, b"").len(), 1, "nothing is signed without a secret");
    }
}
