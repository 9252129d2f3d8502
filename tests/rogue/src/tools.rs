//! Misbehaviour in a call, one tool per kind.

use std::{
    io::Write as _,
    os::unix::process::CommandExt as _,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use stockade_plugin_sdk::prelude::*;

use crate::start;

pub struct Rogue {
    pub heard: std::sync::Mutex<Vec<String>>,
    pub host: stockade_plugin_sdk::host::Host,
    pub tally: std::sync::atomic::AtomicU64,
    hang_in_shutdown: bool,
    cancelled_seen: Arc<AtomicBool>,
}

#[derive(Deserialize, JsonSchema)]
struct Number {
    #[serde(default)]
    n: i64,
}

#[derive(Deserialize, JsonSchema)]
struct Text {
    #[serde(default)]
    text: String,
}

#[derive(Deserialize, JsonSchema)]
struct Hog {
    kind: String,
    mib: usize,
}

#[derive(Deserialize, JsonSchema)]
struct Echo {
    text: String,
    #[serde(default)]
    blob: Option<Blob>,
}

#[derive(Serialize, JsonSchema)]
struct Echoed {
    text: String,
    blob: Option<Blob>,
}

/// What a process sees of itself.
#[derive(Serialize, JsonSchema)]
struct Surroundings {
    descriptors: Vec<String>,
    environment: Vec<String>,
    blocked_signals: String,
    ignored_signals: String,
    umask: String,
    no_new_privs: String,
    session_is_own: bool,
    oom_score_adj: String,
    nice: i32,
    working_directory: String,
    pid: u32,
}

impl Plugin for Rogue {
    fn init(context: &InitContext) -> Result<Self> {
        let args: Vec<String> = std::env::args().collect();
        for pair in args.windows(2) {
            match pair[0].as_str() {
                "--in-init" => start::misbehave(&pair[1]),
                "--init-error" => return Err(Error::new("ValueError", pair[1].clone())),
                "--init-missing" => return Err(Error::missing(pair[1].clone(), "Put it there.")),
                "--init-panic" => panic!("{}", pair[1]),
                "--slow-init" => {
                    // Steps of 100 ms, each with a report.
                    let steps: u32 = pair[1].parse().expect("steps");
                    for step in 0..steps {
                        thread::sleep(Duration::from_millis(100));
                        context.progress(f64::from(step + 1) / f64::from(steps), "loading");
                    }
                }
                "--heap" => {
                    let mib: usize = pair[1].parse().expect("MiB");
                    std::mem::forget(vec![1u8; mib << 20]);
                }
                _ => {}
            }
        }
        let has = |flag: &str| args.iter().any(|arg| arg == flag);
        if has("--spin") {
            thread::spawn(|| {
                loop {
                    std::hint::spin_loop();
                }
            });
        }
        Ok(Rogue {
            heard: Default::default(),
            host: context.host(),
            tally: Default::default(),
            hang_in_shutdown: has("--hang-in-shutdown"),
            cancelled_seen: Arc::default(),
        })
    }

    fn validate(&self) -> Result<()> {
        match std::env::args().any(|arg| arg == "--invalid") {
            true => Err(Error::new("ValueError", "the model has no classes")),
            false => Ok(()),
        }
    }

    fn shutdown(&self) {
        if self.hang_in_shutdown {
            thread::sleep(Duration::from_secs(3600));
        }
        eprintln!("<6>shut down in order");
    }

    fn tools(tools: &mut Tools<Self>) {
        good(tools);
        deaths(tools);
        hangs(tools);
        output(tools);
        resources(tools);
        crate::attack::add(tools);
        crate::floods::add(tools);
        crate::hosting::register(tools);
    }
}

/// What works.
fn good(tools: &mut Tools<Rogue>) {
    tools
        .add("echo", "Gives back what it got", |_, args: Echo, _| {
            Ok(Echoed { text: args.text, blob: args.blob })
        })
        .add_async("ping", "The shortest call", |_, args: Text, _| async move { Ok(args.text) })
        .add("pid", "The process id", |_, _: (), _| Ok(std::process::id()))
        .add("raise", "Returns an error", |_, args: Text, _| {
            Err::<(), _>(Error::new("ValueError", args.text))
        })
        .add("panic", "Panics", |_, args: Text, _| -> Result<()> { panic!("{}", args.text) })
        .add_async("panic_async", "Panics, async", |_, args: Text, _| async move {
            if args.text.is_empty() {
                panic!("async panic");
            }
            Ok(args.text)
        })
        .add("log", "Writes a line", |_, args: Text, context| {
            context.log(Level::Warn, &args.text);
            println!("plain {}", args.text);
            Ok(())
        })
        .add("surroundings", "What the process sees", |_, _: (), _| surroundings())
        .add("self", "Asks the host who it is", |_, _: (), context| {
            let info = context.host().get_self().wait()?;
            Ok(format!("{} {} {}", info.plugin, info.version, info.generation))
        })
        .add("cancelled", "Was the last `wait` cancelled?", |rogue, _: (), _| {
            Ok(rogue.cancelled_seen.load(Ordering::SeqCst))
        })
        .stream("count", "Emits numbers", |_, args: Number, context| {
            for n in 0..args.n {
                context.progress(n as f64 / args.n as f64, "counting");
                context.emit(&n)?;
            }
            Ok(args.n)
        });
}

/// What kills the process.
fn deaths(tools: &mut Tools<Rogue>) {
    tools
        .add("exit", "Exits with a code", |_, args: Number, _| -> Result<()> {
            std::process::exit(args.n as i32)
        })
        .add("signal", "Raises a signal", |_, args: Number, _| {
            unsafe { libc::raise(args.n as i32) };
            thread::sleep(Duration::from_secs(10));
            Ok(())
        })
        .add("segfault", "Writes to address 8", |_, _: (), _| {
            unsafe { std::ptr::write_volatile(8 as *mut u8, 1) };
            Ok(())
        })
        .add("overflow", "Recurses without end", |_, _: (), _| Ok(recurse(1)))
        .add("abort", "Aborts", |_, _: (), _| -> Result<()> { std::process::abort() })
        .add("words_then_exit", "Says why, then exits", |_, args: Text, _| -> Result<()> {
            eprintln!("{}", args.text);
            std::process::exit(1)
        })
        .add("close_channels", "Closes descriptors", |_, args: Number, _| {
            for fd in [3, 4].into_iter().filter(|fd| args.n == 0 || args.n == *fd) {
                // The descriptor belongs to the SDK: that is the misbehaviour.
                unsafe { libc::shutdown(fd as i32, libc::SHUT_RDWR) };
            }
            thread::sleep(Duration::from_secs(600));
            Ok(())
        })
        .add("false_notice", "Announces a death that does not come", |_, _: (), _| {
            let mut words = [0u64; stockade_proto::notice::WORDS];
            words[0] = stockade_proto::notice::MAGIC;
            words[1] = libc::SIGSEGV as u64;
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            unsafe { libc::write(5, bytes.as_ptr().cast(), bytes.len()) };
            thread::sleep(Duration::from_secs(600));
            Ok(())
        });
}

#[expect(unconditional_recursion, reason = "that is what it is for")]
fn recurse(n: u64) -> u64 {
    let frame = [n; 64];
    std::hint::black_box(&frame);
    recurse(n + 1) + frame[3]
}

/// What never comes back, or late.
fn hangs(tools: &mut Tools<Rogue>) {
    tools
        .add("sleep", "Sleeps for n ms, deaf to cancellation", |_, args: Number, _| {
            thread::sleep(Duration::from_millis(args.n as u64));
            Ok(args.n)
        })
        .add("wait", "Waits for n ms or the cancellation", |rogue, args: Number, context| {
            rogue.cancelled_seen.store(false, Ordering::SeqCst);
            let end = Instant::now() + Duration::from_millis(args.n as u64);
            while Instant::now() < end {
                if context.is_cancelled() {
                    rogue.cancelled_seen.store(true, Ordering::SeqCst);
                    return Err(Error::cancelled());
                }
                thread::sleep(Duration::from_millis(2));
            }
            Ok(args.n)
        })
        .add("stop_self", "Stops its own process", |_, _: (), _| {
            unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) };
            Ok(())
        })
        .add_async("block_runtime", "Blocks the runtime", |_, args: Number, _| async move {
            thread::sleep(Duration::from_millis(args.n as u64));
            Ok(args.n)
        });
}

/// What floods.
fn output(tools: &mut Tools<Rogue>) {
    tools
        .add("print", "Writes n MiB to stdout without a newline", |_, args: Number, _| {
            let block = vec![b'x'; 1 << 20];
            let mut out = std::io::stdout().lock();
            for _ in 0..args.n {
                out.write_all(&block)?;
            }
            Ok(())
        })
        .add("junk", "Writes invalid UTF-8, ANSI, NUL", |_, _: (), _| {
            std::io::stdout().write_all(b"\x1b[31mred\0\xff\xfe\n")?;
            std::io::stdout().flush()?;
            Ok(())
        })
        .add("close_stdout", "Closes stdout and stderr", |_, _: (), _| {
            unsafe {
                libc::close(1);
                libc::close(2);
            }
            Ok(())
        })
        .add("huge", "Returns n MiB", |_, args: Number, _| Ok("x".repeat((args.n as usize) << 20)))
        .stream("flood_progress", "Reports progress without end", |_, args: Number, context| {
            let end = Instant::now() + Duration::from_millis(args.n as u64);
            while Instant::now() < end {
                context.progress(0.5, "again");
            }
            Ok(())
        });
}

/// What uses too much.
/// Touches so many MiB of a kind of memory, then stays a while.
fn hog(kind: &str, mib: usize) -> Result<usize> {
    let file = |path: &str| -> Result<()> {
        let mut file = std::fs::File::create(path)?;
        for _ in 0..mib {
            file.write_all(&vec![1; 1 << 20])?;
        }
        Ok(())
    };
    match kind {
        "anonymous" => std::mem::forget(vec![1u8; mib << 20]),
        "shared" => touch(-1, libc::MAP_SHARED | libc::MAP_ANONYMOUS, mib),
        "memfd" => {
            let fd = unsafe { libc::memfd_create(c"hog".as_ptr(), 0) };
            if fd < 0 {
                return Err(std::io::Error::last_os_error().into());
            }
            unsafe { libc::ftruncate(fd, (mib << 20) as i64) };
            touch(fd, libc::MAP_SHARED, mib);
        }
        "tmpfs" => file("/tmp/hog")?,
        "both tmpfs" => {
            let _ = (file("/tmp/hog"), file("/dev/shm/hog"));
        }
        "copied pages" => {
            use std::os::fd::AsRawFd as _;
            let file = std::fs::File::options()
                .create(true)
                .read(true)
                .write(true)
                .truncate(true)
                .open("/tmp/few")?;
            file.set_len(16 << 20)?;
            for _ in 0..mib / 16 {
                touch(file.as_raw_fd(), libc::MAP_PRIVATE, 16);
            }
        }
        "page tables" => {
            // One page of each 2 MiB: a page table each, of zeroes of the kernel's.
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let size = (mib << 20) / 4096 * (2 << 20);
            let place =
                unsafe { libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ, flags, -1, 0) };
            assert_ne!(place, libc::MAP_FAILED);
            for at in (0..size).step_by(2 << 20) {
                unsafe { place.cast::<u8>().add(at).read_volatile() };
            }
        }
        "child" => {
            if unsafe { libc::fork() } == 0 {
                thread::sleep(Duration::from_secs(3));
                touch(-1, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, mib);
                thread::sleep(Duration::from_secs(60));
                unsafe { libc::_exit(0) };
            }
            return Ok(mib);
        }
        _ => {
            use std::os::fd::AsRawFd as _;
            let file = std::fs::File::options()
                .create(true)
                .read(true)
                .write(true)
                .truncate(true)
                .open("/dev/shm/mapped")?;
            file.set_len((mib << 20) as u64)?;
            touch(file.as_raw_fd(), libc::MAP_SHARED, mib);
            if unsafe { libc::fork() } == 0 {
                touch(file.as_raw_fd(), libc::MAP_SHARED, mib);
                thread::sleep(Duration::from_secs(3));
                unsafe { libc::_exit(0) };
            }
            thread::sleep(Duration::from_secs(2));
            return Ok(mib);
        }
    }
    thread::sleep(Duration::from_secs(5));
    Ok(mib)
}

fn touch(fd: i32, flags: i32, mib: usize) {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let place = unsafe { libc::mmap(std::ptr::null_mut(), mib << 20, access, flags, fd, 0) };
    for page in 0..(mib << 20) / 4096 {
        unsafe { place.cast::<u8>().add(page * 4096).write_volatile(1) };
    }
}

fn resources(tools: &mut Tools<Rogue>) {
    tools
        .add("allocate", "Touches n MiB and keeps them for a while", |_, args: Number, _| {
            let mut kept: Vec<Vec<u8>> = Vec::new();
            for _ in 0..args.n {
                kept.push(vec![1; 1 << 20]);
            }
            thread::sleep(Duration::from_secs(5));
            Ok(kept.len())
        })
        .add("hold", "Touches n MiB and never gives them back", |_, args: Number, _| {
            std::mem::forget(vec![1u8; (args.n as usize) << 20]);
            Ok(args.n)
        })
        .add("hog", "Touches memory of a kind", |_, args: Hog, _| hog(&args.kind, args.mib))
        .add("reserve", "One allocation of n MiB", |_, args: Number, _| {
            let block: Vec<u8> = vec![1; (args.n as usize) << 20];
            Ok(block.len())
        })
        .add("child_allocate", "A grandchild touches n MiB", |_, args: Number, _| {
            let script =
                format!("b = bytearray({} * 1048576); import time; time.sleep(30)", args.n);
            let status = Command::new("/bin/sh")
                .arg("-c")
                .arg(format!("exec python3 -c '{script}'"))
                .status()?;
            Ok(status.code())
        })
        .add("burn", "Uses the processor for n ms", |_, args: Number, _| {
            let end = Instant::now() + Duration::from_millis(args.n as u64);
            while Instant::now() < end {
                std::hint::spin_loop();
            }
            Ok(())
        })
        .add("write_file", "Writes n MiB into its data directory", |_, args: Number, _| {
            let home = std::env::var("HOME").unwrap_or_default();
            let mut file = std::fs::File::create(format!("{home}/big"))?;
            for _ in 0..args.n {
                file.write_all(&vec![0; 1 << 20])?;
            }
            Ok(())
        })
        .add("open_files", "Opens n files", |_, args: Number, _| {
            let mut files = Vec::new();
            for _ in 0..args.n {
                files.push(std::fs::File::open("/dev/null")?);
            }
            Ok(files.len())
        })
        .add("fork_bomb", "Forks without end", |_, _: (), _| {
            loop {
                unsafe { libc::fork() };
            }
            #[expect(unreachable_code, reason = "the type of the result")]
            Ok(())
        })
        .add("orphans", "Leaves n double-forked setsid'd children", |_, args: Number, _| {
            for _ in 0..args.n {
                orphan()?;
            }
            Ok(())
        })
        .add("threads", "Starts n threads that spin", |_, args: Number, _| {
            for _ in 0..args.n {
                thread::spawn(|| {
                    loop {
                        std::hint::spin_loop();
                    }
                });
            }
            Ok(())
        });
}

/// A process that has left our session and our parenthood.
fn orphan() -> Result<()> {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg("sleep 77777 & exit 0");
    // Allowed here: the rogue is a test's tool, not the supervisor.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            Ok(())
        });
    }
    command.status()?;
    Ok(())
}

fn surroundings() -> Result<Surroundings> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).unwrap_or_default().to_owned()
    };
    let mut descriptors: Vec<String> = std::fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| {
            let target = std::fs::read_link(entry.path()).ok()?.display().to_string();
            let kind = target.split([':', '[']).next().unwrap_or_default().to_owned();
            Some(format!("{} {kind}", entry.file_name().to_string_lossy()))
        })
        .collect();
    descriptors.sort_by_key(|line| line.split(' ').next().and_then(|fd| fd.parse::<u32>().ok()));
    let mut environment: Vec<String> = std::env::vars().map(|(key, _)| key).collect();
    environment.sort();
    Ok(Surroundings {
        descriptors,
        environment,
        blocked_signals: field("SigBlk"),
        ignored_signals: field("SigIgn"),
        umask: field("Umask"),
        no_new_privs: field("NoNewPrivs"),
        session_is_own: unsafe { libc::getsid(0) == libc::getpid() },
        oom_score_adj: std::fs::read_to_string("/proc/self/oom_score_adj")?.trim().to_owned(),
        nice: unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) },
        working_directory: std::env::current_dir()?.display().to_string(),
        pid: std::process::id(),
    })
}
