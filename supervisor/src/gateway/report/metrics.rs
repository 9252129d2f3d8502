//! How plugins have fared: the admin endpoints' shapes.

use serde_json::{Map, Value, json};
use stockade_proto::v1;

use crate::{
    plugin::{Handle, MetricsSnapshot, SeriesKind},
    registry::RegistrySnapshot,
};

/// Of one plugin.
pub fn metrics(handle: &Handle) -> v1::PluginMetrics {
    let snapshot = handle.metrics().snapshot();
    let manifest = handle.snapshot().manifest.clone();
    let kind = manifest.map_or("local", |manifest| manifest.kind());
    to_wire(handle.name(), kind, snapshot)
}

fn to_wire(plugin: &str, kind: &str, of: MetricsSnapshot) -> v1::PluginMetrics {
    let [p50, p95, p99] = of.percentiles;
    let prefix = format!("plugin_{}_", plugin.replace('-', "_"));
    v1::PluginMetrics {
        plugin_id: plugin.to_owned(),
        kind: kind.to_owned(),
        requests: Some(v1::RequestMetrics {
            total: of.requests.total,
            errors: of.requests.failed,
            error_rate: of.requests.rate(),
            average_time_ms: of.average_ms,
            p50,
            p95,
            p99,
            last_request: of.last_request.map(|time| time.to_string()),
        }),
        behavior_extensions: Some(v1::BehaviorMetrics {
            condition_evaluations: of.conditions.total,
            condition_failures: of.conditions.failed,
            condition_failure_rate: of.conditions.rate(),
            effect_applications: of.effects.total,
            effect_failures: of.effects.failed,
            effect_failure_rate: of.effects.rate(),
        }),
        event_handlers: Some(v1::EventHandlerMetrics {
            calls: of.events.total,
            failures: of.events.failed,
            failure_rate: of.events.rate(),
        }),
        health: Some(v1::HealthMetrics {
            is_healthy: of.healthy,
            last_check: of.last_check.map(|time| time.to_string()),
            recent_errors: of
                .recent_errors
                .into_iter()
                .map(|error| v1::RecentError {
                    timestamp: error.time.to_string(),
                    error_type: error.kind,
                    error_message: error.message,
                    context: error.context,
                })
                .collect(),
        }),
        custom: of
            .custom
            .into_iter()
            .map(|series| v1::CustomMetric {
                name: format!("{prefix}{}", series.name),
                kind: match series.kind {
                    SeriesKind::Counter => "counter",
                    SeriesKind::Gauge => "gauge",
                    SeriesKind::Histogram => "histogram",
                }
                .to_owned(),
                labels: series.labels.into_iter().collect(),
                value: series.value,
                count: series.count,
                buckets: series
                    .buckets
                    .into_iter()
                    .map(|(le, count)| v1::Bucket { le, count })
                    .collect(),
            })
            .collect(),
    }
}

/// Of every plugin, with a summary.
pub fn all(registry: &RegistrySnapshot) -> v1::GetMetricsResponse {
    let plugins: Vec<v1::PluginMetrics> = registry.plugins.values().map(metrics).collect();
    let requests = || plugins.iter().filter_map(|plugin| plugin.requests.as_ref());
    let (total, errors) = (
        requests().map(|requests| requests.total).sum::<u64>(),
        requests().map(|requests| requests.errors).sum::<u64>(),
    );
    let unhealthy: Vec<String> = plugins
        .iter()
        .filter(|plugin| plugin.health.as_ref().is_some_and(|health| !health.is_healthy))
        .map(|plugin| plugin.plugin_id.clone())
        .collect();
    v1::GetMetricsResponse {
        summary: Some(v1::MetricsSummary {
            total_plugins: plugins.len() as u32,
            total_requests: total,
            total_errors: errors,
            overall_error_rate: if total == 0 { 0.0 } else { errors as f64 / total as f64 },
            unhealthy_count: unhealthy.len() as u32,
            unhealthy_plugins: unhealthy,
        }),
        plugins: plugins.into_iter().map(|plugin| (plugin.plugin_id.clone(), plugin)).collect(),
    }
}

/// One plugin's numbers as JSON.
pub fn json(of: &v1::PluginMetrics) -> Value {
    let requests = of.requests.clone().unwrap_or_default();
    let extensions = of.behavior_extensions.unwrap_or_default();
    let events = of.event_handlers.unwrap_or_default();
    let health = of.health.clone().unwrap_or_default();
    let errors = health.recent_errors.iter().map(|error| {
        json!({
            "timestamp": error.timestamp,
            "error_type": error.error_type,
            "error_message": error.error_message,
            "context": error.context,
        })
    });
    let custom = of.custom.iter().map(|metric| {
        let labels: Map<String, Value> =
            metric.labels.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        let mut value = json!({
            "name": metric.name, "kind": metric.kind, "labels": labels, "value": metric.value,
        });
        if metric.kind == "histogram" {
            value["count"] = json!(metric.count);
            let buckets =
                metric.buckets.iter().map(|one| json!({"le": one.le, "count": one.count}));
            value["buckets"] = buckets.collect();
        }
        value
    });
    json!({
        "plugin_id": of.plugin_id,
        "kind": of.kind,
        "requests": {
            "total": requests.total,
            "errors": requests.errors,
            "error_rate": requests.error_rate,
            "average_time_ms": requests.average_time_ms,
            "p50": requests.p50,
            "p95": requests.p95,
            "p99": requests.p99,
            "last_request": requests.last_request,
        },
        "behavior_extensions": {
            "condition_evaluations": extensions.condition_evaluations,
            "condition_failures": extensions.condition_failures,
            "condition_failure_rate": extensions.condition_failure_rate,
            "effect_applications": extensions.effect_applications,
            "effect_failures": extensions.effect_failures,
            "effect_failure_rate": extensions.effect_failure_rate,
        },
        "event_handlers": {
            "calls": events.calls,
            "failures": events.failures,
            "failure_rate": events.failure_rate,
        },
        "health": {
            "is_healthy": health.is_healthy,
            "last_check": health.last_check,
            "recent_errors": errors.collect::<Vec<_>>(),
        },
        "custom": custom.collect::<Vec<_>>(),
    })
}

/// All of it as JSON, plugins in the order of their names.
pub fn all_json(of: &v1::GetMetricsResponse) -> Value {
    let summary = of.summary.clone().unwrap_or_default();
    let mut names: Vec<&String> = of.plugins.keys().collect();
    names.sort();
    let plugins: Map<String, Value> = names
        .into_iter()
        .filter_map(|name| Some((name.clone(), json(of.plugins.get(name)?))))
        .collect();
    json!({
        "summary": {
            "total_plugins": summary.total_plugins,
            "total_requests": summary.total_requests,
            "total_errors": summary.total_errors,
            "overall_error_rate": summary.overall_error_rate,
            "unhealthy_plugins": summary.unhealthy_plugins,
            "unhealthy_count": summary.unhealthy_count,
        },
        "plugins": plugins,
    })
}

/// `GET /admin/plugins/health`.
pub fn health_json(of: &v1::GetMetricsResponse) -> Value {
    let mut names: Vec<&String> = of.plugins.keys().collect();
    names.sort();
    let status: Map<String, Value> = names
        .into_iter()
        .filter_map(|name| {
            let plugin = of.plugins.get(name)?;
            let health = plugin.health.clone().unwrap_or_default();
            let requests = plugin.requests.clone().unwrap_or_default();
            let extensions = plugin.behavior_extensions.unwrap_or_default();
            let value = json!({
                "is_healthy": health.is_healthy,
                "last_check": health.last_check,
                "error_count": health.recent_errors.len(),
                "request_error_rate": requests.error_rate,
                "condition_failure_rate": extensions.condition_failure_rate,
                "effect_failure_rate": extensions.effect_failure_rate,
            });
            Some((name.clone(), value))
        })
        .collect();
    let summary = of.summary.clone().unwrap_or_default();
    json!({
        "overall_healthy": summary.unhealthy_count == 0,
        "unhealthy_plugins": summary.unhealthy_plugins,
        "health_status": status,
    })
}
