//! Another descriptor of a FUSE connection, that reads without waiting.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;

nix::ioctl_read!(fuse_dev_ioc_clone, 229, 0, u32);

/// Opens another descriptor of the connection of `device`, with `O_NONBLOCK`: that flag belongs to what is opened here,
/// not to the descriptors that mounters use.
///
/// # Errors
/// Where `/dev/fuse` may not be opened, or the connection is gone.
pub(crate) fn clone_device(device: impl AsFd) -> io::Result<File> {
    let clone = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/fuse")?;
    let mut source = device.as_fd().as_raw_fd() as u32;
    // SAFETY: both descriptors are open, and the kernel only reads the four bytes of `source`.
    unsafe { fuse_dev_ioc_clone(clone.as_raw_fd(), &raw mut source) }?;
    Ok(clone)
}
