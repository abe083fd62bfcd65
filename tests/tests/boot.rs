//! A node after a loss of power: another boot id, no process, dead mounts, and a journal on the disk.

use std::{fs, os::unix::fs::FileExt, path::Path, time::Duration};

use tarbox_tests::{
    boot::{pretend_another_boot, with_own_mounts},
    deadline::wait_for,
    node::{Node, NodePlan, Published},
    postgres::PostgresServer,
    process::stop,
};

const LIMIT: Duration = Duration::from_secs(60);
const BLOCK: usize = 1 << 16;
const BLOCKS: u64 = 48;

/// A node whose volume commits nothing by itself: all that is acknowledged is in the journal.
fn uncommitted() -> (Node, Published) {
    let node = Node::start().expect("a node");
    let id = node.tenant("work").expect("a tenant");
    let volume = Published::new(node.path(), &id, "work");
    node.call("stage", &words(&volume)).expect("stage");
    node.call("publish", &words(&volume)).expect("publish");
    let file = fs::File::create(volume.target.join("data")).expect("create");
    for number in 0..BLOCKS {
        file.write_all_at(&block(number), number * BLOCK as u64).expect("write");
        fs::create_dir(volume.target.join(format!("d{number}"))).expect("mkdir");
    }
    (node, volume)
}

fn words(volume: &Published) -> Vec<&str> {
    let lazily = ["--context", "flushInterval=1h", "--context", "maxLag=1h"];
    volume.words().into_iter().chain(lazily).collect()
}

fn block(number: u64) -> Vec<u8> {
    (0..BLOCK).map(|byte| (number as usize * 31 + byte) as u8).collect()
}

fn assert_whole(volume: &Published) {
    let file = fs::File::open(volume.target.join("data")).expect("open");
    let mut found = vec![0; BLOCK];
    for number in 0..BLOCKS {
        file.read_exact_at(&mut found, number * BLOCK as u64).expect("read");
        assert!(found == block(number), "block {number}");
        assert!(volume.target.join(format!("d{number}")).is_dir(), "directory {number}");
    }
}

fn mounted(path: &Path) -> usize {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
    let here = path.to_string_lossy().into_owned();
    table.lines().filter(|line| line.split(' ').nth(4) == Some(&here)).count()
}

#[test]
fn mounts_of_an_earlier_boot_are_cleared_and_its_journal_is_replayed() {
    with_own_mounts(|| {
        let (mut node, volume) = uncommitted();
        node.power_off().expect("power off");
        assert!(fs::metadata(&volume.target).is_err(), "the mount is dead");
        pretend_another_boot(node.path()).expect("another boot");
        node.start_agent().expect("start again");
        // Staged as it was; nothing is published any more, and nothing dead is left.
        node.mounter_pid(&volume.id).expect("a mounter");
        assert_eq!(mounted(&volume.target), 0);
        let listed = node.ps().expect("ps");
        assert_eq!(listed[0]["published"].as_array().map(Vec::len), Some(0), "{listed:?}");
        node.call("stage", &words(&volume)).expect("stage");
        node.call("publish", &words(&volume)).expect("publish");
        // The mount and the read-only file system under it.
        assert_eq!((mounted(&volume.staging), mounted(&volume.target)), (2, 2));
        assert_whole(&volume);
        node.call("unpublish", &words(&volume)).expect("unpublish");
        node.call("unstage", &words(&volume)).expect("unstage");
        wait_for("nothing left", LIMIT, || node.left_over().is_empty().then_some(()))
            .unwrap_or_else(|_| panic!("{:?}", node.left_over()));
        node.fsck("work").expect("fsck");
    });
}

#[test]
fn an_unstage_that_a_loss_of_power_cut_off_ends_and_loses_nothing() {
    with_own_mounts(|| {
        let (mut node, volume) = uncommitted();
        let pid = node.mounter_pid(&volume.id).expect("a mounter");
        let state = node.state_dir().join("tenants").join(format!("{}.json", volume.id));
        // Nobody unpublished: the pods went with the power.
        nix::mount::umount2(&volume.target, nix::mount::MntFlags::MNT_DETACH).expect("umount");
        // It cannot flush, so that the unstage is still under way when the power goes.
        stop(pid);
        let ended = node.csi_within("unstage", &words(&volume), 1.0).expect("an answer");
        assert_ne!(ended.code, Some(0), "{}", ended.stdout);
        let saved = fs::read_to_string(&state).expect("the state file");
        assert!(saved.contains("Flushing") && saved.contains("\"wanted\": null"), "{saved}");
        node.power_off().expect("power off");
        pretend_another_boot(node.path()).expect("another boot");
        node.start_agent().expect("start again");
        wait_for("the end of the unstage", LIMIT, || (!state.exists()).then_some(()))
            .unwrap_or_else(|_| panic!("{}", node.log()));
        wait_for("no tenant", LIMIT, || node.ps().ok().filter(Vec::is_empty)).expect("nothing is staged");
        assert_eq!((mounted(&volume.staging), mounted(&volume.target)), (0, 0));
        node.call("unstage", &words(&volume)).expect("unstage again");
        node.call("stage", &words(&volume)).expect("stage");
        node.call("publish", &words(&volume)).expect("publish");
        assert_whole(&volume);
    });
}

/// The kubelet looks at the staging path before it says anything: it would hang where something is mounted that nobody can serve.
#[test]
fn a_volume_whose_password_was_lost_with_the_power_is_not_mounted_before_it_is_staged_again() {
    let server = PostgresServer::start().expect("PostgreSQL");
    with_own_mounts(|| {
        let plan = NodePlan { url: Some(server.url()), ..NodePlan::default() };
        let mut node = Node::with(plan).expect("a node");
        let id = node.tenant("work").expect("a tenant");
        let volume = node.publish(&id, "work").expect("published");
        fs::write(volume.target.join("file"), "synced").expect("write");
        fs::File::open(volume.target.join("file")).expect("open").sync_all().expect("committed");
        node.power_off().expect("power off");
        pretend_another_boot(node.path()).expect("another boot");
        node.start_agent().expect("start again");
        wait_for("no tenant", LIMIT, || node.ps().ok().filter(Vec::is_empty)).expect("nothing is staged");
        assert_eq!((mounted(&volume.staging), mounted(&volume.target)), (0, 0));
        node.call("stage", &volume.words()).expect("stage");
        node.call("publish", &volume.words()).expect("publish");
        assert_eq!(fs::read_to_string(volume.target.join("file")).expect("read"), "synced");
    });
}
