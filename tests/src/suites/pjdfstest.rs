//! `pjdfstest`: does each system call what POSIX says?

use std::{collections::BTreeMap, fs, path::Path, process::Command, time::Duration};

use anyhow::{Result, ensure};

use crate::{command, product};

/// What became of each test.
#[derive(Clone, Debug, Default)]
pub struct Outcomes {
    /// By the test's name.
    pub by_name: BTreeMap<String, Outcome>,
    /// All it said.
    pub output: String,
}

/// What became of one test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It does not apply here.
    Skipped,
}

const CONFIG: &str = r#"
[features]
posix_fallocate = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// Runs the suite in a directory.
///
/// # Errors
/// If it cannot be run to its end.
pub fn run(dir: &Path, config_dir: &Path) -> Result<Outcomes> {
    let config = config_dir.join("pjdfstest.toml");
    fs::write(&config, CONFIG)?;
    let mut suite = Command::new(product::tool("pjdfstest"));
    suite.env("NO_COLOR", "1").arg("-c").arg(&config).arg("-p").arg(dir);
    let ended = command::end_of(&mut suite, Duration::from_secs(600))?;
    let by_name: BTreeMap<_, _> = ended.stdout.lines().filter_map(outcome).collect();
    ensure!(ended.stdout.contains("Summary"), "pjdfstest broke off: {}{}", ended.stdout, ended.stderr);
    Ok(Outcomes { by_name, output: ended.stdout })
}

fn outcome(line: &str) -> Option<(String, Outcome)> {
    let (name, word) = line.rsplit_once(char::is_whitespace)?;
    let outcome = match word {
        "ok" => Outcome::Passed,
        "FAILED" => Outcome::Failed,
        "skipped" => Outcome::Skipped,
        _ => return None,
    };
    // Test names stand at the beginning of the line; reasons and messages are indented.
    (!line.starts_with(char::is_whitespace)).then(|| (name.trim().to_owned(), outcome))
}

/// The part of the output that speaks of one test: its name and the indented lines below it.
#[must_use]
pub fn about(outcomes: &Outcomes, name: &str) -> String {
    let mut lines = outcomes.output.lines().skip_while(|line| line.split_whitespace().next() != Some(name));
    let first = lines.next().unwrap_or(name).to_owned();
    lines.take_while(|line| line.starts_with('\t')).fold(first, |all, line| all + "\n" + line)
}
