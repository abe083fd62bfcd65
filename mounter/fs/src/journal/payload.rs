//! Bytes in a journal that keep their segment from being used again.

use std::sync::Arc;

use super::segment::Segment;

/// Bytes that stand in a journal; as long as it lives, so does its segment.
#[derive(Clone, Default)]
pub struct Payload {
    segment: Option<Arc<Segment>>,
    at: u32,
    len: u32,
}

impl Payload {
    pub(super) fn new(segment: &Arc<Segment>, at: usize, len: usize) -> Self {
        // Without bytes there is nothing to pin.
        if len == 0 {
            return Self::default();
        }
        Self { segment: Some(Arc::clone(segment)), at: at as u32, len: len as u32 }
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        let from = self.at as usize;
        self.segment.as_ref().map_or(&[], |segment| segment.bytes(from, from + self.len as usize))
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of it, pinned by itself. A range beyond the end is cut.
    #[must_use]
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        let from = range.start.min(self.len());
        let to = range.end.clamp(from, self.len());
        let segment = if from == to { None } else { self.segment.clone() };
        Self { segment, at: self.at + from as u32, len: (to - from) as u32 }
    }

    /// The same bytes as `Bytes`, without a copy; it pins the segment like this does.
    #[must_use]
    pub fn into_bytes(self) -> bytes::Bytes {
        bytes::Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ordinal = self.segment.as_ref().map(|segment| segment.ordinal());
        write!(f, "Payload({} bytes at {} of segment {ordinal:?})", self.len, self.at)
    }
}

impl crate::range_map::Slice for Payload {
    fn slice(&self, offset: u64) -> Self {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        Payload::slice(self, from..self.len())
    }
}
