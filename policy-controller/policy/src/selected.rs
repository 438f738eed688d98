//! Whom a policy selects, and whom an identity matches: for people, and for the status of both.

use crate::model::{Action, Model, ObjectName, Peer, Peers, Policy, PolicyKind, PolicyName, Ports, Rule};
use crate::rules::{Policies, RuleSet, selects};
use crate::signatures::Owners;
use crate::universe::Universe;
use palisade_identity::Selector;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// The pods that a policy of the model selects, in order of their names; none where there is no such policy.
pub fn selected<'m>(model: &'m Model, name: &PolicyName) -> Vec<&'m ObjectName> {
    let Some(policy) = model.policies.get(name) else { return Vec::new() };
    let namespace = &name.object.namespace;
    // A policy of a namespace selects pods of that namespace alone.
    let own = model.pods.group(&ObjectName::new(namespace, ""));
    let all = namespace.is_empty().then(|| model.pods.iter()).into_iter().flatten();
    let meant = own.chain(all).filter(|(pod, body)| selects(&policy.subject, name, pod, model.namespaces.get(&pod.namespace), body));
    meant.map(|(pod, _)| pod).collect()
}

/// What an identity, or the peers of a policy, match of what is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matched {
    /// Pods of which an address is matched.
    pub pods: BTreeSet<ObjectName>,
    /// Addresses of pods, nodes and the API server. Of blocks and the world, only these are known one by one.
    pub addresses: BTreeSet<IpAddr>,
}

/// What the identity `name` of the model matches; nothing where there is none.
pub fn matched(model: &Model, name: &str) -> Matched {
    let identity = model.identities.get_key_value(&name.to_owned());
    every_identity(model, identity.into_iter()).remove(name).unwrap_or_default()
}

/// What each identity of the model matches, at about the cost of one.
pub fn matched_each(model: &Model) -> BTreeMap<&str, Matched> {
    every_identity(model, model.identities.iter())
}

fn every_identity<'m>(model: &'m Model, identities: impl Iterator<Item = (&'m String, &'m Vec<Peer>)>) -> BTreeMap<&'m str, Matched> {
    let nobody = PolicyName::new(PolicyKind::IdentityPolicy, ObjectName::cluster(""));
    let sets = identities.map(|(name, _)| {
        let rule = allow(Peers::Of(vec![Peer::Identity(name.clone())]));
        (name.as_str(), Policies::rule_set_of(model, &nobody, &rule))
    });
    matched_by(model, &sets.collect::<Vec<_>>())
}

/// What the peers of a policy's rules match, all together; everything that is known where a rule is about everybody.
pub fn peers(model: &Model, name: &PolicyName) -> Matched {
    let Some(policy) = model.policies.get(name) else { return Matched::default() };
    let rules = || [&policy.ingress, &policy.egress].into_iter().flatten().flatten();
    if rules().any(|rule| rule.peers == Peers::Any) {
        let of_pods = model.pods.values().flat_map(|pod| &pod.addresses);
        let addresses = of_pods.chain(model.nodes.values().flat_map(|node| &node.addresses)).chain(&model.api_servers);
        return Matched { pods: model.pods.keys().cloned().collect(), addresses: addresses.copied().collect() };
    }
    let sets = rules().map(|rule| ((), Policies::rule_set_of(model, name, &allow(rule.peers.clone()))));
    matched_by(model, &sets.collect::<Vec<_>>()).remove(&()).unwrap_or_default()
}

/// The identities that rules of a policy name and that are not in the model: none of that name is there, or none that can be used.
pub fn unknown_identities<'p>(model: &Model, policy: &'p Policy) -> BTreeSet<&'p str> {
    policy.identities().filter(|name| !model.identities.contains_key(name)).map(String::as_str).collect()
}

fn allow(peers: Peers) -> Rule {
    Rule { name: None, action: Action::Allow, peers, ports: Ports::Any }
}

/// What the rules of each key match.
fn matched_by<K: Copy + Ord>(model: &Model, sets: &[(K, RuleSet)]) -> BTreeMap<K, Matched> {
    let universe = Universe::of(sets.iter().map(|(_, set)| set), model);
    let owners = Owners::new(model, None);
    // By selector: whose peer it is, and the selectors that are left out of it.
    let mut meant: HashMap<u32, Vec<(K, Vec<u32>)>> = HashMap::new();
    for (key, set) in sets {
        for peer in set.egress.rules.iter().flat_map(|rule| rule.peers.iter().flatten()) {
            let Some(index) = universe.index(&peer.selector) else { continue };
            let except = peer.except.iter().filter_map(|block| universe.index(&Selector::Block(*block))).collect();
            meant.entry(index).or_default().push((*key, except));
        }
    }
    let mut matched: BTreeMap<K, Matched> = BTreeMap::new();
    let addresses = owners.addresses().chain(model.api_servers.iter().copied()).collect();
    for (address, signature) in universe.signatures(model, &owners, &addresses) {
        let signature = signature.unwrap_or_default();
        for (key, except) in signature.iter().filter_map(|index| meant.get(index)).flatten() {
            if !except.iter().any(|index| signature.contains(index)) {
                let matched = matched.entry(*key).or_default();
                matched.addresses.insert(address);
                matched.pods.extend(owners.pods(&address).cloned());
            }
        }
    }
    matched
}

/// The policies that name an identity.
pub fn naming<'m>(model: &'m Model, identity: &str) -> Vec<&'m PolicyName> {
    let names = |rule: &Rule| match &rule.peers {
        Peers::Of(peers) => peers.iter().any(|peer| matches!(peer, Peer::Identity(name) if name == identity)),
        Peers::Any => false,
    };
    let naming = model.policies.iter().filter(|(_, policy)| [&policy.ingress, &policy.egress].into_iter().flatten().flatten().any(names));
    naming.map(|(name, _)| name).collect()
}
