//! The URL of a PostgreSQL database: Tarbox's own parameters are taken out before sqlx reads the rest.

use std::{str::FromStr, time::Duration};

use sqlx::{ConnectOptions, postgres::PgConnectOptions};

use crate::error::{Result, StoreError};

/// How long a lease counts without a heartbeat, where the URL does not say otherwise.
const LEASE: Duration = Duration::from_secs(15);

/// Our parameter: seconds, fractions allowed.
const LEASE_PARAMETER: &str = "tarbox_lease";

/// What a URL says.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) options: PgConnectOptions,
    pub(super) display_url: String,
    pub(super) lease: Duration,
}

/// Reads a URL.
pub(super) fn parse(url: &str) -> Result<Target> {
    let display_url = without_password(url);
    let refused = |reason: String| StoreError::Url { url: display_url.clone(), reason };
    let (rest, lease) = take_lease(url).map_err(refused)?;
    let options = PgConnectOptions::from_str(&rest)
        .map_err(|error| refused(error.to_string()))?
        .application_name("tarbox")
        .statement_cache_capacity(256)
        .disable_statement_logging();
    Ok(Target { options, display_url, lease })
}

/// The URL without our parameter, and its value.
fn take_lease(url: &str) -> std::result::Result<(String, Duration), String> {
    let Some((base, query)) = url.split_once('?') else {
        return Ok((url.to_owned(), LEASE));
    };
    let mut lease = LEASE;
    let mut kept = Vec::new();
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some((LEASE_PARAMETER, value)) => {
                lease = value
                    .parse::<f64>()
                    .ok()
                    .filter(|seconds| (0.05..=3600.0).contains(seconds))
                    .map(Duration::from_secs_f64)
                    .ok_or(format!(
                        "{LEASE_PARAMETER} `{value}` is not a number of seconds from 0.05 to 3600"
                    ))?;
            }
            _ => kept.push(pair),
        }
    }
    let query = if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) };
    Ok((format!("{base}{query}"), lease))
}

/// For messages: the password of the authority part and of a `password` parameter become `***`.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let authority = match authority.rsplit_once('@') {
        Some((login, host)) => match login.split_once(':') {
            Some((user, _)) => format!("{user}:***@{host}"),
            None => authority.to_owned(),
        },
        None => authority.to_owned(),
    };
    let path = match path.split_once('?') {
        Some((path, query)) => {
            let pairs = query.split('&').map(|pair| match pair.split_once('=') {
                Some(("password", _)) => "password=***",
                _ => pair,
            });
            format!("{path}?{}", pairs.collect::<Vec<_>>().join("&"))
        }
        None => path.to_owned(),
    };
    format!("{scheme}://{authority}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        for url in [
            "postgresql://user:s3cret@host:5432/db?sslmode=require",
            "postgresql://user:s3cret@host",
            "postgresql://user:s3c@ret@host/db",
            "postgresql://host/db?password=s3cret&user=me",
        ] {
            let shown = parse(url).map(|target| target.display_url).unwrap();
            assert!(!shown.contains("s3c") && !shown.contains("ret@") && shown.contains("host"), "{shown}");
        }
    }

    #[test]
    fn the_lease_time_is_read_and_taken_out() {
        let target = parse("postgresql://host/db?sslmode=disable&tarbox_lease=1.5").unwrap();
        assert_eq!(target.lease, Duration::from_millis(1500));
        assert_eq!(parse("postgresql://host/db").unwrap().lease, LEASE);
        for bad in ["0", "-1", "x", "NaN", "1e9"] {
            let error = parse(&format!("postgresql://host/db?tarbox_lease={bad}")).unwrap_err();
            assert_eq!(error.kind(), tarbox_types::ErrorKind::InvalidArgument);
        }
    }
}
