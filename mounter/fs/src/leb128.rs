//! Numbers as bytes after LEB128: seven bits each, the lowest first. Reading takes any bytes without panicking.

/// Bytes of the largest number.
const LONGEST: usize = 10;

/// Appends a number.
pub(crate) fn put(out: &mut impl Extend<u8>, mut number: u64) {
    let mut bytes = [0; LONGEST];
    let mut len = 0;
    while number >= 0x80 {
        bytes[len] = number as u8 | 0x80;
        number >>= 7;
        len += 1;
    }
    bytes[len] = number as u8;
    out.extend(bytes[..=len].iter().copied());
}

/// Why bytes are no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoNumber {
    /// They end too early.
    Short,
    /// It does not fit into 64 bits.
    TooLarge,
}

/// Takes a number off the front.
#[inline]
pub(crate) fn take(input: &mut &[u8]) -> Result<u64, NoNumber> {
    // Most are small, and applications wait while a journal is read.
    match **input {
        [byte @ ..0x80, ref rest @ ..] => {
            *input = rest;
            Ok(byte.into())
        }
        _ => take_long(input),
    }
}

fn take_long(input: &mut &[u8]) -> Result<u64, NoNumber> {
    let mut number = 0;
    for (at, byte) in input.iter().enumerate().take(LONGEST) {
        let bits = u64::from(byte & 0x7f);
        if at == LONGEST - 1 && bits > 1 {
            break;
        }
        number |= bits << (7 * at);
        if *byte < 0x80 {
            *input = &input[at + 1..];
            return Ok(number);
        }
    }
    Err(if input.len() < LONGEST { NoNumber::Short } else { NoNumber::TooLarge })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_and_what_is_none_is_told() {
        for number in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            put(&mut bytes, number);
            let mut input = &bytes[..];
            assert_eq!((take(&mut input), input.is_empty()), (Ok(number), true), "{number}");
            assert_eq!(take(&mut &bytes[..bytes.len() - 1]), Err(NoNumber::Short), "{number}");
        }
        assert_eq!(take(&mut &[0xff; 10][..]), Err(NoNumber::TooLarge));
    }
}
