//! What system calls do: the `pjdfstest` suite, and random sequences of calls compared with ext4.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, Permissions},
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::Duration,
};

use tarbox_tests::{
    command::{end_of, succeed},
    differ, on_each_database,
    rng::seed,
    scratch::Scratch,
    suites::pjdfstest::{self, Outcome},
    tree,
    volume::{Database, Volume},
};

/// Tests of pjdfstest that pass on ext4 and cannot pass through the kernel's FUSE, each with the reason. SEMANTICS.md says the same.
const IMPOSSIBLE: [(&str, &str); 1] = [(
    "link::link_count_max",
    "the C library answers pathconf(_PC_LINK_MAX) by the type of the file system, and for FUSE with `unknown`",
)];

on_each_database! {
    fn every_pjdfstest_that_passes_on_ext4_passes(on) {
        let ext4 = Scratch::on_ext4().expect("ext4");
        let volume = Volume::new(on);
        let wanted = pjdfstest::run(ext4.path(), ext4.path()).expect("pjdfstest on ext4");
        let found = pjdfstest::run(volume.path(), ext4.path()).expect("pjdfstest");
        assert!(wanted.by_name.len() > 390, "only {} tests were read", wanted.by_name.len());
        let impossible: BTreeMap<_, _> = IMPOSSIBLE.into_iter().collect();
        let worse: Vec<String> = wanted.by_name.iter()
            .filter(|(name, outcome)| **outcome == Outcome::Passed && !impossible.contains_key(name.as_str()))
            .filter(|(name, _)| found.by_name.get(*name) != Some(&Outcome::Passed))
            .map(|(name, _)| pjdfstest::about(&found, name))
            .collect();
        assert!(worse.is_empty(), "{} tests pass on ext4 only:\n{}", worse.len(), worse.join("\n"));
    }

    fn random_sequences_do_the_same_as_on_ext4_also_after_a_remount(on) {
        let ext4 = Scratch::on_ext4().expect("ext4");
        let mut volume = Volume::new(on);
        let first = seed();
        println!("TESTS_SEED={first}");
        if let Err(report) = differ::compare_seeds(ext4.path(), volume.path(), first..first + sequences(), 1500) {
            panic!("{report}");
        }
        volume.remount();
        tree::assert_same(
            "after unmount and mount",
            &tree::read(ext4.path()).expect("ext4"),
            &tree::read(volume.path()).expect("the tenant"),
        );
        volume.stop();
        volume.fsck();
    }

    fn who_renames_the_names_he_reads_sees_each_once(on) {
        let volume = Volume::new(on);
        let dir = volume.at("dir");
        fs::create_dir(&dir).expect("mkdir");
        // More than one call to the kernel brings, so that it is asked for positions behind what was renamed.
        let made: BTreeSet<_> = (0..3000).map(|n| dir.join(format!("name-{n}"))).collect();
        made.iter().for_each(|path| drop(File::create(path).expect("create")));
        let mut seen = BTreeSet::new();
        for entry in fs::read_dir(&dir).expect("opendir") {
            let path = entry.expect("readdir").path();
            fs::rename(&path, dir.join("aside")).expect("rename");
            fs::rename(dir.join("aside"), &path).expect("rename back");
            assert!(seen.insert(path.clone()), "{} comes twice", path.display());
        }
        assert_eq!(seen, made);
    }

    fn sequences_running_at_the_same_time_do_not_disturb_each_other(on) {
        let ext4 = Scratch::on_ext4().expect("ext4");
        let volume = Volume::new(on);
        let first = seed();
        println!("TESTS_SEED={first}");
        std::thread::scope(|scope| {
            for k in 0..4 {
                let (left, right) = (ext4.path(), volume.path());
                let seed = first + 1000 + k;
                scope.spawn(move || {
                    if let Err(report) = differ::compare_seeds(left, right, seed..seed + 1, 800) {
                        panic!("{report}");
                    }
                });
            }
        });
    }
}

const LIMIT: Duration = Duration::from_secs(60);

/// Prints the handle of a file; with a handle, opens that.
const HANDLES: &str = "
import ctypes,errno,os,sys
class Handle(ctypes.Structure): _fields_=[('size',ctypes.c_uint),('kind',ctypes.c_int),('data',ctypes.c_ubyte*128)]
libc=ctypes.CDLL(None,use_errno=True); handle=Handle(128); mount=ctypes.c_int(); path=os.fsencode(sys.argv[1])
if len(sys.argv)==2:
 assert libc.name_to_handle_at(-100,path,ctypes.byref(handle),ctypes.byref(mount),0)==0
 print(bytes(handle).hex(),end='')
else:
 handle=Handle.from_buffer_copy(bytes.fromhex(sys.argv[2])); there=os.open(os.path.dirname(path),os.O_RDONLY)
 opened=libc.open_by_handle_at(there,ctypes.byref(handle),os.O_RDONLY)
 print(errno.errorcode[ctypes.get_errno()] if opened<0 else 'opened',end='')
";

fn handles(path: &Path, handle: &[String]) -> String {
    succeed(Command::new("python3").args(["-c", HANDLES]).arg(path).args(handle), LIMIT).expect("python3")
}

#[test]
fn what_ext4_offers_and_fuse_does_not_is_refused() {
    let mut volume = Volume::new(Database::Sqlite);
    if volume.is_control() {
        return;
    }
    let path = volume.at("file");
    fs::write(&path, "content").expect("write");
    let born = fs::metadata(&path).expect("stat").created();
    assert_eq!(born.expect_err("no time of birth").kind(), ErrorKind::Unsupported);
    for flag in ["+i", "+a"] {
        let ended = end_of(Command::new("chattr").arg(flag).arg(&path), LIMIT).expect("chattr");
        assert!(ended.stderr.contains("Operation not supported"), "{flag}: {ended:?}");
    }
    let clone = Command::new("cp").arg("--reflink=always").arg(&path).arg(volume.at("clone")).output();
    assert!(!clone.expect("cp").status.success(), "no file shares blocks with another by name");

    let handle = [handles(&path, &[])];
    assert_eq!(handles(&path, &handle), "opened", "the kernel knows the file");
    volume.remount();
    assert_eq!(handles(&path, &handle), "ESTALE", "it does not, and nobody tells it");
    assert_eq!(fs::read_to_string(&path).expect("read"), "content");
}

#[test]
fn what_a_stranger_writes_clears_setuid_and_leaves_setgid_without_execution() {
    let volume = Volume::new(Database::Sqlite);
    if volume.is_control() {
        return;
    }
    let path = volume.at("file");
    for (before, after) in [(0o6666, 0o2666), (0o6676, 0o676)] {
        fs::write(&path, "content").expect("write");
        fs::set_permissions(&path, Permissions::from_mode(before)).expect("chmod");
        let mut stranger = Command::new("setpriv");
        stranger.args(["--reuid=65534", "--regid=65534", "--clear-groups", "dd", "if=/dev/zero", "count=1"]);
        succeed(stranger.arg(format!("of={}", path.display())), LIMIT).expect("setpriv");
        let mode = fs::metadata(&path).expect("stat").permissions().mode() & 0o7777;
        assert_eq!(mode, after, "{mode:o} after {before:o}");
    }
}

#[test]
fn what_is_stored_into_a_mapped_hole_is_data_and_a_modification_once_it_is_synced() {
    let volume = Volume::new(Database::Sqlite);
    File::create(volume.at("file")).and_then(|file| file.set_len(1 << 20)).expect("a hole");
    let script = "import mmap,os,sys\nfile=os.open(sys.argv[1],os.O_RDWR)\nmemory=mmap.mmap(file,0)\n\
                  memory[300000:300001]=b'x'\nos.utime(file,(1,1))\nmemory.flush()\n\
                  print(os.lseek(file,0,os.SEEK_DATA),os.fstat(file).st_mtime>1,end='')\n";
    let data = succeed(Command::new("python3").args(["-c", script]).arg(volume.at("file")), LIMIT);
    assert_eq!(data.expect("python3"), format!("{} True", 300_000 / 4096 * 4096));
}

fn sequences() -> u64 {
    std::env::var("TESTS_SEQUENCES").ok().and_then(|text| text.parse().ok()).unwrap_or(40)
}
