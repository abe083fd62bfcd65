//! One application that changes names and bytes in a directory of its own, and knows what every call has to answer.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, OpenOptionsExt, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::rng::Rng;

/// Names used.
const NAMES: u64 = 24;
/// Files are at most about so long.
const LENGTH: u64 = 300_000;

/// What there is under a name. Hard links share a number.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    Link(String),
    File(u64),
}

/// A directory and what must be in it.
#[derive(Debug)]
pub struct Churn {
    root: PathBuf,
    rng: Rng,
    names: BTreeMap<String, Node>,
    contents: BTreeMap<u64, Vec<u8>>,
    attributes: BTreeMap<u64, Vec<u8>>,
    next: u64,
    /// Calls made.
    pub calls: u64,
    /// The longest that one step took.
    pub slowest: Duration,
}

fn fails_with<T>(outcome: io::Result<T>, errno: i32, what: &str) -> Result<()> {
    match outcome {
        Ok(_) => anyhow::bail!("{what} succeeds, though it must not"),
        Err(error) => {
            ensure!(error.raw_os_error() == Some(errno), "{what}: {error}, not errno {errno}");
            Ok(())
        }
    }
}

impl Churn {
    /// Makes the directory `root`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(root: &Path, seed: u64) -> Result<Self> {
        fs::create_dir(root).context("mkdir of the root")?;
        Ok(Self {
            root: root.to_owned(),
            rng: Rng::new(seed),
            names: BTreeMap::new(),
            contents: BTreeMap::new(),
            attributes: BTreeMap::new(),
            next: 0,
            calls: 0,
            slowest: Duration::ZERO,
        })
    }

    /// Works until told to stop, or something is answered wrongly.
    ///
    /// # Errors
    /// What was wrong.
    pub fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            self.once()?;
        }
        Ok(())
    }

    /// Makes one step.
    ///
    /// # Errors
    /// What was wrong.
    pub fn once(&mut self) -> Result<()> {
        let name = format!("n{}", self.rng.below(NAMES));
        let begin = Instant::now();
        self.step(&name).with_context(|| format!("after {} calls, on {name}", self.calls))?;
        self.slowest = self.slowest.max(begin.elapsed());
        Ok(())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn step(&mut self, name: &str) -> Result<()> {
        self.calls += 1;
        match self.names.get(name).cloned() {
            None => self.make(name),
            Some(Node::Directory) => self.change_directory(name),
            Some(Node::Link(target)) => self.change_link(name, &target),
            Some(Node::File(file)) => self.change_file(name, file),
        }
    }

    fn make(&mut self, name: &str) -> Result<()> {
        let at = self.at(name);
        let node = match self.rng.below(4) {
            0 => {
                fs::create_dir(&at).context("mkdir")?;
                Node::Directory
            }
            1 => {
                let target = format!("target-{}", self.rng.below(1000));
                symlink(&target, &at).context("symlink")?;
                Node::Link(target)
            }
            _ => {
                let mut file =
                    File::options().write(true).create_new(true).mode(0o640).open(&at).context("O_EXCL")?;
                let length = self.rng.below(20_000) as usize;
                let bytes = self.rng.bytes(length);
                file.write_all(&bytes).context("the first write")?;
                self.next += 1;
                self.contents.insert(self.next, bytes);
                Node::File(self.next)
            }
        };
        self.names.insert(name.to_owned(), node);
        Ok(())
    }

    fn change_directory(&mut self, name: &str) -> Result<()> {
        let at = self.at(name);
        match self.rng.below(4) {
            0 => fails_with(fs::create_dir(&at), libc::EEXIST, "mkdir of what is there"),
            1 => {
                fs::create_dir(at.join("sub")).context("mkdir below")?;
                fails_with(fs::remove_dir(&at), libc::ENOTEMPTY, "rmdir of what is not empty")?;
                fs::remove_dir(at.join("sub")).context("rmdir below")
            }
            2 => self.rename(name),
            _ => {
                fs::remove_dir(&at).context("rmdir")?;
                self.names.remove(name);
                fails_with(fs::remove_dir(&at), libc::ENOENT, "rmdir of what is gone")
            }
        }
    }

    fn change_link(&mut self, name: &str, target: &str) -> Result<()> {
        let at = self.at(name);
        match self.rng.below(3) {
            0 => self.rename(name),
            1 => {
                let found = fs::read_link(&at).context("readlink")?;
                ensure!(found == Path::new(target), "{name} leads to {}, not {target}", found.display());
                Ok(())
            }
            _ => self.unlink(name),
        }
    }

    fn change_file(&mut self, name: &str, file: u64) -> Result<()> {
        match self.rng.below(14) {
            0 | 1 => self.append(name, file),
            2 | 3 => self.overwrite(name, file),
            4 => self.truncate(name, file),
            5 => self.link(name, file),
            6 => self.rename(name),
            7 => self.exchange(name),
            8 => self.set_attribute(name, file),
            9 => self.copy(name, file),
            10 => self.verify(name, file),
            11 => self.list(),
            12 => fails_with(
                File::options().write(true).create_new(true).open(self.at(name)),
                libc::EEXIST,
                "O_EXCL of what is there",
            ),
            _ => self.unlink(name),
        }
    }

    fn append(&mut self, name: &str, file: u64) -> Result<()> {
        let length = 1 + self.rng.below(9_000) as usize;
        let bytes = self.rng.bytes(length);
        let mut open = File::options().append(true).open(self.at(name)).context("open to append")?;
        open.write_all(&bytes).context("append")?;
        let content = self.content(file);
        content.extend_from_slice(&bytes);
        if content.len() as u64 > LENGTH {
            open.set_len(10).context("truncate")?;
            content.truncate(10);
        }
        Ok(())
    }

    fn content(&mut self, file: u64) -> &mut Vec<u8> {
        self.contents.entry(file).or_default()
    }

    fn overwrite(&mut self, name: &str, file: u64) -> Result<()> {
        let length = 1 + self.rng.below(if self.rng.clone().one_in(8) { 150_000 } else { 5_000 }) as usize;
        let (bytes, offset) = (self.rng.bytes(length), self.rng.below(100_000) as usize);
        let mut options = File::options();
        if self.rng.one_in(16) {
            options.custom_flags(libc::O_DSYNC);
        }
        let open = options.write(true).open(self.at(name)).context("open to write")?;
        open.write_all_at(&bytes, offset as u64).context("pwrite")?;
        let content = self.content(file);
        if content.len() < offset + length {
            content.resize(offset + length, 0);
        }
        content[offset..offset + length].copy_from_slice(&bytes);
        Ok(())
    }

    fn truncate(&mut self, name: &str, file: u64) -> Result<()> {
        let length = self.rng.below(50_000);
        File::options().write(true).open(self.at(name))?.set_len(length).context("truncate")?;
        self.content(file).resize(length as usize, 0);
        Ok(())
    }

    fn link(&mut self, name: &str, file: u64) -> Result<()> {
        let other = format!("n{}", self.rng.below(NAMES));
        let linked = fs::hard_link(self.at(name), self.at(&other));
        if self.names.contains_key(&other) {
            return fails_with(linked, libc::EEXIST, "link to what is there");
        }
        linked.context("link")?;
        self.names.insert(other, Node::File(file));
        Ok(())
    }

    fn rename(&mut self, name: &str) -> Result<()> {
        let other = format!("n{}", self.rng.below(NAMES));
        let Some(node) = self.names.get(name).cloned() else { return Ok(()) };
        let renamed = fs::rename(self.at(name), self.at(&other));
        let there = self.names.get(&other).cloned();
        if other == name {
            return renamed.context("rename to itself");
        }
        match (&node, &there) {
            (Node::Directory, Some(Node::File(_) | Node::Link(_))) => {
                fails_with(renamed, libc::ENOTDIR, "rename of a directory over a file")
            }
            (Node::File(_) | Node::Link(_), Some(Node::Directory)) => {
                fails_with(renamed, libc::EISDIR, "rename of a file over a directory")
            }
            // Two names of one file: nothing happens.
            (Node::File(one), Some(Node::File(two))) if one == two => renamed.context("rename onto itself"),
            _ => {
                renamed.context("rename")?;
                self.names.remove(name);
                self.names.insert(other, node);
                Ok(())
            }
        }
    }

    fn exchange(&mut self, name: &str) -> Result<()> {
        let other = format!("n{}", self.rng.below(NAMES));
        let path = |name: &str| CString::new(self.at(name).into_os_string().into_encoded_bytes());
        let (from, to) = (path(name)?, path(&other)?);
        let exchanged = nix::fcntl::renameat2(
            nix::fcntl::AT_FDCWD,
            from.as_c_str(),
            nix::fcntl::AT_FDCWD,
            to.as_c_str(),
            nix::fcntl::RenameFlags::RENAME_EXCHANGE,
        )
        .map_err(io::Error::from);
        let (Some(one), Some(two)) = (self.names.get(name).cloned(), self.names.get(&other).cloned()) else {
            return fails_with(exchanged, libc::ENOENT, "exchange with what is not there");
        };
        exchanged.context("exchange")?;
        self.names.insert(name.to_owned(), two);
        self.names.insert(other, one);
        Ok(())
    }

    fn set_attribute(&mut self, name: &str, file: u64) -> Result<()> {
        let at = self.at(name);
        let value = self.rng.bytes(20);
        match self.attributes.get(&file) {
            None => xattr::set(&at, "user.churn", &value).context("setxattr")?,
            Some(there) => {
                let found = xattr::get(&at, "user.churn").context("getxattr")?;
                ensure!(found.as_ref() == Some(there), "the attribute of {name} is {found:?}");
                xattr::remove(&at, "user.churn").context("removexattr")?;
                self.attributes.remove(&file);
                return Ok(());
            }
        }
        self.attributes.insert(file, value);
        Ok(())
    }

    fn copy(&mut self, name: &str, file: u64) -> Result<()> {
        let open = File::options().read(true).write(true).open(self.at(name)).context("open to copy")?;
        let length = self.content(file).len();
        let (count, to) = (length.min(30_000), length as i64 + 100);
        let (mut from, mut to_now, mut left) = (0, to, count);
        while left > 0 {
            let copied = nix::fcntl::copy_file_range(&open, Some(&mut from), &open, Some(&mut to_now), left)
                .context("copy_file_range")?;
            ensure!(copied > 0, "copy_file_range copies nothing of {left}");
            left -= copied;
        }
        let content = self.content(file);
        if count > 0 {
            content.resize(to as usize, 0);
            content.extend_from_within(..count);
        }
        if content.len() as u64 > LENGTH {
            open.set_len(0).context("truncate")?;
            content.clear();
        }
        Ok(())
    }

    fn verify(&mut self, name: &str, file: u64) -> Result<()> {
        let mut open = File::open(self.at(name)).context("open to read")?;
        // From the mounter, not from the page cache.
        nix::fcntl::posix_fadvise(&open, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        let (mut bytes, expected) = (Vec::new(), self.content(file));
        open.seek(SeekFrom::Start(0))?;
        open.read_to_end(&mut bytes).context("read")?;
        ensure!(bytes.len() == expected.len(), "{name} has {} bytes, not {}", bytes.len(), expected.len());
        if let Some(at) = bytes.iter().zip(expected.iter()).position(|(found, right)| found != right) {
            anyhow::bail!("{name} is wrong from byte {at} on");
        }
        Ok(())
    }

    fn list(&self) -> Result<()> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.root).context("opendir")? {
            found.push(entry.context("readdir")?.file_name().to_string_lossy().into_owned());
        }
        found.sort();
        let expected: Vec<_> = self.names.keys().cloned().collect();
        let mut sorted = expected;
        sorted.sort();
        ensure!(found == sorted, "the directory holds {found:?}, not {sorted:?}");
        Ok(())
    }

    fn unlink(&mut self, name: &str) -> Result<()> {
        fs::remove_file(self.at(name)).context("unlink")?;
        self.names.remove(name);
        fails_with(fs::remove_file(self.at(name)), libc::ENOENT, "unlink of what is gone")
    }

    /// Compares everything.
    ///
    /// # Errors
    /// What is not as it should be.
    pub fn verify_all(&mut self) -> Result<()> {
        self.list()?;
        for (name, node) in self.names.clone() {
            match node {
                Node::Directory => ensure!(self.at(&name).is_dir(), "{name} is no directory"),
                Node::Link(target) => ensure!(fs::read_link(self.at(&name))? == Path::new(&target), "{name}"),
                Node::File(file) => self.verify(&name, file)?,
            }
        }
        Ok(())
    }
}
