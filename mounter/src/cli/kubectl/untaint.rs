//! `kubectl tarbox untaint`: nodes that begin with a taint lose it once the driver is there.

use std::{thread, time::Duration};

use clap::Args;
use serde::Serialize;
use tarbox_types::HumanDuration;

use super::{
    api::Kubectl,
    doctor::knows_driver,
    objects::{CsiNode, List, Node},
};
use crate::{
    cli::output::{Format, Table, show},
    failure::{Failure, OK},
};

#[derive(Debug, Args)]
#[command(
    after_long_help = "Nodes may be registered with a taint that keeps pods away until their kubelet knows the driver (kubelet --register-with-taints). This takes it away from those that do. Needs the right to list nodes and CSINodes, and to patch nodes.\n\nExamples:\n  kubectl tarbox untaint tarbox.csi.io/agent-not-ready\n  kubectl tarbox untaint tarbox.csi.io/agent-not-ready --every 5s"
)]
pub(super) struct UntaintCommand {
    /// The taint's key; its value and effect do not matter
    key: String,

    /// Go on, and look so often
    #[arg(long, value_name = "DURATION")]
    every: Option<HumanDuration>,
}

/// A node that lost the taint.
#[derive(Debug, Serialize)]
struct Untainted {
    node: String,
}

impl UntaintCommand {
    pub(super) fn run(self, kubectl: &Kubectl, format: Format) -> Result<u8, Failure> {
        let Some(HumanDuration(every)) = self.every else {
            let done = round(kubectl, &self.key)?;
            show(format, &done, |done| table(done))?;
            return Ok(OK);
        };
        self.watch(kubectl, format, every)
    }

    /// Never returns but where its output is gone: what fails now may work at the next look.
    fn watch(&self, kubectl: &Kubectl, format: Format, every: Duration) -> Result<u8, Failure> {
        loop {
            match round(kubectl, &self.key) {
                Ok(done) if done.is_empty() => {}
                Ok(done) => show(format, &done, |done| table(done))?,
                Err(error) => eprintln!("kubectl tarbox: {}", error.report()),
            }
            thread::sleep(every);
        }
    }
}

fn table(done: &[Untainted]) -> Table {
    let mut table = Table::new(&["UNTAINTED"]);
    done.iter().for_each(|untainted| table.row(vec![untainted.node.clone()]));
    table
}

fn round(kubectl: &Kubectl, key: &str) -> Result<Vec<Untainted>, Failure> {
    let nodes: List<Node> = kubectl.get(&["nodes"])?;
    let tainted: Vec<_> = nodes.items.iter().filter(|node| node.has_taint(key)).collect();
    if tainted.is_empty() {
        return Ok(Vec::new());
    }
    let registered: List<CsiNode> = kubectl.get(&["csinodes"])?;
    let ready = tainted.iter().map(|node| &node.metadata.name);
    let ready = ready.filter(|name| knows_driver(&registered.items, name));
    ready
        .map(|name| {
            kubectl.order(&["taint", "node", name, &format!("{key}-")])?;
            Ok(Untainted { node: name.clone() })
        })
        .collect()
}
