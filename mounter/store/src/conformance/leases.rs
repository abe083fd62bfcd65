//! Leases: one holder, epochs, fencing.

use tarbox_types::{ErrorKind, ROOT_INO};

use super::{Site, writer::*};
use crate::*;

pub async fn a_held_lease_is_refused_and_names_its_holder(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let writer = Writer::create(db.clone(), "one").await;
    let other_db = site.open().await.unwrap();
    let other = session(&*other_db).await;
    match other_db.acquire(writer.fence.tenant, other).await {
        Err(StoreError::Held { holder, .. }) => {
            assert_eq!((holder.session, holder.node.as_str()), (writer.session, "node-7"));
            assert_eq!(holder.pid, std::process::id());
        }
        other => panic!("{other:?}"),
    }
    let tenant = other_db.tenant(writer.fence.tenant).await.unwrap().unwrap();
    assert_eq!(tenant.holder.unwrap().session, writer.session);
}

pub async fn a_closed_session_frees_its_leases(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let writer = Writer::create(db.clone(), "one").await;
    let other_db = site.open().await.unwrap();
    let other = session(&*other_db).await;
    db.close_session(writer.session).await.unwrap();
    assert!(db.tenant(writer.fence.tenant).await.unwrap().unwrap().holder.is_none());
    other_db.acquire(writer.fence.tenant, other).await.unwrap();
    db.close_session(writer.session).await.unwrap();
    assert_eq!(db.tenant(writer.fence.tenant).await.unwrap().unwrap().holder.unwrap().session, other);
}

pub async fn a_dead_session_frees_its_leases(site: &dyn Site) {
    let writer = Writer::create(site.open().await.unwrap(), "one").await;
    let (tenant, dead) = (writer.fence.tenant, writer.session);
    let db = site.open().await.unwrap();
    let claimant = session(&*db).await;
    assert!(matches!(db.acquire(tenant, claimant).await, Err(StoreError::Held { .. })));
    drop(writer);
    site.expire(dead, claimant).await;
    let mut heir = Writer::acquire(db.clone(), tenant, claimant).await;
    heir.file("f", b"of the heir").await;
    assert_eq!(db.tenant(tenant).await.unwrap().unwrap().holder.unwrap().session, claimant);
}

pub async fn each_lease_has_a_new_epoch_token_and_numbers(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    let before = writer.next_ino;
    writer.file("f", b"x").await;
    let lease = db.acquire(writer.fence.tenant, writer.session).await.unwrap();
    assert_eq!(lease.previous, writer.fence);
    assert_eq!(lease.fence.epoch, writer.fence.epoch + 1);
    assert_ne!(lease.fence.token, writer.fence.token);
    assert_eq!(lease.next_ino, before + 1 + (1 << 20));
    assert_eq!((lease.tenant.seq, lease.tenant.epoch), (1, lease.fence.epoch));
    assert_eq!(lease.head, writer.head().await);
    db.release(&lease.fence).await.unwrap();
    let again = db.acquire(writer.fence.tenant, writer.session).await.unwrap();
    assert_eq!(again.previous, lease.fence, "a journal kept through an unmount knows its fence");
}

pub async fn a_writer_that_lost_its_lease_commits_nothing(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut loser = Writer::create(db.clone(), "one").await;
    loser.file("kept", b"x").await;
    let dead = loser.session;
    let other_db = site.open().await.unwrap();
    let claimant = session(&*other_db).await;
    db.close_session(dead).await.unwrap();
    let mut winner = Writer::acquire(other_db, loser.fence.tenant, claimant).await;
    let header = loser.upload(b"late").await;
    let ino = loser.number();
    let error = loser
        .try_commit(|batch| {
            batch.headers.push(header.clone());
            batch.inodes.push(file(ino, 4));
            batch.entries.push(entry(ROOT_INO, "late", ino, REG, ino));
            batch.extents.push(block_extent(ino, 0, header.block));
        })
        .await
        .unwrap_err();
    match &error {
        StoreError::Fenced { epoch, epoch_now, .. } => {
            assert_eq!((*epoch, *epoch_now), (loser.fence.epoch, winner.fence.epoch));
        }
        other => panic!("{other}"),
    }
    assert_eq!(error.kind(), ErrorKind::Fenced);
    let restore = loser.store.restore(&loser.fence, 1, 1).await;
    assert!(restore.is_err());
    let view = winner.head().await;
    assert_eq!(names(&*winner.store, &view, ROOT_INO).await.len(), 1);
    assert!(winner.store.inode(&view, ino).await.unwrap().is_none());
    assert_eq!(winner.store.find_blocks(&[header.hash]).await.unwrap(), [None]);
    winner.file("mine", b"y").await;
}

pub async fn a_commit_from_another_position_writes_nothing(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    writer.file("f", b"x").await;
    let lost_answer = Batch { from_seq: 0, to_seq: 1, ..writer.batch() };
    let error = writer.store.commit(&writer.fence, &lost_answer).await.unwrap_err();
    assert!(matches!(error, StoreError::Position { expected: 0, found: 1 }), "{error}");
    let ahead = Batch { from_seq: 9, to_seq: 10, inodes: vec![file(99, 0)], ..writer.batch() };
    let error = writer.store.commit(&writer.fence, &ahead).await.unwrap_err();
    assert!(matches!(error, StoreError::Position { expected: 9, found: 1 }), "{error}");
    assert!(writer.store.inode(&writer.head().await, 99).await.unwrap().is_none());
    writer.file("g", b"y").await;
}

pub async fn a_released_lease_commits_nothing(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    for _ in 0..2 {
        db.release(&writer.fence).await.unwrap();
    }
    assert!(db.tenant(writer.fence.tenant).await.unwrap().unwrap().holder.is_none());
    assert_eq!(writer.try_commit(|_| ()).await.unwrap_err().kind(), ErrorKind::Fenced);
    let old = writer.fence.clone();
    let writer = Writer::acquire(db.clone(), old.tenant, writer.session).await;
    db.release(&old).await.unwrap();
    let holder = db.tenant(old.tenant).await.unwrap().unwrap().holder;
    assert_eq!(holder.unwrap().session, writer.session, "an old fence releases nothing");
}

pub async fn a_beat_tells_of_limits_and_wishes(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let one = Writer::create(db.clone(), "one").await;
    let two = db.create_tenant(&new_tenant("two")).await.unwrap();
    let lease = db.acquire(two.id, one.session).await.unwrap();
    let limits = Limits { bytes: 1, inodes: 2, file_bytes: 3 };
    db.resize_tenant(two.id, &limits).await.unwrap();
    let other_db = site.open().await.unwrap();
    let other = session(&*other_db).await;
    assert!(other_db.acquire(one.fence.tenant, other).await.is_err());
    let beat = db.beat(one.session).await.unwrap();
    assert!(beat.valid_for.as_secs() >= 1);
    assert_eq!(beat.tenants.len(), 2);
    for tenant in &beat.tenants {
        assert_eq!(tenant.state, TenantState::Live);
        if tenant.tenant == two.id {
            assert_eq!((tenant.epoch, tenant.limits, tenant.wanted), (lease.fence.epoch, limits, false));
        } else {
            assert_eq!((tenant.tenant, tenant.wanted), (one.fence.tenant, true));
        }
    }
    assert!(other_db.beat(other).await.unwrap().tenants.is_empty());
}
