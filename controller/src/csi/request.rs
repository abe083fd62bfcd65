//! What a Controller request asks for, once it is known to be complete and sensible. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use tarbox_proto::csi::v1 as csi;
use tarbox_rpc::csi::{
    RequestError, capability, native,
    parameters::{self, DATABASE_URL},
    request::{Capacity, capacity, required, volume},
};
use tarbox_store::{Publication, VolumeRecord};
use tarbox_types::{HumanDuration, TenantId, database_url};
use uuid::Uuid;

use crate::{
    snapshot::{self, Wanted},
    volume::{self as volumes, Description, Source},
};

/// Parameters of a StorageClass.
const PARAMETERS: &str = "parameters";
/// Those of a VolumeAttributesClass.
const MUTABLE: &str = "mutable_parameters";
/// Checkpoints that are made by themselves are looked after every ten seconds.
const LEAST_INTERVAL: Duration = Duration::from_secs(10);
/// Names of volumes and snapshots have at most so many bytes. Source: CSI "CreateVolumeRequest.name".
const NAME_MOST: usize = 128;

fn name(text: &str) -> Result<String, RequestError> {
    required("name", text)?;
    if text.len() <= NAME_MOST && !text.contains(char::is_control) {
        return Ok(text.to_owned());
    }
    Err(RequestError::value("name", text, format!("1 to {NAME_MOST} bytes without control characters")))
}

fn capabilities(wanted: &[csi::VolumeCapability]) -> Result<(), RequestError> {
    if wanted.is_empty() {
        return Err(RequestError::Missing("volume_capabilities"));
    }
    wanted.iter().try_for_each(|capability| capability::read(Some(capability), false).map(drop))
}

impl TryFrom<&csi::CreateVolumeRequest> for volumes::Create {
    type Error = RequestError;

    fn try_from(request: &csi::CreateVolumeRequest) -> Result<Self, RequestError> {
        let name = name(&request.name)?;
        if VolumeRecord::is_reserved(&name) {
            let allowed = "a name that does not begin with `inline:` or `tenant:`";
            return Err(RequestError::value("name", name, allowed));
        }
        capabilities(&request.volume_capabilities)?;
        let parameters = class_parameters(&request.parameters)?;
        let mutable = mutable(&request.mutable_parameters)?;
        let source = request.volume_content_source.as_ref().map(source).transpose()?;
        let description = Description { parameters, mutable, source, elsewhere: None };
        let block_size = description.block_size();
        if let Some(bytes) = block_size.filter(|bytes| !bytes.is_power_of_two()) {
            return Err(RequestError::value("parameters.blockSize", bytes, "a power of two from 4Ki to 4Mi"));
        }
        Ok(Self {
            name,
            capacity: capacity(request.capacity_range.as_ref())?,
            block_size: block_size.and_then(|bytes| u32::try_from(bytes).ok()),
            compression: description.compression(),
            file_bytes: description.file_bytes().unwrap_or(0),
            inodes: description.inodes(),
            database_url: parameters::secret_url(&request.secrets)?,
            description,
        })
    }
}

fn sorted(given: &HashMap<String, String>) -> BTreeMap<String, String> {
    given.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// What a value has to be beyond what a node asks of it.
fn check(field: &'static str, key: &str, value: &str) -> Result<(), RequestError> {
    parameters::check(field, key, value)?;
    let refused = |shown: &str, allowed: &str| {
        Err(RequestError::value(format!("{field}.{key}"), shown, allowed.to_owned()))
    };
    match key {
        "tenant_id" | "tenant_name" => refused(value, "nothing: the driver gives volumes their names"),
        "checkpointInterval" if value.parse::<HumanDuration>().is_ok_and(|time| time.0 < LEAST_INTERVAL) => {
            refused(value, "10s or more")
        }
        "checkpointRetention" if value.trim() == "0" => refused(value, "1 or more"),
        DATABASE_URL if database_url::public(value).1 => {
            refused(&database_url::public(value).0, "a URL without a password: passwords belong in a Secret")
        }
        _ => Ok(()),
    }
}

fn class_parameters(given: &HashMap<String, String>) -> Result<BTreeMap<String, String>, RequestError> {
    let sorted = sorted(given);
    for (key, value) in sorted.iter().filter(|(key, _)| !parameters::is_foreign(key)) {
        check(PARAMETERS, key, value)?;
    }
    // What its templates stand for is known to whoever stages the volume; any tenant will do here.
    native::read(given, TenantId::random())?;
    Ok(sorted)
}

/// What may be said at any time, by a VolumeAttributesClass.
fn mutable(given: &HashMap<String, String>) -> Result<BTreeMap<String, String>, RequestError> {
    let sorted = sorted(given);
    for (key, value) in &sorted {
        check(MUTABLE, key, value)?;
        if !parameters::may_change(key) {
            let allowed =
                format!("nothing: it is fixed when the volume is made; {} may change", parameters::mutable());
            return Err(RequestError::value(format!("{MUTABLE}.{key}"), value, allowed));
        }
    }
    Ok(sorted)
}

impl TryFrom<&csi::ControllerModifyVolumeRequest> for volumes::Modify {
    type Error = RequestError;

    fn try_from(request: &csi::ControllerModifyVolumeRequest) -> Result<Self, RequestError> {
        Ok(Self {
            volume: volume(&request.volume_id)?,
            parameters: mutable(&request.mutable_parameters)?,
            database_url: parameters::secret_url(&request.secrets)?,
        })
    }
}

fn source(given: &csi::VolumeContentSource) -> Result<Source, RequestError> {
    use csi::volume_content_source::Type;
    match &given.r#type {
        Some(Type::Snapshot(source)) => snapshot_id(&source.snapshot_id).map(Source::Snapshot),
        Some(Type::Volume(source)) => volume(&source.volume_id).map(|id| Source::Volume(id.0)),
        None => Err(RequestError::Missing("volume_content_source.type")),
    }
}

/// The snapshot of an id.
pub(super) fn snapshot_id(id: &str) -> Result<Uuid, RequestError> {
    required("snapshot_id", id)?;
    id.parse().map_err(|_| RequestError::NoSnapshot(id.to_owned()))
}

/// DeleteVolume and ControllerUnpublishVolume: a volume; `None` where no volume of ours can have this id.
pub(super) fn any_volume(id: &str) -> Result<Option<TenantId>, RequestError> {
    required("volume_id", id)?;
    Ok(id.parse().ok())
}

/// DeleteSnapshot: a snapshot; `None` where no snapshot of ours can have this id.
pub(super) fn any_snapshot(id: &str) -> Result<Option<Uuid>, RequestError> {
    required("snapshot_id", id)?;
    Ok(id.parse().ok())
}

/// ControllerExpandVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expand {
    pub(super) volume: TenantId,
    pub(super) capacity: Capacity,
    pub(super) database_url: Option<String>,
}

impl TryFrom<&csi::ControllerExpandVolumeRequest> for Expand {
    type Error = RequestError;

    fn try_from(request: &csi::ControllerExpandVolumeRequest) -> Result<Self, RequestError> {
        required("volume_id", &request.volume_id)?;
        let asked = capacity(request.capacity_range.as_ref())?;
        if asked.wanted().is_none() {
            return Err(RequestError::Missing("capacity_range"));
        }
        if let Some(capability) = &request.volume_capability {
            capability::read(Some(capability), false)?;
        }
        let database_url = parameters::secret_url(&request.secrets)?;
        Ok(Self { volume: volume(&request.volume_id)?, capacity: asked, database_url })
    }
}

/// ControllerPublishVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Publish {
    pub(super) publication: Publication,
    pub(super) database_url: Option<String>,
}

/// Names of nodes have at most so many bytes. Source: CSI "NodeGetInfoResponse.node_id".
const NODE_MOST: usize = 256;

fn node(id: &str) -> Result<String, RequestError> {
    required("node_id", id)?;
    if id.len() <= NODE_MOST && !id.contains(char::is_control) {
        return Ok(id.to_owned());
    }
    Err(RequestError::value("node_id", id, format!("1 to {NODE_MOST} bytes without control characters")))
}

impl TryFrom<&csi::ControllerPublishVolumeRequest> for Publish {
    type Error = RequestError;

    fn try_from(request: &csi::ControllerPublishVolumeRequest) -> Result<Self, RequestError> {
        required("volume_id", &request.volume_id)?;
        let node = node(&request.node_id)?;
        let capability =
            request.volume_capability.as_ref().ok_or(RequestError::Missing("volume_capability"))?;
        capability::read(Some(capability), request.readonly)?;
        let publication = Publication {
            tenant: volume(&request.volume_id)?,
            node,
            mode: capability::mode(capability)?,
            read_only: request.readonly,
        };
        Ok(Self { publication, database_url: parameters::secret_url(&request.secrets)? })
    }
}

/// ControllerUnpublishVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unpublish {
    /// Nothing where no volume of ours can have this id.
    pub(super) volume: Option<TenantId>,
    /// Nothing: all nodes.
    pub(super) node: Option<String>,
    pub(super) database_url: Option<String>,
}

impl TryFrom<&csi::ControllerUnpublishVolumeRequest> for Unpublish {
    type Error = RequestError;

    fn try_from(request: &csi::ControllerUnpublishVolumeRequest) -> Result<Self, RequestError> {
        Ok(Self {
            volume: any_volume(&request.volume_id)?,
            node: Some(request.node_id.clone()).filter(|node| !node.is_empty()),
            database_url: parameters::secret_url(&request.secrets)?,
        })
    }
}

/// ValidateVolumeCapabilities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Validate {
    pub(super) volume: TenantId,
    /// Why they are not what a volume can do.
    pub(super) objection: Option<String>,
    pub(super) database_url: Option<String>,
}

impl TryFrom<&csi::ValidateVolumeCapabilitiesRequest> for Validate {
    type Error = RequestError;

    fn try_from(request: &csi::ValidateVolumeCapabilitiesRequest) -> Result<Self, RequestError> {
        required("volume_id", &request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(RequestError::Missing("volume_capabilities"));
        }
        let objection = capabilities(&request.volume_capabilities)
            .and_then(|()| class_parameters(&request.parameters).map(drop))
            .and_then(|()| mutable(&request.mutable_parameters).map(drop))
            .err();
        let database_url = parameters::secret_url(&request.secrets)?;
        let objection = objection.map(|error| error.to_string());
        Ok(Self { volume: volume(&request.volume_id)?, objection, database_url })
    }
}

impl TryFrom<&csi::CreateSnapshotRequest> for snapshot::Create {
    type Error = RequestError;

    fn try_from(request: &csi::CreateSnapshotRequest) -> Result<Self, RequestError> {
        let name = name(&request.name)?;
        required("source_volume_id", &request.source_volume_id)?;
        for (key, value) in request.parameters.iter().filter(|(key, _)| !parameters::is_foreign(key)) {
            if key != "compression" {
                return Err(RequestError::UnknownKey {
                    field: PARAMETERS,
                    key: key.clone(),
                    allowed: "compression".to_owned(),
                });
            }
            parameters::check(PARAMETERS, key, value)?;
        }
        let database_url = parameters::secret_url(&request.secrets)?;
        Ok(Self { name, source: volume(&request.source_volume_id)?, database_url })
    }
}

impl From<&csi::ListSnapshotsRequest> for Wanted {
    fn from(request: &csi::ListSnapshotsRequest) -> Self {
        let of = request.source_volume_id.parse().ok();
        match (request.snapshot_id.is_empty(), request.source_volume_id.is_empty()) {
            (true, true) => Self::All,
            (true, false) => Self::Of(of),
            (false, true) => Self::One(request.snapshot_id.parse().ok(), None),
            (false, false) if of.is_none() => Self::Of(None),
            (false, false) => Self::One(request.snapshot_id.parse().ok(), of),
        }
    }
}

/// How many entries of a page are asked for; 0 = as many as there are.
pub(super) fn most(max_entries: i32) -> Result<usize, RequestError> {
    usize::try_from(max_entries).map_err(|_| RequestError::value("max_entries", max_entries, "0 or more"))
}

/// GetCapacity: the database that is asked about.
pub(super) fn capacity_of(request: &csi::GetCapacityRequest) -> Result<Option<String>, RequestError> {
    if !request.volume_capabilities.is_empty() {
        capabilities(&request.volume_capabilities)?;
    }
    Ok(class_parameters(&request.parameters)?.remove(DATABASE_URL))
}

#[cfg(test)]
mod tests;
