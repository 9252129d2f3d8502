//! A daemon with some plugins, pinned or not.

use std::{fs, path::Path, time::Duration};

use stockade_proto::v1::{ListPluginsRequest, PluginHealth, plugins_client::PluginsClient};
use stockade_tests::binary;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::clients::connect;

/// The manifest of the smallest plugin; `more` goes behind `[run]`.
pub fn minimal(more: &str) -> String {
    format!("name = \"minimal\"\n[run]\nbinary = \"bin/minimal\"\n{more}\n")
}

/// A plugin's directory; `bin/PROGRAM` is what its manifest names.
pub fn write(directory: &Path, program: &str, toml: &str) {
    fs::create_dir_all(directory.join("bin")).expect("bin");
    let target = directory.join("bin").join(program);
    if fs::hard_link(binary(program), &target).is_err() {
        fs::copy(binary(program), &target).expect("copy");
    }
    fs::write(directory.join("plugin.toml"), toml).expect("plugin.toml");
}

pub struct Scene {
    folder: TempDir,
    daemon: Child,
}

impl Scene {
    /// `plugins`: directory name and manifest; waits until the daemon answers.
    pub async fn start(pin: Option<&str>, plugins: &[(&str, String)], config: &str) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let root = folder.path();
        fs::create_dir_all(root.join("plugins")).expect("plugins");
        for (name, toml) in plugins {
            let program = if toml.contains("bin/rogue") { "rogue" } else { "minimal" };
            write(&root.join("plugins").join(name), program, toml);
        }
        Self::start_in(folder, pin, config, plugins.len() == 1).await
    }

    /// With one plugin `minimal` that `write` lays out.
    pub async fn start_with(pin: Option<&str>, write: impl Fn(&Path)) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        write(&folder.path().join("plugins/minimal"));
        Self::start_in(folder, pin, "", true).await
    }

    async fn start_in(folder: TempDir, pin: Option<&str>, config: &str, wait: bool) -> Self {
        let root = folder.path();
        fs::write(root.join("stockade.toml"), config).expect("config");
        let mut command = Command::new("taskset");
        command.args(["-c", pin.unwrap_or("0,1")]).arg(binary("stockade"));
        let daemon = command
            .args(["serve", "--listen", "none", "--log", "off"])
            .arg("--plugins")
            .arg(root.join("plugins"))
            .arg("--state-dir")
            .arg(root.join("state"))
            .arg("--socket")
            .arg(root.join("s.sock"))
            .arg("--config")
            .arg(root.join("stockade.toml"))
            .kill_on_drop(true)
            .spawn()
            .expect("stockade");
        let scene = Scene { folder, daemon };
        while tokio::net::UnixStream::connect(scene.socket()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        if wait {
            scene.all_serving(1).await;
        }
        scene
    }

    pub fn socket(&self) -> String {
        self.folder.path().join("s.sock").display().to_string()
    }

    pub fn pid(&self) -> u32 {
        self.daemon.id().expect("running")
    }

    pub async fn list(&self) -> Vec<PluginHealth> {
        let mut client =
            PluginsClient::new(connect(&self.socket()).await).max_decoding_message_size(64 << 20);
        client.list_plugins(ListPluginsRequest {}).await.expect("list").into_inner().plugins
    }

    pub async fn all_serving(&self, count: usize) {
        let mut client =
            PluginsClient::new(connect(&self.socket()).await).max_decoding_message_size(64 << 20);
        loop {
            let list = client.list_plugins(ListPluginsRequest {}).await.expect("list").into_inner();
            let up = list.plugins.iter().filter(|plugin| plugin.uptime_seconds.is_some()).count();
            if up == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn stop(mut self) {
        unsafe { libc::kill(self.pid() as i32, libc::SIGTERM) };
        self.daemon.wait().await.expect("wait");
    }
}
