//! What is fetched before it is asked for: the pattern of reads of a content (pure), and the blocks on their way.

use std::ops::Range;

use parking_lot::Mutex;
use rustc_hash::FxHashSet;
use tarbox_types::{BlockIndex, DataId};
use tokio::sync::Notify;

/// Readers that run in parallel ask out of order by at most this many blocks.
const SLACK: u64 = 8;
/// Blocks on their way at a time, of all contents; beyond it nothing is fetched ahead.
const ON_THEIR_WAY_MAX: usize = 128;

/// How a content is being read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// The block after the last one asked for; 0 = none was.
    next: BlockIndex,
    /// The block after the last one that was asked for or fetched ahead.
    end: BlockIndex,
    /// So many blocks are fetched ahead.
    window: u64,
}

/// What a read means for those to come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Nothing follows from it.
    Random,
    /// More will be read; these blocks now, if any.
    Sequence(Range<BlockIndex>),
}

impl Pattern {
    /// A read of these blocks. `most`: that many are fetched ahead at most.
    ///
    /// The window doubles with each block; it is filled up when half of it has been read, so that what is fetched
    /// comes in pieces worth a question and is there before the reader.
    pub(crate) fn advance(&mut self, asked: &Range<BlockIndex>, most: u64) -> Advice {
        let near = self.next.saturating_sub(SLACK)..=self.next + SLACK;
        if self.next == 0 || !near.contains(&asked.start) {
            *self = Self { next: asked.end, end: asked.end, window: 0 };
            return Advice::Random;
        }
        if asked.end > self.next {
            self.next = asked.end;
            self.end = self.end.max(asked.end);
            self.window = (self.window * 2).max(2).min(most);
        }
        let ahead = self.end - self.next;
        if ahead * 2 > self.window {
            return Advice::Sequence(self.end..self.end);
        }
        let fetch = self.end..self.next + self.window;
        self.end = fetch.end;
        Advice::Sequence(fetch)
    }
}

/// Blocks that are being fetched, so that nobody fetches them twice.
#[derive(Debug, Default)]
pub(crate) struct OnTheirWay {
    blocks: Mutex<FxHashSet<(DataId, BlockIndex)>>,
    arrived: Notify,
}

/// Blocks whose fetch has begun; it has ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Fetch<'a> {
    way: &'a OnTheirWay,
    did: DataId,
    blks: &'a [BlockIndex],
}

impl OnTheirWay {
    /// Enters those of the blocks that nobody fetches yet, as far as there is room.
    pub(crate) fn enter(&self, did: DataId, mut blks: Vec<BlockIndex>) -> Vec<BlockIndex> {
        let mut blocks = self.blocks.lock();
        blks.retain(|&blk| blocks.len() < ON_THEIR_WAY_MAX && blocks.insert((did, blk)));
        blks
    }

    /// For whoever fetches what [`Self::enter`] returned.
    pub(crate) fn fetching<'a>(&'a self, did: DataId, blks: &'a [BlockIndex]) -> Fetch<'a> {
        Fetch { way: self, did, blks }
    }

    /// Waits for a fetch to end, if one of these blocks is on its way; whether it was.
    pub(crate) async fn wait_for_any(&self, did: DataId, blks: &[BlockIndex]) -> bool {
        let mut arrived = std::pin::pin!(self.arrived.notified());
        // Before looking: what arrives after that is not missed.
        arrived.as_mut().enable();
        let is_coming = {
            let blocks = self.blocks.lock();
            blks.iter().any(|&blk| blocks.contains(&(did, blk)))
        };
        if is_coming {
            arrived.await;
        }
        is_coming
    }
}

impl Drop for Fetch<'_> {
    fn drop(&mut self) {
        let mut blocks = self.way.blocks.lock();
        for &blk in self.blks {
            blocks.remove(&(self.did, blk));
        }
        drop(blocks);
        self.way.arrived.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_is_fetched_once_and_ever_further_ahead() {
        let mut pattern = Pattern::default();
        assert_eq!(pattern.advance(&(0..1), 32), Advice::Random, "one read is no sequence");
        let mut fetched = 1;
        for blk in 1..500 {
            let Advice::Sequence(range) = pattern.advance(&(blk..blk + 1), 32) else { panic!("{blk}") };
            assert!(range.is_empty() || range.start == fetched.max(blk + 1), "{range:?} at {blk}");
            fetched = range.end.max(fetched);
            assert!(fetched <= blk + 1 + 32);
            assert!(blk < 10 || (fetched > blk + 8 && (range.is_empty() || range.end - range.start >= 16)));
        }
    }

    #[test]
    fn parallel_readers_out_of_order_are_a_sequence_and_far_jumps_are_none() {
        let mut pattern = Pattern::default();
        pattern.advance(&(0..1), 32);
        for blk in [2, 1, 4, 3, 6, 5] {
            assert!(matches!(pattern.advance(&(blk..blk + 1), 32), Advice::Sequence(_)), "{blk}");
        }
        for blk in [1000, 20, 500, 300] {
            assert_eq!(pattern.advance(&(blk..blk + 1), 32), Advice::Random, "{blk}");
        }
    }

    #[test]
    fn blocks_as_large_as_the_bound_are_fetched_one_ahead() {
        let mut pattern = Pattern::default();
        pattern.advance(&(0..1), 1);
        assert_eq!(pattern.advance(&(1..2), 1), Advice::Sequence(2..3));
        assert_eq!(pattern.advance(&(2..3), 1), Advice::Sequence(3..4));
    }

    #[tokio::test]
    async fn a_block_is_fetched_by_one_and_waited_for_by_the_others() {
        let way = OnTheirWay::default();
        let first = way.enter(1, vec![1, 2]);
        assert_eq!((first.len(), way.enter(1, vec![2, 3])), (2, vec![3]));
        assert!(!way.wait_for_any(2, &[1]).await && !way.wait_for_any(1, &[7]).await);
        let fetch = way.fetching(1, &first);
        let (waited, ()) = tokio::join!(way.wait_for_any(1, &[9, 1]), async { drop(fetch) });
        assert!(waited && !way.wait_for_any(1, &[1, 2]).await);
        assert!(way.enter(1, (10..1000).collect()).len() < ON_THEIR_WAY_MAX);
    }
}
