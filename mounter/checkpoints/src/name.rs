//! What a checkpoint, or a tag, may be called.

use crate::error::{CheckpointError, Result};

/// Stands for the tenant as it is now, wherever a checkpoint is named.
pub const HEAD: &str = "head";

/// Checks a new name: a directory below `/.tarbox/snapshots` could be called so.
///
/// # Errors
/// [`CheckpointError::Name`].
pub fn check_name(what: &'static str, name: &str) -> Result<()> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':' | b'+');
    let begins_well = name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
    if begins_well && name.len() <= 128 && name.bytes().all(is_good) && name != HEAD {
        return Ok(());
    }
    let allowed =
        "1 to 128 of a-z, A-Z, 0-9, `-`, `.`, `_`, `:` and `+`, a letter or digit first, not `head`";
    Err(CheckpointError::Name { what, value: name.to_owned(), allowed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_paths_and_on_command_lines() {
        for good in ["a", "before-tool", "2026-11-22T00:00:01", "v1.0_x+y", &"x".repeat(128)] {
            assert!(check_name("name", good).is_ok(), "{good}");
        }
        for bad in ["", "-x", ".x", "..", "a/b", "head", "a b", "ü", "a\n", &"x".repeat(129)] {
            let error = check_name("name", bad).expect_err(bad);
            assert!(error.to_string().contains(&format!("`{bad}`")), "{error}");
        }
    }
}
