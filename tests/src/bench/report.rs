//! Writes the figures down: a Markdown table, a plot, and the raw numbers.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use anyhow::Result;

use super::workloads::{Figure, GOALS};
use crate::plot::{self, Bars, Row};

/// All figures of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// Systems in the order of their columns; the first is the measure of the others.
    pub systems: Vec<String>,
    /// Workloads in the order of their rows.
    pub workloads: Vec<&'static str>,
    /// Figures by workload and system, one per run.
    pub figures: BTreeMap<(&'static str, String), Vec<Figure>>,
    /// Failures: system, group, why.
    pub failures: Vec<String>,
    /// Lines about memory and start.
    pub notes: Vec<String>,
}

impl Report {
    /// Adds a figure.
    pub fn add(&mut self, system: &str, figure: Figure) {
        if !self.workloads.contains(&figure.name) {
            self.workloads.push(figure.name);
        }
        self.figures.entry((figure.name, system.to_owned())).or_default().push(figure);
    }

    /// Median seconds.
    #[must_use]
    pub fn median(&self, workload: &'static str, system: &str) -> Option<f64> {
        let mut all: Vec<f64> =
            self.figures.get(&(workload, system.to_owned()))?.iter().map(|figure| figure.seconds).collect();
        all.sort_by(f64::total_cmp);
        Some(if all.len() % 2 == 1 {
            all[all.len() / 2]
        } else {
            f64::midpoint(all[all.len() / 2 - 1], all[all.len() / 2])
        })
    }

    /// Time as a multiple of the first system's, in the same run.
    #[must_use]
    pub fn ratio(&self, workload: &'static str, system: &str) -> Option<f64> {
        Some(self.median(workload, system)? / self.median(workload, self.systems.first()?)?)
    }

    /// The table.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "# Benchmark\n\nMedians; in brackets the time as a multiple of ext4's in the same run (lower is better).\n\n",
        );
        let _ = writeln!(text, "| workload | {} | goal SQLite / PostgreSQL |", self.systems.join(" | "));
        let _ = writeln!(text, "|---|{}---|", "---:|".repeat(self.systems.len()));
        for workload in &self.workloads {
            let cells: Vec<String> = self.systems.iter().map(|system| self.cell(workload, system)).collect();
            let goal = GOALS
                .iter()
                .find(|goal| goal.0 == *workload)
                .map_or(String::new(), |goal| format!("{} / {}", goal.1, goal.2));
            let _ = writeln!(text, "| {workload} | {} | {goal} |", cells.join(" | "));
        }
        for (title, lines) in [("Besides", &self.notes), ("Failures", &self.failures)] {
            if !lines.is_empty() {
                let _ = writeln!(text, "\n{title}:\n\n- {}", lines.join("\n- "));
            }
        }
        text
    }

    fn cell(&self, workload: &'static str, system: &str) -> String {
        let Some(seconds) = self.median(workload, system) else { return "-".into() };
        let units = self.figures[&(workload, system.to_owned())][0].units;
        let ratio = self.ratio(workload, system).unwrap_or(f64::NAN);
        let shown = if units >= 100.0 {
            format!("{:.0}/s", units / seconds)
        } else {
            format!("{:.3} s", seconds / units)
        };
        if system == self.systems[0] {
            shown
        } else {
            format!("{shown} ({ratio:.2}{})", self.verdict(workload, system, ratio))
        }
    }

    fn verdict(&self, workload: &str, system: &str, ratio: f64) -> &'static str {
        match goal(workload, system) {
            Some(goal) if system.starts_with("Tarbox") && ratio > goal => " **over**",
            _ => "",
        }
    }

    /// The plot: a bar per workload and system, on a logarithmic scale, with the goal as a line.
    #[must_use]
    pub fn svg(&self) -> String {
        let series: Vec<String> = self.systems.iter().skip(1).cloned().collect();
        let row = |workload: &&'static str| Row {
            label: (*workload).to_owned(),
            values: series.iter().map(|system| self.ratio(workload, system)).collect(),
            marks: series
                .iter()
                .map(|system| goal(workload, system).filter(|_| system.starts_with("Tarbox")))
                .collect(),
        };
        let rows = self.workloads.iter().map(row).collect();
        let ticks = vec![0.5, 1.0, 2.0, 5.0, 10.0, 50.0, 100.0];
        Bars { rows, series, scale: (0.2, 200.0), ticks, unit: "×", base: Some(1.0), digits: 2 }.svg()
    }

    /// Writes `report.md`, `report.svg` and `figures.csv`.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let mut csv = String::from("workload,system,seconds,units\n");
        for ((workload, system), figures) in &self.figures {
            for figure in figures {
                let _ = writeln!(csv, "{workload},{system},{},{}", figure.seconds, figure.units);
            }
        }
        let text = self.markdown() + "\n![times as multiples of ext4's](report.svg)\n";
        plot::write(dir, &[("report.md", &text), ("report.svg", &self.svg()), ("figures.csv", &csv)])
    }
}

/// The goal of a system in a workload, as a multiple of ext4's time.
fn goal(workload: &str, system: &str) -> Option<f64> {
    let goal = GOALS.iter().find(|goal| goal.0 == workload);
    goal.map(|goal| if system.contains("PostgreSQL") { goal.2 } else { goal.1 })
}
