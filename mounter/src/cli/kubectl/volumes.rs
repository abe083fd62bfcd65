//! `kubectl tarbox volumes`.

use std::{collections::BTreeSet, thread};

use clap::Args;
use serde::Serialize;
use tarbox_types::ErrorKind;

use super::{
    api::{Component, Kubectl},
    objects::{AgentView, Claim, DRIVER, List, PersistentVolume, Pod, TenantView},
};
use crate::{
    cli::output::{Format, Table, show},
    failure::{FAILED, Failure, OK},
};

/// So many nodes are asked at a time: each is a process here and a connection to a kubelet.
const AT_ONCE: usize = 16;

#[derive(Debug, Args)]
#[command(
    after_long_help = "One row for each node that has a volume mounted; one with `-` for a volume that is mounted nowhere. With --all-namespaces also volumes without a claim, and those that pods ask for themselves (without PV).\n\nExit code 1 where a node could not be asked; what the others said is printed.\n\nExamples:\n  kubectl tarbox volumes\n  kubectl tarbox volumes -A -o json | jq -r '.[] | select(.condition != \"\") | .claim'"
)]
pub(super) struct VolumesCommand {
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
}

/// A volume at a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct VolumeView {
    namespace: Option<String>,
    claim: Option<String>,
    /// Name of the PersistentVolume; nothing where a pod asked for the volume itself.
    volume: Option<String>,
    phase: Option<String>,
    capacity: Option<String>,
    tenant_id: String,
    tenant: Option<String>,
    node: Option<String>,
    /// What the supervisor of its mounter is about.
    mounter: Option<String>,
    restarts: Option<u64>,
    condition: String,
}

/// What a node's agent says; nothing where it could not be asked.
type Told = (String, Option<AgentView>);

impl VolumesCommand {
    pub(super) fn run(self, kubectl: &Kubectl, format: Format) -> Result<u8, Failure> {
        let volumes: List<PersistentVolume> = kubectl.get(&["persistentvolumes"])?;
        let claims = match self.all_namespaces {
            true => None,
            false => {
                let claims: List<Claim> = kubectl.get_here(&["persistentvolumeclaims"])?;
                Some(claims.items.into_iter().map(|claim| claim.metadata.uid).collect())
            }
        };
        let told = told(kubectl, &agents(kubectl)?);
        let views = joined(&volumes.items, claims.as_ref(), &told);
        show(format, &views, |views| table(views))?;
        Ok(if told.iter().all(|(_, view)| view.is_some()) { OK } else { FAILED })
    }
}

/// The agents' pods that run.
pub(super) fn agents(kubectl: &Kubectl) -> Result<Vec<Pod>, Failure> {
    let pods = kubectl.pods(Component::Agent)?;
    if pods.is_empty() {
        let message = "no pod of Tarbox's agent is in this cluster: is the chart tarbox-csi installed, and this the right context?";
        return Err(Failure::refused(ErrorKind::NotFound, message));
    }
    Ok(pods.into_iter().filter(|pod| pod.status.phase == "Running").collect())
}

/// Asks each node; who does not answer is named on standard error.
fn told(kubectl: &Kubectl, agents: &[Pod]) -> Vec<Told> {
    of_each(agents, |agent| kubectl.exec(agent, Component::Agent, &["tarbox-agent", "ps", "-o", "json"]))
        .into_iter()
        .map(|(node, answer)| {
            if let Err(error) = &answer {
                eprintln!("kubectl tarbox: node {node} cannot be asked: {error}");
            }
            (node, answer.ok())
        })
        .collect()
}

/// What came of asking each pod, by node, some at a time.
pub(super) fn of_each<T: Send>(
    pods: &[Pod],
    ask: impl Fn(&Pod) -> Result<T, Failure> + Sync,
) -> Vec<(String, Result<T, Failure>)> {
    let (ask, mut answers) = (&ask, Vec::new());
    for some in pods.chunks(AT_ONCE) {
        let asked = thread::scope(|scope| {
            let threads: Vec<_> = some.iter().map(|pod| scope.spawn(move || ask(pod))).collect();
            let answers = threads.into_iter().map(|thread| thread.join());
            answers.collect::<Vec<_>>()
        });
        for (pod, answer) in some.iter().zip(asked) {
            let answer = answer.unwrap_or_else(|_| {
                Err(Failure::refused(ErrorKind::Internal, "the thread that asked it has ended"))
            });
            answers.push((pod.spec.node_name.clone(), answer));
        }
    }
    answers
}

/// Volumes and who serves them. `claims` = the uids of those that are wanted; `None` = all. Pure.
fn joined(volumes: &[PersistentVolume], claims: Option<&BTreeSet<String>>, told: &[Told]) -> Vec<VolumeView> {
    let ours = volumes.iter().filter_map(|volume| Some((volume, volume.spec.csi.as_ref()?)));
    let ours: Vec<_> = ours.filter(|(_, csi)| csi.driver == DRIVER).collect();
    let mounted = || {
        told.iter().flat_map(|(node, view)| {
            view.iter().flat_map(|view| &view.tenants).map(move |tenant| (node.as_str(), tenant))
        })
    };
    let mut views = Vec::new();
    for &(volume, csi) in &ours {
        let claim = volume.spec.claim_ref.as_ref();
        if claims.is_some_and(|wanted| !claim.is_some_and(|claim| wanted.contains(&claim.uid))) {
            continue;
        }
        let idle = VolumeView {
            namespace: claim.map(|claim| claim.namespace.clone()),
            claim: claim.map(|claim| claim.name.clone()),
            volume: Some(volume.metadata.name.clone()),
            phase: volume.status.as_ref().map(|status| status.phase.clone()),
            capacity: volume.spec.capacity.get("storage").cloned(),
            tenant: csi.volume_attributes.get("tenant_name").cloned(),
            ..unclaimed(&csi.volume_handle)
        };
        let at: Vec<_> = mounted().filter(|(_, tenant)| tenant.tenant_id == csi.volume_handle).collect();
        views.extend(at.iter().map(|(node, tenant)| served(idle.clone(), node, tenant)));
        if at.is_empty() {
            views.push(idle);
        }
    }
    if claims.is_none() {
        let is_known =
            |tenant: &TenantView| ours.iter().any(|(_, csi)| csi.volume_handle == tenant.tenant_id);
        let others = mounted().filter(|(_, tenant)| !is_known(tenant));
        views.extend(others.map(|(node, tenant)| served(unclaimed(&tenant.tenant_id), node, tenant)));
    }
    views.sort_by_cached_key(|view| {
        (view.namespace.clone(), view.claim.clone(), view.volume.clone(), view.node.clone())
    });
    views
}

fn unclaimed(tenant_id: &str) -> VolumeView {
    VolumeView {
        namespace: None,
        claim: None,
        volume: None,
        phase: None,
        capacity: None,
        tenant_id: tenant_id.to_owned(),
        tenant: None,
        node: None,
        mounter: None,
        restarts: None,
        condition: String::new(),
    }
}

fn served(view: VolumeView, node: &str, tenant: &TenantView) -> VolumeView {
    VolumeView {
        node: Some(node.to_owned()),
        mounter: Some(tenant.phase.clone()),
        restarts: Some(tenant.restarts),
        condition: tenant.condition.clone(),
        ..view
    }
}

fn table(views: &[VolumeView]) -> Table {
    let mut table = Table::new(&[
        "NAMESPACE",
        "CLAIM",
        "VOLUME",
        "CAPACITY",
        "TENANT",
        "NODE",
        "MOUNTER",
        "RESTARTS",
        "CONDITION",
    ]);
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    for view in views {
        table.row(vec![
            or_dash(&view.namespace),
            or_dash(&view.claim),
            or_dash(&view.volume),
            or_dash(&view.capacity),
            view.tenant.clone().unwrap_or_else(|| view.tenant_id.clone()),
            or_dash(&view.node),
            or_dash(&view.mounter),
            view.restarts.map_or_else(|| "-".to_owned(), |restarts| restarts.to_string()),
            view.condition.clone(),
        ]);
    }
    table
}
