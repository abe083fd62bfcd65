//! The journal as one process sees it: append, read, recycle, reopen.

use std::fs;

use bytes::Bytes;
use smallvec::smallvec;
use tarbox_types::{SessionId, TenantId};
use tempfile::TempDir;

use super::*;
use crate::effect::{Counters, Effect, Outcome};

mod damage;
mod kept;
mod kill;
mod speed;

/// A directory for journals in memory.
fn scratch() -> TempDir {
    TempDir::new_in("/dev/shm").expect("a temporary directory")
}

fn config(dir: &TempDir, max_mib: u64) -> JournalConfig {
    JournalConfig {
        dir: dir.path().join("journal"),
        segment_bytes: MIN_SEGMENT_BYTES,
        max_bytes: max_mib << 20,
    }
}

fn fence(tenant: u128, epoch: i64) -> Fence {
    let token = uuid::Uuid::from_u128(tenant << 64 | epoch as u128);
    let session = SessionId(uuid::Uuid::nil());
    Fence { tenant: TenantId(uuid::Uuid::from_u128(tenant)), session, epoch, token }
}

/// The lease of that epoch, after the one before it, with the database at `seq`.
fn identity(epoch: i64, seq: Seq) -> Identity {
    Identity { fence: fence(7, epoch), previous: fence(7, epoch - 1), committed_epoch: epoch - 1, seq }
}

/// A record that tells which it is, and a payload that can be checked.
fn record(n: u64) -> Record {
    let name = Bytes::from(format!("name-{n}"));
    Record {
        unique: n,
        counters: Counters { used_bytes: n * 4096, used_inodes: n, next_ino: n + 16 },
        outcome: Outcome::Count(n),
        effects: smallvec![
            Effect::RemoveEntry { parent: 1, name, cookie: n },
            Effect::Write { did: 16, offset: n, at: 0, len: payload(n).len() as u32 },
        ],
    }
}

fn payload(n: u64) -> Vec<u8> {
    let len = (n * 7919 % 5000) as usize;
    (0..len).map(|at| (n as usize * 31 + at) as u8).collect()
}

fn append(journal: &mut Journal, n: u64) -> Appended {
    let appended = journal.append(&record(n), &payload(n)).expect("room");
    assert_eq!(appended.seq, n);
    appended
}

fn check(records: Records, numbers: std::ops::RangeInclusive<u64>) {
    let mut wanted = numbers.clone();
    for item in records {
        let item = item.expect("readable");
        assert_eq!(Some(item.seq), wanted.next(), "of {numbers:?}");
        assert_eq!(item.record, record(item.seq));
        assert_eq!(item.payload.as_slice(), payload(item.seq));
    }
    assert_eq!(wanted.next(), None, "of {numbers:?}");
}

fn open(config: &JournalConfig, epoch: i64, seq: Seq) -> Opened {
    Journal::open(config, &identity(epoch, seq)).expect("open")
}

fn segment_count(config: &JournalConfig) -> usize {
    let names = fs::read_dir(&config.dir).expect("list").map(|entry| entry.expect("entry").file_name());
    names.filter(|name| name.to_string_lossy().starts_with("segment-")).count()
}

#[test]
fn what_is_appended_reads_back_from_any_point_while_appending_goes_on() {
    let dir = scratch();
    let mut journal = open(&config(&dir, 64), 1, 0).journal;
    let reader = journal.reader();
    for n in 1..=3000 {
        assert_eq!(append(&mut journal, n).payload.as_slice(), payload(n));
    }
    check(reader.read_range(0, u64::MAX), 1..=3000);
    for (after, to) in [(0, 1), (31, 33), (32, 32), (899, 2000), (2999, 3000)] {
        check(reader.read_range(after, to), after + 1..=to);
    }
    let half_read = reader.read_range(1000, 3000);
    for n in 3001..=4000 {
        append(&mut journal, n);
    }
    check(half_read, 1001..=3000);
}

#[test]
fn after_the_process_is_gone_its_uncommitted_records_are_recovered_with_their_numbers() {
    let dir = scratch();
    let config = config(&dir, 64);
    let mut journal = open(&config, 1, 0).journal;
    (1..=2000).for_each(|n| drop(append(&mut journal, n)));
    drop(journal);
    let mut opened = open(&config, 2, 700);
    assert_eq!((opened.replay, &opened.rejected, &opened.cut), ((700, 2000), &None, &None));
    check(opened.recovered(), 701..=2000);
    assert_eq!(opened.journal.reader().committed_seq(), 700);
    (2001..=2500).for_each(|n| drop(append(&mut opened.journal, n)));
    drop(opened);
    // Its own lease again, as after a hand-over.
    check(open(&config, 2, 700).recovered(), 701..=2500);
}

#[test]
fn a_journal_of_another_lease_or_tenant_is_set_aside_and_reported() {
    let dir = scratch();
    let config = config(&dir, 64);
    let mut journal = open(&config, 5, 0).journal;
    append(&mut journal, 1);
    drop(journal);
    let opened = open(&config, 7, 0);
    let rejected = opened.rejected.clone().expect("set aside");
    assert_eq!(rejected.reason, Reason::Fence { epoch: 5 });
    assert_eq!(rejected.path, dir.path().join("journal.rejected-5-1"));
    assert_eq!((opened.replay, opened.journal.last_seq()), ((0, 0), 0));
    drop(opened);
    // It can be moved back and is whole.
    fs::remove_dir_all(&config.dir).expect("remove");
    fs::rename(&rejected.path, &config.dir).expect("move back");
    check(open(&config, 6, 0).recovered(), 1..=1);

    let other = Identity { fence: fence(8, 6), previous: fence(8, 5), committed_epoch: 5, seq: 0 };
    let opened = Journal::open(&config, &other).expect("open");
    let rejected = opened.rejected.expect("set aside");
    assert_eq!(rejected.reason, Reason::Tenant(fence(7, 1).tenant));
    assert!(rejected.path.join("control").exists());
}

#[test]
fn leases_that_came_to_nothing_do_not_make_a_journal_foreign() {
    let dir = scratch();
    let config = config(&dir, 64);
    append(&mut open(&config, 5, 0).journal, 1);
    let later = |committed_epoch| Identity { committed_epoch, ..identity(8, 0) };
    check(Journal::open(&config, &later(5)).expect("open").recovered(), 1..=1);
    // It is ours now (8). Another has committed under 9 since:
    let opened = Journal::open(&config, &Identity { committed_epoch: 9, ..identity(11, 0) }).expect("open");
    assert_eq!(opened.rejected.expect("set aside").reason, Reason::Fence { epoch: 8 });
}

#[test]
fn the_same_epoch_with_another_token_is_another_lease() {
    let dir = scratch();
    let config = config(&dir, 64);
    let mut journal = open(&config, 5, 0).journal;
    append(&mut journal, 1);
    drop(journal);
    let mut restored = identity(6, 0);
    restored.previous.token = uuid::Uuid::from_u128(1);
    let opened = Journal::open(&config, &restored).expect("open");
    assert_eq!(opened.rejected.expect("set aside").reason, Reason::Fence { epoch: 5 });
}

#[test]
fn a_journal_that_begins_beyond_the_database_is_set_aside() {
    let dir = scratch();
    let config = config(&dir, 64);
    let mut journal = open(&config, 1, 100).journal;
    assert_eq!(journal.append(&record(1), b"x").expect("room").seq, 101);
    drop(journal);
    let opened = open(&config, 2, 50);
    let reason = opened.rejected.expect("set aside").reason;
    assert_eq!(reason, Reason::Gap { first: 101, database: 50 });
    assert_eq!(opened.journal.last_seq(), 50);
}

#[test]
fn a_journal_behind_the_database_is_used_again_from_there() {
    let dir = scratch();
    let config = config(&dir, 64);
    let mut journal = open(&config, 1, 0).journal;
    append(&mut journal, 1);
    drop(journal);
    let mut opened = open(&config, 2, 10);
    assert_eq!((opened.replay, &opened.rejected), ((10, 10), &None));
    assert_eq!(opened.journal.append(&record(11), &payload(11)).expect("room").seq, 11);
    drop(opened);
    check(open(&config, 3, 10).recovered(), 11..=11);
}

#[test]
fn a_full_journal_refuses_and_goes_on_after_a_commit_in_the_same_files() {
    let dir = scratch();
    let config = config(&dir, 8);
    let mut journal = open(&config, 1, 0).journal;
    let reader = journal.reader();
    let mut next = 1;
    while let Ok(appended) = journal.append(&record(next), &payload(next)) {
        next = appended.seq + 1;
    }
    assert_eq!((segment_count(&config), reader.bytes_allocated()), (4, 8 << 20));
    assert!(reader.bytes_in_use() > 7 << 20 && reader.bytes_in_use() <= 8 << 20);
    let refused = journal.append(&record(next), &payload(next)).expect_err("full");
    assert!(matches!(refused, AppendError::Full { max_bytes: 0x80_0000 }) && refused.is_full());
    // A part of the first segment is not enough.
    reader.committed(100);
    journal.append(&record(next), &payload(next)).expect_err("full");
    for _ in 0..5 {
        reader.committed(next - 1);
        assert_eq!(reader.bytes_in_use(), 0);
        let before = next;
        while let Ok(appended) = journal.append(&record(next), &payload(next)) {
            next = appended.seq + 1;
        }
        assert!(next > before + 1000, "four segments were free");
        check(reader.read_range(before - 1, next), before..=next - 1);
        assert_eq!(segment_count(&config), 4);
    }
}

#[test]
fn a_pinned_payload_stays_while_its_segment_is_out_of_use() {
    let dir = scratch();
    let config = config(&dir, 8);
    let mut journal = open(&config, 1, 0).journal;
    let reader = journal.reader();
    let pinned = append(&mut journal, 1).payload.slice(10..20).into_bytes();
    for n in 2..20_000 {
        append(&mut journal, n);
        reader.committed(n);
    }
    assert_eq!(pinned, payload(1)[10..20]);
    assert!(reader.records_after(0).is_none(), "record 1 is no longer in the journal");
    assert!(segment_count(&config) <= 4);
    drop(pinned);
    reader.trim();
    assert_eq!(segment_count(&config), 1);
}

#[test]
fn the_retained_tail_stays_readable_and_what_is_older_goes_when_room_is_needed() {
    let dir = scratch();
    let config = config(&dir, 8);
    let mut journal = open(&config, 1, 0).journal;
    let reader = journal.reader();
    reader.retain_from(500);
    for n in 1..=2500 {
        append(&mut journal, n);
        reader.committed(n);
    }
    check(reader.records_after(500).expect("retained"), 501..=2500);
    assert_eq!(reader.records_after(2500).expect("nothing is after the last").count(), 0);
    assert!(reader.records_after(2501).is_none(), "the database is ahead of the journal");
    let mut next = 2501;
    while let Ok(appended) = journal.append(&record(next), &payload(next)) {
        next = appended.seq + 1;
        reader.committed(appended.seq);
    }
    check(reader.records_after(500).expect("retained rather than overwritten"), 501..=next - 1);
    reader.retain_from(next);
    (next..next + 500).for_each(|n| drop(append(&mut journal, n)));
    assert!(reader.records_after(500).is_none(), "its segment was needed");
}

#[test]
fn a_database_set_back_between_two_lives_is_replayed_from_the_retained_tail() {
    let dir = scratch();
    let config = config(&dir, 64);
    let mut journal = open(&config, 1, 0).journal;
    (1..=100).for_each(|n| drop(append(&mut journal, n)));
    journal.reader().committed(100);
    drop(journal);
    check(open(&config, 2, 40).recovered(), 41..=100);
}

#[test]
fn of_what_is_committed_one_segment_is_left_to_be_read_by_a_successor() {
    let dir = scratch();
    let config = config(&dir, 64);
    let mut journal = open(&config, 1, 0).journal;
    let reader = journal.reader();
    (1..=10_000).for_each(|n| drop(append(&mut journal, n)));
    let before = reader.bytes_in_use();
    reader.retire();
    assert_eq!(reader.bytes_in_use(), before, "nothing is committed");
    reader.committed(9_999);
    reader.retain_from(5_000);
    reader.retire();
    check(reader.records_after(4_999).expect("retained"), 5_000..=10_000);
    reader.retain_from(10_000);
    reader.retire();
    let first = (1..10_000).find(|&n| reader.records_after(n).is_some()).expect("a tail");
    assert!((8_000..9_999).contains(&first), "the tail begins behind {first}");
    check(reader.records_after(first).expect("a tail"), first + 1..=10_000);
    drop((journal, reader));
    check(open(&config, 2, 9_999).recovered(), 10_000..=10_000);
}

#[test]
fn an_idle_journal_holds_one_segment_and_goes_on_in_it() {
    let dir = scratch();
    let config = config(&dir, 64);
    let mut journal = open(&config, 1, 0).journal;
    let reader = journal.reader();
    (1..=10_000).for_each(|n| drop(append(&mut journal, n)));
    assert!(segment_count(&config) > 10);
    reader.trim();
    check(reader.read_range(0, 10_000), 1..=10_000);
    reader.committed(10_000);
    reader.trim();
    assert_eq!((segment_count(&config), reader.bytes_allocated()), (1, MIN_SEGMENT_BYTES));
    (10_001..=12_000).for_each(|n| drop(append(&mut journal, n)));
    drop((journal, reader));
    check(open(&config, 2, 10_000).recovered(), 10_001..=12_000);
}

#[test]
fn a_spare_made_ready_is_what_the_next_segment_becomes() {
    let dir = scratch();
    let config = config(&dir, 64);
    let mut journal = open(&config, 1, 0).journal;
    let reader = journal.reader();
    assert!(!reader.wants_spare());
    let mut next = 1;
    while !reader.wants_spare() {
        append(&mut journal, next);
        next += 1;
    }
    assert!(reader.add_spare().expect("room"));
    assert!(!reader.wants_spare() && segment_count(&config) == 2);
    while reader.bytes_in_use() < MIN_SEGMENT_BYTES {
        append(&mut journal, next);
        next += 1;
    }
    assert_eq!(segment_count(&config), 2);
    drop((journal, reader));
    check(open(&config, 2, 0).recovered(), 1..=next - 1);
}

#[test]
fn records_are_read_and_committed_while_others_are_appended_and_segments_recycled() {
    const COUNT: u64 = 40_000;
    let dir = scratch();
    let mut journal = open(&config(&dir, 8), 1, 0).journal;
    let reader = journal.reader();
    let flusher = std::thread::spawn(move || {
        let mut pinned = Vec::new();
        while reader.committed_seq() < COUNT {
            let (done, last) = (reader.committed_seq(), reader.last_seq());
            check(reader.read_range(done, last), done + 1..=last);
            pinned.extend(reader.read_range(done, last).step_by(1000).map(|item| item.expect("readable")));
            pinned.drain(..pinned.len().saturating_sub(3));
            reader.committed(last);
            for item in &pinned {
                assert_eq!(item.payload.as_slice(), payload(item.seq));
            }
        }
    });
    for n in 1..=COUNT {
        while let Err(error) = journal.append(&record(n), &payload(n)) {
            assert!(error.is_full() && !flusher.is_finished(), "{error}");
            std::thread::yield_now();
        }
    }
    flusher.join().expect("the flusher saw what was appended");
}

#[test]
fn closing_removes_a_committed_journal_and_leaves_another() {
    let dir = scratch();
    let config = config(&dir, 64);
    let mut journal = open(&config, 1, 0).journal;
    append(&mut journal, 1);
    assert!(!journal.close());
    let opened = open(&config, 2, 0);
    check(opened.recovered(), 1..=1);
    let pinned = opened.recovered().next().expect("one").expect("readable").payload;
    opened.journal.reader().committed(1);
    assert!(opened.journal.close());
    assert!(!config.dir.exists());
    assert_eq!(pinned.as_slice(), payload(1), "what is pinned stays");
}

#[test]
fn a_journal_in_use_is_refused_to_others() {
    let dir = scratch();
    let config = config(&dir, 64);
    let journal = open(&config, 1, 0).journal;
    let error = Journal::open(&config, &identity(2, 0)).expect_err("in use");
    assert!(matches!(error, JournalError::Locked { .. }), "{error}");
    let reader = journal.reader();
    drop(journal);
    Journal::open(&config, &identity(2, 0))
        .expect_err("a reader can still read what a successor would overwrite");
    drop(reader);
    open(&config, 2, 0);
}

#[test]
fn the_age_is_that_of_the_oldest_uncommitted_record() {
    let dir = scratch();
    let mut journal = open(&config(&dir, 64), 1, 0).journal;
    let reader = journal.reader();
    assert_eq!(reader.oldest_uncommitted_at(), None);
    let before = Instant::now();
    append(&mut journal, 1);
    let first = reader.oldest_uncommitted_at().expect("one");
    assert!(first + AGE_STEP >= before && first <= Instant::now());
    while first.elapsed() < 3 * AGE_STEP {
        std::hint::spin_loop();
    }
    append(&mut journal, 2);
    assert_eq!(reader.oldest_uncommitted_at(), Some(first));
    reader.committed(1);
    assert!(reader.oldest_uncommitted_at().expect("one") > first);
    reader.committed(2);
    assert_eq!(reader.oldest_uncommitted_at(), None);
}

#[test]
fn the_largest_record_fits_the_least_segment_and_a_larger_one_is_refused() {
    let dir = scratch();
    let mut journal = open(&config(&dir, 64), 1, 0).journal;
    let xattrs = Effect::Xattrs { ino: 1, value: Some(Bytes::from(vec![1; 65_000])) };
    let large = Record { effects: smallvec![xattrs], ..record(1) };
    journal.append(&large, &vec![2; 1 << 20]).expect("fits");
    journal.append(&large, &vec![2; 1 << 20]).expect("fits the next segment");
    let error = journal.append(&large, &vec![2; 2 << 20]).expect_err("too large");
    assert!(matches!(error, AppendError::TooLarge { .. }) && !error.is_full());
    assert_eq!(journal.last_seq(), 2);
}
