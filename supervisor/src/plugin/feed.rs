//! What many follow at their own pace: a ring whose items have numbers. A follower keeps
//! the number of the next one, and takes a little of the ring at a time.

use tokio::sync::watch;

/// A ring that can be followed.
pub trait Feed: Send + Sync + 'static {
    /// What it is made of.
    type Item: Send + 'static;

    /// The numbers of the oldest one that is kept, and of the next one to come.
    fn span(&self) -> (u64, u64);

    /// Those from a number on, of so many bytes or a single one, and the number after them.
    /// What is not kept any more is passed over.
    fn since(&self, from: u64, bytes: usize) -> (Vec<Self::Item>, u64);

    /// Changes when there is a new one.
    fn news(&self) -> watch::Receiver<()>;
}

/// The items from the index on that fit into so many bytes; one at least.
pub(super) fn some_of<'a, T: Clone + 'a>(
    items: impl Iterator<Item = &'a T>,
    mut bytes: usize,
    size: impl Fn(&T) -> usize,
) -> Vec<T> {
    let mut some = Vec::new();
    for item in items {
        let size = size_of::<T>() + size(item);
        if size > bytes && !some.is_empty() {
            break;
        }
        bytes = bytes.saturating_sub(size);
        some.push(item.clone());
    }
    some
}
