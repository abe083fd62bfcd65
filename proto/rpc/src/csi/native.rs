//! `nativeMounts` of a volume's context: directories of the host that are shown inside the tenant. Pure.

use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tarbox_types::TenantId;

use super::request::RequestError;

/// The key of the context.
pub const KEY: &str = "nativeMounts";
/// What an entry may say.
const ENTRY: &str = "[[native_mounts]] with path, source, mode (\"rw\" or \"ro\"), shared (true or false) and priority (a whole number)";
/// What a source may name, beside plain text.
const VARIABLES: &str = "{tenant_id}, {namespace} or {pvc_name}";
/// Served by the mounter itself.
const CONTROL_DIRECTORY: &str = "/.tarbox";

/// A directory of the host inside a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NativeMount {
    /// Where, absolute in the tenant.
    pub path: PathBuf,
    /// What, absolute on the host.
    pub source: PathBuf,
    /// Writes are refused by the kernel.
    pub read_only: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    native_mounts: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    path: String,
    source: String,
    #[serde(default)]
    mode: Mode,
    /// Whether it is one row for everybody: the controller's business.
    #[serde(default, rename = "shared")]
    _shared: bool,
    #[serde(default = "usual_priority")]
    priority: u32,
}

#[derive(Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Rw,
    Ro,
}

fn usual_priority() -> u32 {
    200
}

/// The native mounts of a volume's context: see [`parse`].
///
/// # Errors
/// As [`parse`].
pub fn read(context: &HashMap<String, String>, tenant: TenantId) -> Result<Vec<NativeMount>, RequestError> {
    let text = context.get(KEY).map_or("", String::as_str);
    parse(text, context, tenant).map_err(|error| error.within("volume_context"))
}

/// The native mounts of a tenant in the order in which they are mounted, with what their templates stand for.
///
/// # Errors
/// The first fault, with the entry it is in.
pub fn parse(
    text: &str,
    context: &HashMap<String, String>,
    tenant: TenantId,
) -> Result<Vec<NativeMount>, RequestError> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let document: Document = toml::from_str(text).map_err(|error| {
        let place = error.span().and_then(|span| text.get(span)).unwrap_or(text);
        bad(KEY, place.trim(), &format!("{ENTRY}: {}", error.message()))
    })?;
    let mut found: Vec<(u32, NativeMount)> = Vec::new();
    for (number, entry) in document.native_mounts.into_iter().enumerate() {
        let field = |name: &str| format!("{KEY}[{number}].{name}");
        let path = inside(&field("path"), &entry.path)?;
        let source = expand(&field("source"), &entry.source, context, tenant)?;
        let source = plain(&field("source"), source)?;
        for (priority, other) in &found {
            let outer = if path.starts_with(&other.path) { *priority } else { entry.priority };
            let inner = if path.starts_with(&other.path) { entry.priority } else { *priority };
            let overlaps = path.starts_with(&other.path) || other.path.starts_with(&path);
            if overlaps && (path == other.path || outer >= inner) {
                let allowed = format!(
                    "another path than {}, or one inside the other with the higher priority number for the inner one",
                    other.path.display()
                );
                return Err(bad(&field("path"), &entry.path, &allowed));
            }
        }
        found.push((entry.priority, NativeMount { path, source, read_only: entry.mode == Mode::Ro }));
    }
    found.sort_by_key(|(priority, _)| *priority);
    Ok(found.into_iter().map(|(_, mount)| mount).collect())
}

fn bad(field: &str, value: &str, allowed: &str) -> RequestError {
    RequestError::value(field, value, allowed)
}

fn inside(field: &str, text: &str) -> Result<PathBuf, RequestError> {
    let path = plain(field, text.to_owned())?;
    if path == Path::new("/") || path.starts_with(CONTROL_DIRECTORY) {
        return Err(bad(field, text, "a directory below `/` other than `/.tarbox`"));
    }
    Ok(path)
}

/// An absolute path without `..`.
fn plain(field: &str, text: String) -> Result<PathBuf, RequestError> {
    let path = Path::new(&text);
    let is_plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if path.is_absolute() && is_plain && !text.contains('\0') {
        return Ok(path.components().collect());
    }
    Err(bad(field, &text, "an absolute path without `..`"))
}

/// Puts in what the variables stand for, each a single name: no value can lead anywhere else.
fn expand(
    field: &str,
    template: &str,
    context: &HashMap<String, String>,
    tenant: TenantId,
) -> Result<String, RequestError> {
    let mut expanded = String::new();
    let mut rest = template;
    while let Some((before, behind)) = rest.split_once('{') {
        let (name, behind) = behind
            .split_once('}')
            .ok_or_else(|| bad(field, template, &format!("a closing brace behind each of {VARIABLES}")))?;
        let value = match name {
            "tenant_id" => Some(tenant.to_string()),
            "namespace" => ["namespace", "csi.storage.k8s.io/pvc/namespace"]
                .iter()
                .find_map(|key| context.get(*key))
                .cloned(),
            "pvc_name" => context.get("csi.storage.k8s.io/pvc/name").cloned(),
            _ => return Err(bad(field, template, &format!("nothing in braces but {VARIABLES}"))),
        };
        let value = value.ok_or_else(|| {
            let allowed = format!("nothing that this volume does not have: its context has no {{{name}}}");
            bad(field, template, &allowed)
        })?;
        if value.is_empty() || value == "." || value == ".." || value.contains('/') {
            return Err(bad(field, template, &format!("a {{{name}}} that is one name, not `{value}`")));
        }
        expanded += before;
        expanded += &value;
        rest = behind;
    }
    if rest.contains('}') {
        return Err(bad(field, template, &format!("an opening brace before each of {VARIABLES}")));
    }
    Ok(expanded + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant() -> TenantId {
        "0f0f0f0f-0000-4000-8000-000000000001".parse().expect("a UUID")
    }

    fn read_text(text: &str) -> Result<Vec<NativeMount>, RequestError> {
        let pairs = [
            (KEY, text),
            ("csi.storage.k8s.io/pvc/namespace", "team"),
            ("csi.storage.k8s.io/pvc/name", "data"),
        ];
        read(&pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into(), tenant())
    }

    fn entry(path: &str, source: &str, more: &str) -> String {
        format!("[[native_mounts]]\npath = \"{path}\"\nsource = \"{source}\"\n{more}\n")
    }

    #[test]
    fn entries_come_in_the_order_of_their_priority_with_templates_expanded() {
        let text = entry("/a/b", "/srv/{namespace}/{pvc_name}-x", "mode = \"ro\"\npriority = 7")
            + &entry("/a", "/srv/{tenant_id}", "mode = \"rw\"\nshared = true\npriority = 3");
        let mounts = read_text(&text).expect("right");
        let expected =
            [("/a", format!("/srv/{}", tenant()), false), ("/a/b", "/srv/team/data-x".to_owned(), true)];
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(path, source, read_only)| NativeMount {
                path: path.into(),
                source: source.into(),
                read_only,
            })
            .collect();
        assert_eq!(mounts, expected);
        assert_eq!(read_text(" ").expect("nothing"), []);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_entry_and_what_is_allowed() {
        let twice = entry("/a", "/s", "") + &entry("/a", "/t", "priority = 1");
        let hidden = entry("/a", "/s", "") + &entry("/a/b", "/t", "priority = 1");
        let equal = entry("/a/b", "/s", "") + &entry("/a", "/t", "");
        for (text, words) in [
            (entry("/", "/s", ""), ["[0].path", "below `/`"]),
            (entry("/.tarbox/x", "/s", ""), ["`/.tarbox/x`", "other than"]),
            (entry("a", "/s", ""), ["`a`", "absolute"]),
            (entry("/a/../b", "/s", ""), ["`/a/../b`", "without `..`"]),
            (entry("/a", "/s/../etc", ""), ["[0].source", "without `..`"]),
            (entry("/a", "s", ""), ["`s`", "absolute"]),
            (entry("/a", "/s/{pod}", ""), ["{pod}", "{tenant_id}, {namespace} or {pvc_name}"]),
            (entry("/a", "/s/{tenant_id", ""), ["{tenant_id", "closing brace"]),
            (entry("/a", "/s/}", ""), ["/s/}", "opening brace"]),
            (entry("/a", "/s", "mode = \"wr\""), ["wr", "mode"]),
            (entry("/a", "/s", "colour = 1"), ["colour", "priority"]),
            ("[[native_mounts]]\npath = \"/a\"".to_owned(), ["source", "missing"]),
            ("native".to_owned(), ["nativeMounts", "[[native_mounts]]"]),
            (twice, ["[1].path", "another path than /a"]),
            (hidden, ["`/a/b`", "higher priority number"]),
            (equal, ["`/a`", "higher priority number"]),
        ] {
            let error = read_text(&text).expect_err(&text).to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
        }
    }

    #[test]
    fn a_template_stands_for_one_name_and_only_for_what_is_known() {
        for (value, word) in [("..", "one name"), ("a/b", "one name"), ("", "one name")] {
            let context = [(KEY, entry("/a", "/s/{namespace}", "")), ("namespace", value.to_owned())];
            let context = context.map(|(key, value)| (key.to_owned(), value)).into();
            let error = read(&context, tenant()).expect_err(value).to_string();
            assert!(error.contains(word), "{error}");
        }
        let context = [(KEY.to_owned(), entry("/a", "/s/{pvc_name}", ""))].into();
        let error = read(&context, tenant()).expect_err("not known").to_string();
        assert!(error.contains("its context has no {pvc_name}"), "{error}");
    }
}
