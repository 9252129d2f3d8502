//! A JSON Schema of a plugin's, compiled within bounds and evaluated within
//! bounds: its author chooses both the schema and, often, the value.
//!
//! Two things can explode. The ways through a schema at one place of a value
//! (a chain of definitions, each of which refers twice to the next) are counted
//! when it is compiled, and too many are refused. Recursion along a value is
//! counted while it is evaluated: each `$ref` stands behind a keyword of ours
//! that adds up what it leads to, and refuses when there is too much.

use std::cell::Cell;

use jsonschema::{Keyword, PatternOptions, ValidationError, Validator};
use serde_json::{Map, Value};

use super::weight::{Plan, STEP, count_references};
use crate::capacity::limits;

/// Steps that may be taken on a thread that others need.
const INLINE: usize = 20_000;
/// `$ref`s and combinations within each other that need no deep stack.
const SHALLOW: usize = 8;
/// Messages about one value.
const TOLD: usize = 5;

thread_local! {
    /// What is left for the evaluation under way on this thread.
    static STEPS: Cell<usize> = const { Cell::new(0) };
    /// Whether an evaluation that has used it up is unwound.
    static UNWIND: Cell<bool> = const { Cell::new(false) };
}

/// What is left of a plugin's bounds for further schemas.
#[derive(Debug)]
pub struct Allowance {
    bytes: usize,
    patterns: usize,
}

impl Default for Allowance {
    fn default() -> Self {
        Allowance { bytes: limits::SCHEMAS, patterns: limits::PATTERNS }
    }
}

/// A schema's text becomes so many times as much, at most.
const COMPILED: usize = 64;

impl Allowance {
    /// Bytes of memory that what was compiled may take.
    pub fn compiled(&self) -> usize {
        let (bytes, patterns) = (limits::SCHEMAS - self.bytes, limits::PATTERNS - self.patterns);
        COMPILED * bytes + limits::PATTERN_SIZE * patterns
    }
}

/// A compiled schema.
pub struct Schema {
    validator: Validator,
    /// Parts of the schema that meet at one place of a value, at most.
    weight: usize,
    deep: bool,
}

impl std::fmt::Debug for Schema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Schema(weight {})", self.weight)
    }
}

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It fits.
    Fits,
    /// It does not; why, a few messages.
    Wrong(Vec<String>),
    /// Nobody knows: it takes too many steps.
    TooMuch,
}

impl Schema {
    /// Reads and compiles a schema; None for an empty text.
    ///
    /// # Errors
    /// What is wrong with it, or beyond its bounds.
    pub fn read(text: &str, allowance: &mut Allowance) -> Result<Option<Value>, String> {
        if text.trim().is_empty() {
            return Ok(None);
        }
        allowance.bytes = allowance.bytes.checked_sub(text.len()).ok_or_else(|| {
            format!(
                "is too long: the schemas of a plugin may have {} bytes together",
                limits::SCHEMAS
            )
        })?;
        serde_json::from_str(text).map(Some).map_err(|error| format!("is not JSON: {error}"))
    }

    /// Compiles a schema that was read.
    ///
    /// # Errors
    /// What is wrong with it, or beyond its bounds.
    pub fn compile(mut schema: Value, allowance: &mut Allowance) -> Result<Self, String> {
        let plan = Plan::of(&schema)?;
        allowance.patterns = allowance.patterns.checked_sub(plan.patterns).ok_or_else(|| {
            format!(
                "has too many patterns: the schemas of a plugin may have {} together",
                limits::PATTERNS
            )
        })?;
        let old = schema.get("$schema").and_then(Value::as_str).is_some_and(|draft| {
            ["draft-03", "draft-04", "draft-06", "draft-07"].iter().any(|old| draft.contains(old))
        });
        count_references(&mut schema, &plan, old);
        let patterns = PatternOptions::fancy_regex()
            .backtrack_limit(limits::PATTERN_STEPS)
            .size_limit(limits::PATTERN_SIZE)
            .dfa_size_limit(limits::PATTERN_SIZE);
        let validator = jsonschema::options()
            .with_pattern_options(patterns)
            // A pattern that a caller chooses is not compiled.
            .with_format("regex", |text: &str| text.len() <= limits::PATH)
            .with_keyword(
                STEP,
                |_: &Map<String, Value>, weight: &Value, _: jsonschema::paths::Location| {
                    let weight = weight.as_u64().unwrap_or(1);
                    Ok(Box::new(Step(usize::try_from(weight).unwrap_or(usize::MAX))))
                },
            )
            .build(&schema)
            .map_err(|error| format!("is not valid: {}", limits::cut(&error.to_string(), 1024)))?;
        Ok(Schema { validator, weight: plan.weight, deep: plan.depth > SHALLOW })
    }

    /// Its evaluation of a value with so many parts may be done where others wait.
    pub fn is_quick(&self, values: usize) -> bool {
        !self.deep && values.saturating_mul(self.weight) <= INLINE
    }

    /// Evaluates a value of at most `values` parts.
    pub fn check(&self, value: &Value, values: usize) -> Verdict {
        if values.saturating_mul(self.weight) > 5 * limits::SCHEMA_STEPS {
            return Verdict::TooMuch;
        }
        let quick = self.is_quick(values);
        // What is quick by its size may still be slow by its recursion, then briefly.
        let steps = if quick { 10 * INLINE } else { limits::SCHEMA_STEPS };
        STEPS.set(steps);
        let fits = self.validator.is_valid(value);
        if fits {
            return Verdict::Fits;
        }
        if STEPS.get() == 0 {
            return Verdict::TooMuch;
        }
        Verdict::Wrong(self.explain(value, values))
    }

    /// Why it does not fit. Of a large value a sample is looked at: all errors of all
    /// of it could be more than it is itself.
    fn explain(&self, value: &Value, values: usize) -> Vec<String> {
        let small = values <= SAMPLE.values;
        let sample = if small { None } else { Some(sample(value)) };
        let looked_at = sample.as_ref().unwrap_or(value);
        let told = |error: ValidationError<'_>| {
            // What the sample lacks, the value may have.
            let of_sample =
                ["minItems", "contains", "minLength", "pattern", "format", "minProperties"];
            let keyword = error.kind().keyword();
            if !small && of_sample.contains(&keyword) {
                return None;
            }
            let text = limits::cut(&error.to_string(), limits::ERROR_TEXT / TOLD);
            let path = error.instance_path().as_str();
            let path = limits::cut(path.trim_start_matches('/'), 200);
            Some(if path.is_empty() { text } else { format!("{path}: {text}") })
        };
        STEPS.set(10 * INLINE);
        let messages = unwound(|| {
            self.validator.iter_errors(looked_at).filter_map(told).take(TOLD).collect::<Vec<_>>()
        });
        match messages {
            Some(messages) if !messages.is_empty() => messages,
            _ => vec![
                "it does not fit the schema; the place is too deep in it, or too far behind its \
                 beginning, to be named"
                    .to_owned(),
            ],
        }
    }
}

/// What is looked at of a value that is larger.
struct Sample {
    values: usize,
    items: usize,
    fields: usize,
    text: usize,
}

const SAMPLE: Sample = Sample { values: 2000, items: 16, fields: 256, text: 200 };

/// The beginning of each list and text of a value.
fn sample(value: &Value) -> Value {
    fn walk(value: &Value, left: &Cell<usize>) -> Value {
        left.set(left.get().saturating_sub(1));
        match value {
            Value::Array(items) => Value::Array(
                items
                    .iter()
                    .take(SAMPLE.items)
                    .take_while(|_| left.get() > 0)
                    .map(|item| walk(item, left))
                    .collect(),
            ),
            Value::Object(fields) => Value::Object(
                fields
                    .iter()
                    .take(SAMPLE.fields)
                    .map(|(key, field)| (key.clone(), walk(field, left)))
                    .collect(),
            ),
            Value::String(text) => Value::String(limits::cut(text, SAMPLE.text)),
            other => other.clone(),
        }
    }
    walk(value, &Cell::new(SAMPLE.values))
}

/// Runs an evaluation that may use up its steps; None when it did.
fn unwound<T>(work: impl FnOnce() -> T) -> Option<T> {
    if !cfg!(panic = "unwind") {
        return None;
    }
    UNWIND.set(true);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    UNWIND.set(false);
    result.ok()
}

/// The keyword before each `$ref`: adds up what it leads to.
struct Step(usize);

impl Step {
    fn take(&self) -> bool {
        let left = STEPS.get().saturating_sub(self.0);
        STEPS.set(left);
        if left == 0 && UNWIND.get() {
            // Collecting errors goes on at a failure; this ends it, without a message.
            std::panic::resume_unwind(Box::new("too many steps"));
        }
        left > 0
    }
}

impl<'i> Keyword<'i> for Step {
    fn validate(&self, _: &'i Value) -> Result<(), ValidationError<'i>> {
        match self.take() {
            true => Ok(()),
            false => Err(ValidationError::custom("it takes too many steps to check")),
        }
    }

    fn is_valid(&self, _: &'i Value) -> bool {
        self.take()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn compile(schema: Value) -> Result<Schema, String> {
        Schema::compile(schema, &mut Allowance::default())
    }

    fn check(schema: Value, value: &Value) -> Verdict {
        compile(schema).unwrap().check(value, crate::plugin::weight::size(value))
    }

    #[test]
    fn a_doubling_chain_is_refused_with_its_place() {
        let mut definitions = Map::new();
        for n in 0..14 {
            let next = json!({ "$ref": format!("#/$defs/a{}", n + 1) });
            definitions.insert(format!("a{n}"), json!({ "allOf": [next, next] }));
        }
        definitions.insert("a14".into(), json!({ "type": "integer" }));
        let why = compile(json!({ "$ref": "#/$defs/a0", "$defs": definitions })).unwrap_err();
        assert!(why.starts_with("multiplies: more than 10000 ways"), "{why}");
        assert!(why.contains("/$defs/a"), "{why}");
    }

    #[test]
    fn long_chains_and_circles_at_one_place_are_refused() {
        let mut definitions = Map::new();
        for n in 0..3000 {
            let next = json!({ "$ref": format!("#/$defs/a{}", n + 1) });
            definitions.insert(format!("a{n}"), json!({ "allOf": [next] }));
        }
        definitions.insert("a3000".into(), json!(true));
        let why = compile(json!({ "$ref": "#/$defs/a0", "$defs": definitions })).unwrap_err();
        assert!(why.contains("references at one place"), "{why}");
        let circle = json!({ "$defs": { "a": { "anyOf": [{ "$ref": "#/$defs/a" }] } }, "$ref": "#/$defs/a" });
        assert!(compile(circle).unwrap_err().contains("refers to itself"));
    }

    #[test]
    fn recursion_along_a_value_is_counted() {
        // Each list is looked at twice by each of its list's looks.
        let twice = json!({ "items": { "$ref": "#/$defs/a" } });
        let schema = json!({
            "$defs": { "a": { "anyOf": [
                { "allOf": [twice, twice], "type": "array" },
                { "allOf": [twice, { "not": twice }], "type": "array" },
                { "const": 1 },
            ] } },
            "$ref": "#/$defs/a",
        });
        let mut deep = json!(2);
        for _ in 0..100 {
            deep = json!([deep]);
        }
        let begun = std::time::Instant::now();
        let verdict = check(schema, &deep);
        assert!(!matches!(verdict, Verdict::Fits), "{verdict:?}");
        assert!(begun.elapsed() < std::time::Duration::from_secs(30));
    }

    #[test]
    fn ordinary_schemas_mean_what_they_meant() {
        let tree = json!({
            "$defs": { "node": {
                "type": "object",
                "properties": {
                    "left": { "$ref": "#/$defs/node" },
                    "right": { "$ref": "#/$defs/node", "description": "the other" },
                    "value": { "type": "integer", "pattern": "^x" },
                },
                "required": ["value"], "additionalProperties": false,
            } },
            "$ref": "#/$defs/node",
        });
        let good = json!({ "value": 1, "left": { "value": 2 }, "right": { "value": 3 } });
        assert_eq!(check(tree.clone(), &good), Verdict::Fits);
        let wrong = json!({ "value": 1, "left": { "value": "x" } });
        let Verdict::Wrong(why) = check(tree, &wrong) else { panic!() };
        assert_eq!(why, ["left/value: \"x\" is not of type \"integer\""]);
        // Draft 7 ignores what stands beside a reference.
        let old = json!({
            "$schema": "http://json-schema.org/draft-07/schema#",
            "$ref": "#/definitions/a", "maximum": 1,
            "definitions": { "a": { "type": "integer" } },
        });
        assert_eq!(check(old, &json!(5)), Verdict::Fits);
        let outside = compile(json!({ "$ref": "other.json" })).unwrap_err();
        assert!(outside.contains("which is not in it"), "{outside}");
    }

    #[test]
    fn patterns_are_few_and_small() {
        let many: Vec<Value> = (0..65).map(|n| json!({ "pattern": format!("a{n}") })).collect();
        assert!(compile(json!({ "allOf": many })).unwrap_err().contains("too many patterns"));
        let large = compile(json!({ "pattern": "\\p{L}{200}" })).unwrap_err();
        assert!(large.contains("is not valid"), "{large}");
        let mut allowance = Allowance::default();
        let text = format!("{{\"title\":\"{}\"}}", "x".repeat(limits::SCHEMAS - 12));
        assert!(Schema::read(&text, &mut allowance).is_ok());
        assert!(Schema::read("{}", &mut allowance).unwrap_err().contains("too long"));
    }

    #[test]
    fn a_large_wrong_value_is_explained_briefly() {
        let schema = json!({ "properties": { "xs": { "items": { "type": "string" } } } });
        let value = json!({ "xs": vec![0; 100_000], "t": "x".repeat(1 << 20) });
        let Verdict::Wrong(why) = check(schema, &value) else { panic!() };
        assert_eq!(why.len(), TOLD);
        assert_eq!(why[0], "xs/0: 0 is not of type \"string\"");
        let schema = json!({ "maxItems": 50_000, "type": "array" });
        let Verdict::Wrong(why) = check(schema, &json!(vec![0; 100_000])) else { panic!() };
        assert!(why[0].contains("does not fit"), "{why:?}");
    }
}
