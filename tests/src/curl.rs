//! Requests by curl, as users make them.

use std::process::Stdio;

use tokio::process::Command;

/// Status and what curl prints besides; 0 when there was no answer.
pub async fn curl(args: &[&str]) -> (u16, String) {
    curl_with(Stdio::null(), args).await
}

/// The same; it reads this.
pub async fn curl_with(input: impl Into<Stdio>, args: &[&str]) -> (u16, String) {
    let output = Command::new("curl")
        .args(["-s", "-m", "20", "-w", "\n%{http_code}"])
        .args(args)
        .stdin(input)
        .output()
        .await
        .expect("curl");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').expect("status");
    (status.parse().expect("status"), body.to_owned())
}
