//! Whatever is lost, late, done twice or dead: the invariants hold (they stand in `world`), and in the end it serves or is gone.

#[allow(dead_code, reason = "each of the two test files uses a part of the model")]
mod world;

use std::time::Duration;

use proptest::prelude::*;
use tarbox_supervisor::{Cause, Connection, Event, Policy, State};
use world::{Manner, Mishap, World, build};

const BUILDS: [&str; 3] = ["a", "b", "c"];

/// What befalls the world.
#[derive(Clone, Debug)]
enum Fate {
    Stage(usize),
    Unstage,
    Upgrade(usize),
    Reset,
    KillServer,
    OutOfMemory,
    KillSpare,
    Hang,
    KillAgent(u64),
    KillAgentAfter(u32),
    KillBoth(u64),
    Database(bool),
    Mishaps(Vec<Mishap>),
    PersistFails(u32),
    UnmountFails(u32),
    UnmountOutside,
    LoseEverything,
    Manner(usize, Manner),
    Wait(u64),
}

fn manner() -> impl Strategy<Value = Manner> {
    prop_oneof![
        3 => Just(Manner::Good),
        1 => Just(Manner::CrashesAtStart),
        1 => Just(Manner::HangsAtStart),
        1 => (0u64..5000).prop_map(|ms| Manner::CrashesAfter(Duration::from_millis(ms))),
        1 => (0u64..5000).prop_map(|ms| Manner::HangsAfter(Duration::from_millis(ms))),
        1 => Just(Manner::Refuses),
    ]
}

fn fate() -> impl Strategy<Value = Fate> {
    let mishap = prop_oneof![Just(Mishap::Lost), Just(Mishap::AnswerLost), Just(Mishap::Twice)];
    prop_oneof![
        3 => (0..3usize).prop_map(Fate::Stage),
        2 => Just(Fate::Unstage),
        3 => (0..3usize).prop_map(Fate::Upgrade),
        1 => Just(Fate::Reset),
        3 => Just(Fate::KillServer),
        1 => Just(Fate::OutOfMemory),
        1 => Just(Fate::KillSpare),
        1 => Just(Fate::Hang),
        2 => (100u64..20_000).prop_map(Fate::KillAgent),
        4 => (0u32..12).prop_map(Fate::KillAgentAfter),
        2 => (100u64..20_000).prop_map(Fate::KillBoth),
        2 => any::<bool>().prop_map(Fate::Database),
        3 => prop::collection::vec(mishap, 1..4).prop_map(Fate::Mishaps),
        1 => (1u32..3).prop_map(Fate::PersistFails),
        1 => (1u32..4).prop_map(Fate::UnmountFails),
        1 => Just(Fate::UnmountOutside),
        1 => Just(Fate::LoseEverything),
        3 => (0..3usize, manner()).prop_map(|(build, manner)| Fate::Manner(build, manner)),
        12 => (100u64..15_000).prop_map(Fate::Wait),
        6 => (1u64..8).prop_map(|steps| Fate::Wait(steps * 100)),
    ]
}

fn befall(world: &mut World, fate: Fate) {
    match fate {
        Fate::Stage(name) => world.stage(BUILDS[name]),
        Fate::Unstage => world.unstage(),
        Fate::Upgrade(name) => world.tell(Event::UpgradeWanted { build: build(BUILDS[name]) }),
        Fate::Reset => world.tell(Event::OperatorReset),
        Fate::KillServer => end(world, true, Cause::Signal(9)),
        Fate::OutOfMemory => end(world, true, Cause::OutOfMemory),
        Fate::KillSpare => end(world, false, Cause::Signal(9)),
        Fate::Hang => {
            if let Some(server) = world.server() {
                server.hung = true;
            }
        }
        Fate::KillAgent(ms) => world.kill_agent(Duration::from_millis(ms)),
        Fate::KillAgentAfter(effects) => world.agent_dies_after = Some(effects),
        Fate::KillBoth(ms) => {
            world.kill_agent(Duration::from_millis(ms));
            end(world, true, Cause::Signal(9));
        }
        Fate::Database(up) => world.database = up,
        Fate::Mishaps(mishaps) => world.mishaps = mishaps,
        Fate::PersistFails(times) => world.persist_fails = times,
        Fate::UnmountFails(times) => world.unmount_fails = times,
        Fate::UnmountOutside => {
            if world.connection == Connection::Alive {
                world.connection = Connection::None;
            }
        }
        Fate::LoseEverything => world.lose_everything(),
        Fate::Manner(name, manner) => {
            world.manners.insert(build(BUILDS[name]), manner);
        }
        Fate::Wait(ms) => world.run(Duration::from_millis(ms)),
    }
}

fn end(world: &mut World, told: bool, cause: Cause) {
    let process = world.procs.iter().find(|proc| proc.told == told).map(|proc| proc.process);
    if let Some(process) = process {
        world.end(process, cause);
    }
}

/// The faults stop; kubelet goes on asking for what it wants.
fn calm(world: &mut World) {
    world.database = true;
    world.mishaps.clear();
    world.persist_fails = 0;
    world.unmount_fails = 0;
    world.agent_dies_after = None;
    world.manners.clear();
    for _ in 0..10 {
        world.run(Duration::from_secs(30));
        world.nag();
    }
}

/// How many worlds are tried: `TESTS_SEQUENCES`, 2,000 by default.
fn cases() -> u32 {
    let value = std::env::var("TESTS_SEQUENCES").unwrap_or_else(|_| "2000".to_owned());
    value.parse().unwrap_or_else(|_| panic!("TESTS_SEQUENCES: `{value}` is not a number"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_mounter_at_most_serves_and_it_converges(
        keep_stand_by in any::<bool>(),
        links_survive in any::<bool>(),
        fates in prop::collection::vec(fate(), 1..60),
    ) {
        let mut world = World::new(Policy { keep_stand_by, ..Policy::default() });
        world.links_survive = links_survive;
        world.stage("a");
        for fate in fates {
            befall(&mut world, fate);
        }
        calm(&mut world);
        let told = world.procs.iter().filter(|proc| proc.told).count();
        if world.wanted.is_some() {
            prop_assert!(world.is_serving(), "{:?} {:?}\n{}", world.state(), world.procs, world.story());
            prop_assert_eq!((told, world.connection), (1, Connection::Alive));
            prop_assert_eq!(world.procs.len(), if keep_stand_by { 2 } else { 1 });
            prop_assert!(!world.responding);
        } else {
            prop_assert!(matches!(world.state(), State::Gone | State::Absent), "{:?}\n{}", world.state(), world.story());
            prop_assert_eq!((world.procs.len(), world.connection), (0, Connection::None));
            prop_assert!(world.disk.is_none());
        }
    }

    #[test]
    fn waiting_for_the_database_is_never_a_reason_to_kill(
        outages in prop::collection::vec((100u64..900_000, 100u64..60_000, 0..3usize, 0..5u8), 1..6),
    ) {
        let mut world = World::new(Policy::default());
        world.links_survive = true;
        world.stage("a");
        for (down, up, name, meanwhile) in outages {
            world.run(Duration::from_millis(up));
            match meanwhile {
                0 => world.tell(Event::UpgradeWanted { build: build(BUILDS[name]) }),
                1 => world.kill_agent(Duration::from_millis(up)),
                2 => world.unstage(),
                3 => world.stage("a"),
                _ => {}
            }
            world.run(Duration::from_millis(up % 900));
            world.database = false;
            world.run(Duration::from_millis(down));
            world.database = true;
        }
        prop_assert_eq!(world.kills_of_told, 0, "{}", world.story());
        let is_drastic = |order: &tarbox_supervisor::Order| matches!(order, tarbox_supervisor::Order::RespondErrors(true));
        prop_assert!(!world.log.iter().any(|(_, order)| is_drastic(order)));
    }
}
