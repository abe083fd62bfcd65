//! A database URL without what is secret in it. Pure.

use std::path::PathBuf;

/// The URL without passwords, for command lines and state files; and whether there was one.
#[must_use]
pub fn public(url: &str) -> (String, bool) {
    let Some((scheme, rest)) = url.split_once("://") else { return (url.to_owned(), false) };
    let (body, query) = rest.split_once('?').map_or((rest, None), |(body, query)| (body, Some(query)));
    let (authority, path) = body.split_at(body.find('/').unwrap_or(body.len()));
    // A password may hold `@`: the last one ends the user's part.
    let (authority, had_password) = match authority.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((name, _)) => (format!("{name}@{host}"), true),
            None => (authority.to_owned(), false),
        },
        None => (authority.to_owned(), false),
    };
    let is_secret = |pair: &&str| pair.split('=').next().is_some_and(|key| key.contains("password"));
    let pairs: Vec<&str> = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).collect();
    let had_secret = pairs.iter().any(is_secret);
    let open: Vec<&str> = pairs.into_iter().filter(|pair| !is_secret(pair)).collect();
    let query = if open.is_empty() { String::new() } else { format!("?{}", open.join("&")) };
    (format!("{scheme}://{authority}{path}{query}"), had_password || had_secret)
}

/// The directory of an SQLite database.
#[must_use]
pub fn sqlite_directory(url: &str) -> Option<PathBuf> {
    let rest = url.strip_prefix("sqlite://")?;
    Some(PathBuf::from(rest.split('?').next().unwrap_or(rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_taken_out_wherever_they_stand() {
        for (url, expected, had) in [
            ("postgresql://me:secret@db:5432/tarbox", "postgresql://me@db:5432/tarbox", true),
            (
                "postgresql://me:se@cr:et@db/tarbox?sslmode=require",
                "postgresql://me@db/tarbox?sslmode=require",
                true,
            ),
            ("postgresql://db/t?user=me&password=secret", "postgresql://db/t?user=me", true),
            ("postgresql://db/t?sslpassword=secret", "postgresql://db/t", true),
            ("postgresql://me@db/tarbox", "postgresql://me@db/tarbox", false),
            ("sqlite:///var/lib/tarbox", "sqlite:///var/lib/tarbox", false),
        ] {
            assert_eq!(public(url), (expected.to_owned(), had), "{url}");
            assert!(!public(url).0.contains("secret"));
        }
    }

    #[test]
    fn the_directory_of_sqlite_is_found() {
        assert_eq!(sqlite_directory("sqlite:///a/b?x=1"), Some("/a/b".into()));
        assert_eq!(sqlite_directory("postgresql://a/b"), None);
    }
}
