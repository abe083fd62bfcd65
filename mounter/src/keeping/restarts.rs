//! When the next process is started. Pure: the time is an argument.

use std::time::Duration;

use tarbox_supervisor::Policy;
use tokio::time::Instant;

/// Deaths, as far as they matter for the next start. The numbers are those of the agent's supervisor.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    policy: Policy,
    crashes: Vec<Instant>,
    streak: u32,
}

impl Restarts {
    /// How patient we are.
    pub(super) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// A process has died that lived so long; returns when the next one is to be started.
    pub(super) fn died(&mut self, now: Instant, lived: Duration) -> Instant {
        if lived >= self.policy.healthy_after {
            self.streak = 0;
            self.crashes.clear();
        }
        self.crashes.retain(|at| now.duration_since(*at) < self.policy.crash_window);
        self.crashes.push(now);
        now + self.pause()
    }

    /// Whether it has died so often that something must be wrong.
    pub(super) fn is_broken(&self) -> bool {
        self.crashes.len() >= self.policy.crash_limit
    }

    fn pause(&mut self) -> Duration {
        let streak = self.streak;
        self.streak += 1;
        if self.is_broken() {
            return self.policy.backoff_most;
        }
        match streak {
            0 => Duration::ZERO,
            n => self.policy.backoff_base.saturating_mul(1 << (n - 1).min(20)).min(self.policy.backoff_most),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(restarts: &mut Restarts, now: Instant, lived: u64, deaths: usize) -> Vec<u64> {
        let died = |_| restarts.died(now, Duration::from_secs(lived)).duration_since(now).as_secs();
        (0..deaths).map(died).collect()
    }

    #[test]
    fn the_first_restart_is_at_once_and_a_crash_loop_slows_down() {
        let mut restarts = Restarts::default();
        assert_eq!(pauses(&mut restarts, Instant::now(), 0, 5), [0, 1, 2, 4, 8]);
        assert!(!restarts.is_broken());
        assert_eq!(pauses(&mut restarts, Instant::now(), 0, 2), [30, 30]);
        assert!(restarts.is_broken());
    }

    #[test]
    fn who_has_served_for_long_is_replaced_at_once() {
        assert_eq!(pauses(&mut Restarts::default(), Instant::now(), 60, 20), [0; 20]);
    }
}
