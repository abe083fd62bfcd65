//! Finding the tenant to be mounted, or making it, with the options that were given.

use std::{path::Path, sync::Arc};

use nix::unistd::{Gid, Uid};
use tarbox_store::{DEFAULT_BLOCK_SIZE, Database, NewTenant, StoreError, Tenant, TenantState};
use tarbox_types::{ByteSize, ErrorKind, TenantId};

use crate::{
    failure::Failure,
    settings::{Settings, TenantChoice, UNLIMITED},
    tenant_name,
};

/// The tenant to mount, made on first use, with the limits that were given.
///
/// # Errors
/// Where it is missing and may not be made, or an option that cannot change says something else.
pub async fn admit(
    database: &Arc<dyn Database>,
    settings: &Settings,
    mount_point: &Path,
) -> Result<Tenant, Failure> {
    let tenant = match &settings.tenant {
        TenantChoice::Id(id) => by_id(database, *id).await?,
        TenantChoice::Name(name) => by_name(database, settings, name).await?,
        TenantChoice::OfMountPoint => {
            by_name(database, settings, &tenant_name::of_mount_point(mount_point)).await?
        }
    };
    check_fixed_options(&tenant, settings)?;
    apply_limits(database, tenant, settings).await
}

async fn by_id(database: &Arc<dyn Database>, id: TenantId) -> Result<Tenant, Failure> {
    let tenant = database.tenant(id).await?.ok_or_else(|| StoreError::NoTenant(id.to_string()))?;
    match tenant.state {
        TenantState::Live => Ok(tenant),
        TenantState::Deleted => Err(StoreError::Deleted(id).into()),
    }
}

async fn by_name(database: &Arc<dyn Database>, settings: &Settings, name: &str) -> Result<Tenant, Failure> {
    if let Some(tenant) = database.tenant_by_name(name).await? {
        return Ok(tenant);
    }
    if settings.read_only {
        let message = format!(
            "there is no tenant `{name}`, and a read-only mount does not make one: mount it for writing once, or name another one with --tenant"
        );
        return Err(Failure::refused(ErrorKind::NotFound, message));
    }
    match database.create_tenant(&new_tenant(settings, name)).await {
        // Somebody else made it between the two calls.
        Err(StoreError::NameTaken(_)) => {
            let tenant = database.tenant_by_name(name).await?;
            Ok(tenant.ok_or_else(|| StoreError::NoTenant(name.to_owned()))?)
        }
        made => Ok(made?),
    }
}

/// A new tenant owned by this user.
#[must_use]
pub fn new_tenant(settings: &Settings, name: &str) -> NewTenant {
    NewTenant {
        id: TenantId::random(),
        name: name.to_owned(),
        limits: settings.limits.over(UNLIMITED),
        block_size: settings.block_size.unwrap_or(DEFAULT_BLOCK_SIZE),
        compression: settings.compression.unwrap_or(tarbox_store::Compression::None),
        root_uid: Uid::effective().as_raw(),
        root_gid: Gid::effective().as_raw(),
        root_mode: 0o755,
    }
}

fn check_fixed_options(tenant: &Tenant, settings: &Settings) -> Result<(), Failure> {
    match settings.block_size {
        Some(wanted) if wanted != tenant.block_size => Err(Failure::Mismatch(format!(
            "tenant `{}` has a blockSize of {}, which cannot change after it was made: leave blockSize = {} out, or make another tenant",
            tenant.name,
            ByteSize(tenant.block_size.into()),
            ByteSize(wanted.into()),
        ))),
        _ => Ok(()),
    }
}

async fn apply_limits(
    database: &Arc<dyn Database>,
    tenant: Tenant,
    settings: &Settings,
) -> Result<Tenant, Failure> {
    let wanted = settings.limits.over(tenant.limits);
    if wanted == tenant.limits || settings.read_only {
        return Ok(tenant);
    }
    Ok(database.resize_tenant(tenant.id, &wanted).await?)
}

/// The live tenant that a user names by its name or its id.
///
/// # Errors
/// Where there is none.
pub async fn named(database: &Arc<dyn Database>, name_or_id: &str) -> Result<Tenant, Failure> {
    let found = match name_or_id.parse::<TenantId>() {
        Ok(id) => database.tenant(id).await?,
        Err(_) => database.tenant_by_name(name_or_id).await?,
    };
    let live = found.filter(|tenant| tenant.state == TenantState::Live);
    Ok(live.ok_or_else(|| StoreError::NoTenant(name_or_id.to_owned()))?)
}
