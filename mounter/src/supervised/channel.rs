//! The link to the supervisor, for asynchronous code: a thread waits for what it says.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
    thread,
};

use tarbox_handover::{FromMounter, HandoverError, MounterLink, ToMounter};
use tokio::sync::mpsc;

use crate::failure::{Chain, Failure};

/// Messages that may wait: a life has fewer.
const WAITING: usize = 8;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Channel {
    link: Arc<MounterLink>,
    messages: mpsc::Receiver<Told>,
}

/// What came.
#[derive(Debug)]
pub(super) enum Told {
    /// A message with its descriptors.
    Message(ToMounter, Vec<OwnedFd>),
    /// The supervisor is gone. Said once.
    Gone,
}

pub(super) fn failed(doing: &'static str) -> impl FnOnce(HandoverError) -> Failure {
    move |error| Failure::Part {
        kind: error.kind(),
        doing: format!("{doing} as the supervisor says"),
        source: error.into(),
    }
}

impl Channel {
    pub(super) fn new(link: MounterLink) -> Result<Self, Failure> {
        let link = Arc::new(link);
        let (sender, messages) = mpsc::channel(WAITING);
        let reading = Arc::clone(&link);
        let thread = thread::Builder::new().name("link".to_owned());
        thread.spawn(move || listen(&reading, &sender)).map_err(|source| Failure::Io {
            doing: "start a thread for the link to the supervisor".to_owned(),
            source,
        })?;
        Ok(Self { link, messages })
    }

    /// Says something. Whether anybody listens is not this process's concern.
    pub(super) fn say(&self, message: &FromMounter) {
        self.hand(message, &[]);
    }

    /// As [`Channel::say`], with descriptors.
    pub(super) fn hand(&self, message: &FromMounter, descriptors: &[BorrowedFd<'_>]) {
        match self.link.try_send(message, descriptors) {
            Ok(true) | Err(HandoverError::Closed) => {}
            Ok(false) => tracing::warn!(?message, "the supervisor does not read"),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), ?message, "the supervisor could not be told")
            }
        }
    }

    /// The next message; never returns once the supervisor is known to be gone.
    ///
    /// # Cancel safety
    /// Safe: a message that was not returned is returned by the next call.
    pub(super) async fn told(&mut self) -> Told {
        match self.messages.recv().await {
            Some(told) => told,
            None => std::future::pending().await,
        }
    }
}

fn listen(link: &MounterLink, sender: &mpsc::Sender<Told>) {
    loop {
        let told = match link.receive() {
            Ok(Some((message, descriptors))) => Told::Message(message, descriptors),
            Ok(None) => Told::Gone,
            // Of a later release, perhaps: what it does not understand a mounter leaves alone.
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the supervisor said something that is not understood");
                match error {
                    HandoverError::Io { .. } | HandoverError::Closed => Told::Gone,
                    _ => continue,
                }
            }
        };
        let is_last = matches!(told, Told::Gone);
        if is_last {
            tracing::info!("the supervisor is gone");
        }
        if sender.blocking_send(told).is_err() || is_last {
            return;
        }
    }
}
