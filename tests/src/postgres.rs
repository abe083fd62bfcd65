//! A PostgreSQL server of a test's own, which can be stopped, killed and started again.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User},
};

use crate::{command, deadline::wait_for, scratch::Scratch};

const LIMIT: Duration = Duration::from_secs(60);

/// A server. Stopped and removed when dropped.
#[derive(Debug)]
pub struct PostgresServer {
    process: Option<Child>,
    bin: PathBuf,
    port: u16,
    data: PathBuf,
    log: PathBuf,
    // Holds the directory of a server that was given none; dropped after the server has ended.
    _scratch: Option<Scratch>,
}

impl PostgresServer {
    /// Makes a cluster on the disk, with one database, `tarbox`, and starts it. Durable as PostgreSQL is by default.
    ///
    /// # Errors
    /// If PostgreSQL is not installed, or does not start.
    pub fn start() -> Result<Self> {
        let scratch = Scratch::on_disk()?;
        let mut server = Self::start_at(&scratch.sub("pg")?)?;
        server._scratch = Some(scratch);
        Ok(server)
    }

    /// The same in a directory that is made if it is missing.
    ///
    /// # Errors
    /// If PostgreSQL is not installed, or does not start.
    pub fn start_at(home: &Path) -> Result<Self> {
        let mut server = Self::below(home)?;
        let mut initdb = server.as_postgres("initdb");
        initdb.args([
            "--no-sync",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--username=postgres",
            "-D",
        ]);
        command::succeed(initdb.arg(&server.data), LIMIT)?;
        server.resume()?;
        server.sql("postgres", "CREATE DATABASE tarbox")?;
        Ok(server)
    }

    /// A server that has yet to get its data, in a directory that is made if it is missing.
    fn below(home: &Path) -> Result<Self> {
        fs::create_dir_all(home)?;
        let user = User::from_name("postgres")?.context("there is no user postgres: run `make deps-test`")?;
        chown(home, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        Ok(Self {
            process: None,
            bin: programs()?,
            port: TcpListener::bind("127.0.0.1:0")?.local_addr()?.port(),
            data: home.join("data"),
            log: home.join("log"),
            _scratch: None,
        })
    }

    /// Starts another server that follows this one, until it is promoted.
    ///
    /// # Errors
    /// If the copy fails, or the server does not start.
    pub fn standby(&self, home: &Path) -> Result<Self> {
        let mut standby = Self::below(home)?;
        let mut copy = self.as_postgres("pg_basebackup");
        copy.args([
            "--no-sync",
            "--checkpoint=fast",
            "--write-recovery-conf",
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
        ]);
        command::succeed(copy.args(["-p", &self.port.to_string(), "-D"]).arg(&standby.data), LIMIT)?;
        standby.resume()?;
        Ok(standby)
    }

    /// Makes a standby the server that is written to.
    ///
    /// # Errors
    /// If it does not become it.
    pub fn promote(&self) -> Result<()> {
        let promoted = self.sql("postgres", "SELECT pg_promote(true, 60)")?;
        anyhow::ensure!(promoted.trim() == "t", "the standby was not promoted: {promoted}");
        Ok(())
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Address of the database.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/tarbox", self.port)
    }

    /// Runs SQL; rows come back as lines, columns parted by `|`.
    ///
    /// # Errors
    /// If it fails.
    pub fn sql(&self, database: &str, statement: &str) -> Result<String> {
        let mut psql = Command::new(self.bin.join("psql"));
        psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h", "127.0.0.1", "-p"]);
        psql.arg(self.port.to_string()).args(["-d", database, "-c", statement]);
        command::succeed(&mut psql, LIMIT)
    }

    /// Stops it as an administrator would in a hurry: connections are cut, data is checkpointed.
    ///
    /// # Errors
    /// If it does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.end(Signal::SIGINT)
    }

    /// Stops it without a checkpoint, as a crash would (its children end, the log is replayed at the next start).
    ///
    /// # Errors
    /// If it does not end.
    pub fn crash(&mut self) -> Result<()> {
        self.end(Signal::SIGQUIT)
    }

    /// Starts it again, on the same port.
    ///
    /// # Errors
    /// If it does not answer in time.
    pub fn resume(&mut self) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut postgres = self.as_postgres("postgres");
        postgres.arg("-D").arg(&self.data).args([
            "-p",
            &self.port.to_string(),
            "-c",
            "listen_addresses=127.0.0.1",
        ]);
        postgres.args(["-c", "unix_socket_directories="]);
        postgres.args(["-c", "max_connections=200", "-c", "max_wal_size=4GB"]);
        let child = postgres.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        self.process = Some(child);
        wait_for("PostgreSQL to answer", LIMIT, || self.sql("postgres", "SELECT 1").ok())
            .with_context(|| fs::read_to_string(&self.log).unwrap_or_default())?;
        Ok(())
    }

    /// The cluster's data directory (for copies of a stopped server).
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Runs `pgbench` on the database.
    ///
    /// # Errors
    /// If it fails.
    pub fn bench(&self, args: &[&str]) -> Result<String> {
        let mut pgbench = Command::new(self.bin.join("pgbench"));
        pgbench.args(["-U", "postgres", "-h", "127.0.0.1", "-p", &self.port.to_string()]).args(args);
        command::succeed(pgbench.arg("tarbox"), LIMIT)
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        let Some(mut child) = self.process.take() else { return Ok(()) };
        kill(Pid::from_raw(child.id().cast_signed()), signal)?;
        wait_for("PostgreSQL to end", LIMIT, || child.try_wait().transpose())??;
        Ok(())
    }

    // It refuses to run as root. `setpriv` becomes the program itself, so the child's pid is the server's,
    // and the server ends even when the test is killed.
    fn as_postgres(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=QUIT"]);
        command.arg(self.bin.join(program)).current_dir("/");
        command
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        let _ = self.end(Signal::SIGQUIT);
    }
}

/// The directory of the newest installed PostgreSQL's programs.
///
/// # Errors
/// If there is none.
pub fn programs() -> Result<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .context("PostgreSQL is missing: run `make deps-test`")?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin")))
        })
        .filter(|(_, bin)| bin.join("initdb").exists())
        .collect();
    found.sort();
    Ok(found.pop().context("PostgreSQL is missing: run `make deps-test`")?.1)
}
