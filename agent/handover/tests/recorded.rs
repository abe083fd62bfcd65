//! What the first release said is still understood: recorded bytes, and what they mean.
//!
//! `recorded/format-1.txt` is never changed; what is added gets further lines.

use std::collections::BTreeMap;

use prost::Message;
use tarbox_handover::message::{
    DescriptorKind, Drain, Drained, Draining, Ended, Failed, Formats, Hello, Mode, Renewed, Serving,
    StandingBy, Start, Stop, TakeOver, Waiting,
};
use tarbox_handover::protocol::{self as say, Reason, Reply, ReplyPacket, Request, RequestPacket};
use tarbox_handover::{
    FromMounter, HandoverError, Limit, MounterLink, SpawnSpec, SupervisorLink, ToMounter, receive_packet,
    send_packet,
};

const FORMATS: Formats = Formats { lowest: 1, highest: 2 };

fn recorded() -> BTreeMap<&'static str, Vec<u8>> {
    let lines = include_str!("recorded/format-1.txt").lines();
    lines
        .filter_map(|line| line.split_once(' '))
        .map(|(name, text)| {
            let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
            (name, (0..text.len()).step_by(2).map(byte).collect())
        })
        .collect()
}

fn to_mounter() -> Vec<(&'static str, ToMounter)> {
    let kinds =
        [DescriptorKind::Device, DescriptorKind::Slots, DescriptorKind::Journal, DescriptorKind::Secrets];
    let start = Start { mode: Mode::StandBy.into(), descriptors: kinds.map(i32::from).to_vec() };
    vec![
        ("down.start", ToMounter::Start(start)),
        ("down.take-over", ToMounter::TakeOver(TakeOver {})),
        ("down.drain", ToMounter::Drain(Drain { millis: 1500 })),
        ("down.stop", ToMounter::Stop(Stop {})),
    ]
}

fn from_mounter() -> Vec<(&'static str, FromMounter)> {
    let formats = Some(FORMATS);
    let hello = Hello { pid: 7, version: "0.1.0".into(), journal: formats, slots: formats, link: formats };
    let failed = Failed { kind: "Busy".into(), message: "tenant `a` is in use".into() };
    vec![
        ("up.hello", FromMounter::Hello(hello)),
        ("up.standing-by", FromMounter::StandingBy(StandingBy {})),
        ("up.serving", FromMounter::Serving(Serving { replayed: 3, recovered: 2, micros: 900 })),
        ("up.draining", FromMounter::Draining(Draining {})),
        ("up.drained", FromMounter::Drained(Drained {})),
        ("up.failed", FromMounter::Failed(failed)),
        ("up.ended", FromMounter::Ended(Ended { unmounted: true })),
        ("up.waiting", FromMounter::Waiting(Waiting { what: "the database".to_owned() })),
        ("up.renewed", FromMounter::Renewed(Renewed {})),
    ]
}

fn spec() -> SpawnSpec {
    SpawnSpec {
        executable: 0,
        argv: vec![b"tarbox-mount".to_vec(), b"/m".to_vec()],
        env: vec![b"A=b".to_vec()],
        uid: Some(65534),
        gid: Some(65533),
        groups: vec![5, 6],
        limits: vec![Limit { resource: 7, soft: 1024, hard: u64::MAX }],
        oom_score_adj: Some(-500),
        cgroups: vec!["/sys/fs/cgroup/x".into()],
        nice: Some(-1),
        new_session: true,
        log: Some(1),
        // Later than the recording: left out where it is false.
        without_capabilities: false,
    }
}

fn requests() -> Vec<(&'static str, Request)> {
    let key = || "k".to_owned();
    let (pid, start_time) = (9, 1_000_000);
    vec![
        ("ask.hello", Request::Hello(say::Hello { formats: Some(FORMATS) })),
        (
            "ask.put",
            Request::Put(say::Put {
                key: key(),
                names: vec!["device".into(), "slots".into()],
                data: vec![0, 255],
            }),
        ),
        ("ask.get", Request::Get(say::Get { key: key() })),
        ("ask.list", Request::List(say::List { after: key() })),
        ("ask.delete", Request::Delete(say::Delete { key: key() })),
        ("ask.spawn", Request::Spawn(say::Spawn { key: key(), role: "serve".into(), spec: Some(spec()) })),
        ("ask.signal", Request::Signal(say::Signal { pid, start_time, signal: 15 })),
        ("ask.wait", Request::Wait(say::Wait { pid, start_time })),
        ("ask.children", Request::Children(say::Children { after: 8 })),
        ("ask.ticket", Request::Ticket(say::Ticket { key: key(), spec: Some(spec()), enabled: true })),
        ("ask.attend", Request::Attend(say::Attend {})),
        ("ask.respond", Request::Respond(say::Respond { key: key(), on: true })),
        ("ask.reach", Request::Reach(say::Reach { pid, start_time })),
        ("ask.promote", Request::Promote(say::Promote { pid, start_time })),
        ("ask.watch", Request::Watch(say::Watch { key: key(), role: "serve".into(), pid, start_time })),
    ]
}

fn replies() -> Vec<(&'static str, Reply)> {
    let entry = say::Entry {
        key: "k".into(),
        generation: 2,
        names: vec!["device".into()],
        data: vec![1],
        ticket: true,
        responding: true,
    };
    let exited = say::Exited { code: None, signal: Some(9) };
    let child = say::Child {
        pid: 9,
        start_time: 1_000_000,
        key: "k".into(),
        role: "serve".into(),
        exited: Some(exited),
        by_ticket: true,
    };
    vec![
        (
            "tell.refused",
            Reply::Refused(say::Refused { reason: Reason::NotFound.into(), message: "no entry".into() }),
        ),
        ("tell.done", Reply::Done(say::Done { generation: 1 })),
        (
            "tell.welcome",
            // The start time came later: left out where it is 0.
            Reply::Welcome(say::Welcome {
                formats: Some(FORMATS),
                pid: 3,
                version: "0.1.0".into(),
                start_time: 0,
            }),
        ),
        ("tell.entry", Reply::Entry(entry.clone())),
        ("tell.listing", Reply::Listing(say::Listing { entries: vec![entry], more: true })),
        ("tell.spawned", Reply::Spawned(say::Spawned { pid: 9, start_time: 1_000_000 })),
        ("tell.exited", Reply::Exited(exited)),
        ("tell.exited-with-code", Reply::Exited(say::Exited { code: Some(0), signal: None })),
        ("tell.children", Reply::Children(say::ChildList { children: vec![child], more: false })),
    ]
}

/// What is written now, by name: the same as what was recorded.
fn written() -> Vec<(&'static str, Vec<u8>)> {
    let (supervisor, mounter) = pair();
    let mut all = Vec::new();
    for (name, message) in to_mounter() {
        supervisor.send(&message, &[]).expect("send");
        all.push((name, receive_packet(&mounter).expect("receive").expect("a packet").bytes));
    }
    for (name, message) in from_mounter() {
        mounter.send(&message, &[]).expect("send");
        all.push((name, receive_packet(&supervisor).expect("receive").expect("a packet").bytes));
    }
    for (name, request) in requests() {
        all.push((name, RequestPacket { format: 1, id: 300, body: Some(request) }.encode_to_vec()));
    }
    for (name, reply) in replies() {
        all.push((name, ReplyPacket { format: 1, id: 300, body: Some(reply) }.encode_to_vec()));
    }
    all
}

fn pair() -> (SupervisorLink, MounterLink) {
    let (supervisor, end) = SupervisorLink::pair().expect("a link");
    (supervisor, MounterLink::new(end))
}

#[test]
fn every_message_is_written_as_the_first_release_wrote_it() {
    let recorded = recorded();
    let mut wrong = Vec::new();
    for (name, bytes) in written() {
        if recorded.get(name) != Some(&bytes) {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            wrong.push(format!("{name} {hex}"));
        }
    }
    assert!(wrong.is_empty(), "written otherwise than recorded:\n{}", wrong.join("\n"));
}

#[test]
fn every_recorded_message_still_means_what_it_meant() {
    let mut recorded = recorded();
    let mut take = |name: &str| recorded.remove(name).unwrap_or_else(|| panic!("{name} is not recorded"));
    let (supervisor, mounter) = pair();
    for (name, meant) in to_mounter() {
        send_packet(&supervisor, &take(name), &[], true).expect("send");
        assert_eq!(mounter.receive().expect("understood").expect("a message").0, meant, "{name}");
    }
    for (name, meant) in from_mounter() {
        send_packet(&mounter, &take(name), &[], true).expect("send");
        assert_eq!(supervisor.receive().expect("understood").expect("a message").0, meant, "{name}");
    }
    for (name, meant) in requests() {
        let packet = RequestPacket::decode(take(name).as_slice()).expect("a request");
        assert_eq!(packet, RequestPacket { format: 1, id: 300, body: Some(meant) }, "{name}");
    }
    for (name, meant) in replies() {
        let packet = ReplyPacket::decode(take(name).as_slice()).expect("a reply");
        assert_eq!(packet, ReplyPacket { format: 1, id: 300, body: Some(meant) }, "{name}");
    }
    assert!(recorded.is_empty(), "recorded, but never read: {:?}", recorded.keys());
}

#[test]
fn fields_of_a_later_release_are_passed_over_and_its_messages_named() {
    let (supervisor, mounter) = pair();
    // Drain{1500} with a field 9 (text "new") behind it, then a message with the number 15.
    send_packet(&supervisor, &[0x08, 1, 0x22, 8, 0x08, 0xdc, 0x0b, 0x4a, 3, b'n', b'e', b'w'], &[], true)
        .unwrap();
    send_packet(&supervisor, &[0x08, 1, 0x7a, 0], &[], true).unwrap();
    send_packet(&supervisor, &[0x08, 9, 0x2a, 0], &[], true).unwrap();
    send_packet(&supervisor, &[0xff, 0xff], &[], true).unwrap();
    supervisor.send(&ToMounter::Stop(Stop {}), &[]).unwrap();
    assert_eq!(mounter.receive().unwrap().unwrap().0, ToMounter::Drain(Drain { millis: 1500 }));
    assert!(matches!(mounter.receive(), Err(HandoverError::UnknownMessage { format: 1 })));
    assert!(matches!(mounter.receive(), Err(HandoverError::Format { found: 9, oldest: 1, newest: 1 })));
    assert!(matches!(mounter.receive(), Err(HandoverError::Malformed { bytes: 2, .. })));
    // None of that has broken the link.
    assert_eq!(mounter.receive().unwrap().unwrap().0, ToMounter::Stop(Stop {}));
}
