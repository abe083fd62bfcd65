//! Versions of what is said.

use std::ops::RangeInclusive;

use tarbox_types::Format;

use crate::HandoverError;

/// The link between a mounter and its supervisor. Nothing is agreed on: the other side may be another process, of another release, at
/// the next message.
pub const LINK_FORMAT: Format = Format::only(1);
/// The keeper's protocol. A client writes what both sides read, from its second message on.
pub const KEEPER_FORMAT: Format = Format::only(1);

/// The newest format that both sides read; None if there is none.
#[must_use]
pub fn agree(ours: &RangeInclusive<u32>, theirs: &RangeInclusive<u32>) -> Option<u32> {
    let newest = *ours.end().min(theirs.end());
    (newest >= *ours.start() && newest >= *theirs.start()).then_some(newest)
}

/// Refuses a packet whose format is not read.
///
/// # Errors
/// [`HandoverError::Format`], which names what is read.
pub fn check(found: u32, format: Format) -> Result<(), HandoverError> {
    if format.reads(found) { Ok(()) } else { Err(unknown(found, format)) }
}

pub(crate) fn unknown(found: u32, format: Format) -> HandoverError {
    HandoverError::Format { found, oldest: *format.read().start(), newest: *format.read().end() }
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
        assert!(check(2, Format::only(2)).is_ok());
        let told = check(3, Format::only(2)).unwrap_err().to_string();
        assert_eq!(told, "a packet of format 3; this version reads 2 to 2");
        assert!(check(1, Format::only(2)).is_err());
    }
}
