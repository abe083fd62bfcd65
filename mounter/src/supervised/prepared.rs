//! All that can be done before the predecessor is dead: database, tenant, session; nothing that would disturb it.

use std::{
    future::Future,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tarbox_engine::{Session, SessionConfig, SessionParts};
use tarbox_fs::{FileSystem, audit::Operation};
use tarbox_handover::{FromMounter, Kept, message::Waiting};
use tarbox_proto::control::v1::Phase;
use tarbox_runtime::Backoff;
use tarbox_store::{Database, StoreError, Tenant, TenantStore};
use tarbox_types::{ErrorKind, SessionId};
use tokio::sync::mpsc;

use super::{
    channel::Channel,
    served::{Parts, Served},
    slots_failed,
};
use crate::{
    admission,
    control::{
        service,
        subject::{ORDERS, Subject},
    },
    control_directory::{self, ControlDirectory, WholeTenant},
    engine,
    failure::{Chain, Failure},
    lease, restore,
    serve::{self, Opening, note},
    settings,
    settings::Settings,
    tenant_dir::TenantDir,
};

/// How long the lock of a predecessor that is said to be dead is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// How often it is tried.
const LOCK_AGAIN: Duration = Duration::from_millis(1);

/// See the module's documentation.
pub(super) struct Prepared {
    pub(super) settings: Settings,
    pub(super) mount_point: PathBuf,
    pub(super) database: Arc<dyn Database>,
    pub(super) tenant: Tenant,
    pub(super) session: SessionId,
    pub(super) session_config: SessionConfig,
    store: Arc<dyn TenantStore>,
    patient: bool,
}

/// How often whoever supervises is told that something is waited for.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// Repeats what needs the database, as long as it cannot be reached, if `patient`; whoever supervises is told meanwhile.
async fn patiently<T, F>(
    channel: &Channel,
    what: &str,
    patient: bool,
    work: impl Fn() -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let attempts = async {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
        loop {
            match work().await {
                Err(Failure::Store(error @ StoreError::Unavailable { .. })) if patient => {
                    tracing::warn!(error = %Chain(&error), "waiting for the database, to go on serving");
                    tokio::time::sleep(backoff.delay()).await;
                }
                outcome => return outcome,
            }
        }
    };
    let mut attempts = std::pin::pin!(attempts);
    let mut is_told = false;
    loop {
        // Also while an attempt is under way: it may last as long as it takes a network to say that there is nobody.
        match tokio::time::timeout(TELL_EVERY, &mut attempts).await {
            Ok(outcome) if is_told => {
                channel.say(&FromMounter::Waiting(Waiting::default()));
                return outcome;
            }
            Ok(outcome) => return outcome,
            Err(_) => {
                channel.say(&FromMounter::Waiting(Waiting { what: what.to_owned() }));
                is_told = true;
            }
        }
    }
}

impl Prepared {
    pub(super) async fn new(
        settings: Settings,
        mount_point: PathBuf,
        session_config: SessionConfig,
        patient: bool,
        channel: &Channel,
    ) -> Result<Self, Failure> {
        settings::ensure_state_dir(&settings.state_dir)?;
        let (settings_now, point_now) = (&settings, &mount_point);
        let (database, tenant, session, store) = patiently(channel, "the database", patient, || async move {
            let database = tarbox_store::open(&settings_now.database_url).await?;
            let tenant = admission::admit(&database, settings_now, point_now).await?;
            let store = database.open_tenant(tenant.id).await?;
            // What comes with the first query: plans, pages, a connection.
            store.head().await?;
            let session = lease::open_session(&database).await?;
            Ok((database, tenant, session, store))
        })
        .await?;
        Ok(Self { settings, mount_point, database, tenant, session, session_config, store, patient })
    }

    /// Ends without having served.
    pub(super) async fn give_up(self) {
        if let Err(error) = self.database.close_session(self.session).await {
            tracing::warn!(error = %Chain(&error), "the session could not be closed");
        }
    }

    /// Keeps the session alive while it is not used.
    pub(super) async fn beat(&self) {
        if let Err(error) = self.database.beat(self.session).await {
            tracing::debug!(error = %Chain(&error), "no heartbeat of the stand-by");
        }
    }

    /// Goes on where the predecessor has died: takes the lease and the journal, answers what was left, serves.
    pub(super) async fn take_over(self, mut kept: Kept, channel: &Channel) -> Result<Served, Failure> {
        let directory = lock(&self.settings, &self.tenant).await?;
        let secrets = kept.secrets.take();
        match self.serve(&directory, kept, channel).await {
            Ok(parts) => Ok(Served::new(self.database, self.session, directory, parts, secrets)),
            Err(failure) => {
                // Gives the lease back at once: the next attempt has not to wait for it.
                self.give_up().await;
                Err(failure)
            }
        }
    }

    async fn serve(&self, directory: &TenantDir, kept: Kept, channel: &Channel) -> Result<Parts, Failure> {
        let mut steps = Steps::new();
        let connection = tarbox_engine::connection(&kept.slots).map_err(slots_failed)?;
        // Where INIT was answered, somebody has served before.
        let is_agreed = tarbox_engine::is_agreed(&kept.slots).map_err(slots_failed)?;
        let begun = if is_agreed { Operation::TakeOver } else { Operation::Mount };
        let (database, session) = (&self.database, self.session);
        let acquired = patiently(channel, "the lease", self.patient, || {
            lease::acquire(database, self.tenant.id, session, directory)
        });
        let lease = acquired.await?;
        steps.done("lease");
        let epoch = lease.fence.epoch.cast_unsigned();
        let note = note(&lease.tenant, session, self.mount_point.clone(), &self.settings);
        let nonce = connection.nonce;
        let opening = Opening { store: Arc::clone(&self.store), connection, begun: Some(begun) };
        let opened = serve::open_on(database, &self.settings, lease, session, directory, opening).await;
        let (file_system, recovery) = opened?;
        steps.done("journal");
        directory.write_note(&note)?;
        // Of a predecessor: as soon as anything can be ordered here, it may be of a restore that this process has begun itself.
        let unfinished = restore::left_unfinished(directory.path());
        let (sender, orders) = mpsc::channel(ORDERS);
        let (shown, database) = (FileSystem::clone(&file_system), Arc::clone(&self.database));
        let subject = Subject::new(note, epoch, move || shown.clone(), database, sender);
        let control = service::serve(directory.socket(), Arc::clone(&subject))?;
        steps.done("note");
        let control_directory = self.control_directory(&file_system, &subject, directory, nonce);
        let whole = WholeTenant::new(Arc::clone(&file_system), control_directory.clone());
        let attach = |session: &Session| {
            subject.observe(session.observer());
            file_system.keep_for(session.unanswered());
            file_system.attach(session.kernel_cache());
            if let Some(control_directory) = &control_directory {
                control_directory.attach(session.kernel_cache());
            }
        };
        let parts = SessionParts { devices: kept.devices, slots: kept.slots, init: None };
        let begun = engine::begin(&Arc::new(whole), attach, parts, self.session_config).await;
        let (session, recovered) = begun.map_err(|source| Failure::Part {
            kind: ErrorKind::Internal,
            doing: format!("serve {}", self.mount_point.display()),
            source: source.into(),
        })?;
        file_system.settled();
        steps.done("requests");
        steps.tell();
        subject.enter(Phase::Serving);
        if let Some(before) = unfinished {
            tokio::spawn(restore::finish(Arc::clone(&file_system), directory.path().to_owned(), before));
        }
        let replayed = recovery.replayed;
        Ok(Parts { file_system, session, subject, control, orders, replayed, recovered })
    }

    /// The control directory, unless it is switched off. Where it cannot be had the tenant is served without it: applications need that more.
    fn control_directory(
        &self,
        head: &Arc<FileSystem>,
        subject: &Arc<Subject>,
        directory: &TenantDir,
        nonce: u64,
    ) -> Option<Arc<ControlDirectory>> {
        if !self.settings.control_dir {
            return None;
        }
        let parts = control_directory::Parts {
            head: Arc::clone(head),
            subject: Arc::clone(subject),
            store: Arc::clone(&self.store),
            database: Arc::clone(&self.database),
            directory: directory.path().to_owned(),
            nonce,
            cache_bytes: self.settings.cache_bytes,
        };
        let opened = ControlDirectory::open(parts);
        opened
            .inspect_err(
                |failure| tracing::error!(reason = %failure.report(), "there is no control directory"),
            )
            .ok()
    }
}

async fn lock(settings: &Settings, tenant: &Tenant) -> Result<TenantDir, Failure> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        if let Some(directory) = TenantDir::lock_writer(&settings.state_dir, tenant.id)? {
            return Ok(directory);
        }
        if Instant::now() >= deadline {
            let name = &tenant.name;
            let message = format!("tenant `{name}` is still served by another process on this machine");
            return Err(Failure::refused(ErrorKind::Busy, message));
        }
        tokio::time::sleep(LOCK_AGAIN).await;
    }
}

/// Where the time goes.
struct Steps {
    last: Instant,
    text: String,
}

impl Steps {
    fn new() -> Self {
        Self { last: Instant::now(), text: String::new() }
    }

    fn done(&mut self, step: &str) {
        let micros = self.last.elapsed().as_micros();
        self.last = Instant::now();
        self.text.push_str(&format!(" {step} {micros} µs"));
    }

    fn tell(self) {
        tracing::debug!(steps = self.text.trim_start(), "took over");
    }
}
