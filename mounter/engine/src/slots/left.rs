//! A look at a slots file that nobody serves: whose it is, and what was left in it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use tarbox_types::Connection;

use super::{NONCE_OFFSET, PAGE, SLOT_HEADER, Sizes, saved};
use crate::abi::{IN_HEADER_SIZE, UNIQUE_RESEND, opcode as op};
use crate::opcode;

/// The connection that a slots file belongs to, with the requests in it that are not marked as done.
///
/// The caller has made sure that nobody serves it any more.
///
/// # Errors
/// Those of `pread(2)`, and where it is no slots file.
pub fn connection(slots: &impl AsFd) -> io::Result<Connection> {
    let file = File::from(slots.as_fd().try_clone_to_owned()?);
    let sizes = Sizes::read(&file)?;
    let mut nonce = [0; 8];
    file.read_exact_at(&mut nonce, NONCE_OFFSET as u64)?;
    let mut left = Vec::new();
    for_each_used(&file, &sizes, |index| {
        let (offset, length) = sizes.place(index);
        left.extend(request_in(&file, offset, length)?);
        Ok(())
    })?;
    left.sort_unstable();
    left.dedup();
    Ok(Connection { nonce: u64::from_ne_bytes(nonce), left })
}

/// Whether INIT has been answered on the connection of a slots file: whoever serves it then goes on.
///
/// # Errors
/// As [`connection`].
pub fn is_agreed(slots: &impl AsFd) -> io::Result<bool> {
    let file = File::from(slots.as_fd().try_clone_to_owned()?);
    Sizes::read(&file)?;
    let mut bytes = [0; saved::LENGTH];
    file.read_exact_at(&mut bytes, saved::OFFSET as u64)?;
    Ok(saved::read(&bytes).is_some())
}

/// Calls `found` for each slot whose header has memory. Most slots are holes.
pub(super) fn for_each_used(
    file: &File,
    sizes: &Sizes,
    mut found: impl FnMut(usize) -> io::Result<()>,
) -> io::Result<()> {
    let mut data = 0;
    for index in 0..sizes.count() {
        let (offset, _) = sizes.place(index);
        if offset >= data {
            data = next_data(file, offset)?;
        }
        if data < offset + PAGE {
            found(index)?;
        }
    }
    Ok(())
}

fn next_data(file: &File, from: usize) -> io::Result<usize> {
    match lseek(file, from as i64, Whence::SeekData) {
        Ok(at) => Ok(at as usize),
        Err(Errno::ENXIO) => Ok(usize::MAX),
        Err(errno) => Err(errno.into()),
    }
}

/// The `unique` of a request that was read and not marked as done.
fn request_in(file: &File, offset: usize, length: usize) -> io::Result<Option<u64>> {
    let mut head = [0; SLOT_HEADER + 16];
    file.read_exact_at(&mut head, offset as u64)?;
    let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (state, received, opcode) = (word(0), word(SLOT_HEADER) as usize, word(SLOT_HEADER + 4));
    let is_open = state == 0
        && (IN_HEADER_SIZE..=length - SLOT_HEADER).contains(&received)
        && opcode != op::INTERRUPT
        && opcode::replies(opcode);
    let mut unique = [0; 8];
    unique.copy_from_slice(&head[SLOT_HEADER + 8..]);
    Ok(is_open.then_some(u64::from_ne_bytes(unique) & !UNIQUE_RESEND))
}
