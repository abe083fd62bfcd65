//! What is done when something happens to the serving process, or to this one.

use std::{fs::File, future::pending, path::PathBuf, sync::Arc};

use tarbox_handover::{
    FromMounter, Kept, ToMounter,
    message::{Drain, Mode, Stop, TakeOver, exit},
    protocol::Exited,
};
use tarbox_runtime::Shutdown;
use tarbox_store::Tenant;
use tokio::{signal::unix::Signal, time::Instant};

use super::{
    failure_of,
    life::{Heard, Life},
    order::Order,
    restarts::Restarts,
};
use crate::{engine, failure::Failure};

/// Everything that is kept, and who serves.
pub(super) struct Keeping {
    pub(super) order: Order,
    pub(super) kept: Kept,
    pub(super) point: PathBuf,
    pub(super) tenant: Tenant,
    pub(super) state_dir: PathBuf,
    pub(super) shutdown: Shutdown,
    pub(super) hangup: Signal,
    /// The one that serves, or is to.
    pub(super) current: Option<Life>,
    /// The one that is to replace it.
    pub(super) spare: Option<Life>,
    /// When another one is to be started.
    pub(super) due: Option<Instant>,
    /// Another executable serves that has not proved itself yet.
    pub(super) probation: Option<Probation>,
    pub(super) restarts: Restarts,
}

/// See [`Keeping::probation`].
#[derive(Debug)]
pub(super) struct Probation {
    previous: Arc<File>,
    until: Instant,
}

/// What became of the first process.
#[derive(PartialEq)]
enum Begun {
    Serving,
    Ended,
}

/// What woke us.
enum Event {
    Current(Heard),
    Spare(Heard),
    Hangup,
    End(tarbox_runtime::Signal),
    Clock,
}

impl Keeping {
    /// Keeps the mount served until it is gone. `ready` is called once, when it is served for the first time.
    pub(super) async fn run(mut self, ready: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        if self.begin().await? == Begun::Ended {
            return Ok(());
        }
        engine::widen_read_ahead(&self.point);
        ready()?;
        loop {
            match self.event().await {
                Event::Current(Heard::Says(message)) => self.hear_current(message),
                Event::Current(Heard::Died(how)) => {
                    if let Some(outcome) = self.current_died(how) {
                        return outcome;
                    }
                }
                Event::Spare(Heard::Says(message)) => self.hear_spare(message),
                Event::Spare(Heard::Died(how)) => self.spare_died(how),
                Event::Hangup => self.upgrade(),
                Event::End(signal) => return self.end(signal).await,
                Event::Clock => self.clock(),
            }
        }
    }

    /// The first process: if it cannot serve, that is the end.
    async fn begin(&mut self) -> Result<Begun, Failure> {
        let executable = Arc::clone(&self.order.executable);
        let mut life = Life::start(&self.order, &executable, Mode::Serve, &self.kept)?;
        loop {
            tokio::select! {
                heard = life.next() => match heard {
                    Heard::Says(FromMounter::Serving(_)) => break,
                    Heard::Says(message) => note_words(&mut life, message),
                    // Unmounted, or asked to end, before it came to that.
                    Heard::Died(Exited { code: Some(exit::ENDED), .. }) => return Ok(Begun::Ended),
                    Heard::Died(how) => {
                        let words = life.words.take();
                        let unsaid = || format!("the serving process ended before it served: {}", shown(how));
                        return Err(failure_of(how.code, words.unwrap_or_else(unsaid)));
                    }
                },
                // What it has begun it gives back; it is told by its socket's end that it is not wanted.
                signal = self.shutdown.asked() => {
                    life.tell(&ToMounter::Stop(Stop {}), &[]);
                    tracing::info!(%signal, "ending before anything was served");
                }
            }
        }
        life.is_serving = true;
        self.current = Some(life);
        Ok(Begun::Serving)
    }

    async fn event(&mut self) -> Event {
        let alarm = self.alarm();
        let clock = async {
            match alarm {
                Some(at) => tokio::time::sleep_until(at).await,
                None => pending().await,
            }
        };
        tokio::select! {
            heard = next(&mut self.current) => Event::Current(heard),
            heard = next(&mut self.spare) => Event::Spare(heard),
            Some(()) = self.hangup.recv() => Event::Hangup,
            signal = self.shutdown.asked() => Event::End(signal),
            () = clock => Event::Clock,
        }
    }

    fn alarm(&self) -> Option<Instant> {
        let lives = [&self.current, &self.spare].into_iter().flatten();
        let deadlines = lives.filter_map(|life| life.deadline);
        deadlines.chain(self.due).chain(self.probation.as_ref().map(|probation| probation.until)).min()
    }

    fn hear_current(&mut self, message: FromMounter) {
        let Some(life) = &mut self.current else { return };
        match message {
            FromMounter::Serving(serving) => {
                life.is_serving = true;
                life.deadline = None;
                tracing::info!(
                    pid = life.id.pid,
                    replayed = serving.replayed,
                    recovered = serving.recovered,
                    micros = serving.micros,
                    "another process serves"
                );
            }
            message => note_words(life, message),
        }
    }

    /// The end of the serving process; `Some` where it is the end of it all.
    fn current_died(&mut self, how: Exited) -> Option<Result<(), Failure>> {
        let life = self.current.take()?;
        if how.code == Some(exit::ENDED) {
            return Some(Ok(()));
        }
        let now = Instant::now();
        if how.code != Some(exit::DRAINED) {
            let words = life.words.as_deref().unwrap_or("it said nothing");
            tracing::warn!(pid = life.id.pid, how = %shown(how), words, "the serving process has died");
        }
        if self.spare.as_ref().is_some_and(|spare| spare.is_standing_by) {
            self.switch(now, &life);
            return None;
        }
        // Not ready: it would only be in the way of one that is known to work.
        self.spare = None;
        if let Some(probation) = self.probation.take() {
            tracing::error!("the executable now on disk does not serve: back to the one before");
            self.order.executable = probation.previous;
            self.due = Some(now);
        } else if how.code == Some(exit::DRAINED) {
            self.due = Some(now);
        } else {
            let was_killed = life.words.is_none() && how.signal == Some(nix::libc::SIGKILL);
            self.due = Some(if was_killed {
                self.restarts.killed(now, life.is_serving)
            } else {
                self.restarts.died(now, now.duration_since(life.since))
            });
            if self.restarts.is_broken() {
                tracing::error!("the serving process dies again and again: it is tried more rarely");
            }
        }
        self.clock();
        None
    }

    /// The old process is dead: the stand-by serves.
    fn switch(&mut self, now: Instant, old: &Life) {
        let Some(mut spare) = self.spare.take() else { return };
        spare.tell(&ToMounter::TakeOver(TakeOver {}), &[]);
        let policy = self.restarts.policy();
        spare.deadline = Some(now + policy.switch_limit);
        self.probation = Some(Probation { previous: Arc::clone(&old.executable), until: now + policy.proof });
        self.order.executable = Arc::clone(&spare.executable);
        spare.since = now;
        self.current = Some(spare);
    }

    /// SIGHUP: prepares a process of the executable that is now on disk.
    fn upgrade(&mut self) {
        if self.spare.is_some()
            || self.probation.is_some()
            || !self.current.as_ref().is_some_and(|life| life.is_serving)
        {
            tracing::warn!("no other executable can take over now: one is being started or has just begun");
            return;
        }
        let started = self
            .order
            .on_disk()
            .and_then(|executable| Life::start(&self.order, &executable, Mode::StandBy, &self.kept));
        match started {
            Ok(mut spare) => {
                tracing::info!(pid = spare.id.pid, "preparing the executable now on disk to take over");
                spare.deadline = Some(Instant::now() + self.restarts.policy().stand_by_limit);
                self.spare = Some(spare);
            }
            Err(failure) => {
                tracing::error!(reason = %failure.report(), "the executable now on disk cannot be started")
            }
        }
    }

    fn hear_spare(&mut self, message: FromMounter) {
        let Some(spare) = &mut self.spare else { return };
        let FromMounter::StandingBy(_) = message else { return note_words(spare, message) };
        spare.is_standing_by = true;
        spare.deadline = None;
        let policy = self.restarts.policy();
        if let Some(current) = &mut self.current {
            let millis = policy.drain_limit.as_millis() as u64;
            current.tell(&ToMounter::Drain(Drain { millis }), &[]);
            current.deadline = Some(Instant::now() + policy.drain_limit + policy.drain_grace);
        }
    }

    fn spare_died(&mut self, how: Exited) {
        let Some(spare) = self.spare.take() else { return };
        let words = spare.words.as_deref().unwrap_or("it said nothing");
        tracing::error!(how = %shown(how), words, "the executable now on disk cannot take over: the one before goes on");
    }

    /// Does what is due by the clock.
    fn clock(&mut self) {
        let now = Instant::now();
        if self.spare.as_ref().is_some_and(|spare| spare.deadline.is_some_and(|at| at <= now)) {
            tracing::error!("the executable now on disk does not get ready: the one before goes on");
            self.spare = None;
        }
        if let Some(life) = &mut self.current
            && life.deadline.is_some_and(|at| at <= now)
        {
            // What it leaves is in its slots and in the journal; its death is seen by its pidfd.
            tracing::error!(pid = life.id.pid, "the serving process does not answer in time: it is killed");
            life.deadline = None;
            life.words.get_or_insert_with(|| "it did not answer in time".to_owned());
            life.signal(nix::libc::SIGKILL);
        }
        if self.probation.as_ref().is_some_and(|probation| probation.until <= now) {
            self.probation = None;
        }
        if self.due.is_some_and(|at| at <= now) {
            self.due = None;
            self.restart(now);
        }
    }

    fn restart(&mut self, now: Instant) {
        match Life::start(&self.order, &self.order.executable.clone(), Mode::Serve, &self.kept) {
            Ok(life) => self.current = Some(life),
            Err(failure) => {
                tracing::error!(reason = %failure.report(), "no serving process can be started");
                self.due = Some(self.restarts.died(now, std::time::Duration::ZERO));
            }
        }
    }
}

async fn next(life: &mut Option<Life>) -> Heard {
    match life {
        Some(life) => life.next().await,
        None => pending().await,
    }
}

fn note_words(life: &mut Life, message: FromMounter) {
    if let FromMounter::Failed(failed) = message {
        life.words = Some(failed.message);
    }
}

/// How a process has ended, for a log line.
pub(super) fn shown(how: Exited) -> String {
    match (how.code, how.signal) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "nobody knows how".to_owned(),
    }
}
