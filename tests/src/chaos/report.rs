//! What came of it: tables, a plot, and the numbers.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use anyhow::Result;
use serde::Serialize;

pub use super::ending::Check;
use super::observe::percentile;
use crate::plot::{self, Bars, Row};

/// The kind of event against which the others are held.
const NOISE: &str = "nothing";

/// All runs.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// What the plans were drawn from.
    pub seed: u64,
    /// Where tenants were kept.
    pub database: String,
    /// How many there were.
    pub tenants: usize,
    /// One run for each way.
    pub runs: Vec<RunReport>,
}

/// One run.
#[derive(Debug, Default, Serialize)]
pub struct RunReport {
    /// Whether the kernel was asked to send requests again.
    pub resend: bool,
    /// How long events came.
    pub seconds: f64,
    /// Events by kind.
    pub events: BTreeMap<String, Events>,
    /// Upgrades that were done, and that were undone or cut off by what else happened.
    pub upgrades: (u64, u64),
    /// What applications did, by load.
    pub loads: BTreeMap<String, LoadRow>,
    /// Operations that failed, answers that were wrong, clients that hang.
    pub faults: Vec<String>,
    /// What was checked at the end.
    pub checks: Vec<Check>,
}

/// Events of one kind.
#[derive(Debug, Default, Serialize)]
pub struct Events {
    /// How many.
    pub count: u64,
    /// The longest call of a probe in each, microseconds; one for each tenant concerned.
    pub pauses_us: Vec<u64>,
}

/// Clients of one load.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LoadRow {
    /// How many.
    pub clients: usize,
    /// Operations done.
    pub operations: u64,
    /// Operations that failed.
    pub failed: usize,
    /// Wrong bytes, names or answers.
    pub wrong: usize,
    /// Clients without progress.
    pub hung: usize,
}

impl Events {
    /// p50, p99 and the longest, milliseconds.
    fn pauses_ms(&self) -> Option<[f64; 3]> {
        let mut values = self.pauses_us.clone();
        let ms = |us: u64| us as f64 / 1e3;
        let [p50, p99, most] = [50, 99, 100].map(|percent| percentile(&mut values, percent).map(ms));
        Some([p50?, p99?, most?])
    }
}

impl RunReport {
    pub(super) fn new(resend: bool) -> Self {
        Self { resend, ..Self::default() }
    }

    pub(super) fn happened(&mut self, label: String, pauses_us: Vec<u64>) {
        let events = self.events.entry(label).or_default();
        events.count += 1;
        events.pauses_us.extend(pauses_us);
    }

    /// Whether applications noticed nothing, and nothing is left.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.faults.is_empty() && self.checks.iter().all(|check| check.fault.is_none())
    }

    fn title(&self) -> &'static str {
        if self.resend { "With RESEND" } else { "RESEND masked" }
    }

    /// Noise first, then the others by name.
    fn sorted(&self) -> Vec<(&str, &Events)> {
        let mut sorted: Vec<_> = self.events.iter().map(|(label, events)| (label.as_str(), events)).collect();
        sorted.sort_by_key(|(label, _)| (*label != NOISE, label.to_owned()));
        sorted
    }

    fn markdown(&self, text: &mut String) {
        let sum = |of: fn(&LoadRow) -> u64| self.loads.values().map(of).sum::<u64>();
        let events: u64 =
            self.events.iter().filter(|(label, _)| *label != NOISE).map(|(_, events)| events.count).sum();
        let _ = writeln!(
            text,
            "\n## {}\n\n{events} events in {:.0} s; {} operations, **{} failed, {} wrong, {} clients hung**. Upgrades: {} done, {} undone or cut off by other events.\n",
            self.title(),
            self.seconds,
            sum(|row| row.operations),
            sum(|row| row.failed as u64),
            sum(|row| row.wrong as u64),
            sum(|row| row.hung as u64),
            self.upgrades.0,
            self.upgrades.1,
        );
        text.push_str("| what happened | times | p50 ms | p99 ms | longest ms | p99 above the noise |\n|---|---:|---:|---:|---:|---:|\n");
        let noise = self.events.get(NOISE).and_then(Events::pauses_ms);
        for (label, events) in self.sorted() {
            let cells = events.pauses_ms().map_or("- | - | - | -".to_owned(), |[p50, p99, most]| {
                let above =
                    noise.map_or("-".to_owned(), |[_, floor, _]| format!("{:.1}", (p99 - floor).max(0.0)));
                format!("{p50:.1} | {p99:.1} | {most:.1} | {above}")
            });
            let _ = writeln!(text, "| {label} | {} | {cells} |", events.count);
        }
        text.push_str(
            "\n| load | clients | operations | failed | wrong | hung |\n|---|---:|---:|---:|---:|---:|\n",
        );
        for (load, row) in &self.loads {
            let LoadRow { clients, operations, failed, wrong, hung } = row;
            let _ = writeln!(text, "| {load} | {clients} | {operations} | {failed} | {wrong} | {hung} |");
        }
        text.push_str("\nAt the end:\n\n");
        for check in &self.checks {
            let _ = writeln!(text, "- {}: {}", check.what, check.fault.as_deref().unwrap_or("yes"));
        }
        if !self.faults.is_empty() {
            let _ = writeln!(text, "\nFaults:\n\n- {}", self.faults.join("\n- "));
        }
    }
}

impl Report {
    /// Whether every run is clean.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        !self.runs.is_empty() && self.runs.iter().all(RunReport::is_clean)
    }

    /// The report as people read it.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "# Chaos\n\n{} tenants on {}, seed {}. A pause is the longest call of a probe (create, write, stat, read, unlink, all the time) in the\n\
             window of an event, from before it until the tenant answers again; what a stop itself lasted is taken off. The row `nothing` is the noise:\n\
             windows of the same run in which nothing happened.\n",
            self.tenants, self.database, self.seed
        );
        self.runs.iter().for_each(|run| run.markdown(&mut text));
        text
    }

    /// The plot: p50, p99 and the longest pause of each kind, for each run.
    #[must_use]
    pub fn svg(&self) -> String {
        let mut rows = Vec::new();
        for run in &self.runs {
            for (label, events) in run.sorted() {
                let pauses = events.pauses_ms();
                let suffix = if run.resend { "" } else { " (masked)" };
                rows.push(Row {
                    label: format!("{label}{suffix}"),
                    values: (0..3).map(|i| pauses.map(|pauses| pauses[i])).collect(),
                    marks: vec![],
                });
            }
        }
        let series = ["p50", "p99", "longest"].map(str::to_owned).to_vec();
        let ticks = vec![1.0, 10.0, 100.0, 1000.0, 10_000.0];
        Bars { series, rows, scale: (0.1, 60_000.0), ticks, unit: " ms", base: None, digits: 1 }.svg()
    }

    /// Writes `report.md`, `report.svg` and `report.json`.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let text = self.markdown() + "\n![pauses by kind](report.svg)\n";
        let json = serde_json::to_string_pretty(self)?;
        plot::write(dir, &[("report.md", &text), ("report.svg", &self.svg()), ("report.json", &json)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut run = RunReport::new(false);
        run.happened("nothing".into(), vec![1000, 2000]);
        run.happened("agent".into(), vec![12_000]);
        run.loads.insert("git".into(), LoadRow { clients: 1, operations: 7, ..LoadRow::default() });
        run.checks.push(Check { what: "it holds".into(), fault: None });
        Report { runs: vec![run], ..Report::default() }
    }

    #[test]
    fn pauses_stand_beside_the_noise() {
        let text = report().markdown();
        assert!(text.contains("| nothing | 1 | 1.0 | 2.0 | 2.0 | 0.0 |"), "{text}");
        assert!(text.contains("| agent | 1 | 12.0 | 12.0 | 12.0 | 10.0 |"), "{text}");
        assert!(
            text.contains("1 events in 0 s; 7 operations, **0 failed, 0 wrong, 0 clients hung**"),
            "{text}"
        );
        assert!(report().svg().contains("agent (masked)"));
    }

    #[test]
    fn a_fault_and_a_check_that_fails_spoil_a_report_and_so_does_nothing_at_all() {
        assert!(report().is_clean());
        let mut faulty = report();
        faulty.runs[0].faults.push("git: failed".into());
        assert!(!faulty.is_clean() && faulty.markdown().contains("git: failed"));
        let mut left = report();
        left.runs[0].checks[0].fault = Some("a mount".into());
        assert!(!left.is_clean() && left.markdown().contains("it holds: a mount"));
        assert!(!Report::default().is_clean());
    }
}
