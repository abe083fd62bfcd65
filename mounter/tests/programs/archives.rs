//! `tarbox export` and `tarbox import`, compared with GNU tar on a real tree.

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    path::Path,
    process::{Command, Stdio},
};

use nix::sys::stat::{Mode, SFlag, mknod};

use crate::place::{Place, end_of};

/// A tree with everything that a file system has but sockets.
fn make_tree(at: &Path) {
    fs::create_dir_all(at.join("a/b")).expect("mkdir");
    fs::write(at.join("a/b/file"), b"hello").expect("write");
    fs::write(at.join("a/large"), (0..3_000_000u32).map(|n| ((n * 7) >> 3) as u8).collect::<Vec<_>>())
        .expect("write");
    fs::hard_link(at.join("a/b/file"), at.join("a/hard")).expect("link");
    symlink("b/file", at.join("a/symbolic")).expect("symlink");
    mknod(&at.join("a/null"), SFlag::S_IFCHR, Mode::S_IRUSR, nix::libc::makedev(1, 3))
        .expect("mknod: as root");
    mknod(&at.join("a/disk"), SFlag::S_IFBLK, Mode::S_IRUSR, nix::libc::makedev(259, 70_000)).expect("mknod");
    mknod(&at.join("a/pipe"), SFlag::S_IFIFO, Mode::S_IRUSR, 0).expect("mkfifo");
    let sparse = fs::File::create(at.join("a/sparse")).expect("create");
    sparse.set_len(1 << 30).expect("grow");
    sparse.write_all_at(b"in the middle", 500_000_000).expect("write");
    sparse.sync_all().expect("sync");
    std::os::unix::fs::chown(at.join("a/b/file"), Some(1234), Some(3_000_000_000)).expect("chown");
    fs::set_permissions(at.join("a/b/file"), fs::Permissions::from_mode(0o4711)).expect("chmod");
    fs::set_permissions(at.join("a"), fs::Permissions::from_mode(0o2750)).expect("chmod");
    for (path, time) in
        [("a/b", "1999-01-01 12:00:00.123456789"), ("a/symbolic", "1969-12-31 23:59:58.5 UTC")]
    {
        let touched = Command::new("touch").args(["-h", "-d", time]).arg(at.join(path)).status();
        assert!(touched.expect("touch").success());
    }
}

/// Path, type and mode, owners, size, times, links and device of everything below.
fn describe(at: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut left = vec![at.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = fs::symlink_metadata(&path).expect("stat");
        if metadata.is_dir() {
            left.extend(fs::read_dir(&path).expect("list").map(|entry| entry.expect("entry").path()));
        }
        let size = if metadata.is_dir() { 0 } else { metadata.size() };
        lines.push(format!(
            "{} {:o} {}:{} {size} {}.{:09} {} {:x} {:?}",
            path.strip_prefix(at).expect("below").display(),
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            if metadata.is_dir() { 0 } else { metadata.nlink() },
            metadata.rdev(),
            fs::read_link(&path).ok(),
        ));
    }
    lines.sort();
    lines
}

fn tar(arguments: &[&str]) {
    let ended = end_of(Command::new("tar").args(arguments));
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn a_tree_comes_back_from_a_tenant_as_it_went_in() {
    let place = Place::new();
    let (original, back) = (place.path("original"), place.path("back"));
    make_tree(&original);
    fs::create_dir(&back).expect("mkdir");
    let at = |path: &Path| path.to_str().expect("utf-8").to_owned();
    let (first, second) = (at(&place.path("first.tar")), at(&place.path("second.tar")));
    tar(&["--format=posix", "--sparse", "-cf", &first, "-C", &at(&original), "."]);
    let imported = place.tarbox(&["import", "t", &first, "-o", "json"]).json();
    assert_eq!((&imported["entries"], &imported["skipped"]), (&11.into(), &serde_json::json!([])));
    place.tarbox(&["fsck", "t"]).expect(0, &["clean"]);
    let exported = place.tarbox(&["export", "t", &second, "-o", "json"]).json();
    assert_eq!((&exported["entries"], &exported["consistent"]), (&11.into(), &true.into()));
    assert!(fs::metadata(&second).expect("archive").len() < 10 << 20, "holes are not written");
    tar(&["-xpf", &second, "-C", &at(&back)]);
    assert_eq!(describe(&back), describe(&original));
    for file in ["a/large", "a/sparse", "a/b/file"] {
        let same = Command::new("cmp").arg(original.join(file)).arg(back.join(file)).status();
        assert!(same.expect("cmp").success(), "{file}");
    }
    assert!(fs::metadata(back.join("a/sparse")).expect("stat").blocks() < 100, "the hole is one");
}

#[test]
fn sockets_and_binary_attributes_survive_from_tenant_to_tenant() {
    let place = Place::new();
    let mounted = place.mount(&["--tenant", "first"]);
    let _socket = std::os::unix::net::UnixListener::bind(mounted.point.join("socket")).expect("bind");
    fs::write(mounted.point.join("file"), b"x").expect("write");
    let value = b"a=b\n\0\xff";
    xattr(&mounted.point.join("file"), value);
    // Exported while it is mounted: what was done before is in it.
    let mut export =
        place.command("tarbox").args(["export", "first"]).stdout(Stdio::piped()).spawn().expect("export");
    let mut import = place.command("tarbox");
    import.args(["import", "second", "-o", "json"]).stdin(export.stdout.take().expect("stdout"));
    let imported = import.output().expect("import");
    assert!(export.wait().expect("export").success());
    assert!(imported.status.success(), "{imported:?}");
    let other = place.path("other");
    fs::create_dir(&other).expect("mkdir");
    let second = place.mount_at("other", &["--tenant", "second"]);
    let kind = fs::symlink_metadata(second.point.join("socket")).expect("stat").mode() & nix::libc::S_IFMT;
    assert_eq!(kind, nix::libc::S_IFSOCK);
    assert_eq!(fs::read(second.point.join("file")).expect("read"), b"x");
    let shown = Command::new("getfattr")
        .args(["--only-values", "-n", "user.x"])
        .arg(second.point.join("file"))
        .output();
    assert_eq!(shown.expect("getfattr (package attr)").stdout, value);
}

fn xattr(path: &Path, value: &[u8]) {
    let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
    let set = Command::new("setfattr").args(["-n", "user.x", "-v", &format!("0x{hex}")]).arg(path).status();
    assert!(set.expect("setfattr (package attr)").success());
}

#[test]
fn an_archive_that_is_damaged_or_too_large_leaves_no_tenant_behind() {
    let place = Place::new();
    let original = place.path("original");
    make_tree(&original);
    let archive = place.path("a.tar");
    let shown = archive.to_str().expect("utf-8");
    tar(&["-cf", shown, "-C", original.to_str().expect("utf-8"), "a/large", "a/b"]);
    place.tarbox(&["import", "t", shown, "--quota-bytes", "1Mi"]).expect(1, &["a/large", "No space left"]);
    let whole = fs::read(&archive).expect("read");
    fs::write(&archive, &whole[..1_000_000]).expect("cut");
    place.tarbox(&["import", "t", shown]).expect(1, &["not a tar archive, or damaged, at byte 1000000"]);
    fs::write(&archive, "no archive").expect("write");
    place.tarbox(&["import", "t", shown]).expect(1, &["not a tar archive"]);
    assert_eq!(place.tarbox(&["tenant", "list", "-o", "json"]).json(), serde_json::json!([]));
    place.tarbox(&["import", "t", "/nonexistent.tar"]).expect(1, &["/nonexistent.tar"]);
}
