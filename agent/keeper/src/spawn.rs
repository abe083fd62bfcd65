//! Starting a process exactly as ordered, and knowing it afterwards.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};
use std::process::{Command, Stdio};

use rustix::io::fcntl_dupfd_cloexec;
use tarbox_handover::{CONTROL_FD, ProcessId, SpawnSpec, SupervisorLink};

use crate::KeeperError;
use crate::exec::{Orders, STEPS};

/// Descriptors that the child is to have at hand are moved behind those it will have.
const OUT_OF_THE_WAY: i32 = 10;
/// Resource limits of the kernel: `RLIM_NLIMITS`.
const LIMITS: u32 = 16;

/// A process that was started.
#[derive(Debug)]
pub struct Started {
    /// Which one.
    pub id: ProcessId,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// The supervisor's end of its link.
    pub link: SupervisorLink,
}

/// Starts a process; `descriptors` are those that `spec` names by their place. It is a child of this process, which has
/// to [`crate::reap`] it.
///
/// # Errors
/// Where it cannot be executed: with the step that failed, and the system's reason. Nothing is left behind then.
pub fn spawn(spec: &SpawnSpec, descriptors: &[OwnedFd]) -> Result<Started, KeeperError> {
    check(spec, descriptors)?;
    let program = String::from_utf8_lossy(&spec.argv[0]).into_owned();
    let failed = |step: &str| {
        let (program, step) = (program.clone(), step.to_owned());
        move |source: io::Error| KeeperError::Spawn { program, step, source }
    };
    let (link, control) = SupervisorLink::pair()?;
    let (mut told, tell) = io::pipe().map_err(failed("make a pipe"))?;
    // Held until the child has been made: its own error pipe must not come to lie where the link will be.
    let _reserved = fcntl_dupfd_cloexec(&control, CONTROL_FD)
        .map_err(|errno| failed("make room for the link")(errno.into()))?;
    let orders = Orders {
        control: away(&control).map_err(failed("move the link"))?,
        executable: away(&descriptors[spec.executable as usize]).map_err(failed("move the executable"))?,
        cgroups: cgroups(spec)?,
        highest: highest_descriptor(),
        tell: away(&tell).map_err(failed("move a pipe"))?,
        spec: spec.clone(),
    };
    drop(tell);
    let mut command = Command::new(&program);
    // Where no volume is: a working directory would keep one busy.
    command.current_dir("/").stdin(Stdio::null());
    command.stdout(output(spec, descriptors).map_err(failed("duplicate the log"))?);
    command.stderr(output(spec, descriptors).map_err(failed("duplicate the log"))?);
    orders.give(&mut command);
    let child = command.spawn();
    // With it goes the pipe's other end, so that reading ends.
    drop(command);
    let child = child.map_err(|source| {
        let mut step = [0];
        let named = told.read(&mut step).is_ok_and(|read| read == 1);
        let step = named.then(|| STEPS.get(usize::from(step[0]))).flatten();
        failed(step.copied().unwrap_or("make a process"))(source)
    })?;
    // It is not reaped yet, so that its pid means nobody else.
    let id = ProcessId::of(child.id())?;
    Ok(Started { id, pidfd: id.open()?, link })
}

fn output(spec: &SpawnSpec, descriptors: &[OwnedFd]) -> io::Result<Stdio> {
    Ok(match spec.log {
        Some(log) => descriptors[log as usize].try_clone()?.into(),
        None => Stdio::null(),
    })
}

fn away(descriptor: impl AsFd) -> io::Result<OwnedFd> {
    Ok(fcntl_dupfd_cloexec(descriptor, OUT_OF_THE_WAY)?)
}

/// Opened here, so that what is wrong with a path is told, and the child has only to write.
fn cgroups(spec: &SpawnSpec) -> Result<Vec<OwnedFd>, KeeperError> {
    let open = |directory: &String| {
        let path = Path::new(directory).join("cgroup.procs");
        let opened = OpenOptions::new().write(true).open(&path);
        let file = opened.map_err(KeeperError::io(format!("open {}", path.display())))?;
        away(&file).map_err(KeeperError::io("move a descriptor"))
    };
    spec.cgroups.iter().map(open).collect()
}

/// For kernels before 5.11, where each descriptor has to be closed by its number.
fn highest_descriptor() -> i32 {
    let numbers = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
    let numbers = numbers.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers.max().unwrap_or(1024)
}

/// Refuses orders that cannot be carried out, before anything is done.
pub(crate) fn check(spec: &SpawnSpec, descriptors: &[OwnedFd]) -> Result<(), KeeperError> {
    let wrong = |field, value: String, allowed| Err(KeeperError::Value { field, value, allowed });
    let count = descriptors.len();
    if spec.executable as usize >= count {
        return wrong("executable", spec.executable.to_string(), "the place of a descriptor of the message");
    }
    if let Some(log) = spec.log.filter(|&log| log as usize >= count) {
        return wrong("log", log.to_string(), "the place of a descriptor of the message");
    }
    let texts = spec.argv.iter().chain(&spec.env);
    if let Some(text) = texts.clone().find(|text| text.contains(&0)) {
        return wrong("argv or env", String::from_utf8_lossy(text).into_owned(), "text without NUL");
    }
    if spec.argv.is_empty() {
        return wrong("argv", String::new(), "at least the program's name");
    }
    if let Some(text) = spec.env.iter().find(|text| !text.contains(&b'=')) {
        return wrong("env", String::from_utf8_lossy(text).into_owned(), "NAME=value");
    }
    if let Some(limit) = spec.limits.iter().find(|limit| limit.resource >= LIMITS || limit.soft > limit.hard)
    {
        let value = format!("{} {}:{}", limit.resource, limit.soft, limit.hard);
        return wrong("limits", value, "a resource below 16, soft not above hard");
    }
    if let Some(adj) = spec.oom_score_adj.filter(|adj| !(-999..=1000).contains(adj)) {
        return wrong("oom_score_adj", adj.to_string(), "-999 to 1000");
    }
    if let Some(nice) = spec.nice.filter(|nice| !(-20..=19).contains(nice)) {
        return wrong("nice", nice.to_string(), "-20 to 19");
    }
    if let Some(path) = spec.cgroups.iter().find(|path| !is_plain(path)) {
        return wrong("cgroups", path.clone(), "an absolute path without `..`");
    }
    Ok(())
}

fn is_plain(path: &str) -> bool {
    path.starts_with('/') && !Path::new(path).components().any(|part| part == Component::ParentDir)
}
