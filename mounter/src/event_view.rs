//! Audit events as they are shown: JSON for programs, a line for people.

use nix::errno::Errno;
use serde::Serialize;
use tarbox_fs::audit::{Event, Pod};
use tarbox_types::{TenantId, rfc3339};

/// Whose events they are.
#[derive(Clone, Debug, Serialize)]
pub struct Origin {
    /// The tenant's name.
    pub tenant: String,
    /// Its id.
    pub tenant_id: TenantId,
    /// The node where it happened.
    pub node: String,
}

/// One event.
#[derive(Debug, Serialize)]
pub struct EventView<'a> {
    time: String,
    #[serde(flatten)]
    origin: &'a Origin,
    operation: &'static str,
    path: String,
    /// The bytes of a path that is no UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to_hex: Option<String>,
    ino: u64,
    uid: u32,
    gid: u32,
    pid: u32,
    process: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<PodView<'a>>,
    result: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_us: Option<u64>,
    count: u64,
    offset: u64,
    end: u64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct PodView<'a> {
    namespace: &'a str,
    name: &'a str,
    uid: String,
}

impl<'a> EventView<'a> {
    /// An event of `origin`.
    #[must_use]
    pub fn new(origin: &'a Origin, event: &'a Event) -> Self {
        let (path, path_hex) = text(&event.path);
        let to = event.to.as_ref().map(|to| text(to));
        let pod =
            |pod: &'a Pod| PodView { namespace: &pod.namespace, name: &pod.name, uid: pod.uid.to_string() };
        Self {
            time: time(event.at),
            origin,
            operation: event.operation.name(),
            path,
            path_hex,
            to: to.as_ref().map(|(to, _)| to.clone()),
            to_hex: to.and_then(|(_, hex)| hex),
            ino: event.ino,
            uid: event.uid,
            gid: event.gid,
            pid: event.pid,
            process: String::from_utf8_lossy(&event.process).into_owned(),
            pod: event.pod.as_ref().map(pod),
            result: result(event.result),
            duration_us: event.micros,
            count: event.count,
            offset: event.offset,
            end: event.end,
            bytes: event.bytes,
        }
    }

    /// As a line for people; control characters are shown as escapes, so that a name cannot forge a line.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = format!(
            "{}  {:<11}  {}",
            self.time,
            self.operation,
            if self.path.is_empty() { format!("inode {}", self.ino) } else { shown(&self.path) }
        );
        if let Some(to) = &self.to {
            line += &format!(" -> {}", shown(to));
        }
        line += &format!("  {}[{}] uid {}", shown(&self.process), self.pid, self.uid);
        if let Some(pod) = &self.pod {
            line += &match pod.name {
                "" => format!("  pod {}", pod.uid),
                name => format!("  pod {}/{name}", pod.namespace),
            };
        }
        if self.bytes > 0 || self.count > 1 {
            line += &format!("  {} bytes at {}..{}", self.bytes, self.offset, self.end);
        }
        if self.count > 1 {
            line += &format!(" in {} calls", self.count);
        }
        if self.result != OK {
            line += &format!("  {}", self.result);
        }
        line
    }
}

/// The result of what was done.
pub const OK: &str = "ok";

/// `ok`, or the name of an errno.
#[must_use]
pub fn result(errno: u32) -> String {
    match i32::try_from(errno) {
        Ok(0) => OK.to_owned(),
        Ok(errno) if Errno::from_raw(errno) != Errno::UnknownErrno => format!("{:?}", Errno::from_raw(errno)),
        _ => format!("errno {errno}"),
    }
}

/// Seconds as RFC 3339 has them, and microseconds behind.
fn time(micros: u64) -> String {
    let seconds = i64::try_from(micros / 1_000_000).unwrap_or(0);
    format!("{}.{:06}Z", rfc3339(seconds).trim_end_matches('Z'), micros % 1_000_000)
}

fn text(bytes: &[u8]) -> (String, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => {
            let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            (String::from_utf8_lossy(bytes).into_owned(), Some(hex))
        }
    }
}

fn shown(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tarbox_fs::audit::Operation;

    use super::*;

    fn event() -> Event {
        Event {
            at: 1_795_306_696_000_042,
            path: Bytes::from_static(b"/a\nb"),
            to: Some(Bytes::from_static(b"/\xff")),
            ino: 77,
            uid: 1000,
            gid: 100,
            pid: 4711,
            process: Bytes::from_static(b"mv"),
            result: 28,
            ..Event::new(Operation::Rename)
        }
    }

    #[test]
    fn a_line_is_one_line_and_json_keeps_every_byte() {
        let origin = Origin { tenant: "work".into(), tenant_id: TenantId::random(), node: "n".into() };
        let event = event();
        let view = EventView::new(&origin, &event);
        assert_eq!(
            view.line(),
            "2026-11-22T00:18:16.000042Z  rename       /a\\nb -> /\u{fffd}  mv[4711] uid 1000  ENOSPC"
        );
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["path"], "/a\nb");
        assert_eq!(json["to_hex"], "2fff");
        assert_eq!((json["tenant"].as_str(), json["ino"].as_u64()), (Some("work"), Some(77)));
        assert!(json.get("pod").is_none() && json.get("path_hex").is_none());
    }

    #[test]
    fn results_are_names_where_there_are_names() {
        assert_eq!([0, 28, 27, 99_999].map(result), ["ok", "ENOSPC", "EFBIG", "errno 99999"]);
    }
}
