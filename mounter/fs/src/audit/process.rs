//! Which process a request comes from: asked of /proc while the process waits for its answer, because a moment later it may be gone.

use std::{
    fs::File,
    io::Read,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use uuid::Uuid;

use super::note::{PROCESS_MAX, Who};

/// So long an answer counts, and so long a new process is asked about each time: one that was just forked executes something else next.
const COUNTS: Duration = Duration::from_millis(10);
/// A process that was not seen for so long is another one of the same number, perhaps.
const REMEMBERED: Duration = Duration::from_secs(1);
/// So many are kept before those not seen for a while go.
const KEPT: usize = 2048;

struct Known {
    who: Who,
    since: Instant,
    asked: Instant,
}

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Processes {
    known: Mutex<FxHashMap<u32, Known>>,
}

impl Processes {
    /// Who `thread` is, as FUSE says it: 0 = it is outside of what this mount sees.
    pub(crate) fn who(&self, thread: u32, now: Instant) -> Who {
        if thread == 0 {
            return Who::default();
        }
        let before = match self.known.lock().get(&thread) {
            Some(known) if is_settled(known, now) => return known.who,
            Some(known) if now.duration_since(known.asked) < REMEMBERED => Some((known.who, known.since)),
            _ => None,
        };
        let (mut who, since) = before.unwrap_or_else(|| (first_look(thread), now));
        who.process = process_name(who.pid);
        let mut known = self.known.lock();
        if known.len() >= KEPT {
            known.retain(|_, known| now.duration_since(known.asked) < REMEMBERED);
        }
        known.insert(thread, Known { who, since, asked: now });
        who
    }
}

fn is_settled(known: &Known, now: Instant) -> bool {
    now.duration_since(known.since) > COUNTS && now.duration_since(known.asked) < COUNTS
}

fn first_look(thread: u32) -> Who {
    let mut buffer = [0; 4096];
    let status = read(&format!("/proc/{thread}/status"), &mut buffer);
    let pid = field(status, "Tgid:").and_then(|pid| pid.parse().ok()).unwrap_or(thread);
    let mut buffer = [0; 4096];
    let pod = pod_in(&String::from_utf8_lossy(read(&format!("/proc/{pid}/cgroup"), &mut buffer)));
    Who { pid, process: [0; PROCESS_MAX], pod }
}

fn process_name(pid: u32) -> [u8; PROCESS_MAX] {
    let mut buffer = [0; 64];
    let name = read(&format!("/proc/{pid}/comm"), &mut buffer);
    let name = name.strip_suffix(b"\n").unwrap_or(name);
    let mut process = [0; PROCESS_MAX];
    let len = name.len().min(PROCESS_MAX);
    process[..len].copy_from_slice(&name[..len]);
    process
}

/// What of a small file fits; nothing where it cannot be read.
fn read<'b>(path: &str, buffer: &'b mut [u8]) -> &'b [u8] {
    let read = File::open(path).and_then(|mut file| file.read(buffer)).unwrap_or(0);
    &buffer[..read]
}

fn field<'t>(text: &'t [u8], name: &str) -> Option<&'t str> {
    let text = std::str::from_utf8(text).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// The pod in a process's control group: `…/pod<uid>/…`, or with systemd `…-pod<uid with _>.slice/…`.
fn pod_in(cgroups: &str) -> Option<Uuid> {
    cgroups.match_indices("pod").find_map(|(at, word)| {
        let uid = cgroups.get(at + word.len()..at + word.len() + 36)?;
        Uuid::parse_str(&uid.replace('_', "-")).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_found_in_its_control_group_however_that_is_named() {
        let uid = Uuid::parse_str("3f2b8c1e-0d4a-4b6f-9a57-1c2d3e4f5a6b").unwrap();
        for path in [
            "0::/kubepods/burstable/pod3f2b8c1e-0d4a-4b6f-9a57-1c2d3e4f5a6b/0123456789",
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod3f2b8c1e_0d4a_4b6f_9a57_1c2d3e4f5a6b.slice/cri-containerd-0.scope",
            "12:cpu:/podman/x\n0::/kubelet/kubepods/pod3f2b8c1e-0d4a-4b6f-9a57-1c2d3e4f5a6b\n",
        ] {
            assert_eq!(pod_in(path), Some(uid), "{path}");
        }
        for path in ["", "0::/user.slice/pod", "0::/pods/é3f2b8c1e-0d4a-4b6f-9a57-1c2d3e4f5a6", "0::/"] {
            assert_eq!(pod_in(path), None, "{path}");
        }
    }

    #[test]
    fn a_thread_is_told_as_its_process() {
        let processes = Processes::default();
        let thread = std::thread::spawn(move || {
            let who = processes.who(nix::unistd::gettid().as_raw() as u32, Instant::now());
            (who, nix::unistd::gettid().as_raw() as u32)
        });
        let (who, thread) = thread.join().unwrap();
        assert_eq!(who.pid, std::process::id());
        assert_ne!(thread, who.pid);
        assert!(!who.name().is_empty());
    }

    #[test]
    fn one_that_cannot_be_seen_has_no_name() {
        let processes = Processes::default();
        assert_eq!(processes.who(0, Instant::now()), Who::default());
        // Beyond the highest pid that Linux gives.
        let gone = processes.who(1 << 23, Instant::now());
        assert_eq!((gone.pid, gone.name()), (1 << 23, &b""[..]));
    }

    #[test]
    fn what_a_new_process_executes_is_noticed_at_once_and_later_soon() {
        let now = Instant::now();
        let known = |since, asked| Known { who: Who::default(), since: now - since, asked: now - asked };
        let ms = Duration::from_millis;
        assert!(!is_settled(&known(ms(1), ms(0)), now), "new");
        assert!(is_settled(&known(ms(50), ms(5)), now));
        assert!(!is_settled(&known(ms(50), ms(15)), now), "asked long ago");
    }
}
