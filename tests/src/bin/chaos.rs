//! `make chaos`: applications work while everything that serves them is killed, stopped, starved and replaced.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use tarbox_tests::{
    chaos::{
        loads::{self, Load},
        plan::Group,
        report::Report,
        run::{self, Options},
    },
    rng,
    scratch::require_root,
    volume::Database,
};
use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Disturbs a node under load, and reports what its applications noticed. Exit code 1 if they noticed more than pauses.
#[derive(Parser)]
#[command(name = "chaos", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Inner>,
    /// How long events come, all runs together
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// What the plan is drawn from [default: the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// What happens [default: everything]
    #[arg(long, value_enum, value_delimiter = ',')]
    kinds: Vec<Group>,
    /// How many tenants there are
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    tenants: u8,
    /// Where they are kept
    #[arg(long, value_enum, default_value = "sqlite")]
    database: Kept,
    /// Whether the kernel may be asked to send requests again
    #[arg(long, value_enum, default_value = "both")]
    resend: Resend,
    /// How long a load rests after each step, in milliseconds: 0 is as much load as there can be, more shows pauses apart from it
    #[arg(long, value_name = "MS", default_value_t = 0)]
    rest: u64,
    /// Where the report goes
    #[arg(long, default_value = "chaos-results")]
    report: PathBuf,
}

#[derive(Subcommand)]
enum Inner {
    /// One load, as this program starts it
    #[command(hide = true)]
    Load {
        load: Load,
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        scratch: PathBuf,
        #[arg(long)]
        seed: u64,
        #[arg(long)]
        rest: u64,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Kept {
    Sqlite,
    Postgres,
}

#[derive(Clone, Copy, ValueEnum)]
enum Resend {
    On,
    Masked,
    Both,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Inner::Load { load, dir, scratch, seed, rest }) = arguments.command {
        return done(loads::run(load, &dir, &scratch, seed, Duration::from_millis(rest)).map(|()| true));
    }
    require_root();
    done(chaos(&arguments))
}

fn done(outcome: Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every run was clean.
fn chaos(arguments: &Arguments) -> Result<bool> {
    if std::env::var_os("TESTS_BIN_DIR").is_none() {
        // What is tried is what is shipped: the programs beside this one.
        return rerun();
    }
    heed_signals()?;
    let ways: &[bool] = match arguments.resend {
        Resend::On => &[true],
        Resend::Masked => &[false],
        Resend::Both => &[true, false],
    };
    let seed = arguments.seed.unwrap_or_else(rng::seed);
    let database = match arguments.database {
        Kept::Sqlite => Database::Sqlite,
        Kept::Postgres => Database::Postgres,
    };
    let mut report = Report {
        seed,
        database: format!("{database:?}"),
        tenants: arguments.tenants.into(),
        runs: Vec::new(),
    };
    for resend in ways {
        let options = Options {
            time: Duration::try_from_secs_f64(arguments.minutes * 60.0 / ways.len() as f64)
                .context("--minutes")?,
            seed,
            groups: if arguments.kinds.is_empty() {
                Group::value_variants().to_vec()
            } else {
                arguments.kinds.clone()
            },
            tenants: arguments.tenants.into(),
            database,
            resend: *resend,
            rest: Duration::from_millis(arguments.rest),
        };
        eprintln!("chaos: seed {seed}, {database:?}, RESEND {}", if *resend { "on" } else { "masked" });
        let logs = arguments.report.join(if *resend { "logs-resend" } else { "logs-masked" });
        report.runs.push(run::run(&options, &logs, &INTERRUPTED)?);
        // What has been seen so far is there even if a later run fails.
        report.write(&arguments.report)?;
    }
    println!("{}", report.markdown());
    println!("{}", arguments.report.join("report.md").display());
    Ok(report.is_clean())
}

// The environment of this process is read in many places; setting it in a running process is not safe.
fn rerun() -> Result<bool> {
    use std::os::unix::process::CommandExt;
    let here = std::env::current_exe()?;
    let dir = here.parent().context("this program lies in a directory")?;
    anyhow::ensure!(
        ["tarbox-mount", "tarbox-agent", "tarbox-keeper", "tarbox"]
            .iter()
            .all(|name| dir.join(name).exists()),
        "the programs are not beside {}: run `make chaos`",
        here.display()
    );
    let mut again = std::process::Command::new(&here);
    // It takes this process's place, so that signals reach it.
    Err(again.args(std::env::args_os().skip(1)).env("TESTS_BIN_DIR", dir).exec().into())
}

/// SIGINT and SIGTERM end the run, not the process: everything is given back first.
fn heed_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
            }
            eprintln!("chaos: interrupted: giving everything back");
            INTERRUPTED.store(true, Ordering::SeqCst);
            std::future::pending::<()>().await;
        });
    });
    Ok(())
}
