//! A checkpoint, looked at beside the head that is served: the same code over another view, refusing every change.
//!
//! A checkpoint may be deleted at any moment, by whomever. Its layer's row goes first, what only it could see afterwards: an
//! answer of the database is taken over only if the layer is still there *behind* it ([`Shared::trusted`]), so that memory
//! never holds what was half gone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Instant,
};

use parking_lot::{Mutex, RwLock};
use tarbox_store::{StoreError, View};
use tarbox_types::{BranchId, Layer, latency::Latencies};
use tokio::sync::watch;
use tracing::Instrument;

use crate::{
    FileSystem,
    audit::Audit,
    config::FsConfig,
    effect::Counters,
    flush::Flusher,
    health::Health,
    open::keep_house,
    read_ahead::OnTheirWay,
    shell::{Core, Shared},
    told::ToldTable,
    tree::Tree,
};

/// One over this is a view's share of the inodes that are kept in memory.
const INODES_SHARE: usize = 8;

/// A sealed layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sealed {
    /// Branch.
    pub branch: BranchId,
    /// Layer.
    pub layer: Layer,
}

impl Shared {
    /// What the database has answered, unless it is of a checkpoint that is gone.
    ///
    /// # Errors
    /// [`StoreError::NoLayer`], whatever the answer was: where a block is missing, too, that says why.
    pub(crate) async fn trusted<T>(&self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Some(sealed) = self.layer
            && !matches!(answer, Err(StoreError::Unavailable { .. }))
        {
            self.store.view(sealed.branch, sealed.layer).await?;
        }
        answer
    }
}

impl FileSystem {
    /// The tenant as it was at a checkpoint, whose `view` the store has given. `number` tells it from other views of this mount (0 is
    /// the head) in the cache, which all share.
    #[must_use]
    pub fn at(&self, sealed: Sealed, view: View, number: u16) -> Self {
        let head = &self.shared;
        let (limits, block_size) = {
            let tree = &head.core.lock().tree;
            (tree.limits, tree.block_size)
        };
        let counters = Counters { used_bytes: 0, used_inodes: 0, next_ino: u64::MAX };
        let tree = Tree::new(block_size as u32, limits, counters, 0);
        let shared = Arc::new(Shared {
            core: Mutex::new(Core::new(tree, None)),
            journal: head.journal.clone(),
            cache: head.cache.of_view(number),
            flusher: tokio::sync::Mutex::new(Flusher::idle(head, view.clone(), block_size)),
            committed: watch::Sender::new(0),
            health: Health::new(Instant::now(), head.config.give_up_after),
            config: FsConfig {
                read_only: true,
                max_inodes: head.config.max_inodes / INODES_SHARE,
                ..head.config.clone()
            },
            store: Arc::clone(&head.store),
            fence: head.fence.clone(),
            view: RwLock::new(Arc::new(view)),
            layer: Some(sealed),
            work: Arc::default(),
            is_watched: AtomicBool::new(false),
            on_their_way: OnTheirWay::default(),
            forgotten: Mutex::default(),
            reap: Arc::default(),
            sealed: Mutex::default(),
            is_deleted: AtomicBool::new(false),
            nameless: Mutex::default(),
            told: ToldTable::default(),
            kernel: std::sync::OnceLock::new(),
            soft_limit: AtomicU64::new(0),
            commits: Latencies::default(),
            refusals: AtomicU64::new(0),
            audit: Audit::off(),
        });
        tokio::spawn(keep_house(Arc::downgrade(&shared)).in_current_span());
        Self { shared }
    }

    /// The checkpoint is gone: what memory and the kernel have of it goes as well.
    pub fn forget_all(&self) {
        self.shared.forget_kernel_caches();
        self.shared.cache.clear();
    }
}
