//! One life of a mounter: from the settings to the tenant given back.

use std::{io::Write, path::PathBuf, sync::Arc, time::Duration};

use tarbox_engine::Session;
use tarbox_fs::{FileSystem, FsConfig, Recovery, SyncMode as FsSyncMode};
use tarbox_proto::control::v1::Phase;
use tarbox_runtime::{Shutdown, Signal};
use tarbox_store::{Database, Lease, StoreError, Tenant, TenantStore};
use tarbox_types::{ByteSize, Connection, ErrorKind, SessionId};

use crate::{
    admission,
    control::{service, subject::Subject},
    engine,
    failure::{Chain, Failure},
    lease, mount_point, serve_reader,
    settings::{self, Settings, SyncMode},
    tenant_dir::{self, Note, TenantDir},
    unmount::{self, Ladder},
};

/// How long committing at the end may take before its progress is shown; then each pause is twice the one before.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// Longest pause between two lines of progress.
const PROGRESS_EVERY_MOST: Duration = Duration::from_secs(60);

/// Mounts the tenant, serves it until it is unmounted or the process is asked to end, and gives it back with
/// everything committed. `ready` is called with one line when the first operation can be served.
///
/// # Errors
/// What is in the way, before anything was mounted; what could not be committed, afterwards.
pub async fn run(
    settings: Settings,
    mount_point: PathBuf,
    ready: impl FnOnce(&Mounted<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut shutdown = Shutdown::listen()
        .map_err(|source| Failure::Io { doing: "listen for signals".to_owned(), source })?;
    let point = mount_point::check(&mount_point)?;
    settings::ensure_state_dir(&settings.state_dir)?;
    let database = tarbox_store::open(&settings.database_url).await?;
    let tenant = admission::admit(&database, &settings, &point).await?;
    if settings.read_only {
        return serve_reader::run(&settings, database, &tenant, point, &mut shutdown, ready).await;
    }
    let directory = lock(&database, &settings, &tenant).await?;
    let opened = open(&database, &settings, &tenant, &directory, point).await?;
    let mut patience = Patience { shutdown, given_up: false };
    let ended = opened.serve(&directory, &mut patience, ready).await;
    if patience.given_up {
        // Journal and note stay for the next mounter; the lease ends with this process.
        return ended;
    }
    let closed = opened.close(&mut patience).await;
    if !patience.given_up {
        directory.clear();
    }
    ended.and(closed)
}

async fn lock(
    database: &Arc<dyn Database>,
    settings: &Settings,
    tenant: &Tenant,
) -> Result<TenantDir, Failure> {
    if let Some(directory) = TenantDir::lock_writer(&settings.state_dir, tenant.id)? {
        return Ok(directory);
    }
    if let Some(holder) = database.tenant(tenant.id).await?.and_then(|tenant| tenant.holder) {
        return Err(StoreError::Held { tenant: tenant.id, holder }.into());
    }
    let note = tenant_dir::read_note(&tenant_dir::of(&settings.state_dir, tenant.id));
    let by = note.map_or_else(
        || "another tarbox-mount on this machine, which is just starting or ending".to_owned(),
        |note| format!("pid {} on this machine, mounted at {}", note.pid, note.mount_point.display()),
    );
    Err(Failure::refused(ErrorKind::Busy, format!("tenant `{}` is in use by {by}", tenant.name)))
}

/// The signals, and whether one of them has ended the waiting for the last commits.
struct Patience {
    shutdown: Shutdown,
    given_up: bool,
}

/// A file system that is open and not mounted yet.
struct Opened {
    database: Arc<dyn Database>,
    session: SessionId,
    file_system: Arc<FileSystem>,
    epoch: u64,
    note: Note,
    tenant: Tenant,
}

async fn open(
    database: &Arc<dyn Database>,
    settings: &Settings,
    tenant: &Tenant,
    directory: &TenantDir,
    point: PathBuf,
) -> Result<Opened, Failure> {
    let session = lease::open_session(database).await?;
    let opened = open_leased(database, settings, tenant, directory, session, point).await;
    if opened.is_err() {
        // Gives the lease back at once: the next attempt has not to wait for it.
        if let Err(error) = database.close_session(session).await {
            tracing::warn!(error = %Chain(&error), "the session could not be closed");
        }
    }
    opened
}

async fn open_leased(
    database: &Arc<dyn Database>,
    settings: &Settings,
    tenant: &Tenant,
    directory: &TenantDir,
    session: SessionId,
    point: PathBuf,
) -> Result<Opened, Failure> {
    let lease = lease::acquire(database, tenant.id, session, directory).await?;
    let epoch = lease.fence.epoch.cast_unsigned();
    let tenant = lease.tenant.clone();
    let file_system = open_file_system(database, settings, lease, session, directory).await?;
    let note = note(&tenant, session, point, false);
    directory.write_note(&note)?;
    Ok(Opened { database: Arc::clone(database), session, file_system, epoch, note, tenant })
}

/// What is noted beside the control socket.
pub(crate) fn note(tenant: &Tenant, session: SessionId, mount_point: PathBuf, read_only: bool) -> Note {
    Note {
        pid: std::process::id(),
        session,
        tenant_id: tenant.id,
        tenant_name: tenant.name.clone(),
        mount_point,
        read_only,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Opens the file system under a lease: what a dead mounter left in the journal is replayed.
///
/// # Errors
/// Where the journal or the database cannot be read.
pub async fn open_file_system(
    database: &Arc<dyn Database>,
    settings: &Settings,
    lease: Lease,
    session: SessionId,
    directory: &TenantDir,
) -> Result<Arc<FileSystem>, Failure> {
    let store = database.open_tenant(lease.fence.tenant).await?;
    let opening = Opening { store, connection: Connection::default() };
    Ok(open_on(database, settings, lease, session, directory, opening).await?.0)
}

/// What opening a file system begins with besides its lease.
pub(crate) struct Opening {
    /// The tenant's rows.
    pub(crate) store: Arc<dyn TenantStore>,
    /// The connection it is going to serve.
    pub(crate) connection: Connection,
}

/// As [`open_file_system`], for a connection that may have been served before.
///
/// # Errors
/// As [`open_file_system`].
pub(crate) async fn open_on(
    database: &Arc<dyn Database>,
    settings: &Settings,
    lease: Lease,
    session: SessionId,
    directory: &TenantDir,
    opening: Opening,
) -> Result<(Arc<FileSystem>, Recovery), Failure> {
    let name = lease.tenant.name.clone();
    let config = fs_config(settings, &lease.tenant, directory);
    let config = FsConfig { connection: opening.connection, ..config };
    let opened = FileSystem::open(Arc::clone(database), opening.store, lease, session, config).await;
    let (file_system, recovery) = opened.map_err(|error| Failure::Part {
        kind: error.kind(),
        doing: format!("open tenant `{name}`"),
        source: error.into(),
    })?;
    report(&recovery);
    Ok((Arc::new(file_system), recovery))
}

/// What a dead mounter left is worth a line.
fn report(recovery: &Recovery) {
    if recovery.replayed > 0 {
        tracing::info!(
            records = recovery.replayed,
            "changes that were not committed have been taken up from the journal"
        );
    }
    if let Some(cut) = &recovery.cut {
        tracing::warn!(file = %cut.file.display(), offset = cut.offset, "the journal ended in the middle of a record, which was not acknowledged");
    }
    if let Some(rejected) = &recovery.rejected {
        tracing::error!(path = %rejected.path.display(), reason = %rejected.reason, "a journal was set aside: its changes are not in the tenant");
    }
}

pub(crate) fn fs_config(settings: &Settings, tenant: &Tenant, directory: &TenantDir) -> FsConfig {
    FsConfig {
        cache_bytes: settings.cache_bytes,
        journal_dir: directory.journal(),
        journal_bytes: settings.journal_bytes,
        segment_bytes: (settings.journal_bytes / 32).clamp(2 << 20, 8 << 20),
        flush_interval: settings.flush_interval,
        max_lag: settings.max_lag,
        sync_mode: match settings.sync_mode {
            SyncMode::Writeback => FsSyncMode::Writeback,
            SyncMode::Writethrough => FsSyncMode::Writethrough,
        },
        read_only: settings.read_only,
        compression: settings.compression.unwrap_or(tenant.compression),
        max_inodes: 100_000,
        connection: Connection::default(),
    }
}

/// What is told when the mount serves.
#[derive(Debug)]
pub struct Mounted<'m> {
    /// Tenant.
    pub tenant: &'m Tenant,
    /// What was noted.
    pub note: &'m Note,
    /// The database, without its password.
    pub database: String,
}

impl std::fmt::Display for Mounted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "tenant `{}` of {} serves at {}{}",
            self.tenant.name,
            self.database,
            self.note.mount_point.display(),
            if self.note.read_only { " (read-only)" } else { "" }
        )
    }
}

impl Opened {
    /// Mounts and serves; returns when the mount is gone.
    async fn serve(
        &self,
        directory: &TenantDir,
        patience: &mut Patience,
        ready: impl FnOnce(&Mounted<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let file_system = Arc::clone(&self.file_system);
        let subject =
            Subject::new(self.note.clone(), self.epoch, file_system, Arc::clone(&self.database), None);
        let _control = service::serve(directory.socket(), Arc::clone(&subject))?;
        let attach = |session: &Session| {
            subject.observe(session.observer());
            self.file_system.attach(session.kernel_cache());
        };
        let session =
            engine::start(&self.file_system, attach, &self.tenant, &self.note.mount_point, false).await?;
        subject.enter(Phase::Serving);
        let mounted =
            Mounted { tenant: &self.tenant, note: &self.note, database: self.database.display_url() };
        let told = ready(&mounted);
        let ended = match told {
            Ok(()) => self.until_unmounted(&session, patience).await,
            Err(failure) => {
                take_away(self.note.mount_point.clone()).await;
                Err(failure)
            }
        };
        if patience.given_up {
            return ended;
        }
        subject.enter(Phase::Ending);
        // Requests in flight may wait for the database, too.
        match self.patiently(session.stop(), patience).await? {
            Ok(_) => ended,
            Err(error) => {
                tracing::warn!(%error, "the session did not end as it should");
                ended
            }
        }
    }

    async fn until_unmounted(&self, session: &Session, patience: &mut Patience) -> Result<(), Failure> {
        tokio::select! {
            ended = session.wait() => {
                tracing::info!(?ended, "unmounted");
                Ok(())
            }
            signal = patience.shutdown.asked() => {
                tracing::info!(%signal, "ending: committing, then unmounting");
                // Beforehand, so that little is left to do once nobody can use the mount any more.
                let flushed = self.patiently(self.file_system.flush(), patience).await;
                take_away(self.note.mount_point.clone()).await;
                flushed?.map(|_| ()).map_err(|error| self.uncommitted(error))
            }
        }
    }

    /// Waits for `work`, shows how it goes if it takes long, and lets a second signal end the waiting.
    async fn patiently<T>(
        &self,
        work: impl Future<Output = T>,
        patience: &mut Patience,
    ) -> Result<T, Failure> {
        tokio::pin!(work);
        let mut pause = PROGRESS_EVERY;
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                () = tokio::time::sleep(pause) => {
                    self.show_progress();
                    pause = (pause * 2).min(PROGRESS_EVERY_MOST);
                }
                signal = patience.shutdown.asked() => {
                    patience.given_up = true;
                    return Err(self.given_up(signal));
                }
            }
        }
    }

    async fn close(&self, patience: &mut Patience) -> Result<(), Failure> {
        let closed = self.patiently(self.file_system.close(), patience).await?;
        closed.map_err(|error| self.uncommitted(error))?;
        Ok(self.database.close_session(self.session).await?)
    }

    fn show_progress(&self) {
        let now = self.file_system.status();
        let waiting = now.waiting_for.map(|what| format!(", waiting for {what}")).unwrap_or_default();
        let left = now.seq.saturating_sub(now.committed);
        // A lost terminal is no reason to stop committing.
        let _ = writeln!(
            std::io::stderr(),
            "tarbox-mount: committing: {left} changes to go, {} of journal{waiting}",
            ByteSize(now.journal_bytes)
        );
    }

    fn uncommitted(&self, error: impl std::error::Error + Send + Sync + 'static) -> Failure {
        Failure::Part {
            kind: ErrorKind::Unavailable,
            doing: format!(
                "commit the last changes of tenant `{}` (they are kept in the journal: mount it again)",
                self.tenant.name
            ),
            source: error.into(),
        }
    }

    fn given_up(&self, signal: Signal) -> Failure {
        let now = self.file_system.status();
        let message = format!(
            "ended by a second {signal} with {} changes of tenant `{}` not committed: they are kept in the journal until this machine restarts; mount the tenant again to commit them",
            now.seq.saturating_sub(now.committed),
            self.tenant.name
        );
        Failure::refused(ErrorKind::Unavailable, message)
    }
}

/// Unmounts; where something is open there, detaches: what was acknowledged until then is kept all the same.
pub(crate) async fn take_away(point: PathBuf) {
    let unmounted = tokio::task::spawn_blocking(move || {
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
