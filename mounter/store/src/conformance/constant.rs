//! What takes the same time however large a tenant is: measured, not asserted (`make constant`).

use std::time::{Duration, Instant};

use tarbox_types::{Ino, ROOT_INO};

use super::{Site, writer::*};
use crate::*;

/// Files of one commit.
const PAGE: usize = 5_000;
/// How often each is measured; what is shown is the median.
const ROUNDS: usize = 21;
const CHECKPOINTS: usize = 1_000;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

async fn timed<T>(work: impl Future<Output = T>) -> (Duration, T) {
    let begun = Instant::now();
    let done = work.await;
    (begun.elapsed(), done)
}

async fn filled(db: &std::sync::Arc<dyn Database>, name: &str, files: usize) -> (Writer, Vec<Ino>) {
    let mut writer = Writer::create(db.clone(), name).await;
    let mut made = Vec::new();
    while made.len() < files {
        let numbers: Vec<_> = (0..PAGE.min(files - made.len())).map(|_| writer.number()).collect();
        writer
            .commit(|batch| {
                for ino in &numbers {
                    batch.inodes.push(file(*ino, 5));
                    batch.entries.push(entry(ROOT_INO, &format!("file {ino}"), *ino, REG, *ino));
                    batch.extents.push(inline_extent(*ino, 0, b"bytes"));
                }
                batch.used_inodes += numbers.len() as u64;
            })
            .await;
        made.extend(numbers);
    }
    (writer, made)
}

/// A few files change, as between two checkpoints of somebody at work.
async fn change(writer: &mut Writer, files: &[Ino], round: usize) {
    let some: Vec<_> = (0..10).map(|n| files[(round * 10 + n) * 7919 % files.len()]).collect();
    writer
        .commit(|batch| {
            let distinct: std::collections::BTreeSet<_> = some.iter().copied().collect();
            for ino in distinct {
                batch.inodes.push(file(ino, 7));
                batch.extents.push(inline_extent(ino, 0, format!("{round:07}").as_bytes()));
            }
        })
        .await;
}

/// Checkpoint, clone and restore of tenants with so many files each: a line of medians for each of them.
pub async fn layers_of_tenants_of(site: &impl Site, sizes: &[usize]) {
    let db = site.open().await.unwrap();
    for files in sizes {
        let (mut writer, made) = filled(&db, &format!("files-{files}"), *files).await;
        let (mut sealed, mut cloned, mut restored) = (vec![], vec![], vec![]);
        for round in 0..ROUNDS {
            change(&mut writer, &made, round).await;
            let (time, view) = timed(writer.seal(&format!("kept {round}"))).await;
            sealed.push(time);
            let (branch, layer) = (view.chain[0].branch, view.chain[0].layer);
            let new = NewTenant { block_size: BS, ..new_tenant(&format!("clone-{files}-{round}")) };
            let (time, clone) = timed(writer.store.branch_from(branch, layer, &new)).await;
            clone.unwrap();
            cloned.push(time);
            let (time, back) = timed(writer.store.restore(&writer.fence, branch, layer)).await;
            back.unwrap();
            restored.push(time);
        }
        println!(
            "{files} files: checkpoint {:?}, clone {:?}, restore {:?}",
            median(sealed),
            median(cloned),
            median(restored)
        );
    }
}

async fn reads(writer: &Writer, files: &[Ino]) -> (Duration, Duration, Duration) {
    let head = writer.head().await;
    let some = || (0..300).map(|n| files[n * 7919 % files.len()]);
    let (mut inodes, mut names, mut bytes) = (vec![], vec![], vec![]);
    for ino in some() {
        let (time, row) = timed(writer.store.inode(&head, ino)).await;
        let row = row.unwrap().unwrap();
        inodes.push(time);
        let name = format!("file {ino}");
        let (time, found) = timed(writer.store.lookup(&head, ROOT_INO, name.as_bytes())).await;
        assert!(found.unwrap().is_some());
        names.push(time);
        let (time, read) = timed(writer.store.read(&head, data(&row), &[0])).await;
        assert_eq!(read.unwrap().len(), 1);
        bytes.push(time);
    }
    (median(inodes), median(names), median(bytes))
}

/// Reading the head before and after a thousand checkpoints with work between them.
pub async fn the_head_behind_many_checkpoints(site: &impl Site) {
    let db = site.open().await.unwrap();
    let (mut writer, made) = filled(&db, "many", 10_000).await;
    reads(&writer, &made).await;
    let before = reads(&writer, &made).await;
    for round in 0..CHECKPOINTS {
        change(&mut writer, &made, round).await;
        writer.seal(&format!("kept {round}")).await;
    }
    let after = reads(&writer, &made).await;
    let ratio = |one: Duration, other: Duration| other.as_secs_f64() / one.as_secs_f64();
    println!(
        "behind {CHECKPOINTS} checkpoints: inode {:?} ({:.2} of before), name {:?} ({:.2}), bytes {:?} ({:.2})",
        after.0,
        ratio(before.0, after.0),
        after.1,
        ratio(before.1, after.1),
        after.2,
        ratio(before.2, after.2)
    );
}

/// Reading the last of a chain of a hundred clones of clones, before and after it is flattened, against its base and against a plain clone.
pub async fn a_chain_of_clones(site: &impl Site) {
    const LINKS: usize = 100;
    let db = site.open().await.unwrap();
    let (base, made) = filled(&db, "base", 10_000).await;
    let session = base.session;
    reads(&base, &made).await;
    let of_base = reads(&base, &made).await;
    let mut writer = base;
    let mut plain = None;
    let mut cloned = vec![];
    for link in 0..LINKS {
        change(&mut writer, &made, link).await;
        let view = writer.seal("fork").await;
        let new = NewTenant { block_size: BS, ..new_tenant(&format!("link-{link}")) };
        let (branch, layer) = (view.chain[0].branch, view.chain[0].layer);
        let (time, clone) = timed(writer.store.branch_from(branch, layer, &new)).await;
        clone.unwrap();
        cloned.push(time);
        writer = Writer::acquire(db.clone(), new.id, session).await;
        if link == 0 {
            reads(&writer, &made).await;
            plain = Some(reads(&writer, &made).await);
        }
    }
    let depth = writer.head().await.chain.len();
    let before = reads(&writer, &made).await;
    let (time, gone) = timed(super::chains::flatten_all(&*writer.store)).await;
    let after = reads(&writer, &made).await;
    println!(
        "a chain of {depth} (clone {:?}): reads {before:?}; {gone} links flattened in {time:?}, depth {}: reads {after:?}; \
         a plain clone {plain:?}, its base {of_base:?}",
        median(cloned),
        writer.head().await.chain.len(),
    );
}
