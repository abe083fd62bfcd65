//! A request that a killed process had done without answering it is answered by the next one, and not done again.

use std::{future::Future, pin::Pin};

use fuse3::{Errno, Result};
use tarbox_store::Limits;

use super::*;
use crate::FsStatus;

type Answered<'f> = Pin<Box<dyn Future<Output = Result<String>> + 'f>>;
/// A request; it shows what it was answered.
type Ask = for<'f> fn(&'f FileSystem, Request, Made) -> Answered<'f>;

macro_rules! ask {
    (|$fs:ident, $req:ident, $made:pat_param| $call:expr) => {
        |$fs: &FileSystem, $req: Request, $made: Made| {
            Box::pin(async move { $call.await.map(|answer| format!("{answer:?}")) })
        }
    };
}

fn request(unique: u64) -> Request {
    Request { unique, uid: 0, gid: 0, pid: 1 }
}

fn name(text: &str) -> &OsStr {
    OsStr::new(text)
}

/// What the requests below need.
#[derive(Clone, Copy)]
struct Made {
    file: Ino,
    other: Ino,
    directory: Ino,
}

async fn furnish(fs: &FileSystem) -> Made {
    let mut made = Vec::new();
    for (unique, file) in [(2, "file"), (4, "other")] {
        let created = fs.create(request(unique), ROOT_INO, name(file), 0o644, 0).await.expect("create");
        made.push(created.attr.ino);
        fs.write(request(unique + 100), created.attr.ino, 0, 0, b"0123456789", 0, 0).await.expect("write");
    }
    fs.setxattr(request(6), made[0], name("user.there"), b"x", 0, 0).await.expect("setxattr");
    made.push(fs.mkdir(request(8), ROOT_INO, name("directory"), 0o755, 0).await.expect("mkdir").attr.ino);
    Made { file: made[0], other: made[1], directory: made[2] }
}

fn set_size(size: u64) -> SetAttr {
    SetAttr { size: Some(size), ..SetAttr::default() }
}

/// Requests that would fail, or change something, if they were done twice.
fn asks() -> Vec<(&'static str, Ask)> {
    vec![
        ("mkdir", ask!(|fs, req, _| fs.mkdir(req, ROOT_INO, name("new"), 0o755, 0))),
        ("create", ask!(|fs, req, _| fs.create(req, ROOT_INO, name("new"), 0o644, libc::O_EXCL as u32))),
        ("symlink", ask!(|fs, req, _| fs.symlink(req, ROOT_INO, name("new"), name("target")))),
        ("mknod", ask!(|fs, req, _| fs.mknod(req, ROOT_INO, name("new"), libc::S_IFIFO | 0o600, 0))),
        ("link", ask!(|fs, req, made| fs.link(req, made.file, ROOT_INO, name("new")))),
        ("unlink", ask!(|fs, req, _| fs.unlink(req, ROOT_INO, name("file")))),
        ("rmdir", ask!(|fs, req, _| fs.rmdir(req, ROOT_INO, name("directory")))),
        (
            "rename",
            ask!(|fs, req, made| fs.rename(req, ROOT_INO, name("file"), made.directory, name("moved"))),
        ),
        (
            "exchange",
            ask!(|fs, req, _| fs.rename2(
                req,
                ROOT_INO,
                name("file"),
                ROOT_INO,
                name("other"),
                libc::RENAME_EXCHANGE
            )),
        ),
        ("truncate", ask!(|fs, req, made| fs.setattr(req, made.file, None, set_size(3)))),
        ("write", ask!(|fs, req, made| fs.write(req, made.file, 0, 10, b"appended", 0, 0))),
        (
            "synchronous write",
            ask!(|fs, req, made| fs.write(req, made.file, 0, 10, b"x", 0, libc::O_SYNC as u32)),
        ),
        (
            "setxattr",
            ask!(|fs, req, made| fs.setxattr(
                req,
                made.file,
                name("user.new"),
                b"v",
                libc::XATTR_CREATE as u32,
                0
            )),
        ),
        ("removexattr", ask!(|fs, req, made| fs.removexattr(req, made.file, name("user.there")))),
        ("fallocate", ask!(|fs, req, made| fs.fallocate(req, made.file, 0, 0, 100_000, 0))),
        (
            "copy_file_range",
            ask!(|fs, req, made| fs.copy_file_range(req, made.file, 0, 0, made.other, 0, 10, 10, 0)),
        ),
        (
            "tmpfile",
            ask!(|fs, req, _| fs.create(req, ROOT_INO, name(""), 0o600, tarbox_types::fuse::O_TMPFILE_BITS)),
        ),
    ]
}

/// Everything that a second doing would change.
async fn state(fs: &FileSystem) -> String {
    let FsStatus { used_bytes, used_inodes, .. } = fs.status();
    format!("{used_bytes} bytes, {used_inodes} inodes, {:#?}", dump(fs).await)
}

const UNIQUE: u64 = 1000;

fn connection(nonce: u64, left: &[u64]) -> Connection {
    Connection { nonce, left: left.to_vec() }
}

/// Asks, is killed, asks again on a connection that says the request was left.
async fn killed_before_the_answer(what: &str, ask: Ask, committed: bool) {
    let world = World::new(Limits { bytes: 0, inodes: 0, file_bytes: 0 }).await;
    let fs = world.mount_on(connection(7, &[])).await;
    let made = furnish(&fs).await;
    let answer = ask(&fs, request(UNIQUE), made).await.unwrap_or_else(|errno| panic!("{what}: {errno:?}"));
    let before = state(&fs).await;
    if committed {
        fs.flush().await.expect("flush");
    }
    world.kill(fs).await;

    let fs = world.mount_on(connection(7, &[UNIQUE])).await;
    let again = ask(&fs, request(UNIQUE | 1 << 63), made)
        .await
        .unwrap_or_else(|errno| panic!("{what} again: {errno:?}"));
    assert_eq!(again, answer, "{what}");
    assert_eq!(state(&fs).await, before, "{what}");
    fs.settled();
    world.kill(fs).await;
}

#[tokio::test]
async fn a_request_that_was_done_and_not_answered_is_answered_and_not_done_again() {
    for (what, ask) in asks() {
        killed_before_the_answer(what, ask, false).await;
    }
}

#[tokio::test]
async fn also_when_what_it_did_is_committed_already() {
    for (what, ask) in asks() {
        killed_before_the_answer(what, ask, true).await;
    }
}

#[tokio::test]
async fn the_same_number_on_another_connection_is_another_request() {
    let world = World::new(Limits { bytes: 0, inodes: 0, file_bytes: 0 }).await;
    let fs = world.mount_on(connection(7, &[])).await;
    fs.mkdir(request(UNIQUE), ROOT_INO, name("new"), 0o755, 0).await.expect("mkdir");
    world.kill(fs).await;
    for nonce in [8, 0] {
        let fs = world.mount_on(connection(nonce, &[UNIQUE])).await;
        let error =
            fs.mkdir(request(UNIQUE), ROOT_INO, name("new"), 0o755, 0).await.expect_err("it is there");
        assert_eq!(error, Errno::from(libc::EEXIST), "nonce {nonce}");
        world.kill(fs).await;
    }
}

#[tokio::test]
async fn a_request_that_was_only_read_is_done() {
    let world = World::new(Limits { bytes: 0, inodes: 0, file_bytes: 0 }).await;
    world.kill(world.mount_on(connection(7, &[])).await).await;
    let fs = world.mount_on(connection(7, &[UNIQUE])).await;
    fs.mkdir(request(UNIQUE), ROOT_INO, name("new"), 0o755, 0).await.expect("mkdir");
    fs.lookup(request(UNIQUE + 2), ROOT_INO, name("new")).await.expect("it is there");
    world.kill(fs).await;
}

#[tokio::test]
async fn a_second_kill_during_the_recovery_changes_nothing() {
    let world = World::new(Limits { bytes: 0, inodes: 0, file_bytes: 0 }).await;
    let fs = world.mount_on(connection(7, &[])).await;
    let made = fs.mkdir(request(UNIQUE), ROOT_INO, name("new"), 0o755, 0).await.expect("mkdir").attr.ino;
    world.kill(fs).await;
    for is_settled in [false, true, false, true] {
        let fs = world.mount_on(connection(7, &[UNIQUE])).await;
        let again = fs.mkdir(request(UNIQUE), ROOT_INO, name("new"), 0o755, 0).await.expect("mkdir").attr.ino;
        assert_eq!(again, made);
        if is_settled {
            fs.settled();
            fs.flush().await.expect("flush");
        }
        world.kill(fs).await;
    }
}

#[tokio::test]
async fn a_commit_does_not_keep_other_requests_that_were_left_from_being_taken_on() {
    let world = World::new(Limits { bytes: 0, inodes: 0, file_bytes: 0 }).await;
    let fs = world.mount_on(connection(7, &[])).await;
    let file = fs.create(request(2), ROOT_INO, name("file"), 0o644, 0).await.expect("create").attr.ino;
    world.kill(fs).await;
    let fs = world.mount_on(connection(7, &[UNIQUE])).await;
    // As the session does it: polled once in place, and left to the runtime if it waits.
    let mut sync = Box::pin(fs.fsync(request(UNIQUE), file, 0, false));
    assert!(futures_util::poll!(&mut sync).is_pending(), "the commit is not waited for in place");
    fs.settled();
    sync.await.expect("fsync");
    drop(fs);
}
