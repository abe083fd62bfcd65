//! Lengths and places are the kernel's (`sizeof` in `linux/fuse.h`); no list of names outgrows what was asked for.

use std::ffi::OsString;

use fuse3::Timestamp;
use proptest::prelude::*;

use super::*;

fn attr(ino: u64) -> FileAttr {
    let time = Timestamp::new(-1, 5);
    FileAttr {
        ino,
        size: 10,
        blocks: 1,
        atime: time,
        mtime: time,
        ctime: time,
        kind: FileType::RegularFile,
        perm: 0o644,
        nlink: 3,
        uid: 1,
        gid: 2,
        rdev: 0,
        blksize: 4096,
    }
}

fn encoded(reply: Reply) -> Vec<u8> {
    let encoded = Encoded::new(99, Ok(reply));
    [encoded.head(), encoded.body()].concat()
}

#[test]
fn every_reply_has_the_length_of_its_structure_and_says_so() {
    let ttl = Duration::new(1, 2);
    let entry = ReplyEntry { ttl, attr: attr(5), generation: 1 };
    let created = ReplyCreated { ttl, attr: attr(5), generation: 1, fh: 7, flags: 0 };
    let statfs =
        ReplyStatFs { blocks: 1, bfree: 2, bavail: 3, files: 4, ffree: 5, bsize: 6, namelen: 7, frsize: 8 };
    let init = InitOut {
        minor: 45,
        max_readahead: 1,
        flags: 3 << 31,
        max_background: 4,
        congestion_threshold: 5,
        max_write: 6,
        time_gran: 1,
        max_pages: 7,
    };
    let replies: [(Reply, usize); 14] = [
        (Reply::Empty, 0),
        (entry.into(), 128),
        (ReplyAttr { ttl, attr: attr(5) }.into(), 104),
        (created.into(), 144),
        (ReplyOpen { fh: 1, flags: 2 }.into(), 16),
        (ReplyData { data: Bytes::from_static(b"12345") }.into(), 5),
        (ReplyWrite { written: 1 }.into(), 8),
        (statfs.into(), 80),
        (ReplyXAttr::Size(7).into(), 8),
        (ReplyLock { start: 0, end: 1, r#type: 2, pid: 3 }.into(), 24),
        (ReplyBmap { block: 1 }.into(), 8),
        (ReplyLSeek { offset: 1 }.into(), 8),
        (Reply::Copied(1), 8),
        (Reply::Init(init), abi::INIT_OUT_SIZE),
    ];
    for (reply, length) in replies {
        let name = format!("{reply:?}");
        let bytes = encoded(reply);
        assert_eq!(bytes.len(), OUT_HEADER_SIZE + length, "{name}");
        assert_eq!(bytes[0..4], (bytes.len() as u32).to_ne_bytes(), "{name}");
        assert_eq!(bytes[8..16], 99_u64.to_ne_bytes(), "{name}");
    }
}

#[test]
fn attributes_stand_where_the_kernel_reads_them() {
    let bytes = encoded(ReplyAttr { ttl: Duration::new(8, 9), attr: attr(5) }.into());
    let u64_at = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
    let u32_at = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((u64_at(16), u32_at(24)), (8, 9));
    assert_eq!((u64_at(32), u64_at(40), u64_at(56) as i64), (5, 10, -1));
    assert_eq!((u32_at(80), u32_at(92), u32_at(96), u32_at(100)), (5, 0o100_644, 3, 1));
}

#[test]
fn an_errno_that_the_kernel_would_refuse_becomes_eio() {
    for (given, sent) in [(libc::ENOENT, libc::ENOENT), (0, libc::EIO), (-5, libc::EIO), (512, libc::EIO)] {
        let encoded = Encoded::new(1, Err(given.into()));
        assert_eq!(encoded.error(), -sent);
        assert_eq!(encoded.total(), OUT_HEADER_SIZE);
    }
}

proptest! {
    #[test]
    fn a_list_takes_what_fits_and_never_more(
        names in proptest::collection::vec("[a-z]{1,255}", 1..40),
        limit in 0_u32..8192,
        plus: bool,
    ) {
        let mut list = EntryList::new(limit);
        let mut expected = 0;
        for (offset, name) in names.iter().enumerate() {
            let (name, kind, offset) = (OsString::from(name), FileType::RegularFile, offset as i64);
            let fixed = if plus { 152 } else { 24 };
            let fits = expected + (fixed + name.len()).div_ceil(8) * 8 <= limit as usize;
            let pushed = if plus {
                let (entry_ttl, attr_ttl) = (Duration::ZERO, Duration::ZERO);
                let attr = attr(1);
                list.push_plus(&DirectoryEntryPlus { inode: 1, generation: 0, kind, name: name.clone(), offset, attr, entry_ttl, attr_ttl })
            } else {
                list.push(&DirectoryEntry { inode: 1, kind, name: name.clone(), offset })
            };
            prop_assert_eq!(pushed, fits);
            if !pushed {
                break;
            }
            expected += (fixed + name.len()).div_ceil(8) * 8;
        }
        prop_assert_eq!(list.into_bytes().len(), expected);
    }
}
