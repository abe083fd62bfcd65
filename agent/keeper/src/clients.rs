//! One client: who it is, what it says, what it is told.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::Message;
use rustix::net::sockopt::socket_peercred;
use tarbox_handover::format::{self, KEEPER_FORMAT};
use tarbox_handover::protocol::{Reply, ReplyPacket, Request, RequestPacket};
use tarbox_handover::{HandoverError, Packet, send_packet};

use crate::KeeperError;

/// A connected client.
#[derive(Debug)]
pub(crate) struct Client {
    socket: OwnedFd,
    /// Who it is, if it may not be here.
    stranger: Option<u32>,
}

/// What a packet asks for, under which number.
pub(crate) type Asked = (u64, Result<(Request, Vec<OwnedFd>), KeeperError>);

impl Client {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        let own = rustix::process::geteuid();
        let peer = socket_peercred(&socket).map(|peer| peer.uid);
        let welcome = peer.as_ref().is_ok_and(|peer| peer.is_root() || *peer == own);
        let stranger = (!welcome).then(|| peer.map_or(u32::MAX, |peer| peer.as_raw()));
        Self { socket, stranger }
    }

    /// Takes its next packet, which is there.
    ///
    /// # Errors
    /// [`HandoverError::Closed`] when it is gone.
    pub(crate) fn next(&self) -> Result<Asked, HandoverError> {
        let packet = match tarbox_handover::receive_packet(&self.socket) {
            Ok(Some(packet)) => packet,
            Ok(None) => return Err(HandoverError::Closed),
            // Cut off by its length: whose it was is not known.
            Err(error @ HandoverError::TooLarge { .. }) => return Ok((0, Err(error.into()))),
            Err(error) => return Err(error),
        };
        Ok(self.understand(packet))
    }

    fn understand(&self, packet: Packet) -> Asked {
        let Packet { bytes, descriptors } = packet;
        let asked = match RequestPacket::decode(bytes.as_slice()) {
            Ok(asked) => asked,
            Err(source) => {
                return (0, Err(HandoverError::Malformed { bytes: bytes.len(), source }.into()));
            }
        };
        let request = self.admitted().and_then(|()| {
            format::check(asked.format, KEEPER_FORMAT)?;
            let unknown = HandoverError::UnknownMessage { format: asked.format };
            Ok((asked.body.ok_or(unknown)?, descriptors))
        });
        (asked.id, request)
    }

    fn admitted(&self) -> Result<(), KeeperError> {
        let own = rustix::process::geteuid().as_raw();
        self.stranger.map_or(Ok(()), |uid| Err(KeeperError::Stranger { uid, own }))
    }

    /// Answers.
    ///
    /// # Errors
    /// Where it is gone, or does not read its answers: the keeper waits for nobody.
    pub(crate) fn tell(&self, id: u64, reply: Reply, descriptors: &[OwnedFd]) -> Result<(), HandoverError> {
        let packet = ReplyPacket { format: KEEPER_FORMAT.written(), id, body: Some(reply) };
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let sent = send_packet(&self.socket, &packet.encode_to_vec(), &descriptors, false)?;
        if sent { Ok(()) } else { Err(HandoverError::Closed) }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
