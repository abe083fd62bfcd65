//! The order in which a node's tenants are upgraded.

use std::collections::BTreeSet;

use tarbox_supervisor::{Build, NodeOrder, Policy, Upgrades};
use tarbox_types::TenantId;

fn tenants(count: usize) -> Vec<TenantId> {
    (0..count).map(|_| TenantId::random()).collect()
}

fn begun(orders: &[NodeOrder]) -> Vec<TenantId> {
    orders
        .iter()
        .filter_map(|order| if let NodeOrder::Upgrade { tenant, .. } = order { Some(*tenant) } else { None })
        .collect()
}

#[test]
fn one_canary_first_then_a_few_at_a_time_then_finished() {
    let policy = Policy { upgrades_at_once: 3, ..Policy::default() };
    let all = tenants(8);
    let mut upgrades = Upgrades::new(Build("b".to_owned()), all.clone());
    let mut running = begun(&upgrades.next(&policy));
    assert_eq!(running, all[..1]);
    assert!(upgrades.next(&policy).is_empty(), "the canary has not proved anything");
    let mut done = BTreeSet::new();
    loop {
        let tenant = running.remove(0);
        done.insert(tenant);
        let orders = upgrades.upgraded(&policy, tenant);
        if orders.contains(&NodeOrder::Finished { build: Build("b".to_owned()) }) {
            break;
        }
        running.extend(begun(&orders));
        assert!(running.len() <= 3 && !running.is_empty());
    }
    assert_eq!(done, all.into_iter().collect());
}

#[test]
fn the_first_failure_stops_the_rest() {
    let policy = Policy::default();
    let all = tenants(10);
    let mut upgrades = Upgrades::new(Build("b".to_owned()), all.clone());
    upgrades.next(&policy);
    let running = begun(&upgrades.upgraded(&policy, all[0]));
    assert_eq!(running.len(), policy.upgrades_at_once);
    let stopped = upgrades.failed_at(running[0], "crashes".to_owned());
    assert_eq!(stopped, [NodeOrder::Stopped { tenant: running[0], why: "crashes".to_owned() }]);
    for tenant in &running[1..] {
        assert!(upgrades.upgraded(&policy, *tenant).is_empty());
    }
    assert_eq!(upgrades.waiting().count(), 5);
}

#[test]
fn a_canary_that_is_unstaged_proves_nothing() {
    let policy = Policy::default();
    let all = tenants(5);
    let mut upgrades = Upgrades::new(Build("b".to_owned()), all.clone());
    upgrades.next(&policy);
    assert_eq!(begun(&upgrades.withdrawn(&policy, all[0])), all[1..2]);
}

#[test]
fn after_a_restart_what_was_under_way_is_ordered_again() {
    let policy = Policy::default();
    let all = tenants(5);
    let mut upgrades = Upgrades::new(Build("b".to_owned()), all.clone());
    upgrades.next(&policy);
    let text = serde_json::to_string(&upgrades).unwrap();
    let mut upgrades: Upgrades = serde_json::from_str(&text).unwrap();
    assert_eq!(begun(&upgrades.resume()), all[..1]);
    assert_eq!(begun(&upgrades.upgraded(&policy, all[0])), all[1..]);
}
