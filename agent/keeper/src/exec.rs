//! What the child does between fork and exec: system calls only, nothing is allocated and no lock is taken.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

use libc::{c_char, c_int, c_ulong};
use tarbox_handover::{CONTROL_FD, Limit, SpawnSpec};

/// What the child does, in its order; the number of the step that failed comes back through a pipe.
pub(crate) const STEPS: [&str; 12] = [
    "begin a session",
    "enter a cgroup",
    "set oom_score_adj",
    "set the niceness",
    "set a resource limit",
    "give up capabilities",
    "set the groups",
    "set the group",
    "set the user",
    "forbid new privileges",
    "arrange the descriptors",
    "execute",
];

/// All that the child needs, made ready beforehand.
pub(crate) struct Orders {
    pub(crate) control: OwnedFd,
    pub(crate) executable: OwnedFd,
    pub(crate) cgroups: Vec<OwnedFd>,
    pub(crate) highest: i32,
    pub(crate) tell: OwnedFd,
    pub(crate) spec: SpawnSpec,
}

/// The orders in the shape of system calls.
struct Ready {
    orders: Orders,
    argv: Strings,
    env: Strings,
    oom_score_adj: Option<Vec<u8>>,
    is_root: bool,
}

/// Strings as `execve(2)` takes them. The pointers point into `owned`, which is not changed any more.
struct Strings {
    pointers: Vec<*const c_char>,
    _owned: Vec<CString>,
}

// SAFETY: the pointers point to memory on the heap that is owned beside them and only read.
unsafe impl Send for Strings {}
// SAFETY: as above.
unsafe impl Sync for Strings {}

impl Strings {
    fn new(texts: &[Vec<u8>]) -> Self {
        let owned: Vec<_> = texts.iter().filter_map(|text| CString::new(text.clone()).ok()).collect();
        let pointers = owned.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect();
        Self { pointers, _owned: owned }
    }
}

impl Orders {
    /// Lets the child of `command` carry them out instead of executing what the command names.
    pub(crate) fn give(self, command: &mut Command) {
        let ready = Ready {
            argv: Strings::new(&self.spec.argv),
            env: Strings::new(&self.spec.env),
            oom_score_adj: self.spec.oom_score_adj.map(|adj| adj.to_string().into_bytes()),
            is_root: rustix::process::geteuid().is_root(),
            orders: self,
        };
        // SAFETY: between fork and exec it makes system calls with memory that exists already, and nothing else.
        unsafe { command.pre_exec(move || Err(ready.carry_out())) };
    }
}

impl Ready {
    /// Returns only if a step failed.
    fn carry_out(&self) -> io::Error {
        let mut step = 0;
        let error = self.steps(&mut step).err().unwrap_or_else(io::Error::last_os_error);
        // SAFETY: one byte of the stack, an open pipe.
        unsafe { libc::write(self.orders.tell.as_raw_fd(), (&raw const step).cast(), 1) };
        error
    }

    /// `step` says which one it is at; [`STEPS`] has the names.
    fn steps(&self, step: &mut u8) -> io::Result<()> {
        let spec = &self.orders.spec;
        let actions: [&dyn Fn() -> io::Result<()>; STEPS.len()] = [
            // SAFETY: no memory is involved.
            &|| if spec.new_session { done(unsafe { libc::setsid() }) } else { Ok(()) },
            &|| self.orders.cgroups.iter().try_for_each(|procs| write(procs.as_raw_fd(), b"0")),
            &|| self.set_oom_score_adj(),
            &|| self.set_nice(),
            &|| spec.limits.iter().try_for_each(set_limit),
            &|| self.drop_capability_bounds(),
            &|| self.set_groups(),
            &|| self.set_group(),
            &|| self.set_user(),
            &|| prctl(libc::PR_SET_NO_NEW_PRIVS, 1),
            &|| self.arrange_descriptors(),
            &|| self.execute(),
        ];
        for (number, action) in actions.iter().enumerate() {
            *step = number as u8;
            action()?;
        }
        Ok(())
    }

    fn set_oom_score_adj(&self) -> io::Result<()> {
        let Some(text) = &self.oom_score_adj else { return Ok(()) };
        // SAFETY: a path of this program.
        let file =
            unsafe { libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
        done(file)?;
        write(file, text)
    }

    fn set_nice(&self) -> io::Result<()> {
        let Some(nice) = self.orders.spec.nice else { return Ok(()) };
        // SAFETY: no memory is involved.
        done(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) })
    }

    /// Whoever becomes another user than root can get none of root's rights again, by whatever it executes.
    fn drop_capability_bounds(&self) -> io::Result<()> {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong)?;
        if !self.loses_capabilities() {
            return Ok(());
        }
        for capability in 0..64 {
            match prctl(libc::PR_CAPBSET_DROP, capability) {
                Ok(()) => {}
                // The kernel has no more of them.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                // A root without CAP_SETPCAP, in a container: what it does not have need not be dropped.
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether root's rights are given up: by becoming somebody else, or on order. Root that executes has none where its bounding set
    /// has none.
    fn loses_capabilities(&self) -> bool {
        let spec = &self.orders.spec;
        self.is_root && (spec.without_capabilities || spec.uid.is_some_and(|uid| uid != 0))
    }

    fn set_groups(&self) -> io::Result<()> {
        let spec = &self.orders.spec;
        let asked = !spec.groups.is_empty() || (self.is_root && (spec.uid.is_some() || spec.gid.is_some()));
        if !asked {
            return Ok(());
        }
        // SAFETY: pointer and length are those of the vector.
        done(unsafe { libc::setgroups(spec.groups.len(), spec.groups.as_ptr()) })
    }

    fn set_group(&self) -> io::Result<()> {
        let Some(gid) = self.orders.spec.gid else { return Ok(()) };
        // SAFETY: no memory is involved.
        done(unsafe { libc::setresgid(gid, gid, gid) })
    }

    fn set_user(&self) -> io::Result<()> {
        if let Some(uid) = self.orders.spec.uid {
            // SAFETY: no memory is involved.
            done(unsafe { libc::setresuid(uid, uid, uid) })?;
        }
        if self.loses_capabilities() { clear_capabilities() } else { Ok(()) }
    }

    fn arrange_descriptors(&self) -> io::Result<()> {
        // SAFETY: no memory is involved. dup2 clears close-on-exec.
        done(unsafe { libc::dup2(self.orders.control.as_raw_fd(), CONTROL_FD) })?;
        let from = CONTROL_FD + 1;
        // Marked, not closed: the pipes that tell of a failure are needed until exec.
        // SAFETY: no memory is involved.
        let marked = unsafe {
            libc::syscall(libc::SYS_close_range, from, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as c_int)
        };
        if marked != 0 {
            for number in from..=self.orders.highest.max(self.orders.tell.as_raw_fd()) {
                // SAFETY: no memory is involved; numbers that are not open are passed over.
                unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
            }
        }
        Ok(())
    }

    fn execute(&self) -> io::Result<()> {
        // SAFETY: both arrays end with a null pointer and outlive the call.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                self.orders.executable.as_raw_fd(),
                c"".as_ptr(),
                self.argv.pointers.as_ptr(),
                self.env.pointers.as_ptr(),
                libc::AT_EMPTY_PATH,
            )
        };
        Err(io::Error::last_os_error())
    }
}

fn set_limit(limit: &Limit) -> io::Result<()> {
    let value = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
    // SAFETY: the kernel reads one rlimit.
    done(unsafe { libc::setrlimit(limit.resource, &raw const value) })
}

/// All sets of this thread are emptied; changing the user does that to all but the inheritable one.
fn clear_capabilities() -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let none = [0u32; 6];
    // SAFETY: version 3 has a header of two words and two sets of three.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn prctl(option: c_int, argument: c_ulong) -> io::Result<()> {
    let unused: c_ulong = 0;
    // SAFETY: the options used here take numbers only.
    done(unsafe { libc::prctl(option, argument, unused, unused, unused) })
}

fn write(descriptor: c_int, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and length are those of the slice.
    let written = unsafe { libc::write(descriptor, bytes.as_ptr().cast(), bytes.len()) };
    if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn done(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
