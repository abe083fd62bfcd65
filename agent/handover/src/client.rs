//! The keeper, as its clients see it: blocking calls with a deadline.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use prost::Message;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::format::{self, KEEPER_FORMAT};
use crate::link::{SupervisorLink, wait_readable};
use crate::packet::{self, Arrival, Packet};
use crate::protocol::{self as say, Reason, Reply, ReplyPacket, Request, RequestPacket};
use crate::{HandoverError, ProcessId, SpawnSpec, send_packet};

pub use crate::protocol::Child;

/// How long an answer may take; the keeper waits for nothing but the start of a process.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to the keeper. What it was asked and has not answered is dropped with it.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    format: u32,
    next: u64,
    welcome: say::Welcome,
}

/// What the keeper has under a key.
#[derive(Debug)]
pub struct Entry {
    /// How often it has been put, from 1.
    pub generation: u64,
    /// One for each descriptor.
    pub names: Vec<String>,
    /// Duplicates.
    pub descriptors: Vec<OwnedFd>,
    /// As it was put.
    pub data: Vec<u8>,
    /// Whether there is a ticket.
    pub ticket: bool,
    /// Whether the kernel is answered with EIO.
    pub responding: bool,
}

/// A process that the keeper has started.
#[derive(Debug)]
pub struct Spawned {
    /// Which one.
    pub id: ProcessId,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// The supervisor's end of its link.
    pub link: SupervisorLink,
}

impl Client {
    /// Connects to the keeper that listens at `path`.
    ///
    /// # Errors
    /// Where nobody listens there, or it does not speak a format of ours.
    pub fn connect(path: &Path) -> Result<Self, HandoverError> {
        let address = SocketAddrUnix::new(path).map_err(HandoverError::io("name the keeper's socket"))?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(HandoverError::io("make a socket"))?;
        connect(&socket, &address).map_err(HandoverError::io("connect to the keeper"))?;
        Self::new(socket)
    }

    /// Takes a socket that is connected to a keeper.
    ///
    /// # Errors
    /// Where the keeper does not speak a format of ours.
    pub fn new(socket: OwnedFd) -> Result<Self, HandoverError> {
        let mut client =
            Self { socket, format: KEEPER_FORMAT.written(), next: 1, welcome: say::Welcome::default() };
        let hello = say::Hello { formats: Some(KEEPER_FORMAT.read().into()) };
        let (Reply::Welcome(welcome), _) = client.ask(Request::Hello(hello), &[])? else {
            return Err(HandoverError::OtherReply("Hello"));
        };
        let theirs = welcome.formats.unwrap_or_default().into();
        client.format = format::agree(&KEEPER_FORMAT.read(), &theirs)
            .ok_or_else(|| format::unknown(*theirs.end(), KEEPER_FORMAT))?;
        client.welcome = welcome;
        Ok(client)
    }

    /// The keeper's process id, as it sees it.
    #[must_use]
    pub fn keeper_pid(&self) -> u32 {
        self.welcome.pid
    }

    /// Which keeper it is; `None` where it does not say.
    #[must_use]
    pub fn keeper(&self) -> Option<ProcessId> {
        let say::Welcome { pid, start_time, .. } = self.welcome;
        (start_time != 0).then_some(ProcessId { pid, start_time })
    }

    /// The keeper's version.
    #[must_use]
    pub fn keeper_version(&self) -> &str {
        &self.welcome.version
    }

    /// Keeps duplicates of these descriptors instead of what was there; returns how often the key has been put.
    ///
    /// # Errors
    /// Where the keeper refuses or is gone; so with all the others.
    pub fn put(
        &mut self,
        key: &str,
        names: &[String],
        descriptors: &[BorrowedFd<'_>],
        data: &[u8],
    ) -> Result<u64, HandoverError> {
        let put = say::Put { key: key.to_owned(), names: names.to_vec(), data: data.to_vec() };
        self.done("Put", Request::Put(put), descriptors)
    }

    /// What is kept under a key; None if nothing is.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub fn get(&mut self, key: &str) -> Result<Option<Entry>, HandoverError> {
        match self.ask(Request::Get(say::Get { key: key.to_owned() }), &[]) {
            Ok((Reply::Entry(entry), descriptors)) => Ok(Some(Entry {
                generation: entry.generation,
                names: entry.names,
                descriptors,
                data: entry.data,
                ticket: entry.ticket,
                responding: entry.responding,
            })),
            Ok(_) => Err(HandoverError::OtherReply("Get")),
            Err(HandoverError::Refused { reason: Reason::NotFound, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All that is kept, by key; data that would not fit is left out ([`Client::get`] has it).
    ///
    /// # Errors
    /// As [`Client::put`].
    pub fn list(&mut self) -> Result<Vec<say::Entry>, HandoverError> {
        let mut all: Vec<say::Entry> = Vec::new();
        loop {
            let after = all.last().map(|entry| entry.key.clone()).unwrap_or_default();
            let (Reply::Listing(page), _) = self.ask(Request::List(say::List { after }), &[])? else {
                return Err(HandoverError::OtherReply("List"));
            };
            let more = page.more && !page.entries.is_empty();
            all.extend(page.entries);
            if !more {
                return Ok(all);
            }
        }
    }

    /// Closes what is kept under a key and forgets its ticket; false if there was nothing.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub fn delete(&mut self, key: &str) -> Result<bool, HandoverError> {
        match self.done("Delete", Request::Delete(say::Delete { key: key.to_owned() }), &[]) {
            Ok(_) => Ok(true),
            Err(HandoverError::Refused { reason: Reason::NotFound, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Starts a process as the keeper's child. `descriptors` are those that `spec` names by their place.
    ///
    /// # Errors
    /// Where it cannot be executed: the message names the step and the system's reason.
    pub fn spawn(
        &mut self,
        key: &str,
        role: &str,
        spec: &SpawnSpec,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Spawned, HandoverError> {
        let spawn = say::Spawn { key: key.to_owned(), role: role.to_owned(), spec: Some(spec.clone()) };
        self.process("Spawn", Request::Spawn(spawn), descriptors)
    }

    /// The pidfd and the link of a child that somebody else had started.
    ///
    /// # Errors
    /// Where it is none of the keeper's children.
    pub fn reach(&mut self, id: ProcessId) -> Result<Spawned, HandoverError> {
        let reach = say::Reach { pid: id.pid, start_time: id.start_time };
        self.process("Reach", Request::Reach(reach), &[])
    }

    /// Lets the keeper watch a process that another keeper has started.
    ///
    /// # Errors
    /// Where it is gone.
    pub fn watch(
        &mut self,
        key: &str,
        role: &str,
        id: ProcessId,
        link: BorrowedFd<'_>,
    ) -> Result<(), HandoverError> {
        let (key, role) = (key.to_owned(), role.to_owned());
        let watch = say::Watch { key, role, pid: id.pid, start_time: id.start_time };
        self.done("Watch", Request::Watch(watch), &[link]).map(drop)
    }

    /// Makes a stand-by the one that serves: the keeper tells it to take over, and its ticket is for this one from now on.
    /// Its predecessor is certainly dead.
    ///
    /// # Errors
    /// Where it is none of the keeper's children.
    pub fn promote(&mut self, id: ProcessId) -> Result<(), HandoverError> {
        let promote = say::Promote { pid: id.pid, start_time: id.start_time };
        self.done("Promote", Request::Promote(promote), &[]).map(drop)
    }

    /// Sends a signal to a child, by number (`signal(7)`). No error if it has ended and was not waited for.
    ///
    /// # Errors
    /// Where it is none of the keeper's children.
    pub fn signal(&mut self, id: ProcessId, signal: i32) -> Result<(), HandoverError> {
        let signal = say::Signal { pid: id.pid, start_time: id.start_time, signal };
        self.done("Signal", Request::Signal(signal), &[]).map(drop)
    }

    /// Waits until a child has ended, and lets the keeper forget it.
    ///
    /// # Errors
    /// [`HandoverError::TimedOut`] after `limit`: it can be asked for again.
    pub fn wait(&mut self, id: ProcessId, limit: Duration) -> Result<say::Exited, HandoverError> {
        let wait = say::Wait { pid: id.pid, start_time: id.start_time };
        match self.ask_within(Request::Wait(wait), &[], limit)? {
            (Reply::Exited(exited), _) => Ok(exited),
            _ => Err(HandoverError::OtherReply("Wait")),
        }
    }

    /// All children, by pid, with how those ended that nobody has waited for.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub fn children(&mut self) -> Result<Vec<Child>, HandoverError> {
        let mut all: Vec<Child> = Vec::new();
        loop {
            let after = all.last().map_or(0, |child| child.pid);
            let (Reply::Children(page), _) = self.ask(Request::Children(say::Children { after }), &[])?
            else {
                return Err(HandoverError::OtherReply("Children"));
            };
            let more = page.more && !page.children.is_empty();
            all.extend(page.children);
            if !more {
                return Ok(all);
            }
        }
    }

    /// Says how a tenant's mounter is restarted while nobody attends. None takes the ticket away.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub fn ticket(
        &mut self,
        key: &str,
        spec: Option<(&SpawnSpec, &[BorrowedFd<'_>])>,
    ) -> Result<(), HandoverError> {
        let (spec, descriptors) = spec.unzip();
        let ticket = say::Ticket { key: key.to_owned(), spec: spec.cloned(), enabled: spec.is_some() };
        self.done("Ticket", Request::Ticket(ticket), descriptors.unwrap_or_default()).map(drop)
    }

    /// From now on this client supervises; as long as it is connected, tickets rest.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub fn attend(&mut self) -> Result<(), HandoverError> {
        self.done("Attend", Request::Attend(say::Attend {}), &[]).map(drop)
    }

    /// Begins or stops to answer a tenant's requests with EIO.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub fn respond(&mut self, key: &str, on: bool) -> Result<(), HandoverError> {
        self.done("Respond", Request::Respond(say::Respond { key: key.to_owned(), on }), &[]).map(drop)
    }

    fn process(
        &mut self,
        what: &'static str,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Spawned, HandoverError> {
        let (Reply::Spawned(spawned), descriptors) = self.ask(request, descriptors)? else {
            return Err(HandoverError::OtherReply(what));
        };
        let found = descriptors.len();
        let [pidfd, link] = <[OwnedFd; 2]>::try_from(descriptors)
            .map_err(|_| HandoverError::Descriptors { what, found, expected: 2 })?;
        let id = ProcessId { pid: spawned.pid, start_time: spawned.start_time };
        Ok(Spawned { id, pidfd, link: SupervisorLink::new(link) })
    }

    fn done(
        &mut self,
        what: &'static str,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<u64, HandoverError> {
        match self.ask(request, descriptors)? {
            (Reply::Done(done), _) => Ok(done.generation),
            _ => Err(HandoverError::OtherReply(what)),
        }
    }

    fn ask(
        &mut self,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), HandoverError> {
        self.ask_within(request, descriptors, PATIENCE)
    }

    fn ask_within(
        &mut self,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(Reply, Vec<OwnedFd>), HandoverError> {
        let id = self.next;
        self.next += 1;
        let packet = RequestPacket { format: self.format, id, body: Some(request) };
        send_packet(&self.socket, &packet.encode_to_vec(), descriptors, true)?;
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if !wait_readable(&self.socket, left)? {
                return Err(HandoverError::TimedOut(limit));
            }
            let Packet { bytes, descriptors } = match packet::arrival(&self.socket, false)? {
                Arrival::Packet(packet) => packet,
                Arrival::Nothing => continue,
                Arrival::Closed => return Err(HandoverError::Closed),
            };
            // Another number is the late answer to a question that was given up.
            if let Some(reply) = understand(&bytes, id)? {
                return Ok((reply, descriptors));
            }
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn understand(bytes: &[u8], id: u64) -> Result<Option<Reply>, HandoverError> {
    let packet = ReplyPacket::decode(bytes)
        .map_err(|source| HandoverError::Malformed { bytes: bytes.len(), source })?;
    format::check(packet.format, KEEPER_FORMAT)?;
    if packet.id != id {
        return Ok(None);
    }
    match packet.body {
        Some(Reply::Refused(refused)) => {
            Err(HandoverError::Refused { reason: refused.reason(), message: refused.message })
        }
        Some(reply) => Ok(Some(reply)),
        None => Err(HandoverError::UnknownMessage { format: packet.format }),
    }
}
