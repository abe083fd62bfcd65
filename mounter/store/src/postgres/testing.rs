//! A PostgreSQL server for tests: made in a temporary directory, reached by a socket there and by a loopback port,
//! gone when it is dropped, and also when the test's process dies.

mod trespass;

use std::{
    io::{self, BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use parking_lot::Mutex;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;

pub use trespass::trespasses;

/// Where the programs are looked for, the newest first, before `PATH`.
const VERSIONS: std::ops::RangeInclusive<u32> = 13..=19;

/// Parent of the server: does what it reads, and ends the server when nobody can write to it any more.
const KEEPER: &str = r#"
start() { "$0/postgres" -D "$1" >>"$1/server.log" 2>&1 & pid=$!; }
finish() { kill -s "$1" $pid 2>/dev/null; wait $pid; }
start "$1"; echo ok
while read -r command; do
    case $command in
        start) start "$1" ;;
        stop) finish INT ;;
        crash) finish QUIT ;;
    esac
    echo ok
done
finish INT
rm -rf "$(dirname "$1")"
"#;

/// A running server.
pub struct Server {
    data: PathBuf,
    port: u16,
    keeper: Mutex<Keeper>,
    databases: AtomicU32,
    _dir: TempDir,
}

struct Keeper {
    process: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Server {
    /// Makes and starts a server; further settings as lines of `postgresql.conf`.
    ///
    /// # Errors
    /// Where PostgreSQL is not installed, or, for root, where there is no user to run it as.
    pub fn start(settings: &str) -> io::Result<Self> {
        let bin = programs()?;
        let user = unprivileged()?;
        let dir = TempDir::with_prefix("tarbox-postgres-")?;
        let data = dir.path().join("data");
        std::fs::create_dir(&data)?;
        if let Some((uid, gid)) = user {
            chown(dir.path(), Some(uid), Some(gid))?;
            chown(&data, Some(uid), Some(gid))?;
        }
        let as_user = |program: &Path| {
            let mut command = Command::new(program);
            command.current_dir(dir.path()).stdin(Stdio::null());
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command
        };
        let made = as_user(&bin.join("initdb"))
            .args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(&data)
            .output()?;
        if !made.status.success() {
            return Err(io::Error::other(format!("initdb: {}", String::from_utf8_lossy(&made.stderr))));
        }
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut conf = std::fs::OpenOptions::new().append(true).open(data.join("postgresql.conf"))?;
        writeln!(
            conf,
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{}'\nmax_wal_size = 1GB\n{settings}",
            dir.path().display()
        )?;
        let mut process = as_user(Path::new("/bin/sh"))
            .args(["-c", KEEPER])
            .arg(&bin)
            .arg(&data)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let answers = process.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut keeper = Keeper { commands: process.stdin.take(), answers: BufReader::new(answers), process };
        keeper.answer()?;
        Ok(Self { data, port, keeper: Mutex::new(keeper), databases: AtomicU32::new(0), _dir: dir })
    }

    /// The URL of a database, by the loopback port.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// What the server wrote to its log.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data.join("server.log")).unwrap_or_default()
    }

    /// Makes an empty database; returns its name. Waits until the server answers.
    ///
    /// # Errors
    /// What the server says.
    pub async fn database(&self) -> Result<String, sqlx::Error> {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.run("postgres", &format!("CREATE DATABASE {name}")).await?;
        Ok(name)
    }

    /// Runs statements, in the schema `tarbox`. Waits until the server answers.
    ///
    /// # Errors
    /// What the server says.
    pub async fn run(&self, database: &str, sql: &str) -> Result<(), sqlx::Error> {
        let mut conn = self.connect(database).await?;
        sqlx::raw_sql("SET search_path = tarbox").execute(&mut conn).await?;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut conn).await?;
        conn.close().await
    }

    /// A connection of one's own. Waits for a server that starts, at most a minute.
    ///
    /// # Errors
    /// What the server says.
    pub async fn connect(&self, database: &str) -> Result<PgConnection, sqlx::Error> {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            match PgConnection::connect(&self.url(database)).await {
                Err(error) if is_starting(&error) && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
                done => return done,
            }
        }
    }

    /// Ends the server in order; connections break.
    ///
    /// # Errors
    /// Where its parent is gone.
    pub fn stop(&self) -> io::Result<()> {
        self.keeper.lock().command("stop")
    }

    /// Ends the server as a crash does; the next start recovers from its log.
    ///
    /// # Errors
    /// Where its parent is gone.
    pub fn crash(&self) -> io::Result<()> {
        self.keeper.lock().command("crash")
    }

    /// Starts the server again after [`Server::stop`] or [`Server::crash`].
    ///
    /// # Errors
    /// Where its parent is gone.
    pub fn start_again(&self) -> io::Result<()> {
        self.keeper.lock().command("start")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let keeper = self.keeper.get_mut();
        // The end of its input tells the parent to end the server.
        keeper.commands = None;
        let _ = keeper.process.wait();
    }
}

impl Keeper {
    fn command(&mut self, command: &str) -> io::Result<()> {
        let commands = self.commands.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        writeln!(commands, "{command}")?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<()> {
        let mut line = String::new();
        match self.answers.read_line(&mut line)? {
            0 => Err(io::ErrorKind::BrokenPipe.into()),
            _ => Ok(()),
        }
    }
}

fn is_starting(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(answer) => answer.code().as_deref() == Some("57P03"),
        _ => false,
    }
}

/// The directory of `initdb` and `postgres`.
fn programs() -> io::Result<PathBuf> {
    let of_debian = VERSIONS.rev().map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    of_debian
        .chain(std::env::split_paths(&path))
        .find(|dir| dir.join("initdb").is_file() && dir.join("postgres").is_file())
        .ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "PostgreSQL (initdb, postgres) is not installed")
        })
}

/// PostgreSQL refuses to run as root: the user it runs as then.
fn unprivileged() -> io::Result<Option<(u32, u32)>> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = nix::unistd::User::from_name(name)? {
            return Ok(Some((user.uid.as_raw(), user.gid.as_raw())));
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        "there is no user `postgres` or `nobody` to run PostgreSQL as",
    ))
}
