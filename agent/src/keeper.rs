//! The keeper, for the agent's tasks: one connection that attends, made anew where the keeper was replaced.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tarbox_handover::{Client, HandoverError, ProcessId};
use tokio::sync::watch;

use crate::{failure::AgentError, launcher::Launcher};

/// How often the keeper is looked at when nobody asks it for anything.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often an agent that starts asks for a keeper that is not there yet.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// The connection to the keeper.
#[derive(Debug)]
pub struct Keeper {
    launcher: Box<dyn Launcher>,
    client: Mutex<Option<Client>>,
    /// The process of the one that was reached last.
    pid: AtomicU32,
    /// Which one that was, where it said so.
    identity: Mutex<Option<ProcessId>>,
    /// How many keepers there have been: who has given something to one of them gives it to the next as well.
    generation: watch::Sender<u64>,
}

impl Keeper {
    /// Connects and attends: from now on the keeper's tickets rest. Blocks as long as the launcher has patience.
    ///
    /// # Errors
    /// Where there is no keeper.
    pub fn attend(launcher: Box<dyn Launcher>) -> Result<Self, AgentError> {
        let client = attending_soon(launcher.as_ref())?;
        let pid = AtomicU32::new(client.keeper_pid());
        let identity = Mutex::new(client.keeper());
        let generation = watch::Sender::new(1);
        Ok(Self { launcher, client: Mutex::new(Some(client)), pid, identity, generation })
    }

    /// The keeper's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// The launcher's name.
    #[must_use]
    pub fn launcher(&self) -> &'static str {
        self.launcher.name()
    }

    /// Changes when there is another keeper.
    #[must_use]
    pub fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Asks the keeper for something; once more where it was replaced meanwhile. Others wait their turn: what is asked is answered at once,
    /// the end of a process only where it has ended.
    ///
    /// # Errors
    /// Where it refuses, or there is none.
    pub async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        doing: &'static str,
        ask: impl Fn(&mut Client) -> Result<T, HandoverError> + Send + 'static,
    ) -> Result<T, AgentError> {
        let keeper = self.clone();
        let asked = tokio::task::spawn_blocking(move || keeper.ask_now(doing, ask)).await;
        asked.unwrap_or_else(|_| Err(AgentError::Unusable("the agent is ending".to_owned())))
    }

    fn ask_now<T>(
        &self,
        doing: &'static str,
        ask: impl Fn(&mut Client) -> Result<T, HandoverError>,
    ) -> Result<T, AgentError> {
        let mut client = self.client.lock();
        if let Some(there) = client.as_mut() {
            match ask(there) {
                Err(HandoverError::Closed | HandoverError::Io { .. }) => {}
                // Slow is not gone: answers that come too late are known by their numbers, and dropped.
                outcome => return outcome.map_err(AgentError::handover(doing)),
            }
        }
        *client = None;
        let mut next = attending(self.launcher.as_ref())?;
        let is_another = self.is_another(&next);
        self.pid.store(next.keeper_pid(), Ordering::Relaxed);
        *self.identity.lock() = next.keeper();
        let outcome = ask(&mut next);
        *client = Some(next);
        drop(client);
        if is_another {
            tracing::warn!("the keeper was replaced");
            self.generation.send_modify(|generation| *generation += 1);
        }
        outcome.map_err(AgentError::handover(doing))
    }

    /// Whether it is not the one that was there before. One that does not say who it is may be.
    fn is_another(&self, next: &Client) -> bool {
        let before = *self.identity.lock();
        before.is_none() || next.keeper() != before
    }

    /// Notices within moments when the keeper is replaced, even if nobody wants anything of it. Never returns.
    pub async fn look_after(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Err(error) = self.ask("look at the keeper", |client| client.children().map(drop)).await {
                tracing::error!(
                    error = error.report(),
                    "the keeper does not answer: nothing is restarted meanwhile"
                );
            }
        }
    }

    /// Lets go of the keeper; it goes as well if nothing is left and the launcher had started it.
    pub fn release(&self) {
        if let Some(client) = self.client.lock().take() {
            self.launcher.release(client);
        }
    }
}

/// Once somebody has started the keeper.
fn attending_soon(launcher: &dyn Launcher) -> Result<Client, AgentError> {
    let deadline = Instant::now() + launcher.patience();
    let mut is_told = false;
    loop {
        match attending(launcher) {
            Err(error) if Instant::now() < deadline => {
                if !is_told {
                    tracing::info!(error = error.report(), "waiting for the keeper");
                }
                is_told = true;
                thread::sleep(ASK_AGAIN);
            }
            outcome => return outcome,
        }
    }
}

fn attending(launcher: &dyn Launcher) -> Result<Client, AgentError> {
    let mut client = launcher.connect()?;
    client.attend().map_err(AgentError::handover("attend"))?;
    Ok(client)
}
