//! Whether changes are acknowledged: what is waited for, or why nothing more will be.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tarbox_store::StoreError;
use tokio::sync::watch;

use crate::error::FsError;

/// State of a mounted tenant towards its database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Serving,
    /// The database does not answer; what is cached is served, changes go into the journal.
    Waiting {
        since: Instant,
        cause: String,
    },
    /// The lease is lost: nothing of ours will ever be committed again.
    Lost(String),
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Health {
    state: watch::Sender<State>,
    /// Until when the lease counts.
    lease_until: Mutex<Instant>,
    /// How long callers wait while the database does not answer; `None` = as long as it takes.
    give_up_after: Option<Duration>,
    /// The head is being changed: whoever wants to change something waits.
    is_held: AtomicBool,
}

impl Health {
    pub(crate) fn new(lease_until: Instant, give_up_after: Option<Duration>) -> Self {
        Self {
            state: watch::Sender::new(State::Serving),
            lease_until: Mutex::new(lease_until),
            give_up_after,
            is_held: AtomicBool::new(false),
        }
    }

    /// The database refused or did not answer. Logged once per outage.
    pub(crate) fn waiting(&self, error: &StoreError) {
        self.state.send_if_modified(|state| match state {
            State::Serving => {
                let cause = chain(error);
                tracing::warn!(cause, "waiting for the database: changes are kept in the journal");
                *state = State::Waiting { since: Instant::now(), cause };
                true
            }
            State::Waiting { .. } | State::Lost(_) => false,
        });
    }

    /// The database answers again.
    pub(crate) fn recovered(&self) {
        self.state.send_if_modified(|state| match state {
            State::Waiting { since, .. } => {
                tracing::info!(after_ms = since.elapsed().as_millis() as u64, "the database answers again");
                *state = State::Serving;
                true
            }
            State::Serving | State::Lost(_) => false,
        });
    }

    /// Nothing will be committed any more.
    pub(crate) fn lost(&self, why: String) {
        self.state.send_if_modified(|state| {
            let is_news = !matches!(state, State::Lost(_));
            if is_news {
                tracing::error!(why, "changes are refused from now on; the journal is kept");
                *state = State::Lost(why);
            }
            is_news
        });
    }

    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub(crate) fn renewed(&self, until: Instant) {
        *self.lease_until.lock() = until;
        self.state.send_modify(|_| {});
    }

    /// Whether a change may be acknowledged now.
    ///
    /// # Errors
    /// I/O error once the lease is lost.
    pub(crate) fn may_acknowledge(&self) -> Result<bool, FsError> {
        if let State::Lost(why) = &*self.state.borrow() {
            return Err(FsError::Io(why.clone()));
        }
        Ok(!self.is_held() && *self.lease_until.lock() > Instant::now())
    }

    /// Keeps changes from being acknowledged, or lets them go on.
    pub(crate) fn hold(&self, held: bool) {
        self.is_held.store(held, Ordering::SeqCst);
        self.state.send_modify(|_| {});
    }

    pub(crate) fn is_held(&self) -> bool {
        self.is_held.load(Ordering::SeqCst)
    }

    /// Waits until something changed; not longer than a second, because the passing of time is a change too.
    pub(crate) async fn changed(&self) {
        let mut receiver = self.state.subscribe();
        let _ = tokio::time::timeout(Duration::from_secs(1), receiver.changed()).await;
    }

    /// Does what may have to wait for the database, as long as callers are to wait for it. What was acknowledged stays in the journal and is
    /// committed later all the same: only who waits is answered.
    ///
    /// # Cancel safety
    /// `work` is dropped where it takes too long.
    pub(crate) async fn or_give_up<T>(&self, work: impl Future<Output = T>) -> Result<T, FsError> {
        let Some(patience) = self.give_up_after else { return Ok(work.await) };
        tokio::select! {
            biased;
            done = work => Ok(done),
            cause = self.outage_of(patience) => {
                let message = format!("the database has not answered for {} s: {cause}", patience.as_secs_f64());
                Err(FsError::Io(message))
            }
        }
    }

    /// Returns when an outage has lasted so long; its cause.
    async fn outage_of(&self, patience: Duration) -> String {
        let mut state = self.state.subscribe();
        loop {
            let seen = state.borrow_and_update().clone();
            match seen {
                State::Waiting { since, cause } if since.elapsed() >= patience => return cause,
                State::Waiting { since, .. } => {
                    let left = patience.saturating_sub(since.elapsed());
                    let _ = tokio::time::timeout(left, state.changed()).await;
                }
                State::Serving | State::Lost(_) => {
                    // The sender lives as long as `self`.
                    let _ = state.changed().await;
                }
            }
        }
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    tarbox_types::Chain(error).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outage() -> StoreError {
        StoreError::Unavailable { url: "u".into(), source: "gone".into() }
    }

    async fn waits(health: &Health) -> Result<(), FsError> {
        health.or_give_up(std::future::pending()).await
    }

    #[tokio::test]
    async fn whoever_waits_is_answered_once_an_outage_has_lasted_as_long_as_was_said() {
        let patience = Duration::from_millis(80);
        let health = Health::new(Instant::now(), Some(patience));
        assert!(tokio::time::timeout(patience * 10, waits(&health)).await.is_err(), "no outage, no error");
        health.waiting(&outage());
        let begun = Instant::now();
        let Err(FsError::Io(why)) = waits(&health).await else { panic!("it is answered") };
        assert!(why.contains("0.08 s") && why.contains("gone"), "{why}");
        assert!(begun.elapsed() >= patience / 2);
        // What needs no database is done all the same.
        assert!(health.or_give_up(async {}).await.is_ok());
        health.recovered();
        assert!(tokio::time::timeout(patience * 10, waits(&health)).await.is_err(), "it is over");
    }

    #[tokio::test]
    async fn nobody_gives_up_where_nothing_was_said() {
        let health = Health::new(Instant::now(), None);
        health.waiting(&outage());
        assert!(tokio::time::timeout(Duration::from_millis(300), waits(&health)).await.is_err());
    }
}
