//! Making a volume. First it is noted which tenant a request becomes, then the tenant is made: whoever is cut off between is
//! found by the note, and repeating the request goes on with it.

use std::{sync::Arc, time::Duration};

use tarbox_checkpoints::ByHeartbeat;
use tarbox_rpc::csi::{RequestError, parameters::DATABASE_URL, request::Capacity};
use tarbox_store::{
    Compression, DEFAULT_BLOCK_SIZE, Database, LayerRow, Limits, NewTenant, SnapshotRecord, StoreError,
    Tenant, TenantStore, VolumeRecord, note_volume,
};
use tarbox_types::{ByteSize, ErrorKind, TenantId, database_url};

use super::{Description, Source, Volume, capacity::not_promised, live, tenant_name};
use crate::{
    databases::{Databases, Place},
    failure::{ControllerError, Result},
    settings::Settings,
    snapshot,
};

/// Capacity of a volume that is asked for without any.
const USUAL_BYTES: u64 = 1 << 30;

/// CreateVolume.
#[derive(Clone, Debug)]
pub(crate) struct Create {
    /// The request's name.
    pub(crate) name: String,
    /// Bytes asked for.
    pub(crate) capacity: Capacity,
    /// What is kept of the request.
    pub(crate) description: Description,
    /// Bytes per block, where it was said.
    pub(crate) block_size: Option<u32>,
    /// How blocks are stored, where it was said.
    pub(crate) compression: Option<Compression>,
    /// Size of the largest file; 0 = unlimited.
    pub(crate) file_bytes: u64,
    /// Inodes, where it was said.
    pub(crate) inodes: Option<u64>,
    /// From the request's secrets.
    pub(crate) database_url: Option<String>,
}

/// Makes the volume, unless it is made.
///
/// # Errors
/// Where the name belongs to a volume made from other values; where the source or the capacity cannot be had. Nothing is
/// left then.
pub(crate) async fn create(
    databases: &Databases,
    settings: &Settings,
    mut request: Create,
    limit: Duration,
) -> Result<Volume> {
    let named =
        request.database_url.clone().or_else(|| request.description.database_url().map(str::to_owned));
    let place = databases.of_request(named.as_deref()).await?;
    tell_nodes_of(&mut request, &place);
    let (record, found) = note(&*place.database, &request).await?;
    note_at_home(databases, &place, &record).await?;
    let description = request.description.clone();
    if let Some(tenant) = found {
        // Cut off behind the making of a clone: its base is the clone's own now.
        place.database.drop_snapshot(record.id.0).await?;
        return Ok(Volume { tenant, description });
    }
    match make(&place, settings, &request, record.id, limit).await {
        Ok(tenant) => Ok(Volume { tenant, description }),
        Err(error) => {
            // Another replica, which leads by now, may have been asked the same, and have made it.
            if let Ok(tenant) = live(&*place.database, record.id).await {
                return Ok(Volume { tenant, description });
            }
            if !may_go_on(error.kind()) {
                forget(databases, &place, record.id).await?;
            }
            Err(error)
        }
    }
}

/// A node that is given no secret has to know where the volume is.
fn tell_nodes_of(request: &mut Create, place: &Place) {
    let (public, had_secret) = database_url::public(&place.url);
    if request.database_url.is_some() && !had_secret {
        request.description.parameters.entry(DATABASE_URL.to_owned()).or_insert(public);
    }
}

/// Whether the same request may succeed later with what has been begun.
fn may_go_on(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::Concurrent | ErrorKind::Busy | ErrorKind::Internal)
}

/// The record of the request, and its tenant, where that is made.
async fn note(database: &dyn Database, request: &Create) -> Result<(VolumeRecord, Option<Tenant>)> {
    let new = VolumeRecord {
        id: TenantId::random(),
        request: request.name.clone(),
        description: request.description.text(),
    };
    let (record, tenant) = note_volume(database, &new).await?;
    let differs =
        |differs: String| ControllerError::Differs { name: request.name.clone(), what: "volume", differs };
    if let Some(difference) = Description::read(&record.description).difference(&request.description) {
        return Err(differs(difference));
    }
    if let Some(tenant) = &tenant
        && !request.capacity.admits(tenant.limits.bytes)
    {
        return Err(differs(format!("`capacity_range`: it has {}", ByteSize(tenant.limits.bytes))));
    }
    Ok((record, tenant))
}

/// Home knows of a volume that parameters put elsewhere: later requests name no database.
async fn note_at_home(databases: &Databases, place: &Place, record: &VolumeRecord) -> Result<()> {
    let Some(home) = databases.home_beside(place).await? else { return Ok(()) };
    let (public, had_secret) = database_url::public(&place.url);
    // What needs a password is named by the secrets of every request.
    if had_secret {
        return Ok(());
    }
    let pointer = Description { elsewhere: Some(public), ..Description::read(&record.description) };
    let new = VolumeRecord { description: pointer.text(), ..record.clone() };
    let noted = home.database.note_volume(&new).await?;
    if noted.id == record.id {
        return Ok(());
    }
    let differs = "the database it is in".to_owned();
    Err(ControllerError::Differs { name: record.request.clone(), what: "volume", differs })
}

/// Takes away what was noted of a volume that is not to be.
pub(super) async fn forget(databases: &Databases, place: &Place, id: TenantId) -> Result<()> {
    place.database.drop_snapshot(id.0).await?;
    place.database.forget_volume(id).await?;
    if let Some(home) = databases.home_beside(place).await? {
        home.database.forget_volume(id).await?;
    }
    Ok(())
}

async fn make(
    place: &Place,
    settings: &Settings,
    request: &Create,
    id: TenantId,
    limit: Duration,
) -> Result<Tenant> {
    let database = &*place.database;
    match request.description.source {
        None => {
            let bytes = request.capacity.wanted().unwrap_or(USUAL_BYTES);
            check_room(place, settings, bytes).await?;
            let block_size = request.block_size.unwrap_or(DEFAULT_BLOCK_SIZE);
            let new = new_tenant(request, id, bytes, block_size, Compression::None);
            Origin::Nothing(database).make_named(request, new).await
        }
        Some(Source::Snapshot(snapshot)) => {
            let found = snapshot::find(database, snapshot).await?;
            begin_at(place, settings, request, id, found.clone(), found.tenant).await
        }
        Some(Source::Volume(source)) => {
            let source = live(database, TenantId(source)).await?.id;
            let base = tarbox_checkpoints::base(database, source, id, limit, &ByHeartbeat).await?;
            let made = begin_at(place, settings, request, id, base, source).await?;
            // The clone keeps its layer now; who cleans up takes it away after the clone.
            database.drop_snapshot(id.0).await?;
            Ok(made)
        }
    }
}

/// A tenant whose history begins at a sealed layer of another.
async fn begin_at(
    place: &Place,
    settings: &Settings,
    request: &Create,
    id: TenantId,
    base: SnapshotRecord,
    source: TenantId,
) -> Result<Tenant> {
    let gone = || ControllerError::NoVolume(source.to_string());
    let database = &*place.database;
    let layer = base.layer.ok_or_else(|| ControllerError::NoSnapshot(base.id.to_string()))?;
    let source = database.tenant(source).await?.ok_or_else(gone)?;
    let bytes = request.capacity.wanted().unwrap_or(source.limits.bytes);
    if bytes != 0 && bytes < layer.used_bytes {
        return Err(ControllerError::Capacity(format!(
            "{} is less than the {} that the source holds",
            ByteSize(bytes),
            ByteSize(layer.used_bytes)
        )));
    }
    if let Some(asked) = request.block_size.filter(|asked| *asked != source.block_size) {
        let allowed = format!("{}, that of the source", source.block_size);
        return Err(RequestError::value("parameters.blockSize", asked, allowed).into());
    }
    check_room(place, settings, bytes).await?;
    let new = new_tenant(request, id, bytes, source.block_size, source.compression);
    let new = NewTenant {
        limits: Limits { inodes: new.limits.inodes.max(layer.used_inodes), ..new.limits },
        ..new
    };
    let store = database.open_tenant(source.id).await?;
    Origin::Layer(store, layer).make_named(request, new).await
}

fn new_tenant(
    request: &Create,
    id: TenantId,
    bytes: u64,
    block_size: u32,
    compression: Compression,
) -> NewTenant {
    let limits = Limits {
        bytes,
        inodes: request.inodes.unwrap_or_else(|| Limits::inodes_of(bytes)),
        file_bytes: request.file_bytes,
    };
    NewTenant {
        id,
        name: String::new(),
        limits,
        block_size,
        compression: request.compression.unwrap_or(compression),
        root_uid: 0,
        root_gid: 0,
        // As a new ext4 has it; a pod's group is given access by the kubelet or the node.
        root_mode: 0o755,
    }
}

/// What a tenant begins with.
enum Origin<'d> {
    Nothing(&'d dyn Database),
    Layer(Arc<dyn TenantStore>, LayerRow),
}

impl Origin<'_> {
    async fn make(&self, new: &NewTenant) -> std::result::Result<Tenant, StoreError> {
        match self {
            Self::Nothing(database) => database.create_tenant(new).await,
            Self::Layer(store, at) => store.branch_from(at.branch, at.layer, new).await,
        }
    }

    /// Makes a tenant under the first of its names that is free.
    async fn make_named(&self, request: &Create, mut new: NewTenant) -> Result<Tenant> {
        for name in tenant_name::candidates(&request.description.parameters, &request.name) {
            new.name = name;
            match self.make(&new).await {
                Err(StoreError::NameTaken(_)) => {}
                done => return Ok(done?),
            }
        }
        // The last resort holds nothing of the claim, and is nobody else's.
        new.name = format!("volume-{}", new.id.0.simple());
        Ok(self.make(&new).await?)
    }
}

async fn check_room(place: &Place, settings: &Settings, bytes: u64) -> Result<()> {
    let Some(capacity) = settings.capacity else { return Ok(()) };
    let left = not_promised(place, capacity).await?;
    if bytes <= left {
        return Ok(());
    }
    Err(ControllerError::Exhausted { wanted: ByteSize(bytes), left: ByteSize(left), capacity })
}
