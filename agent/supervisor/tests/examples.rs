//! What dies, and what follows: the rows of the design's table that concern the supervisor, one by one.

#[allow(dead_code, reason = "each of the two test files uses a part of the model")]
mod world;

use std::time::Duration;

use tarbox_supervisor::{
    Answer, Cause, Condition, Connection, Event, Notice, Order, Policy, State, UnmountStep, Upgrading,
    Waiting,
};
use tarbox_types::ByteSize;
use world::{Manner, World, build};

const SECOND: Duration = Duration::from_secs(1);

fn serving() -> World {
    serving_with(Policy::default())
}

fn serving_with(policy: Policy) -> World {
    let mut world = World::new(policy);
    world.links_survive = true;
    world.stage("a");
    world.run_until(2 * SECOND, "it serves", World::is_serving);
    world
}

fn kill_server(world: &mut World, cause: Cause) {
    let process = world.server().expect("a server").process;
    world.end(process, cause);
}

fn count(world: &World, wanted: impl Fn(&Order) -> bool) -> usize {
    world.log.iter().filter(|(_, order)| wanted(order)).count()
}

fn is_spawn(order: &Order) -> bool {
    matches!(order, Order::Spawn { .. })
}

#[test]
fn staging_twice_mounts_and_spawns_once() {
    let mut world = World::new(Policy::default());
    world.stage("a");
    world.stage("a");
    world.run(5 * SECOND);
    world.stage("a");
    world.run(5 * SECOND);
    assert!(world.is_serving());
    assert_eq!((count(&world, |order| *order == Order::Mount), count(&world, is_spawn)), (1, 1));
}

#[test]
fn a_full_disk_is_tried_once_a_second_and_nothing_happens_unsaved() {
    let mut world = serving();
    world.persist_fails = u32::MAX;
    let before = world.log.len();
    kill_server(&mut world, Cause::Signal(9));
    world.run(10 * SECOND);
    let is_save = |order: &Order| matches!(order, Order::Persist(_));
    let saves = world.log[before..].iter().filter(|(_, order)| is_save(order)).count();
    assert!((5..40).contains(&saves), "{saves}");
    let is_harmless =
        |order: &Order| is_save(order) || matches!(order, Order::ArmTimer(_) | Order::Report(_));
    assert!(world.log[before..].iter().all(|(_, order)| is_harmless(order)), "{:?}", &world.log[before..]);
    world.persist_fails = 0;
    world.run_until(5 * SECOND, "it serves", World::is_serving);
}

#[test]
fn the_record_is_persisted_before_anything_else_is_done() {
    let mut world = World::new(Policy::default());
    world.stage("a");
    assert!(matches!(world.log[0].1, Order::Persist(_)), "{:?}", world.log);
}

#[test]
fn a_killed_mounter_is_replaced_at_once_a_thousand_times() {
    let mut world = serving();
    for _ in 0..1000 {
        kill_server(&mut world, Cause::Signal(9));
        let pause = world.run_until(SECOND, "it serves again", World::is_serving);
        assert!(pause <= 4 * world::STEP, "{pause:?}");
    }
    assert_eq!(world.agent.as_ref().expect("an agent").record().restarts, 1000);
    assert_eq!(count(&world, |order| *order == Order::Mount), 1);
}

#[test]
fn a_mounter_that_was_told_to_leave_the_rest_to_another_is_followed_at_once_however_often() {
    let mut world = serving();
    for _ in 0..100 {
        kill_server(&mut world, Cause::Drained);
        let pause = world.run_until(SECOND, "it serves again", World::is_serving);
        assert!(pause <= 4 * world::STEP, "{pause:?}");
    }
}

#[test]
fn mounters_killed_before_they_serve_are_replaced_soon_and_never_given_up() {
    let mut world = serving();
    kill_server(&mut world, Cause::Signal(9));
    for _ in 0..100 {
        world.run_until(3 * SECOND, "another one is started", |world| world.procs.len() == 1);
        assert!(!matches!(world.state(), State::Broken { .. }), "{:?}", world.state());
        kill_server(&mut world, Cause::Signal(9));
    }
    let pause = world.run_until(3 * SECOND, "it serves again", World::is_serving);
    assert!(pause <= SECOND + 8 * world::STEP, "{pause:?}");
    // Forgotten as soon as one serves.
    kill_server(&mut world, Cause::Signal(9));
    let pause = world.run_until(SECOND, "it serves again", World::is_serving);
    assert!(pause <= 4 * world::STEP, "{pause:?}");
}

#[test]
fn with_a_stand_by_a_crash_is_a_take_over() {
    let mut world = serving_with(Policy { keep_stand_by: true, ..Policy::default() });
    world.run(SECOND);
    assert_eq!(world.procs.len(), 1, "who is staged beside it comes first");
    world.run(2 * SECOND);
    assert_eq!(world.procs.len(), 2);
    let spawned = count(&world, is_spawn);
    kill_server(&mut world, Cause::Signal(11));
    world.run_until(SECOND, "it serves again", World::is_serving);
    assert_eq!(count(&world, |order| matches!(order, Order::SendTakeOver(_))), 1);
    assert_eq!(count(&world, is_spawn), spawned);
}

#[test]
fn a_stand_by_that_is_killed_with_the_server_delays_nothing_and_is_no_crash() {
    let mut world = serving_with(Policy { keep_stand_by: true, ..Policy::default() });
    for _ in 0..10 {
        world.run_until(40 * SECOND, "a stand-by", |world| world.procs.len() == 2);
        world.run(SECOND);
        let spare = world.procs.iter().find(|proc| !proc.told).expect("a stand-by").process;
        kill_server(&mut world, Cause::Signal(9));
        world.end(spare, Cause::Signal(9));
        let pause = world.run_until(SECOND, "it serves again", World::is_serving);
        assert!(pause <= 6 * world::STEP, "{pause:?}");
    }
    // Also where it dies a moment later, told already.
    world.run_until(40 * SECOND, "a stand-by", |world| world.procs.len() == 2);
    world.run(SECOND);
    kill_server(&mut world, Cause::Signal(9));
    world.run_until(SECOND, "TakeOver", |world| world.procs.iter().any(|proc| proc.told));
    kill_server(&mut world, Cause::Signal(9));
    let pause = world.run_until(SECOND, "it serves again", World::is_serving);
    assert!(pause <= 6 * world::STEP, "{pause:?}");
    let crashes = &world.agent.as_ref().expect("an agent").record().crashes;
    assert!(crashes.is_empty(), "{crashes:?}\n{}", world.story());
}

#[test]
fn a_crash_loop_backs_off_breaks_answers_errors_and_is_repaired_by_another_build() {
    let mut world = serving();
    world.manners.insert(build("a"), Manner::CrashesAfter(Duration::ZERO));
    kill_server(&mut world, Cause::Signal(11));
    world.run_until(60 * SECOND, "the circuit opens", |world| matches!(world.state(), State::Broken { .. }));
    let delays: Vec<_> = world
        .notices()
        .into_iter()
        .filter_map(
            |notice| if let Notice::Setback { delay, .. } = notice { Some(delay.as_secs()) } else { None },
        )
        .collect();
    assert_eq!(delays, [0, 1, 2, 4, 8, 60]);
    let condition = world.agent.as_ref().expect("an agent").condition();
    assert!(condition.is_abnormal() && matches!(condition, Condition::Broken { .. }), "{condition:?}");
    world.run_until(61 * SECOND, "errors are answered", |world| world.responding);
    assert_eq!(world.connection, Connection::Alive);
    let spawned = world.spawns;
    world.run(600 * SECOND);
    assert!(
        (9..=11).contains(&(world.spawns - spawned)),
        "{} attempts in ten minutes",
        world.spawns - spawned
    );
    world.tell(Event::UpgradeWanted { build: build("b") });
    world.run_until(2 * SECOND, "the repaired build serves", World::is_serving);
    assert!(!world.responding);
    assert_eq!(count(&world, |order| *order == Order::Mount), 1);
    assert_eq!(count(&world, |order| matches!(order, Order::Unmount(_))), 0);
}

#[test]
fn an_operator_closes_the_circuit() {
    let mut world = serving();
    world.manners.insert(build("a"), Manner::CrashesAtStart);
    kill_server(&mut world, Cause::Signal(9));
    world.run_until(60 * SECOND, "the circuit opens", |world| matches!(world.state(), State::Broken { .. }));
    world.manners.clear();
    world.tell(Event::OperatorReset);
    world.run_until(SECOND, "it serves", World::is_serving);
}

#[test]
fn a_mounter_that_refuses_its_options_is_not_started_again_and_again() {
    let mut world = World::new(Policy::default());
    world.manners.insert(build("a"), Manner::Refuses);
    world.stage("a");
    world.run(10 * SECOND);
    assert!(matches!(world.state(), State::Broken { .. }));
    assert_eq!(world.spawns, 1);
    let words = world.agent.as_ref().expect("an agent").record().last_words.clone();
    assert_eq!(words.as_deref(), Some("unknown option"));
    world.manners.clear();
    world.stage("a");
    world.run_until(2 * SECOND, "the next attempt serves", World::is_serving);
}

#[test]
fn a_start_that_hangs_is_ended_after_its_limit() {
    let mut world = World::new(Policy::default());
    world.manners.insert(build("a"), Manner::HangsAtStart);
    world.stage("a");
    let policy = Policy::default();
    let time = world.run_until(60 * SECOND, "it is killed", |world| world.kills_of_told > 0);
    assert!(time >= policy.start_limit && time <= policy.start_limit + 2 * SECOND, "{time:?}");
}

#[test]
fn one_that_was_slow_to_start_is_not_suspected_once_it_serves() {
    let mut world = World::new(Policy::default());
    world.manners.insert(build("a"), Manner::HangsAtStart);
    world.stage("a");
    // Several pings go unanswered meanwhile.
    world.run(7 * SECOND);
    world.manners.clear();
    world.server().expect("a server").hung = false;
    world.run_until(2 * SECOND, "it serves", World::is_serving);
    assert_eq!(world.agent.as_ref().expect("an agent").condition(), Condition::Serving);
}

#[test]
fn a_stopped_mounter_is_reported_dumped_and_replaced() {
    let mut world = serving();
    world.server().expect("a server").hung = true;
    world.run_until(10 * SECOND, "it is suspected", |world| {
        world.agent.as_ref().is_some_and(|tenant| tenant.condition() == Condition::Suspicious)
    });
    world.run_until(30 * SECOND, "it is killed", |world| world.kills_of_told > 0);
    assert_eq!(count(&world, |order| matches!(order, Order::StackDump(_))), 1);
    assert!(world.notices().iter().any(|notice| matches!(notice, Notice::Hung { .. })));
    world.run_until(SECOND, "another one serves", World::is_serving);
}

fn says(world: &mut World, answer: Answer) {
    world.server().expect("a server").says = Some(answer);
}

#[test]
fn a_request_that_executes_for_long_is_a_hang() {
    let mut world = serving();
    says(&mut world, Answer { serving: true, executing_longest: 31 * SECOND, ..Answer::default() });
    world.run(5 * SECOND);
    assert_eq!(world.kills_of_told, 1);
}

#[test]
fn a_request_that_waits_for_ten_minutes_is_none() {
    for waiting_for in [Waiting::Lock, Waiting::Database, Waiting::Lease, Waiting::Journal] {
        let mut world = serving();
        for _minute in 1..=10 {
            let answer = Answer { serving: true, waiting_for: Some(waiting_for), ..Answer::default() };
            says(&mut world, answer);
            world.run(60 * SECOND);
        }
        assert!(world.is_serving());
        assert_eq!((world.kills_of_told, world.spawns), (0, 1));
    }
}

#[test]
fn a_database_off_for_ten_minutes_costs_no_restart() {
    let mut world = serving();
    world.database = false;
    world.run(600 * SECOND);
    let condition = world.agent.as_ref().expect("an agent").condition();
    assert_eq!(condition, Condition::Waiting(Waiting::Database));
    world.database = true;
    world.run(5 * SECOND);
    assert!(world.is_serving());
    assert_eq!((world.kills_of_told, world.spawns), (0, 1));
}

#[test]
fn a_mounter_killed_while_the_database_is_off_starts_once_and_waits() {
    let mut world = serving();
    world.database = false;
    kill_server(&mut world, Cause::Signal(9));
    world.run(600 * SECOND);
    assert_eq!((world.kills_of_told, world.spawns), (0, 2));
    world.database = true;
    world.run_until(SECOND, "it serves", World::is_serving);
}

#[test]
fn out_of_memory_grants_more_up_to_the_ceiling() {
    let mut world = serving();
    let mut granted = Vec::new();
    for _ in 0..5 {
        kill_server(&mut world, Cause::OutOfMemory);
        world.run_until(60 * SECOND, "it serves again", World::is_serving);
        granted.push(world.server().expect("a server").memory);
    }
    assert_eq!(granted, [384, 576, 864, 1024, 1024].map(ByteSize::mib));
}

#[test]
fn an_upgrade_switches_proves_and_keeps_the_new_build() {
    let mut world = serving();
    world.tell(Event::UpgradeWanted { build: build("b") });
    world.run_until(5 * SECOND, "b is on probation", |world| {
        matches!(world.state(), State::Upgrading { stage: Upgrading::Proving, .. })
    });
    world.run_until(15 * SECOND, "b is kept", World::is_serving);
    assert!(world.notices().contains(&Notice::Upgraded { build: build("b") }));
    assert_eq!((world.kills_of_told, world.procs.len()), (0, 1));
    kill_server(&mut world, Cause::Signal(9));
    world.run_until(SECOND, "it serves again", World::is_serving);
    assert_eq!(world.server().expect("a server").build, build("b"));
}

#[test]
fn an_upgrade_to_a_bad_build_is_rolled_back() {
    let bad = [
        Manner::CrashesAtStart,
        Manner::HangsAtStart,
        Manner::Refuses,
        Manner::CrashesAfter(3 * SECOND),
        Manner::HangsAfter(SECOND),
    ];
    for manner in bad {
        let mut world = serving();
        world.manners.insert(build("b"), manner);
        world.tell(Event::UpgradeWanted { build: build("b") });
        world.run(60 * SECOND);
        assert!(world.is_serving(), "{manner:?}: {}", world.story());
        assert_eq!(world.server().expect("a server").build, build("a"), "{manner:?}");
        let failed = |notice: &Notice| matches!(notice, Notice::UpgradeFailed { build: failed, .. } if *failed == build("b"));
        assert_eq!(world.notices().iter().filter(|notice| failed(notice)).count(), 1, "{manner:?}");
        assert_eq!(world.procs.len(), 1);
    }
}

#[test]
fn no_upgrade_is_begun_while_the_database_is_away() {
    let mut world = serving();
    world.database = false;
    world.run(5 * SECOND);
    world.tell(Event::UpgradeWanted { build: build("b") });
    world.run(60 * SECOND);
    assert_eq!(world.spawns, 1);
    world.database = true;
    world.run(30 * SECOND);
    assert_eq!(world.server().expect("a server").build, build("b"));
}

#[test]
fn an_agent_that_comes_back_adopts_and_touches_nothing() {
    let mut world = serving();
    let process = world.server().expect("a server").process;
    world.kill_agent(30 * SECOND);
    let before = world.log.len();
    world.run(60 * SECOND);
    assert!(world.is_serving());
    assert_eq!(world.server().expect("a server").process, process);
    let touched = |order: &Order| {
        matches!(order, Order::Mount | Order::Spawn { .. } | Order::Kill(_) | Order::Unmount(_))
    };
    assert!(!world.log[before..].iter().any(|(_, order)| touched(order)));
}

#[test]
fn without_an_agent_the_keeper_restarts_and_the_agent_adopts_that_one() {
    let mut world = serving();
    world.kill_agent(600 * SECOND);
    kill_server(&mut world, Cause::Signal(9));
    world.run(300 * SECOND);
    assert!(world.server().expect("restarted by the keeper").serving);
    let process = world.server().expect("a server").process;
    world.run(330 * SECOND);
    assert!(world.is_serving());
    assert_eq!(world.server().expect("a server").process, process);
    assert_eq!(world.agent.as_ref().expect("an agent").record().restarts, 1);
}

#[test]
fn unstage_flushes_unmounts_and_leaves_nothing() {
    let mut world = serving();
    world.unstage();
    world.run_until(20 * SECOND, "it is gone", |world| world.state() == State::Gone);
    let orders: Vec<_> = world.log.iter().map(|(_, order)| order).collect();
    let flush = orders.iter().position(|order| matches!(order, Order::Flush(_))).expect("flushed");
    let unmount = orders.iter().position(|order| matches!(order, Order::Unmount(_))).expect("unmounted");
    assert!(flush < unmount);
    assert!(world.disk.is_none() && world.procs.is_empty());
    assert_eq!(world.kills_of_told, 0);
}

#[test]
fn an_unstage_waits_for_the_database() {
    let mut world = serving();
    world.database = false;
    world.unstage();
    world.run(300 * SECOND);
    assert_eq!(world.connection, Connection::Alive);
    world.database = true;
    world.run_until(60 * SECOND, "it is gone", |world| world.state() == State::Gone);
}

#[test]
fn an_unstage_does_not_wait_for_a_database_that_has_refused_for_good() {
    let mut world = serving();
    world.fenced = true;
    world.unstage();
    world.run_until(60 * SECOND, "it is gone", |world| world.state() == State::Gone);
    assert!(world.procs.is_empty());
    let left = |notice: &&Notice| matches!(notice, Notice::JournalLeft { why } if why == "not flushed");
    assert_eq!(world.notices().iter().filter(left).count(), 1, "{}", world.story());
}

#[test]
fn a_broken_tenant_can_be_unstaged() {
    let mut world = serving();
    world.manners.insert(build("a"), Manner::CrashesAtStart);
    kill_server(&mut world, Cause::Signal(9));
    world.run_until(60 * SECOND, "the circuit opens", |world| matches!(world.state(), State::Broken { .. }));
    world.unstage();
    world.run_until(20 * SECOND, "it is gone", |world| world.state() == State::Gone);
    assert!(world.notices().iter().any(|notice| matches!(notice, Notice::JournalLeft { .. })));
}

#[test]
fn a_pinned_mount_is_reported_and_tried_again() {
    let mut world = serving();
    world.unmount_fails = 3;
    world.unstage();
    world.run_until(20 * SECOND, "it is gone", |world| world.state() == State::Gone);
    let steps: Vec<_> = world
        .log
        .iter()
        .filter_map(|(_, order)| if let Order::Unmount(step) = order { Some(*step) } else { None })
        .collect();
    assert_eq!(steps, [UnmountStep::Normal, UnmountStep::Lazy, UnmountStep::Normal, UnmountStep::Lazy]);
    assert!(world.notices().iter().any(|notice| matches!(notice, Notice::StillMounted { .. })));
}

#[test]
fn a_dead_mount_is_mounted_anew() {
    let mut world = serving();
    world.lose_everything();
    world.run_until(10 * SECOND, "it serves on a new mount", |world| {
        world.is_serving() && world.connection == Connection::Alive
    });
    assert!(world.notices().contains(&Notice::MountLost));
}

#[test]
fn staged_again_while_it_flushes_it_goes_on_serving() {
    let mut world = serving();
    world.unstage();
    world.stage("a");
    world.run(30 * SECOND);
    assert!(world.is_serving());
    assert_eq!(count(&world, |order| matches!(order, Order::Unmount(_))), 0);
}

#[test]
fn the_keeper_may_restart_what_serves_and_nothing_that_is_broken_or_unstaged() {
    let mut world = serving();
    let last = |world: &World| {
        world.log.iter().rev().find_map(|(_, order)| {
            if let Order::Ticket(ticket) = order { Some(ticket.clone()) } else { None }
        })
    };
    assert_eq!(last(&world).flatten().map(|ticket| ticket.build), Some(build("a")));
    world.unstage();
    assert_eq!(last(&world), Some(None));
    world.stage("a");
    world.run(SECOND);
    world.manners.insert(build("a"), Manner::CrashesAtStart);
    kill_server(&mut world, Cause::Signal(9));
    world.run_until(60 * SECOND, "the circuit opens", |world| matches!(world.state(), State::Broken { .. }));
    assert_eq!(last(&world), Some(None));
}
