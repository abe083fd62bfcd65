//! Publications: noted once, refused by name, gone with their volume; nodes that have said that they are there.

use tarbox_types::{AccessMode, TenantId};

use super::{Site, writer::*};
use crate::*;

fn on(tenant: TenantId, node: &str, mode: AccessMode) -> Publication {
    Publication { tenant, node: node.to_owned(), mode, read_only: false }
}

pub async fn a_volume_is_published_to_whom_its_access_mode_allows(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let one = db.create_tenant(&new_tenant("one")).await.unwrap().id;
    let many = db.create_tenant(&new_tenant("many")).await.unwrap().id;
    let first = on(one, "a", AccessMode::SingleNodeWriter);
    for _ in 0..2 {
        db.publish(&first).await.unwrap();
    }
    let second = db.publish(&on(one, "b", AccessMode::SingleNodeWriter)).await.unwrap_err();
    assert!(matches!(&second, StoreError::PublishedElsewhere(found) if *found == first), "{second}");
    let otherwise = db.publish(&Publication { read_only: true, ..first.clone() }).await.unwrap_err();
    assert!(matches!(&otherwise, StoreError::Published(found) if *found == first), "{otherwise}");
    for node in ["b", "a"] {
        db.publish(&on(many, node, AccessMode::MultiNodeMultiWriter)).await.unwrap();
    }
    let other = site.open().await.unwrap();
    let of_many: Vec<_> = other.publications(many, many).await.unwrap();
    assert_eq!(of_many.iter().map(|found| found.node.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let (least, most) = (one.min(many), one.max(many));
    assert_eq!(other.publications(least, most).await.unwrap().len(), 3);
    for _ in 0..2 {
        db.unpublish(one, Some("a")).await.unwrap();
    }
    db.publish(&on(one, "b", AccessMode::SingleNodeWriter)).await.unwrap();
    db.unpublish(many, None).await.unwrap();
    assert!(db.publications(many, many).await.unwrap().is_empty());
}

pub async fn two_nodes_at_the_same_moment_get_a_volume_of_one_node_once(site: &dyn Site) {
    let (one, two) = (site.open().await.unwrap(), site.open().await.unwrap());
    for round in 0..20 {
        let id = one.create_tenant(&new_tenant(&format!("t{round}"))).await.unwrap().id;
        let (a, b) = (on(id, "a", AccessMode::SingleNodeWriter), on(id, "b", AccessMode::SingleNodeWriter));
        let (a, b) = tokio::join!(one.publish(&a), two.publish(&b));
        assert_ne!(a.is_ok(), b.is_ok(), "{a:?} {b:?}");
        assert_eq!(one.publications(id, id).await.unwrap().len(), 1);
    }
}

pub async fn what_is_deleted_is_published_to_nobody_and_its_publications_go(site: &dyn Site) {
    let db = site.open().await.unwrap();
    let id = db.create_tenant(&new_tenant("one")).await.unwrap().id;
    db.publish(&on(id, "a", AccessMode::SingleNodeWriter)).await.unwrap();
    db.delete_tenant(id, InUse::Refuse).await.unwrap();
    let deleted = db.publish(&on(id, "a", AccessMode::SingleNodeWriter)).await.unwrap_err();
    assert!(matches!(deleted, StoreError::Deleted(_)), "{deleted}");
    while !db.reap_tenant(id).await.unwrap() {}
    assert!(db.publications(id, id).await.unwrap().is_empty());
    let gone = db.publish(&on(id, "a", AccessMode::SingleNodeWriter)).await.unwrap_err();
    assert!(matches!(gone, StoreError::NoTenant(_)), "{gone}");
    db.unpublish(id, Some("a")).await.unwrap();
}

pub async fn any_node_may_be_until_one_has_said_that_it_is_there(site: &dyn Site) {
    let db = site.open().await.unwrap();
    assert!(db.may_be_node("a").await.unwrap());
    for _ in 0..2 {
        db.note_node("a").await.unwrap();
    }
    assert!(db.may_be_node("a").await.unwrap());
    assert!(!db.may_be_node("b").await.unwrap());
}
