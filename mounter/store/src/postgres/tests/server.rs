//! What only a real server shows: outages, lost answers, clocks, plans.

use std::time::{Duration, Instant};

use bytes::Bytes;
use sqlx::Row;
use tarbox_types::{ErrorKind, ROOT_INO, SessionId};
use uuid::Uuid;

use super::conformance::server;
use crate::{conformance::writer::*, postgres::testing::Server, *};

/// Polls until `done` gives something.
async fn until<T>(mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(value) = done().await {
            return value;
        }
        assert!(Instant::now() < deadline, "it did not come about within 30 seconds");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_that_open_an_empty_database_at_once_all_succeed() {
    let url = server().url(&server().database().await.unwrap());
    let all = (0..4).map(|_| {
        tokio::spawn({
            let url = url.clone();
            async move { crate::open(&url).await }
        })
    });
    for opened in all.collect::<Vec<_>>() {
        let db = opened.await.unwrap().unwrap();
        assert_eq!(db.schema_version().await.unwrap().version, 7);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_unavailable_and_what_was_committed_survives_it() {
    let server = Server::start("").unwrap();
    let url = server.url(&server.database().await.unwrap());
    let db = crate::open(&url).await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    let (ino, _) = writer.file("before", &[7; 8192]).await;
    for crash in [true, false] {
        if crash {
            server.crash().unwrap()
        } else {
            server.stop().unwrap()
        }
        let error = writer.try_commit(|_| ()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        let view = View { chain: vec![Link { branch: 1, layer: i64::MAX, ino_floor: 0 }] };
        let error = writer.store.inode(&view, ino).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        let error = crate::open(&url).await.err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        server.start_again().unwrap();
        until(async || writer.try_commit(|_| ()).await.ok()).await;
        let view = writer.head().await;
        assert_eq!(bytes_of(&*writer.store, &view, uncut(ino), &[0]).await[&0], [7; 8192]);
        // Connections that died in the pool are not noticed by who only reads.
        server.stop().unwrap();
        server.start_again().unwrap();
        until(async || server.connect("postgres").await.ok()).await;
        assert!(writer.store.inode(&view, ino).await.unwrap().is_some());
    }
}

/// The backend goes on after its client is gone: the commit is done once, by it or by the retry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_is_done_once() {
    let database = server().database().await.unwrap();
    let db = crate::open(&server().url(&database)).await.unwrap();
    let mut writer = Writer::create(db, "one").await;
    for kill in [false, true] {
        let mut lock = server().connect(&database).await.unwrap();
        sqlx::raw_sql("BEGIN; SELECT * FROM tarbox.tenant FOR UPDATE").execute(&mut lock).await.unwrap();
        let ino = writer.number();
        let seq = writer.seq;
        let batch = Batch { inodes: vec![file(ino, 0)], ..writer.batch() };
        let (store, fence, sent) = (writer.store.clone(), writer.fence.clone(), batch.clone());
        let commit = tokio::spawn(async move { store.commit(&fence, &sent).await });
        let waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        let pid: i32 =
            until(async || sqlx::query_scalar(waiting).fetch_optional(&mut lock).await.unwrap()).await;
        if kill {
            sqlx::query("SELECT pg_terminate_backend($1)").bind(pid).execute(&mut lock).await.unwrap();
            let error = commit.await.unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        } else {
            commit.abort();
            assert!(commit.await.unwrap_err().is_cancelled());
        }
        sqlx::raw_sql("COMMIT").execute(&mut lock).await.unwrap();
        match writer.store.commit(&writer.fence, &batch).await {
            Ok(_) => {}
            Err(StoreError::Position { expected, found }) => {
                assert_eq!((expected, found, kill), (seq, seq + 1, false));
            }
            Err(error) => panic!("{error:?}"),
        }
        writer.seq += 1;
        assert_eq!(writer.store.head().await.unwrap().0.seq, writer.seq);
        assert!(writer.store.inode(&writer.head().await, ino).await.unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_and_a_conflict_are_told_apart() {
    let database = server().database().await.unwrap();
    let db = crate::open(&server().url(&database)).await.unwrap();
    let mut writer = Writer::create(db, "one").await;
    let raise = |code: &str, times: u32| {
        format!(
            "CREATE SEQUENCE raised; CREATE FUNCTION raise() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               IF nextval('tarbox.raised') <= {times} THEN RAISE 'made up' USING ERRCODE = '{code}'; END IF;
               RETURN new; END $$;
             CREATE TRIGGER raise BEFORE UPDATE ON tenant FOR EACH ROW EXECUTE FUNCTION raise();"
        )
    };
    let clear = "DROP TRIGGER raise ON tenant; DROP FUNCTION raise(); DROP SEQUENCE raised";
    server().run(&database, &raise("53100", 1)).await.unwrap();
    let error = writer.try_commit(|_| ()).await.unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
    server().run(&database, clear).await.unwrap();
    for code in ["40P01", "40001"] {
        server().run(&database, &raise(code, 3)).await.unwrap();
        writer.try_commit(|_| ()).await.unwrap();
        server().run(&database, clear).await.unwrap();
    }
}

/// A lease of half a second, in real time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_lease_is_given_after_a_lease_time_of_heartbeats() {
    let lease = Duration::from_millis(500);
    let url = format!("{}?tarbox_lease=0.5", server().url(&server().database().await.unwrap()));
    let db = crate::open(&url).await.unwrap();
    let mut holder = Writer::create(db.clone(), "one").await;
    let tenant = holder.fence.tenant;
    let claimant = session(&*db).await;
    assert_eq!(db.beat(holder.session).await.unwrap().valid_for, lease);
    let last_beat = Instant::now();
    // An outage: nobody renews for three lease times. Whoever comes first afterwards gets nothing yet,
    // and the holder, which commits without interruption, has its lease again.
    until(async || (last_beat.elapsed() > 3 * lease).then_some(())).await;
    for _ in 0..2 {
        db.beat(claimant).await.unwrap();
        let error = db.acquire(tenant, claimant).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    }
    holder.commit(|_| ()).await;
    let renewed = Instant::now();
    let beat = db.beat(holder.session).await.unwrap();
    assert_eq!((beat.tenants[0].epoch, beat.tenants[0].wanted), (holder.fence.epoch, true));
    // Now the holder is gone for good, and the claimant goes on.
    let taken = until(async || {
        db.beat(claimant).await.unwrap();
        db.acquire(tenant, claimant).await.ok()
    })
    .await;
    assert!(renewed.elapsed() >= 2 * lease, "after {:?}", renewed.elapsed());
    assert_eq!(taken.previous, holder.fence);
    assert_eq!(holder.try_commit(|_| ()).await.unwrap_err().kind(), ErrorKind::Fenced);
    let beat = db.beat(holder.session).await.unwrap();
    assert_eq!(beat.tenants[0].epoch, taken.fence.epoch, "the loser learns of it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_of_this_boot_whose_process_is_gone_is_not_waited_for() {
    let db = crate::open(&server().url(&server().database().await.unwrap())).await.unwrap();
    let tenant = db.create_tenant(&new_tenant("one")).await.unwrap().id;
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned();
    let open = async |node: &str, pid: u32, start_time: u64| {
        let id = SessionId(Uuid::new_v4());
        let new = NewSession { id, node: node.into(), boot_id: boot_id.clone(), pid, start_time };
        db.open_session(&new).await.unwrap();
        id
    };
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let start_time = stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap().parse().unwrap();
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let (me, dead) = (std::process::id(), child.id());
    let claimant = open("here", me, start_time).await;
    for (node, pid, start_time, is_gone) in [
        ("here", dead, 77, true),
        ("here", me, start_time + 1, true),
        ("here", me, start_time, false),
        ("there", dead, 77, false),
    ] {
        let holder = open(node, pid, start_time).await;
        let held = db.acquire(tenant, holder).await.unwrap();
        match db.acquire(tenant, claimant).await {
            Ok(lease) => {
                assert!(is_gone, "{node} {pid}");
                db.release(&lease.fence).await.unwrap();
            }
            Err(error) => {
                assert!(!is_gone && error.kind() == ErrorKind::Busy, "{node} {pid}: {error}");
                db.release(&held.fence).await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_nothing_holds_no_connection() {
    let database = server().database().await.unwrap();
    let db = crate::open(&server().url(&database)).await.unwrap();
    let mut other = server().connect("postgres").await.unwrap();
    // Not the server's own workers, which look after every database.
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'";
    let mut count =
        async || -> i64 { sqlx::query_scalar(sql).bind(&database).fetch_one(&mut other).await.unwrap() };
    // The server still shows for a while what is being closed: that must not count beside what comes now.
    until(async || (count().await == 0).then_some(())).await;
    let tasks = (0..20).map(|_| {
        tokio::spawn({
            let db = db.clone();
            async move { db.tenants().await }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap().unwrap();
    }
    let mut most = 0;
    until(async || {
        let open = count().await;
        most = most.max(open);
        (open == 0).then_some(())
    })
    .await;
    assert!((1..=8).contains(&most), "{most}");
    assert!(db.tenants().await.unwrap().is_empty());
}

/// Before there are any statistics: the tables have just been made. Plans stay as they were made then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_found_by_their_keys_from_the_first_day() {
    let database = server().database().await.unwrap();
    let db = crate::open(&server().url(&database)).await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    let numbers: Vec<_> = (0..3000).map(|_| writer.number()).collect();
    writer
        .commit(|batch| {
            for ino in &numbers {
                batch.inodes.push(file(*ino, 8));
                batch.entries.push(entry(ROOT_INO, &format!("n{ino}"), *ino, REG, *ino));
                batch.extents.push(inline_extent(*ino, 0, b"x"));
                batch.patches.push(PatchRow {
                    did: *ino,
                    blk: 1,
                    seq: 1,
                    off: 0,
                    data: Bytes::from_static(b"p"),
                });
            }
        })
        .await;
    let kept = writer.seal("kept").await;
    let mut before = fetched(&database).await;
    for round in 0..2u64 {
        let head = writer.head().await;
        for view in [&head, &kept] {
            for ino in &numbers[..30] {
                let name = format!("n{ino}");
                writer.store.lookup(view, ROOT_INO, name.as_bytes()).await.unwrap().unwrap();
                writer.store.inode(view, *ino).await.unwrap().unwrap();
                writer.store.extents(view, uncut(*ino), 0..9).await.unwrap();
                assert_eq!(writer.store.read(view, uncut(*ino), &[0, 1]).await.unwrap().len(), 2);
            }
        }
        for chunk in numbers[..300].chunks(10) {
            writer
                .commit(|batch| {
                    for ino in chunk {
                        batch.inodes.push(file(*ino, round));
                        batch.xattrs.push((*ino, Some(Bytes::from_static(b"x"))));
                        batch.patches.push(PatchRow {
                            did: *ino,
                            blk: 1,
                            seq: 9 + round,
                            off: 0,
                            data: Bytes::from_static(b"q"),
                        });
                        batch.extents.push(inline_extent(*ino, 0, b"y"));
                    }
                    for ino in &chunk[..2] {
                        batch.removed_entries.push((ROOT_INO, Bytes::from(format!("n{ino}")), *ino));
                        batch.entries.push(entry(ROOT_INO, &format!("m{ino}-{round}"), *ino, REG, *ino));
                        batch.truncated.push((*ino, 2));
                        batch.removed_extents.push((*ino + 1_000_000, 5));
                    }
                })
                .await;
        }
        if round == 0 {
            // Names that lookups below need again.
            let back: Vec<_> = numbers[..300].chunks(10).flat_map(|chunk| chunk[..2].to_vec()).collect();
            writer
                .commit(|batch| {
                    batch
                        .entries
                        .extend(back.iter().map(|ino| entry(ROOT_INO, &format!("n{ino}"), *ino, REG, *ino)))
                })
                .await;
        }
    }
    drop((writer, db));
    // About 300 keys a round and table are asked for, some a few times; a walk through a table or an index would
    // touch thousands of rows for each.
    let mut after = fetched(&database).await;
    for (table, rows) in &mut after {
        let touched = *rows - before.remove(table).unwrap_or_default();
        assert!(touched < 20_000, "{table}: {touched} index entries were read");
    }
}

/// Rows read from each table so far, through any index or without one, as soon as the server has counted them.
async fn fetched(database: &str) -> std::collections::BTreeMap<String, i64> {
    let mut other = server().connect(database).await.unwrap();
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'tarbox'
                  AND state <> 'idle'";
    until(async || {
        (sqlx::query_scalar::<_, i64>(open).fetch_one(&mut other).await.unwrap() == 0).then_some(())
    })
    .await;
    let rows = sqlx::query(
        "SELECT t.relname::text, (t.seq_tup_read + sum(i.idx_tup_read))::bigint FROM pg_stat_user_tables t
         JOIN pg_stat_user_indexes i USING (relid) WHERE t.schemaname = 'tarbox' GROUP BY t.relname, t.seq_tup_read",
    )
    .fetch_all(&mut other)
    .await
    .unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_paused_and_lost_the_lead_writes_nothing() {
    let url = server().url(&server().database().await.unwrap());
    let (old, new) = (crate::open(&url).await.unwrap(), crate::open(&url).await.unwrap());
    let term = Duration::from_millis(200);
    let lead = old.lead(Uuid::new_v4(), term).await.unwrap().unwrap();
    let led = old.led_by(&lead);
    let id = led.create_tenant(&new_tenant("one")).await.unwrap().id;
    tokio::time::sleep(term * 2).await;
    // Nobody has taken it over yet: nothing stands against the old one.
    led.delete_tenant(id, InUse::Refuse).await.unwrap();
    let other = new.lead(Uuid::new_v4(), term).await.unwrap().unwrap();
    assert!(other.epoch > lead.epoch);
    let refused = |done: crate::Result<()>| assert!(matches!(done, Err(StoreError::NotLeading)));
    refused(led.reap_tenant(id).await.map(drop));
    refused(led.forget_snapshot(Uuid::new_v4()).await);
    refused(led.open_tenant(id).await.unwrap().collect().await.map(drop));
    assert!(led.tenant(id).await.unwrap().is_some(), "it reads");
    while !new.led_by(&other).reap_tenant(id).await.unwrap() {}
}
