//! Rows: what a batch writes reads back.

use bytes::Bytes;
use tarbox_types::ROOT_INO;

use super::{Site, writer::*};
use crate::*;

pub async fn every_kind_of_row_reads_back(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let header = writer.upload(&[7; 5000]).await;
    let (d, f, l) = (writer.number(), writer.number(), writer.number());
    let dir_row = InodeRow { nlink: 2, ..dir(d, ROOT_INO) };
    let file_row = InodeRow {
        mode: REG | 0o6755,
        uid: u32::MAX - 1,
        gid: u32::MAX - 2,
        rdev: u32::MAX,
        nlink: 2,
        size: 1 << 53,
        atime: Time { sec: -5, nsec: 999_999_999 },
        mtime: Time { sec: i64::MIN, nsec: 1 },
        ctime: Time { sec: i64::MAX, nsec: 0 },
        cut: 77,
        charge: 12 << 20,
        prealloc: vec![4..9, 1 << 30..1 << 41],
        ..file(f, 0)
    };
    let link_row =
        InodeRow { mode: 0o120_777, target: Bytes::from(vec![b'x'; 4095]), did: 0, ..file(l, 4095) };
    let rows = [dir_row, file_row, link_row];
    let xattrs = Bytes::from(vec![9; 70_000]);
    let extents = [
        block_extent(f, 0, header.block),
        inline_extent(f, 1, &[3; INLINE_MAX]),
        ExtentRow { did: f, blk: 2, alloc: units(&[]), body: ExtentBody::Hole },
        inline_extent(f, 1 << 40, b"far"),
    ];
    writer
        .commit(|batch| {
            batch.headers.push(header.clone());
            batch.inodes.extend(rows.iter().cloned());
            batch.entries.push(entry(ROOT_INO, "d", d, DIR, d));
            batch.entries.push(entry(d, "f", f, REG, f));
            batch.entries.push(entry(d, "l", l, 0o120_000, l));
            batch.xattrs.push((f, Some(xattrs.clone())));
            batch.extents.extend(extents.iter().cloned());
            batch.used_bytes = 12 << 20;
            batch.used_inodes = 4;
        })
        .await;
    let (tenant, view) = writer.store.head().await.unwrap();
    assert_eq!((tenant.used_bytes, tenant.used_inodes), (12 << 20, 4));
    for row in &rows {
        assert_eq!(writer.store.inode(&view, row.ino).await.unwrap().as_ref(), Some(row));
    }
    let (found, inode) = writer.store.lookup(&view, d, b"f").await.unwrap().unwrap();
    assert_eq!((found, &inode), (entry(d, "f", f, REG, f), &rows[1]));
    assert!(writer.store.lookup(&view, d, b"g").await.unwrap().is_none());
    assert_eq!(writer.store.xattrs(&view, f).await.unwrap(), Some(xattrs));
    assert_eq!(writer.store.xattrs(&view, d).await.unwrap(), None);
    let loaded = writer.store.extents(&view, uncut(f), 0..u64::MAX >> 1).await.unwrap();
    let kinds: Vec<_> = loaded.iter().map(|extent| (extent.blk, extent.kind)).collect();
    let block = ExtentKind::Block(header.block);
    let expected =
        [(0, block), (1, ExtentKind::Inline), (2, ExtentKind::Hole), (1 << 40, ExtentKind::Inline)];
    assert_eq!(kinds, expected);
    assert_eq!(loaded[0].alloc, units(&[3]));
    assert_eq!(writer.store.extents(&view, uncut(f), 1..2).await.unwrap().len(), 1);
    let bytes = bytes_of(&*writer.store, &view, uncut(f), &[0, 1, 2, 3, 1 << 40]).await;
    assert_eq!((&bytes[&0][..], &bytes[&1][..]), (&[7; 5000][..], &[3; INLINE_MAX][..]));
    assert_eq!(bytes[&(1 << 40)], b"far");
    assert!(bytes.get(&2).is_none_or(Vec::is_empty) && !bytes.contains_key(&3));
}

pub async fn rows_change_and_go(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let (a, _) = writer.file("a", b"first").await;
    let (b, _) = writer.file("b", b"second").await;
    writer
        .commit(|batch| {
            batch.inodes.push(InodeRow { uid: 5, ..file(a, 3) });
            batch.extents.push(inline_extent(a, 0, b"new"));
            batch.xattrs.push((a, Some(Bytes::from_static(b"x"))));
            batch.xattrs.push((b, Some(Bytes::from_static(b"y"))));
        })
        .await;
    writer
        .commit(|batch| {
            batch.removed_entries.push((ROOT_INO, Bytes::from_static(b"b"), b));
            batch.removed_inodes.push(b);
            batch.removed_data.push(b);
            batch.xattrs.push((a, None));
            batch.entries.push(entry(ROOT_INO, "a", a, REG, a));
        })
        .await;
    let view = writer.head().await;
    assert_eq!(writer.store.inode(&view, a).await.unwrap().unwrap().uid, 5);
    assert_eq!(bytes_of(&*writer.store, &view, uncut(a), &[0]).await[&0], b"new");
    assert_eq!(writer.store.inode(&view, b).await.unwrap(), None);
    assert_eq!(writer.store.xattrs(&view, a).await.unwrap(), None);
    assert_eq!(writer.store.xattrs(&view, b).await.unwrap(), None);
    assert_eq!(names(&*writer.store, &view, ROOT_INO).await, [("a".to_owned(), a)]);
    writer.commit(|batch| batch.removed_extents.push((a, 0))).await;
    assert!(bytes_of(&*writer.store, &view, uncut(a), &[0]).await.is_empty());
    assert!(writer.store.extents(&view, uncut(a), 0..9).await.unwrap().is_empty());
}

pub async fn a_directory_is_paged_by_cookies_under_deletion(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let numbers: Vec<_> = (0..50).map(|_| writer.number()).collect();
    writer
        .commit(|batch| {
            for (i, ino) in numbers.iter().enumerate() {
                batch.inodes.push(file(*ino, 0));
                // Names in the opposite order: pages follow the cookies.
                batch.entries.push(entry(ROOT_INO, &format!("n{:02}", 99 - i), *ino, REG, *ino));
            }
        })
        .await;
    let view = writer.head().await;
    let first = writer.store.list(&view, ROOT_INO, 0, 20).await.unwrap();
    assert_eq!(first.iter().map(|(entry, _)| entry.ino).collect::<Vec<_>>(), numbers[..20]);
    assert_eq!(first[3].1, file(numbers[3], 0));
    writer
        .commit(|batch| {
            for i in (0..50).step_by(2) {
                let name = Bytes::from(format!("n{:02}", 99 - i));
                batch.removed_entries.push((ROOT_INO, name, numbers[i]));
                batch.removed_inodes.push(numbers[i]);
            }
        })
        .await;
    let second = writer.store.list(&view, ROOT_INO, first[19].0.cookie, 20).await.unwrap();
    let expected: Vec<_> = (20..50).filter(|i| i % 2 == 1).map(|i| numbers[i]).collect();
    assert_eq!(second.iter().map(|(entry, _)| entry.ino).collect::<Vec<_>>(), expected);
    assert!(writer.store.list(&view, ROOT_INO, numbers[49], 5).await.unwrap().is_empty());
}

pub async fn orphans_are_listed(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let (a, _) = writer.file("a", b"x").await;
    let view = writer.head().await;
    assert!(writer.store.orphans(&view).await.unwrap().is_empty());
    let orphan = InodeRow { nlink: 0, ..file(a, 1) };
    writer
        .commit(|batch| {
            batch.inodes.push(orphan.clone());
            batch.removed_entries.push((ROOT_INO, Bytes::from_static(b"a"), a));
        })
        .await;
    assert_eq!(writer.store.orphans(&view).await.unwrap(), [orphan]);
    writer.commit(|batch| batch.removed_inodes.push(a)).await;
    assert!(writer.store.orphans(&view).await.unwrap().is_empty());
}

pub async fn patches_lie_over_blocks_inline_bytes_and_holes(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let (a, block) = writer.file("a", &[1; 8192]).await;
    writer
        .commit(|batch| {
            batch.extents.push(inline_extent(a, 1, &[2; 100]));
            batch.extents.push(ExtentRow { did: a, blk: 2, alloc: units(&[]), body: ExtentBody::Hole });
        })
        .await;
    let patch = |blk, seq, off, byte, len| PatchRow { did: a, blk, seq, off, data: vec![byte; len].into() };
    writer
        .commit(|batch| {
            batch.patches =
                vec![patch(0, 10, 0, 5, 1000), patch(0, 11, 500, 6, 1000), patch(1, 12, 90, 7, 20)];
            batch.patches.push(patch(2, 13, 4096, 8, 1));
            batch.patched = vec![(a, 1, units(&[1])), (a, 2, units(&[2]))];
        })
        .await;
    writer
        .commit(|batch| batch.patches = vec![patch(0, 14, 8000, 9, 2000 / 16), patch(1, 15, 0, 4, 1)])
        .await;
    let view = writer.head().await;
    let bytes = bytes_of(&*writer.store, &view, uncut(a), &[0, 1, 2]).await;
    let mut expected = vec![1; 8192];
    expected[..500].fill(5);
    expected[500..1500].fill(6);
    expected[8000..8125].fill(9);
    assert_eq!(bytes[&0], expected);
    let mut expected = vec![2; 100];
    expected[90..].fill(7);
    expected.extend([7; 10]);
    expected[0] = 4;
    assert_eq!(bytes[&1], expected);
    assert_eq!((bytes[&2].len(), bytes[&2][4096]), (4097, 8));
    let extents = writer.store.extents(&view, uncut(a), 0..3).await.unwrap();
    let counts: Vec<_> = extents.iter().map(|e| (e.kind, e.patches, e.patch_bytes)).collect();
    let block = ExtentKind::Block(block);
    assert_eq!(counts, [(block, 3, 2125), (ExtentKind::Inline, 2, 21), (ExtentKind::Hole, 1, 1)]);
    assert_eq!((&extents[0].alloc, &extents[2].alloc), (&units(&[3]), &units(&[2])));
    // Folding: the extent is replaced, its patches are gone.
    writer.commit(|batch| batch.extents.push(inline_extent(a, 0, b"folded"))).await;
    assert_eq!(bytes_of(&*writer.store, &view, uncut(a), &[0]).await[&0], b"folded");
    assert_eq!(writer.store.extents(&view, uncut(a), 0..1).await.unwrap()[0].patches, 0);
}

pub async fn truncation_cuts_extents_and_their_patches(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let (a, _) = writer.file("a", b"zero").await;
    writer.commit(|batch| batch.extents.extend((1..6).map(|blk| inline_extent(a, blk, b"x")))).await;
    let patch = PatchRow { did: a, blk: 4, seq: 5, off: 3, data: Bytes::from_static(b"p") };
    writer.commit(|batch| batch.patches.push(patch)).await;
    // The truncation comes before the extents of the same batch.
    writer
        .commit(|batch| {
            batch.truncated.push((a, 2));
            batch.extents.push(inline_extent(a, 4, b"after"));
        })
        .await;
    let view = writer.head().await;
    let extents = writer.store.extents(&view, uncut(a), 0..100).await.unwrap();
    assert_eq!(extents.iter().map(|e| (e.blk, e.patches)).collect::<Vec<_>>(), [(0, 0), (1, 0), (4, 0)]);
    assert_eq!(bytes_of(&*writer.store, &view, uncut(a), &[4]).await[&4], b"after");
}

pub async fn a_large_batch_commits(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let numbers: Vec<_> = (0..20_000).map(|_| writer.number()).collect();
    let began = std::time::Instant::now();
    writer
        .commit(|batch| {
            for ino in &numbers {
                batch.inodes.push(file(*ino, 8));
                batch.entries.push(entry(ROOT_INO, &format!("file {ino}"), *ino, REG, *ino));
                batch.extents.push(inline_extent(*ino, 0, &ino.to_le_bytes()));
            }
            batch.used_inodes += 20_000;
        })
        .await;
    let took = began.elapsed();
    let view = writer.head().await;
    let page = writer.store.list(&view, ROOT_INO, 0, 30_000).await.unwrap();
    assert_eq!(page.len(), 20_000);
    let last = *numbers.last().unwrap();
    assert_eq!(
        bytes_of(&*writer.store, &view, uncut(last), &[0]).await[&0],
        super::writer::trimmed(&last.to_le_bytes())
    );
    println!("20,000 files (60,000 rows) in one commit: {took:?}");
}

pub async fn names_are_bytes(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let names =
        [Bytes::from_static(b"\xff\xfe\x01"), Bytes::from(vec![b'n'; 255]), Bytes::from_static(b"'; --")];
    for name in &names {
        let ino = writer.number();
        let row = EntryRow { name: name.clone(), ..entry(ROOT_INO, "", ino, REG, ino) };
        writer
            .commit(|batch| {
                batch.inodes.push(file(ino, 0));
                batch.entries.push(row.clone());
            })
            .await;
        let view = writer.head().await;
        assert_eq!(writer.store.lookup(&view, ROOT_INO, name).await.unwrap().unwrap().0, row);
    }
}
