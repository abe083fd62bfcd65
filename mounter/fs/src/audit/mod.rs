//! The audit: who did what, when, from where.
//!
//! ```text
//! request ── who asks (process.rs) ──► note (asked.rs, note.rs) ──► behind the payload of the record of what it does
//!                                                                   │ what changes nothing is a record with a note alone
//!                                    journal ──fold──► gather.rs ──► telling.rs (paths, sums) ──► pack.rs ──► the batch's commit
//! ```
//! So an event is where its change is: it survives the process with it, and comes into the database with it, once. On the
//! operation's path only the note is written; paths are found when a batch is put together, as they were then.

mod asked;
mod event;
mod gather;
mod names;
mod note;
mod operation;
mod pack;
mod process;
mod telling;
mod wire;

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tarbox_store::{AuditChunk, AuditRange, StoreError};
use tarbox_types::{AuditLevel, Ino, Seq};
use uuid::Uuid;

pub(crate) use asked::{Asked, Doing, micros};
pub use event::{Event, Pod};
pub(crate) use gather::{Gathered, Place};
pub(crate) use names::Source;
pub use operation::{ALL, Operation};
pub use pack::{Unreadable, unpack};

use self::{
    names::{Moves, Names},
    pack::Packer,
    process::Processes,
    telling::{Telling, Told},
};
use crate::plan::Caller;

/// So many of the last events are kept in memory.
const RECENT: usize = 256;
/// So many values are looked at for them when nothing is in memory yet.
const RECENT_CHUNKS: usize = 64;

/// Who knows the names of the node's pods.
pub trait PodNames: fmt::Debug + Send + Sync {
    /// Namespace and name of a pod that has, or had, the tenant.
    fn name_of(&self, uid: Uuid) -> Option<(String, String)>;
}

/// What of a mount is audited, and how.
#[derive(Clone, Debug, Default)]
pub struct AuditConfig {
    /// How much.
    pub level: AuditLevel,
    /// This node's name.
    pub node: String,
    /// Names of pods, where somebody knows them.
    pub pods: Option<Arc<dyn PodNames>>,
    /// So long events are kept, where this mount is to see to it.
    pub keep: Option<Duration>,
    /// What is noted first: [`Operation::Mount`] or [`Operation::TakeOver`]; `None` = nothing.
    pub begun: Option<Operation>,
}

/// What a mount has audited since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audited {
    /// Events committed.
    pub events: u64,
    /// Bytes that they take in the database.
    pub bytes: u64,
}

/// See the module's documentation.
pub(crate) struct Audit {
    pub(crate) level: AuditLevel,
    node: String,
    pods: Option<Arc<dyn PodNames>>,
    processes: Processes,
    state: tokio::sync::Mutex<State>,
    events: AtomicU64,
    bytes: AtomicU64,
    has_warned: AtomicBool,
}

#[derive(Default)]
struct State {
    names: Names,
    /// The last ones up to `position`, oldest first; `None` = nobody has asked yet.
    recent: Option<VecDeque<Event>>,
    position: Seq,
}

/// A batch's events on their way into the database.
pub(crate) struct OnTheWay {
    told: Told,
    pub(crate) chunks: Vec<AuditChunk>,
}

impl OnTheWay {
    /// Names of files that had to be looked for.
    pub(crate) fn files(&self) -> impl Iterator<Item = (Ino, &Place)> {
        self.told.files.iter().map(|(ino, place)| (*ino, place))
    }
}

impl Audit {
    /// `committed`: where the database stands.
    pub(crate) fn new(config: &AuditConfig, committed: Seq) -> Self {
        Self {
            level: config.level,
            node: config.node.clone(),
            pods: config.pods.clone(),
            processes: Processes::default(),
            state: tokio::sync::Mutex::new(State { position: committed, ..State::default() }),
            events: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            has_warned: AtomicBool::new(false),
        }
    }

    /// Of what nothing is noted.
    pub(crate) fn off() -> Self {
        Self::new(&AuditConfig { level: AuditLevel::Off, ..AuditConfig::default() }, 0)
    }

    /// Who asks for what, if that is to be kept.
    pub(crate) fn asked<'d>(&self, caller: &Caller, doing: Doing<'d>) -> Option<Asked<'d>> {
        (caller.unique != 0 && doing.level <= self.level).then(|| self.look(caller, doing))
    }

    /// The same for what is refused because the tenant is full.
    pub(crate) fn refused<'d>(&self, caller: &Caller, doing: Doing<'d>) -> Option<Asked<'d>> {
        (caller.unique != 0 && self.level > AuditLevel::Off).then(|| self.look(caller, doing))
    }

    /// What this process does by itself.
    pub(crate) fn own<'d>(&self, caller: &Caller, doing: Doing<'d>) -> Asked<'d> {
        let who = self.processes.who(caller.pid, Instant::now());
        Asked::new(caller, doing, who, None)
    }

    fn look<'d>(&self, caller: &Caller, doing: Doing<'d>) -> Asked<'d> {
        let now = Instant::now();
        let who = self.processes.who(caller.pid, now);
        Asked::new(caller, doing, who, (self.level == AuditLevel::Full).then_some(now))
    }

    /// A file is read that was opened without a message: the level was raised on a mount that goes on.
    pub(crate) fn warn_of_unseen_opens(&self) {
        if !self.has_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "opens, and what is read from the kernel's cache, are not audited before the tenant is mounted anew"
            );
        }
    }

    pub(crate) fn audited(&self) -> Audited {
        Audited { events: self.events.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }

    // === Committing ===

    /// The events of a batch that ends at `seq`.
    ///
    /// # Errors
    /// Where the database cannot be asked for names that memory lacks.
    pub(crate) async fn tell(
        &self,
        gathered: Gathered,
        seq: Seq,
        source: &Source<'_>,
    ) -> Result<OnTheWay, StoreError> {
        let mut state = self.state.lock().await;
        let telling = Telling::new(&mut state.names, self.pods.as_deref());
        let told = telling.tell(gathered, source).await?;
        let mut packer = Packer::new(&self.node, seq);
        told.events.iter().for_each(|event| packer.add(event));
        let chunks = packer.finish();
        Ok(OnTheWay { told, chunks })
    }

    /// The database has them.
    pub(crate) async fn committed(&self, told: OnTheWay, seq: Seq) {
        let OnTheWay { told, chunks } = told;
        let bytes = chunks.iter().map(|chunk| chunk.data.len() as u64).sum();
        self.events.fetch_add(told.events.len() as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut state = self.state.lock().await;
        state.names.follow(told.moves);
        state.position = seq;
        if let Some(recent) = &mut state.recent {
            recent.extend(told.events);
            let surplus = recent.len().saturating_sub(RECENT);
            recent.drain(..surplus);
        }
    }

    /// The database stands elsewhere than it was thought to.
    pub(crate) async fn reposition(&self, seq: Seq) {
        let mut state = self.state.lock().await;
        *state = State { position: seq, ..State::default() };
    }

    // === Looking ===

    /// The last events, oldest first, with those that are not committed yet: `uncommitted` gathers what stands behind a position.
    ///
    /// # Errors
    /// Where the database cannot be read, the first time.
    pub(crate) async fn recent(
        &self,
        source: &Source<'_>,
        uncommitted: impl FnOnce(Seq) -> Gathered,
    ) -> Result<Vec<Event>, StoreError> {
        let mut state = self.state.lock().await;
        let state = &mut *state;
        if state.recent.is_none() {
            state.recent = Some(last_events(source).await?);
        }
        let mut events: Vec<Event> = state.recent.iter().flatten().cloned().collect();
        events
            .extend(Telling::new(&mut state.names, self.pods.as_deref()).guess(uncommitted(state.position)));
        let surplus = events.len().saturating_sub(RECENT);
        events.drain(..surplus);
        Ok(events)
    }
}

async fn last_events(source: &Source<'_>) -> Result<VecDeque<Event>, StoreError> {
    let mut events = VecDeque::new();
    let newest = AuditRange { newest_first: true, ..AuditRange::default() };
    for chunk in source.store.audit(&newest, RECENT_CHUNKS).await? {
        // What another release has written is not shown here.
        let Ok((_, older)) = unpack(&chunk) else { continue };
        older.into_iter().rev().for_each(|event| events.push_front(event));
        if events.len() >= RECENT {
            break;
        }
    }
    Ok(events)
}

impl Default for OnTheWay {
    fn default() -> Self {
        let told =
            Told { events: Vec::new(), moves: Moves::default(), files: rustc_hash::FxHashMap::default() };
        Self { told, chunks: Vec::new() }
    }
}
