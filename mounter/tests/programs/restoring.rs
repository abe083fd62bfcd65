//! `tarbox checkpoint diff` and `restore`: of tenants at rest, and under the work.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use nix::{libc, mount::MntFlags, mount::umount2};

use crate::place::{Mounted, Place, until};

fn end(place: &Place, mounted: Mounted) {
    place.tarbox(&["umount", mounted.point.to_str().expect("utf-8")]).expect(0, &[]);
    mounted.end().expect(0, &[]);
}

/// Every path below, with what it holds.
fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).expect("list") {
            let path = entry.expect("entry").path();
            let name = path.strip_prefix(root).expect("below").display().to_string();
            let metadata = fs::symlink_metadata(&path).expect("stat");
            let content = if metadata.is_dir() {
                left.push(path.clone());
                "directory".to_owned()
            } else if metadata.is_symlink() {
                fs::read_link(&path).expect("readlink").display().to_string()
            } else {
                let content = fs::read(&path).expect("read");
                assert_eq!(content.len() as u64, metadata.len(), "{name}: its size");
                String::from_utf8_lossy(&content).into_owned()
            };
            found.insert(name, format!("{:o} {content}", metadata.permissions().mode()));
        }
    }
    found
}

/// Things of every kind, below a root.
fn fill(root: &Path) {
    fs::create_dir_all(root.join("src/deep")).expect("mkdir");
    fs::create_dir(root.join("old-name")).expect("mkdir");
    fs::write(root.join("src/main.rs"), "fn main() {\n    one();\n    two();\n}\n").expect("write");
    fs::write(root.join("src/deep/binary"), [0, 1, 2, 3]).expect("write");
    fs::write(root.join("old-name/inside"), "stays\n").expect("write");
    fs::write(root.join("doomed"), "goes\n").expect("write");
    fs::write(root.join("moved"), "the same\n").expect("write");
    fs::write(root.join("large"), vec![b'x'; 3 << 20]).expect("write");
    fs::write(root.join("mode"), "mode\n").expect("write");
    symlink("moved", root.join("link")).expect("symlink");
}

/// Changes of every kind to [`fill`].
fn change(root: &Path) {
    fs::write(root.join("src/main.rs"), "fn main() {\n    one();\n    three();\n    four();\n}\n")
        .expect("write");
    fs::write(root.join("src/deep/binary"), [0, 1, 2, 4]).expect("write");
    fs::create_dir(root.join("new")).expect("mkdir");
    fs::write(root.join("new/file"), "a\nb\n").expect("write");
    fs::remove_file(root.join("doomed")).expect("unlink");
    fs::rename(root.join("moved"), root.join("new/moved-here")).expect("rename");
    fs::rename(root.join("old-name"), root.join("new-name")).expect("rename");
    let mut large = OpenOptions::new().write(true).open(root.join("large")).expect("open");
    large.seek(SeekFrom::Start(2 << 20)).expect("seek");
    large.write_all(b"yyy").expect("write");
    fs::set_permissions(root.join("mode"), fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::remove_file(root.join("link")).expect("unlink");
    symlink("elsewhere", root.join("link")).expect("symlink");
    // Only its times change.
    File::open(root.join("new-name/inside"))
        .and_then(|f| f.set_modified(std::time::SystemTime::now()))
        .expect("touch");
}

fn told(place: &Place, arguments: &[&str]) -> BTreeMap<String, String> {
    let all = [&["checkpoint", "diff"], arguments, &["-o", "json"]].concat();
    let found = place.tarbox(&all).json();
    let text = |one: &serde_json::Value, key: &str| one[key].as_str().unwrap_or("").to_owned();
    let lines = |one: &serde_json::Value| match (&one["lines_added"], &one["lines_removed"]) {
        (serde_json::Value::Null, _) => String::new(),
        (added, removed) => format!(" +{added} -{removed}"),
    };
    let told = |one: &serde_json::Value| {
        let what = format!(
            "{}{}{}",
            text(one, "change"),
            lines(one),
            if one["attributes"] == true { " attributes" } else { "" }
        );
        (text(one, "path"), [what, text(one, "from")].join(" ").trim().to_owned())
    };
    found.as_array().expect("a list").iter().map(told).collect()
}

#[test]
fn a_diff_names_what_was_added_removed_changed_and_renamed_with_lines() {
    let place = Place::new();
    let mounted = place.mount(&["--tenant", "t"]);
    fill(&mounted.point);
    place.tarbox(&["checkpoint", "create", "t", "first"]).expect(0, &[]);
    assert!(told(&place, &["t", "first"]).is_empty(), "nothing has changed");
    change(&mounted.point);
    let expected: BTreeMap<String, String> = [
        ("src/main.rs", "changed +2 -1"),
        ("src/deep/binary", "changed"),
        ("new", "added"),
        ("new/file", "added +2 -0"),
        ("doomed", "removed +0 -1"),
        ("new/moved-here", "renamed moved"),
        ("new-name", "renamed old-name"),
        ("large", "changed +1 -1"),
        ("mode", "changed attributes"),
        ("link", "changed attributes"),
    ]
    .into_iter()
    .map(|(path, what)| (path.to_owned(), what.to_owned()))
    .collect();
    assert_eq!(told(&place, &["t", "first"]), expected, "the mounted present, uncommitted changes included");
    place.tarbox(&["checkpoint", "create", "t", "second"]).expect(0, &[]);
    end(&place, mounted);
    assert_eq!(told(&place, &["t", "first", "second"]), expected);
    assert_eq!(told(&place, &["t", "first", "head"]), expected);
    let back = told(&place, &["t", "second", "first"]);
    assert_eq!((back["doomed"].as_str(), back["new"].as_str()), ("added +1 -0", "removed"));
    assert_eq!(back["src/main.rs"], "changed +1 -2");
    let patch = place.tarbox(&["checkpoint", "diff", "t", "first", "second", "--patch"]);
    let hunk = "--- a/src/main.rs\n+++ b/src/main.rs\n@@ -1,4 +1,5 @@\n fn main() {\n     one();\n-    two();\n+    three();\n+    four();\n }\n";
    patch.expect(
        0,
        &[
            hunk,
            "--- /dev/null\n+++ b/new/file\n",
            "--- a/doomed\n+++ /dev/null\n",
            "# renamed moved -> new/moved-here\n",
        ],
    );
    place
        .tarbox(&["checkpoint", "diff", "t", "first", "third"])
        .expect(1, &["no checkpoint `third`", "head"]);
}

#[test]
fn a_tenant_at_rest_goes_back_and_forth_and_loses_nothing() {
    let place = Place::new();
    let mounted = place.mount(&["--tenant", "t"]);
    fill(&mounted.point);
    let first = tree(&mounted.point);
    place.tarbox(&["checkpoint", "create", "t", "first"]).expect(0, &[]);
    change(&mounted.point);
    let second = tree(&mounted.point);
    end(&place, mounted);
    let restored = place.tarbox(&["checkpoint", "restore", "t", "first", "-o", "json"]).json();
    assert_eq!((&restored["checkpoint"], &restored["mounted"]), (&"first".into(), &false.into()));
    let before = restored["before"].as_str().expect("what was is kept").to_owned();
    let mounted = place.mount(&["--tenant", "t"]);
    assert_eq!(tree(&mounted.point), first);
    fs::write(mounted.point.join("after"), "the restore").expect("write");
    end(&place, mounted);
    place.tarbox(&["checkpoint", "restore", "t", &before]).expect(0, &["before-restore"]);
    let mounted = place.mount(&["--tenant", "t"]);
    assert_eq!(tree(&mounted.point), second);
    end(&place, mounted);
    // At once again: there is nothing to be kept.
    let again = place.tarbox(&["checkpoint", "restore", "t", &before, "-o", "json"]).json();
    assert_eq!(again["before"], serde_json::Value::Null);
    place.tarbox(&["fsck", "t"]).expect(0, &["clean"]);
    place.tarbox(&["log", "t"]).expect(0, &["first", &before]);
    place
        .tarbox(&["checkpoint", "delete", "t", &before])
        .expect(1, &["the tenant's own history goes on there"]);
    place.tarbox(&["checkpoint", "restore", "t", "absent"]).expect(1, &["no checkpoint `absent`"]);
}

#[test]
fn what_a_dead_mounter_left_is_kept_before_a_restore_and_not_replayed_after_it() {
    let place = Place::new();
    let mounted = place.mount(&["--tenant", "t", "--flush-interval", "1h"]);
    fs::write(mounted.point.join("f"), "first").expect("write");
    place.tarbox(&["checkpoint", "create", "t", "first"]).expect(0, &[]);
    fs::write(mounted.point.join("f"), "acknowledged").expect("write");
    let point = mounted.point.clone();
    mounted.kill();
    umount2(&point, MntFlags::MNT_DETACH).expect("umount");
    let restored = place.tarbox(&["checkpoint", "restore", "t", "first", "-o", "json"]).json();
    let before = restored["before"].as_str().expect("kept").to_owned();
    let mounted = place.mount(&["--tenant", "t"]);
    assert_eq!(fs::read_to_string(point.join("f")).expect("read"), "first");
    end(&place, mounted);
    place.tarbox(&["clone", "t", "then", "--from", &before]).expect(0, &[]);
    let mounted = place.mount(&["--tenant", "then"]);
    assert_eq!(fs::read_to_string(point.join("f")).expect("read"), "acknowledged");
    drop(mounted);
}

#[test]
fn a_mounted_tenant_goes_back_under_the_work_and_the_kernel_shows_it() {
    let place = Place::new();
    let mounted = place.mount(&["--tenant", "t", "--flush-interval", "1h"]);
    let root = mounted.point.clone();
    fill(&root);
    let first = tree(&root);
    place.tarbox(&["checkpoint", "create", "t", "first"]).expect(0, &[]);
    change(&root);
    // The kernel knows it all, pages and names, also names that are not there.
    let second = tree(&root);
    assert!(!root.join("doomed").exists() && !root.join("moved").exists());
    let pid = mounted.pid();
    let restored = place.tarbox(&["checkpoint", "restore", "t", "first", "-o", "json"]).json();
    assert_eq!(restored["mounted"], true);
    let before = restored["before"].as_str().expect("kept").to_owned();
    assert_eq!(tree(&root), first, "at once, without a remount");
    assert_ne!(mounted.pid(), pid, "a successor serves");
    fs::write(root.join("written-after"), "it serves on").expect("write");
    place.tarbox(&["checkpoint", "restore", "t", &before]).expect(0, &["served on"]);
    assert_eq!(tree(&root), second);
    for _ in 0..3 {
        place.tarbox(&["checkpoint", "restore", "t", "first"]).expect(0, &[]);
        assert_eq!(tree(&root), first);
        place.tarbox(&["checkpoint", "restore", "t", &before]).expect(0, &[]);
        assert_eq!(tree(&root), second);
    }
    end(&place, mounted);
    place.tarbox(&["fsck", "t"]).expect(0, &["clean"]);
    let mounted = place.mount(&["--tenant", "t"]);
    assert_eq!(tree(&root), second);
    drop(mounted);
}

#[test]
fn open_files_show_what_the_checkpoint_has_and_are_stale_where_it_lacks_them() {
    let place = Place::new();
    let mounted = place.mount(&["--tenant", "t"]);
    let root = mounted.point.clone();
    fs::write(root.join("log"), "one\n").expect("write");
    fs::write(root.join("unlinked"), "was there\n").expect("write");
    place.tarbox(&["checkpoint", "create", "t", "first"]).expect(0, &[]);
    let mut log = OpenOptions::new().read(true).append(true).open(root.join("log")).expect("open");
    log.write_all(b"two, behind the checkpoint\n").expect("write");
    let mut unlinked = File::open(root.join("unlinked")).expect("open");
    fs::remove_file(root.join("unlinked")).expect("unlink");
    let mut newer = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(root.join("newer"))
        .expect("create");
    newer.write_all(b"born later").expect("write");
    place.tarbox(&["checkpoint", "restore", "t", "first"]).expect(0, &[]);
    let mut text = String::new();
    log.seek(SeekFrom::Start(0)).expect("seek");
    log.read_to_string(&mut text).expect("read");
    assert_eq!(text, "one\n");
    log.write_all(b"appended\n").expect("append");
    assert_eq!(
        fs::read_to_string(root.join("log")).expect("read"),
        "one\nappended\n",
        "no hole, nothing of before"
    );
    text.clear();
    unlinked.read_to_string(&mut text).expect("it has its name again");
    assert_eq!(
        (text.as_str(), fs::read_to_string(root.join("unlinked")).expect("read").as_str()),
        ("was there\n", "was there\n")
    );
    let stale = newer.write_all(b"more").expect_err("it is not there any more");
    assert_eq!(stale.raw_os_error(), Some(libc::ESTALE));
    assert!(!root.join("newer").exists());
    drop((log, unlinked, newer));
    end(&place, mounted);
    place.tarbox(&["fsck", "t"]).expect(0, &["clean"]);
}

#[test]
fn a_restore_under_load_fails_no_call_but_on_what_it_takes_away() {
    let place = Place::new();
    let mounted = place.mount(&["--tenant", "t"]);
    let root = mounted.point.clone();
    fs::create_dir(root.join("d")).expect("mkdir");
    place.tarbox(&["checkpoint", "create", "t", "first"]).expect(0, &[]);
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let (root, stop, count) = (&root, &stop, &count);
        let work = move |number: u64| {
            let mut at = number;
            while !stop.load(Ordering::Relaxed) {
                // The directory is in the checkpoint; a file may be taken away between any two of these.
                let path = root.join(format!("d/{at}"));
                match fs::write(&path, at.to_string()) {
                    Ok(()) => {}
                    Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{error}"),
                }
                match fs::read_to_string(&path) {
                    Ok(text) => assert!(text == at.to_string() || text.is_empty(), "{text:?} for {at}"),
                    Err(error) => {
                        assert!(matches!(error.raw_os_error(), Some(libc::ESTALE | libc::ENOENT)), "{error}")
                    }
                }
                count.fetch_add(1, Ordering::Relaxed);
                at += 2;
            }
        };
        let workers = [scope.spawn(move || work(0)), scope.spawn(move || work(1))];
        for _ in 0..5 {
            let seen = count.load(Ordering::Relaxed);
            assert!(until(
                || count.load(Ordering::Relaxed) > seen + 50 || workers.iter().any(|w| w.is_finished())
            ));
            place.tarbox(&["checkpoint", "restore", "t", "first"]).expect(0, &[]);
        }
        stop.store(true, Ordering::Relaxed);
    });
    place.tarbox(&["checkpoint", "restore", "t", "first"]).expect(0, &[]);
    assert_eq!(fs::read_dir(root.join("d")).expect("list").count(), 0);
    end(&place, mounted);
    place.tarbox(&["fsck", "t"]).expect(0, &["clean"]);
}

#[test]
fn a_mounter_killed_at_any_moment_of_a_restore_leaves_one_or_the_other() {
    let place = Place::new();
    let mounted = place.mount(&["--tenant", "t"]);
    let root = mounted.point.clone();
    fill(&root);
    place.tarbox(&["checkpoint", "create", "t", "first"]).expect(0, &[]);
    let first = tree(&root);
    let mut went_back = 0;
    for round in 0..8u64 {
        fs::write(root.join("doomed"), format!("round {round}")).expect("write");
        fs::write(root.join(format!("new-{round}")), "new").expect("write");
        let second = tree(&root);
        let pid = mounted.pid();
        let ended = thread::scope(|scope| {
            let command = scope.spawn(|| place.tarbox(&["checkpoint", "restore", "t", "first"]));
            thread::sleep(std::time::Duration::from_millis(5 + 6 * round));
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid.cast_signed()),
                nix::sys::signal::Signal::SIGKILL,
            );
            command.join().expect("it ends")
        });
        // Whatever the command was told: database and kernel come to say the same, and it is one of the two.
        let is_first = told(&place, &["t", "first"]).is_empty();
        let expected = if is_first { &first } else { &second };
        assert!(until(|| tree(&root) == *expected), "{ended:?}, in the database the first: {is_first}");
        assert!(is_first || ended.code == Some(1), "{ended:?}");
        went_back += u32::from(is_first);
        if !is_first {
            place.tarbox(&["checkpoint", "restore", "t", "first"]).expect(0, &[]);
            assert_eq!(tree(&root), first);
        }
    }
    println!("{went_back} of 8 went back though the mounter was killed");
    end(&place, mounted);
    place.tarbox(&["fsck", "t"]).expect(0, &["clean"]);
}
