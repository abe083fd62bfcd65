//! What the control socket shows, and what can be ordered over it.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    time::Duration,
};

use tarbox_engine::{Activity, InFlight, Observer, OperationStatistics};
use tarbox_fs::FileSystem;
use tarbox_proto::control::v1::{self as wire, Latencies, Phase, StatisticsResponse, StatusResponse};
use tarbox_store::Database;
use tarbox_types::latency::Counted;
use tokio::sync::{mpsc, oneshot};

use crate::tenant_dir::Note;

/// So many requests in flight are shown at most.
const SHOWN: usize = 64;

/// Orders that may wait: there is one supervisor, and hardly ever somebody else.
pub const ORDERS: usize = 4;

/// What is ordered over the control socket.
#[derive(Debug)]
pub enum Ordered {
    /// Leave the rest to a successor, what executes finished within this time.
    Drain(Duration),
    /// Commit everything, give everything back, end.
    Stop,
    /// Hand these secrets on; told when that is done.
    Renew(OwnedFd, oneshot::Sender<()>),
}

/// One mounted tenant.
pub struct Subject {
    /// What was noted of it.
    pub note: Note,
    /// Epoch of its lease, or of the one that it reads beside.
    pub epoch: u64,
    /// What is served: a reader shows one view after the other.
    shown: Box<dyn Fn() -> FileSystem + Send + Sync>,
    /// Where it is kept.
    pub database: Arc<dyn Database>,
    observer: OnceLock<Observer>,
    phase: AtomicI32,
    orders: mpsc::Sender<Ordered>,
    /// Nobody would start a successor.
    is_alone: AtomicBool,
}

impl Subject {
    /// A tenant that is about to be served.
    pub fn new(
        note: Note,
        epoch: u64,
        shown: impl Fn() -> FileSystem + Send + Sync + 'static,
        database: Arc<dyn Database>,
        orders: mpsc::Sender<Ordered>,
    ) -> Arc<Self> {
        let phase = AtomicI32::new(Phase::Starting.into());
        let shown = Box::new(shown);
        Arc::new(Self {
            note,
            epoch,
            shown,
            database,
            observer: OnceLock::new(),
            phase,
            orders,
            is_alone: AtomicBool::new(false),
        })
    }

    /// What is served now.
    pub fn file_system(&self) -> FileSystem {
        (self.shown)()
    }

    /// Its requests, once there is a session.
    pub fn observe(&self, observer: Observer) {
        let _ = self.observer.set(observer);
    }

    /// The supervisor is gone.
    pub fn leave_alone(&self) {
        self.is_alone.store(true, Ordering::Relaxed);
    }

    /// Whether nobody would start a successor.
    pub fn is_alone(&self) -> bool {
        self.is_alone.load(Ordering::Relaxed)
    }

    /// How far it is.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase.into(), Ordering::Relaxed);
    }

    /// Orders something; false where it ends already.
    pub(crate) async fn order(&self, order: Ordered) -> bool {
        self.orders.send(order).await.is_ok()
    }

    fn operations(&self) -> Vec<OperationStatistics> {
        self.observer.get().map(Observer::statistics).unwrap_or_default()
    }

    pub(crate) fn statistics(&self) -> StatisticsResponse {
        let now = self.file_system().status();
        let file_system = wire::FileSystemStatistics {
            cache_hits: now.cache.hits,
            cache_misses: now.cache.misses,
            cache_bytes: now.cache.bytes as u64,
            journal_bytes: now.journal_bytes,
            journal_age_ms: millis(now.journal_age),
            commits: Some(latencies(&now.commits)),
            quota_refusals: now.refusals,
            audit_events: now.audited.events,
            audit_bytes: now.audited.bytes,
        };
        StatisticsResponse {
            operations: self.operations().iter().map(operation).collect(),
            file_system: Some(file_system),
        }
    }

    pub(super) fn status(&self) -> StatusResponse {
        let now = self.file_system().status();
        let mut flights = self.observer.get().map(Observer::in_flight).unwrap_or_default();
        flights.sort_unstable_by_key(|flight| std::cmp::Reverse(flight.age));
        StatusResponse {
            tenant_id: self.note.tenant_id.to_string(),
            tenant_name: self.note.tenant_name.clone(),
            version: self.note.version.clone(),
            pid: self.note.pid,
            epoch: self.epoch,
            journal_sequence: now.seq,
            committed_sequence: now.committed,
            journal_bytes: now.journal_bytes,
            used_bytes: now.used_bytes,
            quota_bytes: now.limits.bytes,
            used_inodes: now.used_inodes,
            quota_inodes: now.limits.inodes,
            mount_point: self.note.mount_point.to_string_lossy().into_owned(),
            waiting_for: now.lost.or(now.waiting_for).unwrap_or_default(),
            cache_bytes: now.cache.bytes as u64,
            operations: self.operations().iter().map(|operation| operation.latencies.count).sum(),
            phase: self.phase.load(Ordering::Relaxed),
            in_flight_count: flights.len() as u64,
            longest_executing_ms: longest(&flights, Activity::Executing),
            longest_waiting_ms: longest(&flights, Activity::Waiting),
            in_flight: flights.iter().take(SHOWN).map(shown).collect(),
        }
    }
}

fn longest(flights: &[InFlight], activity: Activity) -> u64 {
    let ages = flights.iter().filter(|flight| flight.activity == activity).map(|flight| flight.activity_age);
    ages.max().map_or(0, millis)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn operation(operation: &OperationStatistics) -> wire::OperationStatistics {
    let Latencies { count, total_ns, classes } = latencies(&operation.latencies);
    wire::OperationStatistics {
        name: operation.name.to_owned(),
        count,
        errors: operation.errors,
        total_ns,
        latencies: classes,
    }
}

fn latencies(counted: &Counted) -> Latencies {
    Latencies {
        count: counted.count,
        total_ns: u64::try_from(counted.total.as_nanos()).unwrap_or(u64::MAX),
        classes: counted.classes.to_vec(),
    }
}

fn shown(flight: &InFlight) -> wire::InFlight {
    let activity = match flight.activity {
        Activity::Executing => wire::Activity::Executing,
        Activity::Waiting => wire::Activity::Waiting,
    };
    wire::InFlight {
        unique: flight.unique,
        operation: tarbox_engine::opcode::name_of(flight.opcode).to_owned(),
        activity: activity.into(),
        age_ms: millis(flight.age),
        activity_age_ms: millis(flight.activity_age),
        interrupted: flight.interrupted,
    }
}
