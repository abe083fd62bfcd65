//! This node: what all tenants share, and who they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::{DirBuilderExt, MetadataExt, lchown},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};
use parking_lot::Mutex;
use tarbox_handover::{Limit, SpawnSpec};
use tarbox_rpc::csi::{identity::Readiness, request::VolumeRef};
use tarbox_runtime::{Monitored, Reached};
use tarbox_store::{Isolation, Opened};
use tarbox_supervisor::{Build, Policy, Record, Wanted};
use tarbox_types::{ByteSize, ErrorKind, TenantId, database_url};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::{
    builds::Builds,
    csi::request::Stage,
    failure::AgentError,
    host::{boot, cgroup::Places, state},
    keeper::Keeper,
    launcher,
    logins::LogIn,
    monitoring::Numbers,
    settings::Settings,
    tenant::{self, Command, Control, Handle, Staged, StateFile, Surroundings, control_socket},
};

/// The first of the users that mounters run as, one for each tenant; no system gives these numbers to people.
const FIRST_USER: u32 = 1_879_048_192;
/// How long the last processes of a tenant may take to die; they are killed.
const GROUP_ENDS_WITHIN: Duration = Duration::from_secs(5);
/// So many of them.
const USERS: u32 = 1 << 24;

/// What all tenants of the node share.
#[derive(Debug)]
pub struct Node {
    /// The configuration.
    pub settings: Settings,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) builds: Builds,
    pub(crate) policy: Policy,
    tenants: Mutex<BTreeMap<TenantId, Handle>>,
    boot_id: String,
    /// The databases that calls name.
    pub(crate) databases: Opened,
    /// Whether the agent's own one answers.
    database: Reached,
    /// What the launcher was found to do; not looked yet = `None`.
    launcher: OnceLock<Result<String, String>>,
    /// How tenants are kept apart in the agent's own database, as last seen.
    pub(crate) isolation: Mutex<Option<Isolation>>,
    pub(crate) numbers: Numbers,
    places: Places,
    environment: Vec<String>,
    limits: Vec<Limit>,
    may_spare: bool,
    /// One agent at a time has the state directory.
    _lock: Flock<File>,
}

impl Node {
    /// Takes the state directory, comes to the keeper, and takes up what an earlier agent left.
    ///
    /// # Errors
    /// Where another agent has the directory, or there is no keeper.
    pub fn open(settings: Settings) -> Result<Arc<Self>, AgentError> {
        for directory in [&settings.state_dir, &settings.run_dir] {
            private_directory(directory)?;
        }
        for directory in [&settings.state_dir, &settings.run_dir] {
            private_directory(&directory.join("tenants"))?;
        }
        // Mounters of other users have to come through to their own directories.
        reachable_directory(&settings.run_dir)?;
        reachable_directory(&settings.run_dir.join("mounters"))?;
        let lock = lock(&settings.state_dir)?;
        let policy = Policy { keep_stand_by: settings.stand_by, ..Policy::default() };
        let node = Arc::new(Self {
            keeper: Arc::new(Keeper::attend(launcher::of(&settings))?),
            builds: Builds::open(settings.state_dir.join("builds"))?,
            policy,
            tenants: Mutex::new(BTreeMap::new()),
            boot_id: boot::id()
                .map_err(AgentError::io("read", Path::new("/proc/sys/kernel/random/boot_id")))?,
            databases: Opened::default(),
            database: Reached::default(),
            launcher: OnceLock::new(),
            isolation: Mutex::default(),
            numbers: Numbers::new(),
            places: Places::default(),
            environment: tenant::environment(settings.otlp_endpoint.as_ref()),
            limits: tenant::limits(),
            may_spare: tenant::may_spare(),
            settings,
            _lock: lock,
        });
        node.take_up()?;
        crate::operations::clear_inline(&node);
        Ok(node)
    }

    /// Takes up every tenant of the state files.
    fn take_up(self: &Arc<Self>) -> Result<(), AgentError> {
        self.clear_recent()?;
        let directory = self.tenants_dir();
        let files = state::load_all::<StateFile>(&directory)?;
        let mut tenants = self.tenants.lock();
        for file in files {
            match file {
                Ok(saved) => {
                    let recent = self.recent(saved.value.staged.tenant);
                    let is_of_this_boot = recent.is_some() || saved.boot_id == self.boot_id;
                    let StateFile { mut staged, mut record } = recent.unwrap_or(saved.value);
                    let tenant = staged.tenant;
                    // Processes and mounts of an earlier boot are gone; what is to be staged is not.
                    if !is_of_this_boot {
                        tracing::info!(%tenant, "staged in an earlier boot");
                        if let Err(error) = tenant::clear_earlier(&staged) {
                            tracing::warn!(%tenant, error = error.report(), "something of an earlier boot is left");
                        }
                        staged.published.clear();
                        record = tenant::reborn(&record);
                        if tenant::awaits_password(&staged) {
                            record = tenant::reborn(&Record { wanted: None, ..record });
                        }
                    }
                    tenants.insert(tenant, tenant::start(self.clone(), staged, Some(record)));
                }
                Err(error) => {
                    tracing::error!(%error, "a tenant cannot be taken up; its mounter goes on unattended")
                }
            }
        }
        Ok(())
    }

    /// Removes records of this boot that stand for nothing on the disk any more: whoever forgot a tenant was cut off in the middle.
    fn clear_recent(&self) -> Result<(), AgentError> {
        let recent = self.recent_dir();
        let entries = fs::read_dir(&recent).map_err(AgentError::io("list", &recent))?;
        for name in entries.flatten().map(|entry| entry.file_name()) {
            if !self.tenants_dir().join(&name).exists() {
                let path = recent.join(&name);
                fs::remove_file(&path).map_err(AgentError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    fn tenants_dir(&self) -> PathBuf {
        self.settings.state_dir.join("tenants")
    }

    /// Where the records of this boot are: in memory.
    fn recent_dir(&self) -> PathBuf {
        self.settings.run_dir.join("tenants")
    }

    fn recent(&self, tenant: TenantId) -> Option<StateFile> {
        state::of_this_boot(&self.recent_dir(), &tenant.to_string(), &self.boot_id)
    }

    /// Whether the database has been reached once, or there is none to be reached.
    #[must_use]
    pub fn has_what_it_needs(&self) -> bool {
        self.settings.database_url.is_none() || self.database.has_been()
    }

    pub(crate) fn database(&self) -> &Reached {
        &self.database
    }

    /// Notes what the launcher was found to do.
    pub(crate) fn launcher_proved(&self, proof: Result<String, String>) {
        let _ = self.launcher.set(proof);
    }

    /// Whether mounters can be started.
    pub(crate) fn launcher_works(&self) -> Result<(), String> {
        match self.launcher.get() {
            Some(Ok(_)) => Ok(()),
            Some(Err(why)) => Err(format!("the launcher does not work: {why}")),
            None => Err("the launcher has not been tried yet".to_owned()),
        }
    }

    // === Tenants ===

    pub(crate) fn tenant(&self, tenant: TenantId) -> Option<Handle> {
        self.tenants.lock().get(&tenant).cloned()
    }

    /// The tenant that a volume is: of what a pod asked for itself, the one that is staged for it.
    pub(crate) fn tenant_of(&self, volume: &VolumeRef) -> Option<TenantId> {
        match volume {
            VolumeRef::Tenant(tenant) => Some(*tenant),
            VolumeRef::Inline(id) => {
                let is_it = |handle: &Handle| handle.snapshot.borrow().staged.inline.as_ref() == Some(id);
                self.all().into_iter().find(|(_, handle)| is_it(handle)).map(|(tenant, _)| tenant)
            }
        }
    }

    pub(crate) fn all(&self) -> Vec<(TenantId, Handle)> {
        self.tenants.lock().iter().map(|(tenant, handle)| (*tenant, handle.clone())).collect()
    }

    /// Whose the path is: somebody is staged or published there.
    pub(crate) fn who_has(&self, path: &Path) -> Option<TenantId> {
        let has_it = |handle: &Handle| {
            let seen = handle.snapshot.borrow();
            let staged = &seen.staged;
            !seen.is_gone() && (staged.staging_path == path || staged.published.contains_key(path))
        };
        self.all().into_iter().find(|(_, handle)| has_it(handle)).map(|(tenant, _)| tenant)
    }

    /// Takes a tenant that is over off the list, unless somebody wants something of it.
    pub(crate) fn forget(&self, tenant: TenantId, commands: &mpsc::Receiver<Command>) -> bool {
        // Commands are sent under this lock: none can come between the look and the removal.
        let mut tenants = self.tenants.lock();
        let is_wanted = !commands.is_empty();
        if !is_wanted {
            tenants.remove(&tenant);
        }
        !is_wanted
    }

    /// Gives a tenant's task a command; false where there is none.
    ///
    /// # Errors
    /// Where it is too busy.
    pub(crate) fn command(&self, tenant: TenantId, command: Command) -> Result<bool, AgentError> {
        let tenants = self.tenants.lock();
        let Some(handle) = tenants.get(&tenant) else { return Ok(false) };
        send(tenant, handle, command)?;
        Ok(true)
    }

    /// Has a tenant staged; it is under way when this returns.
    ///
    /// # Errors
    /// Where it is staged otherwise already.
    pub(crate) async fn begin_stage(
        self: &Arc<Self>,
        request: Stage,
        limit: Duration,
    ) -> Result<Handle, AgentError> {
        let (mut staged, secrets) = self.staged(&request)?;
        let url = secrets.clone().unwrap_or_else(|| staged.database_url.clone());
        let secrets = match self.log_in(&mut staged, &url, limit).await? {
            LogIn::Driver => secrets,
            LogIn::Kept => None,
            LogIn::Own(url) => Some(url),
        };
        let node = self.clone();
        let build = tenant::blocking(move || node.builds.install(&node.settings.mounter)).await?;
        let memory = staged.memory;
        let (reply, answer) = oneshot::channel();
        let command = Command::Stage {
            staged: Box::new(staged.clone()),
            wanted: Wanted { build, memory },
            secrets,
            reply,
        };
        let handle = {
            let mut tenants = self.tenants.lock();
            let most = self.settings.max_volumes as usize;
            let is_full = most > 0 && tenants.len() >= most && !tenants.contains_key(&staged.tenant);
            if is_full {
                return Err(AgentError::Full { most });
            }
            self.check_budget(&tenants, staged.tenant, memory)?;
            let handle = tenants.entry(staged.tenant).or_insert_with(|| {
                let handle = tenant::start(self.clone(), staged.clone(), None);
                Handle { promised: memory, ..handle }
            });
            send(staged.tenant, handle, command)?;
            handle.clone()
        };
        answer.await.unwrap_or_else(|_| Err(ending()))?;
        Ok(handle)
    }

    /// Refuses a tenant that is not there yet where the node has not that much memory left to promise. (A stand-by has a limit of
    /// its own, and is not counted: it holds next to nothing until it serves.)
    fn check_budget(
        &self,
        tenants: &BTreeMap<TenantId, Handle>,
        tenant: TenantId,
        needed: ByteSize,
    ) -> Result<(), AgentError> {
        let Some(budget) = self.settings.memory_budget else { return Ok(()) };
        let promised = promised(tenants, tenant);
        let is_over = promised.bytes().saturating_add(needed.bytes()) > budget.bytes();
        if is_over && !tenants.contains_key(&tenant) {
            return Err(AgentError::OverBudget { needed, promised, budget });
        }
        Ok(())
    }

    /// What of `wanted` there is for a tenant that has been promised `least` in any case: one that was killed for want of memory gets
    /// more only out of what nobody else was promised.
    fn affordable(&self, tenant: TenantId, least: ByteSize, wanted: ByteSize) -> ByteSize {
        let Some(budget) = self.settings.memory_budget else { return wanted };
        let others = promised(&self.tenants.lock(), tenant);
        wanted.min(ByteSize(budget.bytes().saturating_sub(others.bytes())).max(least))
    }

    /// How a tenant is staged, unless it is over.
    pub(crate) fn staged_as(&self, tenant: TenantId) -> Option<Staged> {
        let handle = self.tenant(tenant)?;
        let seen = handle.snapshot.borrow();
        (!seen.is_gone()).then(|| seen.staged.clone())
    }

    /// The database of a volume that is to be staged, with its password.
    pub(crate) fn database_of<'r>(&'r self, request: &'r Stage) -> Result<&'r str, AgentError> {
        let named = request.parameters.database_url.as_deref().or(self.settings.database_url.as_deref());
        named.ok_or_else(|| {
            AgentError::Precondition(
                "no database: neither a secret `databaseURL`, nor volume_context.databaseURL, nor the agent's databaseURL names one"
                    .to_owned(),
            )
        })
    }

    fn staged(&self, request: &Stage) -> Result<(Staged, Option<String>), AgentError> {
        // Who is staged already stays as it is.
        let changed = self.staged_as(request.tenant).map_or(request.changed.clone(), |staged| staged.changed);
        let parameters = request.parameters.clone().changed_by(changed.clone());
        let url = self.database_of(request)?;
        let (public, had_secret) = database_url::public(url);
        let memory = ByteSize(self.settings.memory.bytes() + parameters.working_bytes());
        let staged = Staged {
            tenant: request.tenant,
            staging_path: request.staging_path.clone(),
            wish: request.wish.clone(),
            changed,
            name: parameters.tenant_name.clone().unwrap_or_else(|| request.tenant.to_string()),
            user: user(request.tenant, url),
            database_url: public,
            login: None,
            options: parameters.options,
            native: request.native.clone(),
            memory,
            published: BTreeMap::new(),
            inline: request.inline.clone(),
        };
        Ok((staged, had_secret.then(|| url.to_owned())))
    }

    /// The control socket of the mounter that serves the tenant.
    pub(crate) fn control(&self, tenant: TenantId) -> Control {
        let Some(handle) = self.tenant(tenant) else { return self.control_of(tenant, None, None) };
        let seen = handle.snapshot.borrow();
        let reader = seen.server().filter(|_| seen.staged.wish.many_readers);
        self.control_of(tenant, seen.staged.user, reader.map(|reader| reader.pid))
    }

    /// The control socket of the tenant's writer, or of one of those that only read; of whom `user` says, where it is a user of its own.
    pub(crate) fn control_of(&self, tenant: TenantId, user: Option<u32>, reader: Option<u32>) -> Control {
        Control::new(tenant, control_socket(&self.settings.run_dir, tenant, reader), user)
    }

    /// How a tenant's mounter is started, with this much memory.
    pub(crate) fn spec(&self, staged: &Staged, memory: ByteSize) -> Result<SpawnSpec, AgentError> {
        let around = Surroundings {
            run_dir: &self.settings.run_dir,
            cgroups: self.limited(staged.tenant, self.affordable(staged.tenant, staged.memory, memory)),
            environment: &self.environment,
            limits: &self.limits,
            may_spare: self.may_spare,
            without_resend: self.settings.without_resend,
            log_format: self.settings.log_format,
        };
        Ok(tenant::spec(staged, around))
    }

    // === Control groups ===

    /// The groups that the tenant's next mounter enters: one with this memory limit, or none where the machine offers none.
    fn limited(&self, tenant: TenantId, memory: ByteSize) -> Vec<String> {
        let made = self.places.current(self.keeper.pid()).and_then(|groups| {
            let group = groups.vacant(&tenant.to_string())?;
            group.limit_memory(memory)?;
            Ok(group.directory().to_string_lossy().into_owned())
        });
        match made {
            Ok(directory) => vec![directory],
            Err(error) => {
                tracing::warn!(%tenant, error = error.report(), "no memory limit for the mounter");
                Vec::new()
            }
        }
    }

    /// How often the kernel has killed a mounter of the tenant for want of memory.
    pub(crate) fn oom_kills(&self, tenant: TenantId) -> u64 {
        self.places.oom_kills(self.keeper.pid(), &tenant.to_string())
    }

    // === State on disk ===

    /// Saves what is known of a tenant so that the next agent finds it. Only what also `outlives_the_boot` goes to the disk: while a mounter
    /// is being replaced applications wait, and a busy disk takes longer than all the rest.
    pub(crate) async fn save(
        self: &Arc<Self>,
        file: StateFile,
        outlives_the_boot: bool,
    ) -> Result<(), AgentError> {
        let node = self.clone();
        tenant::blocking(move || {
            let name = file.staged.tenant.to_string();
            state::save_for_this_boot(&node.recent_dir(), &name, &node.boot_id, &file)?;
            if outlives_the_boot {
                state::save(&node.tenants_dir(), &name, &node.boot_id, &file)?;
            }
            Ok(())
        })
        .await
    }

    pub(crate) async fn remove_state(self: &Arc<Self>, tenant: TenantId) -> Result<(), AgentError> {
        let node = self.clone();
        tenant::blocking(move || {
            node.clear_run_dir(tenant);
            // Without a keeper it is tried again: what is forgotten here is never removed.
            for group in node.places.groups(node.keeper.pid(), &tenant.to_string())? {
                group.remove(GROUP_ENDS_WITHIN)?;
            }
            crate::operations::forget_inline(&node.settings, tenant)?;
            // The one that says that there is something to be looked for goes first: without it nobody reads the other.
            state::remove(&node.tenants_dir(), &tenant.to_string())?;
            state::remove(&node.recent_dir(), &tenant.to_string())?;
            node.prune();
            Ok(())
        })
        .await
    }

    /// What a mounter that ended well needs no more. A journal that was set aside stays.
    fn clear_run_dir(&self, tenant: TenantId) {
        for name in ["log", "log.1"] {
            let _ = fs::remove_file(self.settings.state_dir.join("logs").join(format!("{tenant}.{name}")));
        }
        let outer = tenant::mounter_dir(&self.settings.run_dir, tenant);
        let inner = outer.join(tenant.to_string());
        // Nobody is to put a link in its place from here on.
        let _ = lchown(&outer, Some(nix::unistd::geteuid().as_raw()), None);
        if fs::symlink_metadata(&inner).is_ok_and(|found| !found.is_dir()) {
            let _ = fs::remove_file(&inner);
        }
        let _ = fs::remove_dir(inner.join("journal"));
        // Those that were killed have left their sockets; no journal is there.
        let _ = fs::remove_dir_all(inner.join("readers"));
        let names = fs::read_dir(&inner)
            .map_or_else(|_| Vec::new(), |entries| entries.flatten().map(|e| e.file_name()).collect());
        if names.iter().all(|name| name == "lock") {
            let _ = fs::remove_dir_all(&outer);
        }
    }

    fn prune(&self) {
        let mut keep: BTreeSet<Build> = self.builds.install(&self.settings.mounter).into_iter().collect();
        for (_, handle) in self.all() {
            let seen = handle.snapshot.borrow();
            let record = &seen.record;
            keep.extend(record.build.iter().chain(&record.upgrade_to).cloned());
            keep.extend(
                [&record.server, &record.spare].into_iter().flatten().map(|mounter| mounter.build.clone()),
            );
            keep.extend(record.wanted.iter().map(|wanted| wanted.build.clone()));
        }
        self.builds.prune(&keep);
    }
}

/// What all but one are promised.
fn promised(tenants: &BTreeMap<TenantId, Handle>, but: TenantId) -> ByteSize {
    let others = tenants.iter().filter(|(tenant, _)| **tenant != but);
    ByteSize(others.map(|(_, handle)| handle.memory().bytes()).sum())
}

fn send(tenant: TenantId, handle: &Handle, command: Command) -> Result<(), AgentError> {
    handle.commands.try_send(command).map_err(|_| AgentError::Unfinished {
        tenant,
        what: "an earlier call",
        why: "the tenant's task is busy".to_owned(),
    })
}

impl Readiness for Node {
    /// Without FUSE nothing can ever be mounted here.
    fn is_ready(&self) -> Result<bool, Status> {
        self.alive().map_err(|why| tarbox_rpc::status(ErrorKind::FailedPrecondition, why))?;
        Ok(self.has_what_it_needs())
    }
}

pub(crate) fn ending() -> AgentError {
    AgentError::Unusable("the agent is ending".to_owned())
}

/// Who a tenant's mounter runs as: the owner of an SQLite database, who has to write it; else a user of its own, the
/// same each time, as its journal is that user's. An agent that is not root has no choice.
fn user(tenant: TenantId, url: &str) -> Option<u32> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    match database_url::sqlite_directory(url) {
        Some(directory) => fs::metadata(directory).ok().map(|found| found.uid()).filter(|uid| *uid != 0),
        None => {
            let bytes = tenant.0.as_bytes();
            Some(FIRST_USER + u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) % USERS)
        }
    }
}

fn private_directory(path: &Path) -> Result<(), AgentError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(AgentError::io("make the directory", path))
}

fn reachable_directory(path: &Path) -> Result<(), AgentError> {
    use std::os::unix::fs::PermissionsExt;
    private_directory(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o711))
        .map_err(AgentError::io("open the directory", path))
}

fn lock(state_dir: &Path) -> Result<Flock<File>, AgentError> {
    let path = state_dir.join("agent.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(AgentError::io("open", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        AgentError::Precondition(format!(
            "another agent has the state directory {}: end it, or name another directory with --state-dir",
            state_dir.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mounter_of_postgresql_has_a_user_of_its_own_and_always_the_same() {
        let (a, b) = (TenantId::random(), TenantId::random());
        let url = "postgresql://h/d";
        assert_eq!(user(a, url), user(a, url));
        assert!(user(a, url) != user(b, url) || a.0.as_bytes()[..3] == b.0.as_bytes()[..3]);
        assert!(user(a, url).is_none_or(|uid| (FIRST_USER..FIRST_USER + USERS).contains(&uid)));
    }

    #[test]
    fn one_agent_at_a_time_has_the_state_directory() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let first = lock(directory.path()).expect("free");
        let text = lock(directory.path()).expect_err("taken").to_string();
        assert!(text.contains("another agent") && text.contains("--state-dir"), "{text}");
        drop(first);
        lock(directory.path()).expect("free again");
    }
}
