//! `fusermount3`, the set-user-id program that mounts for users without root and passes the descriptor back.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socketpair,
};

use super::{MountError, MountOptions, SUBTYPE};

const PROGRAM: &str = "fusermount3";
/// The environment variable that names the socket for the answer.
const SOCKET_VARIABLE: &str = "_FUSE_COMMFD";

pub(super) fn mount(options: &MountOptions) -> Result<OwnedFd, MountError> {
    let system = |source| MountError::System { mountpoint: options.mountpoint.clone(), source };
    if !Path::new("/dev/fuse").exists() {
        return Err(MountError::NoDevice);
    }
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|e| system(e.into()))?;
    // The child needs its end across exec. Another thread's fork in this moment would inherit it as well, which only
    // delays the end of file that tells of a failure.
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|errno| system(errno.into()))?;
    let child = Command::new(PROGRAM)
        .arg("-o")
        .arg(option_list(options))
        .arg("--")
        .arg(&options.mountpoint)
        .env(SOCKET_VARIABLE, theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| spawn_error(error, &options.mountpoint))?;
    drop(theirs);
    let received = receive_descriptor(&ours);
    let output = child.wait_with_output().map_err(system)?;
    match received {
        Ok(Some(device)) if output.status.success() => Ok(device),
        Err(error) if output.status.success() => Err(system(error)),
        _ => Err(refusal(&options.mountpoint, &output.stderr)),
    }
}

fn option_list(options: &MountOptions) -> String {
    // A comma would begin another option.
    let fsname = options.fsname.replace('\\', "\\\\").replace(',', "\\,");
    let mut list = vec![format!("fsname={fsname}"), format!("subtype={SUBTYPE}")];
    list.extend(options.shared_list());
    // fusermount3 adds nosuid and nodev by itself.
    for (wanted, option) in [(options.read_only, "ro"), (options.noexec, "noexec")] {
        if wanted {
            list.push(option.to_owned());
        }
    }
    list.join(",")
}

pub(super) fn unmount(path: &Path, lazy: bool) -> Result<(), MountError> {
    let output = Command::new(PROGRAM)
        .args(if lazy { &["-u", "-z", "--"][..] } else { &["-u", "--"] })
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| spawn_error(error, path))?;
    if output.status.success() { Ok(()) } else { Err(refusal(path, &output.stderr)) }
}

fn spawn_error(error: io::Error, path: &Path) -> MountError {
    match error.kind() {
        io::ErrorKind::NotFound => MountError::NoFusermount,
        _ => MountError::System { mountpoint: path.to_owned(), source: error },
    }
}

/// Its exit status is always 1; only the message tells what it was.
fn refusal(path: &Path, stderr: &[u8]) -> MountError {
    let text = String::from_utf8_lossy(stderr);
    let message = text.trim().trim_start_matches("fusermount3: ").to_owned();
    if message.contains("busy") {
        MountError::Busy(path.to_owned())
    } else if message.contains("not found in /etc/mtab") || message.contains("Invalid argument") {
        MountError::NotMounted(path.to_owned())
    } else if message.contains("Transport endpoint is not connected") {
        MountError::DeadMount(path.to_owned())
    } else {
        MountError::Fusermount { message }
    }
}

/// Receives one descriptor; None if the other end was closed without one.
fn receive_descriptor(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0_u8; 1];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let message = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
            Err(nix::Error::EINTR) => {}
            other => break other?,
        }
    };
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
            #[allow(unsafe_code)]
            return Ok(descriptors.first().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }));
        }
    }
    Ok(None)
}
