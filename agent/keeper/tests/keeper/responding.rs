//! The error responder, on a real mount whose mounter is dead.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tarbox_handover::Client;

use crate::place::{Place, file, wait_for};

const INIT: u32 = 26;
const LOOKUP: u32 = 1;

/// A mount that nobody serves but the test, by hand. Taken away when dropped.
struct Dead {
    device: File,
    at: tempfile::TempDir,
}

impl Dead {
    fn mount() -> Self {
        let at = tempfile::Builder::new().prefix("tarbox-keeper-mnt-").tempdir().unwrap();
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let source = Some("tarbox-keeper-test");
        mount(source, at.path(), Some("fuse"), MsFlags::empty(), Some(options.as_str())).expect("mount");
        let dead = Self { device, at };
        let (opcode, unique) = dead.request();
        assert_eq!(opcode, INIT);
        // 7.31, everything else as small as it may be. Source: linux/fuse.h, `struct fuse_init_out`.
        let mut body = [0; 64];
        body[0..4].copy_from_slice(&7u32.to_ne_bytes());
        body[4..8].copy_from_slice(&31u32.to_ne_bytes());
        body[20..24].copy_from_slice(&4096u32.to_ne_bytes());
        dead.reply(unique, 0, &body);
        dead
    }

    fn path(&self, name: &str) -> PathBuf {
        self.at.path().join(name)
    }

    fn request(&self) -> (u32, u64) {
        let mut buffer = vec![0; 1 << 20];
        let length = (&self.device).read(&mut buffer).expect("a request");
        assert!(length >= 40);
        let opcode = u32::from_ne_bytes(buffer[4..8].try_into().unwrap());
        (opcode, u64::from_ne_bytes(buffer[8..16].try_into().unwrap()))
    }

    fn reply(&self, unique: u64, error: i32, body: &[u8]) {
        let length = (16 + body.len()) as u32;
        let message = [&length.to_ne_bytes()[..], &error.to_ne_bytes(), &unique.to_ne_bytes(), body].concat();
        (&self.device).write_all(&message).expect("reply");
    }
}

impl Drop for Dead {
    fn drop(&mut self) {
        let _ = umount2(self.at.path(), MntFlags::MNT_DETACH);
    }
}

fn keep(client: &mut Client, dead: &Dead) {
    let names = ["slots".to_owned(), "device".to_owned()];
    client.put("k", &names, &[file().as_fd(), dead.device.as_fd()], &[]).unwrap();
}

fn stat(path: &Path) -> std::process::Child {
    let mut stat = Command::new("stat");
    stat.arg(path).env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    stat.spawn().expect("stat")
}

#[test]
fn blocked_applications_get_eio_and_the_mount_lives_for_the_next_mounter() {
    let place = Place::new();
    let mut client = place.client();
    let dead = Dead::mount();
    keep(&mut client, &dead);
    let before = place.descriptors();
    let blocked = stat(&dead.path("a"));
    client.respond("k", true).unwrap();
    let told = blocked.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.contains("Input/output error"), "{told}");
    // Asked for twice; and many at once are all answered.
    client.respond("k", true).unwrap();
    let many: Vec<_> = (0..20).map(|number| stat(&dead.path(&number.to_string()))).collect();
    assert!(many.into_iter().all(|stat| !stat.wait_with_output().unwrap().status.success()));
    assert!(client.get("k").unwrap().unwrap().responding && client.list().unwrap()[0].responding);

    // From here on the next mounter answers: ENOENT, to be told apart from EIO.
    client.respond("k", false).unwrap();
    assert!(!client.get("k").unwrap().unwrap().responding);
    let path = dead.path("b");
    let asked = std::thread::spawn(move || fs::metadata(path));
    let (opcode, unique) = dead.request();
    assert_eq!(opcode, LOOKUP);
    dead.reply(unique, -libc::ENOENT, &[]);
    assert_eq!(asked.join().unwrap().unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(place.descriptors(), before);
}

#[test]
fn starting_a_mounter_stops_the_answers() {
    let place = Place::new();
    let mut client = place.client();
    let dead = Dead::mount();
    keep(&mut client, &dead);
    client.respond("k", true).unwrap();
    place.shell(&mut client, "stand-by", "sleep 1000");
    assert!(client.get("k").unwrap().unwrap().responding, "a stand-by serves nobody yet");
    place.shell(&mut client, "serve", "sleep 1000");
    assert!(!client.get("k").unwrap().unwrap().responding);
}

#[test]
fn a_responder_ends_with_its_mount_and_needs_a_device() {
    let place = Place::new();
    let mut client = place.client();
    let told = client.respond("k", true).unwrap_err().to_string();
    assert!(told.contains("nothing is kept under `k`"), "{told}");
    client.put("k", &[], &[], &[]).unwrap();
    let told = client.respond("k", true).unwrap_err().to_string();
    assert!(told.contains("entry: `device` is missing"), "{told}");
    client.put("k", &["device".into()], &[file().as_fd()], &[]).unwrap();
    let told = client.respond("k", true).unwrap_err().to_string();
    assert!(told.contains("cannot open another /dev/fuse descriptor: Invalid argument"), "{told}");
    let dead = Dead::mount();
    keep(&mut client, &dead);
    client.respond("k", true).unwrap();
    umount2(dead.at.path(), MntFlags::MNT_DETACH).unwrap();
    wait_for("the responder's end", || (!client.get("k").unwrap().unwrap().responding).then_some(()));
}
