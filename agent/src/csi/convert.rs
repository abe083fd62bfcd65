//! Answers as CSI spells them.

use std::time::Duration;

use tarbox_proto::csi::v1 as csi;
use tonic::{Request, Status};

use crate::{failure::AgentError, operations::VolumeStats};

/// An error as a gRPC status.
pub(super) fn refuse(error: &AgentError) -> Status {
    tarbox_rpc::status(error.kind(), error.report())
}

/// The time that is left for the work of a call.
pub(super) fn limit<T>(request: &Request<T>) -> Duration {
    tarbox_rpc::limit(tarbox_rpc::timeout(request.metadata()))
}

/// A limit of none is as much as CSI can say.
fn total(limit: u64, used: u64) -> (i64, i64) {
    let limit = if limit == 0 { i64::MAX as u64 } else { limit };
    (signed(limit), signed(limit.saturating_sub(used)))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Source: CSI "NodeGetVolumeStatsResponse".
pub(super) fn stats(found: VolumeStats) -> csi::NodeGetVolumeStatsResponse {
    use csi::volume_usage::Unit;
    let usage = found.status.map_or_else(Vec::new, |status| {
        let line = |unit: Unit, limit: u64, used: u64| {
            let (total, available) = total(limit, used);
            csi::VolumeUsage { available, total, used: signed(used), unit: unit.into() }
        };
        vec![
            line(Unit::Bytes, status.quota_bytes, status.used_bytes),
            line(Unit::Inodes, status.quota_inodes, status.used_inodes),
        ]
    });
    let condition = csi::VolumeCondition {
        abnormal: found.trouble.is_some(),
        message: found.trouble.unwrap_or_else(|| "served".to_owned()),
    };
    csi::NodeGetVolumeStatsResponse { usage, volume_condition: Some(condition) }
}

#[cfg(test)]
mod tests {
    use tarbox_proto::control::v1::StatusResponse;

    use super::*;

    #[test]
    fn usage_is_told_in_bytes_and_inodes_and_a_silent_mounter_is_abnormal() {
        let status = StatusResponse {
            used_bytes: 10,
            quota_bytes: 100,
            used_inodes: 3,
            quota_inodes: 0,
            ..Default::default()
        };
        let answer = stats(VolumeStats { status: Some(status), trouble: None });
        let bytes = answer.usage[0];
        assert_eq!((bytes.available, bytes.total, bytes.used, bytes.unit), (90, 100, 10, 1));
        let inodes = answer.usage[1];
        assert_eq!((inodes.used, inodes.total, inodes.unit), (3, i64::MAX, 2));
        assert!(!answer.volume_condition.expect("condition").abnormal);
        let answer = stats(VolumeStats { status: None, trouble: Some("why".into()) });
        assert!(answer.usage.is_empty());
        let condition = answer.volume_condition.expect("condition");
        assert!(condition.abnormal && condition.message == "why");
    }
}
