use std::process::{Child, Command};

use super::*;

fn mounts(table: &str) -> Mounts {
    Mounts::parse(table.as_bytes())
}

#[test]
fn the_group_is_found_in_either_version_and_in_a_container() {
    let v1 = mounts(
        "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 c rw\n",
    );
    let none = |_: &Path| String::new();
    let found = find(v1.all(), "4:memory:/a/b\n0::/\n", none).expect("version 1");
    assert_eq!(found, Cgroups::below(Version::V1, "/sys/fs/cgroup/memory/a/b".into()));
    let joint = mounts("35 31 0:32 / /sys/fs/cgroup/cpu,memory rw - cgroup cgroup rw,cpu,memory\n");
    let found = find(joint.all(), "4:cpu,memory:/\n", none).expect("a joint hierarchy");
    assert_eq!(found, Cgroups::below(Version::V1, "/sys/fs/cgroup/cpu,memory".into()));
    let v2 = mounts("41 31 0:38 / /sys/fs/cgroup rw - cgroup2 c rw\n");
    let found = find(v2.all(), "0::/system.slice/x.service\n", |_| "cpu memory pids\n".to_owned())
        .expect("version 2");
    assert_eq!(found, Cgroups::below(Version::V2, "/sys/fs/cgroup/system.slice/x.service".into()));
    assert_eq!(find(v2.all(), "0::/\n", |_| "hugetlb\n".to_owned()), None);
    let part = mounts("41 31 0:38 /pods/x /sys/fs/cgroup rw - cgroup2 c rw\n");
    let found = find(part.all(), "0::/pods/x/y\n", |_| "memory".to_owned()).expect("in a container");
    assert_eq!(found, Cgroups::below(Version::V2, "/sys/fs/cgroup/y".into()));
    let moved = find(part.all(), "0::/pods/x/y/tarbox-keeper\n", |_| "memory".to_owned());
    assert_eq!(moved.as_ref(), Some(&found));
    assert_eq!(find(part.all(), "0::/elsewhere\n", |_| "memory".to_owned()), None);
}

/// A process that waits, in a group.
fn sleeper(group: &Cgroup) -> Child {
    let child = Command::new("sleep").arg("60").spawn().expect("sleep");
    fs::write(group.directory().join("cgroup.procs"), child.id().to_string()).expect("enter the group");
    child
}

fn here() -> Cgroups {
    Places::default().current(std::process::id()).expect("a memory controller")
}

fn name(what: &str) -> String {
    format!("tarbox-test-{what}-{}", std::process::id())
}

#[test]
fn a_group_is_made_limited_used_killed_and_removed() {
    let groups = here();
    let group = groups.make(&name("memory")).expect("make");
    groups.make(&name("memory")).expect("make it again");
    group.limit_memory(ByteSize::mib(64)).expect("limit");
    let mut child = sleeper(&group);
    assert_eq!(group.processes(), [child.id()]);
    assert_eq!(group.oom_kills(), 0);
    // Nobody reaps it: a group with a zombie is empty.
    group.remove(Duration::from_secs(10)).expect("remove");
    assert!(!group.directory().exists());
    group.remove(Duration::ZERO).expect("remove what is gone");
    assert!(!child.wait().expect("wait").success());
}

#[test]
fn a_stand_by_gets_the_other_group() {
    let groups = here();
    let tenant = name("tenant");
    let first = groups.vacant(&tenant).expect("make");
    assert_eq!(groups.vacant(&tenant).expect("still empty"), first);
    let mut serves = sleeper(&first);
    let second = groups.vacant(&tenant).expect("make another");
    assert_ne!(first, second);
    let mut stands_by = sleeper(&second);
    assert!(groups.both(&tenant).contains(&groups.vacant(&tenant).expect("none is empty")));
    for group in groups.both(&tenant) {
        group.remove(Duration::from_secs(10)).expect("remove");
    }
    for child in [&mut serves, &mut stands_by] {
        child.wait().expect("wait");
    }
}

#[test]
fn who_takes_more_than_the_limit_is_killed_and_counted() {
    let groups = here();
    let group = groups.make(&name("oom")).expect("make");
    group.limit_memory(ByteSize::mib(16)).expect("limit");
    let enter = format!(
        "echo $$ > {}/cgroup.procs && head -c 200M /dev/zero | tail > /dev/null",
        group.directory().display()
    );
    let status = Command::new("sh").args(["-c", &enter]).status().expect("sh");
    assert!(!status.success());
    match groups.version() {
        Version::V1 => assert_eq!(group.oom_kills(), 1),
        // Each process of the group is counted.
        Version::V2 => assert!(group.oom_kills() > 1, "the whole group is killed"),
    }
    group.remove(Duration::from_secs(10)).expect("remove");
}

/// The unified hierarchy as far as this machine has it: without the memory controller where version 1 holds it.
#[test]
fn a_group_of_version_2_is_killed_at_once_and_removed() {
    let mounts = Mounts::read().expect("mounts");
    let root = mounts
        .all()
        .iter()
        .rfind(|mount| mount.fs_type == "cgroup2")
        .expect("version 2 is mounted")
        .point
        .clone();
    let group = Cgroups::below(Version::V2, root).group(&name("v2"));
    fs::create_dir(group.directory()).expect("make");
    let mut children = [sleeper(&group), sleeper(&group)];
    assert_eq!(group.processes().len(), 2);
    group.remove(Duration::from_secs(10)).expect("remove");
    for child in &mut children {
        assert!(!child.wait().expect("wait").success());
    }
}

#[test]
fn version_2_hands_memory_down_after_moving_who_stands_in_the_way() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::write(directory.path().join("cgroup.subtree_control"), "cpu\n").expect("write");
    fs::write(directory.path().join("cgroup.procs"), "1\n2\n").expect("write");
    let groups = Cgroups::below(Version::V2, directory.path().to_owned());
    let group = groups.make("t").expect("make");
    assert_eq!(fs::read_to_string(directory.path().join("cgroup.subtree_control")).expect("read"), "+memory");
    assert_eq!(fs::read_to_string(directory.path().join(OWN).join("cgroup.procs")).expect("read"), "2");
    group.limit_memory(ByteSize::mib(1)).expect("limit");
    assert_eq!(fs::read_to_string(group.directory().join("memory.max")).expect("read"), "1048576");
    fs::write(group.directory().join("memory.events"), "low 0\noom 3\noom_kill 2\noom_group_kill 1\n")
        .expect("write");
    assert_eq!(group.oom_kills(), 2);
}

#[test]
fn groups_in_every_place_that_was_ever_used_are_found_and_without_a_process_there_is_an_error() {
    let places = Places::default();
    let first = places.current(std::process::id()).expect("a memory controller");
    let other = Cgroups::below(first.version(), first.group(&name("place")).directory().to_owned());
    places.0.lock().push(other.clone());
    let tenant = name("moved");
    let found = places.groups(std::process::id(), &tenant).expect("look");
    assert_eq!(found, [first.both(&tenant), other.both(&tenant)].concat());
    let mut ended = Command::new("true").spawn().expect("a process");
    let pid = ended.id();
    ended.wait().expect("it ends");
    assert!(places.groups(pid, &tenant).is_err(), "a process that is gone stands nowhere");
    assert!(places.current(pid).is_err());
}
