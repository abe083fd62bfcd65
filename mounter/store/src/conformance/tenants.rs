//! Tenants: made once, found by name, limited, deleted, reaped.

use tarbox_types::{ErrorKind, FIRST_INO, ROOT_INO, TenantId};

use super::{Site, writer::*};
use crate::*;

pub async fn making_a_tenant_twice_changes_nothing(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let new = new_tenant("one");
    let first = db.create_tenant(&new).await.unwrap();
    let mut writer = Writer::acquire(db.clone(), first.id, session(&*db).await).await;
    writer.file("f", b"bytes").await;
    let again = db.create_tenant(&NewTenant { block_size: 4096, ..new }).await.unwrap();
    assert_eq!((again.id, again.family, again.block_size), (first.id, first.family, BS));
    assert_eq!(again.used_inodes, 2);
    assert_eq!(db.tenants().await.unwrap().len(), 1);
}

pub async fn a_new_tenant_has_only_its_root(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let new = new_tenant("one");
    let made = db.create_tenant(&new).await.unwrap();
    let store = db.open_tenant(new.id).await.unwrap();
    let (tenant, view) = store.head().await.unwrap();
    assert_eq!((tenant.name.as_str(), tenant.limits, tenant.state), ("one", new.limits, TenantState::Live));
    assert_eq!((tenant.used_bytes, tenant.used_inodes, tenant.seq), (0, 1, 0));
    assert_eq!((tenant.compression, tenant.holder), (Compression::Zstd, None));
    assert_eq!(view.chain.len(), 1);
    assert_eq!((view.chain[0].branch, view.chain[0].layer), (made.head_branch, i64::MAX));
    let root = store.inode(&view, ROOT_INO).await.unwrap().unwrap();
    assert_eq!((root.mode, root.uid, root.gid), (DIR | 0o755, 11, 22));
    assert_eq!((root.nlink, root.size, root.did, root.charge), (2, 4096, 0, 0));
    assert_eq!(root.dir_parent, ROOT_INO);
    assert!(root.mtime.sec > 1_700_000_000, "the root was made now");
    assert!(store.list(&view, ROOT_INO, 0, 10).await.unwrap().is_empty());
    let lease = db.acquire(new.id, session(&*db).await).await.unwrap();
    assert_eq!(lease.next_ino, FIRST_INO + (1 << 20));
}

pub async fn names_are_unique_among_the_living_and_free_after_deletion(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let first = db.create_tenant(&new_tenant("name")).await.unwrap();
    let error = db.create_tenant(&new_tenant("name")).await.unwrap_err();
    assert!(matches!(error, StoreError::NameTaken(_)), "{error}");
    assert_eq!(db.tenant_by_name("name").await.unwrap().unwrap().id, first.id);
    assert!(db.tenant_by_name("other").await.unwrap().is_none());
    db.delete_tenant(first.id, InUse::Refuse).await.unwrap();
    assert!(db.tenant_by_name("name").await.unwrap().is_none());
    let second = db.create_tenant(&new_tenant("name")).await.unwrap();
    assert_eq!(db.tenant_by_name("name").await.unwrap().unwrap().id, second.id);
    assert_eq!(db.tenant(first.id).await.unwrap().unwrap().state, TenantState::Deleted);
    let mut names: Vec<_> = db.tenants().await.unwrap().into_iter().map(|tenant| tenant.id).collect();
    names.sort();
    let mut expected = vec![first.id, second.id];
    expected.sort();
    assert_eq!(names, expected);
}

pub async fn bad_values_are_refused_by_name(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let long = "x".repeat(64);
    for name in ["", "UPPER", "sp ace", "slash/ed", "ü", long.as_str()] {
        let error = db.create_tenant(&new_tenant(name)).await.unwrap_err();
        assert!(matches!(error, StoreError::Invalid { .. }), "{name}: {error}");
    }
    for block_size in [0, 2048, 4097, 12_288, 8 << 20] {
        let new = NewTenant { block_size, ..new_tenant("good") };
        let error = db.create_tenant(&new).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(&block_size.to_string()), "{error}");
    }
    assert!(db.tenants().await.unwrap().is_empty());
    let name = "a-z.0_9".to_owned() + &"x".repeat(56);
    for (name, block_size) in [(name.as_str(), 4096), ("b", 4 << 20)] {
        db.create_tenant(&NewTenant { block_size, ..new_tenant(name) }).await.unwrap();
    }
    assert!(db.tenant(TenantId::random()).await.unwrap().is_none());
    let error = db.open_tenant(TenantId::random()).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

pub async fn limits_change_at_once(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    let limits = Limits { bytes: 5, inodes: 6, file_bytes: 7 };
    assert_eq!(db.resize_tenant(writer.fence.tenant, &limits).await.unwrap().limits, limits);
    assert_eq!(writer.commit(|_| ()).await.limits, limits);
    assert_eq!(writer.store.head().await.unwrap().0.limits, limits);
    let error = db.resize_tenant(TenantId::random(), &limits).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

pub async fn deletion_repeats_and_reaping_removes_every_trace(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    for i in 0..20 {
        writer.file(&format!("f{i}"), format!("bytes {i}").as_bytes()).await;
    }
    writer.seal("kept").await;
    let id = writer.fence.tenant;
    db.close_session(writer.session).await.unwrap();
    drop(writer);
    for _ in 0..2 {
        db.delete_tenant(id, InUse::Refuse).await.unwrap();
    }
    let other = session(&*db).await;
    assert!(matches!(db.acquire(id, other).await, Err(StoreError::Deleted(_))));
    let mut rounds = 0;
    while !db.reap_tenant(id).await.unwrap() {
        rounds += 1;
        assert!(rounds < 10_000, "reaping ends");
    }
    assert!(db.tenant(id).await.unwrap().is_none());
    assert!(db.tenants().await.unwrap().is_empty());
    assert!(db.reap_tenant(id).await.unwrap(), "nothing left is no error");
    Writer::create(db, "one").await.file("f", b"again").await;
}

pub async fn a_held_tenant_is_not_deleted(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    let error = db.delete_tenant(writer.fence.tenant, InUse::Refuse).await.unwrap_err();
    assert!(matches!(error, StoreError::Held { .. }), "{error}");
    writer.file("f", b"still alive").await;
    let error = db.reap_tenant(writer.fence.tenant).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "only what is deleted is reaped");
}

pub async fn a_tenant_deleted_while_it_is_held_goes_on_until_it_is_given_back(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    let id = writer.fence.tenant;
    for _ in 0..2 {
        db.delete_tenant(id, InUse::GoOn).await.unwrap();
    }
    assert!(db.tenant_by_name("one").await.unwrap().is_none(), "its name is free at once");
    assert_eq!(db.deleted_tenants().await.unwrap(), [id]);
    let (ino, _) = writer.file("f", b"what its holder still writes").await;
    let store = db.open_tenant(id).await.unwrap();
    while store.collect().await.unwrap() > 0 {}
    writer.file("g", b"and goes on to write").await;
    let (_, view) = store.head().await.unwrap();
    assert!(store.inode(&view, ino).await.unwrap().is_some(), "nothing is collected under its holder");
    let beat = db.beat(writer.session).await.unwrap();
    assert_eq!(beat.tenants[0].state, TenantState::Deleted, "its holder learns of it");
    let other = session(&*db).await;
    assert!(matches!(db.acquire(id, other).await, Err(StoreError::Deleted(_))));
    assert!(matches!(db.reap_tenant(id).await, Err(StoreError::Held { .. })));
    db.release(&writer.fence).await.unwrap();
    while !db.reap_tenant(id).await.unwrap() {}
    assert!(db.tenant(id).await.unwrap().is_none());
    assert!(db.deleted_tenants().await.unwrap().is_empty());
}

pub async fn who_dies_leaves_a_tenant_behind_and_who_ends_does_not(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let id = db.create_tenant(&new_tenant("one")).await.unwrap().id;
    let abandoned =
        |db: std::sync::Arc<dyn Database>| async move { db.tenant(id).await.unwrap().unwrap().is_abandoned };
    assert!(!abandoned(db.clone()).await, "nobody ever held it");
    let writer = Writer::acquire(db.clone(), id, session(&*db).await).await;
    assert!(!abandoned(db.clone()).await, "its holder lives");
    db.close_session(writer.session).await.unwrap();
    assert!(!abandoned(db.clone()).await, "its holder ended");
    let dying = site.open().await.unwrap();
    let dead = session(&*dying).await;
    drop(Writer::acquire(dying, id, dead).await);
    let claimant = session(&*db).await;
    site.expire(dead, claimant).await;
    assert!(abandoned(db.clone()).await, "its holder died");
    db.acquire(id, claimant).await.unwrap();
    assert!(!abandoned(db).await, "it has a new holder");
}

pub async fn a_newer_min_version_is_refused(site: &dyn Site) {
    let version = site.open().await.unwrap().schema_version().await.unwrap();
    assert_eq!(version.min_version, 1);
    let newer = version.version + 1;
    site.set_min_version(newer).await;
    let error = site.open().await.err().expect("refused");
    let StoreError::Schema { min_version, known, .. } = error else { panic!("{error}") };
    assert_eq!((min_version, known), (newer, version.version));
    site.set_min_version(1).await;
    site.open().await.unwrap();
}

pub async fn what_was_committed_is_there_for_another_process(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let (ino, _) = writer.file("f", b"bytes").await;
    let other = site.open().await.unwrap();
    let store = other.open_tenant(writer.fence.tenant).await.unwrap();
    let (tenant, view) = store.head().await.unwrap();
    assert_eq!((tenant.seq, tenant.used_inodes), (1, 2));
    assert_eq!(bytes_of(&*store, &view, uncut(ino), &[0]).await[&0], b"bytes");
    writer.file("g", b"more").await;
    assert_eq!(names(&*store, &view, ROOT_INO).await.len(), 2);
}
