//! One message with its descriptors on a `SOCK_SEQPACKET` socket: whole, or not at all.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::HandoverError;

/// Longest message. A socket's default buffer takes it, so that no limit of the system has to be raised.
pub const MOST_BYTES: usize = 96 << 10;
/// Most descriptors with one message; the kernel's own limit is 253.
pub const MOST_DESCRIPTORS: usize = 128;

/// What came.
#[derive(Debug)]
pub struct Packet {
    /// The message, not empty.
    pub bytes: Vec<u8>,
    /// Its descriptors, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
}

/// Sends one packet. With `wait` false it returns false instead of waiting for room.
///
/// # Errors
/// [`HandoverError::Closed`] if the other side is gone, [`HandoverError::TooLarge`] before anything is sent.
pub fn send_packet(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    wait: bool,
) -> Result<bool, HandoverError> {
    if bytes.len() > MOST_BYTES || descriptors.len() > MOST_DESCRIPTORS {
        return Err(HandoverError::TooLarge { bytes: bytes.len(), descriptors: descriptors.len() });
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let flags = SendFlags::NOSIGNAL | if wait { SendFlags::empty() } else { SendFlags::DONTWAIT };
    match rustix::io::retry_on_intr(|| sendmsg(socket.as_fd(), &[IoSlice::new(bytes)], &mut ancillary, flags))
    {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN) if !wait => Ok(false),
        Err(Errno::PIPE | Errno::CONNRESET) => Err(HandoverError::Closed),
        Err(errno) => Err(HandoverError::Io { doing: "send a packet", source: errno.into() }),
    }
}

/// What a call to [`receive_packet`] found.
pub(crate) enum Arrival {
    Packet(Packet),
    Nothing,
    Closed,
}

/// Receives one packet; None if the other side is gone. Waits for it.
///
/// # Errors
/// Where the socket fails, or a packet is longer than any of ours.
pub fn receive_packet(socket: impl AsFd) -> Result<Option<Packet>, HandoverError> {
    match arrival(socket, true)? {
        Arrival::Packet(packet) => Ok(Some(packet)),
        Arrival::Nothing | Arrival::Closed => Ok(None),
    }
}

/// Receives one packet, or says that there is none yet.
pub(crate) fn arrival(socket: impl AsFd, wait: bool) -> Result<Arrival, HandoverError> {
    let mut bytes = vec![0; MOST_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)
    });
    let received = match received {
        Ok(received) => received,
        Err(Errno::AGAIN) if !wait => return Ok(Arrival::Nothing),
        Err(Errno::CONNRESET) => return Ok(Arrival::Closed),
        Err(errno) => return Err(HandoverError::Io { doing: "receive a packet", source: errno.into() }),
    };
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.bytes == 0 && descriptors.is_empty() {
        return Ok(Arrival::Closed);
    }
    // Cut off: what came of it is dropped, its descriptors with it.
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(HandoverError::TooLarge { bytes: received.bytes, descriptors: descriptors.len() });
    }
    bytes.truncate(received.bytes);
    Ok(Arrival::Packet(Packet { bytes, descriptors }))
}
