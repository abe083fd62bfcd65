//! Records as bytes: compact (LEB128 numbers), self-delimiting, versioned per tag.
//!
//! Every struct that may grow stands behind a tag byte: a new layout gets a new tag, and the old one stays readable for
//! a release. What is not known is an error, never a guess. Decoding takes any bytes without panicking.

use bytes::Bytes;
use smallvec::SmallVec;
use tarbox_store::{EntryRow, InodeRow, Seal, Time};

use crate::{
    effect::{Counters, Effect, Outcome, Record},
    leb128::{self, NoNumber, put},
};

/// First byte of a record.
const RECORD_V1: u8 = 1;

mod tag {
    pub(super) const INODE: u8 = 1;
    pub(super) const REMOVE_INODE: u8 = 2;
    pub(super) const ENTRY: u8 = 3;
    pub(super) const REMOVE_ENTRY: u8 = 4;
    pub(super) const XATTRS: u8 = 5;
    pub(super) const NO_XATTRS: u8 = 6;
    pub(super) const WRITE: u8 = 7;
    pub(super) const ZERO: u8 = 8;
    pub(super) const DEALLOCATE: u8 = 9;
    pub(super) const TRUNCATE: u8 = 10;
    pub(super) const REMOVE_DATA: u8 = 11;
    pub(super) const SEAL: u8 = 12;

    pub(super) const DONE: u8 = 1;
    pub(super) const OUTCOME_INODE: u8 = 2;
    pub(super) const COUNT: u8 = 3;
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// They end too early.
    #[error("it ends in the middle")]
    Short,
    /// Something follows.
    #[error("{0} bytes follow its end")]
    Trailing(usize),
    /// A layout of another release.
    #[error("unknown {what} {tag}")]
    UnknownTag {
        /// Of what.
        what: &'static str,
        /// Its tag.
        tag: u8,
    },
    /// A number or text that cannot stand there.
    #[error("bad {0}")]
    BadValue(&'static str),
}

/// Appends the record to `out`.
pub fn encode(record: &Record, out: &mut Vec<u8>) {
    out.push(RECORD_V1);
    put(out, record.unique);
    put(out, record.counters.used_bytes);
    put(out, record.counters.used_inodes);
    put(out, record.counters.next_ino);
    match record.outcome {
        Outcome::Done => out.push(tag::DONE),
        Outcome::Inode(ino) => put_tagged(out, tag::OUTCOME_INODE, &[ino]),
        Outcome::Count(count) => put_tagged(out, tag::COUNT, &[count]),
    }
    put(out, record.effects.len() as u64);
    record.effects.iter().for_each(|effect| encode_effect(effect, out));
}

/// Reads a record that fills `bytes` exactly.
///
/// # Errors
/// Anything else than what [`encode`] of this release or the one before wrote.
pub fn decode(bytes: &[u8]) -> Result<Record, CodecError> {
    let mut input = Input(bytes);
    match input.byte()? {
        RECORD_V1 => {}
        tag => return Err(CodecError::UnknownTag { what: "record layout", tag }),
    }
    let unique = input.number()?;
    let counters =
        Counters { used_bytes: input.number()?, used_inodes: input.number()?, next_ino: input.number()? };
    let outcome = match input.byte()? {
        tag::DONE => Outcome::Done,
        tag::OUTCOME_INODE => Outcome::Inode(input.number()?),
        tag::COUNT => Outcome::Count(input.number()?),
        tag => return Err(CodecError::UnknownTag { what: "outcome", tag }),
    };
    let count = input.count()?;
    let effects = (0..count).map(|_| decode_effect(&mut input)).collect::<Result<SmallVec<_>, _>>()?;
    match input.0.len() {
        0 => Ok(Record { unique, counters, outcome, effects }),
        rest => Err(CodecError::Trailing(rest)),
    }
}

/// The `unique` of the request that made the record, without reading the rest.
///
/// # Errors
/// Where these are not the first bytes of a record, as [`decode`].
pub fn unique_of(bytes: &[u8]) -> Result<u64, CodecError> {
    let mut input = Input(bytes);
    match input.byte()? {
        RECORD_V1 => input.number(),
        tag => Err(CodecError::UnknownTag { what: "record layout", tag }),
    }
}

/// Marks the `unique` of a record that answers nobody: a request was audited that has changed nothing. A release that does not know it
/// takes it for a request that nobody asks for.
pub const AUDIT_ALONE: u64 = 1 << 63;

/// The request that a record's `unique` speaks of.
#[must_use]
pub const fn request_of(unique: u64) -> u64 {
    unique & !AUDIT_ALONE
}

fn encode_effect(effect: &Effect, out: &mut Vec<u8>) {
    match effect {
        Effect::Inode(row) => encode_inode(row, out),
        Effect::RemoveInode(ino) => put_tagged(out, tag::REMOVE_INODE, &[*ino]),
        Effect::Entry(EntryRow { parent, name, ino, kind, cookie }) => {
            put_tagged(out, tag::ENTRY, &[*parent, *ino, u64::from(*kind), *cookie]);
            put_bytes(out, name);
        }
        Effect::RemoveEntry { parent, name, cookie } => {
            put_tagged(out, tag::REMOVE_ENTRY, &[*parent, *cookie]);
            put_bytes(out, name);
        }
        Effect::Xattrs { ino, value: Some(value) } => {
            put_tagged(out, tag::XATTRS, &[*ino]);
            put_bytes(out, value);
        }
        Effect::Xattrs { ino, value: None } => put_tagged(out, tag::NO_XATTRS, &[*ino]),
        Effect::Write { did, offset, at, len } => {
            put_tagged(out, tag::WRITE, &[*did, *offset, u64::from(*at), u64::from(*len)]);
        }
        Effect::Zero { did, from, to, deallocate } => {
            put_tagged(out, if *deallocate { tag::DEALLOCATE } else { tag::ZERO }, &[*did, *from, *to]);
        }
        Effect::Truncate { did, from } => put_tagged(out, tag::TRUNCATE, &[*did, *from]),
        Effect::RemoveData(did) => put_tagged(out, tag::REMOVE_DATA, &[*did]),
        Effect::Seal(Seal { name, request }) => {
            out.push(tag::SEAL);
            put_bytes(out, name.as_bytes());
            put_bytes(out, request.as_bytes());
        }
    }
}

fn decode_effect(input: &mut Input<'_>) -> Result<Effect, CodecError> {
    Ok(match input.byte()? {
        tag::INODE => Effect::Inode(decode_inode(input)?),
        tag::REMOVE_INODE => Effect::RemoveInode(input.number()?),
        tag::ENTRY => {
            let (parent, ino, kind, cookie) =
                (input.number()?, input.number()?, input.number32()?, input.number()?);
            Effect::Entry(EntryRow { parent, name: input.bytes()?, ino, kind, cookie })
        }
        tag::REMOVE_ENTRY => {
            let (parent, cookie) = (input.number()?, input.number()?);
            Effect::RemoveEntry { parent, name: input.bytes()?, cookie }
        }
        tag::XATTRS => Effect::Xattrs { ino: input.number()?, value: Some(input.bytes()?) },
        tag::NO_XATTRS => Effect::Xattrs { ino: input.number()?, value: None },
        tag::WRITE => Effect::Write {
            did: input.number()?,
            offset: input.number()?,
            at: input.number32()?,
            len: input.number32()?,
        },
        tag @ (tag::ZERO | tag::DEALLOCATE) => Effect::Zero {
            did: input.number()?,
            from: input.number()?,
            to: input.number()?,
            deallocate: tag == tag::DEALLOCATE,
        },
        tag::TRUNCATE => Effect::Truncate { did: input.number()?, from: input.number()? },
        tag::REMOVE_DATA => Effect::RemoveData(input.number()?),
        tag::SEAL => Effect::Seal(Seal { name: input.text()?, request: input.text()? }),
        tag => return Err(CodecError::UnknownTag { what: "effect", tag }),
    })
}

fn encode_inode(row: &InodeRow, out: &mut Vec<u8>) {
    let fields = [
        row.ino,
        row.mode.into(),
        row.uid.into(),
        row.gid.into(),
        row.rdev.into(),
        row.nlink.into(),
        row.size,
        row.dir_parent,
        row.did,
        // Mostly "never truncated", ten bytes long as it stands.
        (u64::MAX >> 1).wrapping_sub(row.cut),
        row.charge,
        row.prealloc.len() as u64,
    ];
    put_tagged(out, tag::INODE, &fields);
    for range in &row.prealloc {
        put(out, range.start);
        put(out, range.end);
    }
    for time in [row.atime, row.mtime, row.ctime] {
        put(out, ((time.sec << 1) ^ (time.sec >> 63)) as u64);
        put(out, time.nsec.into());
    }
    put_bytes(out, &row.target);
}

fn decode_inode(input: &mut Input<'_>) -> Result<InodeRow, CodecError> {
    let mut row = InodeRow {
        ino: input.number()?,
        mode: input.number32()?,
        uid: input.number32()?,
        gid: input.number32()?,
        rdev: input.number32()?,
        nlink: input.number32()?,
        size: input.number()?,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
        dir_parent: input.number()?,
        did: input.number()?,
        cut: (u64::MAX >> 1).wrapping_sub(input.number()?),
        charge: input.number()?,
        prealloc: Vec::new(),
        target: Bytes::new(),
    };
    let ranges = input.count()?;
    row.prealloc =
        (0..ranges).map(|_| Ok(input.number()?..input.number()?)).collect::<Result<_, CodecError>>()?;
    for time in [&mut row.atime, &mut row.mtime, &mut row.ctime] {
        *time = input.time()?;
    }
    row.target = input.bytes()?;
    Ok(row)
}

fn put_tagged(out: &mut Vec<u8>, tag: u8, numbers: &[u64]) {
    out.push(tag);
    numbers.iter().for_each(|&number| put(out, number));
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// What is left to read.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Result<u8, CodecError> {
        let (first, rest) = self.0.split_first().ok_or(CodecError::Short)?;
        self.0 = rest;
        Ok(*first)
    }

    #[inline]
    fn number(&mut self) -> Result<u64, CodecError> {
        leb128::take(&mut self.0).map_err(|why| match why {
            NoNumber::Short => CodecError::Short,
            NoNumber::TooLarge => CodecError::BadValue("number"),
        })
    }

    fn number32(&mut self) -> Result<u32, CodecError> {
        self.number()?.try_into().map_err(|_| CodecError::BadValue("32-bit number"))
    }

    /// A count of things that take at least one byte each: bounded, so that no damaged count allocates memory.
    fn count(&mut self) -> Result<usize, CodecError> {
        let count = self.number()?;
        if count > self.0.len() as u64 { Err(CodecError::Short) } else { Ok(count as usize) }
    }

    fn slice(&mut self) -> Result<&[u8], CodecError> {
        let len = self.count()?;
        let (slice, rest) = self.0.split_at(len);
        self.0 = rest;
        Ok(slice)
    }

    fn bytes(&mut self) -> Result<Bytes, CodecError> {
        self.slice().map(Bytes::copy_from_slice)
    }

    fn text(&mut self) -> Result<String, CodecError> {
        let text = std::str::from_utf8(self.slice()?).map_err(|_| CodecError::BadValue("text"))?;
        Ok(text.to_owned())
    }

    fn time(&mut self) -> Result<Time, CodecError> {
        let zigzag = self.number()?;
        let sec = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
        Ok(Time { sec, nsec: self.number32()? })
    }
}

#[cfg(test)]
mod tests;
