//! Layers: sealed views, restore, clones, pruning.

use bytes::Bytes;
use tarbox_types::{ErrorKind, ROOT_INO};

use super::{Site, blocks::collect_all, writer::*};
use crate::*;

pub async fn a_sealed_view_does_not_change(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let (a, _) = writer.file("a", &[1; 8192]).await;
    let (b, _) = writer.file("b", b"second").await;
    writer
        .commit(|batch| {
            batch.xattrs.push((a, Some(Bytes::from_static(b"old"))));
            batch.extents.extend((1..4).map(|blk| inline_extent(a, blk, b"inline")));
        })
        .await;
    let patch = |blk, seq, data: &[u8]| PatchRow { did: a, blk, seq, off: 2, data: data.to_vec().into() };
    writer.commit(|batch| batch.patches = vec![patch(0, 5, b"early"), patch(1, 5, b"early")]).await;
    let up_to = writer.next_ino + 10;
    let view = writer.seal("kept").await;
    assert_eq!(view.chain[0].layer, 1);
    let before = snapshot(&*writer.store, &view, up_to).await;
    let head_before = snapshot(&*writer.store, &writer.head().await, up_to).await;
    assert_eq!(before, head_before);
    // A patch on a sealed extent: both see what they should.
    writer.commit(|batch| batch.patches = vec![patch(0, 9, b"LATE"), patch(1, 9, b"LATE")]).await;
    let head = writer.head().await;
    let bytes = bytes_of(&*writer.store, &head, uncut(a), &[0, 1]).await;
    assert_eq!((&bytes[&0][..8], &bytes[&1][..]), (&b"\x01\x01LATEy\x01"[..], &b"inLATEy"[..]));
    assert_eq!(snapshot(&*writer.store, &view, up_to).await, before);
    let c = writer.number();
    writer
        .commit(|batch| {
            batch.inodes.push(InodeRow { uid: 77, ..file(a, 9) });
            batch.inodes.push(file(c, 0));
            batch.entries.push(entry(ROOT_INO, "c", c, REG, c));
            batch.removed_entries.push((ROOT_INO, Bytes::from_static(b"b"), b));
            batch.removed_inodes.push(b);
            batch.removed_data.push(b);
            batch.xattrs.push((a, None));
            batch.truncated.push((a, 2));
            batch.removed_extents.push((a, 1));
            batch.extents.push(inline_extent(a, 0, b"new"));
        })
        .await;
    collect_all(&*writer.store).await;
    assert_eq!(snapshot(&*writer.store, &view, up_to).await, before);
    assert_eq!(names(&*writer.store, &head, ROOT_INO).await, [("a".to_owned(), a), ("c".to_owned(), c)]);
    assert_eq!(writer.store.extents(&head, uncut(a), 0..9).await.unwrap().len(), 1);
    let layers = writer.store.layers().await.unwrap();
    assert_eq!(layers.len(), 1);
    assert_eq!((layers[0].name.as_str(), layers[0].layer), ("kept", 1));
    assert_eq!((layers[0].used_inodes, layers[0].used_bytes), (3, 2 * u64::from(BS)));
    assert!(layers[0].sealed_at > 1_700_000_000);
}

pub async fn the_same_request_seals_once(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let seal = Seal { name: "n".into(), request: "r".into() };
    let first = writer.commit(|batch| batch.seal = Some(seal.clone())).await;
    let second = writer.commit(|batch| batch.seal = Some(seal.clone())).await;
    assert_eq!((first.layer, first.sealed), (1, Some(1)));
    assert_eq!((second.layer, second.sealed), (2, Some(1)));
    assert_eq!(writer.store.layers().await.unwrap().len(), 1);
    // A name that is taken must not stop a commit that is journaled already: it gets another one.
    let third = writer.commit(|batch| batch.seal = Some(Seal { request: "s".into(), ..seal.clone() })).await;
    assert_eq!(third.sealed, Some(2));
    let layers = writer.store.layers().await.unwrap();
    assert_eq!(layers.len(), 2);
    assert!(layers[0].name != "n" && layers[0].name.starts_with('n'), "{}", layers[0].name);
    assert!(layers[0].layer > layers[1].layer, "newest first");
}

pub async fn an_unmounted_tenant_is_sealed_and_its_old_holder_fenced(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    let (a, _) = writer.file("a", b"old").await;
    let seal = Seal { name: "from outside".into(), request: "r1".into() };
    let error = writer.store.seal(&seal).await.unwrap_err();
    assert!(matches!(error, StoreError::Held { .. }), "{error}");
    let other_db = site.open().await.unwrap();
    let claimant = session(&*other_db).await;
    db.close_session(writer.session).await.unwrap();
    let store = other_db.open_tenant(writer.fence.tenant).await.unwrap();
    let sealed = store.seal(&seal).await.unwrap();
    assert_eq!((sealed.layer, sealed.name.as_str(), sealed.used_inodes), (1, "from outside", 2));
    assert_eq!(store.seal(&seal).await.unwrap(), sealed, "the same request seals once");
    let taken = Seal { request: "r2".into(), ..seal };
    assert_eq!(store.seal(&taken).await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
    let late = writer.try_commit(|batch| batch.extents.push(inline_extent(a, 0, b"late"))).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::Fenced);
    let mut heir = Writer::acquire(other_db, writer.fence.tenant, claimant).await;
    heir.commit(|batch| batch.extents.push(inline_extent(a, 0, b"new"))).await;
    let view = heir.store.view(sealed.branch, sealed.layer).await.unwrap();
    assert_eq!(bytes_of(&*heir.store, &view, uncut(a), &[0]).await[&0], b"old");
}

pub async fn restore_goes_back_and_keeps_what_was(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let (a, _) = writer.file("a", b"first").await;
    let kept = writer.seal("kept").await;
    let (b, _) = writer.file("b", b"second").await;
    writer.commit(|batch| batch.extents.push(inline_extent(a, 0, b"changed"))).await;
    let (old, old_head) = writer.store.head().await.unwrap();
    let up_to = writer.next_ino + 10;
    let sealed = snapshot(&*writer.store, &kept, up_to).await;
    let changed = snapshot(&*writer.store, &old_head, up_to).await;
    let fence = writer.fence.clone();
    let bad = writer.store.restore(&fence, kept.chain[0].branch, 99).await.unwrap_err();
    assert_eq!(bad.kind(), ErrorKind::NotFound, "{bad}");
    let view = writer.store.restore(&fence, kept.chain[0].branch, kept.chain[0].layer).await.unwrap();
    let (tenant, head) = writer.store.head().await.unwrap();
    assert_eq!(head, view);
    assert_eq!((tenant.used_inodes, tenant.used_bytes, tenant.seq), (2, u64::from(BS), writer.seq));
    assert_ne!(tenant.head_branch, old.head_branch);
    assert_eq!(snapshot(&*writer.store, &view, up_to).await, sealed);
    (writer.used_bytes, writer.used_inodes) = (tenant.used_bytes, tenant.used_inodes);
    assert!(writer.store.inode(&view, b).await.unwrap().is_none());
    writer.file("c", b"third").await;
    writer.commit(|batch| batch.extents.push(inline_extent(a, 0, b"elsewhere"))).await;
    // What stood before the restore was sealed under a name of its own.
    let before = writer.store.view(old.head_branch, old.layer).await.unwrap();
    assert_eq!(snapshot(&*writer.store, &before, up_to).await, changed);
    assert_eq!(snapshot(&*writer.store, &kept, up_to).await, sealed);
    let back = writer.store.restore(&fence, old.head_branch, old.layer).await.unwrap();
    assert_eq!(snapshot(&*writer.store, &back, up_to).await, changed);
    let names: Vec<_> = writer.store.layers().await.unwrap().into_iter().map(|layer| layer.name).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names[0].starts_with("before-restore") && names[1] == "kept", "{names:?}");
}

pub async fn restoring_again_and_again_keeps_chains_short(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let (a, _) = writer.file("a", &[1; 8192]).await;
    let (b, _) = writer.file("b", b"removed and made again").await;
    let fence = writer.fence.clone();
    let mut expected = Vec::new();
    let mut remembered = Vec::new();
    for round in 0..30u8 {
        writer
            .commit(|batch| {
                batch.inodes.push(InodeRow { uid: u32::from(round), ..file(a, 8192) });
                batch.extents.push(inline_extent(a, 1 + u64::from(round), &[round; 9]));
                let patch = PatchRow {
                    did: a,
                    blk: 0,
                    seq: batch.to_seq,
                    off: u32::from(round),
                    data: vec![round + 1].into(),
                };
                batch.patches.push(patch);
                if round % 2 == 0 {
                    batch.removed_entries.push((ROOT_INO, Bytes::from_static(b"b"), b));
                } else {
                    batch.entries.push(entry(ROOT_INO, "b", b, REG, b));
                }
            })
            .await;
        let kept = writer.seal(&format!("round {round}")).await;
        remembered.push((kept.clone(), snapshot(&*writer.store, &kept, b + 1).await));
        let view = writer.store.restore(&fence, kept.chain[0].branch, kept.chain[0].layer).await.unwrap();
        assert!(view.chain.len() <= 8, "depth {}", view.chain.len());
        expected.push(round + 1);
        let bytes = bytes_of(&*writer.store, &view, uncut(a), &[0]).await;
        assert_eq!(bytes[&0][..expected.len()], expected);
        assert_eq!(snapshot(&*writer.store, &view, b + 1).await, remembered.last().unwrap().1);
    }
    for (view, expected) in &remembered {
        assert_eq!(&snapshot(&*writer.store, view, b + 1).await, expected);
    }
    let view = writer.head().await;
    assert_eq!(writer.store.extents(&view, uncut(a), 0..100).await.unwrap().len(), 31);
    assert_eq!(names(&*writer.store, &view, ROOT_INO).await.len(), 2);
}

pub async fn a_clone_sees_its_source_and_changes_alone(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    let (a, block) = writer.file("a", &[4; 8192]).await;
    let (b, _) = writer.file("b", b"bb").await;
    let kept = writer.seal("kept").await;
    let (c, _) = writer.file("c", b"later").await;
    let up_to = writer.next_ino + 5;
    let sealed = snapshot(&*writer.store, &kept, up_to).await;
    let (branch, layer) = (kept.chain[0].branch, kept.chain[0].layer);
    let new = new_tenant("two");
    let made = writer.store.branch_from(branch, layer, &new).await.unwrap();
    assert_eq!((made.used_inodes, made.used_bytes), (3, 2 * u64::from(BS)));
    let again = writer.store.branch_from(branch, layer, &new).await.unwrap();
    assert_eq!((again.id, again.head_branch), (made.id, made.head_branch), "made once");
    assert_eq!(made.family, writer.store.head().await.unwrap().0.family);
    let taken = writer.store.branch_from(branch, layer, &new_tenant("one")).await.unwrap_err();
    assert!(matches!(taken, StoreError::NameTaken(_)), "{taken}");
    let other_size = NewTenant { block_size: 4096, ..new_tenant("three") };
    let error = writer.store.branch_from(branch, layer, &other_size).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);

    let mut clone = Writer::acquire(db.clone(), new.id, session(&*db).await).await;
    assert!(clone.next_ino >= writer.next_ino);
    let head = clone.head().await;
    assert_eq!(head.chain.len(), 2);
    assert_eq!(snapshot(&*clone.store, &head, up_to).await, sealed);
    assert!(clone.store.inode(&head, c).await.unwrap().is_none());
    // The clone changes, removes and makes; patches an ancestor's block.
    let patch = PatchRow { did: a, blk: 0, seq: 1, off: 0, data: Bytes::from_static(b"clone") };
    clone
        .commit(|batch| {
            batch.patches.push(patch);
            batch.inodes.push(InodeRow { uid: 9, ..file(a, 8192) });
            batch.removed_entries.push((ROOT_INO, Bytes::from_static(b"b"), b));
            batch.removed_inodes.push(b);
            batch.removed_data.push(b);
            batch.xattrs.push((a, Some(Bytes::from_static(b"x"))));
        })
        .await;
    let (d, _) = clone.file("d", b"own").await;
    collect_all(&*clone.store).await;
    let bytes = bytes_of(&*clone.store, &head, uncut(a), &[0]).await;
    assert_eq!(&bytes[&0][..7], b"clone\x04\x04");
    assert_eq!(names(&*clone.store, &head, ROOT_INO).await, [("a".to_owned(), a), ("d".to_owned(), d)]);
    assert!(clone.store.inode(&head, b).await.unwrap().is_none());
    assert!(clone.store.lookup(&head, ROOT_INO, b"b").await.unwrap().is_none());
    let (_, inode) = clone.store.lookup(&head, ROOT_INO, b"a").await.unwrap().unwrap();
    assert_eq!(inode.uid, 9, "a name of the ancestor shows the clone's inode");
    let page = clone.store.list(&head, ROOT_INO, 0, 9).await.unwrap();
    assert_eq!(page[0].1.uid, 9);
    // The source goes on, unseen; a punched hole of its own is a hole in the clone only there.
    writer.commit(|batch| batch.extents.push(inline_extent(a, 0, b"source"))).await;
    clone.commit(|batch| batch.removed_extents.push((a, 0))).await;
    let bytes = bytes_of(&*clone.store, &head, uncut(a), &[0]).await;
    assert!(bytes.get(&0).is_none_or(Vec::is_empty));
    assert_eq!(snapshot(&*writer.store, &kept, up_to).await, sealed);
    let found = clone.store.find_blocks(&[codec::hash(&[4; 8192])]).await.unwrap();
    assert_eq!(found, [Some(block)], "a family shares its blocks");
}

pub async fn a_clone_writes_over_patches_that_it_has_from_its_source(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    let (a, _) = writer.file("a", &[4; 8192]).await;
    let patch = |seq, byte| PatchRow { did: a, blk: 0, seq, off: 10, data: Bytes::from(vec![byte; 5]) };
    writer.commit(|batch| batch.patches.push(patch(batch.to_seq, 1))).await;
    let kept = writer.seal("kept").await;
    let new = new_tenant("two");
    writer.store.branch_from(kept.chain[0].branch, kept.chain[0].layer, &new).await.unwrap();
    let mut clone = Writer::acquire(db.clone(), new.id, session(&*db).await).await;
    clone.commit(|batch| batch.patches.push(patch(batch.to_seq, 2))).await;
    let bytes = bytes_of(&*clone.store, &clone.head().await, uncut(a), &[0]).await;
    assert_eq!(bytes[&0][9..16], [4, 2, 2, 2, 2, 2, 4]);
}

pub async fn truncation_in_a_clone_hides_the_ancestors_blocks(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    let (a, _) = writer.file("a", b"zero").await;
    writer.commit(|batch| batch.extents.extend((1..8).map(|blk| inline_extent(a, blk, b"x")))).await;
    let kept = writer.seal("kept").await;
    let new = new_tenant("two");
    writer.store.branch_from(kept.chain[0].branch, kept.chain[0].layer, &new).await.unwrap();
    let mut clone = Writer::acquire(db.clone(), new.id, session(&*db).await).await;
    let head = clone.head().await;
    let inode = clone.store.inode(&head, a).await.unwrap().unwrap();
    let cut = 3 * u64::from(BS);
    let inode = InodeRow { size: cut, cut: inode.cut.min(cut), ..inode };
    clone
        .commit(|batch| {
            batch.inodes.push(inode.clone());
            batch.truncated.push((a, 3));
        })
        .await;
    let blks = |extents: Vec<Extent>| extents.iter().map(|extent| extent.blk).collect::<Vec<_>>();
    assert_eq!(blks(clone.store.extents(&head, data(&inode), 0..99).await.unwrap()), [0, 1, 2]);
    // Grown again: what the clone writes is there, the ancestor's is not.
    let inode = InodeRow { size: 8 * u64::from(BS), ..inode };
    clone
        .commit(|batch| {
            batch.inodes.push(inode.clone());
            batch.extents.push(inline_extent(a, 6, b"own"));
        })
        .await;
    assert_eq!(blks(clone.store.extents(&head, data(&inode), 0..99).await.unwrap()), [0, 1, 2, 6]);
    let bytes = bytes_of(&*clone.store, &head, data(&inode), &[2, 3, 4, 6, 7]).await;
    assert_eq!(bytes.into_iter().collect::<Vec<_>>(), [(2, b"x".to_vec()), (6, b"own".to_vec())]);
    assert_eq!(clone.store.extents(&kept, uncut(a), 0..99).await.unwrap().len(), 8);
}

/// A cut counts from the fork of the branch it was made in: a clone of that clone sees what its parent wrote
/// beyond the cut, still not what the grandparent has there. (`InodeRow::cut` read through a later fork is therefore
/// `u64::MAX >> 1` again: nothing was truncated in the new branch.)
pub async fn truncation_in_a_clone_of_a_clone_hides_only_what_it_cut(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    let (a, _) = writer.file("a", b"zero").await;
    writer.commit(|batch| batch.extents.extend((1..8).map(|blk| inline_extent(a, blk, b"x")))).await;
    let kept = writer.seal("kept").await;
    let two = new_tenant("two");
    writer.store.branch_from(kept.chain[0].branch, kept.chain[0].layer, &two).await.unwrap();
    let mut clone = Writer::acquire(db.clone(), two.id, session(&*db).await).await;
    let before_cut = clone.seal("before the cut").await;
    let cut = 2 * u64::from(BS);
    clone
        .commit(|batch| {
            batch.inodes.push(InodeRow { size: 8 * u64::from(BS), cut, ..file(a, 0) });
            batch.truncated.push((a, 2));
            batch.extents.push(inline_extent(a, 5, b"own"));
        })
        .await;
    let kept = clone.seal("kept").await;
    let three = new_tenant("three");
    clone.store.branch_from(kept.chain[0].branch, kept.chain[0].layer, &three).await.unwrap();
    let mut third = Writer::acquire(db.clone(), three.id, session(&*db).await).await;
    let head = third.head().await;
    let inode = third.store.inode(&head, a).await.unwrap().unwrap();
    assert_eq!(inode.cut, UNCUT);
    let shown = |extents: Vec<Extent>| extents.iter().map(|extent| extent.blk).collect::<Vec<_>>();
    assert_eq!(shown(third.store.extents(&head, data(&inode), 0..99).await.unwrap()), [0, 1, 5]);
    assert_eq!(shown(third.store.extents(&before_cut, uncut(a), 0..99).await.unwrap()).len(), 8);
    let inode = InodeRow { cut: u64::from(BS), ..inode };
    third
        .commit(|batch| {
            batch.inodes.push(inode.clone());
            batch.truncated.push((a, 1));
        })
        .await;
    assert_eq!(shown(third.store.extents(&head, data(&inode), 0..99).await.unwrap()), [0]);
    assert_eq!(shown(third.store.extents(&kept, uncut(a), 0..99).await.unwrap()), [0, 1, 5]);
}

pub async fn a_removed_name_stays_removed_in_a_clone_and_can_be_made_again(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    let mut inos = vec![];
    for name in ["a", "b", "c", "d"] {
        inos.push(writer.file(name, name.as_bytes()).await.0);
    }
    let kept = writer.seal("kept").await;
    let new = new_tenant("two");
    writer.store.branch_from(kept.chain[0].branch, kept.chain[0].layer, &new).await.unwrap();
    let mut clone = Writer::acquire(db.clone(), new.id, session(&*db).await).await;
    let head = clone.head().await;
    let (made, other) = (clone.number(), clone.number());
    for _ in 0..2 {
        clone
            .commit(|batch| {
                for (name, ino) in [("b", inos[1]), ("c", inos[2])] {
                    batch.removed_entries.push((ROOT_INO, Bytes::from(name), ino));
                    batch.removed_inodes.push(ino);
                }
            })
            .await;
        let left: Vec<_> = names(&*clone.store, &head, ROOT_INO).await.into_iter().map(|(n, _)| n).collect();
        assert_eq!(left, ["a", "d"], "removing twice is removing once");
    }
    // Made again, with another inode and another cookie; and one name replaced, which keeps its cookie.
    clone
        .commit(|batch| {
            batch.inodes.extend([file(made, 0), file(other, 0)]);
            batch.entries.push(entry(ROOT_INO, "b", made, REG, made));
            batch.entries.push(entry(ROOT_INO, "d", other, REG, inos[3]));
            batch.removed_inodes.push(inos[3]);
        })
        .await;
    let expected = [("a".to_owned(), inos[0]), ("b".to_owned(), made), ("d".to_owned(), other)];
    assert_eq!(names(&*clone.store, &head, ROOT_INO).await, expected);
    assert_eq!(clone.store.lookup(&head, ROOT_INO, b"b").await.unwrap().unwrap().0.ino, made);
    let page = clone.store.list(&head, ROOT_INO, 0, 2).await.unwrap();
    assert_eq!(page.len(), 2, "a full page, whatever was swallowed");
    let cookie = page[1].0.cookie;
    assert_eq!(clone.store.list(&head, ROOT_INO, cookie, 9).await.unwrap().len(), 1);
    assert_eq!(names(&*clone.store, &kept, ROOT_INO).await.len(), 4);
}

pub async fn deleting_a_layer_prunes_only_what_no_view_needs(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let (a, _) = writer.file("a", &[1; 8192]).await;
    let mut views = vec![writer.seal("l1").await];
    let mut hashes = vec![codec::hash(&[1; 8192])];
    for i in 2..6u8 {
        let header = writer.upload(&[i; 8192]).await;
        hashes.push(header.hash);
        writer
            .commit(|batch| {
                batch.headers.push(header.clone());
                batch.inodes.push(InodeRow { uid: u32::from(i), ..file(a, 8192) });
                batch.extents.push(block_extent(a, 0, header.block));
            })
            .await;
        views.push(writer.seal(&format!("l{i}")).await);
    }
    let found = async |writer: &Writer| -> Vec<bool> {
        collect_all(&*writer.store).await;
        writer.store.find_blocks(&hashes).await.unwrap().iter().map(Option::is_some).collect()
    };
    assert_eq!(found(&writer).await, [true; 5]);
    let link = |view: &View| (view.chain[0].branch, view.chain[0].layer);
    for gone in [1, 2] {
        let (branch, layer) = link(&views[gone]);
        writer.store.delete_layer(branch, layer).await.unwrap();
        assert!(writer.store.view(branch, layer).await.is_err());
    }
    assert_eq!(found(&writer).await, [true, false, false, true, true]);
    for kept in [0, 3, 4] {
        let bytes = bytes_of(&*writer.store, &views[kept], uncut(a), &[0]).await;
        assert_eq!(bytes[&0], [kept as u8 + 1; 8192]);
    }
    let (branch, layer) = link(&views[4]);
    writer.store.delete_layer(branch, layer).await.unwrap();
    assert_eq!(found(&writer).await, [true, false, false, true, true], "the head still needs the last");
    // No view needs what the head has now: the next change takes its place.
    writer.commit(|batch| batch.extents.push(inline_extent(a, 0, b"end"))).await;
    assert_eq!(found(&writer).await, [true, false, false, true, false]);
    for gone in [0, 3] {
        let (branch, layer) = link(&views[gone]);
        writer.store.delete_layer(branch, layer).await.unwrap();
    }
    assert_eq!(found(&writer).await, [false; 5]);
    assert!(writer.store.layers().await.unwrap().is_empty());
    let head = writer.head().await;
    assert_eq!(bytes_of(&*writer.store, &head, uncut(a), &[0]).await[&0], b"end");
    assert!(writer.store.delete_layer(branch, layer).await.is_err(), "there is none");
}

pub async fn a_layer_with_a_clone_is_not_deleted(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    writer.file("a", b"x").await;
    let kept = writer.seal("kept").await;
    let (branch, layer) = (kept.chain[0].branch, kept.chain[0].layer);
    let two = writer.store.branch_from(branch, layer, &new_tenant("two")).await.unwrap();
    let error = writer.store.delete_layer(branch, layer).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
    db.delete_tenant(two.id, InUse::Refuse).await.unwrap();
    while !db.reap_tenant(two.id).await.unwrap() {}
    writer.store.delete_layer(branch, layer).await.unwrap();
    let view = writer.head().await;
    assert_eq!(names(&*writer.store, &view, ROOT_INO).await.len(), 1);
}

pub async fn a_clone_outlives_its_source(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    let (a, _) = writer.file("a", &[4; 8192]).await;
    let kept = writer.seal("kept").await;
    writer.file("later", &[5; 8192]).await;
    let up_to = writer.next_ino + 5;
    let sealed = snapshot(&*writer.store, &kept, up_to).await;
    let new = new_tenant("two");
    writer.store.branch_from(kept.chain[0].branch, kept.chain[0].layer, &new).await.unwrap();
    let source = writer.fence.tenant;
    db.close_session(writer.session).await.unwrap();
    drop(writer);
    db.delete_tenant(source, InUse::Refuse).await.unwrap();
    while !db.reap_tenant(source).await.unwrap() {}
    assert!(db.tenant(source).await.unwrap().is_none());
    let mut clone = Writer::acquire(db.clone(), new.id, session(&*db).await).await;
    collect_all(&*clone.store).await;
    let head = clone.head().await;
    assert_eq!(snapshot(&*clone.store, &head, up_to).await, sealed);
    assert_eq!(bytes_of(&*clone.store, &head, uncut(a), &[0]).await[&0], [4; 8192]);
    clone.file("own", b"own").await;
    db.close_session(clone.session).await.unwrap();
    db.delete_tenant(new.id, InUse::Refuse).await.unwrap();
    while !db.reap_tenant(new.id).await.unwrap() {}
    assert!(db.tenants().await.unwrap().is_empty());
}

pub async fn a_removed_content_stays_in_views(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let (a, _) = writer.file("a", &[1; 8192]).await;
    writer.commit(|batch| batch.extents.extend((1..50).map(|blk| inline_extent(a, blk, b"x")))).await;
    let kept = writer.seal("kept").await;
    writer.commit(|batch| batch.extents.extend((50..80).map(|blk| inline_extent(a, blk, b"y")))).await;
    // Truncation to nothing: the file goes on under a new content.
    let fresh = writer.number();
    writer
        .commit(|batch| {
            batch.inodes.push(InodeRow { did: fresh, ..file(a, 3) });
            batch.removed_data.push(a);
            batch.extents.push(inline_extent(fresh, 0, b"new"));
        })
        .await;
    assert!(collect_all(&*writer.store).await > 0);
    let head = writer.head().await;
    let inode = writer.store.inode(&head, a).await.unwrap().unwrap();
    assert_eq!(bytes_of(&*writer.store, &head, data(&inode), &[0]).await[&0], b"new");
    let inode = writer.store.inode(&kept, a).await.unwrap().unwrap();
    assert_eq!(writer.store.extents(&kept, data(&inode), 0..99).await.unwrap().len(), 50);
    assert_eq!(bytes_of(&*writer.store, &kept, data(&inode), &[0]).await[&0], [1; 8192]);
    writer.store.delete_layer(kept.chain[0].branch, kept.chain[0].layer).await.unwrap();
    collect_all(&*writer.store).await;
    assert_eq!(writer.store.find_blocks(&[codec::hash(&[1; 8192])]).await.unwrap(), [None]);
}

/// Entries of a root, by name.
fn sorted(changes: Changes) -> (Vec<u64>, Vec<String>) {
    let mut inodes = changes.inodes;
    inodes.sort_unstable();
    let mut names: Vec<_> =
        changes.entries.into_iter().map(|(_, name)| String::from_utf8(name.to_vec()).unwrap()).collect();
    names.sort();
    (inodes, names)
}

pub async fn a_tenants_own_layers_are_listed_and_found_by_name_on_whatever_branch(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    let first = writer.seal("first").await;
    writer.file("a", b"a").await;
    writer.seal("second").await;
    let at = first.chain[0];
    writer.store.restore(&writer.fence, at.branch, at.layer).await.unwrap();
    let names = |rows: Vec<LayerRow>| rows.into_iter().map(|row| row.name).collect::<Vec<_>>();
    assert_eq!(names(writer.store.layers().await.unwrap()), ["first"], "the head's line");
    assert_eq!(names(writer.store.own_layers().await.unwrap()), ["second", "first"]);
    let second = writer.store.layer_named("second").await.unwrap().unwrap();
    assert_eq!((second.tenant, second.used_inodes), (writer.fence.tenant, 2));
    assert!(writer.store.layer_named("third").await.unwrap().is_none());
    let clone = writer.store.branch_from(at.branch, at.layer, &new_tenant("clone")).await.unwrap();
    let store = db.open_tenant(clone.id).await.unwrap();
    assert!(store.own_layers().await.unwrap().is_empty(), "its source's are not its own");
    assert!(store.layer_named("first").await.unwrap().is_none());
    let line = store.layers().await.unwrap();
    assert_eq!((line.len(), line[0].tenant), (1, writer.fence.tenant));
}

pub async fn what_differs_between_views_is_named(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let (a, _) = writer.file("a", b"a").await;
    let (b, _) = writer.file("b", b"b").await;
    let (c, _) = writer.file("c", b"c").await;
    let first = writer.seal("first").await;
    let same = writer.seal("same").await;
    let looker = writer.store.clone();
    let differ = |one: &View, other: &View| {
        let (store, one, other) = (looker.clone(), one.clone(), other.clone());
        async move {
            let there = sorted(store.changes(&one, &other).await.unwrap());
            assert_eq!(sorted(store.changes(&other, &one).await.unwrap()), there);
            there
        }
    };
    assert_eq!(differ(&first, &same).await, (vec![], vec![]));
    writer
        .commit(|batch| {
            batch.inodes.push(InodeRow { uid: 77, ..file(a, 1) });
            batch.removed_entries.push((ROOT_INO, Bytes::from_static(b"b"), b));
            batch.removed_inodes.push(b);
            batch.removed_data.push(b);
        })
        .await;
    let (d, _) = writer.file("d", b"d").await;
    let (e, _) = writer.file("e", b"e").await;
    let second = writer.seal("second").await;
    // Made and gone since: the head differs from the second, but not from the first.
    writer
        .commit(|batch| {
            batch.removed_entries.push((ROOT_INO, Bytes::from_static(b"e"), e));
            batch.removed_inodes.push(e);
            batch.removed_data.push(e);
        })
        .await;
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(differ(&first, &second).await, (vec![a, b, d, e], names(&["b", "d", "e"])));
    let head = writer.head().await;
    assert_eq!(differ(&second, &head).await, (vec![e], names(&["e"])));
    let (inodes, found) = differ(&first, &head).await;
    assert!([a, b, d].iter().all(|ino| inodes.contains(ino)) && !inodes.contains(&c), "{inodes:?}");
    assert!(["b", "d"].iter().all(|name| found.contains(&(*name).to_owned())), "{found:?}");
    // Over a fork: the old head and the new one share what stands below.
    let at = first.chain[0];
    let restored = writer.store.restore(&writer.fence, at.branch, at.layer).await.unwrap();
    assert_eq!(differ(&restored, &first).await, (vec![], vec![]));
    let (inodes, _) = differ(&restored, &second).await;
    assert_eq!(inodes, [a, b, d, e]);
}

pub async fn an_inodes_names_are_found_in_every_view(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    let (a, _) = writer.file("a", b"a").await;
    let (b, _) = writer.file("b", b"b").await;
    let link = writer.number();
    writer.commit(|batch| batch.entries.push(entry(ROOT_INO, "linked", a, REG, link))).await;
    let first = writer.seal("first").await;
    writer.commit(|batch| batch.removed_entries.push((ROOT_INO, Bytes::from_static(b"a"), a))).await;
    let names = |view: View, store: std::sync::Arc<dyn TenantStore>, inos: Vec<u64>| async move {
        let found = store.names_of(&view, &inos).await.unwrap();
        let mut names: Vec<_> =
            found.into_iter().map(|e| (e.ino, String::from_utf8(e.name.to_vec()).unwrap())).collect();
        names.sort();
        names
    };
    let (store, head) = (writer.store.clone(), writer.head().await);
    let named = |ino: u64, name: &str| (ino, name.to_owned());
    assert_eq!(names(head, store.clone(), vec![a]).await, [named(a, "linked")]);
    assert_eq!(names(first.clone(), store.clone(), vec![a, 99]).await, [named(a, "a"), named(a, "linked")]);
    let at = first.chain[0];
    let clone = store.branch_from(at.branch, at.layer, &new_tenant("clone")).await.unwrap();
    let taker = session(&*db).await;
    let mut clone = Writer::acquire(db.clone(), clone.id, taker).await;
    clone.commit(|batch| batch.removed_entries.push((ROOT_INO, Bytes::from_static(b"linked"), link))).await;
    let head = clone.head().await;
    assert_eq!(names(head, clone.store.clone(), vec![a, b]).await, [named(a, "a"), named(b, "b")]);
}

pub async fn a_restore_counts_as_a_commit(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    writer.file("a", b"a").await;
    let kept = writer.seal("kept").await;
    let committed = writer.fence.epoch;
    // Somebody else takes the tenant, and only restores it: a journal of the writer's must not be taken up after that.
    db.close_session(writer.session).await.unwrap();
    let other = Writer::acquire(db.clone(), writer.fence.tenant, session(&*db).await).await;
    let at = kept.chain[0];
    other.store.restore(&other.fence, at.branch, at.layer).await.unwrap();
    db.close_session(other.session).await.unwrap();
    let last = db.acquire(writer.fence.tenant, session(&*db).await).await.unwrap();
    assert!(last.committed_epoch > committed, "{} is not beyond {committed}", last.committed_epoch);
    assert_eq!(last.committed_epoch, other.fence.epoch);
}
