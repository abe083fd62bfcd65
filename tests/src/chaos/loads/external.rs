//! Programs that know themselves what is right: fio, fsx, git, sqlite3.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Hashes, Told, Work, Wrong};
use crate::{
    command::end_of,
    rng::Rng,
    suites::fsx::{self, Style},
};

/// A step is short; who needs longer is found hanging from outside long before.
const LIMIT: Duration = Duration::from_secs(600);

/// Runs a program that has to succeed. Words in what it says tell whether it found wrong bytes, or failed otherwise.
fn succeed(command: &mut Command, wrong: &[&str]) -> Result<String> {
    let shown = format!("{command:?}");
    let ended = end_of(command, LIMIT)?;
    if ended.code == Some(0) {
        return Ok(ended.stdout);
    }
    let text = format!("{shown} ended with {:?}: {}{}", ended.code, ended.stdout, ended.stderr);
    Err(complaint(text, wrong))
}

fn complaint(text: String, wrong: &[&str]) -> anyhow::Error {
    if wrong.iter().any(|word| text.contains(word)) {
        Wrong(text).into()
    } else {
        io::Error::other(text).into()
    }
}

// === fio ===

/// A few jobs in turn on a file of a few MiB, each verified.
pub(super) struct Fio {
    dir: PathBuf,
    rng: Rng,
    round: usize,
    hashes: Hashes,
}

const JOBS: [&[&str]; 4] = [
    &["--rw=randwrite", "--bs=4k", "--size=2m"],
    &["--rw=write", "--bs=128k", "--size=16m", "--fsync=32"],
    &["--rw=randwrite", "--bsrange=512-96k", "--size=8m"],
    &["--rw=randwrite", "--bs=8k", "--size=4m", "--direct=1"],
];

impl Fio {
    pub(super) fn new(dir: PathBuf, seed: u64) -> Result<Self> {
        fs::create_dir(&dir)?;
        Ok(Self { dir, rng: Rng::new(seed), round: 0, hashes: Hashes::default() })
    }
}

impl Work for Fio {
    fn step(&mut self, _told: &Told) -> Result<u64> {
        let job = self.round % JOBS.len();
        self.round += 1;
        let file = self.dir.join(format!("job{job}"));
        let mut fio = Command::new("fio");
        fio.args([
            "--name=chaos",
            "--ioengine=psync",
            "--fallocate=none",
            "--invalidate=1",
            "--output-format=json",
        ]);
        fio.args(["--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_state_save=0"]);
        fio.arg(format!("--filename={}", file.display())).args(JOBS[job]);
        fio.arg(format!("--randseed={}", self.rng.below(1 << 30)));
        let said = succeed(&mut fio, &["verify:", "verify failed", "checksum"])?;
        let told: Value =
            serde_json::from_str(&said[said.find('{').unwrap_or(0)..]).context("what fio said")?;
        let done = &told["jobs"][0];
        ensure!(done["error"] == 0, "fio ended well, with error {}", done["error"]);
        let count = |kind: &str| done[kind]["total_ios"].as_u64().unwrap_or(0);
        let (read, written) = (count("read"), count("write"));
        ensure!(read > 0 && written > 0, "fio verified nothing: {read} reads, {written} writes");
        self.hashes.note(&file)?;
        Ok(read + written)
    }

    fn close(&mut self) {}

    fn verify(&mut self) -> Result<()> {
        self.hashes.verify()
    }
}

// === fsx ===

/// `fsx` in short runs, in one style after the other.
pub(super) struct Fsx {
    dir: PathBuf,
    scratch: PathBuf,
    rng: Rng,
    round: u64,
    hashes: Hashes,
}

const FSX_OPERATIONS: u64 = 500;

impl Fsx {
    pub(super) fn new(dir: PathBuf, scratch: PathBuf, seed: u64) -> Result<Self> {
        fs::create_dir(&dir)?;
        Ok(Self { dir, scratch, rng: Rng::new(seed), round: 0, hashes: Hashes::default() })
    }
}

impl Work for Fsx {
    fn step(&mut self, _told: &Told) -> Result<u64> {
        let style = [Style::Small, Style::Large, Style::Synced][self.round as usize % 3];
        // A few files, each begun anew now and then.
        let name = format!("fsx{}", self.round % 6);
        self.round += 1;
        let path = self.dir.join(&name);
        if path.exists() {
            fs::remove_file(&path).context("unlink")?;
        }
        fsx::run(&self.dir, &name, &self.scratch, style, self.rng.below(1 << 30), FSX_OPERATIONS).map_err(
            |error| complaint(format!("{error:#}"), &["mismatch", "miscompare", "Size error", "bad data"]),
        )?;
        self.hashes.note(&path)?;
        Ok(FSX_OPERATIONS)
    }

    fn close(&mut self) {}

    fn verify(&mut self) -> Result<()> {
        self.hashes.verify()
    }
}

// === git ===

/// Repositories: made, filled, committed, branched, merged, checked. The last two stay.
pub(super) struct Git {
    dir: PathBuf,
    rng: Rng,
    round: u64,
    /// Repository and the tree that its branch has.
    kept: Vec<(PathBuf, String)>,
}

const FILES: u64 = 25;

impl Git {
    pub(super) fn new(dir: PathBuf, seed: u64) -> Result<Self> {
        fs::create_dir(&dir)?;
        Ok(Self { dir, rng: Rng::new(seed), round: 0, kept: Vec::new() })
    }

    fn fill(&mut self, repository: &Path) -> Result<()> {
        for file in 0..FILES {
            let below = repository.join(format!("d{}", file % 4));
            fs::create_dir_all(&below).context("mkdir")?;
            let length = self.rng.below(20_000) as usize;
            fs::write(below.join(format!("f{file}")), self.rng.bytes(length)).context("write a file")?;
        }
        Ok(())
    }
}

fn git(repository: &Path, words: &[&str]) -> Result<String> {
    let mut git = Command::new("git");
    // By name, not by working directory: the program has none in the volume while it starts.
    git.arg("-C").arg(repository).args(words);
    // The user's own settings play no part, and nothing runs in the background.
    git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
    for role in ["AUTHOR", "COMMITTER"] {
        git.env(format!("GIT_{role}_NAME"), "chaos").env(format!("GIT_{role}_EMAIL"), "chaos@example.org");
    }
    succeed(&mut git, &["corrupt", "missing", "mismatch", "bad object", "dangling", "broken"])
}

fn check_repository(repository: &Path, tree: &str) -> Result<()> {
    git(repository, &["fsck", "--full", "--strict", "--no-progress"])?;
    let found = git(repository, &["rev-parse", "HEAD^{tree}"])?;
    ensure!(found == tree, "{} has the tree {found}, not {tree}", repository.display());
    let changed = git(repository, &["status", "--porcelain"])?;
    ensure!(changed.is_empty(), "{} has changes: {changed}", repository.display());
    Ok(())
}

impl Work for Git {
    fn step(&mut self, _told: &Told) -> Result<u64> {
        self.round += 1;
        let repository = self.dir.join(format!("r{}", self.round));
        fs::create_dir(&repository).context("mkdir")?;
        git(&repository, &["init", "-q", "-b", "main"])?;
        git(&repository, &["config", "gc.auto", "0"])?;
        self.fill(&repository)?;
        git(&repository, &["add", "-A"])?;
        git(&repository, &["commit", "-qm", "first"])?;
        git(&repository, &["switch", "-qc", "other"])?;
        self.fill(&repository)?;
        git(&repository, &["commit", "-qam", "second"])?;
        git(&repository, &["switch", "-q", "main"])?;
        git(&repository, &["merge", "-q", "--no-ff", "--no-edit", "other"])?;
        let tree = git(&repository, &["rev-parse", "HEAD^{tree}"])?;
        if self.round.is_multiple_of(3) {
            git(&repository, &["gc", "-q"])?;
        }
        check_repository(&repository, &tree)?;
        self.kept.push((repository, tree));
        if self.kept.len() > 2 {
            fs::remove_dir_all(self.kept.remove(0).0).context("remove a repository")?;
        }
        // Each command is one: what it does of the file system's is not counted.
        Ok(13)
    }

    fn close(&mut self) {}

    fn verify(&mut self) -> Result<()> {
        self.kept.iter().try_for_each(|(repository, tree)| check_repository(repository, tree))
    }
}

// === sqlite3 ===

/// Transactions on a database in WAL mode, and what its table has to hold.
pub(super) struct Sqlite {
    dir: PathBuf,
    rng: Rng,
    rows: u64,
    sum: u64,
}

const TRANSACTIONS: u64 = 12;

impl Sqlite {
    pub(super) fn new(dir: PathBuf, seed: u64) -> Result<Self> {
        fs::create_dir(&dir)?;
        let work = Self { dir, rng: Rng::new(seed), rows: 0, sum: 0 };
        work.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, b BLOB);")?;
        Ok(work)
    }

    fn sql(&self, script: &str) -> Result<String> {
        let mut sqlite = Command::new("sqlite3");
        sqlite
            .args(["-batch", "-bail", "-init", "/dev/null", "-cmd", ".timeout 5000"])
            .arg(self.dir.join("db"));
        sqlite.arg(format!("PRAGMA journal_mode=WAL;\nPRAGMA synchronous=FULL;\n{script}"));
        succeed(&mut sqlite, &["malformed", "corrupt", "not a database"])
    }
}

impl Work for Sqlite {
    fn step(&mut self, _told: &Told) -> Result<u64> {
        let mut script = String::new();
        let (mut rows, mut sum) = (self.rows, self.sum);
        for _ in 0..TRANSACTIONS {
            script.push_str("BEGIN IMMEDIATE;\n");
            for _ in 0..=self.rng.below(4) {
                let number = self.rng.below(1 << 20);
                let length = self.rng.below(3000);
                script.push_str(&format!("INSERT INTO t(n, b) VALUES({number}, randomblob({length}));\n"));
                (rows, sum) = (rows + 1, sum + number);
            }
            script.push_str("UPDATE t SET b = randomblob(500) WHERE id = abs(random()) % 1000;\nCOMMIT;\n");
        }
        // What is rolled back has never been.
        script.push_str("BEGIN;\nDELETE FROM t;\nROLLBACK;\n");
        self.sql(&script)?;
        (self.rows, self.sum) = (rows, sum);
        self.verify()?;
        if self.rows > 4000 {
            self.sql("DELETE FROM t; VACUUM;")?;
            (self.rows, self.sum) = (0, 0);
        }
        Ok(TRANSACTIONS + 2)
    }

    fn close(&mut self) {}

    fn verify(&mut self) -> Result<()> {
        let found = self.sql("PRAGMA integrity_check;\nSELECT count(*), coalesce(sum(n), 0) FROM t;")?;
        let expected = format!("ok\n{}|{}\n", self.rows, self.sum);
        ensure!(found.ends_with(&expected), "the database says {found:?}, not {expected:?}");
        Ok(())
    }
}
