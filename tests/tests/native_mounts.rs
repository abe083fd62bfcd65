//! Directories of the host inside a volume: where they appear, who may write, what is refused, and that nothing of them is lost.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use tarbox_tests::{
    deadline::wait_for,
    node::{Node, Published},
    process::kill_9,
    volume::{Database, Volume as Plain},
};

const LIMIT: Duration = Duration::from_secs(60);

/// A node that allows `rw` for writing and `ro` for reading; `secret` beside them is nobody's business.
fn node() -> Node {
    let allow = |below: &Path| {
        for name in ["rw/a", "ro/b/inner", "secret"] {
            fs::create_dir_all(below.join(name)).expect("mkdir");
        }
        let sources = format!("{0}/rw=rw,{0}/ro=ro", below.display());
        vec!["--native-sources".to_owned(), sources]
    };
    Node::start_with(allow).expect("a node")
}

fn entry(path: &str, source: &Path, more: &str) -> String {
    format!("[[native_mounts]]\npath = \"{path}\"\nsource = \"{}\"\n{more}\n", source.display())
}

struct Volume {
    places: Published,
    context: Vec<String>,
}

impl Volume {
    fn of(node: &Node, native: &str) -> Self {
        let id = node.tenant("work").expect("a tenant");
        let context = ["nativeMounts=".to_owned() + native, "csi.storage.k8s.io/pvc/name=data".to_owned()];
        Self { places: Published::new(node.path(), &id, "work"), context: context.into() }
    }

    fn words(&self) -> Vec<&str> {
        let context = self.context.iter().flat_map(|pair| ["--context", pair.as_str()]);
        self.places.words().into_iter().chain(context).collect()
    }

    fn publish(&self, node: &Node) {
        node.call("stage", &self.words()).expect("stage");
        node.call("publish", &self.words()).expect("publish");
    }

    fn at(&self, name: &str) -> PathBuf {
        self.places.target.join(name)
    }

    fn unstage(&self, node: &Node) {
        node.call("unpublish", &self.words()).expect("unpublish");
        node.call("unstage", &self.words()).expect("unstage");
    }
}

fn mounts_below(path: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let here = format!("{}/", path.display());
    table
        .lines()
        .filter(|line| line.split(' ').nth(4).is_some_and(|at| at.starts_with(&here)))
        .map(str::to_owned)
        .collect()
}

fn both(node: &Node) -> String {
    let rw = node.path().join("rw/{pvc_name}/{tenant_id}");
    entry("/cache", &rw, "mode = \"rw\"") + &entry("/models/b", &node.path().join("ro/b"), "mode = \"ro\"")
}

#[test]
fn native_mounts_are_published_and_the_host_keeps_what_was_written() {
    let node = node();
    let volume = Volume::of(&node, &both(&node));
    fs::write(node.path().join("ro/b/model"), "weights").expect("write");
    volume.publish(&node);
    assert_eq!(fs::read_to_string(volume.at("models/b/model")).expect("read"), "weights");
    let error = fs::write(volume.at("models/b/model"), "x").expect_err("read-only");
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    fs::write(volume.at("cache/f"), "kept").expect("write");
    fs::write(volume.at("beside"), "in the tenant").expect("write");
    // The template was expanded, and what was missing was made.
    let host = node.path().join("rw/data").join(&volume.places.id);
    assert_eq!(fs::read_to_string(host.join("f")).expect("read on the host"), "kept");
    let device = |path: &Path| fs::metadata(path).expect("metadata").dev();
    assert_eq!(device(&volume.at("cache")), device(&host), "it is the host's own file system");
    assert_ne!(device(&volume.at("cache")), device(&volume.at("beside")));
    let error = fs::rename(volume.at("cache/f"), volume.at("f")).expect_err("another file system");
    assert_eq!(error.kind(), ErrorKind::CrossesDevices);
    let options = mounts_below(&volume.places.target);
    assert_eq!(options.len(), 2, "{options:?}");
    assert!(options.iter().all(|line| line.contains("nosuid,nodev")), "{options:?}");
    // Repeated calls mount nothing twice.
    volume.publish(&node);
    assert_eq!(mounts_below(&volume.places.target).len(), 2);
    assert_eq!(mounts_below(&volume.places.staging).len(), 2);
    volume.unstage(&node);
    wait_for("nothing left", LIMIT, || node.left_over().is_empty().then_some(()))
        .unwrap_or_else(|_| panic!("{:?}", node.left_over()));
    assert!(mounts_below(node.path()).is_empty(), "{:?}", mounts_below(node.path()));
    assert_eq!(fs::read_to_string(host.join("f")).expect("untouched"), "kept");
    assert_eq!(fs::read_to_string(node.path().join("ro/b/model")).expect("untouched"), "weights");
    // Without them, the mount points are directories of the tenant.
    let bare = Volume { context: vec![], ..volume };
    bare.publish(&node);
    assert!(fs::read_dir(bare.at("cache")).expect("a directory").next().is_none());
    assert!(bare.at("models/b").is_dir());
    assert_eq!(fs::read_to_string(bare.at("beside")).expect("read"), "in the tenant");
}

#[test]
fn a_read_only_publication_makes_the_native_mounts_below_it_read_only_as_well() {
    let node = node();
    let volume = Volume::of(&node, &both(&node));
    volume.publish(&node);
    let second = Published { target: node.path().join("second"), ..volume.places.clone() };
    let words: Vec<&str> = second.words().into_iter().chain(["--readonly"]).collect();
    node.call("publish", &words).expect("publish a second time");
    let error = fs::write(second.target.join("cache/f"), "x").expect_err("read-only");
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    fs::write(volume.at("cache/f"), "x").expect("the first one can be written");
    node.call("unpublish", &words[..6]).expect("unpublish the second");
    // One place's end is no other's.
    assert_eq!(mounts_below(&volume.places.target).len(), 2);
    assert_eq!(mounts_below(&volume.places.staging).len(), 2);
    assert_eq!(fs::read_to_string(volume.at("cache/f")).expect("read"), "x");
}

#[test]
fn what_the_node_does_not_allow_is_refused_by_name_and_nothing_is_left() {
    let node = node();
    let at = |name: &str| node.path().join(name);
    symlink(at("secret"), at("rw/absolute")).expect("link");
    symlink("../secret", at("rw/relative")).expect("link");
    let id = node.tenant("work").expect("a tenant");
    for (native, expected) in [
        (entry("/x", Path::new("/etc"), ""), ["PermissionDenied", "/etc"]),
        (entry("/x", &at("secret"), "mode = \"ro\""), ["PermissionDenied", "secret"]),
        (entry("/x", &at("ro/b"), "mode = \"rw\""), ["PermissionDenied", "ro/b"]),
        (entry("/x", &at("rw/absolute"), ""), ["PermissionDenied", "rw/absolute"]),
        (entry("/x", &at("rw/relative/deeper"), ""), ["PermissionDenied", "rw/relative"]),
        (entry("/x", &at("rw/../secret"), ""), ["InvalidArgument", ".."]),
        (entry("/../x", &at("rw/a"), ""), ["InvalidArgument", "/../x"]),
        (entry("/x", &at("ro/none"), "mode = \"ro\""), ["FailedPrecondition", "ro/none"]),
        (entry("/x", &at("rw/{pod}"), ""), ["InvalidArgument", "{pod}"]),
    ] {
        let places = Published::new(node.path(), &id, "work");
        let context = format!("nativeMounts={native}");
        let words: Vec<&str> = places.words().into_iter().chain(["--context", &context]).collect();
        let ended = node.csi("stage", &words).expect("an answer");
        let is_right = ended.code != Some(0) && expected.iter().all(|word| ended.stderr.contains(word));
        assert!(is_right, "{native}: {}", ended.stderr);
        assert!(node.left_over().is_empty(), "{native}: {:?}", node.left_over());
    }
    assert!(fs::read_dir(at("secret")).expect("read").next().is_none());
}

#[test]
fn a_link_in_the_tenant_does_not_choose_where_a_native_mount_lies() {
    let node = node();
    let native = entry("/x/y", &node.path().join("rw/a"), "");
    let volume = Volume::of(&node, &native);
    let bare = Volume { context: vec![], places: volume.places.clone() };
    bare.publish(&node);
    symlink("/etc", bare.at("x")).expect("link");
    bare.unstage(&node);
    let ended = node.csi("stage", &volume.words()).expect("an answer");
    assert!(
        ended.stderr.starts_with("FailedPrecondition") && ended.stderr.contains("symbolic link"),
        "{}",
        ended.stderr
    );
    wait_for("nothing left", LIMIT, || node.left_over().is_empty().then_some(()))
        .unwrap_or_else(|_| panic!("{:?}", node.left_over()));
}

#[test]
fn native_mounts_outlive_mounter_and_agent_and_come_back_with_a_mount_that_was_lost() {
    let mut node = node();
    let volume = Volume::of(&node, &both(&node));
    volume.publish(&node);
    let pid = node.mounter_pid(&volume.places.id).expect("a mounter");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGKILL)
        .expect("kill -9");
    node.kill_agent();
    fs::write(volume.at("cache/f"), "no mounter is needed").expect("write");
    node.start_agent().expect("start again");
    fs::write(volume.at("beside"), "x").expect("served again");
    volume.publish(&node);
    assert_eq!(mounts_below(&volume.places.target).len(), 2, "nothing is stacked");
    // Somebody takes one away: the next call puts it back.
    nix::mount::umount2(&volume.places.staging.join("cache"), nix::mount::MntFlags::MNT_DETACH)
        .expect("umount");
    volume.publish(&node);
    assert_eq!(mounts_below(&volume.places.staging).len(), 2);
    assert_eq!(fs::read_to_string(volume.at("cache/f")).expect("read"), "no mounter is needed");
    volume.unstage(&node);
    assert!(mounts_below(node.path()).is_empty(), "{:?}", mounts_below(node.path()));
}

// === Without an agent ===

/// A tenant that is to show `rw/cache`, which is not there yet, and `ro`.
fn plain() -> (Plain, PathBuf) {
    let mut volume = Plain::prepare(Database::Sqlite, &[]);
    let host = volume.scratch().sub("host").expect("a directory");
    for name in ["rw", "ro"] {
        fs::create_dir(host.join(name)).expect("mkdir");
    }
    fs::write(host.join("ro/model"), "weights").expect("write");
    let native = entry("/a/cache", &host.join("rw/{tenant_id}"), "mode = \"rw\"")
        + &entry("/models", &host.join("ro"), "mode = \"ro\"");
    volume.plan().args.extend(["--native-mounts".to_owned(), native]);
    (volume, host)
}

#[test]
fn root_shows_directories_of_this_machine_in_a_plain_mount_and_they_go_with_it() {
    let (mut volume, host) = plain();
    volume.start();
    let shown = || wait_for("both", LIMIT, || (mounts_below(volume.path()).len() == 2).then_some(()));
    shown().expect("both are mounted");
    assert_eq!(fs::read_to_string(volume.at("models/model")).expect("read"), "weights");
    let error = fs::write(volume.at("models/model"), "x").expect_err("read-only");
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    fs::write(volume.at("a/cache/f"), "kept").expect("write");
    let made =
        fs::read_dir(host.join("rw")).expect("list").next().expect("one directory").expect("entry").path();
    assert_eq!(fs::read_to_string(made.join("f")).expect("read on the host"), "kept");
    let device = |path: &Path| fs::metadata(path).expect("metadata").dev();
    assert_eq!(device(&volume.at("a/cache")), device(&made), "it is the host's own file system");
    // Nobody has to serve for them.
    let pid = volume.mount().pid();
    kill_9(pid);
    fs::write(volume.at("a/cache/f"), "still kept").expect("write");
    fs::write(volume.at("beside"), "in the tenant").expect("served again");
    let ended = volume.tarbox(&["umount", volume.path().to_str().expect("UTF-8")]).expect("umount");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(volume.ended(), Some(0));
    assert!(mounts_below(volume.path()).is_empty());
    assert_eq!(fs::read_to_string(made.join("f")).expect("untouched"), "still kept");
    // The other way to end, and the points where they were are directories of the tenant.
    volume.start();
    wait_for("both again", LIMIT, || (mounts_below(volume.path()).len() == 2).then_some(()))
        .expect("mounted");
    volume.mount().signal(nix::sys::signal::Signal::SIGTERM).expect("signal");
    assert_eq!(volume.ended(), Some(0));
    assert_eq!(fs::read_to_string(host.join("ro/model")).expect("untouched"), "weights");
    volume.plan().args.clear();
    volume.start();
    assert!(fs::read_dir(volume.at("a/cache")).expect("a directory").next().is_none());
    volume.stop();
    volume.fsck();
}

#[test]
fn a_plain_mount_says_what_of_its_native_mounts_cannot_be_had_and_mounts_nothing() {
    let refused = |change: &dyn Fn(&mut Plain, &Path), words: &[&str]| {
        let (mut volume, host) = plain();
        change(&mut volume, &host);
        let error = format!("{:#}", volume.try_start().expect_err("refused"));
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert!(!tarbox_tests::mount::is_mounted(volume.path()));
    };
    refused(
        &|volume, host| {
            let state = volume.plan().state_dir.clone();
            for dir in [volume.path(), &volume.sqlite_dir(), &state, host] {
                std::os::unix::fs::chown(dir, Some(65534), Some(65534)).expect("chown");
            }
            volume.plan().user = Some("nobody".into());
            volume.plan().env.push(("HOME".into(), "/nonexistent".into()));
        },
        &["nativeMounts cannot be had", "only root", "user 65534"],
    );
    refused(
        &|_, host| fs::remove_dir_all(host.join("ro")).expect("remove"),
        &["/ro (for /models)", "does not exist"],
    );
    refused(
        &|volume, _| *volume.plan().args.last_mut().expect("TOML") = entry("/a/../b", Path::new("/srv"), ""),
        &["nativeMounts[0].path", "without `..`"],
    );
}
