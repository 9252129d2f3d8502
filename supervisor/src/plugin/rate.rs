//! A token bucket: so many a second, a second's worth at once.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// A bucket; without a rate it never refuses.
#[derive(Debug)]
pub struct Rate(Option<Mutex<Bucket>>);

#[derive(Debug)]
struct Bucket {
    per_second: f64,
    left: f64,
    since: Instant,
}

impl Rate {
    /// `per_second`, or as many as come.
    pub fn of(per_second: Option<f64>) -> Self {
        Rate(per_second.map(|per_second| {
            Mutex::new(Bucket { per_second, left: per_second.max(1.0), since: Instant::now() })
        }))
    }

    /// Takes one; false when there is none left now.
    pub fn take(&self) -> bool {
        self.0.as_ref().is_none_or(|bucket| {
            bucket.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now())
        })
    }
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let grown = now.saturating_duration_since(self.since).as_secs_f64() * self.per_second;
        self.left = (self.left + grown).min(self.per_second.max(1.0));
        self.since = now;
        let taken = self.left >= 1.0;
        if taken {
            self.left -= 1.0;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_second_holds_what_it_may_and_no_more() {
        let start = Instant::now();
        let mut bucket = Bucket { per_second: 10.0, left: 10.0, since: start };
        assert_eq!((0..15).filter(|_| bucket.take(start)).count(), 10);
        let later = start + Duration::from_millis(550);
        assert_eq!((0..15).filter(|_| bucket.take(later)).count(), 5);
        let much_later = later + Duration::from_secs(60);
        assert_eq!((0..15).filter(|_| bucket.take(much_later)).count(), 10);
    }
}
