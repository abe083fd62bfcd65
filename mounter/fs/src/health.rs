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
    /// The head is being changed: whoever wants to change something waits.
    is_held: AtomicBool,
}

impl Health {
    pub(crate) fn new(lease_until: Instant) -> Self {
        Self {
            state: watch::Sender::new(State::Serving),
            lease_until: Mutex::new(lease_until),
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
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    tarbox_types::Chain(error).to_string()
}
