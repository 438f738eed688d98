//! Which endpoints are behind a port of a service, and which of them take new flows.
//!
//! As kube-proxy chooses (`CategorizeEndpoints`): endpoints that are about to end where there are no others (KEP-1669), and those
//! that are meant for this node or its zone (KEP-2433, KEP-4444).

use crate::frontend::Target;
use crate::model::{Endpoint, Place, Slice, TrafficPolicy};
use crate::problem::Trouble;
use palisade_identity::Protocol;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The endpoints that slices list for a port.
pub(crate) type Listed<'a> = BTreeMap<Target, &'a Endpoint>;

/// Who takes new flows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// These, of which there is at least one, in order.
    OneOf(Vec<Target>),
    /// Nobody, and there is nobody elsewhere.
    Refuse,
    /// Nobody here, though there is somebody elsewhere.
    Drop,
}

/// Who takes new flows to the frontends of a view.
#[derive(Debug)]
pub(crate) struct Choices {
    /// From clients in the cluster.
    pub inside: Choice,
    /// From those outside it; `None`: they are not served there.
    pub outside: Option<Choice>,
}

impl Choice {
    /// The endpoints that take new flows, in order.
    pub(crate) fn targets(&self) -> &[Target] {
        match self {
            Self::OneOf(targets) => targets,
            Self::Refuse | Self::Drop => &[],
        }
    }

    /// Whether an endpoint is among them.
    pub(crate) fn is_of(&self, target: &Target) -> bool {
        self.targets().binary_search(target).is_ok()
    }
}

/// Whether an address is of the family of a slice: that of its first endpoint. Others were left out when the object was read; here they
/// get no flows.
fn is_in(slice: &Slice, address: IpAddr) -> bool {
    slice.endpoints.first().is_some_and(|first| first.address.is_ipv6() == address.is_ipv6())
}

/// What a port's slices list for it, of one family.
pub(crate) fn listed<'a>(slices: &'a BTreeMap<String, Slice>, name: &str, protocol: Protocol, is_ipv6: bool) -> Listed<'a> {
    let mut listed = Listed::new();
    for slice in slices.values() {
        for port in slice.ports.iter().filter(|port| port.name == name && port.protocol == protocol) {
            let of_family = |endpoint: &&Endpoint| endpoint.address.is_ipv6() == is_ipv6 && is_in(slice, endpoint.address);
            for endpoint in slice.endpoints.iter().filter(of_family) {
                // While an endpoint moves from slice to slice it stands in two; the one that says more of it counts, or else the first.
                let known = listed.entry((endpoint.address, port.port)).or_insert(endpoint);
                if worth(endpoint) > worth(known) {
                    *known = endpoint;
                }
            }
        }
    }
    listed
}

/// What an endpoint is good for: new flows, new flows if need be, flows that it has.
fn worth(endpoint: &Endpoint) -> (bool, bool, bool) {
    (endpoint.ready, is_draining(endpoint), endpoint.serving)
}

/// It is about to end, and answers still.
const fn is_draining(endpoint: &Endpoint) -> bool {
    endpoint.serving && endpoint.terminating
}

/// Which of the endpoints take new flows at a place.
pub(crate) fn choose(listed: &Listed<'_>, policy: TrafficPolicy, place: &Place) -> Choice {
    let ready = || listed.iter().filter(|(_, endpoint)| endpoint.ready);
    let draining = || listed.iter().filter(|(_, endpoint)| is_draining(endpoint));
    let is_here = |endpoint: &Endpoint| endpoint.node.as_ref() == Some(&place.node);
    let chosen: Vec<Target> = match policy {
        TrafficPolicy::Cluster => {
            let near = topology(ready().map(|(_, endpoint)| *endpoint), place);
            let ready: Vec<Target> = ready().filter(|(_, endpoint)| near(endpoint)).map(|(&target, _)| target).collect();
            if ready.is_empty() { draining().map(|(&target, _)| target).collect() } else { ready }
        }
        TrafficPolicy::Local => {
            let ready: Vec<Target> = ready().filter(|(_, endpoint)| is_here(endpoint)).map(|(&target, _)| target).collect();
            if ready.is_empty() { draining().filter(|(_, endpoint)| is_here(endpoint)).map(|(&target, _)| target).collect() } else { ready }
        }
    };
    if !chosen.is_empty() {
        Choice::OneOf(chosen)
    } else if ready().chain(draining()).next().is_some() {
        Choice::Drop
    } else {
        Choice::Refuse
    }
}

/// Which of the endpoints that are ready are near enough: hints count only where each endpoint has them, and one is for here.
fn topology<'a>(ready: impl Iterator<Item = &'a Endpoint> + Clone, place: &Place) -> impl Fn(&Endpoint) -> bool {
    let counts = |hints: fn(&Endpoint) -> &BTreeSet<String>, here: &str| {
        ready.clone().all(|endpoint| !hints(endpoint).is_empty()) && ready.clone().any(|endpoint| hints(endpoint).contains(here))
    };
    let node = (!place.node.is_empty() && counts(|endpoint| &endpoint.nodes, &place.node)).then_some(&place.node);
    let zone = place.zone.as_ref().filter(|zone| counts(|endpoint| &endpoint.zones, zone));
    move |endpoint| match (node, zone) {
        (Some(node), _) => endpoint.nodes.contains(node),
        (None, Some(zone)) => endpoint.zones.contains(zone),
        (None, None) => true,
    }
}

/// The slices of which the endpoints get no flows for their family.
pub(crate) fn troubles(slices: &BTreeMap<String, Slice>, cluster_ips: &[IpAddr]) -> Vec<Trouble> {
    let is_foreign = |slice: &Slice| {
        let first = slice.endpoints.first();
        first.is_some_and(|first| !cluster_ips.iter().any(|address| address.is_ipv6() == first.address.is_ipv6()))
    };
    let foreign = slices.iter().filter(|(_, slice)| is_foreign(slice));
    foreign.map(|(name, _)| Trouble::SliceFamily { slice: name.clone() }).collect()
}
