use tarbox_proto::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};

use tarbox_types::ErrorKind;

use super::*;

const ID: &str = "3f2b8c1e-0d4a-4b6f-9a57-1c2d3e4f5a6b";

fn capability() -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_mode: Some(AccessMode { mode: 1 }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

fn stage() -> csi::NodeStageVolumeRequest {
    csi::NodeStageVolumeRequest {
        volume_id: ID.into(),
        staging_target_path: "/var/lib/kubelet/plugins/kubernetes.io/csi/tarbox.csi.io/x/globalmount".into(),
        volume_capability: Some(capability()),
        ..Default::default()
    }
}

fn publish() -> csi::NodePublishVolumeRequest {
    csi::NodePublishVolumeRequest {
        volume_id: ID.into(),
        staging_target_path: "/staging".into(),
        target_path: "/target".into(),
        volume_capability: Some(capability()),
        ..Default::default()
    }
}

/// The kind of the refusal, and that its message names `word`.
fn refused<T: std::fmt::Debug>(outcome: Result<T, RequestError>, kind: ErrorKind, word: &str) {
    let error = outcome.expect_err(word);
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(word), "{error} does not name {word}");
}

#[test]
fn a_complete_stage_request_is_read() {
    let read = Stage::try_from(&stage()).expect("complete");
    assert_eq!(read.tenant.to_string(), ID);
    assert!(!read.wish.read_only);
}

#[test]
fn each_missing_field_of_stage_and_publish_is_named() {
    let invalid = ErrorKind::InvalidArgument;
    let stage = |change: fn(&mut csi::NodeStageVolumeRequest)| {
        let mut request = stage();
        change(&mut request);
        Stage::try_from(&request)
    };
    refused(stage(|r| r.volume_id.clear()), invalid, "volume_id");
    refused(stage(|r| r.staging_target_path.clear()), invalid, "staging_target_path");
    refused(stage(|r| r.volume_capability = None), invalid, "volume_capability");
    refused(stage(|r| r.volume_id = "pvc-1".into()), ErrorKind::NotFound, "pvc-1");
    let publish = |change: fn(&mut csi::NodePublishVolumeRequest)| {
        let mut request = publish();
        change(&mut request);
        Publishing::try_from(&request)
    };
    refused(publish(|r| r.volume_id.clear()), invalid, "volume_id");
    refused(publish(|r| r.target_path.clear()), invalid, "target_path");
    refused(publish(|r| r.volume_capability = None), invalid, "volume_capability");
    refused(publish(|r| r.staging_target_path.clear()), ErrorKind::FailedPrecondition, "staging_target_path");
}

#[test]
fn a_volume_that_a_pod_asks_for_needs_no_staging_and_is_known_by_the_kubelets_id() {
    let id = format!("csi-{}", "0a".repeat(32));
    let mut request = publish();
    request.staging_target_path.clear();
    request.volume_id.clone_from(&id);
    request.volume_context = [("csi.storage.k8s.io/ephemeral", "true"), ("size", "1Gi")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    let Publishing::Inline(read) = Publishing::try_from(&request).expect("complete") else {
        panic!("it is the pod's own")
    };
    assert_eq!((read.id.as_str(), read.asked.bytes), (id.as_str(), Some(1 << 30)));
    let leave = csi::NodeUnpublishVolumeRequest { volume_id: id.clone(), target_path: "/t".into() };
    assert_eq!(Leave::try_from(&leave).expect("complete").volume, Some(VolumeRef::Inline(id.clone())));
    // Ids are no way to somebody's volume, nor anything that reaches out of a name.
    for other in [ID, "csi-1", "csi-../../etc", &format!("{id}0")] {
        request.volume_id = other.into();
        refused(Publishing::try_from(&request), ErrorKind::InvalidArgument, "volume_id");
    }
}

#[test]
fn paths_that_could_lead_elsewhere_are_refused() {
    for bad in ["relative", "/a/../b", "/", "a/../../b"] {
        let request = csi::NodeUnpublishVolumeRequest { volume_id: ID.into(), target_path: bad.into() };
        refused(Leave::try_from(&request), ErrorKind::InvalidArgument, "target_path");
    }
    let request = csi::NodeUnpublishVolumeRequest { volume_id: ID.into(), target_path: "/a//b/./c/".into() };
    assert_eq!(Leave::try_from(&request).expect("plain").path, PathBuf::from("/a/b/c"));
}

#[test]
fn unknown_volumes_can_be_left() {
    let request =
        csi::NodeUnstageVolumeRequest { volume_id: "nobody".into(), staging_target_path: "/s".into() };
    assert_eq!(Leave::try_from(&request).expect("nothing to do").volume, None);
}

#[test]
fn block_volumes_and_unknown_access_modes_are_refused() {
    let mut request = stage();
    request.volume_capability =
        Some(csi::VolumeCapability { access_type: Some(AccessType::Block(BlockVolume {})), ..capability() });
    refused(Stage::try_from(&request), ErrorKind::InvalidArgument, "block");
    for mode in [0, 99] {
        request.volume_capability =
            Some(csi::VolumeCapability { access_mode: Some(AccessMode { mode }), ..capability() });
        refused(Stage::try_from(&request), ErrorKind::InvalidArgument, "access_mode");
    }
}

#[test]
fn who_attaches_volumes_says_where_and_whether_for_reading_only() {
    let attached = |mode, read_only| {
        let attachment = Attachment { node: "n".into(), read_only };
        Stage::try_from(&csi::NodeStageVolumeRequest {
            publish_context: attachment.context(),
            volume_capability: Some(csi::VolumeCapability {
                access_mode: Some(AccessMode { mode }),
                ..capability()
            }),
            ..stage()
        })
        .expect("complete")
    };
    for mode in [1, 4, 5] {
        let writer = attached(mode, false);
        assert_eq!(writer.attached_to.as_deref(), Some("n"));
        assert!(!writer.wish.read_only && !writer.wish.many_readers, "mode {mode}");
        let reader = attached(mode, true).wish;
        assert!(reader.read_only, "mode {mode}");
        assert_eq!(reader.many_readers, mode != 1, "one of many that only reads needs no lease: mode {mode}");
    }
    assert_eq!(Stage::try_from(&stage()).expect("complete").attached_to, None);
}

#[test]
fn the_capacity_asked_for_is_the_required_one_or_the_limit() {
    let expand = |required_bytes, limit_bytes| {
        Expand::try_from(&csi::NodeExpandVolumeRequest {
            volume_id: ID.into(),
            volume_path: "/p".into(),
            capacity_range: Some(csi::CapacityRange { required_bytes, limit_bytes }),
            ..Default::default()
        })
        .map(|expand| expand.bytes)
    };
    assert_eq!(expand(7, 9), Ok(Some(7)));
    assert_eq!(expand(0, 9), Ok(Some(9)));
    assert_eq!(expand(0, 0), Ok(None));
    refused(expand(9, 7), ErrorKind::InvalidArgument, "limit_bytes");
    refused(expand(-1, 0), ErrorKind::InvalidArgument, "-1");
}
