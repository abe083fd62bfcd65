//! The content of one file in memory: what of it is not committed yet, over the extents that are.

use std::ops::Range;

use tarbox_store::{Extent, UNIT};
use tarbox_types::{BlockIndex, DataId, Seq};

use super::{Need, Stop};
use crate::{
    journal::Payload,
    range_map::{RangeMap, Slice, UnitSet},
    read_ahead::Pattern,
    small_map::SmallMap,
};

/// Beyond any offset: files end at 2^53.
pub(crate) const END: u64 = 1 << 60;

/// How many extents are loaded at once around what is asked for.
const WINDOW: u64 = 512;

/// What stands in a dirty range of bytes.
#[derive(Clone, Debug)]
pub(crate) enum Chunk {
    /// Bytes in the journal.
    Data(Payload),
    /// Zeros.
    Zero,
}

#[derive(Clone, Debug)]
struct Dirty {
    chunk: Chunk,
    seq: Seq,
}

impl Chunk {
    /// The first `len` bytes.
    fn first(self, len: u64) -> Self {
        match self {
            Self::Data(payload) => Self::Data(payload.slice(0..len as usize)),
            Self::Zero => Self::Zero,
        }
    }
}

impl Slice for Dirty {
    fn slice(&self, offset: u64) -> Self {
        let chunk = match &self.chunk {
            Chunk::Data(payload) => Chunk::Data(Slice::slice(payload, offset)),
            Chunk::Zero => Chunk::Zero,
        };
        Self { chunk, seq: self.seq }
    }
}

#[derive(Clone, Copy, Debug)]
struct Allocation {
    allocated: bool,
    seq: Seq,
}

impl Slice for Allocation {
    fn slice(&self, _offset: u64) -> Self {
        *self
    }
}

/// A piece of what a read returns, in order and without gaps.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Data(Payload),
    Zero(u64),
    /// Bytes of a committed block.
    Block {
        blk: BlockIndex,
        offset: u32,
        len: u32,
    },
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Content {
    block_size: u64,
    /// Every committed extent is known: blocks without one are holes.
    pub complete: bool,
    dirty: RangeMap<Dirty>,
    /// Changes of allocation, by unit.
    allocation: RangeMap<Allocation>,
    /// Blocks whose extents are known.
    loaded: UnitSet,
    extents: SmallMap<BlockIndex, Extent>,
    /// Grows whenever what is committed changes: a block read before is not taken for current.
    pub version: u64,
    /// How it is read.
    pub pattern: Pattern,
}

fn units_touched(bytes: &Range<u64>) -> Range<u64> {
    bytes.start / UNIT..bytes.end.div_ceil(UNIT)
}

fn units_inside(bytes: &Range<u64>) -> Range<u64> {
    let start = bytes.start.div_ceil(UNIT);
    start..(bytes.end / UNIT).max(start)
}

impl Content {
    pub(crate) fn new(block_size: u64, version: u64) -> Self {
        Self {
            block_size,
            complete: false,
            dirty: RangeMap::new(),
            allocation: RangeMap::new(),
            loaded: UnitSet::new(),
            extents: SmallMap::default(),
            version,
            pattern: Pattern::default(),
        }
    }

    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || !self.allocation.is_empty()
    }

    pub(crate) fn known_extents(&self) -> usize {
        self.extents.len()
    }

    // === Changing ===

    pub(crate) fn write(&mut self, seq: Seq, offset: u64, payload: Payload) {
        let bytes = offset..offset + payload.len() as u64;
        self.allocation.insert(units_touched(&bytes), Allocation { allocated: true, seq });
        self.dirty.insert(bytes, Dirty { chunk: Chunk::Data(payload), seq });
    }

    pub(crate) fn zero(&mut self, seq: Seq, bytes: Range<u64>, deallocate: bool) {
        if deallocate {
            let units = units_inside(&bytes);
            if !units.is_empty() {
                self.allocation.insert(units, Allocation { allocated: false, seq });
            }
        }
        self.dirty.insert(bytes, Dirty { chunk: Chunk::Zero, seq });
    }

    pub(crate) fn truncate(&mut self, seq: Seq, from: u64) {
        self.zero(seq, from..END, true);
    }

    // === What is known ===

    /// The committed extent of a block, `None` = hole.
    pub(crate) fn extent(&self, did: DataId, blk: BlockIndex) -> Result<Option<&Extent>, Stop> {
        if self.complete || self.loaded.contains(blk) {
            return Ok(self.extents.get(&blk));
        }
        let start = blk - blk % WINDOW;
        Err(Need::Extents(did, start..start + WINDOW).into())
    }

    /// How many units of a range are allocated, those preallocated in `reserved` included.
    pub(crate) fn allocated(
        &self,
        did: DataId,
        units: Range<u64>,
        reserved: &[Range<u64>],
    ) -> Result<u64, Stop> {
        let mut count = 0;
        for run in self.runs(did, units)? {
            let len = run.0.end - run.0.start;
            count += if run.1 { len } else { overlap(reserved, &run.0) };
        }
        Ok(count)
    }

    /// The runs of written (true) and unwritten (false) units in a range, without gaps, in order.
    pub(crate) fn runs(&self, did: DataId, units: Range<u64>) -> Result<Vec<(Range<u64>, bool)>, Stop> {
        let mut runs: Vec<(Range<u64>, bool)> = Vec::new();
        let mut push = |run: Range<u64>, written: bool| match runs.last_mut() {
            Some(last) if last.1 == written && last.0.end == run.start => last.0.end = run.end,
            _ if run.is_empty() => {}
            _ => runs.push((run, written)),
        };
        for (range, change) in self.allocation.pieces(units) {
            match change {
                Some(change) => push(range, change.allocated),
                None => self.committed_runs(did, range, &mut push)?,
            }
        }
        Ok(runs)
    }

    /// The runs of a range that no uncommitted change touches.
    fn committed_runs(
        &self,
        did: DataId,
        units: Range<u64>,
        push: &mut impl FnMut(Range<u64>, bool),
    ) -> Result<(), Stop> {
        if units.is_empty() {
            return Ok(());
        }
        let per_block = self.block_size / UNIT;
        let blks = units.start / per_block..units.end.div_ceil(per_block);
        self.require(did, blks.clone())?;
        let mut at = units.start;
        for (&blk, extent) in self.extents.range(blks) {
            let first = blk * per_block;
            let span = first.max(units.start)..(first + per_block).min(units.end);
            push(at..span.start, false);
            for unit in span.clone() {
                push(unit..unit + 1, extent.alloc.contains((unit - first) as u32));
            }
            at = span.end;
        }
        push(at..units.end, false);
        Ok(())
    }

    /// All extents of a range of blocks have to be known.
    fn require(&self, did: DataId, blks: Range<u64>) -> Result<(), Stop> {
        if self.complete {
            return Ok(());
        }
        let first = self.loaded.next_clear(blks.start);
        if first >= blks.end {
            return Ok(());
        }
        let start = first - first % WINDOW;
        Err(Need::Extents(did, start..blks.end.max(start + WINDOW)).into())
    }

    /// What a read of a range of bytes consists of.
    pub(crate) fn pieces(&self, did: DataId, bytes: Range<u64>) -> Result<Vec<Piece>, Stop> {
        let mut pieces = Vec::new();
        for (range, dirty) in self.dirty.pieces(bytes) {
            let len = range.end - range.start;
            match dirty.map(|dirty| dirty.chunk.first(len)) {
                Some(Chunk::Data(payload)) => pieces.push(Piece::Data(payload)),
                Some(Chunk::Zero) => pieces.push(Piece::Zero(len)),
                None => self.committed_pieces(did, range, &mut pieces)?,
            }
        }
        Ok(pieces)
    }

    fn committed_pieces(&self, did: DataId, bytes: Range<u64>, pieces: &mut Vec<Piece>) -> Result<(), Stop> {
        if bytes.is_empty() {
            return Ok(());
        }
        let size = self.block_size;
        self.require(did, bytes.start / size..bytes.end.div_ceil(size))?;
        let mut at = bytes.start;
        while at < bytes.end {
            let blk = at / size;
            let len = ((blk + 1) * size).min(bytes.end) - at;
            pieces.push(match self.extents.get(&blk) {
                Some(extent) if !extent.is_hole() => {
                    Piece::Block { blk, offset: (at % size) as u32, len: len as u32 }
                }
                _ => Piece::Zero(len),
            });
            at += len;
        }
        Ok(())
    }

    // === For the flusher, which folds records into a content of its own ===

    /// The changed ranges of bytes, in order, with what stands there (true = data, false = zeros).
    pub(crate) fn changed_ranges(&self) -> impl Iterator<Item = (Range<u64>, bool)> {
        self.dirty.iter().map(|(range, dirty)| (range, matches!(dirty.chunk, Chunk::Data(_))))
    }

    /// The ranges of units that became allocated (or stayed so, written to and zeroed again).
    pub(crate) fn allocated_ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.allocation.iter().filter(|(_, change)| change.allocated).map(|(range, _)| range)
    }

    /// What was changed in a range of bytes.
    pub(crate) fn changes(&self, bytes: Range<u64>) -> Vec<(Range<u64>, Chunk)> {
        let pieces = self.dirty.pieces(bytes);
        pieces
            .filter_map(|(range, dirty)| {
                let len = range.end - range.start;
                dirty.map(|dirty| (range, dirty.chunk.first(len)))
            })
            .collect()
    }

    /// Which units of a range became allocated or free.
    pub(crate) fn allocation_changes(&self, units: Range<u64>) -> Vec<(Range<u64>, bool)> {
        let pieces = self.allocation.pieces(units);
        pieces.filter_map(|(range, change)| change.map(|change| (range, change.allocated))).collect()
    }

    /// Committed extents of a range of blocks.
    pub(crate) fn extents(&self, did: DataId, blks: Range<u64>) -> Result<Vec<Extent>, Stop> {
        self.require(did, blks.clone())?;
        Ok(self.extents.range(blks).map(|(_, extent)| extent.clone()).collect())
    }

    // === Loading and committing ===

    /// Takes over committed extents of a range of blocks.
    pub(crate) fn load(&mut self, blks: Range<u64>, extents: Vec<Extent>) {
        for extent in extents {
            if !self.loaded.contains(extent.blk) {
                self.extents.insert(extent.blk, extent);
            }
        }
        self.loaded.insert(blks);
    }

    /// Everything up to `seq` is committed, with these extents (`None` = none any more), and none from `cut_at` on
    /// that is not among them.
    pub(crate) fn set_committed(
        &mut self,
        seq: Seq,
        cut_at: Option<BlockIndex>,
        changed: impl IntoIterator<Item = (BlockIndex, Option<Extent>)>,
    ) {
        self.dirty.retain(|_, dirty| dirty.seq > seq);
        self.allocation.retain(|_, change| change.seq > seq);
        if let Some(cut_at) = cut_at {
            self.extents.truncate(&cut_at);
            self.loaded.insert(cut_at..END);
        }
        for (blk, extent) in changed {
            match extent {
                Some(extent) => self.extents.insert(blk, extent),
                None => self.extents.remove(&blk),
            };
            self.loaded.insert(blk..blk + 1);
        }
        self.version += 1;
    }

    /// Forgets what is committed, so that it is asked for again.
    pub(crate) fn forget_committed(&mut self) {
        self.complete = false;
        self.loaded = UnitSet::new();
        self.extents.clear();
        self.version += 1;
    }
}

/// How many units of `range` lie in the sorted, disjoint `ranges`.
pub(crate) fn overlap(ranges: &[Range<u64>], range: &Range<u64>) -> u64 {
    ranges.iter().map(|r| r.end.min(range.end).saturating_sub(r.start.max(range.start))).sum()
}
