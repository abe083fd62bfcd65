//! `/dev/fuse` descriptors: reading requests, writing replies and notifications, clones.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::abi::{OUT_HEADER_SIZE, UNIQUE_INTERRUPT};

/// What a read from the device gave.
#[derive(Debug)]
pub(crate) enum Received {
    /// A request of that many bytes.
    Request(usize),
    /// Nothing: interrupted, or the request was withdrawn while it was read.
    Again,
    /// The file system is unmounted or the connection aborted.
    Gone,
}

/// One descriptor of the connection.
#[derive(Debug)]
pub(crate) struct Device(File);

impl Device {
    pub(crate) fn new(descriptor: OwnedFd) -> Self {
        Self(File::from(descriptor))
    }

    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.0.as_fd().try_clone_to_owned()
    }

    /// Blocks for the next request.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        match (&self.0).read(buffer) {
            Ok(0) => Ok(Received::Gone),
            Ok(length) => Ok(Received::Request(length)),
            Err(error) => match error.raw_os_error() {
                // ENOENT: the caller was killed between queueing and reading. EAGAIN: an odd keeper set O_NONBLOCK.
                Some(libc::EINTR | libc::ENOENT) => Ok(Received::Again),
                Some(libc::EAGAIN) => self.wait_readable().map(|()| Received::Again),
                Some(libc::ENODEV | libc::ECONNABORTED | libc::ENOTCONN) => Ok(Received::Gone),
                _ => Err(error),
            },
        }
    }

    fn wait_readable(&self) -> io::Result<()> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
        Ok(())
    }

    /// Sends one message: a reply or a notification, header first.
    pub(crate) fn send(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        let sent = if body.is_empty() {
            (&self.0).write(head)?
        } else {
            (&self.0).write_vectored(&[IoSlice::new(head), IoSlice::new(body)])?
        };
        // The kernel takes a message whole or not at all.
        if sent == head.len() + body.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Asks whether the request `unique` still waits for its reply on this descriptor, without any effect:
    /// the kernel looks it up for what is formally the reply to its interrupt.
    pub(crate) fn probe(&self, unique: u64) -> io::Result<bool> {
        match self.send(&out_header(OUT_HEADER_SIZE, 0, unique | UNIQUE_INTERRUPT), &[]) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends the notification `code`.
    pub(crate) fn notify(&self, code: i32, body: &[u8]) -> io::Result<()> {
        self.send(&out_header(OUT_HEADER_SIZE + body.len(), code, 0), body)
    }
}

fn out_header(length: usize, error: i32, unique: u64) -> [u8; OUT_HEADER_SIZE] {
    let mut header = [0; OUT_HEADER_SIZE];
    header[0..4].copy_from_slice(&(length as u32).to_ne_bytes());
    header[4..8].copy_from_slice(&error.to_ne_bytes());
    header[8..16].copy_from_slice(&unique.to_ne_bytes());
    header
}

nix::ioctl_read!(fuse_dev_ioc_clone, 229, 0, u32);

/// Opens another descriptor of the same connection, with a queue of its own for what was read from it
/// (`FUSE_DEV_IOC_CLONE`). Needs the right to open `/dev/fuse`.
///
/// # Errors
/// Those of `open(2)` and of the ioctl.
pub fn clone_device(device: &OwnedFd) -> io::Result<OwnedFd> {
    let clone = File::options().read(true).write(true).open("/dev/fuse")?;
    let mut source = device.as_raw_fd() as u32;
    // SAFETY: both descriptors are open, and the kernel only reads the four bytes of `source`.
    unsafe { fuse_dev_ioc_clone(clone.as_raw_fd(), &raw mut source) }?;
    Ok(clone.into())
}
