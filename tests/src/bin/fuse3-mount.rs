//! Serves a tenant through fuse3's own session instead of our engine: the same file system, the other driver.
//! Usage: `fuse3-mount DATABASE-URL JOURNAL-DIRECTORY MOUNTPOINT`; prints a line when it serves, ends when unmounted.

use std::sync::Arc;

use anyhow::{Context, Result};
use fuse3::{MountOptions, raw::Session};
use tarbox_fs::{FileSystem, FsConfig};
use tarbox_store::{Compression, Limits, NewSession, NewTenant};
use tarbox_types::{SessionId, TenantId};
use uuid::Uuid;

#[tokio::main]
async fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let mut word = |what: &'static str| words.next().context(what);
    let (url, journal, mount_point) = (word("a database URL")?, word("a directory")?, word("a mount point")?);
    let database = tarbox_store::open(&url).await?;
    let id = TenantId::random();
    let new = NewTenant {
        id,
        name: "fuse3".into(),
        limits: Limits { bytes: 0, inodes: 0, file_bytes: 0 },
        block_size: 128 << 10,
        compression: Compression::None,
        root_uid: 0,
        root_gid: 0,
        root_mode: 0o755,
    };
    database.create_tenant(&new).await?;
    let session = NewSession {
        id: SessionId(Uuid::new_v4()),
        node: "test".into(),
        boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
        pid: std::process::id(),
        start_time: 0,
    };
    database.open_session(&session).await?;
    let lease = database.acquire(id, session.id).await?;
    let store = database.open_tenant(id).await?;
    let config = FsConfig::new(journal.into());
    let (file_system, _) = FileSystem::open(Arc::clone(&database), store, lease, session.id, config).await?;
    let mut options = MountOptions::default();
    options.fs_name("fuse3").default_permissions(true).allow_other(true);
    let mounted = Session::new(options).mount(file_system.clone(), &mount_point).await?;
    println!("serves at {mount_point}");
    mounted.await?;
    file_system.close().await?;
    database.close_session(session.id).await?;
    Ok(())
}
