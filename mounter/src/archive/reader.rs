//! Reading an archive: ustar, PAX, GNU long names, and all of GNU's sparse formats.

use std::{
    io::{self, Read},
    ops::Range,
};

use tar::{EntryType, GnuExtSparseHeader, Header};
use tarbox_store::Time;

use super::{ArchiveError, BLOCK, Entry, Kind, pax, sparse};

/// Longest extended header: no file system's names and attributes come near it.
const EXTENDED_MAX: u64 = 64 << 20;

/// Reads members one after the other.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    offset: u64,
    /// Bytes of the present member's data that have not been read.
    left: u64,
    /// Bytes up to the next header after them.
    padding: u64,
    /// Members of types that are not known, and were left out.
    skipped: Vec<String>,
}

/// What extended headers say of the member that follows.
#[derive(Debug, Default)]
struct Extended {
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Extended {
    /// A later record replaces an earlier one.
    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.records.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_slice())
    }

    fn number(&self, key: &[u8]) -> Option<u64> {
        pax::number(self.get(key)?)
    }

    fn set(&mut self, key: &[u8], value: Vec<u8>) {
        self.records.push((key.to_vec(), value));
    }
}

impl<R: Read> Reader<R> {
    /// Reads from the beginning of an archive.
    pub fn new(input: R) -> Self {
        Self { input, offset: 0, left: 0, padding: 0, skipped: Vec::new() }
    }

    /// Bytes read so far.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Members of unknown types, which were left out.
    #[must_use]
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// The next member; what was not read of the one before is passed over. `None` at the end.
    ///
    /// # Errors
    /// Where the stream breaks off or is not an archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut extended = Extended::default();
        loop {
            self.pass(self.left + self.padding)?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size().map_err(|error| self.format(error.to_string()))?;
            self.left = size;
            self.padding = size.next_multiple_of(BLOCK as u64) - size;
            match header.entry_type() {
                EntryType::XHeader => self.take_records(&mut extended)?,
                // Defaults for the whole archive: nothing of them concerns a file system.
                EntryType::XGlobalHeader => {}
                EntryType::GNULongName => {
                    let name = self.take_string()?;
                    extended.set(b"path", name);
                }
                EntryType::GNULongLink => {
                    let target = self.take_string()?;
                    extended.set(b"linkpath", target);
                }
                _ => {
                    if let Some(entry) = self.entry(&header, &extended)? {
                        return Ok(Some(entry));
                    }
                    extended = Extended::default();
                }
            }
        }
    }

    /// Reads bytes of the present member's data; 0 at its end.
    ///
    /// # Errors
    /// Where the stream breaks off.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.input.read(&mut buffer[..most])?;
        if count == 0 && most > 0 {
            return Err(self.format("it breaks off".to_owned()));
        }
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }

    // === Headers ===

    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let mut header = Header::new_old();
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut header.as_mut_bytes()[filled..])? {
                // At a member's end, too: without the empty block nobody knows that it is the last.
                0 => return Err(self.format("it breaks off".to_owned())),
                count => filled += count,
            }
        }
        self.offset += BLOCK as u64;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            // So that a program that writes to us does not die of a closed pipe.
            self.offset += io::copy(&mut self.input, &mut io::sink())?;
            return Ok(None);
        }
        let sum: u32 =
            header.as_bytes().iter().enumerate().fold(0, |sum, (at, byte)| {
                sum + u32::from(if (148..156).contains(&at) { b' ' } else { *byte })
            });
        match header.cksum() {
            Ok(expected) if expected == sum => Ok(Some(header)),
            _ => Err(self.format("the checksum of a header does not match".to_owned())),
        }
    }

    fn take_records(&mut self, extended: &mut Extended) -> Result<(), ArchiveError> {
        let body = self.take_body()?;
        let Some(records) = pax::parse(&body) else {
            return Err(self.format("an extended header is malformed".to_owned()));
        };
        extended.records.extend(records.into_iter().map(|(key, value)| (key.to_vec(), value.to_vec())));
        Ok(())
    }

    fn take_string(&mut self) -> Result<Vec<u8>, ArchiveError> {
        let mut body = self.take_body()?;
        if let Some(end) = body.iter().position(|byte| *byte == 0) {
            body.truncate(end);
        }
        Ok(body)
    }

    fn take_body(&mut self) -> Result<Vec<u8>, ArchiveError> {
        if self.left > EXTENDED_MAX {
            return Err(self.format(format!("an extended header of {} bytes", self.left)));
        }
        let mut body = vec![0; self.left as usize];
        self.input.read_exact(&mut body)?;
        self.offset += self.left;
        self.left = 0;
        Ok(body)
    }

    // === Members ===

    fn entry(&mut self, header: &Header, extended: &Extended) -> Result<Option<Entry>, ArchiveError> {
        if let Some(size) = extended.number(b"size") {
            self.left = size;
            self.padding = size.next_multiple_of(BLOCK as u64) - size;
        }
        let name = extended.get(b"GNU.sparse.name").or_else(|| extended.get(b"path"));
        let path = clean(name.unwrap_or(&header.path_bytes()))?;
        let Some(kind) = self.kind(header, extended)? else {
            self.skipped.push(String::from_utf8_lossy(&path).into_owned());
            return Ok(None);
        };
        let id = |key: &[u8], field: io::Result<u64>| {
            let id = extended.number(key).map_or(field, Ok).ok();
            id.and_then(|id| u32::try_from(id).ok())
        };
        let (Some(uid), Some(gid)) = (id(b"uid", header.uid()), id(b"gid", header.gid())) else {
            return Err(self.format("an owner is not a number of 32 bits".to_owned()));
        };
        let seconds = header.mtime().ok().and_then(|sec| i64::try_from(sec).ok()).unwrap_or(0);
        let time = |key: &[u8]| extended.get(key).and_then(pax::parse_time);
        Ok(Some(Entry {
            path,
            kind,
            mode: header.mode().map_err(|error| self.format(error.to_string()))? & 0o7777,
            uid,
            gid,
            mtime: time(b"mtime").unwrap_or(Time { sec: seconds, nsec: 0 }),
            atime: time(b"atime"),
            xattrs: xattrs(extended),
        }))
    }

    fn kind(&mut self, header: &Header, extended: &Extended) -> Result<Option<Kind>, ArchiveError> {
        let device = |number: io::Result<Option<u32>>| number.ok().flatten().unwrap_or(0);
        let devices = (device(header.device_major()), device(header.device_minor()));
        let target = || {
            extended.get(b"linkpath").map_or_else(
                || header.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default(),
                <[u8]>::to_vec,
            )
        };
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => {
                if extended.get(b"TARBOX.type") == Some(b"socket") {
                    Kind::Socket
                } else if header.entry_type() == EntryType::Regular && header.path_bytes().ends_with(b"/") {
                    // So did archives before POSIX write directories.
                    Kind::Directory
                } else {
                    self.file(extended)?
                }
            }
            EntryType::GNUSparse => self.old_sparse_file(header)?,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(target()),
            EntryType::Link => Kind::HardLink(clean(&target())?),
            EntryType::Char => Kind::Character(devices.0, devices.1),
            EntryType::Block => Kind::BlockDevice(devices.0, devices.1),
            EntryType::Fifo => Kind::Fifo,
            _ => return Ok(None),
        };
        Ok(Some(kind))
    }

    fn file(&mut self, extended: &Extended) -> Result<Kind, ArchiveError> {
        if extended.get(b"GNU.sparse.major") == Some(b"1") {
            let size = extended.number(b"GNU.sparse.realsize").unwrap_or(0);
            let (map, taken) = sparse::decode(&mut (&mut self.input).take(self.left))?;
            self.offset += taken;
            self.left -= taken;
            return self.sparse_file(size, &map);
        }
        let Some(size) = extended.number(b"GNU.sparse.size") else { return Ok(Kind::dense(self.left)) };
        let map = early_map(extended).ok_or_else(|| self.format("a sparse map is malformed".to_owned()))?;
        self.sparse_file(size, &map)
    }

    fn old_sparse_file(&mut self, header: &Header) -> Result<Kind, ArchiveError> {
        let malformed = |error: io::Error| ArchiveError::Format { offset: 0, reason: error.to_string() };
        let Some(gnu) = header.as_gnu() else {
            return Err(self.format("a sparse file without GNU's header".to_owned()));
        };
        let mut map = Vec::new();
        for part in gnu.sparse.iter().filter(|part| !part.is_empty()) {
            map.push((part.offset().map_err(malformed)?, part.length().map_err(malformed)?));
        }
        let size = gnu.real_size().map_err(malformed)?;
        let mut more = gnu.is_extended();
        while more {
            let mut extension = GnuExtSparseHeader::new();
            self.input.read_exact(extension.as_mut_bytes())?;
            self.offset += BLOCK as u64;
            for part in extension.sparse().iter().filter(|part| !part.is_empty()) {
                map.push((part.offset().map_err(malformed)?, part.length().map_err(malformed)?));
            }
            more = extension.is_extended();
        }
        self.sparse_file(size, &map)
    }

    fn sparse_file(&self, size: u64, map: &[(u64, u64)]) -> Result<Kind, ArchiveError> {
        let stored = |data: &Vec<Range<u64>>| data.iter().map(|range| range.end - range.start).sum::<u64>();
        match sparse::ranges(map, size) {
            Some(data) if stored(&data) == self.left => Ok(Kind::File { size, data }),
            _ => Err(self.format("a sparse map does not fit its file".to_owned())),
        }
    }

    fn pass(&mut self, bytes: u64) -> Result<(), ArchiveError> {
        let passed = io::copy(&mut (&mut self.input).take(bytes), &mut io::sink())?;
        self.offset += passed;
        (self.left, self.padding) = (0, 0);
        if passed < bytes { Err(self.format("it breaks off".to_owned())) } else { Ok(()) }
    }

    fn format(&self, reason: String) -> ArchiveError {
        ArchiveError::Format { offset: self.offset, reason }
    }
}

/// The maps of GNU's formats 0.1 (one list) and 0.0 (a record for each number).
fn early_map(extended: &Extended) -> Option<Vec<(u64, u64)>> {
    let numbers: Vec<u64> = match extended.get(b"GNU.sparse.map") {
        Some(list) => list.split(|byte| *byte == b',').map(pax::number).collect::<Option<_>>()?,
        None => {
            let keys = [&b"GNU.sparse.offset"[..], b"GNU.sparse.numbytes"];
            let records = extended.records.iter().filter(|(key, _)| keys.contains(&key.as_slice()));
            records.map(|(_, value)| pax::number(value)).collect::<Option<_>>()?
        }
    };
    let pairs = numbers.chunks_exact(2);
    pairs.remainder().is_empty().then(|| pairs.map(|pair| (pair[0], pair[1])).collect())
}

fn xattrs(extended: &Extended) -> Vec<(Vec<u8>, Vec<u8>)> {
    let attributes = extended
        .records
        .iter()
        .filter_map(|(key, value)| Some((pax::unescape(key.strip_prefix(b"SCHILY.xattr.")?), value.clone())));
    attributes.collect()
}

/// The path relative to the root, without `.` and empty parts.
fn clean(path: &[u8]) -> Result<Vec<u8>, ArchiveError> {
    let parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.contains(&&b".."[..]) {
        return Err(ArchiveError::Outside(String::from_utf8_lossy(path).into_owned()));
    }
    Ok(parts.join(&b'/'))
}
