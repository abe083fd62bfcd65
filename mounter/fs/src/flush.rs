//! The flusher: commits the journal in order, in batches. Whoever needs a commit takes the flusher's lock and does it;
//! those who wait behind find it done (group commit).
//!
//! Blocks are uploaded first, in transactions of their own; only the ordered metadata commit makes them visible.
//! The journal is the only source of what is committed, so that a batch needs nothing frozen in the tree.

mod content;

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use rustc_hash::FxHashSet;
use tarbox_store::{Batch, Committed, Compression, Fence, Lease, StoreError, TenantStore, View};
use tarbox_types::{AuditLevel, BlockId, ErrorKind, Seq};

use self::content::{Building, Installed};
use crate::{
    audit::{OnTheWay, Source},
    effect::Counters,
    fold::Folded,
    shell::{RECORD_BYTES, Shared},
};

/// A batch ends after this many bytes of journal, so that a barrier never waits for much more than its own data.
const BATCH_BYTES: u64 = 32 << 20;
/// The first one after this many, each further one after twice as many: where a mounter is killed again and again soon after it has begun,
/// each one still brings what it has taken over a bit further.
const FIRST_BATCH_BYTES: u64 = 256 << 10;
/// Longest pause between two tries while the database cannot be reached.
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Why nothing is committed any more.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FlushError {
    /// The lease is lost.
    #[error("the lease is lost: {0}")]
    Fenced(String),
    /// The database stands where the journal cannot go on.
    #[error(
        "the database stands at position {found}, had been at {committed}, and the journal no longer has what lies between: \
        it was set back (a restored copy, a fail-over to a standby that lagged); nothing was committed, the journal is kept"
    )]
    Gap {
        /// Where the database stands.
        found: Seq,
        /// Where it had been.
        committed: Seq,
    },
    /// The database refuses what it is given.
    #[error("{0}")]
    Refused(String),
}

impl FlushError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Fenced(_) => ErrorKind::Fenced,
            Self::Gap { .. } => ErrorKind::FailedPrecondition,
            Self::Refused(_) => ErrorKind::Internal,
        }
    }
}

/// What the flusher alone knows; see the module's documentation.
pub(crate) struct Flusher {
    store: Arc<dyn TenantStore>,
    fence: Fence,
    view: View,
    /// As of the last commit; `next_ino` is what counts as new to the database, `u64::MAX` = nothing does.
    counters: Counters,
    /// The lease's first number: the database's counter is never set back below it.
    first_number: u64,
    committed: Seq,
    free_blocks: Range<BlockId>,
    /// Where the next batch ends.
    batch_bytes: u64,
    block_size: u64,
    compression: Compression,
}

impl Flusher {
    /// `counters.next_ino` is what counts as new to the database.
    pub(crate) fn new(
        store: Arc<dyn TenantStore>,
        lease: &Lease,
        counters: Counters,
        compression: Compression,
    ) -> Self {
        Self {
            store,
            fence: lease.fence.clone(),
            view: lease.head.clone(),
            counters,
            first_number: lease.next_ino,
            committed: lease.tenant.seq,
            free_blocks: 0..0,
            batch_bytes: FIRST_BATCH_BYTES,
            block_size: u64::from(lease.tenant.block_size),
            compression,
        }
    }

    /// The same is seen through fewer branches now.
    pub(crate) fn look_through(&mut self, view: View) {
        self.view = view;
    }

    /// Of a view that nothing is ever committed to.
    pub(crate) fn idle(of: &Shared, view: View, block_size: u64) -> Self {
        Self {
            store: Arc::clone(&of.store),
            fence: of.fence.clone(),
            view,
            counters: Counters { used_bytes: 0, used_inodes: 0, next_ino: u64::MAX },
            first_number: u64::MAX,
            committed: 0,
            free_blocks: 0..0,
            batch_bytes: BATCH_BYTES,
            block_size,
            compression: of.config.compression,
        }
    }

    /// Where the database stands.
    pub(crate) fn committed(&self) -> Seq {
        self.committed
    }

    /// Commits the next batch: everything in the journal up to a bound of size. Waits while the database cannot be reached.
    ///
    /// # Cancel safety
    /// May be dropped at any await: what was uploaded is never referred to, and an unknown outcome of the commit is
    /// found out by the next one.
    pub(crate) async fn commit_next(&mut self, shared: &Shared) -> Result<(), FlushError> {
        let mut pause = Duration::from_millis(50);
        let mut dedup = true;
        loop {
            let begun = Instant::now();
            let Some(folded) = self.fold(shared)? else { return Ok(()) };
            let error = match self.try_commit(shared, folded, dedup).await {
                Ok(()) => {
                    self.batch_bytes = (2 * self.batch_bytes).min(BATCH_BYTES);
                    shared.commits.record(begun.elapsed());
                    shared.health.recovered();
                    return Ok(());
                }
                Err(error) => error,
            };
            match error {
                StoreError::BlocksGone(_) if dedup => {
                    dedup = false;
                    continue;
                }
                StoreError::Position { found, .. } => {
                    self.reposition(shared, found)?;
                    shared.audit.reposition(found).await;
                    continue;
                }
                StoreError::Fenced { .. } | StoreError::Deleted(_) | StoreError::NoTenant(_) => {
                    return Err(FlushError::Fenced(error.to_string()));
                }
                StoreError::Unavailable { .. }
                | StoreError::Full { .. }
                | StoreError::Sql { .. }
                | StoreError::BlocksGone(_) => {
                    shared.health.waiting(&error);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
                StoreError::Url { .. }
                | StoreError::Schema { .. }
                | StoreError::SchemaOld { .. }
                | StoreError::NameTaken(_)
                | StoreError::Invalid { .. }
                | StoreError::Held { .. }
                | StoreError::Damaged { .. }
                | StoreError::NoLayer { .. }
                | StoreError::LayerInUse { .. }
                | StoreError::NotLeading
                | StoreError::Published(_)
                | StoreError::PublishedElsewhere(_)
                | StoreError::Refused(_) => return Err(FlushError::Refused(error.to_string())),
            }
        }
    }

    async fn try_commit(
        &mut self,
        shared: &Shared,
        mut folded: Folded,
        dedup: bool,
    ) -> Result<(), StoreError> {
        let mut building = Building::new(dedup);
        let mut contents: Vec<_> = folded.contents.iter().collect();
        contents.sort_by_key(|(did, _)| **did);
        for (did, content) in contents {
            self.add_content(shared, &mut building, &folded, *did, content).await?;
        }
        self.upload(&mut building).await?;
        let to_seq = folded.to_seq;
        let counters = folded.counters;
        let mut audit = self.audit(shared, &mut folded).await?;
        building.batch.audit = std::mem::take(&mut audit.chunks);
        add_rows(&mut building.batch, self.committed, folded);
        building.batch.next_ino = counters.next_ino.max(self.first_number);
        let committed = self.store.commit(&self.fence, &building.batch).await?;
        self.committed = to_seq;
        self.counters = counters;
        audit.chunks = building.batch.audit;
        shared.audit.committed(audit, to_seq).await;
        install(shared, to_seq, building.installs, &committed);
        Ok(())
    }

    /// The batch's events; names that had to be looked for are known to the tree from now on.
    async fn audit(&self, shared: &Shared, folded: &mut Folded) -> Result<OnTheWay, StoreError> {
        let gathered = std::mem::take(&mut folded.audit);
        let is_kept = shared.audit.level > AuditLevel::Off && !gathered.steps.is_empty();
        if gathered.events == 0 && !is_kept {
            return Ok(OnTheWay::default());
        }
        let source = Source { store: &*self.store, view: &self.view };
        let told = shared.audit.tell(gathered, folded.to_seq, &source).await?;
        if told.files().next().is_some() {
            let core = shared.core.lock();
            told.files().for_each(|(ino, place)| core.tree.suggest_name(ino, place));
        }
        Ok(told)
    }

    /// The records of the next batch; `None` if there are none.
    fn fold(&self, shared: &Shared) -> Result<Option<Folded>, FlushError> {
        let (mut folded, mut bytes) = (Folded::new(self.block_size, self.committed, self.counters), 0);
        for recovered in shared.journal.read_range(self.committed, Seq::MAX) {
            let crate::journal::Recovered { seq, record, payload } =
                recovered.map_err(|error| FlushError::Refused(crate::health::chain(&error)))?;
            if seq != folded.to_seq + 1 {
                return Err(FlushError::Gap { found: folded.to_seq, committed: seq - 1 });
            }
            folded.add(seq, record, &payload);
            bytes += RECORD_BYTES + payload.len() as u64;
            if bytes >= self.batch_bytes || folded.seal.is_some() {
                break;
            }
        }
        Ok((folded.to_seq > self.committed).then_some(folded))
    }

    /// The answer to a commit was lost, or the database went back.
    fn reposition(&mut self, shared: &Shared, found: Seq) -> Result<(), FlushError> {
        // Kept until it is committed again, however often the journal thought it was.
        shared.journal.retain_from(found + 1);
        match shared.rebuild(found) {
            Ok(true) => {}
            Ok(false) => return Err(FlushError::Gap { found, committed: self.committed }),
            Err(error) => return Err(FlushError::Refused(crate::health::chain(&error))),
        }
        if found < self.committed {
            tracing::warn!(
                found,
                committed = self.committed,
                "the database went back: what it lacks is committed again from the journal"
            );
        }
        self.committed = found;
        // Which numbers the database has seen is not known any more: none counts as fresh.
        self.counters.next_ino = u64::MAX;
        self.free_blocks = 0..0;
        Ok(())
    }
}

/// Rows that need nothing but the fold.
fn add_rows(batch: &mut Batch, from_seq: Seq, folded: Folded) {
    batch.from_seq = from_seq;
    batch.to_seq = folded.to_seq;
    batch.used_bytes = folded.counters.used_bytes;
    batch.used_inodes = folded.counters.used_inodes;
    batch.seal = folded.seal;
    batch.removed_data = folded.removed_data;
    for (ino, row) in folded.inodes {
        match row {
            Some(row) => batch.inodes.push(row),
            None => batch.removed_inodes.push(ino),
        }
    }
    for ((parent, name), entry) in folded.entries {
        match entry.last {
            Ok(row) => batch.entries.push(row),
            Err(cookie) if entry.existed => batch.removed_entries.push((parent, name, cookie)),
            Err(_) => {}
        }
    }
    let gone: FxHashSet<_> = batch.removed_inodes.iter().copied().collect();
    batch.xattrs = folded.xattrs.into_iter().filter(|(ino, _)| !gone.contains(ino)).collect();
    // In the order of their keys: sequential in the database's trees.
    batch.inodes.sort_unstable_by_key(|row| row.ino);
    batch.entries.sort_unstable_by(|a, b| (a.parent, &a.name).cmp(&(b.parent, &b.name)));
    batch.extents.sort_unstable_by_key(|row| (row.did, row.blk));
}

/// The batch is committed: memory follows.
fn install(shared: &Shared, seq: Seq, installs: Vec<Installed>, committed: &Committed) {
    let mut core = shared.core.lock();
    for Installed { did, cut, extents, cached } in installs {
        if let Some(cut) = cut {
            shared.cache.remove_from(did, cut);
        }
        for (blk, bytes) in cached {
            match bytes {
                Some(bytes) => shared.cache.insert(did, blk, bytes),
                None => shared.cache.remove(did, blk),
            }
        }
        if let Some(content) = core.tree.contents.get_mut(&did) {
            content.set_committed(seq, cut, extents);
        }
    }
    core.tree.set_committed(seq);
    core.tree.limits = committed.limits;
    shared.journal.committed(seq);
    shared.journal.retain_from(seq + 1);
    drop(core);
    shared.committed.send_replace(seq);
}
