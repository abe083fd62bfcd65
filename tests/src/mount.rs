//! One running `tarbox-mount`: started, waited for, unmounted or killed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{deadline::wait_for, product};

/// How long a mounter may take to serve, and to end. A journal of a busy test has to be replayed or flushed.
const LIMIT: Duration = Duration::from_secs(60);

/// Unmounts what nobody uses (umount(2) without flags). A process that another test is just starting has our descriptors until it
/// executes its program: a mount that is busy is tried again.
///
/// # Errors
/// If it stays busy, or is none.
pub fn unmount(point: &Path) -> Result<()> {
    wait_for("the mount to be free", LIMIT, || match umount2(point, MntFlags::empty()) {
        Err(Errno::EBUSY) => None,
        outcome => Some(outcome),
    })?
    .with_context(|| format!("umount {}", point.display()))
}

/// What to mount, and how.
#[derive(Clone, Debug)]
pub struct MountPlan {
    /// `--database-url`.
    pub url: String,
    /// `--tenant`.
    pub tenant: String,
    /// `--state-dir`.
    pub state_dir: PathBuf,
    /// Where.
    pub mountpoint: PathBuf,
    /// Further arguments.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Run it as this user, with no privileges (through fusermount3).
    pub user: Option<String>,
    /// Where its output goes; it is shown when something fails.
    pub log: PathBuf,
    /// The program, if it is not the one under test at its usual place.
    pub program: Option<PathBuf>,
}

impl MountPlan {
    /// The command line.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        // setpriv becomes the program: the child's pid is the mounter's, which ends even when the test is killed.
        command.arg("--pdeathsig=KILL");
        if let Some(user) = &self.user {
            command.args([format!("--reuid={user}"), "--clear-groups".into(), "--inh-caps=-all".into()]);
            command.arg(format!(
                "--regid={}",
                nix::unistd::User::from_name(user).ok().flatten().map_or(65534, |user| user.gid.as_raw())
            ));
        }
        command.arg(self.program.clone().unwrap_or_else(|| product::program("tarbox-mount")));
        command.args(["--database-url", &self.url, "--tenant", &self.tenant, "--state-dir"]);
        command.arg(&self.state_dir).args(&self.args).arg(&self.mountpoint);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// A mounter that serves. Unmounted when dropped, lazily if it must be.
#[derive(Debug)]
pub struct Mount {
    child: Child,
    mountpoint: PathBuf,
    log: PathBuf,
}

impl Mount {
    /// Starts a mounter and waits until it serves.
    ///
    /// # Errors
    /// If it ends instead, or takes too long: with what it said.
    pub fn start(plan: &MountPlan) -> Result<Self> {
        Self::start_watched(plan, |_keeper| {})
    }

    /// As [`Mount::start`]; `begun` is told the process id of the one that mounts, as soon as there is one.
    ///
    /// # Errors
    /// As there.
    pub fn start_watched(plan: &MountPlan, begun: impl FnOnce(u32)) -> Result<Self> {
        ensure!(!is_mounted(&plan.mountpoint), "{} is mounted already", plan.mountpoint.display());
        let log = fs::OpenOptions::new().create(true).append(true).open(&plan.log)?;
        let child = plan
            .command()
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start tarbox-mount")?;
        begun(child.id());
        let mut mount = Self { child, mountpoint: plan.mountpoint.clone(), log: plan.log.clone() };
        let served = wait_for("tarbox-mount to serve", LIMIT, || {
            if let Ok(Some(status)) = mount.child.try_wait() {
                return Some(Err(anyhow::anyhow!("tarbox-mount ended: {status}")));
            }
            is_mounted(&mount.mountpoint).then_some(Ok(()))
        });
        match served.and_then(|outcome| outcome) {
            // Another user's mount is closed to root.
            Ok(()) if plan.user.is_some() => {}
            // The first request waits in the kernel until INIT has been answered.
            // It may still fail to serve, and unmount again: why is in its output.
            Ok(()) => fs::symlink_metadata(&mount.mountpoint)
                .map(drop)
                .with_context(|| format!("stat of the root\n--- its output:\n{}", mount.last_words()))?,
            Err(error) => bail!("{error:#}\n--- its output:\n{}", mount.said()),
        }
        Ok(mount)
    }

    /// Process id of the one that mounts, and keeps another one serving.
    #[must_use]
    pub fn keeper(&self) -> u32 {
        self.child.id()
    }

    /// Process id of the one that serves.
    ///
    /// # Panics
    /// If there is none for long.
    #[must_use]
    pub fn pid(&self) -> u32 {
        wait_for("a serving process", LIMIT, || self.serving()).expect("somebody serves")
    }

    /// Process id of the one that serves, if there is one.
    #[must_use]
    pub fn serving(&self) -> Option<u32> {
        descendants(self.child.id()).first().copied()
    }

    fn last_words(&mut self) -> String {
        let _ = self.wait();
        self.said()
    }

    /// All that it has said.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Unmounts, and waits until the mounter has committed everything and ended well.
    ///
    /// # Errors
    /// If the mount is busy, or the mounter fails.
    pub fn unmount(mut self) -> Result<()> {
        unmount(&self.mountpoint)?;
        let status =
            wait_for("tarbox-mount to end after umount", LIMIT, || self.child.try_wait().transpose())
                .with_context(|| self.said())??;
        ensure!(status.success(), "tarbox-mount ended with {status} after umount\n{}", self.said());
        Ok(())
    }

    /// Sends a signal to all processes of the mounter.
    ///
    /// # Errors
    /// If they are gone.
    pub fn signal_all(&self, signal: Signal) -> Result<()> {
        for pid in descendants(self.child.id()).into_iter().chain([self.child.id()]) {
            kill(Pid::from_raw(pid.cast_signed()), signal)?;
        }
        Ok(())
    }

    /// Kills the one that keeps the other serving, which goes on: it is not ours to wait for any more, and is returned.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill_keeper(&mut self) -> Result<u32> {
        let serving = self.pid();
        self.child.kill()?;
        self.child.wait()?;
        Ok(serving)
    }

    /// Kills the mounter and what it started with SIGKILL, and takes the dead mount away.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill(mut self) -> Result<()> {
        self.kill_processes()?;
        let _ = umount2(&self.mountpoint, MntFlags::MNT_DETACH);
        Ok(())
    }

    /// Sends a signal to the mounter.
    ///
    /// # Errors
    /// If it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().cast_signed()), signal)?)
    }

    /// Waits for the mounter's end by itself; its exit code.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn wait(&mut self) -> Result<Option<i32>> {
        Ok(wait_for("tarbox-mount to end", LIMIT, || self.child.try_wait().transpose())??.code())
    }

    /// Resident memory of the serving process that is its own or shared with nobody else, in bytes (PSS).
    ///
    /// # Errors
    /// If it is gone.
    pub fn memory(&self) -> Result<u64> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid()))?;
        let line = rollup.lines().find(|line| line.starts_with("Pss:")).context("no Pss in smaps_rollup")?;
        let kib: u64 = line.split_whitespace().nth(1).context("Pss without a number")?.parse()?;
        Ok(kib << 10)
    }

    fn kill_processes(&mut self) -> Result<()> {
        // Stopped first, or it would start the next one.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGSTOP);
        for pid in descendants(self.child.id()) {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) && !is_mounted(&self.mountpoint) {
            return;
        }
        if std::thread::panicking() {
            eprintln!("--- tarbox-mount said:\n{}", tail(&self.said(), 60));
        }
        // A clean end if it can be had at once, so that coverage and the lease are written; else by force.
        if umount2(&self.mountpoint, MntFlags::empty()).is_ok() {
            let _ = wait_for("end", Duration::from_secs(10), || self.child.try_wait().ok().flatten());
        }
        let _ = umount2(&self.mountpoint, MntFlags::MNT_DETACH);
        let _ = self.kill_processes();
    }
}

/// Whether something is mounted there, as the kernel says: the path itself is never touched.
#[must_use]
pub fn is_mounted(at: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter_map(|line| line.split(' ').nth(4)).any(|mounted| Path::new(mounted) == at)
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A child of a process, if it has one.
#[must_use]
pub fn child_of(pid: u32) -> Option<u32> {
    descendants(pid).first().copied()
}

fn descendants(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children: Vec<u32> = children.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    children.iter().flat_map(|&child| descendants(child)).chain(children.iter().copied()).collect()
}
