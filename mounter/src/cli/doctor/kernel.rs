//! The kernel's FUSE, and what mounts for users other than root.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::{
    sys::resource::{Resource, getrlimit},
    unistd::Uid,
};

use tarbox_runtime::Finding;

use crate::cli::output::bytes;

pub(super) fn device() -> Finding {
    const WHAT: &str = "/dev/fuse";
    let path = Path::new("/dev/fuse");
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Finding::fault(
                WHAT,
                "is missing",
                "load it with `modprobe fuse`; a container needs `--device /dev/fuse`",
            );
        }
        Err(error) => return Finding::fault(WHAT, error.to_string(), "make it reachable"),
        Ok(metadata) if !metadata.file_type().is_char_device() => {
            return Finding::fault(WHAT, "is not a device", "`mknod /dev/fuse c 10 229`");
        }
        Ok(_) => {}
    }
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Finding::fine(WHAT, "can be opened"),
        Err(_) if !Uid::effective().is_root() && find("fusermount3").is_some() => {
            Finding::fine(WHAT, "is opened by fusermount3 for this user")
        }
        Err(error) => Finding::fault(
            WHAT,
            error.to_string(),
            "mode 0666 is usual; a container needs `--device /dev/fuse`",
        ),
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.is_file())
}

pub(super) fn fusermount() -> Finding {
    const WHAT: &str = "fusermount3";
    match find(WHAT) {
        None if Uid::effective().is_root() => {
            Finding::warning(WHAT, "is missing; root mounts without it", "other users need the package fuse3")
        }
        None => Finding::fault(WHAT, "is missing", "install the package fuse3, or mount as root"),
        Some(path) => {
            let metadata = fs::metadata(&path);
            let is_privileged =
                metadata.is_ok_and(|metadata| metadata.uid() == 0 && metadata.mode() & 0o4000 != 0);
            if is_privileged {
                Finding::fine(WHAT, path.display().to_string())
            } else {
                let advice =
                    format!("`chmod u+s {}` as root, if users other than root are to mount", path.display());
                Finding::warning(WHAT, format!("{} is not setuid root", path.display()), advice)
            }
        }
    }
}

pub(super) fn fuse_conf() -> Finding {
    const WHAT: &str = "/etc/fuse.conf";
    let text = fs::read_to_string(WHAT).unwrap_or_default();
    let allowed = text.lines().any(|line| line.trim() == "user_allow_other");
    if allowed {
        Finding::fine(WHAT, "user_allow_other is set: others may use the mounts of users")
    } else if Uid::effective().is_root() {
        Finding::fine(WHAT, "user_allow_other is not set: mounts of root are open to others all the same")
    } else {
        Finding::fine(WHAT, "user_allow_other is not set: only you can use your mounts")
    }
}

/// Requests are read into locked memory: a page fault in the middle of one would fail it when the process dies.
const LOCKED_LEAST: u64 = 8 << 20;

pub(super) fn locked_memory() -> Finding {
    const WHAT: &str = "locked memory";
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK) else {
        return Finding::warning(WHAT, "its limit cannot be read", "see getrlimit(2)");
    };
    let shown = if soft == u64::MAX { "unlimited".to_owned() } else { bytes(soft) };
    if soft >= LOCKED_LEAST || hard >= LOCKED_LEAST || Uid::effective().is_root() {
        return Finding::fine(WHAT, format!("limit {shown}"));
    }
    Finding::warning(
        WHAT,
        format!("limit {shown}"),
        format!("raise it to {} (`ulimit -l`, limits.conf, LimitMEMLOCK=)", bytes(LOCKED_LEAST)),
    )
}
