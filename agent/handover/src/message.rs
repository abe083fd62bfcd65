//! What is said on the link between a mounter and whoever supervises it. Fields are only ever added.

use std::ops::RangeInclusive;

use prost::{Enumeration, Message, Oneof};

/// What a descriptor that is handed over is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum DescriptorKind {
    /// A kind that this version does not know; it is closed.
    Unknown = 0,
    /// `/dev/fuse`: the one that was mounted first, then its clones.
    Device = 1,
    /// The slots file.
    Slots = 2,
    /// The journal.
    Journal = 3,
    /// A sealed memfd with what must not stand on a command line.
    Secrets = 4,
}

/// What a mounter is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Enumeration)]
#[repr(i32)]
pub enum Mode {
    /// Not said.
    Unknown = 0,
    /// Serve at once: nobody else does.
    Serve = 1,
    /// Prepare everything, and wait for [`TakeOver`].
    StandBy = 2,
}

/// What a supervisor tells a mounter.
#[derive(Clone, PartialEq, Oneof)]
pub enum ToMounter {
    /// Begin; the descriptors come with it. Sent once, after [`Hello`].
    #[prost(message, tag = "2")]
    Start(Start),
    /// To a stand-by: its predecessor is certainly dead; serve now. Saying it twice is harmless.
    #[prost(message, tag = "3")]
    TakeOver(TakeOver),
    /// Leave the rest to a successor.
    #[prost(message, tag = "4")]
    Drain(Drain),
    /// Flush, give the lease back and end with code 0.
    #[prost(message, tag = "5")]
    Stop(Stop),
}

/// See [`ToMounter::Start`]; what the descriptors are stands in their order.
#[derive(Clone, PartialEq, Message)]
pub struct Start {
    /// What for.
    #[prost(enumeration = "Mode", tag = "1")]
    pub mode: i32,
    /// One for each descriptor, in their order.
    #[prost(enumeration = "DescriptorKind", repeated, tag = "2")]
    pub descriptors: Vec<i32>,
}

/// See [`ToMounter::TakeOver`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct TakeOver {}

/// See [`ToMounter::Drain`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Drain {
    /// How long what is executing may take to finish, in milliseconds.
    #[prost(uint64, tag = "1")]
    pub millis: u64,
}

/// See [`ToMounter::Stop`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Stop {}

/// What a mounter tells its supervisor.
#[derive(Clone, PartialEq, Oneof)]
pub enum FromMounter {
    /// Who it is: the first message, sent before anything is read.
    #[prost(message, tag = "2")]
    Hello(Hello),
    /// It can take over at once: the journal is read as far as it can be, the database connected.
    #[prost(message, tag = "3")]
    StandingBy(StandingBy),
    /// It serves.
    #[prost(message, tag = "4")]
    Serving(Serving),
    /// It has stopped reading.
    #[prost(message, tag = "5")]
    Draining(Draining),
    /// It has drained and exits.
    #[prost(message, tag = "6")]
    Drained(Drained),
    /// Its last words: it cannot start or go on.
    #[prost(message, tag = "7")]
    Failed(Failed),
    /// It has given everything back and exits.
    #[prost(message, tag = "8")]
    Ended(Ended),
    /// It cannot serve yet, through no fault of its own. Said every half second; once more, with nothing in it, when it goes on.
    #[prost(message, tag = "9")]
    Waiting(Waiting),
    /// It was given other secrets; the sealed memfd with them comes with it, for whoever is started next.
    #[prost(message, tag = "10")]
    Renewed(Renewed),
}

/// See [`FromMounter::Hello`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Hello {
    /// Its process id, as it sees it.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Its version.
    #[prost(string, tag = "2")]
    pub version: String,
    /// Formats of the journal that it reads.
    #[prost(message, optional, tag = "3")]
    pub journal: Option<Formats>,
    /// Formats of the slots file that it reads.
    #[prost(message, optional, tag = "4")]
    pub slots: Option<Formats>,
    /// Formats of this link that it reads.
    #[prost(message, optional, tag = "5")]
    pub link: Option<Formats>,
}

/// A range of formats, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Formats {
    /// Oldest.
    #[prost(uint32, tag = "1")]
    pub lowest: u32,
    /// Newest.
    #[prost(uint32, tag = "2")]
    pub highest: u32,
}

impl From<RangeInclusive<u32>> for Formats {
    fn from(range: RangeInclusive<u32>) -> Self {
        Self { lowest: *range.start(), highest: *range.end() }
    }
}

impl From<Formats> for RangeInclusive<u32> {
    fn from(formats: Formats) -> Self {
        formats.lowest..=formats.highest
    }
}

/// See [`FromMounter::StandingBy`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct StandingBy {}

/// See [`FromMounter::Serving`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Serving {
    /// Records of the journal that were not committed and have been taken up.
    #[prost(uint64, tag = "1")]
    pub replayed: u64,
    /// Requests that a predecessor had read and that have been answered.
    #[prost(uint64, tag = "2")]
    pub recovered: u64,
    /// Microseconds since [`TakeOver`], or [`Start`] where there was none.
    #[prost(uint64, tag = "3")]
    pub micros: u64,
}

/// See [`FromMounter::Draining`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Draining {}

/// See [`FromMounter::Drained`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Drained {}

/// See [`FromMounter::Failed`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Failed {
    /// The kind of the failure, as `tarbox_types::ErrorKind` is spelt.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// What it would have shown to a user, the whole chain.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// See [`FromMounter::Ended`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Ended {
    /// Whether the file system was unmounted; else it was told to stop.
    #[prost(bool, tag = "1")]
    pub unmounted: bool,
}

/// See [`FromMounter::Waiting`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Waiting {
    /// What for, in the words of `StatusResponse.waiting_for`: `the database`, `the lease`; empty: for nothing any more.
    #[prost(string, tag = "1")]
    pub what: String,
}

/// See [`FromMounter::Renewed`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Renewed {}

/// Exit codes of a supervised mounter, as its supervisor reads them.
pub mod exit {
    /// Unmounted or stopped, everything given back: nothing to restart.
    pub const ENDED: i32 = 0;
    /// Drained for a successor.
    pub const DRAINED: i32 = 3;
    /// Wrong usage: a restart does not help.
    pub const USAGE: i32 = 64;
    /// Wrong configuration: a restart does not help.
    pub const CONFIGURATION: i32 = 78;

    /// Whether the process that ended so is to be replaced by another one of the same kind.
    /// `code` is None where a signal ended it, or where nobody knows.
    #[must_use]
    pub fn wants_restart(code: Option<i32>) -> bool {
        !matches!(code, Some(ENDED | USAGE | CONFIGURATION))
    }
}

/// A message and the format it is written in.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DownPacket {
    #[prost(uint32, tag = "1")]
    pub(crate) format: u32,
    #[prost(oneof = "ToMounter", tags = "2, 3, 4, 5")]
    pub(crate) body: Option<ToMounter>,
}

/// A message and the format it is written in.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct UpPacket {
    #[prost(uint32, tag = "1")]
    pub(crate) format: u32,
    #[prost(oneof = "FromMounter", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub(crate) body: Option<FromMounter>,
}
