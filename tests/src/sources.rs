//! Real source trees, found on the machine that builds this: the toolchain's, cargo's.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::command;

/// Makes a source tree of at least `files` files below `at` from the crates this workspace is built from (cargo has
/// them unpacked in its registry) and adds what sources have little of: links of both kinds, odd modes, old times, xattrs.
/// Returns how many files there are.
///
/// # Errors
/// If there are not so many.
pub fn make_tree(at: &Path, files: u64) -> Result<u64> {
    let mut count = 0;
    for (i, krate) in crates()?.iter().enumerate() {
        if count >= files {
            break;
        }
        let to = at.join(format!("{:03}-{}", i, krate.file_name().unwrap_or_default().display()));
        command::succeed(Command::new("cp").arg("-r").arg(krate).arg(&to), Duration::from_secs(120))?;
        count += count_files(&to)?;
    }
    // Where cargo has fewer crates unpacked, copies under other names make up the number.
    let (mut copy, first) = (0, count);
    while count < files && first > 0 {
        copy += 1;
        ensure!(copy < 100, "cargo's registry holds only {first} files");
        let to = at.join(format!("copy-{copy}"));
        let from = fs::read_dir(at)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| !path.ends_with("copy"));
        for krate in from
            .filter(|path| !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("copy-")))
        {
            fs::create_dir_all(&to)?;
            command::succeed(Command::new("cp").arg("-r").arg(krate).arg(&to), Duration::from_secs(120))?;
        }
        count += count_files(&to)?;
    }
    add_oddities(at)?;
    Ok(count)
}

/// The crates that cargo has unpacked, by name.
///
/// # Errors
/// If there are none.
pub fn crates() -> Result<Vec<PathBuf>> {
    let home = std::env::var("CARGO_HOME")
        .unwrap_or_else(|_| format!("{}/.cargo", std::env::var("HOME").unwrap_or_else(|_| "/root".into())));
    let registries = Path::new(&home).join("registry/src");
    let mut found = Vec::new();
    for registry in fs::read_dir(&registries).with_context(|| registries.display().to_string())? {
        found.extend(fs::read_dir(registry?.path())?.filter_map(Result::ok).map(|entry| entry.path()));
    }
    ensure!(!found.is_empty(), "cargo has unpacked no crate");
    found.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
    Ok(found)
}

fn count_files(at: &Path) -> Result<u64> {
    let mut count = 0;
    for entry in fs::read_dir(at)? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() { count_files(&entry.path())? } else { 1 };
    }
    Ok(count)
}

fn add_oddities(at: &Path) -> Result<()> {
    let odd = at.join("odd");
    fs::create_dir(&odd)?;
    for (i, mode) in [0o644, 0o600, 0o755, 0o4755, 0o2711, 0o400, 0o000, 0o1777].into_iter().enumerate() {
        let path = odd.join(format!("mode-{mode:o}"));
        fs::write(&path, vec![b'x'; i * 5000])?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        fs::hard_link(&path, odd.join(format!("link-{mode:o}")))?;
    }
    symlink("mode-644", odd.join("symlink"))?;
    symlink("/nowhere/at/all", odd.join("dangling"))?;
    let long = odd.join("n".repeat(255));
    fs::write(&long, "a name of 255 bytes")?;
    fs::write(odd.join("näme with spaces\nand a newline"), "")?;
    command::succeed(
        Command::new("touch").args(["-h", "-d", "1999-12-31 23:59:59.123456789"]).arg(&long),
        Duration::from_secs(10),
    )?;
    Ok(())
}
