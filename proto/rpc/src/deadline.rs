//! How long a caller waits for the answer, as it says in the request.

use std::time::Duration;

use tonic::metadata::MetadataMap;

/// The time that the caller gives the call (`grpc-timeout`); `None` where it says nothing that can be understood.
///
/// Source: gRPC over HTTP/2, "Timeout".
#[must_use]
pub fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_number = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = is_number.then(|| digits.parse().ok())??;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// How long a call may take whose caller says nothing.
const DEFAULT_LIMIT: Duration = Duration::from_secs(60);
/// The answer is on its way that much before the caller gives up.
const MARGIN: Duration = Duration::from_millis(500);

/// The time that is left for the work of a call, where the caller gives it so much ([`timeout`]).
#[must_use]
pub fn limit(callers: Option<Duration>) -> Duration {
    let limit = callers.unwrap_or(DEFAULT_LIMIT).min(Duration::from_secs(600));
    limit.saturating_sub(MARGIN).max(limit / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_understood_and_nonsense_is_not() {
        for (text, expected) in [
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("15S", Some(Duration::from_secs(15))),
            ("100m", Some(Duration::from_millis(100))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("1n", Some(Duration::from_nanos(1))),
            ("", None),
            ("S", None),
            ("-1S", None),
            ("1.5S", None),
            ("123456789S", None),
            ("1s", None),
        ] {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().expect("ASCII"));
            assert_eq!(timeout(&metadata), expected, "{text}");
        }
        assert_eq!(timeout(&MetadataMap::new()), None);
    }

    #[test]
    fn the_answer_comes_before_the_caller_gives_up() {
        for caller in [1, 10, 500, 1000, 120_000] {
            let caller = Duration::from_millis(caller);
            assert!(limit(Some(caller)) < caller && limit(Some(caller)) >= caller / 2, "{caller:?}");
        }
        assert!(limit(None) < DEFAULT_LIMIT);
    }
}
