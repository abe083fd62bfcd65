//! The rows of one tenant: the [`TenantStore`] of SQLite.

use std::{ops::Range, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::{OptionalExtension, params};
use tarbox_types::{BlockHash, BlockId, BlockIndex, BranchId, Cookie, DataId, Ino, Layer, TenantId};

use super::{
    audit, changes, collect, commit,
    connect::in_one_state,
    database::Inner,
    family::Family,
    flatten, history, layers,
    read::{self, Base, Recipe},
    rows::{self, TenantRow, int, number},
    scan,
};
use crate::{
    api::{CheckProgress, CheckReport, TenantStore},
    codec,
    error::{Result, StoreError},
    flatten::{Flattened, Flattening},
    model::*,
    proof::{Plan, Proofs},
};

/// One tenant's rows.
pub(super) struct SqliteTenant {
    pub(super) database: Arc<Inner>,
    pub(super) family: Arc<Family>,
    pub(super) id: TenantId,
    pub(super) block_size: u32,
    proofs: Proofs,
}

impl SqliteTenant {
    pub(super) fn new(database: Arc<Inner>, family: Arc<Family>, id: TenantId, block_size: u32) -> Self {
        Self { database, family, id, block_size, proofs: Proofs::default() }
    }

    /// Bytes of a block, verified. `None` = it is not there.
    pub(super) fn block(&self, header: &BlockHeader) -> Result<Option<Bytes>> {
        self.stored(header)?.map(|stored| codec::decode(header, stored)).transpose()
    }

    fn stored(&self, header: &BlockHeader) -> Result<Option<Bytes>> {
        self.family.read_blocks("reading a block", |connection| read::part(connection, header.block))
    }

    /// What a plan asks for; `None` where something else is stored there by now, or it does not stand the proof.
    fn read_planned(
        &self,
        view: &View,
        data: DataRef,
        blk: BlockIndex,
        plan: &Plan,
    ) -> Result<Option<PartRead>> {
        let Some(recipe) = self.resolve(view, data, &[blk])?.pop() else { return Ok(None) };
        let Base::Block(block, Some(header)) = &recipe.base else { return Ok(None) };
        if !plan.is_for(header) {
            return Ok(None);
        }
        let stored = self.family.read_blocks("reading a part of a block", |connection| {
            read::stored_range(connection, *block, plan.stored())
        })?;
        let patches = recipe.patches.iter().map(|(off, data)| (*off, &data[..]));
        Ok(stored.filter(|stored| plan.proves(stored)).map(|stored| plan.part(stored, patches)))
    }

    /// The bytes of what a recipe says; the block's id where it is not there (any more).
    fn cook(&self, did: DataId, recipe: Recipe) -> Result<std::result::Result<(BlockIndex, Bytes), BlockId>> {
        let base = match recipe.base {
            Base::Nothing => Bytes::new(),
            Base::Inline(bytes) => bytes,
            Base::Block(id, None) => return Ok(Err(id)),
            Base::Block(id, Some(header)) => {
                let Some(stored) = self.stored(&header)? else { return Ok(Err(id)) };
                let (raw, leaves) = codec::decode_proven(&header, stored)?;
                if let Some(leaves) = leaves {
                    self.proofs.learn(did, recipe.blk, &header, leaves);
                }
                raw
            }
        };
        let bytes = match recipe.patches.is_empty() {
            true => base,
            false => codec::apply_patches(base, recipe.patches.iter().map(|(off, data)| (*off, &data[..]))),
        };
        Ok(Ok((recipe.blk, bytes)))
    }

    fn resolve(&self, view: &View, data: DataRef, blks: &[BlockIndex]) -> Result<Vec<Recipe>> {
        self.family.read("reading extents", |connection| {
            read::recipes(connection, view, data, self.block_size, blks)
        })
    }
}

#[async_trait]
impl TenantStore for SqliteTenant {
    async fn head(&self) -> Result<(Tenant, View)> {
        let (row, view) = self.family.read("reading a tenant", |connection| {
            in_one_state(connection, |connection| {
                let row = TenantRow::need(connection, self.id)?;
                let view = rows::view(connection, row.head_branch, Layer::MAX)?;
                Ok((row, view))
            })
        })?;
        Ok((self.database.tenant_of(row, self.family.id)?, view))
    }

    async fn view(&self, branch: BranchId, layer: Layer) -> Result<View> {
        self.family.read("reading a layer", |connection| {
            layers::need(connection, branch, layer)?;
            rows::view(connection, branch, layer)
        })
    }

    async fn inode(&self, view: &View, ino: Ino) -> Result<Option<InodeRow>> {
        self.family.read("reading an inode", |connection| match view.chain.len() {
            1 => read::inode(connection, view, ino),
            _ => in_one_state(connection, |connection| read::inode(connection, view, ino)),
        })
    }

    async fn lookup(&self, view: &View, parent: Ino, name: &[u8]) -> Result<Option<(EntryRow, InodeRow)>> {
        self.family.read("looking up a name", |connection| read::lookup(connection, view, parent, name))
    }

    async fn list(
        &self,
        view: &View,
        parent: Ino,
        after: Cookie,
        limit: usize,
    ) -> Result<Vec<(EntryRow, InodeRow)>> {
        self.family
            .read("listing a directory", |connection| read::list(connection, view, parent, after, limit))
    }

    async fn xattrs(&self, view: &View, ino: Ino) -> Result<Option<Bytes>> {
        self.family.read("reading extended attributes", |connection| match view.chain.len() {
            1 => read::xattrs(connection, view, ino),
            _ => in_one_state(connection, |connection| read::xattrs(connection, view, ino)),
        })
    }

    async fn extents(&self, view: &View, data: DataRef, range: Range<BlockIndex>) -> Result<Vec<Extent>> {
        self.family.read("reading extents", |connection| {
            in_one_state(connection, |connection| {
                let found = read::found(connection, view, data, self.block_size, range)?;
                Ok(found.into_iter().map(read::Found::extent).collect())
            })
        })
    }

    async fn read(
        &self,
        view: &View,
        data: DataRef,
        blks: &[BlockIndex],
    ) -> Result<Vec<(BlockIndex, Bytes)>> {
        let mut out = Vec::with_capacity(blks.len());
        for recipe in self.resolve(view, data, blks)? {
            let blk = recipe.blk;
            let mut missing = match self.cook(data.did, recipe)? {
                Ok(read) => {
                    out.push(read);
                    continue;
                }
                Err(block) => block,
            };
            // The row may have been replaced and its block collected since it was read: it is damage only if it
            // is still there and says the same.
            loop {
                let Some(again) = self.resolve(view, data, &[blk])?.pop() else { break };
                match self.cook(data.did, again)? {
                    Ok(read) => {
                        out.push(read);
                        break;
                    }
                    Err(block) if block == missing => {
                        return Err(StoreError::Damaged {
                            what: format!("block {block}"),
                            reason: format!(
                                "content {} needs it at block {blk}, and it is missing",
                                data.did
                            ),
                        });
                    }
                    Err(block) => missing = block,
                }
            }
        }
        Ok(out)
    }

    async fn read_part(
        &self,
        view: &View,
        data: DataRef,
        blk: BlockIndex,
        range: Range<u32>,
    ) -> Result<PartRead> {
        if let Some(plan) = self.proofs.plan(data.did, blk, &range)
            && let Some(part) = self.read_planned(view, data, blk, &plan)?
        {
            return Ok(part);
        }
        let found = self.read(view, data, &[blk]).await?;
        Ok(PartRead::whole(found.into_iter().next().map_or_else(Bytes::new, |(_, bytes)| bytes)))
    }

    async fn changes(&self, one: &View, other: &View) -> Result<Changes> {
        self.family.read("comparing views", |connection| {
            in_one_state(connection, |connection| changes::between(connection, one, other))
        })
    }

    async fn names_of(&self, view: &View, inos: &[Ino]) -> Result<Vec<EntryRow>> {
        self.family.read("looking for names", |connection| {
            in_one_state(connection, |connection| changes::names_of(connection, view, inos))
        })
    }

    async fn orphans(&self, view: &View) -> Result<Vec<InodeRow>> {
        self.family.read("listing orphans", |connection| read::orphans(connection, view))
    }

    async fn reserve_blocks(&self, count: u64) -> Result<Range<BlockId>> {
        self.family.write("reserving blocks", |connection| {
            let end = connection
                .prepare_cached("UPDATE family SET next_block = next_block + ?1 RETURNING next_block")?
                .query_row([int(count)], |row| number(row, 0))?;
            Ok(end - count..end)
        })
    }

    async fn find_blocks(&self, hashes: &[BlockHash]) -> Result<Vec<Option<BlockId>>> {
        self.family.read("looking for blocks", |connection| {
            let mut statement =
                connection.prepare_cached("SELECT block FROM block WHERE hash = ?1 LIMIT 1")?;
            hashes
                .iter()
                .map(|hash| Ok(statement.query_row([hash.0], |row| number(row, 0)).optional()?))
                .collect()
        })
    }

    async fn upload(&self, blocks: &[EncodedBlock]) -> Result<()> {
        self.family.write_blocks("storing blocks", |connection| {
            let mut put =
                connection.prepare_cached("INSERT OR REPLACE INTO block_part(block, data) VALUES(?1, ?2)")?;
            for block in blocks {
                put.execute(params![int(block.header.block), &block.bytes[..]])?;
            }
            Ok(())
        })
    }

    async fn commit(&self, fence: &Fence, batch: &Batch) -> Result<Committed> {
        if !batch.headers.is_empty() {
            self.family.sync_blocks()?;
        }
        self.family.write("committing a batch", |connection| commit::commit(connection, fence, batch))
    }

    async fn layers(&self) -> Result<Vec<LayerRow>> {
        self.family.read("listing layers", |connection| layers::of_line(connection, self.id))
    }

    async fn began_at(&self, branch: BranchId) -> Result<Option<(BranchId, Layer)>> {
        self.family.read("looking at a branch", |connection| {
            let sql = "SELECT coalesce(origin, parent), coalesce(origin_layer, parent_layer) FROM branch
                       WHERE branch = ?1 AND coalesce(origin, parent) IS NOT NULL";
            let mut statement = connection.prepare_cached(sql)?;
            Ok(statement.query_row([branch], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
        })
    }

    async fn own_layers(&self) -> Result<Vec<LayerRow>> {
        self.family.read("listing checkpoints", |connection| layers::of_tenant(connection, self.id))
    }

    async fn layer_named(&self, name: &str) -> Result<Option<LayerRow>> {
        self.family.read("looking for a checkpoint", |connection| layers::of_name(connection, self.id, name))
    }

    async fn sealed(&self, request: &str) -> Result<Option<LayerRow>> {
        self.family.read("looking for a layer", |connection| layers::of_request(connection, self.id, request))
    }

    async fn history_bytes(&self) -> Result<u64> {
        self.family.read("adding up a history", |connection| {
            in_one_state(connection, |connection| history::bytes(connection, self.id))
        })
    }

    async fn seal(&self, seal: &Seal) -> Result<LayerRow> {
        self.family.write("sealing a layer", |connection| {
            layers::seal(connection, self.id, seal, &|row| self.database.holder(row))
        })
    }

    async fn restore(&self, fence: &Fence, branch: BranchId, layer: Layer) -> Result<View> {
        self.family.write("restoring a layer", |connection| layers::restore(connection, fence, branch, layer))
    }

    async fn branch_from(&self, branch: BranchId, layer: Layer, new: &NewTenant) -> Result<Tenant> {
        if new.block_size != self.block_size {
            return Err(StoreError::Invalid {
                key: "block size",
                value: new.block_size.to_string(),
                allowed: format!("{}, that of the tenant it is cloned from", self.block_size),
            });
        }
        super::family::blocking(|| {
            self.database.make_tenant(new, Some(self.family.id), |family| {
                family.write("cloning a tenant", |connection| layers::clone(connection, branch, layer, new))
            })
        })
    }

    async fn delete_layer(&self, branch: BranchId, layer: Layer) -> Result<()> {
        self.family.write("deleting a layer", |connection| layers::delete(connection, branch, layer))?;
        while collect::prune(&self.family)? > 0 {}
        Ok(())
    }

    async fn collect(&self) -> Result<u64> {
        collect::collect(&self.family, &|session| self.database.is_alive(session))
    }

    async fn stray_blocks(&self, after: BlockId, limit: usize) -> Result<(Vec<BlockId>, Option<BlockId>)> {
        self.family.read("looking for stray blocks", |connection| {
            in_one_state(connection, |connection| collect::stray(connection, after, limit))
        })
    }

    async fn offer_blocks(&self, blocks: &[BlockId]) -> Result<()> {
        self.family.write("offering blocks", |connection| collect::offer(connection, blocks))
    }

    async fn flatten(&self, from: Option<Flattening>) -> Result<Flattened> {
        self.family
            .write("flattening a chain of branches", |connection| flatten::step(connection, from.as_ref()))
    }

    async fn audit(&self, range: &AuditRange, limit: usize) -> Result<Vec<AuditChunk>> {
        self.family.read("reading the audit", |connection| audit::read(connection, self.id, range, limit))
    }

    async fn expire_audit(&self, before: u64) -> Result<u64> {
        self.family.write("removing audit events", |connection| audit::remove(connection, self.id, before))
    }

    async fn check(
        &self,
        repair: bool,
        progress: &(dyn Fn(CheckProgress) + Send + Sync),
    ) -> Result<CheckReport> {
        scan::check(self, repair, progress).await
    }
}
