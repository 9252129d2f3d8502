//! Requests by curl, as users make them.

use tokio::process::Command;

/// Status and what curl prints besides; 0 when there was no answer.
pub async fn curl(args: &[&str]) -> (u16, String) {
    let output = Command::new("curl")
        .args(["-s", "-m", "20", "-w", "\n%{http_code}"])
        .args(args)
        .output()
        .await
        .expect("curl");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').expect("status");
    (status.parse().expect("status"), body.to_owned())
}
