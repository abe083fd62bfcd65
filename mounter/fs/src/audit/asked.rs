//! A request as the audit sees it: what it is about to do, and who asks.

use std::time::Instant;

use bytes::Bytes;
use tarbox_store::Time;
use tarbox_types::{AuditLevel, Ino};

use super::{
    note::{Note, NoteBytes, Who},
    operation::Operation,
};
use crate::{plan::Caller, tree::Tree};

/// What a request is about to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Doing<'a> {
    pub(super) operation: Operation,
    pub(super) level: AuditLevel,
    name: Option<(Ino, &'a [u8])>,
    ino: Ino,
    offset: u64,
    bytes: u64,
}

impl<'a> Doing<'a> {
    /// Something with an inode.
    pub(crate) fn to(operation: Operation, ino: Ino) -> Self {
        Self { operation, level: operation.level(), name: None, ino, offset: 0, bytes: 0 }
    }

    /// Something with a name, which the effects hold if it is done.
    pub(crate) fn named(operation: Operation, parent: Ino, name: &'a [u8]) -> Self {
        Self { name: Some((parent, name)), ..Self::to(operation, 0) }
    }

    /// Where in the content.
    pub(crate) fn at(self, offset: u64, bytes: u64) -> Self {
        Self { offset, bytes, ..self }
    }

    /// Kept from another level on than usual.
    pub(crate) fn kept_from(self, level: AuditLevel) -> Self {
        Self { level, ..self }
    }
}

/// Who asks for it, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(super) doing: Doing<'a>,
    pub(super) who: Who,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) at: u64,
    /// Not to be summed up, and timed from here.
    pub(super) since: Option<Instant>,
}

impl<'a> Asked<'a> {
    pub(super) fn new(caller: &Caller, doing: Doing<'a>, who: Who, since: Option<Instant>) -> Self {
        Self { doing, who, uid: caller.uid, gid: caller.gid, at: micros(caller.now), since }
    }

    /// The note of a record; `bytes` where less was done than asked for.
    pub(crate) fn note(&self, tree: &Tree, bytes: Option<u64>, result: u32) -> NoteBytes {
        let doing = &self.doing;
        let name = match doing.name {
            // The effects hold it.
            Some(_) if result == 0 => None,
            Some((parent, name)) => Some((parent, Bytes::copy_from_slice(name))),
            None => tree.name_of(doing.ino),
        };
        let note = Note {
            operation: doing.operation,
            is_summed: doing.operation.is_content() && self.since.is_none() && result == 0,
            at: self.at,
            uid: self.uid,
            gid: self.gid,
            who: self.who,
            ino: doing.ino,
            name,
            result,
            offset: doing.offset,
            bytes: bytes.unwrap_or(doing.bytes),
            micros: self.since.map(|since| since.elapsed().as_micros() as u64),
        };
        let mut out = NoteBytes::new();
        note.encode(&mut out);
        out
    }
}

/// Microseconds since 1970; nothing before.
pub(crate) fn micros(time: Time) -> u64 {
    u64::try_from(time.sec).unwrap_or(0) * 1_000_000 + u64::from(time.nsec / 1000)
}
