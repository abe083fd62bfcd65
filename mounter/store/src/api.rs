//! The store's two doors: [`Database`] for tenants and leases, [`TenantStore`] for the rows of one tenant.
//!
//! SQLite and PostgreSQL implement both; `conformance` runs one suite over them.

use std::{ops::Range, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use tarbox_types::{BlockHash, BlockId, BlockIndex, BranchId, Cookie, Ino, Layer, SessionId, TenantId};

use crate::{
    error::{Result, StoreError},
    flatten::{Flattened, Flattening},
    logins::Logins,
    model::*,
    publications::Publications,
    records::Records,
};

/// A database that holds tenants.
#[async_trait]
pub trait Database: Records + Publications + Logins + Send + Sync {
    /// The URL it was opened with, without its password, for messages.
    fn display_url(&self) -> String;

    /// Another password or user for the connections that are made from now on; those there are go on until they end.
    /// An SQLite database has neither: nothing changes.
    ///
    /// # Errors
    /// [`StoreError::Url`] where it cannot be read, [`StoreError::Refused`] where it names another database.
    fn set_credentials(&self, url: &str) -> Result<()>;

    /// Version of the schema found, and the lowest program version it may be used with.
    async fn schema_version(&self) -> Result<SchemaVersion>;

    /// Makes a tenant. The same id again returns the tenant that is there.
    ///
    /// # Errors
    /// [`StoreError::NameTaken`] where a live tenant of another id has the name; [`StoreError::Invalid`] for a bad value.
    async fn create_tenant(&self, new: &NewTenant) -> Result<Tenant>;

    /// The tenant of an id, deleted ones included as long as their row stands.
    async fn tenant(&self, id: TenantId) -> Result<Option<Tenant>>;

    /// The live tenant of a name.
    async fn tenant_by_name(&self, name: &str) -> Result<Option<Tenant>>;

    /// All tenants, by name.
    async fn tenants(&self) -> Result<Vec<Tenant>>;

    /// Sets limits. A mounted tenant learns of it with its next commit or heartbeat.
    async fn resize_tenant(&self, id: TenantId, limits: &Limits) -> Result<Tenant>;

    /// Marks a tenant deleted: no lease is given any more, its name is free. Repeating it is not an error.
    ///
    /// # Errors
    /// [`StoreError::Held`] while a live session holds its lease and `in_use` says so.
    async fn delete_tenant(&self, id: TenantId, in_use: InUse) -> Result<()>;

    /// Removes some of a deleted tenant's data; returns whether all is gone, its row included.
    ///
    /// # Errors
    /// [`StoreError::Held`] while a live session holds its lease; [`StoreError::Refused`] where it is not deleted, or where
    /// snapshots of it are kept: they need its rows.
    async fn reap_tenant(&self, id: TenantId) -> Result<bool>;

    /// Registers a session (idempotent).
    async fn open_session(&self, new: &NewSession) -> Result<()>;

    /// Renews a session, in one statement however many tenants it holds.
    async fn beat(&self, session: SessionId) -> Result<Beat>;

    /// Ends a session: its leases are free at once.
    async fn close_session(&self, session: SessionId) -> Result<()>;

    /// Takes the lease of a tenant: the epoch grows by one, a new token is chosen, inode numbers jump by 2^20.
    /// A session that already holds it gets a new epoch, too.
    ///
    /// # Errors
    /// [`StoreError::Held`] while another session that lives holds it (`wanted` is noted), or while the grace rule
    /// forbids a claim (this session has not been renewed without a gap for one lease time since the holder's expired);
    /// [`StoreError::NoTenant`]; [`StoreError::Deleted`].
    async fn acquire(&self, tenant: TenantId, session: SessionId) -> Result<Lease>;

    /// Gives a lease back. Not an error if it is no longer ours.
    async fn release(&self, fence: &Fence) -> Result<()>;

    /// The rows of one tenant, whether leased or not.
    async fn open_tenant(&self, id: TenantId) -> Result<Arc<dyn TenantStore>>;
}

/// Version of the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchemaVersion {
    /// What it was migrated to.
    pub version: u32,
    /// Programs that know only versions below this one must refuse.
    pub min_version: u32,
}

/// The rows of one tenant. Every query is bound to its family; reads see what is committed.
#[async_trait]
pub trait TenantStore: Send + Sync {
    /// The tenant's row and the head's view, now.
    async fn head(&self) -> Result<(Tenant, View)>;

    /// The view of a sealed layer.
    async fn view(&self, branch: BranchId, layer: Layer) -> Result<View>;

    /// One inode.
    async fn inode(&self, view: &View, ino: Ino) -> Result<Option<InodeRow>>;

    /// A name, with the inode it names.
    async fn lookup(&self, view: &View, parent: Ino, name: &[u8]) -> Result<Option<(EntryRow, InodeRow)>>;

    /// Names of a directory with their inodes, in the order of their cookies, those beyond `after`.
    /// Fewer than `limit` = the end.
    async fn list(
        &self,
        view: &View,
        parent: Ino,
        after: Cookie,
        limit: usize,
    ) -> Result<Vec<(EntryRow, InodeRow)>>;

    /// Extended attributes.
    async fn xattrs(&self, view: &View, ino: Ino) -> Result<Option<Bytes>>;

    /// Extents of a content in a range of blocks, by index; holes that no row speaks of are absent.
    async fn extents(&self, view: &View, data: DataRef, range: Range<BlockIndex>) -> Result<Vec<Extent>>;

    /// The bytes of blocks, verified, decompressed, patches applied; absent = hole. Bytes beyond the returned length are zero.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] where a hash does not match or a block is missing.
    async fn read(&self, view: &View, data: DataRef, blks: &[BlockIndex])
    -> Result<Vec<(BlockIndex, Bytes)>>;

    /// A range of one block, perhaps with more around it; verified like [`TenantStore::read`]. Once a block has been read as a
    /// whole, a small range costs about as much as it is long.
    ///
    /// # Errors
    /// Those of [`TenantStore::read`].
    async fn read_part(
        &self,
        view: &View,
        data: DataRef,
        blk: BlockIndex,
        range: Range<u32>,
    ) -> Result<PartRead>;

    /// What may differ between two views: in the time that the rows take which their branches do not share.
    async fn changes(&self, one: &View, other: &View) -> Result<Changes>;

    /// Every name of these inodes. Looks at all names of the view, in one statement for each branch.
    async fn names_of(&self, view: &View, inos: &[Ino]) -> Result<Vec<EntryRow>>;

    /// Inodes without a name (nlink 0).
    async fn orphans(&self, view: &View) -> Result<Vec<InodeRow>>;

    /// A range of `count` block ids that nobody else gets.
    async fn reserve_blocks(&self, count: u64) -> Result<Range<BlockId>>;

    /// Ids of committed blocks with these hashes.
    async fn find_blocks(&self, hashes: &[BlockHash]) -> Result<Vec<Option<BlockId>>>;

    /// Stores blocks' bytes, durable at the latest with the next commit. Invisible until a commit inserts their headers.
    /// Uploading the same id again replaces it.
    async fn upload(&self, blocks: &[EncodedBlock]) -> Result<()>;

    /// Commits a batch, if the database still stands at `batch.from_seq` under this fence. All or nothing.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] (another epoch or token), [`StoreError::Position`] (ours, but at another position:
    /// the answer to an earlier commit was lost, or the database went back), [`StoreError::BlocksGone`],
    /// [`StoreError::Full`], [`StoreError::Unavailable`].
    async fn commit(&self, fence: &Fence, batch: &Batch) -> Result<Committed>;

    /// Sealed layers of the head's line, newest first.
    async fn layers(&self) -> Result<Vec<LayerRow>>;

    /// The layer that a branch of the family began with, whatever has been flattened since; nothing where it began with nothing, or is gone.
    async fn began_at(&self, branch: BranchId) -> Result<Option<(BranchId, Layer)>>;

    /// Layers sealed for this tenant, on whatever branch, newest first.
    async fn own_layers(&self) -> Result<Vec<LayerRow>>;

    /// The layer of this name among [`TenantStore::own_layers`].
    async fn layer_named(&self, name: &str) -> Result<Option<LayerRow>>;

    /// The layer that this request sealed, on whatever branch of the tenant.
    async fn sealed(&self, request: &str) -> Result<Option<LayerRow>>;

    /// What the tenant's history takes in bytes: all that its kept views show and its head does not, 256 bytes for each row and the
    /// uncompressed length of each block, whoever else refers to that. What of it was sealed before the last [`TenantStore::collect`] is
    /// not added up again. Of a line of history that was left by a restore, and of very many removed files, it is a guess until then.
    async fn history_bytes(&self) -> Result<u64>;

    /// Seals the head of a tenant that nobody holds (whose holder's session is expired: the epoch is taken as well).
    async fn seal(&self, seal: &Seal) -> Result<LayerRow>;

    /// Starts a new branch at a sealed layer and makes it this tenant's head (restore), under the fence.
    async fn restore(&self, fence: &Fence, branch: BranchId, layer: Layer) -> Result<View>;

    /// Makes a new tenant of the same family whose head branches off at a sealed layer (clone).
    async fn branch_from(&self, branch: BranchId, layer: Layer, new: &NewTenant) -> Result<Tenant>;

    /// Deletes a checkpoint and prunes, in small batches, the history that no kept view needs.
    ///
    /// # Errors
    /// [`StoreError::LayerInUse`] while a child forks there; [`StoreError::NoLayer`].
    async fn delete_layer(&self, branch: BranchId, layer: Layer) -> Result<()>;

    /// Collects blocks that nothing refers to, and rows of dead contents: one small batch; returns how many went.
    async fn collect(&self) -> Result<u64>;

    /// Of the next `limit` blocks of the family beyond one: those that no content has, and that the collector does not know of; and where
    /// to go on, unless that was all.
    async fn stray_blocks(&self, after: BlockId, limit: usize) -> Result<(Vec<BlockId>, Option<BlockId>)>;

    /// Has the collector look at these blocks: it removes those that nothing refers to.
    async fn offer_blocks(&self, blocks: &[BlockId]) -> Result<()>;

    /// One step of shortening the chains of branches of the family, in the background, under whatever is done there: no view shows
    /// anything else for it. `from`: what the step before gave; without it a link is begun anew, which comes to the same.
    async fn flatten(&self, from: Option<Flattening>) -> Result<Flattened>;

    /// Audit events of this tenant in the order of their positions, at most `limit` chunks.
    async fn audit(&self, range: &AuditRange, limit: usize) -> Result<Vec<AuditChunk>>;

    /// Removes a small batch of audit chunks whose last event is older than `before` (microseconds since 1970), the oldest first; how many
    /// went.
    async fn expire_audit(&self, before: u64) -> Result<u64>;

    /// Checks every invariant of the tenant's head and of what it shares; calls `found` for each fault.
    /// With `repair`, counters are set right and orphans removed (the tenant must not be held).
    async fn check(
        &self,
        repair: bool,
        progress: &(dyn Fn(CheckProgress) + Send + Sync),
    ) -> Result<CheckReport>;
}

/// How far a check is.
#[derive(Clone, Copy, Debug)]
pub struct CheckProgress {
    /// What is being checked.
    pub phase: &'static str,
    /// Done.
    pub done: u64,
    /// Of so many.
    pub total: u64,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// Inodes, names, extents, blocks seen.
    pub inodes: u64,
    /// Names.
    pub entries: u64,
    /// Extents.
    pub extents: u64,
    /// Blocks hashed.
    pub blocks: u64,
    /// Faults, each a sentence with the numbers a reader needs.
    pub faults: Vec<Fault>,
}

/// One fault.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What is wrong.
    pub message: String,
    /// It was put right.
    pub repaired: bool,
}

/// Opens a database by its URL and brings its schema up to date, which the login of a tenant leaves to others:
/// `sqlite:///absolute/directory` or `postgresql://…`.
///
/// # Errors
/// [`StoreError::Url`], [`StoreError::Schema`] where its `min_version` is newer than this program, [`StoreError::SchemaOld`],
/// [`StoreError::Unavailable`].
pub async fn open(url: &str) -> Result<Arc<dyn Database>> {
    match url.split_once("://").map(|(scheme, _)| scheme) {
        Some("sqlite") => crate::sqlite::open(url).await,
        Some("postgresql" | "postgres") => crate::postgres::open(url).await,
        _ => Err(StoreError::Url {
            url: url.to_owned(),
            reason: "it must begin with sqlite:// or postgresql://".into(),
        }),
    }
}
