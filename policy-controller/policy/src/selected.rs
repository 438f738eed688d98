//! Whom a policy selects, and whom an identity matches: for people, and for the status of both.

use crate::model::{Action, Model, ObjectName, Peer, Peers, PolicyName, Ports, Rule};
use crate::rules::{Policies, selects};
use crate::signatures::Owners;
use crate::universe::Universe;
use palisade_identity::Selector;
use std::collections::BTreeSet;
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

/// What an identity matches of what is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matched {
    /// Pods of which an address is matched.
    pub pods: BTreeSet<ObjectName>,
    /// Addresses of pods, nodes and the API server. Of blocks and the world, only these are known one by one.
    pub addresses: BTreeSet<IpAddr>,
}

/// What the identity `name` of the model matches; nothing where there is none.
pub fn matched(model: &Model, name: &str) -> Matched {
    let rule = Rule { name: None, action: Action::Allow, peers: Peers::Of(vec![Peer::Identity(name.to_owned())]), ports: Ports::Any };
    let set = Policies::rule_set_of(model, &rule);
    let universe = Universe::of(&set, model);
    let peers = || set.egress.rules.iter().flat_map(|rule| rule.peers.iter().flatten());
    let mut matched = Matched::default();
    let owners = Owners::new(model, None);
    let addresses = owners.addresses().chain(model.api_servers.iter().copied()).collect();
    for (address, signature) in universe.signatures(model, &owners, &addresses) {
        let signature = signature.unwrap_or_default();
        let has = |selector: &Selector| universe.index(selector).is_some_and(|index| signature.contains(&index));
        if peers().any(|peer| has(&peer.selector) && !peer.except.iter().any(|block| has(&Selector::Block(*block)))) {
            matched.addresses.insert(address);
        }
    }
    let pods = model.pods.iter().filter(|(_, pod)| pod.addresses.iter().any(|address| matched.addresses.contains(address)));
    matched.pods = pods.map(|(name, _)| name.clone()).collect();
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
