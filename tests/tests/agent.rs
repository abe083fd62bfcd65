//! The node's agent from outside: what a kubelet and an operator see, and what an application sees when processes die.

use std::{
    fs,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        signal::{Signal, kill},
        statvfs::statvfs,
    },
    unistd::Pid,
};
use tarbox_tests::{
    deadline::wait_for,
    mount::unmount,
    node::{Node, NodePlan, Published},
    postgres::PostgresServer,
    process::{kill_9, secrets_of},
};

const LIMIT: Duration = Duration::from_secs(60);

fn node() -> Node {
    Node::start().expect("a node")
}

/// A node with one volume, staged and published.
fn published() -> (Node, Published) {
    let node = node();
    let id = node.tenant("work").expect("a tenant");
    let volume = node.publish(&id, "work").expect("published");
    (node, volume)
}

/// Makes, renames, links, appends and removes until it is stopped, on a directory of its own.
struct Load {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<(u64, Vec<String>)>,
    log: PathBuf,
}

impl Load {
    fn begin(at: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (dir, stopped) = (at.join("load"), stop.clone());
        fs::create_dir(&dir).expect("mkdir");
        let log = dir.join("log");
        let path = log.clone();
        let thread = thread::spawn(move || {
            let mut file = fs::File::options().create(true).append(true).open(path).expect("log");
            let (mut rounds, mut failed) = (0_u64, Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                if let Err(error) = round(&dir, &mut file, rounds) {
                    failed.push(format!("round {rounds}: {error}"));
                }
                rounds += 1;
            }
            (rounds, failed)
        });
        Self { stop, thread, log }
    }

    /// Ends it: how many rounds; none of them failed, and the log has each exactly once.
    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let (rounds, failed) = self.thread.join().expect("the load's thread");
        assert!(
            failed.is_empty(),
            "{} of {rounds} rounds failed: {:?}",
            failed.len(),
            &failed[..failed.len().min(5)]
        );
        let expected: String = (0..rounds).map(|round| format!("{round:08}\n")).collect();
        assert!(
            fs::read_to_string(self.log).expect("read the log") == expected,
            "the log is not exactly what was appended"
        );
        rounds
    }
}

fn round(dir: &Path, log: &mut fs::File, number: u64) -> std::io::Result<()> {
    let (first, second) = (dir.join(format!("a{number}")), dir.join(format!("b{number}")));
    fs::create_dir(&first)?;
    fs::rename(&first, &second)?;
    let mut file = fs::File::options().write(true).create_new(true).open(second.join("f"))?;
    file.write_all(&number.to_le_bytes())?;
    fs::hard_link(second.join("f"), second.join("g"))?;
    log.write_all(format!("{number:08}\n").as_bytes())?;
    if fs::read(second.join("g"))? != number.to_le_bytes() {
        return Err(std::io::Error::other("other bytes than were written"));
    }
    fs::remove_file(second.join("f"))?;
    fs::remove_file(second.join("g"))?;
    fs::remove_dir(second)
}

#[test]
fn a_volume_is_staged_published_used_unpublished_unstaged_and_nothing_is_left() {
    let (node, volume) = published();
    fs::write(volume.target.join("f"), "kept").expect("write");
    let stats = node.call("stats", &volume.words()).expect("stats");
    assert!(stats.contains("abnormal: false") && stats.contains("Inodes"), "{stats}");
    node.call("unpublish", &volume.words()).expect("unpublish");
    assert!(!volume.target.exists(), "the target goes with its mount");
    node.call("unstage", &volume.words()).expect("unstage");
    wait_for("nothing left", LIMIT, || node.left_over().is_empty().then_some(()))
        .unwrap_or_else(|_| panic!("{:?}", node.left_over()));
    assert!(node.fsck("work").is_ok());
    // What was written is there again.
    node.call("stage", &volume.words()).expect("stage again");
    node.call("publish", &volume.words()).expect("publish again");
    assert_eq!(fs::read_to_string(volume.target.join("f")).expect("read"), "kept");
}

#[test]
fn each_call_may_be_repeated_and_other_wishes_are_refused() {
    let (node, volume) = published();
    node.call("stage", &volume.words()).expect("stage twice");
    node.call("publish", &volume.words()).expect("publish twice");
    assert_eq!(node.mounts().len(), 2, "nothing is stacked");
    let refused = |call: &str, more: &[&str], code: &str| {
        let words: Vec<&str> = volume.words().into_iter().chain(more.iter().copied()).collect();
        let ended = node.csi(call, &words).expect("an answer");
        assert!(ended.code != Some(0) && ended.stderr.starts_with(code), "{call} {more:?}: {}", ended.stderr);
    };
    refused("stage", &["--flag", "noexec"], "AlreadyExists");
    refused("publish", &["--readonly"], "AlreadyExists");
    refused("unstage", &[], "FailedPrecondition");
    for _ in 0..2 {
        node.call("unpublish", &volume.words()).expect("unpublish");
    }
    for _ in 0..2 {
        node.call("unstage", &volume.words()).expect("unstage");
    }
}

#[test]
fn what_another_volume_has_at_a_path_is_neither_taken_away_nor_covered() {
    let (node, volume) = published();
    fs::write(volume.target.join("f"), "content").expect("write");
    let id = node.tenant("other").expect("a tenant");
    let there = Published { id, ..volume.clone() };
    let refused = |call: &str, words: &[&str]| {
        let ended = node.csi(call, words).expect("an answer");
        assert!(ended.stderr.starts_with("FailedPrecondition"), "{call}: {}", ended.stderr);
        assert!(ended.stderr.contains(&volume.id), "it says whose it is: {}", ended.stderr);
    };
    refused("stage", &there.words());
    for call in ["unpublish", "unstage"] {
        node.call(call, &there.words()).expect("it is not there, which is what is wanted");
    }
    let other = Published::new(node.path(), &there.id, "other");
    node.call("stage", &other.words()).expect("stage");
    refused("publish", &Published { target: volume.target.clone(), ..other.clone() }.words());
    assert_eq!(fs::read_to_string(volume.target.join("f")).expect("read"), "content");
    for call in ["unpublish", "unstage"] {
        node.call(call, &volume.words()).expect(call);
        node.call(call, &other.words()).expect(call);
    }
}

#[test]
fn a_volume_for_one_place_may_be_published_elsewhere_where_it_could_not_be_mounted() {
    let node = node();
    let id = node.tenant("work").expect("a tenant");
    let volume = Published::new(node.path(), &id, "work");
    let alone = |target: &Path| {
        let there = Published { target: target.to_owned(), ..volume.clone() };
        let words: Vec<&str> = there.words().into_iter().chain(["--access", "single-writer"]).collect();
        node.csi("publish", &words).expect("an answer")
    };
    node.call("stage", &volume.words()).expect("stage");
    // A file is in the way of the directory.
    let first = node.path().join("first");
    fs::write(&first, "").expect("write");
    assert_ne!(alone(&first).code, Some(0));
    let second = alone(&volume.target);
    assert_eq!(second.code, Some(0), "{}", second.stderr);
    let third = alone(&node.path().join("third"));
    assert!(third.stderr.starts_with("FailedPrecondition"), "{}", third.stderr);
    node.call("unpublish", &volume.words()).expect("unpublish");
    node.call("unstage", &volume.words()).expect("unstage");
}

#[test]
fn of_two_calls_for_a_volume_at_once_one_is_aborted_or_both_succeed_one_after_the_other() {
    let node = node();
    let id = node.tenant("work").expect("a tenant");
    let volume = Published::new(node.path(), &id, "work");
    let answers: Vec<_> = thread::scope(|scope| {
        let calls: Vec<_> =
            (0..8).map(|_| scope.spawn(|| node.csi("stage", &volume.words()).expect("an answer"))).collect();
        calls.into_iter().map(|call| call.join().expect("a caller")).collect()
    });
    let (done, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.code == Some(0));
    assert!(!done.is_empty());
    assert!(refused.iter().all(|answer| answer.stderr.starts_with("Aborted")), "{refused:?}");
    assert!(!refused.is_empty(), "eight calls at once have to meet");
    assert_eq!(node.mounts().len(), 1);
}

#[test]
fn wrong_requests_are_refused_with_what_was_wrong() {
    let node = node();
    let id = node.tenant("work").expect("a tenant");
    let unknown = "00000000-0000-4000-8000-000000000000";
    let at = |name: &str| node.path().join(name).to_str().expect("UTF-8").to_owned();
    let (staging, target) = (at("s"), at("t"));
    let mut base = vec!["--volume-id", &id, "--staging", &staging, "--target", &target];
    let refused = |call: &str, words: &[&str], expected: [&str; 2]| {
        let ended = node.csi(call, words).expect("an answer");
        let is_right = ended.code != Some(0) && expected.iter().all(|word| ended.stderr.contains(word));
        assert!(is_right, "{call} {words:?}: {}", ended.stderr);
    };
    refused("publish", &base, ["FailedPrecondition", "not staged"]);
    refused("stats", &base, ["NotFound", &id]);
    refused("stage", &[&base[2..], &["--volume-id", unknown]].concat(), ["NotFound", unknown]);
    refused("stage", &[&base[2..], &["--volume-id", "pvc-1"]].concat(), ["NotFound", "pvc-1"]);
    refused("stage", &base[2..], ["InvalidArgument", "volume_id"]);
    base.push("--block");
    refused("stage", &base, ["InvalidArgument", "block"]);
    base.pop();
    refused("stage", &[&base[..], &["--context", "cacheSize=much"]].concat(), ["InvalidArgument", "`much`"]);
    refused("stage", &[&base[..], &["--context", "colour=red"]].concat(), ["InvalidArgument", "`colour`"]);
    refused(
        "stage",
        &[&base[..], &["--flag", "data=journal"]].concat(),
        ["InvalidArgument", "`data=journal`"],
    );
    assert!(node.left_over().is_empty(), "{:?}", node.left_over());
}

#[test]
fn a_read_only_publication_cannot_be_written_and_a_writable_one_beside_it_can() {
    let (node, volume) = published();
    let second = Published { target: node.path().join("second"), ..volume.clone() };
    let words: Vec<&str> = second.words().into_iter().chain(["--readonly"]).collect();
    node.call("publish", &words).expect("publish a second time");
    fs::write(volume.target.join("f"), "x").expect("write");
    let error = fs::write(second.target.join("f"), "y").expect_err("read-only");
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    assert_eq!(fs::read_to_string(second.target.join("f")).expect("read"), "x");
}

#[test]
fn a_volume_that_is_only_read_answers_and_is_unstaged() {
    let node = node();
    let id = node.tenant("work").expect("a tenant");
    let volume = Published::new(node.path(), &id, "work");
    let words = [&volume.words()[..], &["--access", "many-readers"]].concat();
    node.call("stage", &words).expect("stage");
    node.call("publish", &words).expect("publish");
    // Said by the mounter itself: one that did not answer would be taken for one that hangs.
    let stats = node.call("stats", &words).expect("stats");
    assert!(stats.contains("abnormal: false") && stats.contains("Inodes"), "{stats}");
    let before = node.mounter_pid(&id).expect("a mounter");
    kill_9(before);
    wait_for("another mounter", LIMIT, || node.mounter_pid(&id).ok().filter(|next| *next != before))
        .expect("restarted");
    assert!(fs::read_dir(&volume.target).expect("list").next().is_none());
    node.call("unpublish", &words).expect("unpublish");
    node.call("unstage", &words).expect("unstage: nobody has to flush, and somebody says so");
    wait_for("nothing left", LIMIT, || node.left_over().is_empty().then_some(()))
        .unwrap_or_else(|_| panic!("{:?}", node.left_over()));
}

#[test]
fn unpublishing_commits_everything_first() {
    let (node, volume) = published();
    fs::write(volume.target.join("f"), vec![7; 1 << 20]).expect("write");
    node.call("unpublish", &volume.words()).expect("unpublish");
    // What the database alone has, while the mounter and its journal are still there.
    let committed = node.unpack_committed("work").expect("export");
    assert_eq!(fs::read(committed.join("f")).expect("read"), vec![7; 1 << 20]);
}

#[test]
fn killing_the_mounter_under_load_fails_nothing() {
    let (node, volume) = published();
    let load = Load::begin(&volume.target);
    for _ in 0..5 {
        let pid = node.mounter_pid(&volume.id).expect("a mounter");
        kill_9(pid);
        wait_for("another mounter", LIMIT, || node.mounter_pid(&volume.id).ok().filter(|next| *next != pid))
            .expect("restarted");
    }
    assert!(load.end() > 0);
    assert!(node.ps().expect("ps")[0]["restarts"].as_u64() >= Some(5), "{:?}", node.ps());
    node.call("unpublish", &volume.words()).expect("unpublish");
    node.call("unstage", &volume.words()).expect("unstage");
    node.fsck("work").expect("fsck");
}

#[test]
fn an_agent_that_was_killed_takes_up_its_mounters_and_mounts_nothing_again() {
    let (mut node, volume) = published();
    let load = Load::begin(&volume.target);
    let before = node.mounter_pid(&volume.id).expect("a mounter");
    for _ in 0..3 {
        node.kill_agent();
        node.start_agent().expect("start again");
        assert_eq!(node.mounter_pid(&volume.id).expect("a mounter"), before, "the same mounter");
        assert_eq!(node.mounts().len(), 2, "nothing is mounted again");
    }
    assert!(load.end() > 0);
    node.call("unpublish", &volume.words()).expect("unpublish");
    node.call("unstage", &volume.words()).expect("unstage");
    wait_for("nothing left", LIMIT, || node.left_over().is_empty().then_some(()))
        .unwrap_or_else(|_| panic!("{:?}", node.left_over()));
}

#[test]
fn an_agent_that_was_started_within_a_volume_does_not_keep_it() {
    let (mut node, volume) = published();
    node.kill_agent();
    node.start_agent_in(&volume.target).expect("start again");
    node.call("unpublish", &volume.words()).expect("unpublish");
    node.call("unstage", &volume.words()).expect("unstage");
    // Had anybody held it, it would have been detached, and whoever held it would be named.
    let log = node.log();
    assert!(!log.contains("still held") && !log.contains("unmount the file system"), "{log}");
}

#[test]
fn a_volume_whose_staging_path_was_unmounted_by_somebody_stays_published_until_it_is_unpublished() {
    let (node, volume) = published();
    fs::write(volume.target.join("f"), "x").expect("write");
    unmount(&volume.staging).expect("unmount behind the agent's back");
    let refused = node.csi("unstage", &volume.words()).expect("an answer");
    assert!(refused.stderr.starts_with("FailedPrecondition"), "{}", refused.stderr);
    assert_eq!(fs::read_to_string(volume.target.join("f")).expect("served still"), "x");
    node.call("unpublish", &volume.words()).expect("unpublish");
    node.call("unstage", &volume.words()).expect("unstage");
    wait_for("nothing left", LIMIT, || node.left_over().is_empty().then_some(()))
        .unwrap_or_else(|_| panic!("{:?}", node.left_over()));
}

#[test]
fn a_target_whose_directory_is_gone_is_unpublished() {
    let node = node();
    let id = node.tenant("work").expect("a tenant");
    let volume =
        Published { target: node.path().join("pod/volume"), ..Published::new(node.path(), &id, "work") };
    fs::create_dir(node.path().join("pod")).expect("mkdir");
    node.call("stage", &volume.words()).expect("stage");
    node.call("publish", &volume.words()).expect("publish");
    unmount(&volume.target).expect("unmount");
    // The read-only directory under it.
    unmount(&volume.target).expect("unmount");
    fs::remove_dir_all(node.path().join("pod")).expect("remove");
    node.call("unpublish", &volume.words()).expect("unpublish");
    assert!(node.ps().expect("ps")[0]["published"].as_array().expect("a list").is_empty());
    node.call("unstage", &volume.words()).expect("unstage");
}

#[test]
fn a_pod_ends_although_its_tenant_is_gone_from_the_database() {
    let server = PostgresServer::start().expect("PostgreSQL");
    let node = Node::with(NodePlan { url: Some(server.url()), ..NodePlan::default() }).expect("a node");
    let id = node.tenant("work").expect("a tenant");
    let volume = node.publish(&id, "work").expect("published");
    let mut file = fs::File::create(volume.target.join("file")).expect("create");
    file.sync_all().expect("committed");
    // As a database that was begun anew, or a backup from before the volume was made.
    server.sql("tarbox", &format!("DELETE FROM tarbox.tenant WHERE id = '{id}'")).expect("SQL");
    file.write_all(b"acknowledged, and never committed").expect("it is in the journal");
    file.sync_all().expect_err("the database has refused it");
    drop(file);
    node.call("unpublish", &volume.words()).expect("unpublish");
    node.call("unstage", &volume.words()).expect("unstage");
    let left = node.left_over();
    let is_journal = |left: &String| left.ends_with(&format!("mounters/{id}"));
    assert!(left.iter().all(is_journal) && !left.is_empty(), "its journal, and nothing else: {left:?}");
}

#[test]
fn a_keeper_on_the_host_stands_outside_of_the_agents_control_groups_and_outlives_them() {
    let mut node = Node::start_with(|_| vec!["--launcher".into(), "host".into()]).expect("a node");
    let id = node.tenant("work").expect("a tenant");
    let volume = node.publish(&id, "work").expect("published");
    let load = Load::begin(&volume.target);
    let agent = groups(node.agent_pid().expect("an agent"));
    let keeper = node.keeper_pid().expect("a keeper");
    let mounter = node.mounter_pid(&id).expect("a mounter");
    for (whose, pid) in [("keeper", keeper), ("mounter", mounter)] {
        let own = groups(pid);
        // Of its own in the hierarchy that limits memory, and nowhere below a group of the agent's.
        let memory =
            own.iter().find(|line| line.contains(":memory:") || line.starts_with("0::")).expect("a group");
        assert!(memory.contains("tarbox"), "{whose}: {own:?}");
        assert!(!agent.contains(memory), "{whose}: {own:?}, agent: {agent:?}");
    }
    node.kill_agent();
    kill_9(mounter);
    node.start_agent().expect("start again");
    assert_eq!(node.keeper_pid(), Some(keeper), "the same keeper");
    assert!(load.end() > 0);
    node.call("unpublish", &volume.words()).expect("unpublish");
    node.call("unstage", &volume.words()).expect("unstage");
    node.end_agent().expect("the agent ends, and the idle keeper with it");
    wait_for("the keeper's end", LIMIT, || node.keeper_pid().is_none().then_some(())).expect("it ends");
    // Where systemd made a scope there is none; another node's keeper may stand there.
    let is_empty = |group: &PathBuf| {
        fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|members| members.is_empty())
    };
    let left = || fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let left = || left().map(|entry| entry.path().join("tarbox.host")).filter(is_empty).collect::<Vec<_>>();
    wait_for("no empty group", Duration::from_secs(5), || left().is_empty().then_some(()))
        .unwrap_or_else(|_| panic!("{:?}", left()));
}

/// The control groups of a process, a line for each hierarchy.
fn groups(pid: u32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its groups");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn while_the_agent_is_away_the_keeper_restarts_what_dies() {
    let (mut node, volume) = published();
    let load = Load::begin(&volume.target);
    let pid = node.mounter_pid(&volume.id).expect("a mounter");
    node.kill_agent();
    kill_9(pid);
    // Answered by a mounter that no agent has started.
    fs::write(volume.target.join("meanwhile"), "x").expect("served without an agent");
    node.start_agent().expect("start again");
    assert_ne!(node.mounter_pid(&volume.id).expect("a mounter"), pid);
    assert_eq!(node.mounts().len(), 2);
    assert!(load.end() > 0);
}

#[test]
fn an_agent_that_died_with_its_keeper_leaves_everything_to_the_mounter_and_the_next_agent_finds_it_there() {
    let (mut node, volume) = published();
    let load = Load::begin(&volume.target);
    for _ in 0..2 {
        let before = node.mounter_pid(&volume.id).expect("a mounter");
        let keeper = node.keeper_pid().expect("a keeper");
        node.kill_agent();
        kill_9(keeper);
        node.start_agent().expect("start again");
        assert_eq!(node.mounter_pid(&volume.id).expect("a mounter"), before, "the same mounter");
        assert_eq!(node.mounts().len(), 2, "nothing is mounted again");
        // The new keeper has all that another mounter needs.
        kill_9(before);
        let next = || node.mounter_pid(&volume.id).ok().filter(|next| *next != before);
        wait_for("another mounter", LIMIT, next).expect("restarted");
    }
    assert!(load.end() > 0);
    node.call("unpublish", &volume.words()).expect("unpublish");
    node.call("unstage", &volume.words()).expect("unstage");
    wait_for("nothing left", LIMIT, || node.left_over().is_empty().then_some(()))
        .unwrap_or_else(|_| panic!("{:?}", node.left_over()));
    node.fsck("work").expect("fsck");
}

/// Both at once; the next agent begins with a keeper that knows nothing.
fn kill_agent_and_keeper(node: &mut Node) {
    let keeper = node.keeper_pid().expect("a keeper");
    node.kill_agent();
    kill_9(keeper);
    node.start_agent().expect("start again");
}

#[test]
fn a_mounter_that_outlived_agent_and_keeper_is_upgraded_and_unstaged_like_any_other() {
    let (mut node, volume) = published();
    let load = Load::begin(&volume.target);
    // One that does not get around to it in time is killed, as on a machine that has much else to do: not every time.
    let was_told = (0..3).any(|_| {
        let before = node.mounter_pid(&volume.id).expect("a mounter");
        kill_agent_and_keeper(&mut node);
        assert_eq!(node.mounter_pid(&volume.id).expect("a mounter"), before, "the same mounter");
        let mut program = fs::read(node.mounter()).expect("read the mounter");
        program.extend_from_slice(b"another build");
        replace(node.mounter(), &program);
        let done = node.operator("upgrade", &[]).expect("upgrade");
        assert_eq!(done.code, Some(0), "{}{}\n{}", done.stdout, done.stderr, node.log());
        assert_ne!(node.mounter_pid(&volume.id).expect("a mounter"), before);
        node.mounters_log(&volume.id).contains("leaving the rest to a successor")
    });
    assert!(was_told, "{}\n{}", node.mounters_log(&volume.id), node.log());
    assert!(load.end() > 0);
    kill_agent_and_keeper(&mut node);
    node.call("unpublish", &volume.words()).expect("unpublish");
    node.call("unstage", &volume.words()).expect("unstage");
    wait_for("nothing left", LIMIT, || node.left_over().is_empty().then_some(()))
        .unwrap_or_else(|_| panic!("{:?}", node.left_over()));
    node.fsck("work").expect("fsck");
}

#[test]
fn a_password_that_was_renewed_is_known_to_keeper_and_agent_and_to_their_successors() {
    let server = PostgresServer::start().expect("PostgreSQL");
    let url = server.url();
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let (user, place) = rest.split_once('@').expect("a user");
    // The server trusts whoever comes: the password is only carried along.
    let with = |word: &str| format!("{scheme}://{user}:{word}@{place}");
    // With a role of the tenant's own, a mounter would not be given this one.
    let words = ["--tenant-roles", "off"].map(str::to_owned).to_vec();
    let plan = NodePlan { url: Some(with("first-word")), words, ..NodePlan::default() };
    let mut node = Node::with(plan).expect("a node");
    let id = node.tenant("work").expect("a tenant");
    node.publish(&id, "work").expect("published");
    let killed = |node: &Node| {
        let before = node.mounter_pid(&id).expect("a mounter");
        kill_9(before);
        let next = || node.mounter_pid(&id).ok().filter(|next| *next != before);
        secrets_of(wait_for("another mounter", LIMIT, next).expect("restarted"))
    };
    assert!(killed(&node).contains("first-word"));
    // One that stands by was started with the old one.
    wait_for("a stand-by", LIMIT, || (node.mounters(&id).len() == 2).then_some(())).expect("it stands by");
    node.set_credentials(&id, &with("second-word")).expect("it takes them");
    assert!(killed(&node).contains("second-word"));
    node.set_credentials(&id, &with("third-word")).expect("it takes them");
    kill_agent_and_keeper(&mut node);
    assert!(killed(&node).contains("third-word"));
}

#[test]
fn a_keeper_that_is_slow_is_not_taken_for_one_that_was_replaced() {
    let (node, volume) = published();
    let load = Load::begin(&volume.target);
    let (keeper, before) =
        (node.keeper_pid().expect("a keeper"), node.mounter_pid(&volume.id).expect("a mounter"));
    let signal = |signal| kill(Pid::from_raw(keeper.cast_signed()), signal).expect("signal");
    signal(Signal::SIGSTOP);
    kill_9(before);
    // Longer than anybody waits for an answer of the keeper's.
    thread::sleep(Duration::from_secs(13));
    signal(Signal::SIGCONT);
    wait_for("another mounter", LIMIT, || node.mounter_pid(&volume.id).ok().filter(|next| *next != before))
        .expect("restarted");
    assert_eq!(node.keeper_pid(), Some(keeper));
    assert!(!node.log().contains("the keeper was replaced"), "{}", node.log());
    assert!(load.end() > 0);
}

/// Ends the connection of what is mounted there, as an operator does.
fn abort(point: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let here = table.lines().rfind(|line| line.split(' ').nth(4) == point.to_str()).expect("mounted");
    let minor = here.split(' ').nth(2).and_then(|device| device.strip_prefix("0:")).expect("a device");
    let own = tempfile::tempdir().expect("a directory");
    mount(Some("fusectl"), own.path(), Some("fusectl"), MsFlags::empty(), None::<&str>).expect("fusectl");
    let aborted = fs::write(own.path().join(minor).join("abort"), "1");
    umount2(own.path(), MntFlags::MNT_DETACH).expect("unmount");
    aborted.expect("abort");
}

/// The volume's condition as soon as it is abnormal.
fn abnormal(node: &Node, volume: &Published) -> String {
    wait_for("an abnormal condition", LIMIT, || {
        node.call("stats", &volume.words()).ok().filter(|stats| stats.contains("abnormal: true"))
    })
    .unwrap_or_else(|_| panic!("{:?}\n{}", node.csi("stats", &volume.words()), node.log()))
}

#[test]
fn an_aborted_connection_is_an_abnormal_condition_and_the_volume_can_be_had_again() {
    let (node, volume) = published();
    fs::write(volume.target.join("before"), "kept").expect("write");
    abort(&volume.staging);
    let stats = abnormal(&node, &volume);
    let said = wait_for("the cause", LIMIT, || {
        node.call("stats", &volume.words()).ok().filter(|stats| stats.contains("aborted"))
    });
    said.unwrap_or_else(|_| panic!("{stats}\n{}", node.log()));
    fs::write(volume.target.join("lost"), "x").expect_err("the mount is dead");
    node.call("unpublish", &volume.words()).expect("unpublish");
    node.call("unstage", &volume.words()).expect("unstage");
    wait_for("nothing left", LIMIT, || node.left_over().is_empty().then_some(()))
        .unwrap_or_else(|_| panic!("{:?}", node.left_over()));
    node.call("stage", &volume.words()).expect("stage again");
    node.call("publish", &volume.words()).expect("publish again");
    assert_eq!(fs::read_to_string(volume.target.join("before")).expect("read"), "kept");
    assert!(!volume.target.join("lost").exists());
    // Unmounted behind the agent's back, staging and target: nothing is written to the disk below.
    unmount(&volume.target).expect("unmount");
    let refused = fs::write(volume.target.join("lost"), "x").expect_err("read-only");
    assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn a_staging_mount_that_somebody_took_away_is_reported_and_comes_back_with_the_next_stage() {
    let (node, volume) = published();
    fs::write(volume.target.join("f"), "x").expect("write");
    unmount(&volume.staging).expect("unmount behind the agent's back");
    let refused = fs::write(volume.staging.join("lost"), "x").expect_err("read-only");
    assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
    let stats = abnormal(&node, &volume);
    assert!(stats.contains("somebody has unmounted the volume"), "{stats}");
    let mounter = node.mounter_pid(&volume.id).expect("a mounter");
    node.call("stage", &volume.words()).expect("stage again");
    assert_eq!(fs::read_to_string(volume.staging.join("f")).expect("read"), "x");
    assert!(node.call("stats", &volume.words()).expect("stats").contains("abnormal: false"));
    assert_eq!(node.mounter_pid(&volume.id).expect("a mounter"), mounter, "nobody had to be started");
    node.call("unpublish", &volume.words()).expect("unpublish");
    node.call("unstage", &volume.words()).expect("unstage");
}

#[test]
fn a_stand_by_takes_over_although_the_keeper_died_with_the_mounter() {
    let (node, volume) = published();
    let load = Load::begin(&volume.target);
    let server = node.mounter_pid(&volume.id).expect("a mounter");
    // It has read itself in when it has opened the tenant's database.
    let has_opened = |pid: &u32| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|path| path.ends_with("meta.db"))
    };
    let spare = || node.mounters(&volume.id).into_iter().find(|pid| *pid != server && has_opened(pid));
    wait_for("a stand-by", LIMIT, spare).expect("a stand-by");
    kill_9(node.keeper_pid().expect("a keeper"));
    kill_9(server);
    let next = || node.mounter_pid(&volume.id).ok().filter(|next| *next != server);
    wait_for("another mounter", LIMIT, next).expect("it is served");
    assert!(!node.log().contains("TakeOver could not be sent"), "{}", node.log());
    assert!(load.end() > 0);
}

#[test]
fn an_upgrade_under_load_fails_nothing_and_a_build_that_cannot_serve_is_not_taken() {
    let (node, volume) = published();
    let load = Load::begin(&volume.target);
    let before = node.mounter_pid(&volume.id).expect("a mounter");
    // Another build: the same program with something behind its end.
    let mut program = fs::read(node.mounter()).expect("read the mounter");
    program.extend_from_slice(b"another build");
    replace(node.mounter(), &program);
    let planned = node.operator("upgrade", &["--dry-run"]).expect("dry run").stdout;
    assert!(planned.contains("yes"), "{planned}");
    assert_eq!(node.mounter_pid(&volume.id).expect("a mounter"), before, "a dry run changes nothing");
    let done = node.operator("upgrade", &[]).expect("upgrade");
    assert_eq!(done.code, Some(0), "{}{}\n{}", done.stdout, done.stderr, node.log());
    let after = node.mounter_pid(&volume.id).expect("a mounter");
    assert_ne!(after, before);
    replace(node.mounter(), b"#!/bin/sh\nexit 1\n");
    let refused = node.operator("upgrade", &[]).expect("upgrade");
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    assert_eq!(node.mounter_pid(&volume.id).expect("a mounter"), after, "the old one goes on");
    assert!(load.end() > 0);
}

fn replace(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    let draft = path.with_extension("draft");
    fs::write(&draft, bytes).expect("write");
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).expect("chmod");
    fs::rename(draft, path).expect("rename");
}

#[test]
fn a_mounter_holds_what_it_needs_and_nothing_of_the_agents() {
    let (node, volume) = published();
    let pid = node.mounter_pid(&volume.id).expect("a mounter");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    // Whatever the kernel makes of a program that is executed from a descriptor.
    assert!(status.starts_with("Name:\ttarbox-mount\n"), "{status}");
    let environment = fs::read(format!("/proc/{pid}/environ")).expect("environ");
    assert!(!String::from_utf8_lossy(&environment).contains("TARBOX"), "nothing is told by the environment");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a core limit");
    assert!(core.split_whitespace().nth(4) == Some("0"), "{core}");
    let mut open = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").flatten() {
        open.push(fs::read_link(entry.path()).unwrap_or_default().display().to_string());
    }
    assert!(open.iter().any(|path| path == "/dev/fuse"), "{open:?}");
    let own = node.state_dir().display().to_string();
    let alien: Vec<_> =
        open.iter().filter(|path| path.starts_with(&own) && !path.ends_with(".log")).collect();
    assert!(alien.is_empty(), "{alien:?}");
}

#[test]
fn expanding_raises_the_quota_at_once() {
    let node = node();
    let id = node.tenant_with("work", &["--quota-bytes", "16Mi"]).expect("a tenant");
    let volume = node.publish(&id, "work").expect("published");
    let (file, size) = (volume.target.join("f"), || {
        let found = statvfs(&volume.target).expect("statvfs");
        found.blocks() * found.fragment_size()
    });
    assert_eq!(size(), 16 << 20);
    let full = fs::write(&file, vec![1; 24 << 20]).expect_err("more than there is room for");
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    let words: Vec<&str> = volume.words().into_iter().chain(["--bytes", "33554432"]).collect();
    for _ in 0..2 {
        let answer = node.call("expand", &words).expect("expand");
        assert!(answer.contains("capacity_bytes: 33554432"), "{answer}");
        assert_eq!(size(), 32 << 20);
    }
    fs::write(&file, vec![1; 24 << 20]).expect("there is room now");
    // A mounter that comes later knows of it as well.
    kill_9(node.mounter_pid(&volume.id).expect("a mounter"));
    assert_eq!(size(), 32 << 20);
}

#[test]
fn a_volume_without_a_limit_has_nothing_to_expand() {
    let (node, volume) = published();
    let words: Vec<&str> = volume.words().into_iter().chain(["--bytes", "1073741824"]).collect();
    let answer = node.call("expand", &words).expect("expand");
    assert!(answer.contains("capacity_bytes: 0"), "{answer}");
}
