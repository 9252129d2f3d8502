//! The test harness: real daemons in temporary folders, asked from outside.

mod bystander;
mod clock;
mod curl;
mod daemon;
mod http;
mod interpreters;
mod notices;
mod outcome;
mod processes;
mod report;
mod skip;

pub use bystander::Bystander;
pub use clock::{Clock, resident, restart};
pub use curl::{curl, curl_with};
pub use daemon::{
    Client, Daemon, Options, as_test_user, binary, environments, give_to_test_user, manifest,
    python_host, target_dir, test_user, write_file,
};
pub use http::{Http, Reply};
pub use interpreters::interpreters;
pub use notices::{Listener, Notices};
pub use outcome::Outcome;
pub use processes::{Family, ancestor, left_in, open_files};
pub use report::{Bounds, Report};
pub use skip::{SmallDisk, skipped, small_disk};

use std::{future::Future, time::Duration};

/// Long enough for a busy machine; a test waits for a state, not for a time.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until the answer is Some.
///
/// # Panics
/// It stayed None for a minute.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, ask: impl Fn() -> F) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
