//! What plugins and servers have registered.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use stockade_proto::v1;

use super::parse;
use crate::{
    Supervisor,
    plugin::{Handle, Provider, Registered},
    services::{EFFECT_PREFIX, HostServices, PLUGIN_PREFIX},
};

/// Everything that is registered now.
pub fn extensions(supervisor: &Supervisor) -> v1::ListExtensionsResponse {
    let services = supervisor.services();
    let mut list = v1::ListExtensionsResponse { registry_locked: true, ..Default::default() };
    for provider in services.server_providers() {
        list.providers.push(provider_info(&provider, provider.name.clone(), "host".to_owned()));
    }
    for handle in supervisor.plugins().values() {
        add(&mut list, services, handle);
    }
    list
}

/// What one plugin registered.
pub fn of_plugin(supervisor: &Supervisor, handle: &Handle) -> v1::ListExtensionsResponse {
    let mut list = v1::ListExtensionsResponse { registry_locked: true, ..Default::default() };
    add(&mut list, supervisor.services(), handle);
    list
}

fn provider_info(provider: &Provider, name: String, source: String) -> v1::ProviderInfo {
    v1::ProviderInfo {
        name,
        permission: provider.permission.clone(),
        description: provider.description.clone(),
        source,
    }
}

fn add(list: &mut v1::ListExtensionsResponse, services: &HostServices, handle: &Handle) {
    let snapshot = handle.snapshot();
    let Some(session) = &snapshot.session else { return };
    let Registered { conditions, effects, simulation_configs, event_handlers, providers } =
        &session.registered;
    let plugin = handle.name().to_string();
    let full = |name: &str| format!("{PLUGIN_PREFIX}{plugin}:{name}");
    list.conditions.extend(conditions.iter().map(|one| v1::ConditionInfo {
        condition_id: full(&one.name),
        plugin_id: plugin.clone(),
        description: one.description.clone(),
        required_context: one.required_context.clone(),
    }));
    list.effects.extend(effects.iter().map(|one| v1::EffectInfo {
        effect_id: format!("{EFFECT_PREFIX}{plugin}:{}", one.name),
        plugin_id: plugin.clone(),
        description: one.description.clone(),
        default_params: serde_json::to_vec(&one.default_params).unwrap_or_default().into(),
    }));
    list.simulation_configs.extend(simulation_configs.iter().map(|one| v1::SimulationConfigInfo {
        provider_id: full(&one.name),
        plugin_id: plugin.clone(),
        description: one.description.clone(),
        priority: one.priority,
    }));
    list.event_handlers.extend(event_handlers.iter().map(|one| {
        let (queued, dropped) = services.handler_counts(&plugin, &one.name);
        v1::EventHandlerInfo {
            plugin_id: plugin.clone(),
            name: one.name.clone(),
            patterns: one.patterns.clone(),
            queued,
            dropped,
        }
    }));
    list.providers.extend(
        providers
            .iter()
            .map(|one| provider_info(one, full(&one.name), format!("{PLUGIN_PREFIX}{plugin}"))),
    );
}

fn by_plugin<'n>(plugins: impl Iterator<Item = &'n String>) -> Value {
    let mut counts: BTreeMap<&String, u64> = BTreeMap::new();
    plugins.for_each(|plugin| *counts.entry(plugin).or_default() += 1);
    json!(counts)
}

/// The shape of `GET /admin/plugins/behavior-extensions`, and what there is more.
pub fn json(list: &v1::ListExtensionsResponse) -> Value {
    let conditions = list.conditions.iter().map(|one| {
        json!({
            "condition_id": one.condition_id, "plugin_id": one.plugin_id,
            "description": one.description, "required_context": one.required_context,
        })
    });
    let effects = list.effects.iter().map(|one| {
        json!({
            "effect_id": one.effect_id, "plugin_id": one.plugin_id,
            "description": one.description, "default_params": parse(&one.default_params),
        })
    });
    let configs = list.simulation_configs.iter().map(|one| {
        json!({
            "provider_id": one.provider_id, "plugin_id": one.plugin_id,
            "description": one.description, "priority": one.priority,
        })
    });
    let handlers = list.event_handlers.iter().map(|one| {
        json!({
            "plugin_id": one.plugin_id, "name": one.name, "patterns": one.patterns,
            "queued": one.queued, "dropped": one.dropped,
        })
    });
    let providers = list.providers.iter().map(|one| {
        json!({
            "name": one.name, "permission": one.permission, "description": one.description,
            "source": one.source,
        })
    });
    json!({
        "registry_locked": list.registry_locked,
        "conditions": {
            "total": list.conditions.len(),
            "by_plugin": by_plugin(list.conditions.iter().map(|one| &one.plugin_id)),
            "list": conditions.collect::<Vec<_>>(),
        },
        "effects": {
            "total": list.effects.len(),
            "by_plugin": by_plugin(list.effects.iter().map(|one| &one.plugin_id)),
            "list": effects.collect::<Vec<_>>(),
        },
        "simulation_configs": {
            "total": list.simulation_configs.len(),
            "by_plugin": by_plugin(list.simulation_configs.iter().map(|one| &one.plugin_id)),
            "providers": configs.collect::<Vec<_>>(),
        },
        "event_handlers": {
            "total": list.event_handlers.len(),
            "list": handlers.collect::<Vec<_>>(),
        },
        "providers": {
            "total": list.providers.len(),
            "list": providers.collect::<Vec<_>>(),
        },
    })
}

/// `GET /admin/plugins/list`.
pub fn list_json(supervisor: &Supervisor) -> Value {
    let plugins = supervisor.plugins();
    let features: Vec<Value> = plugins.values().map(feature).collect();
    json!({ "total": features.len(), "feature_plugins": features, "route_plugins": [] })
}

fn feature(handle: &Handle) -> Value {
    let snapshot = handle.snapshot();
    let manifest = snapshot.manifest.as_deref();
    let version = manifest.and_then(|manifest| manifest.version.clone());
    json!({
        "id": &**handle.name(),
        "name": &**handle.name(),
        "version": version,
        "kind": manifest.map_or("local", |manifest| manifest.kind()),
        "enabled": snapshot.substate != crate::lifecycle::Substate::Disabled,
    })
}

/// `GET /admin/plugins/{id}/details`.
pub fn details_json(supervisor: &Supervisor, handle: &Handle) -> Value {
    let snapshot = handle.snapshot();
    let manifest = snapshot.manifest.as_deref();
    let mut details = feature(handle);
    let extensions = json(&of_plugin(supervisor, handle));
    let granted = manifest.map(|manifest| manifest.permissions.granted.clone());
    details["plugin_id"] = details["id"].take();
    if let Some(object) = details.as_object_mut() {
        object.shift_remove("id");
    }
    details["description"] = json!(manifest.and_then(|manifest| manifest.description.clone()));
    details["author"] = json!(manifest.and_then(|manifest| manifest.author.clone()));
    details["permissions"] = json!(granted.unwrap_or_default());
    details["dependencies"] =
        json!(manifest.map(|manifest| manifest.requires.plugins.clone()).unwrap_or_default());
    details["metrics"] = super::metrics::json(&super::metrics::metrics(handle));
    details["behavior_extensions"] = json!({
        "conditions": extensions["conditions"]["list"],
        "effects": extensions["effects"]["list"],
    });
    details
}
