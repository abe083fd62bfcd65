use std::{
    fs::File,
    process::{Child, Command},
    time::Instant,
};

use nix::mount::{MsFlags, mount};
use tempfile::TempDir;

use super::*;

const LIMIT: Duration = Duration::from_secs(10);

/// A directory with a tmpfs of its own, taken away at the end.
struct Tree {
    directory: TempDir,
}

impl Tree {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // A source of its own: numbers go from one test's to another's.
        mount(Some(directory.path()), directory.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .expect("mount");
        Self { directory }
    }

    fn point(&self) -> PathBuf {
        self.directory.path().canonicalize().expect("path")
    }

    fn mount(&self) -> Mount {
        let mounts = Mounts::read().expect("mounts");
        mounts.top(&self.point()).expect("mounted").clone()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        while umount2(self.directory.path(), MntFlags::MNT_DETACH).is_ok() {}
    }
}

fn is_seen(what: &Mount) -> bool {
    Mounts::read().expect("mounts").same_as(what).next().is_some()
}

/// A shell that has done what it was told and waits.
fn shell(script: &str, ready: &Path) -> Child {
    let child = Command::new("sh")
        .args(["-c", &format!("{script}; touch {}; exec sleep 60", ready.display())])
        .spawn()
        .expect("sh");
    let deadline = Instant::now() + LIMIT;
    while !ready.exists() {
        assert!(Instant::now() < deadline, "the shell is not ready");
        thread::sleep(Duration::from_millis(5));
    }
    child
}

fn end(mut child: Child) {
    child.kill().expect("kill");
    child.wait().expect("wait");
}

#[test]
fn all_mounts_of_a_device_go_and_nothing_mounted_is_success() {
    let tree = Tree::new();
    let (what, point) = (tree.mount(), tree.point());
    let other = tempfile::tempdir().expect("a temporary directory");
    mount(Some(&tree.point()), other.path(), None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind");
    assert_eq!(unmount(&what, &point, Step::Normal, LIMIT).expect("unmount"), []);
    assert!(!is_seen(&what));
    assert_eq!(unmount(&what, &point, Step::Normal, LIMIT).expect("again"), []);
}

#[test]
fn who_uses_it_is_named_and_a_lazy_unmount_takes_it_from_them() {
    let tree = Tree::new();
    let (what, point) = (tree.mount(), tree.point());
    let flags = tempfile::tempdir().expect("a temporary directory");
    let opens = shell(&format!("exec 3> {}/file", point.display()), &flags.path().join("a"));
    let stands = shell(&format!("cd {}", point.display()), &flags.path().join("b"));
    let error = unmount(&what, &point, Step::Normal, LIMIT).expect_err("it is used").report();
    for words in [
        format!("(pid {}) has a file open", opens.id()),
        format!("(pid {}) stands in {}", stands.id(), point.display()),
        point.display().to_string(),
    ] {
        assert!(error.contains(&words), "{words} in {error}");
    }
    assert!(is_seen(&what));
    let left = unmount(&what, &point, Step::Lazy, LIMIT).expect("a lazy unmount");
    let pids: BTreeSet<_> = left.iter().map(|pin| pin.pid).collect();
    assert_eq!(pids, BTreeSet::from([opens.id(), stands.id()]));
    assert!(!is_seen(&what));
    end(opens);
    end(stands);
}

#[test]
fn a_private_copy_is_named_and_no_reason_to_fail() {
    let tree = Tree::new();
    let (what, point) = (tree.mount(), tree.point());
    let flags = tempfile::tempdir().expect("a temporary directory");
    let ready = flags.path().join("ready");
    let inner = format!("touch {}; exec sleep 60", ready.display());
    let copy = shell_in_namespace("private", &inner, &ready);
    let left = unmount(&what, &point, Step::Normal, LIMIT).expect("not busy here");
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!((left[0].pid, &left[0].how), (copy.id(), &How::Mounted(point)));
    assert!(!is_seen(&what));
    assert_eq!(Held::now(&what).pins(Depth::Mounts).len(), 1);
    end(copy);
    assert_eq!(Held::now(&what).pins(Depth::Mounts), []);
}

/// As services of systemd have it that see less than all.
#[test]
fn a_copy_that_received_the_mount_goes_with_it_and_is_not_named() {
    let ground = Tree::new();
    mount(None::<&str>, &ground.point(), None::<&str>, MsFlags::MS_SHARED, None::<&str>).expect("share");
    let flags = tempfile::tempdir().expect("a temporary directory");
    let ready = flags.path().join("ready");
    let service = shell_in_namespace("slave", &format!("touch {}; exec sleep 60", ready.display()), &ready);
    let point = ground.point().join("volume");
    std::fs::create_dir(&point).expect("mkdir");
    mount(Some(&point), &point, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mount");
    let what = Mounts::read().expect("mounts").top(&point).expect("mounted").clone();
    let received = || {
        let table = std::fs::read(format!("/proc/{}/mountinfo", service.id())).expect("mountinfo");
        Mounts::parse(&table).same_as(&what).next().is_some()
    };
    assert!(received(), "the service sees it, too");
    assert_eq!(unmount(&what, &point, Step::Lazy, LIMIT).expect("a lazy unmount"), []);
    assert!(!received());
    end(service);
}

fn shell_in_namespace(propagation: &str, script: &str, ready: &Path) -> Child {
    let child = Command::new("unshare")
        .args(["--mount", "--propagation", propagation, "sh", "-c", script])
        .spawn()
        .expect("unshare");
    let deadline = Instant::now() + LIMIT;
    while !ready.exists() {
        assert!(Instant::now() < deadline, "the shell is not ready");
        thread::sleep(Duration::from_millis(5));
    }
    child
}

#[test]
fn a_foreign_mount_on_top_is_left_alone() {
    let tree = Tree::new();
    let (what, point) = (tree.mount(), tree.point());
    mount(Some("foreign"), &point, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mount over it");
    let error = unmount(&what, &point, Step::Lazy, LIMIT).expect_err("covered").report();
    assert!(error.contains("something else (tmpfs) is mounted over it"), "{error}");
    assert!(is_seen(&what));
}

#[test]
fn what_does_not_come_back_is_left_behind() {
    let begin = Instant::now();
    let (_, error) = bounded(Duration::from_millis(50), || {
        thread::sleep(Duration::from_secs(5));
        Ok(())
    })
    .expect_err("too late");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn devices_and_mounts_are_read_as_the_kernel_writes_them() {
    assert_eq!(mount_id("pos:\t0\nflags:\t0100000\nmnt_id:\t29\nino:\t1\n"), Some(29));
    let line = "7f00-7f01 r--p 00000000 08:1a 1234 /bin/x";
    assert_eq!(mapped_device(line).as_deref(), Some("8:26"));
    let file = File::open("/proc/self/maps").expect("maps");
    drop(file);
}
