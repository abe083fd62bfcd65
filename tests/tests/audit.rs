//! The audit: what programs did is in it, once, with who and where, also when the mounter is killed again and again.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use serde_json::Value;
use tarbox_tests::{
    command::{Ended, end_of, shell},
    deadline::wait_for,
    node::Node,
    on_each_database,
    rng::{Rng, seed},
    supervised::Supervised,
    volume::{Database, Volume},
};

const LIMIT: Duration = Duration::from_secs(60);

/// Events, one JSON object a line.
fn events(ended: anyhow::Result<Ended>) -> Vec<Value> {
    let ended = ended.expect("tarbox audit");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

fn audit(volume: &Volume, more: &[&str]) -> Vec<Value> {
    events(volume.tarbox(&[&["audit", "test", "-o", "json"], more].concat()))
}

fn text<'v>(event: &'v Value, key: &str) -> &'v str {
    event[key].as_str().unwrap_or_default()
}

/// Operation and path of each.
fn shown(events: &[Value]) -> Vec<String> {
    events.iter().map(|event| format!("{} {}", text(event, "operation"), text(event, "path"))).collect()
}

fn kills(usual: u64) -> u64 {
    std::env::var("TESTS_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// How often each thing was done.
type Done = BTreeMap<String, u64>;

/// Does one thing after the other in a directory of its own, until it is told to stop; returns what it did.
fn work(root: &Path, number: u64, mut rng: Rng, stop: &AtomicBool) -> Done {
    let mut done = Done::new();
    let mut note = |what: String| *done.entry(what).or_default() += 1;
    let (dir, seen) = (root.join(format!("w{number}")), format!("/w{number}"));
    fs::create_dir(&dir).expect("mkdir");
    note(format!("mkdir {seen} 0 0"));
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (path, shown) = (dir.join(format!("f{n}")), format!("{seen}/f{n}"));
        let file = File::options().read(true).write(true).create_new(true).open(&path).expect("create");
        note(format!("create {shown} 0 0"));
        for _ in 0..1 + rng.below(3) {
            let (offset, len) = (rng.below(100_000), 1 + rng.below(9000));
            assert_eq!(file.write_at(&vec![1; len as usize], offset).expect("write"), len as usize);
            note(format!("write {shown} {offset} {len}"));
        }
        let length = file.metadata().expect("stat").len();
        drop(file);
        let file = File::open(&path).expect("open");
        note(format!("open {shown} 0 0"));
        for _ in 0..1 + rng.below(3) {
            let offset = rng.below(length + 5000);
            let read = file.read_at(&mut [0; 5000], offset).expect("read");
            assert_eq!(read as u64, length.saturating_sub(offset).min(5000));
            note(format!("read {shown} {offset} {read}"));
        }
        drop(file);
        if rng.one_in(2) {
            fs::rename(&path, dir.join(format!("r{n}"))).expect("rename");
            note(format!("rename {shown} 0 0"));
        } else {
            fs::remove_file(&path).expect("unlink");
            note(format!("unlink {shown} 0 0"));
        }
    }
    done
}

on_each_database! {
    fn under_full_every_operation_is_audited_exactly_once_across_kills(on) {
        let seed = seed();
        println!("TESTS_SEED={seed}");
        let mut rng = Rng::new(seed);
        let mut supervised = Supervised::start(on, &["--audit-level", "full", "--flush-interval", "100ms"]);
        let root = supervised.path().to_owned();
        let stop = AtomicBool::new(false);
        let (mut done, count, mut recovered) = (Done::new(), kills(20), 0);
        thread::scope(|scope| {
            let workers: Vec<_> = (0..3)
                .map(|n| {
                    let (rng, root, stop) = (Rng::new(rng.next_u64()), &root, &stop);
                    scope.spawn(move || work(root, n, rng, stop))
                })
                .collect();
            // Should this panic, those who wait for an answer are freed by it.
            let disturbed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for n in 0..count {
                    // A random moment is what is wanted here.
                    thread::sleep(Duration::from_millis(1 + rng.below(200)));
                    let serving = if n % 3 == 2 {
                        supervised.upgrade().expect("replaced")
                    } else {
                        supervised.kill();
                        supervised.serve().expect("serve again")
                    };
                    recovered += serving.recovered;
                }
            }));
            stop.store(true, Ordering::Relaxed);
            if let Err(panic) = disturbed {
                let force = nix::mount::MntFlags::MNT_FORCE | nix::mount::MntFlags::MNT_DETACH;
                let _ = nix::mount::umount2(&root, force);
                std::panic::resume_unwind(panic);
            }
            for worker in workers {
                for (what, times) in worker.join().expect("no call fails") {
                    *done.entry(what).or_default() += times;
                }
            }
        });
        supervised.unmount().expect("unmount");
        let tenants = supervised.tarbox(&["tenant", "list", "-o", "json"]).expect("list");
        let tenants: Value = serde_json::from_str(&tenants.stdout).expect("JSON");
        let name = text(&tenants[0], "name").to_owned();
        let all = events(supervised.tarbox(&["audit", &name, "-o", "json"]));
        let mut audited = Done::new();
        for event in all.iter().filter(|event| text(event, "path").starts_with("/w")) {
            let place = format!("{} {}", event["offset"], event["bytes"]);
            *audited.entry(format!("{} {} {place}", text(event, "operation"), text(event, "path"))).or_default() += 1;
            assert_eq!((event["pid"].as_u64(), text(event, "result")), (Some(std::process::id().into()), "ok"));
        }
        println!("{} operations, {count} kills and upgrades, {recovered} requests recovered", done.values().sum::<u64>());
        let missing: Vec<_> = done.iter().filter(|(what, times)| audited.get(*what) != Some(times)).collect();
        let surplus: Vec<_> = audited.iter().filter(|(what, times)| done.get(*what) != Some(times)).collect();
        assert!(missing.is_empty() && surplus.is_empty(), "missing: {missing:#?}\nsurplus: {surplus:#?}");
        assert!(recovered > 0, "no kill hit a request");
        let mounts = all.iter().filter(|event| ["mount", "takeover", "unmount"].contains(&text(event, "operation")));
        assert_eq!(mounts.count() as u64, count + 2, "a mount, a take-over each, an unmount");
        supervised.fsck();
    }

    fn changes_are_audited_by_themselves_and_content_summed_up(on) {
        let mut volume = Volume::with(on, &["--quota-bytes", "8Mi"]);
        let script = "mkdir a; cd a; echo one > f; echo two >> f; mv f g; chmod 600 g; chown 7:8 g; ln -s g l; rm l
            ! head -c 20000000 /dev/zero > big";
        shell::<&str>(volume.path(), script, &[], LIMIT).expect("a shell");
        let all = audit(&volume, &[]);
        let changes: Vec<String> = shown(&all).into_iter().filter(|line| !line.starts_with("write")).collect();
        assert_eq!(changes[..9], [
            "mount /", "mkdir /a", "create /a/f", "rename /a/f", "chmod /a/g", "chown /a/g", "symlink /a/l",
            "unlink /a/l", "create /a/big",
        ]);
        let by = |line: &str| text(&all[shown(&all).iter().position(|l| l == line).expect(line)], "process").to_owned();
        // The shell itself makes what it redirects to.
        let shell = by("create /a/f");
        assert!(shell == "sh" || shell == "bash", "{shell}");
        assert_eq!(["mkdir /a", "rename /a/f", "chmod /a/g", "chown /a/g", "unlink /a/l"].map(by), ["mkdir", "mv", "chmod", "chown", "rm"]);
        let writes: u64 = all.iter().filter(|event| text(event, "path") == "/a/f").filter_map(|event| event["bytes"].as_u64()).sum();
        assert_eq!(writes, 8, "{all:#?}");
        let big = |event: &&Value| text(event, "operation") == "write" && text(event, "path") == "/a/big" && text(event, "result") == "ok";
        let big: Vec<&Value> = all.iter().filter(big).collect();
        assert_eq!(big.iter().filter_map(|event| event["bytes"].as_u64()).sum::<u64>(), fs::metadata(volume.at("a/big")).expect("stat").len());
        assert!(big.len() < 20, "{} events for one file", big.len());
        let refused = audit(&volume, &["--result", "ENOSPC"]);
        assert!(!refused.is_empty() && refused.iter().all(|event| text(event, "path") == "/a/big" && text(event, "process") == "head"), "{refused:#?}");

        // Filters.
        assert_eq!(shown(&audit(&volume, &["--op", "rename,unlink"])), ["rename /a/f", "unlink /a/l"]);
        assert_eq!(shown(&audit(&volume, &["--path", "/a/l"])), ["symlink /a/l", "unlink /a/l"]);
        assert_eq!(shown(&audit(&volume, &["--process", "mv"])), ["rename /a/f"]);
        assert_eq!(audit(&volume, &["--uid", "7"]), Vec::<Value>::new());
        assert_eq!(shown(&audit(&volume, &["--op", "mkdir,chmod,symlink", "--limit", "2"])), ["chmod /a/g", "symlink /a/l"]);
        assert_eq!(audit(&volume, &["--until", "1h"]), Vec::<Value>::new());
        assert_eq!(audit(&volume, &["--since", "1h"]).len(), audit(&volume, &[]).len());
        let rename = &audit(&volume, &["--op", "rename"])[0];
        assert_eq!((text(rename, "to"), text(rename, "tenant")), ("/a/g", "test"));
        assert!(rename["ino"].as_u64() > Some(1) && !text(rename, "node").is_empty() && text(rename, "time").ends_with('Z'));
        let people = volume.tarbox(&["audit", "test", "--op", "rename"]).expect("audit").stdout;
        assert!(people.contains("rename       /a/f -> /a/g  mv["), "{people}");
        for (words, said) in [(&["--op", "move"][..], "create, mkdir"), (&["--since", "soon"], "30m")] {
            let refused = volume.tarbox(&[&["audit", "test"], words].concat()).expect("audit");
            assert!(refused.code == Some(64) && refused.stderr.contains(said), "{refused:?}");
        }
        volume.stop();
        assert_eq!(shown(&audit(&volume, &["--limit", "1"])), ["unmount /"]);
        volume.fsck();
    }
}

#[test]
fn each_level_audits_what_it_says() {
    let script = "echo text > f; cat f; mv f g; cat g; rm g";
    let mut counts = Vec::new();
    for level in ["off", "basic", "standard", "full"] {
        let volume = Volume::with(Database::Sqlite, &["--audit-level", level]);
        shell::<&str>(volume.path(), script, &[], LIMIT).expect("a shell");
        let all = shown(&audit(&volume, &[]));
        let of = |operation: &str| all.iter().filter(|line| line.starts_with(operation)).count();
        counts.push((
            of("create "),
            of("rename "),
            of("unlink "),
            of("write "),
            of("open "),
            of("read ") > 0,
        ));
    }
    assert_eq!(
        counts,
        [
            (0, 0, 0, 0, 0, false),
            (1, 1, 1, 0, 0, false),
            (1, 1, 1, 1, 0, false),
            // The file that is made is open; it is opened again by each `cat`.
            (1, 1, 1, 1, 2, true),
        ]
    );
}

/// Every read comes here, and is right: through descriptors, mapped memory and execution.
#[test]
fn under_full_files_are_mapped_and_executed_as_ever() {
    let mut volume = Volume::with(Database::Sqlite, &["--audit-level", "full"]);
    let script = "cp /bin/echo . && ./echo executed && head -c 300000 /dev/urandom > f && cp f g && cmp f g
        sqlite3 db 'PRAGMA journal_mode=WAL; CREATE TABLE t(n); INSERT INTO t VALUES(1),(2);' >/dev/null
        sqlite3 db 'INSERT INTO t SELECT n + 2 FROM t; SELECT sum(n) FROM t; PRAGMA integrity_check;'
        git init -q . && git add f g && git -c user.name=a -c user.email=a@b commit -qm one && git fsck --strict";
    let said = shell::<&str>(volume.path(), script, &[], LIMIT).expect("a shell");
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["executed", "10", "ok"], "{said}");
    let executed = audit(&volume, &["--path", "/echo", "--op", "open,read"]);
    assert!(executed.len() > 1, "{executed:#?}");
    assert!(fs::read_to_string(volume.at(".tarbox/stats/usage")).expect("a document").contains("used_bytes"));
    volume.remount();
    shell::<&str>(volume.path(), "cmp f g && git fsck --strict", &[], LIMIT).expect("the same");
    volume.stop();
    volume.fsck();
}

#[test]
fn the_last_events_are_read_in_the_control_directory_before_they_are_committed() {
    let volume = Volume::with(Database::Sqlite, &["--flush-interval", "1h"]);
    fs::create_dir(volume.at("new")).expect("mkdir");
    fs::write(volume.at("new/f"), "text").expect("write");
    let recent = || -> Vec<Value> {
        let text = fs::read_to_string(volume.at(".tarbox/audit/recent")).expect("a document");
        serde_json::from_str(&text).expect("a list")
    };
    let before = recent();
    assert_eq!(shown(&before)[1..], ["mkdir /new", "create /new/f", "write /new/f"]);
    assert_eq!((text(&before[1], "tenant"), &before[1]["pid"]), ("test", &Value::from(std::process::id())));
    fs::write(volume.at(".tarbox/control/flush"), "now").expect("flush");
    fs::remove_file(volume.at("new/f")).expect("unlink");
    let after = recent();
    assert_eq!(after[..4], before[..], "committed or not, they are the same");
    assert_eq!(shown(&after)[4..], ["unlink /new/f"]);
}

#[test]
fn following_shows_what_comes() {
    let volume = Volume::with(Database::Sqlite, &["--flush-interval", "20ms"]);
    let out = volume.scratch().path().join("followed");
    let mut command = Command::new(tarbox_tests::product::program("tarbox"));
    command.args(["audit", "test", "--follow", "--op", "mkdir", "-o", "json"]);
    command.env("TARBOX_DATABASE_URL", url(&volume));
    command.env("TARBOX_STATE_DIR", volume.scratch().path().join("state"));
    let mut follower = command.stdout(File::create(&out).expect("a file")).spawn().expect("tarbox audit");
    let followed = || fs::read_to_string(&out).unwrap_or_default().lines().count();
    for n in 1..=3 {
        fs::create_dir(volume.at(&format!("d{n}"))).expect("mkdir");
        let seen = wait_for("the event", LIMIT, || (followed() == n).then_some(()));
        if seen.is_err() {
            let _ = follower.kill();
        }
        seen.expect("it is shown");
    }
    follower.kill().expect("kill");
    follower.wait().expect("reap");
}

fn url(volume: &Volume) -> String {
    format!("sqlite://{}", volume.sqlite_dir().display())
}

/// Events of a process in a pod's control group name the pod that the kubelet has told of.
#[test]
fn a_pod_is_named_by_what_the_kubelet_said_of_it() {
    let node = Node::start().expect("a node");
    let id = node.tenant("work").expect("a tenant");
    let uid = "3f2b8c1e-0d4a-4b6f-9a57-1c2d3e4f5a6b";
    let published = tarbox_tests::node::Published::new(node.path(), &id, "work");
    node.call("stage", &published.words()).expect("stage");
    let context = [
        format!("csi.storage.k8s.io/pod.uid={uid}"),
        "csi.storage.k8s.io/pod.namespace=team".to_owned(),
        "csi.storage.k8s.io/pod.name=agent-0".to_owned(),
    ];
    let mut words = published.words();
    for pair in &context {
        words.extend(["--context", pair]);
    }
    for _ in 0..2 {
        node.call("publish", &words).expect("publish");
    }
    let group = PodGroup::new(uid);
    let script =
        format!("echo $$ > {}/cgroup.procs && mkdir {}/of-the-pod", group.0, published.target.display());
    let mut in_pod = Command::new("sh");
    let ended = end_of(in_pod.args(["-c", &script]), LIMIT).expect("a shell");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    fs::create_dir(published.target.join("of-nobody")).expect("mkdir");
    node.call("unpublish", &published.words()).expect("unpublish");
    let all = node.tarbox(&["audit", "work", "-o", "json", "--op", "mkdir"]).expect("audit");
    let all: Vec<Value> = all.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(shown(&all), ["mkdir /of-the-pod", "mkdir /of-nobody"]);
    assert_eq!(all[0]["pod"], serde_json::json!({ "namespace": "team", "name": "agent-0", "uid": uid }));
    assert!(all[1].get("pod").is_none(), "{}", all[1]);
    for pod in ["agent-0", "team/agent-0", uid] {
        let of_pod = node.tarbox(&["audit", "work", "-o", "json", "--pod", pod]).expect("audit");
        assert_eq!(of_pod.lines().count(), 1, "{pod}: {of_pod}");
    }
    node.call("unstage", &published.words()).expect("unstage");
    wait_for("nothing left", LIMIT, || node.left_over().is_empty().then_some(())).expect("nothing is left");
}

/// A control group as the kubelet makes one for a pod. Removed when dropped.
struct PodGroup(String);

impl PodGroup {
    fn new(uid: &str) -> Self {
        let hierarchy = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"];
        let hierarchy = hierarchy.into_iter().find(|at| Path::new(at).join("cgroup.procs").exists());
        let at =
            format!("{}/tarbox-test-{}-pod{uid}", hierarchy.expect("control groups"), std::process::id());
        fs::create_dir(&at).expect("a control group");
        Self(at)
    }
}

impl Drop for PodGroup {
    fn drop(&mut self) {
        // Who has ended is in it until it is reaped.
        let _ = wait_for("the group to be empty", LIMIT, || match fs::remove_dir(&self.0) {
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => None,
            _ => Some(()),
        });
    }
}

/// Names are made, changed and removed by one client; seconds until that is done, and until it is committed as well.
fn names(volume: &Volume, round: u64) -> (f64, f64) {
    const NAMES: u64 = 2500;
    let dir = volume.at(&format!("r{round}"));
    let path = |kind: &str, n: u64| dir.join(format!("{kind}{n}"));
    let begun = Instant::now();
    fs::create_dir(&dir).expect("mkdir");
    for n in 0..NAMES {
        File::create(path("f", n)).expect("create");
    }
    for n in 0..NAMES {
        fs::set_permissions(path("f", n), fs::Permissions::from_mode(0o600)).expect("chmod");
        fs::rename(path("f", n), path("g", n)).expect("rename");
    }
    for n in 0..NAMES {
        fs::remove_file(path("g", n)).expect("unlink");
    }
    let done = begun.elapsed().as_secs_f64();
    fs::write(volume.at(".tarbox/control/flush"), "now").expect("flush");
    (done, begun.elapsed().as_secs_f64())
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// What a level costs of the metadata rate, as a ratio to `off` of the same round; levels take turns. Printed, not judged.
fn cost(on: Database) {
    const LEVELS: [&str; 4] = ["off", "basic", "standard", "full"];
    let rounds = std::env::var("TESTS_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(15);
    let volumes = LEVELS.map(|level| Volume::with(on, &["--audit-level", level]));
    let mut figures: Vec<[(f64, f64); 4]> = Vec::new();
    for round in 0..rounds + 1 {
        let mut row = [(0.0, 0.0); 4];
        for turn in 0..LEVELS.len() {
            let at = (turn + round as usize) % LEVELS.len();
            row[at] = names(&volumes[at], round);
        }
        // The first one warms up.
        if round > 0 {
            figures.push(row);
        }
    }
    for (at, level) in LEVELS.iter().enumerate() {
        let of = |pick: fn(&(f64, f64)) -> f64| {
            let ratios: Vec<f64> = figures.iter().map(|row| pick(&row[0]) / pick(&row[at])).collect();
            let (least, most) = ratios.iter().fold((f64::MAX, 0.0_f64), |(l, m), r| (l.min(*r), m.max(*r)));
            format!("{:.3} ({least:.3}..{most:.3})", median(ratios))
        };
        let rate = 10_000.0 / median(figures.iter().map(|row| row[at].0).collect());
        println!(
            "{on:?} {level:8} {rate:8.0} changes/s, rate against off {}, with commits {}",
            of(|f| f.0),
            of(|f| f.1)
        );
    }
}

#[test]
#[ignore = "measures, and judges nothing: make audit-cost"]
fn what_each_level_costs() {
    cost(Database::Sqlite);
    cost(Database::Postgres);
}
