//! Calling kubectl: one process a question, JSON for an answer.

use std::{
    env,
    ffi::OsString,
    fmt,
    io::{self, Read, Write},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tarbox_handover::{ProcessId, process::wait_exit};
use tarbox_types::ErrorKind;

use super::objects::{List, Pod};
use crate::failure::Failure;

/// The environment variable that names another kubectl.
const VARIABLE: &str = "KUBECTL";
/// How long one question may take: an API server behind a slow proxy, a node under load.
const LIMIT: Duration = Duration::from_secs(60);
/// What selects the driver's pods and workloads, whatever the release is called.
const OURS: &str = "app.kubernetes.io/part-of=tarbox";
/// The label that tells them apart; its values are the names of their containers.
const COMPONENT: &str = "app.kubernetes.io/component";

/// Why kubectl gave no answer.
#[derive(Debug, thiserror::Error)]
enum KubectlError {
    #[error("`{}` cannot be started: {source}; install kubectl, or name it in the variable {VARIABLE}", program.display())]
    Start { program: OsString, source: io::Error },
    #[error("`{command}` has not answered within {LIMIT:?}")]
    Late { command: String },
    #[error("`{command}`: {said}")]
    Refused { command: String, said: String },
    #[error("`{command}` answered something else than was asked for: {source}")]
    Answer { command: String, source: serde_json::Error },
    #[error("`{command}`: {source}")]
    Pipe { command: String, source: io::Error },
}

impl KubectlError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Start { .. } => ErrorKind::FailedPrecondition,
            Self::Late { .. } | Self::Pipe { .. } => ErrorKind::Unavailable,
            // Source: kubectl prints the reason of the API's Status, as in `Error from server (NotFound): …`.
            Self::Refused { said, .. } if said.contains("(NotFound)") => ErrorKind::NotFound,
            Self::Refused { said, .. } if said.contains("(AlreadyExists)") => ErrorKind::AlreadyExists,
            Self::Refused { .. } | Self::Answer { .. } => ErrorKind::Internal,
        }
    }
}

impl From<KubectlError> for Failure {
    fn from(error: KubectlError) -> Self {
        Self::Refused { kind: error.kind(), message: error.to_string() }
    }
}

/// A way to a cluster.
#[derive(Debug)]
pub(super) struct Kubectl {
    program: OsString,
    /// Flags of every call.
    flags: Vec<String>,
    namespace: Option<String>,
}

/// Which component of the driver a pod or a workload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Component {
    Controller,
    Agent,
    Runtime,
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Controller => "controller",
            Self::Agent => "agent",
            Self::Runtime => "runtime",
        })
    }
}

impl Kubectl {
    pub(super) fn new(
        namespace: Option<String>,
        context: Option<String>,
        kubeconfig: Option<String>,
    ) -> Self {
        let program =
            env::var_os(VARIABLE).filter(|name| !name.is_empty()).unwrap_or_else(|| "kubectl".into());
        let flag = |name: &str, value: Option<String>| value.map(|value| format!("--{name}={value}"));
        let flags =
            [flag("context", context), flag("kubeconfig", kubeconfig)].into_iter().flatten().collect();
        Self { program, flags, namespace }
    }

    /// `kubectl get WORDS`, of the whole cluster or of what `words` say.
    pub(super) fn get<T: DeserializeOwned>(&self, words: &[&str]) -> Result<T, Failure> {
        let mut all = vec!["get"];
        all.extend(words);
        all.extend(["-o", "json"]);
        self.json(&all, None)
    }

    /// `kubectl get WORDS` in the namespace that the user named, or in that of the context.
    pub(super) fn get_here<T: DeserializeOwned>(&self, words: &[&str]) -> Result<T, Failure> {
        let namespace = self.namespace.as_ref().map(|name| format!("--namespace={name}"));
        let mut all = words.to_vec();
        all.extend(namespace.as_deref());
        self.get(&all)
    }

    /// `kubectl create` of one object.
    pub(super) fn create(&self, object: &Value) -> Result<Value, Failure> {
        self.json(&["create", "-f", "-", "-o", "json"], Some(object.to_string()))
    }

    /// Has something done; what kubectl says of it does not matter.
    pub(super) fn order(&self, words: &[&str]) -> Result<(), Failure> {
        let command = format!("{} {}", self.program.display(), words.join(" "));
        let said = self.run(words, None, &command)?;
        if said.is_done { Ok(()) } else { Err(KubectlError::Refused { command, said: said.error() }.into()) }
    }

    /// The driver's pods of a component, in any namespace.
    pub(super) fn pods(&self, component: Component) -> Result<Vec<Pod>, Failure> {
        let selector = format!("{OURS},{COMPONENT}={component}");
        let found: List<Pod> = self.get(&["pods", "--all-namespaces", "--selector", &selector])?;
        Ok(found.items)
    }

    /// The driver's Deployments and DaemonSets of a component, in any namespace.
    pub(super) fn workloads<T: DeserializeOwned>(
        &self,
        kind: &str,
        component: Component,
    ) -> Result<Vec<T>, Failure> {
        let selector = format!("{OURS},{COMPONENT}={component}");
        let found: List<T> = self.get(&[kind, "--all-namespaces", "--selector", &selector])?;
        Ok(found.items)
    }

    /// Runs one of our programs in a pod of ours; its JSON, whatever its exit code: one that finds faults says them and fails.
    pub(super) fn exec<T: DeserializeOwned>(
        &self,
        pod: &Pod,
        component: Component,
        words: &[&str],
    ) -> Result<T, Failure> {
        let namespace = format!("--namespace={}", pod.metadata.namespace);
        let container = component.to_string();
        let mut all = vec!["exec", &namespace, &pod.metadata.name, "--container", &container, "--"];
        all.extend(words);
        self.json(&all, None)
    }

    fn json<T: DeserializeOwned>(&self, words: &[&str], input: Option<String>) -> Result<T, Failure> {
        let command = format!("{} {}", self.program.display(), words.join(" "));
        let said = self.run(words, input, &command)?;
        // `exec` fails with what it ran; that may have said what was asked for all the same.
        match serde_json::from_slice(&said.out) {
            Ok(answer) => Ok(answer),
            Err(source) if said.is_done => Err(KubectlError::Answer { command, source }.into()),
            Err(_) => Err(KubectlError::Refused { command, said: said.error() }.into()),
        }
    }

    fn run(&self, words: &[&str], input: Option<String>, command: &str) -> Result<Said, KubectlError> {
        let mut child = Command::new(&self.program)
            .args(&self.flags)
            .args(words)
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| KubectlError::Start { program: self.program.clone(), source })?;
        let failed = |source| KubectlError::Pipe { command: command.to_owned(), source };
        let (out, err) = (reading(child.stdout.take()), reading(child.stderr.take()));
        if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
            // One that ends without reading says why.
            let _ = pipe.write_all(input.as_bytes());
        }
        if !ends(&child) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(KubectlError::Late { command: command.to_owned() });
        }
        let status = child.wait().map_err(failed)?;
        let read = |thread: Reading| thread.join().unwrap_or_else(|_| Ok(Vec::new()));
        let (out, err) = (read(out).map_err(failed)?, read(err).map_err(failed)?);
        Ok(Said { is_done: status.success(), out, err })
    }
}

type Reading = thread::JoinHandle<io::Result<Vec<u8>>>;

/// Reads to the end beside whatever else is done: a full pipe would stop the program.
fn reading(pipe: Option<impl Read + Send + 'static>) -> Reading {
    thread::spawn(move || {
        let mut all = Vec::new();
        pipe.map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut all)).map(|_| all)
    })
}

/// Whether it ends in time.
fn ends(child: &Child) -> bool {
    let pidfd = ProcessId::of(child.id()).and_then(ProcessId::open);
    pidfd.and_then(|pidfd| wait_exit(pidfd, LIMIT)).unwrap_or(false)
}

/// What kubectl said, and whether it was content.
struct Said {
    is_done: bool,
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Said {
    /// What it complained of, in one line.
    fn error(&self) -> String {
        let text = String::from_utf8_lossy(&self.err);
        let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if lines.is_empty() { "it failed without a word".to_owned() } else { lines.join("; ") }
    }
}
