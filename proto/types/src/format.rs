//! The numbers of formats: of what one process writes and another one, perhaps of a neighbouring release, reads.

use std::ops::RangeInclusive;

/// Which numbers of a format this release reads, and which one it writes.
///
/// What is only added to a format needs no other number. Where that will not do the number goes up over two releases, so that of two
/// neighbours each reads what the other one writes: who comes later, who dies in between, and who is gone back to does not matter.
///
/// | release | reads | writes | is built by |
/// |---|---|---|---|
/// | this one | 1 | 1 | |
/// | the next one | 1, 2 | 1 | feature `next-release`, as if it raised every number |
/// | the one after it | 1, 2 | 2 | feature `release-after-next` |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    oldest: u32,
    newest: u32,
    written: u32,
}

impl Format {
    /// A format of which there is only this number.
    #[must_use]
    pub const fn only(number: u32) -> Self {
        Self {
            oldest: number,
            newest: number + cfg!(feature = "next-release") as u32,
            written: number + cfg!(feature = "release-after-next") as u32,
        }
    }

    /// The number of what is written where nothing else has been agreed on.
    #[must_use]
    pub const fn written(self) -> u32 {
        self.written
    }

    /// All that is read.
    #[must_use]
    pub const fn read(self) -> RangeInclusive<u32> {
        self.oldest..=self.newest
    }

    /// Whether this number is read.
    #[must_use]
    pub const fn reads(self, number: u32) -> bool {
        self.oldest <= number && number <= self.newest
    }
}
