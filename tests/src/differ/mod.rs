//! Random sequences of operations on two directories side by side: each step must have the same outcome on both,
//! and at the end the trees must be the same.
//!
//! `ops` says what a step is, `generate` draws a sequence from a seed, `run` executes one step on one side,
//! this module compares, and shortens a sequence that fails to the few steps that matter.

mod generate;
mod ops;
mod run;

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub use generate::generate;
pub use ops::{Op, Step};
use run::Side;

use crate::tree;

/// How a comparison failed.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Number of the step, or of steps if the trees differ at the end.
    pub at: usize,
    /// What was different.
    pub what: String,
}

/// Runs a sequence in two new directories; what differs first, if anything.
#[must_use]
pub fn compare(left: &Path, right: &Path, steps: &[Step]) -> Option<Difference> {
    for root in [left, right] {
        fs::create_dir(root).expect("make a directory for a sequence");
        // The same start on both: everybody may write.
        fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("chmod");
    }
    let mut sides = (Side::new(left), Side::new(right));
    for (at, step) in steps.iter().enumerate() {
        let (on_left, on_right) = (sides.0.execute(step), sides.1.execute(step));
        if on_left != on_right {
            return Some(Difference {
                at,
                what: format!("{step:?}\n   first:  {on_left}\n   second: {on_right}"),
            });
        }
    }
    drop(sides);
    compare_trees(left, right).map(|what| Difference { at: steps.len(), what })
}

/// Runs a sequence on one side alone: the outcome of each step.
#[must_use]
pub fn outcomes(root: &Path, steps: &[Step]) -> Vec<String> {
    fs::create_dir(root).expect("make a directory for a sequence");
    let mut side = Side::new(root);
    steps.iter().map(|step| side.execute(step)).collect()
}

/// What differs between two trees, if anything.
#[must_use]
pub fn compare_trees(left: &Path, right: &Path) -> Option<String> {
    match (tree::read(left), tree::read(right)) {
        (Ok(left), Ok(right)) => {
            let found = tree::differences(&left, &right);
            (!found.is_empty()).then(|| found.join("\n"))
        }
        (left, right) => Some(format!("reading the trees: {:?} / {:?}", left.err(), right.err())),
    }
}

/// Leaves out steps of a failing sequence as long as it still fails, for at most `limit`. Works in directories beside those given.
#[must_use]
pub fn shorten(
    left: &Path,
    right: &Path,
    steps: &[Step],
    limit: Duration,
) -> (Vec<Step>, Option<Difference>) {
    let begin = Instant::now();
    let (mut best, mut difference) = (steps.to_vec(), None);
    let mut attempt = 0;
    let mut size = best.len().div_ceil(2);
    while size > 0 {
        let mut from = 0;
        let mut shorter = false;
        while from < best.len() {
            if begin.elapsed() > limit {
                return (best, difference);
            }
            let mut fewer = best.clone();
            fewer.drain(from..(from + size).min(best.len()));
            attempt += 1;
            let (left, right) = (beside(left, attempt), beside(right, attempt));
            match compare(&left, &right, &fewer) {
                Some(found) => {
                    fewer.truncate(found.at + 1);
                    (best, difference, shorter) = (fewer, Some(found), true);
                }
                None => from += size,
            }
        }
        size = if shorter && size == 1 { 1 } else { size / 2 };
    }
    (best, difference)
}

fn beside(dir: &Path, attempt: u32) -> PathBuf {
    dir.with_file_name(format!("{}-shorter-{attempt}", dir.file_name().unwrap_or_default().display()))
}

/// Runs sequences of consecutive seeds; a report of those that differ, each shortened, at most three.
///
/// # Errors
/// The report.
pub fn compare_seeds(left: &Path, right: &Path, seeds: Range<u64>, steps: usize) -> Result<(), String> {
    compare_some(left, right, seeds, |seed| generate(seed, steps))
}

/// Runs sequences made from seeds by `draw`; a report as that of [`compare_seeds`].
///
/// # Errors
/// The report.
pub fn compare_some(
    left: &Path,
    right: &Path,
    seeds: Range<u64>,
    draw: impl Fn(u64) -> Vec<Step>,
) -> Result<(), String> {
    let different: Vec<String> =
        seeds.filter_map(|seed| compare_seed(left, right, seed, &draw(seed))).take(3).collect();
    if different.is_empty() { Ok(()) } else { Err(different.join("\n=====\n")) }
}

fn compare_seed(left: &Path, right: &Path, seed: u64, sequence: &[Step]) -> Option<String> {
    let steps = sequence.len();
    let (left, right) = (left.join(format!("seed-{seed}")), right.join(format!("seed-{seed}")));
    let first = compare(&left, &right, sequence)?;
    let failing = &sequence[..(first.at + 1).min(sequence.len())];
    let (short, difference) = shorten(&left, &right, failing, Duration::from_secs(40));
    let shown: Vec<String> = short.iter().map(|step| format!("  {step:?}")).collect();
    Some(format!(
        "seed {seed}, at step {} of {steps}: {}\n--- shortened to {} steps:\n{}\n--- {}",
        first.at,
        first.what,
        short.len(),
        shown.join("\n"),
        difference.as_ref().unwrap_or(&first).what
    ))
}
