//! The table of operations: name, length of the fixed part, what follows it, whether the kernel waits for a reply.
//!
//! Source: `linux/fuse.h` 7.45 and the kernel's `fs/fuse/dev.c`.

use crate::abi::opcode as op;

/// What follows the fixed part of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Nothing.
    Nothing,
    /// A name, ended by NUL.
    Name,
    /// Two names, each ended by NUL.
    TwoNames,
    /// A name, ended by NUL, then as many bytes as the request's `size` says.
    NameAndBytes,
    /// As many bytes as the request says.
    Bytes,
    /// Anything: the operation is not offered, or its length differs between kernels.
    Anything,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The operation's name as in `enum fuse_opcode`, lower case.
    pub name: &'static str,
    /// Length of the fixed part in bytes.
    pub fixed: usize,
    /// What follows it.
    pub tail: Tail,
    /// Whether the kernel waits for a reply.
    pub replies: bool,
}

/// Every operation's number is below this.
pub const COUNT: usize = 54;

const fn shape(name: &'static str, fixed: usize, tail: Tail) -> Option<Shape> {
    Some(Shape { name, fixed, tail, replies: true })
}

const fn unanswered(name: &'static str, fixed: usize, tail: Tail) -> Option<Shape> {
    Some(Shape { name, fixed, tail, replies: false })
}

static SHAPES: [Option<Shape>; COUNT] = {
    use Tail::{Anything, Bytes, Name, NameAndBytes, Nothing, TwoNames};
    let mut table: [Option<Shape>; COUNT] = [None; COUNT];
    table[op::LOOKUP as usize] = shape("lookup", 0, Name);
    table[op::FORGET as usize] = unanswered("forget", 8, Nothing);
    table[op::GETATTR as usize] = shape("getattr", 16, Nothing);
    table[op::SETATTR as usize] = shape("setattr", 88, Nothing);
    table[op::READLINK as usize] = shape("readlink", 0, Nothing);
    table[op::SYMLINK as usize] = shape("symlink", 0, TwoNames);
    table[op::MKNOD as usize] = shape("mknod", 16, Name);
    table[op::MKDIR as usize] = shape("mkdir", 8, Name);
    table[op::UNLINK as usize] = shape("unlink", 0, Name);
    table[op::RMDIR as usize] = shape("rmdir", 0, Name);
    table[op::RENAME as usize] = shape("rename", 8, TwoNames);
    table[op::LINK as usize] = shape("link", 8, Name);
    table[op::OPEN as usize] = shape("open", 8, Nothing);
    table[op::READ as usize] = shape("read", 40, Nothing);
    table[op::WRITE as usize] = shape("write", 40, Bytes);
    table[op::STATFS as usize] = shape("statfs", 0, Nothing);
    table[op::RELEASE as usize] = shape("release", 24, Nothing);
    table[op::FSYNC as usize] = shape("fsync", 16, Nothing);
    // The short form, without FUSE_SETXATTR_EXT; see `fixed_length`.
    table[op::SETXATTR as usize] = shape("setxattr", 8, NameAndBytes);
    table[op::GETXATTR as usize] = shape("getxattr", 8, Name);
    table[op::LISTXATTR as usize] = shape("listxattr", 8, Nothing);
    table[op::REMOVEXATTR as usize] = shape("removexattr", 0, Name);
    table[op::FLUSH as usize] = shape("flush", 24, Nothing);
    // 16 bytes before 7.36, 64 since.
    table[op::INIT as usize] = shape("init", 16, Anything);
    table[op::OPENDIR as usize] = shape("opendir", 8, Nothing);
    table[op::READDIR as usize] = shape("readdir", 40, Nothing);
    table[op::RELEASEDIR as usize] = shape("releasedir", 24, Nothing);
    table[op::FSYNCDIR as usize] = shape("fsyncdir", 16, Nothing);
    table[op::GETLK as usize] = shape("getlk", 48, Nothing);
    table[op::SETLK as usize] = shape("setlk", 48, Nothing);
    table[op::SETLKW as usize] = shape("setlkw", 48, Nothing);
    table[op::ACCESS as usize] = shape("access", 8, Nothing);
    table[op::CREATE as usize] = shape("create", 16, Name);
    table[op::INTERRUPT as usize] = unanswered("interrupt", 8, Nothing);
    table[op::BMAP as usize] = shape("bmap", 16, Nothing);
    table[op::DESTROY as usize] = shape("destroy", 0, Anything);
    table[op::IOCTL as usize] = shape("ioctl", 0, Anything);
    table[op::POLL as usize] = shape("poll", 0, Anything);
    table[op::NOTIFY_REPLY as usize] = unanswered("notify_reply", 40, Bytes);
    table[op::BATCH_FORGET as usize] = unanswered("batch_forget", 8, Bytes);
    table[op::FALLOCATE as usize] = shape("fallocate", 32, Nothing);
    table[op::READDIRPLUS as usize] = shape("readdirplus", 40, Nothing);
    table[op::RENAME2 as usize] = shape("rename2", 16, TwoNames);
    table[op::LSEEK as usize] = shape("lseek", 24, Nothing);
    table[op::COPY_FILE_RANGE as usize] = shape("copy_file_range", 56, Nothing);
    table[op::SETUPMAPPING as usize] = shape("setupmapping", 0, Anything);
    table[op::REMOVEMAPPING as usize] = shape("removemapping", 0, Anything);
    table[op::SYNCFS as usize] = shape("syncfs", 0, Anything);
    table[op::TMPFILE as usize] = shape("tmpfile", 16, Name);
    table[op::STATX as usize] = shape("statx", 0, Anything);
    table[op::COPY_FILE_RANGE_64 as usize] = shape("copy_file_range_64", 56, Nothing);
    table
};

/// The table's line for `opcode`.
#[must_use]
pub fn shape_of(opcode: u32) -> Option<&'static Shape> {
    SHAPES.get(opcode as usize)?.as_ref()
}

/// The operation's name, `unknown` where the number is none.
#[must_use]
pub fn name_of(opcode: u32) -> &'static str {
    shape_of(opcode).map_or("unknown", |shape| shape.name)
}

/// Whether the kernel waits for a reply. An unknown operation is answered (ENOSYS), so that no caller hangs.
#[must_use]
pub fn replies(opcode: u32) -> bool {
    shape_of(opcode).is_none_or(|shape| shape.replies)
}
