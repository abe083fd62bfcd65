//! The flusher: commits the journal in order, in batches. Whoever needs a commit takes the flusher's lock and does it;
//! those who wait behind find it done (group commit).
//!
//! Blocks are uploaded first, in transactions of their own; only the ordered metadata commit makes them visible.
//! The journal is the only source of what is committed, so that a batch needs nothing frozen in the tree.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};
use tarbox_store::{
    Batch, BlockHeader, Committed, Compression, DataRef, EncodedBlock, Extent, ExtentBody, ExtentKind,
    ExtentRow, Fence, Lease, PatchRow, StoreError, TenantStore, UNIT, View, codec,
};
use tarbox_types::{BlockId, BlockIndex, DataId, ErrorKind, Seq};

use crate::{
    compose::{BlockChange, Shape, is_inline},
    effect::Counters,
    fold::{Folded, FoldedContent},
    shell::Shared,
    tree::{Need, Stop},
};

/// A batch ends after this many bytes of journal, so that a barrier never waits for much more than its own data.
const BATCH_BYTES: u64 = 32 << 20;
/// Blocks are uploaded when this many bytes are ready.
const UPLOAD_BYTES: usize = 8 << 20;
/// So many uploads run at once.
const UPLOADS: usize = 3;
/// Block ids are reserved in ranges.
const RESERVE: u64 = 1024;
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
    block_size: u64,
    compression: Compression,
}

/// What becomes of a content in memory once its batch is committed.
struct Installed {
    did: DataId,
    cut: Option<BlockIndex>,
    extents: Vec<(BlockIndex, Option<Extent>)>,
    /// Bytes for the cache; `None` = what the cache has is no longer right.
    cached: Vec<(BlockIndex, Option<Bytes>)>,
}

/// A batch while it is put together.
#[derive(Default)]
struct Building {
    batch: Batch,
    installs: Vec<Installed>,
    pending: Vec<Pending>,
    pending_bytes: usize,
    dedup: bool,
}

/// A block that is not uploaded yet; its place in `installs` is filled in when it has an id.
struct Pending {
    install: usize,
    blk: BlockIndex,
    alloc: tarbox_store::AllocMap,
    bytes: Bytes,
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
            block_size: u64::from(lease.tenant.block_size),
            compression,
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
            let Some(folded) = self.fold(shared)? else { return Ok(()) };
            let error = match self.try_commit(shared, folded, dedup).await {
                Ok(()) => {
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
                | StoreError::NameTaken(_)
                | StoreError::Invalid { .. }
                | StoreError::Held { .. }
                | StoreError::Damaged { .. }
                | StoreError::Refused(_) => return Err(FlushError::Refused(error.to_string())),
            }
        }
    }

    async fn try_commit(&mut self, shared: &Shared, folded: Folded, dedup: bool) -> Result<(), StoreError> {
        let mut building = Building { dedup, ..Building::default() };
        let mut contents: Vec<_> = folded.contents.iter().collect();
        contents.sort_by_key(|(did, _)| **did);
        for (did, content) in contents {
            self.add_content(shared, &mut building, &folded, *did, content).await?;
        }
        self.upload(&mut building).await?;
        let to_seq = folded.to_seq;
        let counters = folded.counters;
        add_rows(&mut building.batch, self.committed, folded);
        building.batch.next_ino = counters.next_ino.max(self.first_number);
        let committed = self.store.commit(&self.fence, &building.batch).await?;
        self.committed = to_seq;
        self.counters = counters;
        install(shared, to_seq, building.installs, &committed);
        Ok(())
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
            bytes += payload.len() as u64;
            if bytes >= BATCH_BYTES || folded.seal.is_some() {
                break;
            }
        }
        Ok((folded.to_seq > self.committed).then_some(folded))
    }

    /// The answer to a commit was lost, or the database went back.
    fn reposition(&mut self, shared: &Shared, found: Seq) -> Result<(), FlushError> {
        // Kept until it is committed again, however often the journal thought it was.
        shared.journal.retain_from(found + 1);
        let Some(records) = shared.journal.records_after(found) else {
            return Err(FlushError::Gap { found, committed: self.committed });
        };
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
        shared.rebuild(found, records);
        Ok(())
    }

    // === Content ===

    async fn add_content(
        &mut self,
        shared: &Shared,
        building: &mut Building,
        folded: &Folded,
        did: DataId,
        content: &FoldedContent,
    ) -> Result<(), StoreError> {
        let is_fresh = did >= folded.fresh_from;
        let cut_blk = content.cut.map(|cut| cut.div_ceil(self.block_size));
        if let Some(cut) = cut_blk.filter(|_| !is_fresh) {
            building.batch.truncated.push((did, cut));
        }
        building.installs.push(Installed { did, cut: cut_blk, extents: Vec::new(), cached: Vec::new() });
        let base_end = if is_fresh { 0 } else { cut_blk.unwrap_or(BlockIndex::MAX) };
        for change in self.block_changes(shared, did, content, base_end).await? {
            self.add_block(shared, building, did, is_fresh, change).await?;
        }
        Ok(())
    }

    /// The blocks that a content's changes touch. `base_end`: committed extents from there on do not count.
    async fn block_changes(
        &self,
        shared: &Shared,
        did: DataId,
        folded: &FoldedContent,
        base_end: BlockIndex,
    ) -> Result<Vec<BlockChange>, StoreError> {
        let mut bases: FxHashMap<BlockIndex, Extent> = FxHashMap::default();
        let mut blks: Vec<BlockIndex> = Vec::new();
        for (range, is_data) in folded.content.changed_ranges() {
            let touched = range.start / self.block_size..range.end.div_ceil(self.block_size);
            let known = touched.start..touched.end.min(base_end);
            let committed =
                if known.is_empty() { Vec::new() } else { self.extents(shared, did, known).await? };
            if is_data {
                blks.extend(touched);
            } else {
                blks.extend(committed.iter().map(|extent| extent.blk));
            }
            bases.extend(committed.into_iter().map(|extent| (extent.blk, extent)));
        }
        // What was written and zeroed again has no data left, and is allocated all the same.
        let units = self.block_size / UNIT;
        for range in folded.content.allocated_ranges() {
            blks.extend(range.start / units..range.end.div_ceil(units));
        }
        blks.sort_unstable();
        blks.dedup();
        Ok(blks
            .into_iter()
            .map(|blk| BlockChange::new(&folded.content, blk, bases.remove(&blk), self.block_size))
            .collect())
    }

    /// Committed extents, from memory or the store.
    async fn extents(
        &self,
        shared: &Shared,
        did: DataId,
        blks: Range<BlockIndex>,
    ) -> Result<Vec<Extent>, StoreError> {
        loop {
            let (cut, need) = {
                let core = shared.core.lock();
                match core.tree.contents.get(&did) {
                    Some(content) => match content.extents(did, blks.clone()) {
                        Ok(extents) => return Ok(extents),
                        Err(Stop::Need(Need::Extents(_, range))) => (content.cut, range),
                        Err(_) => (content.cut, blks.clone()),
                    },
                    // Its file is gone meanwhile; the rows are still to be committed in order.
                    None => (u64::MAX >> 1, blks.clone()),
                }
            };
            let extents = self.store.extents(&self.view, DataRef { did, cut }, need.clone()).await?;
            let mut core = shared.core.lock();
            match core.tree.contents.get_mut(&did) {
                Some(content) => content.load(need, extents),
                None => return Ok(extents),
            }
        }
    }

    async fn add_block(
        &mut self,
        shared: &Shared,
        building: &mut Building,
        did: DataId,
        is_fresh: bool,
        change: BlockChange,
    ) -> Result<(), StoreError> {
        let install = building.installs.len() - 1;
        match change.shape() {
            Shape::Remove => {
                if !is_fresh && change.base.is_some() {
                    building.batch.removed_extents.push((did, change.blk));
                    building.installs[install].extents.push((change.blk, None));
                    building.installs[install].cached.push((change.blk, None));
                }
            }
            Shape::Patch => add_patches(building, did, &change, self.committed, shared),
            Shape::Rewrite { from_base } => {
                let base =
                    if from_base { self.base(shared, did, change.blk).await } else { Ok(Bytes::new()) };
                let base = match base {
                    Ok(base) => base,
                    Err(StoreError::Damaged { what, reason }) => {
                        // The damage stays where it is and is told to whoever reads it; what is new is not lost.
                        tracing::error!(
                            did,
                            blk = change.blk,
                            what,
                            reason,
                            "a damaged block is written to: kept as a patch"
                        );
                        add_patches(building, did, &change, self.committed, shared);
                        return Ok(());
                    }
                    Err(error) => return Err(error),
                };
                self.add_rewritten(building, did, &change, change.compose(&base)).await?;
            }
        }
        Ok(())
    }

    /// Bytes of a committed block.
    async fn base(&self, shared: &Shared, did: DataId, blk: BlockIndex) -> Result<Bytes, StoreError> {
        if let Some(bytes) = shared.cache.get(did, blk) {
            return Ok(bytes);
        }
        let cut = shared.core.lock().tree.contents.get(&did).map_or(u64::MAX >> 1, |content| content.cut);
        let found = self.store.read(&self.view, DataRef { did, cut }, &[blk]).await?;
        Ok(found.into_iter().next().map_or_else(Bytes::new, |(_, bytes)| bytes))
    }

    async fn add_rewritten(
        &mut self,
        building: &mut Building,
        did: DataId,
        change: &BlockChange,
        bytes: Bytes,
    ) -> Result<(), StoreError> {
        let install = building.installs.len() - 1;
        // Only what is likely to be changed again soon: the end of a file that grows.
        let cached = (bytes.len() < self.block_size as usize).then(|| bytes.clone());
        building.installs[install].cached.push((change.blk, cached));
        if is_inline(&bytes) {
            building.installs[install].extents.push((
                change.blk,
                Some(Extent {
                    blk: change.blk,
                    alloc: change.alloc.clone(),
                    kind: ExtentKind::Inline,
                    patches: 0,
                    patch_bytes: 0,
                }),
            ));
            building.batch.extents.push(ExtentRow {
                did,
                blk: change.blk,
                alloc: change.alloc.clone(),
                body: ExtentBody::Inline(bytes),
            });
            return Ok(());
        }
        building.pending_bytes += bytes.len();
        building.pending.push(Pending { install, blk: change.blk, alloc: change.alloc.clone(), bytes });
        if building.pending_bytes >= UPLOAD_BYTES {
            self.upload(building).await?;
        }
        Ok(())
    }

    /// Uploads what is pending and gives each its extent.
    async fn upload(&mut self, building: &mut Building) -> Result<(), StoreError> {
        let pending = std::mem::take(&mut building.pending);
        building.pending_bytes = 0;
        if pending.is_empty() {
            return Ok(());
        }
        let hashes: Vec<_> = pending.iter().map(|block| codec::hash(&block.bytes)).collect();
        let known =
            if building.dedup { self.store.find_blocks(&hashes).await? } else { vec![None; hashes.len()] };
        let mut ids: FxHashMap<_, BlockId> =
            building.batch.headers.iter().map(|h| (h.hash, h.block)).collect();
        let mut encoded: Vec<EncodedBlock> = Vec::new();
        for ((block, hash), known) in pending.into_iter().zip(hashes).zip(known) {
            let id = match known.or_else(|| ids.get(&hash).copied()) {
                Some(id) => id,
                None => {
                    let id = self.next_block().await?;
                    encoded.push(codec::encode_hashed(id, block.bytes.clone(), hash, self.compression));
                    ids.insert(hash, id);
                    id
                }
            };
            if known.is_some() {
                building.batch.reused.push(id);
            }
            building.place(block, id);
        }
        building.batch.headers.extend(encoded.iter().map(|block| -> BlockHeader { block.header.clone() }));
        // On several connections at once, where the store has them: one alone does not keep a server busy.
        let parts = encoded.chunks(encoded.len().div_ceil(UPLOADS).max(1));
        futures_util::future::try_join_all(parts.map(|part| self.store.upload(part))).await?;
        Ok(())
    }

    async fn next_block(&mut self) -> Result<BlockId, StoreError> {
        if self.free_blocks.is_empty() {
            self.free_blocks = self.store.reserve_blocks(RESERVE).await?;
        }
        let id = self.free_blocks.start;
        self.free_blocks.start += 1;
        Ok(id)
    }
}

impl Building {
    /// The block has its id: its extent can be written.
    fn place(&mut self, block: Pending, id: BlockId) {
        let install = &mut self.installs[block.install];
        self.batch.extents.push(ExtentRow {
            did: install.did,
            blk: block.blk,
            alloc: block.alloc.clone(),
            body: ExtentBody::Block(id),
        });
        install.extents.push((
            block.blk,
            Some(Extent {
                blk: block.blk,
                alloc: block.alloc,
                kind: ExtentKind::Block(id),
                patches: 0,
                patch_bytes: 0,
            }),
        ));
    }
}

fn add_patches(building: &mut Building, did: DataId, change: &BlockChange, committed: Seq, shared: &Shared) {
    let Some(base) = &change.base else { return };
    let mut extent = Extent { alloc: change.alloc.clone(), ..base.clone() };
    let mut cached = shared.cache.get(did, change.blk).map(|bytes| bytes.to_vec());
    for (index, (off, data)) in change.patches().enumerate() {
        extent.patches += 1;
        extent.patch_bytes += data.len() as u32;
        if let Some(bytes) = &mut cached {
            let end = off as usize + data.len();
            bytes.resize(bytes.len().max(end), 0);
            bytes[off as usize..end].copy_from_slice(&data);
        }
        // Disjoint inside one commit, so that any order among them does; a later commit's come after all of them.
        let seq = committed << 16 | index as u64;
        building.batch.patches.push(PatchRow { did, blk: change.blk, seq, off, data });
    }
    building.batch.patched.push((did, change.blk, change.alloc.clone()));
    if let Some(install) = building.installs.last_mut() {
        install.extents.push((change.blk, Some(extent)));
        install.cached.push((change.blk, cached.map(Bytes::from)));
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
