//! Usage, configuration, manual.

use std::fs;

use crate::place::{Place, end_of};

#[test]
fn wrong_usage_ends_with_64_and_says_what_is_wrong() {
    let place = Place::new();
    end_of(&mut place.command("tarbox-mount")).expect(64, &["MOUNTPOINT"]);
    place.mount_fails(&["--frobnicate"]).expect(64, &["--frobnicate"]);
    place.mount_fails(&["--tenant", "a", "--tenant-id", "b"]).expect(64, &["cannot be used with"]);
    place
        .mount_fails(&["--block-size", "5000"])
        .expect(64, &["blockSize = `5000`", "--block-size", "power of two"]);
    place.mount_fails(&["--tenant-id", "42"]).expect(64, &["tenantId = `42`", "UUID"]);
    place.tarbox(&["tenant", "frob"]).expect(64, &["frob"]);
    place.tarbox(&["tenant", "create", "No Good"]).expect(64, &["No Good", "1 to 63 of a-z"]);
    place.tarbox(&["tenant", "resize", "x"]).expect(64, &["nothing to change"]);
    place.tarbox(&["usage", "-o", "yaml"]).expect(64, &["yaml", "json"]);
}

#[test]
fn a_wrong_configuration_ends_with_78_and_all_faults_are_named_with_their_source() {
    let place = Place::new();
    let file = place.path("config.toml");
    fs::write(&file, "cacheSize = '64Mi'\ncompresion = 'zstd'\nsyncMode = 'sometimes'\n").expect("write");
    let shown = file.to_str().expect("utf-8").to_owned();
    let mut command = place.command("tarbox-mount");
    command.env("TARBOX_FLUSH_INTERVAL", "soon").env("TARBOX_CACHE", "1Gi").args(["--config", &shown]);
    end_of(command.args(["--quota-bytes", "lots"]).arg(place.path("mnt"))).expect(
        78,
        &[
            "5 faults",
            &format!("unknown key `compresion` (from {shown}, line 2); did you mean `compression`?"),
            &format!("syncMode = `sometimes` (from {shown}, line 3): allowed is writeback or writethrough"),
            "flushInterval = `soon` (from the environment variable TARBOX_FLUSH_INTERVAL): allowed is a duration",
            "unknown key `TARBOX_CACHE`",
            "quotaBytes = `lots` (from the flag --quota-bytes)",
        ],
    );
    // The command line reads the same configuration.
    let mut command = place.command("tarbox");
    end_of(command.env("TARBOX_CONFIG", &file).args(["tenant", "list"])).expect(78, &["compresion"]);
}

#[test]
fn a_bad_database_url_ends_with_78_and_an_unreachable_one_with_1() {
    let place = Place::new();
    for url in ["mysql://h/db", "nonsense"] {
        place.mount_fails(&["--database-url", url]).expect(78, &[url, "sqlite://", "postgresql://"]);
        place.tarbox(&["tenant", "list", "--database-url", url]).expect(78, &[url]);
    }
    let file = place.path("file");
    fs::write(&file, "").expect("write");
    let below_a_file = format!("sqlite://{}/db", file.display());
    place.mount_fails(&["--database-url", &below_a_file]).expect(1, &[file.to_str().expect("utf-8")]);
    let nobody = "postgresql://u:secret@127.0.0.1:1/db?connect_timeout=2";
    let ended = place.mount_fails(&["--database-url", nobody]);
    ended.expect(1, &["127.0.0.1", "cannot be reached", "tarbox doctor"]);
    assert!(!ended.stderr.contains("secret"), "{}", ended.stderr);
}

#[test]
fn the_manual_is_there_for_every_program_and_command() {
    let place = Place::new();
    for (program, arguments, expected) in [
        ("tarbox", &["--help"][..], "Examples:"),
        ("tarbox", &["tenant", "create", "--help"], "--quota-bytes"),
        ("tarbox-mount", &["--help"], "Exit codes:"),
        ("tarbox", &["man"], ".TH tarbox 1"),
        ("tarbox", &["man", "--program", "tarbox-mount"], ".TH tarbox-mount 1"),
        ("tarbox", &["completions", "bash"], "complete -F"),
        ("tarbox", &["completions", "zsh", "--program", "tarbox-mount"], "#compdef tarbox-mount"),
        ("tarbox", &["--version"], env!("CARGO_PKG_VERSION")),
    ] {
        end_of(place.command(program).args(arguments)).expect(0, &[expected]);
    }
    let pages = place.path("man1");
    fs::create_dir(&pages).expect("mkdir");
    place.tarbox(&["man", "--directory", pages.to_str().expect("utf-8")]).expect(0, &[]);
    for page in ["tarbox.1", "tarbox-mount.1", "tarbox-tenant-create.1", "tarbox-export.1"] {
        assert!(pages.join(page).is_file(), "{page}");
    }
}

#[test]
fn doctor_finds_what_is_wrong_and_says_what_to_do() {
    let place = Place::new();
    // Dead mounts of other tests beside this one are faults to it, too: the exit code is not asserted.
    let said = place.tarbox(&["doctor", "-o", "json"]).stdout;
    let findings: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let whats: Vec<&str> =
        findings.as_array().expect("a list").iter().filter_map(|f| f["what"].as_str()).collect();
    for what in ["kernel", "/dev/fuse", "fusermount3", "database", "state directory", "journals", "mounts"] {
        assert!(whats.contains(&what), "{what} is not in {whats:?}");
    }
    assert!(!place.path("db").exists(), "looking changes nothing");
    place.tarbox(&["tenant", "create", "t"]).expect(0, &[]);
    let said = place.tarbox(&["doctor"]).stdout;
    assert!(said.contains("1 tenants, schema"), "{said}");
    let ended = place.tarbox(&["doctor", "--database-url", "nonsense"]);
    ended.expect(1, &["FAULT", "check the URL"]);
}
