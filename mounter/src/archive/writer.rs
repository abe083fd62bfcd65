//! Writing an archive.

use std::io::{self, Write};

use tar::{EntryType, Header};

use super::{BLOCK, Entry, Kind, pax, sparse};

/// GNU tar writes records of so many bytes; the end is padded to one.
const RECORD: u64 = 20 * BLOCK as u64;
/// Largest values of the octal fields of a header: beyond them a PAX record says it.
const SIZE_MAX: u64 = 0o777_7777_7777;
const ID_MAX: u32 = 0o777_7777;

/// Writes members one after the other.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
    written: u64,
    /// Bytes of the present member that are still to come.
    missing: u64,
}

impl<W: Write> Writer<W> {
    /// An archive without members.
    pub fn new(output: W) -> Self {
        Self { output, written: 0, missing: 0 }
    }

    /// Bytes written so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Begins a member. Of a file, the bytes of its data ranges follow through [`Self::data`].
    ///
    /// # Errors
    /// As write(2).
    pub fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        debug_assert_eq!(self.missing, 0, "the member before is complete");
        let mut records = Vec::new();
        let mut header = Header::new_ustar();
        let path = full_path(entry);
        let map = self.describe(entry, &path, &mut header, &mut records);
        if !records.is_empty() {
            self.extended_header(&records)?;
        }
        header.set_cksum();
        self.put(header.as_bytes())?;
        self.put(&map)
    }

    /// Fills in the header, with what does not fit as records; returns the sparse map.
    fn describe(
        &mut self,
        entry: &Entry,
        path: &[u8],
        header: &mut Header,
        records: &mut Vec<u8>,
    ) -> Vec<u8> {
        header.set_mode(entry.mode & 0o7777);
        set_id(header, entry.uid, Header::set_uid, b"uid", records);
        set_id(header, entry.gid, Header::set_gid, b"gid", records);
        header.set_mtime(u64::try_from(entry.mtime.sec).unwrap_or(0).min(SIZE_MAX));
        if entry.mtime.nsec != 0 || !(0..=SIZE_MAX.cast_signed()).contains(&entry.mtime.sec) {
            pax::put(records, b"mtime", pax::format_time(entry.mtime).as_bytes());
        }
        if let Some(atime) = entry.atime {
            pax::put(records, b"atime", pax::format_time(atime).as_bytes());
        }
        for (name, value) in &entry.xattrs {
            pax::put(records, &[b"SCHILY.xattr.", pax::escape(name).as_slice()].concat(), value);
        }
        let map = describe_kind(&entry.kind, path, header, records);
        self.missing = stored(&entry.kind);
        let length = map.len() as u64 + self.missing;
        header.set_size(length.min(SIZE_MAX));
        if length > SIZE_MAX {
            pax::put(records, b"size", length.to_string().as_bytes());
        }
        set_name(header, if map.is_empty() { path } else { b"GNUSparseFile.0/sparse" }, records);
        map
    }

    fn extended_header(&mut self, records: &[u8]) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        name_field(&mut header).copy_from_slice_padded(b"PaxHeaders/entry");
        header.set_mode(0o644);
        header.set_size(records.len() as u64);
        header.set_cksum();
        self.put(header.as_bytes())?;
        self.put(records)?;
        self.pad()
    }

    /// Some of the present member's bytes.
    ///
    /// # Errors
    /// As write(2).
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.missing = self
            .missing
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| io::Error::other("more bytes than the member has"))?;
        self.put(bytes)?;
        if self.missing == 0 { self.pad() } else { Ok(()) }
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// As write(2).
    pub fn finish(mut self) -> io::Result<W> {
        self.put(&[0; 2 * BLOCK])?;
        let rest = self.written.next_multiple_of(RECORD) - self.written;
        self.put(&vec![0; rest as usize])?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self) -> io::Result<()> {
        let rest = self.written.next_multiple_of(BLOCK as u64) - self.written;
        self.put(&[0; BLOCK][..rest as usize])
    }
}

fn full_path(entry: &Entry) -> Vec<u8> {
    match (entry.path.is_empty(), &entry.kind) {
        (true, _) => b"./".to_vec(),
        (false, Kind::Directory) => [&entry.path, &b"/"[..]].concat(),
        (false, _) => entry.path.clone(),
    }
}

/// Bytes of the member's data.
fn stored(kind: &Kind) -> u64 {
    match kind {
        Kind::File { data, .. } => data.iter().map(|range| range.end - range.start).sum(),
        _ => 0,
    }
}

fn describe_kind(kind: &Kind, path: &[u8], header: &mut Header, records: &mut Vec<u8>) -> Vec<u8> {
    let kind_flag = match kind {
        Kind::File { .. } | Kind::Socket => EntryType::Regular,
        Kind::Directory => EntryType::Directory,
        Kind::Symlink(_) => EntryType::Symlink,
        Kind::HardLink(_) => EntryType::Link,
        Kind::Character(..) => EntryType::Char,
        Kind::BlockDevice(..) => EntryType::Block,
        Kind::Fifo => EntryType::Fifo,
    };
    header.set_entry_type(kind_flag);
    match kind {
        Kind::File { size, data } if *data != Kind::dense_data(*size) => {
            for (key, value) in [("major", "1"), ("minor", "0"), ("realsize", &size.to_string())] {
                pax::put(records, format!("GNU.sparse.{key}").as_bytes(), value.as_bytes());
            }
            pax::put(records, b"GNU.sparse.name", path);
            return sparse::encode(*size, data);
        }
        Kind::Symlink(target) | Kind::HardLink(target) => set_target(header, target, records),
        Kind::Character(major, minor) | Kind::BlockDevice(major, minor) => {
            if let Some(ustar) = header.as_ustar_mut() {
                ustar.set_device_major(*major);
                ustar.set_device_minor(*minor);
            }
        }
        Kind::Socket => pax::put(records, b"TARBOX.type", b"socket"),
        Kind::File { .. } | Kind::Directory | Kind::Fifo => {}
    }
    Vec::new()
}

fn set_id(header: &mut Header, id: u32, set: fn(&mut Header, u64), key: &[u8], records: &mut Vec<u8>) {
    set(header, id.min(ID_MAX).into());
    if id > ID_MAX {
        pax::put(records, key, id.to_string().as_bytes());
    }
}

fn set_name(header: &mut Header, path: &[u8], records: &mut Vec<u8>) {
    if !name_field(header).copy_from_slice_padded(path) {
        pax::put(records, b"path", path);
    }
}

fn set_target(header: &mut Header, target: &[u8], records: &mut Vec<u8>) {
    if !header.as_old_mut().linkname.as_mut_slice().copy_from_slice_padded(target) {
        pax::put(records, b"linkpath", target);
    }
}

fn name_field(header: &mut Header) -> &mut [u8] {
    &mut header.as_old_mut().name
}

trait CopyPadded {
    /// Copies as much as fits; whether all did.
    fn copy_from_slice_padded(&mut self, bytes: &[u8]) -> bool;
}

impl CopyPadded for [u8] {
    fn copy_from_slice_padded(&mut self, bytes: &[u8]) -> bool {
        let length = bytes.len().min(self.len());
        self[..length].copy_from_slice(&bytes[..length]);
        length == bytes.len()
    }
}
