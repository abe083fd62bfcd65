//! `tarbox tenant …` and `tarbox usage` on tenants that nobody has mounted.

use crate::place::Place;

#[test]
fn a_tenant_is_made_shown_resized_and_deleted() {
    let place = Place::new();
    let made = place
        .tarbox(&["tenant", "create", "notes", "--quota-bytes", "1Gi", "--block-size", "64Ki", "-o", "json"])
        .json();
    assert_eq!(
        (&made["name"], &made["quota_bytes"], &made["block_size"]),
        (&"notes".into(), &(1u64 << 30).into(), &65536.into())
    );
    let id = made["id"].as_str().expect("an id");
    place.tarbox(&["tenant", "create", "notes"]).expect(1, &["`notes` belongs to another tenant"]);

    let shown = place.tarbox(&["tenant", "show", id, "-o", "json"]).json();
    assert_eq!(
        (&shown["name"], &shown["used_inodes"], &shown["checkpoints"]),
        (&"notes".into(), &1.into(), &serde_json::json!([]))
    );
    place
        .tarbox(&["tenant", "resize", "notes", "--quota-bytes", "unlimited", "--quota-inodes", "500"])
        .expect(0, &["500"]);
    let listed = place.tarbox(&["tenant", "list", "-o", "json"]).json();
    assert_eq!(
        (&listed[0]["quota_bytes"], &listed[0]["quota_inodes"]),
        (&serde_json::Value::Null, &500.into())
    );
    place.tarbox(&["usage"]).expect(0, &["notes", "unlimited", "500"]);

    place.tarbox(&["tenant", "delete", "notes"]).expect(0, &["notes"]);
    place
        .tarbox(&["tenant", "show", "notes"])
        .expect(1, &["there is no tenant `notes`", "tarbox tenant list"]);
    assert_eq!(place.tarbox(&["tenant", "list", "-o", "json"]).json(), serde_json::json!([]));
    place.tarbox(&["tenant", "create", "notes"]).expect(0, &[]);
}

#[test]
fn what_is_not_there_is_named() {
    let place = Place::new();
    let id = "00000000-0000-4000-8000-000000000000";
    for arguments in [
        &["tenant", "show", id][..],
        &["usage", id],
        &["fsck", id],
        &["export", id, "/dev/null"],
        &["tenant", "delete", id],
    ] {
        place.tarbox(arguments).expect(1, &[id]);
    }
    let nowhere = place.path("mnt");
    place.tarbox(&["umount", nowhere.to_str().expect("utf-8")]).expect(1, &["nothing is mounted at"]);
    place.tarbox(&["umount", "/proc"]).expect(1, &["is a mount of proc, not of Tarbox"]);
}

#[test]
fn an_empty_tenant_is_clean() {
    let place = Place::new();
    place.tarbox(&["tenant", "create", "t"]).expect(0, &[]);
    let report = place.tarbox(&["fsck", "t", "-o", "json"]).json();
    assert_eq!((&report["clean"], &report["inodes"]), (&true.into(), &1.into()));
    place.tarbox(&["fsck", "t", "--repair"]).expect(0, &["clean"]);
}
