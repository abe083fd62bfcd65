//! Two logs of sequence numbers: at the end each number stands there once, and in order.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::{Told, Work};

/// So many records of the plain log for each of the synced one.
const PLAIN: u64 = 20;

/// See the module.
pub(super) struct Append {
    dir: PathBuf,
    plain: Option<File>,
    synced: Option<File>,
    counts: (u64, u64),
}

fn record(number: u64) -> String {
    format!("{number:015}\n")
}

fn open(path: &Path) -> Result<File> {
    File::options().create(true).append(true).open(path).with_context(|| format!("open {}", path.display()))
}

fn append(file: &mut Option<File>, path: &Path, number: u64) -> Result<()> {
    let file = match file {
        Some(file) => file,
        none => none.insert(open(path)?),
    };
    let text = record(number);
    let written = file.write(text.as_bytes()).context("append")?;
    ensure!(written == text.len(), "an append wrote {written} bytes of {}", text.len());
    Ok(())
}

fn check(path: &Path, count: u64) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let length = record(0).len();
    for (at, found) in text.as_bytes().chunks(length).enumerate() {
        let expected = record(at as u64);
        ensure!(
            found == expected.as_bytes(),
            "record {at} of {} is {:?}: lost, doubled or torn",
            path.display(),
            String::from_utf8_lossy(found)
        );
    }
    let found = text.len() / length;
    ensure!(found as u64 == count, "{} has {found} records, not {count}", path.display());
    Ok(())
}

impl Append {
    pub(super) fn new(dir: PathBuf) -> Result<Self> {
        fs::create_dir(&dir)?;
        Ok(Self { dir, plain: None, synced: None, counts: (0, 0) })
    }
}

impl Work for Append {
    fn step(&mut self, _told: &Told) -> Result<u64> {
        let (plain, synced) = (self.dir.join("plain"), self.dir.join("synced"));
        for _ in 0..PLAIN {
            append(&mut self.plain, &plain, self.counts.0)?;
            self.counts.0 += 1;
        }
        append(&mut self.synced, &synced, self.counts.1)?;
        self.counts.1 += 1;
        self.synced.as_ref().map(File::sync_all).transpose().context("fsync")?;
        // Now and then through a descriptor of its own.
        if self.counts.1.is_multiple_of(500) {
            self.close();
        }
        Ok(PLAIN + 2)
    }

    fn close(&mut self) {
        (self.plain, self.synced) = (None, None);
    }

    fn verify(&mut self) -> Result<()> {
        for (name, count) in [("plain", self.counts.0), ("synced", self.counts.1)] {
            if count > 0 {
                // From the mounter, not from the page cache.
                super::hash(&self.dir.join(name))?;
                check(&self.dir.join(name), count)?;
            }
        }
        Ok(())
    }
}
