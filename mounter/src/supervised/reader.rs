//! A supervised mounter that only reads: no lease, no journal, nothing to commit, so that there is little to hand over.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Instant,
};

use tarbox_engine::{Session, SessionParts};
use tarbox_handover::{
    FromMounter, Kept, ToMounter,
    message::{Drained, Draining, Renewed},
};
use tarbox_proto::control::v1::Phase;
use tarbox_runtime::Shutdown;
use tarbox_types::ErrorKind;
use tokio::sync::mpsc;

use super::{
    End,
    channel::{Channel, Told},
    prepared::Prepared,
    serving,
};
use crate::{
    control::{
        service,
        subject::{ORDERS, Ordered, Subject},
    },
    engine,
    failure::{Chain, Failure},
    reader::Reader,
    serve,
    tenant_dir::TenantDir,
};

/// Serves until it is unmounted, or until it is told to end.
pub(super) async fn serve(
    prepared: Prepared,
    kept: Kept,
    channel: &mut Channel,
    shutdown: &mut Shutdown,
    since: Instant,
) -> Result<End, Failure> {
    let directory = TenantDir::lock_reader(&prepared.settings.state_dir, prepared.tenant.id)?
        .ok_or_else(|| Failure::refused(ErrorKind::Busy, "this process mounts the tenant already"))?;
    let mut begun = begin(&prepared, &directory, kept, channel, since).await?;
    let end = begun.until_end(channel, shutdown).await;
    let Begun { reader, session, .. } = begun;
    if end != End::Drained
        && let Err(error) = session.stop().await
    {
        tracing::warn!(error = %Chain(&error), "the session did not end as it should");
    }
    reader.close().await;
    directory.clear();
    prepared.give_up().await;
    Ok(end)
}

/// A reader that serves.
struct Begun {
    reader: Arc<Reader>,
    session: Session,
    subject: Arc<Subject>,
    _control: service::Serving,
    /// For a supervisor that has lost its own: it finds them here, as it finds device and slots.
    secrets: Option<OwnedFd>,
    /// What comes over the control socket.
    orders: mpsc::Receiver<Ordered>,
}

async fn begin(
    prepared: &Prepared,
    directory: &TenantDir,
    kept: Kept,
    channel: &Channel,
    since: Instant,
) -> Result<Begun, Failure> {
    let config = serve::fs_config(&prepared.settings, &prepared.tenant, directory);
    let store = prepared.database.open_tenant(prepared.tenant.id).await?;
    let database = Arc::clone(&prepared.database);
    let reader = Arc::new(Reader::open(database, store, prepared.session, config).await?);
    let note =
        serve::note(&prepared.tenant, prepared.session, prepared.mount_point.clone(), &prepared.settings);
    directory.write_note(&note)?;
    let (sender, orders) = mpsc::channel(ORDERS);
    let (shown, database) = (Arc::clone(&reader), Arc::clone(&prepared.database));
    let epoch = prepared.tenant.epoch.cast_unsigned();
    let subject = Subject::new(note, epoch, move || shown.current(), database, sender);
    let control = service::serve(directory.socket(), Arc::clone(&subject))?;
    let parts = SessionParts { devices: kept.devices, slots: kept.slots, init: None };
    let begun = engine::begin(
        &reader,
        |session: &Session| subject.observe(session.observer()),
        parts,
        prepared.session_config,
    )
    .await;
    let (session, recovered) = begun.map_err(|source| Failure::Part {
        kind: ErrorKind::Internal,
        doing: format!("serve {}", prepared.mount_point.display()),
        source: source.into(),
    })?;
    channel.say(&FromMounter::Serving(serving(since, 0, recovered)));
    subject.enter(Phase::Serving);
    Ok(Begun { reader, session, subject, _control: control, secrets: kept.secrets, orders })
}

impl Begun {
    async fn until_end(&mut self, channel: &mut Channel, shutdown: &mut Shutdown) -> End {
        loop {
            tokio::select! {
                _ended = self.session.wait() => return End::Unmounted,
                told = channel.told() => match told {
                    Told::Message(ToMounter::Stop(_), _) => return End::Stopped,
                    Told::Message(ToMounter::Drain(_), _) => return self.drain(channel).await,
                    Told::Message(ToMounter::Start(_) | ToMounter::TakeOver(_), _) | Told::Gone => {}
                },
                Some(ordered) = self.orders.recv() => match ordered {
                    Ordered::Drain(_) => return self.drain(channel).await,
                    Ordered::Stop => return End::Stopped,
                    Ordered::Renew(secrets, told) => {
                        channel.hand(&FromMounter::Renewed(Renewed {}), &[secrets.as_fd()]);
                        self.secrets = Some(secrets);
                        let _ = told.send(());
                    }
                },
                // There is nothing to commit.
                _signal = shutdown.asked() => {}
            }
        }
    }

    async fn drain(&self, channel: &Channel) -> End {
        self.session.pause().await;
        self.subject.enter(Phase::Draining);
        channel.say(&FromMounter::Draining(Draining {}));
        channel.say(&FromMounter::Drained(Drained {}));
        End::Drained
    }
}
