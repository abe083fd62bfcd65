//! A mounter that somebody supervises: it serves from descriptors it is given, neither mounts nor unmounts, and may be
//! killed or replaced at any moment without an application noticing.
//!
//! ```text
//! Hello ─► Start: Serve ─────────────────────► lease, journal ─► Serving ─┬─► unmounted, or Stop: commit, give back ─► exit 0
//!              └: StandBy ─► StandingBy ─► TakeOver ─┘                    └─► Drain: the rest stays in its slots ─► exit 3
//! ```
//! Where it cannot start it says why (`Failed`) and exits 1, 64 or 78. SIGTERM, SIGINT: commit now, serve on. The end of the link
//! means that the supervisor is gone, which is no reason to end for one that serves.

mod channel;
mod prepared;
mod reader;
mod served;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use tarbox_engine::SessionConfig;
use tarbox_handover::{
    FromMounter, Kept, MounterLink, ToMounter,
    format::LINK_FORMAT,
    message::{Ended, Failed, Hello, Mode, Serving, StandingBy, exit},
};
use tarbox_runtime::Shutdown;
use tarbox_types::ErrorKind;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    channel::{Channel, Told},
    prepared::Prepared,
};
use crate::{
    failure::{Failing, Failure},
    settings::{LimitChoice, Settings, TenantChoice},
};

/// Takes the link under its number and checks that the settings fit. To be called before anything is opened.
///
/// # Errors
/// Where there is no link of that number.
pub fn take_link(number: i32) -> Result<MounterLink, Failure> {
    MounterLink::inherited(number).map_err(|error| Failure::Usage(format!("--control-fd {number}: {error}")))
}

/// How often a stand-by renews its session: it counts only while it lives, and a connection is at hand only while it is used.
const BEAT: Duration = Duration::from_secs(2);

/// Why a supervised mounter ended without a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Unmounted; everything is given back.
    Unmounted,
    /// Told to stop, or not needed; everything is given back.
    Stopped,
    /// A successor goes on.
    Drained,
}

/// Lives one supervised life; returns the exit code.
///
/// # Errors
/// What was in the way; the supervisor has been told.
pub async fn run(
    link: MounterLink,
    settings: Settings,
    session: SessionConfig,
    mount_point: PathBuf,
) -> Result<u8, Failure> {
    let failed = |source| Failure::Io { doing: "listen for signals".to_owned(), source };
    let mut shutdown = Shutdown::listen().map_err(failed)?;
    // Meant for whoever supervises: who signals all processes of that name must not end those that serve.
    let _ignored = signal(SignalKind::hangup()).map_err(failed)?;
    let mut channel = Channel::new(link)?;
    channel.say(&FromMounter::Hello(hello()));
    match live(&mut channel, &mut shutdown, settings, session, mount_point).await {
        Ok(End::Drained) => Ok(exit::DRAINED as u8),
        Ok(end) => {
            channel.say(&FromMounter::Ended(Ended { unmounted: end == End::Unmounted }));
            Ok(exit::ENDED as u8)
        }
        Err(failure) => {
            let (kind, message) = (format!("{:?}", failure.kind()), failure.report().to_string());
            tracing::debug!(reason = message, "cannot start or go on");
            channel.say(&FromMounter::Failed(Failed { kind, message }));
            // The supervisor has been told, and tells it in its turn: to say it here as well would be to say it twice.
            Ok(failure.exit_code())
        }
    }
}

fn hello() -> Hello {
    Hello {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        journal: Some(tarbox_fs::journal::FORMAT.read().into()),
        slots: Some(tarbox_engine::SLOTS_FORMAT.read().into()),
        link: Some(LINK_FORMAT.read().into()),
    }
}

async fn live(
    channel: &mut Channel,
    shutdown: &mut Shutdown,
    mut settings: Settings,
    session: SessionConfig,
    mount_point: PathBuf,
) -> Result<End, Failure> {
    if !matches!(settings.tenant, TenantChoice::Id(_)) {
        return Err(Failure::Usage("--control-fd needs --tenant-id".to_owned()));
    }
    let Some((mode, kept)) = begin(channel).await? else { return Ok(End::Stopped) };
    let mut since = Instant::now();
    settings.take_secrets(kept.secrets.as_ref())?;
    // They stand in the tenant: a restart must not take back what was changed there meanwhile.
    settings.limits = LimitChoice::default();
    // Where INIT was answered an application may wait: better late than never. Else it is told at once what is wrong.
    let patient = tarbox_engine::is_agreed(&kept.slots).map_err(slots_failed)?;
    let prepared = Prepared::new(settings, mount_point, session, patient, channel).await?;
    if mode == Mode::StandBy {
        channel.say(&FromMounter::StandingBy(StandingBy {}));
        match wait_for_take_over(&prepared, channel, shutdown).await {
            None => since = Instant::now(),
            Some(end) => {
                prepared.give_up().await;
                return Ok(end);
            }
        }
    }
    if prepared.settings.read_only {
        return reader::serve(prepared, kept, channel, shutdown, since).await;
    }
    let served = prepared.take_over(kept, channel).await?;
    channel.say(&FromMounter::Serving(serving(since, served.replayed, served.recovered)));
    served.until_end(channel, shutdown).await
}

fn slots_failed(source: std::io::Error) -> Failure {
    Failure::Io { doing: "read the slots file that was handed over".to_owned(), source }
}

fn serving(since: Instant, replayed: u64, recovered: tarbox_engine::Recovered) -> Serving {
    let micros = since.elapsed().as_micros() as u64;
    tracing::info!(micros, replayed, ?recovered, "serving");
    Serving { replayed, recovered: (recovered.replied + recovered.dispatched) as u64, micros }
}

/// How long Start may be waited for: who should have sent it may have died after it had started this process, and whoever restarts mounters
/// in its place takes one that lives for one that serves.
const START_WITHIN: Duration = Duration::from_secs(30);

/// Waits for Start. `None`: it is not needed after all.
async fn begin(channel: &mut Channel) -> Result<Option<(Mode, Kept)>, Failure> {
    let late = |_| {
        let message = format!("nobody has said within {START_WITHIN:?} what is to be served");
        Err(Failure::refused(ErrorKind::Unavailable, message))
    };
    tokio::time::timeout(START_WITHIN, wait_for_start(channel)).await.unwrap_or_else(late)
}

async fn wait_for_start(channel: &mut Channel) -> Result<Option<(Mode, Kept)>, Failure> {
    loop {
        match channel.told().await {
            Told::Message(ToMounter::Start(start), descriptors) => {
                let kept = Kept::from_start(&start, descriptors).map_err(channel::failed("begin"))?;
                return Ok(Some((start.mode(), kept)));
            }
            Told::Message(ToMounter::Stop(_) | ToMounter::Drain(_), _) | Told::Gone => return Ok(None),
            Told::Message(ToMounter::TakeOver(_), _) => {}
        }
    }
}

/// A stand-by is of use only to the one who made it.
async fn wait_for_take_over(
    prepared: &Prepared,
    channel: &mut Channel,
    shutdown: &mut Shutdown,
) -> Option<End> {
    let mut beat = tokio::time::interval(BEAT);
    loop {
        tokio::select! {
            told = channel.told() => match told {
                Told::Message(ToMounter::TakeOver(_), _) => return None,
                Told::Message(ToMounter::Stop(_), _) | Told::Gone => return Some(End::Stopped),
                Told::Message(ToMounter::Drain(_), _) => return Some(End::Drained),
                Told::Message(ToMounter::Start(_), _) => {}
            },
            // There is nothing to commit.
            _signal = shutdown.asked() => {}
            _ = beat.tick() => prepared.beat().await,
        }
    }
}
