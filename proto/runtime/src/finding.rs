//! What a doctor finds: one thing that was looked at, and what to do about it.

use std::fs;

use serde::Serialize;

use crate::output::Table;

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Fine,
    /// Works, but less well than it could.
    Warning,
    /// Does not work.
    Fault,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What.
    pub what: &'static str,
    /// How it is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub advice: Option<String>,
}

/// The oldest kernel that Tarbox is tried on.
const LEAST: (u32, u32) = (5, 10);

/// What a later kernel adds, as the kernel's own changelog of `linux/fuse.h` dates it.
const FEATURES: [((u32, u32), &str); 4] = [
    ((5, 11), "HANDLE_KILLPRIV_V2"),
    ((6, 2), "O_TMPFILE"),
    ((6, 9), "RESEND"),
    ((6, 12), "idmapped mounts"),
];

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Warning => "warn",
            Self::Fault => "FAULT",
        }
    }
}

impl Finding {
    /// It is as it should be.
    #[must_use]
    pub fn fine(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, state: State::Fine, found: found.into(), advice: None }
    }

    /// It works, but could work better.
    #[must_use]
    pub fn warning(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, state: State::Warning, found: found.into(), advice: Some(advice.into()) }
    }

    /// It does not work.
    #[must_use]
    pub fn fault(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, state: State::Fault, found: found.into(), advice: Some(advice.into()) }
    }

    /// Whether nothing is at fault; a warning is no fault.
    #[must_use]
    pub fn are_fine(findings: &[Self]) -> bool {
        findings.iter().all(|finding| finding.state != State::Fault)
    }

    /// As people read them.
    #[must_use]
    pub fn table(findings: &[Self]) -> Table {
        let mut table = Table::new(&["", "WHAT", "FOUND"]);
        for finding in findings {
            table.row(vec![finding.state.word().to_owned(), finding.what.to_owned(), finding.found.clone()]);
            if let Some(advice) = &finding.advice {
                table.row(vec![String::new(), String::new(), format!("→ {advice}")]);
            }
        }
        table
    }

    /// Whether the kernel is new enough, and what it has of what came later.
    #[must_use]
    pub fn kernel() -> Self {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        judged(release.trim())
    }
}

fn judged(release: &str) -> Finding {
    const WHAT: &str = "kernel";
    let Some(version) = parse(release) else {
        return Finding::warning(WHAT, format!("`{release}`"), "its version cannot be read");
    };
    if version < LEAST {
        let advice = format!("Linux {}.{} or newer is needed", LEAST.0, LEAST.1);
        return Finding::fault(WHAT, release, advice);
    }
    let has: Vec<&str> =
        FEATURES.iter().filter(|(since, _)| version >= *since).map(|(_, name)| *name).collect();
    let found = if has.is_empty() { release.to_owned() } else { format!("{release}: {}", has.join(", ")) };
    Finding::fine(WHAT, found)
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_read_and_old_ones_are_a_fault() {
        for (release, state) in [
            ("6.18.44-fc-v595", State::Fine),
            ("5.10.0-28-amd64", State::Fine),
            ("5.4.0-150-generic", State::Fault),
            ("6.1", State::Fine),
            ("6.12-rc3", State::Fine),
            ("unknown", State::Warning),
        ] {
            assert_eq!(judged(release).state, state, "{release}");
        }
        assert!(judged("5.4.0").advice.is_some_and(|advice| advice.contains("5.10")));
        assert_eq!(judged("6.9.1").found, "6.9.1: HANDLE_KILLPRIV_V2, O_TMPFILE, RESEND");
    }
}
