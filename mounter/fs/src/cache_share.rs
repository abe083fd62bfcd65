//! One view's share in the cache of a mount: the head and the checkpoints that are looked at have one memory for blocks.

use std::sync::Arc;

use bytes::Bytes;
use tarbox_types::{BlockIndex, DataId, fuse::INO_BITS};

use crate::block_cache::{BlockCache, CacheStatistics};

/// See the module's documentation. A content differs from view to view, so the view stands above the bits of its id, which comes from the
/// counter of inode numbers.
#[derive(Clone, Debug)]
pub(crate) struct CacheShare {
    cache: Arc<BlockCache>,
    view: DataId,
}

impl CacheShare {
    pub(crate) fn of_head(cache: Arc<BlockCache>) -> Self {
        Self { cache, view: 0 }
    }

    /// The share of another view; 0 is the head's.
    pub(crate) fn of_view(&self, view: u16) -> Self {
        Self { cache: Arc::clone(&self.cache), view: u64::from(view) << INO_BITS }
    }

    pub(crate) fn get(&self, did: DataId, blk: BlockIndex) -> Option<Bytes> {
        self.cache.get(self.view | did, blk)
    }

    pub(crate) fn contains(&self, did: DataId, blk: BlockIndex) -> bool {
        self.cache.contains(self.view | did, blk)
    }

    pub(crate) fn insert(&self, did: DataId, blk: BlockIndex, bytes: Bytes) {
        self.cache.insert(self.view | did, blk, bytes);
    }

    pub(crate) fn remove(&self, did: DataId, blk: BlockIndex) {
        self.cache.remove(self.view | did, blk);
    }

    pub(crate) fn remove_from(&self, did: DataId, blk: BlockIndex) {
        self.cache.remove_from(self.view | did, blk);
    }

    /// Takes all blocks of this view out.
    pub(crate) fn clear(&self) {
        self.cache.remove_range(self.view..=self.view | ((1 << INO_BITS) - 1));
    }

    /// Of all views together.
    pub(crate) fn shrink(&self, bytes: usize) {
        self.cache.shrink(bytes);
    }

    /// Of all views together.
    pub(crate) fn statistics(&self) -> CacheStatistics {
        self.cache.statistics()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_share_the_room_and_nothing_else() {
        let head = CacheShare::of_head(Arc::new(BlockCache::new(1 << 20)));
        let (one, other) = (head.of_view(2), head.of_view(u16::MAX));
        let did = (1 << INO_BITS) - 1;
        for (share, text) in [(&head, "head"), (&one, "one"), (&other, "other")] {
            share.insert(did, 7, Bytes::from_static(text.as_bytes()));
        }
        assert_eq!(head.statistics().blocks, 3);
        one.clear();
        let found = [&head, &one, &other].map(|share| share.get(did, 7));
        assert_eq!(found, [Some("head".into()), None, Some("other".into())]);
    }
}
