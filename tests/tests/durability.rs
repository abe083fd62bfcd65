//! What is kept when: fsync, kill -9, a lost node, a database that went back.

use std::{
    fs::{self, File},
    io::Write,
    sync::atomic::Ordering::SeqCst,
    thread,
    time::{Duration, Instant},
};

use tarbox_tests::{
    deadline::wait_for,
    on_each_database,
    rng::{Rng, seed},
    stamper::{Stamper, Told},
    tree,
    volume::Volume,
};

on_each_database! {
    fn what_was_fsynced_survives_kill_and_the_loss_of_the_journal(on) {
        let mut volume = Volume::with(on, &["--flush-interval", "1h"]);
        let mut rng = Rng::new(seed());
        let contents: Vec<Vec<u8>> = [0, 1, 100, 4096, 4097, 131_072, 131_073, 3_000_000].iter().map(|len| rng.bytes(*len)).collect();
        fs::create_dir(volume.at("dir")).expect("mkdir");
        for (i, content) in contents.iter().enumerate() {
            let mut file = File::create(volume.at(&format!("dir/{i}"))).expect("create");
            file.write_all(content).expect("write");
            file.sync_all().expect("fsync");
        }
        volume.kill();
        volume.lose_node();
        volume.start();
        for (i, content) in contents.iter().enumerate() {
            assert!(fs::read(volume.at(&format!("dir/{i}"))).expect("read") == *content, "file {i} of {} bytes", content.len());
        }
        volume.stop();
        volume.fsck();
    }

    fn what_was_acknowledged_survives_kill_without_any_fsync(on) {
        let mut volume = Volume::with(on, &["--flush-interval", "1h"]);
        let mut rng = Rng::new(seed());
        for i in 0..50 {
            let len = rng.below(200_000) as usize;
            fs::write(volume.at(&format!("file-{i}")), rng.bytes(len)).expect("write");
        }
        fs::hard_link(volume.at("file-1"), volume.at("link")).expect("link");
        fs::rename(volume.at("file-2"), volume.at("renamed")).expect("rename");
        fs::remove_file(volume.at("file-3")).expect("unlink");
        xattr::set(volume.at("file-4"), "user.x", b"value").expect("setxattr");
        let before = tree::read(volume.path()).expect("before");
        volume.kill();
        volume.start();
        tree::assert_same("after kill and remount", &before, &tree::read(volume.path()).expect("after"));
        volume.kill();
        volume.start();
        tree::assert_same("after a second kill", &before, &tree::read(volume.path()).expect("after"));
        volume.stop();
        volume.fsck();
    }

    fn what_was_unmounted_needs_no_journal(on) {
        let mut volume = Volume::with(on, &["--flush-interval", "1h"]);
        fs::write(volume.at("file"), vec![7; 1_000_000]).expect("write");
        let before = tree::read(volume.path()).expect("before");
        volume.stop();
        volume.lose_node();
        volume.start();
        tree::assert_same("after unmount and loss of the node", &before, &tree::read(volume.path()).expect("after"));
    }

    fn killed_at_random_moments_it_loses_nothing_and_does_nothing_twice(on) {
        let seed = seed();
        println!("TESTS_SEED={seed}");
        rounds(on, seed, kills(), false);
    }

    fn what_is_in_the_database_is_a_prefix_at_any_moment(on) {
        let seed = seed();
        println!("TESTS_SEED={seed}");
        rounds(on, seed, kills(), true);
    }

    fn writethrough_needs_neither_fsync_nor_journal(on) {
        let mut volume = Volume::with(on, &["--sync-mode", "writethrough"]);
        for i in 0..20 {
            fs::write(volume.at(&format!("file-{i}")), format!("content {i}")).expect("write");
        }
        let before = tree::read(volume.path()).expect("before");
        volume.kill();
        volume.lose_node();
        volume.start();
        tree::assert_same("after the loss of the node", &before, &tree::read(volume.path()).expect("after"));
    }

    fn a_file_unlinked_while_open_is_gone_after_kill_and_its_space_is_back(on) {
        let mut volume = Volume::with(on, &["--quota-bytes", "64Mi"]);
        let free = free_bytes(&volume);
        let mut open = File::create(volume.at("gone")).expect("create");
        open.write_all(&vec![1; 8 << 20]).expect("write");
        fs::remove_file(volume.at("gone")).expect("unlink");
        assert!(free_bytes(&volume) <= free - (8 << 20), "an open file still takes its space");
        volume.kill();
        drop(open);
        volume.start();
        wait_for("the space of the orphan", Duration::from_secs(20), || (free_bytes(&volume) == free).then_some(())).expect("space");
        volume.stop();
        volume.fsck();
    }
}

fn kills() -> u64 {
    std::env::var("TESTS_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(12)
}

/// Kills the mounter under a writer again and again; what is found must fit what the writer was told.
fn rounds(on: tarbox_tests::volume::Database, seed: u64, rounds: u64, lose_node: bool) {
    let mut rng = Rng::new(seed);
    let mut volume = Volume::with(on, &["--flush-interval", "50ms"]);
    if volume.is_control() {
        return;
    }
    let told = Told::default();
    for round in 0..rounds {
        let stamper = Stamper::new(&volume.at("stamps")).expect("stamps");
        let sync_every = *rng.pick(&[0, 1, 10, 100]);
        let until = Instant::now() + Duration::from_millis(100 + rng.below(900));
        thread::scope(|scope| {
            let writer = scope.spawn(|| stamper.write(&told, sync_every));
            wait_for("the moment of the kill", Duration::from_secs(5), || {
                (Instant::now() >= until || writer.is_finished()).then_some(())
            })
            .expect("a moment");
            assert!(!writer.is_finished(), "the writer failed before the kill: {:?}", writer.join());
            volume.kill();
            assert!(writer.join().expect("the writer").is_err(), "a dead mount goes on");
        });
        if lose_node {
            volume.lose_node();
        }
        volume.start();
        let (done, synced) = (told.done.load(SeqCst), told.synced.load(SeqCst));
        let found = Stamper::new(&volume.at("stamps"))
            .expect("stamps")
            .read()
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
        println!("round {round}: told {done}, synced {synced}, found {found:?}");
        let least = if lose_node { synced } else { done };
        assert!(
            found.names >= least && found.first <= done + 1,
            "round {round}: told {done}, synced {synced}, found {found:?}"
        );
        // The writer goes on where the directory stands: a call that was done but not answered may be done again.
        restart(&volume, &told, found.names);
    }
    volume.stop();
    volume.fsck();
}

// What the last round had begun is finished or undone, as a program does that starts again.
fn restart(volume: &Volume, told: &Told, names: u64) {
    let log = File::options().write(true).open(volume.at("stamps/log"));
    if let Ok(log) = log {
        log.set_len(names * 24).expect("truncate the log");
    }
    // A pending removal of the round that was cut short.
    if names.is_multiple_of(7) && names > 20 {
        let _ = fs::remove_file(volume.at(&format!("stamps/n{}", names - 20)));
    }
    let _ = fs::remove_file(volume.at("stamps/temporary"));
    told.done.store(names, SeqCst);
    told.synced.store(told.synced.load(SeqCst).min(names), SeqCst);
}

fn free_bytes(volume: &Volume) -> u64 {
    let stat = nix::sys::statvfs::statvfs(volume.path()).expect("statvfs");
    stat.blocks_available() * stat.fragment_size()
}
