//! What a node gives its mounters, and what it does not: memory, rights, descriptors; and whom it gives a volume to.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use tarbox_tests::{
    deadline::wait_for,
    node::{Node, Published},
    process::kill_if_there,
};

const LIMIT: Duration = Duration::from_secs(60);

fn node_with(words: &[&str]) -> Node {
    let words = words.iter().map(|word| (*word).to_owned()).collect();
    Node::start_with(|_| words).expect("a node")
}

fn nothing_is_left(node: &Node) {
    wait_for("nothing left", LIMIT, || node.left_over().is_empty().then_some(()))
        .unwrap_or_else(|_| panic!("{:?}", node.left_over()));
}

// === Memory ===

#[test]
fn a_node_promises_no_more_memory_than_its_budget() {
    // A volume that says nothing takes 256Mi for the mounter, and as much each for its cache and its journal.
    let mut node = node_with(&["--memory-budget", "1Gi"]);
    let volumes = ["first", "second"].map(|name| {
        let id = node.tenant(name).expect("a tenant");
        Published::new(node.path(), &id, name)
    });
    let [first, second] = &volumes;
    node.call("stage", &first.words()).expect("there is room for one");
    let refused = |node: &Node| {
        let ended = node.csi("stage", &second.words()).expect("an answer");
        let is_right = ["ResourceExhausted", "needs 768Mi", "memoryBudget of 1Gi", "768Mi is promised"]
            .iter()
            .all(|word| ended.stderr.contains(word));
        assert!(is_right && ended.code != Some(0), "{}", ended.stderr);
    };
    refused(&node);
    node.call("stage", &first.words()).expect("what is staged may be asked for again");
    // What was promised is known to the next agent.
    node.kill_agent();
    node.start_agent().expect("start again");
    refused(&node);
    node.call("unstage", &first.words()).expect("unstage");
    node.call("stage", &second.words()).expect("there is room again");
    node.call("unstage", &second.words()).expect("unstage");
    nothing_is_left(&node);
}

#[test]
fn with_the_least_memory_there_is_a_mounter_starts_replays_and_is_never_short() {
    let node = node_with(&["--memory", "64Mi"]);
    let id = node.tenant("work").expect("a tenant");
    let volume = Published::new(node.path(), &id, "work");
    // What is written stays in the journal, so that each successor has as much to read as there can be.
    let context = ["cacheSize=1Mi", "journalSize=8Mi", "flushInterval=1h", "maxLag=1h"];
    let context = context.iter().flat_map(|pair| ["--context", pair]);
    let words: Vec<&str> = volume.words().into_iter().chain(context).collect();
    node.call("stage", &words).expect("stage");
    node.call("publish", &words).expect("publish");
    let limit = || node.ps().expect("ps")[0]["memory_limit_bytes"].as_u64().expect("a number");
    assert_eq!(limit(), 73 << 20, "64Mi, the cache and the journal");
    let small = |round: u8, number: u16| volume.target.join(format!("{round}-{number}"));
    let large = |round: u8| volume.target.join(format!("large-{round}"));
    for round in 0..4 {
        (0..1000).for_each(|number| fs::write(small(round, number), [round; 500]).expect("write"));
        fs::write(large(round), vec![round; 5 << 20]).expect("write");
        // Who stands by as well: the next one starts from nothing.
        for pid in node.mounters(&id) {
            kill_if_there(pid);
        }
        for earlier in 0..=round {
            assert_eq!(fs::read(small(earlier, 999)).expect("read"), [earlier; 500]);
            assert!(fs::read(large(earlier)).expect("read") == vec![earlier; 5 << 20]);
        }
    }
    let log = node.mounters_log(&id);
    let replayed =
        log.lines().filter_map(|line| line.split_once("replayed=")?.1.split(' ').next()?.parse::<u64>().ok());
    assert!(replayed.max().is_some_and(|most| most > 500), "{log}");
    // One that had run out of memory would have been given more.
    assert_eq!(limit(), 73 << 20);
    node.call("unpublish", &words).expect("unpublish");
    node.call("unstage", &words).expect("unstage");
    node.fsck("work").expect("fsck");
    nothing_is_left(&node);
}

// === Rights ===

/// The lines of /proc/PID/status.
fn status(pid: u32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .map(|(name, value)| (name.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect()
}

fn links(directory: PathBuf) -> BTreeMap<String, String> {
    let entries = fs::read_dir(directory).expect("list").flatten();
    entries
        .map(|entry| {
            let to =
                fs::read_link(entry.path()).map_or(String::new(), |to| to.to_string_lossy().into_owned());
            (entry.file_name().to_string_lossy().into_owned(), to)
        })
        .collect()
}

fn limits(pid: u32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
    let columns = text.lines().skip(1).map(|line| line.split_at(26));
    columns
        .map(|(name, rest)| {
            let soft_and_hard: Vec<_> = rest.split_whitespace().take(2).collect();
            (name.trim().to_owned(), soft_and_hard.join(" "))
        })
        .collect()
}

fn own_tree(path: &Path, user: u32) {
    chown(path, Some(user), Some(user)).expect("chown");
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().expect("type").is_dir() {
            own_tree(&entry.path(), user);
        } else {
            chown(entry.path(), Some(user), Some(user)).expect("chown");
        }
    }
}

/// All that is promised of a mounter's process; `user` is who it runs as.
fn assert_confined(node: &Node, volume: &Published, user: u32) {
    fs::write(volume.target.join("f"), vec![1; 1 << 20]).expect("it works");
    let pid = node.mounter_pid(&volume.id).expect("a mounter");
    let is = status(pid);
    assert_eq!(is["Uid"], [user; 4].map(|uid| uid.to_string()).join(" "));
    assert_eq!(is["Gid"], is["Uid"]);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&is[set], 16).expect("hexadecimal"), 0, "{set}");
    }
    assert_eq!((is["NoNewPrivs"].as_str(), is["Seccomp"].as_str()), ("1", "2"));
    // Every thread: a filter counts for the one that took it and for those that it starts.
    for thread in fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten() {
        let text = fs::read_to_string(thread.path().join("status")).expect("status");
        assert!(text.contains("Seccomp:\t2") && text.contains("CapEff:\t0000000000000000"), "{text}");
    }
    // A pod's network would go with the pod: all is the host's.
    for space in ["net", "pid", "mnt", "ipc", "uts", "user"] {
        let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{space}")).expect("a namespace");
        assert_eq!(of(pid), of(std::process::id()), "{space}");
    }
    let may = limits(pid);
    assert_eq!(may["Max core file size"], "0 0");
    assert_eq!(may["Max open files"], "4096 4096");
    let locked: Vec<&str> = may["Max locked memory"].split(' ').collect();
    assert!(locked[0] == locked[1] && locked[0].parse::<u64>().expect("bounded") <= 256 << 20, "{locked:?}");
    let adj = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("oom_score_adj");
    let spares = fs::read_to_string("/proc/self/status").expect("status");
    let spares = spares.lines().find_map(|line| line.strip_prefix("CapEff:\t")).expect("capabilities");
    let may_spare = u64::from_str_radix(spares, 16).expect("hexadecimal") & 1 << 24 != 0;
    assert!(!may_spare || adj.trim() == "-500", "{adj}");
    assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).expect("cwd"), Path::new("/"));
    // No secret, no path of the agent's, nothing of its environment.
    let environment = fs::read(format!("/proc/{pid}/environ")).expect("environ");
    let environment = String::from_utf8_lossy(&environment);
    let known = ["SSL_CERT_FILE=", "SSL_CERT_DIR=", "TZ=", "RUST_BACKTRACE=", "MALLOC_ARENA_MAX=2"];
    let alien: Vec<_> = environment
        .split('\0')
        .filter(|pair| !pair.is_empty() && !known.iter().any(|known| pair.starts_with(known)))
        .collect();
    assert!(alien.is_empty(), "{alien:?}");
    assert_descriptors(node, volume, pid);
}

/// Every descriptor is one that the mounter needs.
fn assert_descriptors(node: &Node, volume: &Published, pid: u32) {
    let open = links(format!("/proc/{pid}/fd").into());
    let log = node.state_dir().join("logs").join(format!("{}.log", volume.id)).display().to_string();
    let own = node.path().join("run/mounters").join(&volume.id).display().to_string();
    let database = node.path().join("db").display().to_string();
    assert_eq!(open["0"], "/dev/null");
    assert_eq!((open["1"].as_str(), open["2"].as_str()), (log.as_str(), log.as_str()));
    assert!(open["3"].starts_with("socket:"), "{open:?}");
    let kinds =
        ["/dev/fuse", "/memfd:tarbox-", "socket:", "pipe:", "anon_inode:[eventpoll]", "anon_inode:[eventfd]"];
    let alien: Vec<_> = open
        .iter()
        .filter(|(number, _)| number.parse::<u32>().expect("number") > 3)
        .filter(|(_, to)| !kinds.iter().any(|kind| to.starts_with(kind)))
        .filter(|(_, to)| !to.starts_with(&own) && !to.starts_with(&database))
        .collect();
    assert!(alien.is_empty(), "{alien:?}");
    assert!(
        open.values().any(|to| to == "/dev/fuse") && open.values().any(|to| to.starts_with("/memfd:tarbox-"))
    );
    // A descriptor within the volume would keep it from being unmounted, and hang with it.
    for place in [&volume.staging, &volume.target] {
        assert!(open.values().all(|to| !to.starts_with(&place.display().to_string())), "{open:?}");
    }
}

#[test]
fn a_mounter_has_no_rights_and_no_descriptors_but_those_it_serves_with() {
    let node = node_with(&[]);
    let id = node.tenant("work").expect("a tenant");
    let user = 1_234_567;
    own_tree(&node.path().join("db"), user);
    let volume = node.publish(&id, "work").expect("published");
    assert_confined(&node, &volume, user);
    // Its successor no less.
    let pid = node.mounter_pid(&id).expect("a mounter");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGKILL)
        .expect("kill -9");
    wait_for("another mounter", LIMIT, || node.mounter_pid(&id).ok().filter(|next| *next != pid))
        .expect("restarted");
    assert_confined(&node, &volume, user);
    node.call("unpublish", &volume.words()).expect("unpublish");
    node.call("unstage", &volume.words()).expect("unstage");
    nothing_is_left(&node);
}

#[test]
fn where_the_database_is_roots_the_mounter_is_a_root_without_rights() {
    let node = node_with(&[]);
    let id = node.tenant("work").expect("a tenant");
    let volume = node.publish(&id, "work").expect("published");
    assert_confined(&node, &volume, 0);
}

// === Groups ===

#[test]
fn a_volume_is_given_to_its_group_and_what_is_made_in_it_is_the_groups() {
    let node = node_with(&[]);
    let id = node.tenant("work").expect("a tenant");
    let volume = node.publish(&id, "work").expect("published");
    fs::create_dir(volume.target.join("d")).expect("mkdir");
    fs::write(volume.target.join("d/f"), "x").expect("write");
    let outside = node.path().join("outside");
    fs::write(&outside, "").expect("write");
    symlink(&outside, volume.target.join("link")).expect("link");
    node.call("unpublish", &volume.words()).expect("unpublish");
    let words: Vec<&str> = volume.words().into_iter().chain(["--group", "4321"]).collect();
    node.call("publish", &words).expect("publish for a group");
    let seen = |path: &Path| {
        let found = fs::symlink_metadata(path).expect("there");
        (found.gid(), found.permissions().mode() & 0o2070)
    };
    assert_eq!(seen(&volume.target), (4321, 0o2070));
    assert_eq!(seen(&volume.target.join("d")), (4321, 0o2070));
    assert_eq!(seen(&volume.target.join("d/f")), (4321, 0o060));
    assert_eq!(fs::metadata(&outside).expect("there").gid(), 0, "no link is followed");
    fs::write(volume.target.join("d/new"), "x").expect("write");
    assert_eq!(seen(&volume.target.join("d/new")).0, 4321);
}

// === Many ===

/// What a process holds for itself and its share of what it shares, bytes.
fn proportional_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or("0 kB");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[test]
#[ignore = "minutes long: make crowd"]
fn a_hundred_tenants_are_staged_at_once_take_little_and_leave_nothing() {
    const TENANTS: usize = 100;
    let node = node_with(&[]);
    let volumes: Vec<Published> = (0..TENANTS)
        .map(|number| {
            let name = format!("tenant-{number}");
            let id = node.tenant(&name).expect("a tenant");
            Published::new(node.path(), &id, &name)
        })
        .collect();
    let all = |call: &'static str| {
        let mut times: Vec<Duration> = thread::scope(|scope| {
            let node = &node;
            let calls: Vec<_> = volumes
                .iter()
                .map(|volume| {
                    scope.spawn(move || {
                        let began = Instant::now();
                        node.call(call, &volume.words()).unwrap_or_else(|error| panic!("{call}: {error:#}"));
                        began.elapsed()
                    })
                })
                .collect();
            calls.into_iter().map(|call| call.join().expect("a call")).collect()
        });
        times.sort_unstable();
        println!("{call}: p50 {:?}, p99 {:?}", times[TENANTS / 2], times[TENANTS * 99 / 100]);
    };
    all("stage");
    all("publish");
    let pids: Vec<u32> =
        volumes.iter().map(|volume| node.mounter_pid(&volume.id).expect("a mounter")).collect();
    let bytes: u64 = node.all_mounters().into_iter().map(proportional_bytes).sum();
    println!("{} mounters, {} with stand-bys: {} MiB", pids.len(), node.all_mounters().len(), bytes >> 20);
    assert!(bytes < 2560 << 20, "{} MiB", bytes >> 20);
    for (number, volume) in volumes.iter().enumerate() {
        fs::write(volume.target.join("f"), number.to_string()).expect("write");
    }
    all("unpublish");
    all("unstage");
    nothing_is_left(&node);
}
