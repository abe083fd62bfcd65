//! Descriptors and messages go over whole, and what is not there is told.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use tarbox_handover::message::{Hello, Mode, Stop};
use tarbox_handover::process::{send_signal, wait_exit};
use tarbox_handover::{
    FromMounter, HandoverError, Kept, MOST_BYTES, MounterLink, ProcessId, Received, SupervisorLink,
    ToMounter, read_sealed, receive_packet, sealed, sealed_executable, send_packet,
};

const LONG: Duration = Duration::from_secs(20);

fn pair() -> (SupervisorLink, MounterLink) {
    let (supervisor, end) = SupervisorLink::pair().expect("a link");
    (supervisor, MounterLink::new(end))
}

fn file(text: &str) -> OwnedFd {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(text.as_bytes()).expect("write");
    file.into()
}

fn text(descriptor: &OwnedFd) -> String {
    let mut file = File::from(descriptor.try_clone().expect("duplicate"));
    let mut text = String::new();
    file.rewind().and_then(|()| file.read_to_string(&mut text)).expect("read");
    text
}

#[test]
fn what_is_kept_arrives_by_kind_in_its_order() {
    let kept = Kept {
        devices: vec![file("first"), file("second")],
        slots: file("slots"),
        journal: None,
        secrets: Some(file("secrets")),
    };
    let (supervisor, mounter) = pair();
    let (start, descriptors) = kept.start(Mode::Serve);
    supervisor.send(&ToMounter::Start(start), &descriptors).expect("send");
    let Some((ToMounter::Start(start), descriptors)) = mounter.receive().expect("receive") else {
        panic!("something else came")
    };
    assert_eq!(start.mode(), Mode::Serve);
    let came = Kept::from_start(&start, descriptors).expect("complete");
    assert_eq!(came.devices.iter().map(text).collect::<Vec<_>>(), ["first", "second"]);
    assert_eq!(text(&came.slots), "slots");
    assert_eq!(came.secrets.as_ref().map(text).as_deref(), Some("secrets"));
    assert!(came.journal.is_none());
}

#[test]
fn names_that_a_mounter_has_no_use_for_are_left_out_and_missing_ones_told() {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let kept = Kept::from_named(&names(&["slots", "else", "device"]), vec![file("s"), file("e"), file("d")]);
    let kept = kept.expect("complete");
    assert_eq!((text(&kept.slots), text(&kept.devices[0])), ("s".to_owned(), "d".to_owned()));
    let no_slots = Kept::from_named(&names(&["device"]), vec![file("d")]);
    assert!(matches!(no_slots, Err(HandoverError::Missing { field: "slots", .. })));
    let no_device = Kept::from_named(&names(&["slots"]), vec![file("s")]);
    assert!(matches!(no_device, Err(HandoverError::Missing { field: "device", .. })));
    let too_few = Kept::from_named(&names(&["slots", "device"]), vec![file("s")]);
    assert!(matches!(too_few, Err(HandoverError::Descriptors { found: 1, expected: 2, .. })));
}

#[test]
fn nothing_yet_and_gone_are_told_apart() {
    let (supervisor, mounter) = pair();
    assert!(matches!(supervisor.try_receive(), Ok(Received::Nothing)));
    assert!(matches!(supervisor.receive_within(Duration::from_millis(10)), Ok(Received::Nothing)));
    mounter.send(&FromMounter::Hello(Hello::default()), &[]).expect("send");
    drop(mounter);
    // What was said before the end is still heard.
    assert!(matches!(supervisor.receive_within(LONG), Ok(Received::Message(FromMounter::Hello(_), _))));
    assert!(matches!(supervisor.try_receive(), Ok(Received::Closed)));
    assert!(matches!(supervisor.receive(), Ok(None)));
    assert!(matches!(supervisor.send(&ToMounter::Stop(Stop {}), &[]), Err(HandoverError::Closed)));
}

#[test]
fn a_supervisor_that_does_not_read_blocks_no_one_who_does_not_want_to_wait() {
    let (_supervisor, mounter) = pair();
    let sent =
        (0..1_000_000).take_while(|_| mounter.try_send(&FromMounter::Hello(Hello::default()), &[]).unwrap());
    let sent = sent.count();
    assert!((1..1_000_000).contains(&sent), "{sent} messages went nowhere");
}

#[test]
fn a_packet_that_is_too_long_is_refused_on_both_sides_and_leaks_nothing() {
    let (supervisor, mounter) = pair();
    let long = vec![1; MOST_BYTES + 1];
    assert!(matches!(send_packet(&supervisor, &long, &[], true), Err(HandoverError::TooLarge { .. })));
    let kept = file("kept");
    rustix::net::sendmsg(
        &supervisor,
        &[std::io::IoSlice::new(&long)],
        &mut rustix::net::SendAncillaryBuffer::default(),
        rustix::net::SendFlags::empty(),
    )
    .expect("the socket takes it");
    send_packet(&supervisor, &vec![2; MOST_BYTES], &[kept.as_fd()], true).expect("the longest fits");
    assert!(matches!(receive_packet(&mounter), Err(HandoverError::TooLarge { .. })));
    let packet = receive_packet(&mounter).expect("receive").expect("a packet");
    assert_eq!((packet.bytes.len(), packet.descriptors.len()), (MOST_BYTES, 1));
}

#[test]
fn sealed_memory_is_read_by_all_and_changed_by_nobody() {
    let secrets = sealed("secrets", b"database_url = \"x\"").expect("seal");
    let mut file = File::from(secrets.try_clone().expect("duplicate"));
    file.rewind().expect("seek");
    assert!(file.write_all(b"y").is_err());
    assert!(file.set_len(0).is_err() && file.set_len(1 << 20).is_err());
    for _ in 0..2 {
        assert_eq!(read_sealed(&secrets).expect("read"), b"database_url = \"x\"");
    }
    assert_eq!(file.metadata().expect("stat").mode() & 0o111, 0, "secrets are no program");
}

#[test]
fn a_program_in_sealed_memory_runs() {
    let mut program = File::open("/bin/true").expect("open");
    let program = sealed_executable("true", &mut program).expect("copy");
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&program));
    assert!(Command::new(path).status().expect("run").success());
}

#[test]
fn a_process_is_known_by_its_start_and_not_by_its_pid_alone() {
    let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().expect("spawn");
    let id = ProcessId::of(child.id()).expect("there");
    let pidfd = id.open().expect("open");
    let executable = id.identity().expect("there").executable.expect("seen");
    assert!(id.is_alive() && executable.is_absolute());
    let earlier = ProcessId { start_time: id.start_time - 1, ..id };
    assert!(!earlier.is_alive());
    assert!(matches!(earlier.open(), Err(HandoverError::NoProcess { .. })));
    assert!(!wait_exit(&pidfd, Duration::ZERO).expect("poll"));
    assert!(send_signal(&pidfd, 9).expect("signal"));
    assert!(wait_exit(&pidfd, LONG).expect("poll"));
    assert!(!id.is_alive(), "a zombie is not alive");
    child.wait().expect("wait");
    assert!(!send_signal(&pidfd, 9).expect("signal"), "nobody is there any more");
    assert!(matches!(id.open(), Err(HandoverError::NoProcess { .. })));
    assert!(send_signal(ProcessId::own().unwrap().open().unwrap(), 1000).is_err(), "no such signal");
}

#[test]
fn a_number_that_is_no_inherited_link_is_refused_by_name() {
    // What is opened here is close-on-exec, and so was not inherited.
    let (supervisor, _mounter) = pair();
    let opened_here = std::os::fd::AsRawFd::as_raw_fd(&supervisor);
    for number in [-1, 0, 2, 100_000, opened_here] {
        let told = MounterLink::inherited(number).unwrap_err().to_string();
        assert!(told.starts_with(&format!("descriptor {number} is no end of a link")), "{told}");
    }
    assert!(matches!(supervisor.try_receive(), Ok(Received::Nothing)), "it is still open");
}
