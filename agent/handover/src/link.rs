//! The life-cycle channel between a mounter and whoever supervises it.
//!
//! A pair of `SOCK_SEQPACKET` sockets made by whoever spawns; the mounter inherits one end as descriptor 3. The other end
//! may be held by several (the keeper has a duplicate): a message goes to the one who reads it.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::format::{self, LINK_FORMAT};
use crate::message::{DownPacket, FromMounter, ToMounter, UpPacket};
use crate::packet::{self, Arrival, Packet};
use crate::{HandoverError, send_packet};

/// The descriptor under which a mounter inherits its end.
pub const CONTROL_FD: i32 = 3;

/// A message that one side of a link sends.
pub trait LinkMessage: Sized {
    /// The bytes of a packet.
    fn encode(&self) -> Vec<u8>;

    /// Reads a packet.
    ///
    /// # Errors
    /// Where it is no message, or of a format or kind that this version does not know.
    fn decode(bytes: &[u8]) -> Result<Self, HandoverError>;
}

/// The supervisor's end.
pub type SupervisorLink = Link<ToMounter, FromMounter>;
/// The mounter's end.
pub type MounterLink = Link<FromMounter, ToMounter>;

/// One end of a link: sends messages `S`, receives messages `R`.
#[derive(Debug)]
pub struct Link<S, R> {
    socket: OwnedFd,
    messages: PhantomData<fn(S) -> R>,
}

/// What came, for whoever does not wait for ever.
#[derive(Debug)]
pub enum Received<R> {
    /// A message, and its descriptors.
    Message(R, Vec<OwnedFd>),
    /// Nothing yet.
    Nothing,
    /// The other side is gone.
    Closed,
}

impl SupervisorLink {
    /// Makes a link: the supervisor's end, and the descriptor that the mounter inherits.
    ///
    /// # Errors
    /// Where no socket can be had.
    pub fn pair() -> Result<(Self, OwnedFd), HandoverError> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(HandoverError::io("make a pair of sockets"))?;
        Ok((Self::new(ours), theirs))
    }
}

impl<S: LinkMessage, R: LinkMessage> Link<S, R> {
    /// Takes an end that was handed over or inherited.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, messages: PhantomData }
    }

    /// Another descriptor of this end, for somebody else to hold.
    ///
    /// # Errors
    /// Where none can be had.
    pub fn duplicate(&self) -> Result<OwnedFd, HandoverError> {
        self.socket
            .try_clone()
            .map_err(|source| HandoverError::Io { doing: "duplicate the end of a link", source })
    }

    /// Sends a message, and waits for room where there is none.
    ///
    /// # Errors
    /// [`HandoverError::Closed`] where the other side is gone.
    pub fn send(&self, message: &S, descriptors: &[BorrowedFd<'_>]) -> Result<(), HandoverError> {
        send_packet(&self.socket, &message.encode(), descriptors, true).map(drop)
    }

    /// Sends a message; false if there is no room at the moment, because nobody reads.
    ///
    /// # Errors
    /// [`HandoverError::Closed`] where the other side is gone.
    pub fn try_send(&self, message: &S, descriptors: &[BorrowedFd<'_>]) -> Result<bool, HandoverError> {
        send_packet(&self.socket, &message.encode(), descriptors, false)
    }

    /// Sends a message without waiting for room.
    ///
    /// # Errors
    /// [`HandoverError::Closed`] where the other side is gone, [`HandoverError::TimedOut`] where it does not read.
    pub fn tell(&self, message: &S, descriptors: &[BorrowedFd<'_>]) -> Result<(), HandoverError> {
        if self.try_send(message, descriptors)? {
            Ok(())
        } else {
            Err(HandoverError::TimedOut(Duration::ZERO))
        }
    }

    /// Waits for a message. None when the other side is gone.
    ///
    /// # Errors
    /// Where it cannot be understood; the link goes on.
    pub fn receive(&self) -> Result<Option<(R, Vec<OwnedFd>)>, HandoverError> {
        let Some(packet) = packet::receive_packet(&self.socket)? else { return Ok(None) };
        Ok(Some((R::decode(&packet.bytes)?, packet.descriptors)))
    }

    /// Takes a message if there is one.
    ///
    /// # Errors
    /// As [`Link::receive`].
    pub fn try_receive(&self) -> Result<Received<R>, HandoverError> {
        Ok(match packet::arrival(&self.socket, false)? {
            Arrival::Packet(Packet { bytes, descriptors }) => {
                Received::Message(R::decode(&bytes)?, descriptors)
            }
            Arrival::Nothing => Received::Nothing,
            Arrival::Closed => Received::Closed,
        })
    }

    /// Waits for a message, but no longer than this.
    ///
    /// # Errors
    /// As [`Link::receive`].
    pub fn receive_within(&self, limit: Duration) -> Result<Received<R>, HandoverError> {
        if wait_readable(&self.socket, limit)? { self.try_receive() } else { Ok(Received::Nothing) }
    }
}

impl<S, R> AsFd for Link<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<S, R> From<Link<S, R>> for OwnedFd {
    fn from(link: Link<S, R>) -> Self {
        link.socket
    }
}

impl<S, R> std::os::fd::AsRawFd for Link<S, R> {
    fn as_raw_fd(&self) -> i32 {
        self.socket.as_raw_fd()
    }
}

impl LinkMessage for ToMounter {
    fn encode(&self) -> Vec<u8> {
        DownPacket { format: LINK_FORMAT.written(), body: Some(self.clone()) }.encode_to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, HandoverError> {
        let packet = DownPacket::decode(bytes).map_err(malformed(bytes))?;
        known(packet.format, packet.body)
    }
}

impl LinkMessage for FromMounter {
    fn encode(&self) -> Vec<u8> {
        UpPacket { format: LINK_FORMAT.written(), body: Some(self.clone()) }.encode_to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, HandoverError> {
        let packet = UpPacket::decode(bytes).map_err(malformed(bytes))?;
        known(packet.format, packet.body)
    }
}

fn malformed(bytes: &[u8]) -> impl FnOnce(prost::DecodeError) -> HandoverError {
    let bytes = bytes.len();
    move |source| HandoverError::Malformed { bytes, source }
}

fn known<T>(format: u32, body: Option<T>) -> Result<T, HandoverError> {
    format::check(format, LINK_FORMAT)?;
    body.ok_or(HandoverError::UnknownMessage { format })
}

/// Waits until there is something to read, or the other side is gone; false after `limit`.
pub(crate) fn wait_readable(socket: impl AsFd, limit: Duration) -> Result<bool, HandoverError> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&left)) {
            Ok(found) => return Ok(found > 0),
            Err(Errno::INTR) => {}
            Err(errno) => {
                return Err(HandoverError::Io { doing: "wait for a packet", source: io::Error::from(errno) });
            }
        }
    }
}
