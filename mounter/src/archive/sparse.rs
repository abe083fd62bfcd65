//! Where a sparse file's bytes belong. Source: GNU tar manual, "Storing Sparse Files".

use std::{io::Read, ops::Range};

use super::{BLOCK, pax};

/// Format 1.0: the map stands before the data, as decimal numbers in lines, padded to a block.
pub(super) fn encode(size: u64, data: &[Range<u64>]) -> Vec<u8> {
    // A hole at the end is marked by an empty range.
    let ends_in_hole = data.last().is_none_or(|last| last.end < size);
    let mut map = format!("{}\n", data.len() + usize::from(ends_in_hole));
    for range in data {
        map.push_str(&format!("{}\n{}\n", range.start, range.end - range.start));
    }
    if ends_in_hole {
        map.push_str(&format!("{size}\n0\n"));
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

/// Reads a map of format 1.0; returns it with the number of bytes it took.
pub(super) fn decode(input: &mut impl Read) -> std::io::Result<(Vec<(u64, u64)>, u64)> {
    let mut lines = Lines { input, block: [0; BLOCK], at: BLOCK, taken: 0 };
    let count = lines.number()?;
    let mut map = Vec::new();
    for _ in 0..count {
        map.push((lines.number()?, lines.number()?));
    }
    Ok((map, lines.taken))
}

struct Lines<'r, R> {
    input: &'r mut R,
    block: [u8; BLOCK],
    at: usize,
    taken: u64,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self) -> std::io::Result<u64> {
        let mut digits = Vec::new();
        loop {
            if self.at == BLOCK {
                self.input.read_exact(&mut self.block)?;
                self.taken += BLOCK as u64;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => return pax::number(&digits).ok_or_else(|| std::io::ErrorKind::InvalidData.into()),
                digit if digits.len() < 20 => digits.push(digit),
                _ => return Err(std::io::ErrorKind::InvalidData.into()),
            }
        }
    }
}

/// The map as ranges: empty ones left out, neighbours joined. `None` where it is not in order or exceeds the size.
pub(super) fn ranges(map: &[(u64, u64)], size: u64) -> Option<Vec<Range<u64>>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for &(offset, length) in map.iter().filter(|(_, length)| *length > 0) {
        let end = offset.checked_add(length).filter(|end| *end <= size)?;
        match ranges.last_mut() {
            Some(last) if offset < last.end => return None,
            Some(last) if offset == last.end => last.end = end,
            _ => ranges.push(offset..end),
        }
    }
    Some(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_reads_back_over_several_blocks() {
        let data: Vec<Range<u64>> = (0..200).map(|n| n * 10_000..n * 10_000 + 4096).collect();
        let map = encode(1 << 40, &data);
        assert!(map.len() > BLOCK && map.len().is_multiple_of(BLOCK));
        let (pairs, taken) = decode(&mut map.as_slice()).expect("a map");
        assert_eq!((ranges(&pairs, 1 << 40), taken), (Some(data), map.len() as u64));
    }

    #[test]
    fn a_map_that_makes_no_sense_is_refused() {
        assert_eq!(ranges(&[(10, 5), (0, 5)], 100), None);
        assert_eq!(ranges(&[(10, 5), (12, 5)], 100), None);
        assert_eq!(ranges(&[(u64::MAX, 5)], 100), None);
        assert_eq!(ranges(&[(99, 5)], 100), None);
        assert_eq!(ranges(&[(0, 5), (5, 5), (20, 0), (30, 1)], 100), Some(vec![0..10, 30..31]));
        assert!(decode(&mut &[b'x'; BLOCK][..]).is_err());
        assert!(decode(&mut &b"1\n0\n"[..]).is_err());
    }
}
