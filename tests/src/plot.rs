//! What reports share: horizontal bars on a logarithmic scale, and files written at once.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Result;

const COLOURS: [&str; 6] = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#7f7f7f"];
const BAR: f64 = 14.0;
const LEFT: f64 = 260.0;
const WIDTH: f64 = 1000.0;

/// One group of bars, one bar for each series.
#[derive(Clone, Debug)]
pub struct Row {
    /// What stands before it.
    pub label: String,
    /// The length of each bar; no bar where there is no value.
    pub values: Vec<Option<f64>>,
    /// A line across each bar, where one belongs there: a goal.
    pub marks: Vec<Option<f64>>,
}

/// A plot of bars.
#[derive(Clone, Debug)]
pub struct Bars {
    /// What each bar of a row is.
    pub series: Vec<String>,
    /// The rows, from above.
    pub rows: Vec<Row>,
    /// The ends of the scale; values beyond are drawn to its end.
    pub scale: (f64, f64),
    /// Where lines are drawn.
    pub ticks: Vec<f64>,
    /// What stands behind a tick's number.
    pub unit: &'static str,
    /// The tick that is drawn black.
    pub base: Option<f64>,
    /// Digits behind the point of a bar's number.
    pub digits: usize,
}

impl Bars {
    fn x(&self, value: f64) -> f64 {
        let (least, most) = self.scale;
        LEFT + (value.clamp(least, most) / least).log10() / (most / least).log10() * (WIDTH - LEFT - 80.0)
    }

    /// The picture.
    #[must_use]
    pub fn svg(&self) -> String {
        let row = BAR * self.series.len() as f64 + 12.0;
        let height = row * self.rows.len() as f64 + 80.0;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\"><rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        for &tick in &self.ticks {
            let _ = writeln!(
                svg,
                "<line x1=\"{0}\" y1=\"40\" x2=\"{0}\" y2=\"{1}\" stroke=\"{2}\"/><text x=\"{0}\" y=\"34\" text-anchor=\"middle\">{tick}{3}</text>",
                self.x(tick),
                height - 20.0,
                if self.base == Some(tick) { "black" } else { "#ddd" },
                self.unit,
            );
        }
        for (i, name) in self.series.iter().enumerate() {
            let at = LEFT + 160.0 * i as f64;
            let colour = COLOURS[i % COLOURS.len()];
            let _ = writeln!(
                svg,
                "<rect x=\"{at}\" y=\"6\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{}\" y=\"16\">{name}</text>",
                at + 16.0
            );
        }
        for (r, shown) in self.rows.iter().enumerate() {
            self.draw(&mut svg, shown, 46.0 + row * r as f64, row);
        }
        svg + "</svg>\n"
    }

    fn draw(&self, svg: &mut String, shown: &Row, top: f64, height: f64) {
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            top + height / 2.0,
            shown.label
        );
        for (i, value) in shown.values.iter().enumerate() {
            let Some(value) = *value else { continue };
            let (y, end, digits) = (top + BAR * i as f64, self.x(value), self.digits);
            let _ = writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{}\" height=\"{}\" fill=\"{}\"/><text x=\"{}\" y=\"{}\">{value:.digits$}</text>",
                end - LEFT,
                BAR - 2.0,
                COLOURS[i % COLOURS.len()],
                end + 4.0,
                y + BAR - 4.0
            );
            if let Some(Some(mark)) = shown.marks.get(i) {
                let _ = writeln!(
                    svg,
                    "<line x1=\"{0}\" y1=\"{y}\" x2=\"{0}\" y2=\"{1}\" stroke=\"black\" stroke-width=\"2\"/>",
                    self.x(*mark),
                    y + BAR - 2.0
                );
            }
        }
    }
}

/// Writes files of these names and texts into a directory, which is made if it is missing.
///
/// # Errors
/// If one cannot be written.
pub fn write(dir: &Path, files: &[(&str, &str)]) -> Result<()> {
    fs::create_dir_all(dir)?;
    files.iter().try_for_each(|(name, text)| Ok(fs::write(dir.join(name), text)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_ends_where_its_value_stands_on_the_scale() {
        let row = Row { label: "row".into(), values: vec![Some(10.0), None], marks: vec![Some(1000.0)] };
        let bars = Bars {
            series: vec!["a".into(), "b".into()],
            rows: vec![row],
            scale: (1.0, 100.0),
            ticks: vec![1.0, 10.0],
            unit: " ms",
            base: None,
            digits: 1,
        };
        assert_eq!([1.0, 10.0, 100.0, 1e6].map(|value| bars.x(value)), [260.0, 590.0, 920.0, 920.0]);
        let svg = bars.svg();
        assert!(svg.contains("width=\"330\"") && svg.contains(">10.0<") && svg.contains("10 ms"), "{svg}");
        assert_eq!(svg.matches("stroke-width").count(), 1);
    }
}
