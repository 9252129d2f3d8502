//! Keys and values of one plugin, by its channel.

use stockade_proto::host as wire;
use tonic::{Response, Status};

use super::{
    channel::{Channel, Reply},
    names,
};
use crate::{
    capacity::turn_for,
    store::{Entry, Expectation, Payer},
};

const READ: [&str; 2] = ["kv:read", "redis:read"];
const WRITE: [&str; 2] = ["kv:write", "redis:write"];
/// Keys of one page.
const PAGE: u32 = 1000;

impl Channel {
    fn key<'k>(&self, key: &'k str) -> Result<&'k str, Status> {
        names::own(&self.name, key).map_err(|error| self.name_error(error))
    }

    /// On whose account it is stored.
    pub(super) fn payer(&self) -> Payer {
        let quota = self.caller.manifest.quota;
        Payer { quota, account: Some(self.caller.account.clone()) }
    }

    /// A value that is no larger than allowed, and JSON unless it is binary.
    async fn entry(&self, value: Option<wire::KvValue>, ttl_ms: u64) -> Result<Entry, Status> {
        let value = value.unwrap_or_default();
        let most = self.caller.manifest.quota.value;
        if value.data.len() as u64 > most {
            return Err(Status::resource_exhausted(format!(
                "the value has {} bytes; {most} are allowed (quota.value)",
                value.data.len()
            )));
        }
        let data = match value.binary {
            true => value.data,
            false => self.valid_json(value.data).await?,
        };
        Ok(Entry::new(data, value.binary, ttl_ms))
    }

    pub(super) async fn get_value(
        &self,
        request: wire::KvGetRequest,
    ) -> Reply<wire::KvGetResponse> {
        if self.ask("kv.get", &READ, request.scope)?.is_none() {
            return Ok(Response::new(wire::KvGetResponse { value: None, denied: true }));
        }
        let key = self.key(&request.key)?;
        let entry = self.host.data().get(&self.name, &self.name, key).await;
        let entry = entry.map_err(|error| self.data_error(error))?;
        let value = entry.map(to_wire);
        turn_for(value.as_ref().map_or(0, |value| value.data.len())).await;
        Ok(Response::new(wire::KvGetResponse { value, denied: false }))
    }

    pub(super) async fn set_value(
        &self,
        request: wire::KvSetRequest,
    ) -> Reply<wire::KvSetResponse> {
        let Some(granted) = self.ask("kv.set", &WRITE, request.scope)? else {
            return Ok(Response::new(wire::KvSetResponse { denied: true }));
        };
        self.may_write()?;
        let key = self.key(&request.key)?;
        let entry = self.entry(request.value, request.ttl_ms).await?;
        let set = self.host.data().set(granted.author, &self.name, key, entry, self.payer()).await;
        set.map_err(|error| self.data_error(error))?;
        Ok(Response::new(wire::KvSetResponse { denied: false }))
    }

    pub(super) async fn delete_value(
        &self,
        request: wire::KvDeleteRequest,
    ) -> Reply<wire::KvDeleteResponse> {
        let Some(granted) = self.ask("kv.delete", &WRITE, request.scope)? else {
            return Ok(Response::new(wire::KvDeleteResponse { deleted: false, denied: true }));
        };
        self.may_write()?;
        let key = self.key(&request.key)?;
        let deleted = self.host.data().delete(granted.author, &self.name, key).await;
        let deleted = deleted.map_err(|error| self.data_error(error))?;
        Ok(Response::new(wire::KvDeleteResponse { deleted, denied: false }))
    }

    pub(super) async fn list_values(
        &self,
        request: wire::KvListRequest,
    ) -> Reply<wire::KvListResponse> {
        if self.ask("kv.list", &READ, request.scope)?.is_none() {
            let denied = wire::KvListResponse { denied: true, ..Default::default() };
            return Ok(Response::new(denied));
        }
        let prefix = names::own_prefix(&self.name, &request.prefix);
        let prefix = prefix.map_err(|error| self.name_error(error))?.to_owned();
        let after = match request.after.as_str() {
            "" => String::new(),
            after => self.key(after)?.to_owned(),
        };
        let limit = if request.limit == 0 { PAGE } else { request.limit.min(PAGE) };
        let rows = self
            .host
            .data()
            .rows(
                &self.name,
                Some(self.name.to_string()),
                prefix,
                (self.name.to_string(), after),
                limit + 1,
                false,
            )
            .await;
        let (rows, more) = rows.map_err(|error| self.data_error(error))?;
        turn_for(rows.iter().map(|row| row.key.len()).sum()).await;
        let keys = rows.into_iter().take(limit as usize).map(|row| row.key).collect();
        Ok(Response::new(wire::KvListResponse { keys, more, denied: false }))
    }

    pub(super) async fn compare_and_set_value(
        &self,
        request: wire::KvCompareAndSetRequest,
    ) -> Reply<wire::KvCompareAndSetResponse> {
        let Some(granted) = self.ask("kv.compare_and_set", &WRITE, request.scope)? else {
            let denied = wire::KvCompareAndSetResponse { denied: true, ..Default::default() };
            return Ok(Response::new(denied));
        };
        self.may_write()?;
        // Its answer tells what is there: that is reading.
        let reads = self.caller.manifest.permissions.has(READ[0])
            || self.caller.manifest.permissions.has(READ[1]);
        let key = self.key(&request.key)?;
        let expected = match request.expected {
            None => Expectation::Absent,
            Some(value) => Expectation::Value(value.data, value.binary),
        };
        let entry = match request.value {
            None => None,
            value => Some(self.entry(value, request.ttl_ms).await?),
        };
        let data = self.host.data();
        let change = (expected, entry);
        let swap = data.compare_and_set(granted.author, &self.name, key, change, self.payer());
        let answer = match swap.await.map_err(|error| self.data_error(error))? {
            Ok(()) => wire::KvCompareAndSetResponse { swapped: true, ..Default::default() },
            Err(current) => {
                let current = current.filter(|_| reads).map(to_wire);
                turn_for(current.as_ref().map_or(0, |value| value.data.len())).await;
                wire::KvCompareAndSetResponse { current, ..Default::default() }
            }
        };
        Ok(Response::new(answer))
    }
}

fn to_wire(entry: Entry) -> wire::KvValue {
    wire::KvValue { data: entry.data, binary: entry.binary }
}
