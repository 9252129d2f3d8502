//! Names that plugins give: keys, events, entities, components. A name is always
//! the plugin's own; one that is spelled like somebody else's is refused.

use crate::capacity::limits;

/// Bytes of a name.
const LONGEST: usize = limits::KEY;

/// Components that belong to the host: plugins read them.
const PROTECTED: [&str; 7] =
    ["core", "romance", "stealth", "mood", "behavior", "interactions", "quests"];

/// Why a name is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NameError {
    /// It is no name.
    Invalid(String),
    /// It is somebody else's.
    Foreign(String),
}

type Checked<T> = Result<T, NameError>;

/// A name's form: printable ASCII, parts between `:` and `/` that are neither
/// empty nor `.` or `..`. What merely looks like a name of another script or
/// another width is none.
fn check(name: &str) -> Checked<()> {
    let invalid = |why: &str| {
        let shown = limits::cut(name, limits::NAME);
        Err(NameError::Invalid(format!("{shown:?} is no name: {why}")))
    };
    if name.is_empty() || name.len() > LONGEST {
        return invalid("it must have 1 to 512 bytes");
    }
    if !name.bytes().all(|byte| byte.is_ascii_graphic() && !b"\\\"'`".contains(&byte)) {
        return invalid("only printable ASCII without spaces, quotes and backslashes is allowed");
    }
    if name.split([':', '/']).any(|part| part.is_empty() || part == "." || part == "..") {
        return invalid("its parts (between `:` and `/`) must not be empty, `.` or `..`");
    }
    Ok(())
}

/// `name`, or `plugin:<own id>:name`, without the prefix.
pub(super) fn own<'n>(plugin: &str, name: &'n str) -> Checked<&'n str> {
    check(name)?;
    let first = name.split([':', '/']).next().unwrap_or_default();
    if !first.eq_ignore_ascii_case("plugin") {
        return Ok(name);
    }
    let rest = name.strip_prefix("plugin:").and_then(|rest| rest.strip_prefix(plugin));
    match rest.and_then(|rest| rest.strip_prefix(':')) {
        Some(rest) if !rest.is_empty() => own_rest(plugin, rest),
        _ => Err(foreign(plugin, name)),
    }
}

/// What follows the own prefix must not begin with a prefix again.
fn own_rest<'n>(plugin: &str, rest: &'n str) -> Checked<&'n str> {
    let first = rest.split([':', '/']).next().unwrap_or_default();
    match first.eq_ignore_ascii_case("plugin") {
        true => Err(foreign(plugin, rest)),
        false => Ok(rest),
    }
}

fn foreign(plugin: &str, name: &str) -> NameError {
    NameError::Foreign(format!(
        "{name:?} is not in the namespace of plugin '{plugin}' (plugin:{plugin}:…)"
    ))
}

/// The full form of an own name.
pub(super) fn full(plugin: &str, name: &str) -> String {
    format!("plugin:{plugin}:{name}")
}

/// What a server may call its own events and providers.
pub(super) fn of_host(name: &str) -> Checked<()> {
    check(name)?;
    let first = name.split([':', '/']).next().unwrap_or_default();
    match ["plugin", "effect"].iter().any(|word| first.eq_ignore_ascii_case(word)) {
        true => Err(NameError::Foreign(format!("{name:?} is in the namespace of plugins"))),
        false => Ok(()),
    }
}

/// A prefix of own keys, possibly empty.
pub(super) fn own_prefix<'n>(plugin: &str, prefix: &'n str) -> Checked<&'n str> {
    let trimmed = prefix.trim_end_matches([':', '/']);
    if prefix.len() - trimmed.len() > 1 {
        check(prefix)?;
    }
    if trimmed.is_empty() {
        return if prefix.is_empty() { Ok("") } else { check(prefix).map(|()| "") };
    }
    if prefix == full(plugin, "") {
        return Ok("");
    }
    let rest = own(plugin, trimmed)?;
    let cut = trimmed.len() - rest.len();
    Ok(&prefix[cut..])
}

/// `*`, `prefix:*`, or a whole name of an event.
pub(super) fn pattern(pattern: &str) -> Checked<()> {
    match pattern {
        "*" => Ok(()),
        _ => {
            let name = pattern.strip_suffix(":*").unwrap_or(pattern);
            match name.contains('*') {
                true => Err(NameError::Invalid(format!(
                    "{:?} is no pattern: use a whole name, PREFIX:* or *",
                    limits::cut(pattern, limits::NAME)
                ))),
                false => check(name),
            }
        }
    }
}

/// An event's name fits a pattern.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

/// The kinds of entities, and what a plugin needs to read and to write them.
const KINDS: [(&str, &str, Option<&str>); 3] = [
    ("session", "session:read", Some("session:write")),
    ("npc", "npc:read", Some("npc:write")),
    ("world", "world:read", None),
];

/// An entity's kind: what reading and writing it need. Nobody may write a world
/// but the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EntityKind {
    pub(super) name: &'static str,
    pub(super) read: &'static str,
    pub(super) write: Option<&'static str>,
}

/// The kind of `KIND/ID`.
pub(super) fn entity(entity: &str) -> Checked<EntityKind> {
    check(entity)?;
    let kind = entity.split_once('/').map(|(kind, _)| kind);
    let known = KINDS.iter().find(|(name, ..)| Some(*name) == kind);
    let Some((name, read, write)) = known.copied() else {
        return Err(NameError::Invalid(format!(
            "{entity:?} is no entity: use session/ID, npc/ID or world/ID"
        )));
    };
    Ok(EntityKind { name, read, write })
}

/// The key of a component that a plugin may write.
pub(super) fn own_component(plugin: &str, name: &str) -> Checked<String> {
    let own = own(plugin, name)?;
    if own == name && PROTECTED.iter().any(|protected| own.eq_ignore_ascii_case(protected)) {
        return Err(NameError::Foreign(format!(
            "the component {name:?} is the host's: plugins may read it, not write it"
        )));
    }
    Ok(full(plugin, own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_own_name_may_be_spelled_with_its_prefix_and_no_other() {
        for name in ["score", "a:b", "a/b", "x@1", "plugin:me:score", "pluginx:y"] {
            let own = own("me", name).unwrap();
            assert_eq!(own, name.strip_prefix("plugin:me:").unwrap_or(name));
        }
        for foreign in [
            "plugin:other:score",
            "plugin:me",
            "plugin",
            "Plugin:me:score",
            "PLUGIN:other:score",
            "plugin/other/score",
            "plugin:mee:score",
            "plugin:me/score",
            "plugin:me:plugin:other:score",
        ] {
            assert!(matches!(own("me", foreign), Err(NameError::Foreign(_))), "{foreign}");
        }
        for invalid in [
            "",
            ":",
            "a::b",
            "plugin::score",
            "plugin:me:",
            "../other",
            "a/../b",
            "a/./b",
            "a b",
            "a\0b",
            "a\nb",
            "рlugin:other:score",
            "plugin\u{ff1a}other:score",
            "\u{200b}plugin:other:score",
            "plugin:other\u{2215}score",
        ] {
            assert!(matches!(own("me", invalid), Err(NameError::Invalid(_))), "{invalid:?}");
        }
        assert!(own("me", &"x".repeat(513)).is_err());
    }

    #[test]
    fn prefixes_patterns_and_components() {
        assert_eq!(own_prefix("me", ""), Ok(""));
        assert_eq!(own_prefix("me", "a:"), Ok("a:"));
        assert_eq!(own_prefix("me", "plugin:me:a:"), Ok("a:"));
        assert_eq!(own_prefix("me", "plugin:me:"), Ok(""));
        assert!(own_prefix("me", "plugin:other:").is_err());
        assert!(own_prefix("me", "a::").is_err() && own_prefix("me", ":").is_err());
        assert!(pattern("*").is_ok() && pattern("plugin:a:*").is_ok() && pattern("a").is_ok());
        assert!(pattern("").is_err() && pattern("a b").is_err() && pattern("plugin:a*").is_err());
        assert!(matches("plugin:a:*", "plugin:a:x") && !matches("plugin:a:*", "plugin:ab:x"));
        assert!(matches("*", "x") && matches("x", "x") && !matches("x", "xy"));
        assert_eq!(own_component("me", "mood2").unwrap(), "plugin:me:mood2");
        assert_eq!(own_component("me", "plugin:me:core").unwrap(), "plugin:me:core");
        for protected in PROTECTED {
            assert!(own_component("me", protected).is_err());
            assert!(own_component("me", &protected.to_uppercase()).is_err());
        }
        assert!(own_component("me", "plugin:other:x").is_err());
        assert_eq!(entity("npc/7").unwrap().write, Some("npc:write"));
        assert_eq!(entity("world/main").unwrap().write, None);
        for wrong in ["npc", "npc/", "thing/1", "npc/../1", "NPC/7"] {
            assert!(entity(wrong).is_err(), "{wrong}");
        }
        assert!(of_host("session.started").is_ok() && of_host("Plugin:a:b").is_err());
    }
}
