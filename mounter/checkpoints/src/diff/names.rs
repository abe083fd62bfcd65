//! From names that differ to what became of each file. Pure.

use bytes::Bytes;
use rustc_hash::FxHashMap;
use tarbox_store::{EntryRow, InodeRow};
use tarbox_types::Ino;

/// A name as two views have it.
#[derive(Clone, Debug)]
pub(super) struct Name {
    pub(super) parent: Ino,
    pub(super) name: Bytes,
    pub(super) was: Option<(EntryRow, InodeRow)>,
    pub(super) is: Option<(EntryRow, InodeRow)>,
}

/// A directory, and a name in it.
pub(super) type At = (Ino, Bytes);

/// Where something was, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fate {
    pub(super) from: Option<At>,
    pub(super) to: Option<At>,
    pub(super) was: Option<InodeRow>,
    pub(super) is: Option<InodeRow>,
}

fn kind(row: &InodeRow) -> u32 {
    row.mode & libc::S_IFMT
}

/// What became of what the names named. A name under which there is another file now is one that has changed: so do editors
/// save. One inode that lost a name and got another was renamed.
pub(super) fn fates(names: Vec<Name>) -> Vec<Fate> {
    let mut found = Vec::new();
    let mut gone: FxHashMap<Ino, Vec<(At, InodeRow)>> = FxHashMap::default();
    let mut come: Vec<(At, InodeRow)> = Vec::new();
    for Name { parent, name, was, is } in names {
        let at = (parent, name);
        match (was.map(|(_, row)| row), is.map(|(_, row)| row)) {
            (Some(was), Some(is)) if was.ino == is.ino => {}
            (Some(was), Some(is)) if kind(&was) == kind(&is) => {
                found.push(Fate { from: Some(at.clone()), to: Some(at), was: Some(was), is: Some(is) });
            }
            (was, is) => {
                if let Some(was) = was {
                    gone.entry(was.ino).or_default().push((at.clone(), was));
                }
                come.extend(is.map(|is| (at, is)));
            }
        }
    }
    for (to, is) in come {
        let from = gone.get_mut(&is.ino).and_then(Vec::pop);
        let (from, was) = from.map_or((None, None), |(at, row)| (Some(at), Some(row)));
        found.push(Fate { from, to: Some(to), was, is: Some(is) });
    }
    let left = gone.into_values().flatten();
    found.extend(left.map(|(at, was)| Fate { from: Some(at), to: None, was: Some(was), is: None }));
    found
}

#[cfg(test)]
mod tests {
    use tarbox_store::Time;

    use super::*;

    /// Files have numbers below 100, directories from there on.
    fn side(name: &str, ino: Ino) -> (EntryRow, InodeRow) {
        let kind = if ino < 100 { libc::S_IFREG } else { libc::S_IFDIR };
        let name = Bytes::copy_from_slice(name.as_bytes());
        let time = Time::default();
        let row = InodeRow {
            ino,
            mode: kind | 0o644,
            uid: 0,
            gid: 0,
            rdev: 0,
            nlink: 1,
            size: 0,
            atime: time,
            mtime: time,
            ctime: time,
            dir_parent: 0,
            did: ino,
            cut: 0,
            charge: 0,
            prealloc: Vec::new(),
            target: Bytes::new(),
        };
        (EntryRow { parent: 1, name, ino, kind, cookie: ino }, row)
    }

    fn told(names: &[(&str, Option<Ino>, Option<Ino>)]) -> Vec<String> {
        let name = |(name, was, is): &(&str, Option<Ino>, Option<Ino>)| Name {
            parent: 1,
            name: Bytes::copy_from_slice(name.as_bytes()),
            was: was.map(|ino| side(name, ino)),
            is: is.map(|ino| side(name, ino)),
        };
        let shown = |at: Option<At>| {
            at.map_or("-".to_owned(), |(_, name)| String::from_utf8_lossy(&name).into_owned())
        };
        let mut found: Vec<_> = fates(names.iter().map(name).collect())
            .into_iter()
            .map(|fate| format!("{} {}", shown(fate.from), shown(fate.to)))
            .collect();
        found.sort();
        found
    }

    #[test]
    fn names_and_inodes_say_what_became_of_each_file() {
        assert_eq!(told(&[("a", None, Some(5))]), ["- a"]);
        assert_eq!(told(&[("a", Some(5), None)]), ["a -"]);
        assert_eq!(told(&[("a", Some(5), Some(5))]), [""; 0], "made anew as the same");
        assert_eq!(told(&[("a", Some(5), None), ("b", None, Some(5))]), ["a b"]);
        assert_eq!(told(&[("f", Some(5), Some(9))]), ["f f"], "saved by an editor");
        assert_eq!(told(&[("a", Some(5), Some(9)), ("b", Some(9), Some(5))]), ["a a", "b b"], "exchanged");
        assert_eq!(told(&[("x", Some(5), Some(101))]), ["- x", "x -"], "a file became a directory");
        let linked = [("a", Some(5), None), ("b", None, Some(5)), ("c", None, Some(5))];
        assert_eq!(told(&linked), ["- c", "a b"], "renamed once, linked once");
    }
}
