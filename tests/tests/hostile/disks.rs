//! Files that are locked, damaged or cannot be written when the daemon starts.

use std::{path::Path, time::Duration};

use stockade_proto::v1::{CallRequest, PluginState};
use stockade_tests::{Client, Daemon, Options, eventually, small_disk};

use crate::scene::{a_while, problems, timed};

/// Files that were put aside as damaged.
fn put_aside(root: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(root.join("state")).expect("state").flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains("corrupt")).collect()
}

fn with_x() -> Options {
    Options::new().rogue("x", "")
}

/// A daemon whose plugin `x` an operator has disabled.
async fn disabled() -> Daemon {
    let daemon = with_x().start().await;
    daemon.serving("x").await;
    disable(&daemon).await;
    daemon
}

async fn disable(client: &Client) {
    client.admin().disable_plugin(client.action("x")).await.expect("disable");
    client.state("x", PluginState::Loaded, "DISABLED").await;
}

async fn until_well(client: &Client) {
    eventually("nothing is said of stockade.db any more", || async {
        let said = problems(client).await;
        said.iter().all(|problem| !problem.contains("stockade.db")).then_some(())
    })
    .await;
}

/// The file of what operators want is emptied, as by a loss of power: the database tells.
#[tokio::test]
async fn an_emptied_file_of_wishes_starts_nothing_that_was_disabled() {
    let folder = disabled().await.kill().await;
    std::fs::write(folder.path().join("state/wanted"), "").expect("emptied");
    let daemon = with_x().start_in(folder).await;
    daemon.state("x", PluginState::Loaded, "DISABLED").await;
    let said = problems(&daemon).await;
    assert!(said.iter().any(|problem| problem.contains("wanted was damaged")), "{said:?}");
    daemon.stop().await;
}

/// What is disabled stays so when first the one file is lost and later the other one: each
/// is filled again from the other.
#[tokio::test]
async fn what_is_disabled_survives_one_loss_after_the_other() {
    let folder = disabled().await.kill().await;
    let state = folder.path().join("state");
    for side in ["stockade.db-wal", "stockade.db-shm"] {
        let _ = std::fs::remove_file(state.join(side));
    }
    std::fs::write(state.join("stockade.db"), vec![0x5a; 5000]).expect("damage");
    let daemon = with_x().start_in(folder).await;
    daemon.state("x", PluginState::Loaded, "DISABLED").await;
    let wanted = |folder: &tempfile::TempDir| folder.path().join("state/wanted");
    let folder = daemon.kill().await;
    std::fs::remove_file(wanted(&folder)).expect("removed");
    let daemon = still_disabled(folder, "wanted is missing").await;
    let folder = daemon.kill().await;
    // And one that can never be read to its end.
    std::fs::remove_file(wanted(&folder)).expect("removed");
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o666));
    rustix::fs::mknodat(rustix::fs::CWD, wanted(&folder), kind, mode, 0).expect("fifo");
    still_disabled(folder, "not a regular file").await.stop().await;
}

async fn still_disabled(folder: tempfile::TempDir, problem: &str) -> Daemon {
    let daemon = with_x().start_in(folder).await;
    daemon.state("x", PluginState::Loaded, "DISABLED").await;
    let said = problems(&daemon).await;
    assert!(said.iter().any(|said| said.contains(problem)), "{said:?}");
    daemon
}

/// Who is disabled may run while nobody can tell, and no longer.
#[tokio::test]
async fn what_was_disabled_is_again_once_that_can_be_read() {
    let folder = disabled().await.kill().await;
    let state = folder.path().join("state");
    std::fs::write(state.join("wanted"), "").expect("emptied");
    let lock = rusqlite::Connection::open(state.join("stockade.db")).expect("open");
    lock.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE;").expect("lock");
    let daemon = with_x().start_in(folder).await;
    daemon.serving("x").await;
    lock.execute_batch("ROLLBACK").expect("unlock");
    drop(lock);
    daemon.state("x", PluginState::Loaded, "DISABLED").await;
    let daemon = with_x().start_in(daemon.kill().await).await;
    daemon.state("x", PluginState::Loaded, "DISABLED").await;
    daemon.stop().await;
}

/// The same of a plugin that cannot run meanwhile: it does not when it can.
#[tokio::test]
async fn what_was_disabled_and_cannot_run_is_known_to_be_disabled() {
    let place = tempfile::tempdir().expect("folder");
    let model = place.path().join("model.onnx");
    let bring = || {
        std::fs::write(&model, "weights").expect("model");
        stockade_tests::give_to_test_user(place.path());
    };
    bring();
    let more = format!("[requires]\nmodels = {{ m = {:?} }}", model.display().to_string());
    let with_model = || Options::new().rogue("x", &more);
    let daemon = with_model().start().await;
    daemon.serving("x").await;
    disable(&daemon).await;
    let folder = daemon.kill().await;
    std::fs::remove_file(&model).expect("removed");
    let state = folder.path().join("state");
    std::fs::write(state.join("wanted"), "").expect("emptied");
    let lock = rusqlite::Connection::open(state.join("stockade.db")).expect("open");
    lock.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE;").expect("lock");
    let daemon = with_model().start_in(folder).await;
    daemon.until("x", |health| health.state() == PluginState::Unavailable).await;
    lock.execute_batch("ROLLBACK").expect("unlock");
    drop(lock);
    daemon.state("x", PluginState::Loaded, "DISABLED").await;
    bring();
    let daemon = with_model().start_in(daemon.kill().await).await;
    daemon.state("x", PluginState::Loaded, "DISABLED").await;
    daemon.stop().await;
}

/// Files that are missing at a start, or empty, were lost: it is told, workspaces are closed,
/// and what operators want is taken from what is left.
#[tokio::test]
async fn what_is_missing_at_a_start_is_told() {
    for emptied in [false, true] {
        let daemon = with_x().start().await;
        daemon.serving("x").await;
        let (code, _, error) = daemon.cli(&["workspace", "enable", "w", "x", "--only"]).await;
        assert_eq!(code, 0, "{error}");
        disable(&daemon).await;
        let lose = |state: &Path, name: &str| {
            for side in ["-wal", "-shm", ""] {
                let file = state.join(format!("{name}{side}"));
                match emptied && side.is_empty() {
                    true => std::fs::write(&file, "").expect("emptied"),
                    false => drop(std::fs::remove_file(&file)),
                }
            }
        };
        let folder = daemon.kill().await;
        let state = folder.path().join("state");
        lose(&state, "stockade.db");
        lose(&state, "data.db");
        lose(&state, "counters");
        let daemon = with_x().start_in(folder).await;
        daemon.state("x", PluginState::Loaded, "DISABLED").await;
        let said = problems(&daemon).await;
        for name in ["stockade.db was", "data.db was", "counters was"] {
            let told = said.iter().filter(|one| one.contains(name)).count();
            assert!(told >= 1, "{name}: {said:?}");
        }
        let refused = call_in_w(&daemon).await.expect_err("nobody knows");
        assert!(refused.message().contains("data.db was missing or empty"), "{refused}");
        daemon.cli(&["workspace", "reopen"]).await;
        call_in_w(&daemon).await.expect("open again");
        // Both that know what operators want: nothing can tell, and that is told.
        let folder = daemon.kill().await;
        let state = folder.path().join("state");
        lose(&state, "stockade.db");
        lose(&state, "wanted");
        let daemon = with_x().start_in(folder).await;
        daemon.serving("x").await;
        let said = problems(&daemon).await;
        let all = said.iter().any(|one| one.contains("is not known any more: all of them run"));
        assert!(all, "{said:?}");
        // Told once: what was there is there again.
        let daemon = with_x().start_in(daemon.kill().await).await;
        daemon.serving("x").await;
        let said = problems(&daemon).await;
        assert!(!said.iter().any(|one| one.contains("was missing or empty")), "{said:?}");
        call_in_w(&daemon).await.expect("still open");
        // The list of what there has been is lost with it: this is no first start.
        let folder = daemon.kill().await;
        let state = folder.path().join("state");
        lose(&state, "data.db");
        lose(&state, "made");
        let daemon = with_x().start_in(folder).await;
        let refused = call_in_w(&daemon).await.expect_err("nobody knows");
        assert!(refused.message().contains("data.db was missing or empty"), "{refused}");
        daemon.stop().await;
    }
}

async fn dies(daemon: &Daemon) {
    daemon.call("x", "exit", serde_json::json!({"n": 3})).await;
    daemon.serving("x").await;
}

/// A database that is removed while the daemon runs is told, and another one takes its
/// place; of one that is locked nobody is told that nothing has happened.
#[tokio::test]
async fn deaths_are_known_while_the_database_is_locked_or_gone() {
    let daemon = with_x().start().await;
    daemon.serving("x").await;
    let state = daemon.root.join("state");
    let lock = rusqlite::Connection::open(state.join("stockade.db")).expect("open");
    lock.execute_batch("BEGIN IMMEDIATE").expect("lock");
    dies(&daemon).await;
    assert_eq!(daemon.crashes("x").await.len(), 1);
    lock.execute_batch("ROLLBACK").expect("unlock");
    drop(lock);
    for file in ["stockade.db", "stockade.db-wal", "stockade.db-shm"] {
        std::fs::remove_file(state.join(file)).expect("removed");
    }
    dies(&daemon).await;
    let said = problems(&daemon).await;
    assert!(said.iter().any(|problem| problem.contains("was removed or replaced")), "{said:?}");
    let daemon = with_x().start_in(daemon.kill().await).await;
    assert!(!daemon.crashes("x").await.is_empty());
    daemon.stop().await;
}

/// A file that can be opened only once this one is dropped, or after the kernel's patience
/// of 45 s.
fn lease(path: &Path) -> std::fs::File {
    use std::os::fd::AsRawFd as _;
    let file = std::fs::File::create(path).expect("file");
    // Whoever wants it is told of by a signal that nobody minds.
    // Of the kernel's fcntl.h; libc has no name for it.
    const F_SETSIG: libc::c_int = 10;
    for (command, value) in [(F_SETSIG, libc::SIGURG), (libc::F_SETLEASE, libc::F_WRLCK)] {
        let done = unsafe { libc::fcntl(file.as_raw_fd(), command, value) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }
    file
}

/// What operators want while the daemon ends, or while the configuration forbids it anyway,
/// holds afterwards.
#[tokio::test]
async fn what_is_disabled_while_it_cannot_matter_stays_so() {
    let daemon = with_x().start().await;
    daemon.serving("x").await;
    let client = daemon.client();
    let call =
        tokio::spawn(
            async move { client.call("x", "sleep", serde_json::json!({"n": 3000})).await },
        );
    daemon.until("x", |health| health.in_flight > 0).await;
    daemon.signal(libc::SIGTERM);
    daemon.until("x", |health| health.substate == "DRAINING").await;
    daemon.admin().disable_plugin(daemon.action_now("x")).await.expect("disable");
    drop(call);
    let daemon = with_x().start_in(daemon.kill().await).await;
    daemon.state("x", PluginState::Loaded, "DISABLED").await;
    daemon.admin().enable_plugin(daemon.action("x")).await.expect("enable");
    daemon.serving("x").await;
    let forbidding = with_x().config("[plugin.x]\nenabled = false");
    let daemon = forbidding.start_in(daemon.kill().await).await;
    daemon.state("x", PluginState::Loaded, "DISABLED").await;
    daemon.admin().disable_plugin(daemon.action("x")).await.expect("disable");
    let daemon = with_x().start_in(daemon.kill().await).await;
    daemon.state("x", PluginState::Loaded, "DISABLED").await;
    daemon.stop().await;
}

/// A disk that hangs: nobody is told that something is kept which is not, nobody waits for
/// it, and it is kept when the disk answers again.
#[tokio::test]
async fn what_a_hanging_disk_has_not_taken_is_not_acknowledged() {
    let daemon = with_x().start().await;
    daemon.serving("x").await;
    let state = daemon.root.join("state");
    // Whoever opens it to write waits for who has a lease of it.
    let hanging = state.join("wanted.new");
    let lease = lease(&hanging);
    stockade_tests::give_to_test_user(&state);
    let refused = daemon.admin().disable_plugin(daemon.action("x")).await.expect_err("not kept");
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    assert!(refused.message().contains("could not be written"), "{refused}");
    let said = problems(&daemon).await;
    assert!(said.iter().any(|problem| problem.contains("has not answered")), "{said:?}");
    // Neither plugins nor the folders wait for it.
    daemon.state("x", PluginState::Loaded, "DISABLED").await;
    daemon.call("good", "pid", serde_json::json!({})).await.unwrap();
    let (code, text, error) = daemon.cli(&["reload"]).await;
    assert_eq!(code, 0, "{text}{error}");
    // It answers again.
    drop(lease);
    eventually("it is kept", || async {
        let kept = std::fs::read_to_string(state.join("wanted")).unwrap_or_default();
        kept.starts_with("disabled x\n").then_some(())
    })
    .await;
    daemon.admin().disable_plugin(daemon.action("x")).await.expect("kept");
    until_well(&daemon).await;
    daemon.stop().await;
}

/// Finding 11: a database that somebody else has locked is not damaged. What
/// operators wanted is neither renamed nor forgotten.
#[tokio::test]
async fn a_locked_database_is_waited_for() {
    let folder = disabled().await.kill().await;
    let lock = rusqlite::Connection::open(folder.path().join("state/stockade.db")).expect("open");
    lock.pragma_update(None, "locking_mode", "exclusive").expect("exclusive");
    lock.execute_batch("BEGIN IMMEDIATE").expect("lock");
    let daemon = with_x().start_in(folder).await;
    eventually("operators are told", || async {
        let said = problems(&daemon).await;
        said.iter().any(|problem| problem.contains("stockade.db")).then_some(())
    })
    .await;
    assert_eq!(put_aside(&daemon.root), [""; 0]);
    lock.execute_batch("ROLLBACK").expect("unlock");
    drop(lock);
    until_well(&daemon).await;
    daemon.state("x", PluginState::Loaded, "DISABLED").await;
    assert_eq!(put_aside(&daemon.root), [""; 0]);
    // And the next daemon knows it, too.
    let daemon = with_x().start_in(daemon.kill().await).await;
    daemon.state("x", PluginState::Loaded, "DISABLED").await;
    daemon.stop().await;
}

/// While another process holds the database, what operators want is noted and
/// acknowledged as ever.
#[tokio::test]
async fn a_locked_database_slows_no_command() {
    let daemon = with_x().start().await;
    daemon.serving("x").await;
    let lock = rusqlite::Connection::open(daemon.root.join("state/stockade.db")).expect("open");
    lock.execute_batch("BEGIN IMMEDIATE").expect("lock");
    let mut took = Vec::new();
    for _ in 0..5 {
        let (_, one) = timed(disable(&daemon)).await;
        took.push(one);
        let request = daemon.client().action_now("x");
        daemon.client().admin().enable_plugin(request).await.expect("enabled");
    }
    took.sort_unstable();
    // Without its mend a second each; the middle one, for machines that are busy.
    assert!(took[2] < Duration::from_millis(400), "{took:?}");
    lock.execute_batch("ROLLBACK").expect("unlock");
    daemon.stop().await;
}

/// One that is damaged and cannot be put aside is left as it is, told once, and put aside
/// when it can be.
#[tokio::test]
async fn a_damaged_database_that_cannot_be_put_aside_is_told_once() {
    let folder = disabled().await.kill().await;
    let state = folder.path().join("state");
    for side in ["stockade.db-wal", "stockade.db-shm"] {
        let _ = std::fs::remove_file(state.join(side));
    }
    std::fs::write(state.join("stockade.db"), vec![0x5a; 5000]).expect("damage");
    // Its new name is taken, whenever it is tried.
    let now = std::time::UNIX_EPOCH.elapsed().expect("time").as_secs();
    let taken = (now..now + 600).map(|at| state.join(format!("stockade.db.corrupt-{at}")));
    let taken: Vec<_> = taken.collect();
    taken.iter().for_each(|name| std::fs::create_dir(name).expect("folder"));
    let daemon = with_x().start_in(folder).await;
    // It is tried each second.
    a_while().await;
    daemon.state("x", PluginState::Loaded, "DISABLED").await;
    let said = problems(&daemon).await;
    let said: Vec<_> = said.iter().filter(|problem| problem.contains("stockade.db")).collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("cannot be put aside"), "{said:?}");
    let log = daemon.log();
    let lines = log.lines().filter(|line| line.contains("cannot be put aside")).count();
    assert_eq!(lines, 1, "{log}");
    taken.iter().for_each(|name| std::fs::remove_dir(name).expect("folder"));
    eventually("it has been put aside", || async {
        let said = problems(&daemon).await;
        said.iter().any(|problem| problem.contains("starts empty; kept as")).then_some(())
    })
    .await;
    assert_eq!(put_aside(&daemon.root).len(), 1);
    daemon.stop().await;
}

/// Finding 11: neither is one that lies on a full disk.
#[tokio::test]
async fn a_full_disk_at_the_start_damages_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let state = folder.path().join("state");
    std::fs::create_dir(&state).expect("state");
    let Some(disk) = small_disk(&state, "4m") else { return };
    let daemon = with_x().start_in(folder).await;
    daemon.serving("x").await;
    disable(&daemon).await;
    let folder = daemon.kill().await;
    let mut filler = std::fs::File::create(state.join("filler")).expect("filler");
    while std::io::Write::write_all(&mut filler, &[0u8; 512]).is_ok() {}
    let daemon = with_x().start_in(folder).await;
    assert_eq!(put_aside(&daemon.root), [""; 0]);
    std::fs::remove_file(state.join("filler")).expect("filler");
    drop(filler);
    until_well(&daemon).await;
    daemon.state("x", PluginState::Loaded, "DISABLED").await;
    assert_eq!(put_aside(&daemon.root), [""; 0]);
    let folder = daemon.kill().await;
    let daemon = with_x().start_in(folder).await;
    daemon.state("x", PluginState::Loaded, "DISABLED").await;
    // The disk goes first: the folder cannot be removed before.
    let folder = daemon.kill().await;
    drop(disk);
    drop(folder);
}

async fn call_in_w(client: &Client) -> Result<(), tonic::Status> {
    let request = CallRequest {
        plugin: "good".into(),
        tool: "pid".into(),
        workspace: "w".into(),
        ..CallRequest::default()
    };
    client.tools().call(request).await.map(drop)
}

/// Finding 18: when it is not known which plugins are enabled in a workspace, none
/// is; the reason names the file.
#[tokio::test]
async fn a_damaged_data_db_closes_workspaces() {
    for directory in [false, true] {
        let daemon = with_x().start().await;
        daemon.serving("x").await;
        let (code, _, error) = daemon.cli(&["workspace", "enable", "w", "x", "--only"]).await;
        assert_eq!(code, 0, "{error}");
        call_in_w(&daemon).await.expect_err("not enabled there");
        let folder = daemon.kill().await;
        let state = folder.path().join("state");
        for file in ["data.db", "data.db-wal", "data.db-shm"] {
            let _ = std::fs::remove_file(state.join(file));
        }
        match directory {
            true => std::fs::create_dir(state.join("data.db")).expect("directory"),
            false => std::fs::write(state.join("data.db"), vec![0x55; 8192]).expect("damage"),
        }
        let daemon = with_x().start_in(folder).await;
        let refused = call_in_w(&daemon).await.expect_err("nobody knows");
        assert!(refused.message().contains("data.db"), "{refused}");
        // A list that was lost is not begun anew by taking a plugin from it.
        for change in ["disable", "enable"] {
            let (code, text, error) = daemon.cli(&["workspace", change, "w", "good"]).await;
            assert_ne!(code, 0, "{text}{error}");
            call_in_w(&daemon).await.expect_err("still closed");
        }
        let (_, text, _) = daemon.cli(&["status"]).await;
        assert!(text.contains("problem: ") && text.contains("data.db"), "{text}");
        for show in [&["workspace", "list"][..], &["workspace", "show", "w"]] {
            let (code, text, error) = daemon.cli(show).await;
            assert!(code == 0 && text.contains("closed"), "{text}{error}");
        }
        // Outside of workspaces nothing has changed.
        daemon.call("good", "pid", serde_json::json!({})).await.unwrap();
        daemon.stop().await;
    }
}

/// Deaths are in the file, whatever happens to its log.
#[tokio::test]
async fn a_removed_log_loses_no_death() {
    let daemon = with_x().start().await;
    daemon.serving("x").await;
    dies(&daemon).await;
    assert_eq!(daemon.crashes("x").await.len(), 1);
    let log = daemon.root.join("state/stockade.db-wal");
    std::fs::remove_file(&log).expect("removed");
    eventually("there is another log", || async { log.exists().then_some(()) }).await;
    let daemon = with_x().start_in(daemon.kill().await).await;
    daemon.serving("x").await;
    assert_eq!(daemon.crashes("x").await.len(), 1);
    daemon.stop().await;
}

/// A bit that has changed in one row costs that row at most: what can be read holds.
#[tokio::test]
async fn a_row_of_a_wrong_type_costs_no_more_than_itself() {
    let daemon = with_x().start().await;
    daemon.serving("x").await;
    for (workspace, plugin) in [("w", "x"), ("broken", "good"), ("open", "good")] {
        let enable = ["workspace", "enable", workspace, plugin, "--only"];
        let (code, _, error) = daemon.cli(&enable).await;
        assert_eq!(code, 0, "{error}");
    }
    disable(&daemon).await;
    let folder = daemon.kill().await;
    let state = folder.path().join("state");
    let change = |file: &str, sql: &str| {
        let other = rusqlite::Connection::open(state.join(file)).expect("open");
        other.execute_batch(sql).expect("changed");
    };
    change("data.db", "UPDATE workspace SET text = CAST(text AS BLOB) WHERE name = 'w'");
    change("data.db", "UPDATE workspace SET text = 7 WHERE name = 'broken'");
    change("stockade.db", "UPDATE plugin SET wanted = CAST(wanted AS BLOB)");
    std::fs::remove_file(state.join("wanted")).expect("lost");
    let daemon = with_x().start_in(folder).await;
    daemon.state("x", PluginState::Loaded, "DISABLED").await;
    let call = async |workspace: &str| {
        let request = CallRequest {
            plugin: "good".into(),
            tool: "pid".into(),
            workspace: workspace.into(),
            ..CallRequest::default()
        };
        daemon.tools().call(request).await.is_ok()
    };
    assert_eq!((call("w").await, call("broken").await, call("open").await), (false, false, true));
    let (code, _, error) = daemon.cli(&["workspace", "enable", "w", "good"]).await;
    assert_eq!(code, 0, "{error}");
    assert!(call("w").await, "what could be read is changed as ever");
    daemon.stop().await;
}

/// A disk with plugins that is away for a moment ends none of them, and nothing waits for
/// an operator when it is back.
#[tokio::test]
async fn a_plugin_folder_that_is_away_ends_nobody() {
    let daemon = with_x().start().await;
    let pid = daemon.serving("x").await.pid;
    let (there, away) = (daemon.root.join("plugins"), daemon.root.join("away"));
    std::fs::rename(&there, &away).expect("away");
    let (_, text, error) = daemon.cli(&["reload"]).await;
    assert!(error.contains("Its plugins stay as they are"), "{text}{error}");
    let said = problems(&daemon).await;
    assert!(said.iter().any(|said| said.contains("cannot read plugin folder")), "{said:?}");
    assert_eq!(daemon.serving("x").await.pid, pid);
    daemon.call("x", "pid", serde_json::json!({})).await.unwrap();
    std::fs::rename(&away, &there).expect("back");
    eventually("the problem is gone", || async {
        let said = problems(&daemon).await;
        said.iter().all(|said| !said.contains("plugin folder")).then_some(())
    })
    .await;
    assert_eq!(daemon.serving("x").await.pid, pid);
    // A link to a disk that is away is no removal either.
    let disk = daemon.root.join("disk");
    std::fs::create_dir(&disk).expect("disk");
    std::fs::rename(there.join("x"), disk.join("x")).expect("moved");
    std::os::unix::fs::symlink(disk.join("x"), there.join("x")).expect("link");
    daemon.cli(&["reload"]).await;
    let pid = daemon.serving("x").await.pid;
    std::fs::rename(&disk, &away).expect("away");
    let (_, text, error) = daemon.cli(&["reload"]).await;
    assert!(error.contains("Its plugins stay as they are"), "{text}{error}");
    assert_eq!(daemon.serving("x").await.pid, pid);
    std::fs::rename(&away, &disk).expect("back");
    eventually("the problem is gone", || async {
        let said = problems(&daemon).await;
        said.iter().all(|said| !said.contains("plugin folder")).then_some(())
    })
    .await;
    assert_eq!(daemon.serving("x").await.pid, pid);
    // What is removed while the folder can be read is removed.
    std::fs::remove_file(there.join("x")).expect("removed");
    eventually("x is gone", || async {
        let list = daemon.list().await;
        list.plugins.iter().all(|plugin| plugin.name != "x").then_some(())
    })
    .await;
    daemon.stop().await;
}
