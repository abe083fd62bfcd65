//! Plain `tarbox-mount`: the process that serves is killed, replaced, or loses its parent, and applications notice nothing.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tarbox_tests::{
    churn::Churn,
    deadline::wait_for,
    mount::{Mount, MountPlan, child_of, is_mounted},
    on_each_database,
    process::{kill_9, secrets_of},
    product,
    rng::{Rng, seed},
    volume::{Database, Volume},
};

const LIMIT: Duration = Duration::from_secs(60);

/// The next process that serves, once it does.
fn successor(volume: &Volume, of: u32) -> u32 {
    wait_for("another process to serve", LIMIT, || {
        let pid = volume.mount().pid();
        // A stat that is answered says that somebody serves.
        (pid != of && fs::symlink_metadata(volume.path()).is_ok()).then_some(pid)
    })
    .expect("a successor")
}

/// Runs applications while `disturb` does what it does: none of their calls may fail, and all must be as they made it.
fn under_load(volume: &mut Volume, disturb: impl FnOnce(&mut Volume)) {
    let stop = AtomicBool::new(false);
    let mut churns: Vec<Churn> = (0..3)
        .map(|n| Churn::new(&volume.path().join(format!("w{n}")), seed() + n).expect("a directory"))
        .collect();
    thread::scope(|scope| {
        let workers: Vec<_> = churns.iter_mut().map(|churn| scope.spawn(|| churn.run(&stop))).collect();
        let disturbed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| disturb(&mut *volume)));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = disturbed {
            // Who waits for an answer is freed by it.
            let _ = umount2(volume.path(), MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
            std::panic::resume_unwind(panic);
        }
        for worker in workers {
            worker.join().expect("no panic").expect("no call fails");
        }
    });
    churns.iter_mut().for_each(|churn| churn.verify_all().expect("all is as it was made"));
}

on_each_database! {
    fn a_killed_process_is_replaced_and_no_call_fails(on) {
        let mut volume = Volume::with(on, &["--flush-interval", "50ms"]);
        let keeper = volume.mount().keeper();
        let mut rng = Rng::new(seed());
        under_load(&mut volume, |volume| {
            // Fewer than what would count as a crash loop.
            for _ in 0..4 {
                thread::sleep(Duration::from_millis(100 + rng.below(200)));
                let pid = volume.mount().pid();
                kill_9(pid);
                successor(volume, pid);
            }
        });
        assert_eq!(volume.mount().keeper(), keeper);
        volume.stop();
        volume.fsck();
    }
}

/// Does something to the processes that are to serve, one after the other as they come into being, until it says that this is enough.
fn meddle(mount: &MountPlan, mut meddling: impl FnMut(u32) -> bool + Send) -> anyhow::Result<Mount> {
    thread::scope(|scope| {
        let (started, keeper) = std::sync::mpsc::channel();
        let meddler = scope.spawn(move || {
            let Ok(keeper) = keeper.recv() else { return };
            let mut met = 0;
            let met_enough = wait_for("processes to meddle with", LIMIT, || {
                let pid = child_of(keeper)?;
                (pid != std::mem::replace(&mut met, pid) && meddling(pid)).then_some(())
            });
            met_enough.expect("another process each time");
        });
        let mount = Mount::start_watched(mount, |keeper| started.send(keeper).expect("it is waited for"));
        meddler.join().expect("no panic");
        mount
    })
}

/// Starts a mount of which the first processes are killed, each so long after it has come into being.
fn killed_while_it_starts(volume: &mut Volume, after: &[Duration]) {
    let mut left = after.iter();
    let mount = meddle(volume.plan(), |pid| {
        let Some(after) = left.next() else { return true };
        thread::sleep(*after);
        kill_9(pid);
        left.len() == 0
    });
    volume.adopt(mount.unwrap_or_else(|error| panic!("{error:#}")));
}

on_each_database! {
    fn processes_killed_before_they_serve_are_replaced(on) {
        for args in [&[][..], &["--read-only"]] {
            let mut volume = Volume::with(on, &[]);
            fs::write(volume.at("file"), "kept").expect("write");
            volume.stop();
            volume.plan().args.extend(args.iter().map(ToString::to_string));
            killed_while_it_starts(&mut volume, &[Duration::ZERO; 4]);
            assert_eq!(fs::read(volume.at("file")).expect("read"), b"kept");
            let said = volume.mount().said();
            assert_eq!(said.matches("a serving process has died").count(), 4, "{said}");
            volume.stop();
            volume.fsck();
        }
    }
}

#[test]
fn a_kill_at_any_moment_of_a_start_ends_no_mount_and_fails_no_call() {
    let mut volume = Volume::with(Database::Sqlite, &[]);
    let mut rng = Rng::new(seed());
    for round in 0..12 {
        volume.stop();
        // Also behind the first answer, which the start of a mount waits for.
        killed_while_it_starts(&mut volume, &[Duration::from_micros(rng.below(60_000))]);
        let file = volume.at(&round.to_string());
        fs::write(&file, "kept").expect("write");
        assert_eq!(fs::read(&file).expect("read"), b"kept");
    }
    volume.stop();
    volume.fsck();
}

#[test]
fn a_process_that_hangs_before_it_serves_is_replaced() {
    let mut volume = Volume::prepare(Database::Sqlite, &[]);
    // One that serves already when it is met shows something else: then once more.
    for _ in 0..5 {
        let mount = meddle(volume.plan(), |pid| {
            // Not before it is a process of its own: whoever starts it waits until it has executed its program.
            let is_begun = || {
                let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
                String::from_utf8_lossy(&line).contains("--control-fd").then_some(())
            };
            wait_for("the program to be executed", LIMIT, is_begun).expect("a command line");
            signalled(pid, Signal::SIGSTOP);
            true
        });
        volume.adopt(mount.expect("it serves"));
        fs::write(volume.at("file"), "x").expect("write");
        if volume.mount().said().contains("does not serve") {
            return;
        }
        volume.stop();
    }
    panic!("no process was met before it served");
}

#[test]
fn a_mount_of_which_every_process_is_killed_is_given_up_and_says_so() {
    let mut volume = Volume::prepare(Database::Sqlite, &[]);
    let mut killed = 0;
    let refused = meddle(volume.plan(), |pid| {
        kill_9(pid);
        killed += 1;
        killed == 10
    });
    let refused = format!("{:#}", refused.expect_err("nobody serves"));
    assert!(refused.contains("no process came to serve in 10 attempts"), "{refused}");
    assert!(!is_mounted(volume.path()));
    volume.start();
    fs::write(volume.at("file"), "x").expect("write");
}

#[test]
fn open_files_of_every_kind_survive_a_kill() {
    let volume = Volume::new(Database::Sqlite);
    let mut appended = File::options().append(true).create(true).open(volume.at("appended")).expect("open");
    appended.write_all(b"before ").expect("append");
    let mut unlinked =
        File::options().read(true).write(true).create_new(true).open(volume.at("unlinked")).expect("open");
    unlinked.write_all(b"nobody names it").expect("write");
    fs::remove_file(volume.at("unlinked")).expect("unlink");
    fs::create_dir(volume.at("many")).expect("mkdir");
    for number in 0..3000 {
        File::create(volume.at(&format!("many/{number}"))).expect("create");
    }
    let mut entries = fs::read_dir(volume.at("many")).expect("list");
    let first: Vec<_> = entries.by_ref().take(100).map(|entry| entry.expect("entry").file_name()).collect();
    let locked = Flock::lock(File::create(volume.at("locked")).expect("create"), FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .expect("lock");
    let mapped = File::options().read(true).write(true).create(true).truncate(true).open(volume.at("mapped"));
    let mapped = mapped.expect("open");
    mapped.set_len(8192).expect("truncate");
    let map = map_shared(&mapped, 8192);
    map[0] = b'd';

    let pid = volume.mount().pid();
    kill_9(pid);
    successor(&volume, pid);

    appended.write_all(b"after").expect("append");
    assert_eq!(fs::read(volume.at("appended")).expect("read"), b"before after");
    unlinked.seek(SeekFrom::Start(0)).expect("seek");
    let mut text = String::new();
    unlinked.read_to_string(&mut text).expect("read");
    assert_eq!((text.as_str(), unlinked.metadata().expect("stat").nlink()), ("nobody names it", 0));
    let mut names = first;
    names.extend(entries.map(|entry| entry.expect("entry").file_name()));
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 3000, "a directory read across the kill is whole, nothing twice");
    let other = File::open(volume.at("locked")).expect("open");
    assert!(Flock::lock(other, FlockArg::LockExclusiveNonblock).is_err(), "the lock is still held");
    drop(locked);
    // One page was dirty when it was killed, the other one is read through its successor.
    map[4096] = map[5000] + b'e';
    mapped.sync_all().expect("fsync");
    let content = fs::read(volume.at("mapped")).expect("read");
    assert_eq!((content[0], content[4096], content[4097]), (b'd', b'e', 0));
}

/// Mapped for as long as the test's process lives.
#[allow(unsafe_code)]
fn map_shared(file: &File, length: usize) -> &'static mut [u8] {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap};
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let length = std::num::NonZero::new(length).expect("not empty");
    // SAFETY: a new mapping that nothing else refers to, and that is never taken away.
    unsafe {
        let at = mmap(None, length, protection, MapFlags::MAP_SHARED, file, 0).expect("mmap");
        std::slice::from_raw_parts_mut(at.as_ptr().cast(), length.get())
    }
}

/// A program of the product at a place of its own, where it can be replaced.
struct Installed(PathBuf);

impl Installed {
    fn on(volume: &mut Volume) -> Self {
        let path = volume.scratch().sub("bin").expect("a directory").join("tarbox-mount");
        fs::copy(product::program("tarbox-mount"), &path).expect("copy");
        volume.plan().program = Some(path.clone());
        volume.remount();
        Self(path)
    }

    /// Another file at the same place, as an installer does it.
    fn replace(&self, by: &Path) -> u64 {
        let new = self.0.with_extension("new");
        fs::copy(by, &new).expect("copy");
        fs::rename(&new, &self.0).expect("rename");
        fs::metadata(&self.0).expect("stat").ino()
    }
}

fn executed_by(pid: u32) -> u64 {
    fs::metadata(format!("/proc/{pid}/exe")).map_or(0, |exe| exe.ino())
}

#[test]
fn sighup_lets_the_executable_on_disk_take_over_and_nothing_fails() {
    let mut volume = Volume::new(Database::Sqlite);
    let installed = Installed::on(&mut volume);
    let keeper = volume.mount().keeper();
    under_load(&mut volume, |volume| {
        let new = installed.replace(&product::program("tarbox-mount"));
        assert_ne!(executed_by(volume.mount().pid()), new);
        volume.mount().signal(Signal::SIGHUP).expect("signal");
        wait_for("the new executable to serve", LIMIT, || {
            let said = volume.mount().said();
            (executed_by(volume.mount().pid()) == new && said.contains("another process serves"))
                .then_some(())
        })
        .expect("an upgrade");
        thread::sleep(Duration::from_millis(200));
    });
    assert_eq!(volume.mount().keeper(), keeper);
    volume.stop();
    volume.fsck();
}

/// An upgrade to what can never serve: the one before goes on.
fn rolled_back(bad: &Path, words: &str) {
    let mut volume = Volume::new(Database::Sqlite);
    let installed = Installed::on(&mut volume);
    let before = volume.mount().pid();
    under_load(&mut volume, |volume| {
        installed.replace(bad);
        volume.mount().signal(Signal::SIGHUP).expect("signal");
        let given_up = || {
            let said = volume.mount().said();
            (said.contains("the executable now on disk does not take over") && said.contains(words))
                .then_some(())
        };
        wait_for("the attempt to be given up", LIMIT, given_up).expect("a log line");
    });
    assert_eq!(volume.mount().pid(), before, "the old process has served all the time");
    volume.stop();
    volume.fsck();
}

#[test]
fn an_executable_that_crashes_at_start_does_not_take_over() {
    rolled_back(Path::new("/bin/false"), "the stand-by ended");
}

#[test]
fn an_executable_that_hangs_at_start_does_not_take_over() {
    rolled_back(Path::new(env!("CARGO_BIN_EXE_hang")), "the stand-by was not ready");
}

fn signalled(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).expect("kill");
}

#[test]
fn a_process_that_hangs_is_found_out_killed_and_replaced_and_no_call_fails() {
    let mut volume = Volume::new(Database::Sqlite);
    let hanging = volume.mount().pid();
    under_load(&mut volume, |volume| {
        signalled(hanging, Signal::SIGSTOP);
        successor(volume, hanging);
    });
    let said = volume.mount().said();
    assert!(said.contains("the serving process hangs"), "{said}");
    volume.stop();
    volume.fsck();
}

#[test]
fn one_that_only_reads_and_hangs_is_replaced_as_well() {
    let mut volume = Volume::new(Database::Sqlite);
    fs::write(volume.at("file"), "x").expect("write");
    volume.stop();
    volume.plan().args.push("--read-only".into());
    volume.start();
    let hanging = volume.mount().pid();
    signalled(hanging, Signal::SIGSTOP);
    successor(&volume, hanging);
    assert_eq!(fs::read(volume.at("file")).expect("read"), b"x");
}

#[test]
fn while_the_database_is_away_nobody_is_taken_for_one_that_hangs() {
    let mut volume = Volume::with(Database::Postgres, &["--flush-interval", "50ms"]);
    let serving = volume.mount().pid();
    volume.server().stop().expect("stop");
    thread::scope(|scope| {
        let path = volume.at("synced");
        let synced = scope.spawn(move || {
            let mut file = File::create(path)?;
            file.write_all(b"x")?;
            file.sync_all()
        });
        // Longer than a hang takes to be found out.
        thread::sleep(Duration::from_secs(20));
        assert!(!synced.is_finished());
        assert_eq!(volume.mount().pid(), serving, "{}", volume.mount().said());
        volume.server().resume().expect("start");
        synced.join().expect("no panic").expect("fsync");
    });
    assert_eq!(volume.mount().pid(), serving);
}

#[test]
fn in_a_crash_loop_calls_fail_after_a_while_until_a_process_serves_again() {
    let volume = Volume::new(Database::Sqlite);
    fs::write(volume.at("file"), "x").expect("write");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // Dies of something that nobody outside has done, as soon as there is one.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if let Some(pid) = volume.mount().serving() {
                    let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGSEGV);
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        // Each asks for a name that the kernel does not know, and may wait for long: one that was read by a process stays in its slot.
        let (answered, answers) = std::sync::mpsc::channel();
        let mut asked = 0;
        let error = wait_for("an error in place of an answer", Duration::from_secs(200), || {
            let (answered, path) = (answered.clone(), volume.at(&format!("missing{asked}")));
            asked += 1;
            thread::spawn(move || answered.send(fs::symlink_metadata(path).expect_err("nothing there")));
            thread::sleep(Duration::from_millis(200));
            answers.try_iter().find(|error| error.raw_os_error() == Some(nix::libc::EIO))
        });
        stop.store(true, Ordering::Relaxed);
        error.expect("EIO");
    });
    wait_for("the same mount to be served again", Duration::from_secs(200), || {
        fs::write(volume.at("after"), "y").ok()
    })
    .expect("it serves");
    assert_eq!(fs::read(volume.at("file")).expect("read"), b"x");
}

#[test]
fn a_mount_goes_on_when_its_keeper_is_killed() {
    let mut volume = Volume::new(Database::Sqlite);
    fs::write(volume.at("before"), "kept").expect("write");
    let point = volume.path().to_owned();
    let (mut mount, log) = volume.take_mount();
    let serving = mount.kill_keeper().expect("kill");
    fs::write(point.join("after"), "kept").expect("write");
    assert_eq!(fs::read(point.join("before")).expect("read"), b"kept");
    tarbox_tests::mount::unmount(&point).expect("umount");
    wait_for("the serving process to end", LIMIT, || {
        (!Path::new(&format!("/proc/{serving}/fd/0")).exists()).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", fs::read_to_string(log).unwrap_or_default()));
    volume.fsck();
    volume.start();
    assert_eq!(fs::read(volume.at("after")).expect("read"), b"kept");
}

#[test]
fn a_password_that_was_renewed_is_what_the_next_process_is_given() {
    let mut volume = Volume::new(Database::Postgres);
    let url = volume.plan().url.clone();
    let with = |word: &str| {
        let (scheme, rest) = url.split_once("://").expect("a URL");
        let (user, place) = rest.split_once('@').expect("a user");
        // The server trusts whoever comes: the password is only carried along.
        format!("{scheme}://{user}:{word}@{place}")
    };
    volume.plan().url = with("first-word");
    volume.remount();
    volume.set_credentials(&with("second-word")).expect("it takes them");
    let pid = volume.mount().pid();
    kill_9(pid);
    let given = secrets_of(successor(&volume, pid));
    assert!(given.contains("second-word") && !given.contains("first-word"), "{given}");
}

#[test]
fn no_password_stands_on_a_command_line_or_in_an_environment() {
    let mut volume = Volume::new(Database::Postgres);
    let (scheme, rest) = volume.plan().url.split_once("://").expect("a URL");
    let (user, place) = rest.split_once('@').expect("a user");
    // The server trusts whoever comes: the password is only carried along.
    let url = format!("{scheme}://{user}:hidden-word@{place}");
    volume.plan().url = url;
    volume.remount();
    let serving = volume.mount().pid();
    for file in ["cmdline", "environ"] {
        let text = fs::read(format!("/proc/{serving}/{file}")).expect("read");
        assert!(!text.is_empty());
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(!text.contains("hidden-word"), "{file}: {text}");
    }
    fs::write(volume.at("file"), "x").expect("it serves");
}
