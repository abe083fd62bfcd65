//! What operators see: metrics, health, alerts, logs.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tarbox_tests::{
    collector::{Collector, Span},
    command::succeed,
    controller::{Controller, map, volume},
    deadline::wait_for,
    http::{self, Answer},
    node::{Node, NodePlan, Published},
    on_each_database,
    postgres::PostgresServer,
    process::{go_on, kill_9, stop},
    product::{tool, workspace},
    scratch::Scratch,
    volume::Database,
};

const MONITORED: [&str; 2] = ["--metrics-address", "127.0.0.1:0"];
const LIMIT: Duration = Duration::from_secs(60);

/// What Prometheus scrapes: rows by name and labels.
struct Scrape(String);

impl Scrape {
    /// The value of a row: `name{label="value"}` as it is written.
    fn value(&self, row: &str) -> Option<f64> {
        self.0.lines().find_map(|line| line.strip_prefix(row)?.trim_start().parse().ok())
    }

    fn at_least(&self, row: &str, least: f64) {
        let value = self.value(row);
        assert!(value.is_some_and(|value| value >= least), "{row} is {value:?}, not {least} in\n{}", self.0);
    }

    /// Names of the families.
    fn names(&self) -> BTreeSet<String> {
        let helps = self.0.lines().filter_map(|line| line.strip_prefix("# HELP "));
        helps.map(|help| help.split(' ').next().unwrap_or_default().to_owned()).collect()
    }
}

fn scrape(address: &str) -> Scrape {
    let answer = http::get(address, "/metrics").expect("scraped");
    assert_eq!(answer.status, 200, "{}", answer.body);
    Scrape(answer.body)
}

fn monitored_node(words: &[&str]) -> (Node, String) {
    let all = MONITORED.iter().chain(words).map(|&word| word.to_owned()).collect();
    let node = Node::with(NodePlan { words: all, ..NodePlan::default() }).expect("a node");
    let address =
        wait_for("the metrics' address", LIMIT, || http::metrics_address(&node.log())).expect("said");
    (node, address)
}

fn published(node: &Node, name: &str) -> Published {
    let id = node.tenant(name).expect("a tenant");
    node.publish(&id, name).expect("published")
}

/// promtool's own opinion of what is scraped.
fn pass_promtool(scrape: &Scrape) {
    let mut promtool = Command::new(tool("promtool"));
    let child = promtool
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = child.spawn().expect("promtool");
    let mut input = child.stdin.take().expect("a pipe");
    let text = scrape.0.clone();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut input, text.as_bytes()));
    let ended = child.wait_with_output().expect("its end");
    writer.join().expect("a thread").expect("written");
    let said = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
    // The specification gives these three their names, which promtool would keep for histograms.
    let is_known = |line: &&str| {
        let Some((name, fault)) = line.split_once(' ') else { return false };
        let names = ["tarbox_mount_count", "tarbox_snapshot_count", "tarbox_volume_count"];
        names.contains(&name) && fault.ends_with("should not have \"_count\" suffix")
    };
    let faults: Vec<_> = said.lines().filter(|line| !line.is_empty() && !is_known(line)).collect();
    assert!(faults.is_empty(), "{faults:#?}");
    assert!(matches!(ended.status.code(), Some(0 | 3)), "{}", ended.status);
}

/// Families that a README's table names: `| `name` | …`.
fn documented() -> BTreeSet<String> {
    let readme = fs::read_to_string(workspace().join("README.md")).expect("README.md");
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `tarbox_"));
    rows.map(|row| format!("tarbox_{}", row.split(['`', '{']).next().unwrap_or_default())).collect()
}

#[test]
fn a_node_tells_its_calls_its_mounts_and_what_its_mounters_count() {
    let (node, address) = monitored_node(&[]);
    let volume = published(&node, "work");
    let id = volume.id.as_str();
    let file = volume.target.join("file");
    fs::write(&file, vec![7; 1 << 20]).expect("write");
    assert_eq!(fs::read(&file).expect("read").len(), 1 << 20);
    fs::File::open(&file).and_then(|file| file.sync_all()).expect("fsync");
    // A call that is refused.
    let refused = node
        .csi("stats", &["--volume-id", id, "--staging", "/nowhere", "--target", "/nowhere"])
        .expect("an answer");
    assert_ne!(refused.code, Some(0));

    let seen = scrape(&address);
    seen.at_least("tarbox_csi_operations_total{method=\"NodeStageVolume\"}", 1.0);
    seen.at_least("tarbox_csi_operation_duration_seconds_count{method=\"NodeStageVolume\"}", 1.0);
    seen.at_least("tarbox_csi_operation_errors_total{code=\"NotFound\",method=\"NodeGetVolumeStats\"}", 1.0);
    seen.at_least("tarbox_mount_count{node=\"test-node\"}", 1.0);
    seen.at_least("tarbox_mount_duration_seconds_count", 1.0);
    seen.at_least(&format!("tarbox_mounter_up{{volume_id=\"{id}\"}}"), 1.0);
    seen.at_least(&format!("tarbox_mounter_phase{{volume_id=\"{id}\",phase=\"serving\"}}"), 1.0);
    seen.at_least(&format!("tarbox_fuse_operations_total{{volume_id=\"{id}\",opcode=\"write\"}}"), 1.0);
    let writes = format!("{{volume_id=\"{id}\",opcode=\"write\"}}");
    let count = seen.value(&format!("tarbox_fuse_operation_duration_seconds_count{writes}"));
    assert_eq!(count, seen.value(&format!("tarbox_fuse_operations_total{writes}")));
    seen.at_least(&format!("tarbox_commit_duration_seconds_count{{volume_id=\"{id}\"}}"), 1.0);
    seen.at_least(&format!("tarbox_cache_bytes{{volume_id=\"{id}\"}}"), 0.0);
    assert_eq!(seen.value(&format!("tarbox_mounter_restarts_total{{volume_id=\"{id}\"}}")), Some(0.0));
    seen.at_least("tarbox_database_up", 1.0);
    pass_promtool(&seen);

    kill_9(node.mounter_pid(id).expect("a mounter"));
    fs::write(&file, "goes on").expect("write");
    // What is told of each volume was looked up before what is counted for the node.
    let longest = format!("tarbox_mounter_recovery_longest_seconds{{volume_id=\"{id}\"}}");
    let seen = wait_for("a recovery", LIMIT, || {
        let seen = scrape(&address);
        seen.value(&longest).is_some_and(|seconds| seconds > 0.0).then_some(seen)
    });
    let seen = seen.expect("counted");
    seen.at_least("tarbox_mounter_recovery_seconds_count", 1.0);
    seen.at_least(&format!("tarbox_mounter_restarts_total{{volume_id=\"{id}\"}}"), 1.0);

    node.call("unpublish", &volume.words()).expect("unpublished");
    node.call("unstage", &volume.words()).expect("unstaged");
    let seen = scrape(&address);
    assert_eq!(seen.value("tarbox_mount_count{node=\"test-node\"}"), Some(0.0));
    assert!(!seen.0.contains(id), "a volume that is gone leaves no rows: {}", seen.0);
}

#[test]
fn a_mounter_that_hangs_is_left_out_of_the_scrape_and_counted() {
    let (node, address) = monitored_node(&["--stand-by", "false"]);
    let [hanging, other] = ["hanging", "other"].map(|name| published(&node, name));
    let pid = node.mounter_pid(&hanging.id).expect("a mounter");
    stop(pid);
    let begun = Instant::now();
    let seen = scrape(&address);
    let took = begun.elapsed();
    go_on(pid);
    assert!(took < Duration::from_secs(4), "the scrape took {took:?}");
    let up = |volume: &Published| seen.value(&format!("tarbox_mounter_up{{volume_id=\"{}\"}}", volume.id));
    assert_eq!((up(&hanging), up(&other)), (Some(0.0), Some(1.0)));
    seen.at_least("tarbox_mounter_silent_total", 1.0);
    let operations = |volume: &Published| format!("tarbox_journal_bytes{{volume_id=\"{}\"}}", volume.id);
    assert!(seen.value(&operations(&other)).is_some() && seen.value(&operations(&hanging)).is_none());
}

#[test]
fn health_tells_what_a_restart_would_mend_from_what_it_would_not() {
    let server = PostgresServer::start().expect("PostgreSQL");
    let words = MONITORED.map(str::to_owned).to_vec();
    let plan = NodePlan { url: Some(server.url()), words, ..NodePlan::default() };
    let node = Node::with(plan).expect("a node");
    let controller = Controller::start_with(node.path(), node.url(), &MONITORED).expect("a controller");
    let at = |log: &dyn Fn() -> String| {
        wait_for("an address", LIMIT, || http::metrics_address(&log())).expect("said")
    };
    let (agent, controller_at) = (at(&|| node.log()), at(&|| controller.log()));
    let ask = |address: &str, path: &str| http::get(address, path).expect("an answer");
    let ready = |address: &str| {
        wait_for("readiness", LIMIT, || (ask(address, "/readyz").status == 200).then_some(()))
            .expect("ready");
    };
    ready(&agent);
    ready(&controller_at);
    assert_eq!(ask(&agent, "/healthz").status, 200);
    drop(server);
    let outage = |address: &str| {
        wait_for("an outage that shows", LIMIT, || {
            Some(ask(address, "/readyz")).filter(|told| told.status == 503)
        })
    };
    let Answer { body, .. } = outage(&controller_at).expect("not ready");
    assert!(body.contains("the database has not answered for"), "{body}");
    assert_eq!(ask(&controller_at, "/healthz").status, 200, "a restart would mend nothing");
    assert_eq!(scrape(&controller_at).value("tarbox_database_up"), Some(0.0));
}

fn server(database: Database) -> Option<PostgresServer> {
    match database {
        Database::Sqlite => None,
        Database::Postgres => Some(PostgresServer::start().expect("PostgreSQL")),
    }
}

on_each_database! {
    fn the_leader_tells_volumes_and_snapshots_and_no_other_replica_does(database) {
        let scratch = Scratch::on_disk().expect("a directory");
        let server = server(database);
        let url = match &server {
            Some(server) => server.url(),
            None => format!("sqlite://{}", scratch.sub("db").expect("a directory").display()),
        };
        let homes = ["one", "two"].map(|name| scratch.sub(name).expect("a directory"));
        let [first, second] = homes.map(|home| {
            Controller::start_with(&home, &url, &MONITORED).expect("a controller")
        });
        let addresses = [&first, &second].map(|controller| {
            wait_for("the metrics' address", LIMIT, || http::metrics_address(&controller.log())).expect("said")
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let (id, snapshot) = runtime.expect("a runtime").block_on(async {
            let mut caller = first.caller().await.expect("reach");
            let mut wanted = volume("pvc-1", 1 << 30);
            wanted.parameters = map(&[("csi.storage.k8s.io/pvc/namespace", "team"), ("csi.storage.k8s.io/pvc/name", "c")]);
            let made = caller.create(wanted).await.expect("a volume");
            let snapshot = caller.snapshot("s", &made.volume_id).await.expect("a snapshot");
            caller.create(volume("pvc-2", 0)).await.expect("another");
            (made.volume_id, snapshot.snapshot_id)
        });
        let counted = |address: &String| {
            let seen = scrape(address);
            let is_counted = seen.value("tarbox_volume_count{namespace=\"team\"}") == Some(1.0);
            is_counted.then_some(seen)
        };
        let seen = wait_for("the leader's numbers", LIMIT, || addresses.iter().find_map(counted)).expect("counted");
        assert_eq!(seen.value(&format!("tarbox_volume_capacity_bytes{{volume_id=\"{id}\"}}")), Some((1u64 << 30) as f64));
        assert!(seen.value(&format!("tarbox_volume_used_bytes{{volume_id=\"{id}\"}}")).is_some());
        assert_eq!(seen.value("tarbox_snapshot_count"), Some(1.0));
        assert!(seen.value(&format!("tarbox_snapshot_size_bytes{{snapshot_id=\"{snapshot}\"}}")).is_some());
        let leaders = addresses.iter().filter(|address| scrape(address).value("tarbox_snapshot_count").is_some());
        assert_eq!(leaders.count(), 1, "a sum over the replicas would count twice");
        let first_seen = scrape(&addresses[0]);
        first_seen.at_least("tarbox_csi_operations_total{method=\"CreateVolume\"}", 2.0);
        first_seen.at_least("tarbox_database_up", 1.0);
        pass_promtool(&seen);
    }
}

#[test]
fn every_metric_is_documented_and_what_is_documented_is_there() {
    let (node, address) = monitored_node(&[]);
    let volume = published(&node, "work");
    fs::write(volume.target.join("file"), "x").expect("write");
    kill_9(node.mounter_pid(&volume.id).expect("a mounter"));
    node.mounter_pid(&volume.id).expect("its successor");
    // What a mounter has not been asked for has no row.
    fs::metadata(volume.target.join("nothing")).expect_err("nothing");
    fs::write(volume.target.join("file"), "y").expect("write");
    // An error, so that errors have a row.
    node.csi("stats", &["--volume-id", &volume.id, "--staging", "/nowhere", "--target", "/nowhere"])
        .expect("an answer");
    let home = node.path().join("controller");
    fs::create_dir(&home).expect("mkdir");
    let controller = Controller::start_with(&home, node.url(), &MONITORED).expect("a controller");
    let of_controller =
        wait_for("its address", LIMIT, || http::metrics_address(&controller.log())).expect("said");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let mut caller = controller.caller().await.expect("reach");
        let made = caller.create(tarbox_tests::controller::volume("pvc-1", 1 << 30)).await.expect("a volume");
        caller.snapshot("s", &made.volume_id).await.expect("a snapshot");
    });
    wait_for("the leader's numbers", LIMIT, || scrape(&of_controller).value("tarbox_snapshot_count"))
        .expect("counted");
    let there = wait_for("the mounter's numbers", LIMIT, || {
        let names = &scrape(&address).names() | &scrape(&of_controller).names();
        names.contains("tarbox_mounter_recovery_longest_seconds").then_some(names)
    });
    assert_eq!(there.expect("all of them"), documented());
}

/// Words of an expression that are metrics of ours.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| word.starts_with("tarbox_"));
    ours.map(|word| {
        ["_bucket", "_count", "_sum"].iter().fold(word, |word, end| match word.strip_suffix(end) {
            // `tarbox_volume_count` is a name of its own.
            Some(stem) if stem.ends_with("_seconds") => stem,
            _ => word,
        })
    })
    .map(str::to_owned)
    .collect()
}

#[test]
fn alerts_fire_when_they_should_and_only_then() {
    let monitoring = workspace().join("deploy/monitoring");
    for words in [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts-test.yaml"]] {
        let mut promtool = Command::new(tool("promtool"));
        succeed(promtool.args(words).current_dir(&monitoring), LIMIT).expect("promtool");
    }
}

#[test]
fn alerts_and_dashboard_ask_only_for_metrics_that_there_are() {
    let monitoring = workspace().join("deploy/monitoring");
    let read = |name: &str| fs::read_to_string(PathBuf::from(&monitoring).join(name)).expect(name);
    let dashboard: serde_json::Value = serde_json::from_str(&read("dashboard.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let expressions = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let shown: String =
        expressions.map(|target| target["expr"].as_str().expect("an expression").to_owned() + "\n").collect();
    let documented = documented();
    for text in [read("alerts.yaml"), shown.clone()] {
        let unknown: Vec<_> = metrics_in(&text).difference(&documented).cloned().collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
    // What nobody looks at is of no use.
    let unseen: Vec<_> = documented.difference(&metrics_in(&shown)).cloned().collect();
    assert!(unseen.is_empty(), "not on the dashboard: {unseen:?}");
}

/// The one span of a program with this name and parent, once it has come.
fn sent(collector: &Collector, service: &str, name: &str, parent: Option<&Span>) -> Span {
    let is_it = |span: &Span| {
        let belongs =
            parent.is_none_or(|parent| (&span.trace_id, &span.parent) == (&parent.trace_id, &parent.span_id));
        span.service == service && span.name == name && belongs
    };
    let what = format!("the span {name} of {service} below {parent:?}");
    wait_for(&what, LIMIT, || collector.spans().into_iter().find(is_it))
        .unwrap_or_else(|error| panic!("{error} in {:#?}", collector.spans()))
}

#[test]
fn a_trace_leads_from_the_call_through_the_mounter_to_the_database() {
    let collector = Collector::start().expect("a collector");
    let words = vec!["--otlp-endpoint".to_owned(), collector.url()];
    let node = Node::with(NodePlan { words, ..NodePlan::default() }).expect("a node");
    let controller = Controller::start_with(node.path(), node.url(), &["--otlp-endpoint", &collector.url()]);
    let controller = controller.expect("a controller");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let id = runtime.expect("a runtime").block_on(async {
        let mut caller = controller.caller().await.expect("reach");
        let mut request = tonic::Request::new(volume("pvc-1", 1 << 30));
        // As a sidecar that is in a trace itself.
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        request.metadata_mut().insert("traceparent", parent.parse().expect("ASCII"));
        let made = caller.client.create_volume(request).await.expect("a volume").into_inner();
        made.volume.expect("a volume").volume_id
    });
    let call = sent(&collector, "tarbox-controller", "csi.v1.Controller/CreateVolume", None);
    assert_eq!(call.trace_id, "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(call.parent, "b7ad6b7169203331");
    assert!(call.attributes.contains(&("volume_id".to_owned(), id.clone())), "{call:?}");
    sent(&collector, "tarbox-controller", "noting a volume", Some(&call));

    let volume = node.publish(&id, "pvc-1").expect("published");
    fs::write(volume.target.join("file"), "content").expect("write");
    node.call("unpublish", &volume.words()).expect("unpublished");
    let call = sent(&collector, "tarbox-agent", "csi.v1.Node/NodeUnpublishVolume", None);
    assert!(call.attributes.contains(&("node".to_owned(), "test-node".to_owned())), "{call:?}");
    let control = sent(&collector, "tarbox-mount", "tarbox.control.v1.Control/Flush", Some(&call));
    assert!(control.attributes.contains(&("tenant_id".to_owned(), id)), "{control:?}");
    let commit = wait_for("the commit's statement", LIMIT, || {
        let below = |span: &Span| span.service == "tarbox-mount" && span.parent == control.span_id;
        collector.spans().into_iter().find(below)
    });
    commit.unwrap_or_else(|error| panic!("{error} in {:#?}", collector.spans()));
    // What nobody called for is in no trace.
    let roots = collector.spans().into_iter().filter(|span| span.parent.is_empty());
    let strange: Vec<_> = roots.filter(|span| !span.name.contains('/')).collect();
    assert!(strange.is_empty(), "{strange:#?}");
    // Metrics go the same way.
    for (program, metric) in
        [("tarbox-agent", "tarbox_mount_count"), ("tarbox-controller", "tarbox_volume_count")]
    {
        wait_for(metric, LIMIT, || collector.metrics(program).contains(metric).then_some(())).expect(program);
    }
}

#[test]
fn what_is_logged_of_a_call_names_its_request_its_volume_its_tenant_and_its_node() {
    let words = ["--log-format", "json"].map(str::to_owned).to_vec();
    let node = Node::with(NodePlan { words, ..NodePlan::default() }).expect("a node");
    let id = node.tenant("work").expect("a tenant");
    let volume = node.publish(&id, "work").expect("published");
    // Refused, and said so: it is still published.
    let refused = node.csi("unstage", &volume.words()).expect("an answer");
    assert_ne!(refused.code, Some(0));
    let line = wait_for("the refusal in the log", LIMIT, || {
        let lines = node.log().lines().map(str::to_owned).collect::<Vec<_>>();
        lines.into_iter().find(|line| line.contains("a call failed"))
    });
    let line: serde_json::Value = serde_json::from_str(&line.expect("logged")).expect("JSON");
    let call = &line["span"];
    assert_eq!(call["method"], "NodeUnstageVolume", "{line}");
    assert_eq!(
        (&call["volume_id"], &call["tenant_id"]),
        (&id.as_str().into(), &id.as_str().into()),
        "{line}"
    );
    assert_eq!(call["node"], "test-node", "{line}");
    assert_eq!(call["request_id"].as_str().map(str::len), Some(36), "{line}");
    kill_9(node.mounter_pid(&id).expect("a mounter"));
    let line = wait_for("a line about the volume", LIMIT, || {
        let log = node.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.into_iter().find(|line| line["span"]["name"] == "tenant" && line["level"] == "WARN")
    });
    let line = line.expect("logged");
    assert_eq!(
        (&line["span"]["volume_id"], &line["span"]["node"]),
        (&id.as_str().into(), &"test-node".into()),
        "{line}"
    );
}
