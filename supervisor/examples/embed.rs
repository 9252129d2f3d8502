//! A server of your own with the supervisor inside: the same calls as through
//! the daemon, with one process hop instead of two.
//!
//! ```text
//! make plugins
//! cargo run --release -p stockade --example embed -- target/plugins photo.jpg
//! ```

use std::{error::Error, path::PathBuf, time::Duration};

use stockade::{Config, Supervisor, ToolCall, plugin::Attachment};

// Calls are carried on this runtime; a current-thread one is fastest.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let plugins = args.next().unwrap_or_else(|| "target/plugins".to_owned());
    let photo = args.next().unwrap_or_else(|| "plugin-sdk/examples/image/photo.jpg".to_owned());

    let state = std::env::temp_dir().join(format!("stockade-embed-{}", std::process::id()));
    let mut config = Config::new(plugins, &state);
    if !config.worker.exists() {
        config.worker = PathBuf::from("target/release/stockade-worker");
    }
    let supervisor = Supervisor::start(config).await?;
    supervisor.ready("image", Duration::from_secs(10)).await?;

    let call = ToolCall {
        plugin: "image".into(),
        tool: "thumbnail".into(),
        args: r#"{"width": 64}"#.into(),
        attachments: vec![Attachment {
            name: "image".into(),
            content_type: "image/jpeg".into(),
            data: std::fs::read(photo)?.into(),
        }],
        ..ToolCall::default()
    };
    let outcome = supervisor.calls().run(call).await;
    match &outcome.result {
        Ok(success) => println!(
            "{} and {} attachment(s) in {:.1} ms",
            String::from_utf8_lossy(&success.result),
            success.attachments.len(),
            outcome.duration.as_secs_f64() * 1000.0
        ),
        // Whatever the plugin did, this program goes on.
        Err(error) => println!("{}: {error}", error.error_type()),
    }
    supervisor.shutdown().await;
    std::fs::remove_dir_all(state)?;
    Ok(())
}
