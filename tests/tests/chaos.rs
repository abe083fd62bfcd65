//! A short run of `make chaos`: a node under load, disturbed in every way that takes no minutes.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tarbox_tests::{
    command::end_of, deadline::wait_for, on_each_database, product::bin_dir, rng::seed,
    scratch::require_root, volume::Database,
};

const LIMIT: Duration = Duration::from_secs(300);

fn chaos(dir: &Path, words: &[&str]) -> Command {
    require_root();
    let mut chaos = Command::new(env!("CARGO_BIN_EXE_chaos"));
    // All that it makes lies below, so that what is left can be seen.
    chaos.env("TESTS_BIN_DIR", bin_dir()).env("TESTS_DIR", dir).args(words);
    chaos.args(["--tenants", "2", "--report"]).arg(dir.join("report"));
    chaos
}

fn directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir_in("/var/tmp").expect("a temporary directory");
    // PostgreSQL has a user of its own.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    directory
}

/// Mounts and processes that speak of this directory, and what lies in it.
fn left_in(directory: &Path) -> Vec<String> {
    let here = directory.to_string_lossy().into_owned();
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let mut found: Vec<String> =
        mounts.lines().filter(|line| line.contains(&here)).map(str::to_owned).collect();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        found.extend(line.contains(&here).then_some(line));
    }
    let entries = fs::read_dir(directory).expect("list").flatten();
    found.extend(entries.filter(|e| e.file_name() != "report").map(|e| e.path().display().to_string()));
    found
}

on_each_database! {
    fn nothing_fails_when_everything_that_serves_is_killed_stopped_and_replaced(on) {
        let (database, resend) = match on {
            Database::Sqlite => ("sqlite", "masked"),
            Database::Postgres => ("postgres", "on"),
        };
        let (directory, seed) = (directory(), seed().to_string());
        let kinds = "mounter,agent,keeper,pairs,upgrade,stop";
        let words = ["--minutes", "0.25", "--kinds", kinds, "--database", database, "--resend", resend, "--seed", &seed];
        let ended = end_of(&mut chaos(directory.path(), &words), LIMIT).expect("it ends");
        assert_eq!(ended.code, Some(0), "TESTS_SEED={seed}\n{}{}", ended.stderr, ended.stdout);
        let report = fs::read_to_string(directory.path().join("report/report.json")).expect("a report");
        let report: Value = serde_json::from_str(&report).expect("JSON");
        let run = &report["runs"][0];
        let loads = run["loads"].as_object().expect("loads");
        assert_eq!(loads.len(), 7, "{loads:?}");
        assert!(loads.values().all(|load| load["operations"].as_u64() > Some(0)), "{loads:?}");
        let events = run["events"].as_object().expect("events");
        assert!(events.keys().any(|kind| kind != "nothing"), "{events:?}");
        assert_eq!(left_in(directory.path()), Vec::<String>::new());
    }
}

#[test]
fn a_run_that_is_interrupted_gives_everything_back() {
    let directory = directory();
    let said = fs::File::create(directory.path().join("report-said")).expect("a file");
    let mut run = chaos(directory.path(), &["--minutes", "30", "--kinds", "mounter,agent", "--resend", "on"]);
    let mut run = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).spawn().expect("start");
    let said = || fs::read_to_string(directory.path().join("report-said")).unwrap_or_default();
    let begun = wait_for("an event", LIMIT, || said().contains(" operations, ").then_some(()));
    let told = kill(Pid::from_raw(run.id().cast_signed()), Signal::SIGTERM);
    let ended = wait_for("its end", LIMIT, || run.try_wait().transpose());
    begun.unwrap_or_else(|error| panic!("{error}\n{}", said()));
    told.expect("SIGTERM");
    assert_eq!(ended.expect("in time").expect("an end").code(), Some(1), "{}", said());
    fs::remove_file(directory.path().join("report-said")).expect("remove");
    wait_for("nothing left", LIMIT, || left_in(directory.path()).is_empty().then_some(()))
        .unwrap_or_else(|_| panic!("{:?}", left_in(directory.path())));
}
