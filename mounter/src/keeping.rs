//! Plain `tarbox-mount`: this process mounts and keeps, a child serves; the child may die or be replaced and nothing fails.
//!
//! ```text
//! admit, mount ─► child: Start ─► Serving ─┬─► it dies, it hangs ─┐
//!                     │ says it cannot     ├─► SIGHUP ────────────┴─► the state machine of `tarbox-supervisor` decides
//!                     └► unmount, say why  ├─► unmounted: it commits and ends; so does this process
//!                                          └─► SIGINT, SIGTERM: unmount, Stop, wait; a second one gives up
//! ```
//! This process holds nothing that a child could not do without: if it is killed, the child goes on serving.

mod beginning;
mod effects;
mod ending;
mod life;
mod order;
mod responding;
mod supervising;

use std::{fmt, os::fd::OwnedFd, path::PathBuf, sync::Arc};

use tarbox_handover::Kept;
use tarbox_runtime::Shutdown;
use tarbox_store::{Database, Tenant};
use tarbox_types::ErrorKind;
use tokio::signal::unix::{SignalKind, signal};

pub use self::order::Output;
use self::{order::Order, supervising::Keeping};
use crate::{
    admission, engine,
    failure::Failure,
    mount_point::{self, Health},
    native::Native,
    secrets, serve, settings,
    settings::Settings,
};

/// What is told when the mount serves.
#[derive(Debug)]
pub struct Mounted {
    /// Tenant's name.
    pub tenant: String,
    /// The database, without its password.
    pub database: String,
    /// Where.
    pub mount_point: PathBuf,
    /// Whether it can be written.
    pub read_only: bool,
}

impl fmt::Display for Mounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read_only = if self.read_only { " (read-only)" } else { "" };
        let Self { tenant, database, mount_point, .. } = self;
        write!(f, "tenant `{tenant}` of {database} serves at {}{read_only}", mount_point.display())
    }
}

/// Mounts the tenant and keeps it served until it is unmounted or this process is asked to end; then it is given back with
/// everything committed. `ready` is called when the first operation can be served.
///
/// # Errors
/// What is in the way, before anything was mounted; what could not be committed, afterwards.
pub async fn run(
    settings: Settings,
    mount_point: PathBuf,
    output: Output,
    ready: impl FnOnce(&Mounted) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let listening = |source| Failure::Io { doing: "listen for signals".to_owned(), source };
    let shutdown = Shutdown::listen().map_err(listening)?;
    let hangup = signal(SignalKind::hangup()).map_err(listening)?;
    let point = mount_point::check(&mount_point)?;
    settings::ensure_state_dir(&settings.state_dir)?;
    let (tenant, database) = admit(&settings, &point).await?;
    let native = Native::of(&settings, tenant.id)?;
    let native_paths = native.paths();
    let order = Order::new(&settings, tenant.id, &database, &point, output)?;
    let kept = mount(&settings, &tenant, &point)?;
    let mounted = Mounted {
        tenant: tenant.name.clone(),
        database,
        mount_point: point.clone(),
        read_only: settings.read_only,
    };
    let what = (tenant, point.clone(), settings.state_dir);
    let keeping = Keeping::new((order, kept), what, (shutdown, hangup));
    let outcome = keeping.run(native, || ready(&mounted)).await;
    if outcome.is_err() || mount_point::health(&point) == Health::Dead {
        // Nobody would ever answer there. Also where all went well, but somebody aborted the connection (fusectl).
        ending::take_away_if_mounted(point, native_paths).await;
    }
    outcome
}

/// The tenant, and the database as it may be shown. The database is closed again: the child has its own connections.
async fn admit(settings: &Settings, point: &std::path::Path) -> Result<(Tenant, String), Failure> {
    let database: Arc<dyn Database> = tarbox_store::open(&settings.database_url).await?;
    let tenant = admission::admit(&database, settings, point).await?;
    if !settings.read_only {
        // Let go of at once; the child takes it. Whoever else has the tenant is to be named before anything is mounted.
        drop(serve::lock(&database, settings, &tenant).await?);
    }
    Ok((tenant, database.display_url()))
}

fn mount(settings: &Settings, tenant: &Tenant, point: &std::path::Path) -> Result<Kept, Failure> {
    let secrets = secrets::seal(&settings.database_url)?;
    let slots = engine::new_slots().map_err(|source| Failure::Io {
        doing: "make the file that requests are read into".to_owned(),
        source,
    })?;
    let device: OwnedFd = engine::mount_tenant(tenant, point, settings.read_only)?;
    Ok(Kept { devices: vec![device], slots, journal: None, secrets: Some(secrets) })
}

/// A child's failure, as this process ends with it.
fn failure_of(code: Option<i32>, message: String) -> Failure {
    match code.and_then(|code| u8::try_from(code).ok()) {
        Some(crate::failure::USAGE) => Failure::Usage(message),
        Some(crate::failure::CONFIGURATION) => Failure::Mismatch(message),
        _ => Failure::refused(ErrorKind::Internal, message),
    }
}
