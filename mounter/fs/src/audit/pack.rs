//! Events as the database keeps them: many in one value, each written as its difference from the one before, the whole compressed.
//!
//! | bytes | |
//! |---|---|
//! | 0 | layout |
//! | 1.. | zstd: node, then events |

use bytes::Bytes;
use tarbox_store::AuditChunk;
use tarbox_types::Seq;
use uuid::Uuid;

use super::{
    event::{Event, Pod},
    operation::Operation,
    wire::{Input, unzigzag, zigzag},
};
use crate::leb128::put;

const LAYOUT: u8 = 1;
/// A value ends after so many events, or so many bytes before compression: whoever reads holds one at a time.
const EVENTS_MAX: usize = 4096;
const BYTES_MAX: usize = 256 << 10;
/// A value that claims more than this is damage. (The longest event: two paths, and one may stand behind the bound.)
const UNPACKED_MAX: usize = 16 << 20;
/// zstd's fastest.
const LEVEL: i32 = 1;

mod has {
    pub(super) const WHO: u8 = 1;
    pub(super) const TO: u8 = 2;
    pub(super) const RESULT: u8 = 4;
    pub(super) const EXTENT: u8 = 8;
    pub(super) const MICROS: u8 = 16;
    pub(super) const POD: u8 = 32;
}

/// Puts events together into values.
pub(crate) struct Packer<'a> {
    node: &'a str,
    seq: Seq,
    chunks: Vec<AuditChunk>,
    open: Option<Open<'a>>,
}

struct Open<'a> {
    body: Vec<u8>,
    events: u32,
    since: u64,
    until: u64,
    /// The last one added; none yet: [`nothing`].
    before: Option<&'a Event>,
}

impl<'a> Packer<'a> {
    /// Events of one node, which come into the database at a position.
    pub(crate) fn new(node: &'a str, seq: Seq) -> Self {
        Self { node, seq, chunks: Vec::new(), open: None }
    }

    pub(crate) fn add(&mut self, event: &'a Event) {
        let open = self.open.get_or_insert_with(|| {
            let mut body = Vec::new();
            put_bytes(&mut body, self.node.as_bytes());
            Open { body, events: 0, since: event.at, until: event.at, before: None }
        });
        match open.before {
            Some(before) => encode(&mut open.body, event, before),
            None => encode(&mut open.body, event, &nothing()),
        }
        open.events += 1;
        open.since = open.since.min(event.at);
        open.until = open.until.max(event.at);
        open.before = Some(event);
        if open.events as usize >= EVENTS_MAX || open.body.len() >= BYTES_MAX {
            self.close();
        }
    }

    pub(crate) fn finish(mut self) -> Vec<AuditChunk> {
        self.close();
        self.chunks
    }

    fn close(&mut self) {
        let Some(Open { body, events, since, until, .. }) = self.open.take() else { return };
        let mut data = vec![LAYOUT];
        // Compression of bytes in memory has no way to fail but for want of memory.
        data.extend(zstd::bulk::compress(&body, LEVEL).expect("bytes in memory can be compressed"));
        let part = self.chunks.len() as u32;
        self.chunks.push(AuditChunk { seq: self.seq, part, since, until, events, data: data.into() });
    }
}

/// Bytes are not what [`Packer`] has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it holds no audit events that this release knows")]
pub struct Unreadable;

/// The node and the events of a value.
///
/// # Errors
/// [`Unreadable`].
pub fn unpack(chunk: &AuditChunk) -> Result<(String, Vec<Event>), Unreadable> {
    let (layout, packed) = chunk.data.split_first().ok_or(Unreadable)?;
    if *layout != LAYOUT {
        return Err(Unreadable);
    }
    let body = zstd::bulk::decompress(packed, UNPACKED_MAX).map_err(|_| Unreadable)?;
    events(&body, chunk.events).ok_or(Unreadable)
}

fn events(body: &[u8], count: u32) -> Option<(String, Vec<Event>)> {
    let mut input = Input(body);
    let node = String::from_utf8(input.bytes()?.to_vec()).ok()?;
    let (mut events, first) = (Vec::new(), nothing());
    for _ in 0..count {
        events.push(decode(&mut input, events.last().unwrap_or(&first))?);
    }
    input.0.is_empty().then_some((node, events))
}

/// What the first event is written as a difference from.
fn nothing() -> Event {
    Event::new(Operation::Mount)
}

fn encode(out: &mut Vec<u8>, event: &Event, before: &Event) {
    let is_other = (event.uid, event.gid, event.pid) != (before.uid, before.gid, before.pid)
        || event.process != before.process
        || event.pod != before.pod;
    let has_extent = (event.count, event.offset, event.end, event.bytes) != (1, 0, 0, 0);
    let flags = [
        (is_other, has::WHO),
        (is_other && event.pod.is_some(), has::POD),
        (event.to.is_some(), has::TO),
        (event.result != 0, has::RESULT),
        (has_extent, has::EXTENT),
        (event.micros.is_some(), has::MICROS),
    ];
    out.push(event.operation as u8);
    out.push(flags.iter().filter(|(is, _)| *is).fold(0, |flags, (_, flag)| flags | flag));
    put(out, zigzag(event.at.wrapping_sub(before.at) as i64));
    put(out, zigzag(event.ino.wrapping_sub(before.ino) as i64));
    put_path(out, &event.path, &before.path);
    if is_other {
        [event.uid, event.gid, event.pid].iter().for_each(|number| put(out, (*number).into()));
        put_bytes(out, &event.process);
        if let Some(pod) = &event.pod {
            out.extend_from_slice(pod.uid.as_bytes());
            put_bytes(out, pod.namespace.as_bytes());
            put_bytes(out, pod.name.as_bytes());
        }
    }
    if let Some(to) = &event.to {
        put_path(out, to, &event.path);
    }
    if event.result != 0 {
        put(out, event.result.into());
    }
    if has_extent {
        [event.count, event.offset, event.end, event.bytes].iter().for_each(|number| put(out, *number));
    }
    if let Some(micros) = event.micros {
        put(out, micros);
    }
}

fn decode(input: &mut Input<'_>, before: &Event) -> Option<Event> {
    let operation = Operation::of_number(input.byte()?)?;
    let flags = input.byte()?;
    let has = |flag| flags & flag != 0;
    let at = before.at.wrapping_add(unzigzag(input.number()?) as u64);
    let ino = before.ino.wrapping_add(unzigzag(input.number()?) as u64);
    let path = path(input, &before.path)?;
    let mut event = Event { at, operation, ino, path, ..before.clone() };
    if has(has::WHO) {
        (event.uid, event.gid, event.pid) = (input.number32()?, input.number32()?, input.number32()?);
        event.process = Bytes::copy_from_slice(input.bytes()?);
        event.pod = match has(has::POD) {
            true => Some(Pod {
                uid: Uuid::from_slice(input.take(16)?).ok()?,
                namespace: String::from_utf8(input.bytes()?.to_vec()).ok()?,
                name: String::from_utf8(input.bytes()?.to_vec()).ok()?,
            }),
            false => None,
        };
    }
    event.to = if has(has::TO) { Some(self::path(input, &event.path)?) } else { None };
    event.result = if has(has::RESULT) { input.number32()? } else { 0 };
    (event.count, event.offset, event.end, event.bytes) = match has(has::EXTENT) {
        true => (input.number()?, input.number()?, input.number()?, input.number()?),
        false => (1, 0, 0, 0),
    };
    event.micros = if has(has::MICROS) { Some(input.number()?) } else { None };
    Some(event)
}

/// How much of another path it begins with, and the rest.
fn put_path(out: &mut Vec<u8>, path: &[u8], before: &[u8]) {
    let shared = path.iter().zip(before).take_while(|(one, other)| one == other).count();
    put(out, shared as u64);
    put_bytes(out, &path[shared..]);
}

fn path(input: &mut Input<'_>, before: &[u8]) -> Option<Bytes> {
    let shared = usize::try_from(input.number()?).ok()?;
    let rest = input.bytes()?;
    Some([before.get(..shared)?, rest].concat().into())
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn who()(
            (uid, gid, pid) in any::<(u32, u32, u32)>(),
            process in "[a-z]{0,15}",
            pod in prop::option::of((any::<u128>(), "[a-z]{0,9}", "[a-z]{0,9}")),
        ) -> (u32, u32, u32, Bytes, Option<Pod>) {
            let pod = pod.map(|(uid, namespace, name)| Pod { uid: Uuid::from_u128(uid), namespace, name });
            (uid, gid, pid, process.into(), pod)
        }
    }

    prop_compose! {
        fn event()(
            operation in prop::sample::select(super::super::operation::ALL.to_vec()),
            (at, ino, result, micros) in any::<(u64, u64, u32, Option<u64>)>(),
            path in "(/[a-c]{0,4}){0,4}",
            to in prop::option::of("(/[a-c]{0,4}){0,4}"),
            // Few, so that one often follows itself.
            who in prop_oneof![Just((0_u32, 0_u32, 7_u32, Bytes::from_static(b"sh"), None)), who()],
            (count, offset, end, bytes) in any::<(u64, u64, u64, u64)>(),
        ) -> Event {
            let (uid, gid, pid, process, pod) = who;
            let (path, to) = (path.into(), to.map(Bytes::from));
            Event { at, operation, path, to, ino, uid, gid, pid, process, pod, result, count, offset, end, bytes, micros }
        }
    }

    proptest! {
        #[test]
        fn events_are_read_back_as_they_were(events in prop::collection::vec(event(), 1..20)) {
            let mut packer = Packer::new("node-1", 7);
            events.iter().for_each(|event| packer.add(event));
            let chunks = packer.finish();
            prop_assert_eq!(chunks.len(), 1);
            prop_assert_eq!(chunks[0].since, events.iter().map(|event| event.at).min().unwrap());
            prop_assert_eq!(chunks[0].until, events.iter().map(|event| event.at).max().unwrap());
            prop_assert_eq!(unpack(&chunks[0]), Ok(("node-1".to_owned(), events)));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(body in any::<Vec<u8>>(), count in 0..9_u32) {
            let _ = events(&body, count);
        }
    }

    #[test]
    fn a_value_is_bounded_and_its_parts_are_in_order() {
        let mut packer = Packer::new("n", 9);
        let many = EVENTS_MAX * 2 + 1;
        let named = |at| Event { at, path: format!("/some/directory/file-{at}").into(), ..nothing() };
        let events: Vec<_> = (0..many as u64).map(named).collect();
        events.iter().for_each(|event| packer.add(event));
        let chunks = packer.finish();
        assert_eq!(
            chunks.iter().map(|chunk| (chunk.seq, chunk.part)).collect::<Vec<_>>(),
            [(9, 0), (9, 1), (9, 2)]
        );
        let all: Vec<u64> =
            chunks.iter().flat_map(|chunk| unpack(chunk).unwrap().1).map(|event| event.at).collect();
        assert_eq!(all, (0..many as u64).collect::<Vec<_>>());
        let bytes: usize = chunks.iter().map(|chunk| chunk.data.len()).sum();
        assert!(bytes < many * 12, "{bytes} bytes for {many} events");
    }

    #[test]
    fn what_another_release_wrote_is_said_to_be_unreadable() {
        let chunk = AuditChunk {
            seq: 1,
            part: 0,
            since: 0,
            until: 0,
            events: 1,
            data: Bytes::from_static(&[9, 1, 2]),
        };
        assert_eq!(unpack(&chunk), Err(Unreadable));
    }
}
