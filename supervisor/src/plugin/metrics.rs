//! How a plugin has fared since the daemon's start: requests, extensions, event
//! handlers, its own metrics. Judged at each outcome, good or bad.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;

/// Times of which the percentiles are.
const TIMES: usize = 1024;
/// Errors that are kept.
const ERRORS: usize = 10;
/// So few say nothing.
const FEW: u64 = 10;
/// Above this part of requests or events that fail, a plugin is unhealthy.
const MOST_REQUESTS: f64 = 0.5;
/// The same of conditions and effects.
const MOST_EXTENSIONS: f64 = 0.3;
/// Upper bounds of a histogram's buckets.
const BOUNDS: [f64; 14] =
    [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1000.0, 10_000.0];

/// How often something was tried, and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tries {
    /// All of them.
    pub total: u64,
    /// Those that failed.
    pub failed: u64,
}

impl Tries {
    fn add(&mut self, total: u64, failed: u64) {
        self.total += total;
        self.failed += failed;
    }

    /// The part that failed, 0 to 1.
    pub fn rate(self) -> f64 {
        if self.total == 0 { 0.0 } else { self.failed as f64 / self.total as f64 }
    }

    /// More than a few, and more than `most` of them failed.
    fn bad(self, most: f64) -> bool {
        self.total > FEW && self.rate() > most
    }
}

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A tool, by a client or another plugin.
    Request,
    /// A condition's evaluation.
    Condition,
    /// An effect's application.
    Effect,
    /// An event handler's call.
    Event,
}

/// An error that is kept for a while.
#[derive(Clone, Debug, PartialEq)]
pub struct RecentError {
    /// When.
    pub time: Timestamp,
    /// Its class.
    pub kind: String,
    /// What it said.
    pub message: String,
    /// Where: `tool greet`.
    pub context: String,
}

/// A plugin's numbers at one moment.
#[derive(Clone, Debug, Default)]
pub struct MetricsSnapshot {
    /// Calls of tools.
    pub requests: Tries,
    /// Their average in milliseconds.
    pub average_ms: f64,
    /// p50, p95, p99 of the last ones in milliseconds.
    pub percentiles: [f64; 3],
    /// The last one.
    pub last_request: Option<Timestamp>,
    /// Evaluations that ran.
    pub conditions: Tries,
    /// Applications that ran.
    pub effects: Tries,
    /// Events that reached a handler.
    pub events: Tries,
    /// Judged at the last outcome.
    pub healthy: bool,
    /// When that was.
    pub last_check: Option<Timestamp>,
    /// The last ten, oldest first.
    pub recent_errors: Vec<RecentError>,
    /// Its own.
    pub custom: Vec<Series>,
}

/// What kind of metric of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SeriesKind {
    /// Adds up.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations.
    Histogram,
}

/// Labels of a series.
pub type Labels = BTreeMap<String, String>;

/// Why a value was not recorded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unrecorded {
    /// There are as many series as may be.
    #[error("there are {0} series of metrics, as many as may be (quota.series)")]
    TooMany(u64),
    /// The name is another kind's.
    #[error("the metric {0:?} is of another kind")]
    OtherKind(String),
}

/// One series of a plugin's own metrics.
#[derive(Clone, Debug)]
pub struct Series {
    /// As the plugin named it.
    pub name: String,
    /// What it is.
    pub kind: SeriesKind,
    /// Its labels.
    pub labels: Labels,
    /// The value, of a histogram the sum.
    pub value: f64,
    /// Observations of a histogram.
    pub count: u64,
    /// Bounds and cumulative counts of a histogram.
    pub buckets: Vec<(f64, u64)>,
}

#[derive(Debug, Default)]
struct Inner {
    requests: Tries,
    total_ms: f64,
    times: VecDeque<f32>,
    last_request: Option<Timestamp>,
    conditions: Tries,
    effects: Tries,
    events: Tries,
    unhealthy: bool,
    last_check: Option<Timestamp>,
    errors: VecDeque<RecentError>,
    custom: BTreeMap<(String, Labels), Own>,
}

#[derive(Debug)]
struct Own {
    kind: SeriesKind,
    value: f64,
    count: u64,
    buckets: [u64; BOUNDS.len()],
}

/// A plugin's numbers.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<Inner>);

/// An outcome that was bad: its class, what it said, where.
pub type Failure<'f> = (&'f str, String, String);

impl Metrics {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One outcome.
    pub fn count(&self, kind: Kind, took: Duration, failure: Option<Failure<'_>>) {
        self.count_many(kind, 1, u64::from(failure.is_some()), took, failure);
    }

    /// Several at once (of a batch of events).
    pub fn count_many(
        &self,
        kind: Kind,
        total: u64,
        failed: u64,
        took: Duration,
        failure: Option<Failure<'_>>,
    ) {
        let now = Timestamp::now();
        let mut inner = self.lock();
        match kind {
            Kind::Request => {
                inner.requests.add(total, failed);
                let ms = took.as_secs_f64() * 1000.0;
                inner.total_ms += ms;
                if inner.times.len() == TIMES {
                    inner.times.pop_front();
                }
                inner.times.push_back(ms as f32);
                inner.last_request = Some(now);
            }
            Kind::Condition => inner.conditions.add(total, failed),
            Kind::Effect => inner.effects.add(total, failed),
            Kind::Event => inner.events.add(total, failed),
        }
        if let Some((class, message, context)) = failure {
            if inner.errors.len() == ERRORS {
                inner.errors.pop_front();
            }
            let kind = class.to_owned();
            inner.errors.push_back(RecentError { time: now, kind, message, context });
        }
        inner.unhealthy = inner.requests.bad(MOST_REQUESTS)
            || inner.events.bad(MOST_REQUESTS)
            || inner.conditions.bad(MOST_EXTENSIONS)
            || inner.effects.bad(MOST_EXTENSIONS);
        inner.last_check = Some(now);
    }

    /// Forgets everything.
    pub fn reset(&self) {
        *self.lock() = Inner::default();
    }

    /// One value of the plugin's own metrics.
    ///
    /// # Errors
    /// There are as many series as may be, or the name is another kind's.
    pub fn record(
        &self,
        kind: SeriesKind,
        name: &str,
        labels: Labels,
        value: f64,
        most: u64,
    ) -> Result<(), Unrecorded> {
        let mut inner = self.lock();
        let key = (name.to_owned(), labels);
        if !inner.custom.contains_key(&key) {
            if inner.custom.len() as u64 >= most {
                return Err(Unrecorded::TooMany(most));
            }
            let other = inner.custom.iter().find(|((known, _), _)| known == name);
            if other.is_some_and(|(_, own)| own.kind != kind) {
                return Err(Unrecorded::OtherKind(name.to_owned()));
            }
        }
        let fresh = || Own { kind, value: 0.0, count: 0, buckets: [0; BOUNDS.len()] };
        let own = inner.custom.entry(key).or_insert_with(fresh);
        if own.kind != kind {
            return Err(Unrecorded::OtherKind(name.to_owned()));
        }
        match kind {
            // What no number can hold stays at the largest.
            SeriesKind::Counter => own.value = (own.value + value).min(f64::MAX),
            SeriesKind::Gauge => own.value = value,
            SeriesKind::Histogram => {
                own.value = (own.value + value).clamp(f64::MIN, f64::MAX);
                own.count += 1;
                for (bucket, bound) in own.buckets.iter_mut().zip(BOUNDS) {
                    *bucket += u64::from(value <= bound);
                }
            }
        }
        Ok(())
    }

    /// The numbers now.
    pub fn snapshot(&self) -> MetricsSnapshot {
        let inner = self.lock();
        let mut times: Vec<f32> = inner.times.iter().copied().collect();
        times.sort_by(f32::total_cmp);
        let percentile = |part: f64| {
            let rank = (part * times.len() as f64).ceil() as usize;
            times.get(rank.saturating_sub(1)).map_or(0.0, |ms| f64::from(*ms))
        };
        let custom = inner.custom.iter().map(|((name, labels), own)| Series {
            name: name.clone(),
            kind: own.kind,
            labels: labels.clone(),
            value: own.value,
            count: own.count,
            buckets: match own.kind {
                SeriesKind::Histogram => BOUNDS.into_iter().zip(own.buckets).collect(),
                SeriesKind::Counter | SeriesKind::Gauge => Vec::new(),
            },
        });
        MetricsSnapshot {
            requests: inner.requests,
            average_ms: match inner.requests.total {
                0 => 0.0,
                n => inner.total_ms / n as f64,
            },
            percentiles: [percentile(0.5), percentile(0.95), percentile(0.99)],
            last_request: inner.last_request,
            conditions: inner.conditions,
            effects: inner.effects,
            events: inner.events,
            healthy: !inner.unhealthy,
            last_check: inner.last_check,
            recent_errors: inner.errors.iter().cloned().collect(),
            custom: custom.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(kind: Kind, good: u32, bad: u32) -> MetricsSnapshot {
        let metrics = Metrics::default();
        for n in 0..good + bad {
            let failure = (n >= good).then(|| ("E", "no".to_owned(), "tool t".to_owned()));
            metrics.count(kind, Duration::from_millis(u64::from(n)), failure);
        }
        metrics.snapshot()
    }

    #[test]
    fn health_is_judged_as_the_check_values_say() {
        for kind in [Kind::Condition, Kind::Effect] {
            for (good, bad, healthy) in
                [(0, 10, true), (0, 11, false), (7, 3, true), (7, 4, false), (14, 6, true)]
            {
                assert_eq!(after(kind, good, bad).healthy, healthy, "{kind:?} {good}/{bad}");
            }
        }
        for kind in [Kind::Request, Kind::Event] {
            for (good, bad, healthy) in [(5, 5, true), (5, 6, false), (6, 5, true)] {
                assert_eq!(after(kind, good, bad).healthy, healthy, "{kind:?} {good}/{bad}");
            }
        }
    }

    #[test]
    fn health_comes_back_with_successes_and_errors_are_kept() {
        let metrics = Metrics::default();
        for n in 0..12 {
            let failure = Some(("E", format!("no {n}"), "tool t".to_owned()));
            metrics.count(Kind::Request, Duration::ZERO, failure);
        }
        assert!(!metrics.snapshot().healthy);
        for _ in 0..12 {
            metrics.count(Kind::Request, Duration::ZERO, None);
        }
        let snapshot = metrics.snapshot();
        assert!(snapshot.healthy, "12 of 24 is not above a half");
        assert_eq!(snapshot.recent_errors.len(), 10);
        assert_eq!(snapshot.recent_errors[0].message, "no 2");
        metrics.reset();
        assert_eq!(metrics.snapshot().requests, Tries::default());
        assert!(metrics.snapshot().healthy && metrics.snapshot().last_check.is_none());
    }

    #[test]
    fn percentiles_are_of_the_last_calls() {
        let snapshot = after(Kind::Request, 100, 0);
        assert_eq!(snapshot.percentiles, [49.0, 94.0, 98.0]);
        assert_eq!(snapshot.average_ms, 49.5);
    }

    #[test]
    fn own_metrics_are_bounded_and_of_one_kind() {
        let metrics = Metrics::default();
        let labels = |n: u32| Labels::from([("n".to_owned(), n.to_string())]);
        for n in [1, 2, 1] {
            metrics.record(SeriesKind::Counter, "seen", labels(n), 2.0, 2).unwrap();
        }
        let more = metrics.record(SeriesKind::Counter, "seen", labels(3), 1.0, 2).unwrap_err();
        assert_eq!(more, Unrecorded::TooMany(2));
        let kind = metrics.record(SeriesKind::Gauge, "seen", labels(1), 1.0, 9).unwrap_err();
        assert_eq!(kind, Unrecorded::OtherKind("seen".into()));
        metrics.record(SeriesKind::Histogram, "took", Labels::new(), 0.02, 9).unwrap();
        let custom = metrics.snapshot().custom;
        assert_eq!((custom[0].value, custom[1].value), (4.0, 2.0));
        let took = &custom[2];
        assert_eq!((took.count, took.buckets[2].1, took.buckets[3].1), (1, 0, 1));
    }
}
