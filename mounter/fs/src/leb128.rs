//! Numbers as bytes after LEB128: seven bits each, the lowest first. Reading takes any bytes without panicking.

/// Appends a number.
pub(crate) fn put(out: &mut impl Extend<u8>, mut number: u64) {
    let mut bytes = [0; 10];
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
pub(crate) fn take(input: &mut &[u8]) -> Result<u64, NoNumber> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = input.split_first().ok_or(NoNumber::Short)?;
        *input = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            break;
        }
        number |= bits << shift;
        if *byte < 0x80 {
            return Ok(number);
        }
    }
    Err(NoNumber::TooLarge)
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
