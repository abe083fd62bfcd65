//! What lasts long is no failure: the agent away while mounters die, a lock that is waited for, a database that is away.
//! `make patience` lets each last ten minutes.

use std::{
    fs::File,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
};
use tarbox_tests::{
    churn::Churn,
    deadline::wait_for,
    node::{Node, NodePlan, Published},
    postgres::PostgresServer,
    process::{kill_if_there, whole_file},
    rng::Rng,
    scratch::require_root,
};

const LIMIT: Duration = Duration::from_secs(120);

/// Twice the watchdog's patience, if not told otherwise.
fn long() -> Duration {
    let seconds = std::env::var("TESTS_AWAY_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(20))
}

fn publish(node: &Node, name: &str) -> Published {
    let id = node.tenant(name).expect("a tenant");
    node.publish(&id, name).expect("published")
}

fn give_back(node: &Node, volumes: &[(&str, Published)]) {
    for (name, volume) in volumes {
        node.call("unpublish", &volume.words()).expect("unpublish");
        node.call("unstage", &volume.words()).expect("unstage");
        node.fsck(name).expect("fsck");
    }
    wait_for("nothing left", LIMIT, || node.left_over().is_empty().then_some(()))
        .unwrap_or_else(|_| panic!("{:?}", node.left_over()));
}

#[test]
fn mounters_that_die_while_the_agent_is_away_for_long_fail_nothing() {
    require_root();
    let mut node = Node::start().expect("a node");
    let volumes = ["one", "two"].map(|name| (name, publish(&node, name)));
    let mut churns: Vec<Churn> = (0..)
        .zip(&volumes)
        .map(|(n, (_, volume))| Churn::new(&volume.target.join("work"), n).expect("a directory"))
        .collect();
    let stop = AtomicBool::new(false);
    let mut killed = 0;
    thread::scope(|scope| {
        let workers: Vec<_> =
            churns.iter_mut().map(|churn| scope.spawn(|| churn.run(&stop).map(|()| churn.calls))).collect();
        node.kill_agent();
        let (until, mut rng) = (Instant::now() + long(), Rng::new(1));
        while Instant::now() < until && !workers.iter().any(thread::ScopedJoinHandle::is_finished) {
            thread::sleep(Duration::from_millis(rng.below(2500)));
            let (_, volume) = &volumes[rng.below(2) as usize];
            for pid in node.mounters(&volume.id) {
                // One that is gone already has died of the kill before.
                killed += u32::from(kill_if_there(pid));
            }
        }
        node.start_agent().expect("start again");
        for (_, volume) in &volumes {
            node.mounter_pid(&volume.id).expect("taken up");
        }
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            assert!(worker.join().expect("a worker").expect("no call fails") > 0);
        }
    });
    assert!(killed > 3, "only {killed} mounters were killed");
    assert_eq!(node.mounts().len(), 4, "each is staged and published once");
    churns.iter_mut().for_each(|churn| churn.verify_all().expect("what was written is there"));
    give_back(&node, &volumes);
}

#[test]
fn neither_a_lock_that_is_waited_for_nor_a_database_that_is_away_is_a_hang() {
    require_root();
    let mut server = PostgresServer::start().expect("PostgreSQL");
    let node = Node::with(NodePlan { url: Some(server.url()), ..NodePlan::default() }).expect("a node");
    let volumes = [("work", publish(&node, "work"))];
    let (_, volume) = &volumes[0];
    let before = node.mounter_pid(&volume.id).expect("a mounter");
    let mut churn = Churn::new(&volume.target.join("work"), 7).expect("a directory");
    // Two descriptions of one file: what holds for two processes.
    let path = volume.target.join("lock");
    let (holder, waiter) = (File::create(&path).expect("create"), File::create(&path).expect("open"));
    fcntl(&holder, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))).expect("the lock is free");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let waits = scope.spawn(|| fcntl(&waiter, FcntlArg::F_OFD_SETLKW(&whole_file(libc::F_WRLCK))));
        let works = scope.spawn(|| churn.run(&stop));
        server.crash().expect("stop PostgreSQL");
        let syncs = scope.spawn(|| File::create(volume.target.join("work-synced"))?.sync_all());
        let until = Instant::now() + long();
        wait_for("the outage's end", long() + LIMIT, || {
            let is_over =
                Instant::now() > until || works.is_finished() || waits.is_finished() || syncs.is_finished();
            is_over.then_some(())
        })
        .expect("end");
        assert!(!waits.is_finished(), "the lock was given to two: {:?}\n{}", waits.join(), node.log());
        assert!(!works.is_finished(), "a call failed: {:?}\n{}", works.join(), node.log());
        assert!(!syncs.is_finished(), "fsync ended without a database: {:?}\n{}", syncs.join(), node.log());
        server.resume().expect("start PostgreSQL");
        syncs.join().expect("join").expect("fsync succeeds in the end");
        fcntl(&holder, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_UNLCK))).expect("unlock");
        waits.join().expect("join").expect("the lock is given to who waited");
        stop.store(true, Ordering::Relaxed);
        works.join().expect("join").expect("no call fails");
    });
    churn.verify_all().expect("what was written is there");
    assert_eq!(
        node.mounter_pid(&volume.id).expect("a mounter"),
        before,
        "nothing was restarted\n{}",
        node.log()
    );
    drop((holder, waiter));
    give_back(&node, &volumes);
}
