//! What a history takes: known exactly whenever it is asked for, and right whatever comes and goes.

use tarbox_types::ROOT_INO;

use super::{Site, blocks::collect_all, writer::*};
use crate::*;

const ROW: u64 = 256;
const BLOCK: u64 = BS as u64;

/// Blocks of a content of their own, over the whole file.
async fn rewrite(writer: &mut Writer, ino: u64, blocks: u64, content: u8) {
    let mut headers = vec![];
    for blk in 0..blocks {
        let raw: Vec<u8> =
            (0..BS).map(|at| content.wrapping_add(blk as u8).wrapping_add(at as u8 / 3)).collect();
        headers.push(writer.upload(&raw).await);
    }
    writer
        .commit(|batch| {
            batch.extents =
                (0..).zip(&headers).map(|(blk, header)| block_extent(ino, blk, header.block)).collect();
            batch.headers = headers;
        })
        .await;
}

async fn sound(store: &dyn TenantStore) {
    let report = store.check(false, &|_| {}).await.unwrap();
    let miscounted: Vec<_> =
        report.faults.iter().filter(|f| f.message.starts_with("history bytes")).collect();
    assert!(miscounted.is_empty(), "{miscounted:?}");
}

pub async fn a_history_takes_what_views_show_and_the_head_does_not(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let (ino, _) = writer.file("f", b"x").await;
    rewrite(&mut writer, ino, 4, 1).await;
    let store = writer.store.clone();
    assert_eq!(store.history_bytes().await.unwrap(), 0);
    let first = writer.seal("first").await;
    assert_eq!(store.history_bytes().await.unwrap(), 0, "the head shows it all");
    rewrite(&mut writer, ino, 4, 50).await;
    let one = 4 * (BLOCK + ROW);
    assert_eq!(store.history_bytes().await.unwrap(), one);
    rewrite(&mut writer, ino, 4, 100).await;
    assert_eq!(store.history_bytes().await.unwrap(), one, "what no view shows is none");
    let second = writer.seal("second").await;
    rewrite(&mut writer, ino, 4, 150).await;
    assert_eq!(store.history_bytes().await.unwrap(), 2 * one);
    collect_all(&*store).await;
    assert_eq!(store.history_bytes().await.unwrap(), 2 * one, "whether it was counted before or not");
    writer.commit(|batch| batch.extents = vec![inline_extent(ino, 0, b"inline")]).await;
    let third = writer.seal("third").await;
    writer.commit(|batch| batch.extents = vec![inline_extent(ino, 0, b"again")]).await;
    let more = 6 + ROW;
    assert_eq!(store.history_bytes().await.unwrap(), 2 * one + more);
    sound(&*store).await;
    for (gone, left) in [(&second, one + more), (&first, more), (&third, 0)] {
        store.delete_layer(gone.chain[0].branch, gone.chain[0].layer).await.unwrap();
        assert_eq!(store.history_bytes().await.unwrap(), left, "deleting gives back");
        collect_all(&*store).await;
        assert_eq!(store.history_bytes().await.unwrap(), left);
        sound(&*store).await;
    }
}

pub async fn a_removed_file_and_a_line_that_was_left_are_history(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let (ino, _) = writer.file("f", b"x").await;
    rewrite(&mut writer, ino, 4, 1).await;
    let store = writer.store.clone();
    let first = writer.seal("first").await;
    writer
        .commit(|batch| {
            batch.removed_entries.push((ROOT_INO, "f".into(), ino));
            batch.removed_inodes.push(ino);
            batch.removed_data.push(ino);
        })
        .await;
    // Its extents become history when the collector comes by, its inode and its name at once: counted they all are.
    assert_eq!(store.history_bytes().await.unwrap(), 4 * (BLOCK + ROW) + 2 * ROW);
    collect_all(&*store).await;
    assert_eq!(store.history_bytes().await.unwrap(), 4 * (BLOCK + ROW) + 2 * ROW);
    writer.seal("second").await;
    collect_all(&*store).await;
    assert_eq!(store.history_bytes().await.unwrap(), 4 * (BLOCK + ROW) + 2 * ROW);
    sound(&*store).await;
    let (_, _) = writer.file("g", &[9; BS as usize]).await;
    let at = first.chain[0];
    store.restore(&writer.fence, at.branch, at.layer).await.unwrap();
    collect_all(&*store).await;
    // What the old head alone shows: the root's inode, and the new file's inode, name and block.
    let len = 1 << 10;
    let now = store.history_bytes().await.unwrap();
    let left = now - 4 * (BLOCK + ROW) - 2 * ROW;
    assert!(left >= BLOCK && left < BLOCK + len * 2, "{left}");
    sound(&*store).await;
    for layer in store.own_layers().await.unwrap() {
        if layer.layer != at.layer {
            store.delete_layer(layer.branch, layer.layer).await.unwrap();
        }
    }
    collect_all(&*store).await;
    let left = store.history_bytes().await.unwrap();
    assert!(left < now - BLOCK, "{left} of {now}: the new file's is given back");
    sound(&*store).await;
}

pub async fn a_miscounted_history_is_found_and_set_right(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    let (ino, _) = writer.file("f", b"x").await;
    rewrite(&mut writer, ino, 2, 1).await;
    writer.seal("first").await;
    rewrite(&mut writer, ino, 2, 9).await;
    writer.seal("second").await;
    let store = writer.store.clone();
    collect_all(&*store).await;
    let right = store.history_bytes().await.unwrap();
    site.damage("UPDATE branch SET history_bytes = history_bytes + 7").await;
    assert_eq!(store.history_bytes().await.unwrap(), right + 7);
    db.close_session(writer.session).await.unwrap();
    let report = store.check(true, &|_| {}).await.unwrap();
    let fault = report.faults.iter().find(|fault| fault.message.starts_with("history bytes")).unwrap();
    assert!(fault.repaired, "{fault:?}");
    assert_eq!(store.history_bytes().await.unwrap(), right);
    collect_all(&*store).await;
    assert_eq!(store.history_bytes().await.unwrap(), right);
    sound(&*store).await;
}
