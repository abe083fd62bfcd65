//! A tenant to test: its database, its state directory, and where it is mounted.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    command::{self, Ended},
    control,
    mount::{Mount, MountPlan},
    postgres::PostgresServer,
    product,
    scratch::{Scratch, require_root},
};

/// Where a tenant is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    /// A directory of SQLite files.
    Sqlite,
    /// A PostgreSQL server started for the test.
    Postgres,
}

/// A tenant. While it is not mounted, [`Volume::path`] is an empty directory.
#[derive(Debug)]
pub struct Volume {
    mount: Option<Mount>,
    plan: MountPlan,
    server: Option<PostgresServer>,
    control: bool,
    scratch: Scratch,
}

impl Volume {
    /// A new tenant, mounted, with the mounter's own defaults.
    ///
    /// # Panics
    /// If it cannot be had: that is a failure of the test.
    #[must_use]
    pub fn new(on: Database) -> Self {
        Self::with(on, &[])
    }

    /// A new tenant, mounted with these arguments.
    ///
    /// # Panics
    /// If it cannot be had.
    #[must_use]
    pub fn with(on: Database, args: &[&str]) -> Self {
        let mut volume = Self::prepare(on, args);
        volume.start();
        volume
    }

    /// A new tenant that nobody has mounted yet.
    ///
    /// # Panics
    /// If its directories or its server cannot be had.
    #[must_use]
    pub fn prepare(on: Database, args: &[&str]) -> Self {
        require_root();
        let scratch = Scratch::on_disk().expect("a scratch directory");
        let control = std::env::var_os("TESTS_CONTROL").is_some();
        let server =
            (on == Database::Postgres && !control).then(|| PostgresServer::start().expect("PostgreSQL"));
        let sub = |name: &str| scratch.sub(name).expect("a directory");
        let url = match &server {
            Some(server) => server.url(),
            None => format!("sqlite://{}", sub("db").display()),
        };
        let plan = MountPlan {
            url,
            tenant: "test".into(),
            state_dir: sub("state"),
            mountpoint: sub("mnt"),
            args: args.iter().map(ToString::to_string).collect(),
            env: vec![],
            user: None,
            log: scratch.path().join("log"),
            program: None,
        };
        Self { mount: None, plan, server, control, scratch }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.plan.mountpoint
    }

    /// A path in it.
    #[must_use]
    pub fn at(&self, path: &str) -> PathBuf {
        self.plan.mountpoint.join(path)
    }

    /// How it is mounted; changes hold from the next start.
    pub fn plan(&mut self) -> &mut MountPlan {
        &mut self.plan
    }

    /// The running mounter.
    ///
    /// # Panics
    /// If it is not mounted.
    #[must_use]
    pub fn mount(&self) -> &Mount {
        self.mount.as_ref().expect("mounted")
    }

    /// The running mounter, out of this volume's hands, and where it logs.
    ///
    /// # Panics
    /// If it is not mounted.
    pub fn take_mount(&mut self) -> (Mount, PathBuf) {
        (self.mount.take().expect("mounted"), self.plan.log.clone())
    }

    /// The database server.
    ///
    /// # Panics
    /// If the tenant is not kept in PostgreSQL.
    pub fn server(&mut self) -> &mut PostgresServer {
        self.server.as_mut().expect("kept in PostgreSQL")
    }

    /// The directory of the SQLite files.
    #[must_use]
    pub fn sqlite_dir(&self) -> PathBuf {
        self.scratch.path().join("db")
    }

    /// A directory beside it, on the disk.
    #[must_use]
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Whether it is a plain directory (`TESTS_CONTROL=1`), which can show neither crash nor quota.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.control
    }

    /// Mounts it.
    ///
    /// # Panics
    /// If the mounter does not serve.
    pub fn start(&mut self) {
        if let Err(error) = self.try_start() {
            panic!("{error:#}");
        }
    }

    /// Mounts it.
    ///
    /// # Errors
    /// If the mounter does not serve: with what it said.
    pub fn try_start(&mut self) -> Result<()> {
        if !self.control {
            ensure!(self.mount.is_none(), "it is mounted");
            self.mount = Some(Mount::start(&self.plan)?);
        }
        Ok(())
    }

    /// Has a mounter that was started after this volume's plan.
    ///
    /// # Panics
    /// If it is mounted.
    pub fn adopt(&mut self, mount: Mount) {
        assert!(self.mount.is_none(), "it is mounted");
        self.mount = Some(mount);
    }

    /// Unmounts it; all is committed then.
    ///
    /// # Panics
    /// If that fails.
    pub fn stop(&mut self) {
        if let Some(mount) = self.mount.take() {
            mount.unmount().expect("unmount");
        }
    }

    /// Waits for the mounter to end by itself (something else unmounted it): its exit code.
    ///
    /// # Panics
    /// If it does not end.
    pub fn ended(&mut self) -> Option<i32> {
        self.mount.take().expect("mounted").wait().expect("the mounter ends")
    }

    /// Unmounts and mounts.
    pub fn remount(&mut self) {
        self.stop();
        self.start();
    }

    /// Kills the mounter with SIGKILL and takes the dead mount away.
    ///
    /// # Panics
    /// If that fails.
    pub fn kill(&mut self) {
        if let Some(mount) = self.mount.take() {
            mount.kill().expect("kill");
        }
    }

    /// Deletes what the mounter keeps on this node: the journal.
    ///
    /// # Panics
    /// If that fails.
    pub fn lose_node(&mut self) {
        assert!(self.mount.is_none(), "it is mounted");
        fs::remove_dir_all(&self.plan.state_dir).expect("remove the state directory");
        fs::create_dir(&self.plan.state_dir).expect("make the state directory");
    }

    /// Runs `tarbox` on this tenant's database.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn tarbox(&self, args: &[&str]) -> Result<Ended> {
        let mut command = Command::new(product::program("tarbox"));
        command.args(args).env("TARBOX_DATABASE_URL", &self.plan.url);
        command.env("TARBOX_STATE_DIR", &self.plan.state_dir);
        command::end_of(&mut command, Duration::from_secs(120))
    }

    /// Gives the mounter that writes another password.
    ///
    /// # Errors
    /// If it does not take it.
    pub fn set_credentials(&self, url: &str) -> Result<()> {
        let sockets =
            fs::read_dir(&self.plan.state_dir)?.flatten().map(|entry| entry.path().join("control.sock"));
        let socket = sockets.into_iter().find(|path| path.exists()).context("a control socket")?;
        control::set_credentials(&socket, url)
    }

    /// Checks the unmounted tenant with `tarbox fsck`: it must find nothing.
    ///
    /// # Panics
    /// If it finds something.
    pub fn fsck(&self) {
        if self.control {
            return;
        }
        let ended = self.tarbox(&["fsck", "test"]).context("tarbox fsck").expect("fsck");
        assert_eq!(ended.code, Some(0), "fsck: {}{}", ended.stdout, ended.stderr);
    }
}
