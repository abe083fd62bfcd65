//! Which tenants of a node are upgraded when: one first, then a few at a time, none after a failure.

use std::collections::{BTreeSet, VecDeque};

use tarbox_types::TenantId;

use crate::Policy;

/// The upgrade of a node's tenants to one build. Not kept on disk: an agent that is started again begins another, which
/// those that run the build already are no part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgrades {
    waiting: VecDeque<TenantId>,
    running: BTreeSet<TenantId>,
    /// Those that no build could be kept running for. Whatever keeps them from serving may keep another build from it too.
    broken: BTreeSet<TenantId>,
    /// Whether the first one has proved the build.
    is_proven: bool,
    /// Nobody else is begun.
    has_failed: bool,
}

impl Upgrades {
    /// Plans to upgrade tenants, each once: those that are served, of which the first is the canary, then those that are `broken`.
    #[must_use]
    pub fn new(
        served: impl IntoIterator<Item = TenantId>,
        broken: impl IntoIterator<Item = TenantId>,
    ) -> Self {
        let mut waiting = VecDeque::new();
        let broken: Vec<TenantId> = broken.into_iter().collect();
        for tenant in served.into_iter().chain(broken.iter().copied()) {
            if !waiting.contains(&tenant) {
                waiting.push_back(tenant);
            }
        }
        let broken = broken.into_iter().collect();
        Self { waiting, running: BTreeSet::new(), broken, is_proven: false, has_failed: false }
    }

    /// Who has not been begun.
    pub fn waiting(&self) -> impl Iterator<Item = TenantId> + '_ {
        self.waiting.iter().copied()
    }

    /// Begins as many as may be begun now: each is to be given [`crate::Event::UpgradeWanted`].
    pub fn next(&mut self, policy: &Policy) -> Vec<TenantId> {
        let room = if self.is_proven { policy.upgrades_at_once.max(1) } else { 1 };
        let mut begun = Vec::new();
        while !self.has_failed && self.running.len() < room {
            let Some(tenant) = self.waiting.pop_front() else { break };
            self.running.insert(tenant);
            begun.push(tenant);
        }
        begun
    }

    /// A tenant runs the build.
    pub fn upgraded(&mut self, tenant: TenantId) {
        self.is_proven |= self.running.remove(&tenant);
    }

    /// A tenant was unstaged, or got another build: it says nothing about this one.
    pub fn withdrawn(&mut self, tenant: TenantId) {
        self.waiting.retain(|waiting| *waiting != tenant);
        self.running.remove(&tenant);
    }

    /// A tenant's upgrade failed and was rolled back. Where the tenant was broken before, that says nothing about the build.
    pub fn failed_at(&mut self, tenant: TenantId) {
        self.has_failed |= self.running.remove(&tenant) && !self.broken.contains(&tenant);
    }
}
