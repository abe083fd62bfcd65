//! The check: silent on what is sound, loud on each broken invariant.

use bytes::Bytes;
use tarbox_types::{ErrorKind, ROOT_INO};

use super::{Site, writer::*};
use crate::*;

async fn faults(store: &dyn TenantStore, repair: bool) -> Vec<Fault> {
    store.check(repair, &|_| ()).await.unwrap().faults
}

/// A tree with a bit of everything, sealed once and changed since.
async fn tree(site: &dyn Site) -> (Writer, u64) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let (a, _) = writer.file("a", &[1; 8192]).await;
    let (d, e, g) = (writer.number(), writer.number(), writer.number());
    writer
        .commit(|batch| {
            batch.inodes.push(InodeRow { nlink: 3, ..dir(ROOT_INO, ROOT_INO) });
            batch.inodes.push(InodeRow { nlink: 3, ..dir(d, ROOT_INO) });
            batch.inodes.push(dir(e, d));
            batch.inodes.push(InodeRow {
                nlink: 2,
                charge: 3 * UNIT,
                prealloc: vec![2..3, 5..6],
                ..file(g, 3)
            });
            batch.entries.push(entry(ROOT_INO, "d", d, DIR, d));
            batch.entries.push(entry(d, "e", e, DIR, e));
            batch.entries.push(entry(d, "g", g, REG, g));
            let link = writer_cookie(batch);
            batch.entries.push(entry(e, "hard link", g, REG, link));
            batch.extents.push(inline_extent(g, 0, b"abc"));
            batch.used_bytes += 3 * UNIT;
            batch.used_inodes += 3;
        })
        .await;
    writer.next_ino += 1;
    writer.seal("kept").await;
    let patch = PatchRow { did: a, blk: 0, seq: 9, off: 8000, data: Bytes::from_static(b"patch") };
    writer.commit(|batch| batch.patches.push(patch)).await;
    (writer, a)
}

fn writer_cookie(batch: &mut Batch) -> u64 {
    batch.next_ino += 1;
    batch.next_ino - 1
}

pub async fn a_sound_tenant_has_no_faults(site: &dyn Site) {
    let (writer, _) = tree(site).await;
    let report = writer.store.check(false, &|_| ()).await.unwrap();
    assert!(report.faults.is_empty(), "{:?}", report.faults);
    assert_eq!((report.inodes, report.entries, report.extents, report.blocks), (5, 5, 2, 1));
    let error = writer.store.check(true, &|_| ()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "repair needs the tenant unmounted");
    // A clone with changes of its own is sound as well.
    let (kept, new) = (writer.store.layers().await.unwrap().remove(0), new_tenant("two"));
    writer.store.branch_from(kept.branch, kept.layer, &new).await.unwrap();
    let db = writer.db.clone();
    let mut clone = Writer::acquire(db.clone(), new.id, session(&*db).await).await;
    clone.file("own", b"own").await;
    assert!(faults(&*clone.store, false).await.is_empty());
}

/// A change that breaks something, or mends it.
type Break = Box<dyn FnOnce(&mut Batch)>;

/// `d` moves into `e`, which lies in `d`: every link is right, and neither is under the root.
async fn directories_in_a_ring(
    writer: &Writer,
    root: &InodeRow,
    d: &InodeRow,
) -> (&'static str, Break, Break) {
    let view = writer.head().await;
    let e = writer.store.lookup(&view, d.ino, b"e").await.unwrap().unwrap().1;
    let (root, d, cookie) = (root.clone(), d.clone(), writer.next_ino - 1);
    let (root_after, d_after, e_after) = (
        InodeRow { nlink: 2, ..root.clone() },
        InodeRow { dir_parent: e.ino, ..d.clone() },
        InodeRow { nlink: 3, ..e.clone() },
    );
    let (d_ino, e_ino) = (d.ino, e.ino);
    let break_it = move |batch: &mut Batch| {
        batch.inodes.extend([root_after, d_after, e_after]);
        batch.removed_entries.push((ROOT_INO, Bytes::from_static(b"d"), d_ino));
        batch.entries.push(entry(e_ino, "ring", d_ino, DIR, cookie));
    };
    let mend = move |batch: &mut Batch| {
        batch.inodes.extend([root, d, e]);
        batch.removed_entries.push((e_ino, Bytes::from_static(b"ring"), cookie));
        batch.entries.push(entry(ROOT_INO, "d", d_ino, DIR, d_ino));
    };
    ("reached", Box::new(break_it), Box::new(mend))
}

pub async fn rows_that_vanished_are_found(site: &dyn Site) {
    let (writer, _) = tree(site).await;
    site.damage("DELETE FROM block").await;
    let found = faults(&*writer.store, false).await;
    assert!(found.iter().any(|fault| fault.message.contains("has no header")), "{found:?}");
    site.damage("DELETE FROM ext").await;
    let found = faults(&*writer.store, false).await;
    assert!(found.iter().any(|fault| fault.message.contains("where no extent is")), "{found:?}");
    site.damage("DELETE FROM inode").await;
    let found = faults(&*writer.store, false).await;
    assert!(found.iter().any(|fault| fault.message.contains("no root")), "{found:?}");
}

pub async fn each_broken_invariant_is_found(site: &dyn Site) {
    let (mut writer, a) = tree(site).await;
    let view = writer.head().await;
    let row = async |ino| writer.store.inode(&view, ino).await.unwrap().unwrap();
    let root = row(ROOT_INO).await;
    let good = row(a).await;
    let d = writer.store.lookup(&view, ROOT_INO, b"d").await.unwrap().unwrap().1;
    let g = writer.store.lookup(&view, d.ino, b"g").await.unwrap().unwrap().1;
    let next = writer.next_ino;
    let (lost, both) = (writer.number(), writer.number());
    let (one, two, three, four) = (good.clone(), good.clone(), good.clone(), good.clone());
    let (d1, d2, root1, g1) = (d.clone(), d.clone(), root.clone(), g.clone());
    let broken: Vec<(&str, Break, Break)> = vec![
        (
            "links",
            Box::new(move |batch| batch.inodes.push(InodeRow { nlink: 4, ..one })),
            Box::new({
                let good = good.clone();
                move |batch| batch.inodes.push(good)
            }),
        ),
        (
            "links",
            Box::new(move |batch| batch.inodes.push(InodeRow { nlink: 7, ..root1 })),
            Box::new({
                let root = root.clone();
                move |batch| batch.inodes.push(root)
            }),
        ),
        (
            "parent",
            Box::new(move |batch| batch.inodes.push(InodeRow { dir_parent: a, ..d1 })),
            Box::new({
                let d = d.clone();
                move |batch| batch.inodes.push(d)
            }),
        ),
        (
            "does not exist",
            Box::new(move |batch| batch.entries.push(entry(ROOT_INO, "nothing", 9999, REG, lost))),
            Box::new(move |batch| {
                batch.removed_entries.push((ROOT_INO, Bytes::from_static(b"nothing"), lost));
            }),
        ),
        (
            "no name",
            Box::new(move |batch| {
                batch.inodes.push(file(lost, 0));
                batch.used_inodes += 1;
            }),
            Box::new(move |batch| {
                batch.removed_inodes.push(lost);
                batch.used_inodes -= 1;
            }),
        ),
        (
            "names",
            Box::new(move |batch| batch.entries.push(entry(ROOT_INO, "d again", d2.ino, DIR, both))),
            Box::new(move |batch| {
                batch.removed_entries.push((ROOT_INO, Bytes::from_static(b"d again"), both));
            }),
        ),
        (
            "kind",
            Box::new(move |batch| batch.entries.push(entry(ROOT_INO, "a", a, DIR, a))),
            Box::new(move |batch| batch.entries.push(entry(ROOT_INO, "a", a, REG, a))),
        ),
        (
            "size",
            Box::new(move |batch| batch.inodes.push(InodeRow { size: 0, ..two })),
            Box::new({
                let good = good.clone();
                move |batch| batch.inodes.push(good)
            }),
        ),
        (
            "charge",
            Box::new(move |batch| batch.inodes.push(InodeRow { charge: UNIT, ..three })),
            Box::new({
                let good = good.clone();
                move |batch| batch.inodes.push(good)
            }),
        ),
        ("used bytes", Box::new(|batch| batch.used_bytes += 1), Box::new(|batch| batch.used_bytes -= 1)),
        ("used inodes", Box::new(|batch| batch.used_inodes += 1), Box::new(|batch| batch.used_inodes -= 1)),
        (
            "header",
            Box::new(move |batch| batch.extents.push(block_extent(g1.ino, 0, 1 << 40))),
            Box::new({
                let g = g.clone();
                move |batch| batch.extents.push(inline_extent(g.ino, 0, b"abc"))
            }),
        ),
        (
            "next number",
            Box::new(move |batch| {
                batch.inodes.push(InodeRow { nlink: 0, ..file(next + 1000, 0) });
                batch.used_inodes += 1;
            }),
            Box::new(move |batch| {
                batch.removed_inodes.push(next + 1000);
                batch.used_inodes -= 1;
            }),
        ),
        (
            "patch",
            Box::new(move |batch| {
                let data = Bytes::from_static(b"beyond the end");
                batch.patches.push(PatchRow { did: four.did, blk: 0, seq: 30, off: BS - 2, data });
            }),
            Box::new({
                let good = good.clone();
                move |batch| {
                    batch.extents.push(ExtentRow { alloc: units(&[3]), ..inline_extent(good.did, 0, b"x") })
                }
            }),
        ),
    ];
    let broken = broken.into_iter().chain([directories_in_a_ring(&writer, &root, &d).await]);
    for (word, break_it, mend) in broken {
        writer.commit(break_it).await;
        let found = faults(&*writer.store, false).await;
        assert!(found.iter().any(|fault| fault.message.contains(word)), "{word}: {found:?}");
        assert!(found.iter().all(|fault| !fault.repaired));
        writer.commit(mend).await;
        let left = faults(&*writer.store, false).await;
        assert!(left.is_empty(), "{word} mended: {left:?}");
    }
}

pub async fn repair_sets_counters_and_removes_orphans(site: &dyn Site) {
    let (mut writer, a) = tree(site).await;
    let view = writer.head().await;
    let orphan = InodeRow { nlink: 0, ..writer.store.inode(&view, a).await.unwrap().unwrap() };
    writer
        .commit(|batch| {
            batch.inodes.push(orphan);
            batch.removed_entries.push((ROOT_INO, Bytes::from_static(b"a"), a));
            batch.used_bytes += 12345;
            batch.used_inodes += 5;
        })
        .await;
    writer.db.close_session(writer.session).await.unwrap();
    let found = faults(&*writer.store, true).await;
    assert!(!found.is_empty() && found.iter().all(|fault| fault.repaired), "{found:?}");
    assert!(faults(&*writer.store, false).await.is_empty());
    let (tenant, view) = writer.store.head().await.unwrap();
    assert_eq!((tenant.used_bytes, tenant.used_inodes), (3 * UNIT, 4));
    assert!(writer.store.orphans(&view).await.unwrap().is_empty());
}

pub async fn a_flipped_bit_is_found(site: &dyn Site) {
    let (mut writer, _) = tree(site).await;
    let (_, block) = writer.file("bad", &[2; 8192]).await;
    assert!(faults(&*writer.store, false).await.is_empty());
    site.flip_bit(block).await;
    let found = faults(&*writer.store, false).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].message.contains(&format!("block {block}")), "{found:?}");
}
