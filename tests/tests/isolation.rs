//! What a mounter on a node can do to other tenants with what it logs in to the database with: nothing.

use std::{fs, path::PathBuf, time::Duration};

use tarbox_tests::{
    command::succeed,
    deadline::wait_for,
    node::{Node, NodePlan, Published},
    postgres::PostgresServer,
    process::{kill_9, secrets_of},
};

const LIMIT: Duration = Duration::from_secs(60);
const ROLES: &str = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'tarbox\\_%'";

/// A server that lets nobody in without a password but its administrator; and the URL of a driver that is none.
fn server(rights: &str) -> (PostgresServer, String) {
    let server = PostgresServer::start().expect("PostgreSQL");
    let sql = |sql: &str| server.sql("postgres", sql).expect("SQL");
    sql(&format!("CREATE ROLE driver LOGIN {rights} PASSWORD 'one'"));
    sql("ALTER DATABASE tarbox OWNER TO driver");
    let rules = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    fs::write(server.data().join("pg_hba.conf"), rules).expect("pg_hba.conf");
    sql("SELECT pg_reload_conf()");
    let url = server.url().replace("postgres@", "driver:one@");
    // It is read by a process beside: until then the old rules hold.
    let wrong = url.replace("driver:one", "driver:wrong");
    let opens = |url: &str| {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(tarbox_store::open(url)).map(drop)
    };
    wait_for("a server that asks for passwords", LIMIT, || opens(&wrong).is_err().then_some(()))
        .expect("it asks");
    opens(&url).expect("the driver's own");
    (server, url)
}

fn node(url: &str, words: &[&str]) -> Node {
    let words = words.iter().map(|word| (*word).to_owned()).collect();
    Node::with(NodePlan { url: Some(url.to_owned()), words, ..NodePlan::default() }).expect("a node")
}

/// The URL that the tenant's mounter was given.
fn url_of(node: &Node, id: &str) -> String {
    let secrets = secrets_of(node.mounter_pid(id).expect("a mounter"));
    let url = secrets.split('"').find(|word| word.starts_with("postgresql://"));
    url.unwrap_or_else(|| panic!("no URL in {secrets:?}")).to_owned()
}

fn write(volume: &Published, name: &str) -> PathBuf {
    let path = volume.target.join(name);
    fs::write(&path, name.repeat(10_000)).expect("written");
    succeed(std::process::Command::new("sync").arg(&path), LIMIT).expect("committed");
    path
}

fn doctor(node: &Node) -> String {
    node.operator("doctor", &[]).expect("an answer").stdout
}

#[test]
fn with_what_a_mounter_logs_in_with_no_other_tenant_can_be_reached() {
    let (server, driver) = server("CREATEROLE");
    let mut node = node(&driver, &["--tenant-roles", "required"]);
    let parent = node.tenant("parent").expect("a tenant");
    let stranger = node.tenant("stranger").expect("a tenant");
    let of_parent = node.publish(&parent, "parent").expect("published");
    let of_stranger = node.publish(&stranger, "stranger").expect("published");
    let (early, _) = (write(&of_parent, "early"), write(&of_stranger, "early"));
    fs::write(of_parent.target.join(".tarbox/layers/new"), "fork").expect("a checkpoint");
    node.tarbox(&["clone", "parent", "clone", "--from", "fork"]).expect("a clone");
    write(&of_parent, "late");
    let id: serde_json::Value =
        serde_json::from_str(&node.tarbox(&["tenant", "show", "clone", "-o", "json"]).expect("shown"))
            .expect("JSON");
    let clone = id["id"].as_str().expect("an id").to_owned();
    let of_clone = node.publish(&clone, "clone").expect("published");
    assert_eq!(fs::read(of_clone.target.join("early")).expect("inherited"), fs::read(&early).expect("there"));
    assert!(!of_clone.target.join("late").exists());
    write(&of_clone, "mine");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for tenant in [&parent, &clone, &stranger] {
        let login = url_of(&node, tenant);
        assert!(!login.contains("driver") && login.contains("tarbox_"), "{login}");
        let done = runtime.block_on(tarbox_store::testing::trespasses(&driver, &login)).expect("tried");
        let done: Vec<_> =
            done.into_iter().filter(|done| !done.contains("nothing of others to try with")).collect();
        assert!(done.is_empty(), "of {tenant}:\n{}", done.join("\n"));
    }
    let seen = doctor(&node);
    assert!(seen.contains("each tenant has a role of the database of its own"), "{seen}");

    // The driver's password is another one: mounters and their successors go on.
    server.sql("postgres", "ALTER ROLE driver PASSWORD 'two'").expect("rotated");
    let (before, login) = (node.mounter_pid(&clone).expect("a mounter"), url_of(&node, &clone));
    kill_9(before);
    let next = || node.mounter_pid(&clone).ok().filter(|next| *next != before);
    wait_for("another mounter", LIMIT, next).expect("restarted");
    write(&of_clone, "after");
    assert_eq!(url_of(&node, &clone), login);
    // A stage that is repeated, to an agent that is new: what is at work stays as it is.
    server.sql("postgres", "ALTER ROLE driver PASSWORD 'one'").expect("rotated");
    node.kill_agent();
    node.start_agent().expect("an agent");
    node.call("stage", &of_clone.words()).expect("staged again");
    write(&of_clone, "again");
    assert_eq!(url_of(&node, &clone), login);

    assert_eq!(server.sql("postgres", ROLES).expect("SQL").trim(), "3");
    for volume in [&of_parent, &of_clone, &of_stranger] {
        node.call("unpublish", &volume.words()).expect("unpublish");
        node.call("unstage", &volume.words()).expect("unstage");
    }
    assert_eq!(server.sql("postgres", ROLES).expect("SQL").trim(), "0");
    for name in ["parent", "clone", "stranger"] {
        node.fsck(name).expect("sound");
    }
}

#[test]
fn without_the_right_to_make_roles_a_node_says_so_or_refuses() {
    let (_server, driver) = server("");
    let refusing = node(&driver, &["--tenant-roles", "required"]);
    let id = refusing.tenant("work").expect("a tenant");
    let volume = Published::new(refusing.path(), &id, "work");
    fs::create_dir(&volume.staging).expect("a directory");
    let refused = refusing.csi("stage", &volume.words()).expect("an answer");
    assert!(
        refused.stderr.contains("FailedPrecondition") && refused.stderr.contains("CREATEROLE"),
        "{refused:?}"
    );
    drop(refusing);

    let node = node(&driver, &[]);
    let volume = node.publish(&id, "work").expect("published");
    write(&volume, "file");
    assert!(url_of(&node, &id).contains("driver:one@"));
    assert!(node.log().contains("NOT ISOLATED"), "{}", node.log());
    let seen = doctor(&node);
    assert!(seen.contains("a mounter can reach every tenant") && seen.contains("CREATEROLE"), "{seen}");
}
