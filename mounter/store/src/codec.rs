//! Bytes of blocks on their way into the database and out of it: trimmed, hashed, compressed; verified, patched.
//!
//! Zero bytes at the end of a block are not stored: what lies beyond [`BlockHeader::len`] reads as zero.
//! The hash is that of the trimmed, uncompressed bytes, so that equal blocks are found whatever codec they have.

use std::{cell::RefCell, ops::Range};

use bytes::{Bytes, BytesMut};
use tarbox_types::{BlockHash, BlockId};

use crate::{
    error::{Result, StoreError},
    model::{BlockHeader, Codec, Compression, EncodedBlock},
    proof::Leaves,
};

/// The largest block: nothing longer is ever unpacked, whatever a damaged header says.
pub const BLOCK_MAX: u32 = 4 << 20;
/// The smallest block size of a tenant.
pub const BLOCK_MIN: u32 = 4 << 10;

/// Fast rather than small: blocks are compressed on the way to an fsync.
const ZSTD_LEVEL: i32 = 1;

/// Length without the zero bytes at the end.
#[must_use]
pub fn trimmed_len(raw: &[u8]) -> usize {
    let mut len = raw.len();
    // Words first: a block may end in megabytes of zeros.
    while len >= 16 && raw[len - 16..len] == [0; 16] {
        len -= 16;
    }
    while len > 0 && raw[len - 1] == 0 {
        len -= 1;
    }
    len
}

/// The hash that a block of these bytes is found by.
#[must_use]
pub fn hash(raw: &[u8]) -> BlockHash {
    BlockHash(*blake3::hash(&raw[..trimmed_len(raw)]).as_bytes())
}

/// Makes a block ready to be uploaded under an id from [`crate::TenantStore::reserve_blocks`].
#[must_use]
pub fn encode(block: BlockId, raw: Bytes, compression: Compression) -> EncodedBlock {
    let hash = hash(&raw);
    encode_hashed(block, raw, hash, compression)
}

/// As [`encode`], where [`hash`] was asked for before (to look for an equal block).
#[must_use]
pub fn encode_hashed(block: BlockId, raw: Bytes, hash: BlockHash, compression: Compression) -> EncodedBlock {
    let raw = raw.slice(..trimmed_len(&raw));
    let len = raw.len() as u32;
    match compression {
        Compression::Zstd => match compressed(&raw) {
            Some(bytes) => {
                EncodedBlock { header: BlockHeader { block, hash, len, codec: Codec::Zstd }, bytes }
            }
            None => EncodedBlock { header: BlockHeader { block, hash, len, codec: Codec::Raw }, bytes: raw },
        },
        Compression::None => {
            EncodedBlock { header: BlockHeader { block, hash, len, codec: Codec::Raw }, bytes: raw }
        }
    }
}

/// The compressed bytes, where they are fewer.
fn compressed(raw: &[u8]) -> Option<Bytes> {
    thread_local! {
        // A context takes longer to make than a block to compress.
        static COMPRESSOR: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    }
    COMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
        }
        let bytes = slot.as_mut()?.compress(raw).ok()?;
        (bytes.len() < raw.len()).then(|| bytes.into())
    })
}

/// Unpacks and verifies a stored block.
///
/// # Errors
/// [`StoreError::Damaged`] where length or hash are not the header's.
pub fn decode(header: &BlockHeader, stored: Bytes) -> Result<Bytes> {
    decode_proven(header, stored).map(|(raw, _)| raw)
}

/// As [`decode`]; with the leaves that prove parts of it, where it is stored as it is and large enough.
pub(crate) fn decode_proven(header: &BlockHeader, stored: Bytes) -> Result<(Bytes, Option<Leaves>)> {
    let damaged = |reason: String| StoreError::Damaged { what: format!("block {}", header.block), reason };
    if header.len > BLOCK_MAX {
        return Err(damaged(format!("its header claims {} bytes", header.len)));
    }
    let raw = match header.codec {
        Codec::Raw => stored,
        Codec::Zstd => zstd::bulk::decompress(&stored, header.len as usize)
            .map_err(|error| damaged(format!("it cannot be decompressed: {error}")))?
            .into(),
    };
    if raw.len() != header.len as usize {
        return Err(damaged(format!("it has {} bytes, its header says {}", raw.len(), header.len)));
    }
    let leaves = (header.codec == Codec::Raw).then(|| Leaves::of(&raw)).flatten();
    let hash = match &leaves {
        Some(leaves) => leaves.root(raw.len()),
        None => BlockHash(*blake3::hash(&raw).as_bytes()),
    };
    if hash != header.hash {
        return Err(damaged("its hash does not match".into()));
    }
    Ok((raw, leaves))
}

/// Lays patches, in their order, over the bytes of a block.
#[must_use]
pub fn apply_patches<'a>(base: Bytes, patches: impl IntoIterator<Item = (u32, &'a [u8])>) -> Bytes {
    let mut bytes = BytesMut::from(base);
    for (off, data) in patches {
        let range = off as usize..off as usize + data.len();
        if bytes.len() < range.end {
            bytes.resize(range.end, 0);
        }
        bytes[range].copy_from_slice(data);
    }
    bytes.freeze()
}

/// Sorted, disjoint ranges as one value: pairs (gap before it, length), each as LEB128.
#[must_use]
pub fn encode_ranges(ranges: &[Range<u64>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(ranges.len() * 4);
    let mut at = 0;
    for range in ranges {
        put_varint(&mut out, range.start.wrapping_sub(at));
        put_varint(&mut out, range.end.wrapping_sub(range.start));
        at = range.end;
    }
    out
}

/// Reads what [`encode_ranges`] wrote; `None` where it is not that.
#[must_use]
pub fn decode_ranges(mut bytes: &[u8]) -> Option<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let mut at = 0u64;
    while !bytes.is_empty() {
        let start = at.checked_add(take_varint(&mut bytes)?)?;
        at = start.checked_add(take_varint(&mut bytes)?)?;
        ranges.push(start..at);
    }
    Some(ranges)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn both() -> [Compression; 2] {
        [Compression::None, Compression::Zstd]
    }

    #[test]
    fn an_empty_or_zero_block_is_stored_as_nothing() {
        for compression in both() {
            for raw in [vec![], vec![0; 131_072]] {
                let block = encode(7, raw.into(), compression);
                assert_eq!((block.header.len, block.bytes.len()), (0, 0));
                assert_eq!(decode(&block.header, block.bytes).unwrap(), Bytes::new());
            }
        }
    }

    #[test]
    fn compression_is_dropped_where_it_gains_nothing() {
        let raw: Vec<u8> = blake3::Hasher::new().finalize_xof_bytes(4096);
        let block = encode(1, raw.clone().into(), Compression::Zstd);
        assert_eq!(block.header.codec, Codec::Raw);
        let block = encode(1, vec![5; 4096].into(), Compression::Zstd);
        assert_eq!(block.header.codec, Codec::Zstd);
        assert!(block.bytes.len() < 100);
    }

    trait Xof {
        fn finalize_xof_bytes(&self, len: usize) -> Vec<u8>;
    }
    impl Xof for blake3::Hasher {
        fn finalize_xof_bytes(&self, len: usize) -> Vec<u8> {
            let mut out = vec![0; len];
            self.finalize_xof().fill(&mut out);
            out
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_and_any_flipped_bit_is_damage(
            raw in prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 0..9000),
            zstd: bool, at: prop::sample::Index, bit in 0..8u8,
        ) {
            let compression = if zstd { Compression::Zstd } else { Compression::None };
            let block = encode(3, raw.clone().into(), compression);
            let back = decode(&block.header, block.bytes.clone()).unwrap();
            prop_assert_eq!(&back[..], &raw[..trimmed_len(&raw)]);
            if !block.bytes.is_empty() {
                let mut bytes = block.bytes.to_vec();
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
                // A flipped bit of a zstd frame may be one that means nothing; wrong bytes never come out.
                match decode(&block.header, bytes.into()) {
                    Ok(got) => prop_assert_eq!(got, back),
                    Err(error) => prop_assert_eq!(error.kind(), tarbox_types::ErrorKind::Damaged),
                }
            }
        }

        #[test]
        fn patches_lie_over_the_base_in_their_order(
            base in prop::collection::vec(any::<u8>(), 0..64),
            patches in prop::collection::vec((0..80u32, prop::collection::vec(any::<u8>(), 1..20)), 0..6),
        ) {
            let mut expected = [0u8; 100];
            expected[..base.len()].copy_from_slice(&base);
            for (off, data) in &patches {
                for (i, byte) in data.iter().enumerate() {
                    expected[*off as usize + i] = *byte;
                }
            }
            let got = apply_patches(base.into(), patches.iter().map(|(off, data)| (*off, &data[..])));
            prop_assert_eq!(&got[..], &expected[..got.len()]);
            prop_assert!(expected[got.len()..].iter().all(|byte| *byte == 0));
        }

        #[test]
        fn ranges_read_back(steps in prop::collection::vec((1..1u64 << 40, 1..1u64 << 40), 0..20)) {
            let mut at = 0;
            let ranges: Vec<_> = steps.iter().map(|(gap, len)| { let r = at + gap..at + gap + len; at = r.end; r }).collect();
            prop_assert_eq!(decode_ranges(&encode_ranges(&ranges)), Some(ranges));
        }

        #[test]
        fn no_bytes_make_the_range_reader_fail_otherwise_than_with_none(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = decode_ranges(&bytes);
        }
    }
}
