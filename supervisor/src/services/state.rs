//! Documents of entities, by a plugin's channel: everything may be read that its
//! kind allows, and only what is the plugin's own is written.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use stockade_proto::host::{self as wire, change_component_request::Change as Kind};
use tonic::{Response, Status};

use super::{
    channel::{Channel, Granted, Reply},
    names::{self, EntityKind, NameError},
};
use crate::{
    capacity::{Account, Charge, is_quick, limits, read_exactly, turn_for, weigh, why_unread},
    store::{DataError, Document, DocumentPart, Edit},
};

impl Channel {
    fn entity(&self, entity: &str) -> Result<EntityKind, Status> {
        names::entity(entity).map_err(|error| {
            // Counted here; a good one is counted where it is let through.
            match self.within(&self.requests, "requests") {
                Ok(()) => self.name_error(error),
                Err(too_often) => too_often,
            }
        })
    }

    pub(super) async fn read_entity(
        &self,
        request: wire::GetEntityRequest,
    ) -> Reply<wire::GetEntityResponse> {
        let kind = self.entity(&request.entity)?;
        let capability = format!("state.{}.get", kind.name);
        let Some(granted) = self.ask(&capability, &[kind.read], request.scope)? else {
            return Ok(Response::new(wire::GetEntityResponse { value: None, denied: true }));
        };
        let workspace = granted.author.workspace;
        let wire::GetEntityRequest { entity, path, .. } = request;
        let parts = path.split('.').count();
        if path.len() > limits::PATH || parts > limits::PATH_PARTS {
            return Err(Status::invalid_argument(format!(
                "the path has {} bytes and {parts} parts; {} and {} are allowed",
                path.len(),
                limits::PATH,
                limits::PATH_PARTS
            )));
        }
        // Read, searched and written again where the document is read.
        let name = self.name.clone();
        let look =
            move |document: Document| walk(&Value::Object(document), &path, &name).map(to_text);
        let data = self.host.data();
        let value = data.in_document(&self.name, self.payer(), &workspace, &entity, look);
        let value = value.await.map_err(|error| self.data_error(error))?.flatten();
        turn_for(value.as_ref().map_or(0, Bytes::len)).await;
        Ok(Response::new(wire::GetEntityResponse { value, denied: false }))
    }

    /// Whoever may write this kind. Some(Err) = the empty answer.
    fn writer(
        &self,
        entity: &str,
        what: &str,
        scope: Option<wire::Scope>,
    ) -> Result<Result<Granted, Response<wire::ChangeResponse>>, Status> {
        let kind = self.entity(entity)?;
        let Some(write) = kind.write else {
            let text = format!(
                "{entity}: a {} is the host's: plugins may read it, not write it",
                kind.name
            );
            return Err(self.name_error(NameError::Foreign(text)));
        };
        let capability = format!("state.{}.{what}", kind.name);
        let Some(granted) = self.ask(&capability, &[write], scope)? else {
            let denied = wire::ChangeResponse { denied: true, ..Default::default() };
            return Ok(Err(Response::new(denied)));
        };
        self.may_write()?;
        Ok(Ok(granted))
    }

    async fn change(
        &self,
        granted: Granted,
        entity: &str,
        edit: Edit,
    ) -> Reply<wire::ChangeResponse> {
        let data = self.host.data();
        let changed = data.change_document(granted.author, entity, self.payer(), edit).await;
        let value = changed.map_err(|error| self.data_error(error))?;
        let changed = value.is_some();
        let value = value.unwrap_or_else(|| Bytes::from_static(b"null"));
        turn_for(value.len()).await;
        Ok(Response::new(wire::ChangeResponse { changed, value, denied: false }))
    }

    /// JSON text that is no larger than a value may be.
    fn part(&self, text: Bytes) -> Result<Part, Status> {
        let most = self.caller.manifest.quota.value;
        let size = text.len();
        if size as u64 > most {
            return Err(Status::resource_exhausted(format!(
                "the value has {size} bytes; {most} are allowed (quota.value)"
            )));
        }
        let account = self.caller.account.clone();
        let waits = account.charge(size).map_err(|why| Status::resource_exhausted(why.to_string()));
        Ok(Part { text, account, _waits: waits? })
    }

    pub(super) async fn write_flag(
        &self,
        request: wire::SetFlagRequest,
    ) -> Reply<wire::ChangeResponse> {
        let wire::SetFlagRequest { scope, entity, key, value } = request;
        let granted = match self.writer(&entity, "set_flag", scope)? {
            Ok(granted) => granted,
            Err(empty) => return Ok(empty),
        };
        let own = names::own(&self.name, &key).map_err(|error| self.name_error(error))?;
        let (key, value) = (names::full(&self.name, own), self.part(value)?);
        let part = DocumentPart { section: "flags", key: key.clone() };
        let is_quick = value.is_quick();
        let apply = move |document: &mut Document| {
            let (value, _room) = value.read()?;
            let text = to_text(&value);
            section(document, "flags")?.insert(key.clone(), value);
            Ok(Some(text))
        };
        let operation = "entity.set_flag";
        let edit = Edit { operation, part, apply: Box::new(apply), is_quick };
        self.change(granted, &entity, edit).await
    }

    pub(super) async fn write_relationship(
        &self,
        request: wire::UpdateRelationshipRequest,
    ) -> Reply<wire::ChangeResponse> {
        let wire::UpdateRelationshipRequest { scope, entity, with, patch } = request;
        let granted = match self.writer(&entity, "update_relationship", scope)? {
            Ok(granted) => granted,
            Err(empty) => return Ok(empty),
        };
        names::of_host(&with).map_err(|error| self.name_error(error))?;
        let patch = self.part(patch)?;
        let part = DocumentPart { section: "relationships", key: with.clone() };
        let is_quick = patch.is_quick();
        let apply = move |document: &mut Document| {
            let (patch, _room) = patch.object()?;
            let relationships = section(document, "relationships")?;
            let relationship = relationships.entry(&*with).or_insert_with(|| json!({}));
            merge(relationship, patch);
            Ok(Some(to_text(relationship)))
        };
        let operation = "entity.update_relationship";
        let edit = Edit { operation, part, apply: Box::new(apply), is_quick };
        self.change(granted, &entity, edit).await
    }

    pub(super) async fn write_component(
        &self,
        request: wire::ChangeComponentRequest,
    ) -> Reply<wire::ChangeResponse> {
        let kind = request.change();
        let wire::ChangeComponentRequest { scope, entity, name, value, .. } = request;
        let operation = match kind {
            Kind::Set => "entity.set_component",
            Kind::Update => "entity.update_component",
            Kind::Delete => "entity.delete_component",
            Kind::Unspecified => return Err(Status::invalid_argument("the change has no kind")),
        };
        let what = operation.trim_start_matches("entity.");
        let granted = match self.writer(&entity, what, scope)? {
            Ok(granted) => granted,
            Err(empty) => return Ok(empty),
        };
        let key =
            names::own_component(&self.name, &name).map_err(|error| self.name_error(error))?;
        let part = DocumentPart { section: "components", key: key.clone() };
        if kind == Kind::Delete {
            let apply = move |document: &mut Document| {
                let there = section(document, "components")?.shift_remove(&key);
                Ok(there.map(|_| to_text(&Value::Null)))
            };
            let edit = Edit { operation, part, apply: Box::new(apply), is_quick: true };
            return self.change(granted, &entity, edit).await;
        }
        let value = self.part(value)?;
        let is_quick = value.is_quick();
        let apply = move |document: &mut Document| {
            if kind == Kind::Update {
                let (patch, _room) = value.object()?;
                let components = section(document, "components")?;
                let component = components.entry(&*key).or_insert_with(|| json!({}));
                merge(component, patch);
                return Ok(Some(to_text(component)));
            }
            let (value, _room) = value.read()?;
            let text = to_text(&value);
            section(document, "components")?.insert(key.clone(), value);
            Ok(Some(text))
        };
        let edit = Edit { operation, part, apply: Box::new(apply), is_quick };
        self.change(granted, &entity, edit).await
    }
}

/// JSON text that waits to become a part of a document. It is read where the document is
/// changed: until then it is no larger than it came.
struct Part {
    text: Bytes,
    account: Account,
    _waits: Charge,
}

impl Part {
    /// It takes little time to read it.
    fn is_quick(&self) -> bool {
        is_quick(&self.text)
    }

    /// What it is, and the room that this takes.
    fn read(&self) -> Result<(Value, Charge), DataError> {
        let room = self.account.charge(weigh(&self.text).bytes);
        let room = room.map_err(|why| DataError::Room(why.to_string()))?;
        let value = read_exactly(&self.text).map_err(|error| {
            DataError::Invalid(format!("the value is not JSON: {}", why_unread(&error)))
        })?;
        Ok((value, room))
    }

    fn object(&self) -> Result<(Map<String, Value>, Charge), DataError> {
        match self.read()? {
            (Value::Object(object), room) => Ok((object, room)),
            _ => Err(DataError::Invalid("the value must be a JSON object".to_owned())),
        }
    }
}

fn to_text(value: &Value) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}

/// `flags`, `relationships` or `components` of a document, made when it is not
/// there.
fn section<'d>(
    document: &'d mut Document,
    name: &str,
) -> Result<&'d mut Map<String, Value>, DataError> {
    match document.entry(name).or_insert_with(|| json!({})) {
        Value::Object(section) => Ok(section),
        _ => Err(DataError::Invalid(format!("the document's {name:?} is not an object"))),
    }
}

/// Shallow: keys of the patch replace those of the same name.
fn merge(value: &mut Value, patch: Map<String, Value>) {
    match value {
        Value::Object(object) => object.extend(patch),
        other => *other = Value::Object(patch),
    }
}

/// What stands at a path. Keys may hold dots: the longest that fits is meant.
/// Flags and components of the plugin itself need no prefix.
fn walk<'v>(value: &'v Value, path: &str, plugin: &str) -> Option<&'v Value> {
    let own = |section: &str, rest: &str| {
        let part = value.get(section)?;
        step(part, rest).or_else(|| step(part, &names::full(plugin, rest)))
    };
    for section in ["flags", "components"] {
        if let Some(rest) = path.strip_prefix(section).and_then(|rest| rest.strip_prefix('.')) {
            return own(section, rest);
        }
    }
    step(value, path)
}

fn step<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    if path.is_empty() {
        return Some(value);
    }
    let ends = path.match_indices('.').map(|(at, _)| at).chain([path.len()]);
    let mut ends: Vec<usize> = ends.collect();
    ends.reverse();
    ends.into_iter().find_map(|end| {
        let (key, rest) = (&path[..end], path[end..].trim_start_matches('.'));
        let inner = match value {
            Value::Object(object) => object.get(key)?,
            Value::Array(items) => items.get(key.parse::<usize>().ok()?)?,
            _ => return None,
        };
        step(inner, rest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_reach_keys_with_dots_and_own_keys_without_prefix() {
        let document = json!({
            "flags": {"plugin:me:a.b": 1, "plugin:other:a": 2},
            "components": {"core": {"hp": 3}, "plugin:me:mood": {"x": [4, 5]}},
        });
        let at = |path: &str| walk(&document, path, "me").cloned();
        assert_eq!(at("flags.a.b"), Some(json!(1)));
        assert_eq!(at("flags.plugin:other:a"), Some(json!(2)));
        assert_eq!(at("components.core.hp"), Some(json!(3)));
        assert_eq!(at("components.mood.x.1"), Some(json!(5)));
        assert_eq!(at("components.nothing"), None);
        assert_eq!(at("").unwrap(), document);
    }
}
