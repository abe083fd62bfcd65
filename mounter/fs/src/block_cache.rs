//! Blocks read from the database, bounded by bytes.
//!
//! Two queues (as S3-FIFO): what comes in waits in the *probation* queue, a tenth of the room, and gets into the *main* queue
//! only if it is asked for again, there or soon after; so a file read once, however large, pushes out nothing that is used.
//! A hit only counts; the queues move when something has to go.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::FxHashSet;
use tarbox_types::{BlockIndex, DataId};

/// What an entry takes beside its bytes: tree node, queue place, `Bytes`, allocation.
const OVERHEAD: usize = 160;
/// Hits count up to here.
const HITS_MAX: u8 = 3;
/// One over this is the share of the probation queue.
const PROBATION_SHARE: usize = 10;

type Key = (DataId, BlockIndex);

/// A bounded cache of blocks; one lock, held for less than a microsecond except where much goes at once.
#[derive(Debug)]
pub struct BlockCache {
    state: Mutex<State>,
}

/// How the cache does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CacheStatistics {
    /// Blocks found.
    pub hits: u64,
    /// Blocks not found.
    pub misses: u64,
    /// Blocks in it.
    pub blocks: usize,
    /// Bytes in use, overhead included.
    pub bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    capacity: usize,
    entries: BTreeMap<Key, Entry>,
    /// Keys with the birth of the entry they stand for: one whose entry is gone is skipped.
    probation: VecDeque<(Key, u64)>,
    main: VecDeque<(Key, u64)>,
    /// Keys lately pushed out of probation.
    ghosts: VecDeque<Key>,
    ghost_set: FxHashSet<Key>,
    bytes: usize,
    probation_bytes: usize,
    births: u64,
    hits: u64,
    misses: u64,
}

#[derive(Debug)]
struct Entry {
    bytes: Bytes,
    birth: u64,
    hits: u8,
    is_main: bool,
}

impl Entry {
    fn size(&self) -> usize {
        self.bytes.len() + OVERHEAD
    }
}

impl BlockCache {
    /// An empty cache for that many bytes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { state: Mutex::new(State { capacity, ..State::default() }) }
    }

    /// The block, if it is there.
    #[must_use]
    pub fn get(&self, did: DataId, blk: BlockIndex) -> Option<Bytes> {
        let state = &mut *self.state.lock();
        let Some(entry) = state.entries.get_mut(&(did, blk)) else {
            state.misses += 1;
            return None;
        };
        state.hits += 1;
        entry.hits = (entry.hits + 1).min(HITS_MAX);
        Some(entry.bytes.clone())
    }

    /// Whether the block is there; counts as nothing.
    #[must_use]
    pub fn contains(&self, did: DataId, blk: BlockIndex) -> bool {
        self.state.lock().entries.contains_key(&(did, blk))
    }

    /// Puts a block in, in place of an earlier one. `bytes` should be a buffer of its own: a part of a larger one keeps all of
    /// it in memory. What is larger than the whole cache is not kept.
    pub fn insert(&self, did: DataId, blk: BlockIndex, bytes: Bytes) {
        self.state.lock().insert((did, blk), bytes);
    }

    /// Takes a block out.
    pub fn remove(&self, did: DataId, blk: BlockIndex) {
        self.state.lock().remove(&(did, blk));
    }

    /// Takes all blocks of a content out.
    pub fn remove_data(&self, did: DataId) {
        self.remove_from(did, 0);
    }

    /// Takes the blocks of a content from `blk` on out.
    pub fn remove_from(&self, did: DataId, blk: BlockIndex) {
        let mut state = self.state.lock();
        let keys = state.entries.range((did, blk)..=(did, BlockIndex::MAX)).map(|(key, _)| *key);
        for key in keys.collect::<Vec<_>>() {
            state.remove(&key);
        }
    }

    /// Takes the blocks of a range of contents out.
    pub fn remove_range(&self, dids: std::ops::RangeInclusive<DataId>) {
        let mut state = self.state.lock();
        let (first, last) = dids.into_inner();
        let keys = state.entries.range((first, 0)..=(last, BlockIndex::MAX)).map(|(key, _)| *key);
        for key in keys.collect::<Vec<_>>() {
            state.remove(&key);
        }
    }

    /// Pushes blocks out until at most `bytes` are in use. The capacity stays.
    pub fn shrink(&self, bytes: usize) {
        self.state.lock().make_room(bytes);
    }

    /// Changes the capacity.
    pub fn set_capacity(&self, capacity: usize) {
        let mut state = self.state.lock();
        state.capacity = capacity;
        state.make_room(capacity);
    }

    /// How it does.
    #[must_use]
    pub fn statistics(&self) -> CacheStatistics {
        let State { hits, misses, bytes, ref entries, .. } = *self.state.lock();
        CacheStatistics { hits, misses, blocks: entries.len(), bytes }
    }
}

impl State {
    fn insert(&mut self, key: Key, bytes: Bytes) {
        self.remove(&key);
        let size = bytes.len() + OVERHEAD;
        if size > self.capacity {
            return;
        }
        self.make_room(self.capacity - size);
        let is_main = self.ghost_set.remove(&key);
        self.births += 1;
        self.bytes += size;
        let queue = if is_main { &mut self.main } else { &mut self.probation };
        queue.push_back((key, self.births));
        self.probation_bytes += if is_main { 0 } else { size };
        self.entries.insert(key, Entry { bytes, birth: self.births, hits: 0, is_main });
        self.sweep();
    }

    fn remove(&mut self, key: &Key) {
        let Some(entry) = self.entries.remove(key) else { return };
        self.bytes -= entry.size();
        self.probation_bytes -= if entry.is_main { 0 } else { entry.size() };
    }

    /// Pushes out what is used least until at most `limit` bytes are in use.
    fn make_room(&mut self, limit: usize) {
        while self.bytes > limit {
            let from_probation =
                self.probation_bytes > self.capacity / PROBATION_SHARE || self.main.is_empty();
            if from_probation { self.advance_probation() } else { self.advance_main() }
        }
    }

    /// The oldest of the probation queue gets into the main queue, or goes.
    fn advance_probation(&mut self) {
        let Some((key, birth)) = self.probation.pop_front() else { return self.advance_main() };
        let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.birth == birth) else { return };
        if entry.hits > 0 {
            entry.hits = 0;
            entry.is_main = true;
            self.probation_bytes -= entry.size();
            self.main.push_back((key, birth));
            return;
        }
        self.remove(&key);
        if self.ghost_set.insert(key) {
            self.ghosts.push_back(key);
        }
        // As many as there are blocks: what is asked for again later than that does not count as again.
        while self.ghosts.len() > self.entries.len().max(16) {
            if let Some(key) = self.ghosts.pop_front() {
                self.ghost_set.remove(&key);
            }
        }
    }

    /// The oldest of the main queue goes round once more for each hit, or goes.
    fn advance_main(&mut self) {
        let Some((key, birth)) = self.main.pop_front() else { return };
        let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.birth == birth) else { return };
        if entry.hits == 0 {
            return self.remove(&key);
        }
        entry.hits -= 1;
        self.main.push_back((key, birth));
    }

    /// Takes keys without an entry out of the queues, when there are more of them than of others.
    fn sweep(&mut self) {
        if self.probation.len() + self.main.len() <= 2 * self.entries.len() + 64 {
            return;
        }
        let entries = &self.entries;
        let is_live =
            |&(key, birth): &(Key, u64)| entries.get(&key).is_some_and(|entry| entry.birth == birth);
        self.probation.retain(is_live);
        self.main.retain(is_live);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK: usize = 1000 - OVERHEAD;

    fn block(n: u64) -> Bytes {
        Bytes::from(vec![n as u8; BLOCK])
    }

    /// Reads as a file system does: what is not there is put in. Whether it was there.
    fn read(cache: &BlockCache, blk: u64) -> bool {
        match cache.get(1, blk) {
            Some(bytes) => bytes == block(blk),
            None => {
                cache.insert(1, blk, block(blk));
                false
            }
        }
    }

    /// Reads them all; how many were there.
    fn read_all(cache: &BlockCache, blocks: impl Iterator<Item = u64>) -> usize {
        blocks.filter(|&blk| read(cache, blk)).count()
    }

    #[test]
    fn the_bound_holds_whatever_is_put_in() {
        let cache = BlockCache::new(100_000);
        for n in 0..10_000_u64 {
            cache.insert(n % 7, n, Bytes::from(vec![0; (n * 7919 % 3000) as usize]));
            assert!(cache.statistics().bytes <= 100_000);
        }
        cache.insert(9, 9, Bytes::from(vec![0; 200_000]));
        assert!(!cache.contains(9, 9));
        cache.shrink(10_000);
        assert!(cache.statistics().bytes <= 10_000 && cache.statistics().blocks > 0);
        cache.set_capacity(0);
        assert_eq!((cache.statistics().bytes, cache.statistics().blocks), (0, 0));
    }

    #[test]
    fn a_scan_does_not_push_out_what_is_used() {
        let cache = BlockCache::new(100_000);
        for _ in 0..3 {
            read_all(&cache, 0..50);
        }
        let mut scan = 1000..;
        let mut hits = 0;
        for round in 0..20 {
            read_all(&cache, scan.by_ref().take(200));
            hits += read_all(&cache, 0..50);
            assert!(round < 3 || hits >= round * 40, "round {round}: {hits} hits");
        }
    }

    #[test]
    fn what_is_asked_for_again_soon_after_it_went_stays_the_second_time() {
        let cache = BlockCache::new(20_000);
        read_all(&cache, 0..100);
        // Both are gone; the one a short while ago, the other long since.
        assert!(!read(&cache, 79) && !read(&cache, 30));
        read_all(&cache, 200..300);
        assert!(cache.contains(1, 79) && !cache.contains(1, 30));
    }

    #[test]
    fn a_truncated_content_loses_its_blocks_from_there_and_no_others() {
        let cache = BlockCache::new(1 << 20);
        for did in 1..=3 {
            (0..10).for_each(|blk| cache.insert(did, blk, block(blk)));
        }
        cache.remove_from(2, 4);
        cache.remove_data(3);
        cache.remove(1, 9);
        let left = |did| (0..10).filter(|&blk| cache.contains(did, blk)).count();
        assert_eq!([left(1), left(2), left(3)], [9, 4, 0]);
        assert_eq!(cache.statistics().bytes, 13 * 1000);
    }

    #[test]
    fn hits_and_misses_are_counted() {
        let cache = BlockCache::new(1 << 20);
        assert!(!read(&cache, 1) && read(&cache, 1) && read(&cache, 1));
        let CacheStatistics { hits, misses, blocks, bytes } = cache.statistics();
        assert_eq!((hits, misses, blocks, bytes), (2, 1, 1, 1000));
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_was_put_in_last(
            steps in proptest::collection::vec((0u64..3, 0u64..20, 0u8..10, any::<u8>()), 0..300),
        ) {
            let cache = BlockCache::new(10 * 1000);
            let mut model = BTreeMap::new();
            for (did, blk, what, value) in steps {
                match what {
                    0 => { cache.remove(did, blk); model.remove(&(did, blk)); }
                    1 => { cache.remove_from(did, blk); model.retain(|key: &Key, _| key.0 != did || key.1 < blk); }
                    2..5 => {
                        cache.insert(did, blk, Bytes::from(vec![value; BLOCK]));
                        model.insert((did, blk), value);
                        prop_assert!(cache.contains(did, blk), "what was just put in is there");
                    }
                    _ => if let Some(bytes) = cache.get(did, blk) {
                        prop_assert_eq!(Some(&bytes[0]), model.get(&(did, blk)));
                    }
                }
                let state = cache.state.lock();
                let sizes = |main: Option<bool>| {
                    let entries = state.entries.values().filter(|entry| main.is_none_or(|main| entry.is_main == main));
                    entries.map(Entry::size).sum::<usize>()
                };
                prop_assert_eq!((state.bytes, state.probation_bytes), (sizes(None), sizes(Some(false))));
                prop_assert!(state.bytes <= 10_000 && state.probation.len() + state.main.len() < 200);
            }
        }
    }
}
