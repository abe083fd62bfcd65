//! A keeper that the agent starts where none is there. It is in a session of its own and outlives the agent.

use std::{
    fs::OpenOptions,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{self, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use parking_lot::Mutex;
use tarbox_handover::{
    Client, HandoverError, ProcessId,
    process::{send_signal, wait_exit},
};

use super::{LISTENS_WITHIN, Launcher};
use crate::{failure::AgentError, settings::Settings};

/// How long an idle keeper may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct Child {
    socket: PathBuf,
    program: PathBuf,
    log: PathBuf,
    /// Those that were started by this agent, to be reaped.
    started: Mutex<Vec<process::Child>>,
}

impl Child {
    /// A keeper of the settings' executable, at the settings' socket.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self {
            socket: settings.keeper_socket.clone(),
            program: settings.keeper.clone(),
            log: settings.state_dir.join("keeper.log"),
            started: Mutex::new(Vec::new()),
        }
    }

    /// The keeper that is there already; `None` where nobody listens. One that answers late is there.
    pub(super) fn reach(&self) -> Result<Option<Client>, AgentError> {
        use std::io::ErrorKind::{ConnectionRefused, NotFound};
        match Client::connect(&self.socket) {
            Ok(client) => Ok(Some(client)),
            Err(HandoverError::Io { source, .. })
                if matches!(source.kind(), ConnectionRefused | NotFound) =>
            {
                Ok(None)
            }
            Err(error) => Err(AgentError::handover("reach the keeper")(error)),
        }
    }

    /// Starts one; its pid.
    pub(super) fn start(&self) -> Result<u32, AgentError> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.map_err(AgentError::io("open the keeper's log", &self.log))?;
        let mut started = self.started.lock();
        started.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let child = Command::new(&self.program)
            .arg("--socket")
            .arg(&self.socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Out of the reach of the terminal's signals.
            .process_group(0)
            .spawn()
            .map_err(AgentError::io("start the keeper", &self.program))?;
        let pid = child.id();
        started.push(child);
        Ok(pid)
    }

    /// Ends the one that was started last: nobody has come to it yet.
    pub(super) fn abandon(&self) {
        if let Some(mut child) = self.started.lock().pop() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(super) fn wait_for_it(&self) -> Result<Client, AgentError> {
        let deadline = Instant::now() + LISTENS_WITHIN;
        loop {
            match Client::connect(&self.socket) {
                Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                outcome => return outcome.map_err(AgentError::handover("reach the keeper that was started")),
            }
        }
    }
}

impl Launcher for Child {
    fn name(&self) -> &'static str {
        "child"
    }

    fn connect(&self) -> Result<Client, AgentError> {
        if let Some(client) = self.reach()? {
            return Ok(client);
        }
        self.start()?;
        self.wait_for_it()
    }

    fn release(&self, mut client: Client) {
        let is_idle = client.list().is_ok_and(|entries| entries.is_empty())
            && client.children().is_ok_and(|children| children.iter().all(|child| child.exited.is_some()));
        let keeper = ProcessId::of(client.keeper_pid()).and_then(ProcessId::open);
        drop(client);
        if let Ok(keeper) = keeper
            && is_idle
        {
            let _ = send_signal(&keeper, Signal::SIGTERM as i32);
            // An earlier agent may have started it: then it is no child, whose end could be waited for below.
            if !wait_exit(&keeper, ENDS_WITHIN).unwrap_or(false) {
                tracing::warn!("the idle keeper does not end");
                return;
            }
        }
        self.started.lock().iter_mut().filter(|_| is_idle).for_each(|child| {
            let _ = child.wait();
        });
    }
}
