//! The rules of the source itself: which crate may use which, and what may be written where.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tarbox_tests::{command::succeed, product::workspace};

/// Which of our crates each crate may use. Arrows point one way: programs, then parts, then words.
const ARROWS: [(&str, &[&str]); 16] = [
    ("tarbox-types", &[]),
    ("tarbox-proto", &[]),
    ("tarbox-rpc", &["tarbox-proto", "tarbox-types"]),
    ("tarbox-runtime", &["tarbox-types"]),
    ("tarbox-engine", &["tarbox-types"]),
    ("tarbox-store", &["tarbox-types"]),
    ("tarbox-checkpoints", &["tarbox-runtime", "tarbox-store", "tarbox-types"]),
    ("tarbox-handover", &["tarbox-types"]),
    ("tarbox-keeper", &["tarbox-handover", "tarbox-types"]),
    ("tarbox-fs", &["tarbox-store", "tarbox-types"]),
    ("tarbox-native", &["tarbox-engine", "tarbox-rpc", "tarbox-types"]),
    (
        "tarbox-mounter",
        &[
            "tarbox-checkpoints",
            "tarbox-engine",
            "tarbox-fs",
            "tarbox-handover",
            "tarbox-keeper",
            "tarbox-native",
            "tarbox-proto",
            "tarbox-rpc",
            "tarbox-runtime",
            "tarbox-store",
            "tarbox-supervisor",
            "tarbox-types",
        ],
    ),
    (
        "tarbox-agent",
        &[
            "tarbox-engine",
            "tarbox-handover",
            "tarbox-native",
            "tarbox-proto",
            "tarbox-rpc",
            "tarbox-runtime",
            "tarbox-store",
            "tarbox-supervisor",
            "tarbox-types",
        ],
    ),
    (
        "tarbox-controller",
        &[
            "tarbox-checkpoints",
            "tarbox-proto",
            "tarbox-rpc",
            "tarbox-runtime",
            "tarbox-store",
            "tarbox-types",
        ],
    ),
    // What mounters say: nothing of how it is sent.
    ("tarbox-supervisor", &["tarbox-handover", "tarbox-types"]),
    // The programs are tested from outside; only fuse3's session needs the file system itself, who supervises a mounter
    // mounts and talks as a supervisor does, and who calls the controller speaks gRPC.
    (
        "tarbox-tests",
        &[
            "tarbox-engine",
            "tarbox-fs",
            "tarbox-handover",
            "tarbox-proto",
            "tarbox-rpc",
            "tarbox-store",
            "tarbox-types",
        ],
    ),
];

/// Something that may be written only in certain places.
struct Confined {
    what: &'static str,
    found: fn(&str) -> bool,
    /// Paths where it is looked for (a prefix).
    within: &'static [&'static str],
    /// Paths where it may stand (a prefix).
    except: &'static [&'static str],
}

const CONFINED: [Confined; 6] = [
    Confined {
        what: "making a tonic::Status: only rpc/status.rs maps error kinds to codes",
        found: |line| calls_a_function_of(line, "Status::"),
        within: &[""],
        except: &["proto/rpc/src/status.rs"],
    },
    Confined {
        what: "choosing an errno: only fs/errno.rs maps error kinds to numbers",
        found: |line| names_an_errno(line, "libc::E") || names_an_errno(line, "Errno::E"),
        within: &["mounter/fs/", "proto/"],
        // The journal reads the numbers of its own disk's errors, the sockets those of theirs: they choose none.
        except: &["mounter/fs/src/errno.rs", "mounter/fs/src/journal/", "proto/rpc/src/socket"],
    },
    Confined {
        what: "SQL: only the store knows it",
        found: holds_sql,
        within: &[""],
        except: &["mounter/store/"],
    },
    Confined {
        what: "unsafe: only the engine, the journal's mapping, what a process inherits, the keeper's exec and clone",
        found: |line| {
            line.contains("unsafe {")
                || line.contains("unsafe fn")
                || line.contains("unsafe impl")
                || line.contains("allow(unsafe_code)")
        },
        within: &[""],
        except: &[
            "mounter/engine/",
            "mounter/fs/src/journal/segment.rs",
            "agent/handover/src/inherited.rs",
            "agent/keeper/src/clone.rs",
            "agent/keeper/src/exec.rs",
        ],
    },
    Confined {
        what: "something left to be done",
        found: |line| {
            ["todo!(", "unimplemented!(", "dbg!(", "FIXME", "XXX"].iter().any(|word| line.contains(word))
        },
        within: &[""],
        except: &[],
    },
    Confined {
        what: "anyhow: only programs and tests; libraries have error enums",
        found: |line| line.contains("anyhow::"),
        within: &[
            "agent/handover/",
            "agent/keeper/",
            "agent/native/",
            "mounter/engine/",
            "mounter/fs/",
            "mounter/store/",
            "proto/",
        ],
        except: &[],
    },
];

#[test]
fn crates_use_only_what_the_arrows_allow() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--format-version=1", "--no-deps", "--offline"]).current_dir(workspace());
    let metadata = succeed(&mut cargo, Duration::from_secs(60)).expect("cargo metadata");
    let metadata: serde_json::Value = serde_json::from_str(&metadata).expect("JSON");
    let allowed: BTreeMap<_, BTreeSet<_>> =
        ARROWS.iter().map(|(name, uses)| (*name, uses.iter().copied().collect())).collect();
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let name = package["name"].as_str().expect("name");
        let Some(allowed) = allowed.get(name) else {
            wrong.push(format!("{name} is not in the table of arrows"));
            continue;
        };
        let uses = package["dependencies"].as_array().expect("dependencies").iter();
        for used in uses.filter_map(|used| used["name"].as_str()).filter(|used| used.starts_with("tarbox-")) {
            if !allowed.contains(used) && used != name {
                wrong.push(format!("{name} -> {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that are not allowed: {wrong:?}");
}

#[test]
fn what_is_confined_stands_only_where_it_may() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (number, line) in source.code() {
            for rule in &CONFINED {
                let here = |prefixes: &[&str]| prefixes.iter().any(|prefix| source.name.starts_with(prefix));
                if here(rule.within) && !here(rule.except) && (rule.found)(line) {
                    wrong.push(format!("{}:{number}: {}\n      {}", source.name, rule.what, line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} places:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn files_open_with_their_doc_are_named_after_what_is_in_them_and_stay_small() {
    let mut wrong = Vec::new();
    let mut long = Vec::new();
    for source in sources() {
        let stem =
            Path::new(&source.name).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        if !source.text.starts_with("//!") {
            wrong.push(format!("{} has no module doc", source.name));
        }
        if ["util", "utils", "helper", "helpers", "common", "misc", "manager"].contains(&stem.as_str()) {
            wrong.push(format!("{} is named after nothing", source.name));
        }
        let lines = source.code().count();
        if lines > 400 {
            long.push(format!("{} has {lines} lines of code", source.name));
        }
        if lines > 800 {
            wrong.push(format!("{} has {lines} lines of code", source.name));
        }
    }
    println!("longer than 400 lines: {long:#?}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn architecture_is_short_and_the_papers_are_there() {
    for paper in ["README.md", "ARCHITECTURE.md", "SEMANTICS.md", "CHANGELOG.md", "LICENSE"] {
        assert!(workspace().join(paper).exists(), "{paper} is missing");
    }
    let lines =
        fs::read_to_string(workspace().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md").lines().count();
    assert!(lines <= 300, "ARCHITECTURE.md has {lines} lines");
}

/// Each paragraph of SEMANTICS.md ends with a line `Test: name, name`; the names are of test functions.
#[test]
fn each_paragraph_of_semantics_names_a_test_that_exists() {
    let text = fs::read_to_string(workspace().join("SEMANTICS.md")).expect("SEMANTICS.md");
    let functions = functions();
    let mut wrong = Vec::new();
    for paragraph in text.split("\n\n").map(str::trim).filter(|paragraph| !paragraph.is_empty()) {
        // Headings and the introduction before the first of them are no promises.
        let first = paragraph.lines().next().unwrap_or_default();
        if paragraph.lines().all(|line| line.starts_with('#'))
            || !text[..position(&text, paragraph)].contains("\n## ")
        {
            continue;
        }
        match paragraph.lines().find_map(|line| line.trim().trim_start_matches("- ").strip_prefix("Test: ")) {
            None => wrong.push(format!("no test is named: {first}")),
            Some(names) => wrong.extend(
                names
                    .split(',')
                    .map(|name| name.trim().trim_matches(['`', '.']))
                    .filter(|name| !functions.contains(name.rsplit("::").next().unwrap_or(name)))
                    .map(|name| format!("there is no test {name}: {first}")),
            ),
        }
    }
    assert!(wrong.is_empty(), "{} paragraphs:\n{}", wrong.len(), wrong.join("\n"));
}

fn position(text: &str, part: &str) -> usize {
    text.find(part).unwrap_or(0)
}

fn functions() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for source in rust_files(workspace()) {
        let text = fs::read_to_string(source).expect("read a source");
        for after in text.split("fn ").skip(1) {
            names.insert(after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    names
}

struct Source {
    /// Path from the workspace's root.
    name: String,
    text: String,
}

impl Source {
    /// Lines of code with their numbers: no comments, and nothing behind `#[cfg(test)]`, which stands last in a file.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let numbered = self.text.lines().enumerate().map(|(i, line)| (i + 1, line));
        numbered
            .take_while(|(_, line)| line.trim() != "#[cfg(test)]")
            .map(|(i, line)| (i, without_comment(line)))
            .filter(|(_, line)| !line.trim().is_empty())
    }
}

fn without_comment(line: &str) -> &str {
    // A URL in a string has no blank before its slashes.
    let begins = |at: usize| line[..at].chars().next_back().is_none_or(char::is_whitespace);
    line.match_indices("//").find(|(at, _)| begins(*at)).map_or(line, |(at, _)| &line[..at])
}

/// The product's sources; tests may do what they like.
fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    for path in rust_files(workspace()) {
        let name = path.strip_prefix(workspace()).expect("inside").to_string_lossy().into_owned();
        let is_test = name.starts_with("tests/")
            || name.contains("/tests/")
            || name.ends_with("/tests.rs")
            || name.contains("conformance")
            || name.contains("/fuzz/");
        if !is_test {
            found.push(Source { text: fs::read_to_string(&path).expect("read a source"), name });
        }
    }
    assert!(found.len() > 15, "only {} sources were found", found.len());
    found
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("list").map(|entry| entry.expect("entry").path()) {
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if entry.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(rust_files(&entry));
        } else if entry.extension().is_some_and(|end| end == "rs") {
            found.push(entry);
        }
    }
    found
}

/// `Status::not_found(` calls; `Status::NotFound` and `ExitStatus::from` do not count.
fn calls_a_function_of(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = &line[at + name.len()..];
        let function: String = after.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
        !before.is_some_and(char::is_alphanumeric)
            && !function.is_empty()
            && after[function.len()..].starts_with('(')
    })
}

/// `libc::ENOENT` names one, `libc::EPOLLIN` is something else, but nobody outside the engine needs that either.
fn names_an_errno(line: &str, prefix: &str) -> bool {
    line.match_indices(prefix)
        .any(|(at, _)| line[at + prefix.len()..].starts_with(|c: char| c.is_ascii_uppercase()))
}

fn holds_sql(line: &str) -> bool {
    ["SELECT ", "INSERT INTO ", "DELETE FROM ", "CREATE TABLE ", "PRAGMA ", "ON CONFLICT"]
        .iter()
        .any(|word| line.contains(word))
        || (line.contains("UPDATE ") && line.contains(" SET "))
}

#[test]
fn the_rules_see_what_they_are_meant_to_see() {
    assert!(calls_a_function_of("return Err(Status::not_found(\"x\"))", "Status::"));
    assert!(calls_a_function_of("tonic::Status::new(code, text)", "Status::"));
    assert!(!calls_a_function_of("ExitStatus::from_raw(0)", "Status::"));
    assert!(!calls_a_function_of("Result<Response<T>, Status>", "Status::"));
    assert!(names_an_errno("return libc::ENOENT;", "libc::E") && !names_an_errno("libc::open", "libc::E"));
    assert!(holds_sql("\"UPDATE tenant SET seq = $1\"") && !holds_sql("update the set"));
    let source = Source {
        name: String::new(),
        text: "//! doc\nlet url = \"a://b\"; // SELECT \n#[cfg(test)]\ntodo!(".into(),
    };
    let code: Vec<_> = source.code().map(|(_, line)| line.trim()).collect();
    assert_eq!(code, ["let url = \"a://b\";"]);
}
