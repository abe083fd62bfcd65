//! Chains of branches that are flattened: nothing looks different for it, at no moment, and they are short afterwards.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use tarbox_types::ROOT_INO;

use super::{Site, blocks::collect_all, writer::*};
use crate::*;

/// Flattens to the end; how many links went.
pub async fn flatten_all(store: &dyn TenantStore) -> usize {
    let (mut gone, mut from) = (0, None);
    for _ in 0..100_000 {
        from = match store.flatten(from).await.unwrap() {
            Flattened::Nothing => return gone,
            Flattened::More(at) => Some(at),
            Flattened::Done => {
                gone += 1;
                None
            }
        };
    }
    panic!("flattening ends");
}

async fn sound(store: &dyn TenantStore) {
    // Sizes and counters are made up here: what is checked is what is referred to, every hash, and what the history takes.
    let report = store.check(false, &|_| {}).await.unwrap();
    let words = ["header", "damaged", "hash", "history bytes", "patch"];
    let wrong: Vec<_> =
        report.faults.iter().filter(|fault| words.iter().any(|word| fault.message.contains(word))).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Clones of clones: each seals, changes something of what it inherited, and is cloned.
async fn chain(db: &Arc<dyn Database>, links: usize) -> (Vec<Writer>, Vec<View>, u64) {
    let mut writer = Writer::create(db.clone(), "base").await;
    let (file_of_all, _) = writer.file("all", &[1; 8192]).await;
    for number in 0..5 {
        writer.file(&format!("f{number}"), &[number; 8192]).await;
    }
    let (mut writers, mut kept) = (vec![], vec![]);
    for link in 0..links {
        let blk = 1 + link as u64;
        writer
            .commit(|batch| {
                batch.extents.push(inline_extent(file_of_all, blk, &[link as u8; 5]));
                batch.inodes.push(InodeRow { uid: link as u32, ..file(file_of_all, 8192 * (blk + 1)) });
                batch.xattrs.push((file_of_all, Some(Bytes::from(format!("value {link}")))));
                let seq = batch.to_seq;
                batch.patches.push(PatchRow {
                    did: file_of_all,
                    blk: 0,
                    seq,
                    off: blk as u32,
                    data: vec![9].into(),
                });
            })
            .await;
        let view = writer.seal("kept").await;
        let new = new_tenant(&format!("clone-{link}"));
        let at = view.chain[0];
        writer.store.branch_from(at.branch, at.layer, &new).await.unwrap();
        let next = Writer::acquire(db.clone(), new.id, writer.session).await;
        writers.push(std::mem::replace(&mut writer, next));
        kept.push(view);
    }
    writers.push(writer);
    (writers, kept, file_of_all)
}

pub async fn a_chain_of_clones_becomes_short_and_shows_the_same(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let (writers, kept, _) = chain(&db, 12).await;
    let last = writers.last().unwrap();
    // Numbers of the base alone: each lease skips a million.
    let up_to = writers[0].next_ino + 20;
    let look = async |writers: &[Writer]| {
        let mut seen = vec![];
        for (writer, view) in writers.iter().zip(&kept) {
            seen.push(snapshot(&*writer.store, &writer.head().await, up_to).await);
            let (branch, layer) = (view.chain[0].branch, view.chain[0].layer);
            seen.push(
                snapshot(&*writer.store, &writer.store.view(branch, layer).await.unwrap(), up_to).await,
            );
            // Who looked at a long chain before, and goes on with it, sees the same.
            seen.push(snapshot(&*writer.store, view, up_to).await);
        }
        seen.push(snapshot(&*last.store, &last.head().await, up_to).await);
        seen
    };
    let (before, line) = (look(&writers).await, last.store.layers().await.unwrap());
    assert!(last.head().await.chain.len() > 2, "a chain to begin with");
    assert!(flatten_all(&*last.store).await > 0);
    for writer in &writers {
        let depth = writer.head().await.chain.len();
        assert!(depth <= 2, "depth {depth}");
        sound(&*writer.store).await;
    }
    assert_eq!(look(&writers).await, before);
    assert_eq!(last.store.layers().await.unwrap(), line, "what it has come from is known");
    assert_eq!(flatten_all(&*last.store).await, 0);
    collect_all(&*last.store).await;
    assert_eq!(look(&writers).await, before);
}

pub async fn what_is_flattened_needs_its_source_no_more(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let (mut writers, kept, file_of_all) = chain(&db, 4).await;
    let last = writers.pop().unwrap();
    let up_to = writers[0].next_ino + 20;
    let before = snapshot(&*last.store, &last.head().await, up_to).await;
    let middle = kept[2].chain[0];
    let needed = writers[2].store.delete_layer(middle.branch, middle.layer).await.unwrap_err();
    assert!(matches!(needed, StoreError::LayerInUse { .. }), "{needed}");
    flatten_all(&*last.store).await;
    // Not where the chain begins: that is its base.
    writers[2].store.delete_layer(middle.branch, middle.layer).await.unwrap();
    writers[2]
        .commit(|batch| {
            batch.removed_data.push(file_of_all);
            batch.removed_inodes.push(file_of_all);
            batch.removed_entries.push((ROOT_INO, Bytes::from_static(b"all"), file_of_all));
        })
        .await;
    collect_all(&*last.store).await;
    assert_eq!(snapshot(&*last.store, &last.head().await, up_to).await, before);
    // Its sources go altogether, the base with them.
    let session = last.session;
    db.close_session(session).await.unwrap();
    let ids: Vec<_> = writers.iter().map(|writer| writer.fence.tenant).collect();
    drop(writers);
    for id in &ids {
        db.delete_tenant(*id, InUse::Refuse).await.unwrap();
    }
    for id in ids {
        while !db.reap_tenant(id).await.unwrap() {}
    }
    flatten_all(&*last.store).await;
    collect_all(&*last.store).await;
    assert_eq!(snapshot(&*last.store, &last.head().await, up_to).await, before);
    sound(&*last.store).await;
}

/// A commit that waits for a batch to end must keep what the batch has brought for the checkpoint that shows it.
pub async fn flattening_races_with_commits_and_checkpoints_stay(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut base = Writer::create(db.clone(), "base").await;
    let mut files = vec![];
    for number in 0..40u8 {
        files.push(base.file(&format!("f{number}"), &[number; 8192]).await.0);
    }
    let up_to = base.next_ino + 20;
    let mut writer = base;
    for link in 0..3u32 {
        let own = files.clone();
        writer
            .commit(|batch| {
                batch.inodes = own.iter().map(|ino| InodeRow { uid: 7 + link, ..file(*ino, 8192) }).collect()
            })
            .await;
        let at = writer.seal("fork").await.chain[0];
        let new = new_tenant(&format!("clone-{link}"));
        writer.store.branch_from(at.branch, at.layer, &new).await.unwrap();
        writer = Writer::acquire(db.clone(), new.id, writer.session).await;
    }
    let (store, is_over) = (writer.store.clone(), Arc::new(AtomicBool::new(false)));
    let other = site.open().await.unwrap().open_tenant(writer.fence.tenant).await.unwrap();
    let ended = is_over.clone();
    let flattener = tokio::spawn(async move {
        let mut gone = 0;
        while !ended.load(Ordering::Relaxed) {
            gone += flatten_all(&*other).await;
            tokio::task::yield_now().await;
        }
        gone
    });
    let mut kept = vec![];
    for round in 0..40u8 {
        let view = writer.seal(&format!("round {round}")).await;
        kept.push((view.chain[0], snapshot(&*store, &view, up_to).await));
        let (ino, gone) = (files[round as usize], files[39 - round as usize]);
        writer
            .commit(|batch| {
                batch.inodes.push(InodeRow { uid: 1000 + u32::from(round), ..file(ino, 8192) });
                batch.extents.push(inline_extent(ino, 0, &[round; 7]));
                if round >= 20 {
                    batch.removed_entries.push((ROOT_INO, Bytes::from(format!("f{}", 39 - round)), gone));
                }
            })
            .await;
        // Something to flatten again.
        if round % 8 == 7 {
            let at = kept.last().unwrap().0;
            store.restore(&writer.fence, at.branch, at.layer).await.unwrap();
        }
    }
    is_over.store(true, Ordering::Relaxed);
    assert!(flattener.await.unwrap() > 0);
    flatten_all(&*store).await;
    for (at, expected) in kept {
        let view = store.view(at.branch, at.layer).await.unwrap();
        assert_eq!(snapshot(&*store, &view, up_to).await, expected, "{at:?}");
    }
    sound(&*store).await;
}
