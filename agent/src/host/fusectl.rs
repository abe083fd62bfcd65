//! The kernel's last word on a FUSE connection: abort it. Everybody who waits on it gets an error, for good.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Where systems have it; a container often has not.
const USUAL: &str = "/sys/fs/fuse/connections";

/// Ends the connection of a file system's device number, `major:minor`. It never waits for the file system. Nothing there is success.
///
/// # Errors
/// As mount(2), open(2): only root may.
pub fn abort(device: &str) -> io::Result<()> {
    // The connection is named by the minor number alone: those of FUSE have no device, and so the major number 0.
    let Some(minor) = device.strip_prefix("0:") else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{device} is no FUSE file system")));
    };
    match write(Path::new(USUAL), minor) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_mounted(Path::new(USUAL))? => {
            let own = Control::mount()?;
            gone_is_done(write(&own.0, minor))
        }
        outcome => gone_is_done(outcome),
    }
}

fn is_mounted(path: &Path) -> io::Result<bool> {
    Ok(tarbox_engine::mounts::at(path)?.is_some_and(|mount| mount.fs_type == "fusectl"))
}

fn write(connections: &Path, minor: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(connections.join(minor).join("abort")).and_then(|mut file| {
        use io::Write;
        file.write_all(b"1")
    })
}

fn gone_is_done(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// Mounted for one use.
struct Control(PathBuf);

impl Control {
    fn mount() -> io::Result<Self> {
        let at = tempfile::Builder::new().prefix("tarbox-fusectl-").tempdir()?.keep();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("fusectl"), &at, Some("fusectl"), flags, None::<&str>).inspect_err(|_| {
            let _ = fs::remove_dir(&at);
        })?;
        Ok(Self(at))
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use tarbox_engine::{MountOptions, mount, mounts};

    use super::*;

    #[test]
    fn who_waits_on_an_aborted_connection_gets_an_error_and_twice_is_once() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let point = directory.path().canonicalize().expect("path");
        // Nobody reads from it: whoever asks it for something waits.
        let device = mount(&MountOptions::new(&point, "wedged")).expect("mount");
        let number = mounts::at(&point).expect("mounts").expect("mounted").device;
        let (asked, answer) = mpsc::channel();
        let path = point.clone();
        let waiter = thread::spawn(move || {
            let _ = asked.send(fs::metadata(path.join("f")).expect_err("aborted").raw_os_error());
        });
        assert!(answer.recv_timeout(Duration::from_millis(50)).is_err(), "it waits");
        abort(&number).expect("abort");
        let errno = answer.recv_timeout(Duration::from_secs(10)).expect("it no longer waits");
        assert!([Some(libc::ENOTCONN), Some(libc::ECONNABORTED)].contains(&errno), "{errno:?}");
        waiter.join().expect("it has asked");
        abort(&number).expect("twice");
        umount2(&point, MntFlags::MNT_DETACH).expect("unmount");
        drop(device);
        abort(&number).expect("nothing is there");
        assert!(abort("8:1").is_err(), "a disk is none");
    }
}
