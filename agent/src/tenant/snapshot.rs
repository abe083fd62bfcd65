//! What others see of a tenant's task.

use std::time::Duration;

use tarbox_supervisor::{Build, Condition, Process, Record, State};
use tarbox_types::ErrorKind;

use super::Staged;

/// How the last upgrade went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UpgradeOutcome {
    pub(crate) build: Build,
    /// Why it was not done, or undone.
    pub(crate) fault: Option<String>,
}

/// A tenant, as its task last left it.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) staged: Staged,
    pub(crate) record: Record,
    pub(crate) condition: Condition,
    /// Whether what a mounter logs in with is at hand: here, or with the keeper.
    pub(crate) has_secrets: bool,
    /// What the mounter said it is.
    pub(crate) version: String,
    /// Why staging cannot succeed, in the words of the mounter or of the kernel; `None` once it served.
    pub(crate) refusal: Option<(ErrorKind, String)>,
    /// What cannot be done at the moment and is tried again.
    pub(crate) obstacle: Option<String>,
    pub(crate) hand_overs: u64,
    pub(crate) last_pause: Option<Duration>,
    pub(crate) longest_pause: Option<Duration>,
    pub(crate) upgrade: Option<UpgradeOutcome>,
    /// How many upgrades have been decided, so that a new outcome is told from an old one.
    pub(crate) upgrades: u64,
}

impl Snapshot {
    pub(crate) fn new(staged: Staged, record: Record) -> Self {
        Self {
            staged,
            record,
            condition: Condition::Absent,
            has_secrets: false,
            version: String::new(),
            refusal: None,
            obstacle: None,
            hand_overs: 0,
            last_pause: None,
            longest_pause: None,
            upgrade: None,
            upgrades: 0,
        }
    }

    /// Whether it is mounted and somebody serves.
    pub(crate) fn is_serving(&self) -> bool {
        matches!(self.record.state, State::Serving { .. } | State::Upgrading { .. })
    }

    pub(crate) fn is_gone(&self) -> bool {
        matches!(self.record.state, State::Gone) && self.record.wanted.is_none()
    }

    /// Who serves.
    pub(crate) fn server(&self) -> Option<Process> {
        self.record.server.as_ref().map(|server| server.process)
    }

    /// One word for what the supervisor is about.
    pub(crate) fn phase(&self) -> &'static str {
        match &self.condition {
            Condition::Absent => "absent",
            Condition::Starting => "starting",
            Condition::Serving => "serving",
            Condition::Waiting(_) => "waiting",
            Condition::Suspicious => "suspicious",
            Condition::Restarting { .. } => "restarting",
            Condition::Upgrading { .. } => "upgrading",
            Condition::Broken { .. } => "broken",
            Condition::Stopping => "stopping",
        }
    }

    /// A sentence where something is wrong or waited for; empty else.
    pub(crate) fn trouble(&self) -> String {
        let sentence = match &self.condition {
            Condition::Absent | Condition::Serving | Condition::Upgrading { .. } => String::new(),
            Condition::Starting => "the mounter is starting".to_owned(),
            Condition::Waiting(what) => format!("the mounter waits for: {what:?}").to_lowercase(),
            Condition::Suspicious => "the mounter answers late: it may hang".to_owned(),
            Condition::Restarting { why } => format!("the mounter is being restarted: {why}"),
            Condition::Broken { why } => format!("no mounter can be kept running: {why}"),
            Condition::Stopping => "being unstaged".to_owned(),
        };
        match &self.obstacle {
            Some(obstacle) if sentence.is_empty() => obstacle.clone(),
            Some(obstacle) => format!("{sentence}; {obstacle}"),
            None => sentence,
        }
    }
}
