//! Requests that a dead process had done and perhaps not answered: they are told what it was going to say, and not done again.
//!
//! The journal's records carry the `unique` of the request that made them. What was left unanswered is known from the slots,
//! so the table has a line for each of those at most, and is dropped once all of them have been taken on.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustc_hash::{FxHashMap, FxHashSet};
use tarbox_types::Ino;

use crate::{
    audit::Doing,
    config::SyncMode,
    effect::{Outcome, Record},
    error::FsError,
    journal::Told,
    plan::{Caller, Planned},
    shell::Shared,
    tree::Tree,
};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct ToldTable {
    /// Whether there are any, so that the usual request takes no lock.
    any: AtomicBool,
    /// Whether requests that were left are being taken on.
    recovering: AtomicBool,
    table: Mutex<FxHashMap<u64, Told>>,
    /// Requests that have changed nothing, and that have been audited.
    audited: Mutex<FxHashSet<u64>>,
}

impl ToldTable {
    /// `recovering`: requests were left, done or not.
    pub(crate) fn new(told: impl IntoIterator<Item = Told>, audited: Vec<u64>, recovering: bool) -> Self {
        let table: FxHashMap<u64, Told> = told.into_iter().map(|told| (told.unique, told)).collect();
        Self {
            any: AtomicBool::new(!table.is_empty() || !audited.is_empty()),
            recovering: AtomicBool::new(recovering),
            table: Mutex::new(table),
            audited: Mutex::new(audited.into_iter().collect()),
        }
    }

    /// To be awaited before what takes long: requests that were left are taken on one after the other, and nothing is served
    /// before all of them wait or are answered.
    pub(crate) async fn let_others_begin(&self) {
        if self.recovering.load(Ordering::Acquire) {
            tokio::task::yield_now().await;
        }
    }

    /// What the request has been told.
    pub(crate) fn get(&self, unique: u64) -> Option<Told> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        self.table.lock().get(&unique).copied()
    }

    /// Whether the audit has had the request already.
    pub(crate) fn is_audited(&self, unique: u64) -> bool {
        self.any.load(Ordering::Acquire) && self.audited.lock().contains(&unique)
    }

    /// Inodes that are answers: the kernel may not know them yet.
    pub(crate) fn inodes(&self) -> Vec<Ino> {
        let table = self.table.lock();
        let inode = |told: &Told| match told.outcome {
            Outcome::Inode(ino) => Some(ino),
            Outcome::Done | Outcome::Count(_) => None,
        };
        table.values().filter_map(inode).collect()
    }

    /// Everybody has been told.
    pub(crate) fn clear(&self) {
        self.recovering.store(false, Ordering::Release);
        self.any.store(false, Ordering::Release);
        self.table.lock().clear();
        self.audited.lock().clear();
    }
}

impl Shared {
    /// [`Shared::change`] for the request of `caller`, unless that has been done before: then only its answer is found again.
    pub(crate) async fn once<T>(
        &self,
        caller: &Caller,
        doing: Doing<'_>,
        payload: &[u8],
        plan: impl Fn(&Tree) -> Planned<Option<Record>>,
        answer: impl Fn(&Tree, Outcome) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        if let Some(told) = self.told.get(caller.unique) {
            return self.tell_again(told, &answer).await;
        }
        let asked = self.audit.asked(caller, doing);
        let changed = self.change_as(asked.as_ref(), payload, plan, answer).await;
        match changed {
            Err(error @ (FsError::NoSpace | FsError::FileTooLarge)) => {
                self.refused(caller, doing, &error).await;
                Err(error)
            }
            changed => changed,
        }
    }

    async fn tell_again<T>(
        &self,
        told: Told,
        answer: &impl Fn(&Tree, Outcome) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        tracing::debug!(unique = told.unique, seq = told.seq, "a request that was done is answered");
        let value = self
            .look(|tree| {
                if let Outcome::Inode(ino) = told.outcome {
                    tree.node(ino)?;
                }
                Ok(answer(tree, told.outcome)?)
            })
            .await?;
        if self.config.sync_mode == SyncMode::Writethrough {
            self.commit_to(told.seq).await?;
        }
        Ok(value)
    }
}
