//! What a schema costs, found by reading it before it is compiled; and the keyword
//! that counts what each of its references leads to.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::capacity::limits;

/// The keyword of ours; no author can mean it.
pub(super) const STEP: &str = "\u{1}step";
/// What a pattern weighs beside other keywords.
const PATTERN: usize = 50;

/// Keywords whose schemas apply at the same place of the value.
const IN_PLACE: [&str; 4] = ["not", "if", "then", "else"];
const IN_PLACE_LISTS: [&str; 3] = ["allOf", "anyOf", "oneOf"];
const IN_PLACE_MAPS: [&str; 2] = ["dependentSchemas", "dependencies"];
const REFERENCES: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];
/// Keywords whose schemas apply further down.
const BELOW: [&str; 8] = [
    "additionalProperties",
    "items",
    "additionalItems",
    "contains",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
];
const BELOW_LISTS: [&str; 2] = ["prefixItems", "items"];
const BELOW_MAPS: [&str; 2] = ["properties", "patternProperties"];
/// Keywords whose schemas are only referred to.
const KEPT_MAPS: [&str; 2] = ["$defs", "definitions"];

/// One schema object within a schema.
struct Part<'s> {
    place: String,
    own: usize,
    in_place: Vec<usize>,
    references: Vec<&'s str>,
}

/// What a schema costs at one place of a value.
pub(super) struct Plan {
    pub(super) patterns: usize,
    pub(super) weight: usize,
    pub(super) depth: usize,
    /// What each reference leads to, by its text.
    targets: HashMap<String, usize>,
}

#[derive(Clone, Copy)]
struct Cost {
    weight: usize,
    paths: usize,
    depth: usize,
}

impl Plan {
    pub(super) fn of(schema: &Value) -> Result<Self, String> {
        let mut walk = Walk::default();
        walk.take(schema, String::new());
        // What a reference means may lie outside of the known keywords.
        let mut done = 0;
        let mut meant: HashMap<&str, Option<usize>> = HashMap::new();
        while done < walk.parts.len() {
            for reference in walk.parts[done].references.clone() {
                if meant.contains_key(reference) {
                    continue;
                }
                let target = walk.resolve(schema, reference)?;
                meant.insert(reference, target);
            }
            done += 1;
        }
        for part in 0..walk.parts.len() {
            let references = std::mem::take(&mut walk.parts[part].references);
            let targets = references.iter().filter_map(|reference| meant[reference]);
            walk.parts[part].in_place.extend(targets);
        }
        let mut costs = vec![None; walk.parts.len()];
        let mut all = Cost { weight: 1, paths: 0, depth: 0 };
        for part in 0..walk.parts.len() {
            let cost = walk.cost(part, &mut costs, 0)?;
            all.weight = all.weight.max(cost.weight);
            all.depth = all.depth.max(cost.depth);
        }
        let weight = |target: &Option<usize>| {
            target.and_then(|target| costs[target].flatten()).map_or(PATTERN, |cost| cost.weight)
        };
        Ok(Plan {
            patterns: walk.patterns,
            weight: all.weight,
            depth: all.depth,
            targets: meant.iter().map(|(text, part)| ((*text).to_owned(), weight(part))).collect(),
        })
    }
}

/// Known, or being counted.
type Known = Option<Option<Cost>>;

#[derive(Default)]
struct Walk<'s> {
    parts: Vec<Part<'s>>,
    known: HashMap<*const Value, usize>,
    anchors: HashMap<&'s str, usize>,
    patterns: usize,
}

impl<'s> Walk<'s> {
    fn take(&mut self, schema: &'s Value, place: String) -> usize {
        if let Some(known) = self.known.get(&std::ptr::from_ref(schema)) {
            return *known;
        }
        let number = self.parts.len();
        self.known.insert(schema, number);
        self.parts.push(Part {
            place: place.clone(),
            own: 1,
            in_place: Vec::new(),
            references: Vec::new(),
        });
        let Value::Object(keywords) = schema else { return number };
        let (mut own, mut in_place, mut references) = (1, Vec::new(), Vec::new());
        for (keyword, value) in keywords {
            let name = keyword.as_str();
            let at = || format!("{place}/{name}");
            match value {
                Value::Object(map)
                    if IN_PLACE_MAPS.contains(&name)
                        || BELOW_MAPS.contains(&name)
                        || KEPT_MAPS.contains(&name) =>
                {
                    for (key, inner) in map {
                        if name == "patternProperties" {
                            self.patterns += 1;
                            own += PATTERN;
                        }
                        own += usize::from(!KEPT_MAPS.contains(&name));
                        if inner.is_array() {
                            continue;
                        }
                        let inner = self.take(inner, format!("{}/{key}", at()));
                        if IN_PLACE_MAPS.contains(&name) {
                            in_place.push(inner);
                        }
                    }
                }
                Value::Array(list)
                    if IN_PLACE_LISTS.contains(&name) || BELOW_LISTS.contains(&name) =>
                {
                    for (index, inner) in list.iter().enumerate() {
                        let inner = self.take(inner, format!("{}/{index}", at()));
                        if IN_PLACE_LISTS.contains(&name) {
                            in_place.push(inner);
                        }
                    }
                    own += list.len();
                }
                Value::Object(_) | Value::Bool(_) if IN_PLACE.contains(&name) => {
                    in_place.push(self.take(value, at()));
                }
                Value::Object(_) | Value::Bool(_) if BELOW.contains(&name) => {
                    self.take(value, at());
                    own += 1;
                }
                Value::String(text) if REFERENCES.contains(&name) => references.push(text.as_str()),
                Value::String(text)
                    if ["$anchor", "$dynamicAnchor", "$id", "id"].contains(&name) =>
                {
                    self.anchors.insert(text.trim_start_matches('#'), number);
                }
                Value::String(_) if name == "pattern" => {
                    self.patterns += 1;
                    own += PATTERN;
                }
                other => own += size(other),
            }
        }
        let part = &mut self.parts[number];
        (part.own, part.in_place, part.references) = (own, in_place, references);
        number
    }

    /// The part that a reference means; None = one of the standard's own schemas.
    fn resolve(&mut self, root: &'s Value, reference: &str) -> Result<Option<usize>, String> {
        let standard = ["http://json-schema.org/", "https://json-schema.org/"];
        if standard.iter().any(|prefix| reference.starts_with(prefix)) {
            return Ok(None);
        }
        if reference == "#" || reference.is_empty() {
            return Ok(Some(self.take(root, String::new())));
        }
        if let Some(pointer) = reference.strip_prefix("#/") {
            let pointer = format!("/{}", unescaped(pointer));
            if let Some(target) = root.pointer(&pointer) {
                return Ok(Some(self.take(target, pointer)));
            }
        }
        let known = self.anchors.get(reference.trim_start_matches('#')).copied();
        known.map(Some).ok_or_else(|| {
            let shown = limits::cut(reference, limits::NAME);
            format!("refers to {shown:?}, which is not in it; put what it means under $defs")
        })
    }

    fn cost(&self, part: usize, costs: &mut [Known], above: usize) -> Result<Cost, String> {
        let place = || match self.parts[part].place.as_str() {
            "" => "its root".to_owned(),
            place => limits::cut(place, 200),
        };
        match costs[part] {
            Some(Some(cost)) => return Ok(cost),
            Some(None) => return Err(format!("refers to itself at the same place: {}", place())),
            None => {}
        }
        if above > limits::SCHEMA_DEPTH {
            return Err(format!(
                "leads through more than {} references at one place: {}",
                limits::SCHEMA_DEPTH,
                place()
            ));
        }
        costs[part] = Some(None);
        let mut cost = Cost { weight: self.parts[part].own, paths: 1, depth: 0 };
        for inner in &self.parts[part].in_place {
            let inner = self.cost(*inner, costs, above + 1)?;
            cost.weight = cost.weight.saturating_add(inner.weight);
            cost.paths = cost.paths.saturating_add(inner.paths);
            cost.depth = cost.depth.max(inner.depth + 1);
        }
        if cost.depth > limits::SCHEMA_DEPTH {
            return Err(format!(
                "leads through more than {} references at one place: {}",
                limits::SCHEMA_DEPTH,
                place()
            ));
        }
        if cost.paths > limits::SCHEMA_PATHS {
            return Err(format!(
                "multiplies: more than {} ways lead through it at one place: {}",
                limits::SCHEMA_PATHS,
                place()
            ));
        }
        costs[part] = Some(Some(cost));
        Ok(cost)
    }
}

/// Parts of a value.
pub(super) fn size(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(size).sum::<usize>(),
        Value::Object(fields) => 1 + fields.values().map(size).sum::<usize>(),
        _ => 1,
    }
}

/// `%20` and the like.
fn unescaped(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while let Some(byte) = bytes.get(index) {
        let code = text.get(index + 1..index + 3).filter(|_| *byte == b'%');
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(code) => {
                plain.push(code);
                index += 3;
            }
            None => {
                plain.push(*byte);
                index += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// Puts the counting keyword before each reference.
pub(super) fn count_references(schema: &mut Value, plan: &Plan, old: bool) {
    let Value::Object(keywords) = schema else { return };
    for (name, value) in keywords.iter_mut() {
        let name = name.as_str();
        match value {
            Value::Object(map)
                if IN_PLACE_MAPS.contains(&name)
                    || BELOW_MAPS.contains(&name)
                    || KEPT_MAPS.contains(&name) =>
            {
                map.values_mut().for_each(|inner| count_references(inner, plan, old));
            }
            Value::Array(list) if IN_PLACE_LISTS.contains(&name) || BELOW_LISTS.contains(&name) => {
                list.iter_mut().for_each(|inner| count_references(inner, plan, old));
            }
            Value::Object(_) if IN_PLACE.contains(&name) || BELOW.contains(&name) => {
                count_references(value, plan, old);
            }
            _ => {}
        }
    }
    for name in REFERENCES {
        let Some(Value::String(reference)) = keywords.get(name) else { continue };
        let weight = plan.targets.get(reference).copied().unwrap_or(1);
        let counted = [json!({ STEP: weight }), json!({ name: reference })];
        keywords.shift_remove(name);
        if old {
            // Those drafts ignore what stands beside a reference.
            keywords.retain(|key, _| key.starts_with('$') || key == "definitions");
        }
        match keywords.get_mut("allOf") {
            Some(Value::Array(all)) => all.extend(counted),
            _ => {
                keywords.insert("allOf".to_owned(), Value::Array(counted.into()));
            }
        }
    }
}
