//! What becomes of callers while the database does not answer.

use std::{fmt, str::FromStr, time::Duration};

use crate::quantity::HumanDuration;

/// The policy of a volume, `onDatabaseOutage`, written as `wait` or `eio-after=30s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutagePolicy {
    /// They wait.
    #[default]
    Wait,
    /// They are answered with EIO once the outage has lasted so long.
    EioAfter(Duration),
}

impl OutagePolicy {
    /// What is allowed.
    pub const ALLOWED: &'static str = "wait, or eio-after=DURATION from 1s to 24h";

    /// How long callers wait; `None` = as long as it takes.
    #[must_use]
    pub fn patience(self) -> Option<Duration> {
        match self {
            Self::Wait => None,
            Self::EioAfter(patience) => Some(patience),
        }
    }
}

impl FromStr for OutagePolicy {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "wait" {
            return Ok(Self::Wait);
        }
        let time = text.strip_prefix("eio-after=").and_then(|time| time.parse::<HumanDuration>().ok());
        let is_right = |time: &Duration| (1..=24 * 3600).contains(&time.as_secs());
        time.map(|time| time.0).filter(is_right).map(Self::EioAfter).ok_or(Self::ALLOWED)
    }
}

impl fmt::Display for OutagePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wait => f.write_str("wait"),
            Self::EioAfter(patience) => write!(f, "eio-after={}", HumanDuration(*patience)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_anything_else_is_refused() {
        for (text, patience) in [("wait", None), ("eio-after=1s", Some(1)), ("eio-after=24h", Some(86_400))] {
            let policy: OutagePolicy = text.parse().expect(text);
            assert_eq!(policy.patience(), patience.map(Duration::from_secs));
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        for bad in ["", "eio", "eio-after", "eio-after=", "eio-after=999ms", "eio-after=25h", "WAIT"] {
            assert_eq!(bad.parse::<OutagePolicy>(), Err(OutagePolicy::ALLOWED), "{bad}");
        }
    }
}
