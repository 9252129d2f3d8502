//! This plugin's own metrics, beside those that the host keeps of it.

use stockade_proto::host::{RecordRequest, record_request::Kind};

use super::{Ask, Host};

/// Counters, gauges, histograms. Names are letters, digits and `_`; operators see
/// them as `plugin_<id>_<name>`.
#[derive(Clone, Debug)]
pub struct Metrics(pub(super) Host);

impl Metrics {
    /// Adds to a counter.
    pub fn counter(&self, name: &str, by: f64, labels: &[(&str, &str)]) -> Ask<()> {
        self.record(Kind::Counter, name, by, labels)
    }

    /// Sets a gauge.
    pub fn gauge(&self, name: &str, value: f64, labels: &[(&str, &str)]) -> Ask<()> {
        self.record(Kind::Gauge, name, value, labels)
    }

    /// Adds an observation to a histogram.
    pub fn histogram(&self, name: &str, value: f64, labels: &[(&str, &str)]) -> Ask<()> {
        self.record(Kind::Histogram, name, value, labels)
    }

    fn record(&self, kind: Kind, name: &str, value: f64, labels: &[(&str, &str)]) -> Ask<()> {
        let name = name.to_owned();
        let labels =
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.0.ask(move |mut client, scope| async move {
            let request =
                RecordRequest { scope: Some(scope), kind: kind as i32, name, value, labels };
            client.record(request).await?;
            Ok(())
        })
    }
}
