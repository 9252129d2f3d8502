//! What a plugin may ask of the host (`[permissions]`), and what the operator
//! allows of it: requested ∩ allowed = granted.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::document::Table;

/// Every permission that is a plain word.
const KNOWN: [&str; 20] = [
    "world:read",
    "session:read",
    "session:write",
    "npc:read",
    "npc:write",
    "behavior:extend_conditions",
    "behavior:extend_effects",
    "behavior:configure_simulation",
    "generation:submit",
    "generation:read",
    "log:emit",
    "event:subscribe",
    "event:emit",
    "admin:routes",
    "db:read",
    "db:write",
    "redis:read",
    "redis:write",
    "kv:read",
    "kv:write",
];

const READONLY: [&str; 4] = ["world:read", "session:read", "npc:read", "log:emit"];

/// The groups: whether `group:readonly` is part of it, and what more.
const GROUPS: [(&str, bool, &[&str]); 6] = [
    ("group:readonly", true, &[]),
    ("group:gameplay", true, &["session:write", "npc:write"]),
    ("group:behavior", true, &["behavior:extend_conditions", "behavior:extend_effects"]),
    ("group:event_handler", false, &["event:subscribe", "log:emit"]),
    ("group:generation", true, &["generation:submit", "generation:read"]),
    ("group:admin", true, &["admin:routes"]),
];

/// Before the name of a plugin that may be called.
const CALL: &str = "plugin:call:";

/// Two names of one thing.
const ALIASES: [(&str, &str); 2] = [("kv:read", "redis:read"), ("kv:write", "redis:write")];

fn alias(permission: &str) -> Option<&'static str> {
    ALIASES.iter().find_map(|(one, other)| match permission {
        name if name == *one => Some(*other),
        name if name == *other => Some(*one),
        _ => None,
    })
}

/// Permissions that deserve a second look.
const RISKY: [(&str, &str); 2] = [
    ("db:write", "it can change whatever the server's database provider lets it"),
    ("admin:routes", "it is meant for plugins of the server's own operators"),
];

/// A permission that exists: one of the known ones, `plugin:call[:NAME]`, or
/// `provider:NAME` for what a server provides under a name of its own.
pub fn known_permission(permission: &str) -> bool {
    let part = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.:".contains(&b))
            && text.split(':').all(|part| !part.is_empty())
    };
    KNOWN.contains(&permission)
        || permission == "plugin:call"
        || permission.strip_prefix("plugin:call:").is_some_and(super::valid_name)
        || permission.strip_prefix("provider:").is_some_and(part)
}

/// What is wrong with asking for this, if anything is.
pub fn risk(permission: &str) -> Option<&'static str> {
    RISKY.iter().find(|(name, _)| *name == permission).map(|(_, why)| *why)
}

/// The known permissions and groups, for suggestions and completions.
fn permission_words() -> impl Iterator<Item = &'static str> {
    let groups = GROUPS.iter().map(|(name, ..)| *name);
    KNOWN.into_iter().chain(["plugin:call"]).chain(groups)
}

/// The permissions of one plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Permissions {
    /// As the author wrote it, groups and all.
    pub requested: Vec<String>,
    /// What it may.
    pub granted: BTreeSet<String>,
    /// Requested, and not allowed by the operator.
    pub denied: BTreeSet<String>,
    /// Requested, and nothing that exists.
    pub unknown: BTreeSet<String>,
}

impl Permissions {
    /// Everything known of what was requested, groups as what they stand for.
    pub fn of_request(requested: Vec<String>) -> Self {
        let mut permissions = Permissions::default();
        for name in &requested {
            match GROUPS.iter().find(|(group, ..)| group == name) {
                Some((_, readonly, more)) => {
                    let readonly = readonly.then_some(READONLY).into_iter().flatten();
                    let all = readonly.chain(more.iter().copied());
                    permissions.granted.extend(all.map(str::to_owned));
                }
                None if known_permission(name) => {
                    permissions.granted.insert(name.clone());
                }
                None => {
                    permissions.unknown.insert(name.clone());
                }
            }
        }
        permissions.requested = requested;
        permissions
    }

    /// It was granted, by itself or by what includes it.
    pub fn has(&self, permission: &str) -> bool {
        self.granted.contains(permission)
            || (permission.starts_with(CALL)
                && self.granted.contains("plugin:call")
                && !self.denied.contains(permission))
    }

    /// Warnings for the author and the operator.
    pub(super) fn warnings(&self) -> Vec<String> {
        let unknown = self.unknown.iter().map(|name| {
            let near = permission_words()
                .min_by_key(|word| strsim::damerau_levenshtein(name, word))
                .filter(|word| strsim::damerau_levenshtein(name, word) <= 3);
            let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            format!("the permission {name:?} is unknown and not granted{hint}")
        });
        let risky = self.granted.iter().filter_map(|name| {
            let why = risk(name)?;
            Some(format!("the permission \"{name}\" is a powerful one: {why}"))
        });
        unknown.chain(risky).collect()
    }
}

/// Reads a manifest's `[permissions]`.
pub(super) fn read_permissions(table: Table<'_>) -> Permissions {
    let permissions = Permissions::of_request(table.texts("request").unwrap_or_default());
    for warning in permissions.warnings() {
        table.warn("request", warning);
    }
    table.finish();
    permissions
}

/// The operator's word: `[permissions]` of the configuration or of `[plugin.NAME]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PermissionLists {
    /// Nothing else is granted; None = everything may be.
    allow: Option<Vec<String>>,
    /// Never granted.
    deny: Vec<String>,
}

impl PermissionLists {
    /// Reads `allow` and `deny`.
    pub fn of_operator(table: Table<'_>) -> Self {
        let lists = PermissionLists {
            allow: table.texts("allow"),
            deny: table.texts("deny").unwrap_or_default(),
        };
        let keys = [("allow", lists.allow.as_deref().unwrap_or_default()), ("deny", &lists.deny)];
        for (key, list) in keys {
            for name in list {
                let group = GROUPS.iter().any(|(group, ..)| group == name);
                if !group && name != "*" && !known_permission(name) {
                    table.error(key, format!("`permissions.{key}`: {name:?} is no permission"));
                }
            }
        }
        table.finish();
        lists
    }

    /// Changes when any of it does.
    pub fn fingerprint(&self) -> u64 {
        use std::hash::{Hash as _, Hasher as _};
        let mut hasher = std::hash::DefaultHasher::new();
        (&self.allow, &self.deny).hash(&mut hasher);
        hasher.finish()
    }

    /// A plugin's own lists over the global ones: its `allow` replaces theirs,
    /// what either denies is denied.
    #[must_use]
    pub fn under(&self, own: Option<&PermissionLists>) -> PermissionLists {
        let Some(own) = own else { return self.clone() };
        PermissionLists {
            allow: own.allow.clone().or_else(|| self.allow.clone()),
            deny: self.deny.iter().chain(&own.deny).cloned().collect(),
        }
    }

    /// Takes away what is not allowed, and notes it.
    pub fn apply(&self, permissions: &mut Permissions) {
        let expand = |list: &[String]| Permissions::of_request(list.to_vec());
        let allowed =
            self.allow.as_deref().map(|list| (list.iter().any(|n| n == "*"), expand(list)));
        let denied = (self.deny.iter().any(|name| name == "*"), expand(&self.deny));
        let fine = |name: &String| {
            allowed.as_ref().is_none_or(|(all, list)| *all || list.has(name))
                && !(denied.0
                    || denied.1.has(name)
                    || alias(name).is_some_and(|other| denied.1.has(other)))
        };
        let (granted, refused) =
            std::mem::take(&mut permissions.granted).into_iter().partition(fine);
        permissions.granted = granted;
        permissions.denied.extend::<BTreeSet<String>>(refused);
        // Single plugins, out of all that it may call.
        if permissions.granted.contains("plugin:call") {
            let single = self.deny.iter().filter(|name| name.starts_with(CALL));
            permissions.denied.extend(single.cloned());
        }
    }

    /// What a later file says, laid over this.
    pub fn add(&mut self, later: PermissionLists) {
        self.allow = later.allow.or(self.allow.take());
        self.deny.extend(later.deny);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn names(set: &BTreeSet<String>) -> Vec<&str> {
        set.iter().map(String::as_str).collect()
    }

    #[test]
    fn groups_are_what_they_stand_for_and_unknown_ones_are_not_granted() {
        let permissions =
            Permissions::of_request(list(&["group:behavior", "kv:reed", "plugin:call:x"]));
        assert_eq!(
            names(&permissions.granted),
            [
                "behavior:extend_conditions",
                "behavior:extend_effects",
                "log:emit",
                "npc:read",
                "plugin:call:x",
                "session:read",
                "world:read"
            ]
        );
        assert_eq!(names(&permissions.unknown), ["kv:reed"]);
        assert_eq!(
            permissions.warnings(),
            ["the permission \"kv:reed\" is unknown and not granted; did you mean `kv:read`?"]
        );
        assert!(permissions.has("plugin:call:x") && !permissions.has("plugin:call:y"));
        let all = Permissions::of_request(list(&["plugin:call"]));
        assert!(all.has("plugin:call:y") && all.has("plugin:call"));
        assert_eq!(Permissions::of_request(list(&["db:write"])).warnings().len(), 1);
        for wrong in
            ["", "kv", "kv:", "plugin:call:", "plugin:call:X", "provider:", "provider:a::b"]
        {
            assert!(!known_permission(wrong), "{wrong}");
        }
    }

    #[test]
    fn the_operator_has_the_last_word() {
        let requested = list(&["kv:read", "kv:write", "event:emit", "plugin:call:x"]);
        let check = |lists: PermissionLists, granted: &[&str]| {
            let mut permissions = Permissions::of_request(requested.clone());
            lists.apply(&mut permissions);
            assert_eq!(names(&permissions.granted), granted, "{lists:?}");
            assert_eq!(permissions.granted.len() + permissions.denied.len(), 4);
        };
        let lists = |allow: Option<&[&str]>, deny: &[&str]| PermissionLists {
            allow: allow.map(list),
            deny: list(deny),
        };
        check(lists(None, &[]), &["event:emit", "kv:read", "kv:write", "plugin:call:x"]);
        check(lists(None, &["kv:write"]), &["event:emit", "kv:read", "plugin:call:x"]);
        check(lists(Some(&["kv:read", "plugin:call"]), &[]), &["kv:read", "plugin:call:x"]);
        check(lists(Some(&["*"]), &["plugin:call"]), &["event:emit", "kv:read", "kv:write"]);
        check(lists(None, &["*"]), &[]);
        let mut all = Permissions::of_request(list(&["plugin:call", "redis:write"]));
        lists(None, &["plugin:call:x", "kv:write"]).apply(&mut all);
        assert!(all.has("plugin:call:y") && !all.has("plugin:call:x"));
        assert!(!all.has("redis:write"), "another name of the same");
        let mut merged = lists(Some(&["kv:read"]), &["npc:read"]);
        merged.add(lists(None, &["event:emit"]));
        assert_eq!(merged, lists(Some(&["kv:read"]), &["npc:read", "event:emit"]));
        let global = lists(Some(&["kv:read"]), &["event:emit"]);
        let own = lists(Some(&["*"]), &["kv:write"]);
        check(global.under(Some(&own)), &["kv:read", "plugin:call:x"]);
    }
}
