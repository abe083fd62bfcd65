//! What every way to serve a tenant begins with: its directory locked, its file system opened under a lease.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tarbox_fs::{AuditConfig, FileSystem, FsConfig, Recovery, SyncMode as FsSyncMode, audit::Operation};
use tarbox_store::{Database, Lease, StoreError, Tenant, TenantStore};
use tarbox_types::{Connection, ErrorKind, SessionId};

use crate::{
    failure::Failure,
    lease, native,
    pods::PodFile,
    settings::{Settings, SyncMode},
    tenant_dir::{self, Note, TenantDir},
};

/// How long a mounter that was killed may take to be gone.
const DYING_WAIT: Duration = Duration::from_secs(30);

/// The tenant's directory, locked for the one writer.
///
/// # Errors
/// Who has the tenant, where somebody has.
pub(crate) async fn lock(
    database: &Arc<dyn Database>,
    settings: &Settings,
    tenant: &Tenant,
) -> Result<TenantDir, Failure> {
    let deadline = Instant::now() + DYING_WAIT;
    let note = loop {
        if let Some(directory) = TenantDir::lock_writer(&settings.state_dir, tenant.id)? {
            return Ok(directory);
        }
        let holder = database.tenant(tenant.id).await?.and_then(|tenant| tenant.holder);
        let note = tenant_dir::read_note(&tenant_dir::of(&settings.state_dir, tenant.id));
        let is_dying = match (&holder, &note) {
            (Some(holder), _) => lease::is_dying(&holder.node, holder.pid),
            (None, Some(note)) => lease::is_dying(&tarbox_runtime::host_name(), note.pid),
            (None, None) => false,
        };
        match holder {
            _ if is_dying && Instant::now() < deadline => tokio::time::sleep(lease::DYING_AGAIN).await,
            Some(holder) => return Err(StoreError::Held { tenant: tenant.id, holder }.into()),
            None => break note,
        }
    };
    let by = note.map_or_else(
        || "another tarbox-mount on this machine, which is just starting or ending".to_owned(),
        |note| format!("pid {} on this machine, mounted at {}", note.pid, note.mount_point.display()),
    );
    Err(Failure::refused(ErrorKind::Busy, format!("tenant `{}` is in use by {by}", tenant.name)))
}

/// What is noted beside the control socket.
pub(crate) fn note(tenant: &Tenant, session: SessionId, mount_point: PathBuf, settings: &Settings) -> Note {
    Note {
        native: native::paths(settings, tenant.id),
        pid: std::process::id(),
        session,
        tenant_id: tenant.id,
        tenant_name: tenant.name.clone(),
        mount_point,
        read_only: settings.read_only,
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
    let opening = Opening { store, connection: Connection::default(), begun: None };
    Ok(open_on(database, settings, lease, session, directory, opening).await?.0)
}

/// What opening a file system begins with besides its lease.
pub(crate) struct Opening {
    /// The tenant's rows.
    pub(crate) store: Arc<dyn TenantStore>,
    /// The connection it is going to serve.
    pub(crate) connection: Connection,
    /// What is noted in the audit: that the tenant is mounted, or that another process goes on.
    pub(crate) begun: Option<Operation>,
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
    let audit = AuditConfig { begun: opening.begun, ..config.audit.clone() };
    let config = FsConfig { connection: opening.connection, audit, ..config };
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

/// What is audited. Who begins to serve says so by itself.
fn audit_config(settings: &Settings) -> AuditConfig {
    let days = u64::from(settings.audit_retention_days);
    AuditConfig {
        level: settings.audit_level,
        node: tarbox_runtime::host_name(),
        pods: Some(Arc::new(PodFile::new(settings.state_dir.join(tarbox_handover::pods::FILE)))),
        keep: (days > 0).then(|| Duration::from_secs(days * 24 * 3600)),
        begun: None,
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
        give_up_after: settings.on_database_outage.patience(),
        read_only: settings.read_only,
        compression: settings.compression.unwrap_or(tenant.compression),
        max_inodes: 100_000,
        audit: audit_config(settings),
        connection: Connection::default(),
    }
}
