//! How a process is to be started.

use prost::Message;

/// In the environment of every mounter: `(name, value)`. glibc's malloc keeps an arena of up to 64 MiB for each of many threads, most of it
/// free and not given back: with two, which suffice, a mounter under load is smaller by 70 MiB and as fast. Source: mallopt(3).
pub const FEW_ARENAS: (&str, &str) = ("MALLOC_ARENA_MAX", "2");

/// How a process is to be started. Its descriptors go with the message that carries this.
///
/// It gets the mounter's end of a link as descriptor 3, `/dev/null` or the log as 0, 1 and 2, and no other descriptor; no
/// signal when its parent dies; no way to new privileges; an empty signal mask; the working directory `/`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SpawnSpec {
    /// Which of the message's descriptors is executed.
    #[prost(uint32, tag = "1")]
    pub executable: u32,
    /// Arguments, the program's name first.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub argv: Vec<Vec<u8>>,
    /// The whole environment, `NAME=value`.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub env: Vec<Vec<u8>>,
    /// User; the keeper's own by default. Whoever is not root loses all capabilities.
    #[prost(uint32, optional, tag = "4")]
    pub uid: Option<u32>,
    /// Group; the keeper's own by default.
    #[prost(uint32, optional, tag = "5")]
    pub gid: Option<u32>,
    /// Further groups; where a user or group is given, none but these.
    #[prost(uint32, repeated, tag = "6")]
    pub groups: Vec<u32>,
    /// Resource limits; others are inherited.
    #[prost(message, repeated, tag = "7")]
    pub limits: Vec<Limit>,
    /// `oom_score_adj`, −999 to 1000; inherited by default.
    #[prost(sint32, optional, tag = "8")]
    pub oom_score_adj: Option<i32>,
    /// Directories of cgroups to enter, one per hierarchy.
    #[prost(string, repeated, tag = "9")]
    pub cgroups: Vec<String>,
    /// Niceness, −20 to 19; inherited by default.
    #[prost(sint32, optional, tag = "10")]
    pub nice: Option<i32>,
    /// Whether it leads a session of its own, so that no terminal reaches it.
    #[prost(bool, tag = "11")]
    pub new_session: bool,
    /// Which of the message's descriptors is its standard output and error; `/dev/null` by default.
    #[prost(uint32, optional, tag = "12")]
    pub log: Option<u32>,
    /// Whether it has no capabilities even if it is root: it is root's files that it needs, not root's rights.
    #[prost(bool, tag = "13")]
    pub without_capabilities: bool,
}

/// One resource limit (`setrlimit(2)`).
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Limit {
    /// `RLIMIT_…`, by the kernel's number.
    #[prost(uint32, tag = "1")]
    pub resource: u32,
    /// What is enforced; the largest number means no limit.
    #[prost(uint64, tag = "2")]
    pub soft: u64,
    /// Up to where the process may raise it.
    #[prost(uint64, tag = "3")]
    pub hard: u64,
}
