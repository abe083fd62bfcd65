//! Proofs of parts of blocks: what lets a page of a block be read and verified without the rest of the block.
//!
//! BLAKE3 is a tree. Whoever has verified a whole block once can keep the values of its subtrees (*leaves*, 16 KiB each)
//! and check any leaf by itself later. They are kept in memory only, a 512th of what they prove, bounded.

use std::{ops::Range, sync::Arc};

use blake3::{
    Hasher,
    hazmat::{
        ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
    },
};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tarbox_types::{BlockHash, BlockId, BlockIndex, DataId};

use crate::model::{BlockHeader, Codec, PartRead};

/// Bytes of a leaf: as many chunks as the widest vector unit hashes at once.
const LEAF: usize = 16 << 10;
/// Bytes of leaves kept, twice: those used lately and those before.
const KEPT_BYTES: usize = 8 << 20;
/// What an entry takes besides its leaves.
const OVERHEAD: usize = 96;
/// Every so many reads of a part the whole block is read, so that a cache above learns what is used much.
const WHOLE_EVERY: u32 = 16;

/// The values of a block's leaves.
#[derive(Debug)]
pub(crate) struct Leaves(Box<[ChainingValue]>);

/// Which stored block a place showed when it was verified.
#[derive(Debug)]
struct Proof {
    block: BlockId,
    len: u32,
    leaves: Leaves,
    reads: std::sync::atomic::AtomicU32,
}

/// What is needed to read a part of a block: returned by [`Proofs::plan`].
#[derive(Debug)]
pub(crate) struct Plan {
    proof: Arc<Proof>,
    /// Whole leaves around what is asked for; may reach beyond the block's end.
    pub(crate) range: Range<u32>,
}

type Place = (DataId, BlockIndex);

/// Proofs by place; see the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Proofs {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    young: FxHashMap<Place, Arc<Proof>>,
    old: FxHashMap<Place, Arc<Proof>>,
    young_bytes: usize,
}

impl Leaves {
    /// Those of a block, if it has two at least: of less, no part is worth reading.
    pub(crate) fn of(raw: &[u8]) -> Option<Self> {
        let value = |(index, leaf): (usize, &[u8])| value_of(index * LEAF, leaf);
        (raw.len() >= 2 * LEAF).then(|| Self(raw.chunks(LEAF).enumerate().map(value).collect()))
    }

    /// The hash of the whole of `len` bytes.
    pub(crate) fn root(&self, len: usize) -> BlockHash {
        let left = left_subtree_len(len as u64) as usize;
        let (first, second) = self.0.split_at(left / LEAF);
        let root = merge_subtrees_root(&merged(first, left), &merged(second, len - left), Mode::Hash);
        BlockHash(*root.as_bytes())
    }
}

fn value_of(offset: usize, leaf: &[u8]) -> ChainingValue {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(offset as u64);
    hasher.update(leaf);
    hasher.finalize_non_root()
}

/// The value of the subtree over leaves of `len` bytes in all.
fn merged(leaves: &[ChainingValue], len: usize) -> ChainingValue {
    if let [leaf] = leaves {
        return *leaf;
    }
    let left = left_subtree_len(len as u64) as usize;
    let (first, second) = leaves.split_at(left / LEAF);
    merge_subtrees_non_root(&merged(first, left), &merged(second, len - left), Mode::Hash)
}

impl Plan {
    /// Whether a stored block is the one that was verified.
    pub(crate) fn is_for(&self, header: &BlockHeader) -> bool {
        header.block == self.proof.block && header.len == self.proof.len && header.codec == Codec::Raw
    }

    /// Bytes of the stored block in the range: fewer where it ends in it.
    pub(crate) fn stored(&self) -> Range<u32> {
        self.range.start.min(self.proof.len)..self.range.end.min(self.proof.len)
    }

    /// Whether `bytes` are those of [`Plan::stored`].
    pub(crate) fn proves(&self, bytes: &[u8]) -> bool {
        let stored = self.stored();
        let first = stored.start as usize / LEAF;
        let mut leaves = bytes.chunks(LEAF).enumerate();
        bytes.len() == stored.len()
            && leaves.all(|(index, leaf)| {
                self.proof.leaves.0.get(first + index) == Some(&value_of((first + index) * LEAF, leaf))
            })
    }

    /// The part that was read, with patches over it.
    pub(crate) fn part<'a>(
        &self,
        base: bytes::Bytes,
        patches: impl IntoIterator<Item = (u32, &'a [u8])>,
    ) -> PartRead {
        let Range { start, end } = self.range;
        let clipped = patches.into_iter().filter_map(|(off, data)| {
            let from = off.max(start);
            let to = (off + data.len() as u32).min(end);
            (from < to).then(|| (from - start, &data[(from - off) as usize..(to - off) as usize]))
        });
        let mut clipped = clipped.peekable();
        let bytes = if clipped.peek().is_some() { crate::codec::apply_patches(base, clipped) } else { base };
        PartRead { range: self.range.clone(), bytes }
    }
}

impl Proofs {
    /// What to read for a range of a block; `None` = the whole block has to be read.
    pub(crate) fn plan(&self, did: DataId, blk: BlockIndex, range: &Range<u32>) -> Option<Plan> {
        let proof = self.kept.lock().get(&(did, blk))?;
        let reads = proof.reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let leaf = LEAF as u32;
        let range = range.start / leaf * leaf..range.end.div_ceil(leaf) * leaf;
        let is_small = range.len() * 2 <= proof.len as usize;
        (is_small && reads % WHOLE_EVERY != WHOLE_EVERY - 1).then_some(Plan { proof, range })
    }

    /// Remembers the leaves of a block that has been verified as a whole and is stored as it is.
    pub(crate) fn learn(&self, did: DataId, blk: BlockIndex, header: &BlockHeader, leaves: Leaves) {
        let mut kept = self.kept.lock();
        if !kept.has(&(did, blk), header.block) {
            let proof = Proof { block: header.block, len: header.len, leaves, reads: 0.into() };
            kept.put((did, blk), Arc::new(proof));
        }
    }
}

impl Kept {
    fn has(&self, place: &Place, block: BlockId) -> bool {
        self.young.get(place).or_else(|| self.old.get(place)).is_some_and(|proof| proof.block == block)
    }

    fn get(&mut self, place: &Place) -> Option<Arc<Proof>> {
        if let Some(proof) = self.young.get(place) {
            return Some(Arc::clone(proof));
        }
        let proof = self.old.remove(place)?;
        self.put(*place, Arc::clone(&proof));
        Some(proof)
    }

    fn put(&mut self, place: Place, proof: Arc<Proof>) {
        let bytes = size_of_val(&*proof.leaves.0) + OVERHEAD;
        if self.young_bytes + bytes > KEPT_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.old.remove(&place);
        if self.young.insert(place, proof).is_none() {
            self.young_bytes += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let byte = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..len).map(byte).collect()
    }

    fn header(block: BlockId, raw: &[u8]) -> BlockHeader {
        BlockHeader { block, hash: crate::codec::hash(raw), len: raw.len() as u32, codec: Codec::Raw }
    }

    fn learn(proofs: &Proofs, blk: BlockIndex, block: BlockId, raw: &[u8]) {
        proofs.learn(1, blk, &header(block, raw), Leaves::of(raw).expect("large enough"));
    }

    #[test]
    fn leaves_add_up_to_the_hash_of_the_block_whatever_its_length() {
        for len in [2 * LEAF, 2 * LEAF + 1, 3 * LEAF, 5 * LEAF - 7, 128 << 10, (128 << 10) - 1, 4 << 20] {
            let mut raw = noise(len);
            raw[len - 1] = 1;
            assert_eq!(
                Leaves::of(&raw).expect("large enough").root(len),
                crate::codec::hash(&raw),
                "{len} bytes"
            );
        }
    }

    #[test]
    fn a_part_is_proven_and_no_flipped_bit_of_it_is() {
        let (proofs, mut raw) = (Proofs::default(), noise(100_000));
        raw[99_999] = 1;
        learn(&proofs, 2, 7, &raw);
        for asked in [0..4096_u32, 20_000..24_096, 96_000..100_000, 98_304..110_000] {
            let plan = proofs.plan(1, 2, &asked).expect("it is known");
            assert!(plan.is_for(&header(7, &raw)) && !plan.is_for(&header(8, &raw)));
            assert!(plan.range.start <= asked.start && plan.range.end >= asked.end);
            let stored = plan.stored();
            let mut bytes = raw[stored.start as usize..stored.end as usize].to_vec();
            assert!(plan.proves(&bytes));
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            assert!(!plan.proves(&bytes) && !plan.proves(&bytes[1..]));
        }
    }

    #[test]
    fn what_is_small_or_asked_for_in_large_is_read_whole_and_else_now_and_then() {
        let (proofs, raw) = (Proofs::default(), noise(8 * LEAF));
        assert!(Leaves::of(&raw[..2 * LEAF - 1]).is_none());
        learn(&proofs, 3, 3, &raw);
        assert!(proofs.plan(1, 2, &(0..1)).is_none() && proofs.plan(1, 3, &(0..80_000)).is_none());
        let parts = (0..160).filter(|_| proofs.plan(1, 3, &(0..1)).is_some()).count();
        assert_eq!(parts, 150);
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let (proofs, raw) = (Proofs::default(), noise(2 * LEAF));
        let template = header(0, &raw);
        for blk in 0..400_000 {
            let leaves = Leaves(Box::new([[0; 32]; 2]));
            proofs.learn(1, blk, &BlockHeader { block: blk, ..template.clone() }, leaves);
            assert!(blk % 1000 != 0 || proofs.kept.lock().get(&(1, 0)).is_some(), "{blk}");
        }
        let kept = proofs.kept.lock();
        let most = KEPT_BYTES / (2 * 32 + OVERHEAD);
        assert!(kept.young.len() <= most && kept.old.len() <= most);
    }

    #[test]
    fn patches_lie_over_a_part_where_they_meet_it() {
        let (proofs, raw) = (Proofs::default(), noise(4 * LEAF));
        learn(&proofs, 1, 1, &raw);
        let plan = proofs.plan(1, 1, &(LEAF as u32..LEAF as u32 + 1)).expect("it is known");
        let base = bytes::Bytes::copy_from_slice(&raw[LEAF..2 * LEAF]);
        let patches: [(u32, &[u8]); 3] =
            [(0, &[1; 10]), (LEAF as u32 - 2, &[2; 4]), (2 * LEAF as u32 - 1, &[3; 9])];
        let part = plan.part(base, patches);
        assert_eq!((part.range, part.bytes.len()), (LEAF as u32..2 * LEAF as u32, LEAF));
        assert_eq!((&part.bytes[..2], part.bytes[LEAF - 1]), (&[2, 2][..], 3));
        assert_eq!(part.bytes[2..LEAF - 1], raw[LEAF + 2..2 * LEAF - 1]);
    }
}
