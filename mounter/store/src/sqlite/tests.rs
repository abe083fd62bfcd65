//! The suite, and what only SQLite has: files, permissions, crash points.

use std::{
    error::Error,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use async_trait::async_trait;
use tarbox_types::{BlockId, ErrorKind, SessionId};
use tempfile::TempDir;

use super::database::family_files;
use crate::{
    Database, InUse, StoreError,
    conformance::{Site, writer::*},
};

/// A directory of its own.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }

    fn db(&self) -> PathBuf {
        self.dir.path().join("db")
    }

    fn url(&self) -> String {
        format!("sqlite://{}", self.db().display())
    }

    /// Changes the control database behind the engine's back.
    fn control(&self, sql: &str) {
        rusqlite::Connection::open(self.db().join("control.db")).unwrap().execute_batch(sql).unwrap();
    }

    fn family(&self, file: &str) -> rusqlite::Connection {
        let families = family_files(&self.db());
        assert_eq!(families.len(), 1);
        rusqlite::Connection::open(families[0].join(file)).unwrap()
    }
}

#[async_trait]
impl Site for Place {
    async fn open(&self) -> crate::Result<Arc<dyn Database>> {
        crate::open(&self.url()).await
    }

    async fn expire(&self, _dead: SessionId, _claimant: SessionId) {
        // Dropping the database has freed the lock, as the kernel does at a process's death.
    }

    async fn set_min_version(&self, min_version: u32) {
        self.control(&format!("UPDATE schema SET min_version = {min_version}"));
    }

    async fn flip_bit(&self, block: BlockId) {
        let blocks = self.family("blocks.db");
        let block = block as i64;
        let mut data: Vec<u8> = blocks
            .query_row("SELECT data FROM block_part WHERE block = ?1", [block], |row| row.get(0))
            .unwrap();
        let middle = data.len() / 2;
        data[middle] ^= 4;
        blocks.execute("UPDATE block_part SET data = ?2 WHERE block = ?1", (block, data)).unwrap();
    }

    async fn damage(&self, sql: &str) {
        self.family("meta.db").execute_batch(sql).unwrap();
    }
}

crate::conformance::suite!(Place::new());

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn files_and_directories_are_their_owners_alone() {
    let place = Place::new();
    let mut writer = Writer::create(place.open().await.unwrap(), "one").await;
    writer.file("f", &[1; 8192]).await;
    let db = place.dir.path().join("db");
    let (mut files, mut dirs) = (0, 0);
    let mut todo = vec![db];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            assert_eq!(mode(&path), 0o700, "{}", path.display());
            dirs += 1;
            todo.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
            files += 1;
        }
    }
    assert!(dirs == 3 && files >= 8, "{dirs} directories, {files} files");
}

#[tokio::test]
async fn a_bad_url_or_place_is_named() {
    let place = Place::new();
    let file = place.dir.path().join("a file");
    std::fs::write(&file, "x").unwrap();
    let below = file.join("below");
    for url in [
        "sqlite://relative/dir".to_owned(),
        "sqlite:///tmp/x?mode=ro".to_owned(),
        format!("sqlite://{}", file.display()),
    ] {
        let error = crate::open(&url).await.err().unwrap();
        assert!(matches!(error, StoreError::Url { .. }), "{error}");
        assert!(error.to_string().contains(&url), "{error}");
    }
    let error = crate::open(&format!("sqlite://{}", below.display())).await.err().unwrap();
    let text = format!("{error}: {}", error.source().unwrap());
    assert!(matches!(error, StoreError::Unavailable { .. }) && text.contains("below"), "{text}");
    assert!(matches!(crate::open("mysql://x").await, Err(StoreError::Url { .. })));
}

#[tokio::test]
async fn a_creation_cut_short_is_done_again_or_swept() {
    let place = Place::new();
    let db = place.open().await.unwrap();
    let new = new_tenant("one");
    db.create_tenant(&new).await.unwrap();
    // As a crash just before the end leaves it.
    place.control("UPDATE tenant SET state = 2");
    assert!(db.tenant(new.id).await.unwrap().is_none());
    assert!(db.tenants().await.unwrap().is_empty());
    let again = db.create_tenant(&new).await.unwrap();
    assert_eq!(again.used_inodes, 1);
    assert_eq!(family_files(&place.db()).len(), 1, "the first try's directory is gone");
    // As a crash just after the beginning leaves it; another id takes the name.
    place.control("UPDATE tenant SET state = 2");
    std::fs::remove_dir_all(&family_files(&place.db())[0]).unwrap();
    let other = db.create_tenant(&new_tenant("one")).await.unwrap();
    assert_eq!(db.tenants().await.unwrap().len(), 1);
    assert_eq!(db.tenant_by_name("one").await.unwrap().unwrap().id, other.id);
}

#[tokio::test]
async fn a_clone_cut_short_is_done_again_or_swept() {
    let place = Place::new();
    let db = place.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    let kept = writer.seal("kept").await.chain[0];
    let new = new_tenant("two");
    writer.store.branch_from(kept.branch, kept.layer, &new).await.unwrap();
    place.control("UPDATE tenant SET state = 2 WHERE name = 'two'");
    writer.store.branch_from(kept.branch, kept.layer, &new).await.unwrap();
    place.control("UPDATE tenant SET state = 2 WHERE name = 'two'");
    let third = writer.store.branch_from(kept.branch, kept.layer, &new_tenant("two")).await.unwrap();
    assert_eq!(db.tenants().await.unwrap().len(), 2);
    assert_eq!(db.tenant_by_name("two").await.unwrap().unwrap().id, third.id);
    let meta = place.family("meta.db");
    let rows: i64 = meta.query_row("SELECT count(*) FROM tenant", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 2, "nothing is left of those cut short");
}

#[tokio::test]
async fn a_deletion_cut_short_ends_and_frees_the_name() {
    let place = Place::new();
    let db = place.open().await.unwrap();
    let old = db.create_tenant(&new_tenant("one")).await.unwrap();
    place.family("meta.db").execute("UPDATE tenant SET state = 1", []).unwrap();
    assert!(db.tenant_by_name("one").await.unwrap().is_none());
    let new = db.create_tenant(&new_tenant("one")).await.unwrap();
    db.delete_tenant(old.id, InUse::Refuse).await.unwrap();
    // A crash while its directory is removed: the row stands, and whoever comes next goes on.
    place.control(&format!("UPDATE tenant SET state = 3 WHERE id = x'{}'", old.id.0.as_simple()));
    assert!(db.tenant(old.id).await.unwrap().is_none());
    assert!(db.reap_tenant(old.id).await.unwrap());
    assert_eq!(family_files(&place.db()).len(), 1);
    assert_eq!(db.tenant_by_name("one").await.unwrap().unwrap().id, new.id);
}

#[tokio::test]
async fn families_of_a_lost_control_database_are_left_alone() {
    let place = Place::new();
    let first = Writer::create(place.open().await.unwrap(), "one").await;
    drop(first);
    for file in ["control.db", "control.db-wal", "control.db-shm"] {
        let _ = std::fs::remove_file(place.db().join(file));
    }
    let db = place.open().await.unwrap();
    db.create_tenant(&new_tenant("two")).await.unwrap();
    assert_eq!(family_files(&place.db()).len(), 2);
}

#[tokio::test]
async fn a_broken_file_is_damage() {
    let place = Place::new();
    let mut writer = Writer::create(place.open().await.unwrap(), "one").await;
    let tenant = writer.fence.tenant;
    writer.file("f", b"x").await;
    drop(writer);
    let meta = family_files(&place.db())[0].join("meta.db");
    let len = std::fs::metadata(&meta).unwrap().len() as usize;
    let mut bytes = std::fs::read(&meta).unwrap();
    bytes[4096..len].fill(0xa5);
    std::fs::write(&meta, bytes).unwrap();
    let error = match place.open().await.unwrap().open_tenant(tenant).await {
        Err(error) => error,
        Ok(store) => store.head().await.unwrap_err(),
    };
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
}

#[test]
fn what_sqlite_says_becomes_what_a_caller_can_do() {
    use rusqlite::ffi;
    let url = "sqlite:///x";
    let place = super::fault::Place { url, dir: Path::new("/") };
    for (code, kind) in [
        (ffi::SQLITE_FULL, ErrorKind::Exhausted),
        (ffi::SQLITE_BUSY, ErrorKind::Unavailable),
        (ffi::SQLITE_IOERR_FSYNC, ErrorKind::Unavailable),
        (ffi::SQLITE_CANTOPEN, ErrorKind::Unavailable),
        (ffi::SQLITE_CORRUPT, ErrorKind::Damaged),
        (ffi::SQLITE_NOTADB, ErrorKind::Damaged),
        (ffi::SQLITE_CONSTRAINT, ErrorKind::Internal),
    ] {
        let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        let fault: Result<(), _> = Err(super::fault::Fault::Sql(error));
        assert_eq!(place.settle("testing", fault).unwrap_err().kind(), kind, "{code}");
    }
}

/// Not a test by itself: the process that [`a_killed_process_frees_its_lease_at_once`] kills.
#[tokio::test]
#[ignore = "run by another test, in a process of its own"]
async fn hold_a_lease_until_killed() {
    let Ok(url) = std::env::var("TARBOX_TEST_URL") else { return };
    let db = crate::open(&url).await.unwrap();
    let tenant = db.tenant_by_name("one").await.unwrap().unwrap();
    let session = session(&*db).await;
    db.acquire(tenant.id, session).await.unwrap();
    println!("held");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_process_frees_its_lease_at_once() {
    let place = Place::new();
    let db = place.open().await.unwrap();
    let tenant = db.create_tenant(&new_tenant("one")).await.unwrap();
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "sqlite::tests::hold_a_lease_until_killed"])
        .env("TARBOX_TEST_URL", place.url())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("held")), "the other process took the lease");
    let claimant = session(&*db).await;
    match db.acquire(tenant.id, claimant).await {
        Err(StoreError::Held { holder: found, .. }) => assert_eq!(found.pid, holder.id()),
        other => panic!("{other:?}"),
    }
    holder.kill().unwrap();
    holder.wait().unwrap();
    let lease = db.acquire(tenant.id, claimant).await.unwrap();
    assert_eq!(lease.fence.epoch, 2);
}

#[tokio::test]
async fn idle_connections_are_closed_and_opened_again() {
    let place = Place::new();
    let db = place.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    let (ino, _) = writer.file("f", &[3; 8192]).await;
    let dir = family_files(&place.db()).remove(0);
    let family = super::family::Family::new(1, place.url().into(), dir.clone());
    drop(writer);
    db.close_session(tarbox_types::SessionId(uuid::Uuid::nil())).await.unwrap();
    drop(db);
    family.read("reading", |connection| Ok(connection.query_row("SELECT 1", [], |_| Ok(()))?)).unwrap();
    assert!(dir.join("meta.db-shm").exists());
    family.close_idle(std::time::Duration::ZERO);
    assert!(!dir.join("meta.db-shm").exists(), "nothing is open");
    let db = place.open().await.unwrap();
    let tenant = db.tenant_by_name("one").await.unwrap().unwrap();
    let store = db.open_tenant(tenant.id).await.unwrap();
    let view = store.head().await.unwrap().1;
    assert_eq!(bytes_of(&*store, &view, uncut(ino), &[0]).await[&0], [3; 8192]);
}

/// Prints what a commit and reads cost: `cargo test --release -p tarbox-store -- --ignored --nocapture costs`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
async fn costs() {
    let at = std::env::var("TARBOX_TEST_DIR").unwrap_or_else(|_| "/var/tmp".into());
    let place = Place { dir: TempDir::new_in(at).unwrap() };
    let mut writer = Writer::create(place.open().await.unwrap(), "one").await;
    let numbers: Vec<_> = (0..1000).map(|_| writer.number()).collect();
    let time = |what: &str, count: usize, began: std::time::Instant| {
        println!("{what}: {:?} each", began.elapsed() / count as u32);
    };
    let began = std::time::Instant::now();
    for ino in &numbers {
        writer
            .commit(|batch| {
                batch.inodes.push(file(*ino, 8));
                batch.extents.push(inline_extent(*ino, 0, b"12345678"));
            })
            .await;
    }
    time("commit of an inode and an inline extent", numbers.len(), began);
    let blocks: Vec<_> = {
        let range = writer.store.reserve_blocks(256).await.unwrap();
        let raw =
            |id: u64| (0..131_072u32).map(|i| (i.wrapping_mul(id as u32) >> 7) as u8).collect::<Vec<_>>();
        range.map(|id| crate::codec::encode(id, raw(id).into(), crate::Compression::None)).collect()
    };
    let began = std::time::Instant::now();
    for chunk in blocks.chunks(32) {
        writer.store.upload(chunk).await.unwrap();
    }
    writer
        .commit(|batch| {
            batch.headers = blocks.iter().map(|block| block.header.clone()).collect();
            let extents = blocks.iter().zip(0..).map(|(block, blk)| block_extent(9, blk, block.header.block));
            batch.extents = extents.collect();
        })
        .await;
    println!("32 MiB in blocks: {:.0} MiB/s", 32.0 / began.elapsed().as_secs_f64());
    let view = writer.head().await;
    let began = std::time::Instant::now();
    for ino in &numbers {
        writer.store.inode(&view, *ino).await.unwrap().unwrap();
    }
    time("inode", numbers.len(), began);
    let began = std::time::Instant::now();
    for ino in &numbers {
        writer.store.read(&view, uncut(*ino), &[0]).await.unwrap();
    }
    time("inline read", numbers.len(), began);
    let began = std::time::Instant::now();
    for blk in 0..256 {
        writer.store.read(&view, uncut(9), &[blk]).await.unwrap();
    }
    println!("blocks read: {:.0} MiB/s", 32.0 / began.elapsed().as_secs_f64());
    writer
        .commit(|batch| {
            for ino in &numbers {
                batch.entries.push(entry(1, &format!("name {ino}"), *ino, REG, *ino));
            }
        })
        .await;
    let began = std::time::Instant::now();
    assert_eq!(writer.store.list(&view, 1, 0, 1000).await.unwrap().len(), 1000);
    time("listed with its inode", 1000, began);
}

#[tokio::test]
async fn a_closed_session_leaves_no_write_ahead_logs() {
    let place = Place::new();
    let mut writer = Writer::create(place.open().await.unwrap(), "one").await;
    let ino = writer.number();
    let mut batch = writer.batch();
    batch.inodes.push(file(ino, 0));
    writer.store.commit(&writer.fence, &batch).await.unwrap();
    let logs = || {
        let dir = &family_files(&place.db())[0];
        std::fs::read_dir(dir)
            .unwrap()
            .filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().ends_with("-wal"))
            .count()
    };
    assert!(logs() > 0, "a commit is in a log first");
    writer.db.close_session(writer.session).await.unwrap();
    assert_eq!(logs(), 0);
}
