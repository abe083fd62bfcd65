//! What a mounter that somebody supervises may no longer do: it has all that it serves with when it starts.

use std::{collections::BTreeMap, io};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};
use tarbox_types::ErrorKind;

use crate::failure::Failure;

/// Nothing that serves a file system: other programs, mounts, namespaces, the kernel's own code and memory, other processes' memory,
/// keys, the clock, files by handle. They are refused, not deadly: what a library only tries does no harm.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_io_uring_setup,
    libc::SYS_personality,
    libc::SYS_mknodat,
];

/// Flags of clone(2) that make namespaces.
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Gives up what is not needed, for this thread and all that it starts, for ever.
///
/// # Errors
/// Where the kernel has no seccomp filters.
pub fn confine() -> Result<(), Failure> {
    // The arguments of clone3(2) lie in memory, where a filter cannot see them: without it, clone(2) is used.
    let hidden = rules_of(&[libc::SYS_clone3]);
    let programs = [(refused()?, libc::EPERM), (hidden, libc::ENOSYS)]
        .map(|(rules, errno)| program(rules, errno.unsigned_abs()));
    for program in programs {
        apply_filter(&program?).map_err(|error| failed("confine itself (seccomp)", error))?;
    }
    Ok(())
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules_of(calls: &[libc::c_long]) -> Rules {
    // No condition: whatever the arguments.
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

fn refused() -> Result<Rules, Failure> {
    let mut rules = rules_of(REFUSED);
    let with = |flag: libc::c_int| {
        let flag = u64::from(flag.cast_unsigned());
        let is_set = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(flag), flag)?;
        SeccompRule::new(vec![is_set])
    };
    let namespaces: Result<Vec<_>, _> = NAMESPACES.into_iter().map(with).collect();
    rules.insert(libc::SYS_clone, namespaces.map_err(|error| failed("make a seccomp filter", error))?);
    Ok(rules)
}

fn program(rules: Rules, errno: u32) -> Result<BpfProgram, Failure> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)
        .map_err(|error| failed("make a seccomp filter for this machine", error))?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno), arch);
    filter.and_then(BpfProgram::try_from).map_err(|error| failed("make a seccomp filter", error))
}

fn failed(doing: &str, error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    Failure::Part {
        kind: ErrorKind::Unsupported,
        doing: doing.to_owned(),
        source: Box::new(io::Error::other(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, thread};

    use nix::{
        errno::Errno,
        mount::{MsFlags, mount},
        sched::{CloneFlags, unshare},
    };

    use super::*;

    #[test]
    fn a_confined_thread_works_on_and_starts_threads_but_no_program_mount_or_namespace() {
        // A thread of its own: what it gives up, the other tests keep.
        let confined = thread::spawn(|| {
            confine().expect("confined");
            let directory = tempfile::tempdir().expect("files are made");
            std::fs::write(directory.path().join("f"), "x").expect("and written");
            assert_eq!(thread::spawn(|| 7).join().expect("threads are started"), 7);
            assert_eq!(unshare(CloneFlags::CLONE_NEWNS), Err(Errno::EPERM));
            let mounted = mount(Some("t"), directory.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>);
            assert_eq!(mounted, Err(Errno::EPERM));
            let started = Command::new("/bin/true").status().expect_err("no program");
            assert_eq!(started.raw_os_error(), Some(libc::EPERM));
            // Inherited, and not to be taken back.
            thread::spawn(|| assert_eq!(unshare(CloneFlags::CLONE_NEWUTS), Err(Errno::EPERM)))
                .join()
                .expect("so too");
        });
        confined.join().expect("as expected");
        assert!(Command::new("/bin/true").status().expect("others are free").success());
    }
}
