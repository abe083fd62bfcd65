//! Many volumes at once, from their making to their end.

use std::{
    fs,
    path::Path,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use tarbox_tests::{
    controller::{Caller, Controller, volume},
    deadline::wait_for,
    node::{Node, NodePlan, Published},
    on_each_database,
    postgres::PostgresServer,
    volume::Database,
};

const VOLUMES: usize = 200;
const LIMIT: Duration = Duration::from_secs(120);
const GIB: i64 = 1 << 30;

/// How long each of the calls of one kind took.
fn at_once<T: Sync, R: Send>(call: &str, on: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let times = Mutex::new(Vec::new());
    let done = thread::scope(|scope| {
        let calls: Vec<_> = on
            .iter()
            .map(|one| {
                let (work, times) = (&work, &times);
                scope.spawn(move || {
                    let begun = Instant::now();
                    let done = work(one);
                    times.lock().expect("no panic").push(begun.elapsed());
                    done
                })
            })
            .collect();
        calls.into_iter().map(|ended| ended.join().unwrap_or_else(|_| panic!("{call}"))).collect()
    });
    let mut times = times.into_inner().expect("no panic");
    times.sort_unstable();
    let at = |share: usize| times[times.len() * share / 100];
    println!("{call}: p50 {:?}, p99 {:?}, longest {:?}", at(50), at(99), times[times.len() - 1]);
    done
}

/// Tables of the database that still have rows, but for what is there from the beginning.
fn rows_left(server: &PostgresServer) -> Vec<String> {
    let ask = |statement: &str| server.sql("tarbox", statement).expect("an answer");
    let tables = ask("SELECT tablename FROM pg_tables WHERE schemaname = 'tarbox'");
    let tables = tables.lines().map(str::trim).filter(|table| !table.is_empty());
    let counted = tables.map(|table| (table, ask(&format!("SELECT count(*) FROM tarbox.{table}"))));
    let ours = |table: &str| ["schema", "version", "leader", "node"].iter().any(|word| table.contains(word));
    counted
        .filter(|(table, count)| !ours(table) && count.trim() != "0")
        .map(|(table, count)| format!("{table}: {}", count.trim()))
        .collect()
}

/// Directories of families that are still there.
fn families_left(url: &str) -> Vec<String> {
    let directory = url.strip_prefix("sqlite://").expect("an SQLite database");
    let entries = fs::read_dir(Path::new(directory)).expect("list").flatten();
    entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.path().display().to_string()).collect()
}

on_each_database! {
    #[ignore = "minutes long: make volumes"]
    fn two_hundred_volumes_are_made_used_and_deleted_at_once_and_leave_nothing(database) {
        let server = (database == Database::Postgres).then(|| PostgresServer::start().expect("PostgreSQL"));
        let url = server.as_ref().map(PostgresServer::url);
        let words = vec!["--stand-by".to_owned(), "false".to_owned()];
        let node = Node::with(NodePlan { url, words, in_memory: true, ..NodePlan::default() }).expect("a node");
        let controller = Controller::start(node.path(), node.url()).expect("a controller");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let caller = runtime.block_on(controller.caller()).expect("reach");
        let ask = || -> Caller { caller.clone() };

        let numbers: Vec<usize> = (0..VOLUMES).collect();
        let ids = at_once("CreateVolume", &numbers, |number| {
            let made = runtime.block_on(ask().create(volume(&format!("pvc-{number}"), GIB)));
            made.unwrap_or_else(|status| panic!("{status}")).volume_id
        });
        let volumes: Vec<Published> =
            ids.iter().enumerate().map(|(number, id)| Published::new(node.path(), id, &format!("v{number}"))).collect();
        let call = |call: &'static str| {
            at_once(call, &volumes, |volume| {
                node.call(call, &volume.words()).unwrap_or_else(|error| panic!("{error:#}"))
            });
        };
        call("stage");
        call("publish");
        at_once("use", &volumes, |volume| {
            for file in 0..20 {
                fs::write(volume.target.join(format!("f{file}")), format!("{} {file}", volume.id)).expect("write");
            }
            fs::File::open(volume.target.join("f0")).and_then(|file| file.sync_all()).expect("fsync");
            assert_eq!(fs::read_to_string(volume.target.join("f19")).expect("read"), format!("{} 19", volume.id));
        });
        let snapshots = at_once("CreateSnapshot", &volumes, |volume| {
            let made = runtime.block_on(ask().snapshot(&format!("s-{}", volume.id), &volume.id));
            made.unwrap_or_else(|status| panic!("{status}")).snapshot_id
        });
        at_once("DeleteSnapshot", &snapshots, |id| {
            runtime.block_on(ask().delete_snapshot(id)).unwrap_or_else(|status| panic!("{status}"));
        });
        call("unpublish");
        call("unstage");
        at_once("DeleteVolume", &volumes, |volume| {
            runtime.block_on(ask().delete(&volume.id)).unwrap_or_else(|status| panic!("{status}"));
        });
        let begun = Instant::now();
        let left = || match &server {
            Some(server) => rows_left(server),
            None => families_left(node.url()),
        };
        wait_for("nothing left in the database", LIMIT * 3, || left().is_empty().then_some(()))
            .unwrap_or_else(|_| panic!("{:?}\n{}", left(), controller.log()));
        println!("reaped within {:?}", begun.elapsed());
        wait_for("nothing left on the node", LIMIT, || node.left_over().is_empty().then_some(()))
            .unwrap_or_else(|_| panic!("{:?}", node.left_over()));
    }
}
