//! A mounter's control socket, with a deadline for each call.

use std::{path::PathBuf, time::Duration};

use tarbox_proto::control::v1::{
    DrainRequest, FlushRequest, Phase, SetCredentialsRequest, SetQuotaRequest, StatisticsRequest,
    StatisticsResponse, StatusRequest, StatusResponse, StopRequest, control_client::ControlClient,
};
use tarbox_rpc::{Refusal, trace};
use tarbox_supervisor::Answer;
use tarbox_types::TenantId;
use tonic::{Request, Response, Status, service::interceptor::InterceptedService, transport::Channel};

use crate::failure::AgentError;

/// Calls that say which trace they belong to.
type Asking = fn(Request<()>) -> Result<Request<()>, Status>;
type Traced = InterceptedService<Channel, Asking>;

/// A mounter's control socket.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    tenant: TenantId,
    socket: PathBuf,
    /// Who has to listen there, where it is a user of its own: the directory is that user's.
    user: Option<u32>,
}

impl Control {
    pub(crate) fn new(tenant: TenantId, socket: PathBuf, user: Option<u32>) -> Self {
        Self { tenant, socket, user }
    }

    /// What it serves and how it does.
    ///
    /// # Errors
    /// Where it does not answer in time; so with all the others.
    pub(crate) async fn status(&self, limit: Duration) -> Result<StatusResponse, AgentError> {
        let asked = async { self.client(limit).await?.status(StatusRequest {}).await };
        self.answer("tell its status", limit, asked).await
    }

    /// What it has counted.
    pub(crate) async fn statistics(&self, limit: Duration) -> Result<StatisticsResponse, AgentError> {
        let asked = async { self.client(limit).await?.statistics(StatisticsRequest {}).await };
        self.answer("tell its statistics", limit, asked).await
    }

    /// Returns when all it acknowledged before is committed; the sequence number of the last record.
    pub(crate) async fn flush(&self, limit: Duration) -> Result<u64, AgentError> {
        let asked = async { self.client(limit).await?.flush(FlushRequest {}).await };
        self.answer("commit everything", limit, asked).await.map(|answer| answer.committed_sequence)
    }

    /// Sets limits, effective for its next operation; 0 = unlimited.
    pub(crate) async fn set_quota(&self, quota: SetQuotaRequest, limit: Duration) -> Result<(), AgentError> {
        let asked = async { self.client(limit).await?.set_quota(quota).await };
        self.answer("set its limits", limit, asked).await.map(drop)
    }

    /// Gives it another password for the connections that it makes from now on.
    pub(crate) async fn set_credentials(
        &self,
        database_url: String,
        limit: Duration,
    ) -> Result<(), AgentError> {
        let request = SetCredentialsRequest { database_url };
        let asked = async { self.client(limit).await?.set_credentials(request).await };
        self.answer("take the new password", limit, asked).await.map(drop)
    }

    /// Lets it leave the rest to a successor, what executes finished within so many milliseconds.
    pub(crate) async fn drain(&self, millis: u64, limit: Duration) -> Result<(), AgentError> {
        let asked = async { self.client(limit).await?.drain(DrainRequest { millis }).await };
        self.answer("leave the rest to a successor", limit, asked).await.map(drop)
    }

    /// Lets it commit everything, give everything back, and end.
    pub(crate) async fn stop(&self, limit: Duration) -> Result<(), AgentError> {
        let asked = async { self.client(limit).await?.stop(StopRequest {}).await };
        self.answer("end", limit, asked).await.map(drop)
    }

    async fn client(&self, limit: Duration) -> Result<ControlClient<Traced>, Status> {
        let channel = tarbox_rpc::connect_to(&self.socket, self.user, limit).await;
        channel.map(|channel| ControlClient::with_interceptor(channel, trace::asking as Asking)).map_err(
            |error| {
                tarbox_rpc::status(
                    tarbox_types::ErrorKind::Unavailable,
                    format!("it does not listen: {error}"),
                )
            },
        )
    }

    async fn answer<T>(
        &self,
        doing: &'static str,
        limit: Duration,
        asked: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, AgentError> {
        let late = |_| {
            Err(tarbox_rpc::status(tarbox_types::ErrorKind::Unavailable, "no answer within the deadline"))
        };
        let answer = tokio::time::timeout(limit, asked).await.unwrap_or_else(late);
        answer.map(Response::into_inner).map_err(|status| AgentError::Control {
            tenant: self.tenant,
            doing,
            source: Refusal::from(status),
        })
    }
}

/// What a status says to the supervisor.
pub(crate) fn answer_of(status: &StatusResponse) -> Answer {
    // Releases that say nothing of it answer only while they serve.
    let is_serving = matches!(status.phase(), Phase::Serving | Phase::Unspecified);
    let executing = Duration::from_millis(status.longest_executing_ms);
    Answer::new(is_serving, executing, &status.waiting_for)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_nothing_of_its_phase_serves() {
        let told = |phase: Phase| {
            answer_of(&StatusResponse { phase: phase.into(), longest_executing_ms: 7, ..Default::default() })
        };
        assert_eq!(told(Phase::Serving).executing_longest, Duration::from_millis(7));
        assert!(told(Phase::Serving).serving && told(Phase::Unspecified).serving);
        assert!(!told(Phase::Starting).serving && !told(Phase::Draining).serving);
    }
}
