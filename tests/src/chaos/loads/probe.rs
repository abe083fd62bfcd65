//! One client that makes, writes, stats, reads and unlinks a file all the time, and times each call.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{Said, Told, Work};
use crate::chaos::observe::{Sample, now_us};

/// The longest call of so long a time is told.
const SLICE_US: u64 = 20_000;
/// Between two rounds, so that the probe measures the others and not itself.
const REST: Duration = Duration::from_millis(1);

/// See the module.
pub(super) struct Probe {
    dir: PathBuf,
    round: u64,
    slice_us: u64,
    longest: Option<Sample>,
}

impl Probe {
    pub(super) fn new(dir: PathBuf) -> Result<Self> {
        fs::create_dir(&dir)?;
        Ok(Self { dir, round: 0, slice_us: now_us(), longest: None })
    }

    fn timed<T>(&mut self, call: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
        let start_us = now_us();
        let outcome = call();
        let sample = Sample { start_us, length_us: now_us() - start_us };
        if self.longest.is_none_or(|longest| sample.length_us > longest.length_us) {
            self.longest = Some(sample);
        }
        outcome
    }
}

impl Work for Probe {
    fn step(&mut self, told: &Told) -> Result<u64> {
        self.round += 1;
        let path = self.dir.join(format!("f{}", self.round));
        let text = format!("{:0>4096}", self.round);
        let file = self.timed(|| File::options().read(true).write(true).create_new(true).open(&path));
        let file = file.with_context(|| format!("create of f{}", self.round))?;
        self.timed(|| file.write_all_at(text.as_bytes(), 0)).context("write")?;
        let size = self.timed(|| fs::metadata(&path)).context("stat")?.len();
        ensure!(size == 4096, "f{} has {size} bytes, not 4096", self.round);
        let mut found = [0; 4096];
        self.timed(|| file.read_exact_at(&mut found, 0)).context("read")?;
        ensure!(found == *text.as_bytes(), "f{} holds other bytes than were written", self.round);
        drop(file);
        self.timed(|| fs::remove_file(&path)).context("unlink")?;
        if let Some(longest) = self.longest
            && now_us() >= self.slice_us + SLICE_US
        {
            told.say(&Said::Probe(longest));
            (self.slice_us, self.longest) = (now_us(), None);
        }
        thread::sleep(REST);
        Ok(5)
    }

    fn close(&mut self) {}

    fn verify(&mut self) -> Result<()> {
        let left: Vec<_> = fs::read_dir(&self.dir)?.collect::<std::io::Result<_>>()?;
        ensure!(left.is_empty(), "{left:?} are there, though each file was removed");
        Ok(())
    }
}
