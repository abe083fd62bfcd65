//! What the file system tells the kernel's caches.

use std::io;
use std::sync::Arc;

use tarbox_types::{Ino, KernelCache};

use crate::abi::notify;
use crate::device::Device;

/// The caches of one connection.
#[derive(Clone, Debug)]
pub struct Caches {
    device: Arc<Device>,
}

impl Caches {
    pub(crate) fn new(device: Arc<Device>) -> Self {
        Self { device }
    }

    /// Tells that somebody else has removed `name`: drops it and lets watchers know. Returns whether the kernel knew it.
    pub fn delete_entry(&self, parent: Ino, child: Ino, name: &[u8]) -> bool {
        let mut body = Vec::with_capacity(25 + name.len());
        body.extend_from_slice(&parent.to_ne_bytes());
        body.extend_from_slice(&child.to_ne_bytes());
        push_name(&mut body, name);
        self.tell(notify::DELETE, &body)
    }

    /// Makes every cached name be looked up again (7.44, Linux 6.17). Returns false where the kernel cannot.
    #[must_use]
    pub fn increment_epoch(&self) -> bool {
        self.device.notify(notify::INC_EPOCH, &[]).is_ok()
    }

    fn tell(&self, code: i32, body: &[u8]) -> bool {
        match self.device.notify(code, body) {
            Ok(()) => true,
            Err(error) if is_unknown(&error) => false,
            Err(error) => {
                // For instance EBUSY or ENOTEMPTY: a directory that is in use. The kernel knows it.
                tracing::debug!(%error, code, "the kernel did not follow a notification");
                true
            }
        }
    }
}

/// Whether the kernel says that it has nothing of the kind, or that it has no file system any more.
fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENOTCONN | libc::ECONNABORTED))
}

/// Length, padding or flags, name, NUL.
fn push_name(body: &mut Vec<u8>, name: &[u8]) {
    body.extend_from_slice(&u32::try_from(name.len()).unwrap_or(u32::MAX).to_ne_bytes());
    body.extend_from_slice(&0_u32.to_ne_bytes());
    body.extend_from_slice(name);
    body.push(0);
}

impl KernelCache for Caches {
    fn invalidate_inode(&self, ino: Ino, offset: i64, length: i64) -> bool {
        let mut body = [0; 24];
        body[0..8].copy_from_slice(&ino.to_ne_bytes());
        body[8..16].copy_from_slice(&offset.to_ne_bytes());
        body[16..24].copy_from_slice(&length.to_ne_bytes());
        self.tell(notify::INVAL_INODE, &body)
    }

    fn invalidate_entry(&self, parent: Ino, name: &[u8]) -> bool {
        let mut body = Vec::with_capacity(17 + name.len());
        body.extend_from_slice(&parent.to_ne_bytes());
        push_name(&mut body, name);
        self.tell(notify::INVAL_ENTRY, &body)
    }
}
