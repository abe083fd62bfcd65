//! The network between a mounter and PostgreSQL gone, and another server in the place of the first: nobody's acknowledged data is lost
//! silently, and never do two write one tenant.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    sync::atomic::Ordering::SeqCst,
    thread,
    time::{Duration, Instant},
};

use tarbox_tests::{
    deadline::wait_for,
    mount::{Mount, MountPlan},
    relay::Relay,
    scratch::Scratch,
    stamper::{Stamper, Told},
    volume::{Database, Volume},
};

const LIMIT: Duration = Duration::from_secs(120);
/// The lease time of these tests.
const LEASE: Duration = Duration::from_secs(2);

fn url(port: u16) -> String {
    format!("postgresql://postgres@127.0.0.1:{port}/tarbox?tarbox_lease={}", LEASE.as_secs())
}

fn synced(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Another mounter of the same tenant, as on another node: its own directories, its own way to the database.
fn elsewhere(volume: &mut Volume, name: &str, port: u16) -> MountPlan {
    let sub = |what: &str| volume.scratch().sub(&format!("{name}-{what}")).expect("a directory");
    let (state_dir, mountpoint, log) =
        (sub("state"), sub("mnt"), volume.scratch().path().join(format!("{name}-log")));
    MountPlan { url: url(port), state_dir, mountpoint, log, ..volume.plan().clone() }
}

/// How often rounds are done until something new has come.
fn rounds(told: &Told, more: u64) {
    let reached = told.done.load(SeqCst) + more;
    wait_for("rounds", LIMIT, || (told.done.load(SeqCst) >= reached).then_some(())).expect("rounds");
}

#[test]
fn a_standby_that_lags_is_promoted_under_load_and_what_was_synced_is_there() {
    let mut volume = Volume::prepare(Database::Postgres, &[]);
    if volume.is_control() {
        return;
    }
    let relay = Relay::to(volume.server().port()).expect("a relay");
    volume.plan().url = url(relay.port());
    volume.start();
    let stamper = Stamper::new(&volume.at("stamps")).expect("stamps");
    let (told, home) = (Told::default(), Scratch::on_disk().expect("a directory"));
    let mut standby = thread::scope(|scope| {
        let writer = scope.spawn(|| stamper.write(&told, 5));
        rounds(&told, 50);
        let mut standby = volume.server().standby(&home.sub("standby").expect("home")).expect("a standby");
        rounds(&told, 50);
        // What is acknowledged from here on has never been seen by it.
        standby.stop().expect("the standby falls behind");
        let behind = told.synced.load(SeqCst);
        rounds(&told, 200);
        volume.server().crash().expect("the primary dies");
        standby.resume().expect("the standby starts");
        standby.promote().expect("promoted");
        let lost = told.synced.load(SeqCst);
        assert!(lost > behind, "nothing was synced that the standby lacks");
        relay.lead_to(standby.port());
        wait_for("an fsync on the promoted one", LIMIT, || {
            (told.synced.load(SeqCst) > lost + 20 || writer.is_finished()).then_some(())
        })
        .expect("work goes on");
        told.stop.store(true, SeqCst);
        writer.join().expect("writer").expect("no call fails");
        standby
    });
    File::open(volume.at("stamps/log")).expect("open").sync_all().expect("fsync");
    let done = told.done.load(SeqCst);
    volume.kill();
    volume.lose_node();
    volume.start();
    let found = stamper.read().expect("a prefix");
    assert_eq!((found.first, found.names), (done, done), "the promoted server lacks what was synced");
    volume.stop();
    volume.fsck();
    standby.stop().expect("stop");
}

#[test]
fn a_partitioned_writer_is_fenced_once_another_has_taken_over_and_what_it_had_is_set_aside() {
    let mut volume = Volume::prepare(Database::Postgres, &[]);
    if volume.is_control() {
        return;
    }
    let port = volume.server().port();
    let relay = Relay::to(port).expect("a relay");
    volume.plan().url = url(relay.port());
    volume.start();
    synced(&volume.at("before"), "before").expect("before");
    let plan = elsewhere(&mut volume, "other", port);
    let early = Mount::start(&plan).expect_err("the first one lives");
    assert!(format!("{early:#}").contains("in use by"), "{early:#}");
    relay.hold();
    let path = volume.at("during");
    let waiter = thread::spawn(move || synced(&path, "during"));
    let other = wait_for("another to take over", LIMIT, || Mount::start(&plan).ok()).expect("taken over");
    assert_eq!(fs::read(plan.mountpoint.join("before")).expect("read"), b"before");
    synced(&plan.mountpoint.join("after"), "after").expect("another writes");
    assert!(!waiter.is_finished(), "an fsync was answered without the database: {:?}", waiter.join());
    // What it sent before comes late, and must not count.
    relay.let_go();
    wait_for("an answer", LIMIT, || waiter.is_finished().then_some(())).expect("answered");
    let refused = waiter.join().expect("the waiter").expect_err("the tenant is another's");
    assert_eq!(refused.raw_os_error(), Some(nix::libc::EIO), "{refused}");
    wait_for("the reason", LIMIT, || {
        volume.mount().said().contains("another holder has epoch").then_some(())
    })
    .unwrap_or_else(|error| panic!("{error:#}: {}", volume.mount().said()));
    synced(&volume.at("late"), "late").expect_err("it writes no more");
    assert!(!plan.mountpoint.join("during").exists() && !plan.mountpoint.join("late").exists());
    synced(&plan.mountpoint.join("undisturbed"), "undisturbed").expect("the other one goes on");
    volume.kill();
    other.unmount().expect("unmount");
    volume.start();
    let said = volume.mount().said();
    assert!(said.contains("set aside"), "silently dropped: {said}");
    for name in ["before", "after", "undisturbed"] {
        assert_eq!(fs::read_to_string(volume.at(name)).expect(name), name);
    }
    assert!(!volume.at("during").exists());
    volume.stop();
    volume.fsck();
}

#[test]
fn after_an_outage_of_five_lease_times_every_holder_still_has_its_tenant() {
    let mut volume = Volume::prepare(Database::Postgres, &[]);
    if volume.is_control() {
        return;
    }
    let port = volume.server().port();
    let holders: Vec<(MountPlan, Mount)> = (0..4)
        .map(|number| {
            let name = format!("holder-{number}");
            let plan = MountPlan { tenant: name.clone(), ..elsewhere(&mut volume, &name, port) };
            let mount = Mount::start(&plan).expect("a holder");
            synced(&plan.mountpoint.join("before"), "before").expect("before");
            (plan, mount)
        })
        .collect();
    volume.server().crash().expect("PostgreSQL dies");
    let until = Instant::now() + 5 * LEASE;
    let waiters: Vec<_> = holders
        .iter()
        .map(|(plan, _)| {
            let path = plan.mountpoint.join("during");
            thread::spawn(move || synced(&path, "during"))
        })
        .collect();
    // The outage itself.
    wait_for("five lease times", LIMIT, || (Instant::now() >= until).then_some(())).expect("time passes");
    volume.server().resume().expect("PostgreSQL starts");
    // Who comes first after the outage must not be given what its holder has not had the time to renew.
    let claims: Vec<_> = holders
        .iter()
        .enumerate()
        .map(|(number, (plan, _))| {
            let claim = elsewhere(&mut volume, &format!("claim-{number}"), port);
            MountPlan { tenant: plan.tenant.clone(), ..claim }
        })
        .collect();
    for refused in claims.iter().map(Mount::start) {
        let refused = refused.expect_err("a tenant was taken from its holder");
        assert!(format!("{refused:#}").contains("in use by"), "{refused:#}");
    }
    for waiter in waiters {
        waiter.join().expect("the waiter").expect("no call fails");
    }
    for (plan, mount) in holders {
        synced(&plan.mountpoint.join("after"), "after").expect("work goes on");
        assert_eq!(fs::read(plan.mountpoint.join("before")).expect("read"), b"before");
        mount.unmount().expect("unmount");
    }
}
