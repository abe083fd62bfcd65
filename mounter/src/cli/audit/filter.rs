//! Which events are asked for. Pure, but for the present moment.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use tarbox_fs::audit::{ALL, Event, Operation};
use tarbox_types::HumanDuration;

use crate::event_view;

/// What an event has to be; everything that is said must hold.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Filter {
    /// Only paths that begin so
    #[arg(long, value_name = "PREFIX")]
    path: Option<String>,

    /// Only these operations: create, unlink, rename, write and so on
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_parser = operation)]
    op: Vec<Operation>,

    /// Only of this user (a number)
    #[arg(long)]
    uid: Option<u32>,

    /// Only of this process
    #[arg(long)]
    pid: Option<u32>,

    /// Only of processes of this name (the first 15 bytes count)
    #[arg(long, value_name = "NAME")]
    process: Option<String>,

    /// Only of this pod: NAMESPACE/NAME, NAME or its uid
    #[arg(long)]
    pod: Option<String>,

    /// Only with this result: ok, or an error such as ENOSPC
    #[arg(long, value_name = "RESULT")]
    result: Option<String>,
}

impl Filter {
    pub(super) fn chooses(&self, event: &Event) -> bool {
        let begins = |prefix: &String| {
            let prefix = prefix.as_bytes();
            event.path.starts_with(prefix) || event.to.as_ref().is_some_and(|to| to.starts_with(prefix))
        };
        let is_process = |name: &String| event.process == name.as_bytes()[..name.len().min(15)];
        self.path.as_ref().is_none_or(begins)
            && (self.op.is_empty() || self.op.contains(&event.operation))
            && self.uid.is_none_or(|uid| uid == event.uid)
            && self.pid.is_none_or(|pid| pid == event.pid)
            && self.process.as_ref().is_none_or(is_process)
            && self.pod.as_ref().is_none_or(|pod| is_of_pod(event, pod))
            && self
                .result
                .as_ref()
                .is_none_or(|wanted| wanted.eq_ignore_ascii_case(&event_view::result(event.result)))
    }
}

fn is_of_pod(event: &Event, wanted: &str) -> bool {
    event.pod.as_ref().is_some_and(|pod| {
        wanted == pod.name
            || wanted.eq_ignore_ascii_case(&pod.uid.to_string())
            || wanted.split_once('/').is_some_and(|(namespace, name)| {
                (namespace, name) == (pod.namespace.as_str(), pod.name.as_str())
            })
    })
}

fn operation(name: &str) -> Result<Operation, String> {
    Operation::of_name(name).ok_or_else(|| {
        let names: Vec<&str> = ALL.iter().map(|operation| operation.name()).collect();
        format!("allowed are {}", names.join(", "))
    })
}

/// A moment, in microseconds since 1970: a duration before now, or a date with or without a time, in UTC.
///
/// # Errors
/// What is allowed.
pub(super) fn moment_in_micros(text: &str) -> Result<u64, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    moment(text, now.as_micros() as u64)
        .ok_or_else(|| "a duration before now such as 90s, 30m or 7d, or a time such as 2026-11-22 or 2026-11-22T10:00:00Z".to_owned())
}

fn moment(text: &str, now: u64) -> Option<u64> {
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u64>().ok());
    let ago = days
        .and_then(|days| days.checked_mul(86_400_000_000))
        .or_else(|| text.parse::<HumanDuration>().ok().map(|duration| duration.0.as_micros() as u64));
    match ago {
        Some(ago) => Some(now.saturating_sub(ago)),
        None => date(text),
    }
}

/// `YYYY-MM-DD`, with `THH:MM` or `THH:MM:SS` behind it, and `Z` or nothing.
fn date(text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00"));
    let numbers = |text: &str, separator: char| -> Option<Vec<u64>> {
        text.split(separator).map(|number| number.parse().ok()).collect()
    };
    let [year, month, day] = numbers(date, '-')?[..] else { return None };
    let (hour, minute, second) = match numbers(time, ':')?[..] {
        [hour, minute] => (hour, minute, 0),
        [hour, minute, second] => (hour, minute, second),
        _ => return None,
    };
    let is_right = (1970..10_000).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    // Source: Hinnant, "chrono-compatible low-level date algorithms", days_from_civil: years begin in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * month + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    let seconds = days.checked_sub(719_468)? * 86_400 + hour * 3600 + minute * 60 + second;
    is_right.then_some(seconds * 1_000_000)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tarbox_fs::audit::Pod;
    use uuid::Uuid;

    use super::*;

    fn event() -> Event {
        let pod = Pod { uid: Uuid::from_u128(7), namespace: "team".into(), name: "agent-0".into() };
        Event {
            path: Bytes::from_static(b"/src/a"),
            to: Some(Bytes::from_static(b"/old/a")),
            ino: 20,
            uid: 1000,
            gid: 100,
            pid: 42,
            process: Bytes::from_static(b"a-name-of-15-by"),
            pod: Some(pod),
            ..Event::new(Operation::Rename)
        }
    }

    #[test]
    fn everything_that_is_said_must_hold() {
        let some = |text: &str| Some(text.to_owned());
        let all = Filter::default();
        assert!(all.chooses(&event()));
        for filter in [
            Filter { path: some("/src/"), ..all.clone() },
            Filter { path: some("/old"), ..all.clone() },
            Filter { op: vec![Operation::Create, Operation::Rename], ..all.clone() },
            Filter { uid: Some(1000), pid: Some(42), ..all.clone() },
            Filter { process: some("a-name-of-15-bytes-and-more"), ..all.clone() },
            Filter { pod: some("agent-0"), ..all.clone() },
            Filter { pod: some("team/agent-0"), ..all.clone() },
            Filter { pod: some("00000000-0000-0000-0000-000000000007"), ..all.clone() },
            Filter { result: some("OK"), ..all.clone() },
        ] {
            assert!(filter.chooses(&event()), "{filter:?}");
        }
        for filter in [
            Filter { path: some("/src/b"), ..all.clone() },
            Filter { op: vec![Operation::Create], ..all.clone() },
            Filter { uid: Some(1000), pid: Some(43), ..all.clone() },
            Filter { process: some("a-name"), ..all.clone() },
            Filter { pod: some("other/agent-0"), ..all.clone() },
            Filter { result: some("ENOSPC"), ..all.clone() },
        ] {
            assert!(!filter.chooses(&event()), "{filter:?}");
        }
        assert!(!Filter { pod: some("agent-0"), ..all }.chooses(&Event { pod: None, ..event() }));
        assert_eq!(operation("rename"), Ok(Operation::Rename));
        assert!(operation("move").is_err_and(|allowed| allowed.contains("create, mkdir")));
    }

    #[test]
    fn moments_are_before_now_or_dates() {
        // Source: `date -u -d 2026-11-22T00:18:16Z +%s`.
        let then = 1_795_306_696_000_000;
        for (text, micros) in [
            ("90s", then - 90_000_000),
            ("2d", then - 172_800_000_000),
            ("2026-11-22T00:18:16Z", then),
            ("2026-11-22 00:18:16", then),
            ("2026-11-22T00:18", then - 16_000_000),
            ("2026-11-22", then - 1_096_000_000),
            ("1970-01-01", 0),
            ("2000-02-29", 951_782_400_000_000),
        ] {
            assert_eq!(moment(text, then), Some(micros), "{text}");
        }
        for bad in ["", "yesterday", "2026-13-01", "2026-11", "2026-11-22T24:00", "1969-12-31", "1w"] {
            assert_eq!(moment(bad, then), None, "{bad}");
        }
    }
}
