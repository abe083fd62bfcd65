//! What is committed beside what has been done since: batches, their ends, and what a full or a corrected tree still finds.

use std::ffi::OsStr;

use fuse3::{SetAttr, raw::Filesystem};
use futures_util::StreamExt;
use tarbox_store::{Compression, Limits, NewTenant, Seal};
use tarbox_types::{Ino, ROOT_INO, TenantId};

use super::{BLOCK, Model, Op, World, req, run};
use crate::{FileSystem, sealed_view::Sealed};

const UNLIMITED: Limits = Limits { bytes: 0, inodes: 0, file_bytes: 0 };

async fn create(fs: &FileSystem, name: &str) -> Ino {
    let made = fs.create(req(), ROOT_INO, OsStr::new(name), libc::S_IFREG | 0o644, 0).await;
    made.expect("it is made").attr.ino
}

async fn write(fs: &FileSystem, ino: Ino, offset: u64, data: &[u8]) -> u32 {
    fs.write(req(), ino, 0, offset, data, 0, 0).await.expect("it is written").written
}

async fn find(fs: &FileSystem, name: &str) -> Ino {
    fs.lookup(req(), ROOT_INO, OsStr::new(name)).await.expect("it is there").attr.ino
}

async fn read(fs: &FileSystem, ino: Ino, offset: u64, len: u32) -> Vec<u8> {
    fs.read(req(), ino, 0, offset, len).await.expect("it is read").data.to_vec()
}

async fn evict(fs: &FileSystem) {
    run(fs, &mut Model::new(), &Op::Evict).await;
}

fn seal(name: &str) -> Seal {
    Seal { name: name.into(), request: format!("{name}-request") }
}

#[tokio::test]
async fn who_has_taken_over_much_commits_a_little_of_it_first() {
    let world = World::new(UNLIMITED).await;
    let fs = world.mount().await;
    {
        // As if each life ended before a commit of everything is through.
        let mut flusher = fs.shared.flusher.lock().await;
        for n in 0..8000 {
            let name = format!("directory-{n}");
            fs.mkdir(req(), ROOT_INO, OsStr::new(&name), 0o755, 0).await.expect("mkdir");
        }
        let (begun, all) = (flusher.committed(), fs.shared.journal.last_seq());
        let mut taken = Vec::new();
        while flusher.committed() < all {
            let before = flusher.committed();
            flusher.commit_next(&fs.shared).await.expect("it commits");
            taken.push(flusher.committed() - before);
        }
        assert!(taken.len() >= 3 && taken[0] < (all - begun) / 3 && taken[1] > taken[0], "{taken:?}");
    }
    fs.close().await.expect("it closes");
}

/// A write that is yet to be committed needs the rest of its block as it was, whatever was truncated after it.
#[tokio::test]
async fn what_a_clone_truncates_later_is_whole_in_its_checkpoint() {
    for reads_first in [false, true] {
        let mut world = World::new(UNLIMITED).await;
        let fs = world.mount().await;
        let ino = create(&fs, "file").await;
        let content: Vec<u8> = (0..20 * BLOCK).map(|at| (at / BLOCK) as u8 + 1).collect();
        write(&fs, ino, 0, &content).await;
        fs.seal(&seal("base")).await.expect("it is sealed");
        let store = world.database.open_tenant(world.tenant).await.expect("it opens");
        let base = store.layer_named("base").await.expect("it is read").expect("it is there");
        fs.close().await.expect("it closes");
        let clone = NewTenant {
            id: TenantId::random(),
            name: "clone".into(),
            limits: UNLIMITED,
            block_size: BLOCK,
            compression: Compression::None,
            root_uid: 0,
            root_gid: 0,
            root_mode: 0o755,
        };
        store.branch_from(base.branch, base.layer, &clone).await.expect("it is cloned");
        let _ = std::fs::remove_dir_all(world.journal());
        world.tenant = clone.id;

        let fs = world.mount().await;
        let ino = find(&fs, "file").await;
        if reads_first {
            read(&fs, ino, 10 * u64::from(BLOCK), BLOCK).await;
            fs.shared.cache.shrink(0);
        }
        let frozen = fs.freeze().await;
        let half = vec![0xee; BLOCK as usize / 2];
        write(&fs, ino, 10 * u64::from(BLOCK), &half).await;
        let written = fs.shared.journal.last_seq();
        let sealing = tokio::spawn({
            let fs = fs.clone();
            async move { fs.seal(&seal("kept")).await }
        });
        while fs.shared.journal.last_seq() == written {
            tokio::task::yield_now().await;
        }
        let set = SetAttr { size: Some(0), ..SetAttr::default() };
        fs.setattr(req(), ino, None, set).await.expect("it is truncated");
        drop(frozen);
        sealing.await.expect("no panic").expect("it is sealed");

        let store = world.database.open_tenant(world.tenant).await.expect("it opens");
        let kept = store.layer_named("kept").await.expect("it is read").expect("it is there");
        let view = store.view(kept.branch, kept.layer).await.expect("it can be looked at");
        let then = fs.at(Sealed { branch: kept.branch, layer: kept.layer }, view, 2);
        let mut expected = content.clone();
        expected[10 * BLOCK as usize..][..half.len()].copy_from_slice(&half);
        let there = find(&then, "file").await;
        assert!(read(&then, there, 0, content.len() as u32).await == expected, "read first: {reads_first}");
        assert_eq!(read(&fs, ino, 0, 4096).await, b"");
        // What is there now has nothing of it either.
        write(&fs, ino, 15 * u64::from(BLOCK), b"x").await;
        fs.flush().await.expect("it commits");
        evict(&fs).await;
        let mut expected = vec![0; 15 * BLOCK as usize];
        expected.push(b'x');
        assert!(read(&fs, ino, 0, content.len() as u32).await == expected);
        drop(then);
        fs.close().await.expect("it closes");
        let report = store.check(false, &|_| {}).await.expect("it is checked");
        assert!(report.faults.is_empty(), "{:#?}", report.faults);
    }
}

async fn list(fs: &FileSystem, ino: Ino, rows: bool) -> usize {
    let (mut offset, mut names) = (0, 0);
    loop {
        let last = if rows {
            let entries = fs.readdirplus(req(), ino, 0, offset as u64, 0).await.expect("it lists").entries;
            let entries: Vec<_> = entries.collect().await;
            names += entries.len();
            entries.into_iter().next_back().map(|entry| entry.expect("an entry").offset)
        } else {
            let entries = fs.readdir(req(), ino, 0, offset).await.expect("it lists").entries;
            let entries: Vec<_> = entries.collect().await;
            names += entries.len();
            entries.into_iter().next_back().map(|entry| entry.expect("an entry").offset)
        };
        match last {
            Some(last) => offset = last,
            None => return names - 2,
        }
    }
}

#[tokio::test]
async fn a_large_directory_does_not_end_where_a_page_of_it_was_removed() {
    const NAMES: usize = 70_000;
    const REMOVED: usize = 3000;
    let world = World::new(UNLIMITED).await;
    let fs = world.mount().await;
    let made = fs.mkdir(req(), ROOT_INO, OsStr::new("large"), 0o755, 0).await;
    let large = made.expect("mkdir").attr.ino;
    let name = |n: usize| format!("n{n}");
    for n in 0..NAMES {
        let made = fs.mknod(req(), large, OsStr::new(&name(n)), libc::S_IFREG | 0o644, 0).await;
        made.expect("mknod");
    }
    fs.flush().await.expect("it commits");
    evict(&fs).await;
    assert_eq!(list(&fs, large, false).await, NAMES);
    let frozen = fs.freeze().await;
    // At the beginning, and in the middle.
    for n in (0..REMOVED).chain(NAMES / 2..NAMES / 2 + REMOVED) {
        fs.unlink(req(), large, OsStr::new(&name(n))).await.expect("unlink");
    }
    assert_eq!(list(&fs, large, false).await, NAMES - 2 * REMOVED);
    assert_eq!(list(&fs, large, true).await, NAMES - 2 * REMOVED);
    drop(frozen);
    fs.close().await.expect("it closes");
}

#[tokio::test]
async fn what_finds_no_room_is_written_as_far_as_there_is_some_also_beside_unlinked_files() {
    let world = World::new(Limits { bytes: 1 << 20, inodes: 0, file_bytes: 0 }).await;
    let fs = world.mount().await;
    let open = create(&fs, "open").await;
    write(&fs, open, 0, &[1; 4096]).await;
    fs.unlink(req(), ROOT_INO, OsStr::new("open")).await.expect("unlink");
    let file = create(&fs, "file").await;
    write(&fs, file, 0, &vec![2; 512 << 10]).await;
    let written = write(&fs, file, 512 << 10, &vec![3; 1 << 20]).await;
    let used = fs.shared.core.lock().tree.counters.used_bytes;
    assert!(written > 400 << 10 && written < 512 << 10, "{written} bytes");
    assert!((1 << 20) - used < 4096, "all of it is used: {used}");
    let full = fs.write(req(), file, 0, 1 << 20, b"x", 0, 0).await.expect_err("full");
    assert_eq!(libc::c_int::from(full), -libc::ENOSPC);
    fs.close().await.expect("it closes");
}

#[tokio::test]
async fn who_looks_at_the_database_anew_finds_what_is_there_and_what_was_unlinked() {
    let world = World::new(UNLIMITED).await;
    let fs = world.mount().await;
    let unlinked = create(&fs, "unlinked").await;
    write(&fs, unlinked, 0, b"content").await;
    fs.unlink(req(), ROOT_INO, OsStr::new("unlinked")).await.expect("unlink");
    fs.shared.load_orphans().await.expect("they are read");
    fs.flush().await.expect("it commits");
    let frozen = fs.freeze().await;
    let committed = fs.shared.journal.committed_seq();
    let later = create(&fs, "later").await;
    let before = fs.shared.core.lock().tree.counters;
    assert!(fs.shared.rebuild(committed).expect("it is read"), "the journal reaches back");
    drop(frozen);
    assert_eq!(fs.shared.core.lock().tree.counters, before);
    assert_eq!(find(&fs, "later").await, later);
    assert!(create(&fs, "latest").await > later, "no number is given twice");
    fs.shared.load_orphans().await.expect("they are read");
    assert!(fs.shared.core.lock().tree.nodes.contains_key(&unlinked), "it can be removed");
    fs.close().await.expect("it closes");
    let store = world.database.open_tenant(world.tenant).await.expect("it opens");
    let report = store.check(false, &|_| {}).await.expect("it is checked");
    assert!(report.faults.is_empty(), "{:#?}", report.faults);
}

#[tokio::test]
async fn a_file_has_so_many_reserved_ranges_and_no_more() {
    const KEEP_SIZE: u32 = libc::FALLOC_FL_KEEP_SIZE as u32;
    const PUNCH: u32 = KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE as u32;
    const RANGES: u64 = 4096;
    let world = World::new(UNLIMITED).await;
    let fs = world.mount().await;
    let apart = create(&fs, "apart").await;
    let reserve = |ino, unit: u64, units: u64| fs.fallocate(req(), ino, 0, unit * 4096, units * 4096, 0);
    for n in 0..RANGES {
        reserve(apart, 2 * n, 1).await.expect("it is reserved");
    }
    let full = reserve(apart, 2 * RANGES, 1).await.expect_err("one more");
    assert_eq!(libc::c_int::from(full), -libc::ENOSPC);
    reserve(apart, 1, 1).await.expect("two become one");
    reserve(apart, 2 * RANGES, 1).await.expect("there is room for one");

    let whole = create(&fs, "whole").await;
    reserve(whole, 0, 3 * RANGES).await.expect("it is reserved");
    write(&fs, whole, 4096, &[1; 4096]).await;
    for n in 1..RANGES + 2 {
        fs.fallocate(req(), whole, 0, 2 * n * 4096, 4096, PUNCH).await.expect("a hole");
    }
    let (ranges, charge) = {
        let core = fs.shared.core.lock();
        let row = &core.tree.nodes[&whole].row;
        (row.prealloc.len() as u64, row.charge / 4096)
    };
    // Each of the last two holes costs another of the smallest ranges.
    assert_eq!((ranges, charge), (RANGES, 3 * RANGES - (RANGES + 1) - 2));
    assert_eq!(read(&fs, whole, 4096, 4096).await, [1; 4096]);
    fs.close().await.expect("it closes");
    let store = world.database.open_tenant(world.tenant).await.expect("it opens");
    let report = store.check(false, &|_| {}).await.expect("it is checked");
    assert!(report.faults.is_empty(), "{:#?}", report.faults);
}
