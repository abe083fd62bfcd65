//! The file systems that are compared.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MntFlags, umount2},
    unistd::syncfs,
};

use crate::{
    command::succeed,
    deadline::wait_for,
    mount::is_mounted,
    scratch::Scratch,
    volume::{Database, Volume},
};

const LIMIT: Duration = Duration::from_secs(120);

/// A file system under measurement.
#[derive(Debug)]
pub struct System {
    /// Its name in the report.
    pub name: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Ext4(Scratch),
    Tarbox {
        volume: Box<Volume>,
        /// In memory, where a journal lies unless something else is said; behind the volume, which has to be gone first.
        _journal: Scratch,
    },
    // A program that mounts what answers from memory and keeps nothing.
    Null {
        command: Vec<String>,
        child: Option<Child>,
        scratch: Scratch,
    },
    JuiceFs {
        meta: String,
        server: Option<crate::postgres::PostgresServer>,
        scratch: Scratch,
    },
}

impl System {
    /// The limit: a directory on ext4.
    ///
    /// # Errors
    /// If it cannot be had.
    pub fn ext4() -> Result<Self> {
        Ok(Self { name: "ext4".into(), kind: Kind::Ext4(Scratch::on_ext4()?) })
    }

    /// Tarbox on a database, with further arguments.
    ///
    /// # Errors
    /// If there is no place for its journal.
    pub fn tarbox(on: Database, args: &[&str]) -> Result<Self> {
        let name = match on {
            Database::Sqlite => "Tarbox SQLite",
            Database::Postgres => "Tarbox PostgreSQL",
        };
        let journal = Scratch::tmpfs(1024)?;
        let mut volume = Box::new(Volume::prepare(on, args));
        volume.plan().state_dir = journal.path().to_owned();
        volume.start();
        Ok(Self { name: name.into(), kind: Kind::Tarbox { volume, _journal: journal } })
    }

    /// A null file system on the same engine: the synthetic limit.
    ///
    /// # Errors
    /// If it does not mount.
    pub fn null(command: &str) -> Result<Self> {
        let command = command.split_whitespace().map(ToOwned::to_owned).collect();
        let mut system = Self {
            name: "null".into(),
            kind: Kind::Null { command, child: None, scratch: Scratch::on_disk()? },
        };
        system.start()?;
        Ok(system)
    }

    /// JuiceFS, if its program is on the path.
    ///
    /// # Errors
    /// If it is there and does not mount.
    pub fn juicefs(on: Database) -> Result<Option<Self>> {
        if Command::new("juicefs").arg("version").output().is_err() {
            return Ok(None);
        }
        let scratch = Scratch::on_disk()?;
        let server = (on == Database::Postgres).then(crate::postgres::PostgresServer::start).transpose()?;
        let (name, meta) = match &server {
            None => ("JuiceFS SQLite", format!("sqlite3://{}/meta.db", scratch.path().display())),
            Some(server) => (
                "JuiceFS PostgreSQL",
                server.url().replace("postgresql://", "postgres://") + "?sslmode=disable",
            ),
        };
        let mut format = Command::new("juicefs");
        format
            .args(["format", "--trash-days", "0", "--storage", "file", "--bucket"])
            .arg(scratch.sub("objects")?);
        succeed(format.args([&meta, "bench"]), LIMIT)?;
        let mut system = Self { name: name.into(), kind: Kind::JuiceFs { meta, server, scratch } };
        system.start()?;
        Ok(Some(system))
    }

    /// Where to work.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        match &self.kind {
            Kind::Ext4(scratch) => scratch.path().to_owned(),
            Kind::Tarbox { volume, .. } => volume.path().to_owned(),
            Kind::Null { scratch, .. } | Kind::JuiceFs { scratch, .. } => scratch.path().join("mnt"),
        }
    }

    /// Forgets all that is cached: mounts again, and drops the kernel's caches.
    ///
    /// # Errors
    /// If it cannot be mounted again.
    pub fn make_cold(&mut self) -> Result<()> {
        if let Kind::Tarbox { volume, .. } = &mut self.kind {
            volume.remount();
        } else if !matches!(self.kind, Kind::Ext4(_) | Kind::Null { .. }) {
            self.end()?;
            self.start()?;
        }
        nix::unistd::sync();
        fs::write("/proc/sys/vm/drop_caches", "3").context("drop_caches")
    }

    /// Waits until what was written is where it belongs, so that the next system is not measured with this one's rest.
    ///
    /// # Errors
    /// If it cannot be synced.
    pub fn settle(&self) -> Result<()> {
        let root = fs::File::open(self.path())?;
        if !matches!(self.kind, Kind::Null { .. }) {
            root.sync_all()?;
        }
        Ok(syncfs(&root)?)
    }

    /// Memory of the serving process in bytes, where there is one of ours.
    #[must_use]
    pub fn memory(&self) -> Option<u64> {
        match &self.kind {
            Kind::Tarbox { volume, .. } if !volume.is_control() => volume.mount().memory().ok(),
            _ => None,
        }
    }

    /// From the start of the process to the first successful stat: a tenant that exists, unmounted before. Leaves it mounted.
    #[must_use]
    pub fn start_time(&mut self) -> Option<Duration> {
        let Kind::Tarbox { volume, .. } = &mut self.kind else { return None };
        if volume.is_control() {
            return None;
        }
        volume.stop();
        let at = volume.path().to_owned();
        let watch = thread::spawn(move || -> Duration {
            let begin = Instant::now();
            while !is_mounted(&at) && begin.elapsed() < LIMIT {
                thread::sleep(Duration::from_micros(300));
            }
            let _ = fs::symlink_metadata(&at);
            begin.elapsed()
        });
        volume.start();
        watch.join().ok()
    }

    fn start(&mut self) -> Result<()> {
        let at = self.path();
        fs::create_dir_all(&at)?;
        match &mut self.kind {
            Kind::Null { command, child, .. } => {
                // `{}` stands for the mount point.
                let words: Vec<_> =
                    command.iter().map(|word| word.replace("{}", &at.display().to_string())).collect();
                let (program, args) = words.split_first().context("--null needs a command")?;
                *child = Some(Command::new(program).args(args).stdout(Stdio::null()).spawn()?);
            }
            Kind::JuiceFs { meta, .. } => {
                let mut mount = Command::new("juicefs");
                mount.args(["mount", "-d", "--no-usage-report", "--no-syslog", meta]);
                succeed(mount.arg(&at), LIMIT)?;
            }
            _ => {}
        }
        let kind = &mut self.kind;
        wait_for("the mount", LIMIT, || {
            if let Kind::Null { child: Some(child), .. } = kind
                && let Ok(Some(status)) = child.try_wait()
            {
                return Some(Err(anyhow::anyhow!("the null file system ended: {status}")));
            }
            is_mounted(&at).then_some(Ok(()))
        })?
    }

    fn end(&mut self) -> Result<()> {
        let at = self.path();
        match &mut self.kind {
            Kind::Null { child, .. } => {
                let _ = umount2(&at, MntFlags::MNT_DETACH);
                if let Some(mut child) = child.take() {
                    let _ = wait_for("the null file system", Duration::from_secs(5), || {
                        child.try_wait().ok().flatten()
                    });
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
            Kind::JuiceFs { .. } => drop(succeed(Command::new("juicefs").arg("umount").arg(&at), LIMIT)?),
            _ => {}
        }
        Ok(())
    }

    /// A directory to work in that does not exist yet.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn fresh(&self, name: &str) -> Result<PathBuf> {
        let dir = self.path().join(name);
        ensure!(!dir.exists(), "{} exists", dir.display());
        fs::create_dir(&dir)?;
        Ok(dir)
    }
}

impl Drop for System {
    fn drop(&mut self) {
        let _ = self.end();
        // A dropped server must outlive the mount that uses it.
        if let Kind::JuiceFs { server, .. } = &mut self.kind {
            drop(server.take());
        }
    }
}

/// Removes a directory that was worked in.
pub fn remove(dir: &Path) {
    let _ = fs::remove_dir_all(dir);
}
