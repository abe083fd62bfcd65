//! What there is in the control directory, as two tables. Pure.
//!
//! One more file is a line in `FILES`, a variant of `File`, and an arm in `reports.rs` (and in `commands.rs` if it can be written).

use tarbox_types::Ino;

/// Its name in the tenant's root.
pub(super) const NAME: &str = ".tarbox";

/// A directory; the number is that of its inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Directory {
    Top = 1,
    Layers = 2,
    Snapshots = 3,
    Stats = 4,
    Control = 5,
    Audit = 6,
}

impl Directory {
    /// The inode's number in the view.
    pub(super) fn ino(self) -> Ino {
        self as Ino
    }

    pub(super) fn of_ino(ino: Ino) -> Option<Self> {
        let all = [Self::Top, Self::Layers, Self::Snapshots, Self::Stats, Self::Control, Self::Audit];
        all.into_iter().find(|directory| directory.ino() == ino)
    }
}

/// The directories in the top one.
pub(super) const DIRECTORIES: [(&str, Directory); 5] = [
    ("layers", Directory::Layers),
    ("snapshots", Directory::Snapshots),
    ("stats", Directory::Stats),
    ("control", Directory::Control),
    ("audit", Directory::Audit),
];

/// What a document is of; the number stands in its node id, so that it means the same in every release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum File {
    Current = 1,
    List = 2,
    Tree = 3,
    New = 4,
    Switch = 5,
    Drop = 6,
    Usage = 16,
    Performance = 17,
    Cache = 18,
    Flush = 32,
    Gc = 33,
    Recent = 48,
    /// A tag among the snapshots: the document is what the link leads to.
    Tag = 255,
}

/// Whether a file can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Read,
    Command,
}

/// Every file but the tags.
pub(super) const FILES: [(Directory, &str, File, Use); 12] = [
    (Directory::Layers, "current", File::Current, Use::Read),
    (Directory::Layers, "list", File::List, Use::Read),
    (Directory::Layers, "tree", File::Tree, Use::Read),
    (Directory::Layers, "new", File::New, Use::Command),
    (Directory::Layers, "switch", File::Switch, Use::Command),
    (Directory::Layers, "drop", File::Drop, Use::Command),
    (Directory::Stats, "usage", File::Usage, Use::Read),
    (Directory::Stats, "performance", File::Performance, Use::Read),
    (Directory::Stats, "cache", File::Cache, Use::Read),
    (Directory::Control, "flush", File::Flush, Use::Command),
    (Directory::Control, "gc", File::Gc, Use::Command),
    (Directory::Audit, "recent", File::Recent, Use::Read),
];

impl File {
    pub(super) fn code(self) -> u8 {
        self as u8
    }

    pub(super) fn of_code(code: u8) -> Option<Self> {
        let listed = FILES.iter().map(|(_, _, file, _)| *file);
        listed.chain([Self::Tag]).find(|file| file.code() == code)
    }

    pub(super) fn is_command(self) -> bool {
        FILES.iter().any(|(_, _, file, usage)| *file == self && *usage == Use::Command)
    }

    /// As a path below the control directory.
    pub(super) fn path(self) -> String {
        let named = FILES.iter().find(|(_, _, file, _)| *file == self);
        let directory = |of| DIRECTORIES.iter().find(|(_, directory)| *directory == of);
        named.map_or_else(String::new, |(of, name, ..)| {
            format!("{}/{name}", directory(*of).map_or("", |(name, _)| name))
        })
    }
}

/// What a name in a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Directory(Directory),
    File(File),
}

/// Every name of a directory but those of snapshots, in the order of its stream.
pub(super) fn names(of: Directory) -> Vec<(&'static str, Found)> {
    let directories = DIRECTORIES.iter().filter(|_| of == Directory::Top);
    let directories = directories.map(|(name, directory)| (*name, Found::Directory(*directory)));
    let files = FILES.iter().filter(|(directory, ..)| *directory == of);
    directories.chain(files.map(|(_, name, file, _)| (*name, Found::File(*file)))).collect()
}

/// What a name leads to.
pub(super) fn find(of: Directory, name: &[u8]) -> Option<Found> {
    names(of).into_iter().find(|(known, _)| known.as_bytes() == name).map(|(_, found)| found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_found_under_its_path_and_by_its_code_alone() {
        for (directory, name, file, usage) in FILES {
            assert_eq!(find(directory, name.as_bytes()), Some(Found::File(file)));
            assert_eq!(File::of_code(file.code()), Some(file), "codes differ");
            assert_eq!(file.is_command(), usage == Use::Command);
            assert!(file.path().ends_with(&format!("/{name}")), "{}", file.path());
        }
        assert_eq!(File::of_code(File::Tag.code()), Some(File::Tag));
        assert_eq!(File::of_code(0), None);
    }

    #[test]
    fn every_directory_is_in_the_top_one_and_known_by_its_number() {
        for (name, directory) in DIRECTORIES {
            assert_eq!(find(Directory::Top, name.as_bytes()), Some(Found::Directory(directory)));
            assert_eq!(Directory::of_ino(directory.ino()), Some(directory));
        }
        assert_eq!(names(Directory::Top).len(), DIRECTORIES.len());
        assert_eq!(find(Directory::Layers, b"usage"), None);
    }
}
