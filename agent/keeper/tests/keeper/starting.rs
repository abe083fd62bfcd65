//! Processes are started exactly as ordered, and their ends are told.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use procfs::process::Process;
use tarbox_handover::message::{FromMounter, Hello, Stop, ToMounter};
use tarbox_handover::process::wait_exit;
use tarbox_handover::{
    Client, HandoverError, Limit, MounterLink, Received, SpawnSpec, Spawned, sealed_executable,
};

use crate::place::{LIMIT, Place, file, shell, text, wait_for};

fn wait(client: &mut Client, spawned: &Spawned) -> (Option<i32>, Option<i32>) {
    let exited = client.wait(spawned.id, LIMIT).expect("wait");
    (exited.code, exited.signal)
}

#[test]
fn a_child_has_exactly_what_it_was_given() {
    let place = Place::new();
    let mut client = place.client();
    let (spec, program, log) = shell("ls -l /proc/$$/fd >&2; echo \"args $0 $1\"; env; exec sleep 1000");
    let mut spec = SpawnSpec {
        uid: Some(65534),
        gid: Some(65533),
        groups: vec![4242],
        limits: vec![Limit { resource: 7, soft: 100, hard: 200 }, Limit { resource: 8, soft: 0, hard: 0 }],
        oom_score_adj: Some(321),
        nice: Some(7),
        new_session: true,
        ..spec
    };
    spec.argv.extend([b"zero".to_vec(), b"one".to_vec()]);
    let spawned = client.spawn("k", "serve", &spec, &[program.as_fd(), log.as_fd()]).expect("spawn");
    let said = wait_for("its output", || Some(text(&log)).filter(|text| text.contains("PATH=")));
    assert!(said.contains("args zero one"), "{said}");
    // The shell itself adds PWD and the like; what the keeper has is not there.
    assert!(!said.contains("CARGO") && !said.contains("HOME="), "{said}");
    let process = Process::new(spawned.id.pid.cast_signed()).expect("alive");
    // A shell that is about to start something has other masks and descriptors for a moment.
    wait_for("the shell to become what it ends with", || {
        (process.stat().ok()?.comm == "sleep").then_some(())
    });
    let mut descriptors: Vec<_> =
        process.fd().unwrap().map(|fd| fd.unwrap()).map(|fd| (fd.fd, format!("{:?}", fd.target))).collect();
    descriptors.sort();
    let numbers: Vec<_> = descriptors.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [0, 1, 2, 3], "{descriptors:?}");
    assert!(descriptors[0].1.contains("/dev/null") && descriptors[3].1.contains("Socket"), "{descriptors:?}");
    let status = process.status().unwrap();
    assert_eq!((status.ruid, status.euid, status.suid, status.fuid), (65534, 65534, 65534, 65534));
    assert_eq!((status.rgid, status.egid, status.groups.as_slice()), (65533, 65533, &[4242][..]));
    assert_eq!(
        (status.capprm, status.capeff, status.capinh, status.capbnd, status.capamb),
        (0, 0, 0, Some(0), Some(0))
    );
    assert_eq!((status.nonewprivs, status.sigblk), (Some(1), 0));
    assert_eq!(process.cwd().unwrap(), std::path::Path::new("/"));
    let stat = process.stat().unwrap();
    assert_eq!((stat.nice, stat.session, stat.ppid), (7, stat.pid, place.keeper.id().cast_signed()));
    assert_eq!(fs::read_to_string(format!("/proc/{}/oom_score_adj", stat.pid)).unwrap().trim(), "321");
    let limits = fs::read_to_string(format!("/proc/{}/limits", stat.pid)).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).expect("a limit");
        line[name.len()..].split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        (limit("Max open files"), limit("Max locked memory")),
        (vec!["100".into(), "200".into()], vec!["0".into(), "0".into()])
    );
    // It dies with nobody: no signal when its parent does.
    assert_eq!(spawned.id.start_time, stat.starttime);
}

#[test]
fn a_root_without_capabilities_has_none_after_exec_either() {
    let place = Place::new();
    let mut client = place.client();
    let (spec, program, log) = shell("grep -h Cap /proc/self/status; id -u; exec sleep 1000");
    let spec = SpawnSpec { without_capabilities: true, ..spec };
    client.spawn("k", "serve", &spec, &[program.as_fd(), log.as_fd()]).expect("spawn");
    let said = wait_for("its output", || Some(text(&log)).filter(|text| text.ends_with("0\n0\n")));
    let sets: Vec<_> = said.lines().filter(|line| line.starts_with("Cap")).collect();
    assert_eq!(sets.len(), 5, "{said}");
    assert!(sets.iter().all(|set| set.ends_with("\t0000000000000000")), "{said}");
}

#[test]
fn a_child_enters_its_cgroup() {
    let Some(parent) = cgroup_parent() else { panic!("no cgroup hierarchy can be written on this machine") };
    let group = parent.join(format!("tarbox-keeper-test-{}", std::process::id()));
    fs::create_dir(&group).expect("a cgroup");
    let place = Place::new();
    let mut client = place.client();
    let (mut spec, program, log) = shell("exec sleep 1000");
    spec.cgroups = vec![group.to_str().unwrap().to_owned()];
    let spawned = client.spawn("k", "serve", &spec, &[program.as_fd(), log.as_fd()]).expect("spawn");
    let members = fs::read_to_string(group.join("cgroup.procs")).unwrap();
    client.signal(spawned.id, 9).unwrap();
    wait(&mut client, &spawned);
    wait_for("the cgroup to empty", || fs::remove_dir(&group).ok());
    assert_eq!(members.trim(), spawned.id.pid.to_string());
}

fn cgroup_parent() -> Option<std::path::PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let of_cgroups = table.lines().filter(|line| line.contains(" - cgroup"));
    let mut places: Vec<_> =
        of_cgroups.filter_map(|line| Some(std::path::PathBuf::from(line.split(' ').nth(4)?))).collect();
    // cpuset has rules of its own about who may enter.
    places.retain(|place| !place.to_string_lossy().contains("cpuset"));
    places.into_iter().find(|place| {
        let probe = place.join(format!("tarbox-probe-{}", std::process::id()));
        fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe)).is_ok()
    })
}

#[test]
fn a_program_in_sealed_memory_is_executed() {
    let place = Place::new();
    let mut client = place.client();
    let (mut spec, mut program, log) = shell("echo from memory; exit 5");
    let memory = sealed_executable("sh", &mut program).expect("copy");
    spec.uid = Some(65534);
    let spawned = client.spawn("k", "serve", &spec, &[memory.as_fd(), log.as_fd()]).expect("spawn");
    assert_eq!(wait(&mut client, &spawned), (Some(5), None));
    assert_eq!(text(&log), "from memory\n");
}

#[test]
fn what_cannot_be_started_is_told_with_the_step_and_leaves_nothing() {
    let place = Place::new();
    let mut client = place.client();
    let before = place.descriptors();
    let (spec, program, log) = shell("exit 0");
    let mut text = file();
    text.write_all(b"no program").unwrap();
    text.set_permissions(fs::Permissions::from_mode(0o755)).unwrap();
    let no_program = File::open("/etc/passwd").unwrap();
    let mut refused = |change: &dyn Fn(&mut SpawnSpec), program: &File| {
        let mut spec = spec.clone();
        change(&mut spec);
        let outcome = client.spawn("k", "serve", &spec, &[program.as_fd(), log.as_fd()]);
        outcome.expect_err("refused").to_string()
    };
    let cases = [
        (refused(&|_| {}, &no_program), "cannot start `sh`: execute: Permission denied"),
        (refused(&|_| {}, &text), "cannot start `sh`: execute: "),
        (
            refused(&|spec| spec.cgroups = vec!["/nowhere".into()], &program),
            "cannot open /nowhere/cgroup.procs: No such file",
        ),
        (
            refused(&|spec| spec.cgroups = vec!["/a/../b".into()], &program),
            "cgroups `/a/../b`: allowed is an absolute path",
        ),
        (
            refused(&|spec| spec.oom_score_adj = Some(-1000), &program),
            "oom_score_adj `-1000`: allowed is -999 to 1000",
        ),
        (refused(&|spec| spec.nice = Some(20), &program), "nice `20`: allowed is -20 to 19"),
        (
            refused(&|spec| spec.limits = vec![Limit { resource: 7, soft: 2, hard: 1 }], &program),
            "limits `7 2:1`",
        ),
        (
            refused(&|spec| spec.limits = vec![Limit { resource: 7, soft: 1, hard: u64::MAX }], &program),
            "set a resource limit: Operation not permitted",
        ),
        (
            refused(&|spec| spec.executable = 2, &program),
            "executable `2`: allowed is the place of a descriptor",
        ),
        (refused(&|spec| spec.argv.clear(), &program), "argv ``: allowed is at least the program's name"),
        (refused(&|spec| spec.argv.push(b"a\0b".to_vec()), &program), "allowed is text without NUL"),
        (refused(&|spec| spec.env.push(b"A".to_vec()), &program), "env `A`: allowed is NAME=value"),
    ];
    for (told, expected) in cases {
        assert!(told.contains(expected), "{told}\nshould have said: {expected}");
    }
    assert!(client.children().unwrap().is_empty());
    assert_eq!(place.descriptors(), before);
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", place.keeper.id())).unwrap();
    assert_eq!(children, "", "zombies are left");
}

#[test]
fn ends_are_told_to_who_waits_before_and_after() {
    let place = Place::new();
    let mut client = place.client();
    let (coded, _) = place.shell(&mut client, "serve", "exit 3");
    assert_eq!(wait(&mut client, &coded), (Some(3), None));
    let (killed, _) = place.shell(&mut client, "stand-by", "sleep 1000");
    let waited = client.wait(killed.id, Duration::from_millis(50));
    assert!(matches!(waited, Err(HandoverError::TimedOut(_))));
    assert!(!wait_exit(&killed.pidfd, Duration::ZERO).unwrap());
    client.signal(killed.id, 9).unwrap();
    assert!(wait_exit(&killed.pidfd, LIMIT).unwrap());
    // Who gave up waiting is still connected, and has been told: the answer is not mistaken for another one's.
    let told = client.children().unwrap();
    assert!(told.is_empty(), "{told:?}");
    let (late, _) = place.shell(&mut client, "serve", "exit 4");
    assert!(wait_exit(&late.pidfd, LIMIT).unwrap());
    let child = wait_for("its end to be known", || {
        client.children().unwrap().into_iter().find(|child| child.exited.is_some())
    });
    assert_eq!((child.pid, child.exited.unwrap().code, child.role.as_str()), (late.id.pid, Some(4), "serve"));
    client.signal(late.id, 15).expect("no error, though it has ended");
    assert_eq!(wait(&mut client, &late), (Some(4), None));
    let gone = client.wait(late.id, LIMIT).unwrap_err().to_string();
    assert!(gone.contains(&format!("there is no child {}", late.id.pid)), "{gone}");
}

#[test]
fn two_ends_of_a_link_meet_and_whoever_comes_later_reads_what_was_said() {
    let place = Place::new();
    let mut client = place.client();
    // The shell says what a mounter says first, byte for byte (recorded in tarbox-handover), and shows what it is told.
    let hello = "printf '\\010\\001\\022\\002\\010\\007' >&3; dd bs=64k count=1 <&3 2>/dev/null | od -An -tx1; exit 0";
    let (spawned, log) = place.shell(&mut client, "serve", hello);
    drop(client);
    let mut client = place.client();
    let reached = client.reach(spawned.id).expect("reach");
    let heard = reached.link.receive_within(LIMIT).expect("heard");
    assert!(matches!(heard, Received::Message(FromMounter::Hello(Hello { pid: 7, .. }), _)), "{heard:?}");
    reached.link.send(&ToMounter::Stop(Stop {}), &[]).unwrap();
    assert_eq!(wait(&mut client, &spawned), (Some(0), None));
    assert_eq!(text(&log).trim(), "08 01 2a 00");
}

#[test]
fn an_inherited_link_is_taken_once() {
    // This test program is the child: it takes its descriptor 3.
    if std::env::var("TESTS_INHERITED").is_ok() {
        let link = MounterLink::inherited(3).expect("inherited");
        assert!(MounterLink::inherited(3).is_err(), "taken twice");
        link.send(&FromMounter::Hello(Hello { pid: 9, ..Hello::default() }), &[]).expect("send");
        return;
    }
    let place = Place::new();
    let mut client = place.client();
    let program = File::open(std::env::current_exe().unwrap()).unwrap();
    let name = "starting::an_inherited_link_is_taken_once";
    let spec = SpawnSpec {
        argv: ["test", name, "--exact", "--test-threads=1"].map(|word| word.as_bytes().to_vec()).to_vec(),
        env: vec![b"TESTS_INHERITED=1".to_vec()],
        ..SpawnSpec::default()
    };
    let spawned = client.spawn("k", "serve", &spec, &[program.as_fd()]).expect("spawn");
    let heard = spawned.link.receive_within(LIMIT).expect("heard");
    assert!(matches!(heard, Received::Message(FromMounter::Hello(Hello { pid: 9, .. }), _)), "{heard:?}");
    assert_eq!(wait(&mut client, &spawned), (Some(0), None));
}
