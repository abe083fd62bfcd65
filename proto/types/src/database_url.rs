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

/// The same database as another user. Neither name nor password may hold what a URL would have to escape.
#[must_use]
pub fn with_user(url: &str, user: &str, password: Option<&str>) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (body, query) = rest.split_once('?').map_or((rest, None), |(body, query)| (body, Some(query)));
    let (authority, path) = body.split_at(body.find('/').unwrap_or(body.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let login = password.map_or_else(|| user.to_owned(), |password| format!("{user}:{password}"));
    let is_login = |pair: &&str| matches!(pair.split('=').next(), Some("user" | "password"));
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty() && !is_login(pair));
    let pairs: Vec<&str> = pairs.collect();
    let query = if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) };
    format!("{scheme}://{login}@{host}{path}{query}")
}

/// Whether the URL is of a database with users of its own.
#[must_use]
pub fn has_users(url: &str) -> bool {
    url.starts_with("postgresql://") || url.starts_with("postgres://")
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
    fn another_user_takes_the_place_of_the_one_there_is() {
        for (url, expected) in [
            ("postgresql://me:se@cr:et@db:5432/tarbox", "postgresql://it:pw@db:5432/tarbox"),
            (
                "postgresql://db/t?user=me&password=x&sslmode=require",
                "postgresql://it:pw@db/t?sslmode=require",
            ),
            ("postgres://db", "postgres://it:pw@db"),
        ] {
            assert_eq!(with_user(url, "it", Some("pw")), expected);
        }
        assert_eq!(with_user("postgresql://me@db/t", "it", None), "postgresql://it@db/t");
        assert!(has_users("postgres://db") && !has_users("sqlite:///a"));
    }

    #[test]
    fn the_directory_of_sqlite_is_found() {
        assert_eq!(sqlite_directory("sqlite:///a/b?x=1"), Some("/a/b".into()));
        assert_eq!(sqlite_directory("postgresql://a/b"), None);
    }
}
