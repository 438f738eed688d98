//! Identity and IdentityPolicy: egress by identity, deny rules, entities, and audit.

use crate::judge::world::{World, block, doing, everything, from, network_policy, object, pods, rule, select, tcp};
use palisade_datapath_core::abi::Direction;
use palisade_identity::ServiceAccount;
use palisade_policy::model::{Action, Entity, Peer, PodSet, PolicyKind, PolicyName, Rule};
use palisade_policy::oracle::{Side, audited_side};
use palisade_policy::selected::{matched, matched_each, naming, peers, selected, unknown_identities};
use palisade_policy::{Numbers, compile};
use std::collections::BTreeSet;
use std::net::IpAddr;

fn by_name(name: &str) -> Peer {
    Peer::Identity(name.to_owned())
}

fn account(namespace: &str, name: &str) -> ServiceAccount {
    ServiceAccount { namespace: namespace.to_owned(), name: name.to_owned() }
}

fn checkout() -> PodSet {
    PodSet { pods: select("app=checkout"), ..PodSet::default() }
}

/// The database runs as `bank`'s account `db` and is labelled so; `checkout` may reach it on 5432 and nothing else.
fn world() -> World {
    let database = PodSet { namespaces: Some(select("")), pods: select("app=db"), accounts: Some([account("bank", "db")].into()) };
    let mut world = World::new()
        .pod("shop/checkout", "app=checkout", 1)
        .pod("bank/db", "app=db", 2)
        .pod("bank/copy", "app=db", 3)
        .pod("bank/backup", "app=backup", 4)
        .pod("shop/db", "app=db", 5)
        .identity("payments-db", [Peer::Pods(database)])
        .identity_policy("shop/checkout", checkout(), Some(vec![]), Some(vec![rule([by_name("payments-db")], [tcp(5432)])]));
    for (pod, account) in [("bank/db", "db"), ("bank/copy", "default"), ("bank/backup", "db"), ("shop/db", "db")] {
        world.model.pods.edit(&object(pod)).expect("a pod").service_account = account.to_owned();
    }
    world
}

#[test]
fn egress_by_identity_wants_label_account_and_namespace_together() {
    let world = world();
    world.allows("shop/checkout", "bank/db", "TCP/5432");
    for (to, port) in [("bank/db", "TCP/80"), ("bank/copy", "TCP/5432"), ("bank/backup", "TCP/5432"), ("shop/db", "TCP/5432")] {
        world.denies("shop/checkout", to, port);
    }
    world.denies("shop/checkout", "203.0.113.1", "TCP/5432");
    world.denies("bank/db", "shop/checkout", "TCP/80");
    world.allows("bank/copy", "bank/db", "TCP/5432");
}

#[test]
fn whom_a_policy_selects_and_an_identity_matches_is_known() {
    let mut world = world();
    let policy = PolicyName::new(PolicyKind::IdentityPolicy, object("shop/checkout"));
    assert_eq!(selected(&world.model, &policy), [&object("shop/checkout")]);
    let found = matched(&world.model, "payments-db");
    assert_eq!(found.pods, [object("bank/db")].into());
    assert_eq!(found.addresses, world.model.pods[&object("bank/db")].addresses.iter().copied().collect());
    assert_eq!(naming(&world.model, "payments-db"), [&policy]);
    assert_eq!(matched_each(&world.model), [("payments-db", found.clone())].into());
    assert_eq!(peers(&world.model, &policy), found, "of its rules only one has peers");
    assert_eq!((matched(&world.model, "none").pods.len(), naming(&world.model, "none").len()), (0, 0));
    assert!(unknown_identities(&world.model, &world.model.policies[&policy]).is_empty());
    world.model.identities.clear();
    assert_eq!(unknown_identities(&world.model, &world.model.policies[&policy]), ["payments-db"].into());
}

#[test]
fn the_peers_of_a_policy_are_those_of_all_its_rules_without_what_is_excepted() {
    let address = |last: u8| IpAddr::from([10, 0, 0, last]);
    let mut world = world();
    let block = Peer::Block { block: "10.0.0.0/24".parse().unwrap(), except: vec!["10.0.0.4/32".parse().unwrap()] };
    let here = Peer::Pods(PodSet { pods: select("app=db"), ..PodSet::default() });
    for (number, name) in (1u8..).zip(world.model.pods.clone().keys()) {
        world.model.pods.edit(name).expect("a pod").addresses = vec![address(number)];
    }
    let numbered: Vec<String> = world.model.pods.keys().map(ToString::to_string).collect();
    assert_eq!(numbered, ["bank/backup", "bank/copy", "bank/db", "shop/checkout", "shop/db"]);
    let name = PolicyName::new(PolicyKind::IdentityPolicy, object("shop/checkout"));
    let of = |world: &mut World, rules: Vec<Rule>| {
        world.model.policies.edit(&name).expect("a policy").egress = Some(rules);
        peers(&world.model, &name)
    };
    let found = of(&mut world, vec![rule([block], [])]);
    assert_eq!(found.addresses, [1, 2, 3, 5].map(address).into());
    let found = of(&mut world, vec![rule([here], [])]);
    assert_eq!(found.pods, [object("shop/db")].into(), "of the policy's own namespace");
    let found = of(&mut world, vec![everything()]);
    assert_eq!(found.pods.len(), 5);
}

#[test]
fn an_identity_gains_a_pod_and_loses_it_and_the_verdict_follows() {
    let mut world = world();
    world.model.pods.edit(&object("bank/backup")).expect("a pod").labels = [("app".to_owned(), "db".to_owned())].into();
    world.allows("shop/checkout", "bank/backup", "TCP/5432");
    world.model.pods.edit(&object("bank/backup")).expect("a pod").service_account = "other".to_owned();
    world.denies("shop/checkout", "bank/backup", "TCP/5432");
}

#[test]
fn a_name_that_is_gone_opens_nothing() {
    let mut world = world();
    world.model.identities.clear();
    world.denies("shop/checkout", "bank/db", "TCP/5432");
    // A rule that denied it denies everybody.
    let rules = vec![doing(Action::Deny, from([by_name("bad")])), everything()];
    let world = World::new().pod("shop/a", "", 1).pod("shop/b", "", 2).identity_policy("shop/p", PodSet::default(), Some(rules), None);
    world.denies("shop/a", "shop/b", "TCP/80");
    world.identity("bad", [block("203.0.113.0/24", &[])]).allows("shop/a", "shop/b", "TCP/80");
}

#[test]
fn a_rule_that_denies_beats_every_rule_that_allows_of_any_policy() {
    let deny = vec![doing(Action::Deny, rule([pods("team=bank", "")], [tcp(80)]))];
    let world = World::new()
        .pod("shop/web", "app=web", 1)
        .pod("bank/client", "", 2)
        .ingress("shop/a-allow", "", [everything()])
        .identity_policy("shop/z-deny", PodSet { pods: select("app=web"), ..PodSet::default() }, Some(deny), None);
    world.denies("bank/client", "shop/web", "TCP/80");
    world.allows("bank/client", "shop/web", "TCP/81");
    let name = PolicyName::new(PolicyKind::IdentityPolicy, object("shop/z-deny"));
    for verdict in world.verdicts("bank/client", "shop/web", "TCP/80") {
        assert_eq!(verdict.ingress, Side::Denied { policy: name.clone(), rule: 0 });
    }
}

#[test]
fn a_direction_that_is_there_isolates_also_without_rules_and_one_that_is_absent_does_not() {
    let world = World::new().pod("shop/a", "", 1).pod("shop/b", "", 2);
    let closed = world.clone().identity_policy("shop/p", PodSet::default(), Some(vec![]), None);
    closed.denies("shop/a", "shop/b", "TCP/80");
    world
        .identity_policy("shop/p", PodSet { pods: select("app=none"), ..PodSet::default() }, None, Some(vec![]))
        .allows("shop/a", "shop/b", "TCP/80");
}

/// Egress of `shop/a` towards one entity alone.
fn only(entity: Entity) -> World {
    let rules: Vec<Rule> = vec![from([Peer::Entity(entity)])];
    let mut world = World::new()
        .pod("shop/a", "", 1)
        .pod("shop/b", "", 2)
        .node("here", "192.168.0.1")
        .node("there", "192.168.0.2")
        .identity_policy("shop/p", PodSet::default(), None, Some(rules));
    world.model.host = "here".to_owned();
    world.model.nodes.get_mut(&"there".to_owned()).expect("a node").pod_ranges = vec!["10.9.0.0/16".parse().expect("a range")];
    world.model.api_servers = ["192.168.0.2".parse().expect("an address"), "198.51.100.1".parse().expect("an address")].into();
    world
}

#[test]
fn entities_are_what_they_are_called() {
    let ends = ["shop/b", "192.168.0.1", "192.168.0.2", "198.51.100.1", "203.0.113.1", "10.9.1.1"];
    for (entity, reached) in [
        (Entity::Host, vec!["192.168.0.1"]),
        (Entity::Nodes, vec!["192.168.0.1", "192.168.0.2"]),
        (Entity::ApiServer, vec!["192.168.0.2", "198.51.100.1"]),
        // An address of another node's pod range may be that of a pod that is not known yet.
        (Entity::World, vec!["198.51.100.1", "203.0.113.1"]),
    ] {
        let world = only(entity);
        for end in ends {
            assert_eq!(world.passes("shop/a", end, "TCP/443"), reached.contains(&end), "{entity:?}: {end}");
        }
    }
}

#[test]
fn a_policy_in_audit_mode_decides_nothing_and_its_verdict_is_known() {
    let world = World::new().pod("shop/web", "app=web", 1).pod("shop/a", "", 2).ingress("shop/closed", "app=web", []);
    world.denies("shop/a", "shop/web", "TCP/80");
    let audited = world.audited(&network_policy("shop/closed"));
    audited.allows("shop/a", "shop/web", "TCP/80");
    let peer = audited.model.pods[&object("shop/a")].addresses[0];
    let would = audited_side(&audited.model, &object("shop/web"), Direction::Ingress, peer, 6, 80);
    assert_eq!(would, Side::DefaultDenied(vec![network_policy("shop/closed")]));
    let local: BTreeSet<_> = audited.model.pods.keys().cloned().collect();
    let compiled = compile(&audited.model, &local, &mut Numbers::default());
    assert_eq!(compiled.audits.keys().collect::<Vec<_>>(), [&object("shop/web")], "only the pod that it selects");
    assert_ne!(compiled.audits[&object("shop/web")], compiled.subjects[&object("shop/web")]);
}
