//! A writer whose traces tell afterwards what was kept: one counter stamped into two files, an append log, and names.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

/// What a writer was told is done. Shared with the thread that kills the mounter.
#[derive(Debug, Default)]
pub struct Told {
    /// Rounds that were acknowledged: 1 to this.
    pub done: AtomicU64,
    /// Rounds covered by an fsync that succeeded.
    pub synced: AtomicU64,
    /// Set to end the writer.
    pub stop: AtomicBool,
}

/// What is found afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Stamp in the first file (written first in each round).
    pub first: u64,
    /// Stamp in the second.
    pub second: u64,
    /// Records of the append log.
    pub log: u64,
    /// Highest name; all names below it exist.
    pub names: u64,
}

/// The directory of a writer.
#[derive(Clone, Debug)]
pub struct Stamper {
    dir: PathBuf,
}

const RECORD: usize = 24;

fn record(n: u64) -> [u8; RECORD] {
    let mut record = [b'.'; RECORD];
    record[..8].copy_from_slice(&n.to_le_bytes());
    record[8..16].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    record[RECORD - 1] = b'\n';
    record
}

impl Stamper {
    /// Makes the directory if it is missing.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Writes rounds from `told.done` + 1 on until `told.stop` or an error; an fsync of all in each `sync_every`-th (0 = never).
    ///
    /// # Errors
    /// The first error of any call.
    pub fn write(&self, told: &Told, sync_every: u64) -> io::Result<()> {
        let open = |name: &str| {
            OpenOptions::new().create(true).write(true).truncate(false).open(self.dir.join(name))
        };
        let (first, second) = (open("first")?, open("second")?);
        let mut log = OpenOptions::new().create(true).append(true).open(self.dir.join("log"))?;
        while !told.stop.load(Ordering::SeqCst) {
            let n = told.done.load(Ordering::SeqCst) + 1;
            first.write_all_at(&record(n), 0)?;
            second.write_all_at(&record(n), 0)?;
            // One write is one record: a short one would be a fault of its own.
            if log.write(&record(n))? != RECORD {
                return Err(io::Error::other("a short write"));
            }
            // The name last: it is made under another name, as editors do.
            let temporary = self.dir.join("temporary");
            fs::write(&temporary, record(n))?;
            fs::rename(&temporary, self.dir.join(format!("n{n}")))?;
            if n.is_multiple_of(7) && n > 20 {
                fs::remove_file(self.dir.join(format!("n{}", n - 20)))?;
            }
            told.done.store(n, Ordering::SeqCst);
            if sync_every > 0 && n.is_multiple_of(sync_every) {
                for file in [
                    &first,
                    &second,
                    &log,
                    &File::open(&self.dir)?,
                    &File::open(self.dir.join(format!("n{n}")))?,
                ] {
                    file.sync_all()?;
                }
                told.synced.store(n, Ordering::SeqCst);
            }
        }
        Ok(())
    }

    /// Reads what is there, and checks what must hold at any moment whatever was lost.
    ///
    /// # Errors
    /// A sentence that says what is impossible.
    pub fn read(&self) -> Result<Found, String> {
        let stamp = |name: &str| match fs::read(self.dir.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(format!("{name}: {error}")),
            Ok(bytes) => stamp_of(&bytes).ok_or(format!("{name} is torn: {bytes:?}")),
        };
        let found = Found {
            first: stamp("first")?,
            second: stamp("second")?,
            log: self.read_log()?,
            names: self.read_names()?,
        };
        found.check()?;
        Ok(found)
    }

    fn read_log(&self) -> Result<u64, String> {
        let bytes = match fs::read(self.dir.join("log")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            other => other.map_err(|error| format!("log: {error}"))?,
        };
        for (i, chunk) in bytes.chunks(RECORD).enumerate() {
            if chunk != record(i as u64 + 1) {
                return Err(format!(
                    "record {i} of {} in the log is {chunk:?}: lost, doubled or torn",
                    bytes.len() / RECORD
                ));
            }
        }
        Ok((bytes.len() / RECORD) as u64)
    }

    fn read_names(&self) -> Result<u64, String> {
        let mut names: Vec<u64> = fs::read_dir(&self.dir)
            .map_err(|error| error.to_string())?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix('n')?.parse().ok())
            .collect();
        names.sort_unstable();
        let last = names.last().copied().unwrap_or(0);
        for n in &names {
            let bytes = fs::read(self.dir.join(format!("n{n}"))).map_err(|error| format!("n{n}: {error}"))?;
            if stamp_of(&bytes) != Some(*n) {
                return Err(format!("n{n} holds {bytes:?}"));
            }
        }
        // Of each seven, the seventh takes away the one twenty before it, when it is there.
        let expected: Vec<u64> = (1..=last).filter(|n| !(n + 20 <= last && (n + 20) % 7 == 0)).collect();
        let almost: Vec<u64> = expected.iter().copied().filter(|n| n + 20 != last).collect();
        let late: Vec<u64> = (1..=last).filter(|n| !(n + 20 < last && (n + 20) % 7 == 0)).collect();
        if names == expected || names == almost || names == late {
            Ok(last)
        } else {
            Err(format!("names to {last} are {names:?}"))
        }
    }
}

impl Found {
    // In each round: first, second, log, name. A prefix of all that happened ends somewhere in one round.
    fn check(&self) -> Result<(), String> {
        let ordered = self.first >= self.second && self.second >= self.log && self.log >= self.names;
        if ordered && self.first <= self.names + 1 { Ok(()) } else { Err(format!("not a prefix: {self:?}")) }
    }
}

// A file may be there and still empty: it is made before it is written.
fn stamp_of(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() {
        return Some(0);
    }
    let n = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    (bytes == record(n)).then_some(n)
}
