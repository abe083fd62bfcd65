//! Carrying out what the state machine orders. What may take long is done beside the task and reports by itself.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
    sync::Arc,
};

use nix::{
    fcntl::{AtFlags, OFlag},
    unistd::{Gid, Uid, fchownat},
};
use tarbox_handover::{
    Kept, ProcessId, SpawnSpec, ToMounter,
    message::{Drain, Mode, Stop},
    process::send_signal,
    protocol::{ROLE_SERVE, ROLE_STAND_BY},
};
use tarbox_runtime::stacks;
use tarbox_supervisor::{Build, Event, Failure, Order, Outcome, Process, Role, State, Ticket};
use tarbox_types::ByteSize;

use super::{
    Control, Staged, beside, control,
    mounters::Child,
    mounting::{self, blocking},
    observe::{self, Known},
    shell::{Inbound, Shell},
    spec,
};
use crate::{failure::AgentError, host::walk::each_below, node::Node};

/// A mounter's log beyond this is begun anew at the next start.
const MOST_LOG_BYTES: u64 = 1 << 20;
/// SIGKILL.
const KILL: i32 = 9;

/// What has to be reported of an order that was given.
pub(super) enum Reports {
    /// Nothing, or later.
    Nothing,
    /// It is done.
    Done,
    /// It could not be done.
    Failed(Failure),
}

fn failure(error: &AgentError) -> Failure {
    Failure { kind: error.kind(), message: error.report() }
}

fn of(outcome: Result<(), AgentError>) -> Reports {
    match outcome {
        Ok(()) => Reports::Nothing,
        Err(error) => Reports::Failed(failure(&error)),
    }
}

impl Shell {
    /// Begins an order; returns what is to be reported at once.
    pub(super) async fn begin(&mut self, id: u64, order: Order) -> Reports {
        match order {
            // Written by the caller before anything else.
            Order::Persist(_) => {}
            Order::Mount => self.mount(id),
            Order::Spawn { role, build, memory } => self.spawn(id, role, build, memory),
            Order::SendTakeOver(process) => return of(self.take_over(process).await),
            Order::SendDrain(process, limit) => {
                let millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                return self.tell(id, process, ToMounter::Drain(Drain { millis }));
            }
            Order::SendStop(process) => return self.tell(id, process, ToMounter::Stop(Stop {})),
            Order::Kill(process) => kill(process),
            Order::Ping(process) => self.ping(process),
            Order::StackDump(process) => self.stack_dump(process),
            Order::RespondErrors(on) => {
                let key = self.key();
                let done =
                    self.node.keeper.ask("answer with errors", move |client| client.respond(&key, on)).await;
                self.complain(done);
            }
            Order::Flush(process) => self.flush(id, process),
            Order::Unmount(step) => {
                let (node, staged, kept) = (self.node.clone(), self.staged.clone(), self.kept.clone());
                self.beside(id, async move { mounting::unmount(&node, staged, kept, step).await });
            }
            Order::Ticket(ticket) => {
                let done = self.ticket(ticket).await;
                self.complain(done);
            }
            Order::Report(report) => self.report(report),
            Order::Observe => self.observe(id),
            Order::ForgetState => return self.forget_state().await,
            Order::ArmTimer(at) => self.timer = Some(at),
        }
        Reports::Nothing
    }

    pub(super) fn key(&self) -> String {
        self.staged.tenant.to_string()
    }

    fn control(&self, process: Process) -> Control {
        let reader = self.staged.wish.many_readers.then_some(process.pid);
        self.node.control_of(self.staged.tenant, self.staged.user, reader)
    }

    fn complain(&self, outcome: Result<(), AgentError>) {
        if let Err(error) = outcome {
            tracing::error!(tenant = %self.staged.tenant, error = error.report(), "an order was not carried out");
        }
    }

    /// Does something beside the task, and reports whether it is done.
    fn beside(&self, id: u64, work: impl Future<Output = Result<(), AgentError>> + Send + 'static) {
        let inbox = self.inbox.clone();
        beside(async move {
            let event = match work.await {
                Ok(()) => Event::EffectDone { id, outcome: Outcome::Done },
                Err(error) => Event::EffectFailed { id, failure: failure(&error) },
            };
            let _ = inbox.send(Inbound::Event(event)).await;
        });
    }

    fn mount(&mut self, id: u64) {
        let (node, staged, inbox) = (self.node.clone(), self.staged.clone(), self.inbox.clone());
        let secrets = self.secrets.clone();
        beside(async move {
            let inbound = match mounting::mount(&node, &staged, secrets).await {
                Ok(kept) => Inbound::Mounted { effect: id, kept: Box::new(kept) },
                Err(error) => Inbound::Event(Event::EffectFailed { id, failure: failure(&error) }),
            };
            let _ = inbox.send(inbound).await;
        });
    }

    fn spawn(&mut self, id: u64, role: Role, build: Build, memory: ByteSize) {
        let (node, staged, inbox, kept) =
            (self.node.clone(), self.staged.clone(), self.inbox.clone(), self.kept.clone());
        beside(async move {
            let order = SpawnOrder { role, build, memory };
            let inbound = match spawn(&node, &staged, kept, order, &inbox).await {
                Ok(child) => Inbound::Spawned { effect: id, child: Box::new(child) },
                Err(error) => Inbound::Event(Event::EffectFailed { id, failure: failure(&error) }),
            };
            let _ = inbox.send(inbound).await;
        });
    }

    async fn take_over(&self, process: Process) -> Result<(), AgentError> {
        let (id, key) = (ProcessId::from(process), self.key());
        let link = self.children.get(&process).and_then(|child| child.link().ok());
        self.node
            .keeper
            .ask("let the stand-by take over", move |client| {
                // A keeper that was replaced a moment ago does not know it yet; one that does is told nothing new.
                if let Some(link) = &link {
                    client.watch(&key, ROLE_STAND_BY, id, link.as_fd())?;
                }
                client.promote(id)
            })
            .await
    }

    fn tell(&self, id: u64, process: Process, message: ToMounter) -> Reports {
        match self.children.get(&process) {
            Some(child) if child.is_linked => {
                of(child.tell(&message).map_err(AgentError::handover("tell the mounter what to do")))
            }
            Some(_) => {
                self.tell_by_call(id, process, message);
                Reports::Nothing
            }
            None => of(Err(no_channel(process))),
        }
    }

    /// Tells a mounter over its control socket what it cannot be told over its link.
    fn tell_by_call(&self, id: u64, process: Process, message: ToMounter) {
        let (control, inbox, limit) =
            (self.control(process), self.inbox.clone(), self.node.policy.ping_limit);
        beside(async move {
            let told = match message {
                ToMounter::Drain(drain) => control.drain(drain.millis, limit).await,
                ToMounter::Stop(_) => control.stop(limit).await,
                // Who has lost its link before it served has ended.
                ToMounter::Start(_) | ToMounter::TakeOver(_) => Err(no_channel(process)),
            };
            if let Err(error) = told {
                let _ =
                    inbox.send(Inbound::Event(Event::EffectFailed { id, failure: failure(&error) })).await;
            }
        });
    }

    fn ping(&self, process: Process) {
        let (control, inbox, limit) =
            (self.control(process), self.inbox.clone(), self.node.policy.ping_limit);
        beside(async move {
            let event = match control.status(limit).await {
                // A successor may answer at the same socket.
                Ok(status) if status.pid == process.pid => {
                    let answer = control::answer_of(&status);
                    // One that was taken up from an earlier agent has introduced itself to that one only.
                    let _ = inbox.send(Inbound::Version(process, status.version)).await;
                    Event::PingAnswered { process, answer }
                }
                Ok(_) | Err(_) => Event::PingUnanswered { process },
            };
            let _ = inbox.send(Inbound::Event(event)).await;
        });
    }

    fn stack_dump(&self, process: Process) {
        let (directory, key) = (self.node.settings.state_dir.join("dumps"), self.key());
        tokio::task::spawn_blocking(move || match stacks::dump(&directory, &key, process.pid) {
            Ok(path) => {
                tracing::warn!(tenant = key, path = %path.display(), "the stacks of a hanging mounter")
            }
            Err(error) => tracing::warn!(tenant = key, %error, "no stacks of a hanging mounter"),
        });
    }

    fn flush(&self, id: u64, process: Process) {
        let (control, limit) = (self.control(process), self.node.policy.flush_limit);
        self.beside(id, async move { control.flush(limit).await.map(drop) });
    }

    async fn ticket(&self, ticket: Option<Ticket>) -> Result<(), AgentError> {
        let key = self.key();
        let given = match ticket {
            None => None,
            Some(Ticket { build, memory }) => {
                let (node, staged) = (self.node.clone(), self.staged.clone());
                Some(blocking(move || material(&node, &staged, &build, memory)).await?)
            }
        };
        self.node
            .keeper
            .ask("leave a restart ticket", move |client| match &given {
                None => client.ticket(&key, None),
                Some((spec, executable, log)) => {
                    client.ticket(&key, Some((spec, &[executable.as_fd(), log.as_fd()])))
                }
            })
            .await
    }

    fn observe(&self, id: u64) {
        let (node, staged, inbox) = (self.node.clone(), self.staged.clone(), self.inbox.clone());
        let children = self.children.keys().copied().collect();
        let known = Known { children, kept: self.kept.clone(), ..Known::of(self.machine.record()) };
        beside(async move {
            let inbound = match observe::observe(&node, &staged, &inbox, known).await {
                Ok((observation, children, kept)) => Inbound::Observed { observation, children, kept },
                Err(error) => Inbound::Event(Event::EffectFailed { id, failure: failure(&error) }),
            };
            let _ = inbox.send(inbound).await;
        });
    }

    /// The state file goes last: whoever finds it knows that something may be left.
    async fn forget_state(&mut self) -> Reports {
        let key = self.key();
        let gone =
            self.node.keeper.ask("forget the tenant", move |client| client.delete(&key).map(drop)).await;
        self.kept = None;
        let forgotten = match gone {
            Ok(()) => self.node.remove_state(self.staged.tenant).await,
            Err(error) => Err(error),
        };
        match forgotten {
            Ok(()) => Reports::Done,
            Err(error) => Reports::Failed(failure(&error)),
        }
    }

    /// Tells the mounter that serves which password is in force now.
    pub(super) fn renew_password(&self) {
        let server = self.machine.record().server.as_ref().map(|server| server.process);
        let (Some(url), Some(server)) = (self.secrets.clone(), server) else { return };
        let (control, limit, tenant) =
            (self.control(server), self.node.policy.ping_limit, self.staged.tenant);
        beside(async move {
            if let Err(error) = control.set_credentials(url, limit).await {
                tracing::warn!(%tenant, error = error.report(), "the mounter goes on with the password it has");
            }
        });
    }

    /// Ends a stand-by, so that another one is started: it has the password of when it was started, and would serve with that.
    pub(super) fn end_stand_by(&self) {
        let record = self.machine.record();
        if let (State::Serving { .. }, Some(spare)) = (&record.state, &record.spare) {
            kill(spare.process);
        }
    }

    /// Keeps what the mounter was given by somebody, or by this agent: the next one is to have it as well.
    pub(super) async fn keep_secrets(&mut self, secrets: OwnedFd) {
        let Some(copy) = self.kept.as_ref().and_then(|kept| kept.duplicate().ok()) else { return };
        let kept = Arc::new(Kept { secrets: Some(secrets), ..copy });
        self.kept = Some(kept.clone());
        let put = mounting::put(&self.node, &self.staged, kept).await;
        self.complain(put);
        self.end_stand_by();
    }

    /// The same descriptors, with the secrets that are known now.
    pub(super) fn with_secrets(&self, kept: Arc<Kept>) -> Arc<Kept> {
        let renewed = || {
            let secrets = mounting::secrets(self.secrets.as_deref()?).ok()?;
            Some(Kept { secrets: Some(secrets), ..kept.duplicate().ok()? })
        };
        renewed().map_or_else(|| kept.clone(), Arc::new)
    }

    /// Gives a keeper that has nothing all that there is of this tenant.
    pub(super) async fn put_back(&mut self) {
        let Some(kept) = self.kept.clone() else { return };
        let put = mounting::put(&self.node, &self.staged, kept).await;
        self.complain(put);
        let links: Vec<(Process, OwnedFd)> =
            self.children.values().filter_map(|child| Some((child.process, child.link().ok()?))).collect();
        let server = self.machine.record().server.as_ref().map(|server| server.process);
        for (process, link) in links {
            let (key, id) = (self.key(), ProcessId::from(process));
            let role = if server == Some(process) { ROLE_SERVE } else { ROLE_STAND_BY };
            let watched = self.node.keeper.ask("have the mounter watched", move |client| {
                let known = client.children()?.iter().any(|child| child.pid == id.pid);
                if known { Ok(()) } else { client.watch(&key, role, id, link.as_fd()) }
            });
            let watched = watched.await;
            self.complain(watched);
        }
        let ticket = self.machine.ticket();
        let left = self.ticket(ticket).await;
        self.complain(left);
    }
}

fn no_channel(process: Process) -> AgentError {
    AgentError::Unusable(format!("there is no channel to the mounter (pid {})", process.pid))
}

/// What is to be started.
struct SpawnOrder {
    role: Role,
    build: Build,
    memory: ByteSize,
}

/// Starts a mounter and gives it what it needs.
async fn spawn(
    node: &Arc<Node>,
    staged: &Staged,
    kept: Option<Arc<Kept>>,
    order: SpawnOrder,
    inbox: &tokio::sync::mpsc::Sender<Inbound>,
) -> Result<Child, AgentError> {
    let kept = kept.ok_or_else(|| AgentError::Unusable("the tenant's descriptors are gone".to_owned()))?;
    let key = staged.tenant.to_string();
    let SpawnOrder { role, build, memory } = order;
    let (its_node, its_staged) = (node.clone(), staged.clone());
    let (spec, executable, log) = blocking(move || {
        make_room(&its_node, &its_staged)?;
        material(&its_node, &its_staged, &build, memory)
    })
    .await?;
    let (role, mode) = match role {
        Role::Serve => (ROLE_SERVE, Mode::Serve),
        Role::StandBy => (ROLE_STAND_BY, Mode::StandBy),
    };
    let spawned = node
        .keeper
        .ask("start the mounter", move |client| {
            client.spawn(&key, role, &spec, &[executable.as_fd(), log.as_fd()])
        })
        .await?;
    let (start, descriptors) = kept.start(mode);
    spawned
        .link
        .send(&ToMounter::Start(start), &descriptors)
        .map_err(AgentError::handover("hand the descriptors to the mounter"))?;
    let process = Process::from(spawned.id);
    Child::attend(process, spawned.pidfd, spawned.link, node.keeper.clone(), inbox.clone())
        .map_err(AgentError::io("watch the mounter", Path::new(&process.pid.to_string())))
}

/// What a mounter is started with: how, from which executable, with which log. Blocks.
fn material(
    node: &Node,
    staged: &Staged,
    build: &Build,
    memory: ByteSize,
) -> Result<(SpawnSpec, OwnedFd, OwnedFd), AgentError> {
    let spec = node.spec(staged, memory)?;
    Ok((spec, node.builds.executable(build)?, log(node, &staged.tenant.to_string())?))
}

/// The mounter's directory, its own.
fn make_room(node: &Node, staged: &Staged) -> Result<(), AgentError> {
    let directory = spec::mounter_dir(&node.settings.run_dir, staged.tenant);
    let failed = || AgentError::io("prepare the mounter's directory", &directory);
    fs::create_dir_all(&directory).map_err(failed())?;
    let Some(user) = staged.user else { return Ok(()) };
    own(&directory, user).map_err(failed())
}

/// How deep a mounter's directory is, and more.
const DEEPEST: usize = 16;

/// Gives a directory and all in it to a user. The directory is done last: where it is done, all is, and the user may be at work there.
fn own(path: &Path, user: u32) -> io::Result<()> {
    let flags = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
    let directory = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if directory.metadata()?.uid() == user {
        return Ok(());
    }
    // What has another name elsewhere may be somebody's.
    let is_its_own = |what: &Metadata| what.is_dir() || what.nlink() == 1;
    let give = |found: &File| {
        let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
        Ok(fchownat(found, c"", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)?)
    };
    each_below(directory.as_fd(), DEEPEST, &is_its_own, &give)?;
    give(&directory)
}

/// The file that a tenant's mounters log to, begun anew when it has grown.
fn log(node: &Node, key: &str) -> Result<OwnedFd, AgentError> {
    let directory = node.settings.state_dir.join("logs");
    let path = directory.join(format!("{key}.log"));
    fs::create_dir_all(&directory).map_err(AgentError::io("make the directory", &directory))?;
    if fs::metadata(&path).is_ok_and(|found| found.len() > MOST_LOG_BYTES) {
        fs::rename(&path, path.with_extension("log.1"))
            .map_err(AgentError::io("put the log aside", &path))?;
    }
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
    file.map(OwnedFd::from).map_err(AgentError::io("open the log", &path))
}

fn kill(process: Process) {
    if let Ok(pidfd) = ProcessId::from(process).open()
        && let Err(error) = send_signal(&pidfd, KILL)
    {
        tracing::error!(pid = process.pid, %error, "a mounter cannot be killed");
    }
}
