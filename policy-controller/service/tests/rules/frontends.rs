//! Where a service is reached, who has a frontend, and what its owner is told.

use crate::judge::world::{World, address, at, one_of, owner, port, ready, service, slice};
use palisade_service::model::{Service, ServiceKind, ServicePort};
use palisade_service::oracle::Answer;
use palisade_service::{Problem, Trouble};

const IP: &str = "10.96.0.1";

fn problems(world: &World) -> Vec<Problem> {
    world.compiled().0.problems().collect()
}

fn of(service: &str, what: Trouble) -> Problem {
    Problem { owner: owner(service), what }
}

#[test]
fn a_service_of_both_families_reaches_in_each_the_endpoints_of_that_family() {
    let world = World::of(service(&[IP, "fd00:96::1"]), [slice([ready("10.1.0.1")]), slice([ready("fd00:1::1")])]);
    assert_eq!(world.answer(at(IP, 80)), one_of([("10.1.0.1", 8080)]));
    assert_eq!(world.answer(at("fd00:96::1", 80)), one_of([("fd00:1::1", 8080)]));
    assert_eq!(problems(&world), []);
}

#[test]
fn a_node_port_is_reached_at_every_address_of_the_node_of_the_services_families() {
    let ports = vec![ServicePort { node_port: Some(30_080), ..port("", 80) }];
    let world = World::of(Service { ports, ..service(&[IP]) }, [slice([ready("10.1.0.1")])]);
    assert_eq!(world.answer(at("192.168.0.1", 30_080)), one_of([("10.1.0.1", 8080)]));
    assert_eq!(world.answer(at("192.168.0.1", 80)), Answer::NoService);
    assert_eq!(world.answer(at(IP, 30_080)), Answer::NoService);
    assert_eq!(world.answer(at("fd00:c::1", 30_080)), Answer::NoService);
}

#[test]
fn the_inside_and_the_outside_of_a_port_have_numbers_of_their_own() {
    let external = ["203.0.113.1", "203.0.113.2"].map(address).into();
    let world = World::of(Service { external, affinity: Some(60), ..service(&[IP]) }, [slice([ready("10.1.0.1")])]);
    let (compiled, _) = world.compiled();
    let entry = |ip| compiled.frontends[&at(ip, 80)];
    assert_eq!(entry("203.0.113.1"), entry("203.0.113.2"), "all frontends of a view have one row");
    assert_ne!(entry(IP).service, entry("203.0.113.1").service);
    assert_eq!([entry(IP).affinity, entry("203.0.113.1").affinity], [60, 60]);
    assert_eq!((compiled.backends.len(), compiled.tables.len()), (2, 2));
}

#[test]
fn headless_services_and_other_names_have_no_frontends() {
    for kind in [ServiceKind::Headless, ServiceKind::ExternalName] {
        let external = [address("203.0.113.1")].into();
        let world = World::of(Service { kind, external, cluster_ips: Vec::new(), ..service(&[]) }, [slice([ready("10.1.0.1")])]);
        assert_eq!(world.answer(at("203.0.113.1", 80)), Answer::NoService);
        assert_eq!(world.compiled().0, palisade_service::Compiled::default(), "and nothing is wrong with them");
    }
}

#[test]
fn a_service_without_a_cluster_ip_is_not_reached_and_says_so() {
    let world = World::of(Service { external: [address("203.0.113.1")].into(), ..service(&[]) }, [slice([ready("10.1.0.1")])]);
    assert_eq!(world.answer(at("203.0.113.1", 80)), Answer::NoService);
    assert_eq!(problems(&world), [of("web", Trouble::NoClusterIp)]);
}

#[test]
fn an_external_address_of_a_family_that_the_service_has_not_is_not_reached() {
    let foreign = address("2001:db8::1");
    let world = World::of(Service { external: [foreign].into(), ..service(&[IP]) }, [slice([ready("10.1.0.1")])]);
    assert_eq!(world.answer(at("2001:db8::1", 80)), Answer::NoService);
    assert_eq!(problems(&world), [of("web", Trouble::ExternalFamily(foreign))]);
}

#[test]
fn an_endpoint_of_another_family_than_its_slice_or_its_service_gets_no_flows() {
    let world = World::of(service(&[IP]), [slice([ready("10.1.0.1"), ready("fd00:1::1")]), slice([ready("fd00:1::2")])]);
    assert_eq!(world.answer(at(IP, 80)), one_of([("10.1.0.1", 8080)]));
    assert_eq!(problems(&world), [of("web", Trouble::SliceFamily { slice: "web-1".to_owned() })]);
    let both = World::of(service(&[IP, "fd00:96::1"]), [slice([ready("10.1.0.1"), ready("fd00:1::1")])]);
    assert_eq!(both.answer(at("fd00:96::1", 80)), Answer::Refused);
}

#[test]
fn the_older_of_two_services_has_a_frontend_that_both_claim() {
    let age = |created: Option<&str>| Service { created: created.map(str::to_owned), ..service(&[IP]) };
    let (old, young) = (Some("2026-01-01T00:00:00Z"), Some("2026-02-01T00:00:00Z"));
    for (first, second, winner) in [(young, old, "b"), (old, young, "a"), (old, old, "a"), (None, young, "b"), (None, None, "a")] {
        let world = World::of(service(&["10.96.0.9"]), []);
        let world = world.with("a", age(first), [slice([ready("10.1.0.1")])]).with("b", age(second), [slice([ready("10.1.0.2")])]);
        let (target, loser) = if winner == "a" { ("10.1.0.1", "b") } else { ("10.1.0.2", "a") };
        assert_eq!(world.answer(at(IP, 80)), one_of([(target, 8080)]), "{first:?} {second:?}");
        let problems = problems(&world);
        assert_eq!(problems, [of(loser, Trouble::Taken { frontend: at(IP, 80), by: owner(winner) })]);
        assert!(
            problems[0]
                .to_string()
                .starts_with(&format!("service shop/{loser} is not reached at 10.96.0.1:80/TCP, which service shop/{winner} has"))
        );
        assert_eq!(world.compiled().0.backends.len(), 1, "what has no frontend has no rows");
    }
}

#[test]
fn the_older_of_two_services_has_a_node_port_that_both_claim_and_the_other_keeps_its_cluster_ip() {
    let with_port = |ip: &str, created: &str| Service {
        created: Some(created.to_owned()),
        ports: vec![ServicePort { node_port: Some(30_080), ..port("", 80) }],
        ..service(&[ip])
    };
    let world = World::of(with_port(IP, "2026-02-01T00:00:00Z"), [slice([ready("10.1.0.1")])]);
    let world = world.with("older", with_port("10.96.0.2", "2026-01-01T00:00:00Z"), [slice([ready("10.1.0.2")])]);
    assert_eq!(world.answer_outside(at("192.168.0.1", 30_080)), one_of([("10.1.0.2", 8080)]));
    assert_eq!(world.answer(at(IP, 80)), one_of([("10.1.0.1", 8080)]));
    assert_eq!(problems(&world), [of("web", Trouble::Taken { frontend: at("192.168.0.1", 30_080), by: owner("older") })]);
}

#[test]
fn an_endpoint_that_is_no_pod_is_as_good_as_any() {
    let endpoint = palisade_service::model::Endpoint { node: None, ..ready("198.51.100.1") };
    let world = World::of(service(&[IP]), [slice([endpoint])]);
    assert_eq!(world.answer(at(IP, 80)), one_of([("198.51.100.1", 8080)]));
    assert_eq!(problems(&world), []);
}
