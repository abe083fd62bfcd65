//! How fast it is: `cargo test -p tarbox-store --release measure -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tarbox_types::ROOT_INO;

use super::conformance::server;
use crate::{codec, conformance::writer::*, *};

const BLOCK: usize = 128 << 10;

/// Runs for about two seconds; the time of one.
async fn each(mut work: impl AsyncFnMut()) -> Duration {
    let began = Instant::now();
    let mut rounds = 0;
    while rounds < 3 || began.elapsed() < Duration::from_secs(2) {
        work().await;
        rounds += 1;
    }
    began.elapsed() / rounds
}

fn random(len: usize, seed: u64) -> Bytes {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}

async fn writer() -> (Writer, String) {
    let database = server().database().await.unwrap();
    let db = crate::open(&server().url(&database)).await.unwrap();
    let new =
        NewTenant { block_size: BLOCK as u32, compression: Compression::None, ..new_tenant("measured") };
    let tenant = db.create_tenant(&new).await.unwrap();
    let session = session(&*db).await;
    (Writer::acquire(db, tenant.id, session).await, database)
}

async fn create(writer: &mut Writer, files: usize) {
    let numbers: Vec<_> = (0..files).map(|_| writer.number()).collect();
    writer
        .commit(|batch| {
            for ino in &numbers {
                batch.inodes.push(file(*ino, 0));
                batch.entries.push(entry(ROOT_INO, &format!("file {ino}"), *ino, REG, *ino));
            }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, and asserts nothing: make measure"]
async fn measure_small_rows() {
    let (mut writer, _) = writer().await;
    let mut plain = server().connect("postgres").await.unwrap();
    sqlx::raw_sql("CREATE TABLE IF NOT EXISTS one (x int); INSERT INTO one VALUES (1)")
        .execute(&mut plain)
        .await
        .unwrap();
    let one_row = each(async || {
        sqlx::query("UPDATE one SET x = x + 1").execute(&mut plain).await.unwrap();
    });
    println!("commit of one plain row, for comparison: {:?}", one_row.await);
    println!("commit of 4 creates: {:?}", each(async || create(&mut writer, 4).await).await);
    println!("commit of 1,000 creates: {:?}", each(async || create(&mut writer, 1000).await).await);
    let (ino, _) = writer.file("patched", &random(BLOCK, 0)).await;
    let mut seq = 100;
    let patched = each(async || {
        writer
            .commit(|batch| {
                batch.patches.extend((0..64).map(|i| {
                    seq += 1;
                    PatchRow { did: ino, blk: 0, seq, off: i * 2048, data: Bytes::from_static(&[7; 2048]) }
                }));
            })
            .await;
    });
    println!("commit of 64 patches of 2 KiB: {:?}", patched.await);
    let kept = writer.seal("kept").await;
    for depth in [1, 8] {
        // The name is in the last branch: seven that have nothing are asked before.
        let mut head = if depth == 1 { writer.head().await } else { kept.clone() };
        let empty = |branch| Link { branch, layer: 1, ino_floor: u64::MAX >> 1 };
        head.chain.splice(0..0, (1..depth).map(|n| empty(1_000_000 + n as i64)));
        println!(
            "depth {depth}: inode {:?}",
            each(async || {
                writer.store.inode(&head, ino).await.unwrap().unwrap();
            })
            .await
        );
        println!(
            "depth {depth}: lookup {:?}",
            each(async || {
                writer.store.lookup(&head, ROOT_INO, b"patched").await.unwrap().unwrap();
            })
            .await
        );
        println!(
            "depth {depth}: name that is not there {:?}",
            each(async || {
                assert!(writer.store.lookup(&head, ROOT_INO, b"missing").await.unwrap().is_none());
            })
            .await
        );
        println!(
            "depth {depth}: 1,000 names with inodes {:?}",
            each(async || {
                assert_eq!(writer.store.list(&head, ROOT_INO, 0, 1000).await.unwrap().len(), 1000);
            })
            .await
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, and asserts nothing: make measure"]
async fn measure_blocks() {
    let (mut writer, _) = writer().await;
    let blocks = 512;
    let ids = writer.store.reserve_blocks(blocks).await.unwrap();
    let encoded: Vec<_> =
        ids.clone().map(|id| codec::encode(id, random(BLOCK, id), Compression::None)).collect();
    let began = Instant::now();
    for chunk in encoded.chunks(32) {
        writer.store.upload(chunk).await.unwrap();
    }
    let mib = blocks as f64 / 8.0;
    println!("upload, one connection: {:.0} MiB/s", mib / began.elapsed().as_secs_f64());
    let began = Instant::now();
    let ino = writer.number();
    writer
        .commit(|batch| {
            batch.headers.extend(encoded.iter().map(|block| block.header.clone()));
            batch.inodes.push(file(ino, blocks * BLOCK as u64));
            batch.entries.push(entry(ROOT_INO, "large", ino, REG, ino));
            batch.extents.extend(ids.clone().enumerate().map(|(blk, id)| block_extent(ino, blk as u64, id)));
        })
        .await;
    println!("commit of {blocks} blocks: {:?}", began.elapsed());
    let head = writer.head().await;
    for at_once in [1, 8, 64] {
        let began = Instant::now();
        let blks: Vec<_> = (0..blocks).collect();
        for chunk in blks.chunks(at_once) {
            assert_eq!(writer.store.read(&head, uncut(ino), chunk).await.unwrap().len(), chunk.len());
        }
        println!("read, {at_once} blocks at once: {:.0} MiB/s", mib / began.elapsed().as_secs_f64());
    }
    let more = writer.store.reserve_blocks(blocks).await.unwrap();
    let encoded: Vec<_> = more.map(|id| codec::encode(id, random(BLOCK, id), Compression::None)).collect();
    let began = Instant::now();
    let (first, second) = encoded.split_at(256);
    let (one, two) = tokio::join!(writer.store.upload(first), writer.store.upload(second));
    one.unwrap();
    two.unwrap();
    println!("upload, two connections: {:.0} MiB/s", mib / began.elapsed().as_secs_f64());
    let began = Instant::now();
    writer.store.upload(&encoded[..64]).await.unwrap();
    println!("upload of the same ids again: {:.0} MiB/s", 8.0 / began.elapsed().as_secs_f64());
}

/// The same work as the owner and as a tenant's login, in turns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, and asserts nothing: make measure"]
async fn measure_logins() {
    let (owner, database) = writer().await;
    let db = owner.db.clone();
    let new = NewTenant { block_size: BLOCK as u32, compression: Compression::None, ..new_tenant("kept") };
    let tenant = db.create_tenant(&new).await.unwrap();
    let Made::Login(login) = db.make_login(tenant.id, "node").await.unwrap() else { panic!("no login") };
    let url =
        tarbox_types::database_url::with_user(&server().url(&database), &login.role, Some(&login.password));
    let its = crate::open(&url).await.unwrap();
    let session = session(&*its).await;
    let mut both = [owner, Writer::acquire(its, tenant.id, session).await];
    let mut files = Vec::new();
    for writer in &mut both {
        create(writer, 5000).await;
        files.push(writer.file("patched", &random(BLOCK, 0)).await.0);
    }
    let mut times = [[Duration::ZERO; 5]; 2];
    const ROUNDS: u32 = 400;
    for round in 0..ROUNDS + 20 {
        for (who, writer) in both.iter_mut().enumerate() {
            let (head, ino) = (writer.head().await, files[who]);
            let mut took = [Duration::ZERO; 5];
            let mut time = |what: usize, began: Instant| took[what] = began.elapsed();
            let began = Instant::now();
            writer.store.lookup(&head, ROOT_INO, b"patched").await.unwrap().unwrap();
            time(0, began);
            let began = Instant::now();
            create(writer, 4).await;
            time(1, began);
            let began = Instant::now();
            writer.store.list(&head, ROOT_INO, 0, 1000).await.unwrap();
            time(2, began);
            let began = Instant::now();
            writer.store.read(&head, uncut(ino), &[0]).await.unwrap();
            time(3, began);
            let began = Instant::now();
            writer.upload(&random(BLOCK, u64::from(round))).await;
            time(4, began);
            // The first rounds make plans.
            if round >= 20 {
                times[who].iter_mut().zip(took).for_each(|(all, took)| *all += took);
            }
        }
    }
    for (what, name) in
        ["lookup", "commit of 4 creates", "1,000 names", "read of a block", "upload of a block"]
            .iter()
            .enumerate()
    {
        let (owner, login) = (times[0][what] / ROUNDS, times[1][what] / ROUNDS);
        println!(
            "{name}: owner {owner:?}, login {login:?}, {:.3}",
            login.as_secs_f64() / owner.as_secs_f64()
        );
    }
}
