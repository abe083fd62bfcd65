//! The mounter is killed and replaced under applications, which must not notice: no call fails, none is done twice, open files
//! of every kind go on.

use std::{
    fs::{self, File},
    io::{BufRead, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tarbox_handover::{
    FromMounter,
    message::{Mode, Serving},
};
use tarbox_tests::{
    churn::Churn,
    deadline::wait_for,
    on_each_database,
    process::whole_file,
    rng::{Rng, seed},
    supervised::Supervised,
    volume::Database,
};

const WORKERS: u64 = 4;
const DRAIN: Duration = Duration::from_secs(20);

fn kills(usual: u64) -> u64 {
    std::env::var("TESTS_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Runs applications while `disturb` does what it does, then compares everything they made.
fn under_load(supervised: &mut Supervised, rng: &mut Rng, disturb: impl FnOnce(&mut Supervised, &mut Rng)) {
    let root = supervised.path().to_owned();
    let stop = AtomicBool::new(false);
    let mut churns: Vec<Churn> = (0..WORKERS)
        .map(|n| Churn::new(&root.join(format!("w{n}")), rng.next_u64()).expect("a directory"))
        .collect();
    thread::scope(|scope| {
        let stop = &stop;
        let workers: Vec<_> = churns.iter_mut().map(|churn| scope.spawn(move || churn.run(stop))).collect();
        // Should this panic, those who wait for an answer are freed by the unmounting in `drop`.
        let disturbed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| disturb(supervised, rng)));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = disturbed {
            let _ = nix::mount::umount2(
                &root,
                nix::mount::MntFlags::MNT_FORCE | nix::mount::MntFlags::MNT_DETACH,
            );
            std::panic::resume_unwind(panic);
        }
        for (n, worker) in workers.into_iter().enumerate() {
            if let Err(error) = worker.join().expect("no panic") {
                panic!("worker {n}: {error:#}\n{}", supervised.said());
            }
        }
    });
    for churn in &mut churns {
        churn.verify_all().expect("all is as it was made");
    }
    let calls: u64 = churns.iter().map(|churn| churn.calls).sum();
    let slowest = churns.iter().map(|churn| churn.slowest).max().unwrap_or_default();
    println!("{calls} steps, the slowest took {slowest:?}");
    supervised.unmount().expect("unmount");
    supervised.remount().expect("mount again");
    for churn in &mut churns {
        churn.verify_all().expect("all is as it was made, from the database");
    }
    supervised.unmount().expect("unmount");
    supervised.fsck();
}

fn pause(rng: &mut Rng, most: u64) {
    // A random moment is what is wanted here.
    thread::sleep(Duration::from_millis(1 + rng.below(most)));
}

/// Kills it again and again; every other time somebody stands by.
fn kill_often(supervised: &mut Supervised, rng: &mut Rng, count: u64) {
    let mut micros = (Vec::new(), Vec::new());
    let mut recovered = 0;
    for n in 0..count {
        pause(rng, 250);
        let serving = if n % 2 == 0 {
            supervised.kill();
            let serving = supervised.serve().expect("serve again");
            micros.0.push(serving.micros);
            serving
        } else {
            let next = supervised.stand_by().expect("stand by");
            pause(rng, 20);
            supervised.kill();
            let serving = supervised.take_over(next).expect("take over");
            micros.1.push(serving.micros);
            serving
        };
        recovered += serving.recovered;
    }
    micros.0.sort_unstable();
    micros.1.sort_unstable();
    println!(
        "{count} kills, {recovered} requests recovered; µs cold {:?}, stand-by {:?}",
        micros.0, micros.1
    );
    assert!(recovered > 0, "no kill hit a request");
}

fn killed(on: Database, args: &[&str]) {
    let seed = seed();
    println!("TESTS_SEED={seed}");
    let mut rng = Rng::new(seed);
    let mut supervised = Supervised::start(on, args);
    under_load(&mut supervised, &mut rng, |supervised, rng| kill_often(supervised, rng, kills(16)));
}

on_each_database! {
    fn killed_at_any_moment_nothing_fails_and_nothing_is_done_twice(on) {
        killed(on, &[]);
    }

    fn also_where_the_kernel_cannot_send_requests_again(on) {
        killed(on, &["--without-resend"]);
    }

    fn also_where_commits_recycle_a_small_journal_at_once(on) {
        killed(on, &["--journal-size", "8Mi", "--flush-interval", "5ms"]);
    }

    fn also_where_each_change_is_committed_before_its_answer(on) {
        killed(on, &["--sync-mode", "writethrough"]);
    }

    fn replaced_by_a_stand_by_nothing_fails(on) {
        let seed = seed();
        println!("TESTS_SEED={seed}");
        let mut supervised = Supervised::start(on, &[]);
        under_load(&mut supervised, &mut Rng::new(seed), |supervised, rng| {
            for _ in 0..kills(12) {
                pause(rng, 150);
                let next = supervised.stand_by().expect("stand by");
                let begin = Instant::now();
                let drained = supervised.drain(DRAIN).expect("drain");
                let Serving { replayed, recovered, micros } = supervised.take_over(next).expect("take over");
                println!("drained in {drained:?}, serving after {micros} µs more, {:?} in all: {replayed} records, {recovered} requests", begin.elapsed());
            }
        });
    }

    fn open_files_of_every_kind_go_on(on) {
        let mut supervised = Supervised::start(on, &[]);
        let mut open = Open::new(supervised.path());
        for round in 0..6 {
            if round % 3 == 2 {
                supervised.upgrade().expect("upgrade");
            } else {
                open.dirty(round);
                supervised.kill();
                open.while_nobody_serves(round);
                supervised.serve().expect("serve");
            }
            open.check(round);
        }
        drop(open);
        supervised.unmount().expect("unmount");
        supervised.fsck();
    }

    fn a_stand_by_does_not_disturb_who_serves(on) {
        let mut supervised = Supervised::start(on, &[]);
        let next = supervised.stand_by().expect("stand by");
        for i in 0..50 {
            fs::write(supervised.path().join(format!("f{i}")), "x").expect("write");
        }
        File::open(supervised.path().join("f1")).and_then(|file| file.sync_all()).expect("fsync: the lease holds");
        // It goes away again: not needed.
        let pid = next.pid();
        drop(next);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        fs::write(supervised.path().join("g"), "x").expect("write");
        supervised.unmount().expect("unmount");
        supervised.fsck();
    }

    fn sigterm_commits_and_serves_on(on) {
        let mut supervised = Supervised::start(on, &["--flush-interval", "1h"]);
        fs::write(supervised.path().join("file"), "content").expect("write");
        let before = supervised.committed().expect("a number");
        supervised.mounter().signal(Signal::SIGTERM).expect("signal");
        let is_committed = || (supervised.committed().expect("a number") > before).then_some(());
        wait_for("the commit", Duration::from_secs(20), is_committed).expect("a commit");
        fs::write(supervised.path().join("another"), "content").expect("it serves on");
        supervised.unmount().expect("unmount");
        supervised.fsck();
    }
}

#[test]
fn without_a_supervisor_it_serves_on_and_gives_everything_back_when_unmounted() {
    let mut supervised = Supervised::start(Database::Sqlite, &[]);
    supervised.forsake();
    fs::write(supervised.path().join("file"), "content").expect("write");
    tarbox_tests::mount::unmount(supervised.path()).expect("umount");
    assert_eq!(supervised.end().expect("it ends").code(), Some(0));
    assert!(!supervised.tenant_dir().join("journal").exists(), "the journal is given back");
    supervised.fsck();
}

#[test]
fn told_to_stop_it_gives_everything_back_and_another_goes_on_with_the_mount() {
    let mut supervised = Supervised::start(Database::Sqlite, &["--flush-interval", "1h"]);
    let mut file = File::create(supervised.path().join("file")).expect("create");
    file.write_all(b"before").expect("write");
    supervised.stop().expect("stop");
    assert!(!supervised.tenant_dir().join("journal").exists(), "everything is committed");
    supervised.serve().expect("serve");
    file.write_all(b" and after").expect("write");
    assert_eq!(fs::read(supervised.path().join("file")).expect("read"), b"before and after");
    drop(file);
    supervised.unmount().expect("unmount");
    supervised.fsck();
}

#[test]
fn one_that_cannot_reach_the_database_says_that_it_waits_and_serves_when_it_can() {
    let mut supervised = Supervised::start(Database::Postgres, &[]);
    let path = supervised.path().join("file");
    fs::write(&path, "before").expect("write");
    supervised.server().stop().expect("stop the database");
    supervised.kill();
    let mut next = supervised.spawn(Mode::Serve).expect("Hello");
    // Again and again, so that who supervises it knows that it lives.
    for _ in 0..4 {
        match next.hear_all().expect("a sign of life") {
            FromMounter::Waiting(waiting) => assert_eq!(waiting.what, "the database"),
            other => panic!("{other:?}"),
        }
    }
    let reading = thread::spawn(move || fs::read_to_string(path));
    supervised.server().resume().expect("start the database");
    supervised.served_by(next).expect("it serves");
    assert_eq!(reading.join().expect("a reader").expect("it was answered"), "before");
    supervised.unmount().expect("unmount");
    supervised.fsck();
}

#[test]
fn what_it_cannot_start_with_is_said_in_its_last_words() {
    let supervised = Supervised::prepare(Database::Sqlite, &["--block-size", "4Ki"]);
    let mut mounter = supervised.spawn(Mode::Serve).expect("Hello");
    match mounter.hear().expect("last words") {
        FromMounter::Failed(failed) => {
            assert!(failed.message.contains("has a blockSize of 128Ki"), "{failed:?}");
            assert_eq!(failed.kind, "InvalidArgument");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(mounter.end().expect("it ends").code(), Some(78));
}

#[test]
fn who_it_is_is_said_before_anything_is_read_and_no_secret_is_in_sight() {
    let supervised = Supervised::start(Database::Postgres, &[]);
    let mounter = supervised.mounter();
    assert_eq!((mounter.hello.pid, &*mounter.hello.version), (mounter.pid(), env!("CARGO_PKG_VERSION")));
    assert!(mounter.hello.journal.is_some() && mounter.hello.slots.is_some() && mounter.hello.link.is_some());
    let url = supervised.url().as_bytes();
    for file in ["cmdline", "environ"] {
        let text = fs::read(format!("/proc/{}/{file}", mounter.pid())).expect("read");
        assert!(!text.windows(url.len()).any(|window| window == url), "the URL stands in {file}");
    }
}

/// Not a bound but a figure: how long the longest call takes in which something happens to the mounter, and in which nothing does.
#[test]
fn how_long_applications_wait_is_told() {
    let mut supervised = Supervised::start(Database::Sqlite, &[]);
    let slowest = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let root = supervised.path().to_owned();
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            let file = root.join("paused");
            while !stop.load(Ordering::Relaxed) {
                for call in [create, read_back, remove] {
                    let begin = Instant::now();
                    call(&file);
                    slowest.fetch_max(begin.elapsed().as_micros() as u64, Ordering::Relaxed);
                }
            }
        });
        type Event = fn(&mut Supervised);
        let events: [(&str, Event); 4] = [
            ("nothing", |_| ()),
            ("killed, cold start", |supervised| {
                supervised.kill();
                supervised.serve().expect("serve");
            }),
            ("killed, stand-by", |supervised| {
                let next = supervised.stand_by().expect("stand by");
                supervised.kill();
                supervised.take_over(next).expect("take over");
            }),
            ("replaced", |supervised| {
                supervised.upgrade().expect("upgrade");
            }),
        ];
        for (what, event) in events {
            let mut pauses: Vec<u64> = (0..kills(5))
                .map(|_| {
                    thread::sleep(Duration::from_millis(30));
                    slowest.store(0, Ordering::Relaxed);
                    event(&mut supervised);
                    thread::sleep(Duration::from_millis(30));
                    slowest.load(Ordering::Relaxed)
                })
                .collect();
            pauses.sort_unstable();
            let at = |part: usize| pauses[(pauses.len() * part / 100).min(pauses.len() - 1)];
            println!("{what}: p50 {} p90 {} p99 {} max {} µs", at(50), at(90), at(99), at(100));
        }
        stop.store(true, Ordering::Relaxed);
        client.join().expect("no call fails");
    });
    supervised.unmount().expect("unmount");
}

fn create(path: &Path) {
    File::create_new(path).and_then(|mut file| file.write_all(b"content")).expect("create");
}

fn read_back(path: &Path) {
    let file = File::open(path).expect("open");
    assert_eq!(read_at(&file, 0, 7), b"content");
}

fn remove(path: &Path) {
    fs::remove_file(path).expect("unlink");
}

/// Files that are open while mounters come and go.
struct Open {
    root: std::path::PathBuf,
    plain: File,
    append: File,
    direct: File,
    unlinked: File,
    synced: File,
    mapped: Mapped,
    flock: nix::fcntl::Flock<File>,
    record: File,
    listing: fs::ReadDir,
    listed: usize,
    appended: Vec<u8>,
}

const ENTRIES: usize = 5000;
const BLOCK: usize = 4096;

impl Open {
    fn new(root: &Path) -> Self {
        let root = root.to_owned();
        let new = |name: &str| {
            File::options().read(true).write(true).create_new(true).open(root.join(name)).expect("create")
        };
        let many = root.join("many");
        fs::create_dir(&many).expect("mkdir");
        for i in 0..ENTRIES {
            File::create(many.join(format!("entry-{i}"))).expect("create");
        }
        let unlinked = new("unlinked");
        fs::remove_file(root.join("unlinked")).expect("unlink");
        let _ = new("append");
        let direct = {
            let _ = new("direct");
            File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(root.join("direct"))
        };
        let flock = nix::fcntl::Flock::lock(new("flock"), nix::fcntl::FlockArg::LockExclusive);
        let record = new("record");
        set_lock(&record).expect("lock");
        Self {
            plain: new("plain"),
            append: File::options().append(true).open(root.join("append")).expect("open"),
            direct: direct.expect("O_DIRECT"),
            unlinked,
            synced: new("synced"),
            mapped: Mapped::new(&root.join("mapped")),
            flock: flock.map_err(|(_, errno)| errno).expect("flock"),
            record,
            listing: fs::read_dir(many).expect("opendir"),
            listed: 0,
            appended: Vec::new(),
            root,
        }
    }

    fn dirty(&mut self, round: usize) {
        self.mapped.write(round as u8 + 1);
    }

    /// What needs nobody.
    fn while_nobody_serves(&mut self, round: usize) {
        self.mapped.write(round as u8 + 100);
        assert!(nix::sys::stat::fstat(&*self.flock).is_ok(), "cached attributes need nobody");
    }

    fn check(&mut self, round: usize) {
        let text = format!("round {round}\n");
        let at = (round * 100) as u64;
        self.plain.write_all_at(text.as_bytes(), at).expect("pwrite");
        assert_eq!(read_at(&self.plain, at, text.len()), text.as_bytes());

        self.append.write_all(text.as_bytes()).expect("append");
        self.appended.extend_from_slice(text.as_bytes());
        assert_eq!(fs::read(self.root.join("append")).expect("read"), self.appended);

        let aligned = Aligned([round as u8 + 1; BLOCK]);
        self.direct.write_all_at(&aligned.0, (round * BLOCK) as u64).expect("O_DIRECT write");
        let mut back = Aligned([0; BLOCK]);
        self.direct.read_exact_at(&mut back.0, (round * BLOCK) as u64).expect("O_DIRECT read");
        assert!(back.0 == aligned.0);

        self.unlinked.write_all_at(text.as_bytes(), at).expect("pwrite of what is unlinked");
        assert_eq!(read_at(&self.unlinked, at, text.len()), text.as_bytes());
        use std::os::unix::fs::MetadataExt;
        assert_eq!(self.unlinked.metadata().expect("fstat").nlink(), 0);

        self.synced.write_all_at(text.as_bytes(), at).expect("pwrite");
        self.synced.sync_all().expect("fsync");

        self.mapped.sync();
        let mapped = fs::read(self.root.join("mapped")).expect("read");
        assert!(mapped.iter().all(|&byte| byte == self.mapped.last), "mapped pages reached the file");

        // A stream goes on where it was, each name once.
        for entry in self.listing.by_ref().take(ENTRIES / 10) {
            entry.expect("readdir");
            self.listed += 1;
        }
        let other = File::open(self.root.join("flock")).expect("open");
        let refused = nix::fcntl::Flock::lock(other, nix::fcntl::FlockArg::LockExclusiveNonblock);
        assert!(refused.is_err(), "the lock is held");
        assert!(is_locked_for_others(&self.root.join("record")), "the record lock is held");
        assert!(self.record.metadata().is_ok());
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !thread::panicking() {
            for entry in self.listing.by_ref() {
                entry.expect("readdir");
                self.listed += 1;
            }
            assert_eq!(self.listed, ENTRIES, "each name once");
        }
    }
}

#[repr(align(4096))]
struct Aligned([u8; BLOCK]);

fn read_at(file: &File, offset: u64, length: usize) -> Vec<u8> {
    nix::fcntl::posix_fadvise(file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .expect("fadvise");
    let mut reading = file.try_clone().expect("dup");
    reading.seek(SeekFrom::Start(offset)).expect("seek");
    let mut bytes = vec![0; length];
    reading.read_exact(&mut bytes).expect("read");
    bytes
}

fn set_lock(file: &File) -> nix::Result<i32> {
    nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_SETLK(&whole_file(libc::F_WRLCK)))
}

/// Asked by another process: locks of one process do not exclude each other.
fn is_locked_for_others(path: &Path) -> bool {
    let script = "import fcntl,sys\nf=open(sys.argv[1],'r+')\ntry:\n fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB)\nexcept OSError:\n sys.exit(7)\n";
    let status = std::process::Command::new("python3").args(["-c", script]).arg(path).status();
    status.expect("python3").code() == Some(7)
}

/// A file mapped and written by another program, so that its pages are dirty in memory only.
struct Mapped {
    program: std::process::Child,
    answers: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
    last: u8,
}

const MAPPER: &str = "
import mmap, sys
file = open(sys.argv[1], 'r+b')
memory = mmap.mmap(file.fileno(), 0)
print('mapped', flush=True)
for line in sys.stdin:
    words = line.split()
    if words[0] == 'write':
        memory[:] = bytes([int(words[1])]) * len(memory)
    else:
        memory.flush()
    print('done', flush=True)
";

impl Mapped {
    fn new(path: &Path) -> Self {
        File::create(path).and_then(|file| file.set_len((4 * BLOCK) as u64)).expect("create");
        let mut program = std::process::Command::new("python3")
            .args(["-c", MAPPER])
            .arg(path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("python3");
        let answers = std::io::BufReader::new(program.stdout.take().expect("piped")).lines();
        let mut mapped = Self { program, answers, last: 0 };
        mapped.wait();
        mapped
    }

    fn wait(&mut self) {
        self.answers.next().expect("an answer").expect("an answer");
    }

    fn tell(&mut self, order: &str) {
        let stdin = self.program.stdin.as_mut().expect("piped");
        writeln!(stdin, "{order}").expect("tell");
        self.wait();
    }

    fn write(&mut self, byte: u8) {
        self.tell(&format!("write {byte}"));
        self.last = byte;
    }

    fn sync(&mut self) {
        self.tell("sync");
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}
