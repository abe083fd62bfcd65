//! Records of a PAX extended header. Source: POSIX.1-2017, pax, "pax Extended Header".

use tarbox_store::Time;

/// Appends `length key=value newline`, where the length counts itself.
pub(super) fn put(body: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    body.extend_from_slice(length.to_string().as_bytes());
    body.push(b' ');
    body.extend_from_slice(key);
    body.push(b'=');
    body.extend_from_slice(value);
    body.push(b'\n');
}

/// The records; values are any bytes, newlines included. `None` where the body is malformed.
pub(super) fn parse(mut body: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut records = Vec::new();
    while !body.is_empty() {
        let space = body.iter().position(|byte| *byte == b' ')?;
        let length: usize = number(&body[..space])?.try_into().ok()?;
        let record = body.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        records.push((&record[..equals], &record[equals + 1..]));
        body = &body[length..];
    }
    Some(records)
}

/// A name of an extended attribute within a key, which ends at the first `=`. Source: GNU tar, `xattr_encode_keyword`.
pub(super) fn escape(name: &[u8]) -> Vec<u8> {
    let escaped = name.iter().flat_map(|byte| match byte {
        b'%' => &b"%25"[..],
        b'=' => b"%3D",
        other => std::slice::from_ref(other),
    });
    escaped.copied().collect()
}

/// The name again.
pub(super) fn unescape(mut text: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(text.len());
    while let Some((first, rest)) = text.split_first() {
        let (byte, rest) = match (first, rest) {
            (b'%', [b'2', b'5', rest @ ..]) => (b'%', rest),
            (b'%', [b'3', b'D', rest @ ..]) => (b'=', rest),
            (other, rest) => (*other, rest),
        };
        name.push(byte);
        text = rest;
    }
    name
}

/// A whole number in decimal digits.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with nine decimals, or whole ones. Before 1970 the fraction counts away from it: −0.5 is half a second before.
pub(super) fn format_time(time: Time) -> String {
    match (time.sec, time.nsec) {
        (sec, 0) => sec.to_string(),
        (sec, nsec) if sec >= 0 => format!("{sec}.{nsec:09}"),
        (sec, nsec) => format!("-{}.{:09}", -(sec + 1), 1_000_000_000 - nsec),
    }
}

pub(super) fn parse_time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (is_negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let sec: i64 = whole.parse().ok()?;
    let nsec: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(match (is_negative, nsec) {
        (false, _) => Time { sec, nsec },
        (true, 0) => Time { sec: -sec, nsec },
        (true, _) => Time { sec: -sec - 1, nsec: 1_000_000_000 - nsec },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_attributes_may_hold_any_bytes() {
        for name in [&b"user.a=b"[..], b"user.%3D", b"user.100%", b"user.%25=%", b"user.\xff"] {
            let escaped = escape(name);
            assert!(!escaped.contains(&b'='));
            assert_eq!(unescape(&escaped), name);
        }
        assert_eq!(unescape(b"user.50%off"), b"user.50%off", "of who does not escape");
    }

    #[test]
    fn a_record_counts_its_own_length() {
        // The example of POSIX, and one at the edge where the length's digits change it.
        for (key, value, record) in [
            ("path", "d/f", "12 path=d/f\n"),
            ("a", "b2345", "11 a=b2345\n"),
            ("a", "b23", "8 a=b23\n"),
            ("a", "b234", "9 a=b234\n"),
        ] {
            let mut body = Vec::new();
            put(&mut body, key.as_bytes(), value.as_bytes());
            assert_eq!(String::from_utf8_lossy(&body), record);
            assert_eq!(
                body.len(),
                record.split(' ').next().and_then(|n| n.parse::<usize>().ok()).expect("length")
            );
        }
    }

    #[test]
    fn values_may_hold_any_bytes() {
        let mut body = Vec::new();
        put(&mut body, b"SCHILY.xattr.user.x", b"a=b\n\0\xff");
        put(&mut body, b"uid", b"1");
        let records = parse(&body).expect("records");
        assert_eq!(records, [(&b"SCHILY.xattr.user.x"[..], &b"a=b\n\0\xff"[..]), (&b"uid"[..], &b"1"[..])]);
        for cut in 1..body.len() - 1 {
            assert!(parse(&body[..cut]).is_none_or(|records| records.len() < 2), "cut at {cut}");
        }
    }

    #[test]
    fn times_keep_their_nanoseconds_before_1970_too() {
        for (sec, nsec, text) in [
            (0, 0, "0"),
            (1_700_000_000, 1, "1700000000.000000001"),
            (-1, 500_000_000, "-0.500000000"),
            (-2, 999_999_999, "-1.000000001"),
            (-5, 0, "-5"),
        ] {
            let time = Time { sec, nsec };
            assert_eq!(format_time(time), text);
            assert_eq!(parse_time(text.as_bytes()), Some(time), "{text}");
        }
        assert_eq!(parse_time(b"1.5"), Some(Time { sec: 1, nsec: 500_000_000 }));
        for bad in ["", "x", "1.x", "--1"] {
            assert_eq!(parse_time(bad.as_bytes()), None, "{bad}");
        }
    }
}
