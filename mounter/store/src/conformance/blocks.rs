//! Blocks: reserved, uploaded, found by hash, collected, damaged.

use std::collections::HashSet;

use bytes::Bytes;
use tarbox_types::{ErrorKind, ROOT_INO};

use super::{Site, writer::*};
use crate::*;

pub async fn ids_are_handed_out_once(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let writer = Writer::create(db.clone(), "one").await;
    let other = site.open().await.unwrap().open_tenant(writer.fence.tenant).await.unwrap();
    let mut seen = HashSet::new();
    for count in [1, 4096, 3] {
        for store in [&writer.store, &other] {
            let range = store.reserve_blocks(count).await.unwrap();
            assert_eq!(range.end - range.start, count);
            assert!(range.start > 0, "0 is no block");
            assert!(range.into_iter().all(|id| seen.insert(id)));
        }
    }
}

pub async fn uploaded_blocks_are_found_only_after_their_commit(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let raw = vec![42; 8000];
    let header = writer.upload(&raw).await;
    assert_eq!(writer.store.find_blocks(&[header.hash]).await.unwrap(), [None]);
    let ino = writer.number();
    writer
        .commit(|batch| {
            batch.headers.push(header.clone());
            batch.inodes.push(file(ino, 8000));
            batch.entries.push(entry(ROOT_INO, "f", ino, REG, ino));
            batch.extents.push(block_extent(ino, 0, header.block));
        })
        .await;
    let unknown = codec::hash(b"unknown");
    let found = writer.store.find_blocks(&[unknown, header.hash]).await.unwrap();
    assert_eq!(found, [None, Some(header.block)]);
    let copy = writer.number();
    writer
        .commit(|batch| {
            batch.reused.push(header.block);
            batch.inodes.push(file(copy, 8000));
            batch.entries.push(entry(ROOT_INO, "g", copy, REG, copy));
            batch.extents.push(block_extent(copy, 0, header.block));
        })
        .await;
    let view = writer.head().await;
    assert_eq!(bytes_of(&*writer.store, &view, uncut(copy), &[0]).await[&0], raw);
    // Again under the same id: replaced.
    let block = codec::encode(header.block, Bytes::from(raw), Compression::None);
    writer.store.upload(&[block]).await.unwrap();
}

pub async fn a_flipped_bit_is_damage_when_read(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let (good, _) = writer.file("good", &[1; 8192]).await;
    let (bad, block) = writer.file("bad", &[2; 8192]).await;
    site.flip_bit(block).await;
    let view = writer.head().await;
    let error = writer.store.read(&view, uncut(bad), &[0]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    assert!(error.to_string().contains(&block.to_string()), "{error}");
    assert_eq!(bytes_of(&*writer.store, &view, uncut(good), &[0]).await[&0], [1; 8192]);
}

/// Bytes that no codec makes shorter.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let byte = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(byte).collect()
}

/// The bytes of one page of a block, read as a part; and whether only a part was read.
async fn page(store: &dyn TenantStore, view: &View, did: u64, at: u32) -> Result<(Vec<u8>, bool)> {
    let part = store.read_part(view, uncut(did), 0, at..at + 4096).await?;
    assert!(part.range.start <= at && part.range.end >= at + 4096, "{:?} for {at}", part.range);
    let mut bytes = part.bytes.to_vec();
    bytes.resize(bytes.len().max((at + 4096 - part.range.start) as usize), 0);
    Ok((bytes[(at - part.range.start) as usize..][..4096].to_vec(), !part.is_whole()))
}

pub async fn parts_of_a_block_read_as_the_whole_does(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let mut raw = noise(1, 130_000);
    let (ino, _) = writer.file("f", &raw).await;
    let check = async |writer: &Writer, mut expected: Vec<u8>| {
        expected.resize(131_072 + 4096, 0);
        let (view, mut parts) = (writer.head().await, 0);
        for at in (0..131_072).step_by(4096) {
            let (bytes, is_part) = page(&*writer.store, &view, ino, at).await.unwrap();
            assert!(bytes == expected[at as usize..][..4096], "at {at}");
            parts += usize::from(is_part);
        }
        parts
    };
    assert!(check(&writer, raw.clone()).await >= 25, "after the first, parts are read");
    for (off, len) in [(100_u32, 50_usize), (16_380, 10), (129_990, 500)] {
        let data = noise(u64::from(off), len);
        raw.resize(raw.len().max(off as usize + len), 0);
        raw[off as usize..][..len].copy_from_slice(&data);
        let seq = writer.batch().to_seq;
        writer
            .commit(|batch| {
                batch.patches.push(PatchRow { did: ino, blk: 0, seq, off, data: data.into() });
            })
            .await;
    }
    assert!(check(&writer, raw).await >= 25, "patches do not matter");
    let raw = noise(2, 131_072);
    let header = writer.upload(&raw).await;
    writer
        .commit(|batch| {
            batch.extents.push(block_extent(ino, 0, header.block));
            batch.headers.push(header);
        })
        .await;
    check(&writer, raw).await;
}

pub async fn a_flipped_bit_is_damage_in_its_part_and_nowhere_else(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let raw = noise(1, 131_072);
    let (ino, block) = writer.file("f", &raw).await;
    let view = writer.head().await;
    assert_eq!(bytes_of(&*writer.store, &view, uncut(ino), &[0]).await[&0], raw);
    site.flip_bit(block).await;
    let mut damaged = 0;
    for at in (0..131_072).step_by(4096) {
        match page(&*writer.store, &view, ino, at).await {
            Ok((bytes, _)) => assert!(bytes == raw[at as usize..][..4096], "at {at}"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
                damaged += 1;
            }
        }
    }
    // The leaf that holds it, and those reads that are of the whole.
    assert!((4..=6).contains(&damaged), "{damaged} of 32 pages");
}

/// Collects until nothing is left.
pub async fn collect_all(store: &dyn TenantStore) -> u64 {
    let mut gone = 0;
    for _ in 0..10_000 {
        match store.collect().await.unwrap() {
            0 => return gone,
            some => gone += some,
        }
    }
    panic!("collecting ends");
}

pub async fn collected_blocks_cannot_be_reused(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let (ino, block) = writer.file("f", &[3; 8192]).await;
    writer.commit(|batch| batch.extents.push(inline_extent(ino, 0, b"replaced"))).await;
    collect_all(&*writer.store).await;
    assert_eq!(writer.store.find_blocks(&[codec::hash(&[3; 8192])]).await.unwrap(), [None]);
    let error = writer
        .try_commit(|batch| {
            batch.reused.push(block);
            batch.extents.push(block_extent(ino, 0, block));
        })
        .await
        .unwrap_err();
    assert!(matches!(&error, StoreError::BlocksGone(gone) if *gone == [block]), "{error}");
    let view = writer.head().await;
    assert_eq!(bytes_of(&*writer.store, &view, uncut(ino), &[0]).await[&0], b"replaced");
}

pub async fn blocks_still_referred_to_are_never_collected(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let (one, shared) = writer.file("one", &[1; 8192]).await;
    let (two, sealed) = writer.file("two", &[2; 8192]).await;
    let view = writer.seal("kept").await;
    let three = writer.number();
    writer
        .commit(|batch| {
            batch.reused.push(shared);
            batch.inodes.push(file(three, 8192));
            batch.extents.push(block_extent(three, 0, shared));
            batch.extents.push(inline_extent(one, 0, b"x"));
            batch.removed_entries.push((ROOT_INO, Bytes::from_static(b"two"), two));
            batch.removed_inodes.push(two);
            batch.removed_data.push(two);
        })
        .await;
    collect_all(&*writer.store).await;
    let head = writer.head().await;
    assert_eq!(bytes_of(&*writer.store, &head, uncut(three), &[0]).await[&0], [1; 8192]);
    assert_eq!(bytes_of(&*writer.store, &view, uncut(one), &[0]).await[&0], [1; 8192]);
    assert_eq!(bytes_of(&*writer.store, &view, uncut(two), &[0]).await[&0], [2; 8192]);
    writer.store.delete_layer(view.chain[0].branch, view.chain[0].layer).await.unwrap();
    collect_all(&*writer.store).await;
    let hashes = [codec::hash(&[1; 8192]), codec::hash(&[2; 8192])];
    assert_eq!(writer.store.find_blocks(&hashes).await.unwrap(), [Some(shared), None], "{sealed}");
}

/// A block is replaced, then found by its hash and used again, while a collector runs: what is committed is always there.
pub async fn collecting_races_with_commits_that_reuse(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let raw = vec![9; 8192];
    let (ino, _) = writer.file("f", &raw).await;
    let collector_store = site.open().await.unwrap().open_tenant(writer.fence.tenant).await.unwrap();
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let collector = tokio::spawn(async move {
        let mut rounds = 0u64;
        while !*stopped.borrow_and_update() {
            match collector_store.collect().await {
                Ok(_) => rounds += 1,
                Err(StoreError::Unavailable { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            tokio::task::yield_now().await;
        }
        rounds
    });
    let (mut reused, mut gone) = (0, 0);
    for _ in 0..150 {
        writer.commit(|batch| batch.extents.push(inline_extent(ino, 0, b"without"))).await;
        let found = writer.store.find_blocks(&[codec::hash(&raw)]).await.unwrap()[0];
        let header = match found {
            Some(block) => {
                let done = writer
                    .try_commit(|batch| {
                        batch.reused.push(block);
                        batch.extents.push(block_extent(ino, 0, block));
                    })
                    .await;
                match done {
                    Ok(_) => None,
                    Err(StoreError::BlocksGone(_)) => {
                        gone += 1;
                        Some(writer.upload(&raw).await)
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            None => Some(writer.upload(&raw).await),
        };
        match header {
            Some(header) => {
                writer
                    .commit(|batch| {
                        batch.headers.push(header.clone());
                        batch.extents.push(block_extent(ino, 0, header.block));
                    })
                    .await;
            }
            None => reused += 1,
        }
        let view = writer.head().await;
        assert_eq!(bytes_of(&*writer.store, &view, uncut(ino), &[0]).await[&0], raw);
    }
    stop.send(true).unwrap();
    let rounds = collector.await.unwrap();
    println!("{rounds} rounds of the collector, {reused} blocks used again, {gone} gone at the last moment");
    assert!(rounds > 0);
}

pub async fn orphaned_uploads_are_collected(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    let lost = writer.upload(&[5; 8192]).await;
    let (kept, _) = writer.file("kept", &[6; 8192]).await;
    // In flight: of the present holder, never touched.
    collect_all(&*writer.store).await;
    let late = writer.number();
    writer
        .commit(|batch| {
            batch.headers.push(lost.clone());
            batch.inodes.push(file(late, 8192));
            batch.extents.push(block_extent(late, 0, lost.block));
        })
        .await;
    let view = writer.head().await;
    assert_eq!(bytes_of(&*writer.store, &view, uncut(late), &[0]).await[&0], [5; 8192]);
    writer.upload(&[7; 8192]).await;
    db.close_session(writer.session).await.unwrap();
    let claimant = session(&*db).await;
    let heir = Writer::acquire(db.clone(), writer.fence.tenant, claimant).await;
    assert!(collect_all(&*heir.store).await >= 1, "the dead writer's upload goes");
    let view = heir.head().await;
    assert_eq!(bytes_of(&*heir.store, &view, uncut(late), &[0]).await[&0], [5; 8192]);
    assert_eq!(bytes_of(&*heir.store, &view, uncut(kept), &[0]).await[&0], [6; 8192]);
}

pub async fn stray_blocks_are_found_and_collected_once_they_are_offered(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let mut blocks = vec![];
    for number in 0..5u8 {
        blocks.push(writer.file(&format!("f{number}"), &[number + 1; 8192]).await.1);
    }
    let store = writer.store.clone();
    let stray = async || {
        let (mut found, mut after) = (vec![], Some(0));
        while let Some(from) = after {
            let (some, next) = store.stray_blocks(from, 2).await.unwrap();
            found.extend(some);
            after = next;
        }
        found
    };
    assert!(stray().await.is_empty());
    site.damage(&format!("DELETE FROM ext WHERE block = {}", blocks[2])).await;
    assert_eq!(stray().await, [blocks[2]]);
    collect_all(&*store).await;
    assert_eq!(stray().await, [blocks[2]], "the collector does not know of it");
    // One that is in use may be offered: it stays.
    store.offer_blocks(&[blocks[2], blocks[3]]).await.unwrap();
    assert!(stray().await.is_empty(), "the collector knows");
    collect_all(&*store).await;
    let left = [2, 3].map(|at| codec::hash(&[at + 1; 8192]));
    assert_eq!(store.find_blocks(&left).await.unwrap(), [None, Some(blocks[3])]);
}
