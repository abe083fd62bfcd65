//! What a running mounter shows and does over its control socket.

use std::{fs, time::Duration};

use tarbox_mounter::control::client::{Control, Mounter};
use tarbox_proto::control::v1::Phase;
use tarbox_types::ErrorKind;

use crate::place::{LIMIT, Place};

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
    let operations = control.statistics().await.expect("statistics");
    let made = operations.iter().find(|operation| operation.name == "mkdir").expect("mkdir");
    assert_eq!((made.count, made.errors), (1, 0));
    assert_eq!(made.latencies.iter().sum::<u64>(), 1);
    assert!(made.total_ns > 0);
    drop(mounted);
}

#[tokio::test]
async fn it_takes_a_log_level_and_credentials_and_refuses_what_it_cannot_do() {
    let place = Place::new();
    let mounted = place.mount(&[]);
    let mut control = connect(&place).await;
    control.set_log_level("debug").await.expect("a level");
    let refused = control.set_log_level("loud").await.expect_err("no level");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    let said = refused.report().to_string();
    assert!(said.contains("level = `loud`: allowed is off, error, warn"), "{said}");
    control.set_credentials(&place.url()).await.expect("SQLite has none");
    let refused = control.drain(Duration::from_secs(1)).await.expect_err("nobody would go on");
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    fs::create_dir(place.path("mnt").join("serves-on")).expect("mkdir");
    drop(mounted);
}
