use tarbox_proto::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use tarbox_store::Compression;
use tarbox_types::ErrorKind;

use super::*;

fn capability() -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_mode: Some(AccessMode { mode: 1 }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

fn create() -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name: "pvc-1".into(),
        volume_capabilities: vec![capability()],
        ..Default::default()
    }
}

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn read(request: &csi::CreateVolumeRequest) -> Result<volumes::Create, RequestError> {
    request.try_into()
}

fn refused(request: &csi::CreateVolumeRequest, words: &[&str]) {
    let error = read(request).expect_err(words[0]);
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text}: {words:?}");
}

#[test]
fn a_volume_needs_a_name_and_a_capability_that_can_be_had() {
    refused(&csi::CreateVolumeRequest { name: String::new(), ..create() }, &["`name`"]);
    refused(&csi::CreateVolumeRequest { name: "x".repeat(129), ..create() }, &["`name`", "1 to 128"]);
    refused(
        &csi::CreateVolumeRequest { volume_capabilities: vec![], ..create() },
        &["`volume_capabilities`"],
    );
    let block =
        csi::VolumeCapability { access_type: Some(AccessType::Block(BlockVolume {})), ..capability() };
    refused(&csi::CreateVolumeRequest { volume_capabilities: vec![block], ..create() }, &["block", "mount"]);
    read(&csi::CreateVolumeRequest { name: "x".repeat(128), ..create() }).expect("the longest name");
}

#[test]
fn parameters_are_checked_by_key_and_value() {
    for (key, value, words) in [
        ("cachesize", "1Gi", &["`cachesize`", "cacheSize"][..]),
        ("blockSize", "5000", &["blockSize", "`5000`", "power of two"]),
        ("blockSize", "1Ki", &["blockSize", "`1Ki`", "4Ki"]),
        ("inodes", "-1", &["inodes", "`-1`", "whole number"]),
        ("autoCheckpoint", "yes", &["autoCheckpoint", "true or false"]),
        ("checkpointInterval", "9s", &["checkpointInterval", "`9s`", "10s or more"]),
        ("checkpointRetention", "0", &["checkpointRetention", "`0`", "1 or more"]),
        ("tenant_id", "x", &["tenant_id", "driver"]),
        ("nativeMounts", "native", &["nativeMounts"]),
        ("databaseURL", "mysql://x", &["mysql", "postgresql"]),
        ("databaseURL", "postgresql://me:secret@h/d", &["databaseURL", "me@h", "Secret"]),
    ] {
        let request = csi::CreateVolumeRequest { parameters: map(&[(key, value)]), ..create() };
        refused(&request, words);
        assert!(!read(&request).expect_err(key).to_string().contains("secret@"));
    }
    let parameters = map(&[
        ("blockSize", "64Ki"),
        ("compression", "zstd"),
        ("maxFileSize", "1Gi"),
        ("inodes", "5000"),
        ("auditLevel", "full"),
        ("csi.storage.k8s.io/pvc/name", "data"),
    ]);
    let read = read(&csi::CreateVolumeRequest { parameters, ..create() }).expect("known keys");
    assert_eq!((read.block_size, read.compression), (Some(64 << 10), Some(Compression::Zstd)));
    assert_eq!((read.file_bytes, read.inodes), (1 << 30, Some(5000)));
    assert_eq!(read.description.parameters.len(), 6, "what is kept is what was asked for");
}

#[test]
fn what_may_change_later_is_said_by_key_and_comes_first() {
    let with = |parameters: &[(&str, &str)], mutable: &[(&str, &str)]| csi::CreateVolumeRequest {
        parameters: map(parameters),
        mutable_parameters: map(mutable),
        ..create()
    };
    for (key, value, words) in [
        ("blockSize", "64Ki", &["mutable_parameters.blockSize", "`64Ki`", "fixed", "cacheSize"][..]),
        ("databaseURL", "sqlite:///x", &["mutable_parameters.databaseURL", "fixed"]),
        ("namespace", "n", &["mutable_parameters.namespace", "fixed"]),
        ("nativeMounts", "", &["mutable_parameters.nativeMounts", "fixed"]),
        ("tenant_id", "x", &["tenant_id", "driver"]),
        ("cachesize", "1Gi", &["`mutable_parameters`", "`cachesize`", "cacheSize"]),
        ("cacheSize", "1K", &["mutable_parameters.cacheSize", "`1K`", "a size from 1Mi"]),
        ("checkpointInterval", "9s", &["mutable_parameters.checkpointInterval", "10s or more"]),
    ] {
        refused(&with(&[], &[(key, value)]), words);
        let modify = csi::ControllerModifyVolumeRequest {
            volume_id: "3f2b8c1e-0d4a-4b6f-9a57-1c2d3e4f5a6b".into(),
            mutable_parameters: map(&[(key, value)]),
            ..Default::default()
        };
        let error = volumes::Modify::try_from(&modify).expect_err(key).to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    let read = read(&with(
        &[("inodes", "5"), ("maxFileSize", "1Ki")],
        &[("inodes", "7"), ("compression", "zstd"), ("auditLevel", "full")],
    ));
    let read = read.expect("known keys");
    assert_eq!((read.inodes, read.file_bytes), (Some(7), 1024));
    assert_eq!(read.compression, Some(Compression::Zstd));
}

#[test]
fn sources_are_ids_of_ours_or_not_there() {
    use csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
    let from = |kind| csi::CreateVolumeRequest {
        volume_content_source: Some(csi::VolumeContentSource { r#type: kind }),
        ..create()
    };
    let snapshot = |id: &str| from(Some(Type::Snapshot(SnapshotSource { snapshot_id: id.into() })));
    let volume = |id: &str| from(Some(Type::Volume(VolumeSource { volume_id: id.into() })));
    let id = "3f2b8c1e-0d4a-4b6f-9a57-1c2d3e4f5a6b";
    let uuid = id.parse().expect("a UUID");
    assert_eq!(read(&snapshot(id)).expect("id").description.source, Some(Source::Snapshot(uuid)));
    assert_eq!(read(&volume(id)).expect("id").description.source, Some(Source::Volume(uuid)));
    for request in [snapshot("x"), volume("x")] {
        let error = read(&request).expect_err("no id of ours");
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
    refused(&from(None), &["volume_content_source"]);
    refused(&snapshot(""), &["`snapshot_id`"]);
}

#[test]
fn a_capacity_is_required_to_expand_and_its_bounds_make_sense() {
    let expand = |range| {
        Expand::try_from(&csi::ControllerExpandVolumeRequest {
            volume_id: "3f2b8c1e-0d4a-4b6f-9a57-1c2d3e4f5a6b".into(),
            capacity_range: range,
            ..Default::default()
        })
    };
    let range = |required_bytes, limit_bytes| Some(csi::CapacityRange { required_bytes, limit_bytes });
    for (range, word) in [
        (None, "capacity_range"),
        (range(0, 0), "capacity_range"),
        (range(2, 1), "limit_bytes"),
        (range(-1, 0), "0 or more"),
    ] {
        let error = expand(range).expect_err(word);
        assert!(error.kind() == ErrorKind::InvalidArgument && error.to_string().contains(word), "{error}");
    }
    assert_eq!(expand(range(5, 9)).expect("a range").capacity, Capacity { required: 5, limit: 9 });
}

#[test]
fn snapshots_are_listed_by_ids_and_an_id_that_is_none_finds_nothing() {
    let list = |snapshot_id: &str, source_volume_id: &str| {
        Wanted::from(&csi::ListSnapshotsRequest {
            snapshot_id: snapshot_id.into(),
            source_volume_id: source_volume_id.into(),
            ..Default::default()
        })
    };
    let id = "3f2b8c1e-0d4a-4b6f-9a57-1c2d3e4f5a6b";
    let (uuid, tenant) = (id.parse().ok(), id.parse().ok());
    assert_eq!(list("", ""), Wanted::All);
    assert_eq!(list("", id), Wanted::Of(tenant));
    assert_eq!(list("", "x"), Wanted::Of(None));
    assert_eq!(list(id, ""), Wanted::One(uuid, None));
    assert_eq!(list("x", ""), Wanted::One(None, None));
    assert_eq!(list(id, id), Wanted::One(uuid, tenant));
    assert_eq!(list(id, "x"), Wanted::Of(None));
}

#[test]
fn a_snapshots_class_may_name_a_compression_and_nothing_else() {
    let request = |key: &str, value: &str| csi::CreateSnapshotRequest {
        name: "s".into(),
        source_volume_id: "3f2b8c1e-0d4a-4b6f-9a57-1c2d3e4f5a6b".into(),
        parameters: map(&[(key, value)]),
        ..Default::default()
    };
    snapshot::Create::try_from(&request("compression", "zstd")).expect("known");
    snapshot::Create::try_from(&request("csi.storage.k8s.io/volumesnapshot/name", "x")).expect("foreign");
    for (key, value) in [("compression", "lz4"), ("cacheSize", "1Gi")] {
        let error = snapshot::Create::try_from(&request(key, value)).expect_err(key);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(key), "{error}");
    }
}
