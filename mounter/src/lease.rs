//! Taking a tenant's lease for this process.

use std::{fs, path::Path, sync::Arc, time::Duration};

use tarbox_runtime::{Backoff, host_name};
use tarbox_store::{Database, Holder, Lease, NewSession, StoreError};
use tarbox_types::{ErrorKind, SessionId, TenantId};
use uuid::Uuid;

use crate::{failure::Failure, tenant_dir::TenantDir};

/// How long to wait for the lease of a holder that the database knows to be gone: longer than two lease times.
const GRACE_MAX: Duration = Duration::from_secs(90);

/// Registers this process as a session.
///
/// # Errors
/// Where /proc or the database cannot be read.
pub async fn open_session(database: &Arc<dyn Database>) -> Result<SessionId, Failure> {
    let session = describe_process(SessionId(Uuid::new_v4()))?;
    database.open_session(&session).await?;
    Ok(session.id)
}

fn describe_process(id: SessionId) -> Result<NewSession, Failure> {
    let boot_id_path = Path::new("/proc/sys/kernel/random/boot_id");
    let boot_id = fs::read_to_string(boot_id_path).map_err(Failure::io("read", boot_id_path))?;
    let stat = procfs::process::Process::myself().and_then(|process| process.stat());
    let start_time = stat
        .map_err(|source| Failure::Part {
            kind: ErrorKind::Internal,
            doing: "read /proc/self/stat".to_owned(),
            source: source.into(),
        })?
        .starttime;
    Ok(NewSession {
        id,
        node: host_name(),
        boot_id: boot_id.trim().to_owned(),
        pid: std::process::id(),
        start_time,
    })
}

/// Takes the lease.
///
/// Who holds the directory's lock knows that the mounter which noted itself there is dead, and ends its session for
/// it: nobody has to wait for its lease to run out. For a holder elsewhere that the database no longer counts as
/// living, the grace rule is waited out, with this session renewed meanwhile.
///
/// # Errors
/// [`StoreError::Held`] while another mounter lives.
pub async fn acquire(
    database: &Arc<dyn Database>,
    tenant: TenantId,
    session: SessionId,
    directory: &TenantDir,
) -> Result<Lease, Failure> {
    let dead = directory.previous().map(|note| note.session);
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    let deadline = tokio::time::Instant::now() + GRACE_MAX;
    loop {
        let holder = match database.acquire(tenant, session).await {
            Err(StoreError::Held { holder, .. }) => holder,
            answer => return Ok(answer?),
        };
        if dead == Some(holder.session) {
            tracing::info!(pid = holder.pid, "ending the session of the mounter that died here");
            database.close_session(holder.session).await?;
            continue;
        }
        let is_over = tokio::time::Instant::now() >= deadline;
        if is_over || (is_living(database, tenant).await? && !is_dying(&holder.node, holder.pid)) {
            return Err(StoreError::Held { tenant, holder }.into());
        }
        wait_for(&holder, backoff.delay()).await;
        database.beat(session).await?;
    }
}

/// How often a mounter that was killed is looked at for being gone.
pub(crate) const DYING_AGAIN: Duration = Duration::from_millis(5);

/// Whether a mounter on this host is on its way out: killed, but not yet done with giving back what it had. That takes a while where it
/// had much memory, and whoever kills a mounter and mounts anew is not to be refused for it.
pub(crate) fn is_dying(node: &str, pid: u32) -> bool {
    const PF_EXITING: u32 = 4;
    const KILLED: u64 = 1 << (libc::SIGKILL - 1);
    if node != host_name() {
        return false;
    }
    match procfs::process::Process::new(pid.cast_signed())
        .and_then(|process| Ok((process.stat()?, process.status()?)))
    {
        Ok((stat, status)) => {
            let is_ended = matches!(stat.state, 'Z' | 'X') || stat.flags & PF_EXITING != 0;
            is_ended || (status.shdpnd | status.sigpnd) & KILLED != 0
        }
        Err(procfs::ProcError::NotFound(_)) => true,
        Err(_) => false,
    }
}

async fn is_living(database: &Arc<dyn Database>, tenant: TenantId) -> Result<bool, Failure> {
    Ok(database.tenant(tenant).await?.is_some_and(|tenant| tenant.holder.is_some()))
}

async fn wait_for(holder: &Holder, delay: Duration) {
    tracing::info!(
        node = holder.node,
        pid = holder.pid,
        "waiting until the lease of a dead mounter may be taken"
    );
    tokio::time::sleep(delay).await;
}
