//! What an application sees of a served file system: the same as of tmpfs, and the same as under `fuse3`'s own session.

#![allow(unsafe_code)] // Calls that no wrapper offers with their flags.
#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod stage;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{AtFlags, FallocateFlags, OFlag, RenameFlags, fallocate, renameat2};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, umask, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Whence, linkat, lseek, mkfifo};
use stage::{Stage, apply, count, ended, errno, eventually, serve_memory, within};
use tarbox_engine::Ended;
use tarbox_engine::nullfs::{MemFs, MemFsOptions};

/// What happened, one line per step.
#[derive(Default)]
struct Transcript(Vec<String>);

impl Transcript {
    fn note<T: std::fmt::Debug, E: Into<io::Error>>(&mut self, step: &str, outcome: Result<T, E>) {
        let outcome = outcome.map_err(|error| error.into().raw_os_error());
        self.0.push(format!("{step}: {outcome:?}"));
    }
}

/// What of the attributes does not depend on time and place.
fn facts(path: &Path) -> io::Result<(u32, u64, u64, u32, u32)> {
    let m = fs::symlink_metadata(path)?;
    // A directory's size is every file system's own matter.
    let size = if m.is_dir() { 0 } else { m.len() };
    Ok((m.mode(), m.nlink(), size, m.uid(), m.gid()))
}

fn names(path: &Path) -> io::Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(path)?
        .map(|entry| entry.map(|entry| entry.file_name().into_string().unwrap()))
        .collect::<Result<_, _>>()?;
    names.sort();
    Ok(names)
}

/// Every operation an application can cause, and the errors it can get.
fn sweep(root: &Path) -> Vec<String> {
    let mut t = Transcript::default();
    let at = |name: &str| root.join(name);
    sweep_files(&mut t, &at("a"));
    sweep_names(&mut t, &at);
    sweep_kinds(&mut t, &at);
    sweep_attributes(&mut t, &at);
    sweep_ranges(&mut t, &at);
    t.note("names at the end", names(root));
    t.0
}

fn sweep_files(t: &mut Transcript, a: &Path) {
    t.note("open missing", File::open(a).map(drop));
    t.note("create", fs::write(a, b"hello"));
    t.note("create again, exclusive", OpenOptions::new().write(true).create_new(true).open(a).map(drop));
    t.note("facts", facts(a));
    t.note("read", fs::read(a));
    let mut append = OpenOptions::new().append(true).open(a).unwrap();
    t.note("append", append.write_all(b", world"));
    t.note("read back", fs::read_to_string(a));
    t.note("truncate by open", File::create(a).map(drop));
    t.note("empty", fs::read(a));
    let file = OpenOptions::new().read(true).write(true).open(a).unwrap();
    t.note("write at a distance", file.write_all_at(b"x", 10_000));
    t.note("hole", file.read_exact_at(&mut [1; 16], 100));
    t.note("shorten", file.set_len(4096));
    t.note("size", file.metadata().map(|m| m.len()));
    t.note("sync", file.sync_all());
    t.note("sync data", file.sync_data());
    let big: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    t.note("big write", fs::write(a, &big));
    t.note("big read", fs::read(a).map(|read| read == big));
    t.note("read a directory as a file", File::open(a.parent().unwrap()).and_then(|mut f| f.read(&mut [0])));
}

fn sweep_names(t: &mut Transcript, at: &dyn Fn(&str) -> std::path::PathBuf) {
    t.note("mkdir", fs::create_dir(at("d")));
    t.note("mkdir again", fs::create_dir(at("d")));
    t.note("mkdir in a file", fs::create_dir(at("a/x")));
    t.note("nested", fs::create_dir_all(at("d/e/f")));
    t.note("rmdir full", fs::remove_dir(at("d")));
    t.note("rmdir a file", fs::remove_dir(at("a")));
    t.note("unlink a directory", nix::unistd::unlink(&at("d")));
    t.note("unlink missing", fs::remove_file(at("none")));
    t.note("rmdir", fs::remove_dir(at("d/e/f")));
    t.note("link", fs::hard_link(at("a"), at("b")));
    t.note("link facts", facts(&at("b")));
    t.note("link over", fs::hard_link(at("a"), at("b")));
    t.note("rename", fs::rename(at("b"), at("c")));
    t.note("rename missing", fs::rename(at("b"), at("c")));
    t.note("rename into", fs::rename(at("c"), at("d/c")));
    t.note("names", names(&at("d")));
    fs::write(at("one"), b"1").unwrap();
    fs::write(at("two"), b"2").unwrap();
    let renamed = |from: &str, to: &str, flags| {
        renameat2(nix::fcntl::AT_FDCWD, &at(from), nix::fcntl::AT_FDCWD, &at(to), flags)
    };
    t.note("no replace", renamed("one", "two", RenameFlags::RENAME_NOREPLACE));
    t.note("exchange", renamed("one", "two", RenameFlags::RENAME_EXCHANGE));
    t.note("exchanged", fs::read_to_string(at("one")));
    t.note("replace", fs::rename(at("one"), at("two")));
    t.note("replaced", fs::read_to_string(at("two")));
    t.note("directory over a full one", fs::create_dir(at("g")).and_then(|()| fs::rename(at("g"), at("d"))));
    t.note("long name", File::create(at(&"n".repeat(255))).map(drop));
    t.note("too long a name", File::create(at(&"n".repeat(256))).map(drop));
    let open = File::open(at("two")).unwrap();
    t.note("unlink open", fs::remove_file(at("two")));
    let mut content = String::new();
    t.note("still readable", (&open).read_to_string(&mut content).map(|_| content));
    t.note("without a name", open.metadata().map(|m| m.nlink()));
}

fn sweep_kinds(t: &mut Transcript, at: &dyn Fn(&str) -> std::path::PathBuf) {
    t.note("symlink", symlink("a/../a", at("s")));
    t.note("readlink", fs::read_link(at("s")));
    t.note("through it", fs::metadata(at("s")).map(|m| m.len()));
    t.note("its facts", facts(&at("s")));
    t.note("readlink of a file", fs::read_link(at("a")));
    t.note("loop", symlink("l", at("l")).and_then(|()| fs::read(at("l"))));
    t.note("fifo", mkfifo(&at("p"), Mode::from_bits_truncate(0o640)));
    t.note("is a fifo", fs::symlink_metadata(at("p")).map(|m| (m.file_type().is_fifo(), m.mode())));
    t.note(
        "device",
        mknod(&at("n"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), nix::sys::stat::makedev(1, 3)),
    );
    t.note("device number", fs::symlink_metadata(at("n")).map(|m| m.rdev()));
    t.note("socket", std::os::unix::net::UnixListener::bind(at("u")).map(drop));
    t.note("is a socket", fs::symlink_metadata(at("u")).map(|m| m.file_type().is_socket()));
}

fn sweep_attributes(t: &mut Transcript, at: &dyn Fn(&str) -> std::path::PathBuf) {
    let a = at("a");
    t.note("chmod", fs::set_permissions(&a, fs::Permissions::from_mode(0o4711)));
    t.note("chown", std::os::unix::fs::chown(&a, Some(65534), Some(100)));
    // chown(2) has taken the set-user-id bit away.
    t.note("owned", facts(&a));
    let (time, times) = (TimeSpec::new(1_000_000_000, 123_456_789), nix::fcntl::AT_FDCWD);
    t.note("utimens", utimensat(times, &a, &time, &time, UtimensatFlags::FollowSymlink));
    t.note("mtime", fs::metadata(&a).map(|m| (m.mtime(), m.mtime_nsec())));
    let before_epoch = TimeSpec::new(-5, 5);
    t.note("before 1970", utimensat(times, &a, &before_epoch, &before_epoch, UtimensatFlags::FollowSymlink));
    t.note("mtime before 1970", fs::metadata(&a).map(|m| (m.mtime(), m.mtime_nsec())));
    t.note(
        "touch",
        utimensat(times, &a, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW, UtimensatFlags::FollowSymlink),
    );
    t.note(
        "now",
        fs::metadata(&a).and_then(|m| Ok(m.modified()?.elapsed().unwrap() < Duration::from_secs(60))),
    );
    t.note("access", nix::unistd::access(&a, nix::unistd::AccessFlags::R_OK));
    t.note("no access to execute", nix::unistd::access(&at("d/c"), nix::unistd::AccessFlags::F_OK));
    let old = umask(Mode::from_bits_truncate(0o027));
    t.note(
        "create under a umask",
        OpenOptions::new().write(true).create_new(true).mode(0o666).open(at("m")).map(drop),
    );
    t.note("mkdir under a umask", fs::create_dir(at("md")));
    umask(old);
    t.note("masked file", facts(&at("m")));
    t.note("masked directory", facts(&at("md")));
}

fn sweep_ranges(t: &mut Transcript, at: &dyn Fn(&str) -> std::path::PathBuf) {
    let from = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(at("r")).unwrap();
    from.write_all_at(b"0123456789", 0).unwrap();
    let to = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(at("q")).unwrap();
    t.note("copy a range", copy_range(&from, 2, &to, 4, 5));
    t.note("copied", fs::read(at("q")));
    t.note("allocate", fallocate(&to, FallocateFlags::empty(), 0, 20));
    t.note("allocated", to.metadata().map(|m| m.len()));
    t.note(
        "collapse",
        fallocate(&to, FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, 0, 4096).map_err(|_| nix::Error::EOPNOTSUPP),
    );
    t.note("data", lseek(&from, 3, Whence::SeekData));
    t.note("hole", lseek(&from, 3, Whence::SeekHole));
    t.note("data behind the end", lseek(&from, 300, Whence::SeekData));
    t.note(
        "lock",
        nix::fcntl::fcntl(
            &from,
            nix::fcntl::FcntlArg::F_SETLK(&libc::flock {
                l_type: libc::F_WRLCK as i16,
                l_whence: 0,
                l_start: 0,
                l_len: 10,
                l_pid: 0,
            }),
        ),
    );
    t.note("terminal", nix::unistd::isatty(&from).map_err(|_| nix::Error::ENOTTY));
}

fn copy_range(from: &File, mut at: i64, to: &File, mut there: i64, length: usize) -> io::Result<usize> {
    // SAFETY: descriptors are open, the offsets live as long as the call.
    let copied = unsafe {
        libc::copy_file_range(from.as_raw_fd(), &raw mut at, to.as_raw_fd(), &raw mut there, length, 0)
    };
    usize::try_from(copied).map_err(|_| io::Error::last_os_error())
}

fn assert_same(left: &[String], right: &[String]) {
    for (left, right) in left.iter().zip(right) {
        assert_eq!(left, right);
    }
    assert_eq!(left.len(), right.len());
}

fn swept_tmpfs() -> Vec<String> {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    sweep(directory.path())
}

async fn swept_by_us(options: MemFsOptions) -> Vec<String> {
    let served = serve_memory(options).await;
    let root = served.stage.path().to_owned();
    apply(move || sweep(&root)).await
}

async fn swept_by_fuse3(options: MemFsOptions) -> Vec<String> {
    let stage = Stage::new();
    let mut mount_options = fuse3::MountOptions::default();
    mount_options.default_permissions(true);
    let fs = MemFs::new(options);
    let mounted = within(fuse3::raw::Session::new(mount_options).mount(fs, stage.path())).await.unwrap();
    let root = stage.path().to_owned();
    let transcript = apply(move || sweep(&root)).await;
    within(mounted.unmount()).await.unwrap();
    transcript
}

// The umask belongs to the process: these three take turns.
static UMASK: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_answers_as_on_tmpfs() {
    let _turn = UMASK.lock().await;
    for stateless in [true, false] {
        let ours = swept_by_us(MemFsOptions { stateless, ..MemFsOptions::default() }).await;
        assert_same(&ours, &swept_tmpfs());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_answers_as_under_the_session_of_fuse3() {
    let _turn = UMASK.lock().await;
    // Under fuse3's session O_TRUNC comes with OPEN, so it must not be stateless there.
    let options = MemFsOptions { stateless: false, ..MemFsOptions::default() };
    assert_same(&swept_by_us(options).await, &swept_by_fuse3(options).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_the_same_with_names_and_attributes_cached() {
    let _turn = UMASK.lock().await;
    let options = MemFsOptions { ttl: Duration::from_secs(600), ..MemFsOptions::default() };
    assert_same(&swept_by_us(options).await, &swept_tmpfs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extended_attributes_keep_flags_sizes_and_names() {
    let served = serve_memory(MemFsOptions::default()).await;
    let file = CString::new(served.stage.join("x").to_str().unwrap()).unwrap();
    apply(move || {
        File::create(file.to_str().unwrap()).unwrap();
        let set = |name: &std::ffi::CStr, value: &[u8], flags| {
            // SAFETY: pointers and lengths are those of living values.
            let done = unsafe {
                libc::setxattr(file.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags)
            };
            if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        };
        let get = |room: &mut [u8]| {
            // SAFETY: as above.
            let got = unsafe {
                libc::getxattr(file.as_ptr(), c"user.a".as_ptr(), room.as_mut_ptr().cast(), room.len())
            };
            usize::try_from(got).map_err(|_| io::Error::last_os_error())
        };
        assert_eq!(errno(get(&mut [0; 8])), libc::ENODATA);
        set(c"user.a", b"value", 0).unwrap();
        assert_eq!(errno(set(c"user.a", b"", libc::XATTR_CREATE)), libc::EEXIST);
        assert_eq!(errno(set(c"user.b", b"", libc::XATTR_REPLACE)), libc::ENODATA);
        assert_eq!(get(&mut []).unwrap(), 5);
        assert_eq!(errno(get(&mut [0; 4])), libc::ERANGE);
        let mut room = [0; 8];
        assert_eq!(get(&mut room).unwrap(), 5);
        assert_eq!(&room[..5], b"value");
        set(c"user.big", &[7; 65536], 0).unwrap();
        let mut list = [0_u8; 64];
        // SAFETY: as above.
        let length = unsafe { libc::listxattr(file.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
        assert_eq!(&list[..length as usize], b"user.a\0user.big\0");
        // SAFETY: as above.
        assert_eq!(unsafe { libc::removexattr(file.as_ptr(), c"user.a".as_ptr()) }, 0);
        assert_eq!(errno(get(&mut room)), libc::ENODATA);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_ten_thousand_names_is_listed_whole() {
    let served = serve_memory(MemFsOptions::default()).await;
    let root = served.stage.path().to_owned();
    apply(move || {
        let expected: Vec<String> = (0..10_000).map(|n| format!("file-{n:05}")).collect();
        for name in &expected {
            mknod(&root.join(name), SFlag::S_IFREG, Mode::from_bits_truncate(0o600), 0).unwrap();
        }
        assert_eq!(names(&root).unwrap(), expected);
    })
    .await;
    assert!(count(&served.session, "readdirplus") + count(&served.session, "readdir") > 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_temporary_file_has_no_name_until_it_is_linked() {
    let served = serve_memory(MemFsOptions::default()).await;
    let root = served.stage.path().to_owned();
    apply(move || {
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).custom_flags(OFlag::O_TMPFILE.bits()).open(&root).unwrap();
        file.write_all(b"temporary").unwrap();
        assert_eq!(names(&root).unwrap(), Vec::<String>::new());
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        let here = nix::fcntl::AT_FDCWD;
        linkat(here, link.as_str(), here, &root.join("named"), AtFlags::AT_SYMLINK_FOLLOW).unwrap();
        assert_eq!(fs::read(root.join("named")).unwrap(), b"temporary");
    })
    .await;
    assert_eq!(count(&served.session, "tmpfile"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opens_cost_nothing_once_they_are_known_to_be_stateless() {
    let served =
        serve_memory(MemFsOptions { ttl: Duration::from_secs(600), ..MemFsOptions::default() }).await;
    let path = served.stage.join("often");
    apply(move || {
        fs::write(&path, b"content").unwrap();
        for _ in 0..100 {
            assert_eq!(fs::read(&path).unwrap(), b"content");
        }
        // Never negotiated together with stateless opens: O_TRUNC would be lost.
        File::create(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    })
    .await;
    assert_eq!(count(&served.session, "open"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn direct_writes_arrive_in_requests_of_one_mebibyte() {
    let served = serve_memory(MemFsOptions::default()).await;
    let path = served.stage.join("direct");
    apply(move || {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
        let memory = vec![1; (4 << 20) + 4096];
        let aligned = memory.as_ptr().align_offset(4096);
        file.write_all_at(&memory[aligned..aligned + (4 << 20)], 0).unwrap();
    })
    .await;
    assert_eq!(count(&served.session, "write"), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changed_behind_the_kernel_is_seen_after_the_notification() {
    let served =
        serve_memory(MemFsOptions { ttl: Duration::from_secs(600), ..MemFsOptions::default() }).await;
    let path = served.stage.join("cached");
    let first = path.clone();
    apply(move || {
        fs::write(&first, b"old").unwrap();
        assert_eq!(fs::read(&first).unwrap(), b"old");
        // Reading made the access time unknown; this makes the kernel know all attributes.
        fs::metadata(&first).unwrap();
    })
    .await;
    let ino = served.fs.overwrite("cached", b"newer").unwrap();
    let stale = path.clone();
    assert_eq!(apply(move || fs::read(stale)).await.unwrap(), b"old", "the kernel does not cache");
    let cache = served.session.kernel_cache();
    assert!(apply(move || cache.invalidate_inode(ino, 0, 0)).await);
    assert_eq!(apply(move || fs::read(path)).await.unwrap(), b"newer");

    let cache = served.session.kernel_cache();
    assert!(apply(move || cache.invalidate_entry(1, b"cached")).await);
    let cache = served.session.kernel_cache();
    assert!(!apply(move || cache.invalidate_entry(1, b"never looked up")).await);
    let cache = served.session.kernel_cache();
    assert!(
        !apply(move || cache.invalidate_inode(987_654, 0, 0)).await,
        "the kernel knows an inode that never was"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unmounting_a_busy_file_system_is_refused_and_lazily_ends_when_it_is_left() {
    let served = serve_memory(MemFsOptions::default()).await;
    let path = served.stage.path().to_owned();
    let file = apply(move || {
        let file = File::create(path.join("held")).unwrap();
        let refused = tarbox_engine::unmount(&path, false).unwrap_err();
        assert!(matches!(refused, tarbox_engine::MountError::Busy(_)), "{refused}");
        tarbox_engine::unmount(&path, true).unwrap();
        file
    })
    .await;
    apply(move || {
        file.write_all_at(b"still here", 0).unwrap();
        drop(file);
    })
    .await;
    assert!(matches!(ended(&served.session).await, Ended::Unmounted));
    assert_eq!(served.fs.destroyed(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_ends_a_call_that_waits() {
    let served = serve_memory(MemFsOptions::default()).await;
    let path = served.stage.join("wait");
    let created = path.clone();
    apply(move || fs::write(created, b"content").unwrap()).await;
    let mut reader = stage::Killed::spawn(std::process::Command::new("cat").arg(&path));
    let waits = || {
        served.session.in_flight().iter().any(|flight| flight.activity == tarbox_engine::Activity::Waiting)
    };
    eventually("the read waits", waits).await;
    let pid = nix::unistd::Pid::from_raw(reader.0.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(!reader.exit().await.success());
    eventually("nothing is in flight", || served.session.in_flight().is_empty()).await;
    // cat reads ahead in two requests at most, and each is interrupted once.
    assert!(!waits());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_of_the_file_system_fails_the_call_and_nothing_else() {
    let served = serve_memory(MemFsOptions::default()).await;
    let root = served.stage.path().to_owned();
    apply(move || {
        for _ in 0..10 {
            assert_eq!(errno(fs::metadata(root.join("panic"))), libc::EIO);
        }
        fs::write(root.join("file"), b"fine").unwrap();
    })
    .await;
    assert!(served.session.in_flight().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_calls_wait_than_slots_keep_their_memory_and_all_end() {
    const CALLS: usize = 60;
    let served = serve_memory(MemFsOptions::default()).await;
    let path = served.stage.join("wait");
    let created = path.clone();
    apply(move || fs::write(created, b"content").unwrap()).await;
    let file =
        std::sync::Arc::new(File::options().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap());
    let calls: Vec<_> = (0..CALLS)
        .map(|_| {
            let file = std::sync::Arc::clone(&file);
            tokio::task::spawn_blocking(move || file.read_at(&mut [0; 7], 0).unwrap())
        })
        .collect();
    eventually("all wait", || served.session.in_flight().len() == CALLS).await;
    let statfs = served.stage.path().to_owned();
    apply(move || nix::sys::statvfs::statvfs(&statfs).unwrap()).await;
    served.fs.open_gate();
    for call in calls {
        assert_eq!(within(call).await.unwrap(), 7);
    }
}
