//! Writes the figures down: a Markdown table, a plot, and the raw numbers.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::Result;

use super::workloads::{Figure, GOALS};

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
        let goal = GOALS
            .iter()
            .find(|goal| goal.0 == workload)
            .map(|goal| if system.contains("PostgreSQL") { goal.2 } else { goal.1 });
        match goal {
            Some(goal) if system.starts_with("Tarbox") && ratio > goal => " **over**",
            _ => "",
        }
    }

    /// The plot: a bar per workload and system, on a logarithmic scale, with the goal as a line.
    #[must_use]
    pub fn svg(&self) -> String {
        const COLOURS: [&str; 6] = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#7f7f7f"];
        let shown: Vec<_> = self.systems.iter().skip(1).collect();
        let (bar, left, width) = (14.0, 260.0, 1000.0);
        let row = bar * shown.len() as f64 + 12.0;
        let height = row * self.workloads.len() as f64 + 80.0;
        let x = |ratio: f64| {
            left + (ratio.clamp(0.2, 200.0).log10() - 0.2_f64.log10()) / 1000_f64.log10()
                * (width - left - 80.0)
        };
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\"><rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        for tick in [0.5, 1.0, 2.0, 5.0, 10.0, 50.0, 100.0] {
            let _ = writeln!(
                svg,
                "<line x1=\"{0}\" y1=\"40\" x2=\"{0}\" y2=\"{1}\" stroke=\"{2}\"/><text x=\"{0}\" y=\"34\" text-anchor=\"middle\">{tick}×</text>",
                x(tick),
                height - 20.0,
                if tick == 1.0 { "black" } else { "#ddd" }
            );
        }
        for (i, system) in shown.iter().enumerate() {
            let _ = writeln!(
                svg,
                "<rect x=\"{0}\" y=\"6\" width=\"12\" height=\"12\" fill=\"{1}\"/><text x=\"{2}\" y=\"16\">{system}</text>",
                left + 160.0 * i as f64,
                COLOURS[i % COLOURS.len()],
                left + 160.0 * i as f64 + 16.0
            );
        }
        for (r, workload) in self.workloads.iter().enumerate() {
            let top = 46.0 + row * r as f64;
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{workload}</text>",
                left - 8.0,
                top + row / 2.0
            );
            for (i, system) in shown.iter().enumerate() {
                let Some(ratio) = self.ratio(workload, system) else { continue };
                let y = top + bar * i as f64;
                let _ = writeln!(
                    svg,
                    "<rect x=\"{}\" y=\"{y}\" width=\"{}\" height=\"{}\" fill=\"{}\"/><text x=\"{}\" y=\"{}\">{ratio:.2}</text>",
                    x(0.2),
                    x(ratio) - x(0.2),
                    bar - 2.0,
                    COLOURS[i % COLOURS.len()],
                    x(ratio) + 4.0,
                    y + bar - 4.0
                );
                let goal = GOALS
                    .iter()
                    .find(|goal| goal.0 == *workload)
                    .map(|goal| if system.contains("PostgreSQL") { goal.2 } else { goal.1 });
                if let (Some(goal), true) = (goal, system.starts_with("Tarbox")) {
                    let _ = writeln!(
                        svg,
                        "<line x1=\"{0}\" y1=\"{y}\" x2=\"{0}\" y2=\"{1}\" stroke=\"black\" stroke-width=\"2\"/>",
                        x(goal),
                        y + bar - 2.0
                    );
                }
            }
        }
        svg + "</svg>\n"
    }

    /// Writes `report.md`, `report.svg` and `figures.csv`.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(
            dir.join("report.md"),
            self.markdown() + "\n![times as multiples of ext4's](report.svg)\n",
        )?;
        fs::write(dir.join("report.svg"), self.svg())?;
        let mut csv = String::from("workload,system,seconds,units\n");
        for ((workload, system), figures) in &self.figures {
            for figure in figures {
                let _ = writeln!(csv, "{workload},{system},{},{}", figure.seconds, figure.units);
            }
        }
        Ok(fs::write(dir.join("figures.csv"), csv)?)
    }
}
