//! Between any two writes every service has its old backends or its new ones, and numbers outlive agents.

use crate::judge::kernel::{Client, Kernel, chosen};
use crate::judge::world::{World, at, named, ready, service, slice};
use palisade_datapath_core::abi::ServiceEntry;
use palisade_policy::generate::Random;
use palisade_service::model::{Service, Services};
use palisade_service::oracle::Answer;
use palisade_service::{Compiled, Frontend, Numbers, Plan, Planner, Step, generate, plan};
use std::collections::BTreeSet;
use std::sync::Arc;

const IP: &str = "10.96.0.1";

/// Makes the first writes of a plan, and looks at everything after each.
fn replay(kernel: &mut Kernel, plan: &Plan, count: usize, services: &Services, context: &str) {
    let frontends: Vec<(Client, Frontend, [Answer; 2])> = generate::frontends()
        .flat_map(|frontend| Client::BOTH.map(|client| (client, frontend)))
        .map(|(client, frontend)| (client, frontend, [kernel.answer(client, &frontend), client.oracle(services, &frontend)]))
        .filter(|(_, _, ends)| *ends != [Answer::NoService, Answer::NoService])
        .collect();
    let both = |client| kernel.chosen(client).into_iter().chain(chosen(client, plan.next.backends.values())).collect();
    let stays: [BTreeSet<_>; 2] = Client::BOTH.map(both);
    for step in &plan.steps[..count] {
        kernel.make(step);
        for (client, stays) in Client::BOTH.into_iter().zip(&stays) {
            assert!(kernel.chosen(client).is_subset(stays), "{context}, after {step:?}: who clients {client:?} stay with");
        }
        for (client, frontend, ends) in &frontends {
            let now = kernel.answer(*client, frontend);
            assert!(ends.contains(&now), "{context}, after {step:?}: {frontend} is {now:?} to {client:?}, not of {ends:?}");
        }
    }
    let known = |frontend: &&Frontend| frontends.iter().any(|(_, known, _)| known == *frontend);
    assert!(kernel.frontends.keys().all(|frontend| known(&frontend)), "{context}: a frontend that nobody claims");
}

fn check(kernel: &Kernel, plan: &Plan, services: &Services, context: &str) {
    let (read, mut numbers) = kernel.read();
    let next = &plan.next;
    assert_eq!((&read.frontends, &read.backends, &read.tables), (&next.frontends, &next.backends, &next.tables), "{context}");
    assert!(next.chunks().eq(kernel.chunks.clone()), "{context}: parts of tables are left behind");
    assert!(read.remnants.is_empty() && next.remnants.is_empty(), "{context}: {:?}", read.remnants);
    let again = self::plan(&read, services, &mut numbers);
    assert_eq!(again.steps, [], "{context}: an agent that starts again");
    assert_eq!(again.next, *next, "{context}: as if compiled from nothing");
}

#[test]
fn at_every_step_of_every_change_a_frontend_has_its_old_backends_or_its_new_ones() {
    let (mut changes, mut writes) = (0, 0);
    for seed in 0..100 {
        let mut random = Random::new(seed);
        let (mut services, mut kernel) = (generate::services(&mut random), Kernel::default());
        let (mut planner, mut numbers, mut old) = (Planner::new(), Numbers::default(), Arc::<Compiled>::default());
        for change in 0..25 {
            let context = format!("seed {seed}, change {change}");
            let plan = planner.plan(&old, &services, &mut numbers);
            replay(&mut kernel, &plan, plan.steps.len(), &services, &context);
            check(&kernel, &plan, &services, &context);
            assert_eq!(planner.plan(&plan.next, &services, &mut numbers).steps, [], "{context}: nothing changed");
            (changes, writes) = (changes + 1, writes + plan.steps.len());
            old = planner.plan(&plan.next, &services, &mut numbers).next;
            generate::change(&mut random, &mut services);
        }
    }
    println!("{changes} changes, {writes} writes");
}

#[test]
fn an_agent_that_was_cut_short_goes_on_from_what_the_maps_hold() {
    for seed in 0..100 {
        let mut random = Random::new(1_000 + seed);
        let (mut services, mut kernel) = (generate::services(&mut random), Kernel::default());
        let (mut planner, mut numbers) = (Planner::new(), Numbers::default());
        let mut old = Arc::<Compiled>::default();
        for change in 0..25 {
            let context = format!("seed {seed}, change {change}");
            let plan = planner.plan(&old, &services, &mut numbers);
            if random.chance(50) && !plan.steps.is_empty() {
                let made = random.below(plan.steps.len());
                replay(&mut kernel, &plan, made, &services, &context);
                let (read, cell) = kernel.read();
                old = Arc::new(read);
                // The agent starts again, or only a write failed.
                if random.chance(50) {
                    (planner, numbers) = (Planner::new(), cell);
                }
            } else {
                replay(&mut kernel, &plan, plan.steps.len(), &services, &context);
                check(&kernel, &plan, &services, &context);
                old = plan.next;
            }
            generate::change(&mut random, &mut services);
        }
    }
}

/// What follows from one world to another, planned by one agent.
fn change(before: &World, after: &World) -> (Plan, Plan) {
    let (mut planner, mut numbers) = (Planner::new(), Numbers::default());
    let first = planner.plan(&Compiled::default(), &before.services, &mut numbers);
    let second = planner.plan(&first.next, &after.services, &mut numbers);
    (first, second)
}

fn entry(plan: &Plan, ip: &str) -> ServiceEntry {
    plan.next.frontends[&at(ip, 80)]
}

#[test]
fn a_change_of_backends_makes_its_writes_in_the_safe_order() {
    let before = World::of(service(&[IP]), [slice([ready("10.1.0.1"), ready("10.1.0.2")])]);
    let after = World::of(service(&[IP]), [slice([ready("10.1.0.2"), ready("10.1.0.3")])]);
    let (_, second) = change(&before, &after);
    let kinds = second.steps.iter().map(|step| match step {
        Step::RaiseNumber(_) => "raise",
        Step::WriteBackend(..) => "backend",
        Step::WriteChunk(..) => "chunk",
        Step::WriteFrontend(..) => "frontend",
        Step::RemoveFrontend(_) => "-frontend",
        Step::AwaitPrograms => "await",
        Step::RemoveChunk(_) => "-chunk",
        Step::RemoveBackend(_) => "-backend",
    });
    assert_eq!(kinds.collect::<Vec<_>>(), ["raise", "backend", "chunk", "frontend", "await", "-chunk", "-backend"]);
}

#[test]
fn a_cluster_ip_that_passes_to_another_service_is_one_write_and_no_number_passes_with_it() {
    let endpoints = || [slice([ready("10.1.0.1")])];
    let before = World::of(service(&[IP]), endpoints());
    let mut after = before.clone().with("other", service(&[IP]), endpoints());
    after.services.services.remove(&named("web"));
    let (first, second) = change(&before, &after);
    assert_ne!(entry(&first, IP).service, entry(&second, IP).service);
    let mut carried = first.next.backends.keys();
    assert!(carried.all(|number| !second.next.backends.contains_key(number)), "flows of the old service's backend find no other's");
    let writes = second.steps.iter().filter(|step| matches!(step, Step::WriteFrontend(..) | Step::RemoveFrontend(_)));
    assert_eq!(writes.count(), 1);
}

#[test]
fn a_service_keeps_its_numbers_when_its_cluster_ip_changes() {
    let endpoints = || [slice([ready("10.1.0.1")])];
    let (first, second) = change(&World::of(service(&[IP]), endpoints()), &World::of(service(&["10.96.0.2"]), endpoints()));
    assert_eq!(entry(&first, IP), entry(&second, "10.96.0.2"));
    let expected = [Step::WriteFrontend(at("10.96.0.2", 80), entry(&first, IP)), Step::RemoveFrontend(at(IP, 80))];
    assert_eq!(second.steps, expected);
}

#[test]
fn what_a_service_gives_up_is_told_and_what_goes_with_it_or_passes_on_is_not() {
    let endpoints = || [slice([ready("10.1.0.1")])];
    let before = || World::of(Service { external: ["203.0.113.9".parse().unwrap()].into(), ..service(&[IP]) }, endpoints());
    let given_up = |after: World| change(&before(), &after).1.given_up;
    assert_eq!(given_up(World::of(service(&[IP]), endpoints())), [at("203.0.113.9", 80)], "the only external address");
    assert_eq!(
        given_up(World::of(Service { ports: Vec::new(), ..service(&[IP]) }, endpoints())),
        [at(IP, 80), at("203.0.113.9", 80)],
        "a port"
    );
    let external = Service { external: ["203.0.113.9".parse().unwrap()].into(), ..service(&["10.96.0.2"]) };
    assert_eq!(given_up(World::of(external.clone(), endpoints())), [at(IP, 80)], "a cluster IP");
    let passed = World::of(external, endpoints()).with("other", service(&[IP]), endpoints());
    assert_eq!(given_up(passed), [], "another has it now");
    let mut gone = before();
    gone.services.services.remove(&named("web"));
    assert_eq!(given_up(gone), [], "it is gone with all that it had");
}

#[test]
fn the_next_oldest_has_a_frontend_when_its_owner_goes() {
    let young = palisade_service::model::Service { created: None, ..service(&[IP]) };
    let before = World::of(service(&[IP]), [slice([ready("10.1.0.1")])]).with("young", young, [slice([ready("10.1.0.2")])]);
    let mut after = before.clone();
    after.services.services.remove(&named("web"));
    let (first, second) = change(&before, &after);
    assert_eq!((first.next.problems().count(), second.next.problems().count()), (1, 0));
    assert!(second.steps.iter().any(|step| matches!(step, Step::WriteFrontend(frontend, _) if *frontend == at(IP, 80))));
}

#[test]
fn a_backend_that_comes_back_has_another_number() {
    let (with, without) = ([slice([ready("10.1.0.1")])], [slice([])]);
    let (mut planner, mut numbers) = (Planner::new(), Numbers::default());
    let mut seen = BTreeSet::new();
    let mut old = Arc::<Compiled>::default();
    for _ in 0..3 {
        old = planner.plan(&old, &World::of(service(&[IP]), with.clone()).services, &mut numbers).next;
        assert!(old.backends.keys().all(|number| seen.insert(*number)));
        old = planner.plan(&old, &World::of(service(&[IP]), without.clone()).services, &mut numbers).next;
        assert!(old.backends.is_empty());
    }
}

#[test]
fn numbers_that_rows_carry_are_not_given_again_where_the_cell_was_lost() {
    let world = World::of(service(&[IP]), [slice([ready("10.1.0.1")])]);
    let (compiled, numbers) = world.compiled();
    let more = world.clone().with("more", service(&["10.96.0.2"]), [slice([ready("10.1.0.1")])]);
    let plan = plan(&compiled, &more.services, &mut Numbers::default());
    assert_eq!(plan.steps[0], Step::RaiseNumber(numbers.highest() + 3));
    assert_eq!(plan.next.frontends[&at(IP, 80)], compiled.frontends[&at(IP, 80)]);
}
