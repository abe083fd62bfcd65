//! While nobody attends, a mounter that died is restarted; while somebody does, it is his.

use std::fs::File;
use std::os::fd::AsFd;

use tarbox_handover::process::wait_exit;
use tarbox_handover::protocol::Child;
use tarbox_handover::{Client, ProcessId, SpawnSpec};

use crate::place::{LIMIT, Place, file, shell, text, wait_for};

/// Says how it was started, in hexadecimal, and stays.
const MOUNTER: &str = "echo begin; dd bs=64k count=1 <&3 2>/dev/null | od -An -tx1; sleep 1000";

struct Tenant {
    spec: SpawnSpec,
    program: File,
    log: File,
}

/// Keeps two devices and slots, leaves a ticket and starts the first mounter.
fn tenant(client: &mut Client, script: &str) -> (Tenant, ProcessId) {
    let (spec, program, log) = shell(script);
    let kept = [file(), file(), file()];
    let names = ["device", "device", "slots"].map(str::to_owned);
    client.put("k", &names, &kept.each_ref().map(AsFd::as_fd), &[]).unwrap();
    let tenant = Tenant { spec, program, log };
    let descriptors = [tenant.program.as_fd(), tenant.log.as_fd()];
    client.ticket("k", Some((&tenant.spec, &descriptors))).unwrap();
    let first = client.spawn("k", "serve", &tenant.spec, &descriptors).expect("spawn");
    (tenant, first.id)
}

fn alive(client: &mut Client) -> Vec<Child> {
    let mut children = client.children().unwrap();
    children.retain(|child| child.exited.is_none());
    children
}

fn successor(client: &mut Client, of: ProcessId) -> Child {
    wait_for("a successor", || alive(client).into_iter().find(|child| child.pid != of.pid))
}

fn kill(client: &mut Client, id: ProcessId) {
    let reached = client.reach(id).unwrap();
    client.signal(id, 9).unwrap();
    assert!(wait_exit(&reached.pidfd, LIMIT).unwrap());
    wait_for("its death to be known", || {
        client
            .children()
            .unwrap()
            .iter()
            .all(|child| child.pid != id.pid || child.exited.is_some())
            .then_some(())
    });
}

#[test]
fn a_mounter_that_dies_while_nobody_attends_is_replaced_and_gets_what_was_kept() {
    let place = Place::new();
    let mut client = place.client();
    let (tenant, first) = tenant(&mut client, MOUNTER);
    kill(&mut client, first);
    let second = successor(&mut client, first);
    assert!(second.by_ticket && second.role == "serve" && second.key == "k");
    // Start { Serve, [Device, Device, Slots] }; the first one was started by hand and told nothing.
    let told = wait_for("its orders", || {
        text(&tenant.log).lines().last().map(str::to_owned).filter(|line| line.contains("12"))
    });
    assert_eq!(told.trim(), "08 01 12 07 08 01 12 03 01 01 02");
    assert_eq!(alive(&mut client).len(), 1);
}

#[test]
fn while_somebody_attends_nothing_is_restarted_and_afterwards_what_is_missing_is() {
    let place = Place::new();
    let mut attendant = place.client();
    let mut client = place.client();
    attendant.attend().unwrap();
    let (_, first) = tenant(&mut attendant, MOUNTER);
    kill(&mut client, first);
    assert!(alive(&mut client).is_empty());
    drop(attendant);
    let second = successor(&mut client, first);
    // A second one attends: the next death is his.
    let mut attendant = place.client();
    attendant.attend().unwrap();
    kill(&mut client, ProcessId { pid: second.pid, start_time: second.start_time });
    assert!(alive(&mut client).is_empty());
}

#[test]
fn what_ended_well_or_has_no_ticket_is_not_restarted() {
    let place = Place::new();
    let mut client = place.client();
    let starts = |tenant: &Tenant| text(&tenant.log).matches("begin").count();
    // Ends with 1 twice, with 0 the third time: two restarts, no third.
    let count = tempfile::NamedTempFile::new().unwrap();
    let script = format!("echo begin; echo x >> {0}; test $(wc -l < {0}) -ge 3", count.path().display());
    let (ended, _) = tenant(&mut client, &script);
    wait_for("two restarts", || (starts(&ended) == 3).then_some(()));
    wait_for("its end", || alive(&mut client).is_empty().then_some(()));
    let (_, second) = tenant(&mut client, MOUNTER);
    client.ticket("k", None).unwrap();
    kill(&mut client, second);
    assert!(alive(&mut client).is_empty());
    // The longest pause of the two above was a second: nothing has come since.
    assert_eq!(starts(&ended), 3);
}

#[test]
fn a_stand_by_that_is_promoted_is_told_and_replaces_the_ticket() {
    let place = Place::new();
    let mut client = place.client();
    let (_, first) = tenant(&mut client, MOUNTER);
    let mut attendant = place.client();
    attendant.attend().unwrap();
    let (stand_by, log) = place.shell(&mut client, "stand-by", MOUNTER);
    kill(&mut client, first);
    client.promote(stand_by.id).unwrap();
    let told = wait_for("its orders", || text(&log).lines().nth(1).map(str::to_owned));
    assert_eq!(told.trim(), "08 01 1a 00");
    drop(attendant);
    // With the attendant gone nothing is due: it serves. Its own death is seen to.
    let serving = alive(&mut client);
    assert_eq!((serving.len(), serving[0].pid, serving[0].role.as_str()), (1, stand_by.id.pid, "serve"));
    kill(&mut client, stand_by.id);
    assert!(successor(&mut client, stand_by.id).by_ticket);
}

#[test]
fn another_keeper_takes_over_what_it_has_not_started() {
    let mut place = Place::new();
    let mut client = place.client();
    let (tenant, first) = tenant(&mut client, MOUNTER);
    let reached = client.reach(first).unwrap();
    place.replace();
    assert!(first.is_alive(), "a mounter outlives its keeper");
    let mut client = place.client();
    assert!(client.list().unwrap().is_empty() && client.children().unwrap().is_empty());
    let kept = [file(), file()];
    client.put("k", &["device".into(), "slots".into()], &kept.each_ref().map(AsFd::as_fd), &[]).unwrap();
    client.watch("k", "serve", first, reached.link.as_fd()).unwrap();
    client.ticket("k", Some((&tenant.spec, &[tenant.program.as_fd(), tenant.log.as_fd()]))).unwrap();
    kill(&mut client, first);
    assert!(successor(&mut client, first).by_ticket);
    let end = client.wait(first, LIMIT).unwrap();
    assert_eq!((end.code, end.signal), (None, None), "nobody can know how another one's child ended");
}
