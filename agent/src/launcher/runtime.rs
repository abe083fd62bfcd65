//! A keeper that somebody else has started: the pod of another DaemonSet, a service of the host.

use std::path::PathBuf;

use tarbox_handover::Client;

use super::Launcher;
use crate::failure::AgentError;

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

    fn release(&self, _: Client) {}
}
