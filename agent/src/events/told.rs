//! What is worth an event: the differences between two looks at a tenant. Pure.

use tarbox_supervisor::{Condition, Waiting};

use crate::tenant::Snapshot;

/// What of a tenant may be worth an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) restarts: u64,
    pub(super) why: Option<String>,
    pub(super) pause_ms: Option<u128>,
    pub(super) condition: Condition,
    /// Operations that the tenant's limits have refused, counted by the mounter; `None` where nobody tells.
    pub(super) refusals: Option<u64>,
}

impl Seen {
    pub(super) fn of(snapshot: &Snapshot, refusals: Option<u64>) -> Self {
        Self {
            restarts: snapshot.record.restarts,
            why: snapshot.record.last_words.clone(),
            pause_ms: snapshot.last_pause.map(|pause| pause.as_millis()),
            condition: snapshot.condition.clone(),
            refusals,
        }
    }

    /// What is compared with next: a mounter that does not serve yet has not been told of.
    pub(super) fn or_untold(self, before: Option<&Self>) -> Self {
        let restarts = before.filter(|_| !self.serves()).map_or(self.restarts, |before| before.restarts);
        Self { restarts, ..self }
    }

    fn serves(&self) -> bool {
        matches!(self.condition, Condition::Serving | Condition::Upgrading { .. } | Condition::Waiting(_))
    }

    fn lacks_the_database(&self) -> bool {
        matches!(self.condition, Condition::Waiting(Waiting::Database))
    }

    fn is_broken(&self) -> bool {
        matches!(self.condition, Condition::Broken { .. })
    }
}

/// Reasons of events, as Kubernetes writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    MounterRestarted,
    MounterBroken,
    DatabaseUnreachable,
    DatabaseReachable,
    QuotaReached,
}

impl Reason {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::MounterRestarted => "MounterRestarted",
            Self::MounterBroken => "MounterBroken",
            Self::DatabaseUnreachable => "DatabaseUnreachable",
            Self::DatabaseReachable => "DatabaseReachable",
            Self::QuotaReached => "QuotaReached",
        }
    }

    /// `Warning` or `Normal`.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::MounterBroken | Self::DatabaseUnreachable | Self::QuotaReached => "Warning",
            Self::MounterRestarted | Self::DatabaseReachable => "Normal",
        }
    }
}

/// Something to be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) reason: Reason,
    pub(super) message: String,
}

/// What has happened between two looks.
pub(super) fn between(before: &Seen, now: &Seen) -> Vec<Told> {
    let mut told = Vec::new();
    let mut tell = |reason, message: String| told.push(Told { reason, message });
    let why = |seen: &Seen| seen.why.clone().unwrap_or_else(|| "no reason is known".to_owned());
    // Once it serves again: until then, how it ends is not known.
    if now.restarts > before.restarts && now.serves() || before.is_broken() && now.serves() {
        let pause = now.pause_ms.map_or_else(String::new, |ms| format!(" after {ms} ms"));
        tell(
            Reason::MounterRestarted,
            format!(
                "the mounter had ended ({}); another one serves{pause}, and no call has failed meanwhile",
                why(now)
            ),
        );
    }
    if now.is_broken() && !before.is_broken() {
        tell(
            Reason::MounterBroken,
            format!("no mounter can be kept running: {}; it is tried again", why(now)),
        );
    }
    if now.lacks_the_database() && !before.lacks_the_database() {
        tell(
            Reason::DatabaseUnreachable,
            "the database cannot be reached: calls that need it wait until it is back".to_owned(),
        );
    }
    if before.lacks_the_database()
        && matches!(now.condition, Condition::Serving | Condition::Upgrading { .. })
    {
        tell(Reason::DatabaseReachable, "the database answers again".to_owned());
    }
    // A mounter that was started anew counts from nothing.
    if let (Some(before), Some(now)) = (before.refusals, now.refusals)
        && now > before
    {
        tell(
            Reason::QuotaReached,
            format!(
                "{} operations were refused for the volume's limits (ENOSPC or EFBIG): remove something, or expand it",
                now - before
            ),
        );
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(condition: Condition) -> Seen {
        Seen { restarts: 3, why: Some("signal 9".into()), pause_ms: Some(21), condition, refusals: Some(5) }
    }

    fn reasons(before: &Seen, now: &Seen) -> Vec<Reason> {
        between(before, now).into_iter().map(|told| told.reason).collect()
    }

    #[test]
    fn what_users_must_know_is_told_once() {
        let serving = seen(Condition::Serving);
        let again = Seen { restarts: 4, ..serving.clone() };
        let without = seen(Condition::Waiting(Waiting::Database));
        let broken = seen(Condition::Broken { why: "signal 9".into() });
        let full = Seen { refusals: Some(9), ..serving.clone() };
        for (before, now, expected) in [
            (&serving, &serving, vec![]),
            (&serving, &again, vec![Reason::MounterRestarted]),
            (&serving, &without, vec![Reason::DatabaseUnreachable]),
            (&without, &without, vec![]),
            (&without, &serving, vec![Reason::DatabaseReachable]),
            (&serving, &broken, vec![Reason::MounterBroken]),
            (&broken, &serving, vec![Reason::MounterRestarted]),
            (&serving, &full, vec![Reason::QuotaReached]),
        ] {
            assert_eq!(reasons(before, now), expected, "{before:?} {now:?}");
        }
        let told = between(&serving, &again);
        assert!(told[0].message.contains("signal 9") && told[0].message.contains("after 21 ms"), "{told:?}");
    }

    #[test]
    fn a_restart_that_is_seen_before_it_has_come_to_its_end_is_told_then() {
        let serving = seen(Condition::Serving);
        let restarting = Seen { restarts: 4, ..seen(Condition::Restarting { why: "signal 9".into() }) };
        assert_eq!(reasons(&serving, &restarting), []);
        let before = restarting.or_untold(Some(&serving));
        let again = Seen { restarts: 4, ..serving };
        assert_eq!(reasons(&before, &again), [Reason::MounterRestarted]);
        assert_eq!(reasons(&again.clone().or_untold(Some(&before)), &again), []);
    }

    #[test]
    fn a_mounter_that_counts_anew_or_says_nothing_has_refused_nothing() {
        let serving = seen(Condition::Serving);
        for refusals in [None, Some(0)] {
            let other = Seen { refusals, ..serving.clone() };
            assert_eq!(reasons(&serving, &other), []);
        }
        assert_eq!(reasons(&Seen { refusals: None, ..serving.clone() }, &serving), []);
    }
}
