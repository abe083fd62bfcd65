//! The state directory.

use std::path::Path;

use nix::{
    sys::statvfs::statvfs,
    unistd::{AccessFlags, access},
};

use tarbox_runtime::Finding;

use crate::{cli::output::bytes, places};

const WHAT: &str = "state directory";

pub(super) fn directory(path: &Path, journal_bytes: u64) -> Finding {
    let shown = path.display();
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    if let Err(errno) = access(existing, AccessFlags::W_OK | AccessFlags::X_OK) {
        let found = format!("{shown}: {} is not writable ({})", existing.display(), errno.desc());
        return Finding::fault(WHAT, found, "name another one with --state-dir or TARBOX_STATE_DIR");
    }
    let free = statvfs(existing).map_or(0, |stat| stat.blocks_available() * stat.fragment_size());
    if free < journal_bytes {
        let found = format!("{shown}: {} free, a journal may take {}", bytes(free), bytes(journal_bytes));
        return Finding::warning(WHAT, found, "make room, choose a smaller journalSize or another stateDir");
    }
    if !places::is_in_memory(existing) {
        let found = format!("{shown} lies on a disk ({} free)", bytes(free));
        return Finding::warning(
            WHAT,
            found,
            "a directory in memory (tmpfs) is faster and never stalls; on a disk the journal also survives a restart",
        );
    }
    Finding::fine(WHAT, format!("{shown}, in memory, {} free", bytes(free)))
}

#[cfg(test)]
mod tests {
    use tarbox_runtime::finding::State;

    #[test]
    fn a_journal_larger_than_the_room_left_is_warned_of() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(super::directory(&directory.path().join("absent"), u64::MAX).state, State::Warning);
    }
}
