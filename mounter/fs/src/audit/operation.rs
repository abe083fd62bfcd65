//! What is audited, and from which level on.

use tarbox_types::AuditLevel;

/// An operation. Its number stands in journals and databases: none is used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Operation {
    /// A file, by open(2).
    Create = 1,
    /// A directory.
    Mkdir = 2,
    /// A device, a FIFO, a socket.
    Mknod = 3,
    /// A symbolic link.
    Symlink = 4,
    /// One more name.
    Link = 5,
    /// A name less.
    Unlink = 6,
    /// A directory less.
    Rmdir = 7,
    /// Another name.
    Rename = 8,
    /// Permission bits.
    Chmod = 9,
    /// Owner or group.
    Chown = 10,
    /// An extended attribute (ACLs as well).
    Setxattr = 11,
    /// An extended attribute less.
    Removexattr = 12,
    /// Content.
    Write = 13,
    /// Another size.
    Truncate = 14,
    /// Space taken, given back or zeroed by fallocate(2).
    Allocate = 15,
    /// A file was opened.
    Open = 16,
    /// Content was looked at.
    Read = 17,
    /// Times.
    Utimens = 18,
    /// A process began to serve the tenant.
    Mount = 19,
    /// It was unmounted.
    Unmount = 20,
    /// Another process went on serving it.
    TakeOver = 21,
}

/// All of them.
pub const ALL: [Operation; 21] = {
    use Operation::*;
    [
        Create,
        Mkdir,
        Mknod,
        Symlink,
        Link,
        Unlink,
        Rmdir,
        Rename,
        Chmod,
        Chown,
        Setxattr,
        Removexattr,
        Write,
        Truncate,
        Allocate,
        Open,
        Read,
        Utimens,
        Mount,
        Unmount,
        TakeOver,
    ]
};

impl Operation {
    /// The one of this number.
    #[must_use]
    pub fn of_number(number: u8) -> Option<Self> {
        ALL.into_iter().find(|operation| *operation as u8 == number)
    }

    /// The one of this name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        ALL.into_iter().find(|operation| operation.name() == name)
    }

    /// As people read and write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Mkdir => "mkdir",
            Self::Mknod => "mknod",
            Self::Symlink => "symlink",
            Self::Link => "link",
            Self::Unlink => "unlink",
            Self::Rmdir => "rmdir",
            Self::Rename => "rename",
            Self::Chmod => "chmod",
            Self::Chown => "chown",
            Self::Setxattr => "setxattr",
            Self::Removexattr => "removexattr",
            Self::Write => "write",
            Self::Truncate => "truncate",
            Self::Allocate => "allocate",
            Self::Open => "open",
            Self::Read => "read",
            Self::Utimens => "utimens",
            Self::Mount => "mount",
            Self::Unmount => "unmount",
            Self::TakeOver => "takeover",
        }
    }

    /// From which level on it is kept.
    #[must_use]
    pub fn level(self) -> AuditLevel {
        match self {
            Self::Create
            | Self::Mkdir
            | Self::Mknod
            | Self::Symlink
            | Self::Link
            | Self::Unlink
            | Self::Rmdir
            | Self::Rename
            | Self::Chmod
            | Self::Chown
            | Self::Setxattr
            | Self::Removexattr
            | Self::Mount
            | Self::Unmount
            | Self::TakeOver => AuditLevel::Basic,
            Self::Write | Self::Truncate | Self::Allocate => AuditLevel::Standard,
            Self::Open | Self::Read | Self::Utimens => AuditLevel::Full,
        }
    }

    /// Whether many of it are summed up below [`AuditLevel::Full`].
    #[must_use]
    pub fn is_content(self) -> bool {
        matches!(self, Self::Write | Self::Truncate | Self::Allocate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_lead_back_and_none_stands_twice() {
        for operation in ALL {
            assert_eq!(Operation::of_number(operation as u8), Some(operation));
            assert_eq!(Operation::of_name(operation.name()), Some(operation));
        }
        assert_eq!((Operation::of_number(0), Operation::of_name("")), (None, None));
    }
}
