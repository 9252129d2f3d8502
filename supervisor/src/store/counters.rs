//! Success and error counts in a shared file mapping: counting costs one
//! atomic add, and what was counted survives SIGKILL of the daemon.
#![allow(unsafe_code)]

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use memmap2::{MmapMut, MmapOptions};
use rustix::fs::FallocateFlags;

use super::{made::Made, note, put_aside};

const MAGIC: &[u8; 8] = b"stkcnt01";
/// Header, then one slot per plugin: 64 bytes of name, 8 numbers.
const HEADER: usize = 128;
const SLOT: usize = 128;
const NAME: usize = 64;
/// Slots; enough for every plugin a directory ever had.
const SLOTS: usize = 8192;

/// The counts of one plugin.
#[derive(Debug)]
pub struct Counters {
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// Slot in the mapping.
    Mapped(Arc<MmapMut>, usize),
    /// No file: counts last as long as the daemon.
    Memory([AtomicU64; 3]),
}

const SUCCESS: usize = 0;
const ERROR: usize = 1;
const LAST_USED: usize = 2;

impl Counters {
    fn cell(&self, index: usize) -> &AtomicU64 {
        match &self.place {
            Place::Memory(cells) => &cells[index],
            Place::Mapped(map, slot) => {
                let offset = HEADER + slot * SLOT + NAME + index * 8;
                // SAFETY: `slot` is below SLOTS and `index` below 8, so the
                // eight bytes lie inside the mapping, which is page-aligned and
                // the offset a multiple of 8. The mapping lives as long as the
                // Arc borrowed here. Nobody takes a `&mut` to these bytes: they
                // are only ever touched as atomics.
                unsafe { &*map.as_ptr().add(offset).cast::<AtomicU64>() }
            }
        }
    }

    /// One call succeeded.
    pub fn count_success(&self) {
        self.cell(SUCCESS).fetch_add(1, Ordering::Relaxed);
    }

    /// One call failed, or a load.
    pub fn count_error(&self) {
        self.cell(ERROR).fetch_add(1, Ordering::Relaxed);
    }

    /// A call was made now (milliseconds since 1970).
    pub fn touch(&self, unix_ms: u64) {
        self.cell(LAST_USED).store(unix_ms, Ordering::Relaxed);
    }

    /// Calls that succeeded.
    pub fn successes(&self) -> u64 {
        self.cell(SUCCESS).load(Ordering::Relaxed)
    }

    /// Calls and loads that failed.
    pub fn errors(&self) -> u64 {
        self.cell(ERROR).load(Ordering::Relaxed)
    }

    /// Milliseconds since 1970 of the last call.
    pub fn last_used(&self) -> Option<u64> {
        Some(self.cell(LAST_USED).load(Ordering::Relaxed)).filter(|ms| *ms > 0)
    }
}

/// The file, or memory alone when there can be none.
#[derive(Debug)]
pub(super) struct CounterFile {
    map: Option<Arc<MmapMut>>,
    slots: Mutex<HashMap<String, Arc<Counters>>>,
    used: Mutex<usize>,
}

impl CounterFile {
    pub(super) fn open(path: &Path, made: &Made, problems: &mut Vec<String>) -> Self {
        let map = match open_map(path, made, problems) {
            Ok(map) => Some(Arc::new(map)),
            Err(error) => {
                let text = format!(
                    "counters cannot be kept in {}: {error}; they last until the daemon ends",
                    path.display()
                );
                note(problems, text);
                None
            }
        };
        let mut slots = HashMap::new();
        let mut used = 0;
        if let Some(map) = &map {
            while used < SLOTS {
                let Some(name) = slot_name(map, used) else { break };
                let counters = Counters { place: Place::Mapped(map.clone(), used) };
                slots.insert(name, Arc::new(counters));
                used += 1;
            }
        }
        CounterFile { map, slots: Mutex::new(slots), used: Mutex::new(used) }
    }

    pub(super) fn of(&self, plugin: &str) -> Arc<Counters> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counters) = slots.get(plugin) {
            return counters.clone();
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let place = match &self.map {
            Some(map) if *used < SLOTS && plugin.len() <= NAME => {
                write_name(map, *used, plugin);
                *used += 1;
                Place::Mapped(map.clone(), *used - 1)
            }
            _ => Place::Memory(Default::default()),
        };
        let counters = Arc::new(Counters { place });
        slots.insert(plugin.to_owned(), counters.clone());
        counters
    }
}

fn slot_name(map: &MmapMut, slot: usize) -> Option<String> {
    let start = HEADER + slot * SLOT;
    let bytes = map.get(start..start + NAME)?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(NAME);
    let name = std::str::from_utf8(&bytes[..end]).ok()?;
    (!name.is_empty()).then(|| name.to_owned())
}

fn write_name(map: &Arc<MmapMut>, slot: usize, name: &str) {
    let start = HEADER + slot * SLOT;
    // SAFETY: the name's bytes of a slot not yet given to anybody: no reference
    // to them exists, the caller holds the lock, `slot` is below SLOTS and the
    // name no longer than its field. The mapping is shared and writable.
    unsafe {
        let target = map.as_ptr().cast_mut().add(start);
        std::ptr::copy_nonoverlapping(name.as_ptr(), target, name.len());
    }
}

/// Opens or makes the file. One of the wrong kind or length is put aside.
fn open_map(path: &Path, made: &Made, problems: &mut Vec<String>) -> io::Result<MmapMut> {
    let length = HEADER + SLOTS * SLOT;
    let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let mut file = open()?;
    let found = file.metadata()?.len();
    if found != 0 && (found != length as u64 || !has_magic(&file)) {
        let kept = put_aside(path).unwrap_or_else(|why| why);
        note(problems, format!("the counters file was damaged and starts at 0; {kept}"));
        file = open()?;
    } else if found == 0 && made.has(path) {
        let path = path.display();
        note(problems, format!("{path} was missing or empty: the counts start at 0"));
    }
    // Space is taken now, so that a full disk is an error here and not a
    // SIGBUS at a later count.
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, length as u64)?;
    // SAFETY: the file is ours alone (the state directory's lock is held) and
    // keeps its length; the contents are only read and written as above.
    let mut map = unsafe { MmapOptions::new().len(length).map_mut(&file)? };
    if map[..8] != MAGIC[..] {
        map[..8].copy_from_slice(MAGIC);
    }
    made.note(path);
    Ok(map)
}

fn has_magic(file: &File) -> bool {
    use std::os::unix::fs::FileExt as _;
    let mut magic = [0; 8];
    file.read_exact_at(&mut magic, 0).is_ok() && magic == *MAGIC
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_survive_and_a_damaged_file_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("counters");
        let mut problems = Vec::new();
        let file =
            CounterFile::open(&path, &Made::read(&path.with_file_name("made")), &mut problems);
        file.of("a").count_success();
        file.of("b").count_error();
        file.of("a").count_success();
        file.of("a").touch(7);
        drop(file);
        let file =
            CounterFile::open(&path, &Made::read(&path.with_file_name("made")), &mut problems);
        let a = file.of("a");
        assert_eq!((a.successes(), a.errors(), a.last_used()), (2, 0, Some(7)));
        assert_eq!(file.of("b").errors(), 1);
        assert_eq!(problems, Vec::<String>::new());
        drop((file, a));
        for damage in [&b"short"[..], &vec![7; HEADER + SLOTS * SLOT]] {
            std::fs::write(&path, damage).unwrap();
            let mut problems = Vec::new();
            let file =
                CounterFile::open(&path, &Made::read(&path.with_file_name("made")), &mut problems);
            assert_eq!(file.of("a").successes(), 0);
            assert!(problems[0].contains("damaged"), "{problems:?}");
        }
        let kept = std::fs::read_dir(folder.path()).unwrap().count();
        assert!(kept >= 2, "the damaged file is kept");
    }
}
