//! Carrying out what the state machine orders.

use tarbox_handover::{
    HandoverError, ToMounter,
    message::{Drain, Stop, TakeOver},
};
use tarbox_proto::control::v1::Phase;
use tarbox_runtime::stacks;
use tarbox_supervisor::{
    Answer, Build, Effect, EffectId, Event, Failure as Fault, Notice, Order, Outcome, Process, Report, Role,
};
use tarbox_types::ErrorKind;

use super::{
    life::{Inbound, Life},
    responding::Responding,
    supervising::Keeping,
};
use crate::{
    control::client::Mounter,
    failure::{Chain, Failure},
};

impl Keeping {
    /// Carries out effects in their order; returns what became of those that are done at once.
    pub(super) fn carry_out(&mut self, effects: Vec<Effect>) -> Vec<Event> {
        effects.into_iter().filter_map(|Effect { id, order }| self.begin_order(id, order)).collect()
    }

    fn begin_order(&mut self, id: EffectId, order: Order) -> Option<Event> {
        match order {
            // Nothing outlives this process that could go on from a record; it is its own keeper.
            Order::Persist(_) | Order::Ticket(_) => {}
            // Done before anything else, once: where that mount is gone, so is the reason to serve.
            Order::Mount => return Some(Event::EffectDone { id, outcome: Outcome::Done }),
            Order::Spawn { role, build, memory: _ } => return Some(self.spawn(id, role, build)),
            Order::SendTakeOver(process) => return self.tell(id, process, &ToMounter::TakeOver(TakeOver {})),
            Order::SendDrain(process, limit) => {
                let millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                return self.tell(id, process, &ToMounter::Drain(Drain { millis }));
            }
            Order::SendStop(process) => return self.tell(id, process, &ToMounter::Stop(Stop {})),
            Order::Kill(process) => {
                if let Some(life) = self.lives.get(&process) {
                    life.signal(nix::libc::SIGKILL);
                }
            }
            Order::Ping(process) => self.ping(process),
            Order::StackDump(process) => self.dump_stacks(process),
            Order::RespondErrors(is_wanted) => self.respond(is_wanted),
            // Parts of an unstage, which is asked of nobody here: this process ends in its own way.
            Order::Flush(_) | Order::Unmount(_) | Order::ForgetState => {}
            Order::Report(report) => tell_people(report),
            Order::Observe => return Some(Event::Observed(self.observed())),
            Order::ArmTimer(at) => self.alarm = Some(at),
        }
        None
    }

    fn spawn(&mut self, id: EffectId, role: Role, build: Build) -> Event {
        let Some(executable) = self.executables.get(&build).cloned() else {
            let message = format!("there is no executable {}", build.0);
            return Event::EffectFailed { id, failure: Fault { kind: ErrorKind::NotFound, message } };
        };
        match Life::start(&self.order, (build, &executable), role, &self.kept, &self.inbox) {
            Ok(life) => {
                let process = life.process;
                self.lives.insert(process, life);
                Event::EffectDone { id, outcome: Outcome::Spawned(process) }
            }
            Err(failure) => Event::EffectFailed { id, failure: fault(&failure) },
        }
    }

    fn tell(&self, id: EffectId, process: Process, message: &ToMounter) -> Option<Event> {
        let told =
            self.lives.get(&process).map_or(Err(HandoverError::Closed), |life| life.tell(message, &[]));
        let error = told.err()?;
        let message = Chain(&error).to_string();
        Some(Event::EffectFailed { id, failure: Fault { kind: error.kind(), message } })
    }

    fn ping(&self, process: Process) {
        let (state_dir, tenant, inbox) = (self.state_dir.clone(), self.tenant.id, self.inbox.clone());
        let (limit, pid) = (self.machine.policy().ping_limit, process.pid);
        tokio::spawn(async move {
            let status = async {
                let mounter = Mounter::of_process(&state_dir, tenant, pid)?;
                mounter.connect(limit).await.ok()?.status().await.ok()
            };
            let status = tokio::time::timeout(limit, status).await.ok().flatten();
            let event = match status.filter(|status| status.pid == pid) {
                Some(status) => {
                    let executing = std::time::Duration::from_millis(status.longest_executing_ms);
                    let is_serving = status.phase() == Phase::Serving;
                    let answer = Answer::new(is_serving, executing, &status.waiting_for);
                    Event::PingAnswered { process, answer }
                }
                None => Event::PingUnanswered { process },
            };
            let _ = inbox.send(Inbound::Event(event)).await;
        });
    }

    fn dump_stacks(&self, process: Process) {
        let (directory, name) = (self.state_dir.join("dumps"), self.tenant.id.to_string());
        tokio::task::spawn_blocking(move || match stacks::dump(&directory, &name, process.pid) {
            Ok(path) => tracing::warn!(path = %path.display(), "the stacks of a hanging process"),
            Err(error) => tracing::warn!(%error, "no stacks of a hanging process"),
        });
    }

    fn respond(&mut self, is_wanted: bool) {
        self.responding = None;
        if !is_wanted {
            return;
        }
        match self.kept.devices.first().map(Responding::begin) {
            Some(Ok(responding)) => {
                tracing::error!("calls are answered with EIO until a process serves again");
                self.responding = Some(responding);
            }
            Some(Err(failure)) => {
                tracing::error!(reason = %failure.report(), "calls wait: they cannot be answered with EIO");
            }
            None => {}
        }
    }
}

fn fault(failure: &Failure) -> Fault {
    Fault { kind: failure.kind(), message: failure.report().to_string() }
}

fn tell_people(report: Report) {
    match report {
        Report::Condition(condition) => tracing::debug!(?condition, "condition"),
        Report::Notice(Notice::Setback { why, delay }) => {
            tracing::warn!(why, ?delay, "another process is started");
        }
        Report::Notice(Notice::Hung { process, why }) => {
            tracing::error!(pid = process.pid, why, "the serving process hangs: it is killed");
        }
        Report::Notice(Notice::Upgraded { .. }) => {
            tracing::info!("the executable now on disk has proved itself");
        }
        Report::Notice(Notice::UpgradeFailed { why, .. }) => {
            tracing::error!(why, "the executable now on disk does not take over: the one before goes on");
        }
        Report::Notice(notice) => tracing::warn!(?notice, "notice"),
    }
}
