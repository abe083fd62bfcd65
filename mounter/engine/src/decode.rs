//! Requests: bytes to an [`Operation`]. Pure; every byte sequence gives a value or an error, never a panic.
//!
//! [`Frame::parse`] splits a request by the table in [`crate::opcode`] and checks every length;
//! [`Frame::operation`] names the fields in the order in which the kernel's structures have them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::abi::{self, UNIQUE_RESEND, fattr, opcode as op};
use crate::opcode::{Tail, shape_of};

/// Why bytes are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not even a header, or one whose length is not that of the message.
    #[error("header of a request of {available} bytes is cut off or names another length")]
    Header {
        /// Length of the message in bytes.
        available: usize,
    },
    /// No operation has this number.
    #[error("unknown operation {opcode}")]
    Unknown {
        /// The number.
        opcode: u32,
    },
    /// The body is shorter or longer than the operation's table line says.
    #[error("body of operation {opcode} has a wrong length")]
    Length {
        /// The operation's number.
        opcode: u32,
    },
    /// A name is empty, not ended, or contains NUL.
    #[error("name in operation {opcode} is empty or not ended")]
    Name {
        /// The operation's number.
        opcode: u32,
    },
}

/// What the negotiated flags change about the layout of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dialect {
    /// `FUSE_SETXATTR_EXT`: SETXATTR has 16 fixed bytes, not 8.
    pub setxattr_ext: bool,
}

/// `struct fuse_in_header`, without what nobody needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The whole message's length in bytes.
    pub len: usize,
    /// Which operation.
    pub opcode: u32,
    /// As received, bit 63 in: the reply has to carry the same.
    pub unique: u64,
    /// The inode that the operation is about.
    pub nodeid: u64,
    /// The caller.
    pub uid: u32,
    /// The caller's group.
    pub gid: u32,
    /// The caller's process; 0 where it is invisible from here.
    pub pid: u32,
    extensions: usize,
}

impl Header {
    /// Reads the header of the message `bytes`.
    ///
    /// # Errors
    /// [`DecodeError::Header`] where the message is shorter than a header or its length field says otherwise.
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let bad = DecodeError::Header { available: bytes.len() };
        let mut fields = Fields(bytes);
        let header = Self {
            len: fields.u32().ok_or(bad)? as usize,
            opcode: fields.u32().ok_or(bad)?,
            unique: fields.u64().ok_or(bad)?,
            nodeid: fields.u64().ok_or(bad)?,
            uid: fields.u32().ok_or(bad)?,
            gid: fields.u32().ok_or(bad)?,
            pid: fields.u32().ok_or(bad)?,
            extensions: usize::from(fields.u16().ok_or(bad)?) * 8,
        };
        if bytes.len() < abi::IN_HEADER_SIZE || header.len != bytes.len() {
            return Err(bad);
        }
        Ok(header)
    }

    /// `unique` as the file system knows it: the same for a request and for its repetition.
    #[must_use]
    pub fn request_id(&self) -> u64 {
        self.unique & !UNIQUE_RESEND
    }
}

/// Reads numbers one after the other.
#[derive(Clone, Copy, Debug)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_ne_bytes)
    }

    /// Takes a name and its NUL.
    fn name(&mut self) -> Option<&'a OsStr> {
        let end = self.0.iter().position(|byte| *byte == 0).filter(|end| *end > 0)?;
        let (name, rest) = self.0.split_at(end);
        self.0 = rest.get(1..)?;
        Some(OsStr::from_bytes(name))
    }
}

/// A request whose lengths are right.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Its header.
    pub header: Header,
    fixed: Fields<'a>,
    names: [&'a OsStr; 2],
    data: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Splits the message `bytes` by the table.
    ///
    /// # Errors
    /// Whatever differs from the operation's table line.
    pub fn parse(bytes: &'a [u8], dialect: Dialect) -> Result<Self, DecodeError> {
        let header = Header::parse(bytes)?;
        let opcode = header.opcode;
        let shape = shape_of(opcode).ok_or(DecodeError::Unknown { opcode })?;
        let wrong_length = DecodeError::Length { opcode };
        let body = &bytes[abi::IN_HEADER_SIZE..];
        // Extensions (security context, supplementary group) are never negotiated; should one come, it is left out.
        let body =
            body.len().checked_sub(header.extensions).and_then(|len| body.get(..len)).ok_or(wrong_length)?;
        let fixed_length = if opcode == op::SETXATTR && dialect.setxattr_ext { 16 } else { shape.fixed };
        let (fixed, rest) = body.split_at_checked(fixed_length).ok_or(wrong_length)?;
        let mut tail = Fields(rest);
        let mut names = [OsStr::new(""); 2];
        let wanted = match shape.tail {
            Tail::Nothing | Tail::Bytes | Tail::Anything => 0,
            Tail::Name | Tail::NameAndBytes => 1,
            Tail::TwoNames => 2,
        };
        for name in &mut names[..wanted] {
            *name = tail.name().ok_or(DecodeError::Name { opcode })?;
        }
        let takes_rest = matches!(shape.tail, Tail::Bytes | Tail::NameAndBytes | Tail::Anything);
        if !takes_rest && !tail.0.is_empty() {
            return Err(wrong_length);
        }
        Ok(Self { header, fixed: Fields(fixed), names, data: tail.0 })
    }

    /// Names the fields.
    ///
    /// # Errors
    /// [`DecodeError::Length`] where a count in the request disagrees with its length.
    pub fn operation(&self) -> Result<Operation<'a>, DecodeError> {
        self.fields().ok_or(DecodeError::Length { opcode: self.header.opcode })
    }

    fn fields(&self) -> Option<Operation<'a>> {
        let mut f = self.fixed;
        let [name, second] = self.names;
        let data = self.data;
        Some(match self.header.opcode {
            op::LOOKUP => Operation::Lookup { name },
            op::FORGET => Operation::Forget { nlookup: f.u64()? },
            op::GETATTR => {
                let (flags, _, fh) = (f.u32()?, f.u32()?, f.u64()?);
                Operation::Getattr { fh: (flags & abi::GETATTR_FH != 0).then_some(fh), flags }
            }
            op::SETATTR => Operation::Setattr(SetattrIn::read(&mut f)?),
            op::READLINK => Operation::Readlink,
            op::SYMLINK => Operation::Symlink { name, target: second },
            op::MKNOD => Operation::Mknod { name, mode: f.u32()?, rdev: f.u32()?, umask: f.u32()? },
            op::MKDIR => Operation::Mkdir { name, mode: f.u32()?, umask: f.u32()? },
            op::UNLINK => Operation::Unlink { name },
            op::RMDIR => Operation::Rmdir { name },
            op::RENAME => Operation::Rename { name, new_parent: f.u64()?, new_name: second },
            op::RENAME2 => {
                Operation::Rename2 { name, new_parent: f.u64()?, new_name: second, flags: f.u32()? }
            }
            op::LINK => Operation::Link { inode: f.u64()?, new_name: name },
            op::OPEN => Operation::Open { flags: f.u32()? },
            op::OPENDIR => Operation::Opendir { flags: f.u32()? },
            op::READ => Operation::Read(ReadIn::read(&mut f)?),
            op::READDIR => Operation::Readdir(ReadIn::read(&mut f)?),
            op::READDIRPLUS => Operation::Readdirplus(ReadIn::read(&mut f)?),
            op::WRITE => {
                let (fh, offset, size, write_flags) = (f.u64()?, f.u64()?, f.u32()?, f.u32()?);
                let (_lock_owner, flags) = (f.u64()?, f.u32()?);
                (size as usize == data.len()).then_some(())?;
                Operation::Write { fh, offset, data, write_flags, flags }
            }
            op::STATFS => Operation::Statfs,
            op::RELEASE => {
                let (fh, flags, release_flags, lock_owner) = (f.u64()?, f.u32()?, f.u32()?, f.u64()?);
                Operation::Release { fh, flags, lock_owner, flush: release_flags & abi::RELEASE_FLUSH != 0 }
            }
            op::RELEASEDIR => Operation::Releasedir { fh: f.u64()?, flags: f.u32()? },
            op::FSYNC => Operation::Fsync { fh: f.u64()?, datasync: f.u32()? & abi::FSYNC_FDATASYNC != 0 },
            op::FSYNCDIR => {
                Operation::Fsyncdir { fh: f.u64()?, datasync: f.u32()? & abi::FSYNC_FDATASYNC != 0 }
            }
            op::SETXATTR => {
                let (size, flags) = (f.u32()?, f.u32()?);
                (size as usize == data.len()).then_some(())?;
                // Absent in the short form.
                let setxattr_flags = f.u32().unwrap_or(0);
                Operation::Setxattr { name, value: data, flags, setxattr_flags }
            }
            op::GETXATTR => Operation::Getxattr { name, size: f.u32()? },
            op::LISTXATTR => Operation::Listxattr { size: f.u32()? },
            op::REMOVEXATTR => Operation::Removexattr { name },
            op::FLUSH => {
                let (fh, _, lock_owner) = (f.u64()?, f.u64()?, f.u64()?);
                Operation::Flush { fh, lock_owner }
            }
            op::INIT => Operation::Init(InitIn::read(&mut f, data)?),
            op::GETLK => Operation::Getlk(LockIn::read(&mut f)?),
            op::SETLK => Operation::Setlk { lock: LockIn::read(&mut f)?, block: false },
            op::SETLKW => Operation::Setlk { lock: LockIn::read(&mut f)?, block: true },
            op::ACCESS => Operation::Access { mask: f.u32()? },
            op::CREATE | op::TMPFILE => {
                let (flags, mode, umask) = (f.u32()?, f.u32()?, f.u32()?);
                Operation::Create { name, mode, umask, flags, tmpfile: self.header.opcode == op::TMPFILE }
            }
            op::INTERRUPT => Operation::Interrupt { unique: f.u64()? },
            op::BMAP => Operation::Bmap { block: f.u64()?, blocksize: f.u32()? },
            op::DESTROY => Operation::Destroy,
            op::NOTIFY_REPLY => Operation::NotifyReply,
            op::BATCH_FORGET => Operation::BatchForget(Forgets::read(f.u32()?, data)?),
            op::FALLOCATE => {
                Operation::Fallocate { fh: f.u64()?, offset: f.u64()?, length: f.u64()?, mode: f.u32()? }
            }
            op::LSEEK => Operation::Lseek { fh: f.u64()?, offset: f.u64()?, whence: f.u32()? },
            op::COPY_FILE_RANGE | op::COPY_FILE_RANGE_64 => Operation::CopyFileRange(CopyIn {
                fh_in: f.u64()?,
                off_in: f.u64()?,
                inode_out: f.u64()?,
                fh_out: f.u64()?,
                off_out: f.u64()?,
                length: f.u64()?,
                flags: f.u64()?,
                wide: self.header.opcode == op::COPY_FILE_RANGE_64,
            }),
            _ => Operation::Unsupported,
        })
    }
}

/// A request's operation with its arguments. Names and data are the request's own bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Variants and fields are those of `fuse3::raw::Filesystem`.
pub enum Operation<'a> {
    Lookup {
        name: &'a OsStr,
    },
    Forget {
        nlookup: u64,
    },
    Getattr {
        fh: Option<u64>,
        flags: u32,
    },
    Setattr(SetattrIn),
    Readlink,
    Symlink {
        name: &'a OsStr,
        target: &'a OsStr,
    },
    Mknod {
        name: &'a OsStr,
        mode: u32,
        rdev: u32,
        umask: u32,
    },
    Mkdir {
        name: &'a OsStr,
        mode: u32,
        umask: u32,
    },
    Unlink {
        name: &'a OsStr,
    },
    Rmdir {
        name: &'a OsStr,
    },
    Rename {
        name: &'a OsStr,
        new_parent: u64,
        new_name: &'a OsStr,
    },
    Rename2 {
        name: &'a OsStr,
        new_parent: u64,
        new_name: &'a OsStr,
        flags: u32,
    },
    Link {
        inode: u64,
        new_name: &'a OsStr,
    },
    Open {
        flags: u32,
    },
    Opendir {
        flags: u32,
    },
    Read(ReadIn),
    Readdir(ReadIn),
    Readdirplus(ReadIn),
    Write {
        fh: u64,
        offset: u64,
        data: &'a [u8],
        write_flags: u32,
        flags: u32,
    },
    Statfs,
    Release {
        fh: u64,
        flags: u32,
        lock_owner: u64,
        flush: bool,
    },
    Releasedir {
        fh: u64,
        flags: u32,
    },
    Fsync {
        fh: u64,
        datasync: bool,
    },
    Fsyncdir {
        fh: u64,
        datasync: bool,
    },
    Setxattr {
        name: &'a OsStr,
        value: &'a [u8],
        flags: u32,
        setxattr_flags: u32,
    },
    Getxattr {
        name: &'a OsStr,
        size: u32,
    },
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: &'a OsStr,
    },
    Flush {
        fh: u64,
        lock_owner: u64,
    },
    Init(InitIn),
    Getlk(LockIn),
    Setlk {
        lock: LockIn,
        block: bool,
    },
    Access {
        mask: u32,
    },
    Create {
        name: &'a OsStr,
        mode: u32,
        umask: u32,
        flags: u32,
        tmpfile: bool,
    },
    Interrupt {
        unique: u64,
    },
    Bmap {
        block: u64,
        blocksize: u32,
    },
    Destroy,
    NotifyReply,
    BatchForget(Forgets<'a>),
    Fallocate {
        fh: u64,
        offset: u64,
        length: u64,
        mode: u32,
    },
    Lseek {
        fh: u64,
        offset: u64,
        whence: u32,
    },
    CopyFileRange(CopyIn),
    /// Known, and answered with ENOSYS so that the kernel falls back.
    Unsupported,
}

/// `struct fuse_read_in`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ReadIn {
    pub fh: u64,
    pub offset: u64,
    pub size: u32,
    pub lock_owner: u64,
}

impl ReadIn {
    fn read(f: &mut Fields<'_>) -> Option<Self> {
        let (fh, offset, size, _read_flags) = (f.u64()?, f.u64()?, f.u32()?, f.u32()?);
        Some(Self { fh, offset, size, lock_owner: f.u64()? })
    }
}

/// `struct fuse_setattr_in`; [`SetattrIn::has`] tells which fields count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SetattrIn {
    pub valid: u32,
    pub fh: u64,
    pub size: u64,
    pub lock_owner: u64,
    pub atime: (i64, u32),
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

impl SetattrIn {
    fn read(f: &mut Fields<'_>) -> Option<Self> {
        let (valid, _padding) = (f.u32()?, f.u32()?);
        let (fh, size, lock_owner) = (f.u64()?, f.u64()?, f.u64()?);
        // The kernel declares the seconds unsigned and means time_t.
        let (atime, mtime, ctime) = (f.u64()? as i64, f.u64()? as i64, f.u64()? as i64);
        let (atimensec, mtimensec, ctimensec) = (f.u32()?, f.u32()?, f.u32()?);
        let (mode, _unused, uid, gid) = (f.u32()?, f.u32()?, f.u32()?, f.u32()?);
        Some(Self {
            valid,
            fh,
            size,
            lock_owner,
            atime: (atime, atimensec),
            mtime: (mtime, mtimensec),
            ctime: (ctime, ctimensec),
            mode,
            uid,
            gid,
        })
    }

    /// Whether `bit` of [`fattr`] is set.
    #[must_use]
    pub fn has(&self, bit: u32) -> bool {
        self.valid & bit != 0
    }

    /// The file handle, where the caller changes an open file.
    #[must_use]
    pub fn handle(&self) -> Option<u64> {
        self.has(fattr::FH).then_some(self.fh)
    }
}

/// `struct fuse_lk_in`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct LockIn {
    pub fh: u64,
    pub owner: u64,
    pub start: u64,
    pub end: u64,
    pub kind: u32,
    pub pid: u32,
}

impl LockIn {
    fn read(f: &mut Fields<'_>) -> Option<Self> {
        Some(Self {
            fh: f.u64()?,
            owner: f.u64()?,
            start: f.u64()?,
            end: f.u64()?,
            kind: f.u32()?,
            pid: f.u32()?,
        })
    }
}

/// `struct fuse_copy_file_range_in`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct CopyIn {
    pub fh_in: u64,
    pub off_in: u64,
    pub inode_out: u64,
    pub fh_out: u64,
    pub off_out: u64,
    pub length: u64,
    pub flags: u64,
    /// The reply has 64 bits (`FUSE_COPY_FILE_RANGE_64`).
    pub wide: bool,
}

/// `struct fuse_init_in`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct InitIn {
    pub major: u32,
    pub minor: u32,
    pub max_readahead: u32,
    /// Both halves.
    pub flags: u64,
}

impl InitIn {
    fn read(f: &mut Fields<'_>, extended: &[u8]) -> Option<Self> {
        let (major, minor, max_readahead, low) = (f.u32()?, f.u32()?, f.u32()?, f.u32()?);
        let low = u64::from(low);
        let high = match Fields(extended).u32() {
            Some(high) if low & abi::init::INIT_EXT != 0 => u64::from(high),
            _ => 0,
        };
        Some(Self { major, minor, max_readahead, flags: low | high << 32 })
    }
}

/// The inodes of BATCH_FORGET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forgets<'a>(&'a [u8]);

impl<'a> Forgets<'a> {
    fn read(count: u32, data: &'a [u8]) -> Option<Self> {
        (data.len() == (count as usize).checked_mul(16)?).then_some(Self(data))
    }

    /// The pairs (inode, count).
    #[must_use]
    pub fn to_vec(self) -> Vec<(u64, u64)> {
        let pair = |mut f: Fields<'_>| Some((f.u64()?, f.u64()?));
        self.0.chunks_exact(16).filter_map(|chunk| pair(Fields(chunk))).collect()
    }
}

#[cfg(test)]
mod tests;
