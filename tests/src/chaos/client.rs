//! The loads from outside: each a process that says on its standard output how it goes on, and is told on its standard input
//! when to stop and when to compare everything.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use parking_lot::Mutex;

use super::{loads::Load, observe::Sample};

/// Who makes no progress for so long hangs.
pub const HANGS_AFTER: Duration = Duration::from_secs(60);
/// So many calls of a probe are remembered: minutes of them.
const MOST_SAMPLES: usize = 20_000;

/// What a load says, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// So many operations in all.
    Operations(u64),
    /// The longest call of the last moments.
    Probe(Sample),
    /// An operation failed that must not.
    Failed(String),
    /// Other bytes, names or answers than there must be.
    Wrong(String),
    /// It has stopped, and holds no file.
    Stopped,
    /// Everything is as it was made.
    Verified,
}

impl Said {
    /// The line.
    #[must_use]
    pub fn line(&self) -> String {
        let flat = |text: &str| text.replace('\n', " | ");
        match self {
            Self::Operations(count) => format!("operations {count}"),
            Self::Probe(Sample { start_us, length_us }) => format!("probe {start_us} {length_us}"),
            Self::Failed(why) => format!("failed {}", flat(why)),
            Self::Wrong(what) => format!("wrong {}", flat(what)),
            Self::Stopped => "stopped".to_owned(),
            Self::Verified => "verified".to_owned(),
        }
    }

    /// What a line says.
    #[must_use]
    pub fn read(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        Some(match word {
            "operations" => Self::Operations(rest.parse().ok()?),
            "probe" => {
                let (start, length) = rest.split_once(' ')?;
                Self::Probe(Sample { start_us: start.parse().ok()?, length_us: length.parse().ok()? })
            }
            "failed" => Self::Failed(rest.to_owned()),
            "wrong" => Self::Wrong(rest.to_owned()),
            "stopped" => Self::Stopped,
            "verified" => Self::Verified,
            _ => return None,
        })
    }
}

/// What is known of a client.
#[derive(Debug)]
struct Known {
    operations: AtomicU64,
    progressed: Mutex<Instant>,
    samples: Mutex<Vec<Sample>>,
    failed: Mutex<Vec<String>>,
    wrong: Mutex<Vec<String>>,
    /// What it said that it has done: how often stopped, how often verified.
    stopped: AtomicU64,
    verified: AtomicU64,
    ended: AtomicU64,
}

/// What a client is to do.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// What it does.
    pub load: Load,
    /// The tenant's number.
    pub tenant: usize,
    /// What its random numbers are drawn from.
    pub seed: u64,
    /// How long it rests after each step.
    pub rest: Duration,
}

/// A load at work.
#[derive(Debug)]
pub struct Client {
    /// What it does.
    pub load: Load,
    /// The tenant's number.
    pub tenant: usize,
    known: Arc<Known>,
    child: Child,
    orders: Option<ChildStdin>,
    is_hung: bool,
    /// How often it was told to stop, and to verify.
    ordered: (u64, u64),
}

impl Client {
    /// Starts this program as a load in a directory of the tenant; `scratch` is a directory outside.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(wish: Wish, volume: &Path, scratch: &Path) -> Result<Self> {
        let Wish { load, tenant, seed, rest } = wish;
        let log = File::options().create(true).append(true).open(scratch.join("loads.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("load").arg(load.name()).arg("--dir").arg(volume.join(load.name()));
        command.arg("--scratch").arg(scratch).args(["--seed", &seed.to_string()]);
        command.args(["--rest", &rest.as_millis().to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).process_group(0).current_dir("/");
        let mut child = command.spawn().context("start a load")?;
        let known = Arc::new(Known {
            operations: AtomicU64::new(0),
            progressed: Mutex::new(Instant::now()),
            samples: Mutex::default(),
            failed: Mutex::default(),
            wrong: Mutex::default(),
            stopped: AtomicU64::new(0),
            verified: AtomicU64::new(0),
            ended: AtomicU64::new(0),
        });
        let (orders, said) = (child.stdin.take(), child.stdout.take().context("a pipe")?);
        let listener = known.clone();
        thread::spawn(move || {
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                listener.hear(&line);
            }
            listener.ended.store(1, Ordering::SeqCst);
        });
        Ok(Self { load, tenant, known, child, orders, is_hung: false, ordered: (0, 0) })
    }

    /// How it is called in reports.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{} on tenant {}", self.load.name(), self.tenant)
    }

    /// Operations done.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.known.operations.load(Ordering::SeqCst)
    }

    /// Operations that failed, and what was wrong.
    #[must_use]
    pub fn faults(&self) -> (Vec<String>, Vec<String>) {
        (self.known.failed.lock().clone(), self.known.wrong.lock().clone())
    }

    /// Whether something is wrong with it already: nothing more is to be expected of it.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        let (failed, wrong) = self.faults();
        self.is_hung || !failed.is_empty() || !wrong.is_empty()
    }

    /// Looks whether it has come on within [`HANGS_AFTER`]. Once it hangs, it always does.
    pub fn look(&mut self) {
        let is_late = || self.known.progressed.lock().elapsed() >= HANGS_AFTER;
        self.is_hung |= !self.is_lost() && !self.rests() && is_late();
    }

    /// Whether it has stopped and has done all that it was told: there is nothing to come on with.
    fn rests(&self) -> bool {
        self.ordered.0 > 0 && self.answers() == self.ordered
    }

    /// Whether it was seen hanging.
    #[must_use]
    pub fn is_hung(&self) -> bool {
        self.is_hung
    }

    /// The calls of a probe.
    #[must_use]
    pub fn samples(&self) -> Vec<Sample> {
        self.known.samples.lock().clone()
    }

    /// Whether a probe has done a call that began after this moment.
    #[must_use]
    pub fn has_probed_since(&self, us: u64) -> bool {
        self.known.samples.lock().last().is_some_and(|call| call.start_us >= us)
    }

    /// Tells it to stop and to let go of its files.
    pub fn stop(&mut self) {
        self.ordered.0 += 1;
        self.order("stop");
    }

    /// Tells it to compare everything with what it made.
    pub fn verify(&mut self) {
        self.ordered.1 += 1;
        self.order("verify");
    }

    /// How often it has said that it stopped, and that it found everything right.
    #[must_use]
    pub fn answers(&self) -> (u64, u64) {
        (self.known.stopped.load(Ordering::SeqCst), self.known.verified.load(Ordering::SeqCst))
    }

    fn order(&mut self, word: &str) {
        let told = self.orders.as_mut().map(|orders| writeln!(orders, "{word}"));
        if !matches!(told, Some(Ok(()))) {
            self.known.failed.lock().push(format!("it is gone, and cannot be told to {word}"));
        }
        *self.known.progressed.lock() = Instant::now();
    }
}

impl Known {
    fn hear(&self, line: &str) {
        match Said::read(line) {
            Some(Said::Operations(count)) => {
                if self.operations.swap(count, Ordering::SeqCst) == count {
                    return;
                }
            }
            Some(Said::Probe(sample)) => {
                let mut samples = self.samples.lock();
                if samples.len() >= MOST_SAMPLES {
                    samples.drain(..MOST_SAMPLES / 2);
                }
                samples.push(sample);
            }
            Some(Said::Failed(why)) => self.failed.lock().push(why),
            Some(Said::Wrong(what)) => self.wrong.lock().push(what),
            Some(Said::Stopped) => drop(self.stopped.fetch_add(1, Ordering::SeqCst)),
            Some(Said::Verified) => drop(self.verified.fetch_add(1, Ordering::SeqCst)),
            None => self.failed.lock().push(format!("it said `{line}`")),
        }
        *self.progressed.lock() = Instant::now();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // End of input: it ends by itself after what it is about.
        self.orders.take();
        let begin = Instant::now();
        while self.known.ended.load(Ordering::SeqCst) == 0 && begin.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(10));
        }
        // Its own group: only what this started.
        let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        for said in [
            Said::Operations(7),
            Said::Probe(Sample { start_us: 1, length_us: 2 }),
            Said::Failed("why so".into()),
            Said::Wrong("what".into()),
            Said::Stopped,
            Said::Verified,
        ] {
            assert_eq!(Said::read(&said.line()), Some(said));
        }
        assert_eq!(Said::Failed("a\nb".into()).line(), "failed a | b");
        assert_eq!(Said::read("nonsense 1"), None);
    }
}
