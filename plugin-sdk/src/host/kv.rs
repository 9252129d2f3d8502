//! Keys and values of this plugin alone, on the disk when a change is answered.

use std::time::Duration;

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use stockade_proto::host::{
    KvCompareAndSetRequest, KvDeleteRequest, KvGetRequest, KvListRequest, KvSetRequest, KvValue,
};

use super::{Ask, Host, ask::Failure};
use crate::Result;

/// This plugin's keys and values. A key is up to 512 bytes of printable ASCII;
/// other plugins neither see nor change it.
#[derive(Clone, Debug)]
pub struct Kv(pub(super) Host);

/// Some keys in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// The keys.
    pub keys: Vec<String>,
    /// There are more behind the last one.
    pub more: bool,
}

/// A change that is about to be made; see [`Kv::set`].
#[must_use = "nothing is set before `.wait()` or `.await`"]
pub struct Set {
    host: Host,
    key: String,
    value: serde_json::Result<KvValue>,
    ttl: Duration,
}

fn json<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<KvValue> {
    Ok(KvValue { data: serde_json::to_vec(value)?.into(), binary: false })
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Kv {
    /// The value of a key; None when there is none or it has expired.
    pub fn get<T: DeserializeOwned + Send + 'static>(&self, key: &str) -> Ask<Option<T>> {
        let key = key.to_owned();
        self.0.ask(|mut client, scope| async move {
            let reply = client.kv_get(KvGetRequest { scope: Some(scope), key }).await?.into_inner();
            let value = reply.value.map(|value| serde_json::from_slice(&value.data)).transpose();
            Ok(value?)
        })
    }

    /// The value of a key as bytes, whatever they are.
    pub fn get_bytes(&self, key: &str) -> Ask<Option<Bytes>> {
        let key = key.to_owned();
        self.0.ask(|mut client, scope| async move {
            let reply = client.kv_get(KvGetRequest { scope: Some(scope), key }).await?.into_inner();
            Ok(reply.value.map(|value| value.data))
        })
    }

    /// The value of a key and whether it is bytes, for hosts of other languages.
    pub fn get_raw(&self, key: &str) -> Ask<Option<(Bytes, bool)>> {
        let key = key.to_owned();
        self.0.ask(|mut client, scope| async move {
            let reply = client.kv_get(KvGetRequest { scope: Some(scope), key }).await?.into_inner();
            Ok(reply.value.map(|value| (value.data, value.binary)))
        })
    }

    /// Sets a key to anything that serialises; with [`Set::ttl`] for a while.
    pub fn set<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Set {
        let (host, key) = (self.0.clone(), key.to_owned());
        Set { host, key, value: json(value), ttl: Duration::ZERO }
    }

    /// Sets a key to bytes of any kind.
    pub fn set_bytes(&self, key: &str, data: impl Into<Bytes>) -> Set {
        let value = Ok(KvValue { data: data.into(), binary: true });
        Set { host: self.0.clone(), key: key.to_owned(), value, ttl: Duration::ZERO }
    }

    /// Deletes a key; false when there was none.
    pub fn delete(&self, key: &str) -> Ask<bool> {
        let key = key.to_owned();
        self.0.ask(|mut client, scope| async move {
            let request = KvDeleteRequest { scope: Some(scope), key };
            Ok(client.kv_delete(request).await?.into_inner().deleted)
        })
    }

    /// Keys that begin with `prefix`, in order, behind `after` (the last of the page
    /// before), 1000 at most.
    pub fn list(&self, prefix: &str, after: &str) -> Ask<Keys> {
        let (prefix, after) = (prefix.to_owned(), after.to_owned());
        self.0.ask(|mut client, scope| async move {
            let request = KvListRequest { scope: Some(scope), prefix, after, limit: 0 };
            let reply = client.kv_list(request).await?.into_inner();
            Ok(Keys { keys: reply.keys, more: reply.more })
        })
    }

    /// Sets a key to `value` (None deletes it) if it is `expected` now (None: if it
    /// is not there). True when it did.
    pub fn compare_and_set<E, V>(
        &self,
        key: &str,
        expected: Option<&E>,
        value: Option<&V>,
    ) -> Ask<bool>
    where
        E: Serialize + ?Sized,
        V: Serialize + ?Sized,
    {
        let values = expected.map(json).transpose().and_then(|expected| {
            let value = value.map(json).transpose()?;
            Ok((expected, value))
        });
        let (expected, value) = match values {
            Ok(values) => values,
            Err(error) => return self.0.cannot(error),
        };
        let key = key.to_owned();
        self.0.ask(|mut client, scope| async move {
            let request =
                KvCompareAndSetRequest { scope: Some(scope), key, expected, value, ttl_ms: 0 };
            Ok(client.kv_compare_and_set(request).await?.into_inner().swapped)
        })
    }
}

impl Set {
    /// The key is gone after this time.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl.max(Duration::from_millis(1));
        self
    }

    /// As a plain request, for [`Ask::or_raise`] and its like.
    pub fn ask(self) -> Ask<()> {
        let Set { host, key, value, ttl } = self;
        let value = match value {
            Ok(value) => value,
            Err(error) => return host.cannot(error),
        };
        host.ask(move |mut client, scope| async move {
            let request =
                KvSetRequest { scope: Some(scope), key, value: Some(value), ttl_ms: ms(ttl) };
            client.kv_set(request).await?;
            Ok::<_, Failure>(())
        })
    }

    /// Sets it and waits until it is on the disk: for blocking tools.
    ///
    /// # Errors
    /// There is no room for it, or the host refuses.
    pub fn wait(self) -> Result<()> {
        self.ask().wait()
    }

    /// A refusal is an error (`PermissionDenied`).
    pub fn or_raise(self) -> Ask<()> {
        self.ask().or_raise()
    }
}

impl IntoFuture for Set {
    type Output = Result<()>;
    type IntoFuture = <Ask<()> as IntoFuture>::IntoFuture;

    fn into_future(self) -> Self::IntoFuture {
        self.ask().into_future()
    }
}
