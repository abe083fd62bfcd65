//! The database away, set back or full, the journal's disk full: no wrong data, nothing lost that was acknowledged.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tarbox_tests::{
    command::succeed,
    deadline::wait_for,
    on_each_database,
    rng::Rng,
    scratch::Scratch,
    stamper::{Stamper, Told},
    tree,
    volume::{Database, Volume},
};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn postgresql_away_for_a_while_under_load_fails_no_call_and_loses_nothing() {
    let mut volume = Volume::new(Database::Postgres);
    if volume.is_control() {
        return;
    }
    let stamper = Stamper::new(&volume.at("stamps")).expect("stamps");
    let told = Told::default();
    let away = std::env::var("TESTS_OUTAGE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(8);
    thread::scope(|scope| {
        let writer = scope.spawn(|| stamper.write(&told, 0));
        wait_for("some rounds", LIMIT, || (told.done.load(SeqCst) > 100).then_some(())).expect("rounds");
        volume.server().crash().expect("stop PostgreSQL");
        let begin = told.done.load(SeqCst);
        let until = Instant::now() + Duration::from_secs(away);
        wait_for("the outage's end", LIMIT, || {
            (Instant::now() > until || writer.is_finished()).then_some(())
        })
        .expect("end");
        assert!(!writer.is_finished(), "a call failed: {:?}\n{}", writer.join(), volume.mount().said());
        assert!(told.done.load(SeqCst) > begin, "nothing was acknowledged while PostgreSQL was away");
        volume.server().resume().expect("start PostgreSQL");
        let reached = told.done.load(SeqCst) + 100;
        wait_for("work to go on", LIMIT, || {
            (told.done.load(SeqCst) > reached || writer.is_finished()).then_some(())
        })
        .expect("work");
        told.stop.store(true, SeqCst);
        writer.join().expect("writer").expect("no call fails");
    });
    File::open(volume.at("stamps/log")).expect("open").sync_all().expect("fsync after the outage");
    let done = told.done.load(SeqCst);
    volume.kill();
    volume.lose_node();
    volume.start();
    let found = stamper.read().expect("a prefix");
    assert_eq!(
        (found.first, found.names),
        (done, done),
        "what was synced after the outage is in the database"
    );
    volume.stop();
    volume.fsck();
}

#[test]
fn an_fsync_waits_for_postgresql_to_come_back_and_then_succeeds() {
    let mut volume = Volume::new(Database::Postgres);
    if volume.is_control() {
        return;
    }
    // In a directory made here all names are known; in another, a new name would have to be asked for.
    fs::create_dir(volume.at("dir")).expect("mkdir");
    fs::write(volume.at("dir/before"), "before").expect("write");
    volume.server().stop().expect("stop PostgreSQL");
    let path = volume.at("dir/during");
    let waiter = thread::spawn(move || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(b"during")?;
        file.sync_all()
    });
    assert_eq!(fs::read(volume.at("dir/before")).expect("read what is cached"), b"before");
    wait_for("the file", LIMIT, || volume.at("dir/during").exists().then_some(()))
        .expect("created while it is away");
    assert!(!waiter.is_finished(), "fsync succeeded without a database");
    volume.server().resume().expect("start PostgreSQL");
    waiter.join().expect("the waiter").expect("fsync");
    volume.kill();
    volume.lose_node();
    volume.start();
    assert_eq!(fs::read(volume.at("dir/during")).expect("read"), b"during");
}

#[test]
fn where_it_was_said_so_who_waits_is_answered_and_what_was_acknowledged_is_kept() {
    let mut volume = Volume::with(Database::Postgres, &["--on-database-outage", "eio-after=2s"]);
    if volume.is_control() {
        return;
    }
    synced(&volume, "one", 1);
    // Nothing of it is in memory.
    volume.stop();
    volume.start();
    let file = File::options().append(true).create(true).open(volume.at("log")).expect("open");
    file.sync_all().expect("fsync");
    volume.server().stop().expect("stop PostgreSQL");
    (&file).write_all(b"acknowledged").expect("the journal takes it");
    let is_eio = |outcome: std::io::Result<()>| {
        let error = outcome.expect_err("the database is away");
        assert_eq!(error.raw_os_error(), Some(nix::libc::EIO), "{error}");
    };
    let begun = Instant::now();
    is_eio(file.sync_all());
    assert!(begun.elapsed() >= Duration::from_secs(1), "it waited {:?} only", begun.elapsed());
    is_eio(fs::read(volume.at("one-3")).map(drop));
    (&file).write_all(b" as well").expect("the journal takes it");
    volume.server().resume().expect("start PostgreSQL");
    wait_for("an fsync", LIMIT, || file.sync_all().ok()).expect("it answers again");
    volume.kill();
    volume.lose_node();
    volume.start();
    assert_eq!(fs::read(volume.at("log")).expect("read"), b"acknowledged as well");
}

#[test]
fn a_postgresql_set_back_to_an_earlier_copy_is_noticed_and_caught_up_or_refused() {
    let mut volume = Volume::new(Database::Postgres);
    if volume.is_control() {
        return;
    }
    synced(&volume, "one", 1);
    let (data, copy) = (volume.server().data().to_owned(), volume.scratch().path().join("copy"));
    volume.server().stop().expect("stop");
    succeed(Command::new("cp").arg("-a").arg(&data).arg(&copy), LIMIT).expect("copy");
    volume.server().resume().expect("start");
    synced(&volume, "two", 2);
    volume.server().stop().expect("stop");
    fs::remove_dir_all(&data).expect("remove");
    succeed(Command::new("cp").arg("-a").arg(&copy).arg(&data), LIMIT).expect("restore");
    volume.server().resume().expect("start the earlier copy");
    caught_up_or_refused(volume);
}

#[test]
fn an_sqlite_set_back_to_an_earlier_copy_is_noticed_and_caught_up_or_refused() {
    let volume = Volume::new(Database::Sqlite);
    if volume.is_control() {
        return;
    }
    synced(&volume, "one", 1);
    let copy = volume.scratch().sub("copy").expect("copy");
    let files = databases(&volume.sqlite_dir());
    assert!(!files.is_empty(), "no SQLite files below {}", volume.sqlite_dir().display());
    // Through SQLite's own doors, so that the mounter's open connections see a proper transaction.
    let sqlite = |file: &Path, order: &str| {
        let copy = copy
            .join(file.strip_prefix(volume.sqlite_dir()).expect("below").to_string_lossy().replace('/', "-"));
        succeed(
            Command::new("sqlite3")
                .args(["-bail", "-cmd", ".timeout 20000"])
                .arg(file)
                .arg(format!("{order} {}", copy.display())),
            LIMIT,
        )
    };
    paused(&volume, || files.iter().for_each(|file| drop(sqlite(file, ".backup").expect("backup"))));
    synced(&volume, "two", 2);
    paused(&volume, || files.iter().for_each(|file| drop(sqlite(file, ".restore").expect("restore"))));
    caught_up_or_refused(volume);
}

on_each_database! {
    fn a_full_disk_below_the_journal_loses_nothing(on) {
        let small = Scratch::tmpfs(48).expect("tmpfs");
        let mut volume = Volume::prepare(on, &[]);
        volume.plan().state_dir = small.sub("state").expect("state");
        if volume.try_start().is_err() {
            // Refusing at the start is honest; then it must say what is too small.
            let said = fs::read_to_string(&volume.plan().log).unwrap_or_default();
            assert!(said.contains("state") || said.contains("journal") || said.contains("space"), "{said}");
            return;
        }
        let ballast = small.path().join("ballast");
        filled(&ballast);
        fill_then_make_room(&mut volume, &ballast);
    }
}

#[test]
fn a_full_disk_below_sqlite_loses_nothing() {
    let small = Scratch::loop_ext4(192).expect("a small ext4");
    let mut volume = Volume::prepare(Database::Sqlite, &[]);
    volume.plan().url = format!("sqlite://{}", small.sub("db").expect("db").display());
    volume.start();
    let ballast = small.path().join("ballast");
    filled(&ballast);
    fill_then_make_room(&mut volume, &ballast);
}

/// Takes all the space there is, but 4 MiB.
fn filled(ballast: &Path) {
    let mut file = File::create(ballast).expect("ballast");
    let chunk = vec![0x55; 1 << 20];
    while file.write_all(&chunk).is_ok() {}
    let size = file.metadata().expect("stat").len();
    file.set_len(size.saturating_sub(4 << 20)).expect("leave a little");
    file.sync_all().expect("fsync of the ballast");
}

/// Writes more than there is room for; makes room after a while; whatever was acknowledged must be there in the end.
fn fill_then_make_room(volume: &mut Volume, ballast: &Path) {
    const FILES: u64 = 40;
    let acknowledged = AtomicU64::new(0);
    let at = volume.path().to_owned();
    thread::scope(|scope| {
        let writer = scope.spawn(|| -> std::io::Result<()> {
            for i in 0..FILES {
                let mut file = File::create(at.join(format!("file-{i}")))?;
                file.write_all(&Rng::new(i).bytes(1 << 20))?;
                acknowledged.store(i + 1, SeqCst);
                if i % 8 == 7 {
                    file.sync_all()?;
                }
            }
            Ok(())
        });
        let until = Instant::now() + Duration::from_secs(5);
        wait_for("the disk to be full for a while", LIMIT, || {
            (Instant::now() > until || writer.is_finished()).then_some(())
        })
        .expect("a while");
        fs::remove_file(ballast).expect("make room");
        wait_for("the writer to end once there is room", LIMIT, || writer.is_finished().then_some(()))
            .expect("an end");
        // Waiting and ENOSPC are both honest; anything else is not.
        if let Err(error) = writer.join().expect("writer") {
            assert_eq!(error.raw_os_error(), Some(nix::libc::ENOSPC), "{error}\n{}", volume.mount().said());
        }
    });
    let count = acknowledged.load(SeqCst);
    let intact = |volume: &Volume, when: &str| {
        for i in 0..count {
            let read = fs::read(volume.at(&format!("file-{i}"))).expect("read");
            assert!(read == Rng::new(i).bytes(1 << 20), "file-{i} is damaged {when}");
        }
    };
    intact(volume, "at once");
    volume.kill();
    volume.start();
    intact(volume, "after kill");
    volume.remount();
    intact(volume, "after a remount");
    assert!(count > 0);
    volume.stop();
    volume.fsck();
}

fn synced(volume: &Volume, prefix: &str, seed: u64) {
    for i in 0..5 {
        let mut file = File::create(volume.at(&format!("{prefix}-{i}"))).expect("create");
        file.write_all(&Rng::new(seed * 100 + i).bytes(150_000)).expect("write");
        file.sync_all().expect("fsync");
    }
}

/// What was acknowledged before the database went back must either be there again, or be refused loudly.
fn caught_up_or_refused(mut volume: Volume) {
    let path = volume.at("three");
    let third = thread::spawn(move || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(b"three")?;
        file.sync_all()
    });
    wait_for("the fsync after the database went back", LIMIT, || third.is_finished().then_some(()))
        .expect("an answer");
    let outcome = third.join().expect("writer");
    let said = volume.mount().said();
    if outcome.is_err() {
        assert!(
            said.contains("epoch") || said.contains("position") || said.contains("back"),
            "refused, but silently: {said}"
        );
        return;
    }
    let before = tree::read(volume.path()).expect("before");
    volume.stop();
    volume.lose_node();
    volume.start();
    tree::assert_same(
        "what fsync promised is in the database",
        &before,
        &tree::read(volume.path()).expect("after"),
    );
    for (prefix, seed) in [("one", 1), ("two", 2)] {
        for i in 0..5 {
            assert!(
                fs::read(volume.at(&format!("{prefix}-{i}"))).expect("read")
                    == Rng::new(seed * 100 + i).bytes(150_000)
            );
        }
    }
    volume.stop();
    volume.fsck();
}

fn paused(volume: &Volume, act: impl FnOnce()) {
    volume.mount().signal_all(Signal::SIGSTOP).expect("stop");
    act();
    volume.mount().signal_all(Signal::SIGCONT).expect("go on");
}

fn databases(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("list") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            found.extend(databases(&path));
        } else if path.extension().is_some_and(|end| end == "db") {
            found.push(path);
        }
    }
    found
}
