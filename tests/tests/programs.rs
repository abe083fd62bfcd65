//! Real programs inside a mount, as somebody would use it.

use std::{fs, path::Path, process::Command, time::Duration};

use tarbox_tests::{
    command::{self, shell, succeed},
    on_each_database,
    postgres::PostgresServer,
    scratch::Scratch,
    sources, tree,
    volume::Volume,
};

const LIMIT: Duration = Duration::from_secs(300);

/// Fills a directory with a source tree of so many files, and packs it as `tree.tar` beside it.
fn packed_tree(scratch: &Scratch, files: u64) -> std::path::PathBuf {
    let tree = scratch.sub("tree").expect("tree");
    let count = sources::make_tree(&tree, files).expect("a source tree");
    assert!(count >= files, "{count} files");
    let tar = scratch.path().join("tree.tar");
    succeed(Command::new("tar").args(["--xattrs", "-cf"]).arg(&tar).arg("-C").arg(&tree).arg("."), LIMIT)
        .expect("tar");
    tar
}

fn untar(tar: &Path, to: &Path) {
    succeed(Command::new("tar").args(["--xattrs", "-xpf"]).arg(tar).arg("-C").arg(to), LIMIT).expect("untar");
}

on_each_database! {
    fn a_source_tree_of_10000_files_is_the_same_in_everything_also_after_a_remount(on) {
        let scratch = Scratch::on_ext4().expect("ext4");
        let tar = packed_tree(&scratch, 10_000);
        let mut volume = Volume::new(on);
        let at = volume.at("tree");
        fs::create_dir(&at).expect("mkdir");
        untar(&tar, &at);
        let original = tree::read(&scratch.path().join("tree")).expect("the original");
        tree::assert_same("after untar", &original, &tree::read(&at).expect("the copy"));
        succeed(Command::new("diff").args(["-r", "--no-dereference"]).arg(scratch.path().join("tree")).arg(&at), LIMIT).expect("diff -r");
        volume.remount();
        tree::assert_same("after a remount", &original, &tree::read(&at).expect("the copy"));
        fs::remove_dir_all(volume.at("tree/odd")).expect("rm -r of a part");
        succeed(Command::new("rm").arg("-rf").arg(&at), LIMIT).expect("rm -rf");
        assert_eq!(fs::read_dir(volume.path()).expect("list").count(), 0);
        volume.stop();
        volume.fsck();
    }

    fn rsync_of_a_tree_with_links_and_attributes_shows_no_difference(on) {
        let scratch = Scratch::on_ext4().expect("ext4");
        packed_tree(&scratch, 2_000);
        let mut volume = Volume::new(on);
        let script = r#"rsync -aHAX "$1/" "$2/"
            test -z "$(rsync -aHAX --checksum --dry-run --itemize-changes --delete "$1/" "$2/")""#;
        let at = volume.at("copy");
        shell(volume.path(), script, &[&scratch.path().join("tree"), &at], LIMIT).expect("rsync");
        volume.remount();
        let script = r#"test -z "$(rsync -aHAX --checksum --dry-run --itemize-changes --delete "$1/" "$2/")""#;
        shell(volume.path(), script, &[&scratch.path().join("tree"), &at], LIMIT).expect("rsync after a remount");
    }

    fn git_clones_commits_collects_and_finds_nothing_wrong(on) {
        let scratch = Scratch::on_ext4().expect("ext4");
        packed_tree(&scratch, 1_500);
        let mut volume = Volume::new(on);
        let identity = "export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b";
        let prepare = format!(r#"{identity}; rm -rf tree/odd; cd tree; git init -q -b main; git add -A; git commit -qm first"#);
        shell::<&str>(scratch.path(), &prepare, &[], LIMIT).expect("a repository");
        let work = format!(r#"{identity}; git clone -q "$1" clone; cd clone; test -z "$(git status --porcelain)"
            for i in 1 2 3 4 5; do echo "$i" > "file$i"; git add -A; git commit -qm "commit $i"; done
            git checkout -q -b other HEAD~3; echo x > other; git add -A; git commit -qm other
            git checkout -q main; git merge -q --no-edit other; git gc -q --prune=now; git fsck --full --strict
            test -z "$(git status --porcelain)"; git log --oneline | wc -l"#);
        let commits = shell(volume.path(), &work, &[scratch.path().join("tree")], LIMIT).expect("git");
        assert_eq!(commits.trim(), "8");
        volume.remount();
        let check = r#"cd clone; git -c safe.directory='*' fsck --full --strict; test -z "$(git -c safe.directory='*' status --porcelain)""#;
        shell::<&str>(volume.path(), check, &[], LIMIT).expect("git after a remount");
    }

    fn cargo_builds_a_crate_with_build_scripts_and_macros(on) {
        let volume = Volume::new(on);
        // From the registry, through cargo's own door: a crate with a procedural macro and a build script among its dependencies.
        let script = r#"unset CARGO_TARGET_DIR; cargo init -q --vcs none --name app app; cd app
            cargo add -q serde@1 --features derive; cargo add -q serde_json@1 anyhow@1
            cat > src/main.rs <<'END'
#[derive(serde::Serialize)]
struct Answer { value: u32 }
fn main() -> anyhow::Result<()> { println!("{}", serde_json::to_string(&Answer { value: 42 })?); Ok(()) }
END
            cargo build -q; ./target/debug/app; touch src/main.rs; cargo run -q; cargo clean -q"#;
        let said = shell::<&str>(volume.path(), script, &[], LIMIT).expect("cargo");
        assert_eq!(said, "{\"value\":42}\n{\"value\":42}\n");
    }

    fn npm_installs_a_package_that_works(on) {
        let volume = Volume::new(on);
        let script = r#"mkdir app cache; cd app; npm init -y >/dev/null
            npm install --no-audit --no-fund --cache ../cache express@4 >&2
            node -e 'const e = require("express"); e(); console.log(typeof e.Router)'; npm ls >/dev/null; rm -rf node_modules"#;
        assert_eq!(shell::<&str>(volume.path(), script, &[], LIMIT).expect("npm"), "function\n");
    }

    fn pip_installs_a_package_that_works(on) {
        let volume = Volume::new(on);
        let script = r#"python3 -m venv env; ./env/bin/pip install -q --no-input --disable-pip-version-check --cache-dir ./cache requests==2.32.3
            ./env/bin/python -c 'import requests; print(requests.__version__)'"#;
        assert_eq!(shell::<&str>(volume.path(), script, &[], LIMIT).expect("pip"), "2.32.3\n");
    }

    fn sqlite_in_wal_mode_with_several_writers_keeps_its_integrity(on) {
        let mut volume = Volume::new(on);
        let script = r#"sqlite3 t.db 'PRAGMA journal_mode=WAL; CREATE TABLE t(who INT, n INT, filler BLOB, PRIMARY KEY(who, n))' >/dev/null
            writer() { for n in $(seq 100); do echo "INSERT INTO t VALUES($1, $n, randomblob(1500));"; done | sqlite3 -bail -cmd '.timeout 60000' t.db; }
            writer 1 & one=$!; writer 2 & two=$!; writer 3 & three=$!; wait $one; wait $two; wait $three
            sqlite3 t.db 'PRAGMA integrity_check; SELECT count(*), sum(length(filler)) FROM t; UPDATE t SET filler = randomblob(3000) WHERE n % 2; VACUUM; PRAGMA integrity_check'"#;
        let said = shell::<&str>(volume.path(), script, &[], LIMIT).expect("sqlite3");
        assert_eq!(said, "ok\n300|450000\nok\n");
        volume.remount();
        let said = shell::<&str>(volume.path(), "sqlite3 t.db 'PRAGMA integrity_check; SELECT count(*), sum(length(filler)) FROM t'", &[], LIMIT);
        assert_eq!(said.expect("sqlite3 after a remount"), "ok\n300|675000\n");
    }

    fn postgresql_runs_in_it_restarts_and_survives_its_own_crash(on) {
        let volume = Volume::new(on);
        let mut server = PostgresServer::start_at(&volume.at("pg")).expect("PostgreSQL inside the mount");
        server.bench(&["-i", "-q", "-s", "2"]).expect("pgbench -i");
        server.bench(&["-c", "2", "-T", "5"]).expect("pgbench");
        let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM pgbench_branches), (SELECT count(*) FROM pgbench_accounts)";
        server.stop().expect("stop");
        server.resume().expect("start again");
        assert_eq!(server.sql("tarbox", sums).expect("sums"), "t|200000\n");
        server.bench(&["-c", "2", "-T", "2"]).expect("pgbench");
        server.crash().expect("crash");
        server.resume().expect("recovery");
        assert_eq!(server.sql("tarbox", sums).expect("sums"), "t|200000\n");
    }

    fn stress_ng_finds_nothing(on) {
        let volume = Volume::new(on);
        let seconds = std::env::var("TESTS_STRESS_SECONDS").unwrap_or_else(|_| "10".into());
        let mut stress = Command::new("stress-ng");
        stress.args(["--verify", "--timeout", &seconds, "--temp-path"]).arg(volume.path());
        for stressor in STRESSORS {
            stress.args([&format!("--{stressor}"), "1"]);
        }
        stress.args(["--hdd-bytes", "32m", "--fallocate-bytes", "32m", "--iomix-bytes", "32m"]);
        stress.args(["--copy-file-bytes", "128m", "--readahead-bytes", "16m", "--sync-file-bytes", "16m", "--seek-size", "16m"]);
        let ended = command::end_of(stress.current_dir(volume.path()), LIMIT).expect("stress-ng");
        let said = ended.stdout + &ended.stderr;
        assert!(ended.code == Some(0) && !said.contains("fail:"), "stress-ng ended with {:?}:\n{said}", ended.code);
        assert_eq!(fs::read_dir(volume.path()).expect("list").count(), 0, "it left something behind");
    }
}

const STRESSORS: [&str; 29] = [
    "hdd",
    "dentry",
    "dir",
    "dirdeep",
    "dirmany",
    "fallocate",
    "flock",
    "fcntl",
    "fstat",
    "getdent",
    "iomix",
    "link",
    "lockf",
    "mknod",
    "open",
    "rename",
    "seek",
    "symlink",
    "touch",
    "utime",
    "xattr",
    "chmod",
    "chown",
    "copy-file",
    "sendfile",
    "readahead",
    "sync-file",
    "filename",
    "io",
];
