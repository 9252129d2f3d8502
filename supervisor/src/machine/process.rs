//! Process trees as /proc shows them.

use std::{collections::HashSet, fs, time::Duration};

/// What a process tree uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Resident bytes, pages shared by forks counted once per process.
    pub rss: u64,
    /// Processor time so far, user and system.
    pub cpu: Duration,
    /// Processes and threads.
    pub tasks: u64,
    /// Processes.
    pub processes: u64,
}

fn page() -> u64 {
    rustix::param::page_size() as u64
}

fn ticks() -> u64 {
    rustix::param::clock_ticks_per_second().max(1)
}

/// The children of every thread of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = tasks.flatten().map(|task| fs::read_to_string(task.path().join("children")));
    lists
        .flatten()
        .flat_map(|list| {
            list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
        })
        .collect()
}

/// Everything below a process, breadth first, itself not included.
pub fn descendants(pid: u32) -> Vec<u32> {
    descendants_up_to(pid, usize::MAX)
}

/// The same, but it stops looking when there are more than `enough`: a fork bomb
/// grows faster than it can be counted.
fn descendants_up_to(pid: u32, enough: usize) -> Vec<u32> {
    let mut found = children(pid);
    let mut seen: HashSet<u32> = found.iter().copied().collect();
    let mut next = 0;
    while next < found.len() && found.len() <= enough {
        let more = children(found[next]);
        found.extend(more.into_iter().filter(|pid| seen.insert(*pid)));
        next += 1;
    }
    found
}

/// The tree below `root` (a launcher, itself not counted). More than `enough`
/// processes are only counted, and not to the last.
pub fn tree_usage(root: u32, enough: u64) -> Usage {
    let mut usage = Usage::default();
    let processes = descendants_up_to(root, enough as usize);
    if processes.len() as u64 > enough {
        let count = processes.len() as u64;
        return Usage { tasks: count, processes: count, ..usage };
    }
    for pid in processes {
        let Some(one) = process_usage(pid) else { continue };
        usage.rss += one.rss;
        usage.cpu += one.cpu;
        usage.tasks += one.tasks;
        usage.processes += 1;
    }
    usage
}

fn process_usage(pid: u32) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and brackets; fields count from its last one.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    // utime, stime, cutime and cstime: ended children's time counts too.
    let cpu: u64 = (11..=14).filter_map(number).sum();
    // Page tables and what was swapped out are memory, too.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let extra: u64 = ["VmPTE:", "VmSwap:"].iter().filter_map(|name| kib(&status, name)).sum();
    Some(Usage {
        rss: number(21)? * page() + extra * 1024,
        cpu: Duration::from_millis(cpu * 1000 / ticks()),
        tasks: number(17)?,
        processes: 1,
    })
}

/// Processor ticks of one process so far; None when it is gone.
pub fn process_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut number = || fields.next()?.parse::<u64>().ok();
    Some(number()? + number()?)
}

/// How long the threads below `root` have stood in line for a processor so far.
/// Zero where the kernel does not count it.
pub fn tree_wait(root: u32) -> Duration {
    let of_process = |pid: u32| {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let waits = tasks.filter_map(|task| {
            let counts = fs::read_to_string(task.path().join("schedstat")).ok()?;
            counts.split_whitespace().nth(1)?.parse::<u64>().ok()
        });
        waits.sum::<u64>()
    };
    Duration::from_nanos(descendants(root).into_iter().map(of_process).sum())
}

/// Resident bytes of one process, 0 when it is gone.
pub fn resident(pid: u32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * page()
}

/// The number of a line `NAME: N kB`.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Proportional bytes of the tree below `root`: shared pages counted once.
/// Optionally without what is mapped of files in /tmp and /dev/shm.
pub fn tree_pss(root: u32, without_scratch: bool) -> u64 {
    let pss = |pid: u32| {
        let file = if without_scratch { "smaps" } else { "smaps_rollup" };
        let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
        let (mut sum, mut counts) = (0, true);
        for line in text.lines() {
            if let Some(size) = kib(line, "Pss:").filter(|_| counts) {
                sum += size;
            } else if let Some(size) = kib(line, "Anonymous:").filter(|_| !counts) {
                // A private mapping's own pages are in no file.
                sum += size;
            } else if !line.split_whitespace().next()?.ends_with(':') {
                // The head of a mapping: its path is the sixth field.
                let path = line.split_whitespace().nth(5).unwrap_or_default();
                counts = !without_scratch
                    || !["/tmp/", "/dev/shm/"].iter().any(|place| path.starts_with(place));
            }
        }
        Some(sum)
    };
    descendants(root).into_iter().filter_map(pss).sum::<u64>() * 1024
}

/// Bytes in /tmp and /dev/shm as this process sees them.
pub fn scratch(pid: u32) -> u64 {
    let used = |place: &str| {
        let status = rustix::fs::statfs(format!("/proc/{pid}/root{place}")).ok()?;
        Some((status.f_blocks - status.f_bfree) * status.f_bsize as u64)
    };
    ["/tmp", "/dev/shm"].into_iter().filter_map(used).sum()
}

/// The process that a descriptor of it (`pidfd`) means, as seen from here.
pub fn pid_of(pidfd: &std::os::fd::OwnedFd) -> Option<u32> {
    use std::os::fd::AsRawFd as _;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
}

/// The parent of a process.
pub fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Start time in clock ticks since boot: with the pid it names a process.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The process exists and is no zombie.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
    !matches!(state, None | Some("Z" | "X"))
}

/// Where in the kernel a process waits.
pub fn wchan(pid: u32) -> String {
    match fs::read_to_string(format!("/proc/{pid}/wchan")) {
        Ok(name) if !name.is_empty() && name != "0" => name,
        _ => "unknown".to_owned(),
    }
}
