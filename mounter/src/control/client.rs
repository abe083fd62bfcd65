//! Talking to a mounter that runs.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tarbox_proto::control::v1::{
    DrainRequest, FlushRequest, RestoreRequest, SealRequest, SetCredentialsRequest, SetLogLevelRequest,
    SetQuotaRequest, StatisticsRequest, StatisticsResponse, StatusRequest, StatusResponse,
    control_client::ControlClient,
};
use tarbox_rpc::Refusal;
use tarbox_store::{Limits, Seal};
use tarbox_types::{BranchId, ErrorKind, Layer, TenantId};
use tonic::transport::Channel;

use crate::{
    failure::Failure,
    lease::{self, DYING_AGAIN},
    tenant_dir::{self, Note},
};

/// A mounter on this machine.
#[derive(Clone, Debug)]
pub struct Mounter {
    /// Its directory.
    pub directory: PathBuf,
    /// What it noted of itself.
    pub note: Note,
    /// It holds its lock: it lives.
    pub is_alive: bool,
}

impl Mounter {
    fn of(directory: PathBuf) -> Option<Self> {
        let note = tenant_dir::read_note(&directory)?;
        Some(Self { is_alive: tenant_dir::is_locked(&directory), note, directory })
    }

    /// All mounters under a state directory; those that died and left their note, too.
    #[must_use]
    pub fn all(state_dir: &Path) -> Vec<Self> {
        tenant_dir::all(state_dir).into_iter().filter_map(Self::of).collect()
    }

    /// The living writer of a tenant, if it runs under this state directory.
    #[must_use]
    pub fn writer_of(state_dir: &Path, tenant: TenantId) -> Option<Self> {
        Self::of(tenant_dir::of(state_dir, tenant)).filter(|mounter| mounter.is_alive)
    }

    /// The living mounter of a directory.
    #[must_use]
    pub fn writer_of_directory(directory: &Path) -> Option<Self> {
        Self::of(directory.to_owned()).filter(|mounter| mounter.is_alive)
    }

    /// The mounter of a tenant that is this process, whether it writes or only reads.
    #[must_use]
    pub fn of_process(state_dir: &Path, tenant: TenantId, pid: u32) -> Option<Self> {
        let writer = tenant_dir::of(state_dir, tenant);
        let reader = tenant_dir::reader(state_dir, tenant, pid);
        [writer, reader].into_iter().filter_map(Self::of).find(|mounter| mounter.note.pid == pid)
    }

    /// The mounter of a mount point: the living one rather than a dead one.
    #[must_use]
    pub fn at(state_dir: &Path, mount_point: &Path) -> Option<Self> {
        let here = Self::all(state_dir).into_iter().filter(|mounter| mounter.note.mount_point == mount_point);
        here.max_by_key(|mounter| mounter.is_alive)
    }

    /// Its process is gone, or killed and on its way out.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        lease::is_dying(&tarbox_runtime::host_name(), self.note.pid)
    }

    /// Has all that was acknowledged committed; `None` where `find` finds nobody (any more). One that dies meanwhile is
    /// no failure: its successor is asked, if it has one.
    ///
    /// # Errors
    /// Where a living one does not come to that within `limit`.
    pub async fn flush(limit: Duration, find: impl Fn() -> Option<Self>) -> Result<Option<u64>, Failure> {
        let deadline = Instant::now() + limit;
        loop {
            let Some(mounter) = find() else { return Ok(None) };
            match async { mounter.connect(limit).await?.flush().await }.await {
                Err(_) if mounter.is_gone() && Instant::now() < deadline => {
                    tokio::time::sleep(DYING_AGAIN).await
                }
                flushed => return flushed.map(Some),
            }
        }
    }

    /// Connects; each call has `deadline` to be answered.
    ///
    /// # Errors
    /// Where it does not listen.
    pub async fn connect(&self, deadline: Duration) -> Result<Control, Failure> {
        let socket = tenant_dir::socket(&self.directory);
        let channel = tarbox_rpc::connect(&socket, deadline)
            .await
            .map_err(Failure::io("reach the mounter at", &socket))?;
        Ok(Control { client: ControlClient::new(channel), pid: self.note.pid })
    }
}

/// A connection to a mounter.
#[derive(Debug)]
pub struct Control {
    client: ControlClient<Channel>,
    pid: u32,
}

impl Control {
    /// What it serves and how it does.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn status(&mut self) -> Result<StatusResponse, Failure> {
        let answer = self.client.status(StatusRequest {}).await;
        answer.map(tonic::Response::into_inner).map_err(|status| self.failure("tell its status", status))
    }

    /// Returns when all it acknowledged before is committed.
    ///
    /// # Errors
    /// Where it does not come to that in time.
    pub async fn flush(&mut self) -> Result<u64, Failure> {
        let answer = self.client.flush(FlushRequest {}).await;
        answer
            .map(|response| response.into_inner().committed_sequence)
            .map_err(|status| self.failure("flush", status))
    }

    /// Sets limits, effective for its next operation.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn set_quota(&mut self, limits: &Limits) -> Result<(), Failure> {
        let request = SetQuotaRequest {
            quota_bytes: limits.bytes,
            quota_inodes: limits.inodes,
            max_file_bytes: limits.file_bytes,
        };
        let answer = self.client.set_quota(request).await;
        answer.map(|_| ()).map_err(|status| self.failure("set its limits", status))
    }

    /// Has a layer sealed that holds everything acknowledged before; returns when it is committed, or under way already.
    ///
    /// # Errors
    /// Where it does not come to that in time.
    pub async fn seal(&mut self, seal: &Seal) -> Result<(), Failure> {
        let request = SealRequest { name: seal.name.clone(), request: seal.request.clone() };
        let answer = self.client.seal(request).await;
        answer.map(|_| ()).map_err(|status| self.failure("make a checkpoint", status))
    }

    /// Lets it go back to a sealed layer; a successor goes on.
    ///
    /// # Errors
    /// Where it cannot, or dies meanwhile: the tenant's row says whether it has happened.
    pub async fn restore(&mut self, branch: BranchId, layer: Layer) -> Result<(), Failure> {
        let answer = self.client.restore(RestoreRequest { branch, layer }).await;
        answer.map(|_| ()).map_err(|status| self.failure("go back to a checkpoint", status))
    }

    /// What it has answered, by operation, and what its file system has counted.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn statistics(&mut self) -> Result<StatisticsResponse, Failure> {
        let answer = self.client.statistics(StatisticsRequest {}).await;
        answer.map(tonic::Response::into_inner).map_err(|status| self.failure("tell its statistics", status))
    }

    /// Gives it another password or user for new connections to its database.
    ///
    /// # Errors
    /// Where it is another database.
    pub async fn set_credentials(&mut self, database_url: &str) -> Result<(), Failure> {
        let request = SetCredentialsRequest { database_url: database_url.to_owned() };
        let answer = self.client.set_credentials(request).await;
        answer.map(|_| ()).map_err(|status| self.failure("take new credentials", status))
    }

    /// Sets which messages it logs.
    ///
    /// # Errors
    /// Where it is no level.
    pub async fn set_log_level(&mut self, level: &str) -> Result<(), Failure> {
        let answer = self.client.set_log_level(SetLogLevelRequest { level: level.to_owned() }).await;
        answer.map(|_| ()).map_err(|status| self.failure("change its log level", status))
    }

    /// Lets it leave the rest to a successor and end.
    ///
    /// # Errors
    /// Where nobody supervises it.
    pub async fn drain(&mut self, limit: Duration) -> Result<(), Failure> {
        let millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let answer = self.client.drain(DrainRequest { millis }).await;
        answer.map(|_| ()).map_err(|status| self.failure("drain", status))
    }

    fn failure(&self, doing: &str, status: tonic::Status) -> Failure {
        let refusal = Refusal::from(status);
        let kind: ErrorKind = refusal.kind();
        Failure::Part {
            kind,
            doing: format!("ask the mounter (pid {}) to {doing}", self.pid),
            source: refusal.into(),
        }
    }
}
