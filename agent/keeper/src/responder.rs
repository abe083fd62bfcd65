//! Answers EIO to whatever the kernel asks of a tenant that nobody can serve, so that killed applications can go away.
//!
//! Requests are read on a clone of the device: if the keeper dies with one of them, the kernel ends it with an error,
//! too. Those that a mounter had read stay in its slots for the next one. Connection and mounts stay.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::clone::clone_device;

/// What a mounter of ours agrees on with the kernel needs this much; the buffer grows where another one agreed on more.
const BUFFER_BYTES: usize = (1 << 20) + (64 << 10);
const MOST_BUFFER_BYTES: usize = 64 << 20;
/// Requests answered before others get their turn.
const AT_ONCE: usize = 64;

const IN_HEADER_BYTES: usize = 40;
const OUT_HEADER_BYTES: u32 = 16;
/// Source: linux/fuse.h 7.45, `enum fuse_opcode`.
const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// What there is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// Nothing at the moment.
    All,
    /// More, perhaps: others get their turn.
    Some,
    /// Nothing ever again: unmounted or aborted.
    Gone,
}

/// Answers one connection.
#[derive(Debug)]
pub struct Responder {
    device: File,
    buffer: Vec<u8>,
}

impl Responder {
    /// Reads beside whoever has `device`, without waiting.
    ///
    /// # Errors
    /// Where `/dev/fuse` may not be opened, or the connection is gone.
    pub fn new(device: &OwnedFd) -> io::Result<Self> {
        Ok(Self { device: clone_device(device)?, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Answers what is there, and does not wait for more.
    pub fn answer(&mut self) -> Answered {
        for _ in 0..AT_ONCE {
            match self.device.read(&mut self.buffer) {
                Ok(length) => {
                    if let Some(reply) = reply(&self.buffer[..length]) {
                        // The caller may have gone meanwhile: nobody waits for the reply then.
                        let _ = self.device.write(&reply);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Answered::All,
                // Withdrawn while it was read.
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Interrupted) => {}
                Err(error) if error.kind() == ErrorKind::InvalidInput && self.grow() => {}
                Err(_) => return Answered::Gone,
            }
        }
        Answered::Some
    }

    fn grow(&mut self) -> bool {
        let length = self.buffer.len() * 2;
        if length > MOST_BUFFER_BYTES {
            return false;
        }
        self.buffer = vec![0; length];
        true
    }
}

impl AsFd for Responder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// EIO to a request; None where the kernel expects no reply.
fn reply(request: &[u8]) -> Option<Vec<u8>> {
    let header = request.get(..IN_HEADER_BYTES)?;
    let opcode = u32::from_ne_bytes(header[4..8].try_into().ok()?);
    if matches!(opcode, FORGET | BATCH_FORGET | INTERRUPT) {
        return None;
    }
    let (length, error) = (OUT_HEADER_BYTES.to_ne_bytes(), (-libc::EIO).to_ne_bytes());
    Some([&length[..], &error[..], &header[8..16]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, unique: u64) -> Vec<u8> {
        let mut bytes = vec![0; IN_HEADER_BYTES + 8];
        bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
        bytes[8..16].copy_from_slice(&unique.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_request_is_answered_with_eio_under_its_number() {
        // The number comes back with bit 63, which the kernel sets on what it sends again.
        let reply = reply(&request(1, 0x8000_0000_0000_002e)).expect("a reply");
        assert_eq!(reply, [16, 0, 0, 0, 251, 255, 255, 255, 0x2e, 0, 0, 0, 0, 0, 0, 0x80]);
    }

    #[test]
    fn what_expects_no_reply_gets_none() {
        assert!([2, 36, 42].into_iter().all(|opcode| reply(&request(opcode, 8)).is_none()));
        assert!(reply(&[0; 12]).is_none(), "no request at all");
    }
}
