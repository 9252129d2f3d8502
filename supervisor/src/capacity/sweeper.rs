//! Large blocks are freed on a thread of their own: giving tens of megabytes back to the
//! system takes milliseconds, in which nobody would be answered.

use std::sync::{LazyLock, mpsc};

use bytes::Bytes;

/// Smaller ones are freed where they are dropped.
const LARGE: usize = 1 << 20;

/// Blocks that wait; more are freed where they are dropped.
const WAITING: usize = 64;

/// None when the system refuses the thread.
static SWEEPER: LazyLock<Option<mpsc::SyncSender<Bytes>>> = LazyLock::new(|| {
    let (sender, blocks) = mpsc::sync_channel(WAITING);
    let sweep = move || blocks.into_iter().for_each(drop::<Bytes>);
    std::thread::Builder::new().name("sweeper".into()).spawn(sweep).ok().map(|_| sender)
});

struct Block(Bytes);

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(sweeper) = &*SWEEPER {
            let _ = sweeper.try_send(std::mem::take(&mut self.0));
        }
    }
}

/// The same bytes; when the last of their owners drops them, another thread frees them.
pub fn swept(bytes: Bytes) -> Bytes {
    match bytes.len() < LARGE {
        true => bytes,
        false => Bytes::from_owner(Block(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_blocks_are_freed_elsewhere_and_stay_what_they_are() {
        struct Owner(mpsc::Sender<std::thread::ThreadId>, Vec<u8>);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.1
            }
        }
        impl Drop for Owner {
            fn drop(&mut self) {
                let _ = self.0.send(std::thread::current().id());
            }
        }
        let (sender, freed) = mpsc::channel();
        let here = std::thread::current().id();
        for (size, elsewhere) in [(LARGE - 1, false), (LARGE, true)] {
            let bytes = swept(Bytes::from_owner(Owner(sender.clone(), vec![7; size])));
            assert_eq!(bytes, vec![7; size]);
            let part = bytes.slice(1..2);
            drop(bytes);
            assert!(freed.try_recv().is_err());
            drop(part);
            assert_eq!(freed.recv().unwrap() != here, elsewhere);
        }
    }
}
