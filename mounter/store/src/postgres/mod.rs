//! The store in PostgreSQL: one schema `tarbox`, every statement bound to a family, one statement per commit.

mod audit;
mod blocks;
mod chain;
mod changes;
mod collect;
mod commit;
mod failure;
mod flatten;
mod history;
mod layers;
mod leases;
mod logins;
mod pool;
mod publications;
mod reads;
mod records;
mod restore;
mod rows;
mod scan;
mod schema;
mod scram;
mod statement;
mod tenants;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod url;

#[cfg(test)]
mod tests;

use std::{ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tarbox_types::{
    BlockHash, BlockId, BlockIndex, BranchId, Cookie, FamilyId, Ino, Layer, SessionId, TenantId,
};

use self::pool::Pool;
use crate::{
    api::{CheckProgress, CheckReport, Database, SchemaVersion, TenantStore},
    error::{Result, StoreError},
    flatten::{Flattened, Flattening},
    model::*,
    proof::Proofs,
};

/// Opens a database and brings its schema up to date.
pub(crate) async fn open(url: &str) -> Result<Arc<dyn Database>> {
    let target = url::parse(url)?;
    let pool = Pool::new(&target);
    pool.is_of(schema::migrate(&pool).await?);
    Ok(Arc::new(Postgres { pool, lease: target.lease }))
}

/// A PostgreSQL database.
struct Postgres {
    pool: Pool,
    /// How long our sessions' leases count.
    lease: Duration,
}

/// The rows of one tenant.
struct TenantRows {
    pool: Pool,
    id: TenantId,
    family: FamilyId,
    block_size: u32,
    proofs: Proofs,
}

#[async_trait]
impl Database for Postgres {
    fn display_url(&self) -> String {
        self.pool.display_url().to_owned()
    }

    fn set_credentials(&self, url: &str) -> Result<()> {
        self.pool.set_credentials(&url::parse(url)?)
    }

    async fn schema_version(&self) -> Result<SchemaVersion> {
        let mut conn = self.pool.get().await?;
        let found =
            schema::version(&mut conn).await.map_err(|e| self.pool.failed("read the schema's version", e))?;
        conn.give_back();
        found.ok_or_else(|| StoreError::Refused("the schema `tarbox` is gone".into()))
    }

    async fn create_tenant(&self, new: &NewTenant) -> Result<Tenant> {
        self.make_tenant(new).await
    }

    async fn tenant(&self, id: TenantId) -> Result<Option<Tenant>> {
        tenants::by_id(&self.pool, id).await
    }

    async fn tenant_by_name(&self, name: &str) -> Result<Option<Tenant>> {
        self.find_tenant(name).await
    }

    async fn tenants(&self) -> Result<Vec<Tenant>> {
        self.list_tenants().await
    }

    async fn resize_tenant(&self, id: TenantId, limits: &Limits) -> Result<Tenant> {
        self.set_limits(id, limits).await
    }

    async fn delete_tenant(&self, id: TenantId, in_use: InUse) -> Result<()> {
        self.mark_deleted(id, in_use).await
    }

    async fn reap_tenant(&self, id: TenantId) -> Result<bool> {
        collect::reap(&self.pool, id).await
    }

    async fn open_session(&self, new: &NewSession) -> Result<()> {
        self.register(new).await
    }

    async fn beat(&self, session: SessionId) -> Result<Beat> {
        self.renew(session).await
    }

    async fn close_session(&self, session: SessionId) -> Result<()> {
        self.end(session).await
    }

    async fn acquire(&self, tenant: TenantId, session: SessionId) -> Result<Lease> {
        self.take_lease(tenant, session).await
    }

    async fn release(&self, fence: &Fence) -> Result<()> {
        self.give_lease_back(fence).await
    }

    async fn open_tenant(&self, id: TenantId) -> Result<Arc<dyn TenantStore>> {
        let tenant =
            tenants::by_id(&self.pool, id).await?.ok_or_else(|| StoreError::NoTenant(id.to_string()))?;
        Ok(Arc::new(TenantRows {
            pool: self.pool.clone(),
            id,
            family: tenant.family,
            block_size: tenant.block_size,
            proofs: Proofs::default(),
        }))
    }
}

#[async_trait]
impl TenantStore for TenantRows {
    async fn head(&self) -> Result<(Tenant, View)> {
        self.read_head().await
    }

    async fn view(&self, branch: BranchId, layer: Layer) -> Result<View> {
        self.sealed_view(branch, layer).await
    }

    async fn inode(&self, view: &View, ino: Ino) -> Result<Option<InodeRow>> {
        self.read_inode(view, ino).await
    }

    async fn lookup(&self, view: &View, parent: Ino, name: &[u8]) -> Result<Option<(EntryRow, InodeRow)>> {
        self.read_entry(view, parent, name).await
    }

    async fn list(
        &self,
        view: &View,
        parent: Ino,
        after: Cookie,
        limit: usize,
    ) -> Result<Vec<(EntryRow, InodeRow)>> {
        self.list_entries(view, parent, after, limit).await
    }

    async fn xattrs(&self, view: &View, ino: Ino) -> Result<Option<Bytes>> {
        self.read_xattrs(view, ino).await
    }

    async fn extents(&self, view: &View, data: DataRef, range: Range<BlockIndex>) -> Result<Vec<Extent>> {
        self.read_extents(view, data, range).await
    }

    async fn read(
        &self,
        view: &View,
        data: DataRef,
        blks: &[BlockIndex],
    ) -> Result<Vec<(BlockIndex, Bytes)>> {
        self.read_blocks(view, data, blks).await
    }

    async fn read_part(
        &self,
        view: &View,
        data: DataRef,
        blk: BlockIndex,
        range: Range<u32>,
    ) -> Result<PartRead> {
        self.read_part_of_block(view, data, blk, &range).await
    }

    async fn changes(&self, one: &View, other: &View) -> Result<Changes> {
        self.changes_between(one, other).await
    }

    async fn names_of(&self, view: &View, inos: &[Ino]) -> Result<Vec<EntryRow>> {
        self.names_of_inodes(view, inos).await
    }

    async fn orphans(&self, view: &View) -> Result<Vec<InodeRow>> {
        self.list_orphans(view).await
    }

    async fn reserve_blocks(&self, count: u64) -> Result<Range<BlockId>> {
        self.reserve(count).await
    }

    async fn find_blocks(&self, hashes: &[BlockHash]) -> Result<Vec<Option<BlockId>>> {
        self.find_hashes(hashes).await
    }

    async fn upload(&self, blocks: &[EncodedBlock]) -> Result<()> {
        self.upload_blocks(blocks).await
    }

    async fn commit(&self, fence: &Fence, batch: &Batch) -> Result<Committed> {
        self.commit_batch(fence, batch).await
    }

    async fn layers(&self) -> Result<Vec<LayerRow>> {
        self.list_layers().await
    }

    async fn began_at(&self, branch: BranchId) -> Result<Option<(BranchId, Layer)>> {
        self.origin_of(branch).await
    }

    async fn own_layers(&self) -> Result<Vec<LayerRow>> {
        self.layers_of_tenant().await
    }

    async fn layer_named(&self, name: &str) -> Result<Option<LayerRow>> {
        self.layer_of_name(name).await
    }

    async fn sealed(&self, request: &str) -> Result<Option<LayerRow>> {
        self.layer_of_request(request).await
    }

    async fn history_bytes(&self) -> Result<u64> {
        self.history_of_tenant().await
    }

    async fn seal(&self, seal: &Seal) -> Result<LayerRow> {
        self.seal_unheld(seal).await
    }

    async fn restore(&self, fence: &Fence, branch: BranchId, layer: Layer) -> Result<View> {
        self.restore_to(fence, branch, layer).await
    }

    async fn branch_from(&self, branch: BranchId, layer: Layer, new: &NewTenant) -> Result<Tenant> {
        self.clone_from(branch, layer, new).await
    }

    async fn delete_layer(&self, branch: BranchId, layer: Layer) -> Result<()> {
        self.remove_layer(branch, layer).await
    }

    async fn collect(&self) -> Result<u64> {
        collect::collect(&self.pool, self.family).await
    }

    async fn stray_blocks(&self, after: BlockId, limit: usize) -> Result<(Vec<BlockId>, Option<BlockId>)> {
        collect::stray(&self.pool, self.family, after, limit).await
    }

    async fn offer_blocks(&self, blocks: &[BlockId]) -> Result<()> {
        collect::offer(&self.pool, self.family, blocks).await
    }

    async fn flatten(&self, from: Option<Flattening>) -> Result<Flattened> {
        flatten::step(&self.pool, self.family, from).await
    }

    async fn audit(&self, range: &AuditRange, limit: usize) -> Result<Vec<AuditChunk>> {
        self.audit_chunks(range, limit).await
    }

    async fn expire_audit(&self, before: u64) -> Result<u64> {
        self.expire_audit_before(before).await
    }

    async fn check(
        &self,
        repair: bool,
        progress: &(dyn Fn(CheckProgress) + Send + Sync),
    ) -> Result<CheckReport> {
        scan::check(self, repair, progress).await
    }
}
