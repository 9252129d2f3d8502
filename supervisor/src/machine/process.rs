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
    Some(Usage {
        rss: number(21)? * page(),
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

/// Resident bytes of one process, 0 when it is gone.
pub fn resident(pid: u32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * page()
}

/// Proportional bytes of the tree below `root`: shared pages counted once.
pub fn tree_pss(root: u32) -> u64 {
    let pss = |pid: u32| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = rollup.lines().find(|line| line.starts_with("Pss:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    descendants(root).into_iter().filter_map(pss).sum::<u64>() * 1024
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
