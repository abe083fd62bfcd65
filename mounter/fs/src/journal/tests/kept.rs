//! Committed records stay as long as somebody may ask what they answered.

use std::sync::Arc;

use parking_lot::Mutex;
use tarbox_types::{Connection, Unanswered};

use super::*;

#[derive(Default)]
struct Requests(Mutex<Vec<u64>>);

impl Unanswered for Requests {
    fn any(&self, wanted: &mut dyn FnMut(u64) -> bool) -> bool {
        self.0.lock().iter().any(|&unique| wanted(unique))
    }
}

fn on(nonce: u64, left: &[u64]) -> Connection {
    Connection { nonce, left: left.to_vec() }
}

fn open_for(config: &JournalConfig, epoch: i64, seq: Seq, connection: &Connection) -> Opened {
    Journal::open_for(config, &identity(epoch, seq), connection).expect("open")
}

/// Appends records, whose numbers are also those of their requests, until there are three segments.
fn fill(config: &JournalConfig, journal: &mut Journal) -> u64 {
    let mut next = journal.last_seq() + 1;
    while segment_count(config) < 3 {
        append(journal, next);
        next += 1;
    }
    next - 1
}

#[test]
fn a_segment_stays_until_the_requests_that_made_its_records_are_answered() {
    let dir = scratch();
    let config = config(&dir, 32);
    let mut journal = open_for(&config, 1, 0, &on(7, &[])).journal;
    let requests = Arc::new(Requests::default());
    let reader = journal.reader();
    reader.keep_for(Arc::clone(&requests) as Arc<dyn Unanswered>);
    let last = fill(&config, &mut journal);
    reader.committed(last);
    // A request that made no record of the first segment, but with a number beside those that did.
    *requests.0.lock() = vec![5];
    reader.trim();
    assert_eq!(segment_count(&config), 3, "request 5 has no answer yet");
    assert!(reader.records_after(0).is_some());
    *requests.0.lock() = vec![last, last + 1000];
    reader.trim();
    assert_eq!(segment_count(&config), 1, "only requests of the last segment have no answer");
}

#[test]
fn what_was_left_is_told_from_committed_records_too_and_kept_until_it_is_settled() {
    let dir = scratch();
    let config = config(&dir, 32);
    let mut journal = open_for(&config, 1, 0, &on(7, &[])).journal;
    let last = fill(&config, &mut journal);
    drop(journal);
    let opened = open_for(&config, 2, last - 1, &on(7, &[last, 3, 1_000_000]));
    let told = |unique| Told { unique, seq: unique, outcome: Outcome::Count(unique) };
    assert_eq!(opened.told, [told(3), told(last)]);
    let reader = opened.journal.reader();
    reader.committed(last);
    reader.trim();
    assert_eq!(segment_count(&config), 3, "not settled");
    reader.settled();
    reader.trim();
    assert_eq!(segment_count(&config), 1);
}

#[test]
fn another_connection_neither_finds_the_records_nor_keeps_them() {
    let dir = scratch();
    let config = config(&dir, 32);
    let mut journal = open_for(&config, 1, 0, &on(7, &[])).journal;
    let last = fill(&config, &mut journal);
    drop(journal);
    let opened = open_for(&config, 2, last, &on(8, &[3]));
    assert_eq!(opened.told, []);
    let mut journal = opened.journal;
    append(&mut journal, last + 1);
    let reader = journal.reader();
    reader.committed(last + 1);
    reader.trim();
    // The last segment is the new connection's own.
    assert_eq!(segment_count(&config), 1);
    drop((journal, reader));
    let opened = open_for(&config, 3, last, &on(8, &[last + 1, last]));
    assert_eq!(opened.told.len(), 1, "{:?}", opened.told);
}

#[test]
fn a_segment_of_a_release_that_knew_no_connections_reads_as_of_none() {
    let header = format::SegmentHeader {
        format: 1,
        journal: 1,
        ordinal: 2,
        first_seq: 3,
        bytes: 4096,
        salt: 5,
        nonce: 6,
    };
    let mut bytes = format::encode_header(&header);
    bytes[..8].copy_from_slice(&format::SEGMENT_MAGIC.to_le_bytes());
    assert_eq!(format::decode_header(&bytes), format::HeaderFound::Used(header));
    bytes[68..].fill(0);
    let old = format::SegmentHeader { nonce: 0, ..header };
    assert_eq!(format::decode_header(&bytes), format::HeaderFound::Used(old));
}
