//! Mounting a tenant at its staging path, and taking it away again.

use std::{fs, os::fd::AsFd, path::Path, sync::Arc, time::Duration};

use nix::{
    mount::{MntFlags, MsFlags, umount2},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde::{Deserialize, Serialize};
use tarbox_engine::{MountOptions, SlotsLayout};
use tarbox_handover::Kept;
use tarbox_supervisor::UnmountStep;

use super::{Staged, publication};
use crate::{
    failure::AgentError,
    host::{
        fusectl, ladder,
        mountinfo::{Mount, Mounts},
        sentry,
    },
    node::Node,
};

/// How long one attempt to unmount may take: an answer comes before the machine stops waiting for one.
const UNMOUNTS_WITHIN: Duration = Duration::from_secs(8);

/// The same once its connection is aborted; both together before the machine stops waiting.
const ABORTS_WITHIN: Duration = Duration::from_secs(1);

/// What the keeper is given beside the descriptors: which mount they belong to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Belongs {
    /// The device number of the file system, `major:minor`.
    pub(super) device: String,
}

/// What is mounted, as the mount table says.
pub(crate) fn table() -> Result<Mounts, AgentError> {
    Mounts::read().map_err(AgentError::io("read", Path::new("/proc/self/mountinfo")))
}

/// Runs something that may block beside the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AgentError> + Send + 'static,
) -> Result<T, AgentError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(AgentError::Unusable("the agent is ending".to_owned())))
}

/// What the keeper has of the tenant.
pub(super) async fn kept(node: &Arc<Node>, staged: &Staged) -> Result<Option<(Kept, Belongs)>, AgentError> {
    let key = staged.tenant.to_string();
    let entry = node.keeper.ask("get the tenant's descriptors", move |client| client.get(&key)).await?;
    let Some(entry) = entry else { return Ok(None) };
    let belongs = serde_json::from_slice(&entry.data).ok();
    let kept = Kept::from_named(&entry.names, entry.descriptors).ok();
    Ok(kept.zip(belongs))
}

/// Whether the kernel still has the connection: not once it is aborted, or mounted nowhere any more. Never waits.
pub(super) fn is_connected(kept: &Kept) -> bool {
    let Some(device) = kept.devices.first() else { return false };
    let mut polled = [PollFd::new(device.as_fd(), PollFlags::empty())];
    let seen = poll(&mut polled, PollTimeout::ZERO);
    let is_gone = polled[0].revents().is_some_and(|found| found.contains(PollFlags::POLLERR));
    seen.is_ok() && !is_gone
}

/// Gives the keeper duplicates of all that belongs to the mount at the staging path.
pub(super) async fn put(node: &Arc<Node>, staged: &Staged, kept: Arc<Kept>) -> Result<(), AgentError> {
    let path = staged.staging_path.clone();
    let found = blocking(move || {
        let staging = publication::resolve(&path).map_err(AgentError::io("resolve", &path))?;
        Ok(table()?.top(&staging).map(|mount| mount.device.clone()))
    });
    let device = found.await?.ok_or_else(|| {
        AgentError::Precondition(format!("nothing is mounted at {}", staged.staging_path.display()))
    })?;
    put_for(node, staged, kept, Belongs { device }).await
}

async fn put_for(
    node: &Arc<Node>,
    staged: &Staged,
    kept: Arc<Kept>,
    belongs: Belongs,
) -> Result<(), AgentError> {
    let key = staged.tenant.to_string();
    let data = serde_json::to_vec(&belongs).unwrap_or_default();
    node.keeper
        .ask("put the tenant's descriptors into the keeper", move |client| {
            let (names, descriptors) = kept.named();
            client.put(&key, &names, &descriptors, &data).map(drop)
        })
        .await
}

/// A sealed memory file with what must stand on no command line.
pub(super) fn secrets(database_url: &str) -> Result<std::os::fd::OwnedFd, AgentError> {
    let text = tarbox_runtime::config::secrets(database_url);
    tarbox_handover::sealed("tarbox-secrets", text.as_bytes())
        .map_err(AgentError::handover("hide the secrets"))
}

/// Sees that the tenant is mounted at its staging path and that the keeper has its descriptors.
pub(super) async fn mount(
    node: &Arc<Node>,
    staged: &Staged,
    secret: Option<String>,
) -> Result<Kept, AgentError> {
    let mut secret = secret.as_deref().map(secrets).transpose()?;
    if let Some((mut kept, belongs)) = kept(node, staged).await? {
        let is_connected = is_connected(&kept);
        if secret.is_none() {
            secret = kept.secrets.take();
        }
        let (path, device) = (staged.staging_path.clone(), belongs.device.clone());
        if is_connected && blocking(move || find_again(&path, &device)).await? {
            kept.secrets = secret;
            let copy = kept.duplicate().map_err(AgentError::handover("duplicate the descriptors"))?;
            put_for(node, staged, Arc::new(copy), belongs).await?;
            return Ok(kept);
        }
    }
    let fresh = staged.clone();
    let (mut kept, belongs) = blocking(move || mount_new(&fresh)).await?;
    kept.secrets = secret;
    let copy = kept.duplicate().map_err(AgentError::handover("duplicate the descriptors"))?;
    if let Err(error) = put_for(node, staged, Arc::new(copy), belongs).await {
        // Nobody would find its descriptors again.
        let _ = umount2(&staged.staging_path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        return Err(error);
    }
    Ok(kept)
}

/// Sees that what is served is seen at the staging path, where somebody has unmounted it there and it is still seen elsewhere.
pub(super) async fn show_again(node: &Arc<Node>, staged: &Staged) -> Result<(), AgentError> {
    let Some((kept, belongs)) = kept(node, staged).await? else { return Ok(()) };
    let path = staged.staging_path.clone();
    if is_connected(&kept) {
        blocking(move || find_again(&path, &belongs.device)).await?;
    }
    Ok(())
}

/// Whether the device is mounted at the path; where it was taken away there but is still seen elsewhere, it is bound
/// back from there.
fn find_again(path: &Path, device: &str) -> Result<bool, AgentError> {
    clear(path, Some(device))?;
    let path = publication::resolve(path).map_err(AgentError::io("resolve", path))?;
    let mounts = table()?;
    if mounts.top(&path).is_some_and(|mount| mount.device == device) {
        return Ok(true);
    }
    let Some(elsewhere) =
        mounts.of_device(device).find(|mount| mount.root == Path::new("/") && !mount.has("ro"))
    else {
        return Ok(false);
    };
    nix::mount::mount(Some(&elsewhere.point), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|errno| AgentError::io("mount again at", &path)(errno.into()))?;
    Ok(true)
}

/// Takes away file systems of ours that nobody serves any more and that cover the path; refuses foreign ones.
fn clear(path: &Path, keep: Option<&str>) -> Result<(), AgentError> {
    fs::create_dir_all(path.parent().unwrap_or(path)).map_err(AgentError::io("make the directory", path))?;
    let path = publication::resolve(path).map_err(AgentError::io("resolve", path))?;
    loop {
        let mounts = table()?;
        match mounts.top(&path) {
            Some(mount) if keep == Some(mount.device.as_str()) => return Ok(()),
            Some(mount) if mount.is_tarbox() => {
                umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
                    .map_err(|errno| AgentError::io("clear away the dead mount at", &path)(errno.into()))?;
            }
            Some(mount) => {
                return Err(AgentError::Precondition(format!(
                    "somebody else has mounted {} ({}) at {}",
                    mount.source,
                    mount.fs_type,
                    path.display()
                )));
            }
            None => return Ok(()),
        }
    }
}

fn mount_new(staged: &Staged) -> Result<(Kept, Belongs), AgentError> {
    let path = &staged.staging_path;
    clear(path, None)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(AgentError::io("make the staging directory", path)(error));
        }
        Ok(()) | Err(_) => {}
    }
    let options = MountOptions {
        allow_other: true,
        read_only: staged.wish.many_readers,
        nosuid: staged.wish.nosuid,
        nodev: staged.wish.nodev,
        noexec: staged.wish.noexec,
        // The sentry: everything else that is mounted there was refused above.
        over: Some("tmpfs"),
        ..MountOptions::new(path, &staged.name)
    };
    let slots = tarbox_engine::create_slots(SlotsLayout::default())
        .map_err(AgentError::io("make the request slots for", path))?;
    let point = publication::resolve(path).map_err(AgentError::io("resolve", path))?;
    publication::guard(&point)?;
    let device = tarbox_engine::mount(&options).inspect_err(|_| {
        // Nothing else would take it away: nothing of the tenant is mounted.
        let _ = sentry::remove(&point);
    })?;
    let number = table()?.top(&point).map(|mount| mount.device.clone());
    let belongs = Belongs { device: number.unwrap_or_default() };
    Ok((Kept { devices: vec![device], slots, journal: None, secrets: None }, belongs))
}

/// Takes the tenant's file system away, wherever this process sees it; done only when it is seen nowhere.
pub(super) async fn unmount(
    node: &Arc<Node>,
    staged: Staged,
    own: Option<Arc<Kept>>,
    step: UnmountStep,
) -> Result<(), AgentError> {
    // Somebody may have unmounted the staging path, and a pod still sees it: the keeper knows the device.
    let known = kept(node, &staged).await.ok().flatten().map(|(_, belongs)| belongs.device);
    blocking(move || {
        let path = publication::resolve(&staged.staging_path)
            .map_err(AgentError::io("resolve", &staged.staging_path))?;
        let mounts = table()?;
        let known = known.as_ref().and_then(|device| of_tenant(&mounts, device, &staged));
        if let Some(mount) = known.or_else(|| mounts.top(&path).filter(|mount| mount.is_tarbox())) {
            let step = match step {
                UnmountStep::Normal => ladder::Step::Normal,
                UnmountStep::Lazy => ladder::Step::Lazy,
            };
            let mut outcome = ladder::unmount(mount, &path, step, UNMOUNTS_WITHIN);
            let is_lost = step == ladder::Step::Lazy && outcome.as_ref().is_err_and(is_wedged);
            if is_lost && table()?.same_as(mount).next().is_some() {
                // All that can be committed is: whoever still waits for an answer will never get one.
                let device = &mount.device;
                tracing::error!(tenant = %staged.tenant, device, "the kernel does not let go: the connection is aborted");
                fusectl::abort(device).map_err(AgentError::io("abort the connection of", &path))?;
                outcome = ladder::unmount(mount, &path, step, ABORTS_WITHIN);
            }
            for pin in outcome? {
                tracing::info!(tenant = %staged.tenant, %pin, "unmounted, but still held");
            }
        }
        sentry::remove(&path)?;
        // Held until here: without a descriptor the kernel would answer those who still wait with errors.
        drop(own);
        Ok(())
    })
    .await
}

fn is_wedged(error: &AgentError) -> bool {
    matches!(error, AgentError::Io { source, .. } if source.kind() == std::io::ErrorKind::TimedOut)
}

/// A mount of the device, if that is still the tenant's: once it is mounted nowhere, the kernel gives its number to another.
fn of_tenant<'m>(mounts: &'m Mounts, device: &'m str, staged: &Staged) -> Option<&'m Mount> {
    mounts.of_device(device).find(|mount| mount.is_tarbox() && mount.source == staged.name)
}
