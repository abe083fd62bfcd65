//! Versions of what is said: release N reads N and N−1, and writes what both sides read.

use std::ops::RangeInclusive;

use crate::HandoverError;

/// Formats of the link between a mounter and its supervisor that are read; the last one is the newest.
pub const LINK_FORMATS: RangeInclusive<u32> = 1..=1;
/// Formats of the keeper's protocol that are read; the last one is the newest.
pub const KEEPER_FORMATS: RangeInclusive<u32> = 1..=1;

/// The newest format that both sides read; None if there is none.
#[must_use]
pub fn agree(ours: &RangeInclusive<u32>, theirs: &RangeInclusive<u32>) -> Option<u32> {
    let newest = *ours.end().min(theirs.end());
    (newest >= *ours.start() && newest >= *theirs.start()).then_some(newest)
}

/// Refuses a packet of a format that is not among `read`.
///
/// # Errors
/// [`HandoverError::Format`], which names what is read.
pub fn check(found: u32, read: &RangeInclusive<u32>) -> Result<(), HandoverError> {
    if read.contains(&found) {
        return Ok(());
    }
    Err(HandoverError::Format { found, oldest: *read.start(), newest: *read.end() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_releases_agree_and_distant_ones_do_not() {
        assert_eq!(agree(&(1..=1), &(1..=2)), Some(1));
        assert_eq!(agree(&(2..=3), &(1..=2)), Some(2));
        assert_eq!(agree(&(2..=3), &(2..=3)), Some(3));
        assert_eq!(agree(&(1..=2), &(3..=4)), None);
        assert_eq!(agree(&(3..=4), &(1..=2)), None);
    }

    #[test]
    fn a_packet_of_an_unknown_format_is_refused_with_what_is_read() {
        assert!(check(2, &(1..=2)).is_ok());
        let told = check(3, &(1..=2)).unwrap_err().to_string();
        assert_eq!(told, "a packet of format 3; this version reads 1 to 2");
        assert!(check(0, &(1..=2)).is_err());
    }
}
