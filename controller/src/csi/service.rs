//! The service: convert, take the turn of what the call is about, do, reply.

use std::{sync::Arc, time::Duration};

use tarbox_proto::csi::v1 as csi;
use tarbox_proto::csi::v1::{controller_server::Controller, controller_service_capability};
use tarbox_rpc::{
    VolumeGuard,
    csi::{RequestError, request::volume as volume_id},
    trace,
};
use tonic::{Request, Response, Status};

use super::{
    answer::{self, refuse},
    request::{self, Expand, Publish, Unpublish, Validate},
};
use crate::{
    databases::Databases,
    failure::{ControllerError, Result as Outcome},
    settings::Settings,
    snapshot::{self, Wanted},
    volume,
};

/// See the module.
pub(crate) struct ControllerService {
    settings: Arc<Settings>,
    databases: Arc<Databases>,
    turns: VolumeGuard,
}

impl ControllerService {
    /// Serves these databases.
    pub(crate) fn new(settings: Arc<Settings>, databases: Arc<Databases>) -> Self {
        Self { settings, databases, turns: VolumeGuard::default() }
    }

    /// Does the work in the turn of `about`: a volume's id, or the name of what has none yet.
    async fn in_turn<T, W>(
        &self,
        about: &str,
        work: impl FnOnce(Arc<Databases>, Arc<Settings>) -> W + Send + 'static,
    ) -> Result<T, Status>
    where
        T: Send + 'static,
        W: Future<Output = Outcome<T>> + Send + 'static,
    {
        let (databases, settings, id) = (self.databases.clone(), self.settings.clone(), about.to_owned());
        let work = async move {
            work(databases, settings).await.map_err(|error| {
                tracing::warn!(about = id, error = error.report(), "a call failed");
                refuse(&error)
            })
        };
        self.turns.run(about, work).await
    }

    /// Whether volumes can be used where the request wants one to be.
    fn check_topology(&self, wanted: Option<&csi::TopologyRequirement>) -> Outcome<()> {
        let here = &self.settings.topology;
        let is_here = |topology: &csi::Topology| {
            topology.segments.iter().all(|(key, value)| here.get(key).is_none_or(|known| known == value))
        };
        let requisite = wanted.map_or(&[][..], |wanted| &wanted.requisite);
        if here.is_empty() || requisite.is_empty() || requisite.iter().any(is_here) {
            return Ok(());
        }
        let shown: Vec<_> = here.iter().map(|(key, value)| format!("{key}={value}")).collect();
        Err(ControllerError::Elsewhere { here: shown.join(",") })
    }
}

/// Reads a request, with the time there is for it.
fn read<'r, Wire, Read>(request: &'r Request<Wire>) -> Result<(Read, Duration), Status>
where
    Read: TryFrom<&'r Wire, Error = RequestError>,
{
    let read = Read::try_from(request.get_ref()).map_err(wrong)?;
    Ok((read, tarbox_rpc::limit(tarbox_rpc::timeout(request.metadata()))))
}

fn wrong(error: RequestError) -> Status {
    refuse(&error.into())
}

fn secret(secrets: &std::collections::HashMap<String, String>) -> Result<Option<String>, Status> {
    tarbox_rpc::csi::parameters::secret_url(secrets).map_err(wrong)
}

fn capabilities() -> Vec<csi::ControllerServiceCapability> {
    use controller_service_capability::{Rpc, Type, rpc::Type as Can};
    [
        Can::CreateDeleteVolume,
        Can::PublishUnpublishVolume,
        Can::PublishReadonly,
        Can::ListVolumes,
        Can::ListVolumesPublishedNodes,
        Can::GetCapacity,
        Can::CreateDeleteSnapshot,
        Can::ListSnapshots,
        Can::GetSnapshot,
        Can::CloneVolume,
        Can::ExpandVolume,
        Can::GetVolume,
        Can::ModifyVolume,
        Can::VolumeCondition,
        Can::SingleNodeMultiWriter,
    ]
    .into_iter()
    .map(|can| csi::ControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: can.into() })) })
    .collect()
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Result<Response<csi::CreateVolumeResponse>, Status> {
        let (create, limit) = read::<_, volume::Create>(&request)?;
        self.check_topology(request.get_ref().accessibility_requirements.as_ref())
            .map_err(|error| refuse(&error))?;
        let about = format!("volume {}", create.name);
        let work = move |databases: Arc<Databases>, settings: Arc<Settings>| async move {
            volume::create(&databases, &settings, create, limit).await
        };
        let made = self.in_turn(&about, work).await?;
        trace::about(made.tenant.id);
        let volume = answer::volume(&made, &self.settings.topology);
        Ok(Response::new(csi::CreateVolumeResponse { volume: Some(volume) }))
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Result<Response<csi::DeleteVolumeResponse>, Status> {
        let csi::DeleteVolumeRequest { volume_id, secrets } = request.into_inner();
        let named = secret(&secrets)?;
        if let Some(id) = request::any_volume(&volume_id).map_err(wrong)? {
            trace::about(id);
            let work = move |databases: Arc<Databases>, _| async move {
                volume::delete(&databases, id, named.as_deref()).await
            };
            self.in_turn(&volume_id, work).await?;
        }
        Ok(Response::new(csi::DeleteVolumeResponse {}))
    }

    async fn controller_publish_volume(
        &self,
        request: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerPublishVolumeResponse>, Status> {
        let (asked, _) = read::<_, Publish>(&request)?;
        trace::about(asked.publication.tenant);
        let work = move |databases: Arc<Databases>, _| async move {
            volume::publish(&databases, &asked.publication, asked.database_url.as_deref()).await
        };
        let attachment = self.in_turn(&request.get_ref().volume_id, work).await?;
        Ok(Response::new(csi::ControllerPublishVolumeResponse { publish_context: attachment.context() }))
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerUnpublishVolumeResponse>, Status> {
        let (asked, _) = read::<_, Unpublish>(&request)?;
        if let Some(id) = asked.volume {
            trace::about(id);
            let work = move |databases: Arc<Databases>, _| async move {
                let (node, named) = (asked.node.as_deref(), asked.database_url.as_deref());
                volume::unpublish(&databases, id, node, named).await
            };
            self.in_turn(&request.get_ref().volume_id, work).await?;
        }
        Ok(Response::new(csi::ControllerUnpublishVolumeResponse {}))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<csi::ValidateVolumeCapabilitiesResponse>, Status> {
        let (asked, _) = read::<_, Validate>(&request)?;
        trace::about(asked.volume);
        let found = async {
            let place = self.databases.of_volume(asked.volume, asked.database_url.as_deref()).await?;
            volume::find(&*place.database, asked.volume).await
        };
        found.await.map_err(|error| refuse(&error))?;
        let request = request.into_inner();
        let confirmed =
            asked.objection.is_none().then_some(csi::validate_volume_capabilities_response::Confirmed {
                volume_context: request.volume_context,
                volume_capabilities: request.volume_capabilities,
                parameters: request.parameters,
                mutable_parameters: request.mutable_parameters,
            });
        let message = asked.objection.unwrap_or_default();
        Ok(Response::new(csi::ValidateVolumeCapabilitiesResponse { confirmed, message }))
    }

    async fn list_volumes(
        &self,
        request: Request<csi::ListVolumesRequest>,
    ) -> Result<Response<csi::ListVolumesResponse>, Status> {
        use csi::list_volumes_response::{Entry, VolumeStatus};
        let csi::ListVolumesRequest { max_entries, starting_token } = request.into_inner();
        let most = request::most(max_entries).map_err(wrong)?;
        let found = async {
            let place = self.databases.of_request(None).await?;
            let page = volume::page(&*place.database, &starting_token, most).await?;
            let nodes = volume::nodes(&*place.database, &page.entries).await?;
            Ok((page, nodes))
        };
        let (page, nodes) = found.await.map_err(|error: ControllerError| refuse(&error))?;
        let entries = page.entries.into_iter().zip(nodes).map(|(tenant, published_node_ids)| {
            let volume_condition = Some(answer::condition(&tenant));
            let status = VolumeStatus { volume_condition, published_node_ids };
            let volume = volume::Volume { tenant, description: volume::Description::default() };
            Entry { volume: Some(answer::volume(&volume, &self.settings.topology)), status: Some(status) }
        });
        Ok(Response::new(csi::ListVolumesResponse {
            entries: entries.collect(),
            next_token: page.next.unwrap_or_default(),
        }))
    }

    async fn get_capacity(
        &self,
        request: Request<csi::GetCapacityRequest>,
    ) -> Result<Response<csi::GetCapacityResponse>, Status> {
        let named = request::capacity_of(request.get_ref()).map_err(wrong)?;
        let wanted = request
            .into_inner()
            .accessible_topology
            .map(|topology| csi::TopologyRequirement { requisite: vec![topology], preferred: Vec::new() });
        let found = async {
            if self.check_topology(wanted.as_ref()).is_err() {
                return Ok(0);
            }
            let place = self.databases.of_request(named.as_deref()).await?;
            volume::available(&place, self.settings.capacity).await
        };
        let available = found.await.map_err(|error: ControllerError| refuse(&error))?;
        Ok(Response::new(csi::GetCapacityResponse {
            available_capacity: i64::try_from(available).unwrap_or(i64::MAX),
            ..Default::default()
        }))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::ControllerGetCapabilitiesResponse>, Status> {
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse { capabilities: capabilities() }))
    }

    async fn create_snapshot(
        &self,
        request: Request<csi::CreateSnapshotRequest>,
    ) -> Result<Response<csi::CreateSnapshotResponse>, Status> {
        let (create, limit) = read::<_, snapshot::Create>(&request)?;
        let about = request.into_inner().source_volume_id;
        let work = move |databases: Arc<Databases>, _| async move {
            let made = snapshot::create(&databases, create, limit).await?;
            answer::snapshot(&made)
        };
        let snapshot = self.in_turn(&about, work).await?;
        Ok(Response::new(csi::CreateSnapshotResponse { snapshot: Some(snapshot) }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<csi::DeleteSnapshotRequest>,
    ) -> Result<Response<csi::DeleteSnapshotResponse>, Status> {
        let csi::DeleteSnapshotRequest { snapshot_id, secrets } = request.into_inner();
        let named = secret(&secrets)?;
        if let Some(id) = request::any_snapshot(&snapshot_id).map_err(wrong)? {
            let work = move |databases: Arc<Databases>, _| async move {
                snapshot::delete(&databases, id, named.as_deref()).await
            };
            self.in_turn(&snapshot_id, work).await?;
        }
        Ok(Response::new(csi::DeleteSnapshotResponse {}))
    }

    async fn list_snapshots(
        &self,
        request: Request<csi::ListSnapshotsRequest>,
    ) -> Result<Response<csi::ListSnapshotsResponse>, Status> {
        use csi::list_snapshots_response::Entry;
        let request = request.into_inner();
        let most = request::most(request.max_entries).map_err(wrong)?;
        let named = secret(&request.secrets)?;
        let found = async {
            let wanted = Wanted::from(&request);
            let place = match wanted {
                Wanted::One(Some(id), _) => self.databases.of_snapshot(id, named.as_deref()).await?,
                Wanted::Of(Some(volume)) => self.databases.of_volume(volume, named.as_deref()).await?,
                Wanted::All | Wanted::Of(None) | Wanted::One(None, _) => {
                    self.databases.of_request(named.as_deref()).await?
                }
            };
            let page = snapshot::page(&*place.database, wanted, &request.starting_token, most).await?;
            let entries = page
                .entries
                .iter()
                .map(|record| answer::snapshot(record).map(|snapshot| Entry { snapshot: Some(snapshot) }));
            Ok(csi::ListSnapshotsResponse {
                entries: entries.collect::<Outcome<_>>()?,
                next_token: page.next.unwrap_or_default(),
            })
        };
        let found: Outcome<_> = found.await;
        found.map(Response::new).map_err(|error| refuse(&error))
    }

    async fn get_snapshot(
        &self,
        request: Request<csi::GetSnapshotRequest>,
    ) -> Result<Response<csi::GetSnapshotResponse>, Status> {
        let csi::GetSnapshotRequest { snapshot_id, secrets } = request.into_inner();
        let (named, id) = (secret(&secrets)?, request::snapshot_id(&snapshot_id).map_err(wrong)?);
        let found = async {
            let place = self.databases.of_snapshot(id, named.as_deref()).await?;
            answer::snapshot(&snapshot::find(&*place.database, id).await?)
        };
        let found = found.await.map_err(|error| refuse(&error))?;
        Ok(Response::new(csi::GetSnapshotResponse { snapshot: Some(found) }))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Result<Response<csi::ControllerExpandVolumeResponse>, Status> {
        let (asked, _) = read::<_, Expand>(&request)?;
        let Expand { volume, capacity, database_url } = asked;
        trace::about(volume);
        let settings = Arc::clone(&self.settings);
        let work = move |databases: Arc<Databases>, _| async move {
            volume::expand(&databases, &settings, volume, capacity, database_url.as_deref()).await
        };
        let expanded = self.in_turn(&request.get_ref().volume_id, work).await?;
        Ok(Response::new(csi::ControllerExpandVolumeResponse {
            capacity_bytes: answer::bytes(expanded.bytes),
            node_expansion_required: expanded.is_mounted,
        }))
    }

    async fn controller_get_volume(
        &self,
        request: Request<csi::ControllerGetVolumeRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeResponse>, Status> {
        use csi::controller_get_volume_response::VolumeStatus;
        let id = volume_id(&request.get_ref().volume_id).map_err(wrong)?;
        trace::about(id);
        let found = async {
            let place = self.databases.of_volume(id, None).await?;
            let found = volume::find(&*place.database, id).await?;
            let nodes = volume::nodes(&*place.database, std::slice::from_ref(&found.tenant)).await?;
            Ok((found, nodes.concat()))
        };
        let (found, published_node_ids) = found.await.map_err(|error: ControllerError| refuse(&error))?;
        let volume_condition = Some(answer::condition(&found.tenant));
        let status = VolumeStatus { volume_condition, published_node_ids };
        Ok(Response::new(csi::ControllerGetVolumeResponse {
            volume: Some(answer::volume(&found, &self.settings.topology)),
            status: Some(status),
        }))
    }

    async fn controller_modify_volume(
        &self,
        request: Request<csi::ControllerModifyVolumeRequest>,
    ) -> Result<Response<csi::ControllerModifyVolumeResponse>, Status> {
        let (asked, _) = read::<_, volume::Modify>(&request)?;
        trace::about(asked.volume);
        let work = move |databases: Arc<Databases>, _| async move { volume::modify(&databases, asked).await };
        self.in_turn(&request.get_ref().volume_id, work).await?;
        Ok(Response::new(csi::ControllerModifyVolumeResponse {}))
    }
}
