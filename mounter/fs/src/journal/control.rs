//! The file `control` of a journal: whose it is, and how far it got.
//!
//! Its identity changes by replacing the file, so that it is the old one or the new one; the last sequence number is a word
//! in mapped memory, stored after each append. A journal found by a process of the same boot must reach up to it:
//! that is how a lost or flipped last record is told from one never written.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

use tarbox_store::Fence;
use tarbox_types::{Epoch, Seq, TenantId};

use super::{
    JournalError,
    format::{FORMAT, half, word},
    segment::{Mapping, io_error},
};

const MAGIC: u64 = u64::from_le_bytes(*b"TBXJCTL\x1a");
const BYTES: usize = 4096;
/// End of what the checksum covers.
const CHECKED: usize = 96;
/// Where the last sequence number stands.
const LAST_SEQ: usize = 512;

/// Who wrote a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) tenant: u128,
    pub(super) token: u128,
    pub(super) epoch: Epoch,
}

impl Owner {
    pub(super) fn of(fence: &Fence) -> Self {
        Self { tenant: fence.tenant.0.as_u128(), token: fence.token.as_u128(), epoch: fence.epoch }
    }

    pub(super) fn tenant(&self) -> TenantId {
        TenantId(uuid::Uuid::from_u128(self.tenant))
    }
}

/// What the control file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Control {
    /// Binds the segments to this file.
    pub(super) journal: u128,
    pub(super) owner: Owner,
    /// Boot in which the records were written.
    pub(super) boot: u128,
    /// At least so far the segments reach; 0 = unknown.
    pub(super) last_seq: Seq,
}

/// The control file in use.
pub(super) struct ControlFile {
    map: Mapping,
}

impl ControlFile {
    /// Stores the last sequence number.
    pub(super) fn reach(&self, seq: Seq) {
        self.map.word(LAST_SEQ).store(seq.to_le(), Ordering::Release);
    }
}

pub(super) fn path_in(dir: &Path) -> PathBuf {
    dir.join("control")
}

/// Reads the control file; `None` where there is none.
pub(super) fn read(dir: &Path) -> Result<Option<Control>, JournalError> {
    let path = path_in(dir);
    match std::fs::read(&path) {
        Ok(bytes) => parse(&bytes, &path).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", &path)(error)),
    }
}

fn parse(bytes: &[u8], path: &Path) -> Result<Control, JournalError> {
    let damaged = |what| JournalError::Damaged { file: path.to_owned(), offset: 0, seq: 0, what };
    if bytes.len() != BYTES {
        return Err(damaged("the control file has the wrong size"));
    }
    if word(bytes, 0) != MAGIC {
        return Err(damaged("this is no control file of a journal"));
    }
    let found = half(bytes, 8);
    if !FORMAT.reads(found) {
        return Err(JournalError::incompatible(path, found));
    }
    if crc32c::crc32c(&bytes[..CHECKED]) != half(bytes, CHECKED) {
        return Err(damaged("the checksum of the control file is wrong"));
    }
    let wide = |at| u128::from(word(bytes, at)) | u128::from(word(bytes, at + 8)) << 64;
    Ok(Control {
        journal: wide(16),
        owner: Owner { tenant: wide(32), token: wide(48), epoch: word(bytes, 80) as Epoch },
        boot: wide(64),
        last_seq: word(bytes, LAST_SEQ),
    })
}

fn encode(control: &Control) -> Vec<u8> {
    let mut out = vec![0; BYTES];
    out[..8].copy_from_slice(&MAGIC.to_le_bytes());
    out[8..12].copy_from_slice(&FORMAT.written().to_le_bytes());
    out[16..32].copy_from_slice(&control.journal.to_le_bytes());
    out[32..48].copy_from_slice(&control.owner.tenant.to_le_bytes());
    out[48..64].copy_from_slice(&control.owner.token.to_le_bytes());
    out[64..80].copy_from_slice(&control.boot.to_le_bytes());
    out[80..88].copy_from_slice(&control.owner.epoch.to_le_bytes());
    let crc = crc32c::crc32c(&out[..CHECKED]);
    out[CHECKED..CHECKED + 4].copy_from_slice(&crc.to_le_bytes());
    out[LAST_SEQ..LAST_SEQ + 8].copy_from_slice(&control.last_seq.to_le_bytes());
    out
}

/// Writes the control file: the old one or the new one is there, whatever happens.
pub(super) fn replace(dir: &Path, control: &Control) -> Result<ControlFile, JournalError> {
    let (path, new) = (path_in(dir), dir.join("control.new"));
    let no_room = |source: std::io::Error| match source.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => {
            JournalError::NoRoom { dir: dir.to_owned(), bytes: BYTES as u64, source }
        }
        _ => io_error("write", &new)(source),
    };
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&new)
        .map_err(io_error("create", &new))?;
    // Written and synced whole: its page is allocated, and storing into it cannot fail.
    file.write_all(&encode(control)).and_then(|()| file.sync_all()).map_err(no_room)?;
    let map = Mapping::new(&file, BYTES).map_err(io_error("map", &new))?;
    std::fs::rename(&new, &path).map_err(io_error("rename", &new))?;
    Ok(ControlFile { map })
}

/// This boot, from the kernel; 0 where it does not say.
pub(super) fn this_boot() -> u128 {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_file_reads_back_and_any_flipped_bit_of_its_identity_is_found() {
        let control = Control {
            journal: 7 << 100,
            owner: Owner { tenant: 1 << 99, token: 2 << 98, epoch: 3 },
            boot: 4 << 97,
            last_seq: 5,
        };
        let bytes = encode(&control);
        let path = Path::new("control");
        assert_eq!(parse(&bytes, path).expect("valid"), control);
        for bit in 0..(CHECKED + 4) * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&flipped, path).is_err(), "bit {bit}");
        }
    }
}
