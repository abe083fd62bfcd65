//! `kubectl tarbox doctor`.

use serde_json::Value;
use tarbox_runtime::{Finding, State};
use tarbox_types::ErrorKind;

use super::{
    api::{Component, Kubectl},
    objects::{CsiNode, DRIVER, List, NodeFinding, Pod, StorageClass, Workload},
    volumes,
};
use crate::{
    cli::output::{Format, show},
    failure::{FAILED, Failure, OK},
};

/// Looks at everything; fails where something is at fault.
pub(super) fn run(kubectl: &Kubectl, format: Format) -> Result<u8, Failure> {
    let mut findings = vec![driver(kubectl)?, classes(kubectl)?, snapshots(kubectl)];
    for (kind, component) in [
        ("deployments", Component::Controller),
        ("daemonsets", Component::Agent),
        ("daemonsets", Component::Runtime),
    ] {
        let workloads: Vec<Workload> = kubectl.workloads(kind, component)?;
        findings.push(workload(component, &workloads));
    }
    let agents = kubectl.pods(Component::Agent)?;
    findings.push(registered(kubectl, &agents)?);
    findings.extend(nodes(kubectl, &agents));
    show(format, &findings, |findings| Finding::table(findings))?;
    Ok(if Finding::are_fine(&findings) { OK } else { FAILED })
}

fn driver(kubectl: &Kubectl) -> Result<Finding, Failure> {
    const WHAT: &str = "CSIDriver";
    match kubectl.get::<Value>(&["csidriver", DRIVER]) {
        Ok(found) => {
            let attach = found.pointer("/spec/attachRequired").and_then(Value::as_bool).unwrap_or(true);
            Ok(Finding::fine(WHAT, format!("{DRIVER}, attachRequired {attach}")))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Ok(Finding::fault(WHAT, format!("there is no {DRIVER}"), "install the chart tarbox-csi"))
        }
        Err(error) => Err(error),
    }
}

fn classes(kubectl: &Kubectl) -> Result<Finding, Failure> {
    let all: List<StorageClass> = kubectl.get(&["storageclasses"])?;
    let ours = all.items.iter().filter(|class| class.provisioner == DRIVER);
    let names: Vec<_> = ours.map(|class| class.metadata.name.as_str()).collect();
    Ok(if names.is_empty() {
        Finding::warning("StorageClasses", "none is of Tarbox", "set storageClasses.create, or make one")
    } else {
        Finding::fine("StorageClasses", names.join(", "))
    })
}

fn snapshots(kubectl: &Kubectl) -> Finding {
    const WHAT: &str = "VolumeSnapshotClasses";
    let advice = "install the CRDs and the controller of external-snapshotter, then `helm upgrade`";
    let Ok(all) = kubectl.get::<List<Value>>(&["volumesnapshotclasses"]) else {
        return Finding::warning(WHAT, "the cluster does not know them: no snapshots", advice);
    };
    let ours = all.items.iter().filter(|class| class["driver"] == DRIVER);
    let names: Vec<_> = ours.filter_map(|class| class.pointer("/metadata/name")?.as_str()).collect();
    if names.is_empty() {
        Finding::warning(WHAT, "none is of Tarbox", advice)
    } else {
        Finding::fine(WHAT, names.join(", "))
    }
}

/// Whether as many pods as there are to be are ready. Pure.
fn workload(component: Component, workloads: &[Workload]) -> Finding {
    let what = match component {
        Component::Controller => "controller",
        Component::Agent => "agents",
        Component::Runtime => "runtime",
    };
    let [only] = workloads else {
        return match (workloads.len(), component) {
            (0, Component::Runtime) => {
                Finding::warning(what, "there is none", "as it should be with node.launcher host or child")
            }
            (0, _) => Finding::fault(what, "there is none", "install the chart tarbox-csi"),
            (count, _) => {
                Finding::fault(what, format!("there are {count}"), "uninstall all releases but one")
            }
        };
    };
    let name = format!("{}/{}", only.metadata.namespace, only.metadata.name);
    let status = &only.status;
    let found = format!("{name}: {} of {} ready", status.number_ready, status.desired_number_scheduled);
    let is_short = status.number_ready < status.desired_number_scheduled;
    if status.desired_number_scheduled == 0 {
        return Finding::fault(
            what,
            found,
            "no node or replica is wanted: look at replicas, nodeSelector and affinity",
        );
    }
    if is_short {
        return Finding::fault(
            what,
            found,
            format!(
                "kubectl -n {} get pods -o wide; kubectl describe one that is not ready",
                only.metadata.namespace
            ),
        );
    }
    let is_old = status.updated_number_scheduled < status.desired_number_scheduled
        || status.observed_generation < only.metadata.generation;
    match (is_old, component) {
        (false, _) => Finding::fine(what, found),
        // Replaced by hand only.
        (true, Component::Runtime) => Finding::warning(
            what,
            format!("{found}, {} of the present template", status.updated_number_scheduled),
            "works; delete its pods one by one when a pause of their volumes does no harm",
        ),
        (true, _) => Finding::warning(what, format!("{found}, a roll-out is under way"), "wait for it"),
    }
}

/// Whether the kubelet of this node knows the driver. Pure.
pub(super) fn knows_driver(all: &[CsiNode], name: &str) -> bool {
    let node = all.iter().find(|node| node.metadata.name == name);
    let drivers = node.and_then(|node| node.spec.drivers.as_ref());
    drivers.is_some_and(|drivers| drivers.iter().any(|driver| driver.name == DRIVER))
}

/// Whether the kubelet of each node with an agent knows the driver.
fn registered(kubectl: &Kubectl, agents: &[Pod]) -> Result<Finding, Failure> {
    let all: List<CsiNode> = kubectl.get(&["csinodes"])?;
    let nodes: Vec<_> =
        agents.iter().map(|pod| pod.spec.node_name.as_str()).filter(|name| !name.is_empty()).collect();
    let lacking: Vec<_> = nodes.iter().copied().filter(|name| !knows_driver(&all.items, name)).collect();
    Ok(if lacking.is_empty() {
        Finding::fine("registration", format!("{} nodes know the driver", nodes.len()))
    } else {
        Finding::fault(
            "registration",
            format!("the kubelet does not know the driver on {}", lacking.join(", ")),
            "look at the log of the container registrar; node.kubeletDir must be the kubelet's --root-dir",
        )
    })
}

/// What each node's own doctor finds; of what is fine only that it is.
fn nodes(kubectl: &Kubectl, agents: &[Pod]) -> Vec<Finding> {
    let running: Vec<_> = agents.iter().filter(|pod| pod.status.phase == "Running").cloned().collect();
    let words = ["tarbox-agent", "doctor", "-o", "json"];
    let told =
        volumes::of_each(&running, |pod| kubectl.exec::<Vec<NodeFinding>>(pod, Component::Agent, &words));
    told.into_iter().flat_map(|(node, told)| of_node(&node, told)).collect()
}

fn of_node(node: &str, told: Result<Vec<NodeFinding>, Failure>) -> Vec<Finding> {
    const WHAT: &str = "node";
    let findings = match told {
        Ok(findings) => findings,
        Err(error) => {
            let advice = "you need the right to exec in the agent's pod; its log says more";
            return vec![Finding::fault(WHAT, format!("{node} cannot be asked: {error}"), advice)];
        }
    };
    let troubles: Vec<Finding> = findings
        .into_iter()
        // Of interest only to whoever chose that launcher.
        .filter(|finding| finding.what != "launcher host")
        .filter_map(|finding| {
            let found = format!("{node}: {}: {}", finding.what, finding.found);
            let state = match finding.state.as_str() {
                "fine" => return None,
                "warning" => State::Warning,
                _ => State::Fault,
            };
            Some(Finding { what: WHAT, state, found, advice: finding.advice })
        })
        .collect();
    if troubles.is_empty() { vec![Finding::fine(WHAT, format!("{node}: all is fine"))] } else { troubles }
}
