//! The collector, flattening and deletion against writers that share blocks, checkpoint, clone and go back: nothing that is referred to goes.
//! A few seconds long; `make races` makes it ten minutes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tarbox_types::ROOT_INO;

use super::{Site, chains::flatten_all, writer::*};
use crate::*;

/// Contents that blocks have: few, so that they are found and used again all the time.
const CONTENTS: u64 = 12;
const FILES: u64 = 10;
const WRITERS: usize = 2;

fn duration() -> Duration {
    let seconds = std::env::var("TESTS_RACE_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(4))
}

fn content(number: u64) -> Vec<u8> {
    (0..BS as usize).map(|at| (number as usize * 31 + at / 100) as u8).collect()
}

/// The next of a sequence of numbers.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// A file gets this content, found by its hash where it is stored already.
async fn put(writer: &mut Writer, ino: u64, number: u64) {
    let raw = content(number);
    if let Some(block) = writer.store.find_blocks(&[codec::hash(&raw)]).await.unwrap()[0] {
        let done = writer
            .try_commit(|batch| {
                batch.reused.push(block);
                batch.extents.push(block_extent(ino, 0, block));
            })
            .await;
        match done {
            Ok(_) => return,
            Err(StoreError::BlocksGone(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let header = writer.upload(&raw).await;
    writer
        .commit(|batch| {
            batch.extents.push(block_extent(ino, 0, header.block));
            batch.headers.push(header);
        })
        .await;
}

/// What a writer of a tenant does until the time is over; how much.
async fn work(mut writer: Writer, seed: u64, until: Instant) -> u64 {
    let (mut state, mut done) = (seed, 0);
    let mut files: Vec<(u64, u64)> = vec![];
    for number in 0..FILES {
        let (ino, _) = writer.file(&format!("f{number}"), &content(number % CONTENTS)).await;
        files.push((ino, number % CONTENTS));
    }
    let mut kept: Vec<(Link, Vec<(u64, u64)>)> = vec![];
    let mut clones = vec![];
    while Instant::now() < until {
        done += 1;
        let at = next(&mut state) as usize % files.len();
        match next(&mut state) % 12 {
            0 => {
                let view = writer.seal(&format!("kept {done}")).await;
                kept.push((view.chain[0], files.clone()));
            }
            1 if kept.len() > 3 => {
                let (link, _) = kept.remove(next(&mut state) as usize % kept.len());
                match writer.store.delete_layer(link.branch, link.layer).await {
                    Ok(()) | Err(StoreError::LayerInUse { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            2 if !kept.is_empty() => {
                let (link, were) = kept[next(&mut state) as usize % kept.len()].clone();
                writer.store.restore(&writer.fence, link.branch, link.layer).await.unwrap();
                files = were;
            }
            3 if !kept.is_empty() && clones.len() < 3 => {
                let (link, were) = kept[next(&mut state) as usize % kept.len()].clone();
                let new = new_tenant(&format!("clone-{seed}-{done}"));
                writer.store.branch_from(link.branch, link.layer, &new).await.unwrap();
                clones.push((new.id, were));
            }
            4 if !clones.is_empty() => {
                let (id, were) = clones.remove(0);
                let store = writer.db.open_tenant(id).await.unwrap();
                compare(&*store, &store.head().await.unwrap().1, &were).await;
                writer.db.delete_tenant(id, InUse::Refuse).await.unwrap();
                while !writer.db.reap_tenant(id).await.unwrap() {}
            }
            5 => {
                let (ino, _) = files[at];
                writer.commit(|batch| batch.extents.push(inline_extent(ino, 0, b"inline"))).await;
                files[at].1 = CONTENTS;
            }
            6 => {
                // Removed, and made again as another one.
                let (ino, _) = files[at];
                let name = format!("g{done}");
                writer
                    .commit(|batch| {
                        batch.removed_inodes.push(ino);
                        batch.removed_data.push(ino);
                        batch.removed_entries.push((ROOT_INO, Bytes::from(format!("none{done}")), ino));
                    })
                    .await;
                let number = next(&mut state) % CONTENTS;
                let (ino, _) = writer.file(&name, &content(number)).await;
                files[at] = (ino, number);
            }
            _ => {
                let number = next(&mut state) % CONTENTS;
                put(&mut writer, files[at].0, number).await;
                files[at].1 = number;
            }
        }
    }
    compare(&*writer.store, &writer.head().await, &files).await;
    for (link, were) in &kept {
        compare(&*writer.store, &writer.store.view(link.branch, link.layer).await.unwrap(), were).await;
    }
    done
}

async fn compare(store: &dyn TenantStore, view: &View, files: &[(u64, u64)]) {
    for (ino, number) in files {
        let read = bytes_of(store, view, uncut(*ino), &[0]).await;
        let expected = if *number == CONTENTS { b"inline".to_vec() } else { trimmed(&content(*number)) };
        assert_eq!(read.get(&0), Some(&expected), "file {ino} in {view:?}");
    }
}

pub async fn nothing_that_is_referred_to_goes_whatever_is_collected_meanwhile(site: &dyn Site) {
    let until = Instant::now() + duration();
    let db = site.open().await.unwrap();
    let first = Writer::create(db.clone(), "first").await;
    let mut writers = vec![];
    let at = {
        let mut first = first;
        let view = first.seal("fork").await;
        writers.push(first);
        view.chain[0]
    };
    for number in 1..WRITERS {
        let new = new_tenant(&format!("writer-{number}"));
        writers[0].store.branch_from(at.branch, at.layer, &new).await.unwrap();
        writers.push(Writer::acquire(db.clone(), new.id, writers[0].session).await);
    }
    let ids: Vec<_> = writers.iter().map(|writer| writer.fence.tenant).collect();
    let is_over = Arc::new(AtomicBool::new(false));
    let store = site.open().await.unwrap().open_tenant(ids[0]).await.unwrap();
    let ended = is_over.clone();
    let collector = tokio::spawn(async move {
        let mut gone = 0;
        while !ended.load(Ordering::Relaxed) {
            gone += store.collect().await.unwrap();
            if gone % 7 == 0 {
                flatten_all(&*store).await;
            }
            tokio::task::yield_now().await;
        }
        gone
    });
    let working: Vec<_> =
        (1..).zip(writers).map(|(seed, writer)| tokio::spawn(work(writer, seed, until))).collect();
    let mut done = 0;
    for one in working {
        done += one.await.unwrap();
    }
    is_over.store(true, Ordering::Relaxed);
    let gone = collector.await.unwrap();
    println!("{done} changes, {gone} rows and blocks collected meanwhile");
    assert!(done > 0 && gone > 0);
    for id in ids {
        let report = db.open_tenant(id).await.unwrap().check(false, &|_| {}).await.unwrap();
        // Sizes and counters are made up here: what is checked is what is referred to, and every hash.
        let is_lost =
            |fault: &&Fault| ["header", "damaged", "hash"].iter().any(|word| fault.message.contains(word));
        let lost: Vec<_> = report.faults.iter().filter(is_lost).collect();
        assert!(lost.is_empty(), "{lost:?}");
    }
}
