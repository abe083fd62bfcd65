//! What the keeper is asked, and what it answers. Frozen: fields and messages are only ever added.
//!
//! A request carries a number of the client's choice, its reply the same one: replies to [`Wait`] come when they come, the
//! others in order. Descriptors go with the packet, in the order in which the message names them.

use prost::{Enumeration, Message, Oneof};
use tarbox_types::ErrorKind;

use crate::SpawnSpec;
use crate::message::Formats;

/// The role of the process that serves; the only one that tickets are for.
pub const ROLE_SERVE: &str = "serve";
/// The role of the process that is prepared to serve.
pub const ROLE_STAND_BY: &str = "stand-by";
/// Longest key, in bytes.
pub const MOST_KEY_BYTES: usize = 255;
/// Longest data of an entry, in bytes.
pub const MOST_DATA_BYTES: usize = 32 << 10;

/// One question.
#[derive(Clone, PartialEq, Oneof)]
pub enum Request {
    /// First: which formats does the keeper read, and who is it? → [`Reply::Welcome`]
    #[prost(message, tag = "3")]
    Hello(Hello),
    /// Keep these descriptors, instead of what was there → [`Reply::Done`]
    #[prost(message, tag = "4")]
    Put(Put),
    /// Give duplicates → [`Reply::Entry`]
    #[prost(message, tag = "5")]
    Get(Get),
    /// What is there? → [`Reply::Listing`]
    #[prost(message, tag = "6")]
    List(List),
    /// Close what is kept, and forget the ticket; children go on → [`Reply::Done`]
    #[prost(message, tag = "7")]
    Delete(Delete),
    /// Start a process; executable and log go with it → [`Reply::Spawned`]
    #[prost(message, tag = "8")]
    Spawn(Spawn),
    /// Send a signal to a child → [`Reply::Done`]
    #[prost(message, tag = "9")]
    Signal(Signal),
    /// Answered when the child has ended → [`Reply::Exited`]; it is forgotten then.
    #[prost(message, tag = "10")]
    Wait(Wait),
    /// Which children are there? → [`Reply::Children`]
    #[prost(message, tag = "11")]
    Children(Children),
    /// How to restart a tenant's mounter while nobody attends; executable and log go with it → [`Reply::Done`]
    #[prost(message, tag = "12")]
    Ticket(Ticket),
    /// This client supervises: as long as it is connected, tickets rest → [`Reply::Done`]
    #[prost(message, tag = "13")]
    Attend(Attend),
    /// Answer with EIO whatever the kernel asks of a tenant, or stop doing so → [`Reply::Done`]
    #[prost(message, tag = "14")]
    Respond(Respond),
    /// Give a child's pidfd and a duplicate of the supervisor's end of its link → [`Reply::Spawned`]
    #[prost(message, tag = "15")]
    Reach(Reach),
    /// A stand-by is to serve: change its role, and send it the message to take over → [`Reply::Done`]
    #[prost(message, tag = "16")]
    Promote(Promote),
    /// Watch a process that another keeper has started; the supervisor's end of its link goes with it → [`Reply::Done`]
    #[prost(message, tag = "17")]
    Watch(Watch),
}

/// See [`Request::Hello`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Hello {
    /// What the client reads.
    #[prost(message, optional, tag = "1")]
    pub formats: Option<Formats>,
}

/// See [`Request::Put`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Put {
    /// Tenant.
    #[prost(string, tag = "1")]
    pub key: String,
    /// One for each descriptor; several may have the same one.
    #[prost(string, repeated, tag = "2")]
    pub names: Vec<String>,
    /// Whatever the client wants to find again.
    #[prost(bytes = "vec", tag = "3")]
    pub data: Vec<u8>,
}

/// See [`Request::Get`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Get {
    /// Tenant.
    #[prost(string, tag = "1")]
    pub key: String,
}

/// See [`Request::List`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct List {
    /// Only keys behind this one: where the page before ended.
    #[prost(string, tag = "1")]
    pub after: String,
}

/// See [`Request::Delete`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Delete {
    /// Tenant.
    #[prost(string, tag = "1")]
    pub key: String,
}

/// See [`Request::Spawn`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Spawn {
    /// Tenant.
    #[prost(string, tag = "1")]
    pub key: String,
    /// [`ROLE_SERVE`], [`ROLE_STAND_BY`], or another word.
    #[prost(string, tag = "2")]
    pub role: String,
    /// How.
    #[prost(message, optional, tag = "3")]
    pub spec: Option<SpawnSpec>,
}

/// See [`Request::Signal`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Signal {
    /// Process id.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Start time, in clock ticks since boot.
    #[prost(uint64, tag = "2")]
    pub start_time: u64,
    /// Number (`signal(7)`).
    #[prost(int32, tag = "3")]
    pub signal: i32,
}

/// See [`Request::Wait`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Wait {
    /// Process id.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Start time, in clock ticks since boot.
    #[prost(uint64, tag = "2")]
    pub start_time: u64,
}

/// See [`Request::Children`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Children {
    /// Only children behind this pid: where the page before ended.
    #[prost(uint32, tag = "1")]
    pub after: u32,
}

/// See [`Request::Ticket`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Ticket {
    /// Tenant.
    #[prost(string, tag = "1")]
    pub key: String,
    /// How; its descriptors go with the message.
    #[prost(message, optional, tag = "2")]
    pub spec: Option<SpawnSpec>,
    /// False takes the ticket away.
    #[prost(bool, tag = "3")]
    pub enabled: bool,
}

/// See [`Request::Attend`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Attend {}

/// See [`Request::Respond`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Respond {
    /// Tenant.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Begin or stop. It also stops when a process is started for the tenant.
    #[prost(bool, tag = "2")]
    pub on: bool,
}

/// See [`Request::Reach`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Reach {
    /// Process id.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Start time, in clock ticks since boot.
    #[prost(uint64, tag = "2")]
    pub start_time: u64,
}

/// See [`Request::Promote`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Promote {
    /// Process id.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Start time, in clock ticks since boot.
    #[prost(uint64, tag = "2")]
    pub start_time: u64,
}

/// See [`Request::Watch`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Watch {
    /// Tenant.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Its role.
    #[prost(string, tag = "2")]
    pub role: String,
    /// Process id.
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    /// Start time, in clock ticks since boot.
    #[prost(uint64, tag = "4")]
    pub start_time: u64,
}

/// One answer.
#[derive(Clone, PartialEq, Oneof)]
pub enum Reply {
    /// Not done.
    #[prost(message, tag = "3")]
    Refused(Refused),
    /// Done.
    #[prost(message, tag = "4")]
    Done(Done),
    /// Who the keeper is.
    #[prost(message, tag = "5")]
    Welcome(Welcome),
    /// What is kept; the descriptors go with it.
    #[prost(message, tag = "6")]
    Entry(Entry),
    /// A page of what is kept.
    #[prost(message, tag = "7")]
    Listing(Listing),
    /// A process; its pidfd and the supervisor's end of its link go with it.
    #[prost(message, tag = "8")]
    Spawned(Spawned),
    /// How a child ended.
    #[prost(message, tag = "9")]
    Exited(Exited),
    /// A page of the children.
    #[prost(message, tag = "10")]
    Children(ChildList),
}

/// Why something was not done, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Enumeration)]
#[repr(i32)]
pub enum Reason {
    /// A word that this version does not know.
    Unknown = 0,
    /// The request itself is wrong.
    Invalid = 1,
    /// There is no such entry or child.
    NotFound = 2,
    /// The client may not.
    Denied = 3,
    /// The system refused: the message says what.
    Failed = 4,
    /// Of a format or kind that the keeper does not know.
    Incompatible = 5,
}

impl Reason {
    /// In the words that all our crates use.
    #[must_use]
    pub fn kind(self) -> ErrorKind {
        match self {
            Self::Invalid => ErrorKind::InvalidArgument,
            Self::NotFound => ErrorKind::NotFound,
            Self::Denied => ErrorKind::PermissionDenied,
            Self::Incompatible => ErrorKind::Incompatible,
            Self::Unknown | Self::Failed => ErrorKind::Internal,
        }
    }
}

/// See [`Reply::Refused`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Refused {
    /// Why, in a word.
    #[prost(enumeration = "Reason", tag = "1")]
    pub reason: i32,
    /// Why.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// See [`Reply::Done`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Done {
    /// After [`Put`]: how often the key has been put, from 1.
    #[prost(uint64, tag = "1")]
    pub generation: u64,
}

/// See [`Reply::Welcome`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Welcome {
    /// What the keeper reads.
    #[prost(message, optional, tag = "1")]
    pub formats: Option<Formats>,
    /// Its process id, as it sees it.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    /// Its version.
    #[prost(string, tag = "3")]
    pub version: String,
    /// When it started, in clock ticks since boot: with its process id it says which one it is. 0 where it does not say.
    #[prost(uint64, tag = "4")]
    pub start_time: u64,
}

/// See [`Reply::Entry`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Entry {
    /// Tenant.
    #[prost(string, tag = "1")]
    pub key: String,
    /// How often it has been put.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// One for each descriptor.
    #[prost(string, repeated, tag = "3")]
    pub names: Vec<String>,
    /// As it was put. Empty in a listing where it would not fit: ask for the entry then.
    #[prost(bytes = "vec", tag = "4")]
    pub data: Vec<u8>,
    /// Whether there is a ticket.
    #[prost(bool, tag = "5")]
    pub ticket: bool,
    /// Whether the kernel is answered with EIO.
    #[prost(bool, tag = "6")]
    pub responding: bool,
}

/// See [`Reply::Listing`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Listing {
    /// By key.
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<Entry>,
    /// Whether there are more.
    #[prost(bool, tag = "2")]
    pub more: bool,
}

/// See [`Reply::Spawned`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Spawned {
    /// Process id.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Start time, in clock ticks since boot.
    #[prost(uint64, tag = "2")]
    pub start_time: u64,
}

/// See [`Reply::Exited`]. Neither is set where nobody can know: the process was another keeper's child.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Exited {
    /// Exit code.
    #[prost(int32, optional, tag = "1")]
    pub code: Option<i32>,
    /// The signal that ended it.
    #[prost(int32, optional, tag = "2")]
    pub signal: Option<i32>,
}

/// See [`Reply::Children`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ChildList {
    /// By pid.
    #[prost(message, repeated, tag = "1")]
    pub children: Vec<Child>,
    /// Whether there are more.
    #[prost(bool, tag = "2")]
    pub more: bool,
}

/// A process that the keeper has started or watches.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Child {
    /// Process id.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Start time, in clock ticks since boot.
    #[prost(uint64, tag = "2")]
    pub start_time: u64,
    /// Tenant.
    #[prost(string, tag = "3")]
    pub key: String,
    /// Its role.
    #[prost(string, tag = "4")]
    pub role: String,
    /// How it ended; None while it lives.
    #[prost(message, optional, tag = "5")]
    pub exited: Option<Exited>,
    /// Whether the keeper has started it by itself, after a ticket.
    #[prost(bool, tag = "6")]
    pub by_ticket: bool,
}

/// A request as it travels.
#[derive(Clone, PartialEq, Message)]
pub struct RequestPacket {
    /// Format it is written in.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// The client's number.
    #[prost(uint64, tag = "2")]
    pub id: u64,
    /// What is asked; None where this version does not know it.
    #[prost(oneof = "Request", tags = "3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17")]
    pub body: Option<Request>,
}

/// A reply as it travels.
#[derive(Clone, PartialEq, Message)]
pub struct ReplyPacket {
    /// Format it is written in.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// The number of the request.
    #[prost(uint64, tag = "2")]
    pub id: u64,
    /// What is answered; None where this version does not know it.
    #[prost(oneof = "Reply", tags = "3, 4, 5, 6, 7, 8, 9, 10")]
    pub body: Option<Reply>,
}
