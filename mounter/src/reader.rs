//! A tenant mounted for reading only: as the database has it, without the lease.
//!
//! Another mounter may write meanwhile. What it commits is seen within [`FRESH_FOR`]: the kernel keeps names and
//! attributes no longer than that, and when the tenant's position has moved on, a new view of it is opened and takes
//! the old one's place. Inode numbers are the same in both, so that open files go on.

use std::{
    ffi::OsStr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use fuse3::{
    Errno, Result,
    raw::{Filesystem, Request, reply::*},
};
use futures_util::{Stream, StreamExt, stream};
use tarbox_fs::{FileSystem, FsConfig};
use tarbox_store::{Database, Fence, Lease, Tenant, TenantStore, View};
use tarbox_types::{Ino, Seq, SessionId};
use tokio::sync::{Mutex, watch};
use uuid::Uuid;

use crate::failure::{Chain, Failure};

/// How long what was read may be out of date.
pub const FRESH_FOR: Duration = Duration::from_secs(1);

/// See the module's documentation.
pub struct Reader {
    database: Arc<dyn Database>,
    store: Arc<dyn TenantStore>,
    session: SessionId,
    /// Its journal directories stay empty; each view has one of its own.
    config: FsConfig,
    shown: Mutex<Shown>,
    /// As `shown` has it, for who must not wait while another view is being opened.
    current: watch::Sender<FileSystem>,
}

/// The view that is shown now.
struct Shown {
    file_system: FileSystem,
    seq: Seq,
    branch: i64,
    looked: Instant,
    views: u64,
}

/// What opening a view needs of a lease, without being one: nothing is ever committed under it.
fn not_a_lease(tenant: Tenant, head: View, session: SessionId) -> Lease {
    let fence = Fence { tenant: tenant.id, session, epoch: tenant.epoch, token: Uuid::nil() };
    Lease {
        previous: fence.clone(),
        committed_epoch: fence.epoch,
        fence,
        next_ino: u64::MAX >> 16,
        tenant,
        head,
    }
}

impl Reader {
    /// Opens the tenant's head; `config` says how, with `read_only` set.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn open(
        database: Arc<dyn Database>,
        store: Arc<dyn TenantStore>,
        session: SessionId,
        config: FsConfig,
    ) -> std::result::Result<Self, Failure> {
        let shown = view(&database, &store, session, &config, 0).await?;
        let current = watch::Sender::new(shown.file_system.clone());
        Ok(Self { database, store, session, config, shown: Mutex::new(shown), current })
    }

    /// The view that was shown last. Never waits.
    pub fn current(&self) -> FileSystem {
        self.current.borrow().clone()
    }

    /// The view to answer from. Where the database cannot be reached, the last one goes on.
    async fn now(&self) -> FileSystem {
        let mut shown = self.shown.lock().await;
        if shown.looked.elapsed() >= FRESH_FOR {
            if let Err(failure) = self.refresh(&mut shown).await {
                tracing::warn!(reason = %failure.report(), "what is shown may be out of date");
            }
            shown.looked = Instant::now();
        }
        shown.file_system.clone()
    }

    async fn refresh(&self, shown: &mut Shown) -> std::result::Result<(), Failure> {
        let (tenant, _) = self.store.head().await?;
        if (tenant.seq, tenant.head_branch) == (shown.seq, shown.branch) {
            return Ok(());
        }
        let views = shown.views + 1;
        let next = view(&self.database, &self.store, self.session, &self.config, views).await?;
        self.current.send_replace(next.file_system.clone());
        let last = std::mem::replace(shown, next);
        end(&last.file_system).await;
        Ok(())
    }

    /// Ends it: nothing of it stays behind.
    pub async fn close(&self) {
        end(&self.shown.lock().await.file_system).await;
    }
}

async fn view(
    database: &Arc<dyn Database>,
    store: &Arc<dyn TenantStore>,
    session: SessionId,
    config: &FsConfig,
    views: u64,
) -> std::result::Result<Shown, Failure> {
    let (tenant, head) = store.head().await?;
    let (seq, branch) = (tenant.seq, tenant.head_branch);
    let config = FsConfig { journal_dir: directory(config, views), ..config.clone() };
    let lease = not_a_lease(tenant, head, session);
    let opened = FileSystem::open(Arc::clone(database), Arc::clone(store), lease, session, config).await;
    let (file_system, _) = opened.map_err(|error| Failure::Part {
        kind: error.kind(),
        doing: "open the tenant for reading".to_owned(),
        source: error.into(),
    })?;
    Ok(Shown { file_system, seq, branch, looked: Instant::now(), views })
}

fn directory(config: &FsConfig, views: u64) -> PathBuf {
    config.journal_dir.join(views.to_string())
}

async fn end(file_system: &FileSystem) {
    if let Err(error) = file_system.close().await {
        tracing::debug!(error = %Chain(&error), "a view did not end as it should");
    }
}

fn entry(reply: ReplyEntry) -> ReplyEntry {
    ReplyEntry { ttl: FRESH_FOR, ..reply }
}

/// Neither pages nor names are kept from one open to the next.
const OPENED: ReplyOpen = ReplyOpen { fh: 0, flags: 0 };

/// Changes do not come this far: the kernel refuses them on a read-only mount.
fn refused<T>() -> Result<T> {
    Err(Errno::from(libc::EROFS))
}

impl Filesystem for Reader {
    async fn init(&self, req: Request) -> Result<ReplyInit> {
        self.now().await.init(req).await
    }

    async fn destroy(&self, _: Request) {}

    async fn lookup(&self, req: Request, parent: Ino, name: &OsStr) -> Result<ReplyEntry> {
        self.now().await.lookup(req, parent, name).await.map(entry)
    }

    async fn getattr(&self, req: Request, ino: Ino, fh: Option<u64>, flags: u32) -> Result<ReplyAttr> {
        let reply = self.now().await.getattr(req, ino, fh, flags).await?;
        Ok(ReplyAttr { ttl: FRESH_FOR, ..reply })
    }

    async fn readlink(&self, req: Request, ino: Ino) -> Result<ReplyData> {
        self.now().await.readlink(req, ino).await
    }

    async fn open(&self, _: Request, _: Ino, _: u32) -> Result<ReplyOpen> {
        Ok(OPENED)
    }

    async fn opendir(&self, _: Request, _: Ino, _: u32) -> Result<ReplyOpen> {
        Ok(OPENED)
    }

    async fn read(&self, req: Request, ino: Ino, fh: u64, offset: u64, size: u32) -> Result<ReplyData> {
        self.now().await.read(req, ino, fh, offset, size).await
    }

    async fn statfs(&self, req: Request, ino: Ino) -> Result<ReplyStatFs> {
        self.now().await.statfs(req, ino).await
    }

    async fn release(&self, _: Request, _: Ino, _: u64, _: u32, _: u64, _: bool) -> Result<()> {
        Ok(())
    }

    async fn releasedir(&self, _: Request, _: Ino, _: u64, _: u32) -> Result<()> {
        Ok(())
    }

    async fn flush(&self, _: Request, _: Ino, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    async fn fsync(&self, _: Request, _: Ino, _: u64, _: bool) -> Result<()> {
        Ok(())
    }

    async fn fsyncdir(&self, _: Request, _: Ino, _: u64, _: bool) -> Result<()> {
        Ok(())
    }

    async fn getxattr(&self, req: Request, ino: Ino, name: &OsStr, size: u32) -> Result<ReplyXAttr> {
        self.now().await.getxattr(req, ino, name, size).await
    }

    async fn listxattr(&self, req: Request, ino: Ino, size: u32) -> Result<ReplyXAttr> {
        self.now().await.listxattr(req, ino, size).await
    }

    async fn lseek(&self, req: Request, ino: Ino, fh: u64, offset: u64, whence: u32) -> Result<ReplyLSeek> {
        self.now().await.lseek(req, ino, fh, offset, whence).await
    }

    async fn readdir<'a>(
        &'a self,
        req: Request,
        parent: Ino,
        fh: u64,
        offset: i64,
    ) -> Result<ReplyDirectory<impl Stream<Item = Result<DirectoryEntry>> + Send + 'a>> {
        let now = self.now().await;
        let entries: Vec<_> = now.readdir(req, parent, fh, offset).await?.entries.collect().await;
        Ok(ReplyDirectory { entries: stream::iter(entries) })
    }

    async fn readdirplus<'a>(
        &'a self,
        req: Request,
        parent: Ino,
        fh: u64,
        offset: u64,
        lock_owner: u64,
    ) -> Result<ReplyDirectoryPlus<impl Stream<Item = Result<DirectoryEntryPlus>> + Send + 'a>> {
        let now = self.now().await;
        let reply = now.readdirplus(req, parent, fh, offset, lock_owner).await?;
        let short = |entry: Result<DirectoryEntryPlus>| {
            entry.map(|entry| DirectoryEntryPlus { entry_ttl: FRESH_FOR, attr_ttl: FRESH_FOR, ..entry })
        };
        let entries: Vec<_> = reply.entries.map(short).collect().await;
        Ok(ReplyDirectoryPlus { entries: stream::iter(entries) })
    }

    async fn getlk(
        &self,
        _: Request,
        _: Ino,
        _: u64,
        _: u64,
        _: u64,
        _: u64,
        _: u32,
        _: u32,
    ) -> Result<ReplyLock> {
        refused()
    }

    async fn setlk(
        &self,
        _: Request,
        _: Ino,
        _: u64,
        _: u64,
        _: u64,
        _: u64,
        _: u32,
        _: u32,
        _: bool,
    ) -> Result<()> {
        refused()
    }
}
