//! `fsx`: random reads, writes, mappings and truncations of one file, each read compared with what was written.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::Result;

use crate::{command, product};

/// How it uses the file.
#[derive(Clone, Copy, Debug)]
pub enum Style {
    /// A file of 256 KiB, operations up to 64 KiB, everything mixed.
    Small,
    /// A file of 4 MiB, operations up to 512 KiB: several blocks at once.
    Large,
    /// Small operations, with an fsync in every tenth.
    Synced,
}

impl Style {
    fn config(self) -> String {
        let (flen, max, sync) = match self {
            Self::Small => (262_144, 65_536, 1),
            Self::Large => (4_194_304, 524_288, 1),
            Self::Synced => (1_048_576, 16_384, 10),
        };
        // Not 0 bytes: posix_fallocate(3) refuses that everywhere, and fsx takes it for a failure.
        format!(
            "flen = {flen}\n[opsize]\nmin = 1\nmax = {max}\n[weights]\nclose_open = 1\nread = 10\nwrite = 10\nmapread = 10\n\
             mapwrite = 10\ninvalidate = 1\ntruncate = 5\nfsync = {sync}\nfdatasync = {sync}\nposix_fallocate = 2\n\
             punch_hole = 5\nsendfile = 2\nposix_fadvise = 1\ncopy_file_range = 5\n"
        )
    }
}

/// Runs so many operations on a new file `dir/name`; the file stays.
///
/// # Errors
/// If it reads something else than was written: with the log of the operations.
pub fn run(
    dir: &Path,
    name: &str,
    scratch: &Path,
    style: Style,
    seed: u64,
    operations: u64,
) -> Result<String> {
    let config = scratch.join(format!("{name}.toml"));
    fs::write(&config, style.config())?;
    let mut fsx = Command::new(product::tool("fsx"));
    fsx.arg("-f").arg(&config).arg("-N").arg(operations.to_string()).arg("-S").arg(seed.to_string());
    // Its 32 KiB of output a second are needed only when it fails; it prints the last operations itself then.
    fsx.arg("-P").arg(scratch).arg(dir.join(name));
    command::succeed(&mut fsx, Duration::from_secs(3600))
}
