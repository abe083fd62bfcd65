//! `make bench`: Tarbox against ext4, and against what else is at hand, in one run.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use tarbox_tests::{
    bench::{
        report::Report,
        systems::{System, remove},
        workloads::{GROUPS, Material},
    },
    scratch::require_root,
    volume::Database,
};

/// Measures the workloads of the table, interleaved, and writes a report.
#[derive(Parser)]
struct Options {
    /// How often each group runs on each system; medians are shown.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Only these groups: tree, git, small, fsync, sequential, random.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these systems (ext4 is always there): sqlite, postgres, null, juicefs.
    #[arg(long, value_delimiter = ',', default_value = "sqlite,postgres,null,juicefs")]
    systems: Vec<String>,
    /// How much of everything: 1 = as in the table.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// A command that mounts a null file system on the engine; `{}` stands for the mount point.
    #[arg(long)]
    null: Option<String>,
    /// Further arguments of tarbox-mount.
    #[arg(long = "mount-arg", allow_hyphen_values = true)]
    mount_args: Vec<String>,
    /// Where the report goes.
    #[arg(long, default_value = "bench-results")]
    out: PathBuf,
}

fn main() -> Result<()> {
    require_root();
    if std::env::var_os("TESTS_PROFILE").is_none() && std::env::var_os("TESTS_BIN_DIR").is_none() {
        // What is measured is what is shipped: the programs beside this one.
        let here = std::env::current_exe()?;
        let dir = here.parent().map(PathBuf::from).unwrap_or_default();
        anyhow::ensure!(
            dir.join("tarbox-mount").exists(),
            "tarbox-mount is not beside {}: run `make bench`",
            here.display()
        );
        return rerun(&dir);
    }
    let options = Options::parse();
    let material = Material::make(options.scale)?;
    let mut systems = systems(&options)?;
    let mut report =
        Report { systems: systems.iter().map(|system| system.name.clone()).collect(), ..Report::default() };
    for system in &systems {
        if let Some(memory) = system.memory() {
            report.notes.push(format!("{}: {} MiB idle", system.name, memory >> 20));
        }
    }
    for group in GROUPS
        .iter()
        .filter(|group| options.only.is_empty() || options.only.iter().any(|name| name == group.name))
    {
        for run in 0..options.runs {
            for system in &mut systems {
                eprintln!("{} {}/{} on {}", group.name, run + 1, options.runs, system.name);
                let dir = system.fresh(&format!("{}-{run}", group.name))?;
                match (group.run)(system, &material, &dir) {
                    Ok(figures) => figures.into_iter().for_each(|figure| report.add(&system.name, figure)),
                    Err(error) => report.failures.push(format!("{}, {}: {error:#}", system.name, group.name)),
                }
                remove(&dir);
                let _ = system.settle();
            }
        }
        // What has been measured so far is there even if a later group fails.
        report.write(&options.out)?;
    }
    for system in &mut systems {
        if let Some(memory) = system.memory() {
            report.notes.push(format!("{}: {} MiB after all that", system.name, memory >> 20));
        }
        let mut starts: Vec<_> = (0..5).filter_map(|_| system.start_time()).collect();
        starts.sort();
        if let Some(median) = starts.get(starts.len() / 2) {
            report.notes.push(format!(
                "{}: {:.1} ms from start to first stat",
                system.name,
                median.as_secs_f64() * 1e3
            ));
        }
    }
    report.write(&options.out)?;
    println!("{}", report.markdown());
    Ok(())
}

// The environment of this process is read in many places; setting it in a running process is not safe.
fn rerun(dir: &std::path::Path) -> Result<()> {
    let status = std::process::Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env("TESTS_BIN_DIR", dir)
        .status()?;
    anyhow::ensure!(status.success(), "the benchmark failed");
    Ok(())
}

fn systems(options: &Options) -> Result<Vec<System>> {
    let wanted = |name: &str| options.systems.iter().any(|system| system == name);
    let args: Vec<&str> = options.mount_args.iter().map(String::as_str).collect();
    let mut systems = vec![System::ext4()?];
    for (name, on) in [("sqlite", Database::Sqlite), ("postgres", Database::Postgres)] {
        if wanted(name) {
            systems.push(System::tarbox(on, &args)?);
        }
    }
    if let (true, Some(command)) = (wanted("null"), &options.null) {
        systems.push(System::null(command)?);
    }
    if wanted("juicefs") {
        for on in [Database::Sqlite, Database::Postgres] {
            systems.extend(System::juicefs(on)?);
        }
    }
    Ok(systems)
}
