//! Files outside the grant, and programs in writable places.

use libc::{
    EACCES, ENOENT, ENOSYS, EPERM, EROFS, O_CREAT, O_DIRECTORY, O_RDONLY, O_RDWR, O_TRUNC,
    O_WRONLY, SYS_chmod, SYS_close, SYS_execve, SYS_memfd_create, SYS_open, SYS_rename,
    SYS_sendfile, SYS_symlink, SYS_truncate, SYS_unlink,
};
use serde_json::{Value, json};
use stockade_tests::write_file;

use crate::prison::{OPEN, Prison, STANDARD, STRICT, Who, everybody};

/// 58
#[tokio::test]
async fn what_was_not_granted_is_not_there() {
    for who in everybody() {
        let prison = Prison::new(who).await;
        let secret = prison.daemon.root.join("secret");
        write_file(&secret, "of the operator");
        let open = |path: &str| json!([[SYS_open, path, O_RDONLY]]);
        prison.refuses("the secret", open(&secret.display().to_string()), ENOENT, ENOENT).await;
        let other = prison.daemon.directory(OPEN).join("plugin.toml").display().to_string();
        prison.refuses("another plugin's directory", open(&other), ENOENT, ENOENT).await;
        let data = prison.daemon.data(OPEN).display().to_string();
        let folder = json!([[SYS_open, data, O_DIRECTORY]]);
        prison.refuses("another plugin's data", folder, ENOENT, ENOENT).await;
        prison.refuses("the home", open("/home"), ENOENT, ENOENT).await;
        prison.refuses("a configuration", open("/etc/fstab"), ENOENT, ENOENT).await;
        prison.refuses("the machine's devices", open("/dev/ptmx"), ENOENT, ENOENT).await;
        prison.refuses("the kernel's settings", open("/sys/kernel"), ENOENT, ENOENT).await;
        if who == Who::Root {
            prison.refuses("passwords", open("/etc/shadow"), ENOENT, ENOENT).await;
        }
        prison.end().await;
    }
}

/// 58: a link in the writable folder leads nowhere else than the folder's
/// owner could go.
#[tokio::test]
async fn a_link_out_of_the_data_directory_leads_nowhere() {
    for who in everybody() {
        let prison = Prison::new(who).await;
        let secret = prison.daemon.root.join("secret");
        write_file(&secret, "of the operator");
        for plugin in [STANDARD, STRICT] {
            let link = prison.daemon.data(plugin).join("link").display().to_string();
            let calls = json!([
                [SYS_symlink, secret.display().to_string(), link],
                [SYS_open, link, O_RDONLY]
            ]);
            let answers = prison.attack(plugin, calls).await;
            assert_eq!(answers.results, [Some(0), Some(-i64::from(ENOENT))], "{plugin}");
        }
        prison.end().await;
    }
}

/// 59
#[tokio::test]
async fn its_own_directory_cannot_be_changed() {
    for who in everybody() {
        let prison = Prison::new(who).await;
        // Owned by root, it is refused by its mode before the mount is asked.
        let owned = if who == Who::Root { EACCES } else { EROFS };
        for plugin in [STANDARD, STRICT] {
            let directory = prison.daemon.directory(plugin);
            let file = directory.join("plugin.toml").display().to_string();
            let new = directory.join("new").display().to_string();
            let attempts: [(&str, Value, i32); 8] = [
                ("write", json!([[SYS_open, file, O_WRONLY]]), owned),
                ("truncate by open", json!([[SYS_open, file, O_WRONLY | O_TRUNC]]), EROFS),
                ("truncate", json!([[SYS_truncate, file, 0]]), owned),
                ("create", json!([[SYS_open, new, O_CREAT | O_WRONLY, 0o644]]), EROFS),
                ("unlink", json!([[SYS_unlink, file]]), EROFS),
                ("chmod", json!([[SYS_chmod, file, 0o777]]), EROFS),
                ("rename", json!([[SYS_rename, file, new]]), EROFS),
                ("symlink", json!([[SYS_symlink, "/etc/passwd", new]]), EROFS),
            ];
            for (what, calls, errno) in attempts {
                let answers = prison.attack(plugin, calls).await;
                assert_eq!(answers.last(), -i64::from(errno), "{who:?} {plugin} {what}");
            }
        }
        // The control: without a sandbox it is the plugin's own to change.
        let new = prison.daemon.directory(OPEN).join("new").display().to_string();
        let calls = json!([[SYS_open, new, O_CREAT | O_WRONLY, 0o644], [SYS_unlink, new]]);
        assert_eq!(prison.attack(OPEN, calls).await.last(), 0);
        prison.end().await;
    }
}

fn program_in(folder: &str) -> Value {
    let program = format!("{folder}/program");
    json!([
        [SYS_open, "/usr/bin/true", O_RDONLY],
        [SYS_open, program, O_CREAT | O_TRUNC | O_WRONLY, 0o755],
        [SYS_sendfile, {"ret": 1}, {"ret": 0}, 0, 1 << 24],
        [SYS_close, {"ret": 1}],
        [SYS_execve, program, 0, 0]
    ])
}

/// 71
#[tokio::test]
async fn nothing_is_executed_from_where_it_can_write() {
    for who in everybody() {
        let prison = Prison::new(who).await;
        let data = |plugin: &str| prison.daemon.data(plugin).display().to_string();
        // An exec that succeeds does not come back.
        let control = prison.attack(OPEN, program_in(&data(OPEN))).await;
        assert_eq!((control.results.last(), control.signal), (Some(&None), None), "{control:?}");
        for (plugin, errno) in [(STANDARD, EACCES), (STRICT, EPERM)] {
            for folder in [data(plugin), "/tmp".into(), "/dev/shm".into()] {
                let answers = prison.attack(plugin, program_in(&folder)).await;
                assert!(answers.results[2] > Some(0), "{answers:?}");
                assert_eq!(answers.last(), -i64::from(errno), "{who:?} {plugin} {folder}");
            }
        }
        let memfd = json!([[SYS_memfd_create, "program", 0]]);
        prison.refuses("a program in memory", memfd, ENOSYS, ENOSYS).await;
        prison.end().await;
    }
}

/// 71: strict executes nothing at all; standard what the system has.
#[tokio::test]
async fn strict_executes_nothing() {
    for who in everybody() {
        let prison = Prison::new(who).await;
        let calls = json!([[SYS_execve, "/usr/bin/true", 0, 0]]);
        for plugin in [OPEN, STANDARD] {
            let answers = prison.attack(plugin, calls.clone()).await;
            assert_eq!((&answers.results[0], answers.signal), (&None, None), "{plugin}");
        }
        assert_eq!(prison.attack(STRICT, calls).await.last(), -i64::from(EPERM));
        prison.end().await;
    }
}

/// What it is for: its data directory, /tmp and /dev/shm are writable, what was
/// granted is there, and nothing more.
#[tokio::test]
async fn grants_are_exactly_what_they_say() {
    for who in everybody() {
        let place = tempfile::tempdir().expect("folder");
        std::os::unix::fs::chown(place.path(), Some(65_534), Some(65_534)).unwrap_or_default();
        let at = |name: &str| place.path().join(name).display().to_string();
        for name in ["read", "write", "neither"] {
            std::fs::create_dir(at(name)).expect("folder");
            write_file(&place.path().join(name).join("file"), "content");
            for path in [at(name), at(&format!("{name}/file"))] {
                use std::os::unix::fs::PermissionsExt as _;
                let mode = std::fs::Permissions::from_mode(0o777);
                std::fs::set_permissions(path, mode).expect("mode");
            }
        }
        let more = format!("fs = {{ read = [{:?}], write = [{:?}] }}", at("read"), at("write"));
        let prison = Prison::with(who, &more).await;
        let opens = |path: String, flags: i32| json!([[SYS_open, path, flags, 0o644]]);
        for plugin in [STANDARD, STRICT] {
            let home = prison.daemon.data(plugin).join("file").display().to_string();
            for (path, flags, answer) in [
                (at("read/file"), O_RDONLY, 0),
                (at("read/file"), O_RDWR, EROFS),
                (at("read/new"), O_CREAT | O_RDWR, EROFS),
                (at("write/file"), O_RDWR, 0),
                (at(&format!("write/{plugin}")), O_CREAT | O_RDWR, 0),
                (at("neither/file"), O_RDONLY, ENOENT),
                (home, O_CREAT | O_RDWR, 0),
                ("/tmp/file".into(), O_CREAT | O_RDWR, 0),
                ("/dev/shm/file".into(), O_CREAT | O_RDWR, 0),
                ("/dev/null".into(), O_RDWR, 0),
                ("/usr/bin/env".into(), O_RDONLY, 0),
                ("/etc/ld.so.cache".into(), O_RDONLY, 0),
                ("/proc/self/status".into(), O_RDONLY, 0),
                ("/new".into(), O_CREAT | O_RDWR, EROFS),
            ] {
                let last = prison.attack(plugin, opens(path.clone(), flags)).await.last();
                match answer {
                    0 => assert!(last >= 0, "{who:?} {plugin} {path}: {last}"),
                    errno => assert_eq!(last, -i64::from(errno), "{who:?} {plugin} {path}"),
                }
            }
        }
        prison.end().await;
    }
}
