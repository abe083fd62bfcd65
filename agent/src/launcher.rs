//! How the agent comes to a keeper: one trait, one launcher per way.

mod child;
mod host;
mod proof;
mod runtime;

use std::{fmt, time::Duration};

use tarbox_handover::Client;

pub use child::Child;
pub use host::Host;
pub(crate) use host::{Way, way};
pub(crate) use proof::prove;
pub use runtime::Runtime;

use crate::{
    failure::AgentError,
    settings::{LauncherKind, Settings},
};

/// How long a keeper may take to listen.
const LISTENS_WITHIN: Duration = Duration::from_secs(5);

/// A way to a keeper. Calls block.
pub trait Launcher: Send + Sync + fmt::Debug {
    /// Its name, as in the configuration.
    fn name(&self) -> &'static str;

    /// Connects to the keeper; starts it first where there is none and that is this launcher's business.
    ///
    /// # Errors
    /// Where none can be reached.
    fn connect(&self) -> Result<Client, AgentError>;

    /// How long somebody else may take to start the keeper before an agent that starts gives up; nothing where this launcher starts it.
    fn patience(&self) -> Duration {
        Duration::ZERO
    }

    /// The agent ends and nothing is staged: a keeper that this launcher started may go as well.
    fn release(&self, client: Client);
}

/// The launcher that the configuration names.
#[must_use]
pub fn of(settings: &Settings) -> Box<dyn Launcher> {
    match settings.launcher {
        LauncherKind::Child => Box::new(Child::new(settings)),
        LauncherKind::Host => Box::new(Host::new(settings)),
        LauncherKind::Runtime => Box::new(Runtime::new(settings.keeper_socket.clone())),
    }
}
