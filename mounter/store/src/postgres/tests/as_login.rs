//! The conformance suite with tenants' rows read and written by tenants' logins. What only the owner does (tenants, leases of sessions that
//! hold several of them, clones, collecting, checking) is the owner's here as well.

use std::{collections::HashMap, ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tarbox_types::*;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::conformance::Place;
use crate::{Database, conformance::Site, *};

/// Connections of logins, by tenant: each is given a password once.
type Opened = Arc<Mutex<HashMap<TenantId, Arc<dyn Database>>>>;

struct AsLogin {
    place: Place,
    opened: Opened,
}

impl AsLogin {
    async fn new() -> Self {
        Self { place: Place::new().await, opened: Opened::default() }
    }
}

#[async_trait]
impl Site for AsLogin {
    async fn open(&self) -> Result<Arc<dyn Database>> {
        let (owner, url) = (self.place.open().await?, self.place.url());
        Ok(Arc::new(Split { owner, url, opened: self.opened.clone() }))
    }

    async fn expire(&self, dead: SessionId, claimant: SessionId) {
        self.place.expire(dead, claimant).await;
    }

    async fn set_min_version(&self, min_version: u32) {
        self.place.set_min_version(min_version).await;
    }

    async fn flip_bit(&self, block: BlockId) {
        self.place.flip_bit(block).await;
    }

    async fn damage(&self, sql: &str) {
        self.place.damage(sql).await;
    }
}

struct Split {
    owner: Arc<dyn Database>,
    url: String,
    opened: Opened,
}

impl Split {
    async fn login(&self, tenant: TenantId) -> Result<Arc<dyn Database>> {
        let mut opened = self.opened.lock().await;
        if let Some(known) = opened.get(&tenant) {
            return Ok(known.clone());
        }
        let login = match self.owner.make_login(tenant, "node").await? {
            Made::Login(login) => login,
            Made::Impossible(why) => panic!("{why}"),
        };
        let url = database_url::with_user(&self.url, &login.role, Some(&login.password));
        let database = crate::open(&url).await?;
        opened.insert(tenant, database.clone());
        Ok(database)
    }
}

struct SplitRows {
    owner: Arc<dyn TenantStore>,
    login: Arc<dyn TenantStore>,
}

/// An implementation that hands each call to one of two.
macro_rules! delegate {
    ($trait:ident for $type:ident { $($name:ident($($arg:ident: $argument:ty),*) -> $out:ty = $to:ident;)* } $($own:tt)*) => {
        #[async_trait]
        impl $trait for $type {
            $(async fn $name(&self, $($arg: $argument),*) -> Result<$out> { self.$to.$name($($arg),*).await })*
            $($own)*
        }
    };
}

delegate! { Logins for Split {
    isolation() -> Isolation = owner;
    make_login(tenant: TenantId, node: &str) -> Made = owner;
    remove_login(tenant: TenantId, node: &str) -> () = owner;
} }

delegate! { Publications for Split {
    publish(new: &Publication) -> () = owner;
    unpublish(tenant: TenantId, node: Option<&str>) -> () = owner;
    publications(from: TenantId, upto: TenantId) -> Vec<Publication> = owner;
    note_node(node: &str) -> () = owner;
    may_be_node(node: &str) -> bool = owner;
} }

delegate! { Records for Split {
    note_volume(new: &VolumeRecord) -> VolumeRecord = owner;
    volume(id: TenantId) -> Option<VolumeRecord> = owner;
    volumes(after: Option<TenantId>, limit: usize) -> Vec<VolumeRecord> = owner;
    describe_volume(old: &VolumeRecord, description: &str) -> bool = owner;
    forget_volume(id: TenantId) -> () = owner;
    live_tenants(after: Option<TenantId>, limit: usize) -> Vec<Tenant> = owner;
    deleted_tenants() -> Vec<TenantId> = owner;
    note_snapshot(new: &SnapshotRecord) -> SnapshotRecord = owner;
    settle_snapshot(id: Uuid, layer: &LayerRow) -> () = owner;
    snapshot(id: Uuid) -> Option<SnapshotRecord> = owner;
    snapshots(of: Option<TenantId>, after: Option<Uuid>, limit: usize) -> Vec<SnapshotRecord> = owner;
    drop_snapshot(id: Uuid) -> () = owner;
    dropped_snapshots(after: Option<Uuid>, limit: usize) -> Vec<SnapshotRecord> = owner;
    kept_layers(after: Option<Uuid>, limit: usize) -> Vec<SnapshotRecord> = owner;
    forget_snapshot(id: Uuid) -> () = owner;
    tag(tenant: TenantId, name: &str, branch: BranchId, layer: Layer) -> () = owner;
    untag(tenant: TenantId, name: &str) -> bool = owner;
    tags(tenant: TenantId) -> Vec<Tag> = owner;
    lead(who: Uuid, term: Duration) -> Option<Lead> = owner;
    step_down(who: Uuid) -> () = owner;
}
    fn led_by(&self, lead: &Lead) -> Arc<dyn Database> {
        self.owner.led_by(lead)
    }
}

delegate! { Database for Split {
    schema_version() -> SchemaVersion = owner;
    create_tenant(new: &NewTenant) -> Tenant = owner;
    tenant(id: TenantId) -> Option<Tenant> = owner;
    tenant_by_name(name: &str) -> Option<Tenant> = owner;
    tenants() -> Vec<Tenant> = owner;
    resize_tenant(id: TenantId, limits: &Limits) -> Tenant = owner;
    delete_tenant(id: TenantId, in_use: InUse) -> () = owner;
    reap_tenant(id: TenantId) -> bool = owner;
    open_session(new: &NewSession) -> () = owner;
    beat(session: SessionId) -> Beat = owner;
    close_session(session: SessionId) -> () = owner;
    acquire(tenant: TenantId, session: SessionId) -> Lease = owner;
    release(fence: &Fence) -> () = owner;
}
    fn display_url(&self) -> String {
        self.owner.display_url()
    }

    fn set_credentials(&self, url: &str) -> Result<()> {
        self.owner.set_credentials(url)
    }

    async fn open_tenant(&self, id: TenantId) -> Result<Arc<dyn TenantStore>> {
        let owner = self.owner.open_tenant(id).await?;
        Ok(Arc::new(SplitRows { owner, login: self.login(id).await?.open_tenant(id).await? }))
    }
}

delegate! { TenantStore for SplitRows {
    head() -> (Tenant, View) = login;
    view(branch: BranchId, layer: Layer) -> View = login;
    inode(view: &View, ino: Ino) -> Option<InodeRow> = login;
    lookup(view: &View, parent: Ino, name: &[u8]) -> Option<(EntryRow, InodeRow)> = login;
    list(view: &View, parent: Ino, after: Cookie, limit: usize) -> Vec<(EntryRow, InodeRow)> = login;
    xattrs(view: &View, ino: Ino) -> Option<Bytes> = login;
    extents(view: &View, data: DataRef, range: Range<BlockIndex>) -> Vec<Extent> = login;
    read(view: &View, data: DataRef, blks: &[BlockIndex]) -> Vec<(BlockIndex, Bytes)> = login;
    read_part(view: &View, data: DataRef, blk: BlockIndex, range: Range<u32>) -> PartRead = login;
    changes(one: &View, other: &View) -> Changes = login;
    names_of(view: &View, inos: &[Ino]) -> Vec<EntryRow> = login;
    orphans(view: &View) -> Vec<InodeRow> = login;
    reserve_blocks(count: u64) -> Range<BlockId> = login;
    find_blocks(hashes: &[BlockHash]) -> Vec<Option<BlockId>> = login;
    upload(blocks: &[EncodedBlock]) -> () = login;
    commit(fence: &Fence, batch: &Batch) -> Committed = login;
    layers() -> Vec<LayerRow> = login;
    own_layers() -> Vec<LayerRow> = login;
    layer_named(name: &str) -> Option<LayerRow> = login;
    sealed(request: &str) -> Option<LayerRow> = login;
    seal(seal: &Seal) -> LayerRow = login;
    restore(fence: &Fence, branch: BranchId, layer: Layer) -> View = login;
    branch_from(branch: BranchId, layer: Layer, new: &NewTenant) -> Tenant = owner;
    began_at(branch: BranchId) -> Option<(BranchId, Layer)> = login;
    history_bytes() -> u64 = login;
    stray_blocks(after: BlockId, limit: usize) -> (Vec<BlockId>, Option<BlockId>) = owner;
    offer_blocks(blocks: &[BlockId]) -> () = owner;
    flatten(from: Option<Flattening>) -> Flattened = owner;
    collect() -> u64 = owner;
    audit(range: &AuditRange, limit: usize) -> Vec<AuditChunk> = login;
}
    /// A login removes no events, and is not told so; the owner does.
    async fn expire_audit(&self, before: u64) -> Result<u64> {
        assert_eq!(self.login.expire_audit(before).await?, 0);
        self.owner.expire_audit(before).await
    }

    async fn delete_layer(&self, branch: BranchId, layer: Layer) -> Result<()> {
        let own = self.login.own_layers().await?;
        if !own.iter().any(|own| (own.branch, own.layer) == (branch, layer)) {
            assert!(self.login.delete_layer(branch, layer).await.is_err(), "it is another's, or none");
            return self.owner.delete_layer(branch, layer).await;
        }
        self.login.delete_layer(branch, layer).await?;
        // A login notes what is to be pruned; the owner does it.
        while self.owner.collect().await? > 0 {}
        Ok(())
    }

    async fn check(
        &self,
        repair: bool,
        progress: &(dyn Fn(CheckProgress) + Send + Sync),
    ) -> Result<CheckReport> {
        self.owner.check(repair, progress).await
    }
}

macro_rules! as_login {
    ($($module:ident :: $name:ident)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            crate::conformance::$module::$name(&AsLogin::new().await).await;
        }
    )* };
}

as_login! {
    leases::a_writer_that_lost_its_lease_commits_nothing
    leases::a_commit_from_another_position_writes_nothing
    leases::a_released_lease_commits_nothing
    rows::every_kind_of_row_reads_back
    rows::rows_change_and_go
    rows::a_directory_is_paged_by_cookies_under_deletion
    rows::orphans_are_listed
    rows::patches_lie_over_blocks_inline_bytes_and_holes
    rows::truncation_cuts_extents_and_their_patches
    rows::a_large_batch_commits
    rows::names_are_bytes
    blocks::ids_are_handed_out_once
    blocks::a_flipped_bit_is_damage_when_read
    blocks::parts_of_a_block_read_as_the_whole_does
    blocks::blocks_still_referred_to_are_never_collected
    blocks::collecting_races_with_commits_that_reuse
    blocks::orphaned_uploads_are_collected
    layers::a_sealed_view_does_not_change
    layers::the_same_request_seals_once
    layers::an_unmounted_tenant_is_sealed_and_its_old_holder_fenced
    layers::restore_goes_back_and_keeps_what_was
    layers::restoring_again_and_again_keeps_chains_short
    layers::a_clone_sees_its_source_and_changes_alone
    layers::a_clone_writes_over_patches_that_it_has_from_its_source
    layers::truncation_in_a_clone_hides_the_ancestors_blocks
    layers::truncation_in_a_clone_of_a_clone_hides_only_what_it_cut
    layers::a_removed_name_stays_removed_in_a_clone_and_can_be_made_again
    layers::a_tenants_own_layers_are_listed_and_found_by_name_on_whatever_branch
    layers::what_differs_between_views_is_named
    layers::an_inodes_names_are_found_in_every_view
    layers::a_restore_counts_as_a_commit
    layers::deleting_a_layer_prunes_only_what_no_view_needs
    layers::a_layer_with_a_clone_is_not_deleted
    layers::a_removed_content_stays_in_views
    audit::events_come_with_their_commit_or_not_at_all
    audit::events_are_read_by_time_in_pages_from_either_end
    audit::old_events_go_the_oldest_first_and_only_the_tenants_own
    audit::events_alone_do_not_make_a_tenant_another_one
}

#[test]
fn kept_views_never_change() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let site = runtime.block_on(AsLogin::new());
    crate::conformance::history::kept_views_never_change(&runtime, &site);
}
