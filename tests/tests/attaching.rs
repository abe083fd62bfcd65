//! Who may mount a volume where: what an attacher asks the controller for, and what the node makes of it, on both databases.

use std::fs;

use nix::unistd::gethostname;
use tarbox_proto::csi::v1::{ControllerGetVolumeRequest, ListVolumesRequest};
use tarbox_tests::{
    cluster::{cluster, run, world},
    controller::{Caller, volume},
    node::Published,
    on_each_database,
};
use tonic::Code;

const GIB: i64 = 1 << 30;
/// Access modes by CSI's numbers.
const WRITER: i32 = 1;
const ONE_WRITER_OF_MANY: i32 = 4;
const MANY_WRITERS: i32 = 5;
const ONE_PLACE: i32 = 6;

async fn published(caller: &mut Caller, id: &str) -> Vec<String> {
    let request = ControllerGetVolumeRequest { volume_id: id.to_owned() };
    let found = caller.client.controller_get_volume(request).await.expect("the volume").into_inner();
    let nodes = found.status.expect("a status").published_node_ids;
    let listed = caller.client.list_volumes(ListVolumesRequest::default()).await.expect("all").into_inner();
    let listed =
        listed.entries.into_iter().find(|entry| entry.volume.as_ref().is_some_and(|v| v.volume_id == id));
    assert_eq!(listed.and_then(|entry| entry.status).expect("listed").published_node_ids, nodes);
    nodes
}

on_each_database! {
    fn a_second_node_is_refused_by_name_until_the_first_one_is_done(database) {
        let mut world = world(database);
        run(async {
            let mut caller = world.controller.caller().await.expect("reach");
            let id = caller.create(volume("pvc-1", GIB)).await.expect("made").volume_id;
            assert!(published(&mut caller, &id).await.is_empty());
            let first = caller.publish(&id, "a", WRITER, false).await.expect("free");
            assert_eq!(caller.publish(&id, "a", WRITER, false).await.expect("again"), first);
            assert_eq!(published(&mut caller, &id).await, ["a"]);
            let second = caller.publish(&id, "b", WRITER, false).await.expect_err("of one node");
            assert_eq!(second.code(), Code::FailedPrecondition);
            assert!(second.message().contains("node `a`") && second.message().contains(&id), "{second}");
            for (mode, readonly) in [(WRITER, true), (ONE_PLACE, false)] {
                let other = caller.publish(&id, "a", mode, readonly).await.expect_err("otherwise");
                assert_eq!(other.code(), Code::AlreadyExists, "{other}");
            }
            // Cut off behind the note: the next controller finds it.
            world.controller.kill();
            world.controller.start_again(&[]).expect("again");
            let mut caller = world.controller.caller().await.expect("reach");
            assert_eq!(caller.publish(&id, "a", WRITER, false).await.expect("again"), first);
            assert_eq!(caller.publish(&id, "b", WRITER, false).await.expect_err("still").code(), Code::FailedPrecondition);
            for _ in 0..2 {
                caller.unpublish(&id, "a").await.expect("unpublished");
            }
            caller.publish(&id, "b", WRITER, false).await.expect("free again");
            assert_eq!(published(&mut caller, &id).await, ["b"]);
            caller.unpublish(&id, "").await.expect("from all nodes");
            assert!(published(&mut caller, &id).await.is_empty());
        });
    }

    fn volumes_for_many_nodes_go_to_many_and_one_of_them_writes_where_that_is_asked_for(database) {
        let world = world(database);
        run(async {
            let mut caller = world.controller.caller().await.expect("reach");
            let shared = caller.create(volume("shared", GIB)).await.expect("made").volume_id;
            for node in ["a", "b", "c"] {
                caller.publish(&shared, node, MANY_WRITERS, false).await.expect("many");
            }
            assert_eq!(published(&mut caller, &shared).await, ["a", "b", "c"]);
            let single = caller.publish(&shared, "d", WRITER, false).await.expect_err("a mode of one node");
            assert_eq!(single.code(), Code::FailedPrecondition);
            let one = caller.create(volume("one", GIB)).await.expect("made").volume_id;
            caller.publish(&one, "a", ONE_WRITER_OF_MANY, false).await.expect("the writer");
            let second = caller.publish(&one, "b", ONE_WRITER_OF_MANY, false).await.expect_err("a second writer");
            assert!(second.code() == Code::FailedPrecondition && second.message().contains("node `a`"), "{second}");
            caller.publish(&one, "b", ONE_WRITER_OF_MANY, true).await.expect("a reader");
            caller.unpublish(&one, "a").await.expect("unpublished");
            caller.publish(&one, "c", ONE_WRITER_OF_MANY, false).await.expect("another writer");
        });
    }

    fn bad_requests_deleted_volumes_and_unknown_ones_are_refused_by_name(database) {
        let world = world(database);
        run(async {
            let mut caller = world.controller.caller().await.expect("reach");
            let id = caller.create(volume("pvc-1", GIB)).await.expect("made").volume_id;
            for (id, node, mode, word) in
                [("", "a", 1, "volume_id"), (id.as_str(), "", 1, "node_id"), (id.as_str(), "a", 0, "access_mode")]
            {
                let refused = caller.publish(id, node, mode, false).await.expect_err(word);
                assert_eq!(refused.code(), Code::InvalidArgument);
                assert!(refused.message().contains(word), "{refused}");
            }
            caller.publish(&id, "a", WRITER, false).await.expect("published");
            caller.delete(&id).await.expect("deleted");
            for gone in [id.as_str(), "00000000-0000-4000-8000-000000000000", "nobody's"] {
                let refused = caller.publish(gone, "a", WRITER, false).await.expect_err(gone);
                assert_eq!(refused.code(), Code::NotFound, "{refused}");
                caller.unpublish(gone, "a").await.expect("published nowhere");
            }
        });
    }

    fn a_node_mounts_what_was_published_to_it_and_what_nobody_attaches(database) {
        let cluster = cluster(database);
        run(async {
            let mut caller = cluster.controller.caller().await.expect("reach");
            let here = "test-node".to_owned();
            let id = caller.create(volume("pvc-1", GIB)).await.expect("made").volume_id;
            let unknown = caller.publish(&id, "elsewhere", WRITER, false).await.expect_err("no such node");
            assert_eq!(unknown.code(), Code::NotFound);
            assert!(unknown.message().contains("`elsewhere`"), "{unknown}");
            let words = |context: &std::collections::HashMap<String, String>| {
                let pairs = context.iter().map(|(key, value)| format!("--publish-context={key}={value}"));
                pairs.collect::<Vec<_>>()
            };
            let with = |volume: &Published, more: &[String]| {
                let own: Vec<String> = volume.words().iter().map(ToString::to_string).collect();
                own.into_iter().chain(more.iter().cloned()).collect::<Vec<_>>()
            };
            let call = |call: &str, words: &[String]| {
                cluster.node.csi(call, &words.iter().map(String::as_str).collect::<Vec<_>>()).expect("called")
            };
            let volume = Published::new(cluster.node.path(), &id, "v");
            let context = caller.publish(&id, &here, WRITER, false).await.expect("this node");
            let mut elsewhere = context.clone();
            elsewhere.values_mut().filter(|value| **value == here).for_each(|value| *value = "other".into());
            let refused = call("stage", &with(&volume, &words(&elsewhere)));
            assert!(refused.stderr.contains("FailedPrecondition") && refused.stderr.contains("`other`"), "{refused:?}");
            for step in ["stage", "publish"] {
                let done = call(step, &with(&volume, &words(&context)));
                assert!(done.code == Some(0), "{done:?}");
            }
            fs::write(volume.target.join("f"), "written").expect("a writer");
            cluster.node.call("unpublish", &volume.words()).expect("unpublished");
            cluster.node.call("unstage", &volume.words()).expect("unstaged");
            caller.unpublish(&id, &here).await.expect("unpublished");
            // For reading only.
            let context = caller.publish(&id, &here, WRITER, true).await.expect("for reading");
            for step in ["stage", "publish"] {
                let done = call(step, &with(&volume, &words(&context)));
                assert!(done.code == Some(0), "{done:?}");
            }
            assert_eq!(fs::read_to_string(volume.target.join("f")).expect("read"), "written");
            let refused = fs::write(volume.target.join("g"), "x").expect_err("for reading only");
            assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
            cluster.node.call("unpublish", &volume.words()).expect("unpublished");
            cluster.node.call("unstage", &volume.words()).expect("unstaged");
            caller.unpublish(&id, &here).await.expect("unpublished");
            // Where nobody attaches, the lease says who has it.
            cluster.node.call("stage", &volume.words()).expect("staged");
            let host = gethostname().expect("a name").into_string().expect("UTF-8");
            assert_eq!(published(&mut caller, &id).await, [host]);
            cluster.node.call("unstage", &volume.words()).expect("unstaged");
        });
    }
}
