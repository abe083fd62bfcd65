//! Volumes that pods ask for themselves: made when they are published, gone when they are not.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use tarbox_tests::{
    churn::Churn,
    command::succeed,
    controller::Controller,
    deadline::wait_for,
    node::{Node, NodePlan},
    on_each_database,
    postgres::PostgresServer,
    process::kill_9,
    rng::{Rng, seed},
    volume::Database,
};

const LIMIT: Duration = Duration::from_secs(60);

/// A pod's volume, as the kubelet knows it.
struct Inline {
    id: String,
    target: PathBuf,
}

impl Inline {
    fn new(node: &Node, name: &str) -> Self {
        let digits = name.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
        Self { id: format!("csi-{digits:0>64}"), target: node.path().join(name) }
    }

    fn words(&self) -> Vec<&str> {
        vec!["--volume-id", &self.id, "--target", self.target.to_str().expect("UTF-8")]
    }

    fn publish_words<'a>(&'a self, attributes: &[&'a str]) -> Vec<&'a str> {
        let said = ["csi.storage.k8s.io/ephemeral=true", "csi.storage.k8s.io/pod.name=p"];
        let context = said.iter().chain(attributes).flat_map(|pair| ["--context", pair]);
        self.words().into_iter().chain(context).collect()
    }

    fn publish(&self, node: &Node, attributes: &[&str]) {
        node.call("publish", &self.publish_words(attributes)).expect("published");
    }

    fn at(&self, name: &str) -> PathBuf {
        self.target.join(name)
    }
}

struct World {
    node: Node,
    _server: Option<PostgresServer>,
}

fn world(database: Database, words: &[&str]) -> World {
    let server = (database == Database::Postgres).then(|| PostgresServer::start().expect("PostgreSQL"));
    let words = words.iter().map(|word| (*word).to_owned()).collect();
    let plan = NodePlan { url: server.as_ref().map(PostgresServer::url), words, ..NodePlan::default() };
    World { node: Node::with(plan).expect("a node"), _server: server }
}

/// The tenants that can be used.
fn tenants(node: &Node) -> Vec<String> {
    let listed = node.tarbox(&["tenant", "list", "-o", "json"]).expect("a list");
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let all = listed.as_array().expect("a list").iter();
    all.map(|tenant| tenant["name"].as_str().expect("a name").to_owned()).collect()
}

fn nothing_is_left(node: &Node) {
    wait_for("nothing left", LIMIT, || node.left_over().is_empty().then_some(()))
        .unwrap_or_else(|_| panic!("{:?}", node.left_over()));
    assert_eq!(tenants(node), Vec::<String>::new());
    let staged = fs::read_dir(node.state_dir().join("inline")).expect("list").count();
    assert_eq!(staged, 0, "directories of volumes that are gone");
}

fn serving(node: &Node) -> u32 {
    let pid = wait_for("a mounter", LIMIT, || {
        let all = node.ps().ok()?;
        all.first()?["pid"].as_u64().filter(|pid| *pid != 0)
    });
    u32::try_from(pid.expect("one that serves")).expect("a pid")
}

on_each_database! {
    fn a_pods_volume_lives_as_long_as_the_pod_through_kills_and_leaves_nothing(database) {
        let mut world = world(database, &[]);
        let node = &mut world.node;
        let volume = Inline::new(node, "v");
        volume.publish(node, &["size=64Mi"]);
        assert_eq!(fs::metadata(&volume.target).expect("stat").permissions().mode() & 0o7777, 0o777);
        // Whoever runs in the pod may write, up to its size.
        let script = format!("echo mine > {0}/mine && cat {0}/mine", volume.target.display());
        let mut user = Command::new("setpriv");
        user.args(["--reuid", "1000", "--regid", "1000", "--clear-groups", "sh", "-c"]).arg(script);
        succeed(&mut user, LIMIT).expect("any user may write");
        let full = File::create(volume.at("full")).and_then(|mut file| file.write_all(&vec![1; 128 << 20]));
        assert_eq!(full.expect_err("it is full").kind(), ErrorKind::StorageFull);
        fs::remove_file(volume.at("full")).expect("rm");
        let told = node.call("stats", &volume.words()).expect("known by the kubelet's id");
        assert!(told.contains(&(64 << 20).to_string()), "{told}");

        let stop = AtomicBool::new(false);
        let mut churn = Churn::new(&volume.at("churn"), seed()).expect("a directory");
        thread::scope(|scope| {
            let worker = scope.spawn(|| churn.run(&stop));
            kill_9(serving(node));
            node.kill_agent();
            node.start_agent().expect("start again");
            volume.publish(node, &["size=64Mi"]);
            kill_9(serving(node));
            stop.store(true, Ordering::Relaxed);
            worker.join().expect("no panic").expect("no call fails");
        });
        churn.verify_all().expect("all is as it was made");
        assert_eq!(fs::read_to_string(volume.at("mine")).expect("read"), "mine\n");
        assert_eq!((node.ps().expect("ps").len(), tenants(node).len()), (1, 1));

        for _ in 0..2 {
            node.call("unpublish", &volume.words()).expect("unpublished, however often");
        }
        nothing_is_left(node);
        // The same pod once more: it is another volume.
        volume.publish(node, &[]);
        assert_eq!(fs::read_dir(&volume.target).expect("list").count(), 0);
        kill_9(serving(node));
        node.call("unpublish", &volume.words()).expect("unpublished behind a kill");
        nothing_is_left(node);
    }

    fn calls_that_are_cut_off_anywhere_are_repeated_and_leave_nothing(database) {
        let mut world = world(database, &["--stand-by", "false"]);
        let node = &mut world.node;
        let mut rng = Rng::new(seed());
        for round in 0..4 {
            let volume = Inline::new(node, &format!("v{round}"));
            for (call, words) in [("publish", volume.publish_words(&[])), ("unpublish", volume.words())] {
                for _ in 0..3 {
                    thread::scope(|scope| {
                        let called = scope.spawn(|| {
                            let mut agent = Command::new(tarbox_tests::product::program("tarbox-agent"));
                            agent.args(["csi", "--timeout", "10", "--endpoint"]).arg(node.socket());
                            let _ = agent.arg(call).args(&words).output();
                        });
                        thread::sleep(Duration::from_millis(rng.below(150)));
                        kill_9(node.agent_pid().expect("an agent"));
                        called.join().expect("it ends");
                    });
                    node.kill_agent();
                    node.start_agent().expect("start again");
                }
                node.call(call, &words).expect("it converges");
                if call == "publish" {
                    fs::write(volume.at("file"), "x").expect("write");
                    assert_eq!((node.ps().expect("ps").len(), tenants(node).len()), (1, 1));
                }
            }
            nothing_is_left(node);
        }
    }

    fn what_a_lost_node_leaves_behind_the_leader_deletes(database) {
        let mut world = world(database, &[]);
        let node = &mut world.node;
        let volume = Inline::new(node, "v");
        volume.publish(node, &[]);
        let kept = node.tenant("kept").expect("a tenant that is nobody's");
        let words = ["--ephemeral-grace", "1s"];
        let controller = Controller::start_with(node.path(), node.url(), &words).expect("a controller");
        // While it is used, nothing happens to it, however long.
        thread::sleep(Duration::from_secs(13));
        assert_eq!(tenants(node).len(), 2);
        fs::write(volume.at("file"), "x").expect("write");
        node.power_off().expect("power off");
        wait_for("its end", LIMIT * 2, || (tenants(node).len() == 1).then_some(()))
            .unwrap_or_else(|_| panic!("{}", controller.log()));
        assert!(node.tarbox(&["tenant", "show", &kept]).is_ok(), "what no pod asked for stays");
    }
}

#[test]
fn what_a_pod_may_not_ask_for_is_refused_and_nothing_is_made() {
    let node = Node::start_with(|_| vec!["--ephemeral-max-size".into(), "1Gi".into()]).expect("a node");
    let volume = Inline::new(&node, "v");
    let refused = |words: &[&str], expected: [&str; 2]| {
        let ended = node.csi("publish", words).expect("an answer");
        let is_right = ended.code != Some(0) && expected.iter().all(|word| ended.stderr.contains(word));
        assert!(is_right, "{words:?}: {}", ended.stderr);
    };
    for attribute in
        ["nativeMounts=x", "databaseURL=sqlite:///tmp/x", "namespace=other", "tenant_id=x", "foo=bar"]
    {
        let key = attribute.split('=').next().expect("a key");
        refused(&volume.publish_words(&[attribute]), ["InvalidArgument", key]);
    }
    refused(&volume.publish_words(&["size=2Gi"]), ["InvalidArgument", "at most 1Gi"]);
    refused(&volume.publish_words(&["cacheSize=1Gi"]), ["InvalidArgument", "at most 256Mi"]);
    let mut secret = volume.publish_words(&[]);
    secret.extend(["--secret", "databaseURL=sqlite:///tmp/x"]);
    refused(&secret, ["InvalidArgument", "databaseURL"]);
    let tenant = node.tenant("somebodys").expect("a tenant");
    let other = Inline { id: tenant, target: volume.target.clone() };
    refused(&other.publish_words(&[]), ["InvalidArgument", "volume_id"]);
    assert_eq!(tenants(&node), ["somebodys"]);
    assert!(node.left_over().is_empty(), "{:?}", node.left_over());
    assert!(!Path::new("/tmp/x").exists());

    let node = Node::start_with(|_| vec!["--ephemeral".into(), "false".into()]).expect("a node");
    let ended = node.csi("publish", &volume.publish_words(&[])).expect("an answer");
    assert!(ended.code != Some(0) && ended.stderr.contains("ephemeral = `false`"), "{}", ended.stderr);
}
