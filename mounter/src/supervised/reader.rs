//! A supervised mounter that only reads: no lease, no journal, nothing to commit, so that there is little to hand over.

use std::{sync::Arc, time::Instant};

use tarbox_engine::{Session, SessionParts};
use tarbox_handover::{
    FromMounter, Kept, ToMounter,
    message::{Drained, Draining},
};
use tarbox_runtime::Shutdown;
use tarbox_types::ErrorKind;

use super::{
    End,
    channel::{Channel, Told},
    prepared::Prepared,
    serving,
};
use crate::{
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
    let (reader, session) = begin(&prepared, &directory, kept, channel, since).await?;
    let end = until_end(&session, channel, shutdown).await;
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

async fn begin(
    prepared: &Prepared,
    directory: &TenantDir,
    kept: Kept,
    channel: &Channel,
    since: Instant,
) -> Result<(Arc<Reader>, Session), Failure> {
    let config = serve::fs_config(&prepared.settings, &prepared.tenant, directory);
    let store = prepared.database.open_tenant(prepared.tenant.id).await?;
    let database = Arc::clone(&prepared.database);
    let reader = Arc::new(Reader::open(database, store, prepared.session, config).await?);
    directory.write_note(&serve::note(
        &prepared.tenant,
        prepared.session,
        prepared.mount_point.clone(),
        true,
    ))?;
    let parts = SessionParts { devices: kept.devices, slots: kept.slots, init: None };
    let begun = engine::begin(&reader, |_: &Session| {}, parts, prepared.session_config).await;
    let (session, recovered) = begun.map_err(|source| Failure::Part {
        kind: ErrorKind::Internal,
        doing: format!("serve {}", prepared.mount_point.display()),
        source: source.into(),
    })?;
    channel.say(&FromMounter::Serving(serving(since, 0, recovered)));
    Ok((reader, session))
}

async fn until_end(session: &Session, channel: &mut Channel, shutdown: &mut Shutdown) -> End {
    loop {
        tokio::select! {
            _ended = session.wait() => return End::Unmounted,
            told = channel.told() => match told {
                Told::Message(ToMounter::Stop(_), _) => return End::Stopped,
                Told::Message(ToMounter::Drain(_), _) => {
                    session.pause().await;
                    channel.say(&FromMounter::Draining(Draining {}));
                    channel.say(&FromMounter::Drained(Drained {}));
                    return End::Drained;
                }
                Told::Message(ToMounter::Start(_) | ToMounter::TakeOver(_), _) | Told::Gone => {}
            },
            // There is nothing to commit.
            _signal = shutdown.asked() => {}
        }
    }
}
