//! `tarbox checkpoint`, `tarbox clone`, `tarbox log`: of tenants that are mounted, and of those that are not.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use crate::place::{Mounted, Place};

/// Names of checkpoints, newest first.
fn names(place: &Place, tenant: &str) -> Vec<String> {
    let listed = place.tarbox(&["checkpoint", "list", tenant, "-o", "json"]).json();
    let name = |one: &serde_json::Value| one["name"].as_str().expect("a name").to_owned();
    listed.as_array().expect("a list").iter().map(name).collect()
}

/// Unmounts, and waits for the mounter's end.
fn end(place: &Place, mounted: Mounted) {
    place.tarbox(&["umount", mounted.point.to_str().expect("utf-8")]).expect(0, &[]);
    mounted.end().expect(0, &[]);
}

/// A tenant with these files, not mounted.
fn with_files(place: &Place, tenant: &str, files: &[(&str, &str)]) {
    let mounted = place.mount(&["--tenant", tenant]);
    for (path, content) in files {
        let path = mounted.point.join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        fs::write(path, content).expect("write");
    }
    end(place, mounted);
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

#[test]
fn a_checkpoint_is_made_listed_tagged_shown_and_deleted() {
    let place = Place::new();
    with_files(&place, "t", &[("f", "one")]);
    let made = place.tarbox(&["checkpoint", "create", "t", "first", "--tag", "good", "-o", "json"]).json();
    assert_eq!((&made["name"], &made["kind"]), (&"first".into(), &"checkpoint".into()));
    assert_eq!(made["used_inodes"], 2);
    let id = made["id"].as_str().expect("an id").to_owned();
    let unnamed = place.tarbox(&["checkpoint", "create", "t", "-o", "json"]).json();
    let unnamed = unnamed["name"].as_str().expect("a name").to_owned();
    assert!(unnamed.starts_with("20") && unnamed.ends_with('Z'), "the moment: {unnamed}");
    assert_eq!(names(&place, "t"), [unnamed.clone(), "first".to_owned()]);
    for called in ["first", "good", id.as_str()] {
        let shown = place.tarbox(&["checkpoint", "show", "t", called, "-o", "json"]).json();
        assert_eq!((&shown["name"], &shown["tags"]), (&"first".into(), &serde_json::json!(["good"])));
    }
    place.tarbox(&["checkpoint", "tag", "t", "good", &unnamed]).expect(0, &[&unnamed]);
    place.tarbox(&["checkpoint", "show", "t", "good"]).expect(0, &[&unnamed]);
    place.tarbox(&["checkpoint", "tag", "t", "good", "--delete"]).expect(0, &["taken away"]);
    place.tarbox(&["checkpoint", "show", "t", "good"]).expect(1, &["`t` has no checkpoint `good`", "list"]);
    place.tarbox(&["log", "t"]).expect(0, &["head", "first", &unnamed]);
    let log = place.tarbox(&["log", "t", "-n", "1", "-o", "json"]).json();
    assert_eq!((log.as_array().map(Vec::len), &log[1]["name"]), (Some(2), &unnamed.as_str().into()));
    place.tarbox(&["checkpoint", "delete", "t", "first"]).expect(0, &["first"]);
    assert_eq!(names(&place, "t"), [unnamed]);
    place.tarbox(&["checkpoint", "create", "t", "first"]).expect(0, &["first"]);
    place.tarbox(&["fsck", "t"]).expect(0, &["clean"]);
}

#[test]
fn what_cannot_be_a_checkpoint_is_refused_by_name() {
    let place = Place::new();
    place.tarbox(&["tenant", "create", "t"]).expect(0, &[]);
    for bad in ["a/b", ".hidden", "head", ""] {
        let said = format!("the name `{bad}`: allowed is 1 to 128 of");
        place.tarbox(&["checkpoint", "create", "t", bad]).expect(64, &[&said]);
    }
    place.tarbox(&["checkpoint", "create", "t", "c", "--tag", "a/b"]).expect(64, &["the tag `a/b`"]);
    assert!(names(&place, "t").is_empty(), "nothing was made");
    place.tarbox(&["checkpoint", "create", "t", "c"]).expect(0, &[]);
    place.tarbox(&["checkpoint", "create", "t", "c"]).expect(1, &["there is a checkpoint `c` already"]);
    place.tarbox(&["checkpoint", "tag", "t", "c", "c"]).expect(1, &["there is a checkpoint `c` already"]);
    place.tarbox(&["checkpoint", "tag", "t", "x", "c"]).expect(0, &[]);
    place.tarbox(&["checkpoint", "create", "t", "x"]).expect(1, &["there is a tag `x` already"]);
    place.tarbox(&["checkpoint", "delete", "t", "c", "absent"]).expect(1, &["no checkpoint `absent`"]);
    assert_eq!(names(&place, "t"), ["c"], "one wrong name leaves all as they are");
    place.tarbox(&["checkpoint", "list", "nobody"]).expect(1, &["there is no tenant `nobody`"]);
    place.tarbox(&["clone", "t", "t"]).expect(1, &["`t` belongs to another tenant"]);
    place.tarbox(&["clone", "t", "A"]).expect(64, &["the name `A`"]);
    place.tarbox(&["clone", "t", "u", "--from", "absent"]).expect(1, &["no checkpoint `absent`"]);
    place.tarbox(&["checkpoint", "create", "--help"]).expect(0, &["Examples:", "before-tool"]);
}

#[test]
fn a_checkpoint_of_a_mounted_tenant_holds_all_that_was_acknowledged_and_stops_nobody() {
    let place = Place::new();
    let mounted = place.mount(&["--tenant", "t", "--flush-interval", "1h"]);
    let (log, stop, written) = (mounted.point.join("log"), AtomicBool::new(false), AtomicU64::new(0));
    let acknowledged = thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = File::create(&log).expect("create");
            while !stop.load(Ordering::Relaxed) {
                let line = written.load(Ordering::Relaxed);
                writeln!(file, "{line}").expect("no call fails");
                written.store(line + 1, Ordering::Release);
            }
        });
        assert!(crate::place::until(|| written.load(Ordering::Acquire) > 1000));
        let before = written.load(Ordering::Acquire);
        place.tarbox(&["checkpoint", "create", "t", "busy"]).expect(0, &["busy"]);
        stop.store(true, Ordering::Relaxed);
        before
    });
    place.tarbox(&["clone", "t", "copy", "--from", "busy"]).expect(0, &["copy"]);
    fs::create_dir(place.path("other")).expect("mkdir");
    let copy = place.mount_at("other", &["--tenant", "copy"]);
    let kept = read(copy.point.join("log"));
    let lines: Vec<u64> = kept.lines().map(|line| line.parse().expect("whole lines")).collect();
    assert!(lines.len() as u64 >= acknowledged, "{} of {acknowledged} lines", lines.len());
    assert!(lines.iter().copied().eq(0..lines.len() as u64), "cut at one point");
    assert!((lines.len() as u64) < written.load(Ordering::Acquire), "it went on meanwhile");
    drop((copy, mounted));
}

#[test]
fn a_checkpoint_of_a_tenant_whose_mounter_died_holds_what_was_acknowledged() {
    let place = Place::new();
    place.leave_uncommitted("t", "file", "acknowledged");
    let made = place.tarbox(&["checkpoint", "create", "t", "c", "-o", "json"]).json();
    assert_eq!(made["used_inodes"], 2);
    place.tarbox(&["clone", "t", "copy", "--from", "c"]).expect(0, &[]);
    let copy = place.mount(&["--tenant", "copy"]);
    assert_eq!(read(copy.point.join("file")), "acknowledged");
}

#[test]
fn clones_share_their_past_change_alone_and_outlive_their_source() {
    let place = Place::new();
    with_files(&place, "t", &[("shared", "as it was"), ("d/deep", "below")]);
    place.tarbox(&["checkpoint", "create", "t", "c"]).expect(0, &[]);
    let mounted = place.mount(&["--tenant", "t", "--flush-interval", "1h"]);
    fs::write(mounted.point.join("shared"), "changed").expect("write");
    // The present of a mounted tenant, uncommitted changes included.
    let made = place.tarbox(&["clone", "t", "now", "--quota-bytes", "1Gi", "-o", "json"]).json();
    assert_eq!((&made["name"], &made["source"]), (&"now".into(), &"t".into()));
    place.tarbox(&["clone", "t", "then", "--from", "c"]).expect(0, &["then"]);
    end(&place, mounted);
    for (tenant, expected) in [("now", "changed"), ("then", "as it was")] {
        let copy = place.mount(&["--tenant", tenant]);
        assert_eq!(
            (read(copy.point.join("shared")), read(copy.point.join("d/deep"))),
            (expected.into(), "below".into())
        );
        fs::write(copy.point.join("shared"), tenant).expect("write");
        fs::write(copy.point.join(tenant), "new").expect("write");
        end(&place, copy);
    }
    let limited = place.tarbox(&["tenant", "show", "now", "-o", "json"]).json();
    assert_eq!(limited["quota_bytes"], 1u64 << 30);
    place
        .tarbox(&["checkpoint", "delete", "t", "c"])
        .expect(1, &["`c` is needed", "the clone `then` begins there"]);
    place.tarbox(&["checkpoint", "show", "t", "c"]).expect(0, &["Begins here:", "then"]);
    place.tarbox(&["log", "then"]).expect(0, &["head", "c", "t"]);
    let source = place.mount(&["--tenant", "t"]);
    assert_eq!(read(source.point.join("shared")), "changed");
    assert!(!source.point.join("now").exists() && !source.point.join("then").exists());
    end(&place, source);
    place.tarbox(&["tenant", "delete", "t"]).expect(0, &[]);
    for tenant in ["now", "then"] {
        place.tarbox(&["fsck", tenant]).expect(0, &["clean"]);
        let copy = place.mount(&["--tenant", tenant]);
        assert_eq!(
            (read(copy.point.join("shared")), read(copy.point.join("d/deep"))),
            (tenant.into(), "below".into())
        );
        end(&place, copy);
    }
}

#[test]
fn what_a_clone_began_with_goes_when_the_clone_goes() {
    let place = Place::new();
    with_files(&place, "t", &[("f", "x")]);
    place.tarbox(&["clone", "t", "copy"]).expect(0, &[]);
    let listed = place.tarbox(&["checkpoint", "list", "t", "-o", "json"]).json();
    assert_eq!((listed.as_array().map(Vec::len), &listed[0]["kind"]), (Some(1), &"base".into()));
    place.tarbox(&["tenant", "delete", "copy"]).expect(0, &[]);
    assert!(names(&place, "t").is_empty());
    place
        .tarbox(&["clone", "t", "small", "--quota-bytes", "1"])
        .expect(64, &["--quota-bytes 1", "needs at least"]);
    place.tarbox(&["fsck", "t"]).expect(0, &["clean"]);
}

#[test]
fn squashing_makes_one_step_of_many_and_keeps_what_somebody_needs() {
    let place = Place::new();
    place.tarbox(&["tenant", "create", "t"]).expect(0, &[]);
    for name in ["c1", "c2", "c3", "c4", "c5"] {
        place.tarbox(&["checkpoint", "create", "t", name]).expect(0, &[]);
    }
    place.tarbox(&["checkpoint", "tag", "t", "release", "c3"]).expect(0, &[]);
    place.tarbox(&["clone", "t", "copy", "--from", "c4"]).expect(0, &[]);
    let done = place.tarbox(&["checkpoint", "squash", "t", "c1", "c5", "-o", "json"]).json();
    assert_eq!((&done[0]["name"], &done[0]["deleted"]), (&"c4".into(), &false.into()), "{done}");
    assert!(done[0]["kept"].as_str().expect("why").contains("copy"), "{done}");
    assert_eq!((&done[1]["name"], &done[1]["deleted"]), (&"c2".into(), &true.into()), "{done}");
    assert_eq!(names(&place, "t"), ["c5", "c4", "c3", "c1"]);
}
