//! The control directory `/.tarbox`: read and written with ordinary programs, its snapshots browsed beside the work, everything
//! through kills.

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use nix::{
    fcntl::{FallocateFlags, fallocate},
    libc,
    sys::stat::{Mode, SFlag, mknod},
};
use serde_json::Value;
use tarbox_tests::{
    churn::Churn,
    command::{shell, succeed},
    deadline::wait_for,
    on_each_database,
    process::kill_9,
    rng::Rng,
    supervised::Supervised,
    tree,
    volume::{Database, Volume},
};

const LIMIT: Duration = Duration::from_secs(60);
/// Every file that can be read.
const FILES: [&str; 12] = [
    "audit/recent",
    "layers/current",
    "layers/list",
    "layers/tree",
    "layers/new",
    "layers/switch",
    "layers/drop",
    "stats/usage",
    "stats/performance",
    "stats/cache",
    "control/flush",
    "control/gc",
];
const NOBODY: u32 = 65534;

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(".tarbox").join(path)
}

/// A document, read whole.
fn json(root: &Path, path: &str) -> Value {
    let text = fs::read_to_string(below(root, path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
}

fn names_of(list: &Value) -> BTreeSet<String> {
    list.as_array()
        .expect("a list")
        .iter()
        .map(|one| one["name"].as_str().expect("a name").to_owned())
        .collect()
}

fn checkpoints(root: &Path) -> BTreeSet<String> {
    names_of(&json(root, "layers/list"))
}

/// As `echo text > path` does it.
fn order(root: &Path, path: &str, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(below(root, path))?
        .write_all(format!("{text}\n").as_bytes())
}

#[track_caller]
fn fails<T>(outcome: io::Result<T>, errno: i32, what: &str) {
    match outcome {
        Ok(_) => panic!("{what} succeeds"),
        Err(error) => assert_eq!(error.raw_os_error(), Some(errno), "{what}: {error}"),
    }
}

fn run(dir: &Path, script: &str) -> String {
    shell::<&str>(dir, script, &[], LIMIT).unwrap_or_else(|error| panic!("{error:#}"))
}

/// Things of every kind.
fn fill(root: &Path) {
    fs::create_dir_all(root.join("src/deep")).expect("mkdir");
    fs::write(root.join("src/main.rs"), "fn main() {}\n").expect("write");
    fs::write(root.join("src/deep/binary"), [0, 1, 2, 255]).expect("write");
    let mut big = Vec::new();
    (0..900_000u32).for_each(|number| big.extend_from_slice(&number.to_le_bytes()));
    fs::write(root.join("big"), &big).expect("write");
    let sparse = File::create(root.join("sparse")).expect("create");
    sparse.write_all_at(b"begin", 0).expect("write");
    sparse.write_all_at(b"end", 40 << 20).expect("write");
    symlink("src/main.rs", root.join("link")).expect("symlink");
    fs::hard_link(root.join("big"), root.join("twin")).expect("link");
    fs::set_permissions(root.join("src/main.rs"), fs::Permissions::from_mode(0o4751)).expect("chmod");
    chown(root.join("src/deep/binary"), Some(7), Some(8)).expect("chown");
    xattr::set(root.join("src"), "user.colour", b"green").expect("setxattr");
    mknod(&root.join("fifo"), SFlag::S_IFIFO, Mode::from_bits_truncate(0o640), 0).expect("mknod");
    fs::create_dir(root.join("many")).expect("mkdir");
    for number in 0..3000 {
        fs::write(root.join(format!("many/file-{number}")), number.to_string()).expect("write");
    }
}

/// Changes much of what [`fill`] has made.
fn change(root: &Path) {
    fs::write(root.join("big"), "short now").expect("write");
    fs::remove_dir_all(root.join("many")).expect("remove");
    fs::rename(root.join("src"), root.join("renamed")).expect("rename");
    fs::remove_file(root.join("link")).expect("unlink");
    fs::write(root.join("link"), "no link any more").expect("write");
    fs::write(root.join("new"), "new").expect("write");
    let sparse = OpenOptions::new().write(true).open(root.join("sparse")).expect("open");
    sparse.write_all_at(&[9; 5000], 20 << 20).expect("write");
}

fn snapshot_of(root: &Path, name: &str) -> PathBuf {
    below(root, "snapshots").join(name)
}

on_each_database! {
    fn it_is_hidden_and_read_with_ordinary_programs(on) {
        let volume = Volume::new(on);
        let root = volume.path();
        fs::write(root.join("file"), "content").expect("write");
        order(root, "layers/new", "first").expect("a checkpoint");
        assert_eq!(run(root, "ls -A; find . | sort; du -a | wc -l"), "file\n.\n./file\n2\n");
        assert_eq!(run(&root.join(".tarbox"), "ls; cd ..; ls"), "audit\ncontrol\nlayers\nsnapshots\nstats\nfile\n");
        assert_eq!(run(root, "cd .tarbox/layers; ls -a | tr '\\n' ' '"), ". .. current drop list new switch tree ");
        assert!(run(root, "git init -q . && git add -A && git status --short").contains("A  file"));
        assert_eq!(run(root, "rm -rf .git; mkdir ../copy; rsync -a ./ ../copy/; ls -A ../copy; rm -r ../copy"), "file\n");
        for path in FILES {
            let read = run(root, &format!("cat .tarbox/{path}"));
            assert!(serde_json::from_str::<Value>(&read).is_ok(), "{path}: {read}");
            run(root, &format!("jq -e . .tarbox/{path} >/dev/null"));
            run(root, &format!("python3 -c \"import json; json.load(open('.tarbox/{path}'))\""));
            let size = fs::metadata(below(root, path)).expect("stat").len();
            assert!(size > 2, "{path} has {size} bytes");
            assert_eq!(run(root, &format!("head -c 1 .tarbox/{path} && cp .tarbox/{path} ../c && jq -e . ../c >/dev/null && rm ../c")).len(), 1);
        }
        // One document for each open, whatever changes: read in small pieces from the end to the beginning.
        let file = File::open(below(root, "stats/performance")).expect("open");
        let len = file.metadata().expect("stat").len();
        let mut pieces = Vec::new();
        for at in (0..len).step_by(7).collect::<Vec<_>>().into_iter().rev() {
            fs::write(root.join("file"), at.to_string()).expect("write");
            let mut piece = [0; 7];
            let read = file.read_at(&mut piece, at).expect("pread");
            pieces.push(piece[..read].to_vec());
        }
        let text = pieces.into_iter().rev().flatten().collect::<Vec<_>>();
        serde_json::from_slice::<Value>(&text).expect("one document");
        // And the next one tells what is true then.
        let before = json(root, "stats/usage")["used_bytes"].as_u64().expect("a number");
        fs::write(root.join("more"), vec![1; 1 << 20]).expect("write");
        assert_eq!(json(root, "stats/usage")["used_bytes"].as_u64(), Some(before + (1 << 20)));
        let df = |path: &Path| nix::sys::statvfs::statvfs(path).expect("statvfs").blocks();
        assert_eq!(df(&below(root, "layers/list")), df(root));
    }

    fn what_is_written_is_done_when_it_is_answered(on) {
        let volume = Volume::with(on, &["--flush-interval", "1h"]);
        let root = volume.path();
        fs::write(root.join("file"), "one").expect("write");
        run(root, "echo first > .tarbox/layers/new");
        assert_eq!(fs::read_to_string(snapshot_of(root, "first").join("file")).expect("read"), "one");
        fs::write(root.join("file"), "two").expect("write");
        run(root, "printf '{\"name\": \"second\", \"tags\": [\"good\", \"v1.0\"]}' >> .tarbox/layers/new");
        assert_eq!(checkpoints(root), ["first", "second"].map(String::from).into());
        assert_eq!(fs::read_link(snapshot_of(root, "good")).expect("a link"), Path::new("second"));
        assert_eq!(fs::read_to_string(snapshot_of(root, "v1.0").join("file")).expect("read"), "two");
        assert_eq!(run(&below(root, "snapshots"), "ls -U | sort"), "first\ngood\nsecond\nv1.0\n");
        assert_eq!(json(root, "layers/new")["last"]["made"], "second");
        let current = json(root, "layers/current");
        assert_eq!((current["checkpoint"]["name"].as_str(), current["tenant"].as_str()), (Some("second"), Some("test")));
        let tree = json(root, "layers/tree");
        let parent = |name: &str| {
            let nodes = tree.as_array().expect("a list");
            nodes.iter().find(|node| node["name"] == name).expect("there")["parent"].as_str().map(str::to_owned)
        };
        assert_eq!((parent("first"), parent("second"), parent("head")), (None, Some("first".into()), Some("second".into())));
        // A flush commits; the interval alone would not, for an hour.
        fs::write(root.join("file"), "three").expect("write");
        let position = |key: &str| json(root, "control/flush")[key].as_u64().expect("a number");
        assert!(position("committed") < position("acknowledged"));
        run(root, "echo now > .tarbox/control/flush");
        assert_eq!(position("committed"), position("acknowledged"));
        run(root, "echo second > .tarbox/layers/drop");
        assert_eq!(checkpoints(root), ["first".to_owned()].into());
        assert!(!snapshot_of(root, "second").exists());
        assert!(fs::read_link(snapshot_of(root, "good")).is_err(), "its tags went with it");
        run(root, "rm file; echo 1 > .tarbox/control/gc");
        assert!(json(root, "control/gc")["last"]["collected"].is_u64());
        // What the command line sees is the same.
        let listed = volume.tarbox(&["checkpoint", "list", "test", "-o", "json"]).expect("list");
        assert_eq!(names_of(&serde_json::from_str(&listed.stdout).expect("JSON")), checkpoints(root));
    }

    fn a_bad_value_is_refused_by_errno_and_changes_nothing(on) {
        let volume = Volume::new(on);
        let root = volume.path();
        order(root, "layers/new", "{\"name\": \"first\", \"tags\": [\"tagged\"]}").expect("a checkpoint");
        let before = (json(root, "layers/list"), tree::read(root).expect("read"));
        for bad in ["", "a b", "-x", "head", "../x", "{", "{\"name\": 7}", "{\"name\": \"x\", \"tag\": 1}", "{\"name\":\"x\",\"tags\":[\"x\"]}"] {
            fails(order(root, "layers/new", bad), libc::EINVAL, bad);
        }
        fails(order(root, "layers/new", &"x".repeat(70_000)), libc::EINVAL, "a long name");
        for path in ["layers/switch", "layers/drop"] {
            for bad in ["", "a/b", "{}", "{\"nam\": \"first\"}"] {
                fails(order(root, path, bad), libc::EINVAL, bad);
            }
            fails(order(root, path, "nothing"), libc::ENOENT, path);
        }
        fails(order(root, "layers/new", "first"), libc::EEXIST, "a name that is taken");
        fails(order(root, "layers/new", "tagged"), libc::EEXIST, "a name that a tag has");
        fails(order(root, "layers/new", "{\"name\":\"x\",\"tags\":[\"first\"]}"), libc::EEXIST, "a tag like a checkpoint");
        assert!(json(root, "layers/new")["last"]["error"].as_str().expect("why").contains("`first`"));
        for path in ["stats/usage", "layers/list"] {
            fails(order(root, path, "x"), libc::EACCES, path);
        }
        fails(fs::write(below(root, "layers/other"), "x"), libc::EPERM, "a new file");
        fails(fs::create_dir(below(root, "snapshots/x")), libc::EPERM, "a new directory");
        fails(fs::remove_file(below(root, "layers/new")), libc::EPERM, "unlink");
        fails(fs::remove_dir(root.join(".tarbox")), libc::EPERM, "rmdir");
        fails(fs::rename(root.join(".tarbox"), root.join("x")), libc::EPERM, "rename");
        fs::create_dir(root.join("dir")).expect("mkdir");
        fails(fs::rename(root.join("dir"), root.join(".tarbox")), libc::EPERM, "rename onto it");
        fails(fs::create_dir(root.join(".tarbox")), libc::EEXIST, "mkdir");
        fails(symlink("x", root.join(".tarbox")), libc::EEXIST, "symlink");
        fails(fs::set_permissions(root.join(".tarbox"), fs::Permissions::from_mode(0o777)), libc::EPERM, "chmod");
        fs::remove_dir(root.join("dir")).expect("rmdir");
        assert_eq!(json(root, "layers/list"), before.0);
        let now = tree::read(root).expect("read");
        tree::assert_same("nothing is changed", &before.1, &now);
    }

    fn a_snapshot_is_the_tenant_at_that_moment_beside_the_work(on) {
        let mut volume = Volume::with(on, &["--cache-size", "4Mi"]);
        let root = volume.path().to_owned();
        fill(&root);
        let first = tree::read(&root).expect("read");
        order(&root, "layers/new", "first").expect("a checkpoint");
        change(&root);
        let second = tree::read(&root).expect("read");
        order(&root, "layers/new", "second").expect("a checkpoint");
        let stop = AtomicBool::new(false);
        let mut churn = Churn::new(&root.join("churn"), 7).expect("a directory");
        thread::scope(|scope| {
            let worker = scope.spawn(|| churn.run(&stop));
            for _ in 0..3 {
                tree::assert_same("the first", &first, &tree::read(&snapshot_of(&root, "first")).expect("read"));
                tree::assert_same("the second", &second, &tree::read(&snapshot_of(&root, "second")).expect("read"));
            }
            stop.store(true, Ordering::Relaxed);
            worker.join().expect("no panic").expect("no call fails");
        });
        churn.verify_all().expect("all is as it was made");
        let then = snapshot_of(&root, "first");
        assert!(!then.join(".tarbox").exists(), "it has none itself");
        assert_eq!(run(&then, "cd ..; ls -U | sort; cd ../..; test -e churn && echo root"), "first\nsecond\nroot\n");
        assert_eq!(fs::metadata(then.join("big")).expect("stat").nlink(), 2);
        let sparse = fs::metadata(then.join("sparse")).expect("stat");
        assert_eq!((sparse.len(), sparse.blocks()), ((40 << 20) + 3, 16), "its holes are holes");
        // The number is the tenant's in its lower 48 bits. Were it the same in all, these would be one file to cp and diff.
        let mask = (1 << 48) - 1;
        let ino = |path: &Path| fs::metadata(path).expect("stat").ino();
        assert_eq!(ino(&then.join("sparse")) & mask, ino(&root.join("sparse")));
        assert_ne!(ino(&then.join("sparse")), ino(&root.join("sparse")));
        assert!(run(&root, "cmp -s sparse .tarbox/snapshots/first/sparse || echo differ").contains("differ"));
        run(&root, "cp -a .tarbox/snapshots/first/big . && cmp big .tarbox/snapshots/first/big && tar -C .tarbox/snapshots/first -cf - src | tar -tf - >/dev/null");
        volume.remount();
        tree::assert_same("mounted again", &first, &tree::read(&snapshot_of(&root, "first")).expect("read"));
        volume.stop();
        volume.fsck();
    }

    fn every_change_in_a_snapshot_is_refused_as_on_a_read_only_file_system(on) {
        let volume = Volume::new(on);
        let root = volume.path();
        fill(root);
        order(root, "layers/new", "first").expect("a checkpoint");
        let then = snapshot_of(root, "first");
        let first = tree::read(&then).expect("read");
        let at = |name: &str| then.join(name);
        let erofs = libc::EROFS;
        fails(fs::write(at("big"), "x"), erofs, "truncation");
        fails(fs::write(at("new"), "x"), erofs, "creation");
        fails(OpenOptions::new().append(true).open(at("big")).and_then(|mut file| file.write_all(b"x")), erofs, "write");
        fails(OpenOptions::new().write(true).open(at("big")).and_then(|file| file.set_len(1)), erofs, "ftruncate");
        let open = OpenOptions::new().write(true).open(at("big")).expect("open");
        fails(fallocate(&open, FallocateFlags::empty(), 0, 1 << 20).map_err(io::Error::from), erofs, "fallocate");
        fails(fs::create_dir(at("dir")), erofs, "mkdir");
        fails(fs::remove_dir(at("src/deep")), erofs, "rmdir");
        fails(fs::remove_file(at("big")), erofs, "unlink");
        fails(symlink("x", at("symlink")), erofs, "symlink");
        fails(mknod(&at("node"), SFlag::S_IFIFO, Mode::S_IRUSR, 0).map_err(io::Error::from), erofs, "mknod");
        fails(fs::hard_link(at("big"), at("third")), erofs, "link");
        fails(fs::hard_link(at("big"), root.join("third")), libc::EXDEV, "link into the head");
        fails(fs::rename(at("big"), at("other")), erofs, "rename");
        fails(fs::rename(at("big"), root.join("other")), erofs, "rename out");
        fails(fs::rename(root.join("big"), at("other")), erofs, "rename in");
        fails(fs::set_permissions(at("big"), fs::Permissions::from_mode(0o600)), erofs, "chmod");
        fails(chown(at("big"), Some(1), None), erofs, "chown");
        fails(open.set_modified(std::time::SystemTime::now()), erofs, "utimens");
        fails(xattr::set(at("src"), "user.colour", b"red"), erofs, "setxattr");
        fails(xattr::remove(at("src"), "user.colour"), erofs, "removexattr");
        fails(io::copy(&mut File::open(root.join("twin")).expect("open"), &mut &open), erofs, "copy_file_range");
        tree::assert_same("nothing is changed", &first, &tree::read(&then).expect("read"));
    }

    fn what_looks_at_a_deleted_checkpoint_gets_estale_and_never_wrong_bytes(on) {
        let volume = Volume::with(on, &["--cache-size", "1Mi"]);
        let root = volume.path();
        fill(root);
        let wanted = fs::read(root.join("big")).expect("read");
        for (way, name) in ["echo mine > .tarbox/layers/drop", ""].into_iter().zip(["mine", "theirs"]) {
            order(root, "layers/new", name).expect("a checkpoint");
            fs::write(root.join("big"), vec![b'y'; wanted.len()]).expect("write");
            run(root, "rm -rf many; echo 1 > .tarbox/control/flush");
            let then = snapshot_of(root, name);
            let file = File::open(then.join("big")).expect("open");
            let mut head = vec![0; 100_000];
            file.read_exact_at(&mut head, 0).expect("read");
            assert_eq!(head, wanted[..100_000]);
            if way.is_empty() {
                let deleted = volume.tarbox(&["checkpoint", "delete", "test", name]).expect("delete");
                assert_eq!(deleted.code, Some(0), "{deleted:?}");
            } else {
                run(root, way);
            }
            // All that only it could see goes.
            run(root, "echo 1 > .tarbox/control/gc");
            let mut stale = 0;
            for (number, piece) in wanted.chunks(4096).enumerate() {
                let mut read = vec![0; piece.len()];
                match file.read_exact_at(&mut read, number as u64 * 4096) {
                    Ok(()) => assert_eq!(read, piece, "at {number}"),
                    Err(error) => {
                        assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{error}");
                        stale += 1;
                    }
                }
            }
            assert!(stale > 0, "what was neither read nor kept cannot be had");
            let gone = wait_for("the name to go", LIMIT, || then.metadata().err());
            let errno = gone.expect("it goes").raw_os_error();
            assert!(matches!(errno, Some(libc::ENOENT | libc::ESTALE)), "{errno:?}");
            fs::write(root.join("big"), &wanted).expect("write");
            fs::create_dir_all(root.join("many")).expect("mkdir");
            order(root, "layers/new", name).expect("the name is free");
            assert_eq!(fs::read(snapshot_of(root, name).join("big")).expect("read"), wanted);
        }
    }

    fn files_and_directories_of_a_snapshot_go_on_through_kills_and_upgrades_under_load(on) {
        let mut supervised = Supervised::start(on, &["--cache-size", "2Mi"]);
        let root = supervised.path().to_owned();
        fill(&root);
        order(&root, "layers/new", "first").expect("a checkpoint");
        let wanted = fs::read(root.join("big")).expect("read");
        let listed: BTreeSet<_> = fs::read_dir(root.join("many")).expect("list").map(|entry| entry.expect("entry").file_name()).collect();
        change(&root);
        let then = snapshot_of(&root, "first");
        let big = File::open(then.join("big")).expect("open");
        let mut half = fs::read_dir(then.join("many")).expect("list");
        let mut seen: BTreeSet<_> = half.by_ref().take(700).map(|entry| entry.expect("entry").file_name()).collect();
        let document = File::open(below(&root, "layers/list")).expect("open");
        let stop = AtomicBool::new(false);
        let mut churn = Churn::new(&root.join("churn"), 11).expect("a directory");
        let looked = thread::scope(|scope| {
            let (stop, big, wanted, then) = (&stop, &big, &wanted, &then);
            let worker = scope.spawn(|| churn.run(stop));
            let looker = scope.spawn(move || {
                let mut rng = Rng::new(5);
                let mut looked = 0;
                while !stop.load(Ordering::Relaxed) {
                    let at = rng.below(wanted.len() as u64 - 5000);
                    let mut read = vec![0; 5000];
                    big.read_exact_at(&mut read, at).expect("an open file goes on");
                    assert_eq!(read, wanted[at as usize..at as usize + 5000], "at {at}");
                    let number = rng.below(3000);
                    let text = fs::read_to_string(then.join(format!("many/file-{number}"))).expect("read");
                    assert_eq!(text, number.to_string());
                    looked += 1;
                }
                looked
            });
            for round in 0..6 {
                thread::sleep(Duration::from_millis(120));
                if round % 3 == 2 {
                    supervised.upgrade().expect("upgrade");
                } else {
                    supervised.kill();
                    supervised.serve().expect("serve");
                }
            }
            stop.store(true, Ordering::Relaxed);
            worker.join().expect("no panic").expect("no call fails");
            looker.join().expect("no panic")
        });
        assert!(looked > 0, "nobody has looked");
        seen.extend(half.map(|entry| entry.expect("entry").file_name()));
        assert_eq!(seen, listed, "a stream that was half read goes on where it was");
        let mut text = String::new();
        (&document).read_to_string(&mut text).expect("a document that was open goes on");
        assert!(text.contains("\"first\""), "{text}");
        churn.verify_all().expect("all is as it was made");
        drop((big, document));
        supervised.unmount().expect("unmount");
        supervised.fsck();
    }

    fn a_checkpoint_ordered_while_the_mounter_is_killed_is_made_once_and_answered_once(on) {
        let volume = Volume::new(on);
        let root = volume.path();
        // Until the first process has said that it serves, its end is that of the mount.
        wait_for("the mount", LIMIT, || volume.mount().said().contains("serves at").then_some(())).expect("it serves");
        let rounds = 8;
        for round in 0..rounds {
            let name = format!("c{round}");
            fs::write(root.join("file"), &name).expect("write");
            thread::scope(|scope| {
                let pid = volume.mount().pid();
                let ordered = scope.spawn(|| order(root, "layers/new", &format!("{{\"name\":\"{name}\",\"tags\":[\"t{round}\"]}}")));
                thread::sleep(Duration::from_millis(round));
                kill_9(pid);
                ordered.join().expect("no panic").expect("it is made, and that is what its writer is told");
            });
            assert_eq!(fs::read_to_string(snapshot_of(root, &format!("t{round}")).join("file")).expect("read"), name);
            fs::write(root.join("file"), "later").expect("write");
            thread::scope(|scope| {
                let pid = volume.mount().pid();
                let dropped = (round % 2 == 1).then(|| scope.spawn(|| order(root, "layers/drop", &name)));
                thread::sleep(Duration::from_millis(round));
                if let Some(dropped) = dropped {
                    kill_9(pid);
                    dropped.join().expect("no panic").expect("it is dropped, and that is what its writer is told");
                }
            });
        }
        let kept: BTreeSet<String> = (0..rounds).filter(|round| round % 2 == 0).map(|round| format!("c{round}")).collect();
        assert_eq!(checkpoints(root), kept);
        assert_eq!(json(root, "layers/list").as_array().expect("a list").len(), kept.len(), "each is there once");
    }

    fn writing_to_switch_goes_back_also_when_the_mounter_is_killed_meanwhile(on) {
        let mut volume = Volume::new(on);
        let root = volume.path().to_owned();
        fill(&root);
        let first = tree::read(&root).expect("read");
        order(&root, "layers/new", "first").expect("a checkpoint");
        for round in 0..5 {
            change(&root);
            fs::write(root.join("round"), round.to_string()).expect("write");
            let open = File::open(root.join("sparse")).expect("open");
            thread::scope(|scope| {
                let pid = volume.mount().pid();
                let switched = scope.spawn(|| order(&root, "layers/switch", "first"));
                if round > 1 {
                    thread::sleep(Duration::from_millis(4 * round));
                    // It may have ended by itself at this moment: that is how a restore goes on.
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGKILL);
                }
                switched.join().expect("no panic").expect("it is switched, and that is what its writer is told");
            });
            tree::assert_same("as it was", &first, &tree::read(&root).expect("read"));
            let mut read = [0; 10];
            open.read_exact_at(&mut read, 20 << 20).expect("an open file goes on");
            assert_eq!(read, [0; 10], "with what the checkpoint has");
            let before = json(&root, "layers/list");
            let before = before.as_array().expect("a list").iter().filter(|one| one["kind"] == "before-restore").count();
            assert_eq!(before as u64, round + 1, "what was there before is kept, once");
        }
        assert_eq!(json(&root, "layers/current")["checkpoint"]["name"], "first");
        volume.stop();
        volume.fsck();
    }

    fn commands_are_the_owners_and_reading_is_as_the_root_allows(on) {
        let volume = Volume::new(on);
        let root = volume.path();
        let as_nobody = |script: &str| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-euc", script]).current_dir(root);
            succeed(&mut command, LIMIT)
        };
        assert!(as_nobody("echo mine > .tarbox/layers/new").is_err(), "not the owner");
        assert!(as_nobody("jq -e . .tarbox/layers/list && ls .tarbox/snapshots").is_ok(), "all may read");
        assert!(checkpoints(root).is_empty());
        chown(root, Some(NOBODY), Some(NOBODY)).expect("chown");
        fs::set_permissions(root, fs::Permissions::from_mode(0o750)).expect("chmod");
        let stat = || fs::metadata(below(root, "layers/new")).map(|stat| (stat.uid(), stat.gid(), stat.mode() & 0o7777));
        let new = wait_for("the new owner", LIMIT, || stat().ok().filter(|(uid, ..)| *uid == NOBODY)).expect("stat");
        assert_eq!(new, (NOBODY, NOBODY, 0o640));
        assert_eq!(fs::metadata(below(root, "stats/usage")).expect("stat").mode() & 0o7777, 0o440);
        as_nobody("echo mine > .tarbox/layers/new").expect("the owner may");
        assert_eq!(checkpoints(root), ["mine".to_owned()].into());
    }

    fn switched_off_there_is_none_and_an_own_entry_of_that_name_comes_to_light(on) {
        let mut volume = Volume::with(on, &["--control-dir", "false"]);
        let root = volume.path().to_owned();
        assert!(!root.join(".tarbox").exists());
        fs::create_dir(root.join(".tarbox")).expect("an own directory");
        fs::write(root.join(".tarbox/own"), "mine").expect("write");
        volume.plan().args.clear();
        volume.remount();
        assert_eq!(run(&root, "ls -A"), "");
        assert!(!root.join(".tarbox/own").exists());
        order(&root, "layers/new", "first").expect("a checkpoint");
        let own = snapshot_of(&root, "first").join(".tarbox/own");
        assert_eq!(fs::read_to_string(own).expect("read"), "mine", "it can be read in snapshots");
        volume.plan().args = vec!["--control-dir=false".into()];
        volume.remount();
        assert_eq!(fs::read_to_string(root.join(".tarbox/own")).expect("read"), "mine");
        volume.plan().args = vec!["--read-only".into()];
        volume.remount();
        assert_eq!(fs::read_to_string(root.join(".tarbox/own")).expect("read"), "mine", "nor is there one where nothing is written");
    }
}

/// Stores into memory that is mapped cannot be refused when they are made: what is shown afterwards is the checkpoint's all the same.
#[test]
fn what_is_stored_into_a_mapped_file_of_a_snapshot_does_not_stay() {
    let volume = Volume::new(Database::Sqlite);
    let root = volume.path();
    fs::write(root.join("file"), vec![b'a'; 8192]).expect("write");
    order(root, "layers/new", "first").expect("a checkpoint");
    let path = snapshot_of(root, "first").join("file");
    let script = "import mmap,os,sys\nf=os.open(sys.argv[1],os.O_RDWR)\nm=mmap.mmap(f,8192)\nm[0:4]=b'evil'\n\
                  try:\n m.flush()\nexcept OSError: pass\nm.close()\ntry:\n os.fsync(f)\nexcept OSError: pass\n";
    succeed(Command::new("python3").args(["-c", script]).arg(&path), LIMIT).expect("python");
    let is_right = || fs::read(&path).ok().filter(|bytes| bytes.iter().all(|byte| *byte == b'a'));
    wait_for("the checkpoint's bytes", LIMIT, is_right).expect("they come back");
}

/// A name in the kernel's own words, for calls that the library has no word for.
#[test]
fn a_snapshot_can_be_walked_by_directory_descriptors_alone() {
    let volume = Volume::new(Database::Sqlite);
    let root = volume.path();
    fill(root);
    order(root, "layers/new", "first").expect("a checkpoint");
    let there = CString::new(snapshot_of(root, "first").as_os_str().as_bytes()).expect("a path");
    let found = run(root, &format!("find -H '{}' -inum +0 | wc -l", there.to_str().expect("UTF-8")));
    let head = run(root, "find . | wc -l");
    assert_eq!(found.trim(), head.trim());
}
