//! What clients outside the cluster reach.

use crate::judge::world::{World, address, at, draining, for_zones, here, one_of, port, ready, service, slice, starting};
use palisade_datapath_core::abi::backend_flag::{CHOSEN, CHOSEN_OUTSIDE, SERVING};
use palisade_datapath_core::abi::{ServiceEntry, TABLE_NONE, service_flag};
use palisade_service::frontend::target;
use palisade_service::model::{Endpoint, Service, ServicePort, TrafficPolicy};
use palisade_service::oracle::Answer;

const IP: &str = "10.96.0.1";
const EXTERNAL: &str = "203.0.113.1";
const NODE: &str = "192.168.0.1";

/// A service with a node port and an external address.
fn open(external_policy: TrafficPolicy) -> Service {
    let ports = vec![ServicePort { node_port: Some(30_080), ..port("", 80) }];
    Service { ports, external: [address(EXTERNAL)].into(), external_policy, ..service(&[IP]) }
}

fn local(endpoints: impl IntoIterator<Item = Endpoint>) -> World {
    World::of(open(TrafficPolicy::Local), [slice(endpoints)])
}

fn entry(world: &World, ip: &str, port: u16) -> ServiceEntry {
    world.compiled().0.frontends[&at(ip, port)]
}

#[test]
fn node_ports_and_external_addresses_are_open_to_the_outside_and_cluster_ips_are_not() {
    let world = World::of(open(TrafficPolicy::Cluster), [slice([ready("10.1.0.1"), ready("10.1.0.2")])]);
    let all = one_of([("10.1.0.1", 8080), ("10.1.0.2", 8080)]);
    assert_eq!(world.answer_outside(at(NODE, 30_080)), all);
    assert_eq!(world.answer_outside(at(EXTERNAL, 80)), all);
    assert_eq!(world.answer_outside(at(IP, 80)), Answer::NoService);
    assert_eq!(world.answer(at(IP, 80)), all);
}

#[test]
fn a_cluster_ip_that_another_service_writes_among_its_external_addresses_stays_closed() {
    let thief = Service { external: [address(IP)].into(), created: None, ..service(&["10.96.0.2"]) };
    let world = World::of(service(&[IP]), [slice([ready("10.1.0.1")])]).with("thief", thief, [slice([ready("10.1.0.2")])]);
    assert_eq!(world.answer_outside(at(IP, 80)), Answer::NoService);
    assert_eq!(world.answer(at(IP, 80)), one_of([("10.1.0.1", 8080)]));
}

#[test]
fn where_the_policy_is_local_the_outside_reaches_endpoints_of_this_node_and_the_inside_all() {
    let world = local([ready("10.1.0.1"), here(ready("10.1.0.2")), here(draining("10.1.0.3"))]);
    for frontend in [at(NODE, 30_080), at(EXTERNAL, 80)] {
        assert_eq!(world.answer_outside(frontend), one_of([("10.1.0.2", 8080)]));
        assert_eq!(world.answer(frontend), one_of([("10.1.0.1", 8080), ("10.1.0.2", 8080)]));
    }
}

#[test]
fn where_no_endpoint_of_this_node_is_ready_those_that_drain_take_the_outsides_flows() {
    let world = local([ready("10.1.0.1"), here(draining("10.1.0.2")), here(starting("10.1.0.3"))]);
    assert_eq!(world.answer_outside(at(NODE, 30_080)), one_of([("10.1.0.2", 8080)]));
    assert_eq!(world.answer(at(NODE, 30_080)), one_of([("10.1.0.1", 8080)]));
}

#[test]
fn without_an_endpoint_on_this_node_the_outside_is_dropped_and_without_any_refused() {
    let world = local([ready("10.1.0.1")]);
    assert_eq!(world.answer_outside(at(NODE, 30_080)), Answer::Dropped);
    let entry = entry(&world, NODE, 30_080);
    assert_eq!((entry.flags, entry.outside_table), (service_flag::OUTSIDE | service_flag::OUTSIDE_DROP, TABLE_NONE));
    for nobody in [local([]), local([here(starting("10.1.0.1"))])] {
        assert_eq!(nobody.answer_outside(at(NODE, 30_080)), Answer::Refused);
        assert_eq!(nobody.answer(at(NODE, 30_080)), Answer::Refused);
    }
}

#[test]
fn hints_for_zones_do_not_take_a_local_endpoint_from_the_outside() {
    let world = local([for_zones(&["west"], here(ready("10.1.0.1"))), for_zones(&["east"], ready("10.1.0.2"))]);
    assert_eq!(world.answer_outside(at(NODE, 30_080)), one_of([("10.1.0.1", 8080)]));
    assert_eq!(world.answer(at(NODE, 30_080)), one_of([("10.1.0.2", 8080)]));
}

#[test]
fn the_inside_and_the_outside_share_a_table_where_they_reach_the_same() {
    let cluster = World::of(open(TrafficPolicy::Cluster), [slice([here(ready("10.1.0.1")), ready("10.1.0.2")])]);
    let entry = |world: &World| entry(world, EXTERNAL, 80);
    let one = entry(&cluster);
    assert_eq!((one.table, one.bits, one.flags), (one.outside_table, one.outside_bits, service_flag::OUTSIDE));
    let all_here = entry(&local([here(ready("10.1.0.1"))]));
    assert_eq!(all_here.table, all_here.outside_table);
    let two = local([here(ready("10.1.0.1")), ready("10.1.0.2")]);
    assert_ne!(entry(&two).table, entry(&two).outside_table);
    assert_eq!(two.compiled().0.tables.len(), 3, "the cluster IP has one of its own");
}

#[test]
fn a_client_outside_stays_only_with_a_backend_that_it_may_reach() {
    let world = local([here(ready("10.1.0.1")), ready("10.1.0.2")]);
    let (compiled, _) = world.compiled();
    let service = compiled.frontends[&at(EXTERNAL, 80)].service;
    let of_view = compiled.backends.values().filter(|backend| backend.service == service);
    let flags: Vec<_> = of_view.map(|backend| (target(backend).unwrap().0, backend.flags)).collect();
    assert_eq!(flags, [(address("10.1.0.1"), CHOSEN | CHOSEN_OUTSIDE | SERVING), (address("10.1.0.2"), CHOSEN | SERVING)]);
}
