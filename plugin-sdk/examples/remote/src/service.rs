//! What the service can do, whatever is spoken.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

/// An error: its class and what it says.
pub(crate) type Failure = (&'static str, String);

/// The service. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Service {
    heard: Arc<Mutex<Vec<String>>>,
}

/// What it offers, as `describe` tells it.
pub(crate) fn offer() -> Value {
    json!({
        "tools": [
            {
                "name": "greet",
                "description": "Says hello to somebody",
                "input_schema": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}},
                    "required": ["name"],
                },
                "output_schema": {"type": "string"},
            },
            {"name": "heard", "description": "Names of the events that it was told of"},
        ],
        "conditions": [{
            "name": "can_access_area",
            "description": "May this NPC go there?",
            "required_context": ["npc_id"],
        }],
        "effects": [{
            "name": "calm",
            "description": "Calms somebody down",
            "default_params": {"amount": 0.5},
        }],
        "simulation_configs": [{"name": "pace", "description": "How fast", "priority": 50}],
        "events": ["plugin:*"],
    })
}

impl Service {
    /// Runs a tool.
    pub(crate) fn run_tool(&self, tool: &str, args: &Value) -> Result<Value, Failure> {
        match tool {
            "greet" => match args["name"].as_str() {
                Some("") => Err(("ValueError", "nobody has no name".to_owned())),
                Some(name) => Ok(json!(format!("Hello, {name}!"))),
                None => Err(("TypeError", "name must be text".to_owned())),
            },
            "heard" => Ok(json!(*self.heard.lock().unwrap_or_else(PoisonError::into_inner))),
            other => Err(("ToolNotFound", format!("no tool {other}"))),
        }
    }

    /// Evaluates a condition: NPC number seven may go everywhere. The context that
    /// it was shown is in the answer's metadata.
    pub(crate) fn evaluate(&self, condition: &str, context: &Value) -> Result<bool, Failure> {
        match condition {
            "can_access_area" => Ok(context["npc_id"] == 7),
            other => Err(("KeyError", format!("no condition {other}"))),
        }
    }

    /// Applies an effect.
    pub(crate) fn apply(
        &self,
        effect: &str,
        context: &Value,
        params: &Value,
    ) -> Result<Value, Failure> {
        match effect {
            "calm" => Ok(json!({"npc_id": context["npc_id"], "calmed_by": params["amount"]})),
            other => Err(("KeyError", format!("no effect {other}"))),
        }
    }

    /// A part of simulations' configuration.
    pub(crate) fn configure(&self, name: &str) -> Result<Value, Failure> {
        match name {
            "pace" => Ok(json!({"pace": "slow"})),
            other => Err(("KeyError", format!("no configuration {other}"))),
        }
    }

    /// Hears of an event.
    pub(crate) fn hear(&self, name: &str) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
    }

    /// A request as HTTP and WebSocket have it: `run-tool`, `evaluate-condition`, …
    pub(crate) fn answer(&self, method: &str, request: &Value) -> Result<Value, Failure> {
        let text = |key: &str| request[key].as_str().unwrap_or_default();
        let result = match method {
            "run-tool" => self.run_tool(text("tool"), &request["args"])?,
            "evaluate-condition" => {
                json!(self.evaluate(text("condition_id"), &request["context"])?)
            }
            "apply-effect" => {
                self.apply(text("effect_id"), &request["context"], &request["params"])?
            }
            "simulation-config" => self.configure(text("provider_id"))?,
            "events" => {
                for event in request["events"].as_array().into_iter().flatten() {
                    self.hear(event["name"].as_str().unwrap_or_default());
                }
                Value::Null
            }
            other => return Err(("MethodNotFound", format!("no method {other}"))),
        };
        Ok(json!({"result": result, "metadata": {"seen": request["context"]}}))
    }
}
