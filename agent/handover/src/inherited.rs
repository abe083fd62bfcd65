//! Taking a descriptor that was inherited under a number.

use std::collections::BTreeSet;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use parking_lot::Mutex;
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::net::{SocketType, sockopt::socket_type};

use crate::{HandoverError, MounterLink};

/// Numbers that have been taken: a second owner would close the first one's descriptor.
static TAKEN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

impl MounterLink {
    /// The mounter's end of a link, inherited under this number. To be called before the process opens anything itself.
    ///
    /// # Errors
    /// Where there is no descriptor of that number, it is no end of a link, or has been taken before.
    pub fn inherited(number: i32) -> Result<Self, HandoverError> {
        let socket = take(number)?;
        match socket_type(&socket) {
            Ok(SocketType::SEQPACKET) => Ok(Self::new(socket)),
            _ => Err(HandoverError::NotALink { number }),
        }
    }
}

#[allow(unsafe_code)]
fn take(number: i32) -> Result<OwnedFd, HandoverError> {
    let no_link = || HandoverError::NotALink { number };
    if number < 3 || !TAKEN.lock().insert(number) {
        return Err(no_link());
    }
    // SAFETY: borrowed only for two calls, which say so if it is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl_getfd(borrowed).map_err(|_| no_link())?;
    // What this process executes is not to inherit it in turn. One that is so already was opened by this process.
    if flags.contains(FdFlags::CLOEXEC) {
        return Err(no_link());
    }
    fcntl_setfd(borrowed, FdFlags::CLOEXEC).map_err(|_| no_link())?;
    // SAFETY: it is open, was inherited (descriptors that are opened here are close-on-exec), and is taken only once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
