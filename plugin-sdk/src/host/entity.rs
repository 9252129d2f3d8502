//! The document of an entity in the call's workspace.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use stockade_proto::host::{
    ChangeComponentRequest, ChangeResponse, GetEntityRequest, SetFlagRequest,
    UpdateRelationshipRequest, change_component_request::Change,
};

use super::{Ask, Host, ask::Failure};

/// One entity: `session/ID`, `npc/ID`, `world/ID`. All of its document may be read
/// with the kind's read permission; flags and components that a plugin writes are
/// kept as `plugin:<id>:<name>`.
#[derive(Clone, Debug)]
pub struct Entity {
    pub(super) host: Host,
    pub(super) name: String,
}

fn value(reply: &ChangeResponse) -> Result<Value, Failure> {
    match reply.denied {
        true => Ok(Value::Null),
        false => Ok(serde_json::from_slice(&reply.value)?),
    }
}

impl Entity {
    /// What stands at a path (`flags.met`, `components.core.hp`, `""` for all of
    /// it); None when there is nothing.
    pub fn get<T: DeserializeOwned + Send + 'static>(&self, path: &str) -> Ask<Option<T>> {
        let (entity, path) = (self.name.clone(), path.to_owned());
        self.host.ask(|mut client, scope| async move {
            let request = GetEntityRequest { scope: Some(scope), entity, path };
            let reply = client.get_entity(request).await?.into_inner();
            Ok(reply.value.map(|text| serde_json::from_slice(&text)).transpose()?)
        })
    }

    /// Sets a flag of this plugin.
    pub fn set_flag<T: Serialize + ?Sized>(&self, key: &str, flag: &T) -> Ask<Value> {
        let text = match serde_json::to_vec(flag) {
            Ok(text) => text,
            Err(error) => return self.host.cannot(error),
        };
        let (entity, key) = (self.name.clone(), key.to_owned());
        self.host.ask(|mut client, scope| async move {
            let request = SetFlagRequest { scope: Some(scope), entity, key, value: text.into() };
            value(&client.set_flag(request).await?.into_inner())
        })
    }

    /// Merges an object over the relationship with somebody; gives what it is now.
    pub fn update_relationship<T: Serialize + ?Sized>(&self, with: &str, patch: &T) -> Ask<Value> {
        let patch = match serde_json::to_vec(patch) {
            Ok(text) => text,
            Err(error) => return self.host.cannot(error),
        };
        let (entity, with) = (self.name.clone(), with.to_owned());
        self.host.ask(|mut client, scope| async move {
            let request =
                UpdateRelationshipRequest { scope: Some(scope), entity, with, patch: patch.into() };
            value(&client.update_relationship(request).await?.into_inner())
        })
    }

    /// Replaces a component of this plugin.
    pub fn set_component<T: Serialize + ?Sized>(&self, name: &str, component: &T) -> Ask<Value> {
        self.change(name, Change::Set, serde_json::to_vec(component))
    }

    /// Merges an object over a component of this plugin; gives what it is now.
    pub fn update_component<T: Serialize + ?Sized>(&self, name: &str, patch: &T) -> Ask<Value> {
        self.change(name, Change::Update, serde_json::to_vec(patch))
    }

    /// Deletes a component of this plugin.
    pub fn delete_component(&self, name: &str) -> Ask<Value> {
        self.change(name, Change::Delete, Ok(Vec::new()))
    }

    fn change(&self, name: &str, change: Change, text: serde_json::Result<Vec<u8>>) -> Ask<Value> {
        let text = match text {
            Ok(text) => text,
            Err(error) => return self.host.cannot(error),
        };
        let (entity, name) = (self.name.clone(), name.to_owned());
        self.host.ask(move |mut client, scope| async move {
            let request = ChangeComponentRequest {
                scope: Some(scope),
                entity,
                name,
                change: change as i32,
                value: text.into(),
            };
            value(&client.change_component(request).await?.into_inner())
        })
    }
}
