//! What a running mounter shows and does over its control socket.

use std::{fs, os::fd::AsRawFd, time::Duration};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tarbox_handover::{FromMounter, Kept, Received, SupervisorLink, ToMounter, message::Mode};
use tarbox_mounter::control::client::{Control, Mounter};
use tarbox_proto::control::v1::{FileSystemStatistics, Phase};
use tarbox_types::ErrorKind;

use crate::place::{LIMIT, Place, until};

async fn connect(place: &Place) -> Control {
    let mounter = Mounter::at(&place.path("state"), &place.path("mnt")).expect("a mounter");
    mounter.connect(LIMIT).await.expect("it listens")
}

#[tokio::test]
async fn it_shows_how_far_it_is_and_what_it_has_answered() {
    let place = Place::new();
    let mounted = place.mount(&[]);
    fs::create_dir(place.path("mnt").join("made")).expect("mkdir");
    let mut control = connect(&place).await;
    let status = control.status().await.expect("status");
    assert_eq!(status.phase(), Phase::Serving);
    assert!(status.operations > 0, "{status:?}");
    assert!(status.in_flight_count >= status.in_flight.len() as u64, "{status:?}");
    let operations = control.statistics().await.expect("statistics").operations;
    let made = operations.iter().find(|operation| operation.name == "mkdir").expect("mkdir");
    assert_eq!((made.count, made.errors), (1, 0));
    assert_eq!(made.latencies.iter().sum::<u64>(), 1);
    assert!(made.total_ns > 0);
    drop(mounted);
}

#[tokio::test]
async fn it_counts_commits_blocks_from_memory_what_waits_and_what_the_quota_refuses() {
    let place = Place::new();
    let mounted = place.mount(&["--quota-bytes", "1Mi", "--flush-interval", "1h"]);
    let mut control = connect(&place).await;
    let counted = async |control: &mut Control| {
        let told = control.statistics().await.expect("statistics");
        told.file_system.expect("this release says it")
    };
    control.flush().await.expect("committed");
    let before = counted(&mut control).await;
    assert_eq!((before.quota_refusals, before.journal_age_ms), (0, 0), "{before:?}");
    let file = place.path("mnt").join("file");
    fs::write(&file, [7; 256 << 10]).expect("within the quota");
    let refused = fs::write(place.path("mnt").join("large"), vec![7; 2 << 20]).expect_err("beyond it");
    assert_eq!(refused.kind(), std::io::ErrorKind::StorageFull);
    let waiting = loop {
        let now = counted(&mut control).await;
        if now.journal_age_ms >= 20 {
            break now;
        }
    };
    assert!(waiting.quota_refusals >= 1, "{waiting:?}");
    assert!(waiting.journal_bytes >= 256 << 10, "{waiting:?}");
    control.flush().await.expect("committed");
    let after = counted(&mut control).await;
    let commits = |statistics: &FileSystemStatistics| statistics.commits.clone().expect("commits");
    assert!(commits(&after).count > commits(&before).count && after.journal_age_ms == 0, "{after:?}");
    assert_eq!(commits(&after).classes.iter().sum::<u64>(), commits(&after).count);
    assert!(commits(&after).total_ns > commits(&before).total_ns);
    drop(mounted);
}

#[tokio::test]
async fn it_takes_a_log_level_and_credentials_and_leaves_the_rest_to_a_successor_when_told() {
    let place = Place::new();
    let mounted = place.mount(&[]);
    let mut control = connect(&place).await;
    control.set_log_level("debug").await.expect("a level");
    let refused = control.set_log_level("loud").await.expect_err("no level");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    let said = refused.report().to_string();
    assert!(said.contains("level = `loud`: allowed is off, error, warn"), "{said}");
    control.set_credentials(&place.url()).await.expect("SQLite has none");
    let before = mounted.pid();
    control.drain(Duration::from_secs(1)).await.expect("its parent lets another one go on");
    let point = place.path("mnt");
    tokio::task::spawn_blocking(move || fs::create_dir(point.join("serves-on")))
        .await
        .expect("a thread")
        .expect("mkdir");
    assert!(until(|| mounted.pid() != before));
    drop(mounted);
}

#[tokio::test]
async fn a_supervised_one_drains_when_it_is_told_to_over_the_socket() {
    let place = Place::new();
    place.tarbox(&["tenant", "create", "work"]).expect(0, &[]);
    let shown = place.tarbox(&["tenant", "show", "work", "-o", "json"]).json();
    let id = shown["id"].as_str().expect("an id").to_owned();
    let point = place.path("mnt");
    let device = tarbox_engine::mount(&tarbox_engine::MountOptions::new(&point, "work")).expect("mount");
    let slots = tarbox_mounter::engine::new_slots().expect("slots");
    let kept = Kept { devices: vec![device], slots, journal: None, secrets: None };
    let (link, theirs) = SupervisorLink::pair().expect("a link");
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).expect("inheritable");
    let mut command = place.command("tarbox-mount");
    command.args(["--tenant-id", &id, "--control-fd", &theirs.as_raw_fd().to_string()]).arg(&point);
    let mut child = command.spawn().expect("tarbox-mount");
    drop(theirs);
    let (start, descriptors) = kept.start(Mode::Serve);
    link.send(&ToMounter::Start(start), &descriptors).expect("send");
    let hear = || loop {
        match link.receive_within(LIMIT).expect("a message") {
            Received::Message(FromMounter::Waiting(_), _) => {}
            heard => return heard,
        }
    };
    assert!(matches!(hear(), Received::Message(FromMounter::Hello(_), _)));
    assert!(matches!(hear(), Received::Message(FromMounter::Serving(_), _)));
    connect(&place).await.drain(Duration::from_secs(10)).await.expect("it drains");
    assert!(matches!(hear(), Received::Message(FromMounter::Draining(_), _)));
    assert!(matches!(hear(), Received::Message(FromMounter::Drained(_), _)));
    assert_eq!(child.wait().expect("it ends").code(), Some(3));
    tarbox_engine::unmount(&point, true).expect("unmount");
}
