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
    /// Kills in a row of processes that did not serve yet.
    kills: u32,
}

impl Restarts {
    /// How patient we are.
    pub(super) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// A process was killed from outside, which says nothing about the program; returns when the next one is to be started: at
    /// once if it served, however often, and soon if it did not.
    pub(super) fn killed(&mut self, now: Instant, did_serve: bool) -> Instant {
        if did_serve {
            self.kills = 0;
            return now;
        }
        self.kills += 1;
        now + self.policy.pause_after_kill(self.kills - 1)
    }

    /// A process has died by itself that lived so long; returns when the next one is to be started.
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
        self.policy.pause(streak)
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

    #[test]
    fn who_is_killed_from_outside_is_replaced_at_once_or_soon_however_often() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(restarts.killed(now, true), now);
        }
        let pauses: Vec<_> =
            (0..8).map(|_| restarts.killed(now, false).duration_since(now).as_millis()).collect();
        assert_eq!(pauses, [0, 20, 40, 80, 160, 320, 640, 1000]);
        assert_eq!(restarts.killed(now, true), now);
        assert!(!restarts.is_broken());
    }
}
