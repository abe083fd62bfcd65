//! The loads from inside: what one does over and over, and how it tells.

mod append;
mod external;
mod names;
mod probe;

use std::{
    io::{self, BufRead, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::ValueEnum;

use super::client::Said;

/// How often a load says how far it is.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Load {
    /// Create, write, stat, read, unlink, each timed.
    Probe,
    /// Two logs with sequence numbers, one of them fsynced.
    Append,
    /// Names, links, attributes, small contents against a model.
    Names,
    /// `fio`, its checksums verified.
    Fio,
    /// `fsx`.
    Fsx,
    /// `git`: init, add, commit, branch, merge, fsck.
    Git,
    /// `sqlite3`: transactions in WAL mode, integrity_check.
    Sqlite,
}

impl Load {
    /// The name, also of its directory.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Append => "append",
            Self::Names => "names",
            Self::Fio => "fio",
            Self::Fsx => "fsx",
            Self::Git => "git",
            Self::Sqlite => "sqlite",
        }
    }
}

/// Something that works in a directory of its own and knows what has to be in it.
trait Work {
    /// Does some more; how many operations that were.
    fn step(&mut self, told: &Told) -> Result<u64>;
    /// Lets go of every file.
    fn close(&mut self);
    /// Compares everything; holds no file afterwards.
    fn verify(&mut self) -> Result<()>;
}

/// Standard output.
struct Told;

impl Told {
    fn say(&self, said: &Said) {
        // Whoever listened is gone: so is the reason to go on.
        if writeln!(io::stdout(), "{}", said.line()).and_then(|()| io::stdout().flush()).is_err() {
            std::process::exit(0);
        }
    }
}

/// An answer that is wrong although no operation failed.
#[derive(Debug)]
struct Wrong(String);

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

/// An error of the system is a failed operation; anything else that a load complains of is a wrong answer.
fn judged(error: &anyhow::Error) -> Said {
    let text = format!("{error:#}");
    let is_wrong = error.chain().any(|cause| cause.is::<Wrong>())
        || !error.chain().any(|cause| cause.is::<io::Error>() || cause.is::<nix::errno::Errno>());
    if is_wrong { Said::Wrong(text) } else { Said::Failed(text) }
}

/// Works in `dir` until standard input says otherwise, and rests after each step: a process's whole life.
///
/// # Errors
/// If the directory cannot be made.
pub fn run(load: Load, dir: &Path, scratch: &Path, seed: u64, rest: Duration) -> Result<()> {
    let orders = Arc::new(Orders::default());
    let listener = orders.clone();
    thread::spawn(move || listener.listen());
    let told = Told;
    let mut work = match begin(load, dir, scratch, seed) {
        Ok(work) => work,
        Err(error) => {
            told.say(&judged(&error));
            return Ok(());
        }
    };
    let (mut operations, mut said_at) = (0, Instant::now());
    while !orders.stop.load(Ordering::SeqCst) {
        match work.step(&told) {
            Ok(count) => operations += count,
            Err(error) => {
                told.say(&judged(&error));
                return Ok(());
            }
        }
        if said_at.elapsed() >= TELL_EVERY {
            told.say(&Said::Operations(operations));
            said_at = Instant::now();
        }
        // The probe has a rest of its own.
        if load != Load::Probe {
            thread::sleep(rest);
        }
    }
    work.close();
    told.say(&Said::Operations(operations));
    told.say(&Said::Stopped);
    let mut verified = 0;
    while !orders.end.load(Ordering::SeqCst) {
        if orders.verify.load(Ordering::SeqCst) == verified {
            thread::park_timeout(Duration::from_millis(20));
            continue;
        }
        verified += 1;
        match work.verify() {
            Ok(()) => told.say(&Said::Verified),
            Err(error) => told.say(&judged(&error)),
        }
    }
    Ok(())
}

fn begin(load: Load, dir: &Path, scratch: &Path, seed: u64) -> Result<Box<dyn Work>> {
    let (dir, scratch) = (dir.to_owned(), scratch.to_owned());
    Ok(match load {
        Load::Probe => Box::new(probe::Probe::new(dir)?),
        Load::Append => Box::new(append::Append::new(dir)?),
        Load::Names => Box::new(names::Names::new(&dir, seed)?),
        Load::Fio => Box::new(external::Fio::new(dir, seed)?),
        Load::Fsx => Box::new(external::Fsx::new(dir, scratch, seed)?),
        Load::Git => Box::new(external::Git::new(dir, seed)?),
        Load::Sqlite => Box::new(external::Sqlite::new(dir, seed)?),
    })
}

/// What standard input has said.
#[derive(Debug, Default)]
struct Orders {
    stop: AtomicBool,
    verify: AtomicU64,
    end: AtomicBool,
}

impl Orders {
    fn listen(&self) {
        for line in io::stdin().lock().lines().map_while(io::Result::ok) {
            match line.as_str() {
                "stop" => self.stop.store(true, Ordering::SeqCst),
                "verify" => drop(self.verify.fetch_add(1, Ordering::SeqCst)),
                _ => {}
            }
        }
        self.end.store(true, Ordering::SeqCst);
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// The hash of a file's bytes, read from the mounter and not from the page cache.
fn hash(path: &Path) -> Result<blake3::Hash> {
    use nix::fcntl::{PosixFadviseAdvice::POSIX_FADV_DONTNEED, posix_fadvise};
    let mut file = std::fs::File::open(path)?;
    file.sync_all()?;
    posix_fadvise(&file, 0, 0, POSIX_FADV_DONTNEED)?;
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut file, &mut hasher)?;
    Ok(hasher.finalize())
}

/// Files and the hashes that they must have.
#[derive(Debug, Default)]
struct Hashes(Vec<(PathBuf, blake3::Hash)>);

impl Hashes {
    /// Remembers what is in a file.
    fn note(&mut self, path: &Path) -> Result<()> {
        let found = hash(path)?;
        self.0.retain(|(known, _)| known != path);
        self.0.push((path.to_owned(), found));
        Ok(())
    }

    fn verify(&self) -> Result<()> {
        for (path, expected) in &self.0 {
            if hash(path)? != *expected {
                return Err(Wrong(format!("{} holds other bytes than before", path.display())).into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt};

    use anyhow::Context;

    use super::*;

    fn is_wrong(outcome: Result<()>) -> bool {
        matches!(outcome.map_err(|error| judged(&error)), Err(Said::Wrong(_)))
    }

    #[test]
    fn an_error_of_the_system_is_a_failed_operation_and_a_wrong_answer_is_wrong() {
        let gone = fs::read("/nonexistent/file").context("read");
        assert!(matches!(judged(&gone.expect_err("no such file")), Said::Failed(_)));
        assert!(is_wrong(Err(anyhow::anyhow!("3 is not 4"))));
        assert!(is_wrong(Err(Wrong("other bytes".into()).into())));
    }

    #[test]
    fn a_record_that_is_lost_doubled_or_torn_is_found() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut work = append::Append::new(directory.path().join("append")).expect("begin");
        for _ in 0..3 {
            work.step(&Told).expect("append");
        }
        work.close();
        work.verify().expect("right");
        let log = directory.path().join("append/plain");
        let right = fs::read(&log).expect("read");
        let lost = [&right[..160], &right[176..]].concat();
        let doubled = [&right[..160], &right[144..]].concat();
        let short = right[..right.len() - 16].to_vec();
        for wrong in [lost, doubled, short] {
            fs::write(&log, wrong).expect("write");
            assert!(is_wrong(work.verify()));
        }
        fs::write(&log, right).expect("write");
        work.verify().expect("right again");
    }

    #[test]
    fn one_changed_byte_is_found() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("file");
        fs::write(&path, vec![7; 100_000]).expect("write");
        let mut hashes = Hashes::default();
        hashes.note(&path).expect("note");
        hashes.verify().expect("right");
        let file = fs::File::options().write(true).open(&path).expect("open");
        file.write_all_at(&[8], 77_777).expect("write");
        assert!(is_wrong(hashes.verify()));
    }
}
