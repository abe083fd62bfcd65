//! Answers as CSI spells them.

use std::collections::BTreeMap;

use tarbox_proto::csi::v1 as csi;
use tarbox_store::{SnapshotRecord, Tenant};
use tonic::Status;

use crate::{
    failure::{ControllerError, Result},
    volume::{Source, Volume},
};

/// An error as a gRPC status.
pub(super) fn refuse(error: &ControllerError) -> Status {
    tarbox_rpc::status(error.kind(), error.report())
}

/// A limit of none is as much as CSI can say.
pub(super) fn bytes(limit: u64) -> i64 {
    if limit == 0 { i64::MAX } else { i64::try_from(limit).unwrap_or(i64::MAX) }
}

/// Where volumes can be used.
pub(super) fn topology(segments: &BTreeMap<String, String>) -> Vec<csi::Topology> {
    if segments.is_empty() {
        return Vec::new();
    }
    vec![csi::Topology { segments: segments.clone().into_iter().collect() }]
}

/// Source: CSI "Volume".
pub(super) fn volume(volume: &Volume, segments: &BTreeMap<String, String>) -> csi::Volume {
    csi::Volume {
        capacity_bytes: bytes(volume.tenant.limits.bytes),
        volume_id: volume.tenant.id.to_string(),
        volume_context: volume.description.context(&volume.tenant),
        content_source: volume.description.source.map(content_source),
        accessible_topology: topology(segments),
    }
}

fn content_source(source: Source) -> csi::VolumeContentSource {
    use csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
    let kind = match source {
        Source::Snapshot(id) => Type::Snapshot(SnapshotSource { snapshot_id: id.to_string() }),
        Source::Volume(id) => Type::Volume(VolumeSource { volume_id: id.to_string() }),
    };
    csi::VolumeContentSource { r#type: Some(kind) }
}

/// How a volume does, as the database knows it.
pub(super) fn condition(tenant: &Tenant) -> csi::VolumeCondition {
    let message = match &tenant.holder {
        Some(holder) => format!("mounted on {} (pid {})", holder.node, holder.pid),
        None if tenant.is_abandoned => {
            "its mounter died and has not come back: what was not committed is in its journal on the node"
                .to_owned()
        }
        None => "not mounted".to_owned(),
    };
    csi::VolumeCondition { abnormal: tenant.is_abandoned, message }
}

/// Source: CSI "Snapshot".
///
/// # Errors
/// Where it is not sealed.
pub(super) fn snapshot(record: &SnapshotRecord) -> Result<csi::Snapshot> {
    let layer = record.layer.as_ref().ok_or_else(|| ControllerError::NoSnapshot(record.id.to_string()))?;
    Ok(csi::Snapshot {
        size_bytes: i64::try_from(layer.used_bytes).unwrap_or(i64::MAX),
        snapshot_id: record.id.to_string(),
        source_volume_id: record.tenant.to_string(),
        creation_time: Some(prost_types::Timestamp { seconds: layer.sealed_at, nanos: 0 }),
        ready_to_use: true,
        group_snapshot_id: String::new(),
    })
}
