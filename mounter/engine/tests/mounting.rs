//! Mounting as root and as nobody, and what is said where it cannot be done.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod stage;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use stage::{DEADLINE, Stage};
use tarbox_engine::{MountError, MountOptions, mount, unmount};

const NOBODY: u32 = 65534;

fn mounted(path: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().find(|line| line.split(' ').nth(4) == path.to_str()).map(str::to_owned)
}

fn refused(path: impl Into<PathBuf>) -> MountError {
    mount(&MountOptions::new(path, "refused")).unwrap_err()
}

#[test]
fn the_mount_table_shows_source_subtype_and_options() {
    let stage = Stage::new();
    let options = MountOptions {
        read_only: true,
        noexec: true,
        max_read: 65536,
        ..MountOptions::new(stage.path(), "a,b c")
    };
    let _device = mount(&options).unwrap();
    let line = mounted(stage.path()).unwrap();
    for wanted in
        [" fuse.tarbox ", "a,b\\040c", "default_permissions", "max_read=65536", "ro,nosuid,nodev,noexec"]
    {
        assert!(line.contains(wanted), "{wanted} is not in {line}");
    }
}

#[test]
fn what_may_be_covered_is_covered_and_nothing_else() {
    let stage = Stage::new();
    let ground = nix::mount::mount(
        Some("ground"),
        stage.path(),
        Some("tmpfs"),
        nix::mount::MsFlags::MS_RDONLY,
        None::<&str>,
    );
    ground.unwrap();
    assert!(matches!(refused(stage.path()), MountError::AlreadyMounted { .. }));
    let over = |fstype| MountOptions { over: Some(fstype), ..MountOptions::new(stage.path(), "over") };
    assert!(matches!(mount(&over("ext4")), Err(MountError::AlreadyMounted { .. })));
    let device = mount(&over("tmpfs")).unwrap();
    unmount(stage.path(), true).unwrap();
    drop(device);
    nix::mount::umount(stage.path()).unwrap();
}

#[test]
fn a_second_mount_on_the_same_directory_is_refused() {
    let stage = Stage::new();
    let device = stage.mount();
    // Not initialised, the first would make stat(2) wait for ever; the answer comes from the mount table.
    drop(device);
    assert!(matches!(refused(stage.path()), MountError::DeadMount(_)));
    let proc = refused("/proc");
    assert!(matches!(&proc, MountError::AlreadyMounted { fstype, .. } if fstype == "proc"), "{proc}");
}

#[test]
fn what_is_no_directory_is_refused_with_the_reason() {
    let stage = Stage::new();
    File::create(stage.join("file")).unwrap();
    assert!(matches!(refused(stage.join("file")), MountError::NotADirectory(_)));
    assert!(matches!(refused(stage.join("none")), MountError::NotFound(_)));
}

#[test]
fn unmounting_what_is_not_mounted_says_so_and_a_dead_mount_can_be_unmounted() {
    let stage = Stage::new();
    assert!(matches!(unmount(stage.path(), false), Err(MountError::NotMounted(_))));
    drop(stage.mount());
    unmount(stage.path(), false).unwrap();
    assert_eq!(mounted(stage.path()), None);
}

/// Runs `script` as nobody, with `$1` the server's program and `$2` the stage, where /dev/fuse is open to everybody, as
/// distributions have it: in a mount namespace of its own, as this machine's device is its owner's business.
fn as_nobody(stage: &Stage, script: &str) -> Output {
    const OPEN_DEVICE: &str = r#"
        set -e
        mknod "$2/fuse" c 10 229
        chmod 666 "$2/fuse"
        mount --bind "$2/fuse" /dev/fuse
        cd /
        exec timeout "$4" setpriv --reuid=65534 --regid=65534 --clear-groups sh -c "$3" script "$1" "$2"
    "#;
    fs::set_permissions(stage.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Where it is built nobody may look.
    let program = stage.join("server");
    fs::copy(env!("CARGO_BIN_EXE_tarbox-nullfs"), &program).unwrap();
    let mountpoint = stage.join("mnt");
    fs::create_dir(&mountpoint).unwrap();
    std::os::unix::fs::chown(&mountpoint, Some(NOBODY), Some(NOBODY)).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", OPEN_DEVICE, "outer"]);
    command.arg(&program).arg(stage.path()).arg(script).arg(DEADLINE.as_secs().to_string());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn nobody_mounts_through_fusermount3_uses_and_unmounts_and_the_server_ends_cleanly() {
    let stage = Stage::new();
    let seen = as_nobody(
        &stage,
        r#"
        "$1" mount "$2/mnt" > /dev/null < /dev/null & server=$!
        until grep -q "$2/mnt fuse.tarbox" /proc/mounts; do kill -0 $server || exit 3; done
        echo content > "$2/mnt/file" && cat "$2/mnt/file"
        fusermount3 -u -- "$2/mnt"
        wait $server && echo ended
        "#,
    );
    assert_eq!(text(&seen.stdout), "content\nended\n", "{}", text(&seen.stderr));
}

#[test]
fn without_root_the_reason_for_a_refusal_is_named() {
    for (script, reason) in [
        (r#"PATH=/nowhere exec "$1" mount "$2/mnt""#, "fusermount3 is not installed"),
        (r#"exec "$1" mount "$2""#, "no write access to mountpoint"),
        (r#"exec "$1" mount /root/inner"#, "permission denied"),
        (r#"exec "$1" mount "$2/none""#, "does not exist"),
    ] {
        let stage = Stage::new();
        let seen = as_nobody(&stage, script);
        assert!(!seen.status.success());
        assert!(text(&seen.stderr).contains(reason), "{script}: {}", text(&seen.stderr));
    }
}
