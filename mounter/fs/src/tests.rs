//! The file system without a kernel: random operations, then what memory says, what the database says after everything was
//! evicted, and what a reopened journal says must be the same.

use std::{collections::BTreeMap, ffi::OsStr, os::unix::ffi::OsStrExt, path::Path, sync::Arc};

use fuse3::{
    SetAttr,
    raw::{Filesystem, Request, reply::ReplyXAttr},
};
use futures_util::StreamExt;
use proptest::prelude::*;
use tarbox_store::{Compression, Database, Limits, NewSession, NewTenant};
use tarbox_types::{Connection, Ino, ROOT_INO, SessionId, TenantId};
use uuid::Uuid;

use crate::{AuditConfig, FileSystem, FsConfig};

mod audited;
mod batches;
mod told;

const BLOCK: u32 = 16 << 10;

/// A tenant on SQLite in a directory of its own.
struct World {
    directory: tempfile::TempDir,
    database: Arc<dyn Database>,
    tenant: TenantId,
}

impl World {
    async fn new(limits: Limits) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let url = format!("sqlite://{}", directory.path().join("db").display());
        let database = tarbox_store::open(&url).await.expect("SQLite opens");
        let tenant = TenantId::random();
        let new = NewTenant {
            id: tenant,
            name: "work".into(),
            limits,
            block_size: BLOCK,
            compression: Compression::None,
            root_uid: 0,
            root_gid: 0,
            root_mode: 0o755,
        };
        database.create_tenant(&new).await.expect("the tenant is made");
        Self { directory, database, tenant }
    }

    fn journal(&self) -> std::path::PathBuf {
        self.directory.path().join("journal")
    }

    async fn mount(&self) -> FileSystem {
        self.mount_on(Connection::default()).await
    }

    async fn mount_on(&self, connection: Connection) -> FileSystem {
        self.mount_audited(AuditConfig::default(), connection).await
    }

    async fn mount_audited(&self, audit: AuditConfig, connection: Connection) -> FileSystem {
        let session = NewSession {
            id: SessionId(Uuid::new_v4()),
            node: "test".into(),
            boot_id: "boot".into(),
            pid: std::process::id(),
            start_time: 1,
        };
        self.database.open_session(&session).await.expect("a session");
        let lease = self.database.acquire(self.tenant, session.id).await.expect("the lease is free");
        let store = self.database.open_tenant(self.tenant).await.expect("the tenant opens");
        let config = FsConfig {
            cache_bytes: 256 << 10,
            segment_bytes: 2 << 20,
            journal_bytes: 16 << 20,
            audit,
            connection,
            ..FsConfig::new(self.journal())
        };
        let (fs, _) = FileSystem::open(Arc::clone(&self.database), store, lease, session.id, config)
            .await
            .expect("it opens");
        SESSION.with(|last| last.set(Some(session.id)));
        fs
    }

    /// As after a `kill -9`: nothing is flushed, the session is over.
    async fn kill(&self, fs: FileSystem) {
        let rest = Arc::downgrade(&fs.shared);
        drop(fs);
        // A commit or a fetch that is under way ends before the journal is free.
        while rest.strong_count() > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let session = SESSION.with(std::cell::Cell::take).expect("mounted");
        self.database.close_session(session).await.expect("the session ends");
    }
}

thread_local! {
    static SESSION: std::cell::Cell<Option<SessionId>> = const { std::cell::Cell::new(None) };
}

#[derive(Clone, Debug)]
enum Op {
    Create(u8),
    Mkdir(u8),
    Symlink(u8),
    Write { file: u8, offset: u32, len: u16, byte: u8 },
    Truncate { file: u8, size: u32 },
    Punch { file: u8, offset: u32, len: u32 },
    ZeroRange { file: u8, offset: u32, len: u32 },
    Preallocate { file: u8, offset: u32, len: u32 },
    Unlink(u8),
    Rmdir(u8),
    Rename(u8, u8),
    Exchange(u8, u8),
    Link(u8, u8),
    Xattr(u8, u8, u8),
    Copy { from: u8, to: u8, offset: u32 },
    Flush,
    Evict,
    Kill,
}

const SIZE: u32 = 100_000;

fn op() -> impl Strategy<Value = Op> {
    let n = || 0..12u8;
    prop_oneof![
        6 => n().prop_map(Op::Create),
        3 => n().prop_map(Op::Mkdir),
        1 => n().prop_map(Op::Symlink),
        12 => (n(), 0..SIZE, 1..40_000u16, 1..255u8).prop_map(|(file, offset, len, byte)| Op::Write { file, offset, len, byte }),
        8 => (n(), 0..SIZE, 1..200u16, 1..255u8).prop_map(|(file, offset, len, byte)| Op::Write { file, offset, len, byte }),
        4 => (n(), 0..SIZE).prop_map(|(file, size)| Op::Truncate { file, size }),
        1 => n().prop_map(|file| Op::Truncate { file, size: 0 }),
        3 => (n(), 0..SIZE, 1..50_000u32).prop_map(|(file, offset, len)| Op::Punch { file, offset, len }),
        2 => (n(), 0..SIZE, 1..50_000u32).prop_map(|(file, offset, len)| Op::ZeroRange { file, offset, len }),
        2 => (n(), 0..SIZE, 1..50_000u32).prop_map(|(file, offset, len)| Op::Preallocate { file, offset, len }),
        3 => n().prop_map(Op::Unlink),
        2 => n().prop_map(Op::Rmdir),
        4 => (n(), n()).prop_map(|(a, b)| Op::Rename(a, b)),
        1 => (n(), n()).prop_map(|(a, b)| Op::Exchange(a, b)),
        2 => (n(), n()).prop_map(|(a, b)| Op::Link(a, b)),
        2 => (n(), n(), any::<u8>()).prop_map(|(a, b, c)| Op::Xattr(a, b, c)),
        2 => (n(), n(), 0..SIZE).prop_map(|(from, to, offset)| Op::Copy { from, to, offset }),
        3 => Just(Op::Flush),
        3 => Just(Op::Evict),
        1 => Just(Op::Kill),
    ]
}

/// Everything a user can see of one inode.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    attr: fuse3::raw::reply::FileAttr,
    /// Its hash: a failure is to be readable.
    content: u32,
    holes: Vec<(u64, u64)>,
    xattrs: Vec<u8>,
}

fn req() -> Request {
    Request { unique: 2, uid: 0, gid: 0, pid: 1 }
}

fn name(n: u8) -> String {
    format!("n{}", n % 6)
}

/// Names 0-5 stand in the root, 6-11 in the directory `n5`, if that is one.
async fn place(fs: &FileSystem, n: u8) -> (Ino, String) {
    if n < 6 {
        return (ROOT_INO, name(n));
    }
    match fs.lookup(req(), ROOT_INO, OsStr::new("n5")).await {
        Ok(found) if found.attr.kind == fuse3::FileType::Directory => (found.attr.ino, name(n)),
        _ => (ROOT_INO, name(n)),
    }
}

async fn find(fs: &FileSystem, n: u8) -> Option<Ino> {
    let (parent, name) = place(fs, n).await;
    let found = fs.lookup(req(), parent, OsStr::new(&name)).await.ok()?;
    (found.attr.ino != 0).then_some(found.attr.ino)
}

async fn look_at(fs: &FileSystem, ino: Ino) -> Seen {
    let attr = fs.getattr(req(), ino, None, 0).await.expect("a named inode").attr;
    let is_file = attr.kind == fuse3::FileType::RegularFile;
    let (mut content, mut holes) = (Vec::new(), Vec::new());
    while is_file && (content.len() as u64) < attr.size {
        let part = fs.read(req(), ino, 0, content.len() as u64, 50_000).await.expect("it reads").data;
        assert!(!part.is_empty(), "a short read inside the file");
        content.extend_from_slice(&part);
    }
    let mut at = 0;
    while is_file && at < attr.size {
        let Ok(data) = fs.lseek(req(), ino, 0, at, libc::SEEK_DATA as u32).await else { break };
        let hole =
            fs.lseek(req(), ino, 0, data.offset, libc::SEEK_HOLE as u32).await.expect("a hole at the end");
        holes.push((data.offset, hole.offset));
        at = hole.offset;
    }
    let xattrs = match fs.listxattr(req(), ino, 65_536).await {
        Ok(ReplyXAttr::Data(list)) => list.to_vec(),
        _ => Vec::new(),
    };
    Seen { attr, content: crc32c::crc32c(&content), holes, xattrs }
}

/// The whole tree, by path.
async fn dump(fs: &FileSystem) -> BTreeMap<String, Seen> {
    let mut seen = BTreeMap::new();
    let mut todo = vec![(String::new(), ROOT_INO)];
    while let Some((path, ino)) = todo.pop() {
        let this = look_at(fs, ino).await;
        if this.attr.kind == fuse3::FileType::Directory {
            let mut offset = 0;
            loop {
                let reply = fs.readdirplus(req(), ino, 0, offset, 0).await.expect("it lists");
                let entries: Vec<_> = reply.entries.collect().await;
                let Some(Ok(last)) = entries.last() else { break };
                offset = last.offset as u64;
                for entry in entries.into_iter().flatten() {
                    if entry.name != "." && entry.name != ".." {
                        assert_eq!(entry.attr.ino, entry.inode, "the inode comes with its name");
                        todo.push((format!("{path}/{}", entry.name.to_string_lossy()), entry.inode));
                    }
                }
            }
        }
        seen.insert(path, this);
    }
    seen
}

/// What files must contain, whatever the file system thinks.
type Model = BTreeMap<Ino, Vec<u8>>;

async fn run(fs: &FileSystem, model: &mut Model, op: &Op) {
    match op.clone() {
        Op::Create(n) => {
            let (parent, name) = place(fs, n).await;
            if let Ok(made) = fs.create(req(), parent, OsStr::new(&name), libc::S_IFREG | 0o644, 0).await {
                model.insert(made.attr.ino, Vec::new());
            }
        }
        Op::Mkdir(n) => {
            let (parent, name) = place(fs, n).await;
            let _ = fs.mkdir(req(), parent, OsStr::new(&name), 0o755, 0).await;
        }
        Op::Symlink(n) => {
            let (parent, name) = place(fs, n).await;
            let _ = fs.symlink(req(), parent, OsStr::new(&name), OsStr::new("somewhere")).await;
        }
        Op::Write { file, offset, len, byte } => {
            let Some(ino) = find(fs, file).await else { return };
            let data: Vec<u8> = (0..len).map(|i| byte.wrapping_add((i / 251) as u8)).collect();
            if let Ok(reply) = fs.write(req(), ino, 0, offset.into(), &data, 0, 0).await {
                put(model, ino, offset as usize, &data[..reply.written as usize]);
            }
        }
        Op::Truncate { file, size } => {
            let Some(ino) = find(fs, file).await else { return };
            let set = SetAttr { size: Some(size.into()), ..SetAttr::default() };
            if fs.setattr(req(), ino, None, set).await.is_ok() {
                model.entry(ino).or_default().resize(size as usize, 0);
            }
        }
        Op::Punch { file, offset, len } => zero(fs, model, file, offset, len, 3).await,
        Op::ZeroRange { file, offset, len } => zero(fs, model, file, offset, len, 16).await,
        Op::Preallocate { file, offset, len } => {
            let Some(ino) = find(fs, file).await else { return };
            if fs.fallocate(req(), ino, 0, offset.into(), len.into(), 0).await.is_ok() {
                let content = model.entry(ino).or_default();
                content.resize(content.len().max((offset + len) as usize), 0);
            }
        }
        Op::Unlink(n) => {
            let (parent, name) = place(fs, n).await;
            let _ = fs.unlink(req(), parent, OsStr::new(&name)).await;
        }
        Op::Rmdir(n) => {
            let (parent, name) = place(fs, n).await;
            let _ = fs.rmdir(req(), parent, OsStr::new(&name)).await;
        }
        Op::Rename(a, b) | Op::Exchange(a, b) => {
            let ((from, a), (to, b)) = (place(fs, a).await, place(fs, b).await);
            let flags = if matches!(op, Op::Exchange(..)) { libc::RENAME_EXCHANGE } else { 0 };
            let _ = fs.rename2(req(), from, OsStr::new(&a), to, OsStr::new(&b), flags).await;
        }
        Op::Link(a, b) => {
            let Some(ino) = find(fs, a).await else { return };
            let (parent, name) = place(fs, b).await;
            let _ = fs.link(req(), ino, parent, OsStr::new(&name)).await;
        }
        Op::Xattr(n, key, value) => {
            let Some(ino) = find(fs, n).await else { return };
            let key = format!("user.{key}");
            let _ = match value {
                0..100 => fs.removexattr(req(), ino, OsStr::new(&key)).await,
                _ => fs.setxattr(req(), ino, OsStr::from_bytes(key.as_bytes()), &[value; 30], 0, 0).await,
            };
        }
        Op::Copy { from, to, offset } => {
            let (Some(from), Some(to)) = (find(fs, from).await, find(fs, to).await) else { return };
            let reply = fs.copy_file_range(req(), from, 0, 1000, to, 0, offset.into(), 20_000, 0).await;
            if let Ok(reply) = reply
                && reply.copied > 0
            {
                let data = model[&from][1000..1000 + reply.copied as usize].to_vec();
                put(model, to, offset as usize, &data);
            }
        }
        Op::Flush => drop(fs.flush().await.expect("it commits")),
        Op::Evict => {
            let mut core = fs.shared.core.lock();
            core.tree.evict(0);
            core.tree.evict(0);
            core.tree.evict_extents(0);
            fs.shared.cache.shrink(0);
        }
        Op::Kill => {}
    }
}

fn put(model: &mut Model, ino: Ino, offset: usize, data: &[u8]) {
    let content = model.entry(ino).or_default();
    content.resize(content.len().max(offset + data.len()), 0);
    content[offset..offset + data.len()].copy_from_slice(data);
}

async fn zero(fs: &FileSystem, model: &mut Model, file: u8, offset: u32, len: u32, mode: u32) {
    let Some(ino) = find(fs, file).await else { return };
    if fs.fallocate(req(), ino, 0, offset.into(), len.into(), mode).await.is_err() {
        return;
    }
    let content = model.entry(ino).or_default();
    let end = (offset + len) as usize;
    if mode == 16 {
        content.resize(content.len().max(end), 0);
    }
    let end = end.min(content.len());
    if (offset as usize) < end {
        content[offset as usize..end].fill(0);
    }
}

fn check(model: &Model, tree: &BTreeMap<String, Seen>) {
    for (path, seen) in tree {
        if seen.attr.kind == fuse3::FileType::RegularFile {
            let expected = &model[&seen.attr.ino];
            assert_eq!(seen.attr.size, expected.len() as u64, "size of {path}");
            assert_eq!(seen.content, crc32c::crc32c(expected), "content of {path}");
        }
    }
}

async fn scenario(ops: Vec<Op>) {
    let world = World::new(Limits { bytes: 0, inodes: 0, file_bytes: 0 }).await;
    let mut fs = world.mount().await;
    let mut model = Model::new();
    for op in &ops {
        if matches!(op, Op::Kill) {
            let before = dump(&fs).await;
            world.kill(fs).await;
            fs = world.mount().await;
            assert_eq!(dump(&fs).await, before, "after a kill, from the journal");
        }
        run(&fs, &mut model, op).await;
    }
    let memory = dump(&fs).await;
    check(&model, &memory);
    fs.flush().await.expect("it commits");
    run(&fs, &mut model, &Op::Evict).await;
    assert_eq!(dump(&fs).await, memory, "from the database");
    let store = world.database.open_tenant(world.tenant).await.expect("the tenant opens");
    fs.close().await.expect("it closes");
    let report = store.check(false, &|_| {}).await.expect("it is checked");
    assert!(report.faults.is_empty(), "{:#?}", report.faults);
    assert!(!Path::new(&world.journal()).exists(), "a closed tenant leaves no journal");
}

#[tokio::test]
async fn an_answer_that_comes_late_brings_nothing_back_that_was_removed_meanwhile() {
    let world = World::new(Limits { bytes: 0, inodes: 0, file_bytes: 0 }).await;
    let fs = world.mount().await;
    let (shared, name) = (&fs.shared, OsStr::new("gone"));
    let made = fs.mknod(req(), ROOT_INO, name, libc::S_IFREG | 0o644, 0).await.expect("it is made");
    fs.flush().await.expect("it commits");
    (0..2).for_each(|_| shared.core.lock().tree.evict(0));

    let query = shared.query();
    let (entry, row) = shared
        .store
        .lookup(&shared.view(), ROOT_INO, b"gone")
        .await
        .expect("it answers")
        .expect("it is there");
    shared.supply(crate::tree::Need::Directory(ROOT_INO)).await.expect("all names are loaded");
    fs.unlink(req(), ROOT_INO, name).await.expect("it is unlinked");
    shared.remove_all_orphans().await.expect("it is removed");
    fs.flush().await.expect("it commits");
    shared.core.lock().tree.evict(1 << 20);
    {
        let tree = &mut shared.core.lock().tree;
        tree.load_entry(entry);
        tree.load_inode(row);
    }
    drop(query);

    assert_eq!(dump(&fs).await.len(), 1, "only the root");
    let tree = &mut shared.core.lock().tree;
    assert!(!tree.nodes.contains_key(&made.attr.ino), "the inode is gone");
    tree.evict(1 << 20);
    tree.set_committed(tree.committed);
    assert_eq!(tree.remembered(), 0, "nobody has to know any more");
}

#[tokio::test]
async fn a_read_larger_than_the_cache_ends_although_what_it_needs_pushes_itself_out() {
    let world = World::new(Limits { bytes: 0, inodes: 0, file_bytes: 0 }).await;
    let fs = world.mount().await;
    let file = fs.create(req(), ROOT_INO, OsStr::new("file"), libc::S_IFREG | 0o644, 0).await;
    let ino = file.expect("it is made").attr.ino;
    let content: Vec<u8> = (0..1_u32 << 20).map(|at| (at / 4096) as u8).collect();
    fs.write(req(), ino, 0, 0, &content, 0, 0).await.expect("it is written");
    fs.flush().await.expect("it commits");
    // Far apart, so that nothing is fetched ahead between them.
    for block in [40, 8, 60, 20] {
        fs.shared.cache.shrink(0);
        let offset = block * u64::from(BLOCK);
        fs.read(req(), ino, 0, offset, 4096).await.expect("a block comes into the cache");
        let whole = fs.read(req(), ino, 0, 0, content.len() as u32);
        let whole = tokio::time::timeout(std::time::Duration::from_secs(60), whole).await.expect("it ends");
        assert!(whole.expect("it is read").data == content, "all of it, and right");
    }
    world.kill(fs).await;
}

#[tokio::test]
async fn random_writes_into_reserved_space_become_patches_and_are_folded_when_they_fill_a_block() {
    let world = World::new(Limits { bytes: 0, inodes: 0, file_bytes: 0 }).await;
    let fs = world.mount().await;
    let file = fs.create(req(), ROOT_INO, OsStr::new("file"), libc::S_IFREG | 0o644, 0).await;
    let ino = file.expect("it is made").attr.ino;
    fs.fallocate(req(), ino, 0, 0, 1 << 20, 0).await.expect("it is reserved");
    let seen = || {
        let core = fs.shared.core.lock();
        let row = &core.tree.nodes[&ino].row;
        let extents = core.tree.contents[&row.did].extents(row.did, 1..2).expect("they are known");
        (row.prealloc.clone(), row.charge, extents[0].kind, extents[0].patches)
    };
    let reserved = vec![std::ops::Range { start: 0, end: 256 }];
    let mut expected = vec![0; BLOCK as usize];
    for (patches, unit) in [(1, 2), (2, 0), (3, 3), (4, 1), (0, 0)] {
        let data = [patches as u8 + 1; 4096];
        let offset = u64::from(BLOCK) + unit as u64 * 4096;
        fs.write(req(), ino, 0, offset, &data, 0, 0).await.expect("it is written");
        fs.flush().await.expect("it commits");
        expected[unit * 4096..][..4096].copy_from_slice(&data);
        let (ranges, charge, kind, lie_on_it) = seen();
        assert_eq!((ranges, charge), (reserved.clone(), 1 << 20), "what is reserved stays one range");
        assert_eq!((lie_on_it, kind == tarbox_store::ExtentKind::Hole), (patches, patches > 0));
        run(&fs, &mut Model::new(), &Op::Evict).await;
        let read = fs.read(req(), ino, 0, BLOCK.into(), BLOCK).await.expect("it reads").data;
        assert_eq!(read, expected, "with {patches} patches");
    }
    let store = world.database.open_tenant(world.tenant).await.expect("the tenant opens");
    fs.close().await.expect("it closes");
    let report = store.check(false, &|_| {}).await.expect("it is checked");
    assert!(report.faults.is_empty(), "{:#?}", report.faults);
}

#[tokio::test]
async fn names_of_trusted_attributes_are_shown_to_root_only() {
    let world = World::new(Limits { bytes: 0, inodes: 0, file_bytes: 0 }).await;
    let fs = world.mount().await;
    for name in ["security.s", "trusted.t", "user.u"] {
        fs.setxattr(req(), ROOT_INO, OsStr::new(name), b"value", 0, 0).await.expect("it is set");
    }
    for (uid, expected) in [(0, "security.s\0trusted.t\0user.u\0"), (1000, "security.s\0user.u\0")] {
        let asked = |size| fs.listxattr(Request { uid, ..req() }, ROOT_INO, size);
        let (size, list) = (asked(0).await.expect("a size"), asked(100).await.expect("a list"));
        assert!(matches!(size, ReplyXAttr::Size(size) if size as usize == expected.len()), "{uid}: {size:?}");
        assert!(matches!(&list, ReplyXAttr::Data(list) if *list == expected), "{uid}: {list:?}");
    }
    world.kill(fs).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_database_and_journal_say_the_same(ops in prop::collection::vec(op(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(scenario(ops));
    }
}
