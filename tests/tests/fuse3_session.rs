//! Our engine against fuse3's own session, both driving the same file system.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use nix::mount::{MntFlags, umount2};
use tarbox_tests::{
    differ::{self, Op, Step},
    scratch::Scratch,
    volume::{Database, Volume},
};

/// A tenant served by fuse3.
struct Fuse3 {
    scratch: Scratch,
    child: Child,
}

impl Fuse3 {
    fn start() -> Self {
        let scratch = Scratch::on_disk().expect("a directory");
        let root = scratch.path().to_owned();
        std::fs::create_dir(root.join("mnt")).expect("mkdir");
        let mut child = Command::new(env!("CARGO_BIN_EXE_fuse3-mount"))
            .arg(format!("sqlite://{}", root.join("db").display()))
            .args([root.join("journal"), root.join("mnt")])
            .stdout(Stdio::piped())
            .spawn()
            .expect("fuse3-mount starts");
        let mut line = String::new();
        let out = child.stdout.take().expect("its output");
        BufReader::new(out).read_line(&mut line).expect("a line");
        assert!(line.starts_with("serves at"), "fuse3-mount did not serve: {line:?}");
        Self { scratch, child }
    }

    fn point(&self) -> std::path::PathBuf {
        self.scratch.path().join("mnt")
    }
}

impl Drop for Fuse3 {
    fn drop(&mut self) {
        let _ = umount2(&self.point(), MntFlags::MNT_DETACH);
        let _ = self.child.wait();
    }
}

/// What fuse3 0.10 can be asked: it has no O_TMPFILE, no ACLs, loses O_TRUNC (it negotiates FUSE_ATOMIC_O_TRUNC, which must
/// never meet opens without a message), and leaves clearing setuid bits to the kernel, which asks for
/// each by another way; so everything is done by root and without them.
fn within_fuse3(mut steps: Vec<Step>) -> Vec<Step> {
    steps.retain(|step| match &step.op {
        Op::Tmpfile { .. } => false,
        Op::SetXattr { name, .. } | Op::GetXattr { name, .. } | Op::RemoveXattr { name, .. } => {
            !name.starts_with("system.")
        }
        _ => true,
    });
    for step in &mut steps {
        step.uid = 0;
        if let Op::Open { flags, .. } = &mut step.op {
            *flags &= !nix::libc::O_TRUNC;
        }
    }
    steps
}

#[test]
fn the_engine_and_fuse3s_session_give_the_same_answers() {
    let volume = Volume::new(Database::Sqlite);
    let other = Fuse3::start();
    let drawn = |seed| within_fuse3(differ::generate(seed, 400));
    if let Err(report) = differ::compare_some(volume.path(), &other.point(), 0..12, drawn) {
        panic!("first: our engine, second: fuse3's session\n{report}");
    }
}
