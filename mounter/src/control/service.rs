//! The mounter's side of its control socket.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tarbox_proto::control::v1::{
    DrainRequest, DrainResponse, FlushRequest, FlushResponse, RestoreRequest, RestoreResponse, SealRequest,
    SealResponse, SetCredentialsRequest, SetCredentialsResponse, SetLogLevelRequest, SetLogLevelResponse,
    SetQuotaRequest, SetQuotaResponse, StatisticsRequest, StatisticsResponse, StatusRequest, StatusResponse,
    StopRequest, StopResponse,
    control_server::{Control, ControlServer},
};
use tarbox_rpc::{PrivateListener, status, trace};
use tarbox_runtime::telemetry::{self, LogLevel};
use tarbox_store::{Limits, Seal};
use tarbox_types::ErrorKind;
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, transport::Server};

use super::subject::{Ordered, Subject};
use crate::{
    failure::{Chain, Failure},
    restore, secrets,
};

/// Answers for one mounted tenant.
struct Service {
    subject: Arc<Subject>,
    /// Where its mounter keeps its state.
    directory: PathBuf,
}

#[tonic::async_trait]
impl Control for Service {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.subject.status()))
    }

    async fn statistics(
        &self,
        _: Request<StatisticsRequest>,
    ) -> Result<Response<StatisticsResponse>, Status> {
        Ok(Response::new(self.subject.statistics()))
    }

    async fn set_credentials(
        &self,
        request: Request<SetCredentialsRequest>,
    ) -> Result<Response<SetCredentialsResponse>, Status> {
        let url = request.into_inner().database_url;
        let taken = self.subject.database.set_credentials(&url);
        taken.map_err(|error| status(error.kind(), Chain(&error).to_string()))?;
        tracing::info!("new credentials for connections to the database");
        let sealed = secrets::seal(&url);
        let sealed = sealed.map_err(|failure| status(failure.kind(), failure.report().to_string()))?;
        // Answered when a successor would have them, too.
        let (told, is_told) = oneshot::channel();
        if !self.subject.order(Ordered::Renew(sealed, told)).await || is_told.await.is_err() {
            return Err(ending());
        }
        Ok(Response::new(SetCredentialsResponse {}))
    }

    async fn set_log_level(
        &self,
        request: Request<SetLogLevelRequest>,
    ) -> Result<Response<SetLogLevelResponse>, Status> {
        let text = request.into_inner().level;
        let bad =
            |allowed| status(ErrorKind::InvalidArgument, format!("level = `{text}`: allowed is {allowed}"));
        let level: LogLevel = text.parse().map_err(bad)?;
        if !telemetry::set_level(&level) {
            return Err(status(ErrorKind::FailedPrecondition, "this process writes no log".to_owned()));
        }
        tracing::info!(level = text, "new log level");
        Ok(Response::new(SetLogLevelResponse {}))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        let limit = Duration::from_millis(request.into_inner().millis);
        if !self.subject.order(Ordered::Drain(limit)).await {
            return Err(ending());
        }
        Ok(Response::new(DrainResponse {}))
    }

    async fn seal(&self, request: Request<SealRequest>) -> Result<Response<SealResponse>, Status> {
        let SealRequest { name, request } = request.into_inner();
        match self.subject.file_system().seal(&Seal { name, request }).await {
            Ok(()) => Ok(Response::new(SealResponse {})),
            Err(error) => Err(status(ErrorKind::FailedPrecondition, Chain(&error).to_string())),
        }
    }

    async fn restore(&self, request: Request<RestoreRequest>) -> Result<Response<RestoreResponse>, Status> {
        let RestoreRequest { branch, layer } = request.into_inner();
        let (subject, directory) = (Arc::clone(&self.subject), self.directory.clone());
        // In a task of its own: a caller who hangs up must not leave it half done.
        let restored = tokio::spawn(async move { restore::begin(&subject, &directory, branch, layer).await });
        match restored.await {
            Ok(Ok(())) => Ok(Response::new(RestoreResponse {})),
            Ok(Err(failure)) => Err(status(failure.kind(), failure.report().to_string())),
            Err(_) => Err(ending()),
        }
    }

    async fn stop(&self, _: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        if !self.subject.order(Ordered::Stop).await {
            return Err(ending());
        }
        Ok(Response::new(StopResponse {}))
    }

    async fn flush(&self, _: Request<FlushRequest>) -> Result<Response<FlushResponse>, Status> {
        match self.subject.file_system().flush().await {
            Ok(committed_sequence) => Ok(Response::new(FlushResponse { committed_sequence })),
            Err(error) => Err(status(error.kind(), Chain(&error).to_string())),
        }
    }

    async fn set_quota(
        &self,
        request: Request<SetQuotaRequest>,
    ) -> Result<Response<SetQuotaResponse>, Status> {
        let SetQuotaRequest { quota_bytes, quota_inodes, max_file_bytes } = request.into_inner();
        self.subject.file_system().set_limits(Limits {
            bytes: quota_bytes,
            inodes: quota_inodes,
            file_bytes: max_file_bytes,
        });
        tracing::info!(quota_bytes, quota_inodes, max_file_bytes, "new limits");
        Ok(Response::new(SetQuotaResponse {}))
    }
}

fn ending() -> Status {
    status(ErrorKind::FailedPrecondition, "it is ending".to_owned())
}

/// Serves the control socket until the returned guard is dropped.
///
/// # Errors
/// Where the socket cannot be made.
pub fn serve(socket: PathBuf, subject: Arc<Subject>) -> Result<Serving, Failure> {
    let listener = PrivateListener::bind(&socket).map_err(Failure::io("listen at", &socket))?;
    let directory = socket.parent().map(Path::to_owned).unwrap_or_default();
    let spans = trace::answering(tarbox_runtime::host_name(), Some(subject.note.tenant_id));
    let service = ControlServer::new(Service { subject, directory });
    let task = tokio::spawn(async move {
        let server = Server::builder().trace_fn(spans).add_service(service);
        if let Err(error) = server.serve_with_incoming(listener).await {
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
