//! Snapshots that others ask for: the heartbeat brings them, the journal takes them, and the commit that ends with one seals the layer.
//!
//! What was acknowledged before is in the journal before, so the layer holds it.

use std::sync::{Arc, Weak};

use smallvec::smallvec;
use tarbox_store::Seal;

use crate::{
    effect::{Effect, Outcome, Record},
    error::FsError,
    health::chain,
    plan::Planned,
    shell::Shared,
    tree::Tree,
};

impl Tree {
    fn seal(&self, seal: &Seal) -> Planned<Option<Record>> {
        Ok(Some(Record {
            unique: 0,
            counters: self.counters,
            outcome: Outcome::Done,
            effects: smallvec![Effect::Seal(seal.clone())],
        }))
    }
}

impl Shared {
    /// Seals a layer that holds everything acknowledged before the call; returns when it is committed.
    async fn seal(&self, seal: &Seal) -> Result<(), FsError> {
        self.change(&[], |tree| tree.seal(seal), |_, _| Ok(())).await?;
        Ok(self.commit_to(self.journal.last_seq()).await?)
    }
}

/// Begins to seal what a heartbeat asks for and nobody here does or has done: it is asked for until the layer is noted.
/// In a task of its own, because it may have to wait for heartbeats. A record too many would do no harm: the same request seals once.
pub(crate) fn begin(shared: &Arc<Shared>, seals: &[Seal]) {
    let new: Vec<Seal> = {
        let mut known = shared.sealed.lock();
        // What is no longer asked for need not be remembered.
        known.retain(|request| seals.iter().any(|seal| seal.request == *request));
        seals.iter().filter(|seal| known.insert(seal.request.clone())).cloned().collect()
    };
    if !new.is_empty() {
        tokio::spawn(tracing::Instrument::in_current_span(seal_all(Arc::downgrade(shared), new)));
    }
}

/// Seals at once what is asked for by another way than a heartbeat.
pub(crate) async fn now(shared: &Shared, seal: &Seal) -> Result<(), FsError> {
    if !shared.sealed.lock().insert(seal.request.clone()) {
        return Ok(());
    }
    let sealed = shared.seal(seal).await;
    if sealed.is_err() {
        shared.sealed.lock().remove(&seal.request);
    }
    sealed
}

async fn seal_all(weak: Weak<Shared>, seals: Vec<Seal>) {
    for seal in seals {
        let Some(shared) = weak.upgrade() else { return };
        match shared.seal(&seal).await {
            Ok(()) => tracing::info!(name = seal.name, request = seal.request, "a checkpoint is made"),
            Err(error) => {
                tracing::warn!(name = seal.name, error = chain(&error), "a checkpoint cannot be made now");
                shared.sealed.lock().remove(&seal.request);
            }
        }
    }
}
