//! Files that are not what was written: every record is recovered, or the start is refused and nothing is changed.

use std::{
    collections::BTreeMap,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::*;
use crate::journal::{
    control::Control,
    format::{FRAME_HEADER, SEGMENT_HEADER},
};

const LAST: u64 = 2200;

/// A journal of three segments that a process of this boot left, and its segment files in order.
fn left_behind() -> (TempDir, JournalConfig, Vec<PathBuf>) {
    let dir = scratch();
    let config = config(&dir, 64);
    let mut journal = open(&config, 1, 0).journal;
    (1..=LAST).for_each(|n| drop(append(&mut journal, n)));
    drop(journal);
    let mut files = fs::read_dir(&config.dir)
        .expect("list")
        .map(|entry| entry.expect("entry").path())
        .collect::<Vec<_>>();
    files.retain(|path| path.file_name().is_some_and(|name| name != "control"));
    files.sort();
    assert_eq!(files.len(), 3);
    (dir, config, files)
}

fn snapshot(config: &JournalConfig) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(&config.dir).expect("list").map(|entry| entry.expect("entry").path());
    entries
        .filter(|path| !path.ends_with("control"))
        .map(|path| (path.clone(), fs::read(path).expect("read")))
        .collect()
}

fn flip(path: &Path, bit: u64) {
    let file = fs::File::options().read(true).write(true).open(path).expect("open");
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).expect("read");
    file.write_all_at(&[byte[0] ^ 1 << (bit % 8)], bit / 8).expect("write");
}

/// Where the frame of a record stands: `(index of the file, byte)`.
fn place_of(files: &[PathBuf], seq: u64) -> (usize, usize) {
    for (index, path) in files.iter().enumerate() {
        let bytes = fs::read(path).expect("read");
        let mut at = SEGMENT_HEADER;
        while let Some(frame) = format::frame_layout(&bytes, at) {
            if frame.seq == seq {
                return (index, at);
            }
            at = frame.next;
        }
    }
    panic!("record {seq} is nowhere")
}

/// As if the machine had been rebooted since.
fn reboot(config: &JournalConfig) {
    let control = control::read(&config.dir).expect("control").expect("there");
    control::replace(&config.dir, &Control { boot: 1, ..control }).expect("control");
}

fn refused(config: &JournalConfig, epoch: i64) -> JournalError {
    let before = snapshot(config);
    let error = Journal::open(config, &identity(epoch, 0)).expect_err("damaged");
    assert!(before == snapshot(config), "a refused start changes no segment: {error}");
    error
}

#[test]
fn a_flipped_bit_anywhere_is_refused_or_harms_nothing() {
    let (_dir, config, files) = left_behind();
    let mut refusals = 0;
    for epoch in 2..150 {
        let random = recovery::random();
        let file = &files[(random >> 100) as usize % 3];
        let bit = random as u64 % (MIN_SEGMENT_BYTES * 8);
        flip(file, bit);
        match Journal::open(&config, &identity(epoch, 0)) {
            Ok(opened) => check(opened.recovered(), 1..=LAST),
            Err(JournalError::Damaged { file: named, offset, seq, .. }) => {
                assert_eq!(named, *file, "bit {bit}");
                assert!(offset <= bit / 8 && seq <= LAST, "bit {bit} of {file:?}: record {seq} at {offset}");
                refusals += 1;
            }
            Err(error) => panic!("bit {bit} of {file:?}: {error}"),
        }
        flip(file, bit);
    }
    assert!(refusals > 50, "{refusals} of 148");
    // Each refused start had a lease of its own, and still the journal is known as the predecessor's.
    check(open(&config, 150, 0).recovered(), 1..=LAST);
}

#[test]
fn a_flipped_bit_in_any_part_of_a_record_names_the_record() {
    let (_dir, config, files) = left_behind();
    for (epoch, (seq, byte)) in
        (2..).zip([1, 1000, LAST].iter().flat_map(|&seq| (0..28).map(move |byte| (seq, byte))))
    {
        let (index, at) = place_of(&files, seq);
        let bit = (at + byte) as u64 * 8 + epoch as u64 % 8;
        flip(&files[index], bit);
        let error = refused(&config, epoch);
        assert!(
            matches!(&error, JournalError::Damaged { file, offset, seq: found, .. }
                if *file == files[index] && *offset == at as u64 && *found == seq),
            "record {seq}, byte {byte}: {error}"
        );
        assert!(error.to_string().contains("nothing was changed"), "{error}");
        flip(&files[index], bit);
    }
}

#[test]
fn a_flipped_bit_in_what_the_database_has_is_found_by_who_reads_it() {
    let (_dir, config, files) = left_behind();
    let (flipped, committed) = (700, LAST - 100);
    let (index, at) = place_of(&files, flipped);
    flip(&files[index], (at + FRAME_HEADER + 40) as u64 * 8);
    let opened = open(&config, 2, committed);
    check(opened.recovered(), committed + 1..=LAST);
    // The database is set back under a living mounter.
    let reader = opened.journal.reader();
    let read: Vec<_> = reader.read_range(flipped - 5, Seq::MAX).collect();
    assert_eq!(read.len(), 5, "four records, and what is wrong with the fifth");
    assert!(matches!(read.last(), Some(Err(JournalError::Damaged { file, offset, seq, .. }))
            if *file == files[index] && *offset == at as u64 && *seq == flipped));
    drop((opened, reader, read));
    // A node that went down may have left anything.
    reboot(&config);
    assert_eq!(open(&config, 3, committed).cut.expect("cut").seq, flipped);
}

#[test]
fn a_flipped_bit_of_the_control_file_is_refused_or_harms_nothing() {
    let dir = scratch();
    let config = config(&dir, 64);
    let mut journal = open(&config, 1, 0).journal;
    (1..=50).for_each(|n| drop(append(&mut journal, n)));
    drop(journal);
    let path = control::path_in(&config.dir);
    let saved = fs::read(&path).expect("read");
    for bit in (0..saved.len() as u64 * 8).step_by(53) {
        flip(&path, bit);
        match Journal::open(&config, &identity(1, 0)) {
            Ok(opened) => check(opened.recovered(), 1..=50),
            Err(error) => assert!(
                matches!(error, JournalError::Damaged { .. } | JournalError::Incompatible { .. }),
                "bit {bit}: {error}"
            ),
        }
        fs::write(&path, &saved).expect("restore");
    }
}

#[test]
fn a_segment_of_the_wrong_size_is_refused() {
    let (_dir, config, files) = left_behind();
    let mut epoch = 1;
    for path in &files {
        let saved = fs::read(path).expect("read");
        for size in [0, 1, 127, 128, 4096, saved.len() - 1, saved.len() + 1, saved.len() * 2] {
            let mut bytes = saved.clone();
            bytes.resize(size, 0);
            fs::write(path, bytes).expect("write");
            epoch += 1;
            let error = refused(&config, epoch);
            assert!(matches!(&error, JournalError::Damaged { file, .. } if file == path), "{size}: {error}");
        }
        fs::write(path, saved).expect("restore");
    }
    check(open(&config, epoch + 1, 0).recovered(), 1..=LAST);
}

#[test]
fn a_missing_segment_or_control_file_is_refused_unless_the_database_has_its_records() {
    let (dir, config, files) = left_behind();
    let away = dir.path().join("away");
    for (epoch, path) in [(2, &files[1]), (3, &files[2]), (4, &control::path_in(&config.dir))] {
        fs::rename(path, &away).expect("move");
        let error = refused(&config, epoch);
        assert!(matches!(error, JournalError::Damaged { .. }), "{error}");
        fs::rename(&away, path).expect("move back");
    }
    fs::rename(&files[0], &away).expect("move");
    let first = format::word(&fs::read(&files[1]).expect("read"), 40);
    drop(
        Journal::open(&config, &identity(3, first - 1)).map(|opened| check(opened.recovered(), first..=LAST)),
    );
    let rejected = open(&config, 3, first - 2).rejected.expect("set aside");
    assert_eq!(rejected.reason, Reason::Gap { first, database: first - 2 });
}

#[test]
fn a_header_with_numbers_that_cannot_be_is_refused_though_its_checksum_is_right() {
    let (_dir, config, files) = left_behind();
    for (epoch, (at, number)) in (2..).zip([(40, 0), (40, u64::MAX), (32, 0), (32, u64::MAX)]) {
        let saved = fs::read(&files[0]).expect("read");
        let mut bytes = saved.clone();
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[8..64]);
        bytes[64..68].copy_from_slice(&crc.to_le_bytes());
        fs::write(&files[0], &bytes).expect("write");
        let error = refused(&config, epoch);
        assert!(matches!(&error, JournalError::Damaged { file, .. } if *file == files[0]), "{error}");
        fs::write(&files[0], &saved).expect("restore");
    }
    check(open(&config, 6, 0).recovered(), 1..=LAST);
}

#[test]
fn an_unfinished_file_is_no_part_of_the_journal() {
    let (_dir, config, _) = left_behind();
    for name in ["segment-00000009.new", "control.new"] {
        fs::write(config.dir.join(name), b"half").expect("write");
    }
    check(open(&config, 2, 0).recovered(), 1..=LAST);
    assert!(!config.dir.join("segment-00000009.new").exists() && !config.dir.join("control.new").exists());
}

#[test]
fn a_tail_torn_by_a_loss_of_power_is_cut_and_what_was_behind_never_comes_back() {
    for seq in [1, 2, 900, 1500, LAST] {
        let (_dir, config, files) = left_behind();
        let (index, at) = place_of(&files, seq);
        flip(&files[index], (at + FRAME_HEADER) as u64 * 8);
        reboot(&config);
        let mut opened = open(&config, 2, 0);
        let cut = opened.cut.clone().expect("cut");
        assert_eq!((cut.seq, cut.offset, cut.file), (seq, at as u64, files[index].clone()));
        assert_eq!(opened.recovered().count() as u64, seq - 1);
        assert_eq!(opened.journal.last_seq(), seq - 1);
        // The very same record again: were anything left behind it, it would fit.
        append(&mut opened.journal, seq);
        drop(opened);
        let opened = open(&config, 3, 0);
        assert_eq!(opened.cut, None);
        check(opened.recovered(), 1..=seq);
    }
}

#[test]
fn a_segment_lost_with_the_power_ends_the_journal_before_it() {
    let (_dir, config, files) = left_behind();
    let first = format::word(&fs::read(&files[1]).expect("read"), 40);
    fs::write(&files[1], vec![0; MIN_SEGMENT_BYTES as usize]).expect("write");
    reboot(&config);
    let mut opened = open(&config, 2, 0);
    check(opened.recovered(), 1..=first - 1);
    append(&mut opened.journal, first);
    drop(opened);
    check(open(&config, 3, 0).recovered(), 1..=first);
}

#[test]
fn a_record_that_was_never_acknowledged_is_cut() {
    let (_dir, config, files) = left_behind();
    let (index, at) = place_of(&files, LAST);
    let control = control::read(&config.dir).expect("control").expect("there");
    control::replace(&config.dir, &Control { last_seq: LAST - 1, ..control }).expect("control");
    flip(&files[index], (at + FRAME_HEADER) as u64 * 8);
    let opened = open(&config, 2, 0);
    assert_eq!(opened.cut.clone().expect("cut").seq, LAST);
    check(opened.recovered(), 1..=LAST - 1);
}

#[test]
fn formats_of_another_release_are_refused_by_name() {
    let (_dir, config, files) = left_behind();
    for (epoch, path) in [(2, &files[1]), (3, &control::path_in(&config.dir))] {
        flip(path, 8 * 8 + 3);
        let error = refused(&config, epoch);
        assert!(
            matches!(&error, JournalError::Incompatible { file, found: 9, oldest: 1, newest: 1 } if file == path),
            "{error}"
        );
        flip(path, 8 * 8 + 3);
    }
    check(open(&config, 3, 0).recovered(), 1..=LAST);
}

#[test]
fn a_record_of_another_release_is_refused_by_number() {
    let (_dir, config, _) = left_behind();
    let mut journal = open(&config, 2, 0).journal;
    journal.append_encoded(0, &[99], [b"payload", b""]).expect("room");
    drop(journal);
    let error = refused(&config, 3);
    assert!(matches!(error, JournalError::Undecodable { seq, .. } if seq == LAST + 1), "{error}");
}
