//! `stockade-worker --probe UID`: tries each layer of the sandbox in a process of
//! its own and prints, one line each, `LAYER ok [DETAIL]` or `LAYER failed STEP
//! ERRNO`.

use std::{io::Read as _, os::fd::OwnedFd};

use rustix::process::{WaitOptions, getegid, geteuid, waitpid};
use stockade_proto::launch::{Place, Sandbox};

use crate::{Failure, at, landlock, namespaces, new_root, privileges, seccomp, sys};

/// Prints what holds.
pub(crate) fn run(uid: u32) {
    let sandbox = Sandbox {
        namespaces: true,
        scratch: 1 << 20,
        places: vec![Place { path: "/usr".into(), source: "/usr".into(), ..Place::default() }],
        jit: true,
        ..Sandbox::default()
    };
    say("users", "", || privileges::drop_all(uid));
    say("namespaces", "", || in_namespaces(&sandbox));
    let abi = sys::landlock_abi();
    let detail = abi.as_ref().map(ToString::to_string).unwrap_or_default();
    say("landlock", &detail, || {
        abi.map_err(at("landlock"))?;
        sys::no_new_privs().map_err(at("no_new_privs"))?;
        landlock::restrict(&Sandbox { namespaces: false, ..sandbox.clone() })
    });
    say("seccomp", "", || {
        sys::no_new_privs().map_err(at("no_new_privs"))?;
        seccomp::restrict(&sandbox, None)
    });
}

fn in_namespaces(sandbox: &Sandbox) -> Result<(), Failure> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let inside = || {
        namespaces::settle(sandbox, user, group)?;
        new_root::enter(sandbox)?;
        privileges::drop_all(0)
    };
    let forked = tried(|| namespaces::fork_into(sandbox), inside)?;
    forked.map_or(Ok(()), Err)
}

/// Runs `inside` in what `fork` makes; what failed there.
fn tried(
    fork: impl FnOnce() -> Result<Option<rustix::process::Pid>, Failure>,
    inside: impl FnOnce() -> Result<(), Failure>,
) -> Result<Option<Failure>, Failure> {
    let (reader, writer) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(at("pipe"))?;
    let Some(pid) = fork()? else {
        if let Err(failure) = inside() {
            let text = format!("{} {}", failure.step, failure.errno.raw_os_error());
            let _ = rustix::io::write(&writer, text.as_bytes());
        }
        sys::exit_now(0);
    };
    drop(writer);
    let told = read(reader);
    let _ = waitpid(Some(pid), WaitOptions::empty());
    Ok(told.rsplit_once(' ').and_then(|(step, errno)| {
        let errno = rustix::io::Errno::from_raw_os_error(errno.parse().ok()?);
        // A handful, in a process that ends now.
        Some(Failure { step: step.to_owned().leak(), errno })
    }))
}

fn read(reader: OwnedFd) -> String {
    let mut text = String::new();
    let _ = std::fs::File::from(reader).read_to_string(&mut text);
    text
}

fn say(layer: &str, detail: &str, attempt: impl FnOnce() -> Result<(), Failure>) {
    let result = tried(|| sys::fork().map_err(at("fork")), attempt);
    match result.and_then(|failure| failure.map_or(Ok(()), Err)) {
        Ok(()) => println!("{layer} ok {detail}"),
        Err(failure) => {
            let step = failure.step.replace(' ', "-");
            println!("{layer} failed {step} {}", failure.errno.raw_os_error());
        }
    }
}
