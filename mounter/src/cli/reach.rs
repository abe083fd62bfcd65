//! The short way to a mounter on this machine: its control socket.

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;
use tarbox_checkpoints::Reach;
use tarbox_store::{Holder, Seal};
use tarbox_types::TenantId;

use super::context::Context;
use crate::control::client::Mounter;

/// Asks who holds a tenant to seal, where that runs on this machine; elsewhere its heartbeat brings it.
pub(super) struct BySocket {
    state_dir: PathBuf,
    tenant: TenantId,
    limit: Duration,
}

impl BySocket {
    /// `limit`: how long it may take to answer.
    pub(super) fn new(context: &Context, tenant: TenantId, limit: Duration) -> Self {
        Self { state_dir: context.settings.state_dir.clone(), tenant, limit }
    }
}

#[async_trait]
impl Reach for BySocket {
    async fn ask(&self, holder: &Holder, seal: &Seal) {
        let here = Mounter::writer_of(&self.state_dir, self.tenant);
        let Some(mounter) = here.filter(|mounter| mounter.note.session == holder.session) else { return };
        let asked = async { mounter.connect(self.limit).await?.seal(seal).await };
        if let Err(failure) = asked.await {
            // One that dies meanwhile has a successor, which its heartbeat tells.
            tracing::debug!(reason = %failure.report(), "the mounter could not be asked directly");
        }
    }
}
