//! The bytes of a journal, as pure functions over slices.
//!
//! A segment is a header of [`SEGMENT_HEADER`] bytes and frames, each aligned to 8 bytes:
//!
//! | bytes | of a frame |
//! |---|---|
//! | 0..8 | commit word: [`FRAME_MAGIC`] << 32 \| bytes of the frame, unaligned; written last; 0 = nothing here |
//! | 8..16 | sequence number |
//! | 16..20 | bytes of the record |
//! | 20..24 | bytes of the payload |
//! | 24..28 | CRC-32C of bytes 8..24, record and payload, seeded with the segment's salt |
//! | 28..32 | 0 |
//! | 32.. | record, payload |
//!
//! The salt is new each time that a segment is put to use, so that frames of its earlier life are never taken for new ones.
//! All numbers are little-endian.

use std::ops::Range;

use tarbox_types::{Format, Seq};

/// The journal: its control file and its segments, each of which has a number of its own.
pub const FORMAT: Format = Format::only(1);

/// First word of a segment that is in use; 0 = a spare one.
pub(super) const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"TBXJSEG\x1a");
/// Bytes before the first frame.
pub(super) const SEGMENT_HEADER: usize = 128;
/// Bytes of a frame before its record.
pub(super) const FRAME_HEADER: usize = 32;
/// Upper half of a commit word.
pub(super) const FRAME_MAGIC: u64 = 0x5bc3_a71f;

/// Header of a segment in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// Format of all that is in it.
    pub(super) format: u32,
    /// Which journal it belongs to.
    pub(super) journal: u128,
    /// Place in the order of the segments.
    pub(super) ordinal: u64,
    /// Sequence number of its first frame.
    pub(super) first_seq: Seq,
    /// Size of the file.
    pub(super) bytes: u64,
    /// Seeds the checksums of its frames.
    pub(super) salt: u64,
    /// The connection whose requests its frames answer; 0 = none, or written by a release that did not say it.
    pub(super) nonce: u64,
}

/// What the header of a segment file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderFound {
    /// Not in use.
    Spare,
    /// In use.
    Used(SegmentHeader),
    /// Of a format that is not read.
    OtherFormat(u32),
    /// Neither.
    Damaged,
}

/// Header without its magic word, which is stored last, at 0..8.
pub(super) fn encode_header(header: &SegmentHeader) -> [u8; SEGMENT_HEADER] {
    let mut out = [0; SEGMENT_HEADER];
    out[8..12].copy_from_slice(&header.format.to_le_bytes());
    out[16..32].copy_from_slice(&header.journal.to_le_bytes());
    out[32..40].copy_from_slice(&header.ordinal.to_le_bytes());
    out[40..48].copy_from_slice(&header.first_seq.to_le_bytes());
    out[48..56].copy_from_slice(&header.bytes.to_le_bytes());
    out[56..64].copy_from_slice(&header.salt.to_le_bytes());
    let crc = crc32c::crc32c(&out[8..64]);
    out[64..68].copy_from_slice(&crc.to_le_bytes());
    // A field that was added: who does not know it does not read it, and without its own checksum it is not there.
    out[72..80].copy_from_slice(&header.nonce.to_le_bytes());
    out[80..84].copy_from_slice(&nonce_crc(header.salt, header.nonce).to_le_bytes());
    out
}

fn nonce_crc(salt: u64, nonce: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), &nonce.to_le_bytes())
}

/// Reads a segment's header.
pub(super) fn decode_header(bytes: &[u8]) -> HeaderFound {
    if bytes.len() < SEGMENT_HEADER {
        return HeaderFound::Damaged;
    }
    match word(bytes, 0) {
        0 => return HeaderFound::Spare,
        SEGMENT_MAGIC => {}
        _ => return HeaderFound::Damaged,
    }
    let format = half(bytes, 8);
    if !FORMAT.reads(format) {
        return HeaderFound::OtherFormat(format);
    }
    if crc32c::crc32c(&bytes[8..64]) != half(bytes, 64) {
        return HeaderFound::Damaged;
    }
    let header = SegmentHeader {
        format,
        journal: u128::from(word(bytes, 16)) | u128::from(word(bytes, 24)) << 64,
        ordinal: word(bytes, 32),
        first_seq: word(bytes, 40),
        bytes: word(bytes, 48),
        salt: word(bytes, 56),
        nonce: Some(word(bytes, 72))
            .filter(|&nonce| half(bytes, 80) == nonce_crc(word(bytes, 56), nonce))
            .unwrap_or(0),
    };
    // Numbers are counted from 1, and far from where counting on would overflow.
    let is_count = |number| (1..1 << 62).contains(&number);
    match is_count(header.first_seq) && is_count(header.ordinal) {
        true => HeaderFound::Used(header),
        false => HeaderFound::Damaged,
    }
}

/// A frame in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Sequence number.
    pub(super) seq: Seq,
    /// Where the record stands.
    pub(super) record: Range<usize>,
    /// Where the payload stands.
    pub(super) payload: Range<usize>,
    /// Where the next frame begins.
    pub(super) next: usize,
}

impl Frame {
    /// The same frame, counted from `by` bytes earlier.
    pub(super) fn shifted(self, by: usize) -> Self {
        let shift = |range: Range<usize>| range.start + by..range.end + by;
        Self { seq: self.seq, record: shift(self.record), payload: shift(self.payload), next: self.next + by }
    }
}

/// Bytes that a frame takes.
pub(super) fn frame_bytes(record: usize, payload: usize) -> usize {
    (FRAME_HEADER + record + payload).next_multiple_of(8)
}

/// The commit word of a frame.
pub(super) fn commit_word(record: usize, payload: usize) -> u64 {
    FRAME_MAGIC << 32 | (FRAME_HEADER + record + payload) as u64
}

/// Bytes 8..32 of a frame, whose payload is two pieces.
pub(super) fn encode_frame(
    salt: u64,
    seq: Seq,
    record: &[u8],
    payload: [&[u8]; 2],
) -> [u8; FRAME_HEADER - 8] {
    let mut out = [0; FRAME_HEADER - 8];
    out[0..8].copy_from_slice(&seq.to_le_bytes());
    out[8..12].copy_from_slice(&(record.len() as u32).to_le_bytes());
    let [bytes, note] = payload;
    out[12..16].copy_from_slice(&((bytes.len() + note.len()) as u32).to_le_bytes());
    let crc = [record, bytes, note]
        .iter()
        .fold(seeded(salt, &out[..16]), |crc, part| crc32c::crc32c_append(crc, part));
    out[16..20].copy_from_slice(&crc.to_le_bytes());
    out
}

/// The frame at `at` by its lengths alone, for bytes whose checksum was verified.
pub(super) fn frame_layout(segment: &[u8], at: usize) -> Option<Frame> {
    if !at.is_multiple_of(8) || segment.len().checked_sub(at)? < FRAME_HEADER {
        return None;
    }
    let (record, payload) = (half(segment, at + 16) as usize, half(segment, at + 20) as usize);
    let total = FRAME_HEADER.checked_add(record)?.checked_add(payload)?;
    if total > segment.len() - at || word(segment, at) != commit_word(record, payload) {
        return None;
    }
    let body = at + FRAME_HEADER;
    Some(Frame {
        seq: word(segment, at + 8),
        record: body..body + record,
        payload: body + record..body + record + payload,
        next: at + total.next_multiple_of(8),
    })
}

/// Whether the checksum of a frame, which ends with its payload, is right.
pub(super) fn is_sound(frame: &[u8], salt: u64) -> bool {
    let crc = crc32c::crc32c_append(seeded(salt, &frame[8..24]), &frame[FRAME_HEADER..]);
    crc == half(frame, 24)
}

/// Whether a valid frame with a number above `seq` stands anywhere at or behind `from`.
pub(super) fn has_later_frame(segment: &[u8], from: usize, salt: u64, seq: Seq) -> bool {
    (from.next_multiple_of(8)..segment.len().saturating_sub(FRAME_HEADER - 1)).step_by(8).any(|at| {
        word(segment, at) >> 32 == FRAME_MAGIC
            && word(segment, at + 8) > seq
            && frame_layout(segment, at).is_some_and(|frame| is_sound(&segment[at..frame.payload.end], salt))
    })
}

fn seeded(salt: u64, head: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), head)
}

pub(super) fn word(bytes: &[u8], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(out)
}

pub(super) fn half(bytes: &[u8], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(out)
}
