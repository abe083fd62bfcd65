//! `tarbox gc`: what nothing refers to is shown, then removed; nothing else is.

use tarbox_store::Seal;

use crate::place::Place;

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

#[test]
fn what_nothing_refers_to_is_shown_by_a_dry_run_and_removed_by_the_next() {
    let place = Place::new();
    place.tarbox(&["tenant", "create", "t"]).expect(0, &[]);
    for name in ["kept", "gone"] {
        place.tarbox(&["checkpoint", "create", "t", name, "--tag", &format!("tag-of-{name}")]).expect(0, &[]);
    }
    place.tarbox(&["clone", "t", "copy"]).expect(0, &[]);
    assert_eq!(place.tarbox(&["gc", "-o", "json"]).json(), serde_json::json!([]));
    // Behind everybody's back: a layer that nobody has asked for, and one that is gone under its record and its tag.
    block_on(async {
        let database = tarbox_store::open(&place.url()).await.expect("the database");
        let tenant = database.tenant_by_name("t").await.expect("read").expect("the tenant");
        let store = database.open_tenant(tenant.id).await.expect("its rows");
        let seal = Seal { name: "lost".to_owned(), request: "nobody's".to_owned() };
        store.seal(&seal).await.expect("sealed");
        let gone = store.layer_named("gone").await.expect("read").expect("a layer");
        store.delete_layer(gone.branch, gone.layer).await.expect("deleted");
    });
    let found = |removed: bool| {
        serde_json::json!([("layer", "lost"), ("record", "gone"), ("tag", "tag-of-gone")].map(
            |(kind, name)| {
                let id = place.tarbox(&["tenant", "show", "t", "-o", "json"]).json()["id"].clone();
                let what = format!("`{name}` of {}", id.as_str().expect("an id"));
                serde_json::json!({ "kind": kind, "what": what, "removed": removed })
            }
        ))
    };
    for _ in 0..2 {
        assert_eq!(place.tarbox(&["gc", "--dry-run", "-o", "json"]).json(), found(false));
    }
    let expected = found(true);
    assert_eq!(place.tarbox(&["gc", "-o", "json"]).json(), expected);
    assert_eq!(place.tarbox(&["gc", "-o", "json"]).json(), serde_json::json!([]));
    place.tarbox(&["checkpoint", "show", "t", "tag-of-kept"]).expect(0, &["kept"]);
    for tenant in ["t", "copy"] {
        place.tarbox(&["fsck", tenant]).expect(0, &[]);
    }
}
