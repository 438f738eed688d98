//! What does not fit into the maps is held back, and nothing else.

use crate::judge::kernel::{Client, Kernel};
use crate::judge::world::{World, address, at, interface, one_of, owner, ready, service, slice};
use palisade_datapath_core::abi::map;
use palisade_identity::Protocol;
use palisade_policy::generate::Random;
use palisade_service::model::{HostPort, Owner, Services, Slice};
use palisade_service::oracle::Answer;
use palisade_service::{Compiled, Frontend, Limits, Numbers, Planner, Step, Trouble, generate};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

const WEB: &str = "10.96.0.1";
const MORE: &str = "10.96.0.2";

/// An agent and the maps that it writes, which must not hold more than these limits.
struct Agent {
    limits: Limits,
    planner: Planner,
    numbers: Numbers,
    next: Arc<Compiled>,
    kernel: Kernel,
}

impl Agent {
    fn new(limits: Limits) -> Self {
        Self { limits, planner: Planner::new(), numbers: Numbers::default(), next: Arc::default(), kernel: Kernel::default() }
    }

    /// Serves, as long as what a change removes may make room for what it holds back.
    fn serve(&mut self, services: &Services) {
        loop {
            let plan = self.planner.plan_within(&self.next, services, &mut self.numbers, &self.limits);
            for step in &plan.steps {
                self.kernel.make(step);
                let of_v4 = self.kernel.frontends.keys().filter(|frontend| frontend.address.is_ipv4()).count();
                for (map, rows) in [
                    (map::SERVICES_V4, of_v4),
                    (map::SERVICES_V6, self.kernel.frontends.len() - of_v4),
                    (map::BACKENDS, self.kernel.backends.len()),
                    (map::CHUNKS, self.kernel.chunks.len()),
                ] {
                    assert!(self.limits.get(map).is_none_or(|limit| rows <= *limit as usize), "{map} holds {rows} after {step:?}");
                }
            }
            self.next = plan.next;
            let removes = |step: &Step| matches!(step, Step::RemoveFrontend(_) | Step::RemoveChunk(_) | Step::RemoveBackend(_));
            if self.held().is_empty() || !plan.steps.iter().any(removes) {
                return;
            }
        }
    }

    /// Another agent goes on from what the maps hold.
    fn restart(&mut self) {
        let (read, numbers) = self.kernel.read();
        (self.planner, self.next, self.numbers) = (Planner::new(), Arc::new(read), numbers);
    }

    fn held(&self) -> Vec<Owner> {
        let held = self.next.problems().filter(|problem| matches!(problem.what, Trouble::NoRoom { .. }));
        held.map(|problem| problem.owner).collect()
    }

    fn answer(&self, ip: &str, port: u16) -> Answer {
        self.kernel.answer(Client::Inside, &at(ip, port))
    }
}

/// That many endpoints of a network.
fn endpoints(network: u8, count: usize) -> [Slice; 1] {
    [slice((1..=count).map(|number| ready(&format!("10.{network}.0.{number}"))))]
}

#[test]
fn a_service_that_does_not_fit_holds_back_only_itself() {
    let mut agent = Agent::new(Limits::from([(map::BACKENDS, 8)]));
    let world = World::of(service(&[WEB]), endpoints(1, 2));
    agent.serve(&world.services);
    // The new one is too large; what comes with it and after it is served.
    let world = world.with("a-large", service(&["10.96.0.9"]), endpoints(9, 40)).with("more", service(&[MORE]), endpoints(2, 1));
    agent.serve(&world.services);
    assert_eq!(agent.held(), [owner("a-large")]);
    assert_eq!(agent.answer("10.96.0.9", 80), Answer::NoService);
    assert_eq!(agent.answer(MORE, 80), one_of([("10.2.0.1", 8080)]));
    let world = world.with("web", service(&[WEB]), endpoints(3, 1));
    agent.serve(&world.services);
    assert_eq!((agent.answer(WEB, 80), agent.held()), (one_of([("10.3.0.1", 8080)]), vec![owner("a-large")]));
    let told = agent.next.problems().next().unwrap().to_string();
    let expected = "service shop/a-large does not fit: BACKENDS has room for 8 rows at most and the change needs 42, 34 too many";
    assert!(told.starts_with(expected), "{told}");
}

#[test]
fn a_service_that_is_held_back_uses_no_backend_that_is_gone_and_each_that_goes_makes_room_for_one_that_comes() {
    let mut agent = Agent::new(Limits::from([(map::BACKENDS, 4)]));
    let world = World::of(service(&[WEB]), endpoints(1, 2)).with("more", service(&[MORE]), endpoints(2, 2));
    agent.serve(&world.services);
    // An update one by one: the new one stands beside the old one's successor for a moment.
    let listed = |addresses: &[&str]| [slice(addresses.iter().map(|address| ready(address)))];
    agent.serve(&world.clone().with("web", service(&[WEB]), listed(&["10.1.0.1", "10.1.0.2", "10.3.0.1"])).services);
    assert_eq!((agent.answer(WEB, 80), agent.held()), (one_of([("10.1.0.1", 8080), ("10.1.0.2", 8080)]), vec![owner("web")]));
    agent.serve(&world.clone().with("web", service(&[WEB]), listed(&["10.1.0.2", "10.3.0.1", "10.3.0.2"])).services);
    assert_eq!((agent.answer(WEB, 80), agent.held()), (one_of([("10.1.0.2", 8080)]), vec![owner("web")]));
    agent.serve(&world.with("web", service(&[WEB]), listed(&["10.3.0.1", "10.3.0.2"])).services);
    assert_eq!((agent.answer(WEB, 80), agent.held()), (one_of([("10.3.0.1", 8080), ("10.3.0.2", 8080)]), vec![]));
}

#[test]
fn a_service_that_has_grown_too_large_keeps_its_backends_also_after_a_restart_until_there_is_room() {
    let mut agent = Agent::new(Limits::from([(map::BACKENDS, 8)]));
    let world = World::of(service(&[WEB]), endpoints(1, 2)).with("more", service(&[MORE]), endpoints(2, 4));
    agent.serve(&world.services);
    let world = world.with("web", service(&[WEB]), endpoints(1, 8));
    let before = one_of([("10.1.0.1", 8080), ("10.1.0.2", 8080)]);
    for _ in 0..3 {
        agent.serve(&world.services);
        assert_eq!((agent.answer(WEB, 80), agent.held()), (before.clone(), vec![owner("web")]));
        let given = agent.numbers.clone();
        agent.serve(&world.services);
        assert_eq!(agent.numbers, given, "what is only tried takes no numbers");
        agent.restart();
    }
    // What is removed makes room for what comes with it.
    let world = world.with("more", service(&[MORE]), endpoints(2, 1)).with("web", service(&[WEB]), endpoints(1, 5));
    agent.serve(&world.services);
    assert_eq!((agent.held(), agent.kernel.backends.len()), (vec![], 6));
}

#[test]
fn what_a_service_that_is_held_back_claims_no_more_is_not_kept() {
    let mut agent = Agent::new(Limits::from([(map::CHUNKS, 2)]));
    let world = World::of(service(&[WEB, "fd00:96::1"]), endpoints(1, 2));
    agent.serve(&world.services);
    // It grows, and its cluster IP is another service's.
    let world = world.with("web", service(&["10.96.0.7"]), endpoints(1, 40)).with("more", service(&[WEB]), endpoints(2, 1));
    agent.serve(&world.services);
    assert_eq!(agent.held(), [owner("web")]);
    assert_eq!((agent.answer(WEB, 80), agent.answer("10.96.0.7", 80)), (one_of([("10.2.0.1", 8080)]), Answer::NoService));
    agent.serve(&World::of(service(&[WEB]), endpoints(2, 1)).services);
    assert_eq!((agent.held(), agent.kernel.chunks.len()), (vec![], 1));
}

#[test]
fn more_rows_than_a_limit_that_was_lowered_freeze_nobody_who_adds_none() {
    let mut agent = Agent::new(Limits::new());
    let world = World::of(service(&[WEB]), endpoints(1, 6)).with("more", service(&[MORE]), endpoints(2, 2));
    agent.serve(&world.services);
    agent.limits = Limits::from([(map::CHUNKS, 100)]);
    agent.restart();
    let limits = Limits::from([(map::BACKENDS, 4)]);
    let fewer = world.with("web", service(&[WEB]), endpoints(1, 1));
    let plan = agent.planner.plan_within(&agent.next, &fewer.services, &mut agent.numbers, &limits);
    assert_eq!(plan.next.problems().count(), 0);
    assert_eq!(plan.next.backends.len(), 3);
}

#[test]
fn host_ports_that_do_not_fit_are_held_back_and_the_services_are_not() {
    let mut agent = Agent::new(Limits::from([(map::SERVICES_V4, 2)]));
    let port = |port| HostPort { address: Some(address("192.168.0.1")), protocol: Protocol::Tcp, port, target: 80 };
    let world = World::of(service(&[WEB]), endpoints(1, 1)).with_pod("db", "2026-01-01T00:00:00Z", &["10.1.0.9"], &[port(1), port(2)]);
    agent.serve(&world.services);
    assert_eq!(agent.held(), [Owner::Pod(interface("db"))]);
    assert_eq!((agent.answer(WEB, 80), agent.answer("192.168.0.1", 1)), (one_of([("10.1.0.1", 8080)]), Answer::NoService));
}

/// The services of those alone who are held back.
fn only(services: &Services, held: &[Owner]) -> Services {
    let mut alone = Services { services: Default::default(), host_ports: Default::default(), ..services.clone() };
    for owner in held {
        match owner {
            Owner::Service(name) => drop(alone.services.insert(name.clone(), services.services[name].clone())),
            Owner::Pod(interface) => drop(alone.host_ports.insert(interface.clone(), services.host_ports[interface].clone())),
        }
    }
    alone
}

#[test]
fn at_every_limit_a_frontend_that_nobody_claims_who_is_held_back_is_served_as_the_oracle_says() {
    let frontends: Vec<Frontend> = generate::frontends().collect();
    let (mut held, mut all) = (0, 0);
    let listed = |services: &Services| -> BTreeSet<IpAddr> {
        let slices = services.slices.iter().flat_map(|(_, slices)| slices.values());
        let pods = services.host_ports.iter().flat_map(|(_, ports)| ports.addresses.iter().copied());
        slices.flat_map(|slice| &slice.endpoints).map(|endpoint| endpoint.address).chain(pods).collect()
    };
    for seed in 0..60 {
        let mut random = Random::new(5_000 + seed);
        let mut limit = |most| 2 + random.below(most) as u32;
        let limits = [(map::SERVICES_V4, limit(20)), (map::SERVICES_V6, limit(20)), (map::BACKENDS, limit(30)), (map::CHUNKS, limit(20))];
        let mut agent = Agent::new(limits.into());
        let mut services = generate::services(&mut random);
        for change in 0..15 {
            let before = agent.kernel.clone();
            agent.serve(&services);
            let now = agent.held();
            let alone = only(&services, &now);
            for (client, frontend) in frontends.iter().flat_map(|frontend| Client::BOTH.map(|client| (client, frontend))) {
                let (answer, wanted) = (agent.kernel.answer(client, frontend), client.oracle(&services, frontend));
                let context = format!("seed {seed}, change {change}, {client:?} to {frontend}: {now:?}");
                if Client::Inside.oracle(&alone, frontend) == Answer::NoService {
                    assert_eq!(answer, wanted, "{context}");
                } else {
                    let kept = before.answer(client, frontend);
                    let less = match &answer {
                        Answer::OneOf(targets) => targets.iter().all(|(address, _)| listed(&services).contains(address)),
                        Answer::NoService | Answer::Refused | Answer::Dropped => true,
                    };
                    assert!(less || [wanted, kept].contains(&answer), "{context}: {answer:?}");
                }
            }
            (held, all) = (held + now.len(), all + services.services.len());
            if random.chance(20) {
                agent.restart();
            }
            generate::change(&mut random, &mut services);
        }
        agent.limits = Limits::new();
        agent.serve(&services);
        assert_eq!(agent.held(), [], "seed {seed}: with room for all");
        for (client, frontend) in frontends.iter().flat_map(|frontend| Client::BOTH.map(|client| (client, frontend))) {
            assert_eq!(agent.kernel.answer(client, frontend), client.oracle(&services, frontend), "seed {seed}, {client:?} to {frontend}");
        }
    }
    println!("{held} of {all} were held back");
    assert!(held > 100 && held < all / 2, "{held} of {all}");
}
