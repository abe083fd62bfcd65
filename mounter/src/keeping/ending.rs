//! The end that was asked for: everything is committed and unmounted, unless a second signal cuts it short.

use std::{io::Write, path::PathBuf, time::Duration};

use tarbox_handover::{
    ToMounter,
    message::{Stop, exit},
    protocol::Exited,
};
use tarbox_proto::control::v1::StatusResponse;
use tarbox_runtime::Signal;
use tarbox_types::{ByteSize, ErrorKind};
use tokio::time::Instant;

use super::{
    failure_of,
    life::{Inbound, Life},
    supervising::{Keeping, note_words, shown},
};
use crate::{
    control::client::Mounter,
    failure::Failure,
    mounts, native,
    unmount::{self, Ladder},
};

/// How long committing at the end may take before its progress is shown; then each pause is twice the one before.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// Longest pause between two lines of progress.
const PROGRESS_EVERY_MOST: Duration = Duration::from_secs(60);
/// How long the serving process may take to say how far it is.
const STATUS: Duration = Duration::from_secs(1);
/// How long SIGKILL may take. A process that is in the kernel's hands takes as long as those do.
const DEATH: Duration = Duration::from_secs(10);

impl Keeping {
    /// Commits, unmounts, ends.
    pub(super) async fn end(mut self, signal: Signal) -> Result<(), Failure> {
        tracing::info!(%signal, "ending: committing, then unmounting");
        let server = self.machine.record().server.as_ref().map(|server| server.process);
        let Some(mut life) = server.and_then(|process| self.lives.remove(&process)) else {
            return Err(self.nobody_serves());
        };
        self.lives.clear();
        // Beforehand, so that little is left to do once nobody can use the mount any more.
        life.signal(nix::libc::SIGTERM);
        take_away_if_mounted(self.point.clone(), self.native.clone()).await;
        // One that is dead already is heard of below.
        let _ = life.tell(&ToMounter::Stop(Stop {}), &[]);
        let (mut pause, mut at) = (PROGRESS_EVERY, Instant::now() + PROGRESS_EVERY);
        loop {
            tokio::select! {
                Some(inbound) = self.events.recv() => match inbound {
                    Inbound::Says(process, message, _) if process == life.process => note_words(&mut life, message),
                    Inbound::Died(process, how) if process == life.process => {
                        return self.ended(how, life.words.take());
                    }
                    // Of a stand-by that is not needed any more, or for the machine, which decides nothing any more.
                    Inbound::Says(..) | Inbound::Died(..) | Inbound::Event(_) => {}
                },
                () = tokio::time::sleep_until(at) => {
                    self.show_progress().await;
                    pause = (pause * 2).min(PROGRESS_EVERY_MOST);
                    at = Instant::now() + pause;
                }
                signal = self.shutdown.asked() => return Err(self.given_up(signal, life).await),
            }
        }
    }

    fn ended(&self, how: Exited, words: Option<String>) -> Result<(), Failure> {
        if how.code == Some(exit::ENDED) {
            return Ok(());
        }
        let unsaid = || {
            format!(
                "the serving process ended ({}) before the last changes of tenant `{}` were committed: they are kept in the journal; mount it again",
                shown(how),
                self.tenant.name
            )
        };
        Err(failure_of(how.code, words.unwrap_or_else(unsaid)))
    }

    fn nobody_serves(&self) -> Failure {
        let message = format!(
            "ended while no serving process could be started: what was not committed of tenant `{}` is kept in the journal until this machine restarts; mount it again",
            self.tenant.name
        );
        Failure::refused(ErrorKind::Unavailable, message)
    }

    async fn status(&self) -> Option<StatusResponse> {
        let mounter = Mounter::writer_of(&self.state_dir, self.tenant.id)?;
        let asked = async { mounter.connect(STATUS).await.ok()?.status().await.ok() };
        tokio::time::timeout(STATUS, asked).await.ok().flatten()
    }

    async fn show_progress(&self) {
        let Some(now) = self.status().await else { return };
        let left = now.journal_sequence.saturating_sub(now.committed_sequence);
        let waiting = match now.waiting_for.as_str() {
            "" => String::new(),
            what => format!(", waiting for {what}"),
        };
        // A lost terminal is no reason to stop committing.
        let _ = writeln!(
            std::io::stderr(),
            "tarbox-mount: committing: {left} changes to go, {} of journal{waiting}",
            ByteSize(now.journal_bytes)
        );
    }

    async fn given_up(&mut self, signal: Signal, life: Life) -> Failure {
        let left = self.status().await;
        let left = left.map(|now| now.journal_sequence.saturating_sub(now.committed_sequence).to_string());
        self.kill(life).await;
        let message = format!(
            "ended by a second {signal} with {} changes of tenant `{}` not committed: they are kept in the journal until this machine restarts; mount the tenant again to commit them",
            left.as_deref().unwrap_or("some"),
            self.tenant.name
        );
        Failure::refused(ErrorKind::Unavailable, message)
    }

    /// Kills it, and returns when it is certainly dead.
    async fn kill(&mut self, life: Life) {
        life.signal(nix::libc::SIGKILL);
        let died = async {
            while let Some(inbound) = self.events.recv().await {
                if matches!(inbound, Inbound::Died(process, _) if process == life.process) {
                    return;
                }
            }
        };
        if tokio::time::timeout(DEATH, died).await.is_err() {
            tracing::error!(pid = life.process.pid, "a process does not die of SIGKILL");
        }
    }
}

/// Unmounts; where something is open there, detaches: what was acknowledged until then is kept all the same.
pub(super) async fn take_away_if_mounted(point: PathBuf, native: Vec<PathBuf>) {
    let unmounted = tokio::task::spawn_blocking(move || {
        if !matches!(mounts::at(&point), Ok(Some(mount)) if mount.is_tarbox()) {
            return Ok(());
        }
        native::take_away(&point, &native)?;
        unmount::unmount(&point, Ladder::Normal).or_else(|failure| {
            tracing::warn!(reason = %failure.report(), "detaching the mount although it is in use");
            unmount::unmount(&point, Ladder::Lazy)
        })
    });
    match unmounted.await {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => tracing::error!(reason = %failure.report(), "the mount stays behind"),
        Err(error) => tracing::error!(%error, "the mount stays behind"),
    }
}
