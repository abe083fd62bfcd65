//! A keeper that somebody else has started: the pod of another DaemonSet, a service of the host.

use std::{path::PathBuf, time::Duration};

use tarbox_handover::Client;

use super::Launcher;
use crate::failure::AgentError;

/// Agent and runtime come to a new node at once, each with an image to fetch.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub struct Runtime {
    socket: PathBuf,
}

impl Runtime {
    /// Uses the keeper that listens at `socket`.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }
}

impl Launcher for Runtime {
    fn name(&self) -> &'static str {
        "runtime"
    }

    fn connect(&self) -> Result<Client, AgentError> {
        Client::connect(&self.socket).map_err(AgentError::handover("reach the keeper"))
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }

    fn release(&self, _: Client) {}
}
