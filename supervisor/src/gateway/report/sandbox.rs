//! What a plugin was granted and what holds it back: for describe and HTTP.

use serde::Serialize;
use stockade_proto::v1;

use crate::{
    manifest::{Net, Profile},
    plugin::Handle,
    preflight::Confinement,
};

/// Of the present (or last) process, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of stockade.v1.Sandbox")]
pub struct SandboxReport {
    pub profile: String,
    pub label: String,
    pub granted: Vec<String>,
    pub denied: Vec<String>,
    pub layers: Vec<LayerReport>,
    pub uid: Option<u32>,
    pub visible: Vec<String>,
}

/// One layer of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of stockade.v1.SandboxLayer")]
pub struct LayerReport {
    pub name: String,
    pub holds: bool,
    pub detail: String,
}

/// None before its first checks.
pub fn sandbox(handle: &Handle) -> Option<SandboxReport> {
    handle.snapshot().plan.as_ref().map(|plan| report(&plan.confinement))
}

fn report(confinement: &Confinement) -> SandboxReport {
    let granted = &confinement.granted;
    let layers = confinement.layers.iter().map(|layer| {
        let (holds, detail) = match &layer.holds {
            Ok(detail) => (true, detail),
            Err(why) => (false, why),
        };
        LayerReport { name: layer.name.to_owned(), holds, detail: detail.clone() }
    });
    let mut grants = Vec::new();
    grants.extend(granted.read.iter().map(|path| format!("fs.read {}", path.display())));
    grants.extend(granted.write.iter().map(|path| format!("fs.write {}", path.display())));
    match granted.net {
        Net::None => {}
        Net::Loopback => grants.push("net loopback".to_owned()),
        Net::Host => grants.push("net true".to_owned()),
    }
    for (name, is) in [("gpu", granted.gpu), ("jit", granted.jit)] {
        grants.extend(is.then(|| name.to_owned()));
    }
    if granted.profile == Profile::None {
        grants = vec!["everything that the daemon's user may do".to_owned()];
    }
    SandboxReport {
        profile: granted.profile.as_str().to_owned(),
        label: confinement.label(),
        granted: grants,
        denied: granted.denied.clone(),
        layers: layers.collect(),
        uid: confinement.uid,
        visible: confinement.places.iter().map(|place| place.path.display().to_string()).collect(),
    }
}

impl From<SandboxReport> for v1::Sandbox {
    fn from(report: SandboxReport) -> Self {
        let layer = |layer: LayerReport| v1::SandboxLayer {
            name: layer.name,
            holds: layer.holds,
            detail: layer.detail,
        };
        v1::Sandbox {
            profile: report.profile,
            label: report.label,
            granted: report.granted,
            denied: report.denied,
            layers: report.layers.into_iter().map(layer).collect(),
            uid: report.uid,
            visible: report.visible,
        }
    }
}

impl From<v1::Sandbox> for SandboxReport {
    fn from(wire: v1::Sandbox) -> Self {
        let layer = |layer: v1::SandboxLayer| LayerReport {
            name: layer.name,
            holds: layer.holds,
            detail: layer.detail,
        };
        SandboxReport {
            profile: wire.profile,
            label: wire.label,
            granted: wire.granted,
            denied: wire.denied,
            layers: wire.layers.into_iter().map(layer).collect(),
            uid: wire.uid,
            visible: wire.visible,
        }
    }
}
