//! What the audit has of requests, at each level, through kills.

use fuse3::Errno;
use tarbox_store::{AuditRange, Limits};
use tarbox_types::AuditLevel;

use super::*;
use crate::{
    AuditConfig,
    audit::{Event, Operation, unpack},
};

const UNLIMITED: Limits = Limits { bytes: 0, inodes: 0, file_bytes: 0 };

fn audit(level: AuditLevel) -> AuditConfig {
    AuditConfig { level, node: "node-1".into(), ..AuditConfig::default() }
}

fn request(unique: u64) -> Request {
    Request { unique, uid: 1000, gid: 100, pid: std::process::id() }
}

fn name(text: &str) -> &OsStr {
    OsStr::new(text)
}

/// What the database has.
async fn committed(world: &World) -> Vec<Event> {
    let store = world.database.open_tenant(world.tenant).await.expect("the tenant opens");
    let chunks = store.audit(&AuditRange::default(), 1000).await.expect("the audit");
    let events = chunks.iter().flat_map(|chunk| {
        let (node, events) = unpack(chunk).expect("events");
        assert_eq!(node, "node-1");
        events
    });
    events.collect()
}

/// Operation and paths, and what is not as usual.
fn shown(events: &[Event]) -> Vec<String> {
    let one = |event: &Event| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut shown = format!("{} {}", event.operation.name(), text(&event.path));
        if let Some(to) = &event.to {
            shown += &format!(" -> {}", text(to));
        }
        if event.operation.is_content() || event.operation == Operation::Read {
            shown += &format!(" {}x {} in {}..{}", event.count, event.bytes, event.offset, event.end);
        }
        if event.result != 0 {
            shown += &format!(" ({})", event.result);
        }
        shown
    };
    events.iter().map(one).collect()
}

/// Something of each kind.
async fn day(fs: &FileSystem) {
    let dir = fs.mkdir(request(2), ROOT_INO, name("dir"), 0o755, 0).await.expect("mkdir").attr.ino;
    let file = fs.create(request(4), dir, name("file"), 0o644, 0).await.expect("create").attr.ino;
    for (unique, offset) in [(6, 0), (8, 10), (10, 100)] {
        fs.write(request(unique), file, 0, offset, b"0123456789", 0, 0).await.expect("write");
    }
    fs.open(request(12), file, 0).await.map(drop).or_else(not_needed).expect("open");
    assert_eq!(fs.read(request(14), file, 0, 5, 10).await.expect("read").data.len(), 10);
    fs.rename(request(16), ROOT_INO, name("dir"), ROOT_INO, name("moved")).await.expect("rename");
    let set = |change: SetAttr| fs.setattr(request(18), file, None, change);
    set(SetAttr { mode: Some(0o600), ..SetAttr::default() }).await.expect("chmod");
    set(SetAttr { uid: Some(7), ..SetAttr::default() }).await.expect("chown");
    set(SetAttr { size: Some(50), ..SetAttr::default() }).await.expect("truncate");
    set(SetAttr { mtime: Some(fuse3::Timestamp::new(1, 0)), ..SetAttr::default() }).await.expect("utimens");
    fs.setxattr(request(20), file, name("user.x"), b"1", 0, 0).await.expect("setxattr");
    fs.setxattr(request(22), file, name("trusted.x"), b"1", 0, 0).await.expect("setxattr");
    fs.removexattr(request(24), file, name("trusted.x")).await.expect("removexattr");
    fs.link(request(26), file, ROOT_INO, name("link")).await.expect("link");
    fs.symlink(request(28), ROOT_INO, name("symlink"), name("link")).await.expect("symlink");
    fs.mknod(request(30), ROOT_INO, name("fifo"), libc::S_IFIFO | 0o600, 0).await.expect("mknod");
    fs.fallocate(request(32), file, 0, 4096, 4096, 0).await.expect("fallocate");
    fs.rename2(request(34), ROOT_INO, name("fifo"), dir, name("file"), libc::RENAME_EXCHANGE)
        .await
        .expect("exchange");
    fs.unlink(request(36), ROOT_INO, name("symlink")).await.expect("unlink");
    let empty = fs.mkdir(request(38), dir, name("empty"), 0o755, 0).await;
    empty.expect("mkdir");
    fs.rmdir(request(40), dir, name("empty")).await.expect("rmdir");
}

fn not_needed(errno: Errno) -> Result<(), Errno> {
    if errno == Errno::from(libc::ENOSYS) { Ok(()) } else { Err(errno) }
}

const BASIC: [&str; 14] = [
    "mkdir /dir",
    "create /dir/file",
    "rename /dir -> /moved",
    "chmod /moved/file",
    "chown /moved/file",
    "setxattr /moved/file",
    "removexattr /moved/file",
    "link /link",
    "symlink /symlink",
    "mknod /fifo",
    "rename /fifo -> /moved/file",
    "unlink /symlink",
    "mkdir /moved/empty",
    "rmdir /moved/empty",
];

fn with(more: &[(usize, &'static str)]) -> Vec<String> {
    let mut all: Vec<&str> = BASIC.to_vec();
    // Places as in the full list, from the front.
    more.iter().for_each(|(at, line)| all.insert(*at, line));
    all.into_iter().map(str::to_owned).collect()
}

#[tokio::test]
async fn each_level_holds_what_it_says_and_nothing_else() {
    let standard = with(&[
        (2, "write /dir/file 3x 30 in 0..110"),
        (6, "truncate /moved/file 1x 0 in 50..50"),
        (7, "setxattr /moved/file"),
        (13, "allocate /link 1x 4096 in 4096..8192"),
    ]);
    let full = with(&[
        (2, "write /dir/file 1x 10 in 0..10"),
        (3, "write /dir/file 1x 10 in 10..20"),
        (4, "write /dir/file 1x 10 in 100..110"),
        (5, "open /dir/file"),
        (6, "read /dir/file 1x 10 in 5..15"),
        (10, "truncate /moved/file 1x 0 in 50..50"),
        (11, "utimens /moved/file"),
        (12, "setxattr /moved/file"),
        (18, "allocate /link 1x 4096 in 4096..8192"),
    ]);
    for (level, expected) in [
        (AuditLevel::Off, Vec::new()),
        (AuditLevel::Basic, with(&[])),
        (AuditLevel::Standard, standard),
        (AuditLevel::Full, full),
    ] {
        let world = World::new(UNLIMITED).await;
        let fs = world.mount_audited(audit(level), Connection::default()).await;
        day(&fs).await;
        let recent = fs.recent_events().await.expect("the last events");
        assert_eq!(shown(&recent), expected, "{level}: those not committed");
        fs.flush().await.expect("flush");
        let events = committed(&world).await;
        assert_eq!(shown(&events), expected, "{level}");
        assert_eq!(fs.recent_events().await.expect("the last events"), events, "{level}");
        assert_eq!(fs.status().audited.events, events.len() as u64);
        for event in &events {
            assert_eq!((event.uid, event.gid, event.pid), (1000, 100, std::process::id()), "{event:?}");
            assert!(!event.process.is_empty() && event.ino > ROOT_INO && event.at > 0, "{event:?}");
            assert_eq!(event.micros.is_some(), level == AuditLevel::Full || event.count > 1, "{event:?}");
        }
        assert!(events.is_sorted_by_key(|event| event.at), "{level}: in the order in which they were done");
        world.kill(fs).await;
    }
}

#[tokio::test]
async fn what_was_not_committed_at_a_kill_is_audited_once_with_the_paths_of_then() {
    let world = World::new(UNLIMITED).await;
    let fs = world.mount_audited(audit(AuditLevel::Standard), Connection::default()).await;
    let outer = fs.mkdir(request(2), ROOT_INO, name("outer"), 0o755, 0).await.expect("mkdir").attr.ino;
    let inner = fs.mkdir(request(4), outer, name("inner"), 0o755, 0).await.expect("mkdir").attr.ino;
    let file = fs.create(request(6), inner, name("file"), 0o644, 0).await.expect("create").attr.ino;
    fs.flush().await.expect("flush");
    world.kill(fs).await;

    // Nothing of it is in memory, and the kernel looks nothing up again.
    let fs = world.mount_audited(audit(AuditLevel::Standard), Connection::default()).await;
    fs.write(request(8), file, 0, 0, b"x", 0, 0).await.expect("write");
    fs.create(request(10), inner, name("other"), 0o644, 0).await.expect("create");
    fs.rename(request(12), ROOT_INO, name("outer"), ROOT_INO, name("later")).await.expect("rename");
    fs.create(request(14), inner, name("last"), 0o644, 0).await.expect("create");
    world.kill(fs).await;

    let fs = world.mount_audited(audit(AuditLevel::Off), Connection::default()).await;
    fs.flush().await.expect("flush");
    let events = committed(&world).await;
    assert_eq!(
        shown(&events)[3..],
        [
            "write /outer/inner/file 1x 1 in 0..1",
            "create /outer/inner/other",
            "rename /outer -> /later",
            "create /later/inner/last",
        ]
    );
    world.kill(fs).await;
    let fs = world.mount_audited(audit(AuditLevel::Basic), Connection::default()).await;
    fs.flush().await.expect("flush");
    assert_eq!(committed(&world).await, events);
    world.kill(fs).await;
}

#[tokio::test]
async fn a_repeated_request_is_not_audited_twice() {
    const UNIQUE: u64 = 1000;
    type Ask = for<'f> fn(&'f FileSystem, u64, Ino) -> std::pin::Pin<Box<dyn Future<Output = String> + 'f>>;
    let asks: [(&str, Ask); 6] = [
        ("read", |fs, unique, ino| {
            Box::pin(async move { format!("{:?}", fs.read(request(unique), ino, 1, 0, 5).await) })
        }),
        ("open", |fs, unique, ino| {
            Box::pin(async move { format!("{:?}", fs.open(request(unique), ino, 0).await) })
        }),
        ("write", |fs, unique, ino| {
            Box::pin(async move { format!("{:?}", fs.write(request(unique), ino, 0, 5, b"y", 0, 0).await) })
        }),
        ("create", |fs, unique, _| {
            let new = OsStr::new("new");
            Box::pin(async move { format!("{:?}", fs.mkdir(request(unique), ROOT_INO, new, 0o755, 0).await) })
        }),
        ("refused write", |fs, unique, ino| {
            Box::pin(
                async move { format!("{:?}", fs.write(request(unique), ino, 0, 1 << 40, b"y", 0, 0).await) },
            )
        }),
        ("copy", |fs, unique, ino| {
            Box::pin(async move {
                format!("{:?}", fs.copy_file_range(request(unique), ino, 0, 0, ino, 0, 50, 5, 0).await)
            })
        }),
    ];
    for (what, ask) in asks {
        for is_committed in [false, true] {
            let world = World::new(Limits { file_bytes: 1 << 20, ..UNLIMITED }).await;
            let on = |left: &[u64]| Connection { nonce: 7, left: left.to_vec() };
            let fs = world.mount_audited(audit(AuditLevel::Full), on(&[])).await;
            let file =
                fs.create(request(2), ROOT_INO, name("file"), 0o644, 0).await.expect("create").attr.ino;
            fs.write(request(4), file, 0, 0, b"01234", 0, 0).await.expect("write");
            let answer = ask(&fs, UNIQUE, file).await;
            let seen = fs.recent_events().await.expect("events");
            assert!(seen.len() > 2, "{what}: {seen:?}");
            if is_committed {
                fs.flush().await.expect("flush");
            }
            world.kill(fs).await;
            for _ in 0..2 {
                let fs = world.mount_audited(audit(AuditLevel::Full), on(&[UNIQUE])).await;
                assert_eq!(ask(&fs, UNIQUE | 1 << 63, file).await, answer, "{what}");
                fs.settled();
                fs.flush().await.expect("flush");
                assert_eq!(
                    shown(&committed(&world).await),
                    shown(&seen),
                    "{what}, committed: {is_committed}"
                );
                world.kill(fs).await;
            }
        }
    }
}

#[tokio::test]
async fn refusals_for_the_quota_are_audited_from_basic_on() {
    for level in [AuditLevel::Off, AuditLevel::Basic] {
        let world = World::new(Limits { bytes: 64 << 10, inodes: 3, file_bytes: 1 << 20 }).await;
        let fs = world.mount_audited(audit(level), Connection::default()).await;
        let file = fs.create(request(2), ROOT_INO, name("file"), 0o644, 0).await.expect("create").attr.ino;
        fs.create(request(4), ROOT_INO, name("second"), 0o644, 0).await.expect("create");
        let full = |result: fuse3::Result<()>, errno: i32| {
            assert_eq!(result.expect_err("refused"), Errno::from(errno));
        };
        full(fs.create(request(6), ROOT_INO, name("third"), 0o644, 0).await.map(drop), libc::ENOSPC);
        full(fs.write(request(8), file, 0, 1 << 20, b"x", 0, 0).await.map(drop), libc::EFBIG);
        fs.write(request(10), file, 0, 0, &[1; 64 << 10], 0, 0).await.expect("it fits");
        full(fs.write(request(12), file, 0, 64 << 10, b"x", 0, 0).await.map(drop), libc::ENOSPC);
        fs.flush().await.expect("flush");
        let expected: &[&str] = match level {
            AuditLevel::Off => &[],
            _ => &[
                "create /file",
                "create /second",
                "create /third (28)",
                "write /file 1x 1 in 1048576..1048577 (27)",
                "write /file 1x 1 in 65536..65537 (28)",
            ],
        };
        assert_eq!(shown(&committed(&world).await), expected, "{level}");
        world.kill(fs).await;
    }
}

#[tokio::test]
async fn mounts_are_audited_where_they_are_told_and_old_events_are_forgotten() {
    let world = World::new(UNLIMITED).await;
    let begun = |operation| AuditConfig { begun: Some(operation), ..audit(AuditLevel::Basic) };
    let fs = world.mount_audited(begun(Operation::Mount), Connection::default()).await;
    fs.mkdir(request(2), ROOT_INO, name("dir"), 0o755, 0).await.expect("mkdir");
    until_noted(&fs, Operation::Mount).await;
    world.kill(fs).await;
    let fs = world.mount_audited(begun(Operation::TakeOver), Connection::default()).await;
    until_noted(&fs, Operation::TakeOver).await;
    fs.close().await.expect("close");
    world.kill(fs).await;
    let mut all: Vec<String> = shown(&committed(&world).await);
    assert_eq!(all.pop().as_deref(), Some("unmount /"));
    all.sort();
    assert_eq!(all, ["mkdir /dir", "mount /", "takeover /"]);

    // A day later those of then are old, and what happened since is not.
    let fs = world.mount_audited(audit(AuditLevel::Basic), Connection::default()).await;
    let later = tarbox_store::Time { sec: crate::fuse::now().sec + 86_400, nsec: 0 };
    let day = std::time::Duration::from_secs(86_000);
    assert_eq!(fs.shared.expire_audit(day * 2, later).await.expect("expire"), 0);
    assert!(fs.shared.expire_audit(day, later).await.expect("expire") > 0);
    assert!(committed(&world).await.is_empty());
    world.kill(fs).await;
}

/// The mount is noted beside serving.
async fn until_noted(fs: &FileSystem, operation: Operation) {
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !fs.recent_events().await.expect("events").iter().any(|event| event.operation == operation) {
        assert!(std::time::Instant::now() < limit, "it is noted");
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_name_that_memory_lost_is_found_among_all_and_nothing_has_none() {
    let world = World::new(UNLIMITED).await;
    let fs = world.mount_audited(audit(AuditLevel::Off), Connection::default()).await;
    let dir = fs.mkdir(request(2), ROOT_INO, name("dir"), 0o755, 0).await.expect("mkdir").attr.ino;
    let file = fs.create(request(4), dir, name("file"), 0o644, 0).await.expect("create").attr.ino;
    let nameless = fs
        .create(request(6), dir, name(""), 0o600, tarbox_types::fuse::O_TMPFILE_BITS)
        .await
        .expect("tmpfile")
        .attr
        .ino;
    fs.flush().await.expect("flush");
    world.kill(fs).await;
    let fs = world.mount_audited(audit(AuditLevel::Full), Connection::default()).await;
    fs.read(request(8), file, 1, 0, 1).await.expect("read");
    fs.write(request(10), nameless, 0, 0, b"x", 0, 0).await.expect("write");
    fs.setattr(request(12), dir, None, SetAttr { mode: Some(0o700), ..SetAttr::default() })
        .await
        .expect("chmod");
    fs.setattr(request(14), ROOT_INO, None, SetAttr { mode: Some(0o700), ..SetAttr::default() })
        .await
        .expect("chmod");
    fs.flush().await.expect("flush");
    assert_eq!(
        shown(&committed(&world).await),
        ["read /dir/file 1x 0 in 0..0", "write  1x 1 in 0..1", "chmod /dir", "chmod /"]
    );
    world.kill(fs).await;
}
