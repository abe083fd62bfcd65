//! Journal files with anything done to them: the start is refused and changes nothing, or what is recovered can be read,
//! is in order without a hole, and is appended to.
//!
//! Input: the first byte chooses. 0 = the rest is a record's bytes. Else edits of four bytes each, `file, offset (2), value`,
//! on a small valid journal; with bit 7 of the file the checksums are made right again afterwards.
#![no_main]

use std::{fs, path::PathBuf, sync::OnceLock};

use libfuzzer_sys::fuzz_target;
use tarbox_fs::{
    effect::{Counters, Effect, Outcome, Record},
    effect_codec,
    journal::{Identity, Journal, JournalConfig, MIN_SEGMENT_BYTES},
};
use tarbox_store::Fence;
use tarbox_types::{SessionId, TenantId};
use uuid::Uuid;

const HEADER: usize = 128;
const SEGMENT: usize = 4096;

fuzz_target!(|input: &[u8]| {
    match input {
        [] => {}
        [0, rest @ ..] => record(rest),
        [_, edits @ ..] => journal(edits),
    }
});

fn record(bytes: &[u8]) {
    let Ok(record) = effect_codec::decode(bytes) else { return };
    let mut again = Vec::new();
    effect_codec::encode(&record, &mut again);
    assert_eq!(effect_codec::decode(&again), Ok(record));
}

/// Control file and two segments of ten records each.
struct Image {
    config: JournalConfig,
    identity: Identity,
    files: [(PathBuf, Vec<u8>); 3],
}

fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let dir = PathBuf::from(format!("/dev/shm/tarbox-fuzz-{}/journal", std::process::id()));
        let config = JournalConfig { dir: dir.clone(), segment_bytes: MIN_SEGMENT_BYTES, max_bytes: 8 << 20 };
        let tenant = TenantId(Uuid::from_u128(1));
        let fence = Fence { tenant, session: SessionId(Uuid::nil()), epoch: 1, token: Uuid::from_u128(2) };
        let identity = Identity { fence: fence.clone(), committed_epoch: fence.epoch, previous: fence, seq: 0 };
        let mut journal = Journal::open(&config, &identity).expect("open").journal;
        (0..20).for_each(|n| drop(journal.append(&sample(n), &[n as u8; 20]).expect("room")));
        drop(journal);
        let whole = fs::read(dir.join("segment-00000001")).expect("read");
        let half = (0..10).fold(HEADER, |at, _| next(&whole, at));
        let mut first = whole[..SEGMENT].to_vec();
        first[half..].fill(0);
        let mut second = vec![0; SEGMENT];
        second[..HEADER].copy_from_slice(&whole[..HEADER]);
        second[HEADER..HEADER + SEGMENT - half].copy_from_slice(&whole[half..SEGMENT]);
        second[32] = 2;
        second[40] = 11;
        second[56] ^= 1;
        for segment in [&mut first, &mut second] {
            segment[48..56].copy_from_slice(&(SEGMENT as u64).to_le_bytes());
            repair(segment);
        }
        let control = fs::read(dir.join("control")).expect("read");
        let files = [("segment-00000001", first), ("segment-00000002", second), ("control", control)];
        let image = Image { config, identity, files: files.map(|(name, bytes)| (dir.join(name), bytes)) };
        restore(&image);
        let opened = Journal::open(&image.config, &image.identity).expect("the image is valid");
        assert_eq!(opened.replay, (0, 20));
        drop(opened);
        image
    })
}

fn sample(n: u64) -> Record {
    let effects = [Effect::Truncate { did: n, from: 0 }, Effect::Write { did: n, offset: 0, at: 0, len: 20 }];
    let counters = Counters { used_bytes: n, used_inodes: n, next_ino: n };
    Record { unique: n, counters, outcome: Outcome::Done, effects: effects.into_iter().collect() }
}

fn restore(image: &Image) {
    let parent = image.config.dir.parent().expect("a parent");
    let _ = fs::remove_dir_all(parent);
    fs::create_dir_all(&image.config.dir).expect("create");
    for (path, bytes) in &image.files {
        fs::write(path, bytes).expect("write");
    }
}

fn number(bytes: &[u8], at: usize) -> usize {
    let word: [u8; 4] = bytes[at..at + 4].try_into().expect("four bytes");
    u32::from_le_bytes(word) as usize
}

fn next(bytes: &[u8], at: usize) -> usize {
    (at + number(bytes, at)).next_multiple_of(8)
}

/// Makes the checksums of a segment right.
fn repair(bytes: &mut [u8]) {
    if bytes.len() < HEADER {
        return;
    }
    let crc = crc32c::crc32c(&bytes[8..64]);
    bytes[64..68].copy_from_slice(&crc.to_le_bytes());
    let salt = crc32c::crc32c(&bytes[56..64]);
    let mut at = HEADER;
    while at + 32 <= bytes.len() && number(bytes, at) >= 32 && at + number(bytes, at) <= bytes.len() {
        let end = at + number(bytes, at);
        let crc =
            crc32c::crc32c_append(crc32c::crc32c_append(salt, &bytes[at + 8..at + 24]), &bytes[at + 32..end]);
        bytes[at + 24..at + 28].copy_from_slice(&crc.to_le_bytes());
        at = next(bytes, at);
    }
}

fn journal(edits: &[u8]) {
    let image = image();
    restore(image);
    let mut files = image.files.clone();
    let mut repairs = false;
    for edit in edits.chunks_exact(4) {
        let offset = usize::from(u16::from_le_bytes([edit[1], edit[2]]));
        let bytes = &mut files[usize::from(edit[0] & 0x7f) % 3].1;
        repairs |= edit[0] & 0x80 != 0;
        match edit[0] & 0x60 {
            0x60 => bytes.truncate(offset),
            _ if bytes.is_empty() => {}
            _ => {
                let at = offset % bytes.len();
                bytes[at] = edit[3];
            }
        }
    }
    if repairs {
        repair(&mut files[0].1);
        repair(&mut files[1].1);
    }
    for (path, bytes) in &files {
        fs::write(path, bytes).expect("write");
    }
    match Journal::open(&image.config, &image.identity) {
        Err(_) => {
            for (path, bytes) in &files[..2] {
                assert!(fs::read(path).expect("still there") == *bytes, "a refused start changed {path:?}");
            }
        }
        Ok(mut opened) => {
            let (after, to) = opened.replay;
            let mut expected = after + 1;
            for item in opened.recovered() {
                let item = item.expect("verified at the start");
                assert_eq!(item.seq, expected);
                assert!(item.payload.as_slice().len() < SEGMENT);
                expected += 1;
            }
            assert_eq!(expected, to + 1);
            let appended = opened.journal.append(&sample(to), b"more").expect("room");
            assert_eq!(appended.seq, to + 1);
            drop((opened, appended));
            let opened = Journal::open(&image.config, &image.identity).expect("what was opened once");
            assert_eq!(opened.replay, (after, to + 1));
        }
    }
}
