//! What a process adds to the host besides tools, as it said in Init: checked
//! against its permissions, then locked.

use std::{collections::HashSet, sync::Arc};

use serde_json::{Map, Value};
use stockade_proto::worker as wire;

use super::schema::{Allowance, Schema, Verdict};
use crate::{
    capacity::{QUICK_VALUES, is_quick, limits, read_exactly, read_through, weigh},
    manifest::{Permissions, known_permission},
};

/// What one process registered.
#[derive(Debug, Default)]
pub struct Registered {
    /// Answer yes or no.
    pub conditions: Vec<wire::Condition>,
    /// Change something.
    pub effects: Vec<Effect>,
    /// Give configuration.
    pub simulation_configs: Vec<wire::SimulationConfig>,
    /// Hear of events.
    pub event_handlers: Vec<wire::EventHandler>,
    /// Answer other plugins.
    pub providers: Vec<Arc<Provider>>,
}

/// An effect.
#[derive(Clone, Debug)]
pub struct Effect {
    /// Its name within the plugin.
    pub name: String,
    /// For people.
    pub description: String,
    /// Lie under the parameters of each application.
    pub default_params: Map<String, Value>,
}

/// A capability that somebody provides to plugins.
#[derive(Debug)]
pub struct Provider {
    /// Its name within the plugin, or the server's own.
    pub name: String,
    /// What a plugin must hold to ask.
    pub permission: String,
    /// For people.
    pub description: String,
    /// Of requests, as text; empty = anything.
    pub request_schema: String,
    /// Of responses, as text; empty = anything.
    pub response_schema: String,
    request: Option<Schema>,
    response: Option<Schema>,
}

/// Something that was not registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The permission that it would need.
    pub permission: Option<&'static str>,
    /// What, and why.
    pub text: String,
}

impl Provider {
    /// Compiles the schemas.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(mut spec: wire::Provider, allowance: &mut Allowance) -> Result<Self, String> {
        if !known_permission(&spec.permission) {
            return Err(format!(
                "{:?} is no permission; use a known one, or provider:NAME",
                limits::cut(&spec.permission, limits::NAME)
            ));
        }
        limits::cut_to(&mut spec.description, limits::DESCRIPTION);
        let mut compile = |which: &str, text: &str| -> Result<Option<Schema>, String> {
            let schema = Schema::read(text, allowance);
            let schema = schema.map_err(|why| format!("the {which} schema {why}"))?;
            let schema = schema.map(|schema| Schema::compile(schema, allowance)).transpose();
            schema.map_err(|why| format!("the {which} schema {why}"))
        };
        Ok(Provider {
            request: compile("request", &spec.request_schema)?,
            response: compile("response", &spec.response_schema)?,
            name: spec.name,
            permission: spec.permission,
            description: spec.description,
            request_schema: spec.request_schema,
            response_schema: spec.response_schema,
        })
    }

    /// A text may be checked on a thread that others need.
    pub fn is_quick(&self, text: &[u8]) -> bool {
        is_quick(text)
            && [&self.request, &self.response].into_iter().flatten().all(|schema| {
                // Only what was compiled is weighed.
                schema.is_quick(weigh(text).values)
            })
    }

    /// The request, if it is one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_request(&self, request: &[u8]) -> Result<(), String> {
        check("request", self.request.as_ref(), request)
    }

    /// The response, if it is one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_response(&self, response: &[u8]) -> Result<(), String> {
        check("response", self.response.as_ref(), response)
    }
}

fn check(which: &str, schema: Option<&Schema>, text: &[u8]) -> Result<(), String> {
    let weight = weigh(text);
    if weight.values > limits::JSON_VALUES {
        return Err(format!("the {which} has more than {} values", limits::JSON_VALUES));
    }
    let invalid = |error| format!("the {which} is not JSON: {error}");
    let Some(schema) = schema else { return read_through(text).map_err(invalid) };
    let value: Value = serde_json::from_slice(text).map_err(invalid)?;
    match schema.check(&value, weight.values) {
        Verdict::Fits => Ok(()),
        Verdict::Wrong(why) => {
            Err(format!("the {which} is not as its schema says: {}", why.join("; ")))
        }
        Verdict::TooMuch => Err(format!("the {which} takes too many steps to check")),
    }
}

impl Registered {
    /// Takes what is well-formed and permitted; the first of a name stays.
    pub(super) fn accept(
        ready: &mut wire::InitReady,
        permissions: &Permissions,
        allowance: &mut Allowance,
    ) -> (Self, Vec<Refused>) {
        let mut list = Acceptance { permissions, refused: Vec::new() };
        let conditions = list.take(
            "condition",
            Some("behavior:extend_conditions"),
            std::mem::take(&mut ready.conditions),
            |one| &one.name,
            |one| Ok(wire::Condition { description: described(one.description), ..one }),
        );
        let effects = list.take(
            "effect",
            Some("behavior:extend_effects"),
            std::mem::take(&mut ready.effects),
            |one| &one.name,
            effect,
        );
        let simulation_configs = list.take(
            "simulation config",
            Some("behavior:configure_simulation"),
            std::mem::take(&mut ready.simulation_configs),
            |one| &one.name,
            |one| Ok(wire::SimulationConfig { description: described(one.description), ..one }),
        );
        let event_handlers = list.take(
            "event handler",
            Some("event:subscribe"),
            std::mem::take(&mut ready.event_handlers),
            |one| &one.name,
            |one| match one.patterns.len() {
                0 => Err("it names no events".to_owned()),
                1..=limits::EVENT_PATTERNS => Ok(one),
                n => Err(format!("it has {n} patterns; {} are allowed", limits::EVENT_PATTERNS)),
            },
        );
        let providers = list.take(
            "provider",
            None,
            std::mem::take(&mut ready.providers),
            |one| &one.name,
            |one| Provider::new(one, allowance).map(Arc::new),
        );
        let registered =
            Registered { conditions, effects, simulation_configs, event_handlers, providers };
        (registered, list.refused)
    }

    /// A condition.
    pub fn condition(&self, name: &str) -> Option<&wire::Condition> {
        self.conditions.iter().find(|one| one.name == name)
    }

    /// An effect.
    pub fn effect(&self, name: &str) -> Option<&Effect> {
        self.effects.iter().find(|one| one.name == name)
    }

    /// A provider.
    pub fn provider(&self, name: &str) -> Option<&Arc<Provider>> {
        self.providers.iter().find(|one| one.name == name)
    }
}

fn described(mut text: String) -> String {
    limits::cut_to(&mut text, limits::DESCRIPTION);
    text
}

fn effect(wire: wire::Effect) -> Result<Effect, String> {
    // They are read and written at each application.
    let (size, values) = (wire.default_params.len(), weigh(&wire.default_params).values);
    if size > limits::PARAMETERS || values > QUICK_VALUES {
        return Err(format!(
            "its default parameters have {size} bytes and {values} values; {} and {QUICK_VALUES} \
             are allowed",
            limits::PARAMETERS
        ));
    }
    let default_params = match wire.default_params.is_empty() {
        true => Map::new(),
        false => read_exactly::<Map<String, Value>>(&wire.default_params)
            .map_err(|error| format!("its default parameters are no JSON object: {error}"))?,
    };
    Ok(Effect { name: wire.name, description: described(wire.description), default_params })
}

struct Acceptance<'p> {
    permissions: &'p Permissions,
    refused: Vec<Refused>,
}

impl Acceptance<'_> {
    fn take<W, T>(
        &mut self,
        kind: &str,
        permission: Option<&'static str>,
        offered: Vec<W>,
        name: impl Fn(&W) -> &String,
        mut make: impl FnMut(W) -> Result<T, String>,
    ) -> Vec<T> {
        let missing = permission.filter(|permission| !self.permissions.has(permission));
        let most = if kind == "event handler" { limits::HANDLERS } else { limits::TOOLS };
        let mut seen = HashSet::new();
        let mut taken = Vec::new();
        for one in offered {
            let name = name(&one).clone();
            let made = if let Some(missing) = missing {
                Err(format!("it needs the permission '{missing}'"))
            } else if taken.len() == most {
                Err(format!("{most} are allowed"))
            } else if !valid_name(&name) {
                Err("a name has 1 to 128 letters, digits, `_`, `-` and `.`".to_owned())
            } else if !seen.insert(name.clone()) {
                Err("there is one of this name; the first stays".to_owned())
            } else {
                make(one)
            };
            match made {
                Ok(made) => taken.push(made),
                Err(why) => self.refused.push(Refused {
                    permission: missing,
                    text: format!("{kind} {name:?} was not registered: {why}"),
                }),
            }
        }
        taken
    }
}

fn valid_name(name: &str) -> bool {
    (1..=limits::NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_permitted_twice_or_ill_formed_is_left_out_and_said() {
        let condition = |name: &str| wire::Condition { name: name.into(), ..Default::default() };
        let mut ready = wire::InitReady {
            conditions: vec![condition("a"), condition("a"), condition("b:c"), condition("d")],
            effects: vec![wire::Effect { name: "e".into(), ..Default::default() }],
            providers: vec![
                wire::Provider {
                    name: "p".into(),
                    permission: "nope".into(),
                    ..Default::default()
                },
                wire::Provider {
                    name: "q".into(),
                    permission: "provider:q".into(),
                    request_schema: r#"{"type":"object"}"#.into(),
                    ..Default::default()
                },
            ],
            ..Default::default()
        };
        let permissions = Permissions::of_request(vec!["behavior:extend_conditions".into()]);
        let (registered, refused) =
            Registered::accept(&mut ready, &permissions, &mut Allowance::default());
        let names: Vec<_> = registered.conditions.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["a", "d"]);
        assert!(registered.effect("e").is_none());
        let texts: Vec<_> = refused.iter().map(|one| one.text.as_str()).collect();
        assert!(texts[0].contains("\"a\" was not registered: there is one"), "{texts:?}");
        assert!(texts[1].contains("\"b:c\" was not registered: a name has"), "{texts:?}");
        assert_eq!(refused[2].permission, Some("behavior:extend_effects"));
        assert!(texts[3].contains("\"nope\" is no permission"), "{texts:?}");
        let provider = registered.provider("q").unwrap();
        assert!(provider.check_request(b"{}").is_ok() && provider.check_request(b"1").is_err());
        assert!(provider.check_response(b"1").is_ok() && provider.check_response(b"x").is_err());
    }
}
