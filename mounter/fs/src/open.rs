//! A tenant's life while it is mounted: opening with replay of the journal, the background work, closing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashSet;
use tarbox_store::{Beat, Database, Lease, Limits, Seal, StoreError, TenantState, TenantStore};
use tarbox_types::{
    ErrorKind, Ino, KernelCache, Seq, SessionId, Unanswered,
    latency::{Counted, Latencies},
};
use tokio::sync::watch;
use tracing::Instrument;

use crate::{
    audit::{Audit, Audited, Operation},
    block_cache::{BlockCache, CacheStatistics},
    cache_share::CacheShare,
    config::FsConfig,
    effect::Counters,
    error::FsError,
    flush::{FlushError, Flusher},
    fuse::{FileSystem, now},
    health::{Health, State, chain},
    journal::{Cut, Identity, Journal, JournalConfig, JournalError, Reason, Rejected},
    read_ahead::OnTheirWay,
    sealing,
    shell::{Core, Shared},
    told::ToldTable,
    tree::Tree,
};

/// How often memory is kept in bounds and orphans are looked after.
const HOUSEKEEPING: Duration = Duration::from_secs(2);
/// Unlinked files are removed this long after the kernel has forgotten the first of them, many at once.
const REAP_DELAY: Duration = Duration::from_millis(100);
/// Known extents of one content are dropped beyond this number.
const EXTENTS_MAX: usize = 200_000;
/// Writers are never slowed below this many bytes in the journal.
const SOFT_LIMIT_MIN: u64 = 32 << 20;
/// How often old audit events are looked for.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);
/// Heartbeats are at least this far apart.
const BEAT_MIN: Duration = Duration::from_millis(100);
/// Heartbeats are at most this far apart.
const BEAT_MAX: Duration = Duration::from_secs(30);

/// Why a tenant could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum FsOpenError {
    /// The store failed.
    #[error("the tenant could not be read from the database")]
    Store(#[from] StoreError),
    /// The database was set back beyond what the journal holds.
    #[error(
        "the journal was set aside in {}: {}. The database has been set back; restore it, or mount again to go on without those changes",
        .0.path.display(), .0.reason
    )]
    WentBack(Rejected),
    /// The journal could not be taken up.
    #[error("the journal in {dir} could not be opened")]
    Journal {
        /// Its directory.
        dir: String,
        /// Cause.
        #[source]
        source: JournalError,
    },
}

impl FsOpenError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::WentBack(_) => ErrorKind::FailedPrecondition,
            Self::Journal { source, .. } => source.kind(),
        }
    }
}

/// What opening found in the journal.
#[derive(Debug, Default)]
pub struct Recovery {
    /// Records replayed.
    pub replayed: u64,
    /// A torn tail that was cut off: the death of the machine or of the process in the middle of a record.
    pub cut: Option<Cut>,
    /// A journal that was set aside.
    pub rejected: Option<Rejected>,
}

/// How a mounted tenant does.
#[derive(Clone, Debug)]
pub struct FsStatus {
    /// Last record acknowledged.
    pub seq: Seq,
    /// Last record committed.
    pub committed: Seq,
    /// Bytes of the journal that only commits can free.
    pub journal_bytes: u64,
    /// Allocated bytes of the head.
    pub used_bytes: u64,
    /// Inodes of the head.
    pub used_inodes: u64,
    /// Limits.
    pub limits: Limits,
    /// How long the oldest of what is not committed has waited, as far as this process knows.
    pub journal_age: Duration,
    /// How the block cache does.
    pub cache: CacheStatistics,
    /// How long batches took to be committed.
    pub commits: Counted,
    /// Changes refused for the tenant's limits.
    pub refusals: u64,
    /// What was audited.
    pub audited: Audited,
    /// Unlinked files that are kept because they may be open, as far as memory has them.
    pub unlinked: u64,
    /// What is waited for; `None` = all is well.
    pub waiting_for: Option<String>,
    /// Why nothing is acknowledged any more.
    pub lost: Option<String>,
}

impl FileSystem {
    /// Opens a tenant whose lease is held by `session`: replays the journal, starts flusher and heartbeat.
    ///
    /// # Errors
    /// [`FsOpenError`]; nothing is lost by any of them, the journal stays where it is.
    pub async fn open(
        database: Arc<dyn Database>,
        store: Arc<dyn TenantStore>,
        lease: Lease,
        session: SessionId,
        config: FsConfig,
    ) -> Result<(Self, Recovery), FsOpenError> {
        let journal_config = JournalConfig {
            dir: config.journal_dir.clone(),
            segment_bytes: config.segment_bytes,
            max_bytes: config.journal_bytes,
        };
        let identity = Identity::from(&lease);
        // While the journal is read: applications wait for both.
        let asked = Instant::now();
        let first_beat = tokio::spawn({
            let database = Arc::clone(&database);
            async move { database.beat(session).await }.in_current_span()
        });
        let mut opened =
            Journal::open_for(&journal_config, &identity, &config.connection).map_err(|source| {
                FsOpenError::Journal { dir: config.journal_dir.display().to_string(), source }
            })?;
        if let Some(rejected) =
            opened.rejected.take_if(|rejected| matches!(rejected.reason, Reason::Gap { .. }))
        {
            return Err(FsOpenError::WentBack(rejected));
        }
        let counters = Counters {
            used_bytes: lease.tenant.used_bytes,
            used_inodes: lease.tenant.used_inodes,
            next_ino: lease.next_ino,
        };
        let tenant = &lease.tenant;
        let mut tree = Tree::new(tenant.block_size, tenant.limits, counters, tenant.seq);
        let audited = std::mem::take(&mut opened.audited);
        let told = ToldTable::new(opened.told.drain(..), audited, !config.connection.left.is_empty());
        let mut recovery =
            Recovery { replayed: 0, cut: opened.cut.clone(), rejected: opened.rejected.clone() };
        // A record of an earlier lease may hold numbers from below ours: none of them counts as new to the database.
        tree.counters.next_ino = u64::MAX;
        let mut last_number = 0;
        for recovered in opened.recovered() {
            let recovered = recovered.map_err(|source| FsOpenError::Journal {
                dir: config.journal_dir.display().to_string(),
                source,
            })?;
            last_number = recovered.record.counters.next_ino;
            let record = crate::effect::Record {
                counters: Counters { next_ino: u64::MAX, ..recovered.record.counters },
                ..recovered.record
            };
            tree.apply(recovered.seq, &record, &recovered.payload);
            recovery.replayed += 1;
        }
        tree.counters.next_ino = lease.next_ino.max(last_number);
        // Until everything replayed is committed, which numbers the database has seen is not known to the flusher either.
        let fresh = if recovery.replayed > 0 { u64::MAX } else { lease.next_ino };
        let flusher = Flusher::new(
            Arc::clone(&store),
            &lease,
            Counters { next_ino: fresh, ..counters },
            config.compression,
        );
        let shared = Arc::new(Shared {
            journal: opened.journal.reader(),
            cache: CacheShare::of_head(Arc::new(BlockCache::new(config.cache_bytes as usize))),
            flusher: tokio::sync::Mutex::new(flusher),
            committed: watch::Sender::new(tenant.seq),
            health: Health::new(Instant::now() + Duration::from_secs(10), config.give_up_after),
            store,
            fence: lease.fence.clone(),
            view: RwLock::new(Arc::new(lease.head.clone())),
            layer: None,
            work: Arc::default(),
            is_watched: AtomicBool::new(false),
            on_their_way: OnTheirWay::default(),
            forgotten: Mutex::new(FxHashSet::default()),
            reap: Arc::default(),
            sealed: Mutex::default(),
            is_deleted: AtomicBool::new(false),
            nameless: Mutex::new(told.inodes().into_iter().collect()),
            told,
            kernel: std::sync::OnceLock::new(),
            soft_limit: AtomicU64::new(config.journal_bytes),
            commits: Latencies::default(),
            refusals: AtomicU64::new(0),
            audit: Audit::new(&config.audit, tenant.seq),
            core: Mutex::new(Core::new(tree, Some(opened.journal))),
            config,
        });
        // The first heartbeat says how long the lease counts.
        match first_beat.await {
            Ok(beat) => heed(&shared, asked, &beat?),
            // It panicked: said by whoever says such things. The lease counts only once it is known how long.
            Err(_) => beat(&shared, &*database, session).await?,
        };
        tokio::spawn(flush_in_background(Arc::downgrade(&shared)).in_current_span());
        tokio::spawn(keep_house(Arc::downgrade(&shared)).in_current_span());
        tokio::spawn(keep_lease(Arc::downgrade(&shared), database, session).in_current_span());
        if let Some(begun) = shared.config.audit.begun
            && !shared.note_mount_at_once(begun, now())
        {
            // Beside serving: there is no room in the journal.
            let shared = Arc::clone(&shared);
            tokio::spawn(async move { note_mount(&shared, begun).await }.in_current_span());
        }
        if let Some(keep) = shared.config.audit.keep {
            tokio::spawn(forget_old_events(Arc::downgrade(&shared), keep).in_current_span());
        }
        Ok((Self { shared }, recovery))
    }

    /// The kernel's caches, once a session serves this file system.
    pub fn attach(&self, kernel: Arc<dyn KernelCache>) {
        // Set once: a second session over the same file system asks the same kernel.
        let _ = self.shared.kernel.set(kernel);
    }

    /// The requests of the session that serves this file system: what one of them has done stays known until its answer is safe.
    pub fn keep_for(&self, requests: Arc<dyn Unanswered>) {
        self.shared.journal.keep_for(requests);
    }

    /// Every request that a dead process left on the connection has been taken on ([`FsConfig::connection`]).
    pub fn settled(&self) {
        self.shared.told.clear();
        self.shared.journal.settled();
        // At once: were each killed before its housekeeping, what was unlinked under them would become more and more.
        tokio::spawn(reap_what_was_left(Arc::downgrade(&self.shared)));
    }

    /// Returns when the database has everything that was acknowledged before the call; its position.
    ///
    /// # Errors
    /// [`FlushError`], when nothing will ever be committed. While the database cannot be reached it waits.
    pub async fn flush(&self) -> Result<Seq, FlushError> {
        let seq = self.shared.journal.last_seq();
        self.shared.commit_to(seq).await?;
        Ok(seq)
    }

    /// Seals a layer that holds everything acknowledged before the call; returns when it is committed, or at once where a heartbeat
    /// has asked for the same.
    ///
    /// # Errors
    /// Where nothing is acknowledged any more.
    pub async fn seal(&self, seal: &Seal) -> Result<(), FsError> {
        sealing::now(&self.shared, seal).await
    }

    /// Does what may have to wait for the database, as long as callers are to wait for it.
    ///
    /// # Errors
    /// Where an outage has lasted too long.
    ///
    /// # Cancel safety
    /// `work` is dropped then.
    pub async fn for_caller<T>(&self, work: impl Future<Output = T>) -> Result<T, FsError> {
        self.shared.health.or_give_up(work).await
    }

    /// Removes unlinked files that nobody has open any more; how many. (In the background it happens by itself.)
    ///
    /// # Errors
    /// Where nothing is acknowledged any more.
    pub async fn remove_unlinked(&self) -> Result<usize, FsError> {
        self.shared.reap_all().await
    }

    /// Commits nothing more as long as the returned value lives; returns once a commit under way has ended.
    ///
    /// # Cancel safety
    /// Safe to drop.
    pub async fn freeze(&self) -> impl Sized {
        self.shared.flusher.lock().await
    }

    /// New limits, for the next operation.
    pub fn set_limits(&self, limits: Limits) {
        self.shared.set_limits(limits);
    }

    /// How it does.
    #[must_use]
    pub fn status(&self) -> FsStatus {
        let shared = &self.shared;
        let (waiting_for, lost) = match shared.health.state() {
            State::Serving => (None, None),
            State::Waiting { cause, .. } => (Some(cause), None),
            State::Lost(why) => (None, Some(why)),
        };
        let core = shared.core.lock();
        FsStatus {
            seq: shared.journal.last_seq(),
            committed: *shared.committed.borrow(),
            journal_bytes: shared.journal.bytes_in_use(),
            used_bytes: core.tree.counters.used_bytes,
            used_inodes: core.tree.counters.used_inodes,
            limits: core.tree.limits,
            journal_age: shared.journal.oldest_uncommitted_at().map_or(Duration::ZERO, |at| at.elapsed()),
            cache: shared.cache.statistics(),
            commits: shared.commits.counted(),
            refusals: shared.refusals.load(Ordering::Relaxed),
            audited: shared.audit.audited(),
            unlinked: core.tree.orphans.len() as u64,
            waiting_for,
            lost,
        }
    }

    /// Ends it, once the kernel has no more requests: orphans go, everything is committed, the journal is removed.
    /// The lease is the caller's to give back.
    ///
    /// # Errors
    /// [`FlushError`]: what is not committed stays in the journal.
    pub async fn close(&self) -> Result<(), FlushError> {
        if !self.shared.config.read_only
            && !self.shared.health.is_held()
            && let Err(error) = self.shared.remove_all_orphans().await
        {
            tracing::warn!(
                error = chain(&error),
                "unlinked files could not be removed; the next mount does it"
            );
        }
        if self.shared.config.audit.begun.is_some() && !self.shared.health.is_held() {
            note_mount(&self.shared, Operation::Unmount).await;
        }
        self.flush().await?;
        if let Some(journal) = self.shared.core.lock().journal.take() {
            journal.close();
        }
        Ok(())
    }

    /// The kernel has dropped these inodes: those without a name may go.
    pub(crate) fn forgotten(&self, inos: &[Ino]) {
        {
            // It has known them: that is all this is about.
            let mut nameless = self.shared.nameless.lock();
            if !nameless.is_empty() {
                for ino in inos {
                    nameless.remove(ino);
                }
            }
        }
        let orphans: Vec<Ino> = {
            let core = self.shared.core.lock();
            inos.iter().copied().filter(|ino| core.tree.orphans.contains(ino)).collect()
        };
        if !orphans.is_empty() {
            self.shared.forgotten.lock().extend(orphans);
            self.shared.reap.notify_one();
        }
    }
}

async fn note_mount(shared: &Shared, operation: Operation) {
    if let Err(error) = shared.note_mount(operation, now()).await {
        tracing::warn!(error = chain(&error), operation = operation.name(), "could not be audited");
    }
}

/// Removes events older than they are to be kept, now and then.
async fn forget_old_events(weak: std::sync::Weak<Shared>, keep: Duration) {
    loop {
        let Some(shared) = weak.upgrade() else { return };
        match shared.expire_audit(keep, now()).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "old audit events have been removed"),
            Err(error) => tracing::debug!(error = chain(&error), "old audit events could not be removed now"),
        }
        drop(shared);
        tokio::time::sleep(EXPIRE_EVERY).await;
    }
}

// === Background ===

/// Commits what is older than the flush interval, or at once when much waits.
async fn flush_in_background(weak: std::sync::Weak<Shared>) {
    // What was taken up from the journal has waited for long enough: were this process to be killed within the interval, and
    // the next one too, it would only become more.
    if let Some(shared) = weak.upgrade().filter(|shared| shared.journal.oldest_uncommitted_at().is_some()) {
        commit_some(&shared).await;
    }
    loop {
        let Some(shared) = weak.upgrade() else { return };
        let interval = shared.config.flush_interval;
        // First of all, so that whoever appends after the look below wakes us.
        shared.is_watched.swap(false, Ordering::SeqCst);
        let oldest = shared.journal.oldest_uncommitted_at();
        let wait = match oldest {
            // Nothing to do: asked again now and then, because the file system may have been dropped.
            None => HOUSEKEEPING,
            Some(at) => {
                shared.is_watched.store(true, Ordering::SeqCst);
                interval.saturating_sub(at.elapsed())
            }
        };
        let much =
            shared.journal.bytes_in_use() >= shared.soft_limit.load(Ordering::Relaxed).min(64 << 20) / 4;
        if oldest.is_some() && (wait.is_zero() || much) {
            commit_some(&shared).await;
            continue;
        }
        let work = Arc::clone(&shared.work);
        // Who sleeps keeps nothing: a file system that is dropped is gone, its journal free.
        drop(shared);
        tokio::select! {
            () = work.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn commit_some(shared: &Shared) {
    if shared.journal.wants_spare()
        && let Err(error) = shared.journal.add_spare()
    {
        tracing::warn!(error = chain(&error), "the journal cannot grow; writers wait for commits");
    }
    let (before, bytes) = (Instant::now(), shared.journal.bytes_in_use());
    if let Err(error) = shared.commit_to(shared.journal.last_seq()).await {
        tracing::error!(error = chain(&error), "committing has ended");
        // Nothing more will succeed; whoever asks is told.
        tokio::time::sleep(HOUSEKEEPING).await;
        return;
    }
    shared.journal.retire();
    let elapsed = before.elapsed().as_secs_f64();
    if bytes >= SOFT_LIMIT_MIN / 4 && elapsed > 0.0 {
        let rate = bytes as f64 / elapsed;
        let allowed = (rate * shared.config.max_lag.as_secs_f64()) as u64;
        shared.soft_limit.store(
            allowed.clamp(SOFT_LIMIT_MIN, shared.config.journal_bytes.max(SOFT_LIMIT_MIN)),
            Ordering::Relaxed,
        );
    }
}

/// Removes closed orphans, keeps memory bounded, gives back what an idle journal does not need.
pub(crate) async fn keep_house(weak: std::sync::Weak<Shared>) {
    let mut swept = Instant::now();
    loop {
        let Some(reap) = weak.upgrade().map(|shared| Arc::clone(&shared.reap)) else { return };
        tokio::select! {
            // A little later: who unlinks many files is not slowed by questions and a record for each.
            () = async { reap.notified().await; tokio::time::sleep(REAP_DELAY).await } => {}
            () = tokio::time::sleep(HOUSEKEEPING) => {}
        }
        let Some(shared) = weak.upgrade() else { return };
        let forgotten: Vec<Ino> = shared.forgotten.lock().drain().collect();
        let is_sweep = swept.elapsed() >= HOUSEKEEPING;
        if is_sweep {
            swept = Instant::now();
            let mut core = shared.core.lock();
            core.tree.evict(shared.config.max_inodes);
            core.tree.evict_extents(EXTENTS_MAX);
            drop(core);
            if shared.journal.oldest_uncommitted_at().is_none() {
                shared.journal.trim();
            }
        }
        if is_sweep {
            try_to_reap(&shared, shared.reap_all()).await;
        } else if !forgotten.is_empty() {
            try_to_reap(&shared, shared.reap(forgotten)).await;
        }
    }
}

/// Once, beside serving.
async fn reap_what_was_left(weak: std::sync::Weak<Shared>) {
    if let Some(shared) = weak.upgrade() {
        try_to_reap(&shared, shared.reap_all()).await;
    }
}

async fn try_to_reap(shared: &Shared, work: impl Future<Output = Result<usize, FsError>>) {
    if !shared.config.read_only
        && let Err(error) = work.await
    {
        tracing::debug!(error = chain(&error), "unlinked files could not be removed now");
    }
}

/// How often a head that looks through several branches asks whether they have become fewer.
const LOOK_AT_CHAIN: Duration = Duration::from_secs(20);

/// Renews the lease and learns what others have decided about the tenant.
async fn keep_lease(weak: std::sync::Weak<Shared>, database: Arc<dyn Database>, session: SessionId) {
    let mut pause = Duration::from_secs(1);
    let mut looked = Instant::now();
    loop {
        tokio::time::sleep(pause).await;
        let Some(shared) = weak.upgrade() else { return };
        if matches!(shared.health.state(), State::Lost(_)) || shared.core.lock().journal.is_none() {
            return;
        }
        pause = match beat(&shared, &*database, session).await {
            Ok(pause) => pause,
            Err(error) => {
                shared.health.waiting(&error);
                Duration::from_secs(1)
            }
        };
        if looked.elapsed() >= LOOK_AT_CHAIN {
            looked = Instant::now();
            if let Err(error) = shared.look_through_less().await {
                tracing::debug!(error = chain(&error), "the head's branches are looked at another time");
            }
        }
    }
}

/// One heartbeat; how long to wait before the next.
async fn beat(
    shared: &Arc<Shared>,
    database: &dyn Database,
    session: SessionId,
) -> Result<Duration, StoreError> {
    // Counted from before the question: the answer may be slow.
    let sent = Instant::now();
    Ok(heed(shared, sent, &database.beat(session).await?))
}

/// What a heartbeat that was sent at a time has brought; how long to wait before the next.
fn heed(shared: &Arc<Shared>, sent: Instant, beat: &Beat) -> Duration {
    let fence = &shared.fence;
    for tenant in beat.tenants.iter().filter(|tenant| tenant.tenant == fence.tenant) {
        if tenant.epoch != fence.epoch {
            shared
                .health
                .lost(format!("another holder has epoch {}, ours was {}", tenant.epoch, fence.epoch));
            continue;
        }
        if tenant.state == TenantState::Deleted && !shared.is_deleted.swap(true, Ordering::Relaxed) {
            tracing::warn!(tenant = %tenant.tenant, "the tenant has been deleted: its data goes when it is unmounted");
        }
        sealing::begin(shared, &tenant.seals);
        shared.set_limits(tenant.limits);
    }
    shared.health.renewed(sent + beat.valid_for.min(Duration::from_secs(365 * 24 * 3600)));
    shared.health.recovered();
    beat.again_in.min(beat.valid_for / 3).clamp(BEAT_MIN, BEAT_MAX)
}

/// What an operation on a closed tenant is told.
impl From<FlushError> for FsError {
    fn from(error: FlushError) -> Self {
        Self::Io(error.to_string())
    }
}
