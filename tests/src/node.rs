//! A node: an agent with its keeper and its mounters, and a kubelet's calls to it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use parking_lot::Mutex;
use serde_json::Value;

use crate::{
    command::{Ended, end_of, succeed},
    control,
    deadline::wait_for,
    product::{Release, program},
    scratch::{Scratch, require_root},
};

const LIMIT: Duration = Duration::from_secs(120);
/// What this thread sees: it may have a mount namespace of its own.
const MOUNTS: &str = "/proc/thread-self/mountinfo";

/// An agent and all that belongs to it; everything is taken away in `Drop`.
#[derive(Debug)]
pub struct Node {
    agent: Option<Child>,
    url: String,
    mounter: PathBuf,
    releases: Releases,
    run: PathBuf,
    /// Further words of the agent's command line.
    words: Vec<String>,
    /// The tenants that were made.
    tenants: Mutex<Vec<String>>,
    scratch: Scratch,
}

/// Which release each part of a node is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Releases {
    /// Of the agent.
    pub agent: Release,
    /// Of the keeper.
    pub keeper: Release,
    /// Of the mounters.
    pub mounter: Release,
}

/// How a node differs from a usual one.
#[derive(Clone, Debug, Default)]
pub struct NodePlan {
    /// Its database; an SQLite database of its own where there is none.
    pub url: Option<String>,
    /// Whether journals lie in memory, as in production, so that no disk is measured.
    pub in_memory: bool,
    /// Which release each part of it is of.
    pub releases: Releases,
    /// Further words of the agent's command line.
    pub words: Vec<String>,
}

impl Node {
    /// Starts an agent on an SQLite database of its own.
    ///
    /// # Errors
    /// If it does not serve.
    pub fn start() -> Result<Self> {
        Self::with(NodePlan::default())
    }

    /// As [`Self::start`], with further words for `tarbox-agent serve`, which may name places below the node's directory.
    ///
    /// # Errors
    /// If it does not serve.
    pub fn start_with(more: impl FnOnce(&Path) -> Vec<String>) -> Result<Self> {
        Self::begin(NodePlan::default(), more)
    }

    /// Starts an agent as it is planned.
    ///
    /// # Errors
    /// If it does not serve.
    pub fn with(plan: NodePlan) -> Result<Self> {
        Self::begin(plan, |_| Vec::new())
    }

    fn begin(plan: NodePlan, more: impl FnOnce(&Path) -> Vec<String>) -> Result<Self> {
        require_root();
        let scratch = Scratch::on_disk()?;
        let url = match plan.url {
            Some(url) => url,
            None => format!("sqlite://{}", scratch.sub("db")?.display()),
        };
        let mounter = scratch.path().join("tarbox-mount");
        let name = scratch.path().file_name().context("a scratch directory has a name")?.to_owned();
        let run = if plan.in_memory { Path::new("/dev/shm").join(name) } else { scratch.path().join("run") };
        let words = plan.words.into_iter().chain(more(scratch.path())).collect();
        let releases = plan.releases;
        let mut node =
            Self { agent: None, url, mounter, releases, run, words, tenants: Mutex::default(), scratch };
        node.install(releases)?;
        node.start_agent()?;
        Ok(node)
    }

    /// The directory that all of the node lies in.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// The executable that mounters are started from; may be replaced.
    #[must_use]
    pub fn mounter(&self) -> &Path {
        &self.mounter
    }

    /// Puts the mounters' executable in its place; agent and keeper are of their release when they are started next.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn install(&mut self, releases: Releases) -> Result<()> {
        let draft = self.mounter.with_extension("draft");
        fs::copy(releases.mounter.program("tarbox-mount"), &draft)?;
        fs::rename(draft, &self.mounter)?;
        self.releases = releases;
        Ok(())
    }

    /// Starts the agent, and waits until it answers.
    ///
    /// # Errors
    /// If it does not.
    pub fn start_agent(&mut self) -> Result<()> {
        self.start_agent_in(Path::new("/"))
    }

    /// As [`Node::start_agent`], by somebody who stands in this directory.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn start_agent_in(&mut self, directory: &Path) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.path().join("agent.log"))?;
        let mut agent = Command::new(self.releases.agent.program("tarbox-agent"));
        agent.arg("serve").arg("--keeper").arg(self.releases.keeper.program("tarbox-keeper"));
        agent.args(["--node-id", "test-node", "--max-volumes", "200", "--topology", "zone=z"]);
        agent.args(["--endpoint", &format!("unix://{}", self.socket().display())]);
        agent.args(["--database-url", &self.url]).arg("--state-dir").arg(self.state_dir());
        agent.arg("--run-dir").arg(&self.run).arg("--mounter").arg(&self.mounter).args(&self.words);
        let agent = agent.current_dir(directory).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.agent = Some(agent.spawn().context("start the agent")?);
        wait_for("the agent's answer", LIMIT, || {
            self.csi("probe", &[]).ok().filter(|ended| ended.stdout.contains("true"))
        })
        .with_context(|| self.log())?;
        Ok(())
    }

    /// Kills the agent (`kill -9`); mounters and keeper go on.
    ///
    /// # Panics
    /// If there is none.
    pub fn kill_agent(&mut self) {
        let mut agent = self.agent.take().expect("an agent runs");
        agent.kill().expect("kill");
        agent.wait().expect("reap");
    }

    /// Ends every process of the node at once, as a loss of power does; files and mounts stay.
    ///
    /// # Errors
    /// If one does not die.
    pub fn power_off(&mut self) -> Result<()> {
        if let Some(mut agent) = self.agent.take() {
            agent.kill()?;
            agent.wait()?;
        }
        self.kill_the_rest();
        wait_for("the end of all processes", LIMIT, || self.processes().is_empty().then_some(()))
    }

    /// The keeper first, so that it restarts nobody.
    fn kill_the_rest(&self) {
        let mut processes = self.processes();
        processes.sort_by_key(|(_, line)| !line.contains("tarbox-keeper"));
        for (pid, _) in processes.into_iter().filter(|(_, line)| line.contains("tarbox-")) {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }

    /// The agent's process, where it runs.
    #[must_use]
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Child::id)
    }

    /// The keeper's process, where there is one.
    #[must_use]
    pub fn keeper_pid(&self) -> Option<u32> {
        let is_keeper =
            |line: &str| line.split(' ').next().is_some_and(|word| word.ends_with("tarbox-keeper"));
        self.processes().into_iter().find(|(_, line)| is_keeper(line)).map(|(pid, _)| pid)
    }

    /// The mounters of a tenant: who serves, and who stands by.
    #[must_use]
    pub fn mounters(&self, id: &str) -> Vec<u32> {
        self.mounters_with(|line| line.contains(id))
    }

    /// Gives the mounter of a tenant another password, as somebody who does not go through the agent.
    ///
    /// # Errors
    /// If it does not take it.
    pub fn set_credentials(&self, id: &str, url: &str) -> Result<()> {
        control::set_credentials(&self.run.join("mounters").join(id).join(id).join("control.sock"), url)
    }

    /// What the mounters of a tenant have logged.
    #[must_use]
    pub fn mounters_log(&self, id: &str) -> String {
        fs::read_to_string(self.state_dir().join("logs").join(format!("{id}.log"))).unwrap_or_default()
    }

    /// Lets the agent end by itself, and waits for it.
    ///
    /// # Errors
    /// If it does not.
    pub fn end_agent(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("an agent runs")?;
        kill(Pid::from_raw(agent.id().cast_signed()), Signal::SIGTERM)?;
        let ended = wait_for("the agent's end", LIMIT, || agent.try_wait().transpose());
        if ended.is_err() {
            self.agent = Some(agent);
        }
        let status = ended??;
        ensure!(status.success(), "the agent ended with {status}\n{}", self.log());
        Ok(())
    }

    /// Makes a tenant; its id.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn tenant(&self, name: &str) -> Result<String> {
        self.tenant_with(name, &[])
    }

    /// Makes a tenant with further options; its id.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn tenant_with(&self, name: &str, options: &[&str]) -> Result<String> {
        let made = self.tarbox(&[&["tenant", "create", name, "-o", "json"], options].concat())?;
        let made: Value = serde_json::from_str(&made)?;
        let id = made["id"].as_str().context("an id")?.to_owned();
        self.tenants.lock().push(id.clone());
        Ok(id)
    }

    /// What the command line says of the database, by somebody who does not know of this node's mounters.
    ///
    /// # Errors
    /// If it does not succeed.
    pub fn tarbox(&self, words: &[&str]) -> Result<String> {
        self.tarbox_with(&self.path().join("cli"), words)
    }

    /// The same, by somebody on this node who knows of a volume's mounter.
    ///
    /// # Errors
    /// If it does not succeed.
    pub fn tarbox_beside(&self, id: &str, words: &[&str]) -> Result<String> {
        self.tarbox_with(&self.run.join("mounters").join(id), words)
    }

    fn tarbox_with(&self, state_dir: &Path, words: &[&str]) -> Result<String> {
        let mut tarbox = Command::new(program("tarbox"));
        tarbox.args(words).args(["--database-url", &self.url]);
        succeed(tarbox.arg("--state-dir").arg(state_dir), LIMIT)
    }

    /// Checks every invariant of a tenant in the database.
    ///
    /// # Errors
    /// If one is broken.
    pub fn fsck(&self, name: &str) -> Result<String> {
        self.tarbox(&["fsck", name])
    }

    /// Unpacks what the database has of a tenant, without asking its mounter for anything; where it lies.
    ///
    /// # Errors
    /// If it cannot be exported.
    pub fn unpack_committed(&self, name: &str) -> Result<PathBuf> {
        let (archive, to) = (self.path().join("committed.tar"), self.scratch.sub("committed")?);
        self.tarbox(&["export", name, archive.to_str().context("UTF-8")?])?;
        succeed(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&to), LIMIT)?;
        Ok(to)
    }

    /// A call as the kubelet makes it; how it ended. A refusal stands in `stderr` as `Code: message`.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn csi(&self, call: &str, words: &[&str]) -> Result<Ended> {
        self.csi_within(call, words, 60.0)
    }

    /// As [`Self::csi`], for a caller who waits no longer than so many seconds.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn csi_within(&self, call: &str, words: &[&str], seconds: f64) -> Result<Ended> {
        let mut agent = Command::new(program("tarbox-agent"));
        agent.arg("csi").arg("--timeout").arg(seconds.to_string());
        agent.arg("--endpoint").arg(self.socket()).arg(call).args(words);
        end_of(&mut agent, LIMIT)
    }

    /// A call that has to succeed.
    ///
    /// # Errors
    /// If it is refused.
    pub fn call(&self, call: &str, words: &[&str]) -> Result<String> {
        let ended = self.csi(call, words)?;
        ensure!(ended.code == Some(0), "{call} {words:?}: {}\n{}", ended.stderr, self.log());
        Ok(ended.stdout)
    }

    /// What the agent says of its tenants.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn ps(&self) -> Result<Vec<Value>> {
        let listed: Value = serde_json::from_str(&self.operator("ps", &["-o", "json"])?.stdout)?;
        Ok(listed["tenants"].as_array().context("tenants")?.clone())
    }

    /// The only tenant of `ps` that serves: its mounter's pid.
    ///
    /// # Errors
    /// If none comes to serve.
    pub fn mounter_pid(&self, id: &str) -> Result<u32> {
        let serving = || {
            let tenant = self.ps().ok()?.into_iter().find(|tenant| tenant["tenant_id"] == id)?;
            let is_serving = ["serving", "upgrading"].iter().any(|phase| tenant["phase"] == *phase);
            tenant["pid"].as_u64().filter(|_| is_serving)
        };
        let pid = wait_for("a mounter that serves", LIMIT, serving).with_context(|| self.log())?;
        Ok(u32::try_from(pid)?)
    }

    /// Asks the agent as an operator does.
    ///
    /// # Errors
    /// If it does not end.
    pub fn operator(&self, word: &str, words: &[&str]) -> Result<Ended> {
        let mut agent = Command::new(program("tarbox-agent"));
        end_of(agent.arg(word).args(words).arg("--state-dir").arg(self.state_dir()), LIMIT)
    }

    /// A volume that is staged and published.
    ///
    /// # Errors
    /// If it is refused.
    pub fn publish(&self, id: &str, name: &str) -> Result<Published> {
        let published = Published::new(self.path(), id, name);
        self.call("stage", &published.words())?;
        self.call("publish", &published.words())?;
        Ok(published)
    }

    /// Lines of the mount table for Tarbox's mounts of this node.
    #[must_use]
    pub fn mounts(&self) -> Vec<String> {
        let here = self.path().to_string_lossy().into_owned();
        let table = fs::read_to_string(MOUNTS).unwrap_or_default();
        let ours = table.lines().filter(|line| line.contains("fuse.tarbox") && line.contains(&here));
        ours.map(str::to_owned).collect()
    }

    /// All mounts, processes, control groups and files that speak of this node; the agent and the keeper themselves left out.
    #[must_use]
    pub fn left_over(&self) -> Vec<String> {
        let mut found = self.mounts();
        found.extend(
            self.processes()
                .into_iter()
                .filter(|(_, line)| line.starts_with("tarbox-mount"))
                .map(|(_, line)| line),
        );
        let run = &self.run;
        for directory in [self.state_dir().join("tenants"), run.join("tenants"), run.join("mounters")] {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            found.extend(entries.map(|entry| entry.path().display().to_string()));
        }
        found.extend(self.groups().into_iter().map(|group| group.display().to_string()));
        found
    }

    /// Control groups of its tenants, in whatever hierarchy.
    fn groups(&self) -> Vec<PathBuf> {
        let tenants = self.tenants.lock();
        let mut found = Vec::new();
        let mut below = vec![PathBuf::from("/sys/fs/cgroup")];
        while let Some(directory) = below.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    found.extend(tenants.iter().any(|id| name.contains(id)).then(|| entry.path()));
                    below.push(entry.path());
                }
            }
        }
        found
    }

    /// All mounters, stand-bys as well.
    #[must_use]
    pub fn all_mounters(&self) -> Vec<u32> {
        self.mounters_with(|_| true)
    }

    fn mounters_with(&self, is_meant: impl Fn(&str) -> bool) -> Vec<u32> {
        let mounters = self.processes().into_iter().filter(|(_, line)| line.starts_with("tarbox-mount "));
        mounters.filter(|(_, line)| is_meant(line)).map(|(pid, _)| pid).collect()
    }

    /// Processes whose command line names this node.
    #[must_use]
    pub fn processes(&self) -> Vec<(u32, String)> {
        let here = self.path().to_string_lossy().into_owned();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&here) && pid != std::process::id() {
                found.push((pid, line));
            }
        }
        found
    }

    /// What the agent has logged, for a failure's message.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.path().join("agent.log")).unwrap_or_default()
    }

    /// The database of volumes that name none.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The state directory.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.path().join("state")
    }

    /// Where the agent serves CSI.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path().join("csi.sock")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        self.kill_the_rest();
        let mounts = fs::read_to_string(MOUNTS).unwrap_or_default();
        let ours = [self.path(), &self.run].map(|path| path.to_string_lossy().into_owned());
        for line in mounts.lines().rev().filter(|line| ours.iter().any(|path| line.contains(path))) {
            if let Some(point) = line.split(' ').nth(4) {
                let _ = umount2(point, MntFlags::MNT_DETACH);
            }
        }
        // Who was killed may write for a moment yet, and may have been about to start another one: the directory could not be removed.
        let _ = wait_for("the end of all processes", Duration::from_secs(10), || {
            self.kill_the_rest();
            self.processes().is_empty().then_some(())
        });
        let _ = fs::remove_dir_all(&self.run);
        // Who was killed above is in its group until it is dead.
        let _ = wait_for("empty control groups", Duration::from_secs(10), || {
            let groups = self.groups();
            groups.iter().for_each(|group| drop(fs::remove_dir(group)));
            groups.is_empty().then_some(())
        });
    }
}

/// A volume and its places.
#[derive(Clone, Debug)]
pub struct Published {
    /// Volume id.
    pub id: String,
    /// Where it is staged.
    pub staging: PathBuf,
    /// Where it is published.
    pub target: PathBuf,
}

impl Published {
    /// Places for a volume below a directory.
    #[must_use]
    pub fn new(below: &Path, id: &str, name: &str) -> Self {
        let place = |kind: &str| below.join(format!("{name}-{kind}"));
        Self { id: id.to_owned(), staging: place("staging"), target: place("target") }
    }

    /// The words of a call.
    #[must_use]
    pub fn words(&self) -> Vec<&str> {
        vec![
            "--volume-id",
            &self.id,
            "--staging",
            self.staging.to_str().expect("UTF-8"),
            "--target",
            self.target.to_str().expect("UTF-8"),
        ]
    }
}
