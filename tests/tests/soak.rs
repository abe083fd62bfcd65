//! What takes too long for each change: `make soak`.

use tarbox_tests::{
    load, on_each_database,
    volume::{Database, Volume},
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

on_each_database! {
    #[ignore = "many minutes: make soak"]
    fn a_tenant_of_a_million_files_is_served_in_512_mib(on) {
        let mut volume = Volume::new(on);
        load::make_files(volume.path(), 1_000_000);
        bounded(&volume, "after making a million files");
        volume.remount();
        assert_eq!(load::count_files(volume.path()), 1_000_000);
        bounded(&volume, "after listing a million files");
    }

    #[ignore = "many minutes: make soak"]
    fn a_directory_of_a_million_entries_is_listed_completely(on) {
        let mut volume = Volume::new(on);
        for i in 0..1_000_000 {
            std::fs::File::create(volume.at(&format!("entry-{i}"))).expect("create");
        }
        volume.remount();
        assert_eq!(std::fs::read_dir(volume.path()).expect("list").count(), 1_000_000);
        bounded(&volume, "after listing it");
    }

    #[ignore = "many minutes: make soak"]
    fn a_file_of_20_gib_is_served_in_512_mib(on) {
        let mut volume = Volume::new(on);
        load::write_large(&volume.at("large"), 20 * GIB);
        bounded(&volume, "after writing it");
        volume.remount();
        load::verify_large(&volume.at("large"), 20 * GIB);
        bounded(&volume, "after reading it");
    }
}

fn bounded(volume: &Volume, when: &str) {
    let used = if volume.is_control() { 0 } else { volume.mount().memory().expect("the mounter's memory") };
    println!("{} MiB {when}", used / MIB);
    assert!(used < 512 * MIB, "{} MiB {when}", used / MIB);
}

#[test]
#[ignore = "many minutes: make soak"]
fn sqlite_and_a_thousand_remounts() {
    let mut volume = Volume::new(Database::Sqlite);
    for i in 0..1000 {
        std::fs::write(volume.at("file"), format!("{i}")).expect("write");
        volume.remount();
        assert_eq!(std::fs::read_to_string(volume.at("file")).expect("read"), format!("{i}"));
    }
    volume.stop();
    volume.fsck();
}
