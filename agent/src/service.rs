//! `tarbox.agent.v1`: what an operator asks the agent.

use std::sync::Arc;

use procfs::process::Process;
use tarbox_proto::agent::v1::{
    DrainOutcome, DrainRequest, DrainResponse, ListRequest, ListResponse, Tenant, UpgradeOutcome,
    UpgradeRequest, UpgradeResponse, agent_server::Agent,
};
use tarbox_types::{ErrorKind, TenantId};
use tonic::{Request, Response, Status};

use crate::{
    node::Node,
    tenant::{Handle, Snapshot},
    upgrades,
};

/// See the module.
#[derive(Debug)]
pub(crate) struct OperatorService {
    node: Arc<Node>,
    proof: String,
}

impl OperatorService {
    /// Answers for a node; `proof` is what the launcher was found to do.
    pub(crate) fn new(node: Arc<Node>, proof: String) -> Self {
        Self { node, proof }
    }

    /// The tenants that are meant: one, or all.
    fn chosen(&self, tenant_id: &str) -> Result<Option<TenantId>, Status> {
        if tenant_id.is_empty() {
            return Ok(None);
        }
        let tenant = tenant_id.parse::<TenantId>().map_err(|_| {
            tarbox_rpc::status(
                ErrorKind::InvalidArgument,
                format!("tenant_id = `{tenant_id}`: allowed is a UUID"),
            )
        })?;
        match self.node.tenant(tenant) {
            Some(_) => Ok(Some(tenant)),
            None => Err(tarbox_rpc::status(
                ErrorKind::NotFound,
                format!("the tenant {tenant} is not staged on this node"),
            )),
        }
    }

    fn handles(&self, only: Option<TenantId>) -> Vec<(TenantId, Handle)> {
        self.node.all().into_iter().filter(|(tenant, _)| only.is_none_or(|only| only == *tenant)).collect()
    }
}

fn micros(pause: Option<std::time::Duration>) -> u64 {
    pause.map_or(0, |pause| u64::try_from(pause.as_micros()).unwrap_or(u64::MAX))
}

fn resident_bytes(pid: u32) -> u64 {
    let status = Process::new(pid.cast_signed()).and_then(|process| process.status());
    status.ok().and_then(|status| status.vmrss).unwrap_or(0) * 1024
}

fn view(tenant: TenantId, seen: &Snapshot, wanted: &str) -> Tenant {
    let pid = seen.server().map_or(0, |process| process.pid);
    Tenant {
        tenant_id: tenant.to_string(),
        phase: seen.phase().to_owned(),
        pid,
        version: seen.version.clone(),
        build: seen.record.build.as_ref().map(|build| build.0.clone()).unwrap_or_default(),
        wanted_build: wanted.to_owned(),
        restarts: seen.record.restarts,
        hand_overs: seen.hand_overs,
        last_pause_micros: micros(seen.last_pause),
        longest_pause_micros: micros(seen.longest_pause),
        resident_bytes: if pid == 0 { 0 } else { resident_bytes(pid) },
        staging_path: seen.staged.staging_path.to_string_lossy().into_owned(),
        published: seen.staged.published.keys().map(|path| path.to_string_lossy().into_owned()).collect(),
        condition: seen.trouble(),
        memory_limit_bytes: seen.record.memory.bytes(),
    }
}

#[tonic::async_trait]
impl Agent for OperatorService {
    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let only = self.chosen(&request.get_ref().tenant_id)?;
        let wanted = upgrades::wanted(&self.node).await.map(|build| build.0).unwrap_or_default();
        let all = self.handles(only);
        let tenants =
            all.iter().map(|(tenant, handle)| view(*tenant, &handle.snapshot.borrow(), &wanted)).collect();
        let (isolation, isolation_lacks) = self.node.isolation();
        Ok(Response::new(ListResponse {
            tenants,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            agent_pid: std::process::id(),
            launcher: self.node.keeper.launcher().to_owned(),
            launcher_proof: self.proof.clone(),
            isolation,
            isolation_lacks,
            keeper_socket: self.node.settings.keeper_socket.to_string_lossy().into_owned(),
            run_dir: self.node.settings.run_dir.to_string_lossy().into_owned(),
        }))
    }

    async fn upgrade(&self, request: Request<UpgradeRequest>) -> Result<Response<UpgradeResponse>, Status> {
        let UpgradeRequest { tenant_id, dry_run } = request.into_inner();
        let only = self.chosen(&tenant_id)?;
        let build = upgrades::wanted(&self.node)
            .await
            .map_err(|error| tarbox_rpc::status(error.kind(), error.report()))?;
        let outcomes = if dry_run {
            upgrades::plan(&self.node, only, &build)
        } else {
            upgrades::upgrade(&self.node, only, build).await
        };
        let outcomes = outcomes
            .into_iter()
            .map(|outcome| UpgradeOutcome {
                tenant_id: outcome.tenant.to_string(),
                upgraded: outcome.is_upgraded,
                reason: outcome.reason,
                pause_micros: micros(outcome.pause),
            })
            .collect();
        Ok(Response::new(UpgradeResponse { outcomes }))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        let limit = tarbox_rpc::limit(tarbox_rpc::timeout(request.metadata()));
        let only = self.chosen(&request.get_ref().tenant_id)?;
        let flushes = self.handles(only).into_iter().map(|(tenant, _)| {
            let control = self.node.control(tenant);
            tokio::spawn(async move { (tenant, control.flush(limit).await) })
        });
        let mut outcomes = Vec::new();
        for flush in flushes.collect::<Vec<_>>() {
            let Ok((tenant, outcome)) = flush.await else { continue };
            let (drained, reason, committed_sequence) = match outcome {
                Ok(sequence) => (true, "everything is committed".to_owned(), sequence),
                Err(error) => (false, error.report(), 0),
            };
            outcomes.push(DrainOutcome {
                tenant_id: tenant.to_string(),
                drained,
                reason,
                committed_sequence,
            });
        }
        Ok(Response::new(DrainResponse { outcomes }))
    }
}
