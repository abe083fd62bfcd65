//! Asking over HTTP, as Prometheus and a kubelet do.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, Result};

const LIMIT: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: String,
}

/// Asks for `path` at `address` (`127.0.0.1:9780`).
///
/// # Errors
/// If there is no answer.
pub fn get(address: &str, path: &str) -> Result<Answer> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("a head and a body")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("a status")?;
    Ok(Answer { status, body: body.to_owned() })
}

/// Where a program said that its metrics are: the last time, if it was started more than once.
#[must_use]
pub fn metrics_address(log: &str) -> Option<String> {
    let said = log.lines().rev().find_map(|line| line.strip_prefix("metrics at http://"))?;
    Some(said.strip_suffix("/metrics")?.to_owned())
}
