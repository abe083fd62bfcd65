//! The mounter's memory is bounded, however large the tenant. The larger sizes are in `soak`.

use tarbox_tests::{load, on_each_database, volume::Volume};

const MIB: u64 = 1 << 20;

on_each_database! {
    fn a_tenant_of_20000_files_is_made_and_listed_in_bounded_memory(on) {
        let mut volume = Volume::with(on, &["--cache-size", "32Mi", "--journal-size", "32Mi"]);
        load::make_files(volume.path(), 20_000);
        assert!(used(&volume) < 192 * MIB, "{} MiB after making them", used(&volume) / MIB);
        volume.remount();
        assert_eq!(load::count_files(volume.path()), 20_000);
        assert!(used(&volume) < 160 * MIB, "{} MiB after listing them", used(&volume) / MIB);
    }

    fn a_file_larger_than_cache_and_journal_is_written_and_read_in_bounded_memory(on) {
        let mut volume = Volume::with(on, &["--cache-size", "32Mi", "--journal-size", "32Mi"]);
        load::write_large(&volume.at("large"), 256 * MIB);
        assert!(used(&volume) < 160 * MIB, "{} MiB after writing", used(&volume) / MIB);
        volume.remount();
        load::verify_large(&volume.at("large"), 256 * MIB);
        assert!(used(&volume) < 128 * MIB, "{} MiB after reading", used(&volume) / MIB);
    }
}

fn used(volume: &Volume) -> u64 {
    if volume.is_control() { 0 } else { volume.mount().memory().expect("the mounter's memory") }
}
