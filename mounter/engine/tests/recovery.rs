//! A successor finishes what its predecessor had read: crafted leftovers, one rule a test, then kill -9 under load.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod stage;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use stage::{
    DEADLINE, Killed, Stage, apply, as_file, count, duplicate, eventually, inheritable, parts_of, start,
    start_recovering, within,
};
use tarbox_engine::nullfs::{MemFs, MemFsOptions};
use tarbox_engine::{Recovered, Session, SessionConfig, SessionParts, clone_device, connection};

const RESEND: SessionConfig = SessionConfig { readers: 2, resend: true, sweep: false, wishes: WISHES };
const MASKED: SessionConfig = SessionConfig { resend: false, ..RESEND };
const WISHES: tarbox_engine::InitWishes = tarbox_engine::InitWishes {
    max_write: 1 << 20,
    max_readahead: u32::MAX,
    max_background: 64,
    congestion_threshold: 48,
    writeback_cache: false,
    posix_acl: true,
    posix_locks: false,
    flock_locks: false,
    idmap: false,
};

// The slots file as documented in `slots.rs`, written here by hand: this is the format that successors have to read.
const PAGE: u64 = 4096;
const BIG_SIZE: u64 = (1 << 20) + PAGE;
const BIG_COUNT: u64 = 8;
const STATE: u64 = 0;
const RESULT_LENGTH: u64 = 8;
const RESULT: u64 = 64;
const REQUEST: u64 = 512;
const FIRST_BIG: u64 = PAGE;
const FIRST_SMALL: u64 = PAGE + BIG_COUNT * BIG_SIZE;

/// Whether this kernel has FUSE_NOTIFY_RESEND: 6.9. Source: `linux/fuse.h` 7.40.
fn kernel_resends() -> bool {
    let release = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 9)
}

/// Reads one request as a process does that will die before it answers.
fn read_request(device: &OwnedFd) -> Vec<u8> {
    let mut request = vec![0; 2 << 20];
    let length = as_file(device).read(&mut request).unwrap();
    request.truncate(length);
    request
}

fn opcode(request: &[u8]) -> u32 {
    u32::from_ne_bytes(request[4..8].try_into().unwrap())
}

fn unique(request: &[u8]) -> u64 {
    u64::from_ne_bytes(request[8..16].try_into().unwrap())
}

fn leave(slots: &OwnedFd, slot: u64, request: &[u8]) {
    as_file(slots).write_all_at(request, slot + REQUEST).unwrap();
}

fn leave_applied(slots: &OwnedFd, slot: u64, request: &[u8], reply: &[u8]) {
    let file = as_file(slots);
    leave(slots, slot, request);
    file.write_all_at(reply, slot + RESULT).unwrap();
    file.write_all_at(&(reply.len() as u32).to_ne_bytes(), slot + RESULT_LENGTH).unwrap();
    file.write_all_at(&1_u32.to_ne_bytes(), slot + STATE).unwrap();
}

fn error_reply(request: &[u8], errno: i32) -> Vec<u8> {
    [&16_u32.to_ne_bytes()[..], &(-errno).to_ne_bytes(), &unique(request).to_ne_bytes()].concat()
}

/// A file system whose server has stopped, and an application that has just asked for something.
struct Orphaned {
    stage: Stage,
    fs: Arc<MemFs>,
    parts: SessionParts,
}

async fn orphaned() -> Orphaned {
    let stage = Stage::new();
    let fs = Arc::new(MemFs::new(MemFsOptions::default()));
    let session = start(&fs, stage.parts(), RESEND).await;
    let wait = stage.join("wait");
    apply(move || fs::write(wait, b"waited for").unwrap()).await;
    let parts = within(session.stop()).await.unwrap();
    Orphaned { stage, fs, parts }
}

impl Orphaned {
    /// Begins a mkdir of `name`; returns it and the request.
    async fn mkdir(&self, name: &str) -> (tokio::task::JoinHandle<std::io::Result<()>>, Vec<u8>) {
        let path = self.stage.join(name);
        let made = tokio::task::spawn_blocking(move || fs::create_dir(path));
        (made, self.serve_until(9).await)
    }

    /// Answers LOOKUP with ENOENT until there is a request with `wanted`.
    async fn serve_until(&self, wanted: u32) -> Vec<u8> {
        let device = duplicate(&self.parts.devices[0]);
        apply(move || {
            loop {
                let request = read_request(&device);
                if opcode(&request) == wanted {
                    return request;
                }
                let reply = match opcode(&request) {
                    3 => attributes_of_root(&request),
                    _ => error_reply(&request, libc::ENOENT),
                };
                as_file(&device).write_all(&reply).unwrap();
            }
        })
        .await
    }

    async fn succeed(self, config: SessionConfig) -> (Stage, Arc<MemFs>, Session, Recovered) {
        let (session, recovered) = start_recovering(&self.fs, self.parts, config).await;
        (self.stage, self.fs, session, recovered)
    }
}

fn attributes_of_root(request: &[u8]) -> Vec<u8> {
    let mut reply = vec![0; 16 + 16 + 88];
    let length = reply.len() as u32;
    reply[0..4].copy_from_slice(&length.to_ne_bytes());
    reply[8..16].copy_from_slice(&unique(request).to_ne_bytes());
    reply[32..40].copy_from_slice(&1_u64.to_ne_bytes());
    reply[92..96].copy_from_slice(&0o040_755_u32.to_ne_bytes());
    reply[96..100].copy_from_slice(&2_u32.to_ne_bytes());
    reply
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_was_only_read_is_done_by_the_successor() {
    for slot in [FIRST_BIG, FIRST_BIG + BIG_SIZE, FIRST_SMALL] {
        let orphaned = orphaned().await;
        let (made, request) = orphaned.mkdir("made").await;
        leave(&orphaned.parts.slots, slot, &request);
        let (stage, _fs, _session, recovered) = orphaned.succeed(MASKED).await;
        assert_eq!(recovered, Recovered { found: 1, dispatched: 1, ..Recovered::default() });
        within(made).await.unwrap().unwrap();
        let path = stage.join("made");
        assert!(apply(move || path.is_dir()).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_was_done_gets_the_stored_reply_and_is_not_done_again() {
    let orphaned = orphaned().await;
    let (made, request) = orphaned.mkdir("made").await;
    // An error that the file system would never give shows whose answer it is.
    leave_applied(&orphaned.parts.slots, FIRST_SMALL, &request, &error_reply(&request, libc::EDQUOT));
    let (_stage, _fs, session, recovered) = orphaned.succeed(MASKED).await;
    assert_eq!(recovered, Recovered { found: 1, replied: 1, ..Recovered::default() });
    let error = within(made).await.unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EDQUOT));
    assert_eq!(count(&session, "mkdir"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_was_answered_is_not_done_again() {
    let orphaned = orphaned().await;
    let (made, request) = orphaned.mkdir("made").await;
    let reply = error_reply(&request, libc::EDQUOT);
    as_file(&orphaned.parts.devices[0]).write_all(&reply).unwrap();
    within(made).await.unwrap().unwrap_err();
    leave(&orphaned.parts.slots, FIRST_SMALL, &request);
    let (stage, _fs, session, recovered) = orphaned.succeed(RESEND).await;
    let resent = kernel_resends();
    assert_eq!(recovered, Recovered { found: 1, settled: 1, resent, ..Recovered::default() });
    let path = stage.join("made");
    assert!(!apply(move || path.exists()).await);
    assert_eq!(count(&session, "mkdir"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_copies_of_a_request_are_done_once() {
    let orphaned = orphaned().await;
    let (made, request) = orphaned.mkdir("made").await;
    leave(&orphaned.parts.slots, FIRST_BIG, &request);
    leave(&orphaned.parts.slots, FIRST_SMALL, &request);
    let (_stage, _fs, session, recovered) = orphaned.succeed(MASKED).await;
    assert_eq!((recovered.found, recovered.dispatched), (1, 1));
    within(made).await.unwrap().unwrap();
    assert_eq!(count(&session, "mkdir"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forget_that_was_read_is_passed_on() {
    let orphaned = orphaned().await;
    let mut forget = vec![0; 48];
    forget[0..4].copy_from_slice(&48_u32.to_ne_bytes());
    forget[4..8].copy_from_slice(&2_u32.to_ne_bytes());
    forget[8..16].copy_from_slice(&0xffff_0000_u64.to_ne_bytes());
    leave(&orphaned.parts.slots, FIRST_SMALL, &forget);
    let (_stage, _fs, session, recovered) = orphaned.succeed(MASKED).await;
    assert_eq!((recovered.found, recovered.dispatched), (1, 1));
    assert_eq!(count(&session, "forget"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_slot_holds_comes_again_where_the_kernel_can_send_it_again() {
    let orphaned = orphaned().await;
    let (made, _lost) = orphaned.mkdir("made").await;
    let (stage, fs, session, recovered) = orphaned.succeed(MASKED).await;
    assert_eq!(recovered, Recovered::default());
    // The masked successor serves everything but that. (Names of this directory have to wait: mkdir has locked it.)
    let root = stage.path().to_owned();
    apply(move || nix::sys::statvfs::statvfs(&root).unwrap()).await;
    assert!(!made.is_finished());

    let parts = within(session.stop()).await.unwrap();
    let (session, recovered) = start_recovering(&fs, parts, SessionConfig { sweep: true, ..RESEND }).await;
    let made = within(made).await.unwrap();
    if kernel_resends() {
        made.unwrap();
        assert_eq!(count(&session, "mkdir"), 1);
    } else {
        assert_eq!(recovered, Recovered { swept: 1, ..Recovered::default() });
        assert_eq!(made.unwrap_err().raw_os_error(), Some(libc::EIO));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_slot_holds_gets_an_error_where_the_kernel_cannot_send_it_again() {
    let orphaned = orphaned().await;
    let (made, _lost) = orphaned.mkdir("made").await;
    let (stage, _fs, session, recovered) = orphaned.succeed(SessionConfig { sweep: true, ..MASKED }).await;
    assert_eq!(recovered, Recovered { swept: 1, ..Recovered::default() });
    assert_eq!(within(made).await.unwrap().unwrap_err().raw_os_error(), Some(libc::EIO));
    let path = stage.join("made");
    apply(move || fs::create_dir(path).unwrap()).await;
    assert_eq!(count(&session, "mkdir"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_leaves_alone_what_a_slot_holds_and_what_nobody_has_read() {
    let orphaned = orphaned().await;
    let (made, request) = orphaned.mkdir("made").await;
    leave(&orphaned.parts.slots, FIRST_SMALL, &request);
    let unread = orphaned.stage.path().to_owned();
    let unread = tokio::task::spawn_blocking(move || nix::sys::statvfs::statvfs(&unread).map(drop));
    let (_stage, _fs, _session, recovered) = orphaned.succeed(SessionConfig { sweep: true, ..MASKED }).await;
    assert_eq!(recovered, Recovered { found: 1, dispatched: 1, ..Recovered::default() });
    within(made).await.unwrap().unwrap();
    within(unread).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_tell_their_connection_and_what_was_left_undone() {
    let orphaned = orphaned().await;
    let slots = &orphaned.parts.slots;
    let before = connection(slots).unwrap();
    assert!(before.nonce != 0 && before.left.is_empty(), "{before:?}");
    assert_ne!(connection(&parts_of(Vec::new()).slots).unwrap().nonce, before.nonce);
    let (made, request) = orphaned.mkdir("made").await;
    leave(slots, FIRST_BIG, &request);
    leave(slots, FIRST_SMALL, &request);
    let left = vec![unique(&request)];
    assert_eq!(connection(slots).unwrap(), tarbox_types::Connection { nonce: before.nonce, left });
    // Done: its answer is in the slot, nobody has to be asked for it.
    let slots = duplicate(slots);
    as_file(&slots).write_all_at(&0_u32.to_ne_bytes(), FIRST_BIG + REQUEST).unwrap();
    leave_applied(&slots, FIRST_SMALL, &request, &error_reply(&request, libc::EDQUOT));
    assert_eq!(connection(&slots).unwrap(), before);
    let (_stage, _fs, _session, _) = orphaned.succeed(MASKED).await;
    within(made).await.unwrap().unwrap_err();
    // As an earlier release made it.
    as_file(&slots).write_all_at(&[0; 8], 128).unwrap();
    assert_eq!(connection(&slots).unwrap().nonce, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_request_that_is_resent_is_done_once() {
    let orphaned = orphaned().await;
    let path = orphaned.stage.join("wait");
    let reader = tokio::task::spawn_blocking(move || {
        let file = File::open(path)?;
        let mut bytes = vec![0; 6];
        file.read_exact_at(&mut bytes, 0).map(|()| bytes)
    });
    // LOOKUP and whatever else comes first has to be answered by the real thing.
    let (session, _) = start_recovering(&orphaned.fs, orphaned.parts, MASKED).await;
    eventually("the read waits", || session.in_flight().iter().any(|flight| flight.opcode == 15)).await;
    // "Killed": its readers leave; its task lives on in our runtime, so the successor gets a copy of the slots.
    within(session.pause()).await;
    let kept = session.duplicate_parts().unwrap();
    let copy = parts_of(Vec::new());
    let layout = as_file(&kept.slots).metadata().unwrap().len();
    let mut bytes = vec![0; layout as usize];
    as_file(&kept.slots).read_exact_at(&mut bytes, 0).unwrap();
    as_file(&copy.slots).write_all_at(&bytes, 0).unwrap();
    drop(session);

    let parts = SessionParts { devices: kept.devices, slots: copy.slots, init: kept.init };
    let (successor, recovered) = start_recovering(&orphaned.fs, parts, RESEND).await;
    assert_eq!((recovered.found, recovered.dispatched, recovered.resent), (1, 1, kernel_resends()));
    // The repetition is read and not done: one line, not two.
    let root = orphaned.stage.path().to_owned();
    apply(move || fs::create_dir(root.join("after")).unwrap()).await;
    let reads = successor.in_flight().iter().filter(|flight| flight.opcode == 15).count();
    assert_eq!(reads, 1);
    orphaned.fs.open_gate();
    assert_eq!(within(reader).await.unwrap().unwrap(), b"waited");
    assert_eq!(count(&successor, "read"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_on_in_another_under_load() {
    let stage = Stage::new();
    let fs = Arc::new(MemFs::new(MemFsOptions::default()));
    let mut session = start(&fs, stage.parts(), RESEND).await;
    let load = Load::begin(&stage, |stage, n| stage.join(&format!("cell-{n}")));
    for _ in 0..30 {
        let before = load.rounds();
        eventually("the load goes on", || load.rounds() > before + 20).await;
        let parts = within(session.stop()).await.unwrap();
        session = start(&fs, parts, RESEND).await;
    }
    load.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clones_serve_and_answer_what_was_read_from_them() {
    let stage = Stage::new();
    let fs = Arc::new(MemFs::new(MemFsOptions::default()));
    let device = stage.mount();
    // A clone belongs to a connection that has been initialised.
    let session = start(&fs, parts_of(vec![device]), RESEND).await;
    let mut parts = within(session.stop()).await.unwrap();
    let clone = clone_device(&parts.devices[0]).unwrap();
    parts.devices.push(clone);
    let session = start(&fs, parts, RESEND).await;
    let load = Load::begin(&stage, |stage, n| stage.join(&format!("cell-{n}")));
    eventually("the load goes on", || load.rounds() > 500).await;
    load.end().await;
    within(session.stop()).await.unwrap();
}

/// Applications that write increasing numbers and read them back: an old write done again would be seen.
struct Load {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    workers: Vec<std::thread::JoinHandle<()>>,
}

const WORKERS: u64 = 4;

impl Load {
    fn begin(stage: &Stage, path: impl Fn(&Stage, u64) -> std::path::PathBuf) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let workers = (0..WORKERS).map(|n| {
            let (path, stop, rounds) = (path(stage, n), Arc::clone(&stop), Arc::clone(&rounds));
            std::thread::spawn(move || Self::work(&path, n, &stop, &rounds))
        });
        Self { workers: workers.collect(), stop, rounds }
    }

    fn work(path: &std::path::Path, worker: u64, stop: &AtomicBool, rounds: &AtomicU64) {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        // One of them sends requests that need a big slot.
        let words = if worker == 0 { 32_768 } else { 64 };
        let mut number = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            number += 1;
            let bytes: Vec<u8> = (0..words).flat_map(|_| number.to_ne_bytes()).collect();
            let offset = 4096 * (number % 4);
            file.write_all_at(&bytes, offset).unwrap();
            let mut back = vec![0; bytes.len()];
            fs::metadata(path).unwrap();
            nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)
                .unwrap();
            file.read_exact_at(&mut back, offset).unwrap();
            assert!(
                back == bytes,
                "worker {worker} reads back something else than it wrote in round {number}"
            );
            rounds.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let workers = std::mem::take(&mut self.workers);
        apply(move || workers.into_iter().for_each(|worker| worker.join().unwrap())).await;
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What the keeper holds while servers come and go.
struct Kept {
    parts: SessionParts,
    backing: tempfile::TempDir,
}

impl Kept {
    /// A process that becomes a server when it is told to.
    ///
    /// A child closes what it inherits of our files when it executes its program. On older kernels (seen on 6.1) that waits for the
    /// lock of an inode, which one of our threads has until its call is answered: so this has happened before the server is killed.
    fn ready(&self, options: &[&str]) -> Killed {
        let mut command = Command::new("sh");
        command.args(["-c", "echo ready; read -r go && exec \"$@\" </dev/null", "ready"]);
        command.arg(env!("CARGO_BIN_EXE_tarbox-nullfs")).arg("serve").arg(self.backing.path());
        command.arg(format!("slots={}", inheritable(&self.parts.slots)));
        for device in &self.parts.devices {
            command.arg(format!("device={}", inheritable(device)));
        }
        let mut server = Killed::spawn(command.args(options).stdin(Stdio::piped()).stdout(Stdio::piped()));
        // Kernel 5.10 says that a program is executed before it closes what was inherited: only the program itself can tell.
        let mut line = [0; 6];
        server.0.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        assert_eq!(&line, b"ready\n");
        server
    }

    fn go(mut server: Killed) -> Killed {
        server.0.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let mut line = String::new();
        BufReader::new(server.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("serving"), "the server did not start: {line}");
        server
    }
}

fn kept(stage: &Stage) -> Kept {
    let backing = tempfile::tempdir().unwrap();
    for name in ["0", "1", "2", "3", "wait"] {
        fs::write(backing.path().join(name), [7; 8192]).unwrap();
    }
    Kept { parts: stage.parts(), backing }
}

async fn nothing_fails_when_servers_are_killed(options: &'static [&'static str]) {
    let stage = Stage::new();
    let kept = Arc::new(kept(&stage));
    let ready = || {
        let kept = Arc::clone(&kept);
        apply(move || kept.ready(options))
    };
    let first = ready().await;
    let mut server = apply(|| Kept::go(first)).await;
    // Once FLUSH has been answered with ENOSYS there is none any more. Otherwise a child that this process starts while no
    // server lives would hang when it closes the files it inherits.
    let first = stage.join("0");
    apply(move || drop(File::open(first).unwrap())).await;
    let load = Load::begin(&stage, |stage, n| stage.join(&n.to_string()));
    let wait = stage.join("wait");
    let waiting = tokio::task::spawn_blocking(move || fs::read(wait).unwrap());
    let began = Instant::now();
    let mut kills = 0;
    while kills < 25 && began.elapsed() < DEADLINE / 2 {
        let before = load.rounds();
        eventually("the load goes on", || load.rounds() > before + 10).await;
        let next = ready().await;
        server.kill();
        kills += 1;
        server = apply(|| Kept::go(next)).await;
    }
    assert!(kills > 5, "a slow machine: only {kills} kills");
    assert!(!waiting.is_finished());
    File::create(kept.backing.path().join("open")).unwrap();
    assert_eq!(within(waiting).await.unwrap(), [7; 8192]);
    load.end().await;
    server.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_fails_when_servers_are_killed_and_the_kernel_resends() {
    nothing_fails_when_servers_are_killed(&["readers=2"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_fails_when_servers_are_killed_and_the_kernel_cannot_resend() {
    nothing_fails_when_servers_are_killed(&["readers=2", "no-resend"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_before_init_was_answered_is_succeeded() {
    let stage = Stage::new();
    let parts = stage.parts();
    // INIT has been read, and nothing more.
    let request = read_request(&parts.devices[0]);
    assert_eq!(opcode(&request), 26);
    leave(&parts.slots, FIRST_BIG, &request);
    let fs = Arc::new(MemFs::new(MemFsOptions::default()));
    let _session = start(&fs, parts, MASKED).await;
    let path = stage.join("file");
    apply(move || fs::write(path, b"served").unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_waits_for_what_is_in_flight() {
    let stage = Stage::new();
    let fs = Arc::new(MemFs::new(MemFsOptions::default()));
    let session = start(&fs, stage.parts(), RESEND).await;
    let path = stage.join("wait");
    let created = path.clone();
    apply(move || fs::write(created, b"late").unwrap()).await;
    let reading = tokio::task::spawn_blocking(move || fs::read(path).unwrap());
    eventually("the read waits", || !session.in_flight().is_empty()).await;
    let mut stopping = tokio::spawn(session.stop());
    let early = tokio::time::timeout(Duration::from_millis(200), &mut stopping).await;
    assert!(early.is_err(), "stopped although a read was in flight");
    fs.open_gate();
    let parts = within(stopping).await.unwrap().unwrap();
    // cat may go on reading until the end of the file.
    let _session = start(&fs, parts, RESEND).await;
    assert_eq!(within(reading).await.unwrap(), b"late");
}
