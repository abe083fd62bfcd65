//! Wrong command lines, wrong databases, damaged journals and blocks: a clear message, the right exit code, nothing lost.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tarbox_tests::{
    command::{Ended, end_of, succeed},
    on_each_database, product,
    rng::{Rng, seed},
    scratch::{Scratch, require_root},
    volume::{Database, Volume},
};

const LIMIT: Duration = Duration::from_secs(60);
const USAGE: i32 = 64;
const CONFIGURATION: i32 = 78;
const FAILED: i32 = 1;

/// A bad value of a flag is wrong usage; one of a file or a variable, or a database that cannot be what the URL says, is configuration.
/// Arguments (`{}` is a scratch directory), exit code, what the message must hold.
type Case = (&'static [&'static str], i32, &'static [&'static str]);

const COMMAND_LINES: &[Case] = &[
    (&[], USAGE, &["MOUNTPOINT"]),
    (&["--no-such-option", "{}/mnt"], USAGE, &["--no-such-option"]),
    (&["{}/mnt", "{}/mnt"], USAGE, &["{}/mnt"]),
    (
        &["--database-url", "mysql://x/y", "{}/mnt"],
        CONFIGURATION,
        &["mysql://", "sqlite://", "postgresql://"],
    ),
    (&["--database-url", "nonsense", "{}/mnt"], CONFIGURATION, &["nonsense"]),
    (&["--database-url", "sqlite:///proc/nowhere", "{}/mnt"], FAILED, &["/proc/nowhere"]),
    (&["--database-url", "sqlite://{}/a-file", "{}/mnt"], CONFIGURATION, &["a-file"]),
    (
        &["--database-url", "postgresql://nobody:secret-word@127.0.0.1:1/x", "{}/mnt"],
        FAILED,
        &["127.0.0.1:1"],
    ),
    (&["--tenant-id", "7", "{}/mnt"], USAGE, &["tenantId", "7"]),
    (
        &["--tenant-id", "3f2b8c1e-0d4a-4b6f-9a57-1c2d3e4f5a6b", "{}/mnt"],
        FAILED,
        &["3f2b8c1e-0d4a-4b6f-9a57-1c2d3e4f5a6b"],
    ),
    (&["--tenant", "UPPER/case", "{}/mnt"], USAGE, &["tenant", "UPPER/case"]),
    (&["--block-size", "3000", "{}/mnt"], USAGE, &["blockSize", "3000"]),
    (&["--block-size", "2Ki", "{}/mnt"], USAGE, &["blockSize", "2Ki"]),
    (&["--block-size", "8Mi", "{}/mnt"], USAGE, &["blockSize", "8Mi"]),
    (&["--compression", "gzip", "{}/mnt"], USAGE, &["compression", "gzip", "zstd"]),
    (&["--cache-size", "lots", "{}/mnt"], USAGE, &["cacheSize", "lots"]),
    (&["--quota-bytes", "-5", "{}/mnt"], USAGE, &["-5"]),
    (&["--sync-mode", "never", "{}/mnt"], USAGE, &["syncMode", "never", "writethrough"]),
    (&["--control-dir", "maybe", "{}/mnt"], USAGE, &["controlDir", "maybe", "true or false"]),
    (&["--flush-interval", "1", "{}/mnt"], USAGE, &["flushInterval", "1"]),
    (&["--config", "{}/missing.toml", "{}/mnt"], CONFIGURATION, &["missing.toml"]),
    (&["--config", "{}/bad.toml", "{}/mnt"], CONFIGURATION, &["cacheSzie"]),
    (&["{}/not-there"], FAILED, &["not-there"]),
    (&["{}/a-file"], FAILED, &["a-file"]),
];

#[test]
fn each_wrong_command_line_is_refused_with_its_exit_code_and_says_what_is_wrong() {
    require_root();
    let scratch = Scratch::on_disk().expect("scratch");
    let dir = scratch.path().display().to_string();
    scratch.sub("mnt").expect("mnt");
    fs::write(scratch.path().join("a-file"), "").expect("write");
    fs::write(scratch.path().join("bad.toml"), "cacheSzie = '1Gi'\n").expect("write");
    let mut wrong = Vec::new();
    for (args, code, parts) in COMMAND_LINES {
        let args: Vec<String> = args.iter().map(|arg| arg.replace("{}", &dir)).collect();
        let ended = mounter(&scratch, &args);
        let missing: Vec<String> = parts
            .iter()
            .map(|part| part.replace("{}", &dir))
            .filter(|part| !ended.stderr.contains(part))
            .collect();
        if ended.code != Some(*code)
            || !missing.is_empty()
            || ended.stderr.contains("panicked")
            || ended.stderr.contains("secret-word")
        {
            wrong.push(format!(
                "{args:?}\n   ended {:?} for {code}, lacks {missing:?}: {}",
                ended.code,
                ended.stderr.trim()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let left: Vec<_> = fs::read_dir(scratch.path().join("mnt")).expect("list").collect();
    assert!(left.is_empty());
}

#[test]
fn a_variable_that_is_wrong_is_named() {
    require_root();
    let scratch = Scratch::on_disk().expect("scratch");
    let mut command = plain(&scratch);
    command.env("TARBOX_CACHE_SIZE", "lots").arg(scratch.sub("mnt").expect("mnt"));
    let ended = end_of(&mut command, LIMIT).expect("tarbox-mount");
    assert_eq!(ended.code, Some(CONFIGURATION), "{}", ended.stderr);
    assert!(ended.stderr.contains("TARBOX_CACHE_SIZE") && ended.stderr.contains("lots"), "{}", ended.stderr);
}

on_each_database! {
    fn a_second_mounter_of_the_same_tenant_is_refused_and_told_who_holds_it(on) {
        let mut volume = Volume::new(on);
        fs::write(volume.at("file"), "content").expect("write");
        let elsewhere = Scratch::on_disk().expect("scratch");
        let pid = volume.mount().pid();
        let plan = volume.plan();
        let first = plan.clone();
        plan.mountpoint = elsewhere.sub("mnt").expect("mnt");
        plan.state_dir = elsewhere.sub("state").expect("state");
        let ended = end_of(&mut plan.command(), LIMIT).expect("a second mounter");
        *plan = first;
        assert_eq!(ended.code, Some(FAILED), "{}", ended.stderr);
        assert!(ended.stderr.contains(&pid.to_string()), "the holder {pid} is not named: {}", ended.stderr);
        assert_eq!(fs::read(volume.at("file")).expect("the first goes on"), b"content");
        fs::write(volume.at("other"), "more").expect("the first goes on");
        volume.remount();
        assert_eq!(fs::read(volume.at("other")).expect("read"), b"more");
    }

    fn a_busy_mount_point_is_refused(on) {
        let mut volume = Volume::new(on);
        let plan = volume.plan();
        let first = plan.clone();
        plan.tenant = "another".into();
        let ended = end_of(&mut plan.command(), LIMIT).expect("a second mounter");
        *plan = first;
        assert_eq!(ended.code, Some(FAILED), "{}", ended.stderr);
        assert!(ended.stderr.contains("mount"), "{}", ended.stderr);
    }

    fn a_block_size_cannot_change_and_the_message_says_so(on) {
        let mut volume = Volume::with(on, &["--block-size", "64Ki"]);
        volume.stop();
        volume.plan().args = vec!["--block-size".into(), "128Ki".into()];
        let ended = end_of(&mut volume.plan().command(), LIMIT).expect("tarbox-mount");
        assert!(matches!(ended.code, Some(CONFIGURATION | FAILED)), "{:?} {}", ended.code, ended.stderr);
        assert!(ended.stderr.contains("64Ki") && ended.stderr.contains("block"), "{}", ended.stderr);
        volume.plan().args = vec![];
        volume.start();
    }

    fn a_damaged_journal_loses_nothing_that_was_fsynced_and_is_never_followed_blindly(on) {
        let seed = seed();
        println!("TESTS_SEED={seed}");
        let mut rng = Rng::new(seed);
        for round in 0..6 {
            damaged_journal(on, &mut rng, round);
        }
    }
}

/// Kills a mounter with a full journal, damages the journal, and mounts: either a clear refusal, or all that was synced.
fn damaged_journal(on: Database, rng: &mut Rng, round: u64) {
    let mut volume = Volume::with(on, &["--flush-interval", "1h"]);
    let mut file = File::create(volume.at("synced")).expect("create");
    file.write_all(&[7; 100_000]).expect("write");
    file.sync_all().expect("fsync");
    for i in 0..20 {
        fs::write(volume.at(&format!("loose-{i}")), rng.bytes(20_000)).expect("write");
    }
    let journal = files_below(&volume.plan().state_dir);
    volume.kill();
    let journal: Vec<PathBuf> = journal
        .into_iter()
        .filter(|path| path.metadata().is_ok_and(|meta| meta.is_file() && meta.len() > 4096))
        .collect();
    assert!(!journal.is_empty(), "no journal below the state directory");
    for path in &journal {
        damage(path, rng, round);
    }
    match volume.try_start() {
        Ok(()) => {
            assert!(
                fs::read(volume.at("synced")).expect("read") == [7; 100_000],
                "round {round}: what was synced"
            );
            // A prefix: no later file without the earlier ones, and none with wrong bytes in it.
            let there: Vec<bool> = (0..20).map(|i| volume.at(&format!("loose-{i}")).exists()).collect();
            assert!(
                !there.windows(2).any(|pair| pair == [false, true]),
                "round {round}: {there:?} is not a prefix"
            );
            volume.stop();
            volume.fsck();
        }
        Err(error) => {
            let said = format!("{error:#}");
            assert!(said.contains("journal") && !said.contains("panicked"), "round {round}: {said}");
            // Refused, with the journal kept. Without it the tenant mounts, with all that was synced.
            assert!(journal.iter().any(|path| path.exists()), "a refused journal was deleted");
            volume.lose_node();
            volume.start();
            assert!(fs::read(volume.at("synced")).expect("read") == [7; 100_000]);
        }
    }
}

fn damage(path: &Path, rng: &mut Rng, round: u64) {
    let file = File::options().read(true).write(true).open(path).expect("open the journal");
    let len = file.metadata().expect("stat").len();
    // Within what is used: a preallocated segment is mostly zeros at its end.
    let used = used_bytes(&file, len);
    match round % 3 {
        0 => file.set_len(rng.below(used.max(1))).expect("truncate"),
        1 => {
            let at = rng.below(used.max(1));
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("read");
            file.write_all_at(&[byte[0] ^ (1 << rng.below(8))], at).expect("flip a bit");
        }
        _ => file.write_all_at(&rng.bytes(512), rng.below(used.max(1))).expect("overwrite"),
    }
}

fn used_bytes(file: &File, len: u64) -> u64 {
    let mut bytes = vec![0; len.min(64 << 20) as usize];
    file.read_exact_at(&mut bytes, 0).expect("read the journal");
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(files_below(&entry.path()))
        } else {
            found.push(entry.path())
        }
    }
    found
}

#[test]
fn a_flipped_bit_in_a_stored_block_is_eio_and_fsck_finds_it_sqlite() {
    let mut volume = Volume::new(Database::Sqlite);
    if volume.is_control() {
        return;
    }
    let content = Rng::new(5).bytes(1 << 20);
    fs::write(volume.at("damaged"), &content).expect("write");
    fs::write(volume.at("whole"), Rng::new(6).bytes(1 << 20)).expect("write");
    volume.stop();
    // What still stands in a log is moved into its file: a log that fails its checksum is cut off, blocks are verified.
    for file in files_below(&volume.sqlite_dir())
        .into_iter()
        .filter(|path| path.extension().is_some_and(|end| end == "db"))
    {
        succeed(Command::new("sqlite3").arg(file).arg("PRAGMA wal_checkpoint(TRUNCATE)"), LIMIT)
            .expect("checkpoint");
    }
    // Bytes that do not compress stand in the file as they are: 32 of them from the middle of a page find the place.
    let needle = &content[300_000..300_032];
    let hit = files_below(&volume.sqlite_dir()).into_iter().find_map(|path| {
        let bytes = fs::read(&path).ok()?;
        bytes.windows(32).position(|window| window == needle).map(|at| (path, at))
    });
    let (path, at) = hit.expect("the content in the SQLite files");
    let file = File::options().write(true).open(path).expect("open");
    file.write_all_at(&[content[300_000] ^ 1], at as u64).expect("flip a bit");
    damage_is_found(volume, &content);
}

#[test]
fn a_flipped_bit_in_a_stored_block_is_eio_and_fsck_finds_it_postgres() {
    let mut volume = Volume::new(Database::Postgres);
    if volume.is_control() {
        return;
    }
    let content = Rng::new(5).bytes(1 << 20);
    fs::write(volume.at("damaged"), &content).expect("write");
    fs::write(volume.at("whole"), Rng::new(6).bytes(1 << 20)).expect("write");
    volume.stop();
    let table = volume.server().sql("tarbox", "SELECT table_schema || '.' || table_name FROM information_schema.columns WHERE table_name = 'block_part' AND column_name = 'data'");
    let table = table.expect("the blocks' table");
    let needle: String = content[300_000..300_032].iter().map(|byte| format!("{byte:02x}")).collect();
    let flip = format!(
        "UPDATE {0} SET data = set_byte(data, position('\\x{needle}'::bytea in data) - 1, {1}) WHERE position('\\x{needle}'::bytea in data) > 0 RETURNING 1",
        table.trim(),
        content[300_000] ^ 1
    );
    let flipped = volume.server().sql("tarbox", &flip).expect("flip a bit");
    assert_eq!(flipped.trim(), "1", "the content in the blocks' table");
    damage_is_found(volume, &content);
}

fn damage_is_found(mut volume: Volume, content: &[u8]) {
    volume.start();
    let error = fs::read(volume.at("damaged")).expect_err("a damaged block is read");
    assert_eq!(error.raw_os_error(), Some(nix::libc::EIO), "{error}");
    let file = File::open(volume.at("damaged")).expect("open");
    let mut head = vec![0; 4096];
    file.read_exact_at(&mut head, 0).expect("blocks that are whole are read");
    assert_eq!(head, &content[..4096]);
    assert!(fs::read(volume.at("whole")).expect("other files are read") == Rng::new(6).bytes(1 << 20));
    assert!(
        volume.mount().said().contains("damage") || volume.mount().said().contains("hash"),
        "no event: {}",
        volume.mount().said()
    );
    drop(file);
    volume.stop();
    let ended = volume.tarbox(&["fsck", "test"]).expect("fsck");
    assert!(ended.code.is_some_and(|code| code != 0), "fsck finds nothing: {}", ended.stdout);
}

#[test]
fn a_database_that_needs_a_newer_program_is_refused_sqlite() {
    let mut volume = Volume::new(Database::Sqlite);
    if volume.is_control() {
        return;
    }
    volume.stop();
    let mut raised = 0;
    for file in files_below(&volume.sqlite_dir())
        .into_iter()
        .filter(|path| path.extension().is_some_and(|end| end == "db"))
    {
        let table = "SELECT count(*) FROM pragma_table_info('schema') WHERE name = 'min_version'";
        let sqlite =
            |order: &str| succeed(Command::new("sqlite3").arg(&file).arg(order), LIMIT).expect("sqlite3");
        if sqlite(table).trim() == "1" {
            sqlite("UPDATE schema SET min_version = 999, version = 999");
            raised += 1;
        }
    }
    assert!(raised > 0, "no table schema(version, min_version)");
    newer_is_refused(&mut volume);
}

#[test]
fn a_database_that_needs_a_newer_program_is_refused_postgres() {
    let mut volume = Volume::new(Database::Postgres);
    if volume.is_control() {
        return;
    }
    volume.stop();
    let table = volume.server().sql("tarbox", "SELECT table_schema || '.' || table_name FROM information_schema.columns WHERE column_name = 'min_version'");
    let raise = format!(
        "UPDATE {} SET min_version = 999, version = 999",
        table.expect("a table with min_version").trim()
    );
    volume.server().sql("tarbox", &raise).expect("raise min_version");
    newer_is_refused(&mut volume);
}

fn newer_is_refused(volume: &mut Volume) {
    let ended = end_of(&mut volume.plan().command(), LIMIT).expect("tarbox-mount");
    assert!(matches!(ended.code, Some(FAILED | CONFIGURATION)), "{:?} {}", ended.code, ended.stderr);
    assert!(ended.stderr.contains("999") && !ended.stderr.contains("panicked"), "{}", ended.stderr);
}

fn plain(scratch: &Scratch) -> Command {
    let mut command = Command::new(product::program("tarbox-mount"));
    // Nothing of the user's own: neither configuration nor data.
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("HOME", scratch.path()).env("XDG_RUNTIME_DIR", scratch.path());
    command
}

fn mounter(scratch: &Scratch, args: &[String]) -> Ended {
    end_of(plain(scratch).args(args), LIMIT).expect("tarbox-mount ends")
}
