//! Bad packets, dying and silent clients, strangers: nothing of that harms the keeper, and nothing leaks.

use std::fs;
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use prost::Message;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, sendmsg,
    socket_with,
};
use tarbox_handover::message::Formats;
use tarbox_handover::process::wait_exit;
use tarbox_handover::protocol::{self as say, Reason, Reply, ReplyPacket, Request, RequestPacket};
use tarbox_handover::{Client, HandoverError, ProcessId, receive_packet, send_packet};

use crate::place::{LIMIT, Place, borrowed, file, start, wait_for};

fn raw(place: &Place) -> OwnedFd {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(place.socket()).unwrap()).unwrap();
    socket
}

fn ask(format: u32, id: u64, body: Option<Request>) -> Vec<u8> {
    RequestPacket { format, id, body }.encode_to_vec()
}

fn answer(socket: &OwnedFd) -> ReplyPacket {
    let packet = receive_packet(socket).expect("receive").expect("still connected");
    ReplyPacket::decode(packet.bytes.as_slice()).expect("a reply")
}

fn refusal(socket: &OwnedFd) -> (u64, Reason, String) {
    match answer(socket) {
        ReplyPacket { id, body: Some(Reply::Refused(refused)), .. } => {
            (id, refused.reason(), refused.message)
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn bad_packets_are_answered_and_the_connection_goes_on() {
    let place = Place::new();
    let socket = raw(&place);
    let attached = file();
    send_packet(&socket, &[0xff, 0xff, 0xff], &[attached.as_fd()], true).unwrap();
    let (id, reason, message) = refusal(&socket);
    assert_eq!((id, reason), (0, Reason::Invalid));
    assert!(message.starts_with("a packet of 3 bytes is no message"), "{message}");
    send_packet(&socket, &ask(7, 41, Some(Request::List(say::List::default()))), &[], true).unwrap();
    let format = "a packet of format 7; this version reads 1 to 1".to_owned();
    assert_eq!(refusal(&socket), (41, Reason::Incompatible, format));
    // A question that only a later release knows: field 99.
    send_packet(&socket, &[ask(1, 42, None), vec![0x9a, 6, 0]].concat(), &[], true).unwrap();
    let unknown = "a message of an unknown kind (format 1)".to_owned();
    assert_eq!(refusal(&socket), (42, Reason::Incompatible, unknown));
    let long = vec![1; 100 << 10];
    sendmsg(&socket, &[IoSlice::new(&long)], &mut SendAncillaryBuffer::default(), SendFlags::empty())
        .unwrap();
    assert_eq!(refusal(&socket).1, Reason::Invalid);
    send_packet(
        &socket,
        &ask(1, 43, Some(Request::Spawn(say::Spawn { key: "k".into(), role: "serve".into(), spec: None }))),
        &[],
        true,
    )
    .unwrap();
    assert_eq!(refusal(&socket), (43, Reason::Invalid, "Spawn: `spec` is missing".to_owned()));
    send_packet(&socket, &ask(1, 44, Some(Request::List(say::List::default()))), &[], true).unwrap();
    assert!(matches!(answer(&socket), ReplyPacket { id: 44, body: Some(Reply::Listing(_)), .. }));
}

#[test]
fn a_later_release_is_told_which_formats_are_read() {
    let place = Place::new();
    let socket = raw(&place);
    let later = say::Hello { formats: Some(Formats { lowest: 1, highest: 2 }) };
    send_packet(&socket, &ask(1, 1, Some(Request::Hello(later))), &[], true).unwrap();
    let ReplyPacket { body: Some(Reply::Welcome(welcome)), .. } = answer(&socket) else {
        panic!("no welcome")
    };
    assert_eq!(welcome.formats, Some(Formats { lowest: 1, highest: 1 }));
    assert_eq!(welcome.pid, place.keeper.id());
    assert_eq!(place.client().keeper_pid(), place.keeper.id());
}

#[test]
fn a_stranger_is_refused_whatever_he_asks() {
    let place = Place::new();
    let directory = place.socket().parent().unwrap().to_owned();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(place.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    let path = place.socket();
    let stranger = std::thread::spawn(move || {
        become_nobody();
        Client::connect(&path).expect_err("refused")
    });
    let told = stranger.join().unwrap();
    assert!(matches!(told, HandoverError::Refused { reason: Reason::Denied, .. }), "{told}");
    assert!(told.to_string().contains("user 65534 may not use this keeper"), "{told}");
    place.client().list().expect("others may");
}

/// Changes the user of this thread alone.
#[allow(unsafe_code)]
fn become_nobody() {
    // SAFETY: no memory is involved.
    assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) }, 0, "this test needs root");
}

#[test]
fn nothing_leaks_whatever_clients_do() {
    let place = Place::new();
    let mut client = place.client();
    let before = place.descriptors();
    let files: Vec<_> = (0..20).map(|_| file()).collect();
    let names = vec!["device".to_owned(); 20];
    for round in 0..30 {
        let mut other = place.client();
        other.put("k", &names, &borrowed(&files), &[1; 1000]).unwrap();
        other.put("wrong", &names[..3], &borrowed(&files), &[]).unwrap_err();
        let (child, _) = place.shell(&mut other, "serve", "sleep 1000");
        let (ended, _) = place.shell(&mut other, "other", "exit 1");
        // Goes away in the middle of a wait, with answers unread and a packet that makes no sense.
        let _ = other.wait(child.id, Duration::from_millis(1));
        let socket = raw(&place);
        send_packet(&socket, &[0xff; 20], &borrowed(&files[..5]), true).unwrap();
        for id in 0..round {
            send_packet(&socket, &ask(1, id, Some(Request::Get(say::Get { key: "k".into() }))), &[], true)
                .unwrap();
        }
        drop((socket, other));
        client.signal(child.id, 9).unwrap();
        for id in [child.id, ended.id] {
            match client.wait(id, LIMIT) {
                // Its end may have been told to the client that had asked before and went away.
                Ok(_) | Err(HandoverError::Refused { reason: Reason::NotFound, .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    client.delete("k").unwrap();
    wait_for("the clients' ends to be seen", || (place.descriptors() == before).then_some(()));
    assert!(client.children().unwrap().is_empty() && client.list().unwrap().is_empty());
}

#[test]
fn a_client_that_does_not_read_is_let_go_and_delays_nobody() {
    let place = Place::new();
    let mut client = place.client();
    client.put("k", &[], &[], &vec![1; 32 << 10]).unwrap();
    let silent = raw(&place);
    let question = ask(1, 1, Some(Request::Get(say::Get { key: "k".into() })));
    let mut asked = 0;
    while asked < 100_000 && matches!(send_packet(&silent, &question, &[], false), Ok(true)) {
        asked += 1;
        client.list().expect("others are served");
    }
    assert!(asked < 100_000, "it is never let go");
}

#[test]
fn more_children_end_unasked_than_are_remembered() {
    let place = Place::new();
    let mut client = place.client();
    let spawned: Vec<_> = (0..80).map(|_| place.shell(&mut client, "other", "exit 0").0).collect();
    for child in &spawned {
        assert!(wait_exit(&child.pidfd, LIMIT).unwrap());
    }
    let known = wait_for("all ends", || {
        Some(client.children().unwrap()).filter(|all| all.iter().all(|child| child.exited.is_some()))
    });
    assert_eq!(known.len(), 64);
    let zombies = fs::read_to_string(format!("/proc/{0}/task/{0}/children", place.keeper.id())).unwrap();
    assert_eq!(zombies, "");
}

#[test]
fn it_stays_under_five_mebibytes() {
    let place = Place::new();
    let mut client = place.client();
    let files: Vec<_> = (0..6).map(|_| file()).collect();
    let names = vec!["device".to_owned(); 6];
    for number in 0..100 {
        client.put(&format!("tenant-{number}"), &names, &borrowed(&files), &[1; 1000]).unwrap();
        let (child, _) = place.shell(&mut client, "serve", "exit 0");
        client.wait(child.id, LIMIT).unwrap();
    }
    assert_eq!(client.list().unwrap().len(), 100);
    let status = fs::read_to_string(format!("/proc/{}/status", place.keeper.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 5 << 10, "{line}");
}

#[test]
fn sigterm_is_passed_on_and_ends_only_a_keeper_without_children() {
    let mut place = Place::new();
    let mut client = place.client();
    let (child, log) = place.shell(
        &mut client,
        "serve",
        "trap 'echo commit' TERM; echo ready; while :; do sleep 0.05; done",
    );
    wait_for("the trap", || crate::place::text(&log).contains("ready").then_some(()));
    let keeper = ProcessId::of(place.keeper.id()).unwrap().open().unwrap();
    tarbox_handover::process::send_signal(&keeper, 15).unwrap();
    wait_for("the signal to be passed on", || crate::place::text(&log).contains("commit").then_some(()));
    assert!(child.id.is_alive());
    client.signal(child.id, 9).unwrap();
    client.wait(child.id, LIMIT).unwrap();
    tarbox_handover::process::send_signal(&keeper, 15).unwrap();
    assert!(wait_exit(&keeper, LIMIT).unwrap());
    assert_eq!(place.keeper.wait().unwrap().code(), Some(0));
}

#[test]
fn two_keepers_do_not_listen_at_one_place() {
    let mut place = Place::new();
    let second = start(&place.socket()).wait_with_output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    place.client().list().expect("the first one goes on");
    // One that was killed leaves its socket behind; that is no obstacle.
    place.replace();
    place.client().list().expect("the next one serves");
}

#[test]
fn the_command_line_explains_itself() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_tarbox-keeper")).args(arguments).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let (code, help) = run(&["--help"]);
    assert!(code == Some(0) && help.contains("--socket PATH") && help.contains("SIGTERM"), "{help}");
    assert_eq!(run(&["--version"]).0, Some(0));
    let (code, told) = run(&["--nonsense"]);
    assert!(code == Some(64) && told.contains("unknown argument `--nonsense`"), "{told}");
    let (code, told) = run(&["--socket", "/nowhere/at/all"]);
    assert!(code == Some(1) && told.contains("cannot listen at /nowhere/at/all: No such file"), "{told}");
}
