//! smoke
use std::sync::Arc;
use tarbox_engine::nullfs::{MemFs, MemFsOptions};
use tarbox_engine::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smoke() {
    let dir = tempfile::tempdir().unwrap();
    let device = mount(&MountOptions::new(dir.path(), "test")).unwrap();
    let fs = Arc::new(MemFs::new(MemFsOptions::default()));
    let parts = SessionParts {
        devices: vec![device],
        slots: create_slots(SlotsLayout::default()).unwrap(),
        init: None,
    };
    let session =
        Session::start(fs.clone(), parts, SessionConfig::default(), tokio::runtime::Handle::current())
            .unwrap();
    println!("{:?}", session.serving().await);
    let path = dir.path().to_owned();
    tokio::task::spawn_blocking(move || {
        std::fs::write(path.join("a"), b"hello").unwrap();
        println!("{:?}", std::fs::read(path.join("a")));
        println!("{:?}", std::fs::read_dir(&path).unwrap().collect::<Vec<_>>());
    })
    .await
    .unwrap();
    println!("{:?}", session.statistics());
    let parts = session.stop().await.unwrap();
    println!("stopped {parts:?}");
    let session =
        Session::start(fs.clone(), parts, SessionConfig::default(), tokio::runtime::Handle::current())
            .unwrap();
    println!("{:?}", session.serving().await);
    let path = dir.path().to_owned();
    tokio::task::spawn_blocking(move || {
        println!("{:?}", std::fs::read(path.join("a")));
    })
    .await
    .unwrap();
    unmount(dir.path(), false).unwrap();
    println!("{:?} {}", session.wait().await, fs.destroyed());
}
