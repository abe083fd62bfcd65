//! `tarbox umount`: a flush barrier, the unmount, and the mounter's end.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;
use tarbox_types::{ErrorKind, HumanDuration};

use super::{
    context::Context,
    output::{self, Table, show},
};
use crate::{
    control::client::Mounter,
    failure::{Failure, OK},
    mount_point::{self, Health},
    mounts, native, tenant_dir,
    unmount::{self, Ladder},
};

#[derive(Debug, Args)]
#[command(
    after_long_help = "Returns when everything that applications were told is done is committed in the database, the mount is gone, and its mounter has ended.\n\nExamples:\n  tarbox umount ./work\n  tarbox umount --lazy --timeout 5m ./work\n      Takes the mount out of the tree even while something is open in it."
)]
pub(super) struct UmountCommand {
    /// Where it is mounted
    #[arg(value_name = "MOUNTPOINT", required = true)]
    mount_points: Vec<PathBuf>,

    /// Detach the mount even while something is open in it
    #[arg(short, long)]
    lazy: bool,

    /// How long committing may take
    #[arg(long, value_name = "DURATION", default_value = "1m")]
    timeout: HumanDuration,
}

#[derive(Debug, Serialize)]
struct Unmounted {
    mount_point: PathBuf,
    tenant: Option<String>,
    /// Everything up to here is in the database; absent where no mounter was left to ask, or it only read.
    committed_sequence: Option<u64>,
}

impl UmountCommand {
    pub(super) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let mut all = Vec::new();
        for path in &self.mount_points {
            all.push(self.unmount(context, path).await?);
        }
        show(context.format, &all, table)?;
        Ok(OK)
    }

    async fn unmount(&self, context: &Context, path: &Path) -> Result<Unmounted, Failure> {
        let point = mounts::absolute(path).map_err(Failure::io("reach", path))?;
        let mount = mounts::at(&point)
            .map_err(Failure::io("read", Path::new("/proc/self/mountinfo")))?
            .ok_or_else(|| not_mounted(&point))?;
        if !mount.is_tarbox() {
            let message = format!("{} is a mount of {}, not of Tarbox", point.display(), mount.fs_type);
            return Err(Failure::refused(ErrorKind::FailedPrecondition, message));
        }
        let deadline = Instant::now() + self.timeout.0;
        let living = || Mounter::at(&context.settings.state_dir, &point).filter(|mounter| mounter.is_alive);
        let committed_sequence =
            flush(self.timeout.0, || living().filter(|mounter| !mounter.note.read_only)).await?;
        let mounter = living();
        if mounter.is_none() {
            self.without_mounter(&point)?;
        }
        let native = mounter.as_ref().map(|mounter| mounter.note.native.clone()).unwrap_or_default();
        let ladder = if self.lazy { Ladder::Lazy } else { Ladder::Normal };
        let mounted_at = point.clone();
        let unmounting = tokio::task::spawn_blocking(move || {
            native::take_away(&mounted_at, &native)?;
            unmount::unmount(&mounted_at, ladder)
        });
        unmounting.await.map_err(|error| Failure::refused(ErrorKind::Internal, error.to_string()))??;
        if let Some(mounter) = &mounter
            && !self.lazy
        {
            wait_for_end(mounter, deadline).await?;
        }
        Ok(Unmounted {
            mount_point: point,
            tenant: mounter.map(|mounter| mounter.note.tenant_name),
            committed_sequence,
        })
    }

    /// A dead mount can simply go. A living one whose mounter we cannot talk to is only detached on demand: nobody
    /// would make sure that its changes are committed.
    fn without_mounter(&self, point: &Path) -> Result<(), Failure> {
        if self.lazy || mount_point::health(point) == Health::Dead {
            return Ok(());
        }
        let message = format!(
            "no mounter of {0} is noted in the state directory: if tarbox-mount was started with --state-dir, give the same here; `fusermount3 -u {0}` unmounts without waiting for the commit",
            point.display()
        );
        Err(Failure::refused(ErrorKind::NotFound, message))
    }
}

fn not_mounted(point: &Path) -> Failure {
    Failure::refused(ErrorKind::NotFound, format!("nothing is mounted at {}", point.display()))
}

async fn flush(timeout: Duration, writer: impl Fn() -> Option<Mounter>) -> Result<Option<u64>, Failure> {
    output::while_waiting("committing", Mounter::flush(timeout, writer)).await
}

/// The mounter's lock goes with it: only then is the tenant free to be mounted elsewhere.
async fn wait_for_end(mounter: &Mounter, deadline: Instant) -> Result<(), Failure> {
    while tenant_dir::is_locked(&mounter.directory) {
        if Instant::now() >= deadline {
            let message = format!(
                "unmounted and committed, but the mounter (pid {}) has not ended in time",
                mounter.note.pid
            );
            return Err(Failure::refused(ErrorKind::Unavailable, message));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

fn table(all: &Vec<Unmounted>) -> Table {
    let mut table = Table::new(&["UNMOUNTED", "TENANT", "COMMITTED"]);
    for one in all {
        table.row(vec![
            one.mount_point.display().to_string(),
            one.tenant.clone().unwrap_or_else(|| "-".to_owned()),
            match (one.committed_sequence, &one.tenant) {
                (Some(seq), _) => format!("up to {seq}"),
                (None, Some(_)) => "nothing to commit (read-only)".to_owned(),
                (None, None) => "no mounter was left".to_owned(),
            },
        ]);
    }
    table
}
