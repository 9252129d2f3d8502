//! Misbehaviour before or inside the handshake.

use std::{thread, time::Duration};

/// What happens before the SDK is entered, or (from `init`) while loading.
pub fn misbehave(mode: &str) {
    let (kind, argument) = mode.split_once(':').unwrap_or((mode, "0"));
    let number: i32 = argument.parse().unwrap_or(0);
    match kind {
        "exit" => std::process::exit(number),
        "raise" => drop(unsafe { libc::raise(number) }),
        "hang" => loop {
            thread::sleep(Duration::from_secs(3600));
        },
        "sleep" => thread::sleep(Duration::from_millis(number as u64)),
        "crash-once" => {
            // Dies in the first life, lives in the second.
            let marker = std::path::Path::new(argument);
            if !marker.exists() {
                std::fs::write(marker, "").expect("marker");
                std::process::exit(9);
            }
        }
        "crash-if" => {
            if std::path::Path::new(argument).exists() {
                eprintln!("the file {argument} is there");
                std::process::exit(3);
            }
        }
        "ignore-term" => {
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
        }
        "noise" => {
            println!("hello from stdout, which is no protocol");
            eprintln!("hello from stderr");
        }
        "ready" => {}
        other => panic!("no such misbehaviour: {other}"),
    }
}
