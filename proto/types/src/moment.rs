//! Moments as people read them.

/// A moment as people read it: `2026-11-22 00:18:16Z`.
#[must_use]
pub fn moment(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Counted from the first of March of a year 0 that never was: leap days come last. Source: Hinnant, "chrono-compatible
    // low-level date algorithms", civil_from_days.
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

/// The same as machines read it, after RFC 3339: `2026-11-22T00:18:16Z`.
#[must_use]
pub fn rfc3339(seconds: i64) -> String {
    moment(seconds).replace(' ', "T")
}

#[cfg(test)]
mod tests {
    use super::{moment, rfc3339};

    #[test]
    fn moments_are_as_date_prints_them() {
        // Source: `date -u -d @N`.
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_399, "2000-02-28 23:59:59Z"),
            (951_868_799, "2000-02-29 23:59:59Z"),
            (1_795_306_696, "2026-11-22 00:18:16Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
            (-1, "1969-12-31 23:59:59Z"),
        ] {
            assert_eq!(moment(seconds), text);
            assert_eq!(rfc3339(seconds), text.replace(' ', "T"));
        }
    }
}
