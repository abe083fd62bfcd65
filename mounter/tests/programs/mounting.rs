//! Mounting, unmounting, dying, coming back.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::MetadataExt,
    process::Command,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal,
};

use crate::place::{Place, end_of, is_mounted, until};

#[test]
fn what_was_written_is_there_after_umount_and_mount() {
    let place = Place::new();
    let mounted = place.mount(&[]);
    assert!(mounted.line.contains("serves at") && mounted.line.ends_with('\n'), "{}", mounted.line);
    fs::write(mounted.point.join("file"), "kept").expect("write");
    let point = mounted.point.to_str().expect("utf-8").to_owned();
    place.tarbox(&["umount", &point]).expect(0, &[&point]);
    assert!(!is_mounted(&mounted.point));
    mounted.end().expect(0, &[]);
    let again = place.mount(&[]);
    assert_eq!(fs::read_to_string(again.point.join("file")).expect("read"), "kept");
    let tenants = place.tarbox(&["tenant", "list", "-o", "json"]).json();
    let names: Vec<&str> =
        tenants.as_array().expect("a list").iter().filter_map(|t| t["name"].as_str()).collect();
    assert!(names.len() == 1 && names[0].starts_with("mnt-"), "named after the mount point: {names:?}");
}

#[test]
fn tenants_are_idle_only_while_none_is_mounted() {
    let place = Place::new();
    place.tarbox(&["tenant", "create", "other"]).expect(0, &[]);
    place.tarbox(&["tenant", "idle"]).expect(0, &[]);
    let mounted = place.mount(&["--tenant", "work"]);
    place.tarbox(&["tenant", "idle"]).expect(1, &["1 tenant is mounted: work (", "unmount them first"]);
    mounted.signal(Signal::SIGINT);
    mounted.end().expect(0, &[]);
    assert_eq!(place.tarbox(&["tenant", "idle", "-o", "json"]).json(), serde_json::json!([]));
}

#[test]
fn signals_and_a_bare_umount_end_it_with_everything_committed() {
    let place = Place::new();
    for (number, signal) in [Some(Signal::SIGINT), Some(Signal::SIGTERM), None].into_iter().enumerate() {
        let mounted = place.mount(&["--tenant", "t", "--flush-interval", "1h"]);
        fs::write(mounted.point.join(format!("file{number}")), "kept").expect("write");
        match signal {
            Some(signal) => mounted.signal(signal),
            None => umount2(&mounted.point, MntFlags::empty()).expect("umount"),
        }
        let point = mounted.point.clone();
        mounted.end().expect(0, &[]);
        assert!(!is_mounted(&point));
        // The database alone has it: the state directory is gone.
        fs::remove_dir_all(place.path("state")).expect("remove the state");
    }
    let mounted = place.mount(&["--tenant", "t"]);
    assert_eq!(fs::read_dir(&mounted.point).expect("list").count(), 3);
}

#[test]
fn sigterm_on_a_mount_in_use_detaches_it_and_keeps_what_was_acknowledged() {
    let place = Place::new();
    let mounted = place.mount(&["--tenant", "t"]);
    let mut open = File::create(mounted.point.join("open")).expect("create");
    open.write_all(b"kept").expect("write");
    mounted.signal(Signal::SIGTERM);
    let ended = mounted.end();
    ended.expect(0, &["in use"]);
    drop(open);
    let again = place.mount(&["--tenant", "t"]);
    assert_eq!(fs::read_to_string(again.point.join("open")).expect("read"), "kept");
}

#[test]
fn a_daemon_returns_when_it_serves_and_passes_a_failure_on() {
    let place = Place::new();
    let started = place.mount_fails(&["--tenant", "t", "--daemon"]);
    started.expect(0, &["serves at"]);
    let point = place.path("mnt");
    fs::write(point.join("file"), "x").expect("write");
    let status = place.tarbox(&["usage", "t", "-o", "json"]).json();
    assert!(status[0]["live"]["pid"].as_u64().is_some(), "{status}");
    // A second one fails in the child; its message and exit code are the parent's.
    let other = place.path("other");
    fs::create_dir(&other).expect("mkdir");
    let mut second = place.command("tarbox-mount");
    end_of(second.args(["--tenant", "t", "--daemon"]).arg(&other)).expect(1, &["in use by pid"]);
    place.mount_fails(&["--daemon", "--cache-size", "x"]).expect(64, &["cacheSize"]);
    place.tarbox(&["umount", point.to_str().expect("utf-8")]).expect(0, &[]);
    assert!(!is_mounted(&point));
}

#[test]
fn a_second_mounter_is_refused_and_told_who_has_the_tenant() {
    let place = Place::new();
    let mounted = place.mount(&["--tenant", "t"]);
    let other = place.path("other");
    fs::create_dir(&other).expect("mkdir");
    let pid = format!("pid {}", mounted.pid());
    // Also with a state directory of its own, so that only the database knows of the first.
    for state in ["state", "state2"] {
        let mut second = place.command("tarbox-mount");
        second.env("TARBOX_STATE_DIR", place.path(state)).args(["--tenant", "t"]).arg(&other);
        end_of(&mut second).expect(1, &["in use", &pid, "tarbox umount"]);
    }
    place.tarbox(&["tenant", "delete", "t"]).expect(1, &["in use", &pid]);
    place.tarbox(&["fsck", "t", "--repair"]).expect(1, &["in use", &pid]);
    assert!(!is_mounted(&other));
}

#[test]
fn a_killed_mounter_leaves_a_dead_mount_that_can_go_and_a_journal_that_is_replayed() {
    let place = Place::new();
    let mounted = place.mount(&["--tenant", "t", "--flush-interval", "1h"]);
    let point = mounted.point.clone();
    let shown = point.to_str().expect("utf-8");
    fs::write(point.join("file"), "acknowledged").expect("write");
    mounted.kill();
    assert!(is_mounted(&point), "the kernel keeps a dead mount");
    // It is dead once the last process that had the device is gone.
    while fs::metadata(&point).is_ok() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    place.mount_fails(&["--tenant", "t"]).expect(1, &["dead FUSE mount", "tarbox umount"]);
    place
        .tarbox(&["doctor"])
        .expect(1, &["its mounter is gone", "a mounter died and left", "mount the tenant again"]);
    place.tarbox(&["umount", shown]).expect(0, &["no mounter was left"]);
    let again = place.mount(&["--tenant", "t"]);
    assert_eq!(fs::read_to_string(point.join("file")).expect("read"), "acknowledged");
    drop(again);
}

#[test]
fn an_aborted_connection_ends_it_and_leaves_no_dead_mount() {
    let place = Place::new();
    let mounted = place.mount(&["--tenant", "t", "--flush-interval", "1h"]);
    let point = mounted.point.clone();
    fs::write(point.join("file"), "acknowledged").expect("write");
    let connection = nix::sys::stat::minor(fs::metadata(&point).expect("stat").dev());
    let control = place.path("fusectl");
    fs::create_dir(&control).expect("mkdir");
    let none = None::<&str>;
    mount(Some("fusectl"), &control, Some("fusectl"), MsFlags::empty(), none).expect("fusectl");
    let aborted = fs::write(control.join(connection.to_string()).join("abort"), "1");
    umount2(&control, MntFlags::empty()).expect("umount");
    aborted.expect("abort");
    mounted.end().expect(0, &[]);
    assert!(!is_mounted(&point));
    let again = place.mount(&["--tenant", "t"]);
    assert_eq!(fs::read_to_string(again.point.join("file")).expect("read"), "acknowledged");
}

#[test]
fn an_export_of_a_tenant_whose_mounter_died_has_what_was_acknowledged() {
    let place = Place::new();
    place.leave_uncommitted("t", "file", "acknowledged");
    let archive = place.path("t.tar");
    place.tarbox(&["export", "t", archive.to_str().expect("utf-8")]).expect(0, &[]);
    let listed = end_of(Command::new("tar").arg("-tf").arg(&archive));
    listed.expect(0, &["file"]);
}

#[test]
fn what_is_in_the_way_of_a_mount_is_named() {
    let place = Place::new();
    let mounted = place.mount(&["--tenant", "t"]);
    place.mount_fails(&["--tenant", "u"]).expect(1, &["is a mount point already", "fuse.tarbox"]);
    let at = |path: &str| end_of(place.command("tarbox-mount").args(["--tenant", "u"]).arg(place.path(path)));
    at("absent").expect(1, &["does not exist", "mkdir -p"]);
    fs::write(place.path("file"), "").expect("write");
    at("file").expect(1, &["is not a directory"]);
    fs::create_dir(place.path("other")).expect("mkdir");
    let id = "00000000-0000-4000-8000-000000000000";
    let missing =
        |arguments: &[&str]| end_of(place.command("tarbox-mount").args(arguments).arg(place.path("other")));
    missing(&["--tenant-id", id]).expect(1, &[id, "tarbox tenant list"]);
    missing(&["--tenant", "new", "--read-only"]).expect(1, &["there is no tenant `new`"]);
    drop(mounted);
}

#[test]
fn options_of_an_existing_tenant_are_applied_where_they_can_change_and_refused_where_not() {
    let place = Place::new();
    place.tarbox(&["tenant", "create", "t", "--block-size", "64Ki"]).expect(0, &[]);
    place
        .mount_fails(&["--tenant", "t", "--block-size", "128Ki"])
        .expect(78, &["blockSize of 64Ki", "cannot change"]);
    let mounted = place.mount(&["--tenant", "t", "--quota-bytes", "10Mi", "--block-size", "64Ki"]);
    let size = nix::sys::statvfs::statvfs(&mounted.point).expect("statvfs");
    assert_eq!(size.blocks() * size.fragment_size(), 10 << 20);
    // A resize takes effect at once.
    place.tarbox(&["tenant", "resize", "t", "--quota-bytes", "20Mi"]).expect(0, &["20.00 MiB"]);
    let size = nix::sys::statvfs::statvfs(&mounted.point).expect("statvfs");
    assert_eq!(size.blocks() * size.fragment_size(), 20 << 20);
    fs::write(mounted.point.join("file"), vec![1; 15 << 20]).expect("fits now");
    place.tarbox(&["tenant", "resize", "t", "--quota-bytes", "15Mi"]).expect(0, &[]);
    let full = fs::write(mounted.point.join("more"), vec![1; 1 << 20]).expect_err("full");
    assert_eq!(full.raw_os_error(), Some(nix::libc::ENOSPC));
}

#[test]
fn umount_of_a_busy_mount_names_who_uses_it_and_lazy_takes_it_away() {
    let place = Place::new();
    let mounted = place.mount(&["--tenant", "t"]);
    let open = File::create(mounted.point.join("open")).expect("create");
    let shown = mounted.point.to_str().expect("utf-8").to_owned();
    let me = format!("({})", std::process::id());
    place.tarbox(&["umount", &shown]).expect(1, &["is in use by", &me, "--lazy"]);
    assert!(is_mounted(&mounted.point), "still serving");
    place.tarbox(&["umount", "--lazy", &shown]).expect(0, &[]);
    assert!(!is_mounted(&mounted.point));
    (&open).write_all(b"still works").expect("write to what is open");
    drop(open);
    mounted.end().expect(0, &[]);
    let again = place.mount(&["--tenant", "t"]);
    assert_eq!(fs::read_to_string(again.point.join("open")).expect("read"), "still works");
}

#[test]
fn a_second_signal_ends_a_mounter_whose_database_is_away_and_keeps_the_journal() {
    let place = Place::new();
    let mounted = place.mount(&["--tenant", "t", "--flush-interval", "1h"]);
    fs::write(mounted.point.join("file"), "acknowledged").expect("write");
    // Another program locks the database: no commit gets through.
    let lock = Locked::every_database_below(&place.path("db"));
    mounted.signal(Signal::SIGTERM);
    let said = mounted.wait_for_words("committing: ");
    assert!(said.contains("changes to go"), "{said}");
    mounted.signal(Signal::SIGTERM);
    let point = mounted.point.clone();
    mounted.end().expect(1, &["second SIGTERM", "kept in the journal", "mount the tenant again"]);
    assert!(!is_mounted(&point));
    drop(lock);
    let again = place.mount(&["--tenant", "t"]);
    assert_eq!(fs::read_to_string(again.point.join("file")).expect("read"), "acknowledged");
}

/// SQLite databases with an open write transaction of the program sqlite3.
struct Locked(Vec<std::process::Child>);

impl Locked {
    fn every_database_below(directory: &std::path::Path) -> Self {
        let found = end_of(Command::new("find").arg(directory).args(["-name", "*.db"]));
        let lock = |path: &str| {
            let mut child = Command::new("sqlite3")
                .arg(path)
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .expect("sqlite3 (package sqlite3)");
            let stdin = child.stdin.as_mut().expect("stdin");
            stdin.write_all(b".timeout 10000\nBEGIN IMMEDIATE;\n.print locked\n").expect("write");
            let mut line = String::new();
            let stdout = child.stdout.as_mut().expect("stdout");
            std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("answer");
            assert_eq!(line, "locked\n", "{path}");
            child
        };
        Self(found.stdout.lines().map(lock).collect())
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn the_state_is_private_and_what_is_not_needed_is_cleared_away() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let mounted = place.mount(&["--tenant", "t"]);
    let directory =
        fs::read_dir(place.path("state")).expect("list").next().expect("one").expect("entry").path();
    let mode = |name: &str| fs::metadata(directory.join(name)).expect(name).permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("control.sock")), (0o700, 0o600));
    mounted.signal(Signal::SIGTERM);
    mounted.end().expect(0, &[]);
    assert!(until(|| !directory.join("control.sock").exists()));
    assert!(!directory.join("mounter.json").exists());
}

#[test]
fn a_read_only_mount_sees_what_another_mounter_commits_and_changes_nothing() {
    let place = Place::new();
    let writer = place.mount(&["--tenant", "t", "--flush-interval", "10ms"]);
    fs::create_dir_all(writer.point.join("d/e")).expect("mkdir");
    fs::write(writer.point.join("d/file"), "first").expect("write");
    File::open(writer.point.join("d/file")).and_then(|file| file.sync_all()).expect("fsync");
    fs::create_dir(place.path("other")).expect("mkdir");
    let reader = place.mount_at("other", &["--tenant", "t", "--read-only"]);
    assert!(reader.line.contains("(read-only)"), "{}", reader.line);
    let read = |path: &str| fs::read_to_string(reader.point.join(path)).unwrap_or_default();
    assert_eq!(read("d/file"), "first");
    let refused = fs::write(reader.point.join("d/new"), "x").expect_err("read-only");
    assert_eq!(refused.raw_os_error(), Some(nix::libc::EROFS));
    // Changed, made and removed on the other side: seen without a remount.
    fs::write(writer.point.join("d/file"), "second, longer").expect("write");
    fs::write(writer.point.join("d/made"), "made").expect("write");
    fs::remove_dir(writer.point.join("d/e")).expect("rmdir");
    assert!(until(|| read("d/file") == "second, longer" && read("d/made") == "made"));
    assert!(until(|| fs::read_dir(reader.point.join("d")).expect("list").count() == 2));
    // Either may go first.
    let shown = reader.point.to_str().expect("utf-8").to_owned();
    place.tarbox(&["umount", &shown]).expect(0, &[&shown, "read-only"]);
    reader.end().expect(0, &[]);
    fs::write(writer.point.join("after"), "x").expect("the writer goes on");
    writer.signal(Signal::SIGTERM);
    writer.end().expect(0, &[]);
    let alone = place.mount_at("other", &["--tenant", "t", "--read-only"]);
    assert_eq!(fs::read_to_string(alone.point.join("after")).expect("read"), "x");
    alone.signal(Signal::SIGINT);
    alone.end().expect(0, &[]);
}
