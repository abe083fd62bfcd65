//! What is deployed and what is written about it are of one piece with the programs. `make chart` has what needs helm, `make e2e` what needs a cluster.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tarbox_tests::{
    command::{end_of, succeed},
    deadline::wait_for,
    product::{program, workspace},
};

const LIMIT: Duration = Duration::from_secs(60);
/// The pages of the operations guide.
const GUIDE: [&str; 7] =
    ["README.md", "install.md", "upgrade.md", "size.md", "trouble.md", "disaster.md", "security.md"];

fn read(path: impl AsRef<Path>) -> String {
    let path = workspace().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn page(name: &str) -> String {
    read(Path::new("deploy/docs").join(name))
}

/// What a program says of itself, or of one of its commands; `None` where it knows no such command.
fn help(name: &str, words: &[&str]) -> Option<String> {
    let mut command = Command::new(program(name));
    succeed(command.args(words).arg("--help"), LIMIT).ok()
}

fn has_flag(help: &str, flag: &str) -> bool {
    help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).any(|word| word == flag)
}

// === The chart ===

#[test]
fn alerts_and_dashboard_of_the_chart_are_those_of_the_project() {
    for name in ["alerts.yaml", "dashboard.json"] {
        let link = workspace().join("deploy/charts/tarbox-csi/files").join(name);
        let source = workspace().join("deploy/monitoring").join(name);
        assert_eq!(fs::canonicalize(&link).expect("a link"), fs::canonicalize(&source).expect("there"));
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink(), "{} is a copy", link.display());
    }
}

#[test]
fn the_charts_version_is_the_products() {
    let workspace: toml::Table = read("Cargo.toml").parse().expect("TOML");
    let version = workspace["workspace"]["package"]["version"].as_str().expect("a version");
    assert!(
        read("deploy/charts/tarbox-csi/Chart.yaml")
            .lines()
            .any(|line| line == format!("appVersion: {version}"))
    );
}

#[test]
fn the_charts_sidecars_are_those_that_the_cluster_of_the_tests_runs() {
    let chart = read("deploy/charts/tarbox-csi/values.yaml");
    let built = read("tests/cluster/go/sidecars/go.mod");
    for name in ["provisioner", "attacher", "resizer", "snapshotter"] {
        let image = format!("sig-storage/csi-{name}, tag: ");
        let tag = chart.lines().find_map(|line| line.split_once(&image)?.1.split('}').next());
        let tag = tag.unwrap_or_else(|| panic!("no tag of csi-{name}"));
        let module = format!("github.com/kubernetes-csi/external-{name}/");
        let is_that = |line: &str| line.trim().starts_with(&module) && line.ends_with(&format!(" {tag}"));
        assert!(built.lines().any(is_that), "csi-{name} is {tag} in the chart, and another one is built");
    }
}

#[test]
fn every_flag_that_is_deployed_is_known_to_its_program() {
    for name in ["sqlite.yaml", "postgresql.yaml"] {
        let manifest = read(Path::new("deploy/manifests").join(name));
        let mut seen = BTreeSet::new();
        let mut words = Vec::new();
        for line in manifest.lines().map(str::trim) {
            if let Some(command) = line.strip_prefix("command: [") {
                words = vec![command.trim_end_matches(']').to_owned()];
            } else if line.starts_with("image:") {
                words.clear();
            } else if words.len() == 1 && line == "- serve" {
                words.push("serve".to_owned());
            } else if let ([ours, command], Some(flag)) = (&words[..], line.strip_prefix("- --")) {
                let flag = format!("--{}", flag.split('=').next().unwrap_or_default());
                let help = help(ours, &[command]).expect("help");
                assert!(has_flag(&help, &flag), "{name}: {ours} {command} knows no {flag}");
                seen.insert((ours.clone(), flag));
            }
        }
        assert!(seen.len() > 20, "{name}: flags are no longer found: {seen:?}");
    }
}

// === The guide ===

/// Code in a page: its spans and its indented lines.
fn code(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    for line in text.lines() {
        match line.strip_prefix("    ") {
            Some(line) => all.push(line.split(" # ").next().unwrap_or_default().to_owned()),
            None => all.extend(line.split('`').skip(1).step_by(2).map(str::to_owned)),
        }
    }
    all
}

/// The call of one of our programs in code: the program, and its words up to a pipe.
fn call(code: &str) -> Option<(&'static str, Vec<String>)> {
    // Its releases are called as the program is, and so are its users in SQL.
    let first = code.split_whitespace().next().unwrap_or_default();
    if first == "helm" || first.chars().all(|c| c.is_ascii_uppercase()) {
        return None;
    }
    const NAMES: [(&str, &str); 4] = [
        ("kubectl tarbox ", "tarbox"),
        ("tarbox-agent ", "tarbox-agent"),
        ("tarbox-controller ", "tarbox-controller"),
        ("tarbox ", "tarbox"),
    ];
    let starts = |at: usize| {
        let before = code[..at].chars().next_back();
        before.is_none_or(|c| c.is_whitespace() || c == '(')
    };
    let found = NAMES.iter().find_map(|&(shown, name)| {
        let at = code.match_indices(shown).map(|(at, _)| at).find(|at| starts(*at))?;
        Some((&code[at + shown.len()..], name, shown.starts_with("kubectl")))
    })?;
    let (rest, name, is_plugin) = found;
    let rest = rest.split(['|', ';', ')', '>']).next().unwrap_or_default();
    let words = is_plugin.then_some("kubectl").into_iter().chain(rest.split_whitespace());
    Some((name, words.map(str::to_owned).collect()))
}

#[test]
fn every_command_of_the_guide_is_one_that_there_is() {
    let mut seen = 0;
    for page in GUIDE.map(|name| (name, self::page(name))) {
        for (program, words) in code(&page.1).iter().filter_map(|code| call(code)) {
            let plain = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase());
            let commands: Vec<&str> = words.iter().map(String::as_str).take_while(plain).take(2).collect();
            // The second word may be an argument.
            let found = (1..=commands.len()).rev().find_map(|count| help(program, &commands[..count]));
            let found =
                found.unwrap_or_else(|| panic!("{}: there is no `{program} {}`", page.0, words.join(" ")));
            for flag in words.iter().filter(|word| word.starts_with("--") && word.len() > 2) {
                let flag = flag.split('=').next().unwrap_or_default();
                assert!(
                    has_flag(&found, flag),
                    "{}: `{program} {}` knows no {flag}",
                    page.0,
                    words.join(" ")
                );
            }
            seen += 1;
        }
    }
    assert!(seen > 20, "commands are no longer found: {seen}");
}

#[test]
fn every_alert_has_its_row_and_no_other_has() {
    let names = |text: &str, before: &str, after: char| -> BTreeSet<String> {
        let named = text.lines().filter_map(|line| line.trim().strip_prefix(before)?.split(after).next());
        named.map(str::to_owned).collect()
    };
    let alerts = names(&read("deploy/monitoring/alerts.yaml"), "- alert: ", ' ');
    let rows: BTreeSet<_> =
        names(&page("trouble.md"), "| `Tarbox", '`').iter().map(|rest| format!("Tarbox{rest}")).collect();
    assert!(alerts.len() > 5, "{alerts:?}");
    assert_eq!(alerts, rows);
}

/// All Rust of the product in one, with strings that go over several lines put together.
fn sources() -> String {
    fn collect(directory: &Path, into: &mut String) {
        let mut entries: Vec<PathBuf> =
            fs::read_dir(directory).expect("list").map(|entry| entry.expect("entry").path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() && !path.ends_with("target") && !path.ends_with("tests") {
                collect(&path, into);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                into.push_str(&fs::read_to_string(&path).expect("read"));
            }
        }
    }
    let mut all = String::new();
    for part in ["agent", "controller", "mounter", "proto"] {
        collect(&workspace().join(part), &mut all);
    }
    let mut joined = String::new();
    let mut lines = all.lines();
    while let Some(line) = lines.next() {
        let mut line = line.to_owned();
        while line.ends_with('\\') {
            line.pop();
            line.push_str(lines.next().unwrap_or_default().trim_start());
        }
        joined.push_str(&line);
        joined.push('\n');
    }
    joined
}

/// Messages that are not ours: of Kubernetes, of helm, of the kernel's errors as the C library words them.
const FOREIGN: [&str; 20] = [
    "no topology key found on CSINode",
    "driver name tarbox.csi.io not found in the list of registered CSI drivers",
    "No space left on device",
    "File too large",
    "Read-only file system",
    "Input/output error",
    "Transport endpoint is not connected",
    "Operation not permitted",
    "Permission denied",
    "pods … is forbidden: violates PodSecurity",
    "pods with system-node-critical priorityClass is not permitted",
    "cannot be imported into the current release",
    "got number, want string",
    "updates to parameters are forbidden",
    "field is immutable",
    "readyz",
    "Retain",
    "Terminating",
    "Released",
    "fsGroup",
];

#[test]
fn every_message_of_the_guide_is_one_that_the_programs_say() {
    let sources = sources();
    let mut seen = 0;
    for line in
        page("trouble.md").lines().filter(|line| line.starts_with("| ") && !line.starts_with("| `Tarbox"))
    {
        let first = line.trim_start_matches("| ").split(" | ").next().unwrap_or_default();
        for message in first.split('`').skip(1).step_by(2).filter(|message| !FOREIGN.contains(message)) {
            for piece in message
                .split('…')
                .map(|piece| piece.trim().trim_end_matches([';', ':', '(']))
                .filter(|piece| piece.len() > 3)
            {
                assert!(sources.contains(piece), "nobody says `{piece}` of `{message}`");
                seen += 1;
            }
        }
    }
    assert!(seen > 50, "messages are no longer found: {seen}");
}

#[test]
fn every_link_of_the_guide_leads_somewhere() {
    let anchors = |text: &str| -> BTreeSet<String> {
        let headings = text.lines().filter(|line| line.starts_with('#'));
        headings
            .map(|line| {
                let title = line.trim_start_matches('#').trim().to_lowercase();
                let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
                kept.collect::<String>().replace(' ', "-")
            })
            .collect()
    };
    let mut seen = 0;
    for name in GUIDE {
        let text = page(name);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("https://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { text.clone() } else { page(file) };
            assert!(anchor.is_empty() || anchors(&target).contains(anchor), "{name}: {link} leads nowhere");
            seen += 1;
        }
    }
    assert!(seen > 20, "links are no longer found: {seen}");
}

#[test]
fn every_value_of_the_chart_that_the_guide_names_is_one_that_there_is() {
    let schema: Value =
        serde_json::from_str(&read("deploy/charts/tarbox-csi/values.schema.json")).expect("JSON");
    let knows = |path: &str| {
        let mut place = &schema;
        for part in path.split('.') {
            while let Some(name) = place["$ref"].as_str() {
                place = schema.pointer(name.trim_start_matches('#')).expect("a definition");
            }
            match place["properties"]
                .get(part)
                .or_else(|| place.get("additionalProperties").filter(|free| free.is_object()))
            {
                Some(next) => place = next,
                None => return false,
            }
        }
        true
    };
    let top: Vec<&String> = schema["properties"].as_object().expect("properties").keys().collect();
    let is_value = |word: &str| {
        let parts = word.split_once('.');
        !word.contains('/')
            && parts.is_some_and(|(first, rest)| {
                top.iter().any(|key| *key == first) && rest.starts_with(char::is_alphabetic)
            })
    };
    let mut seen = 0;
    for name in GUIDE {
        for word in code(&page(name)).iter().flat_map(|code| code.split([' ', '=', ':', ','])) {
            let word = word.trim_end_matches(['…', '.']);
            if is_value(word) {
                assert!(knows(word), "{name}: the chart has no value {word}");
                seen += 1;
            }
        }
    }
    assert!(seen > 30, "values are no longer found: {seen}");
}

// === Agent and runtime ===

/// A node's two pods, each a process.
struct Pods {
    directory: tempfile::TempDir,
    running: Vec<Child>,
}

impl Pods {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start(&mut self, name: &str, words: &[String]) -> usize {
        let log = File::create(self.path(name)).expect("a log");
        let mut command = Command::new(program(name));
        command.args(words).stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        self.running.push(command.spawn().expect("start"));
        self.running.len() - 1
    }

    fn agent(&mut self) -> usize {
        let flag = |name: &str, file: &str| format!("--{name}={}", self.path(file).display());
        let words = [
            "serve".to_owned(),
            "--launcher=runtime".to_owned(),
            "--node-id=n".to_owned(),
            flag("endpoint", "csi.sock"),
            flag("state-dir", "state"),
            flag("run-dir", "run"),
            flag("keeper-socket", "keeper.sock"),
        ];
        self.start("tarbox-agent", &words)
    }

    fn says(&self, name: &str, text: &str) {
        wait_for(text, LIMIT, || fs::read_to_string(self.path(name)).ok().filter(|log| log.contains(text)))
            .expect(text);
    }

    /// Asks a process to end; how it did.
    fn end(&mut self, which: usize) -> Option<i32> {
        let child = &mut self.running[which];
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("signal");
        let ended = wait_for("its end", LIMIT, || child.try_wait().expect("wait"));
        ended.expect("it ends").code()
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn an_agent_waits_for_the_runtime_and_its_doctor_looks_where_it_does() {
    let mut pods = Pods { directory: tempfile::tempdir().expect("a directory"), running: Vec::new() };
    let early = pods.agent();
    pods.says("tarbox-agent", "waiting for the keeper");
    assert_eq!(pods.end(early), Some(0), "one that waits can be ended");

    let agent = pods.agent();
    pods.says("tarbox-agent", "waiting for the keeper");
    let socket = pods.path("keeper.sock").to_string_lossy().into_owned();
    let keeper = pods.start("tarbox-keeper", &["--socket".to_owned(), socket]);
    pods.says("tarbox-agent", "serving CSI at");
    let state = pods.path("state").to_string_lossy().into_owned();
    let mut doctor = Command::new(program("tarbox-agent"));
    let told = end_of(doctor.args(["doctor", "-o", "json", "--state-dir", &state]), LIMIT).expect("doctor");
    let told: Value = serde_json::from_str(&told.stdout).expect("JSON");
    let of = |what: &str| {
        told.as_array().expect("findings").iter().find(|row| row["what"] == what).expect("a row").clone()
    };
    assert_eq!(of("keeper")["state"], "fine", "{told}");
    assert_eq!(of("launcher")["state"], "fine", "{told}");
    let run = pods.path("run").to_string_lossy().into_owned();
    assert!(of("run directory")["found"].as_str().is_some_and(|found| found.starts_with(&run)), "{told}");
    assert_eq!((pods.end(agent), pods.end(keeper)), (Some(0), Some(0)));
}
