//! Decides how the changes of one block are committed: as a patch, in the extent's row, as a block, or not at all. Pure.

use std::ops::Range;

use bytes::Bytes;
use tarbox_store::{AllocMap, Extent, ExtentKind, INLINE_MAX, UNIT};
use tarbox_types::BlockIndex;

use crate::tree::{Chunk, Content};

/// More patches than this on one block are folded into it.
const PATCHES_MAX: u32 = 32;

/// The changes of one block.
#[derive(Debug)]
pub(crate) struct BlockChange {
    pub blk: BlockIndex,
    /// Offsets in the block, in order, disjoint.
    pub segments: Vec<(Range<u32>, Chunk)>,
    /// Allocated units afterwards.
    pub alloc: AllocMap,
    /// What is committed there and still counts.
    pub base: Option<Extent>,
    /// Where there is nothing: this commit does not take anything away there either, so that a patch meets no row that goes.
    pub is_untouched: bool,
    block_size: u64,
}

/// How a block is committed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Nothing is allocated any more.
    Remove,
    /// As patches on what is there, or on a hole.
    Patch,
    /// Anew; the base's bytes are needed where `from_base`.
    Rewrite { from_base: bool },
}

impl BlockChange {
    /// Puts together what happened to a block.
    pub(crate) fn new(
        changes: &Content,
        blk: BlockIndex,
        base: Option<Extent>,
        is_untouched: bool,
        block_size: u64,
    ) -> Self {
        let bytes = blk * block_size..(blk + 1) * block_size;
        let units = bytes.start / UNIT..bytes.end / UNIT;
        let base = base.filter(|extent| !extent.is_hole());
        let mut alloc = base.as_ref().map(|extent| extent.alloc.clone()).unwrap_or_default();
        for (range, allocated) in changes.allocation_changes(units.clone()) {
            alloc.set((range.start - units.start) as u32..(range.end - units.start) as u32, allocated);
        }
        let segments = changes
            .changes(bytes.clone())
            .into_iter()
            .map(|(range, chunk)| {
                ((range.start - bytes.start) as u32..(range.end - bytes.start) as u32, chunk)
            })
            .collect();
        Self { blk, segments, alloc, base, is_untouched, block_size }
    }

    /// Decides.
    pub(crate) fn shape(&self) -> Shape {
        if self.alloc.is_empty() {
            return Shape::Remove;
        }
        let covered: u64 = self.segments.iter().map(|(range, _)| u64::from(range.end - range.start)).sum();
        if covered == self.block_size {
            return Shape::Rewrite { from_base: false };
        }
        if self.only_data() && covered <= self.block_size / 4 && self.takes_patches(covered) {
            return Shape::Patch;
        }
        Shape::Rewrite { from_base: self.base.is_some() }
    }

    fn only_data(&self) -> bool {
        self.segments.iter().all(|(_, chunk)| matches!(chunk, Chunk::Data(_)))
    }

    /// Whether patches of so many bytes may lie on what is there.
    fn takes_patches(&self, covered: u64) -> bool {
        let Some(base) = &self.base else { return self.is_sparse(covered) };
        // What is patched is read with the block: folded when that would double what a reader fetches.
        u64::from(base.patch_bytes) + covered <= self.block_size
            && base.patches + self.segments.len() as u32 <= PATCHES_MAX
            && base.kind != ExtentKind::Inline
    }

    /// Where nothing was: whether a block would consist of zeros for the most part.
    fn is_sparse(&self, covered: u64) -> bool {
        let end = self.segments.last().map_or(0, |(range, _)| u64::from(range.end));
        self.is_untouched
            && end > INLINE_MAX as u64
            && end >= covered * 2
            && self.segments.len() <= PATCHES_MAX as usize
    }

    /// The block's bytes afterwards, without the zeros at its end.
    pub(crate) fn compose(&self, base: &[u8]) -> Bytes {
        let end = self.segments.last().map_or(0, |(range, _)| range.end as usize).max(base.len());
        let mut bytes = vec![0; end.min(self.block_size as usize)];
        bytes[..base.len()].copy_from_slice(base);
        for (range, chunk) in &self.segments {
            let span = &mut bytes[range.start as usize..range.end as usize];
            match chunk {
                Chunk::Data(payload) => span.copy_from_slice(payload.as_slice()),
                Chunk::Zero => span.fill(0),
            }
        }
        // What is not allocated reads as zero, whatever a base block has there.
        let len = bytes.len().min(self.alloc.0.len() * 8 * UNIT as usize);
        bytes.truncate(len);
        bytes.truncate(bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1));
        // It may stay in the cache, which counts what it holds, not what was allocated for it.
        bytes.shrink_to_fit();
        Bytes::from(bytes)
    }

    /// The bytes of each patch; zeros are written out.
    pub(crate) fn patches(&self) -> impl Iterator<Item = (u32, Bytes)> {
        self.segments.iter().map(|(range, chunk)| {
            let data = match chunk {
                Chunk::Data(payload) => Bytes::copy_from_slice(payload.as_slice()),
                Chunk::Zero => Bytes::from(vec![0; (range.end - range.start) as usize]),
            };
            (range.start, data)
        })
    }
}

/// Whether bytes stand in the extent's row.
pub(crate) fn is_inline(bytes: &[u8]) -> bool {
    bytes.len() <= INLINE_MAX
}
