//! `kubectl tarbox …` on a stand-in for kubectl that answers as a cluster (Kubernetes 1.34) does; `make e2e` has the cluster.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::place::{Ended, Place, end_of};

/// The volume of team-a/work, and that of a pod's own.
const WORK: &str = "5f0c9c1e-7c55-4c0e-9a25-3b8f6f1d2a10";
const INLINE: &str = "0e3a52b7-19b0-4a6f-8f0d-6f7f1f2a9b33";

/// A cluster: what kubectl answers, by its arguments.
struct Cluster {
    place: Place,
}

impl Cluster {
    /// One that has the driver, two nodes, and the answers recorded beside this file.
    fn new() -> Self {
        let cluster = Self::empty();
        let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/kubectl");
        let recorded = |name: &str| -> Value {
            let text = fs::read_to_string(recorded.join(name)).expect("recorded");
            serde_json::from_str(&text).expect("JSON")
        };
        let objects = recorded("objects.json");
        for (arguments, answer) in objects.as_object().expect("by arguments") {
            cluster.answers(arguments, answer);
        }
        cluster.exec("agent-a", "tarbox-agent ps -o json", &recorded("ps.json"));
        cluster.exec("agent-b", "tarbox-agent ps -o json", &json!({"tenants": []}));
        for agent in ["agent-a", "agent-b"] {
            cluster.exec(agent, "tarbox-agent doctor -o json", &recorded("doctor.json"));
        }
        cluster
    }

    /// One where nothing is known.
    fn empty() -> Self {
        let place = Place::new();
        let (answers, calls) = (place.path("answers"), place.path("calls"));
        fs::create_dir(&answers).expect("mkdir");
        // A name of a file cannot hold every argument: a slash is a comma there.
        let script = format!(
            "#!/bin/sh\necho \"$*\" >>{calls}\nanswer={answers}/$(echo \"$*\" | tr / ,)\n[ \"$1\" = create ] && cat >{input}\n\
             [ -e \"$answer.err\" ] && {{ cat \"$answer.err\" >&2; exit 1; }}\n\
             [ -e \"$answer\" ] && exec cat \"$answer\"\n\
             echo \"Error from server (NotFound): $2 \\\"$3\\\" not found\" >&2\nexit 1\n",
            calls = calls.display(),
            answers = answers.display(),
            input = place.path("input").display(),
        );
        // Written by another process: a child that some other test starts meanwhile would hold it open for writing, and it could not be run.
        let (text, kubectl) = (place.path("kubectl.text"), place.path("kubectl"));
        fs::write(&text, script).expect("write");
        end_of(Command::new("install").args(["-m", "755"]).arg(&text).arg(&kubectl)).expect(0, &[]);
        Self { place }
    }

    fn file(&self, arguments: &str, ending: &str) -> PathBuf {
        self.place.path("answers").join(arguments.replace('/', ",") + ending)
    }

    fn answers(&self, arguments: &str, answer: &Value) {
        fs::write(self.file(arguments, ""), answer.to_string()).expect("write");
    }

    fn refuses(&self, arguments: &str, message: &str) {
        fs::write(self.file(arguments, ".err"), message).expect("write");
    }

    fn exec(&self, pod: &str, words: &str, answer: &Value) {
        self.answers(&exec(pod, words), answer);
    }

    /// One of the recorded objects, to be changed.
    fn object(&self, arguments: &str) -> Value {
        let text = fs::read_to_string(self.file(arguments, "")).expect("recorded");
        serde_json::from_str(&text).expect("JSON")
    }

    /// `kubectl tarbox …`, under either name.
    fn tarbox(&self, arguments: &[&str]) -> Ended {
        let mut command = self.place.command("tarbox");
        end_of(command.arg("kubectl").args(arguments).env("KUBECTL", self.place.path("kubectl")))
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.place.path("calls")).unwrap_or_default()
    }
}

fn exec(pod: &str, words: &str) -> String {
    let container = if pod.starts_with("agent") { "agent" } else { "controller" };
    format!("exec --namespace=tarbox-system {pod} --container {container} -- {words}")
}

// === volumes ===

#[test]
fn volumes_are_shown_with_their_claims_and_who_serves_them() {
    let cluster = Cluster::new();
    let all = cluster.tarbox(&["volumes", "-A", "-o", "json"]).json();
    let row =
        |index: usize, keys: &[&str]| -> Value { keys.iter().map(|key| all[index][*key].clone()).collect() };
    assert_eq!(all.as_array().map(Vec::len), Some(3), "the volume of another driver is none of ours: {all}");
    // Without a claim first: one that a pod asked for itself.
    let keys = ["claim", "volume", "tenant_id", "node", "mounter"];
    assert_eq!(row(0, &keys), json!([null, null, INLINE, "node-a", "serving"]));
    let keys = ["namespace", "claim", "tenant", "capacity", "node", "mounter", "restarts", "condition"];
    let condition = "the mounter waits for: database";
    assert_eq!(
        row(1, &keys),
        json!(["team-a", "work", "team-a-work", "1Gi", "node-a", "waiting", 2, condition])
    );
    assert_eq!(row(2, &["claim", "node", "mounter", "restarts"]), json!(["idle", null, null, null]));
    cluster.tarbox(&["volumes", "-A"]).expect(0, &["NAMESPACE", "team-a     work", "node-a", condition]);
}

#[test]
fn without_all_namespaces_only_those_of_one_are_shown() {
    let cluster = Cluster::new();
    let shown = cluster.tarbox(&["volumes", "-o", "json"]).json();
    assert_eq!(shown.as_array().map(Vec::len), Some(1), "{shown}");
    assert_eq!(shown[0]["claim"], "work");
    let other = cluster.tarbox(&["-n", "team-b", "volumes", "-o", "json"]).json();
    assert_eq!((other.as_array().map(Vec::len), &other[0]["claim"]), (Some(1), &"idle".into()));
}

#[test]
fn a_node_that_cannot_be_asked_is_named_and_the_rest_is_shown() {
    let cluster = Cluster::new();
    cluster.refuses(
        &exec("agent-b", "tarbox-agent ps -o json"),
        "error: unable to upgrade connection: pod does not exist",
    );
    let ended = cluster.tarbox(&["volumes", "-A"]);
    ended.expect(1, &["node node-b cannot be asked", "unable to upgrade connection", "team-a     work"]);
}

#[test]
fn what_is_missing_is_said() {
    let cluster = Cluster::empty();
    let nothing = json!({"items": []});
    cluster.answers("get persistentvolumes -o json", &nothing);
    cluster.answers("get persistentvolumeclaims -o json", &nothing);
    cluster.answers(&pods("agent"), &nothing);
    cluster.tarbox(&["volumes"]).expect(1, &["no pod of Tarbox's agent is in this cluster"]);
    cluster.refuses(
        "get persistentvolumes -o json",
        "Unable to connect to the server: dial tcp 10.0.0.1:6443: i/o timeout",
    );
    cluster
        .tarbox(&["volumes"])
        .expect(1, &["get persistentvolumes -o json`: Unable to connect to the server"]);
    let mut command = cluster.place.command("tarbox");
    end_of(command.args(["kubectl", "volumes"]).env("KUBECTL", "/nowhere/kubectl"))
        .expect(1, &["`/nowhere/kubectl` cannot be started", "install kubectl"]);
    fs::remove_file(cluster.file("get persistentvolumes -o json", ".err")).expect("remove");
    fs::write(cluster.file("get persistentvolumes -o json", ""), "not JSON").expect("write");
    cluster.tarbox(&["volumes"]).expect(1, &["answered something else than was asked for"]);
}

fn pods(component: &str) -> String {
    format!(
        "get pods --all-namespaces --selector app.kubernetes.io/part-of=tarbox,app.kubernetes.io/component={component} -o json"
    )
}

#[test]
fn options_of_kubectl_are_passed_on() {
    let cluster = Cluster::new();
    let ended = cluster.tarbox(&["--context", "prod", "--kubeconfig", "/etc/k", "volumes"]);
    assert_eq!(ended.code, Some(1), "the stand-in does not know the options");
    assert!(
        cluster.calls().starts_with("--context=prod --kubeconfig=/etc/k get persistentvolumes"),
        "{}",
        cluster.calls()
    );
}

// === checkpoint ===

#[test]
fn a_checkpoint_is_made_by_the_controller_that_is_ready() {
    let cluster = Cluster::new();
    let words = format!("tarbox --state-dir /nonexistent checkpoint create -o json {WORK} before-tool");
    cluster.exec("controller-2", &words, &json!({"name": "before-tool", "kind": "checkpoint"}));
    let made = cluster.tarbox(&["checkpoint", "work", "before-tool", "-o", "json"]).json();
    assert_eq!(made["name"], "before-tool");
    cluster.tarbox(&["checkpoint", "work", "before-tool"]).expect(0, &["before-tool", "work"]);
    cluster.refuses(
        &exec("controller-2", &words),
        "tarbox: there is a checkpoint `before-tool` already\ncommand terminated with exit code 1",
    );
    cluster
        .tarbox(&["checkpoint", "work", "before-tool"])
        .expect(1, &["there is a checkpoint `before-tool` already"]);
    cluster.tarbox(&["checkpoint", "work", "a/b"]).expect(64, &["a/b"]);
    cluster.tarbox(&["checkpoint", "nowhere"]).expect(1, &["(NotFound)"]);
}

#[test]
fn only_bound_claims_of_tarbox_have_checkpoints() {
    let cluster = Cluster::new();
    let mut claim = cluster.object("get persistentvolumeclaim work -o json");
    claim["spec"]["volumeName"] = "pvc-foreign".into();
    cluster.answers("get persistentvolumeclaim foreign -o json", &claim);
    cluster.tarbox(&["checkpoint", "foreign"]).expect(1, &["has no volume of Tarbox"]);
    claim["spec"].as_object_mut().expect("a spec").remove("volumeName");
    claim["status"]["phase"] = "Pending".into();
    cluster.answers("get persistentvolumeclaim pending -o json", &claim);
    cluster
        .tarbox(&["checkpoint", "pending"])
        .expect(1, &["team-a/pending is bound to no volume yet: it is Pending"]);
    let mut pods_of = cluster.object(&pods("controller"));
    pods_of["items"].as_array_mut().expect("a list").truncate(1);
    cluster.answers(&pods("controller"), &pods_of);
    cluster.tarbox(&["checkpoint", "work"]).expect(1, &["no pod of Tarbox's controller is ready"]);
}

// === fork ===

#[test]
fn a_fork_is_a_claim_whose_source_is_the_claim() {
    let cluster = Cluster::new();
    let made = json!({"metadata": {"name": "attempt", "namespace": "team-a"}});
    cluster.answers("create -f - -o json", &made);
    cluster
        .tarbox(&["fork", "work", "attempt"])
        .expect(0, &["team-a/attempt", "as the claim work is", "now"]);
    let asked = || -> Value {
        let text = fs::read_to_string(cluster.place.path("input")).expect("what was created");
        serde_json::from_str(&text).expect("JSON")
    };
    assert_eq!(
        asked(),
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "attempt", "namespace": "team-a"},
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": "tarbox",
                "dataSource": {"kind": "PersistentVolumeClaim", "name": "work"},
                "resources": {"requests": {"storage": "1Gi"}},
            },
        })
    );
    let arguments =
        ["fork", "work", "attempt", "--from-snapshot", "s", "--size", "2Gi", "--storage-class", "slow"];
    cluster.tarbox(&arguments).expect(0, &["as the VolumeSnapshot s", "when the first pod uses it"]);
    let spec = &asked()["spec"];
    assert_eq!(
        (&spec["dataSource"]["kind"], &spec["resources"]["requests"]["storage"], &spec["storageClassName"]),
        (&"VolumeSnapshot".into(), &"2Gi".into(), &"slow".into())
    );
    cluster
        .tarbox(&["fork", "work", "attempt", "--storage-class", "standard"])
        .expect(1, &["belongs to other.csi.io"]);
    let exists = "Error from server (AlreadyExists): persistentvolumeclaims \"attempt\" already exists";
    cluster.refuses("create -f - -o json", exists);
    cluster.tarbox(&["fork", "work", "attempt"]).expect(1, &["already exists"]);
}

// === doctor ===

#[test]
fn the_doctor_finds_nothing_where_all_is_fine() {
    let cluster = Cluster::new();
    let found = cluster.tarbox(&["doctor", "-o", "json"]).json();
    let faults: Vec<_> =
        found.as_array().expect("findings").iter().filter(|row| row["state"] == "fault").collect();
    assert!(faults.is_empty(), "{faults:?}");
    cluster.tarbox(&["doctor"]).expect(
        0,
        &["attachRequired false", "3 of 3 ready", "2 nodes know the driver", "node-b: all is fine"],
    );
}

#[test]
fn the_doctor_names_what_is_not_fine() {
    let cluster = Cluster::new();
    let mut nodes = cluster.object("get csinodes -o json");
    nodes["items"][1]["spec"]["drivers"] = Value::Null;
    cluster.answers("get csinodes -o json", &nodes);
    let agents = "get daemonsets --all-namespaces --selector app.kubernetes.io/part-of=tarbox,app.kubernetes.io/component=agent -o json";
    let mut set = cluster.object(agents);
    set["items"][0]["status"]["numberReady"] = json!(1);
    cluster.answers(agents, &set);
    let trouble = json!([
        {"what": "/dev/fuse", "state": "fault", "found": "No such file or directory", "advice": "modprobe fuse"},
        {"what": "launcher host", "state": "warning", "found": "none", "advice": null},
    ]);
    cluster.exec("agent-a", "tarbox-agent doctor -o json", &trouble);
    cluster.tarbox(&["doctor"]).expect(
        1,
        &[
            "the kubelet does not know the driver on node-b",
            "tarbox-system/tarbox-csi-agent: 1 of 2 ready",
            "node-a: /dev/fuse: No such file or directory",
            "modprobe fuse",
        ],
    );
    Cluster::empty().tarbox(&["doctor"]).expect(1, &[]);
}

// === untaint, install ===

#[test]
fn only_nodes_that_know_the_driver_lose_the_taint() {
    let cluster = Cluster::new();
    let tainted = |name: &str, key: &str| json!({"metadata": {"name": name}, "spec": {"taints": [{"key": key, "effect": "NoSchedule"}]}});
    let nodes = json!({"items": [
        tainted("node-a", "t"), tainted("node-b", "other"), tainted("node-new", "t"), {"metadata": {"name": "node-d"}, "spec": {}},
    ]});
    cluster.answers("get nodes -o json", &nodes);
    cluster.answers("taint node node-a t-", &json!("node/node-a untainted"));
    let done = cluster.tarbox(&["untaint", "t", "-o", "json"]).json();
    assert_eq!(done, json!([{"node": "node-a"}]));
    assert_eq!(cluster.calls().matches("taint node").count(), 1, "{}", cluster.calls());
}

#[test]
fn installed_it_answers_under_the_plugins_name() {
    let cluster = Cluster::new();
    let directory = cluster.place.path("home");
    let text = directory.to_str().expect("utf-8");
    cluster.tarbox(&["install", text]).expect(0, &["kubectl-tarbox"]);
    // Twice is as good as once.
    cluster.tarbox(&["install", text]).expect(0, &[]);
    assert_eq!(fs::read_dir(&directory).expect("list").count(), 1);
    let plugin = directory.join("kubectl-tarbox");
    end_of(Command::new(&plugin).arg("--help")).expect(0, &["Usage: kubectl tarbox", "fork"]);
    let mut command = Command::new(&plugin);
    end_of(command.args(["volumes", "-A"]).env("KUBECTL", cluster.place.path("kubectl")))
        .expect(0, &["team-a-work"]);
}
