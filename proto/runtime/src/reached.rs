//! Whether something that a program needs answers: never yet, now, or no longer.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// What was found the last time that somebody asked.
#[derive(Debug, Default)]
pub struct Reached(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    #[default]
    NeverYet,
    Now,
    Lost {
        since: Instant,
        why: String,
    },
}

impl Reached {
    /// It has answered.
    pub fn answered(&self) {
        *self.state() = State::Now;
    }

    /// It does not answer, for this reason.
    pub fn failed(&self, why: String) {
        let mut state = self.state();
        let since = match &*state {
            State::NeverYet => return,
            State::Now => Instant::now(),
            State::Lost { since, .. } => *since,
        };
        *state = State::Lost { since, why };
    }

    /// Whether it has answered once.
    #[must_use]
    pub fn has_been(&self) -> bool {
        !matches!(*self.state(), State::NeverYet)
    }

    /// Whether it answers now.
    ///
    /// # Errors
    /// A sentence that says since when it does not, and why.
    pub fn is_now(&self, what: &str) -> Result<(), String> {
        match &*self.state() {
            State::NeverYet => Err(format!("{what} has not been reached yet")),
            State::Now => Ok(()),
            State::Lost { since, why } => {
                Err(format!("{what} has not answered for {} s: {why}", since.elapsed().as_secs()))
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_shows_with_its_cause_and_does_not_undo_that_it_was_reached() {
        let database = Reached::default();
        database.failed("refused".into());
        assert!(!database.has_been());
        assert_eq!(database.is_now("the database"), Err("the database has not been reached yet".into()));
        database.answered();
        assert_eq!(database.is_now("the database"), Ok(()));
        database.failed("refused".into());
        assert!(database.has_been());
        let why = database.is_now("the database").expect_err("an outage");
        assert!(
            why.starts_with("the database has not answered for 0 s") && why.ends_with("refused"),
            "{why}"
        );
        database.answered();
        assert_eq!(database.is_now("the database"), Ok(()));
    }
}
