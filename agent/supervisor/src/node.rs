//! Which tenants of a node are upgraded when: one first, then a few at a time, none after a failure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use tarbox_types::TenantId;

use crate::{Build, Policy};

/// What the node is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeOrder {
    /// Give this tenant [`crate::Event::UpgradeWanted`].
    Upgrade {
        /// Which tenant.
        tenant: TenantId,
        /// To which build.
        build: Build,
    },
    /// All are upgraded.
    Finished {
        /// To which build.
        build: Build,
    },
    /// No further one is begun: this one failed.
    Stopped {
        /// Which tenant.
        tenant: TenantId,
        /// Why.
        why: String,
    },
}

/// The upgrade of a node's tenants to one build. Persist it with the tenants' records; resume with [`Upgrades::resume`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgrades {
    build: Build,
    waiting: VecDeque<TenantId>,
    running: BTreeSet<TenantId>,
    /// Whether the first one has proved the build.
    is_proven: bool,
    /// Who failed, and why: nobody else is begun.
    failed: BTreeMap<TenantId, String>,
}

impl Upgrades {
    /// Plans to upgrade `tenants` to `build`; the first is the canary.
    #[must_use]
    pub fn new(build: Build, tenants: impl IntoIterator<Item = TenantId>) -> Self {
        let mut waiting = VecDeque::new();
        for tenant in tenants {
            if !waiting.contains(&tenant) {
                waiting.push_back(tenant);
            }
        }
        Self { build, waiting, running: BTreeSet::new(), is_proven: false, failed: BTreeMap::new() }
    }

    /// The build that is rolled out.
    #[must_use]
    pub fn build(&self) -> &Build {
        &self.build
    }

    /// Who failed, and why.
    #[must_use]
    pub fn failed(&self) -> &BTreeMap<TenantId, String> {
        &self.failed
    }

    /// Who has not been begun.
    pub fn waiting(&self) -> impl Iterator<Item = TenantId> + '_ {
        self.waiting.iter().copied()
    }

    /// Begins as many as may be begun now.
    pub fn next(&mut self, policy: &Policy) -> Vec<NodeOrder> {
        let room = if self.is_proven { policy.upgrades_at_once.max(1) } else { 1 };
        let mut orders = Vec::new();
        while self.failed.is_empty() && self.running.len() < room {
            let Some(tenant) = self.waiting.pop_front() else { break };
            self.running.insert(tenant);
            orders.push(NodeOrder::Upgrade { tenant, build: self.build.clone() });
        }
        orders
    }

    /// A tenant runs the build.
    pub fn upgraded(&mut self, policy: &Policy, tenant: TenantId) -> Vec<NodeOrder> {
        if !self.running.remove(&tenant) {
            return Vec::new();
        }
        self.is_proven = true;
        self.go_on(policy)
    }

    /// A tenant was unstaged, or got another build: it says nothing about this one.
    pub fn withdrawn(&mut self, policy: &Policy, tenant: TenantId) -> Vec<NodeOrder> {
        let was_waiting = self.waiting.contains(&tenant);
        self.waiting.retain(|waiting| *waiting != tenant);
        if !self.running.remove(&tenant) && !was_waiting {
            return Vec::new();
        }
        self.go_on(policy)
    }

    /// A tenant's upgrade failed and was rolled back.
    pub fn failed_at(&mut self, tenant: TenantId, why: String) -> Vec<NodeOrder> {
        if !self.running.remove(&tenant) {
            return Vec::new();
        }
        let is_first = self.failed.is_empty();
        self.failed.insert(tenant, why.clone());
        if is_first { vec![NodeOrder::Stopped { tenant, why }] } else { Vec::new() }
    }

    /// After a restart: those under way are ordered again, which a tenant that has done it answers at once.
    #[must_use]
    pub fn resume(&self) -> Vec<NodeOrder> {
        self.running
            .iter()
            .map(|tenant| NodeOrder::Upgrade { tenant: *tenant, build: self.build.clone() })
            .collect()
    }

    fn go_on(&mut self, policy: &Policy) -> Vec<NodeOrder> {
        if self.running.is_empty() && self.waiting.is_empty() && self.failed.is_empty() {
            return vec![NodeOrder::Finished { build: self.build.clone() }];
        }
        self.next(policy)
    }
}
