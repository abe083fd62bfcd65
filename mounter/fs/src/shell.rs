//! The shell around the pure core: runs plans, loads what they lack, writes the journal, applies.
//!
//! Lock order: `flusher` (held over awaits) before `core` (never held over one). Inside `core` a change is planned,
//! appended to the journal and applied, so that the journal's order is the order in which changes became visible.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashSet;
use tarbox_store::{EntryRow, Fence, InodeRow, Limits, StoreError, TenantStore, View};
use tarbox_types::{BlockIndex, Cookie, DataId, Ino, KernelCache, Seq, latency::Latencies};
use tokio::sync::{Notify, watch};

use crate::{
    audit::{Asked, Audit},
    cache_share::CacheShare,
    config::{FsConfig, SyncMode},
    effect::{Outcome, Record},
    error::FsError,
    flush::{FlushError, Flusher},
    health::Health,
    journal::{Journal, JournalReader},
    plan::Planned,
    read_ahead::OnTheirWay,
    sealed_view::Sealed,
    told::ToldTable,
    tree::{Need, Stop, Tree},
};

/// Directories of more names than this are not kept in memory as a whole.
const DIRECTORY_MAX: usize = 65_536;
/// Names per query.
const LIST_PAGE: usize = 2048;
/// The flusher is woken when this many bytes wait.
const FLUSH_BYTES: u64 = 16 << 20;
/// A record's share of the journal besides its payload, for deciding when to flush, and how much at once.
pub(crate) const RECORD_BYTES: u64 = 400;

/// What one lock protects.
pub(crate) struct Core {
    pub tree: Tree,
    /// `None` once closed, or where the mount is read-only.
    pub journal: Option<Journal>,
    unflushed: u64,
}

/// A mounted tenant; see the module's documentation.
pub(crate) struct Shared {
    pub core: Mutex<Core>,
    pub journal: JournalReader,
    pub cache: CacheShare,
    pub flusher: tokio::sync::Mutex<Flusher>,
    /// Journal position of the database.
    pub committed: watch::Sender<Seq>,
    pub health: Health,
    pub config: FsConfig,
    pub store: Arc<dyn TenantStore>,
    /// Of the lease that is held; one for the life of the mount.
    pub fence: Fence,
    /// What is looked through: as the lease had it, or shorter by now (see [`Shared::look_through_less`]).
    pub view: RwLock<Arc<View>>,
    /// The layer that is looked at; `None` = the head.
    pub layer: Option<Sealed>,
    /// There is something to commit.
    pub work: Arc<Notify>,
    /// Whether who commits in the background looks again within the flush interval: waking it costs a writer more than its record.
    pub is_watched: AtomicBool,
    /// What is fetched ahead.
    pub on_their_way: OnTheirWay,
    /// Orphans that the kernel has forgotten, perhaps.
    pub forgotten: Mutex<FxHashSet<Ino>>,
    pub reap: Arc<Notify>,
    /// Requests for checkpoints that are being answered, or have been.
    pub sealed: Mutex<FxHashSet<String>>,
    /// The tenant was deleted while it is mounted; said once.
    pub is_deleted: AtomicBool,
    /// Inodes made without a name, of which the kernel may not know yet: not to be asked about before it forgets them.
    pub nameless: Mutex<FxHashSet<Ino>>,
    /// What a dead process had done for requests that come again.
    pub told: ToldTable,
    pub kernel: std::sync::OnceLock<Arc<dyn KernelCache>>,
    /// Bytes that may wait in the journal before writers are slowed; follows the measured rate of commits.
    pub soft_limit: AtomicU64,
    /// How long batches took from their first upload to their commit.
    pub commits: Latencies,
    /// Changes that were refused for the tenant's limits.
    pub refusals: AtomicU64,
    pub audit: Audit,
}

impl Core {
    pub(crate) fn new(tree: Tree, journal: Option<Journal>) -> Self {
        Self { tree, journal, unflushed: 0 }
    }
}

/// A change that has been journalled and applied.
pub(crate) struct Changed<T> {
    pub value: T,
    pub seq: Seq,
}

impl Shared {
    /// What is looked through now.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.read().clone()
    }

    /// Learns whether the chain of branches that the head looks through has become shorter: the same is seen through fewer. A plain
    /// one cannot.
    pub(crate) async fn look_through_less(&self) -> Result<(), StoreError> {
        let before = self.view();
        if before.chain.len() < 2 {
            return Ok(());
        }
        let (_, now) = self.store.head().await?;
        // A restore puts the head on another branch: whoever serves then opens it anew.
        if now.chain.len() < before.chain.len() && now.chain[0].branch == before.chain[0].branch {
            self.flusher.lock().await.look_through(now.clone());
            *self.view.write() = Arc::new(now);
        }
        Ok(())
    }

    // === Running plans ===

    /// Runs a plan that changes nothing, until everything it needs is in memory.
    pub(crate) async fn look<T>(&self, plan: impl Fn(&Tree) -> Planned<T>) -> Result<T, FsError> {
        loop {
            let need = {
                let core = self.core.lock();
                match plan(&core.tree) {
                    Ok(value) => return Ok(value),
                    Err(Stop::Failed(error)) => return Err(error),
                    Err(Stop::Need(need)) => need,
                }
            };
            self.supply(need).await?;
        }
    }

    /// Runs a plan, journals its record with `payload`, applies it; `answer` sees the tree afterwards.
    /// A plan that returns no record is success without a change.
    pub(crate) async fn change<T>(
        &self,
        payload: &[u8],
        plan: impl Fn(&Tree) -> Planned<Option<Record>>,
        answer: impl Fn(&Tree, Outcome) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        self.change_as(None, payload, plan, answer).await
    }

    /// As [`Shared::change`]; what somebody has asked for is noted in the record.
    pub(crate) async fn change_as<T>(
        &self,
        asked: Option<&Asked<'_>>,
        payload: &[u8],
        plan: impl Fn(&Tree) -> Planned<Option<Record>>,
        answer: impl Fn(&Tree, Outcome) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        let changed = self.change_or_refuse(asked, payload, plan, answer).await;
        if matches!(changed, Err(FsError::NoSpace | FsError::FileTooLarge)) {
            self.refusals.fetch_add(1, Ordering::Relaxed);
        }
        changed
    }

    /// See [`Shared::change_as`]. Where there is no room, unlinked files that nobody has open make some; where there are none, the plan does
    /// with the room there is.
    async fn change_or_refuse<T>(
        &self,
        asked: Option<&Asked<'_>>,
        payload: &[u8],
        plan: impl Fn(&Tree) -> Planned<Option<Record>>,
        answer: impl Fn(&Tree, Outcome) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        if self.config.read_only {
            return Err(FsError::ReadOnly);
        }
        let mut reaped_in_vain = false;
        loop {
            let need = match self.try_change(asked, payload, &plan, &answer, reaped_in_vain)? {
                Ok(changed) => {
                    if self.config.sync_mode == SyncMode::Writethrough {
                        self.commit_for(changed.seq).await?;
                    } else if payload.len() >= 4096 {
                        self.throttle().await;
                    }
                    return Ok(changed.value);
                }
                Err(need) => need,
            };
            reaped_in_vain = false;
            match need {
                Some(Need::Reaping) => reaped_in_vain = Box::pin(self.reap_all()).await? == 0,
                Some(need) => self.supply(need).await?,
                // The lease has run out: whoever waits sees nothing fail.
                None => self.health.or_give_up(self.health.changed()).await?,
            }
        }
    }

    /// One try, under the lock. `Ok(Err(None))`: not now, the lease has run out.
    fn try_change<T>(
        &self,
        asked: Option<&Asked<'_>>,
        payload: &[u8],
        plan: &impl Fn(&Tree) -> Planned<Option<Record>>,
        answer: &impl Fn(&Tree, Outcome) -> Result<T, FsError>,
        reaped_in_vain: bool,
    ) -> Result<Result<Changed<T>, Option<Need>>, FsError> {
        let mut core = self.core.lock();
        let core = &mut *core;
        core.tree.reaped_in_vain = reaped_in_vain;
        let planned = plan(&core.tree);
        core.tree.reaped_in_vain = false;
        let record = match planned {
            Ok(Some(record)) => record,
            Ok(None) => {
                let value = answer(&core.tree, Outcome::Done)?;
                return Ok(Ok(Changed { value, seq: core.tree.committed }));
            }
            Err(Stop::Failed(error)) => return Err(error),
            Err(Stop::Need(need)) => return Ok(Err(Some(need))),
        };
        if !self.health.may_acknowledge()? {
            return Ok(Err(None));
        }
        let Some(journal) = &mut core.journal else {
            return Err(FsError::Io("the tenant is being unmounted".into()));
        };
        let used = match record.outcome {
            Outcome::Count(count) => &payload[..payload.len().min(count as usize)],
            Outcome::Done | Outcome::Inode(_) => payload,
        };
        let bytes = match record.outcome {
            Outcome::Count(count) => Some(count),
            Outcome::Done | Outcome::Inode(_) => None,
        };
        let note = asked.map(|asked| asked.note(&core.tree, bytes, 0)).unwrap_or_default();
        let appended = match journal.append_noted(&record, used, &note) {
            Ok(appended) => appended,
            Err(error) if error.is_full() => return Ok(Err(Some(Need::Room))),
            Err(error) => return Err(FsError::Io(crate::health::chain(&error))),
        };
        core.tree.apply(appended.seq, &record, &appended.payload);
        self.appended(core, appended.seq, used.len() as u64);
        Ok(Ok(Changed { value: answer(&core.tree, record.outcome)?, seq: appended.seq }))
    }

    /// Something is to be committed.
    pub(crate) fn appended(&self, core: &mut Core, seq: Seq, bytes: u64) {
        core.unflushed += RECORD_BYTES + bytes;
        let is_much = core.unflushed >= FLUSH_BYTES;
        if is_much || seq == core.tree.committed + 1 {
            core.unflushed = 0;
            if !self.is_watched.swap(true, Ordering::SeqCst) || is_much {
                self.work.notify_one();
            }
        }
    }

    /// Slows a writer the more, the fuller the journal is from 60 % of what may wait on.
    pub(crate) async fn throttle(&self) {
        let limit = self.soft_limit.load(Ordering::Relaxed).max(1);
        let used = self.journal.bytes_in_use();
        if used * 10 > limit * 6 {
            let over = ((used * 10 - limit * 6) as f64 / (limit * 4) as f64).min(1.0);
            self.work.notify_one();
            tokio::time::sleep(Duration::from_secs_f64(0.001 + 0.05 * over * over)).await;
        }
    }

    // === Loading ===

    /// Loads what a plan lacks, waiting while the database cannot be reached.
    pub(crate) async fn supply(&self, need: Need) -> Result<(), FsError> {
        match need {
            Need::Room => return self.wait_for_room().await,
            Need::Inode(_)
            | Need::Name(..)
            | Need::Directory(_)
            | Need::Page(..)
            | Need::Xattrs(_)
            | Need::Extents(..)
            | Need::Reaping => {}
        }
        self.patiently(|| self.load(&need)).await?
    }

    /// Repeats a query until the database answers, or its caller gives up.
    pub(crate) async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        query: impl Fn() -> F,
    ) -> Result<T, FsError> {
        self.health.or_give_up(self.until_answered(query)).await?
    }

    async fn until_answered<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        query: impl Fn() -> F,
    ) -> Result<T, FsError> {
        let mut pause = Duration::from_millis(20);
        loop {
            match query().await {
                Ok(value) => {
                    // Nothing else tells a view: it has neither heartbeats nor commits.
                    if self.layer.is_some() {
                        self.health.recovered();
                    }
                    return Ok(value);
                }
                Err(error @ StoreError::Unavailable { .. }) => {
                    self.health.waiting(&error);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
                // Of the checkpoint that is looked at: it has been deleted.
                Err(StoreError::NoLayer { .. }) => return Err(FsError::Stale),
                Err(error) => {
                    tracing::error!(error = crate::health::chain(&error), "a query failed");
                    return Err(FsError::from(&error));
                }
            }
        }
    }

    /// As long as the returned value lives, everything is remembered that a query sent from now on may not know of.
    pub(crate) fn query(&self) -> Query<'_> {
        Query { shared: self, since: self.core.lock().tree.query_begins() }
    }

    /// One query. What was evicted while it ran makes its answer void: the plan asks again.
    async fn load(&self, need: &Need) -> Result<Result<(), FsError>, StoreError> {
        let _query = self.query();
        let evictions = self.core.lock().tree.evictions;
        let current = |core: &Core| core.tree.evictions == evictions;
        match need {
            Need::Inode(ino) => {
                let Some(row) = self.trusted(self.store.inode(&self.view(), *ino).await).await? else {
                    return Ok(Err(FsError::Stale));
                };
                let mut core = self.core.lock();
                if current(&core) {
                    core.tree.load_inode(row);
                }
            }
            Need::Name(parent, name) => {
                let found = self.trusted(self.store.lookup(&self.view(), *parent, name).await).await?;
                let mut core = self.core.lock();
                if current(&core) {
                    match found {
                        Some((entry, row)) => {
                            core.tree.load_entry(entry);
                            core.tree.load_inode(row);
                        }
                        None => core.tree.load_absent(*parent, name.clone()),
                    }
                }
            }
            Need::Directory(ino) => self.load_directory(*ino).await?,
            Need::Page(ino, after) => {
                self.load_page(*ino, *after, LIST_PAGE).await?;
            }
            Need::Xattrs(ino) => {
                let value = self.trusted(self.store.xattrs(&self.view(), *ino).await).await?;
                let mut core = self.core.lock();
                if current(&core) {
                    core.tree.load_xattrs(*ino, value);
                }
            }
            Need::Extents(did, range) => self.load_extents(*did, range.clone()).await?,
            Need::Room | Need::Reaping => {}
        }
        Ok(Ok(()))
    }

    /// Every name of a directory, if they are not too many.
    async fn load_directory(&self, ino: Ino) -> Result<(), StoreError> {
        let evictions = self.core.lock().tree.evictions;
        let mut after = 0;
        loop {
            let rows = self.trusted(self.store.list(&self.view(), ino, after, LIST_PAGE).await).await?;
            let is_last = rows.len() < LIST_PAGE;
            after = rows.last().map_or(after, |(entry, _)| entry.cookie);
            let mut core = self.core.lock();
            if core.tree.evictions != evictions {
                return Ok(());
            }
            load_rows(&mut core.tree, rows);
            let directory = core.tree.directories.entry(ino).or_default();
            directory.complete = is_last;
            directory.large = directory.present() > DIRECTORY_MAX;
            if is_last || directory.large {
                return Ok(());
            }
        }
    }

    /// Committed names beyond a position; their inodes are taken into memory. The names are right as long as the query lives.
    pub(crate) async fn load_page(
        &self,
        ino: Ino,
        after: Cookie,
        limit: usize,
    ) -> Result<(Vec<(EntryRow, InodeRow)>, u64, Query<'_>), StoreError> {
        let query = self.query();
        let evictions = self.core.lock().tree.evictions;
        let rows = self.trusted(self.store.list(&self.view(), ino, after, limit).await).await?;
        let mut core = self.core.lock();
        if core.tree.evictions == evictions {
            for (_, row) in &rows {
                core.tree.load_inode(row.clone());
            }
        }
        drop(core);
        Ok((rows, evictions, query))
    }

    async fn load_extents(&self, did: DataId, range: std::ops::Range<BlockIndex>) -> Result<(), StoreError> {
        let Some((data, version)) = self.data_ref(did) else { return Ok(()) };
        let extents = self.trusted(self.store.extents(&self.view(), data, range.clone()).await).await?;
        let mut core = self.core.lock();
        if let Some(content) = core.tree.contents.get_mut(&did).filter(|content| content.version == version) {
            content.load(range, extents);
        }
        Ok(())
    }

    async fn wait_for_room(&self) -> Result<(), FsError> {
        let next = self.journal.committed_seq() + 1;
        if next > self.journal.last_seq() {
            // All is committed, and segments are only pinned by readers, who are about to finish.
            tokio::time::sleep(Duration::from_millis(1)).await;
            return Ok(());
        }
        self.commit_for(next).await
    }

    // === Committing ===

    /// As [`Shared::commit_to`], for somebody who waits no longer than an outage of the database may last.
    pub(crate) async fn commit_for(&self, seq: Seq) -> Result<(), FsError> {
        let committed = self.health.or_give_up(self.commit_to(seq)).await?;
        committed.map_err(|error| FsError::Io(error.to_string()))
    }

    /// Returns when the database has everything up to `seq`: commits it, or waits for who does.
    pub(crate) async fn commit_to(&self, seq: Seq) -> Result<(), FlushError> {
        loop {
            if *self.committed.borrow() >= seq {
                return Ok(());
            }
            self.told.let_others_begin().await;
            let mut flusher = self.flusher.lock().await;
            if flusher.committed() >= seq {
                return Ok(());
            }
            if let crate::health::State::Lost(why) = self.health.state() {
                return Err(FlushError::Fenced(why));
            }
            if let Err(error) = flusher.commit_next(self).await {
                self.health.lost(error.to_string());
                self.forget_kernel_caches();
                return Err(error);
            }
        }
    }

    /// The database stands elsewhere than memory thought: the tree is built anew over what it has. False where the journal does not
    /// reach back that far.
    ///
    /// # Errors
    /// Where a record cannot be read.
    pub(crate) fn rebuild(&self, found: Seq) -> Result<bool, crate::journal::JournalError> {
        // The journal's end is looked for under the lock: what is acknowledged meanwhile would be in neither tree.
        let mut core = self.core.lock();
        let Some(records) = self.journal.records_after(found) else { return Ok(false) };
        let old = &core.tree;
        let mut tree = old.anew(found);
        for recovered in records {
            let recovered = recovered?;
            tree.apply(recovered.seq, &recovered.record, &recovered.payload);
        }
        if tree.counters.next_ino == u64::MAX {
            tree.counters = old.counters;
        }
        core.tree = tree;
        self.cache.shrink(0);
        self.committed.send_replace(found);
        Ok(true)
    }

    pub(crate) fn forget_kernel_caches(&self) {
        let inos: Vec<Ino> = self.core.lock().tree.nodes.keys().copied().collect();
        if let Some(kernel) = self.kernel.get().cloned() {
            // On a thread of its own: a notification may wait for pages that requests hold.
            std::thread::spawn(move || {
                for ino in inos {
                    let _ = kernel.invalidate_inode(ino, 0, 0);
                }
            });
        }
    }

    // === Orphans ===

    /// Removes all orphans that the kernel has known and has forgotten; how many.
    pub(crate) async fn reap_all(&self) -> Result<usize, FsError> {
        self.load_orphans().await?;
        let nameless = self.nameless.lock().clone();
        let known: Vec<Ino> =
            self.core.lock().tree.orphans.iter().filter(|ino| !nameless.contains(ino)).copied().collect();
        if known.is_empty() { Ok(0) } else { self.reap(known).await }
    }

    /// Takes what was unlinked under predecessors into memory.
    pub(crate) async fn load_orphans(&self) -> Result<(), FsError> {
        if self.core.lock().tree.all_orphans {
            return Ok(());
        }
        let _query = self.query();
        let view = self.view();
        let rows = self.patiently(|| self.store.orphans(&view)).await?;
        self.core.lock().tree.load_orphans(rows);
        Ok(())
    }

    /// Removes those of `candidates` that the kernel does not know any more; how many.
    pub(crate) async fn reap(&self, candidates: Vec<Ino>) -> Result<usize, FsError> {
        let Some(kernel) = self.kernel.get().cloned() else { return Ok(0) };
        let asked = tokio::task::spawn_blocking(move || {
            candidates.into_iter().filter(|&ino| !kernel.invalidate_inode(ino, -1, 0)).collect::<Vec<_>>()
        });
        let closed = asked.await.unwrap_or_default();
        self.remove_orphans(&closed).await?;
        let core = self.core.lock();
        Ok(closed.iter().filter(|ino| !core.tree.orphans.contains(ino)).count())
    }

    /// Removes all orphans, open or not.
    pub(crate) async fn remove_all_orphans(&self) -> Result<(), FsError> {
        self.load_orphans().await?;
        let orphans: Vec<Ino> = self.core.lock().tree.orphans.iter().copied().collect();
        self.remove_orphans(&orphans).await
    }

    async fn remove_orphans(&self, inos: &[Ino]) -> Result<(), FsError> {
        for inos in inos.chunks(256) {
            self.change(&[], |tree| tree.reap(inos), |_, _| Ok(())).await?;
        }
        Ok(())
    }

    pub(crate) fn set_limits(&self, limits: Limits) {
        self.core.lock().tree.limits = limits;
    }
}

/// A query under way; see [`Shared::query`].
pub(crate) struct Query<'s> {
    shared: &'s Shared,
    since: Seq,
}

impl Drop for Query<'_> {
    fn drop(&mut self) {
        self.shared.core.lock().tree.query_ends(self.since);
    }
}

fn load_rows(tree: &mut Tree, rows: Vec<(EntryRow, InodeRow)>) {
    for (entry, row) in rows {
        tree.load_entry(entry);
        tree.load_inode(row);
    }
}
