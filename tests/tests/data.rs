//! What is written is what is read: `fsx` over each size of file, with remounts and kills in between.

use tarbox_tests::{
    on_each_database,
    rng::seed,
    suites::fsx::{self, Style},
    tree,
    volume::Volume,
};

on_each_database! {
    fn fsx_reads_what_it_wrote_and_the_file_is_the_same_after_a_remount(on) {
        let mut volume = Volume::new(on);
        let first = seed();
        println!("TESTS_SEED={first}");
        let share = operations() / 10;
        for (k, style, part) in [(0, Style::Small, 4), (1, Style::Large, 1), (2, Style::Small, 4), (3, Style::Synced, 1)] {
            let name = format!("fsx-{k}");
            fsx::run(volume.path(), &name, volume.scratch().path(), style, first + k, share * part).expect("fsx");
            let before = tree::read(volume.path()).expect("before");
            volume.remount();
            tree::assert_same("after a remount", &before, &tree::read(volume.path()).expect("after"));
        }
        volume.stop();
        volume.fsck();
    }

    fn fsx_with_compression_and_small_blocks_and_a_tiny_cache(on) {
        let args = ["--block-size", "16Ki", "--compression", "zstd", "--cache-size", "1Mi"];
        let mut volume = Volume::with(on, &args);
        fsx::run(volume.path(), "fsx", volume.scratch().path(), Style::Large, seed(), operations() / 20).expect("fsx");
        let before = tree::read(volume.path()).expect("before");
        volume.remount();
        tree::assert_same("after a remount", &before, &tree::read(volume.path()).expect("after"));
    }

    fn several_fsx_at_the_same_time(on) {
        let volume = Volume::new(on);
        let first = seed();
        std::thread::scope(|scope| {
            for k in 0..3 {
                let volume = &volume;
                scope.spawn(move || {
                    let (path, scratch) = (volume.path(), volume.scratch().path());
                    fsx::run(path, &format!("fsx-{k}"), scratch, Style::Small, first + k, operations() / 20).expect("fsx")
                });
            }
        });
    }
}

/// Operations of the whole run; `make fsx` asks for a million.
fn operations() -> u64 {
    std::env::var("TESTS_FSX_OPERATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(40_000)
}
