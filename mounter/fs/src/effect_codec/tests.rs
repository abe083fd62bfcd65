//! Round trips, and bytes of any kind.

use proptest::{collection::vec, prelude::*};

use super::*;

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn time() -> impl Strategy<Value = Time> {
    (any::<i64>(), any::<u32>()).prop_map(|(sec, nsec)| Time { sec, nsec })
}

fn inode() -> impl Strategy<Value = InodeRow> {
    let numbers = (any::<[u32; 5]>(), any::<[u64; 6]>());
    let prealloc = vec(any::<(u64, u64)>().prop_map(|(start, end)| start..end), 0..4);
    (numbers, time(), time(), time(), prealloc, bytes(40)).prop_map(
        |(
            ([mode, uid, gid, rdev, nlink], [ino, size, dir_parent, did, cut, charge]),
            atime,
            mtime,
            ctime,
            prealloc,
            target,
        )| {
            InodeRow {
                ino,
                mode,
                uid,
                gid,
                rdev,
                nlink,
                size,
                atime,
                mtime,
                ctime,
                dir_parent,
                did,
                cut,
                charge,
                prealloc,
                target,
            }
        },
    )
}

fn effect() -> impl Strategy<Value = Effect> {
    prop_oneof![
        inode().prop_map(Effect::Inode),
        any::<u64>().prop_map(Effect::RemoveInode),
        (any::<[u64; 3]>(), any::<u32>(), bytes(300)).prop_map(|([parent, ino, cookie], kind, name)| {
            Effect::Entry(EntryRow { parent, name, ino, kind, cookie })
        }),
        (any::<u64>(), bytes(300), any::<u64>()).prop_map(|(parent, name, cookie)| Effect::RemoveEntry {
            parent,
            name,
            cookie
        }),
        (any::<u64>(), proptest::option::of(bytes(300)))
            .prop_map(|(ino, value)| Effect::Xattrs { ino, value }),
        (any::<[u64; 2]>(), any::<[u32; 2]>()).prop_map(|([did, offset], [at, len])| Effect::Write {
            did,
            offset,
            at,
            len
        }),
        (any::<[u64; 3]>(), any::<bool>()).prop_map(|([did, from, to], deallocate)| Effect::Zero {
            did,
            from,
            to,
            deallocate
        }),
        any::<[u64; 2]>().prop_map(|[did, from]| Effect::Truncate { did, from }),
        any::<u64>().prop_map(Effect::RemoveData),
        (".*", ".*").prop_map(|(name, request)| Effect::Seal(Seal { name, request })),
    ]
}

pub(crate) fn record() -> impl Strategy<Value = Record> {
    let outcome = prop_oneof![
        Just(Outcome::Done),
        any::<u64>().prop_map(Outcome::Inode),
        any::<u64>().prop_map(Outcome::Count)
    ];
    (any::<[u64; 4]>(), outcome, vec(effect(), 0..5)).prop_map(
        |([unique, used_bytes, used_inodes, next_ino], outcome, effects)| Record {
            unique,
            counters: Counters { used_bytes, used_inodes, next_ino },
            outcome,
            effects: effects.into(),
        },
    )
}

fn encoded(record: &Record) -> Vec<u8> {
    let mut out = Vec::new();
    encode(record, &mut out);
    out
}

proptest! {
    #[test]
    fn a_record_reads_back_as_it_was(record in record()) {
        prop_assert_eq!(decode(&encoded(&record)), Ok(record));
    }

    #[test]
    fn a_record_cut_short_or_followed_by_something_is_an_error(record in record(), at in any::<prop::sample::Index>()) {
        let mut bytes = encoded(&record);
        let cut = at.index(bytes.len());
        prop_assert!(decode(&bytes[..cut]).is_err());
        bytes.push(0);
        prop_assert_eq!(decode(&bytes), Err(CodecError::Trailing(1)));
    }

    #[test]
    fn any_bytes_decode_or_are_an_error(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(record) = decode(&bytes) {
            prop_assert_eq!(decode(&encoded(&record)), Ok(record));
        }
    }

    #[test]
    fn a_record_with_a_changed_byte_decodes_or_is_an_error(record in record(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = encoded(&record);
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(record) = decode(&bytes) {
            prop_assert_eq!(decode(&encoded(&record)), Ok(record));
        }
    }
}

#[test]
fn unknown_tags_name_themselves() {
    assert_eq!(decode(&[2]), Err(CodecError::UnknownTag { what: "record layout", tag: 2 }));
    assert_eq!(decode(&[1, 0, 0, 0, 0, 9, 0]), Err(CodecError::UnknownTag { what: "outcome", tag: 9 }));
    assert_eq!(decode(&[1, 0, 0, 0, 0, 1, 1, 200]), Err(CodecError::UnknownTag { what: "effect", tag: 200 }));
}

#[test]
fn a_count_larger_than_what_follows_allocates_nothing() {
    let huge = [1, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    assert_eq!(decode(&huge), Err(CodecError::Short));
}

#[test]
fn the_layout_is_the_one_that_other_releases_know() {
    let record = Record {
        unique: 300,
        counters: Counters { used_bytes: 4096, used_inodes: 2, next_ino: 17 },
        outcome: Outcome::Count(5),
        effects: [
            Effect::Write { did: 16, offset: 128, at: 0, len: 5 },
            Effect::RemoveEntry { parent: 1, name: Bytes::from_static(b"a"), cookie: 9 },
        ]
        .into_iter()
        .collect(),
    };
    let bytes = [
        1, 0xac, 0x02, 0x80, 0x20, 2, 17, 3, 5, 2, // the record
        7, 16, 0x80, 0x01, 0, 5, // Write
        4, 1, 9, 1, b'a', // RemoveEntry
    ];
    assert_eq!(encoded(&record), bytes);
    assert_eq!(decode(&bytes), Ok(record));
}
