//! The mounter's side of its control socket.

use std::{path::PathBuf, sync::Arc};

use tarbox_fs::FileSystem;
use tarbox_proto::control::v1::{
    FlushRequest, FlushResponse, SetQuotaRequest, SetQuotaResponse, StatusRequest, StatusResponse,
    control_server::{Control, ControlServer},
};
use tarbox_rpc::{PrivateListener, status};
use tarbox_store::Limits;
use tonic::{Request, Response, Status, transport::Server};

use crate::{
    failure::{Chain, Failure},
    tenant_dir::Note,
};

/// Answers for one mounted tenant.
struct Service {
    file_system: Arc<FileSystem>,
    note: Note,
    epoch: u64,
}

#[tonic::async_trait]
impl Control for Service {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let now = self.file_system.status();
        Ok(Response::new(StatusResponse {
            tenant_id: self.note.tenant_id.to_string(),
            tenant_name: self.note.tenant_name.clone(),
            version: self.note.version.clone(),
            pid: self.note.pid,
            epoch: self.epoch,
            journal_sequence: now.seq,
            committed_sequence: now.committed,
            journal_bytes: now.journal_bytes,
            used_bytes: now.used_bytes,
            quota_bytes: now.limits.bytes,
            used_inodes: now.used_inodes,
            quota_inodes: now.limits.inodes,
            mount_point: self.note.mount_point.to_string_lossy().into_owned(),
            waiting_for: now.lost.or(now.waiting_for).unwrap_or_default(),
            cache_bytes: now.cache_bytes,
            operations: 0,
        }))
    }

    async fn flush(&self, _: Request<FlushRequest>) -> Result<Response<FlushResponse>, Status> {
        match self.file_system.flush().await {
            Ok(committed_sequence) => Ok(Response::new(FlushResponse { committed_sequence })),
            Err(error) => Err(status(error.kind(), Chain(&error).to_string())),
        }
    }

    async fn set_quota(
        &self,
        request: Request<SetQuotaRequest>,
    ) -> Result<Response<SetQuotaResponse>, Status> {
        let SetQuotaRequest { quota_bytes, quota_inodes, max_file_bytes } = request.into_inner();
        self.file_system.set_limits(Limits {
            bytes: quota_bytes,
            inodes: quota_inodes,
            file_bytes: max_file_bytes,
        });
        tracing::info!(quota_bytes, quota_inodes, max_file_bytes, "new limits");
        Ok(Response::new(SetQuotaResponse {}))
    }
}

/// Serves the control socket until the returned guard is dropped.
///
/// # Errors
/// Where the socket cannot be made.
pub fn serve(
    socket: PathBuf,
    file_system: Arc<FileSystem>,
    note: Note,
    epoch: u64,
) -> Result<Serving, Failure> {
    let listener = PrivateListener::bind(&socket).map_err(Failure::io("listen at", &socket))?;
    let service = ControlServer::new(Service { file_system, note, epoch });
    let task = tokio::spawn(async move {
        if let Err(error) = Server::builder().add_service(service).serve_with_incoming(listener).await {
            tracing::error!(error = %Chain(&error), "the control socket is no longer served");
        }
    });
    Ok(Serving { task })
}

/// The control socket is served while this lives.
#[derive(Debug)]
pub struct Serving {
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}
