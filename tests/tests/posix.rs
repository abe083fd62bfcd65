//! What system calls do: the `pjdfstest` suite, and random sequences of calls compared with ext4.

use std::collections::BTreeMap;

use tarbox_tests::{
    differ, on_each_database,
    rng::seed,
    scratch::Scratch,
    suites::pjdfstest::{self, Outcome},
    tree,
    volume::Volume,
};

/// Tests of pjdfstest that pass on ext4 and cannot pass through the kernel's FUSE, each with the reason. SEMANTICS.md says the same.
const IMPOSSIBLE: [(&str, &str); 1] = [(
    "link::link_count_max",
    "the C library answers pathconf(_PC_LINK_MAX) by the type of the file system, and for FUSE with `unknown`",
)];

on_each_database! {
    fn every_pjdfstest_that_passes_on_ext4_passes(on) {
        let ext4 = Scratch::on_ext4().expect("ext4");
        let volume = Volume::new(on);
        let wanted = pjdfstest::run(ext4.path(), ext4.path()).expect("pjdfstest on ext4");
        let found = pjdfstest::run(volume.path(), ext4.path()).expect("pjdfstest");
        assert!(wanted.by_name.len() > 390, "only {} tests were read", wanted.by_name.len());
        let impossible: BTreeMap<_, _> = IMPOSSIBLE.into_iter().collect();
        let worse: Vec<String> = wanted.by_name.iter()
            .filter(|(name, outcome)| **outcome == Outcome::Passed && !impossible.contains_key(name.as_str()))
            .filter(|(name, _)| found.by_name.get(*name) != Some(&Outcome::Passed))
            .map(|(name, _)| pjdfstest::about(&found, name))
            .collect();
        assert!(worse.is_empty(), "{} tests pass on ext4 only:\n{}", worse.len(), worse.join("\n"));
    }

    fn random_sequences_do_the_same_as_on_ext4_also_after_a_remount(on) {
        let ext4 = Scratch::on_ext4().expect("ext4");
        let mut volume = Volume::new(on);
        let first = seed();
        println!("TESTS_SEED={first}");
        if let Err(report) = differ::compare_seeds(ext4.path(), volume.path(), first..first + sequences(), 1500) {
            panic!("{report}");
        }
        volume.remount();
        tree::assert_same(
            "after unmount and mount",
            &tree::read(ext4.path()).expect("ext4"),
            &tree::read(volume.path()).expect("the tenant"),
        );
        volume.stop();
        volume.fsck();
    }

    fn sequences_running_at_the_same_time_do_not_disturb_each_other(on) {
        let ext4 = Scratch::on_ext4().expect("ext4");
        let volume = Volume::new(on);
        let first = seed();
        println!("TESTS_SEED={first}");
        std::thread::scope(|scope| {
            for k in 0..4 {
                let (left, right) = (ext4.path(), volume.path());
                let seed = first + 1000 + k;
                scope.spawn(move || {
                    if let Err(report) = differ::compare_seeds(left, right, seed..seed + 1, 800) {
                        panic!("{report}");
                    }
                });
            }
        });
    }
}

fn sequences() -> u64 {
    std::env::var("TESTS_SEQUENCES").ok().and_then(|text| text.parse().ok()).unwrap_or(40)
}
