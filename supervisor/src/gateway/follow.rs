//! Streams of what happens, for those who follow: each reads the ring at its own pace, a
//! little at a time and in its turn, and who does not read holds no more of it.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::{Stream, stream};
use tokio::sync::watch;

use super::watch::Place;
use crate::{capacity, plugin::Feed};

/// What is new is told this soon; not all are told at once.
const TICK: Duration = Duration::from_millis(50);
/// Bytes that are taken out of the ring in one turn.
const SOME: usize = 8 << 10;

/// What somebody wants to see.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    /// So many of those that are kept.
    pub(super) last: usize,
    /// Each new one, too.
    pub(super) new: bool,
}

struct Follower<F: Feed> {
    /// Gone when its plugin is.
    feed: Weak<F>,
    news: watch::Receiver<()>,
    next: u64,
    /// Where it ends; None = it goes on.
    end: Option<u64>,
    some: VecDeque<F::Item>,
    line: capacity::Place,
    _place: Place,
}

/// What is wanted, in order.
pub(super) fn follow<F: Feed>(
    feed: &Arc<F>,
    wish: Wish,
    place: Place,
) -> impl Stream<Item = F::Item> + Send + use<F> {
    let (oldest, next) = feed.span();
    let follower = Follower {
        news: feed.news(),
        next: oldest.max(next.saturating_sub(wish.last as u64)),
        end: (!wish.new).then_some(next),
        some: VecDeque::new(),
        line: capacity::Place::default(),
        _place: place,
        feed: Arc::downgrade(feed),
    };
    stream::unfold(follower, |mut follower| async {
        let item = follower.item().await?;
        Some((item, follower))
    })
}

impl<F: Feed> Follower<F> {
    async fn item(&mut self) -> Option<F::Item> {
        loop {
            if let Some(item) = self.some.pop_front() {
                return Some(item);
            }
            if self.end.is_some_and(|end| self.next >= end) {
                return None;
            }
            self.line.pass(false).await;
            self.news.mark_unchanged();
            let (mut some, mut next) = self.feed.upgrade()?.since(self.next, SOME);
            if let Some(end) = self.end.filter(|end| *end < next) {
                some.truncate((some.len() as u64).saturating_sub(next - end) as usize);
                next = end;
            }
            (self.some, self.next) = (some.into(), next);
            if self.some.is_empty() {
                self.news.changed().await.ok()?;
                tokio::time::sleep(TICK.mul_f32(fastrand::f32())).await;
            }
        }
    }
}
