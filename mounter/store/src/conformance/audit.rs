//! Audit events: they come with a commit, stay with the tenant, are read in the order of time, and go when they are old.

use bytes::Bytes;

use super::{Site, writer::*};
use crate::*;

fn chunk(seq: u64, part: u32, since: u64, until: u64) -> AuditChunk {
    AuditChunk { seq, part, since, until, events: 3, data: Bytes::from(format!("{seq}.{part}").into_bytes()) }
}

async fn all(store: &dyn TenantStore) -> Vec<AuditChunk> {
    store.audit(&AuditRange::default(), 1000).await.unwrap()
}

async fn commit(writer: &mut Writer, chunks: &[AuditChunk]) {
    writer.commit(|batch| batch.audit = chunks.to_vec()).await;
}

pub async fn events_come_with_their_commit_or_not_at_all(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    let chunks = [chunk(1, 0, 10, 20), chunk(1, 1, 20, 30)];
    commit(&mut writer, &chunks).await;
    assert_eq!(all(&*writer.store).await, chunks);
    // The answer was lost, and it is tried again: it is from another position.
    let again = Batch { from_seq: 0, to_seq: 1, audit: chunks.to_vec(), ..writer.batch() };
    let error = writer.store.commit(&writer.fence, &again).await.expect_err("it was done");
    assert!(matches!(error, StoreError::Position { found: 1, .. }), "{error}");
    assert_eq!(all(&*writer.store).await, chunks);
    // Whoever lost the lease adds nothing.
    let stale = writer.fence.clone();
    writer.db.acquire(stale.tenant, writer.session).await.unwrap();
    let late = Batch { audit: vec![chunk(2, 0, 40, 50)], ..writer.batch() };
    let error = writer.store.commit(&stale, &late).await.expect_err("fenced");
    assert!(matches!(error, StoreError::Fenced { .. }), "{error}");
    assert_eq!(all(&*writer.store).await, chunks);
}

pub async fn events_are_read_by_time_in_pages_from_either_end(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    // The node's clock was set back once.
    let chunks = [
        chunk(1, 0, 10, 20),
        chunk(2, 0, 5, 6),
        chunk(3, 0, 30, 40),
        chunk(4, 0, 35, 40),
        chunk(4, 1, 1, 41),
    ];
    for (n, one) in chunks.iter().enumerate() {
        if n < 4 {
            let both: Vec<_> = chunks.iter().filter(|chunk| chunk.seq == one.seq).cloned().collect();
            commit(&mut writer, &both).await;
        }
    }
    let order = [1, 0, 2, 3, 4].map(|n: usize| chunks[n].clone());
    let mut paged = Vec::new();
    while let page = writer
        .store
        .audit(&AuditRange { after: paged.last().map(AuditChunk::position), ..AuditRange::default() }, 2)
        .await
        .unwrap()
        && !page.is_empty()
    {
        assert!(page.len() <= 2);
        paged.extend(page);
    }
    assert_eq!(paged, order);
    let since = AuditRange { since: 20, ..AuditRange::default() };
    assert_eq!(writer.store.audit(&since, 10).await.unwrap(), order[1..]);
    let newest = AuditRange { newest_first: true, ..AuditRange::default() };
    let newest = writer.store.audit(&newest, 2).await.unwrap();
    assert_eq!(newest, [order[4].clone(), order[3].clone()]);
    let before =
        AuditRange { newest_first: true, after: Some(newest[1].position()), ..AuditRange::default() };
    assert_eq!(writer.store.audit(&before, 1).await.unwrap(), [order[2].clone()]);
}

pub async fn old_events_go_the_oldest_first_and_only_the_tenants_own(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let (mut one, mut other) = (Writer::create(db.clone(), "one").await, Writer::create(db, "other").await);
    for writer in [&mut one, &mut other] {
        for seq in 1..=4 {
            commit(writer, &[chunk(seq, 0, seq * 10, seq * 10 + 5)]).await;
        }
    }
    assert_eq!(one.store.expire_audit(35).await.unwrap(), 2, "what ends at the moment itself stays");
    assert_eq!(one.store.expire_audit(35).await.unwrap(), 0);
    assert_eq!(all(&*one.store).await.iter().map(|chunk| chunk.seq).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(all(&*other.store).await.len(), 4);
}

pub async fn neither_restore_nor_clone_nor_a_deleted_checkpoint_changes_what_was_audited(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    commit(&mut writer, &[chunk(1, 0, 10, 20)]).await;
    writer.seal("then").await;
    let layer = writer.store.layers().await.unwrap()[0].clone();
    commit(&mut writer, &[chunk(3, 0, 30, 40)]).await;
    writer.store.restore(&writer.fence, layer.branch, layer.layer).await.unwrap();
    let kept = [chunk(1, 0, 10, 20), chunk(3, 0, 30, 40)];
    assert_eq!(all(&*writer.store).await, kept);
    let clone = writer.store.branch_from(layer.branch, layer.layer, &new_tenant("clone")).await.unwrap();
    let cloned = writer.db.open_tenant(clone.id).await.unwrap();
    assert!(all(&*cloned).await.is_empty(), "it has done nothing yet");
    // The tenant goes, and its audit with it; what its clone does is its own.
    let session = session(&*writer.db).await;
    let mut other = Writer::acquire(writer.db.clone(), clone.id, session).await;
    let seq = other.seq + 1;
    commit(&mut other, &[chunk(seq, 0, 50, 60)]).await;
    let id = writer.fence.tenant;
    writer.db.release(&writer.db.acquire(id, writer.session).await.unwrap().fence).await.unwrap();
    writer.db.delete_tenant(id, InUse::Refuse).await.unwrap();
    while !writer.db.reap_tenant(id).await.unwrap() {}
    assert!(all(&*writer.store).await.is_empty());
    assert_eq!(all(&*other.store).await, [chunk(seq, 0, 50, 60)]);
}

pub async fn events_alone_do_not_make_a_tenant_another_one(site: &dyn Site) {
    let mut writer = Writer::create(site.open().await.unwrap(), "one").await;
    writer.file("f", b"bytes").await;
    writer.seal("then").await;
    let layer = writer.store.layers().await.unwrap()[0].clone();
    let mut at = 0;
    for _ in 0..2 {
        at += 10;
        let seq = writer.seq + 1;
        commit(&mut writer, &[chunk(seq, 0, at, at)]).await;
    }
    writer.store.restore(&writer.fence, layer.branch, layer.layer).await.unwrap();
    let names = |layers: Vec<LayerRow>| layers.into_iter().map(|layer| layer.name).collect::<Vec<_>>();
    assert_eq!(names(writer.store.own_layers().await.unwrap()), ["then"], "there was nothing to keep");
    // Again, with nothing between but events, and then with a change before them.
    let seq = writer.seq + 1;
    commit(&mut writer, &[chunk(seq, 0, 50, 50)]).await;
    writer.store.restore(&writer.fence, layer.branch, layer.layer).await.unwrap();
    assert_eq!(writer.store.own_layers().await.unwrap().len(), 1);
    writer.file("g", b"more").await;
    let seq = writer.seq + 1;
    commit(&mut writer, &[chunk(seq, 0, 60, 60)]).await;
    writer.store.restore(&writer.fence, layer.branch, layer.layer).await.unwrap();
    assert_eq!(writer.store.own_layers().await.unwrap().len(), 2, "what there was is kept");
}
