//! A directory tree as a value, to be compared with another.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use nix::libc::{S_IFDIR, S_IFIFO, S_IFMT, S_IFREG};

/// One node of a tree: everything that two copies of it must have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Type and permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Links.
    pub nlink: u64,
    /// Size; 0 for directories, whose size is each file system's own affair.
    pub size: u64,
    /// Time of the last change, in seconds and nanoseconds; `None` if it is of today (set by the kernel, not by a program).
    pub mtime: Option<(i64, i64)>,
    /// Device of a device node.
    pub rdev: u64,
    /// Target of a symbolic link.
    pub target: Option<PathBuf>,
    /// Extended attributes.
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// Hash of a file's content.
    pub content: Option<blake3::Hash>,
    /// First path of the same inode, for what has several links.
    pub twin: Option<PathBuf>,
}

/// A tree by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<PathBuf, Node>);

/// Reads a tree.
///
/// # Errors
/// If anything in it cannot be read: with its path.
pub fn read(root: &Path) -> Result<Tree> {
    let mut reader = Reader { root, tree: Tree::default(), seen: HashMap::new() };
    reader.visit(root)?;
    Ok(reader.tree)
}

/// What differs between two trees, one sentence each; empty if nothing does.
#[must_use]
pub fn differences(left: &Tree, right: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, node) in &left.0 {
        match right.0.get(path) {
            None => found.push(format!("{}: only in the first", path.display())),
            Some(other) if other != node => {
                found.push(format!("{}: {node:?}\n   != {other:?}", path.display()))
            }
            Some(_) => {}
        }
    }
    for path in right.0.keys().filter(|path| !left.0.contains_key(*path)) {
        found.push(format!("{}: only in the second", path.display()));
    }
    found
}

/// Fails the test where two trees differ.
///
/// # Panics
/// If they do; it shows the first differences.
pub fn assert_same(what: &str, left: &Tree, right: &Tree) {
    let found = differences(left, right);
    assert!(
        found.is_empty(),
        "{what}: {} differences\n{}",
        found.len(),
        found[..found.len().min(20)].join("\n")
    );
}

struct Reader<'a> {
    root: &'a Path,
    tree: Tree,
    seen: HashMap<u64, PathBuf>,
}

impl Reader<'_> {
    fn visit(&mut self, path: &Path) -> Result<()> {
        let meta = fs::symlink_metadata(path).with_context(|| format!("lstat {}", path.display()))?;
        let key = path.strip_prefix(self.root)?.to_owned();
        let is_dir = meta.is_dir();
        let node = self.node(path, &key, &meta).with_context(|| path.display().to_string())?;
        self.tree.0.insert(key, node);
        if is_dir {
            let mut names =
                fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
            names.sort();
            // A file system that lists a name twice would otherwise go unnoticed.
            if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
                anyhow::bail!("{} is listed twice", pair[0].display());
            }
            for name in names {
                self.visit(&name)?;
            }
        }
        Ok(())
    }

    fn node(&mut self, path: &Path, key: &Path, meta: &Metadata) -> Result<Node> {
        let kind = meta.mode() & S_IFMT;
        let twin = if kind != S_IFDIR && meta.nlink() > 1 {
            Some(self.seen.entry(meta.ino()).or_insert_with(|| key.to_owned()).clone())
        } else {
            None
        };
        Ok(Node {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            nlink: meta.nlink(),
            size: if kind == S_IFDIR { 0 } else { meta.size() },
            // The kernel sets the time of a pipe that is written to; a FUSE server never hears of that.
            mtime: (kind != S_IFIFO && set_by_a_program(meta.mtime()))
                .then(|| (meta.mtime(), meta.mtime_nsec())),
            rdev: meta.rdev(),
            target: meta.is_symlink().then(|| fs::read_link(path)).transpose()?,
            xattrs: xattrs(path)?,
            content: (kind == S_IFREG).then(|| hash(path)).transpose()?,
            twin,
        })
    }
}

fn set_by_a_program(seconds: i64) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs().cast_signed());
    seconds.abs_diff(now) > 86_400
}

fn xattrs(path: &Path) -> Result<BTreeMap<OsString, Vec<u8>>> {
    let mut all = BTreeMap::new();
    for name in xattr::list(path)? {
        let value = xattr::get(path, &name)?.with_context(|| format!("{name:?} is listed but absent"))?;
        all.insert(name, value);
    }
    Ok(all)
}

fn hash(path: &Path) -> Result<blake3::Hash> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            n => hasher.update(&buffer[..n]),
        };
    }
}
