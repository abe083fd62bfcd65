//! The content of a batch: which blocks it touches, how each is committed, and the upload of those that become blocks.

use std::{collections::BTreeMap, ops::Range};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use tarbox_store::{
    AllocMap, Batch, BlockHeader, EncodedBlock, Extent, ExtentBody, ExtentKind, ExtentRow, PatchRow,
    StoreError, UNIT, codec,
};
use tarbox_types::{BlockId, BlockIndex, DataId, Seq};

use super::Flusher;
use crate::{
    compose::{BlockChange, Shape, is_inline},
    fold::{Folded, FoldedContent},
    range_map::UnitSet,
    reading::as_committed,
    shell::Shared,
    tree::{Need, Stop},
};

/// Blocks are uploaded when this many bytes are ready.
const UPLOAD_BYTES: usize = 8 << 20;
/// So many uploads run at once.
const UPLOADS: usize = 3;
/// Block ids are reserved in ranges.
const RESERVE: u64 = 1024;

/// What becomes of a content in memory once its batch is committed.
pub(super) struct Installed {
    pub(super) did: DataId,
    pub(super) cut: Option<BlockIndex>,
    pub(super) extents: Vec<(BlockIndex, Option<Extent>)>,
    /// Bytes for the cache; `None` = what the cache has is no longer right.
    pub(super) cached: Vec<(BlockIndex, Option<Bytes>)>,
}

/// A batch while it is put together.
#[derive(Default)]
pub(super) struct Building {
    pub(super) batch: Batch,
    pub(super) installs: Vec<Installed>,
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
    /// Adds the changes of one content; full batches of blocks are uploaded on the way.
    pub(super) async fn add_content(
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
        let uncut_end = cut_blk.unwrap_or(BlockIndex::MAX);
        // Of what is fresh the database has nothing, and takes nothing away.
        let (base_end, untouched_end) = if is_fresh { (0, BlockIndex::MAX) } else { (uncut_end, uncut_end) };
        for change in self.block_changes(shared, did, content, base_end, untouched_end).await? {
            self.add_block(shared, building, did, is_fresh, &change).await?;
        }
        Ok(())
    }

    /// The blocks that a content's changes touch. `base_end`: committed extents from there on do not count.
    /// `untouched_end`: from there on this commit takes away what there was.
    async fn block_changes(
        &self,
        shared: &Shared,
        did: DataId,
        folded: &FoldedContent,
        base_end: BlockIndex,
        untouched_end: BlockIndex,
    ) -> Result<Vec<BlockChange>, StoreError> {
        let touched = |range: &Range<u64>| range.start / self.block_size..range.end.div_ceil(self.block_size);
        let known = |blks: &Range<BlockIndex>| blks.start..blks.end.min(base_end);
        // Ranges that meet are asked for together: a batch of small writes has thousands.
        let asked: UnitSet =
            folded.content.changed_ranges().map(|(range, _)| known(&touched(&range))).collect();
        let mut bases: BTreeMap<BlockIndex, Extent> = BTreeMap::new();
        for blks in asked.iter() {
            let committed = self.extents(shared, did, blks).await?;
            bases.extend(committed.into_iter().map(|extent| (extent.blk, extent)));
        }
        let mut blks: Vec<BlockIndex> = Vec::new();
        for (range, is_data) in folded.content.changed_ranges() {
            let touched = touched(&range);
            if is_data {
                blks.extend(touched);
            } else if !known(&touched).is_empty() {
                blks.extend(bases.range(known(&touched)).map(|(blk, _)| *blk));
            }
        }
        // What was written and zeroed again has no data left, and is allocated all the same.
        let units = self.block_size / UNIT;
        for range in folded.content.allocated_ranges() {
            blks.extend(range.start / units..range.end.div_ceil(units));
        }
        blks.sort_unstable();
        blks.dedup();
        let change = |blk| {
            BlockChange::new(&folded.content, blk, bases.remove(&blk), blk < untouched_end, self.block_size)
        };
        Ok(blks.into_iter().map(change).collect())
    }

    /// Committed extents, from memory or the store.
    async fn extents(
        &self,
        shared: &Shared,
        did: DataId,
        blks: Range<BlockIndex>,
    ) -> Result<Vec<Extent>, StoreError> {
        loop {
            let need = {
                let core = shared.core.lock();
                match core.tree.contents.get(&did) {
                    Some(content) => match content.extents(did, blks.clone()) {
                        Ok(extents) => return Ok(extents),
                        Err(Stop::Need(Need::Extents(_, range))) => range,
                        Err(_) => blks.clone(),
                    },
                    // Its file is gone meanwhile; the rows are still to be committed in order.
                    None => blks.clone(),
                }
            };
            let extents = self.store.extents(&self.view, as_committed(did), need.clone()).await?;
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
        change: &BlockChange,
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
            Shape::Patch => add_patches(building, did, change, self.committed, shared),
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
                        add_patches(building, did, change, self.committed, shared);
                        return Ok(());
                    }
                    Err(error) => return Err(error),
                };
                self.add_rewritten(building, did, change, change.compose(&base)).await?;
            }
        }
        Ok(())
    }

    /// Bytes of a committed block.
    async fn base(&self, shared: &Shared, did: DataId, blk: BlockIndex) -> Result<Bytes, StoreError> {
        if let Some(bytes) = shared.cache.get(did, blk) {
            return Ok(bytes);
        }
        let found = self.store.read(&self.view, as_committed(did), &[blk]).await?;
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
    pub(super) async fn upload(&mut self, building: &mut Building) -> Result<(), StoreError> {
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
    /// `dedup`: blocks that the database has already are not uploaded.
    pub(super) fn new(dedup: bool) -> Self {
        Self { dedup, ..Self::default() }
    }

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
    let hole = Extent {
        blk: change.blk,
        alloc: AllocMap::default(),
        kind: ExtentKind::Hole,
        patches: 0,
        patch_bytes: 0,
    };
    let base = change.base.as_ref().unwrap_or(&hole);
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
    if change.alloc != base.alloc {
        building.batch.patched.push((did, change.blk, change.alloc.clone()));
    }
    if let Some(install) = building.installs.last_mut() {
        install.extents.push((change.blk, Some(extent)));
        install.cached.push((change.blk, cached.map(Bytes::from)));
    }
}
