//! What happens, and when: drawn from a seed. Pure.

use std::{collections::BTreeMap, time::Duration};

use clap::ValueEnum;

use crate::rng::Rng;

/// What a run may be made of, as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Group {
    /// Mounters and stand-bys are killed.
    Mounter,
    /// Agents are killed.
    Agent,
    /// Keepers are killed.
    Keeper,
    /// Two of them are killed at once.
    Pairs,
    /// Each of them is stopped (SIGSTOP) for less than the watchdog's patience.
    Stop,
    /// A mounter is stopped for longer than that.
    Hang,
    /// A mounter runs out of memory.
    Oom,
    /// The database is stopped for seconds (PostgreSQL only).
    Database,
    /// Mounters are replaced by another build, and some are killed while they prove themselves.
    Upgrade,
    /// All mounters are replaced by another build, undisturbed, one first; then the next event comes.
    Rollout,
}

/// One kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Nothing: what applications wait for anyhow.
    Nothing,
    /// The mounter that serves is killed.
    Mounter,
    /// The one that stands by is killed.
    StandBy,
    /// The agent is killed, and started again after a while.
    Agent,
    /// The keeper is killed.
    Keeper,
    /// Who serves and who stands by, at once.
    MounterAndStandBy,
    /// Mounter and agent at once; the agent stays away for a while.
    MounterAndAgent,
    /// Mounter and keeper at once.
    MounterAndKeeper,
    /// Agent and keeper at once.
    AgentAndKeeper,
    /// The mounter is stopped for a while.
    StopMounter,
    /// The agent is stopped for a while.
    StopAgent,
    /// The keeper is stopped for a while.
    StopKeeper,
    /// The mounter is stopped and stays so.
    Hang,
    /// The mounter gets no more memory.
    OutOfMemory,
    /// The database is away for a while.
    Database,
    /// The mounter is replaced by another build.
    Upgrade,
    /// All mounters are.
    Rollout,
}

/// Each kind with the group it belongs to and how often it comes in one bag.
const KINDS: [(Kind, Option<Group>, usize); 17] = [
    (Kind::Nothing, None, 5),
    (Kind::Mounter, Some(Group::Mounter), 6),
    (Kind::StandBy, Some(Group::Mounter), 1),
    (Kind::Agent, Some(Group::Agent), 2),
    (Kind::Keeper, Some(Group::Keeper), 2),
    (Kind::MounterAndStandBy, Some(Group::Pairs), 1),
    (Kind::MounterAndAgent, Some(Group::Pairs), 1),
    (Kind::MounterAndKeeper, Some(Group::Pairs), 1),
    (Kind::AgentAndKeeper, Some(Group::Pairs), 1),
    (Kind::StopMounter, Some(Group::Stop), 1),
    (Kind::StopAgent, Some(Group::Stop), 1),
    (Kind::StopKeeper, Some(Group::Stop), 1),
    (Kind::Hang, Some(Group::Hang), 1),
    (Kind::OutOfMemory, Some(Group::Oom), 1),
    (Kind::Database, Some(Group::Database), 1),
    (Kind::Upgrade, Some(Group::Upgrade), 3),
    (Kind::Rollout, Some(Group::Rollout), 1),
];

/// Faults of a tenant's mounter that the agent counts, within [`FAULTS_WITHIN`]: with six its circuit opens, by design.
const MOST_FAULTS: usize = 3;
/// The agent forgets them after five minutes.
const FAULTS_WITHIN: Duration = Duration::from_secs(300);

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happens.
    pub kind: Kind,
    /// To which tenant (its number), where it happens to one.
    pub tenant: usize,
    /// Rest before it.
    pub after: Duration,
    /// How long it lasts, where it lasts.
    pub hold: Duration,
}

/// An endless sequence of events; the same from the same seed and the same times.
#[derive(Clone, Debug)]
pub struct Plan {
    rng: Rng,
    groups: Vec<Group>,
    tenants: usize,
    bag: Vec<Kind>,
    faults: BTreeMap<usize, Vec<Duration>>,
}

impl Plan {
    /// A plan of these groups for so many tenants (one at least).
    #[must_use]
    pub fn new(seed: u64, groups: &[Group], tenants: usize) -> Self {
        Self {
            rng: Rng::new(seed),
            groups: groups.to_vec(),
            tenants,
            bag: Vec::new(),
            faults: BTreeMap::new(),
        }
    }

    /// The next event; `elapsed` is the time since the run began.
    pub fn next(&mut self, elapsed: Duration) -> Event {
        if self.bag.is_empty() {
            self.fill();
        }
        let kind = self.bag.pop().unwrap_or(Kind::Nothing);
        let tenant = self.rng.below(self.tenants as u64) as usize;
        let kind = self.allowed(kind, tenant, elapsed);
        let (after, hold) = (self.millis(50, 700), self.hold(kind));
        Event { kind, tenant, after, hold }
    }

    /// A bag with each kind as often as it is to come, shuffled.
    fn fill(&mut self) {
        for (kind, group, count) in KINDS {
            if group.is_none_or(|group| self.groups.contains(&group)) {
                self.bag.extend(std::iter::repeat_n(kind, count));
            }
        }
        for last in (1..self.bag.len()).rev() {
            self.bag.swap(last, self.rng.below(last as u64 + 1) as usize);
        }
    }

    /// The kind, or a plain kill where the agent would give this tenant up.
    fn allowed(&mut self, kind: Kind, tenant: usize, elapsed: Duration) -> Kind {
        if !matches!(kind, Kind::Hang | Kind::OutOfMemory) {
            return kind;
        }
        let faults = self.faults.entry(tenant).or_default();
        faults.retain(|at| elapsed.saturating_sub(*at) < FAULTS_WITHIN);
        if faults.len() >= MOST_FAULTS {
            return Kind::Mounter;
        }
        faults.push(elapsed);
        kind
    }

    fn hold(&mut self, kind: Kind) -> Duration {
        match kind {
            // An agent that is back at once, or after its tenants' mounters were restarted without it.
            Kind::Agent | Kind::MounterAndAgent | Kind::AgentAndKeeper => self.millis(0, 2500),
            // Well below the watchdog's patience, five pings of 2 s.
            Kind::StopMounter | Kind::StopAgent | Kind::StopKeeper => self.millis(300, 4000),
            Kind::Database => self.millis(500, 6000),
            Kind::Nothing
            | Kind::Mounter
            | Kind::StandBy
            | Kind::Keeper
            | Kind::MounterAndStandBy
            | Kind::MounterAndKeeper
            | Kind::Hang
            | Kind::OutOfMemory
            | Kind::Upgrade
            | Kind::Rollout => Duration::ZERO,
        }
    }

    fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.rng.below(most - least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Group; 10] = [
        Group::Mounter,
        Group::Agent,
        Group::Keeper,
        Group::Pairs,
        Group::Stop,
        Group::Hang,
        Group::Oom,
        Group::Database,
        Group::Upgrade,
        Group::Rollout,
    ];

    fn events(seed: u64, groups: &[Group], count: u64) -> Vec<Event> {
        let mut plan = Plan::new(seed, groups, 3);
        (0..count).map(|n| plan.next(Duration::from_secs(n))).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_events_and_another_seed_others() {
        assert_eq!(events(7, &ALL, 100), events(7, &ALL, 100));
        assert_ne!(events(7, &ALL, 100), events(8, &ALL, 100));
    }

    #[test]
    fn one_bag_holds_every_kind_that_was_asked_for_and_no_other() {
        let bag: usize = KINDS.iter().map(|(_, _, count)| count).sum();
        let kinds = |groups: &[Group], count: usize| {
            let found: std::collections::BTreeSet<Kind> =
                events(1, groups, count as u64).iter().map(|event| event.kind).collect();
            found.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(kinds(&ALL, bag), KINDS.map(|(kind, ..)| kind));
        assert_eq!(kinds(&[Group::Agent, Group::Oom], 8), [Kind::Nothing, Kind::Agent, Kind::OutOfMemory]);
    }

    #[test]
    fn no_tenant_gets_so_many_faults_that_the_agent_gives_it_up() {
        for seed in 0..20 {
            let mut plan = Plan::new(seed, &[Group::Hang, Group::Oom], 2);
            let mut faults: Vec<(usize, Duration)> = Vec::new();
            for second in 0..2000 {
                let now = Duration::from_secs(second);
                let event = plan.next(now);
                if matches!(event.kind, Kind::Hang | Kind::OutOfMemory) {
                    faults.push((event.tenant, now));
                }
                let recent = |tenant| {
                    faults.iter().filter(|(of, at)| *of == tenant && now - *at < FAULTS_WITHIN).count()
                };
                assert!((0..2).all(|tenant| recent(tenant) <= MOST_FAULTS));
            }
            assert!(!faults.is_empty());
        }
    }
}
