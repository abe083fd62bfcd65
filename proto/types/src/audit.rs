//! How much of what is done with a tenant is kept.

use std::{fmt, str::FromStr};

/// The policy of a volume, `auditLevel`; each level holds what the ones before it hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum AuditLevel {
    /// Nothing.
    Off,
    /// Creations, deletions, renames, changes of owner or mode, refusals for the quota, mounts.
    Basic,
    /// Changes of content as well, summed up per file and commit.
    #[default]
    Standard,
    /// Every open, read and write as well, with offsets.
    Full,
}

impl AuditLevel {
    /// What is allowed.
    pub const ALLOWED: &'static str = "off, basic, standard or full";
}

impl FromStr for AuditLevel {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "basic" => Ok(Self::Basic),
            "standard" => Ok(Self::Standard),
            "full" => Ok(Self::Full),
            _ => Err(Self::ALLOWED),
        }
    }
}

impl fmt::Display for AuditLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Basic => "basic",
            Self::Standard => "standard",
            Self::Full => "full",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_back_as_they_are_written_and_each_holds_the_ones_before_it() {
        let levels = [AuditLevel::Off, AuditLevel::Basic, AuditLevel::Standard, AuditLevel::Full];
        assert!(levels.is_sorted());
        for level in levels {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        assert_eq!(AuditLevel::default(), AuditLevel::Standard);
        assert_eq!("FULL".parse::<AuditLevel>(), Err(AuditLevel::ALLOWED));
    }
}
