//! Serves the engine's test file systems, for tests that kill the process and for measurements.
//!
//! ```text
//! tarbox-nullfs mount DIRECTORY [ttl=SECONDS] [readers=N] [discard] [stateful] [fuse3]
//! tarbox-nullfs serve BACKING slots=FD device=FD.. [readers=N] [no-resend]
//! ```
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use fuse3::raw::Filesystem;
use tarbox_engine::nullfs::cells::Cells;
use tarbox_engine::nullfs::{MemFs, MemFsOptions};
use tarbox_engine::{
    Ended, MountOptions, Session, SessionConfig, SessionParts, SlotsLayout, create_slots, mount,
};

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tarbox-nullfs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<(), Failure> {
    let [command, path, options @ ..] = arguments else {
        return Err("see the module's documentation".into());
    };
    let options = Options(options);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match command.as_str() {
        "mount" if options.has("fuse3") => runtime.block_on(mount_with_fuse3(path, options.mem_fs()?)),
        "mount" => {
            let devices = vec![mount(&MountOptions::new(path, "nullfs"))?];
            let slots = create_slots(SlotsLayout::default())?;
            let parts = SessionParts { devices, slots, init: None };
            runtime.block_on(serve(MemFs::new(options.mem_fs()?), parts, options))
        }
        "serve" => {
            // SAFETY: the caller says that these descriptors are ours.
            let adopt = |fd: RawFd| unsafe { OwnedFd::from_raw_fd(fd) };
            let devices = options.all("device")?.into_iter().map(adopt).collect();
            let slots = adopt(*options.all("slots")?.first().ok_or("no slots")?);
            runtime.block_on(serve(Cells::new(path), SessionParts { devices, slots, init: None }, options))
        }
        _ => Err("unknown command".into()),
    }
}

struct Options<'a>(&'a [String]);

impl Options<'_> {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|option| option == name)
    }

    fn all<T>(&self, name: &str) -> Result<Vec<T>, Failure>
    where
        T: std::str::FromStr<Err: std::error::Error + 'static>,
    {
        let values = self.0.iter().filter_map(|option| option.strip_prefix(name)?.strip_prefix('='));
        values.map(|value| value.parse().map_err(Failure::from)).collect()
    }

    fn mem_fs(&self) -> Result<MemFsOptions, Failure> {
        let ttl = Duration::from_secs(self.all("ttl")?.first().copied().unwrap_or(0));
        Ok(MemFsOptions { ttl, stateless: !self.has("stateful"), discard: self.has("discard") })
    }
}

async fn serve<F>(fs: F, parts: SessionParts, options: Options<'_>) -> Result<(), Failure>
where
    F: Filesystem + Send + Sync + 'static,
{
    let defaults = SessionConfig::default();
    let config = SessionConfig {
        readers: options.all("readers")?.first().copied().unwrap_or(defaults.readers),
        resend: !options.has("no-resend"),
        ..defaults
    };
    let session = Session::start(Arc::new(fs), parts, config, tokio::runtime::Handle::current())?;
    let (_, recovered) = session.serving().await?;
    // One line, which is what a test waits for.
    println!("serving {recovered:?}");
    match session.wait().await {
        Ended::Failed(error) => Err(error.into()),
        Ended::Unmounted | Ended::Stopped => {
            for operation in session.statistics() {
                let mean =
                    operation.latencies.total / u32::try_from(operation.latencies.count).unwrap_or(u32::MAX);
                println!(
                    "{:>12} {:>9} errors {:>6} mean {mean:?}",
                    operation.name, operation.latencies.count, operation.errors
                );
            }
            Ok(())
        }
    }
}

async fn mount_with_fuse3(path: &str, options: MemFsOptions) -> Result<(), Failure> {
    let mut mount_options = fuse3::MountOptions::default();
    mount_options.fs_name("nullfs").default_permissions(true);
    let session = fuse3::raw::Session::new(mount_options);
    let mounted = session.mount(MemFs::new(options), path).await?;
    println!("serving");
    Ok(mounted.await?)
}
