//! What a record of the journal says of who asked for it: the part of an event that its effects do not hold.
//!
//! A note stands behind the bytes that the record's effects refer to, in the payload: a release that does not know it reads
//! past it. What is of another layout is no note.

use bytes::Bytes;
use smallvec::SmallVec;
use tarbox_types::Ino;
use uuid::Uuid;

use super::{operation::Operation, wire::Input};
use crate::{
    effect::{Effect, Record},
    leb128::put,
};

/// Layout of a note.
const LAYOUT: u8 = 1;

/// A note as bytes; usual ones need no allocation.
pub(crate) type NoteBytes = SmallVec<[u8; 128]>;

/// Longest name of a process, bytes (TASK_COMM_LEN less the NUL).
pub(crate) const PROCESS_MAX: usize = 15;

/// Who asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Who {
    /// Process, not thread; 0 = one that this mount cannot see.
    pub pid: u32,
    /// Name of the process, filled up with zeros.
    pub process: [u8; PROCESS_MAX],
    /// The pod that it runs in.
    pub pod: Option<Uuid>,
}

impl Who {
    /// The name without what fills it up.
    pub(crate) fn name(&self) -> &[u8] {
        let len = self.process.iter().position(|&byte| byte == 0).unwrap_or(PROCESS_MAX);
        &self.process[..len]
    }
}

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub operation: Operation,
    /// One event of many, to be summed up.
    pub is_summed: bool,
    /// Microseconds since 1970.
    pub at: u64,
    pub uid: u32,
    pub gid: u32,
    pub who: Who,
    /// Of what has no name in the effects.
    pub ino: Ino,
    /// A name of it, as far as memory knew.
    pub name: Option<(Ino, Bytes)>,
    /// errno; 0 = done.
    pub result: u32,
    /// Where in the content.
    pub offset: u64,
    pub bytes: u64,
    /// How long it took, in microseconds; `None` = not measured.
    pub micros: Option<u64>,
}

mod has {
    pub(super) const SUMMED: u8 = 1;
    pub(super) const POD: u8 = 2;
    pub(super) const NAME: u8 = 4;
    pub(super) const RESULT: u8 = 8;
    pub(super) const EXTENT: u8 = 16;
    pub(super) const MICROS: u8 = 32;
    pub(super) const INO: u8 = 64;
}

impl Note {
    pub(crate) fn encode(&self, out: &mut NoteBytes) {
        let has_extent = (self.offset, self.bytes) != (0, 0);
        let flags = [
            (self.is_summed, has::SUMMED),
            (self.who.pod.is_some(), has::POD),
            (self.name.is_some(), has::NAME),
            (self.result != 0, has::RESULT),
            (has_extent, has::EXTENT),
            (self.micros.is_some(), has::MICROS),
            (self.ino != 0, has::INO),
        ];
        let flags = flags.iter().filter(|(is, _)| *is).fold(0, |flags, (_, flag)| flags | flag);
        out.extend_from_slice(&[LAYOUT, self.operation as u8, flags]);
        put(out, self.at);
        put(out, self.uid.into());
        put(out, self.gid.into());
        put(out, self.who.pid.into());
        put_bytes(out, self.who.name());
        if let Some(pod) = self.who.pod {
            out.extend_from_slice(pod.as_bytes());
        }
        if let Some((parent, name)) = &self.name {
            put(out, *parent);
            put_bytes(out, name);
        }
        if self.result != 0 {
            put(out, self.result.into());
        }
        if has_extent {
            put(out, self.offset);
            put(out, self.bytes);
        }
        if let Some(micros) = self.micros {
            put(out, micros);
        }
        if self.ino != 0 {
            put(out, self.ino);
        }
    }

    /// `None` = of another layout, or no note at all.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut input = Input(bytes);
        if input.byte()? != LAYOUT {
            return None;
        }
        let operation = Operation::of_number(input.byte()?)?;
        let flags = input.byte()?;
        let has = |flag| flags & flag != 0;
        let (at, uid, gid) = (input.number()?, input.number32()?, input.number32()?);
        let pid = input.number32()?;
        let mut process = [0; PROCESS_MAX];
        let name = input.bytes()?;
        process.get_mut(..name.len())?.copy_from_slice(name);
        let pod = if has(has::POD) { Some(Uuid::from_slice(input.take(16)?).ok()?) } else { None };
        let name = match has(has::NAME) {
            true => Some((input.number()?, Bytes::copy_from_slice(input.bytes()?))),
            false => None,
        };
        let result = if has(has::RESULT) { input.number32()? } else { 0 };
        let (offset, bytes) = if has(has::EXTENT) { (input.number()?, input.number()?) } else { (0, 0) };
        let micros = if has(has::MICROS) { Some(input.number()?) } else { None };
        let ino = if has(has::INO) { input.number()? } else { 0 };
        let who = Who { pid, process, pod };
        let is_summed = has(has::SUMMED);
        let note = Self { operation, is_summed, at, uid, gid, who, ino, name, result, offset, bytes, micros };
        input.0.is_empty().then_some(note)
    }

    /// The note of a record, whose payload is given.
    pub(crate) fn of(record: &Record, payload: &[u8]) -> Option<Self> {
        let written = record.effects.iter().map(|effect| match effect {
            Effect::Write { at, len, .. } => (*at + *len) as usize,
            _ => 0,
        });
        let from = written.max().unwrap_or(0);
        payload.get(from..).filter(|note| !note.is_empty()).and_then(Self::decode)
    }
}

fn put_bytes(out: &mut NoteBytes, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn process(text: &str) -> [u8; PROCESS_MAX] {
        let mut name = [0; PROCESS_MAX];
        name[..text.len()].copy_from_slice(text.as_bytes());
        name
    }

    prop_compose! {
        fn notes()(
            operation in prop::sample::select(super::super::operation::ALL.to_vec()),
            is_summed in any::<bool>(),
            (at, uid, gid, pid) in any::<(u64, u32, u32, u32)>(),
            name in "[a-z]{0,15}",
            pod in any::<Option<u128>>(),
            link in prop::option::of((any::<u64>(), prop::collection::vec(any::<u8>(), 0..255))),
            (ino, result, offset, bytes, micros) in any::<(u64, u32, u64, u64, Option<u64>)>(),
        ) -> Note {
            let who = Who { pid, process: process(&name), pod: pod.map(Uuid::from_u128) };
            let name = link.map(|(parent, name)| (parent, Bytes::from(name)));
            Note { operation, is_summed, at, uid, gid, who, ino, name, result, offset, bytes, micros }
        }
    }

    proptest! {
        #[test]
        fn a_note_is_read_back_and_nothing_shorter_or_longer_is_one(note in notes(), cut in any::<prop::sample::Index>()) {
            let mut bytes = NoteBytes::new();
            note.encode(&mut bytes);
            prop_assert_eq!(Note::decode(&bytes), Some(note));
            prop_assert_eq!(Note::decode(&bytes[..cut.index(bytes.len())]), None);
            bytes.push(0);
            prop_assert_eq!(Note::decode(&bytes), None);
        }

        #[test]
        fn any_bytes_are_decoded_without_a_panic(bytes in any::<Vec<u8>>()) {
            let _ = Note::decode(&bytes);
        }
    }
}
