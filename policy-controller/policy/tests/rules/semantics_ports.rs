//! On which ports: the numbered lines of the rules about ports and protocols, each of the rows and of the oracle alike.

use crate::judge::world::{self, World, doing, everything, named, network_policy, on, own, pods, rule, tcp};
use palisade_identity::Protocol;
use palisade_policy::model::{Action, PodSet, Port, Tier};
use palisade_policy::oracle::Side;

fn world() -> World {
    World::new().pod("shop/web", "app=web", 1).pod("shop/db", "app=db", 2).pod("bank/db", "app=db", 3)
}

// Line 13.
#[test]
fn a_named_port_opens_on_each_pod_the_number_that_this_pod_gives_it() {
    let world = world()
        .pod("shop/other", "app=db", 4)
        .port("shop/db", "sql", Protocol::Tcp, 5432)
        .port("shop/other", "sql", Protocol::Tcp, 3306)
        .ingress("shop/sql", "app=db", [on([named("sql")])]);
    world.allows("shop/web", "shop/db", "TCP/5432");
    world.denies("shop/web", "shop/db", "TCP/3306");
    world.allows("shop/web", "shop/other", "TCP/3306");
    world.denies("shop/web", "shop/other", "TCP/5432");
}

// Line 13.
#[test]
fn the_protocol_of_a_named_port_must_fit() {
    let world = world().port("shop/db", "sql", Protocol::Udp, 5432).ingress("shop/sql", "app=db", [on([named("sql")])]);
    world.denies("shop/web", "shop/db", "UDP/5432");
    world.denies("shop/web", "shop/db", "TCP/5432");
}

// Line 13.
#[test]
fn a_name_that_no_pod_serves_opens_nothing() {
    let world = world().ingress("shop/in", "app=db", [on([named("sql")])]).egress("shop/out", "app=web", [on([named("sql")])]);
    world.denies("bank/db", "shop/db", "TCP/5432");
    world.denies("shop/web", "bank/db", "TCP/5432");
    world.denies("shop/web", "203.0.113.9", "TCP/5432");
}

// Line 13: the model holds each name as often as containers give it.
#[test]
fn a_name_that_a_pod_gives_twice_opens_both_numbers() {
    let world = world()
        .port("shop/db", "sql", Protocol::Tcp, 5432)
        .port("shop/db", "sql", Protocol::Tcp, 5433)
        .ingress("shop/in", "app=db", [on([named("sql")])])
        .egress("shop/out", "app=web", [on([named("sql")])]);
    world.allows("shop/web", "shop/db", "TCP/5432");
    world.allows("shop/web", "shop/db", "TCP/5433");
    world.denies("shop/web", "shop/db", "TCP/5434");
}

// Line 13.
#[test]
fn a_name_that_a_pod_gives_twice_is_denied_at_both_numbers() {
    let twice = world().port("shop/db", "sql", Protocol::Tcp, 5432).port("shop/db", "sql", Protocol::Tcp, 5433);
    let rule = || vec![doing(Action::Deny, on([named("sql")]))];
    for world in [
        twice.clone().cluster("admin", Tier::Admin(0), "", rule(), vec![]),
        twice.clone().cluster("admin", Tier::Admin(0), "", vec![], rule()),
        twice.clone().cluster("base", Tier::Baseline(0), "", rule(), vec![]),
        twice.identity_policy("shop/deny", PodSet::default(), Some([rule(), vec![everything()]].concat()), None),
    ] {
        world.denies("shop/web", "shop/db", "TCP/5432");
        world.denies("shop/web", "shop/db", "TCP/5433");
        world.allows("shop/web", "shop/db", "TCP/5434");
    }
}

// Lines 13 and 14.
#[test]
fn egress_to_a_named_port_without_peers_means_every_pod_that_has_the_name() {
    let world = world().port("shop/db", "sql", Protocol::Tcp, 5432).port("bank/db", "sql", Protocol::Tcp, 3306).egress(
        "shop/out",
        "app=web",
        [on([named("sql")])],
    );
    world.allows("shop/web", "shop/db", "TCP/5432");
    world.denies("shop/web", "shop/db", "TCP/3306");
    world.allows("shop/web", "bank/db", "TCP/3306");
    world.denies("shop/web", "bank/db", "TCP/5432");
    world.denies("shop/web", "203.0.113.9", "TCP/5432");
}

// Line 14.
#[test]
fn egress_to_a_named_port_with_peers_means_those_that_have_the_name() {
    let world = world().port("shop/db", "sql", Protocol::Tcp, 5432).port("bank/db", "sql", Protocol::Tcp, 5432).egress(
        "shop/out",
        "app=web",
        [rule([pods("team=bank", "")], [named("sql")])],
    );
    world.allows("shop/web", "bank/db", "TCP/5432");
    world.denies("shop/web", "shop/db", "TCP/5432");
}

// Line 16.
#[test]
fn the_end_of_a_range_is_included_and_every_port_answers_alike() {
    let range = Port::Range(Protocol::Tcp, 1000, 2047);
    let world = world().ingress("shop/range", "app=db", [on([range])]);
    for port in [1000, 1001, 1023, 1024, 1535, 1536, 2046, 2047] {
        world.allows("shop/web", "shop/db", &format!("TCP/{port}"));
    }
    for port in [0, 999, 2048, 65535] {
        world.denies("shop/web", "shop/db", &format!("TCP/{port}"));
    }
}

// Line 16.
#[test]
fn a_protocol_without_a_port_is_all_of_that_protocol_and_nothing_of_others() {
    let world = world().ingress("shop/tcp", "app=db", [on([Port::All(Protocol::Tcp)])]);
    for port in [0, 1, 32768, 65535] {
        world.allows("shop/web", "shop/db", &format!("TCP/{port}"));
        world.denies("shop/web", "shop/db", &format!("UDP/{port}"));
        world.denies("shop/web", "shop/db", &format!("SCTP/{port}"));
    }
}

// Line 16: where rules overlap, the first in order of names and indices is the one that is named.
#[test]
fn overlapping_ranges_are_told_apart_by_their_first_rule() {
    let wide = Port::Range(Protocol::Tcp, 1, 100);
    let world = world().ingress("shop/a", "app=db", [rule([own("app=web")], [tcp(80)]), rule([own("")], [wide])]).ingress(
        "shop/b",
        "app=db",
        [everything()],
    );
    let ingress = |port: &str| world.verdicts("shop/web", "shop/db", port).remove(0).ingress;
    let allowed = |policy, rule| Side::Allowed { policy: network_policy(policy), rule };
    assert_eq!(ingress("TCP/80"), allowed("shop/a", 0));
    assert_eq!(ingress("TCP/79"), allowed("shop/a", 1));
    assert_eq!(ingress("TCP/101"), allowed("shop/b", 0));
    assert_eq!(ingress("UDP/80"), allowed("shop/b", 0));
}

// Line 17.
#[test]
fn a_rule_for_sctp_opens_nothing_of_tcp_and_isolates_all_the_same() {
    let world = world().ingress("shop/sctp", "app=db", [on([Port::Range(Protocol::Sctp, 80, 80)])]);
    world.allows("shop/web", "shop/db", "SCTP/80");
    world.denies("shop/web", "shop/db", "TCP/80");
    world.denies("shop/web", "shop/db", "UDP/80");
    world.denies("shop/web", "shop/db", "ICMP");
}

// Line 24.
#[test]
fn a_rule_without_ports_admits_icmp() {
    let world = world().ingress("shop/own", "app=db", [world::from([own("app=web")])]);
    world.allows("shop/web", "shop/db", "ICMP");
    world.denies("bank/db", "shop/db", "ICMP");
}

// Lines 24 and 46: the id of an echo is no port of a rule.
#[test]
fn where_every_rule_names_ports_echo_is_denied() {
    let all = [Port::All(Protocol::Tcp), Port::All(Protocol::Udp), Port::All(Protocol::Sctp)];
    let world = world().ingress("shop/ports", "app=db", [on(all)]);
    world.allows("shop/web", "shop/db", "TCP/0");
    world.denies("shop/web", "shop/db", "ICMP");
}
