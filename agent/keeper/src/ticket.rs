//! When a mounter is restarted while nobody attends. Pure: the time is an argument.

use std::time::{Duration, Instant};

use tarbox_handover::message::exit;
use tarbox_handover::protocol::Exited;

/// How long to wait before the first restart, the second and so on; the last counts for all further ones. Fixed, because
/// whoever knows better attends.
const PAUSES: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
];
/// Whoever lived that long has not crashed at its start: counting begins anew.
const HEALTHY: Duration = Duration::from_secs(60);

/// What is known of the process that serves a tenant.
#[derive(Debug, Default)]
pub(crate) enum Serving {
    /// There has been none.
    #[default]
    Never,
    /// It lives, since then.
    Since(Instant),
    /// It has ended, and is not to be restarted.
    Ended,
    /// It has died, and is to be replaced from then on.
    Due(Instant),
}

/// The restarts of one tenant's mounter.
#[derive(Debug, Default)]
pub(crate) struct Restarts {
    serving: Serving,
    /// Deaths in a row, each soon after its start.
    crashes: usize,
}

impl Restarts {
    /// A process serves, whoever started it.
    pub(crate) fn started(&mut self, now: Instant) {
        self.serving = Serving::Since(now);
    }

    /// The process that served has ended.
    pub(crate) fn ended(&mut self, now: Instant, how: Exited) {
        if !exit::wants_restart(how.code) {
            self.serving = Serving::Ended;
            return;
        }
        if matches!(self.serving, Serving::Since(since) if now.duration_since(since) >= HEALTHY) {
            self.crashes = 0;
        }
        self.again(now);
    }

    /// It could not be started: the same as if it had died at once.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.again(now);
    }

    /// Somebody attends and decides: what has been counted is void, what is dead stays due for when he leaves.
    pub(crate) fn attended(&mut self) {
        self.crashes = 0;
    }

    /// When a new process is to be started; None if there is no need of one.
    pub(crate) fn due(&self) -> Option<Instant> {
        match self.serving {
            Serving::Due(at) => Some(at),
            Serving::Never | Serving::Since(_) | Serving::Ended => None,
        }
    }

    fn again(&mut self, now: Instant) {
        self.serving = Serving::Due(now + PAUSES[self.crashes.min(PAUSES.len() - 1)]);
        self.crashes += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KILLED: Exited = Exited { code: None, signal: Some(9) };

    fn pauses(restarts: &mut Restarts, mut now: Instant, deaths: usize) -> Vec<u64> {
        let mut pauses = Vec::new();
        for _ in 0..deaths {
            restarts.started(now);
            restarts.ended(now, KILLED);
            let due = restarts.due().expect("due");
            pauses.push(due.duration_since(now).as_secs());
            now = due;
        }
        pauses
    }

    #[test]
    fn the_first_restart_is_at_once_and_a_crash_loop_slows_down() {
        let now = Instant::now();
        assert_eq!(pauses(&mut Restarts::default(), now, 8), [0, 1, 2, 5, 10, 30, 30, 30]);
    }

    #[test]
    fn a_minute_of_health_and_attendance_count_as_a_new_beginning() {
        let now = Instant::now();
        let mut restarts = Restarts::default();
        assert_eq!(pauses(&mut restarts, now, 3), [0, 1, 2]);
        restarts.started(now);
        restarts.ended(now + HEALTHY, KILLED);
        assert_eq!(restarts.due(), Some(now + HEALTHY));
        assert_eq!(pauses(&mut restarts, now, 2), [1, 2]);
        restarts.attended();
        assert_eq!(pauses(&mut restarts, now, 2), [0, 1]);
    }

    #[test]
    fn only_what_died_is_restarted() {
        let now = Instant::now();
        let due = |code: Option<i32>| {
            let mut restarts = Restarts::default();
            restarts.started(now);
            restarts.ended(now, Exited { code, signal: None });
            restarts.due().is_some()
        };
        assert!(!due(Some(exit::ENDED)) && !due(Some(exit::USAGE)) && !due(Some(exit::CONFIGURATION)));
        assert!(due(Some(1)) && due(Some(exit::DRAINED)) && due(None));
        assert!(Restarts::default().due().is_none(), "what never served is nobody's loss");
    }
}
