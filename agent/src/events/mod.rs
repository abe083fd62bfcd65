//! What users must know of their volumes, as Kubernetes events on the pods that have them: `kubectl describe pod` shows it.
//!
//! Looked for from outside, in what every tenant's task shows and its mounter counts: nothing waits for the API server, and an agent that
//! cannot reach it only says so.

mod api;
mod told;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

pub use api::ApiServer;
use tarbox_handover::pods::Pod;
use tarbox_types::TenantId;
use told::{Reason, Seen, Told};

use crate::{
    failure::AgentError,
    node::Node,
    tenant::{Snapshot, mounter_dir, pods},
};

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(2);
/// How often mounters are asked what they have refused: each of these looks.
const ASKED_EVERY: u32 = 5;
/// How long a mounter may take to answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);
/// The same is said of a volume no more often; how often it happened meanwhile is said then.
const AGAIN: Duration = Duration::from_secs(60);

/// What was said of a volume last.
#[derive(Debug)]
struct Said {
    at: Instant,
    /// How often it has happened since.
    kept_back: u32,
}

/// Looks until the agent ends.
pub(crate) async fn watch(node: Arc<Node>, server: ApiServer) {
    let mut before: BTreeMap<TenantId, Seen> = BTreeMap::new();
    let mut said: BTreeMap<(TenantId, Reason), Said> = BTreeMap::new();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for look in 0u32.. {
        ticks.tick().await;
        let mut now = BTreeMap::new();
        for (tenant, handle) in node.all() {
            let snapshot = handle.snapshot.borrow().clone();
            let known = before.get(&tenant);
            let refusals = match known {
                // What was refused before this agent looked is not news.
                Some(known) if look % ASKED_EVERY != 0 => known.refusals,
                _ => refusals(&node, tenant, &snapshot).await,
            };
            let seen = Seen::of(&snapshot, refusals);
            for told in known.map(|known| told::between(known, &seen)).unwrap_or_default() {
                if let Some(times) = times(&mut said, (tenant, told.reason), Instant::now()) {
                    tell(&node, &server, tenant, &snapshot, &told, times).await;
                }
            }
            now.insert(tenant, seen.or_untold(known));
        }
        before = now;
        said.retain(|(tenant, _), said| before.contains_key(tenant) && said.at.elapsed() < 10 * AGAIN);
    }
}

/// How often it has happened since it was said last; `None` where it was said a moment ago. Pure.
fn times(
    said: &mut BTreeMap<(TenantId, Reason), Said>,
    what: (TenantId, Reason),
    now: Instant,
) -> Option<u32> {
    match said.entry(what) {
        Entry::Vacant(free) => {
            free.insert(Said { at: now, kept_back: 0 });
            Some(1)
        }
        Entry::Occupied(mut last) if now.duration_since(last.get().at) < AGAIN => {
            last.get_mut().kept_back += 1;
            None
        }
        Entry::Occupied(mut last) => {
            let before = last.insert(Said { at: now, kept_back: 0 });
            Some(before.kept_back + 1)
        }
    }
}

/// Operations that the tenant's limits have refused; `None` where nobody tells.
async fn refusals(node: &Node, tenant: TenantId, snapshot: &Snapshot) -> Option<u64> {
    snapshot.server()?;
    let statistics = node.control(tenant).statistics(ANSWERED_WITHIN).await.ok()?;
    statistics.file_system.map(|system| system.quota_refusals)
}

async fn tell(
    node: &Node,
    server: &ApiServer,
    tenant: TenantId,
    snapshot: &Snapshot,
    told: &Told,
    times: u32,
) {
    let directory = mounter_dir(&node.settings.run_dir, tenant);
    let noted = tokio::task::spawn_blocking(move || pods::noted(&directory)).await.unwrap_or_default();
    for pod in having(&noted, snapshot.staged.published.keys().map(std::path::PathBuf::as_path)) {
        let event =
            api::event(pod, &node.settings.node_id, tenant, told, times, std::time::SystemTime::now());
        if let Err(error) = server.create(&pod.namespace, &event).await {
            let error = AgentError::report(&error);
            tracing::warn!(%tenant, pod = pod.name, namespace = pod.namespace, reason = told.reason.name(), error, "an event was not taken");
        }
    }
}

/// The pods that have the volume now: the kubelet publishes below a directory of the pod's uid.
fn having<'p>(pods: &'p [Pod], targets: impl Iterator<Item = &'p Path>) -> Vec<&'p Pod> {
    let targets: Vec<&Path> = targets.collect();
    let has = |pod: &&Pod| targets.iter().any(|target| target.iter().any(|part| part == pod.uid.as_str()));
    pods.iter().filter(has).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_a_minute_with_how_often_it_was() {
        let (mut said, tenant, begin) = (BTreeMap::new(), TenantId::random(), Instant::now());
        let mut at =
            |reason, seconds| times(&mut said, (tenant, reason), begin + Duration::from_secs(seconds));
        assert_eq!(at(Reason::MounterRestarted, 0), Some(1));
        assert_eq!(at(Reason::MounterRestarted, 5), None);
        assert_eq!(at(Reason::MounterRestarted, 59), None);
        assert_eq!(at(Reason::QuotaReached, 59), Some(1), "something else");
        assert_eq!(at(Reason::MounterRestarted, 61), Some(3));
        assert_eq!(at(Reason::MounterRestarted, 200), Some(1));
    }

    #[test]
    fn only_pods_that_have_the_volume_now_are_told() {
        let pod = |uid: &str| Pod::new(uid, "team", &format!("pod-{uid}")).expect("words");
        let pods = [pod("u1"), pod("u2"), pod("u22")];
        let targets = [Path::new("/var/lib/kubelet/pods/u2/volumes/kubernetes.io~csi/pvc-1/mount")];
        assert_eq!(having(&pods, targets.into_iter()), [&pods[1]]);
        assert!(having(&pods, std::iter::empty()).is_empty());
    }
}
