//! Ports of the node that lead to a pod.

use crate::judge::world::{World, address, at, interface, one_of, owner, port, ready, service, slice};
use palisade_identity::Protocol;
use palisade_service::model::{HostPort, Owner, Service, ServicePort};
use palisade_service::oracle::Answer;
use palisade_service::{Frontend, Planner, Problem, Trouble};

const NODE: &str = "192.168.0.1";
const NODE_V6: &str = "fd00:c::1";
const OLD: &str = "2026-01-01T00:00:00Z";
const YOUNG: &str = "2026-02-01T00:00:00Z";

/// TCP 8080 of the node to 80 of the pod, at all addresses.
const PORT: HostPort = HostPort { address: None, protocol: Protocol::Tcp, port: 8080, target: 80 };

/// A world with a service that has nothing to do with it.
fn world() -> World {
    World::of(service(&["10.96.0.9"]), [])
}

fn at_address(address: &str) -> HostPort {
    HostPort { address: Some(self::address(address)), ..PORT }
}

fn problems(world: &World) -> Vec<Problem> {
    world.compiled().0.problems().collect()
}

fn pod(name: &str) -> Owner {
    Owner::Pod(interface(name))
}

#[track_caller]
fn everybody(world: &World, frontend: Frontend) -> Answer {
    let answer = world.answer(frontend);
    assert_eq!(world.answer_outside(frontend), answer, "the inside and the outside");
    answer
}

#[test]
fn a_host_port_leads_everybody_to_the_pod_in_each_family_that_it_has() {
    let both = world().with_pod("web", OLD, &["10.1.0.1", "fd00:1::1"], &[PORT]);
    assert_eq!(everybody(&both, at(NODE, 8080)), one_of([("10.1.0.1", 80)]));
    assert_eq!(everybody(&both, at(NODE_V6, 8080)), one_of([("fd00:1::1", 80)]));
    let one = world().with_pod("web", OLD, &["10.1.0.1"], &[PORT]);
    assert_eq!(everybody(&one, at(NODE_V6, 8080)), Answer::NoService);
    let udp = Frontend { protocol: Protocol::Udp, ..at(NODE, 8080) };
    assert_eq!([everybody(&one, at(NODE, 80)), everybody(&one, udp)], [Answer::NoService, Answer::NoService]);
    assert_eq!((problems(&both), problems(&one)), (vec![], vec![]));
}

#[test]
fn a_host_port_is_only_at_the_address_that_it_names() {
    for (named, reached) in [(NODE, [true, false]), (NODE_V6, [false, true]), ("0.0.0.0", [true, false]), ("::", [false, true])] {
        let world = world().with_pod("web", OLD, &["10.1.0.1", "fd00:1::1"], &[at_address(named)]);
        let answers = [NODE, NODE_V6].map(|address| everybody(&world, at(address, 8080)) != Answer::NoService);
        assert_eq!((answers, problems(&world)), (reached, vec![]), "{named}");
    }
}

#[test]
fn an_address_that_is_not_the_nodes_gives_no_host_port_and_is_told_of() {
    for foreign in ["203.0.113.1", "127.0.0.1", "169.254.169.254", "2001:db8::1"] {
        let world = world().with_pod("web", OLD, &["10.1.0.1", "fd00:1::1"], &[at_address(foreign)]);
        assert_eq!(everybody(&world, at(foreign, 8080)), Answer::NoService);
        assert_eq!(problems(&world), [Problem { owner: pod("web"), what: Trouble::NotOfNode(at(foreign, 8080)) }]);
        assert!(problems(&world)[0].to_string().starts_with("pod shop/web is not reached at"), "{}", problems(&world)[0]);
    }
    let world = world().with_pod("web", OLD, &["10.1.0.1"], &[at_address(NODE_V6)]);
    assert_eq!(problems(&world), [Problem { owner: pod("web"), what: Trouble::PodFamily(at(NODE_V6, 8080)) }]);
}

#[test]
fn who_is_older_has_a_port_that_a_service_and_a_pod_claim() {
    let node_port = |created: &str| Service {
        created: Some(created.to_owned()),
        ports: vec![ServicePort { node_port: Some(8080), ..port("", 80) }],
        ..service(&["10.96.0.1"])
    };
    for (of_service, of_pod, is_pods) in [(OLD, YOUNG, false), (YOUNG, OLD, true), (OLD, OLD, false)] {
        let world = World::of(node_port(of_service), [slice([ready("10.1.0.2")])]).with_pod("db", of_pod, &["10.1.0.1"], &[PORT]);
        let expected = if is_pods { ("10.1.0.1", 80) } else { ("10.1.0.2", 8080) };
        assert_eq!(everybody(&world, at(NODE, 8080)), one_of([expected]), "{of_service} {of_pod}");
        let (owner, by) = if is_pods { (owner("web"), pod("db")) } else { (pod("db"), owner("web")) };
        assert_eq!(problems(&world), [Problem { owner, what: Trouble::Taken { frontend: at(NODE, 8080), by } }]);
    }
}

#[test]
fn no_pod_takes_a_cluster_ip() {
    let mut world = World::of(Service { created: None, ..service(&["10.96.0.1"]) }, [slice([ready("10.1.0.2")])]);
    world.services.place.addresses.insert(address("10.96.0.1"));
    let world = world.with_pod("db", OLD, &["10.1.0.1"], &[HostPort { port: 80, ..PORT }]);
    assert_eq!(world.answer(at("10.96.0.1", 80)), one_of([("10.1.0.2", 8080)]));
}

#[test]
fn host_ports_go_with_their_pod_and_the_next_who_claims_them_has_them() {
    let both = world().with_pod("a", OLD, &["10.1.0.1"], &[PORT]).with_pod("b", YOUNG, &["10.1.0.2"], &[PORT]);
    let mut left = both.clone();
    left.services.host_ports.remove(&interface("a"));
    let (first, mut numbers) = both.compiled();
    let second = Planner::new().plan(&first, &left.services, &mut numbers).next;
    assert_eq!((first.problems().count(), second.problems().count()), (1, 0));
    assert_ne!(first.frontends[&at(NODE, 8080)], second.frontends[&at(NODE, 8080)]);
    assert_eq!(everybody(&left, at(NODE, 8080)), one_of([("10.1.0.2", 80)]));
    left.services.host_ports.remove(&interface("b"));
    assert_eq!(everybody(&left, at(NODE, 8080)), Answer::NoService);
}
