//! What an append costs. Printed, not asserted: `cargo test -p tarbox-fs speed -- --ignored --nocapture`.

use std::hint::black_box;

use tarbox_store::{EntryRow, InodeRow, Time};

use super::*;

/// A create: an inode, a name and the directory's new times, about 200 bytes.
fn create(n: u64) -> Record {
    let time = Time { sec: 1_763_722_310, nsec: n as u32 % 1_000_000_000 };
    let inode = |ino, mode| InodeRow {
        ino,
        mode,
        uid: 1000,
        gid: 1000,
        rdev: 0,
        nlink: 1,
        size: 4096,
        atime: time,
        mtime: time,
        ctime: time,
        dir_parent: 0,
        did: ino,
        cut: u64::MAX >> 1,
        charge: 4096,
        prealloc: Vec::new(),
        target: Bytes::new(),
    };
    let name = Bytes::from_static(b"a-file-name-of-usual-length.txt");
    let entry = EntryRow { parent: 1000, name, ino: n, kind: libc::S_IFREG, cookie: n };
    Record {
        unique: n,
        counters: Counters { used_bytes: n << 12, used_inodes: n, next_ino: n },
        outcome: Outcome::Inode(n),
        effects: smallvec![
            Effect::Inode(inode(n, 0o100_644)),
            Effect::Entry(entry),
            Effect::Inode(inode(1000, 0o40_755))
        ],
    }
}

fn measure(what: &str, count: u64, payload: &[u8]) {
    let dir = scratch();
    let config =
        JournalConfig { dir: dir.path().join("journal"), segment_bytes: SEGMENT_BYTES, max_bytes: 256 << 20 };
    let mut journal = open(&config, 1, 0).journal;
    let reader = journal.reader();
    for round in ["first use of the segments", "segments recycled"] {
        let (mut longest, began) = (Duration::ZERO, Instant::now());
        let records = (0..64).map(|n| create(20_000 + n)).collect::<Vec<_>>();
        for n in 0..count {
            let before = Instant::now();
            black_box(journal.append(&records[n as usize % 64], payload).expect("room"));
            longest = longest.max(before.elapsed());
            if n % 64 == 63 {
                reader.committed(journal.last_seq() - 32);
            }
            if n % 1024 == 0 && reader.wants_spare() {
                reader.add_spare().expect("room");
            }
        }
        reader.committed(journal.last_seq());
        let each = began.elapsed() / count as u32;
        println!("append, {what}, {round}: {each:?} each, longest {longest:?}");
    }
}

#[test]
#[ignore = "a measurement"]
fn append_and_recovery() {
    let mut body = Vec::new();
    effect_codec::encode(&create(20_000), &mut body);
    println!("a create is {} bytes", body.len());
    measure("no payload", 200_000, &[]);
    measure("4 KiB", 50_000, &[7; 4096]);
    measure("128 KiB", 2_000, &[7; 128 << 10]);
    measure("1 MiB", 200, &[7; 1 << 20]);

    let dir = scratch();
    let config =
        JournalConfig { dir: dir.path().join("journal"), segment_bytes: SEGMENT_BYTES, max_bytes: 1 << 30 };
    let mut journal = open(&config, 1, 0).journal;
    for n in 0..60_000 {
        journal.append(&create(n), &[1; 4096]).expect("room");
    }
    drop(journal);
    let began = Instant::now();
    let opened = open(&config, 2, 0);
    println!("opening a journal of 60,000 records, 256 MiB: {:?}", began.elapsed());
    let began = Instant::now();
    let bytes = opened.recovered().map(|item| item.expect("readable").payload.len()).sum::<usize>();
    println!("reading {bytes} bytes of them: {:?}", began.elapsed());
}
