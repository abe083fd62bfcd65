//! The order in which a node's tenants are upgraded.

use std::collections::BTreeSet;

use tarbox_supervisor::{Policy, Upgrades};
use tarbox_types::TenantId;

fn tenants(count: usize) -> Vec<TenantId> {
    (0..count).map(|_| TenantId::random()).collect()
}

#[test]
fn one_canary_first_then_a_few_at_a_time_until_all_are_done() {
    let policy = Policy { upgrades_at_once: 3, ..Policy::default() };
    let all = tenants(8);
    let mut upgrades = Upgrades::new(all.clone(), []);
    let mut running = upgrades.next(&policy);
    assert_eq!(running, all[..1]);
    assert!(upgrades.next(&policy).is_empty(), "the canary has not proved anything");
    let mut done = BTreeSet::new();
    while !running.is_empty() {
        let tenant = running.remove(0);
        done.insert(tenant);
        upgrades.upgraded(tenant);
        running.extend(upgrades.next(&policy));
        assert!(running.len() <= 3);
    }
    assert_eq!(done, all.into_iter().collect());
}

#[test]
fn the_first_failure_stops_the_rest() {
    let policy = Policy::default();
    let all = tenants(10);
    let mut upgrades = Upgrades::new(all.clone(), []);
    upgrades.next(&policy);
    upgrades.upgraded(all[0]);
    let running = upgrades.next(&policy);
    assert_eq!(running.len(), policy.upgrades_at_once);
    upgrades.failed_at(running[0]);
    for tenant in &running[1..] {
        upgrades.upgraded(*tenant);
        assert!(upgrades.next(&policy).is_empty());
    }
    assert_eq!(upgrades.waiting().count(), 5);
}

#[test]
fn a_canary_that_is_unstaged_proves_nothing() {
    let policy = Policy::default();
    let all = tenants(5);
    let mut upgrades = Upgrades::new(all.clone(), []);
    upgrades.next(&policy);
    upgrades.withdrawn(all[0]);
    assert_eq!(upgrades.next(&policy), all[1..2]);
}

#[test]
fn who_was_never_begun_cannot_fail_or_prove() {
    let policy = Policy::default();
    let all = tenants(3);
    let mut upgrades = Upgrades::new(all.clone(), []);
    upgrades.upgraded(all[1]);
    upgrades.failed_at(all[2]);
    assert_eq!(upgrades.next(&policy), all[..1]);
    assert!(upgrades.next(&policy).is_empty());
}

#[test]
fn a_tenant_that_was_broken_before_is_no_canary_and_stops_nobody() {
    let policy = Policy { upgrades_at_once: 2, ..Policy::default() };
    let (served, broken) = (tenants(2), tenants(3));
    let mut upgrades = Upgrades::new(served.clone(), broken.clone());
    assert_eq!(upgrades.next(&policy), served[..1]);
    upgrades.upgraded(served[0]);
    assert_eq!(upgrades.next(&policy), [served[1], broken[0]]);
    upgrades.failed_at(broken[0]);
    assert_eq!(upgrades.next(&policy), broken[1..2]);
    upgrades.failed_at(served[1]);
    upgrades.upgraded(broken[1]);
    assert!(upgrades.next(&policy).is_empty(), "a tenant that was served has failed");
}

#[test]
fn where_all_are_broken_each_gets_its_try_one_after_the_other() {
    let policy = Policy::default();
    let broken = tenants(3);
    let mut upgrades = Upgrades::new([], broken.clone());
    for tenant in &broken {
        assert_eq!(upgrades.next(&policy), [*tenant]);
        upgrades.failed_at(*tenant);
    }
    assert!(upgrades.next(&policy).is_empty());
}
