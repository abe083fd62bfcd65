//! Archives read back, and GNU tar reads and writes the same.

use std::{
    io::{Read, Write},
    process::{Command, Stdio},
};

use tarbox_store::Time;

use super::*;

fn member(path: &str, kind: Kind) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode: 0o644,
        uid: 1000,
        gid: 100,
        mtime: Time { sec: 1_700_000_000, nsec: 123_456_789 },
        atime: Some(Time { sec: 5, nsec: 0 }),
        xattrs: Vec::new(),
    }
}

/// Each member with its bytes; those of a file are counted up from its size.
fn all_kinds() -> Vec<Entry> {
    let long = "d".repeat(200);
    let mut special = member("dir/special", Kind::dense(3));
    special.mode = 0o4755;
    special.uid = 4_000_000_000;
    special.mtime = Time { sec: -2, nsec: 5 };
    special.xattrs = vec![(b"user.x".to_vec(), b"a\n=\0\xff".to_vec())];
    let mut root = member("", Kind::Directory);
    root.mode = 0o1777;
    vec![
        root,
        member("dir", Kind::Directory),
        special,
        member("empty", Kind::dense(0)),
        member(&format!("dir/{long}"), Kind::dense(513)),
        member("link", Kind::Symlink(long.into())),
        member("hard", Kind::HardLink(b"dir/special".to_vec())),
        member("holes", Kind::File { size: 1 << 40, data: vec![4096..8192, 1 << 30..(1 << 30) + 100] }),
        member("only-a-hole", Kind::File { size: 1 << 20, data: vec![] }),
        member("null", Kind::Character(1, 3)),
        member("disk", Kind::BlockDevice(259, 70_000)),
        member("pipe", Kind::Fifo),
        member("socket", Kind::Socket),
    ]
}

fn bytes_of(entry: &Entry) -> Vec<u8> {
    let Kind::File { size, data } = &entry.kind else { return Vec::new() };
    let length: u64 = data.iter().map(|range| range.end - range.start).sum();
    (0..length).map(|at| (at + size) as u8).collect()
}

fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for entry in entries {
        writer.begin(entry).expect("begin");
        for part in bytes_of(entry).chunks(1000) {
            writer.data(part).expect("data");
        }
    }
    writer.finish().expect("finish")
}

fn read_all(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, ArchiveError> {
    let mut reader = Reader::new(archive);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let (mut bytes, mut buffer) = (Vec::new(), [0; 700]);
        loop {
            match reader.read_data(&mut buffer)? {
                0 => break,
                count => bytes.extend_from_slice(&buffer[..count]),
            }
        }
        entries.push((entry, bytes));
    }
    Ok(entries)
}

#[test]
fn every_kind_of_member_reads_back_as_it_was() {
    let entries = all_kinds();
    let archive = archive(&entries);
    assert!(archive.len().is_multiple_of(10_240));
    for ((read, bytes), written) in read_all(&archive).expect("an archive").iter().zip(&entries) {
        assert_eq!(read, written);
        assert_eq!(*bytes, bytes_of(written), "{}", String::from_utf8_lossy(&written.path));
    }
    assert_eq!(read_all(&archive).expect("an archive").len(), entries.len());
}

#[test]
fn members_that_nobody_reads_are_passed_over() {
    let entries = all_kinds();
    let archive = archive(&entries);
    let mut reader = Reader::new(archive.as_slice());
    let mut count = 0;
    while reader.next_entry().expect("a member").is_some() {
        count += 1;
    }
    assert_eq!(count, entries.len());
    assert_eq!(reader.offset(), archive.len() as u64);
}

#[test]
fn an_archive_cut_anywhere_is_an_error() {
    let archive = archive(&all_kinds()[..5]);
    let last = archive.iter().rposition(|byte| *byte != 0).expect("content");
    let end = (last + 1).next_multiple_of(BLOCK) + BLOCK;
    for cut in (0..end).step_by(97).chain([end - 1, end - BLOCK]) {
        let error = read_all(&archive[..cut]).expect_err("cut");
        assert!(matches!(error, ArchiveError::Format { .. } | ArchiveError::Io(_)), "cut at {cut}: {error}");
    }
    assert_eq!(read_all(&archive[..end]).expect("whole").len(), 5);
}

#[test]
fn a_flipped_bit_in_a_header_is_noticed() {
    let mut archive = archive(&[member("file", Kind::dense(3))]);
    archive[3] ^= 1;
    assert!(read_all(&archive).expect_err("damaged").to_string().contains("checksum"));
    assert!(read_all(b"hello").is_err());
    assert!(read_all(b"").is_err());
}

#[test]
fn a_name_that_leads_out_of_the_tenant_is_refused() {
    for path in ["../etc/passwd", "a/../../b", "/.."] {
        let archive = archive(&[member(path, Kind::dense(1))]);
        assert!(matches!(read_all(&archive), Err(ArchiveError::Outside(_))), "{path}");
    }
    let absolute = archive(&[member("/etc//./passwd", Kind::dense(1))]);
    assert_eq!(read_all(&absolute).expect("an archive")[0].0.path, b"etc/passwd");
}

fn tar(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("tar")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("GNU tar is there");
    let mut stdin = child.stdin.take().expect("stdin");
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let mut output = Vec::new();
    child.stdout.take().expect("stdout").read_to_end(&mut output).expect("output");
    assert!(child.wait().expect("tar").success(), "tar {arguments:?}");
    feeder.join().expect("feeder").expect("input");
    output
}

#[test]
fn gnu_tar_lists_what_we_write() {
    let listing =
        String::from_utf8(tar(&["--list", "--verbose", "--numeric-owner", "-f-"], &archive(&all_kinds())));
    let listing = listing.expect("text");
    for expected in [
        "-rwsr-xr-x 4000000000/100",
        "1099511627776",
        "crw-r--r-- 1000/100",
        "1,3",
        "259,70000",
        "hard link to dir/special",
        "prw-",
    ] {
        assert!(listing.contains(expected), "`{expected}` is not in:\n{listing}");
    }
}

#[test]
fn we_read_every_format_that_gnu_tar_writes() {
    use std::os::unix::fs::FileExt;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = directory.path();
    let name = "n".repeat(150);
    std::fs::write(at.join(&name), b"content").expect("write");
    let sparse = std::fs::File::create(at.join("sparse")).expect("create");
    sparse.set_len(10 << 20).expect("grow");
    for n in 0..40 {
        sparse.write_all_at(&[n; 4096], u64::from(n) * (200 << 10)).expect("write");
    }
    sparse.sync_all().expect("sync: holes are known only then");
    let root = at.to_str().expect("utf-8");
    let formats: [&[&str]; 4] = [
        &["--format=gnu"],
        &["--format=posix", "--sparse-version=1.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=0.0"],
    ];
    for format in formats {
        let arguments = [format, &["--create", "--sparse", "-f-", "-C", root, "."]].concat();
        let entries = read_all(&tar(&arguments, &[])).expect("an archive");
        let find =
            |path: &str| entries.iter().find(|(entry, _)| entry.path == path.as_bytes()).expect("member");
        assert_eq!(find(&name).1, b"content", "{format:?}");
        let (entry, bytes) = find("sparse");
        let Kind::File { size, data } = &entry.kind else { panic!("{entry:?}") };
        assert_eq!((*size, data.len()), (10 << 20, 40), "{format:?}");
        assert_eq!(data[3], 3 * (200 << 10)..3 * (200 << 10) + 4096);
        assert_eq!(bytes[3 * 4096], 3);
    }
}
