//! A key's names, and which key was probably meant.

use super::PREFIX;

fn words(key: &str, separator: char) -> String {
    let mut name = String::new();
    let mut after_lower = false;
    for letter in key.chars() {
        if letter.is_ascii_uppercase() && after_lower {
            name.push(separator);
        }
        after_lower = letter.is_ascii_lowercase();
        name.push(letter.to_ascii_lowercase());
    }
    name
}

/// `cacheSize` → `TARBOX_CACHE_SIZE`.
#[must_use]
pub fn variable_name(key: &str) -> String {
    format!("{PREFIX}{}", words(key, '_').to_ascii_uppercase())
}

/// `cacheSize` → `--cache-size`.
#[must_use]
pub fn flag_name(key: &str) -> String {
    format!("--{}", words(key, '-'))
}

/// Letters and digits only, in lower case: `cache_size`, `cache-size` and `cacheSize` are the same slip.
fn plain(key: &str) -> Vec<char> {
    key.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// Levenshtein's distance.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The allowed name nearest to `key`, if one is near.
pub(super) fn nearest(key: &str, allowed: &[String]) -> Option<String> {
    let given = plain(key);
    let (distance, name) =
        allowed.iter().map(|name| (distance(&given, &plain(name)), name)).min_by_key(|(d, _)| *d)?;
    (distance <= 2).then(|| name.clone())
}
