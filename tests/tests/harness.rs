//! The harness itself: it must see each kind of difference that it is meant to see.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::Path,
    process::Command,
    sync::atomic::Ordering::SeqCst,
    thread,
    time::Duration,
};

use tarbox_tests::{
    command, deadline, differ,
    scratch::Scratch,
    stamper::{Stamper, Told},
    tree,
};

type Change = fn(&Path);

fn sample(root: &Path) {
    fs::create_dir(root.join("dir")).expect("mkdir");
    fs::write(root.join("dir/file"), "content").expect("write");
    fs::write(root.join("twin"), "twin").expect("write");
    fs::hard_link(root.join("twin"), root.join("dir/twin")).expect("link");
    symlink("dir/file", root.join("link")).expect("symlink");
    set_time(&root.join("dir/file"), "2001-02-03 04:05:06.789");
}

fn set_time(path: &Path, time: &str) {
    command::succeed(Command::new("touch").args(["-d", time]).arg(path), Duration::from_secs(10))
        .expect("touch");
}

#[test]
fn trees_that_are_the_same_have_no_differences_and_each_change_is_found() {
    let changes: [(&str, Change); 10] = [
        ("nothing", |_| {}),
        ("content", |at| fs::write(at.join("twin"), "TWIN").expect("write")),
        ("mode", |at| fs::set_permissions(at.join("dir"), fs::Permissions::from_mode(0o711)).expect("chmod")),
        ("owner", |at| chown(at.join("dir/file"), Some(1), None).expect("chown")),
        ("time", |at| set_time(&at.join("dir/file"), "2001-02-03 04:05:06.788")),
        ("a name more", |at| fs::write(at.join("more"), "").expect("write")),
        ("a name less", |at| fs::remove_file(at.join("link")).expect("unlink")),
        ("xattr", |at| xattr::set(at.join("twin"), "user.x", b"y").expect("setxattr")),
        ("target", |at| {
            fs::remove_file(at.join("link")).expect("unlink");
            symlink("dir/twin", at.join("link")).expect("symlink");
        }),
        ("no longer linked", |at| {
            fs::remove_file(at.join("dir/twin")).expect("unlink");
            fs::write(at.join("dir/twin"), "twin").expect("write");
        }),
    ];
    for (what, change) in changes {
        let scratch = Scratch::on_disk().expect("scratch");
        let (left, right) = (scratch.sub("left").expect("left"), scratch.sub("right").expect("right"));
        sample(&left);
        sample(&right);
        change(&right);
        let found = tree::differences(&tree::read(&left).expect("left"), &tree::read(&right).expect("right"));
        assert_eq!(found.is_empty(), what == "nothing", "{what}: {found:?}");
    }
}

#[test]
fn a_random_sequence_meets_each_operation_with_success_and_with_failure() {
    let scratch = Scratch::on_ext4().expect("ext4");
    let steps = differ::generate(7, 20_000);
    let mut seen: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    for (step, outcome) in steps.iter().zip(differ::outcomes(&scratch.path().join("a"), &steps)) {
        let kind = format!("{:?}", step.op);
        let (good, bad) = seen.entry(kind.split(' ').next().unwrap_or_default().to_owned()).or_default();
        *(if outcome.starts_with("ok") { good } else { bad }) += 1;
    }
    println!("{seen:#?}");
    for (kind, (good, bad)) in &seen {
        assert!(*good > 0 && *bad > 0, "{kind}: {good} succeed, {bad} fail");
    }
    let good: u32 = seen.values().map(|(good, _)| good).sum();
    assert!(good > 7000, "only {good} of 20,000 steps succeed");
}

#[test]
fn a_sequence_that_differs_is_shortened_to_the_steps_that_matter() {
    let scratch = Scratch::on_ext4().expect("ext4");
    let tmpfs = Scratch::tmpfs(512).expect("tmpfs");
    let steps = differ::generate(7, 1500);
    // tmpfs shows no trusted attributes to setfsuid'ed users, counts links otherwise, …: something differs.
    let found =
        differ::compare(&scratch.path().join("a"), &tmpfs.path().join("a"), &steps).expect("a difference");
    let failing = &steps[..(found.at + 1).min(steps.len())];
    let (short, difference) =
        differ::shorten(&scratch.path().join("a"), &tmpfs.path().join("a"), failing, Duration::from_secs(30));
    assert!(
        difference.is_some() && short.len() <= 8,
        "{} of {} steps: {short:?}",
        short.len(),
        failing.len()
    );
}

#[test]
fn a_stamper_accepts_each_prefix_of_its_own_work_and_nothing_else() {
    let scratch = Scratch::on_disk().expect("scratch");
    let stamper = Stamper::new(&scratch.path().join("s")).expect("stamper");
    assert!(stamper.read().is_ok(), "nothing is a prefix");
    let told = Told::default();
    thread::scope(|scope| {
        let writer = scope.spawn(|| stamper.write(&told, 10));
        deadline::wait_for("60 rounds", Duration::from_secs(30), || {
            (told.done.load(SeqCst) >= 60).then_some(())
        })
        .expect("rounds");
        told.stop.store(true, SeqCst);
        writer.join().expect("writer").expect("no error");
    });
    let done = told.done.load(SeqCst);
    let found = stamper.read().expect("a prefix");
    assert_eq!((found.first, found.second, found.log, found.names), (done, done, done, done));
    let log = scratch.path().join("s/log");
    let bytes = fs::read(&log).expect("log");
    for (what, damaged) in [
        ("a lost record", [&bytes[..24], &bytes[48..]].concat()),
        ("a doubled record", [&bytes[..48], &bytes[24..]].concat()),
        ("a torn record", bytes[..bytes.len() - 3].to_vec()),
        ("a log that is behind", bytes[..bytes.len() - 48].to_vec()),
    ] {
        fs::write(&log, damaged).expect("write");
        assert!(stamper.read().is_err(), "{what} is accepted");
    }
    fs::write(&log, bytes).expect("write");
    fs::remove_file(scratch.path().join(format!("s/n{}", done - 2))).expect("unlink");
    assert!(stamper.read().is_err(), "a missing name is accepted");
}
