//! Texts compared line by line. Pure.

use std::time::Duration;

use similar::{ChangeTag, TextDiff};

/// After so long the comparison of one file gets coarser, rather than slower.
const PATIENCE: Duration = Duration::from_secs(2);

/// Lines that differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// New ones.
    pub added: usize,
    /// Those that are gone.
    pub removed: usize,
}

/// A file before and after.
pub(super) struct Texts {
    pub(super) old: String,
    pub(super) new: String,
}

impl Texts {
    /// Counts lines; with headings, makes a unified diff as well.
    pub(super) fn compare(&self, headings: Option<&(String, String)>) -> (Option<Lines>, Option<String>) {
        let diff = TextDiff::configure().timeout(PATIENCE).diff_lines(&self.old, &self.new);
        let mut lines = Lines::default();
        for change in diff.iter_all_changes() {
            match change.tag() {
                ChangeTag::Insert => lines.added += 1,
                ChangeTag::Delete => lines.removed += 1,
                ChangeTag::Equal => {}
            }
        }
        let patch =
            headings.map(|(old, new)| diff.unified_diff().context_radius(3).header(old, new).to_string());
        (Some(lines), patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_and_shown_as_patch_reads_them() {
        let texts = Texts { old: "a\nb\nc\n".into(), new: "a\nB\nc\nd\n".into() };
        let (lines, patch) = texts.compare(Some(&("a/f".into(), "b/f".into())));
        assert_eq!(lines, Some(Lines { added: 2, removed: 1 }));
        assert_eq!(patch.as_deref(), Some("--- a/f\n+++ b/f\n@@ -1,3 +1,4 @@\n a\n-b\n+B\n c\n+d\n"));
        assert_eq!(texts.compare(None).1, None);
    }
}
