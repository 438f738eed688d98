//! Which endpoints get new flows.

use crate::judge::world::{
    World, address, at, draining, for_nodes, for_zones, here, one_of, port, ready, service, slice, slice_port, starting,
};
use palisade_datapath_core::abi::backend_flag::{CHOSEN, SERVING};
use palisade_identity::Protocol;
use palisade_service::frontend::target;
use palisade_service::model::{Endpoint, Service, ServicePort, Slice, SlicePort, TrafficPolicy};
use palisade_service::oracle::Answer;
use palisade_service::{Frontend, Number};
use std::collections::BTreeMap;
use std::net::IpAddr;

const IP: &str = "10.96.0.1";

/// What becomes of flows to a service that has these endpoints.
#[track_caller]
fn with(endpoints: impl IntoIterator<Item = Endpoint>) -> Answer {
    World::of(service(&[IP]), [slice(endpoints)]).answer(at(IP, 80))
}

/// The same, where only endpoints of the node are reached.
#[track_caller]
fn with_local(endpoints: impl IntoIterator<Item = Endpoint>) -> Answer {
    World::of(Service { internal_policy: TrafficPolicy::Local, ..service(&[IP]) }, [slice(endpoints)]).answer(at(IP, 80))
}

/// The flags of all backends' rows.
fn flags(world: &World) -> BTreeMap<IpAddr, u8> {
    let (compiled, _) = world.compiled();
    compiled.backends.values().filter_map(|backend| Some((target(backend)?.0, backend.flags))).collect()
}

#[test]
fn new_flows_go_to_endpoints_that_are_ready() {
    let expected = one_of([("10.1.0.1", 8080), ("10.1.0.2", 8080)]);
    assert_eq!(with([ready("10.1.0.1"), ready("10.1.0.2"), starting("10.1.0.3")]), expected);
}

#[test]
fn a_service_without_endpoints_refuses() {
    assert_eq!(with([]), Answer::Refused);
    assert_eq!(with([starting("10.1.0.1")]), Answer::Refused);
    assert_eq!(World::of(service(&[IP]), []).answer(at(IP, 80)), Answer::Refused);
}

#[test]
fn a_port_that_no_service_has_is_no_frontend() {
    assert_eq!(World::of(service(&[IP]), []).answer(at(IP, 81)), Answer::NoService);
}

#[test]
fn a_draining_backend_takes_no_new_flow_while_one_is_ready() {
    assert_eq!(with([ready("10.1.0.1"), draining("10.1.0.2")]), one_of([("10.1.0.1", 8080)]));
}

#[test]
fn draining_backends_take_new_flows_where_none_is_ready() {
    let ended = Endpoint { serving: false, ..draining("10.1.0.4") };
    assert_eq!(
        with([starting("10.1.0.1"), draining("10.1.0.2"), draining("10.1.0.3"), ended]),
        one_of([("10.1.0.2", 8080), ("10.1.0.3", 8080)])
    );
}

#[test]
fn a_terminating_endpoint_that_is_said_to_be_ready_is_ready() {
    assert_eq!(
        with([Endpoint { ready: true, ..draining("10.1.0.1") }, ready("10.1.0.2")]),
        one_of([("10.1.0.1", 8080), ("10.1.0.2", 8080)])
    );
}

#[test]
fn draining_backends_are_taken_from_all_zones() {
    let endpoints = [for_zones(&["west"], draining("10.1.0.1")), for_zones(&["east"], draining("10.1.0.2"))];
    assert_eq!(with(endpoints), one_of([("10.1.0.1", 8080), ("10.1.0.2", 8080)]));
}

#[test]
fn flows_stay_in_the_zone_where_every_ready_endpoint_has_a_hint() {
    let [east, west] = [for_zones(&["east"], ready("10.1.0.1")), for_zones(&["west"], ready("10.1.0.2"))];
    assert_eq!(with([east.clone(), west.clone()]), one_of([("10.1.0.1", 8080)]));
    assert_eq!(
        with([east.clone(), west, starting("10.1.0.3")]),
        one_of([("10.1.0.1", 8080)]),
        "hints of those that are not ready do not count"
    );
    assert_eq!(with([east, ready("10.1.0.3")]), one_of([("10.1.0.1", 8080), ("10.1.0.3", 8080)]));
}

#[test]
fn hints_do_not_count_where_none_is_for_here() {
    let endpoints = [for_zones(&["west"], ready("10.1.0.1")), for_zones(&["north"], ready("10.1.0.2"))];
    assert_eq!(with(endpoints.clone()), one_of([("10.1.0.1", 8080), ("10.1.0.2", 8080)]));
    let mut world = World::of(service(&[IP]), [slice(endpoints)]);
    world.services.place.zone = None;
    assert_eq!(world.answer(at(IP, 80)), one_of([("10.1.0.1", 8080), ("10.1.0.2", 8080)]), "a node without a zone");
}

#[test]
fn a_hint_for_the_node_goes_before_one_for_its_zone() {
    let near = for_nodes(&["here"], for_zones(&["east"], ready("10.1.0.1")));
    let zone = for_nodes(&["there"], for_zones(&["east"], ready("10.1.0.2")));
    assert_eq!(with([near.clone(), zone.clone()]), one_of([("10.1.0.1", 8080)]));
    let without = for_zones(&["east"], ready("10.1.0.3"));
    assert_eq!(with([near, zone.clone(), without.clone()]), one_of([("10.1.0.1", 8080), ("10.1.0.2", 8080), ("10.1.0.3", 8080)]));
    let west = for_nodes(&["there"], for_zones(&["west"], ready("10.1.0.4")));
    assert_eq!(with([zone, west]), one_of([("10.1.0.2", 8080)]), "no node hint is for here: zones count");
}

#[test]
fn a_local_policy_reaches_the_nodes_own_endpoints_and_no_hints_count() {
    let endpoints = [here(for_zones(&["west"], ready("10.1.0.1"))), for_zones(&["east"], ready("10.1.0.2"))];
    assert_eq!(with_local(endpoints), one_of([("10.1.0.1", 8080)]));
}

#[test]
fn a_local_policy_falls_back_to_draining_backends_of_the_node() {
    assert_eq!(with_local([here(draining("10.1.0.1")), ready("10.1.0.2")]), one_of([("10.1.0.1", 8080)]));
}

#[test]
fn a_local_policy_drops_where_only_others_have_endpoints_and_refuses_where_nobody_has() {
    assert_eq!(with_local([ready("10.1.0.2")]), Answer::Dropped);
    assert_eq!(with_local([draining("10.1.0.2")]), Answer::Dropped);
    assert_eq!(with_local([starting("10.1.0.2"), here(starting("10.1.0.1"))]), Answer::Refused);
}

#[test]
fn clients_of_the_cluster_reach_all_endpoints_by_an_external_address_whatever_the_external_policy() {
    let service = Service { external: [address("203.0.113.1")].into(), external_policy: TrafficPolicy::Local, ..service(&[IP]) };
    let service = Service { internal_policy: TrafficPolicy::Local, ..service };
    let world = World::of(service, [slice([ready("10.1.0.2"), here(ready("10.1.0.1"))])]);
    assert_eq!(world.answer(at("203.0.113.1", 80)), one_of([("10.1.0.1", 8080), ("10.1.0.2", 8080)]));
    assert_eq!(world.answer(at(IP, 80)), one_of([("10.1.0.1", 8080)]));
}

#[test]
fn every_endpoint_that_is_listed_has_a_row_for_the_flows_that_it_has() {
    let gone = Endpoint { serving: false, ..draining("10.1.0.5") };
    let near = for_zones(&["east"], ready("10.1.0.1"));
    let far = for_zones(&["west"], ready("10.1.0.2"));
    let world = World::of(service(&[IP]), [slice([near, far, starting("10.1.0.3"), draining("10.1.0.4"), gone])]);
    let expected = [CHOSEN | SERVING, SERVING, 0, SERVING, 0];
    assert_eq!(flags(&world).into_values().collect::<Vec<u8>>(), expected);
}

#[test]
fn an_endpoint_that_two_slices_list_is_one_and_the_better_listing_counts() {
    let slices = [slice([starting("10.1.0.1"), ready("10.1.0.2")]), slice([ready("10.1.0.1"), draining("10.1.0.2")])];
    let world = World::of(service(&[IP]), slices);
    assert_eq!(world.answer(at(IP, 80)), one_of([("10.1.0.1", 8080), ("10.1.0.2", 8080)]));
    assert_eq!(flags(&world).len(), 2);
}

#[test]
fn each_port_has_the_number_that_a_slice_gives_its_name() {
    let ports = vec![port("web", 80), port("admin", 81), port("none", 82)];
    // Pods of two versions, whose named ports differ.
    let old = Slice { ports: vec![slice_port("web", 8080), slice_port("admin", 9090)], endpoints: vec![ready("10.1.0.1")] };
    let new = Slice { ports: vec![slice_port("web", 8081), slice_port("admin", 9090)], endpoints: vec![ready("10.1.0.2")] };
    let world = World::of(Service { ports, ..service(&[IP]) }, [old, new]);
    assert_eq!(world.answer(at(IP, 80)), one_of([("10.1.0.1", 8080), ("10.1.0.2", 8081)]));
    assert_eq!(world.answer(at(IP, 81)), one_of([("10.1.0.1", 9090), ("10.1.0.2", 9090)]));
    assert_eq!(world.answer(at(IP, 82)), Answer::Refused);
}

#[test]
fn ports_of_one_name_and_number_differ_by_protocol() {
    let udp = ServicePort { protocol: Protocol::Udp, ..port("dns", 53) };
    let slice_udp = SlicePort { protocol: Protocol::Udp, ..slice_port("dns", 5353) };
    let slice = Slice { ports: vec![slice_udp, slice_port("dns", 5300)], endpoints: vec![ready("10.1.0.1")] };
    let world = World::of(Service { ports: vec![port("dns", 53), udp], ..service(&[IP]) }, [slice]);
    assert_eq!(world.answer(at(IP, 53)), one_of([("10.1.0.1", 5300)]));
    assert_eq!(world.answer(Frontend { protocol: Protocol::Udp, ..at(IP, 53) }), one_of([("10.1.0.1", 5353)]));
}

#[test]
fn a_flow_gets_the_same_backend_on_every_node_whatever_the_order_of_slices_and_numbers() {
    let pods = |range: std::ops::Range<u8>| range.map(|number| ready(&format!("10.1.0.{number}")));
    let one = World::of(service(&[IP]), [slice(pods(0..5)), slice(pods(5..9))]);
    let other = World::of(service(&["10.96.0.9"]), [slice(pods(0..3))]);
    let other = other.with("a", service(&[IP]), [slice(pods(7..9)), slice(pods(0..7).rev())]);
    let tables = [one, other].map(|world| {
        let (compiled, _) = world.compiled();
        let table = &compiled.tables[&Number(compiled.frontends[&at(IP, 80)].table)];
        table.iter().filter_map(|&number| target(&compiled.backends[&Number(number)])).collect::<Vec<_>>()
    });
    assert_eq!(tables[0].len(), 256);
    assert_eq!(tables[0], tables[1]);
}
