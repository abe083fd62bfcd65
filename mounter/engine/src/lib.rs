//! The FUSE session: wire format, queues, slots, mounting.
//!
//! Serves any [`fuse3::raw::Filesystem`] on a connection that outlives the process serving it: requests are read into
//! shared memory ([`slots`]), so that a successor answers what its predecessor had read ([`recovery`]).
//!
//! ```text
//! session ── handshake (INIT) ── init
//!    ├────── recovery, sweep ────┐
//!    └─ serve (reading threads) ─┴─ dispatch ── decode, encode ── opcode, abi      pure
//!          └─ link: device, slots, flight, resend, statistics                      the connection
//! notify (kernel caches)   mount
//! ```

pub mod abi;
pub mod decode;
mod device;
mod dispatch;
pub mod encode;
mod flight;
mod handshake;
pub mod init;
mod link;
pub mod mount;
pub mod mount_tree;
pub mod mounts;
mod notify;
#[cfg(feature = "nullfs")]
pub mod nullfs;
pub mod opcode;
mod readers;
mod recovery;
mod resend;
mod serve;
mod session;
pub mod slots;
mod statistics;
mod sweep;

pub use device::clone_device;
pub use flight::{Activity, InFlight};
pub use init::{InitWishes, SavedInit};
pub use mount::{MountError, MountOptions, mount, unmount};
pub use notify::Caches;
pub use recovery::Recovered;
pub use session::{Ended, Observer, Session, SessionConfig, SessionParts};
pub use slots::{FORMAT as SLOTS_FORMAT, SlotsLayout, connection, create_slots, is_agreed};
pub use statistics::OperationStatistics;
