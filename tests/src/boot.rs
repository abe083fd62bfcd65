//! Another boot, for those who live in a mount namespace of their own.

use std::{fs, path::Path, thread};

use anyhow::{Context, Result};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// What the kernel calls this boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Runs a test in a mount namespace of its own: what it mounts, and the boot that it says it is, nobody else sees. Processes that it
/// starts are in there as well.
///
/// # Panics
/// If the test does, or without root.
pub fn with_own_mounts<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        // A thread of its own: the others stay where they are.
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
            let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).expect("private mounts");
            work()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// From now on, this mount namespace is told that the machine has another boot id; `directory` holds it.
///
/// # Errors
/// As mount(2).
pub fn pretend_another_boot(directory: &Path) -> Result<()> {
    let before = fs::read_to_string(BOOT_ID)?;
    let file = directory.join("boot_id");
    let id = "00000000-1111-4222-8333-444444444444\n";
    anyhow::ensure!(id != before, "that is this boot's id already");
    fs::write(&file, id)?;
    mount(Some(&file), BOOT_ID, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("another boot id")?;
    Ok(())
}
