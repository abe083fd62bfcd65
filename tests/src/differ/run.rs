//! Executes steps on one side, and says what happened in words that must be equal on both.

use std::{
    ffi::{CString, OsStr},
    fs::{self, File, TryLockError},
    io::{Seek, SeekFrom, Write},
    os::{
        fd::AsFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileExt, FileTypeExt, MetadataExt, symlink},
        },
    },
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use nix::{
    errno::Errno,
    fcntl::{self, AT_FDCWD, AtFlags, FallocateFlags, OFlag, RenameFlags},
    sys::{
        stat::{self, Mode, SFlag, UtimensatFlags},
        time::TimeSpec,
    },
    unistd::{self, AccessFlags, Gid, Uid, Whence},
};

use super::ops::{Op, Step};
use crate::rng::Rng;

type Outcome = Result<String, Errno>;

/// One of the two directories, with its open files.
pub(super) struct Side {
    root: PathBuf,
    slots: Vec<Option<File>>,
}

impl Side {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), slots: (0..16).map(|_| None).collect() }
    }

    /// Executes a step as its user; `ok …` or the errno's name.
    pub(super) fn execute(&mut self, step: &Step) -> String {
        // Both belong to this thread alone. An error of setfsuid would show as another outcome.
        unistd::setfsgid(Gid::from_raw(step.uid));
        unistd::setfsuid(Uid::from_raw(step.uid));
        let outcome = self.perform(&step.op);
        unistd::setfsuid(Uid::from_raw(0));
        unistd::setfsgid(Gid::from_raw(0));
        match outcome {
            Ok(said) => format!("ok {said}"),
            Err(errno) => format!("{errno:?}"),
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(path) }
    }

    fn file(&self, slot: usize) -> Result<&File, Errno> {
        self.slots[slot].as_ref().ok_or(Errno::EBADF)
    }

    fn perform(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Open { path, flags, mode, slot } => {
                let flags = OFlag::from_bits_retain(*flags) | OFlag::O_CLOEXEC;
                let fd = fcntl::open(&self.at(path), flags, Mode::from_bits_retain(*mode))?;
                self.slots[*slot] = Some(File::from(fd));
            }
            Op::Tmpfile { dir, mode, slot } => {
                let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
                let fd = fcntl::open(&self.at(dir), flags, Mode::from_bits_retain(*mode))?;
                self.slots[*slot] = Some(File::from(fd));
            }
            Op::LinkSlot { slot, path } => {
                use std::os::fd::AsRawFd;
                let from = format!("/proc/self/fd/{}", self.file(*slot)?.as_raw_fd());
                unistd::linkat(
                    AT_FDCWD,
                    from.as_str(),
                    AT_FDCWD,
                    &self.at(path),
                    AtFlags::AT_SYMLINK_FOLLOW,
                )?;
            }
            Op::Close { slot } => drop(self.slots[*slot].take().ok_or(Errno::EBADF)?),
            Op::Write { .. }
            | Op::WriteAtPosition { .. }
            | Op::Read { .. }
            | Op::CopyRange { .. }
            | Op::Fallocate { .. }
            | Op::SeekData { .. }
            | Op::SeekHole { .. }
            | Op::TruncateSlot { .. }
            | Op::StatSlot { .. }
            | Op::Fsync { .. }
            | Op::TryLock { .. }
            | Op::Unlock { .. } => return self.on_slot(op),
            _ => return self.on_name(op),
        }
        Ok(String::new())
    }

    fn on_slot(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Write { slot, off, len, seed } => {
                let n = self.file(*slot)?.write_at(&Rng::new(*seed).bytes(*len), *off).map_err(errno)?;
                return Ok(n.to_string());
            }
            Op::WriteAtPosition { slot, len, seed } => {
                let mut file = self.file(*slot)?;
                let n = file.write(&Rng::new(*seed).bytes(*len)).map_err(errno)?;
                return Ok(format!("{n} to {:?}", file.stream_position().map_err(errno)));
            }
            Op::Read { slot, off, len } => {
                let mut buffer = vec![0; *len];
                let n = self.file(*slot)?.read_at(&mut buffer, *off).map_err(errno)?;
                return Ok(format!("{n} {}", blake3::hash(&buffer[..n]).to_hex().split_at(16).0));
            }
            Op::CopyRange { from, to, from_off, to_off, len } => {
                let (mut from_off, mut to_off) = (from_off.cast_signed(), to_off.cast_signed());
                let (from, to) = (self.file(*from)?, self.file(*to)?);
                return copy_all(from, &mut from_off, to, &mut to_off, *len);
            }
            Op::Fallocate { slot, mode, off, len } => {
                let mode = FallocateFlags::from_bits_retain(*mode);
                fcntl::fallocate(self.file(*slot)?, mode, off.cast_signed(), len.cast_signed())?;
            }
            Op::SeekData { slot, off } => return seek(self.file(*slot)?, *off, Whence::SeekData),
            Op::SeekHole { slot, off } => return seek(self.file(*slot)?, *off, Whence::SeekHole),
            Op::TruncateSlot { slot, len } => unistd::ftruncate(self.file(*slot)?, len.cast_signed())?,
            Op::StatSlot { slot } => return Ok(describe(&self.file(*slot)?.metadata().map_err(errno)?)),
            Op::Fsync { slot, data_only: true } => self.file(*slot)?.sync_data().map_err(errno)?,
            Op::Fsync { slot, data_only: false } => self.file(*slot)?.sync_all().map_err(errno)?,
            Op::TryLock { slot, shared } => {
                let file = self.file(*slot)?;
                match if *shared { file.try_lock_shared() } else { file.try_lock() } {
                    Ok(()) => {}
                    Err(TryLockError::WouldBlock) => return Err(Errno::EWOULDBLOCK),
                    Err(TryLockError::Error(error)) => return Err(errno(error)),
                }
            }
            Op::Unlock { slot } => self.file(*slot)?.unlock().map_err(errno)?,
            _ => unreachable!("an operation on names"),
        }
        Ok(String::new())
    }

    fn on_name(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Truncate { path, len } => unistd::truncate(&self.at(path), len.cast_signed())?,
            Op::Mkdir { path, mode } => unistd::mkdir(&self.at(path), Mode::from_bits_retain(*mode))?,
            Op::Rmdir { path } => fs::remove_dir(self.at(path)).map_err(errno)?,
            Op::Mknod { path, kind, mode } => {
                // A device nobody has, so that opening it is ENXIO on both sides.
                let device = stat::makedev(240, 4711);
                stat::mknod(
                    &self.at(path),
                    SFlag::from_bits_retain(*kind),
                    Mode::from_bits_retain(*mode),
                    device,
                )?;
            }
            Op::Unlink { path } => unistd::unlink(&self.at(path))?,
            Op::Symlink { target, path } => symlink(target, self.at(path)).map_err(errno)?,
            Op::Readlink { path } => {
                return Ok(fs::read_link(self.at(path)).map_err(errno)?.display().to_string());
            }
            Op::Link { from, to } => fs::hard_link(self.at(from), self.at(to)).map_err(errno)?,
            Op::Rename { from, to, flags } => {
                let flags = RenameFlags::from_bits_retain(*flags);
                fcntl::renameat2(AT_FDCWD, &self.at(from), AT_FDCWD, &self.at(to), flags)?;
            }
            Op::Chmod { path, mode } => {
                let mode = Mode::from_bits_retain(*mode);
                stat::fchmodat(AT_FDCWD, &self.at(path), mode, stat::FchmodatFlags::FollowSymlink)?;
            }
            Op::Chown { path, uid, gid, follow } => {
                let flags = if *follow { AtFlags::empty() } else { AtFlags::AT_SYMLINK_NOFOLLOW };
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                unistd::fchownat(AT_FDCWD, &self.at(path), uid, gid, flags)?;
            }
            Op::SetTimes { path, atime, mtime, nsec, follow } => {
                let flags =
                    if *follow { UtimensatFlags::FollowSymlink } else { UtimensatFlags::NoFollowSymlink };
                let (atime, mtime) = (TimeSpec::new(*atime, *nsec), TimeSpec::new(*mtime, *nsec));
                stat::utimensat(AT_FDCWD, &self.at(path), &atime, &mtime, flags)?;
            }
            Op::Stat { path, follow: true } => {
                return Ok(describe(&fs::metadata(self.at(path)).map_err(errno)?));
            }
            Op::Stat { path, follow: false } => {
                return Ok(describe(&fs::symlink_metadata(self.at(path)).map_err(errno)?));
            }
            Op::List { path } => return list(&self.at(path)),
            Op::SetXattr { path, name, len, seed } => {
                xattr::set(self.at(path), name, &Rng::new(*seed).bytes(*len)).map_err(errno)?;
            }
            Op::GetXattr { path, name } => {
                let value = xattr::get(self.at(path), name).map_err(errno)?;
                return Ok(value.map_or("absent".into(), |value| blake3::hash(&value).to_hex().to_string()));
            }
            Op::RemoveXattr { path, name } => xattr::remove(self.at(path), name).map_err(errno)?,
            Op::Access { path, mode } => {
                // AT_EACCESS would be answered by the C library from the real uid; the kernel's answer is wanted.
                let path = CString::new(self.at(path).as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
                unistd::access(OsStr::from_bytes(path.as_bytes()), AccessFlags::from_bits_retain(*mode))?;
            }
            _ => unreachable!("an operation on slots"),
        }
        Ok(String::new())
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// Copies until the end or `len`: how much one call copies is each file system's own affair.
fn copy_all(from: &File, from_off: &mut i64, to: &File, to_off: &mut i64, len: usize) -> Outcome {
    let mut done = 0;
    while done < len {
        match fcntl::copy_file_range(from.as_fd(), Some(from_off), to.as_fd(), Some(to_off), len - done) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(errno) if done == 0 => return Err(errno),
            Err(errno) => return Ok(format!("{done}, then {errno:?}")),
        }
    }
    Ok(done.to_string())
}

/// Where data begins and ends may be said more or less finely, as long as no data is called a hole.
fn seek(file: &File, off: u64, whence: Whence) -> Outcome {
    let meta = file.metadata().map_err(errno)?;
    if !meta.is_file() {
        // What it means on a directory is each file system's own affair.
        return Ok("not a file".into());
    }
    let size = meta.size();
    let found = unistd::lseek(file, off.cast_signed(), whence);
    let _ = (&mut &*file).seek(SeekFrom::Start(0));
    if off >= size {
        return found.map(|at| format!("{at} beyond the end"));
    }
    match (whence, found) {
        (Whence::SeekHole, Ok(hole)) => Ok(if (off..=size).contains(&hole.cast_unsigned()) {
            "fine".into()
        } else {
            format!("{hole} of {size}")
        }),
        (Whence::SeekData, Ok(data)) => only_zeros(file, off, data.cast_unsigned()),
        (Whence::SeekData, Err(Errno::ENXIO)) => only_zeros(file, off, size),
        (_, Err(other)) => Err(other),
        (_, Ok(at)) => Ok(at.to_string()),
    }
}

// Files of 4 GiB are sparse: only what this test writes, the first and the last MiB, is looked at.
fn only_zeros(file: &File, from: u64, to: u64) -> Outcome {
    let near = 1 << 20;
    for (from, to) in [(from, to.min(from + near)), (from.max(to.saturating_sub(near)), to)] {
        let mut buffer = vec![0; to.saturating_sub(from) as usize];
        match file.read_at(&mut buffer, from) {
            Ok(_) if buffer.iter().all(|byte| *byte == 0) => {}
            Ok(_) => return Ok(format!("data in what is called a hole, {from}..{to}")),
            Err(_) => return Ok("fine".into()), // Opened for writing only.
        }
    }
    Ok("fine".into())
}

fn describe(meta: &fs::Metadata) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs().cast_signed());
    let time = |sec: i64, nsec: i64| {
        // Of a pipe: see `tree::read`.
        if sec.abs_diff(now) < 86_400 || meta.file_type().is_fifo() {
            "now".into()
        } else {
            format!("{sec}.{nsec:09}")
        }
    };
    let size = if meta.is_dir() { 0 } else { meta.size() };
    let device =
        if meta.file_type().is_char_device() || meta.file_type().is_block_device() { meta.rdev() } else { 0 };
    format!(
        "mode {:o} nlink {} owner {}:{} size {size} rdev {device} mtime {} ctime {}",
        meta.mode(),
        meta.nlink(),
        meta.uid(),
        meta.gid(),
        time(meta.mtime(), meta.mtime_nsec()),
        time(meta.ctime(), meta.ctime_nsec()),
    )
}

fn list(path: &Path) -> Outcome {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(errno)? {
        let entry = entry.map_err(errno)?;
        let kind = entry.file_type().map_err(errno)?;
        names.push(format!("{}{}", entry.file_name().display(), if kind.is_dir() { "/" } else { "" }));
    }
    names.sort();
    Ok(names.join(" "))
}
