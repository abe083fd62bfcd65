//! Records: noted once, found again, taken away; what they keep from being removed.

use std::{sync::Arc, time::Duration};

use tarbox_types::{Ino, TenantId};
use uuid::Uuid;

use super::{Site, writer::*};
use crate::*;

fn volume(request: &str) -> VolumeRecord {
    VolumeRecord { id: TenantId::random(), request: request.into(), description: format!("{{{request}}}") }
}

fn snapshot(request: &str, tenant: TenantId, purpose: Purpose) -> SnapshotRecord {
    SnapshotRecord::new(tenant, request, purpose)
}

/// Notes a snapshot of a tenant that nobody holds, and seals it.
async fn take(db: &Arc<dyn Database>, request: &str, tenant: TenantId) -> SnapshotRecord {
    let noted = db.note_snapshot(&snapshot(request, tenant, Purpose::Snapshot)).await.unwrap();
    let layer = db.open_tenant(tenant).await.unwrap().seal(&noted.seal()).await.unwrap();
    db.settle_snapshot(noted.id, &layer).await.unwrap();
    db.snapshot(noted.id).await.unwrap().unwrap()
}

pub async fn a_request_is_one_volume_however_often_it_is_noted(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let (one, two) = (volume("pvc-1"), volume("pvc-2"));
    assert_eq!(db.note_volume(&one).await.unwrap(), one);
    assert_eq!(db.note_volume(&two).await.unwrap(), two);
    let again = VolumeRecord { id: TenantId::random(), description: "other".into(), ..one.clone() };
    assert_eq!(db.note_volume(&again).await.unwrap(), one, "the first one stands");
    let other = site.open().await.unwrap();
    assert_eq!(other.volume(one.id).await.unwrap(), Some(one.clone()));
    assert_eq!(other.volume(again.id).await.unwrap(), None);
    for _ in 0..2 {
        db.forget_volume(one.id).await.unwrap();
    }
    assert_eq!(db.note_volume(&again).await.unwrap(), again, "the request's name is free again");
    assert_eq!(db.volume(two.id).await.unwrap(), Some(two.clone()));
    let mut all = [again, two];
    all.sort_by_key(|record| record.id);
    assert_eq!(db.volumes(None, 2).await.unwrap(), all);
    assert_eq!(db.volumes(Some(all[0].id), 2).await.unwrap(), all[1..]);
}

pub async fn living_tenants_are_listed_in_pages(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(db.create_tenant(&new_tenant(&format!("t{number}"))).await.unwrap().id);
    }
    let gone = ids.pop().unwrap();
    db.delete_tenant(gone, InUse::Refuse).await.unwrap();
    ids.sort();
    let (mut after, mut listed) = (None, Vec::new());
    loop {
        let page = db.live_tenants(after, 3).await.unwrap();
        listed.extend(page.iter().map(|tenant| tenant.id));
        if page.len() < 3 {
            break;
        }
        after = listed.last().copied();
    }
    assert_eq!(listed, ids);
    assert_eq!(db.deleted_tenants().await.unwrap(), [gone]);
}

pub async fn a_snapshot_is_noted_settled_listed_and_dropped(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let one = db.create_tenant(&new_tenant("one")).await.unwrap().id;
    let two = db.create_tenant(&new_tenant("two")).await.unwrap().id;
    let waiting = snapshot("not sealed yet", one, Purpose::Snapshot);
    assert_eq!(db.note_snapshot(&waiting).await.unwrap(), waiting);
    let mut kept = vec![take(&db, "a", one).await, take(&db, "b", two).await, take(&db, "c", one).await];
    kept.sort_by_key(|record| record.id);
    assert_eq!(db.snapshots(None, None, 10).await.unwrap(), kept, "what is not sealed is not listed");
    assert_eq!(db.snapshots(None, Some(kept[0].id), 1).await.unwrap(), kept[1..2]);
    let of_one: Vec<_> = kept.iter().filter(|record| record.tenant == one).cloned().collect();
    assert_eq!(db.snapshots(Some(one), None, 10).await.unwrap(), of_one);
    assert!(db.snapshots(Some(TenantId::random()), None, 10).await.unwrap().is_empty());
    let layer = of_one[0].layer.clone().unwrap();
    let store = db.open_tenant(one).await.unwrap();
    assert_eq!(store.sealed(&of_one[0].id.to_string()).await.unwrap().unwrap(), layer);
    assert!(store.sealed(&waiting.id.to_string()).await.unwrap().is_none());
    for _ in 0..2 {
        db.drop_snapshot(of_one[0].id).await.unwrap();
    }
    let dropped = db.dropped_snapshots(None, 10).await.unwrap();
    assert_eq!(dropped, [SnapshotRecord { purpose: Purpose::Nothing, ..of_one[0].clone() }]);
    assert!(db.dropped_snapshots(Some(dropped[0].id), 10).await.unwrap().is_empty());
    assert_eq!(db.snapshots(Some(one), None, 10).await.unwrap(), of_one[1..]);
    store.delete_layer(layer.branch, layer.layer).await.unwrap();
    let error = store.delete_layer(layer.branch, layer.layer).await.unwrap_err();
    assert!(matches!(error, StoreError::NoLayer { .. }), "{error}");
    for _ in 0..2 {
        db.forget_snapshot(of_one[0].id).await.unwrap();
    }
    assert_eq!(db.snapshot(of_one[0].id).await.unwrap(), None);
}

pub async fn a_snapshots_name_is_free_once_it_is_dropped(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let one = db.create_tenant(&new_tenant("one")).await.unwrap().id;
    let two = db.create_tenant(&new_tenant("two")).await.unwrap().id;
    let first = db.note_snapshot(&snapshot("s", one, Purpose::Snapshot)).await.unwrap();
    let again = db.note_snapshot(&snapshot("s", two, Purpose::Snapshot)).await.unwrap();
    assert_eq!(again, first, "the first one stands, whatever tenant is named");
    let base = snapshot("s", two, Purpose::Base);
    for _ in 0..2 {
        assert_eq!(db.note_snapshot(&base).await.unwrap(), base, "a base has no name that others may want");
    }
    db.drop_snapshot(first.id).await.unwrap();
    let second = snapshot("s", two, Purpose::Snapshot);
    assert_eq!(db.note_snapshot(&second).await.unwrap(), second);
}

pub async fn the_holder_learns_of_layers_to_seal_and_seals_each_once(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let mut writer = Writer::create(db.clone(), "one").await;
    let id = writer.fence.tenant;
    let other = db.create_tenant(&new_tenant("other")).await.unwrap().id;
    let noted = db.note_snapshot(&snapshot("s", id, Purpose::Snapshot)).await.unwrap();
    let base = db.note_snapshot(&snapshot("base", id, Purpose::Base)).await.unwrap();
    let dropped = db.note_snapshot(&snapshot("dropped", id, Purpose::Snapshot)).await.unwrap();
    db.drop_snapshot(dropped.id).await.unwrap();
    db.note_snapshot(&snapshot("elsewhere", other, Purpose::Snapshot)).await.unwrap();
    let beat = db.beat(writer.session).await.unwrap();
    let mut expected = vec![noted.seal(), base.seal()];
    expected.sort_by_key(|seal| seal.request.clone());
    assert_eq!(beat.tenants[0].seals, expected);
    assert!(beat.again_in <= beat.valid_for);
    writer.file("f", b"before").await;
    let sealed = writer.commit(|batch| batch.seal = Some(noted.seal())).await.sealed.unwrap();
    writer.file("g", b"behind").await;
    let again = writer.commit(|batch| batch.seal = Some(noted.seal())).await.sealed.unwrap();
    assert_eq!(again, sealed, "the same request seals once");
    let layer = writer.store.sealed(&noted.id.to_string()).await.unwrap().unwrap();
    assert_eq!((layer.layer, layer.name.as_str()), (sealed, "s"));
    let view = writer.store.view(layer.branch, layer.layer).await.unwrap();
    assert_eq!(names(&*writer.store, &view, tarbox_types::ROOT_INO).await.len(), 1, "what was there before");
    db.settle_snapshot(noted.id, &layer).await.unwrap();
    assert_eq!(db.beat(writer.session).await.unwrap().tenants[0].seals, [base.seal()]);
}

pub async fn a_tenant_whose_snapshots_are_kept_is_not_reaped(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let id = db.create_tenant(&new_tenant("one")).await.unwrap().id;
    let kept = take(&db, "s", id).await;
    let base = db.note_snapshot(&snapshot("base", id, Purpose::Base)).await.unwrap();
    db.delete_tenant(id, InUse::Refuse).await.unwrap();
    let refused = || async { matches!(db.reap_tenant(id).await, Err(StoreError::Refused(_))) };
    assert!(refused().await);
    db.drop_snapshot(kept.id).await.unwrap();
    assert!(refused().await, "a clone is about to begin there");
    db.drop_snapshot(base.id).await.unwrap();
    while !db.reap_tenant(id).await.unwrap() {}
    assert!(db.tenant(id).await.unwrap().is_none());
}

/// A tenant with a file, which nobody holds any more.
async fn left(db: &Arc<dyn Database>) -> (TenantId, Ino) {
    let mut writer = Writer::create(db.clone(), "one").await;
    let (ino, _) = writer.file("f", b"kept").await;
    db.close_session(writer.session).await.unwrap();
    (writer.fence.tenant, ino)
}

pub async fn snapshots_that_are_kept_of_a_deleted_tenant_outlive_its_relatives(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let (id, ino) = left(&db).await;
    let (first, second) = (take(&db, "first", id).await, take(&db, "second", id).await);
    let source = db.open_tenant(id).await.unwrap();
    let begin = async |at: &SnapshotRecord, name: &str| {
        let layer = at.layer.clone().unwrap();
        source.branch_from(layer.branch, layer.layer, &new_tenant(name)).await
    };
    let clone = begin(&first, "clone").await.unwrap().id;
    db.delete_tenant(id, InUse::Refuse).await.unwrap();
    db.delete_tenant(clone, InUse::Refuse).await.unwrap();
    while !db.reap_tenant(clone).await.unwrap() {}
    while source.collect().await.unwrap() > 0 {}
    let again = begin(&second, "again").await.expect("it is kept").id;
    let store = db.open_tenant(again).await.unwrap();
    let (_, view) = store.head().await.unwrap();
    assert!(store.inode(&view, ino).await.unwrap().is_some());
}

pub async fn a_clone_begins_at_a_layer_of_a_deleted_tenant(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let (id, ino) = left(&db).await;
    let kept = take(&db, "s", id).await;
    db.delete_tenant(id, InUse::Refuse).await.unwrap();
    let layer = kept.layer.unwrap();
    let source = db.open_tenant(id).await.unwrap();
    let clone = source.branch_from(layer.branch, layer.layer, &new_tenant("clone")).await.unwrap();
    drop(source);
    db.drop_snapshot(kept.id).await.unwrap();
    while !db.reap_tenant(id).await.unwrap() {}
    let store = db.open_tenant(clone.id).await.unwrap();
    let view = store.head().await.unwrap().1;
    assert_eq!(bytes_of(&*store, &view, uncut(ino), &[0]).await[&0], b"kept");
}

pub async fn what_was_left_behind_is_listed(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let id = db.create_tenant(&new_tenant("one")).await.unwrap().id;
    take(&db, "sealed", id).await;
    let waiting = db.note_snapshot(&snapshot("waiting", id, Purpose::Snapshot)).await.unwrap();
    let base = db.note_snapshot(&snapshot("base", id, Purpose::Base)).await.unwrap();
    let dropped = db.note_snapshot(&snapshot("dropped", id, Purpose::Base)).await.unwrap();
    db.drop_snapshot(dropped.id).await.unwrap();
    let mut expected = vec![waiting, base];
    expected.sort_by_key(|record| record.id);
    assert_eq!(db.kept_layers(None, 10).await.unwrap(), expected);
    assert_eq!(db.kept_layers(Some(expected[0].id), 10).await.unwrap(), expected[1..]);
}

pub async fn one_leads_until_it_steps_down_or_dies(site: &dyn Site) {
    let term = Duration::from_millis(500);
    let (one, two) = (site.open().await.unwrap(), site.open().await.unwrap());
    let (first, second) = (Uuid::new_v4(), Uuid::new_v4());
    let lead = one.lead(first, term).await.unwrap().expect("nobody leads");
    assert_eq!(one.lead(first, term).await.unwrap(), Some(lead), "renewed");
    assert_eq!(two.lead(second, term).await.unwrap(), None);
    let led = one.led_by(&lead);
    let id = led.create_tenant(&new_tenant("one")).await.unwrap().id;
    assert!(two.tenant(id).await.unwrap().is_some());
    one.step_down(first).await.unwrap();
    let lead = two.lead(second, term).await.unwrap().expect("given back");
    assert_eq!(one.lead(first, term).await.unwrap(), None);
    two.led_by(&lead).delete_tenant(id, InUse::Refuse).await.unwrap();
    drop((two, led));
    let begun = std::time::Instant::now();
    while one.lead(first, term).await.unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(20), "who died leads no more");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn a_checkpoint_is_unique_in_its_tenant_and_goes_with_it(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let one = db.create_tenant(&new_tenant("one")).await.unwrap().id;
    let two = db.create_tenant(&new_tenant("two")).await.unwrap().id;
    let noted = db.note_snapshot(&snapshot("c", one, Purpose::Checkpoint)).await.unwrap();
    assert_eq!(db.note_snapshot(&snapshot("c", one, Purpose::Checkpoint)).await.unwrap(), noted);
    let other = snapshot("c", two, Purpose::Checkpoint);
    assert_eq!(db.note_snapshot(&other).await.unwrap(), other, "another tenant's");
    let named_alike = snapshot("c", two, Purpose::Snapshot);
    assert_eq!(db.note_snapshot(&named_alike).await.unwrap(), named_alike, "a snapshot's names are others");
    let unsealed: Vec<_> =
        db.kept_layers(None, 10).await.unwrap().into_iter().map(|record| record.id).collect();
    assert!(unsealed.contains(&noted.id) && unsealed.contains(&other.id));
    let layer = db.open_tenant(one).await.unwrap().seal(&noted.seal()).await.unwrap();
    db.settle_snapshot(noted.id, &layer).await.unwrap();
    let listed = db.snapshots(Some(one), None, 10).await.unwrap();
    assert_eq!(listed, [SnapshotRecord { layer: Some(layer), ..noted.clone() }]);
    db.tag(one, "t", 1, 1).await.unwrap();
    db.delete_tenant(one, InUse::Refuse).await.unwrap();
    assert!(db.snapshots(Some(one), None, 10).await.unwrap().is_empty(), "not of a deleted tenant");
    while !db.reap_tenant(one).await.unwrap() {}
    assert_eq!(db.snapshot(noted.id).await.unwrap(), None);
    assert!(db.tags(one).await.unwrap().is_empty());
    assert!(db.snapshot(other.id).await.unwrap().is_some());
}

pub async fn tags_name_layers_and_are_moved_and_go(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let (one, two) = (TenantId::random(), TenantId::random());
    db.tag(one, "release", 1, 1).await.unwrap();
    db.tag(one, "good", 1, 2).await.unwrap();
    db.tag(one, "release", 2, 3).await.unwrap();
    db.tag(two, "release", 7, 7).await.unwrap();
    let tag = |name: &str, branch, layer| Tag { name: name.into(), branch, layer };
    assert_eq!(db.tags(one).await.unwrap(), [tag("good", 1, 2), tag("release", 2, 3)]);
    assert!(db.untag(one, "good").await.unwrap());
    assert!(!db.untag(one, "good").await.unwrap());
    assert_eq!(db.tags(one).await.unwrap(), [tag("release", 2, 3)]);
    assert_eq!(db.tags(two).await.unwrap(), [tag("release", 7, 7)]);
}
