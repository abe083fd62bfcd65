//! The workloads. Each group prepares, works and measures in one directory; a figure is seconds for a fixed piece of work.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::systems::System;
use crate::{command::succeed, rng::Rng, scratch::Scratch, sources};

const LIMIT: Duration = Duration::from_secs(900);

/// What several workloads read: made once, on ext4.
#[derive(Debug)]
pub struct Material {
    /// A tar file of a source tree.
    pub tar: PathBuf,
    /// A bare git repository.
    pub repository: PathBuf,
    /// How much of everything: 1 = as in the table.
    pub scale: f64,
    _scratch: Scratch,
}

/// One figure.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Workload.
    pub name: &'static str,
    /// Seconds for the whole piece of work.
    pub seconds: f64,
    /// How many operations (or MiB) that was, to show a rate.
    pub units: f64,
}

/// A group of workloads that build on each other.
pub struct Group {
    /// Its name, for `--only`.
    pub name: &'static str,
    /// Runs it in a new directory of the system.
    pub run: fn(&mut System, &Material, &Path) -> Result<Vec<Figure>>,
}

/// What the issue asks for: name, most allowed on SQLite and on PostgreSQL, as a multiple of ext4's time.
pub const GOALS: [(&str, f64, f64); 19] = [
    ("untar", 3.5, 4.0),
    ("rg cold", 3.0, 3.0),
    ("rg warm", 2.0, 2.0),
    ("git clone", 2.5, 2.5),
    ("git status warm", 2.0, 2.0),
    ("create + write 4 KiB", 8.0, 8.0),
    ("stat warm", 1.1, 1.1),
    ("open + read 4 KiB warm", 3.0, 3.0),
    ("rename", 4.0, 4.0),
    ("unlink", 4.0, 4.0),
    ("mkdir trees", 4.0, 4.0),
    ("create + fsync, 4 clients", 2.5, 5.0),
    ("sequential write 1 GiB + fsync", 5.0, 8.0),
    ("sequential read cold", 2.5, 5.0),
    ("sequential read warm", 1.5, 1.5),
    ("random write 4 KiB, 4 clients", 12.0, 12.0),
    ("random read 4 KiB, 4 clients", 1.5, 1.5),
    ("durable 4 KiB writes, 1 client", 2.0, 4.0),
    ("readdir + stat cold", 4.0, 4.0),
];

/// All groups.
pub const GROUPS: [Group; 6] = [
    Group { name: "tree", run: tree },
    Group { name: "git", run: git },
    Group { name: "small", run: small },
    Group { name: "fsync", run: fsync },
    Group { name: "sequential", run: sequential },
    Group { name: "random", run: random },
];

impl Material {
    /// Makes it.
    ///
    /// # Errors
    /// If the machine holds too few sources.
    pub fn make(scale: f64) -> Result<Self> {
        let scratch = Scratch::on_ext4()?;
        let (tree, repository) = (scratch.sub("tree")?, scratch.path().join("repository.git"));
        sources::make_tree(&tree, (12_800.0 * scale) as u64)?;
        let tar = scratch.path().join("tree.tar");
        succeed(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&tree).arg("."), LIMIT)?;
        super::systems::remove(&tree);
        fs::create_dir(&tree)?;
        sources::make_tree(&tree, (4_355.0 * scale) as u64)?;
        let script = "rm -rf odd; export GIT_CONFIG_GLOBAL=/dev/null; git init -q; git add -A .
            git -c user.name=a -c user.email=a@b commit -qm all; git clone -q --bare . ../repository.git";
        crate::command::shell::<&str>(&tree, script, &[], LIMIT).context("a repository")?;
        super::systems::remove(&tree);
        Ok(Self { tar, repository, scale, _scratch: scratch })
    }

    fn count(&self, full: u64) -> u64 {
        ((full as f64 * self.scale) as u64).max(100)
    }
}

fn timed(name: &'static str, units: f64, work: impl FnOnce() -> Result<()>) -> Result<Figure> {
    let begin = Instant::now();
    work().with_context(|| name.to_owned())?;
    Ok(Figure { name, seconds: begin.elapsed().as_secs_f64(), units })
}

fn run(command: &mut Command) -> Result<()> {
    succeed(command, LIMIT).map(drop)
}

fn tree(system: &mut System, material: &Material, dir: &Path) -> Result<Vec<Figure>> {
    let files = material.count(12_800) as f64;
    let rg = || {
        run(Command::new("rg")
            .args(["--no-ignore", "--hidden", "-c", "-j2", "unlikely_to_be_found|fn main"])
            .arg(dir))
    };
    let untar =
        timed("untar", files, || run(Command::new("tar").arg("-xf").arg(&material.tar).arg("-C").arg(dir)))?;
    system.settle()?;
    system.make_cold()?;
    let list = timed("readdir + stat cold", files, || {
        let _ = crate::load::count_files(dir);
        Ok(())
    })?;
    system.make_cold()?;
    let cold = timed("rg cold", files, rg)?;
    rg()?;
    let warm = timed("rg warm", files, rg)?;
    Ok(vec![untar, list, cold, warm])
}

fn git(_: &mut System, material: &Material, dir: &Path) -> Result<Vec<Figure>> {
    let clone = timed("git clone", 1.0, || {
        run(Command::new("git").args(["clone", "-q"]).arg(&material.repository).arg(dir.join("clone")))
    })?;
    let status = || run(Command::new("git").args(["status", "--porcelain"]).current_dir(dir.join("clone")));
    // The first refreshes the index.
    status()?;
    let warm = timed("git status warm", 3.0, || (0..3).try_for_each(|_| status()))?;
    Ok(vec![clone, warm])
}

fn small(_: &mut System, material: &Material, dir: &Path) -> Result<Vec<Figure>> {
    let count = material.count(5_000);
    let page = [7; 4096];
    let name = |i: u64| dir.join(format!("file-{i}"));
    let create = timed("create + write 4 KiB", count as f64, || {
        (0..count).try_for_each(|i| Ok(File::create(name(i))?.write_all(&page)?))
    })?;
    let stat = || (0..count).try_for_each(|i| fs::symlink_metadata(name(i)).map(drop));
    let read = || {
        let mut buffer = [0; 4096];
        (0..count).try_for_each(|i| File::open(name(i))?.read_exact(&mut buffer))
    };
    stat()?;
    let stat = timed("stat warm", 5.0 * count as f64, || Ok((0..5).try_for_each(|_| stat())?))?;
    read()?;
    let read = timed("open + read 4 KiB warm", 5.0 * count as f64, || Ok((0..5).try_for_each(|_| read())?))?;
    let rename = timed("rename", count as f64, || {
        Ok((0..count).try_for_each(|i| fs::rename(name(i), dir.join(format!("renamed-{i}"))))?)
    })?;
    let unlink = timed("unlink", count as f64, || {
        Ok((0..count).try_for_each(|i| fs::remove_file(dir.join(format!("renamed-{i}"))))?)
    })?;
    let mkdir = timed("mkdir trees", count as f64, || {
        (0..count / 20).try_for_each(|chain| {
            let mut at = dir.join(format!("chain-{chain}"));
            for _ in 0..20 {
                fs::create_dir(&at)?;
                at.push("d");
            }
            Ok(())
        })
    })?;
    Ok(vec![create, stat, read, rename, unlink, mkdir])
}

fn fsync(_: &mut System, material: &Material, dir: &Path) -> Result<Vec<Figure>> {
    let (each, rewrites) = (material.count(400), material.count(1_000));
    let create = timed("create + fsync, 4 clients", 4.0 * each as f64, || {
        four(|client| {
            for i in 0..each {
                let mut file = File::create(dir.join(format!("{client}-{i}")))?;
                file.write_all(&[7; 4096])?;
                file.sync_all()?;
            }
            Ok(())
        })
    })?;
    let file = File::create(dir.join("durable"))?;
    file.write_all_at(&vec![1; 16 << 20], 0)?;
    file.sync_all()?;
    let mut rng = Rng::new(1);
    let durable = timed("durable 4 KiB writes, 1 client", rewrites as f64, || {
        (0..rewrites).try_for_each(|i| {
            file.write_all_at(&[i as u8; 4096], rng.below(4096) * 4096)?;
            Ok(file.sync_all()?)
        })
    })?;
    Ok(vec![create, durable])
}

fn sequential(system: &mut System, material: &Material, dir: &Path) -> Result<Vec<Figure>> {
    let mib = material.count(1024);
    let path = dir.join("large");
    let chunk = Rng::new(1).bytes(1 << 20);
    let write = timed("sequential write 1 GiB + fsync", mib as f64, || {
        let file = File::create(&path)?;
        for i in 0..mib {
            // Not the same block twice: a store that shares equal blocks must do the work.
            let mut chunk = chunk.clone();
            chunk.chunks_mut(4096).for_each(|page| page[..8].copy_from_slice(&i.to_le_bytes()));
            file.write_all_at(&chunk, i << 20)?;
        }
        Ok(file.sync_all()?)
    })?;
    let read = || -> Result<()> {
        let file = File::open(&path)?;
        let mut buffer = vec![0; 1 << 20];
        Ok((0..mib).try_for_each(|i| file.read_exact_at(&mut buffer, i << 20))?)
    };
    system.settle()?;
    system.make_cold()?;
    let cold = timed("sequential read cold", mib as f64, read)?;
    let warm = timed("sequential read warm", mib as f64, read)?;
    Ok(vec![write, cold, warm])
}

fn random(system: &mut System, material: &Material, dir: &Path) -> Result<Vec<Figure>> {
    // Each in files of its own: those to write to are reserved only, those to read are written.
    let (written, read) = (dir.join("write"), dir.join("read"));
    [&written, &read].into_iter().try_for_each(fs::create_dir)?;
    let write = fio("random write 4 KiB, 4 clients", material, &written, &["--rw=randwrite"])?;
    fio("files to read", material, &read, &["--rw=randread", "--create_only=1"])?;
    system.settle()?;
    system.make_cold()?;
    let read = fio("random read 4 KiB, 4 clients", material, &read, &["--rw=randread"])?;
    Ok(vec![write, read])
}

/// Runs fio as the peers were measured; seconds are those of 10,000 operations.
fn fio(name: &'static str, material: &Material, dir: &Path, args: &[&str]) -> Result<Figure> {
    let mut command = Command::new("fio");
    command.args(["--name=j", "--bs=4k", "--numjobs=4", "--ioengine=psync", "--direct=0", "--time_based"]);
    command.args(["--group_reporting", "--output-format=json"]).args(args);
    command.arg(format!("--size={}m", material.count(256)));
    command.arg(format!("--runtime={}", (10.0 * material.scale).clamp(1.0, 10.0).ceil()));
    let said = succeed(command.arg("--directory").arg(dir), LIMIT).context(name)?;
    let report: serde_json::Value = serde_json::from_str(&said).context("what fio reports")?;
    let rate = |way: &str| report["jobs"][0][way]["iops"].as_f64().unwrap_or(0.0);
    Ok(Figure { name, seconds: 10_000.0 / (rate("read") + rate("write")), units: 10_000.0 })
}

fn four(work: impl Fn(u64) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|client| {
                scope.spawn({
                    let work = &work;
                    move || work(client)
                })
            })
            .collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().map_err(|_| anyhow::anyhow!("a client failed"))?)
    })
}
