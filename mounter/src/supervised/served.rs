//! Serving, until it ends in one of the ways there are.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use tarbox_engine::{Activity, Ended, Recovered, Session};
use tarbox_fs::FileSystem;
use tarbox_handover::{
    FromMounter, ToMounter,
    message::{Drained, Draining, Renewed},
};
use tarbox_proto::control::v1::Phase;
use tarbox_runtime::Shutdown;
use tarbox_store::Database;
use tarbox_types::{ErrorKind, SessionId};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use super::{
    End,
    channel::{Channel, Told},
};
use crate::{
    control::{
        service,
        subject::{Ordered, Subject},
    },
    failure::{Chain, Failure},
    tenant_dir::TenantDir,
};

/// How often it is looked whether all has been finished that was being executed.
const LOOK_AGAIN: Duration = Duration::from_micros(200);

/// What serving consists of.
pub(super) struct Parts {
    pub(super) file_system: Arc<FileSystem>,
    pub(super) session: Session,
    pub(super) subject: Arc<Subject>,
    pub(super) control: service::Serving,
    /// What comes over the control socket.
    pub(super) orders: mpsc::Receiver<Ordered>,
    pub(super) replayed: u64,
    pub(super) recovered: Recovered,
}

/// A mounter that serves.
pub(super) struct Served {
    database: Arc<dyn Database>,
    session_id: SessionId,
    directory: TenantDir,
    file_system: Arc<FileSystem>,
    session: Session,
    subject: Arc<Subject>,
    _control: service::Serving,
    /// For a supervisor that has lost its own: it finds them here, as it finds device and slots.
    secrets: Option<OwnedFd>,
    orders: mpsc::Receiver<Ordered>,
    pub(super) replayed: u64,
    pub(super) recovered: Recovered,
}

impl Served {
    pub(super) fn new(
        database: Arc<dyn Database>,
        session_id: SessionId,
        directory: TenantDir,
        parts: Parts,
        secrets: Option<OwnedFd>,
    ) -> Self {
        let Parts { file_system, session, subject, control: _control, orders, replayed, recovered } = parts;
        Self {
            database,
            session_id,
            directory,
            file_system,
            session,
            subject,
            _control,
            secrets,
            orders,
            replayed,
            recovered,
        }
    }

    /// Serves until it is unmounted, or until it is told to end.
    pub(super) async fn until_end(
        mut self,
        channel: &mut Channel,
        shutdown: &mut Shutdown,
    ) -> Result<End, Failure> {
        loop {
            tokio::select! {
                ended = self.session.wait() => return self.after(ended).await,
                told = channel.told() => match told {
                    Told::Message(ToMounter::Stop(_), _) => return self.give_back(End::Stopped).await,
                    Told::Message(ToMounter::Drain(drain), _) => {
                        return Ok(self.drain(Duration::from_millis(drain.millis), channel).await);
                    }
                    Told::Gone => self.subject.leave_alone(),
                    Told::Message(ToMounter::Start(_) | ToMounter::TakeOver(_), _) => {}
                },
                Some(ordered) = self.orders.recv() => match ordered {
                    Ordered::Drain(limit) => {
                        return Ok(self.drain(limit, channel).await);
                    }
                    Ordered::Stop => return self.give_back(End::Stopped).await,
                    Ordered::Renew(secrets, told) => {
                        channel.hand(&FromMounter::Renewed(Renewed {}), &[secrets.as_fd()]);
                        self.secrets = Some(secrets);
                        let _ = told.send(());
                    }
                },
                signal = shutdown.asked() => {
                    tracing::info!(%signal, "committing; serving goes on");
                    drop(self.commit_beside());
                }
            }
        }
    }

    async fn after(self, ended: Ended) -> Result<End, Failure> {
        match ended {
            Ended::Unmounted | Ended::Stopped => {
                tracing::info!("unmounted");
                self.give_back(End::Unmounted).await
            }
            // The mount is there and somebody may serve it: lease and journal stay for who does.
            Ended::Failed(error) => Err(Failure::Part {
                kind: ErrorKind::Internal,
                doing: "read requests from /dev/fuse".to_owned(),
                source: error.into(),
            }),
        }
    }

    /// Commits what is there now, also where nobody waits for it any more.
    fn commit_beside(&self) -> JoinHandle<()> {
        let file_system = Arc::clone(&self.file_system);
        tokio::spawn(async move {
            if let Err(error) = file_system.flush().await {
                tracing::error!(error = %Chain(&error), "what was asked for could not be committed");
            }
        })
    }

    /// Commits what a successor would have to replay while applications wait; a second time what came meanwhile.
    async fn commit_ahead(&self) {
        for _ in 0..2 {
            let _ = self.commit_beside().await;
        }
    }

    /// Leaves everything to a successor: nothing more is read or committed, what is being executed ends, the rest stays in its
    /// slots. Whatever `limit` cuts off is found there, too: at worst this is a kill.
    async fn drain(self, limit: Duration, channel: &Channel) -> End {
        tracing::info!("leaving the rest to a successor");
        let deadline = Instant::now() + limit;
        // First, and while requests are still served: a commit may take long. However long it takes, time is left to pause.
        let _ = timeout(limit / 2, self.commit_ahead()).await;
        let frozen = timeout(limit / 4, self.file_system.freeze()).await;
        let _ = timeout_at(deadline, self.session.pause()).await;
        self.subject.enter(Phase::Draining);
        channel.say(&FromMounter::Draining(Draining {}));
        let executing =
            || self.session.in_flight().iter().any(|flight| flight.activity == Activity::Executing);
        while executing() && Instant::now() < deadline {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        channel.say(&FromMounter::Drained(Drained {}));
        // The successor begins once this process is dead. What is in memory goes with it: applications would wait while it is taken apart.
        std::mem::forget(frozen);
        std::mem::forget(self);
        End::Drained
    }

    /// Commits everything, and gives lease and directory back.
    async fn give_back(self, end: End) -> Result<End, Failure> {
        self.subject.enter(Phase::Ending);
        if let Err(error) = self.session.stop().await {
            tracing::warn!(%error, "the session did not end as it should");
        }
        self.file_system.close().await.map_err(|error| Failure::Part {
            kind: ErrorKind::Unavailable,
            doing: "commit the last changes (they are kept in the journal)".to_owned(),
            source: error.into(),
        })?;
        self.database.close_session(self.session_id).await?;
        self.directory.clear();
        Ok(end)
    }
}
