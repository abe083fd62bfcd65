//! A process that appends is killed at any instruction: what was acknowledged is there, in order, and right.

use std::{
    fs::File,
    path::Path,
    process::{Command, Stdio},
};

use super::{super::segment::Mapping, *};

/// Where the child keeps what survives it: number acknowledged, position of "the database".
const BOARD: &str = "TARBOX_TEST_BOARD";
const ACKNOWLEDGED: usize = 0;
const DATABASE: usize = 64;

fn board(path: &Path) -> Mapping {
    let file = File::options().read(true).write(true).open(path).expect("the board");
    Mapping::new(&file, 4096).expect("mapped")
}

/// A child of its own, running one ignored test of this binary.
pub(super) fn child(test: &str, command: Option<&mut Command>) -> Command {
    let this = std::env::current_exe().expect("this program");
    let mut child = match command {
        Some(command) => {
            command.arg(this);
            std::mem::replace(command, Command::new("true"))
        }
        None => Command::new(this),
    };
    child.args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"]);
    child.stdout(Stdio::null());
    child
}

#[test]
fn what_a_killed_process_had_acknowledged_is_there() {
    let dir = scratch();
    let config = config(&dir, 16);
    let path = dir.path().join("board");
    fs::write(&path, [0; 4096]).expect("write");
    let board = board(&path);
    let word = |at| board.word(at).load(Ordering::Acquire);
    for round in 0..40 {
        let enough = word(ACKNOWLEDGED) + 1 + recovery::random() as u64 % 3000;
        let mut victim = child("journal::tests::kill::appends_until_killed", None);
        let mut victim = victim.env(BOARD, &path).spawn().expect("spawn");
        let deadline = Instant::now() + Duration::from_secs(30);
        while word(ACKNOWLEDGED) < enough {
            assert!(
                Instant::now() < deadline && victim.try_wait().expect("wait").is_none(),
                "round {round}: no progress"
            );
            std::thread::yield_now();
        }
        victim.kill().expect("kill");
        victim.wait().expect("wait");
        let opened = open(&config, 1, word(DATABASE));
        let (after, to) = opened.replay;
        assert_eq!((after, &opened.cut, &opened.rejected), (word(DATABASE), &None, &None));
        let acknowledged = word(ACKNOWLEDGED);
        assert!(
            to == acknowledged || to == acknowledged + 1,
            "round {round}: {to}, acknowledged {acknowledged}"
        );
        check(opened.recovered(), after + 1..=to);
    }
}

#[test]
#[ignore = "the victim of the test above"]
fn appends_until_killed() {
    let path = std::env::var_os(BOARD).expect("run by the test above");
    let path = Path::new(&path);
    let board = board(path);
    let config = JournalConfig {
        dir: path.with_file_name("journal"),
        segment_bytes: MIN_SEGMENT_BYTES,
        max_bytes: 16 << 20,
    };
    let mut journal = open(&config, 1, board.word(DATABASE).load(Ordering::Acquire)).journal;
    let reader = journal.reader();
    loop {
        let n = journal.last_seq() + 1;
        append(&mut journal, n);
        board.word(ACKNOWLEDGED).store(n, Ordering::Release);
        if n.is_multiple_of(100) {
            board.word(DATABASE).store(n - 50, Ordering::Release);
            reader.committed(n - 50);
            if n.is_multiple_of(1000) {
                reader.trim();
            }
        }
    }
}

/// Runs the next test where `/mnt` is a memory file system of 5 MiB.
#[test]
fn a_full_device_is_a_clean_error_and_the_journal_goes_on_with_what_it_has() {
    let mut namespace = Command::new("unshare");
    let script = "mount -t tmpfs -o size=5m none /mnt && exec \"$@\"";
    namespace.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
    let mut confined = child("journal::tests::kill::on_a_full_device", Some(&mut namespace));
    let status = confined.env(BOARD, "/mnt").status().expect("unshare");
    assert!(status.success(), "{status}");
}

#[test]
#[ignore = "needs the small device that the test above makes"]
fn on_a_full_device() {
    let mnt = Path::new(&std::env::var_os(BOARD).expect("run by the test above")).to_owned();
    let config =
        JournalConfig { dir: mnt.join("journal"), segment_bytes: MIN_SEGMENT_BYTES, max_bytes: 64 << 20 };
    let hog = mnt.join("hog");
    let _ = fs::write(&hog, vec![1; 6 << 20]);
    let error = Journal::open(&config, &identity(1, 0)).expect_err("no room at all");
    assert!(matches!(&error, JournalError::NoRoom { dir, .. } if *dir == config.dir), "{error}");
    fs::write(&hog, vec![1; 4 << 20]).expect("write");
    let error = Journal::open(&config, &identity(1, 0)).expect_err("room for the control file only");
    let text = error.to_string();
    assert!(text.contains("2097152 bytes") && text.contains("/mnt/journal"), "{text}");
    fs::remove_file(&hog).expect("remove");

    let mut journal = open(&config, 1, 0).journal;
    let reader = journal.reader();
    let mut next = 1;
    for round in 0..4 {
        let first = next;
        let error = loop {
            match journal.append(&record(next), &payload(next)) {
                Ok(_) => next += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, AppendError::NoRoom(_)) && error.is_full(), "{error}");
        assert_eq!((reader.bytes_allocated(), segment_count(&config)), (4 << 20, 2), "round {round}");
        check(reader.read_range(first - 1, next), first..=next - 1);
        if round < 3 {
            reader.committed(next - 1);
        }
    }
    let last = next - 1;
    let done = reader.committed_seq();
    drop((journal, reader));
    check(open(&config, 2, done).recovered(), done + 1..=last);
}
