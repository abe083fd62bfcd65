//! How patient the supervisor is.

use std::time::Duration;

/// How patient the supervisor is: every time and every count it decides by.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The delay before the second restart in a row; it doubles with each. The first is at once. Default 1 s.
    pub backoff_base: Duration,
    /// The longest delay between two restarts. Default 30 s.
    pub backoff_most: Duration,
    /// The delay after the second kill in a row of mounters that did not serve yet; it doubles with each, up to
    /// [`Policy::backoff_base`]. After the first there is none. Default 20 ms.
    pub backoff_kill: Duration,
    /// Serving for so long makes earlier crashes forgotten. Default 60 s.
    pub healthy_after: Duration,
    /// So many crashes within [`Policy::crash_window`] open the circuit. Default 6.
    /// A kill from outside of a mounter that served is none, nor is an end for want of the database.
    pub crash_limit: usize,
    /// The time within which crashes are counted. Default 5 min.
    pub crash_window: Duration,
    /// With the circuit open, one attempt is made so often, so that what mends by itself needs nobody. Default 60 s.
    pub broken_retry: Duration,
    /// With the circuit open, errors are answered when the outage has lasted so long, so that killed applications go away. Default 60 s.
    pub respond_after: Duration,
    /// A mounter that was told to serve serves within this time; what it waits for (lease, database) does not count. Default 10 s.
    pub start_limit: Duration,
    /// How often a mounter is asked how it is. Default 2 s.
    pub ping_every: Duration,
    /// The shell gives up a ping after this time; one that it never reports is given up after twice as long. Default 2 s.
    pub ping_limit: Duration,
    /// So many pings in a row without an answer are a hang. Counted, not timed: a pause of the supervisor itself is one miss. Default 5.
    pub hang_pings: u32,
    /// A request that *executes* for so long is a hang. One that waits is none. Default 30 s.
    pub hang_executing: Duration,
    /// Between the stack dump of a hanging mounter and its end. Default 1 s.
    pub dump_time: Duration,
    /// How long an effect that changes something (mount, spawn) may take before the machine is looked at instead. Default 20 s.
    pub effect_limit: Duration,
    /// How long to wait before a failed or unanswered effect is tried again, and before a kill is repeated. Default 1 s.
    pub effect_retry: Duration,
    /// Whether a stand-by of the same build is kept beside each serving mounter, so that a crash costs milliseconds. Default false.
    pub keep_stand_by: bool,
    /// How long a tenant has been served before its first stand-by is started: those that are staged beside it come first. Default 2 s.
    pub first_stand_by: Duration,
    /// How long after its predecessor a lost stand-by is replaced. Default 30 s.
    pub stand_by_again: Duration,
    /// Upgrade: the stand-by stands by within this time. Default 10 s.
    pub stand_by_limit: Duration,
    /// Upgrade: what executes in the old mounter may finish within this time; then, and [`Policy::drain_grace`] later, it is killed. Default 1 s.
    pub drain_limit: Duration,
    /// What a drained mounter may take to end. Default 1 s.
    pub drain_grace: Duration,
    /// Upgrade: after TakeOver the new one serves within this time, waiting not counted. Default 5 s.
    pub switch_limit: Duration,
    /// Upgrade: serving for so long without a fault makes the new build the tenant's. Default 10 s.
    pub proof: Duration,
    /// How long the shell waits for one flush at unstage before it reports that it was not done; it is repeated. Default 30 s.
    pub flush_limit: Duration,
    /// How long one step of the unmount ladder may take. Default 10 s.
    pub unmount_limit: Duration,
    /// How long a mounter may take to end by itself once it is unmounted, and again once told to stop. Default 10 s.
    pub end_limit: Duration,
    /// A mounter killed for want of memory gets so many percent of what it had. Default 150.
    pub memory_growth_percent: u64,
    /// But never more than so many percent of what was wanted. Default 400.
    pub memory_ceiling_percent: u64,
    /// Upgrades of a node: so many tenants at once after the first. Default 4.
    pub upgrades_at_once: usize,
}

impl Default for Policy {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            backoff_base: s(1),
            backoff_most: s(30),
            backoff_kill: Duration::from_millis(20),
            healthy_after: s(60),
            crash_limit: 6,
            crash_window: s(300),
            broken_retry: s(60),
            respond_after: s(60),
            start_limit: s(10),
            ping_every: s(2),
            ping_limit: s(2),
            hang_pings: 5,
            hang_executing: s(30),
            dump_time: s(1),
            effect_limit: s(20),
            effect_retry: s(1),
            keep_stand_by: false,
            first_stand_by: s(2),
            stand_by_again: s(30),
            stand_by_limit: s(10),
            drain_limit: s(1),
            drain_grace: s(1),
            switch_limit: s(5),
            proof: s(10),
            flush_limit: s(30),
            unmount_limit: s(10),
            end_limit: s(10),
            memory_growth_percent: 150,
            memory_ceiling_percent: 400,
            upgrades_at_once: 4,
        }
    }
}

impl Policy {
    /// How long to wait with the next start after so many setbacks in a row.
    #[must_use]
    pub fn pause(&self, streak: u32) -> Duration {
        doubled(self.backoff_base, streak).min(self.backoff_most)
    }

    /// How long to wait with the next start after so many kills from outside, none of which met a mounter that served.
    #[must_use]
    pub fn pause_after_kill(&self, kills: u32) -> Duration {
        doubled(self.backoff_kill, kills).min(self.backoff_base)
    }
}

/// Nothing the first time, then `base`, twice as much, and so on.
fn doubled(base: Duration, times: u32) -> Duration {
    times.checked_sub(1).map_or(Duration::ZERO, |times| base.saturating_mul(1 << times.min(20)))
}
