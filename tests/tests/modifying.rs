//! Parameters of a volume that change: at once what the database and the leader go by, with the next staging what a mounter is started
//! with; on both databases.

use std::{fs, time::Duration};

use nix::sys::statvfs::statvfs;
use tarbox_tests::{
    cluster::{Cluster, cluster, run, world},
    controller::{map, volume},
    deadline::wait_for,
    on_each_database,
};
use tonic::Code;

const GIB: i64 = 1 << 30;
const LIMIT: Duration = Duration::from_secs(60);

on_each_database! {
    fn limits_change_at_once_and_what_a_mounter_is_started_with_at_the_next_staging(database) {
        let Cluster { controller, node, .. } = &cluster(database);
        run(async {
            let mut caller = controller.caller().await.expect("reach");
            let mut wanted = volume("pvc-1", GIB);
            wanted.parameters = map(&[("cacheSize", "32Mi"), ("inodes", "5000")]);
            wanted.mutable_parameters = map(&[("inodes", "2000"), ("flushInterval", "2s")]);
            let id = caller.create(wanted).await.expect("made").volume_id;
            let published = node.publish(&id, "v").expect("published");
            let inodes = || statvfs(&published.target).expect("statvfs").files();
            let words = || {
                let line = fs::read(format!("/proc/{}/cmdline", node.mounter_pid(&id).expect("a mounter")));
                String::from_utf8(line.expect("its command line")).expect("UTF-8").replace('\0', " ")
            };
            assert_eq!(inodes(), 2000);
            assert!(words().contains("--cache-size 32Mi") && words().contains("--flush-interval 2s"), "{}", words());
            let changes = [("inodes", "3000"), ("maxFileSize", "1Mi"), ("cacheSize", "64Mi"), ("syncMode", "writethrough")];
            for _ in 0..2 {
                caller.modify(&id, &changes).await.expect("changed");
            }
            wait_for("the new limit", LIMIT, || (inodes() == 3000).then_some(())).expect("at once");
            let large = || fs::write(published.target.join("f"), vec![1; (1 << 20) + 1]);
            wait_for("the largest file", LIMIT, || large().is_err().then_some(())).expect("at once");
            // What is staged stays as it is, also where staging is asked for again.
            node.call("stage", &published.words()).expect("the same");
            assert!(words().contains("--cache-size 32Mi") && !words().contains("writethrough"), "{}", words());
            for call in ["unpublish", "unstage", "stage", "publish"] {
                node.call(call, &published.words()).unwrap_or_else(|error| panic!("{call}: {error:#}"));
            }
            for option in ["--cache-size 64Mi", "--sync-mode writethrough", "--flush-interval 2s"] {
                assert!(words().contains(option), "{option}: {}", words());
            }
            assert!(!words().contains("32Mi"), "{}", words());
            fs::write(published.target.join("g"), "it works").expect("write");
            for call in ["unpublish", "unstage"] {
                node.call(call, &published.words()).unwrap_or_else(|error| panic!("{call}: {error:#}"));
            }
        });
    }

    fn what_the_leader_goes_by_changes_at_once_and_what_is_fixed_is_refused_by_name(database) {
        let world = world(database);
        run(async {
            let mut caller = world.controller.caller().await.expect("reach");
            let mut wanted = volume("pvc-1", GIB);
            wanted.mutable_parameters = map(&[("maxCheckpoints", "7")]);
            let made = caller.create(wanted.clone()).await.expect("made");
            assert_eq!(caller.create(wanted.clone()).await.expect("again"), made);
            let id = made.volume_id;
            let fixed = caller.modify(&id, &[("blockSize", "64Ki")]).await.expect_err("fixed");
            assert_eq!(fixed.code(), Code::InvalidArgument);
            for word in ["mutable_parameters.blockSize", "`64Ki`", "fixed", "cacheSize"] {
                assert!(fixed.message().contains(word), "{fixed}");
            }
            let absent = "00000000-0000-4000-8000-000000000000";
            for gone in [absent, "nobody's"] {
                let refused = caller.modify(gone, &[("cacheSize", "1Gi")]).await.expect_err(gone);
                assert_eq!(refused.code(), Code::NotFound, "{refused}");
            }
            assert_eq!(caller.modify("", &[]).await.expect_err("no id").code(), Code::InvalidArgument);
            let database = tarbox_store::open(world.controller.url()).await.expect("the database");
            let tenant = id.parse().expect("an id");
            let before = database.volume(tenant).await.expect("read").expect("a record");
            assert_eq!(before.parameter("maxCheckpoints").as_deref(), Some("7"), "nothing of what was refused is noted");
            caller.modify(&id, &[("autoCheckpoint", "true"), ("maxCheckpoints", "1")]).await.expect("changed");
            let has_one = async || {
                let store = database.open_tenant(tenant).await.expect("the tenant");
                store.own_layers().await.expect("read").iter().any(|layer| layer.name.starts_with("auto-"))
            };
            let begun = std::time::Instant::now();
            while !has_one().await {
                assert!(begun.elapsed() < LIMIT, "no checkpoint is made by itself");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let full = caller.snapshot("s", &id).await.expect_err("one too many");
            assert_eq!(full.code(), Code::ResourceExhausted);
            caller.modify(&id, &[("maxCheckpoints", "2")]).await.expect("changed");
            caller.snapshot("s", &id).await.expect("room for one more");
            let other = caller.create(wanted).await.expect_err("it stands otherwise by now");
            assert!(other.code() == Code::AlreadyExists && other.message().contains("mutable_parameters."), "{other}");
        });
    }

    fn a_tenant_of_the_command_line_is_modified_like_any_other(database) {
        let Cluster { controller, node, .. } = &cluster(database);
        run(async {
            let id = node.tenant("by-hand").expect("a tenant");
            let mut caller = controller.caller().await.expect("reach");
            for (number, most) in [("1", "1"), ("2", "2")] {
                caller.modify(&id, &[("maxCheckpoints", most)]).await.expect("changed");
                caller.snapshot(number, &id).await.expect("room for it");
            }
            let full = caller.snapshot("3", &id).await.expect_err("one too many");
            assert!(full.message().contains("`maxCheckpoints` allows 2"), "{full}");
        });
    }
}
