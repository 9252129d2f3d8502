//! One daemon with the same hostile plugin three times: unconfined, standard,
//! strict.

use std::process::{Child, Command};

use serde_json::{Value, json};
use stockade_tests::{Daemon, Options};

/// The plugins of a prison.
pub const OPEN: &str = "open";
pub const STANDARD: &str = "standard";
pub const STRICT: &str = "strict";

/// An unprivileged user; the daemon's, when the tests run as root.
const USER: u32 = 65_534;

/// Who runs the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Root,
    User,
}

/// As root both, otherwise only the user.
pub fn everybody() -> Vec<Who> {
    match rustix::process::geteuid().is_root() {
        true => vec![Who::Root, Who::User],
        false => vec![Who::User],
    }
}

pub struct Prison {
    pub daemon: Daemon,
    pub who: Who,
}

impl Prison {
    pub async fn new(who: Who) -> Self {
        Self::with(who, "").await
    }

    /// `more` goes behind `profile = …` in each manifest.
    pub async fn with(who: Who, more: &str) -> Self {
        let profile = |name: &str| format!("[sandbox]\nprofile = \"{name}\"\n{more}");
        let mut options = Options::new()
            .alone()
            .rogue(OPEN, &profile("none"))
            .rogue(STANDARD, &profile("standard"))
            .rogue(STRICT, &profile("strict"))
            .config("[plugin.open.sandbox]\nallow_unsandboxed = true\n");
        if who == Who::User && rustix::process::geteuid().is_root() {
            options = options.user(USER);
        }
        let daemon = options.start().await;
        for plugin in [OPEN, STANDARD, STRICT] {
            daemon.serving(plugin).await;
        }
        Prison { daemon, who }
    }

    /// A process of the daemon's user that is nobody's plugin.
    pub fn victim(&self) -> Victim {
        use std::os::unix::process::CommandExt as _;
        let mut command = Command::new("sleep");
        command.arg("600").env("SECRET", "of-the-victim");
        if self.who == Who::User && rustix::process::geteuid().is_root() {
            command.uid(USER).gid(USER);
        }
        Victim(command.spawn().expect("sleep"))
    }

    /// Makes calls in a child of the plugin.
    pub async fn attack(&self, plugin: &str, calls: Value) -> Answers {
        let args = json!({ "calls": calls });
        let result = self.daemon.call(plugin, "attack", args).await.unwrap();
        let results = result["results"].as_array().expect("results");
        Answers {
            results: results.iter().map(Value::as_i64).collect(),
            out: serde_json::from_value(result["out"].clone()).expect("out"),
            signal: result["signal"].as_i64(),
        }
    }

    /// One attempt under each profile: the control succeeds, the others fail
    /// with these errors (in the last call).
    pub async fn refuses(&self, what: &str, calls: Value, standard: i32, strict: i32) {
        let open = self.attack(OPEN, calls.clone()).await;
        assert!(open.last() >= 0, "{:?}: the control of {what}: {open:?}", self.who);
        self.refuses_without_control(what, calls, standard, strict).await;
    }

    /// For what this machine, or the daemon's user, cannot do anyway.
    pub async fn refuses_without_control(
        &self,
        what: &str,
        calls: Value,
        standard: i32,
        strict: i32,
    ) {
        for (plugin, errno) in [(STANDARD, standard), (STRICT, strict)] {
            let answers = self.attack(plugin, calls.clone()).await;
            assert_eq!(
                answers.last(),
                -i64::from(errno),
                "{:?}: {what} under {plugin}: {answers:?}",
                self.who
            );
        }
    }

    pub async fn end(self) {
        self.daemon.stop().await;
    }
}

/// What the kernel answered.
#[derive(Debug)]
pub struct Answers {
    pub results: Vec<Option<i64>>,
    pub out: Vec<String>,
    pub signal: Option<i64>,
}

impl Answers {
    /// The result of the last call.
    pub fn last(&self) -> i64 {
        let last = self.results.last().copied().flatten();
        last.unwrap_or_else(|| panic!("not reached: {self:?}"))
    }
}

pub struct Victim(Child);

impl Victim {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
