//! Sources and mount points against every way out.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use super::*;

struct Host {
    directory: tempfile::TempDir,
    allowed: Vec<NativeSource>,
}

impl Host {
    /// `rw` may be written, `ro` only read; `secret` is not allowed.
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for name in ["rw/a", "ro/a", "secret", "tenant"] {
            fs::create_dir_all(directory.path().join(name)).expect("mkdir");
        }
        let source = |name: &str, writable| NativeSource { path: directory.path().join(name), writable };
        let allowed = vec![source("rw", true), source("ro", false)];
        Self { directory, allowed }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn mount(&self, source: &str, read_only: bool) -> NativeMount {
        NativeMount { path: "/native".into(), source: self.at(source), read_only }
    }

    fn check(&self, source: &str, read_only: bool) -> Result<(), NativeError> {
        check(&self.allowed, &[self.mount(source, read_only)])
    }
}

fn denied(outcome: Result<(), NativeError>, words: &[&str]) {
    match outcome {
        Err(NativeError::Denied(text)) => assert!(words.iter().all(|word| text.contains(word)), "{text}"),
        other => panic!("not denied: {other:?}"),
    }
}

#[test]
fn what_the_node_allows_may_be_used_and_nothing_else() {
    let host = Host::new();
    host.check("rw/a", false).expect("rw");
    host.check("rw", false).expect("the allowed directory itself");
    host.check("ro/a", true).expect("ro");
    host.check("rw/new/deep", false).expect("it will be made");
    denied(host.check("ro/a", false), &["ro/a", "\"rw\"", "=ro"]);
    denied(host.check("secret", true), &["secret", "nativeSources", "=rw"]);
    denied(host.check("rwx", true), &["rwx"]);
    assert!(matches!(host.check("ro/new", true), Err(NativeError::Precondition(_))));
    fs::write(host.at("rw/file"), "").expect("write");
    let error = host.check("rw/file", true).expect_err("a file").to_string();
    assert!(error.contains("not a directory"), "{error}");
}

#[test]
fn a_link_that_leads_out_is_refused_and_one_that_stays_is_followed() {
    let host = Host::new();
    symlink(host.at("secret"), host.at("rw/absolute")).expect("link");
    symlink("../secret", host.at("rw/relative")).expect("link");
    symlink("/proc/self/root", host.at("rw/magic")).expect("link");
    symlink("a", host.at("rw/stays")).expect("link");
    for source in ["rw/absolute", "rw/relative", "rw/magic", "rw/relative/x", "rw/magic/etc"] {
        denied(host.check(source, true), &[source, "leads out of"]);
    }
    host.check("rw/stays", false).expect("inside");
    // A missing one is not made through a link either.
    let owner = Owner { uid: 0, gid: 0, mode: 0o755 };
    let wanted = host.mount("rw/relative/x", false);
    let place = Place::of(&host.allowed, &wanted).expect("by its name it is allowed");
    assert!(matches!(place.open_or_make(&owner), Err(NativeError::Denied(_))));
    assert!(!host.at("secret/x").exists());
}

#[test]
fn a_missing_source_is_made_for_the_owner_of_the_tenants_root() {
    let host = Host::new();
    let owner = Owner { uid: 12_345, gid: 23_456, mode: 0o2770 };
    let wanted = host.mount("rw/new/deep", false);
    let place = Place::of(&host.allowed, &wanted).expect("allowed");
    place.open_or_make(&owner).expect("made");
    place.open_or_make(&owner).expect("there");
    let made = fs::metadata(host.at("rw/new/deep")).expect("there");
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (12_345, 23_456, 0o2770));
    let between = fs::metadata(host.at("rw/new")).expect("there");
    assert_eq!((between.uid(), between.permissions().mode() & 0o777), (0, 0o755));
}

#[test]
fn a_mount_point_is_made_in_the_tenant_and_no_link_there_is_followed() {
    let host = Host::new();
    let root = open_directory(&host.at("tenant")).expect("open");
    mount_point(&root, Path::new("a/b/c")).expect("made");
    mount_point(&root, Path::new("a/b/c")).expect("there");
    assert!(host.at("tenant/a/b/c").is_dir());
    for (to, name) in [("a", "inside"), ("../secret", "outside")] {
        symlink(to, host.at("tenant").join(name)).expect("link");
        for path in [name.to_owned(), format!("{name}/x")] {
            let error = mount_point(&root, Path::new(&path)).expect_err("a link");
            assert_eq!(error, Errno::ELOOP, "{path}");
        }
    }
    assert!(!host.at("secret/x").exists() && !host.at("tenant/a/x").exists());
}
