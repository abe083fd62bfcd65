//! Tenants' logins: kept to their tenants by the server, and enough for all that a mounter does.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use sqlx::Row;
use tarbox_types::{ErrorKind, ROOT_INO, TenantId};
use uuid::Uuid;

use super::conformance::server;
use crate::{conformance::writer::*, postgres::testing::trespasses, *};

/// A database, opened by its owner.
struct Place {
    database: String,
    owner: Arc<dyn Database>,
}

impl Place {
    async fn new() -> Self {
        let database = server().database().await.unwrap();
        let owner = crate::open(&server().url(&database)).await.unwrap();
        Self { database, owner }
    }

    fn url(&self) -> String {
        server().url(&self.database)
    }

    /// The URL of a tenant's login on a node.
    async fn login(&self, tenant: TenantId, node: &str) -> String {
        match self.owner.make_login(tenant, node).await.unwrap() {
            Made::Login(Login { role, password }) => {
                tarbox_types::database_url::with_user(&self.url(), &role, Some(&password))
            }
            Made::Impossible(why) => panic!("{why}"),
        }
    }

    /// What a mounter has that is given a login.
    async fn mounter(&self, tenant: TenantId) -> Writer {
        let db = crate::open(&self.login(tenant, "node-7").await).await.unwrap();
        let session = session(&*db).await;
        Writer::acquire(db, tenant, session).await
    }

    async fn run(&self, sql: &str) {
        server().run(&self.database, sql).await.unwrap();
    }

    async fn number(&self, sql: &str) -> i64 {
        let mut conn = server().connect(&self.database).await.unwrap();
        let row = sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(&mut conn).await.unwrap();
        row.try_get(0).unwrap()
    }
}

/// Rows of every kind, in the present and in the past; the file's number.
async fn fill(writer: &mut Writer) -> u64 {
    let (ino, _) = writer.file("kept", &[1; 8192]).await;
    let (gone, _) = writer.file("gone", &[2; 8192]).await;
    let patch = |seq| PatchRow { did: ino, blk: 0, seq, off: 2, data: Bytes::from_static(b"patch") };
    writer
        .commit(|batch| {
            batch.xattrs.push((ino, Some(Bytes::from_static(b"old"))));
            batch.extents.push(inline_extent(ino, 1, b"inline"));
            batch.patches.push(patch(1));
        })
        .await;
    writer.seal("first").await;
    let header = writer.upload(&[3; 8192]).await;
    writer
        .commit(|batch| {
            batch.extents.push(block_extent(ino, 2, header.block));
            batch.headers.push(header);
            batch.inodes.push(InodeRow { uid: 77, ..file(ino, 9) });
            batch.xattrs.push((ino, Some(Bytes::from_static(b"new"))));
            batch.patches.push(patch(2));
            batch.removed_entries.push((ROOT_INO, Bytes::from_static(b"gone"), gone));
            batch.removed_inodes.push(gone);
            batch.removed_data.push(gone);
        })
        .await;
    // One that nothing refers to any more.
    writer.commit(|batch| batch.extents.push(inline_extent(ino, 2, b"instead"))).await;
    audit(writer).await;
    ino
}

async fn audit(writer: &mut Writer) {
    let seq = writer.seq + 1;
    let data = Bytes::from_static(b"who did what");
    writer
        .commit(|batch| batch.audit.push(AuditChunk { seq, part: 0, since: 1, until: 2, events: 1, data }))
        .await;
}

async fn keep_records(owner: &Arc<dyn Database>, tenant: TenantId) {
    let name = format!("pvc-{tenant}");
    owner
        .note_volume(&VolumeRecord { id: tenant, request: name.clone(), description: "{}".into() })
        .await
        .unwrap();
    owner.note_snapshot(&SnapshotRecord::new(tenant, name, Purpose::Snapshot)).await.unwrap();
    let layer = owner.open_tenant(tenant).await.unwrap().own_layers().await.unwrap().remove(0);
    let mode = tarbox_types::AccessMode::SingleNodeWriter;
    owner.publish(&Publication { tenant, node: "node-7".into(), mode, read_only: false }).await.unwrap();
    owner.note_node("node-7").await.unwrap();
    owner.tag(tenant, "good", layer.branch, layer.layer).await.unwrap();
}

/// A parent that went on after its clone began, the clone, and a stranger: each with everything that a tenant has.
async fn family_and_stranger(place: &Place) -> [TenantId; 3] {
    let mut parent = Writer::create(place.owner.clone(), "parent").await;
    fill(&mut parent).await;
    let fork = parent.seal("fork").await.chain[0];
    let new = new_tenant("clone");
    parent.store.branch_from(fork.branch, fork.layer, &new).await.unwrap();
    parent.file("later", &[4; 8192]).await;
    parent.seal("later").await;
    parent.file("last", &[5; 8192]).await;
    let mut stranger = Writer::create(place.owner.clone(), "stranger").await;
    fill(&mut stranger).await;
    let session = session(&*place.owner).await;
    let mut clone = Writer::acquire(place.owner.clone(), new.id, session).await;
    fill_clone(&mut clone).await;
    let all = [parent.fence.tenant, new.id, stranger.fence.tenant];
    for tenant in all {
        keep_records(&place.owner, tenant).await;
    }
    place.owner.lead(Uuid::new_v4(), Duration::from_secs(60)).await.unwrap().unwrap();
    place
        .run(
            "INSERT INTO prune (family, branch, above, below, upto, current) SELECT family, branch, -1, -1, -1, false FROM branch",
        )
        .await;
    all
}

/// What a clone has of its own, in the present and in the past.
async fn fill_clone(writer: &mut Writer) {
    let (ino, _) = writer.file("of the clone", &[6; 8192]).await;
    writer
        .commit(|batch| {
            batch.xattrs.push((ino, Some(Bytes::from_static(b"old"))));
            batch.patches.push(PatchRow { did: ino, blk: 0, seq: 1, off: 2, data: Bytes::from_static(b"p") });
        })
        .await;
    writer.seal("of the clone").await;
    writer
        .commit(|batch| {
            batch.inodes.push(InodeRow { uid: 77, ..file(ino, 9) });
            batch.xattrs.push((ino, None));
            batch.extents.push(inline_extent(ino, 0, b"new"));
        })
        .await;
    audit(writer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_can_do_nothing_to_others_in_any_table_nor_by_any_function() {
    let place = Place::new().await;
    for tenant in family_and_stranger(&place).await {
        let login = place.login(tenant, "node-7").await;
        let done = trespasses(&place.url(), &login).await.unwrap();
        assert!(done.is_empty(), "of {tenant}:\n{}", done.join("\n"));
    }
}

/// As the owner of the tables, everything is possible: the attempts are real ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_policies_the_same_attempts_succeed() {
    let place = Place::new().await;
    let [_, clone, _] = family_and_stranger(&place).await;
    let login = place.login(clone, "node-7").await;
    place
        .run("ALTER TABLE inode DISABLE ROW LEVEL SECURITY; ALTER TABLE tenant DISABLE ROW LEVEL SECURITY")
        .await;
    let done = trespasses(&place.url(), &login).await.unwrap();
    for attempt in [
        "SELECT 1 FROM tarbox.inode",
        "UPDATE tarbox.inode",
        "DELETE FROM tarbox.inode",
        "UPDATE tarbox.tenant SET token",
    ] {
        assert!(done.iter().any(|done| done.contains(attempt)), "{attempt}: {}", done.join("\n"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mounter_with_a_login_does_all_that_a_mounter_does() {
    let place = Place::new().await;
    let made = place.owner.create_tenant(&new_tenant("one")).await.unwrap();
    let mut mounter = place.mounter(made.id).await;
    let ino = fill(&mut mounter).await;
    assert_eq!(mounter.db.tenants().await.unwrap().len(), 1);
    let head = mounter.head().await;
    assert_eq!(names(&*mounter.store, &head, ROOT_INO).await, [("kept".to_owned(), ino)]);
    assert_eq!(mounter.store.xattrs(&head, ino).await.unwrap(), Some(Bytes::from_static(b"new")));
    assert_eq!(bytes_of(&*mounter.store, &head, uncut(ino), &[0, 1]).await[&1], b"inline");
    let hash = codec::hash(&[1; 8192]);
    let known = mounter.store.find_blocks(&[hash]).await.unwrap().remove(0).expect("it is there");
    let reused = mounter.number();
    mounter
        .commit(|batch| {
            batch.reused.push(known);
            batch.inodes.push(file(reused, 8192));
            batch.entries.push(entry(ROOT_INO, "same", reused, REG, reused));
            batch.extents.push(block_extent(reused, 0, known));
        })
        .await;
    // Checkpoints, as the control directory makes and drops them.
    let record = SnapshotRecord::new(made.id, "mine", Purpose::Checkpoint);
    mounter.db.note_snapshot(&record).await.unwrap();
    let seals = mounter.db.beat(mounter.session).await.unwrap().tenants.remove(0).seals;
    assert_eq!(seals, [record.seal()]);
    let sealed = mounter.commit(|batch| batch.seal = Some(record.seal())).await.sealed.expect("sealed");
    let layer = mounter.store.sealed(&record.seal().request).await.unwrap().expect("the layer");
    assert_eq!(layer.layer, sealed);
    mounter.db.settle_snapshot(record.id, &layer).await.unwrap();
    mounter.db.tag(made.id, "good", layer.branch, layer.layer).await.unwrap();
    assert_eq!(mounter.db.tags(made.id).await.unwrap().len(), 1);
    // Back and forth, on the connections that have seen the head before.
    let first = mounter.store.layer_named("first").await.unwrap().expect("the first one");
    for _ in 0..3 {
        let view = mounter.store.restore(&mounter.fence, first.branch, first.layer).await.unwrap();
        let found = names(&*mounter.store, &view, ROOT_INO).await;
        assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["gone", "kept"]);
        mounter.file("after", &[8; 8192]).await;
        let view = mounter.store.restore(&mounter.fence, layer.branch, layer.layer).await.unwrap();
        assert_eq!(names(&*mounter.store, &view, ROOT_INO).await.len(), 2);
        mounter
            .commit(|batch| {
                batch.patches.push(PatchRow {
                    did: ino,
                    blk: 0,
                    seq: 9,
                    off: 0,
                    data: Bytes::from_static(b"x"),
                })
            })
            .await;
    }
    assert!(mounter.store.layers().await.unwrap().len() >= 2);
    let error = mounter.store.delete_layer(first.branch, first.layer).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "a branch begins there: {error}");
    mounter.seal("to be dropped").await;
    let last = mounter.store.layer_named("to be dropped").await.unwrap().expect("it");
    mounter.store.delete_layer(last.branch, last.layer).await.unwrap();
    mounter.db.untag(made.id, "good").await.unwrap();
    mounter.db.forget_snapshot(record.id).await.unwrap();
    assert_eq!(mounter.store.collect().await.unwrap(), 0, "that is the owner's");
    mounter.db.release(&mounter.fence).await.unwrap();
    mounter.db.close_session(mounter.session).await.unwrap();
    // The owner prunes what was noted, and nothing else.
    let store = place.owner.open_tenant(made.id).await.unwrap();
    while store.collect().await.unwrap() > 0 {}
    assert_eq!(place.number("SELECT count(*) FROM tarbox.prune").await, 0);
    let head = store.head().await.unwrap().1;
    assert_eq!(bytes_of(&*store, &head, uncut(ino), &[1]).await[&1], b"inline");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clones_login_reads_what_it_began_with_and_nothing_younger() {
    let place = Place::new().await;
    let mut parent = Writer::create(place.owner.clone(), "parent").await;
    let (old, _) = parent.file("old", &[1; 8192]).await;
    let fork = parent.seal("fork").await.chain[0];
    let new = new_tenant("clone");
    parent.store.branch_from(fork.branch, fork.layer, &new).await.unwrap();
    let (young, _) = parent.file("young", &[2; 8192]).await;
    let mut clone = place.mounter(new.id).await;
    let head = clone.head().await;
    assert_eq!(names(&*clone.store, &head, ROOT_INO).await, [("old".to_owned(), old)]);
    assert_eq!(bytes_of(&*clone.store, &head, uncut(old), &[0]).await[&0], [1; 8192]);
    let parents = parent.head().await;
    assert!(clone.store.inode(&parents, young).await.unwrap().is_none());
    assert!(clone.store.lookup(&parents, ROOT_INO, b"young").await.unwrap().is_none());
    // It changes what it inherited, for itself.
    clone
        .commit(|batch| {
            batch.patches.push(PatchRow {
                did: old,
                blk: 0,
                seq: 1,
                off: 0,
                data: Bytes::from_static(b"mine"),
            })
        })
        .await;
    assert_eq!(bytes_of(&*clone.store, &clone.head().await, uncut(old), &[0]).await[&0][..4], *b"mine");
    assert_eq!(bytes_of(&*parent.store, &parents, uncut(old), &[0]).await[&0], [1; 8192]);
    // The parent's login sees nothing of the clone, and does not drop what that needs.
    parent.db.close_session(parent.session).await.unwrap();
    let parent = place.mounter(parent.fence.tenant).await;
    assert!(matches!(
        parent.store.delete_layer(fork.branch, fork.layer).await,
        Err(StoreError::LayerInUse { .. })
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_judged_between_logins_of_two_nodes() {
    let place = Place::new().await;
    let made = place.owner.create_tenant(&new_tenant("one")).await.unwrap();
    let first = place.mounter(made.id).await;
    let other = crate::open(&place.login(made.id, "node-8").await).await.unwrap();
    let session = session(&*other).await;
    // The holder's process is this one, which lives.
    let refused = other.acquire(made.id, session).await.unwrap_err();
    assert!(
        matches!(&refused, StoreError::Held { holder, .. } if holder.session == first.session),
        "{refused}"
    );
    assert!(first.db.beat(first.session).await.unwrap().tenants[0].wanted);
    // Who waits can neither renew nor end the holder's session.
    assert!(other.beat(first.session).await.is_err());
    first.db.close_session(first.session).await.unwrap();
    other.acquire(made.id, session).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_ends_with_its_node_or_with_its_tenant() {
    let place = Place::new().await;
    let made = place.owner.create_tenant(&new_tenant("one")).await.unwrap();
    let url = place.login(made.id, "node-7").await;
    let again = place.login(made.id, "node-7").await;
    assert_ne!(url, again, "another password");
    place.login(made.id, "node-8").await;
    let roles =
        format!("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'tarbox\\_{}\\_%'", made.id.0.simple());
    assert_eq!(place.number(&roles).await, 2);
    // What a login may make on a server as it is by default does not keep its role.
    let mut conn = <sqlx::PgConnection as sqlx::Connection>::connect(&again).await.unwrap();
    sqlx::raw_sql("SELECT lo_create(0)").execute(&mut conn).await.unwrap();
    place.owner.remove_login(made.id, "node-7").await.unwrap();
    place.owner.remove_login(made.id, "node-7").await.unwrap();
    assert_eq!(place.number(&roles).await, 1);
    place.owner.delete_tenant(made.id, InUse::Refuse).await.unwrap();
    while !place.owner.reap_tenant(made.id).await.unwrap() {}
    assert_eq!(place.number(&roles).await, 0);
    assert_eq!(place.number("SELECT count(*) FROM tarbox.login").await, 0);
    assert!(place.owner.make_login(made.id, "node-7").await.is_err(), "there is no such tenant");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_leaves_the_schema_as_it_is() {
    let place = Place::new().await;
    let made = place.owner.create_tenant(&new_tenant("one")).await.unwrap();
    let url = place.login(made.id, "node-7").await;
    crate::open(&url).await.unwrap();
    place.run("UPDATE schema_version SET version = version - 1").await;
    let error = crate::open(&url).await.err().expect("refused");
    assert!(matches!(error, StoreError::SchemaOld { .. }), "{error}");
    place.run("UPDATE schema_version SET version = version + 1, min_version = 1000").await;
    assert_eq!(crate::open(&url).await.err().expect("refused").kind(), ErrorKind::Incompatible);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_make_no_roles_says_so() {
    let place = Place::new().await;
    let database = &place.database;
    place
        .run(&format!(
            "CREATE ROLE plain_{database} LOGIN; GRANT ALL ON DATABASE {database} TO plain_{database}"
        ))
        .await;
    place.run("DROP SCHEMA tarbox CASCADE").await;
    let url = place.url().replace("postgres@", &format!("plain_{database}@"));
    let plain = crate::open(&url).await.unwrap();
    let made = plain.create_tenant(&new_tenant("one")).await.unwrap();
    for why in [
        match plain.isolation().await.unwrap() {
            Isolation::None(why) => why,
            other => panic!("{other:?}"),
        },
        match plain.make_login(made.id, "node-7").await.unwrap() {
            Made::Impossible(why) => why,
            Made::Login(login) => panic!("{login:?}"),
        },
    ] {
        assert!(why.contains("CREATEROLE"), "{why}");
    }
    // With the right to, it makes them, without being a superuser.
    place.run(&format!("ALTER ROLE plain_{database} CREATEROLE")).await;
    assert_eq!(plain.isolation().await.unwrap(), Isolation::Logins);
    assert!(matches!(plain.make_login(made.id, "node-7").await.unwrap(), Made::Login(_)));
    plain.remove_login(made.id, "node-7").await.unwrap();
}
