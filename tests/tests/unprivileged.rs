//! A user without privileges mounts through fusermount3, on the same engine.

use std::{fs, os::unix::fs::chown, path::Path, process::Command, time::Duration};

use tarbox_tests::{
    command::succeed,
    volume::{Database, Volume},
};

const NOBODY: u32 = 65534;

#[test]
fn nobody_mounts_works_and_unmounts_through_fusermount3() {
    let mut volume = Volume::prepare(Database::Sqlite, &[]);
    let (database, state) = (volume.sqlite_dir(), volume.plan().state_dir.clone());
    for dir in [volume.path(), &database, &state] {
        chown(dir, Some(NOBODY), Some(65534)).expect("chown");
    }
    volume.plan().user = Some("nobody".into());
    volume.plan().env.push(("HOME".into(), "/nonexistent".into()));
    volume.start();
    let at = volume.path().to_owned();
    as_nobody(&at, "echo content > file; mkdir dir; mv file dir/; chmod 600 dir/file; cat dir/file");
    assert_eq!(as_nobody(&at, "cat dir/file; stat -c %U:%a dir/file"), "content\nnobody:600\n");
    as_nobody(&at, "dd if=/dev/urandom of=big bs=1M count=8 status=none; sync -f big; md5sum big > sum");
    if !volume.is_control() {
        as_nobody(Path::new("/"), &format!("fusermount3 -u {}", at.display()));
        assert_eq!(volume.ended(), Some(0), "the mounter ends well after fusermount3 -u");
        volume.start();
    }
    as_nobody(&at, "md5sum -c sum");
    assert_eq!(as_nobody(&at, "cat dir/file"), "content\n");
    if !volume.is_control() {
        assert!(fs::read_dir(&at).is_err(), "another user, even root, sees into a private mount");
    }
}

fn as_nobody(dir: &Path, script: &str) -> String {
    // The shell changes into the directory itself: root may not.
    let script = format!("cd '{}'; {script}", dir.display());
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "sh", "-euc", &script]);
    succeed(command.current_dir("/"), Duration::from_secs(60)).expect("a script as nobody")
}
