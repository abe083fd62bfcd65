//! What the agent counts, and what it asks its mounters for, so that a node is scraped at one place.

use std::{fs::File, path::Path, time::Duration};

use tarbox_proto::control::v1::{Latencies, StatisticsResponse};
use tarbox_runtime::{
    Metric, Monitored,
    prometheus::{
        Histogram, HistogramOpts, IntCounter, Registry, core::Collector, exponential_buckets,
        proto::MetricFamily,
    },
};
use tarbox_types::{TenantId, latency::Counted};

use crate::{
    node::Node,
    tenant::{Control, Snapshot},
};

/// How long a mounter may take to tell its numbers: one that hangs is left out.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

// === What is read when it is asked for ===

const MOUNTS: Metric = Metric {
    name: "tarbox_mount_count",
    help: "Volumes that are mounted and served on the node.",
    labels: &["node"],
};
const PHASE: Metric = Metric {
    name: "tarbox_mounter_phase",
    help: "Always 1: what the supervisor of a volume's mounter is about.",
    labels: &["volume_id", "phase"],
};
const UP: Metric = Metric {
    name: "tarbox_mounter_up",
    help: "Whether a volume's mounter told its numbers in time: 1 or 0.",
    labels: &["volume_id"],
};
const RESTARTS: Metric = Metric {
    name: "tarbox_mounter_restarts_total",
    help: "Mounters of a volume that were started because one had died or hung.",
    labels: &["volume_id"],
};
const HAND_OVERS: Metric = Metric {
    name: "tarbox_mounter_hand_overs_total",
    help: "Mounters of a volume that were replaced by another build's.",
    labels: &["volume_id"],
};
const LONGEST: Metric = Metric {
    name: "tarbox_mounter_recovery_longest_seconds",
    help: "The longest that nobody served a volume because its mounter had ended, since the agent started.",
    labels: &["volume_id"],
};
const OPERATIONS: Metric = Metric {
    name: "tarbox_fuse_operation_duration_seconds",
    help: "How long FUSE operations took, from reading the request to the reply.",
    labels: &["volume_id", "opcode"],
};
const OPERATION_COUNT: Metric = Metric {
    name: "tarbox_fuse_operations_total",
    help: "FUSE operations that were answered.",
    labels: &["volume_id", "opcode"],
};
const OPERATION_ERRORS: Metric = Metric {
    name: "tarbox_fuse_operation_errors_total",
    help: "FUSE operations that were answered with an error; many are none to a user, such as a lookup that finds nothing.",
    labels: &["volume_id", "opcode"],
};
const CACHE_HITS: Metric = Metric {
    name: "tarbox_cache_hits_total",
    help: "Blocks that were read from a mounter's memory.",
    labels: &["volume_id"],
};
const CACHE_MISSES: Metric = Metric {
    name: "tarbox_cache_misses_total",
    help: "Blocks that were looked for in a mounter's memory and had to be read from the database.",
    labels: &["volume_id"],
};
const CACHE_BYTES: Metric = Metric {
    name: "tarbox_cache_bytes",
    help: "Memory that a mounter's cached blocks take.",
    labels: &["volume_id"],
};
const JOURNAL_BYTES: Metric = Metric {
    name: "tarbox_journal_bytes",
    help: "Bytes of a volume's journal that only commits can free.",
    labels: &["volume_id"],
};
const JOURNAL_AGE: Metric = Metric {
    name: "tarbox_journal_age_seconds",
    help: "How long the oldest change that is not committed has waited, as far as this mounter knows.",
    labels: &["volume_id"],
};
const COMMITS: Metric = Metric {
    name: "tarbox_commit_duration_seconds",
    help: "How long batches took to be committed, from the first upload.",
    labels: &["volume_id"],
};
const REFUSALS: Metric = Metric {
    name: "tarbox_quota_refusals_total",
    help: "Changes that were refused for a volume's limits (ENOSPC, EFBIG).",
    labels: &["volume_id"],
};

const AUDIT_EVENTS: Metric = Metric {
    name: "tarbox_audit_events_total",
    help: "Audit events that were committed.",
    labels: &["volume_id"],
};
const AUDIT_BYTES: Metric = Metric {
    name: "tarbox_audit_bytes_total",
    help: "Bytes that committed audit events take in the database.",
    labels: &["volume_id"],
};

/// What the agent counts itself.
#[derive(Debug)]
pub(crate) struct Numbers {
    pub(crate) registry: Registry,
    /// From a stage that had to mount to the first answer.
    pub(crate) mounting: Histogram,
    /// From a mounter's end to the next one's serving.
    pub(crate) recovery: Histogram,
    silent: IntCounter,
}

impl Numbers {
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let buckets = exponential_buckets(0.005, 2.0, 14).expect("they ascend");
        let histogram = |name: &str, help: &str| {
            let histogram = HistogramOpts::new(name, help).buckets(buckets.clone());
            registered(&registry, Histogram::with_opts(histogram).expect("a sound name"))
        };
        let mounting =
            histogram("tarbox_mount_duration_seconds", "How long staging a volume took until it was served.");
        let recovery = histogram(
            "tarbox_mounter_recovery_seconds",
            "How long nobody served a volume because its mounter had ended: a crash, a hang or a hand-over.",
        );
        let silent = IntCounter::new(
            "tarbox_mounter_silent_total",
            "How often a mounter did not tell its numbers in time, so that they are lacking.",
        );
        let silent = registered(&registry, silent.expect("a sound name"));
        Self { registry, mounting, recovery, silent }
    }
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    registry.register(Box::new(collector.clone())).expect("each name is registered once");
    collector
}

impl Monitored for Node {
    const PROGRAM: &'static str = "tarbox-agent";

    fn alive(&self) -> Result<(), String> {
        // Without FUSE nothing can ever be mounted here.
        let device = Path::new("/dev/fuse");
        let opened = File::options().read(true).write(true).open(device);
        opened
            .map(drop)
            .map_err(|error| format!("{} cannot be opened: {error} (modprobe fuse?)", device.display()))
    }

    fn ready(&self) -> Result<(), String> {
        self.launcher_works()?;
        self.keeps_apart()?;
        self.database_answers().unwrap_or(Ok(()))
    }

    fn database_answers(&self) -> Option<Result<(), String>> {
        self.settings.database_url.as_ref().map(|_| self.database().is_now("the database"))
    }

    fn registry(&self) -> &Registry {
        &self.numbers.registry
    }

    async fn measured(&self) -> Vec<MetricFamily> {
        let all: Vec<_> = self
            .all()
            .into_iter()
            .map(|(tenant, handle)| (tenant, handle.snapshot.borrow().clone()))
            .collect();
        // All at once: one that hangs takes no other's time. Who has no mounter has nothing to tell.
        let asked = all.iter().filter(|(_, seen)| seen.server().is_some()).map(|(tenant, _)| {
            let (tenant, control) = (*tenant, self.control(*tenant));
            tokio::spawn(async move { (tenant, ask(&control).await) })
        });
        let mut told = Vec::new();
        for answer in asked.collect::<Vec<_>>() {
            told.extend(answer.await);
        }
        self.numbers.silent.inc_by(told.iter().filter(|(_, told)| told.is_none()).count() as u64);
        let mut families = self.own_families(&all);
        families.extend(families_of(&told));
        families
    }
}

impl Node {
    fn own_families(&self, all: &[(TenantId, Snapshot)]) -> Vec<MetricFamily> {
        let ids: Vec<_> = all.iter().map(|(tenant, _)| tenant.to_string()).collect();
        let each = || ids.iter().map(String::as_str).zip(all.iter().map(|(_, seen)| seen));
        let mounts = all.iter().filter(|(_, seen)| seen.is_serving()).count();
        vec![
            MOUNTS.gauge([([self.settings.node_id.as_str()], mounts as f64)]),
            PHASE.gauge(each().map(|(id, seen)| ([id, seen.phase()], 1.0))),
            RESTARTS.counter(each().map(|(id, seen)| ([id], seen.record.restarts))),
            HAND_OVERS.counter(each().map(|(id, seen)| ([id], seen.hand_overs))),
            LONGEST.gauge(each().filter_map(|(id, seen)| Some(([id], seen.longest_pause?.as_secs_f64())))),
        ]
    }
}

async fn ask(control: &Control) -> Option<StatisticsResponse> {
    match control.statistics(TOLD_WITHIN).await {
        Ok(statistics) => Some(statistics),
        Err(error) => {
            tracing::debug!(error = error.report(), "a mounter is left out of the metrics");
            None
        }
    }
}

/// What mounters have told. Pure.
fn families_of(told: &[(TenantId, Option<StatisticsResponse>)]) -> Vec<MetricFamily> {
    let ids: Vec<_> = told.iter().map(|(tenant, _)| tenant.to_string()).collect();
    let asked = || ids.iter().map(String::as_str).zip(told.iter().map(|(_, told)| told));
    let each = || asked().filter_map(|(id, told)| Some((id, told.as_ref()?)));
    let operations = || {
        each().flat_map(|(id, told)| {
            told.operations.iter().map(move |operation| ([id, operation.name.as_str()], operation))
        })
    };
    // Releases that do not say it are left out: nothing is not zero.
    let systems = || each().filter_map(|(id, told)| Some(([id], told.file_system.as_ref()?)));
    vec![
        UP.gauge(asked().map(|(id, told)| ([id], f64::from(u8::from(told.is_some()))))),
        OPERATIONS.durations(operations().map(|(labels, operation)| {
            (labels, Counted::of(operation.count, operation.total_ns, &operation.latencies))
        })),
        OPERATION_COUNT.counter(operations().map(|(labels, operation)| (labels, operation.count))),
        OPERATION_ERRORS.counter(operations().map(|(labels, operation)| (labels, operation.errors))),
        CACHE_HITS.counter(systems().map(|(id, system)| (id, system.cache_hits))),
        CACHE_MISSES.counter(systems().map(|(id, system)| (id, system.cache_misses))),
        CACHE_BYTES.gauge(systems().map(|(id, system)| (id, system.cache_bytes as f64))),
        JOURNAL_BYTES.gauge(systems().map(|(id, system)| (id, system.journal_bytes as f64))),
        JOURNAL_AGE.gauge(systems().map(|(id, system)| (id, system.journal_age_ms as f64 / 1e3))),
        COMMITS.durations(systems().filter_map(|(id, system)| {
            let Latencies { count, total_ns, classes } = system.commits.as_ref()?;
            Some((id, Counted::of(*count, *total_ns, classes)))
        })),
        REFUSALS.counter(systems().map(|(id, system)| (id, system.quota_refusals))),
        AUDIT_EVENTS.counter(systems().map(|(id, system)| (id, system.audit_events))),
        AUDIT_BYTES.counter(systems().map(|(id, system)| (id, system.audit_bytes))),
    ]
}

#[cfg(test)]
mod tests {
    use tarbox_proto::control::v1::{FileSystemStatistics, OperationStatistics};

    use super::*;

    #[test]
    fn who_does_not_answer_or_is_of_an_older_release_is_left_out_not_zero() {
        let [silent, older, newer] = [(); 3].map(|()| TenantId::random());
        let operations =
            vec![OperationStatistics { name: "read".into(), count: 3, errors: 1, ..Default::default() }];
        let system = FileSystemStatistics { quota_refusals: 7, ..Default::default() };
        let told = [
            (silent, None),
            (older, Some(StatisticsResponse { operations: operations.clone(), file_system: None })),
            (newer, Some(StatisticsResponse { operations, file_system: Some(system) })),
        ];
        let families = families_of(&told);
        let rows = |name: &str| {
            let family = families.iter().find(|family| family.name() == name).expect(name);
            let rows = family.get_metric().iter().map(|row| row.get_label()[0].value().to_owned());
            rows.collect::<Vec<_>>()
        };
        assert_eq!(rows("tarbox_mounter_up").len(), 3);
        assert_eq!(rows("tarbox_fuse_operations_total"), [older, newer].map(|id| id.to_string()));
        assert_eq!(rows("tarbox_quota_refusals_total"), [newer.to_string()]);
        assert!(rows("tarbox_commit_duration_seconds").is_empty(), "it said nothing of commits");
    }
}
