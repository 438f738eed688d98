//! From services to the rows of the maps, and from a change of services to a change of the rows.
//!
//! There is one way to compile: as the change from what was compiled before, which at first is nothing.

use crate::choice::{Choices, Listed, choose, listed, troubles};
use crate::claims::{Claims, Side, View, Wanted, host_addresses, is_reached_in};
use crate::compile::Compiled;
use crate::fit::{self, Limits};
use crate::frontend::{Frontend, Target};
use crate::model::{Endpoint, HostPorts, Owner, Place, Service, ServiceKind, Services, TrafficPolicy};
use crate::numbers::Numbers;
use crate::problem::Trouble;
use crate::views::{Recovered, Rows};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Compiles services one time after the other.
#[derive(Debug, Default)]
pub(crate) struct Compiler {
    /// What was compiled last, and its rows.
    services: Services,
    compiled: Arc<Compiled>,
    claims: Claims,
    /// What each owner has in the maps, by its views.
    views: HashMap<Owner, BTreeMap<View, Rows>>,
    /// Who is held back, since the rows that are wanted do not fit.
    held: BTreeSet<Owner>,
    /// What the last change has left to nobody, though who had it is there.
    given_up: Vec<Frontend>,
}

/// What some have in the maps, by their views.
type Views = BTreeMap<Owner, BTreeMap<View, Rows>>;

/// A change, before anybody knows whether it fits.
struct Change<'a> {
    services: &'a Services,
    claims: &'a Claims,
    /// What the maps hold.
    old: &'a Compiled,
    /// Whether its numbers are known by the rows alone.
    is_read: bool,
    /// What those had whose rows may be different.
    former: &'a BTreeMap<Owner, BTreeMap<View, Rows>>,
}

impl Compiler {
    /// The rows for `services` where the maps hold `old` and may hold no more than `limits`. Whoever needs more is held back.
    pub(crate) fn compile(&mut self, services: &Services, old: &Compiled, numbers: &mut Numbers, limits: &Limits) -> Arc<Compiled> {
        if std::ptr::eq(&*self.compiled, old) {
            return self.take(services, None, numbers, limits);
        }
        // Others wrote the maps, or not all of what was planned: only the rows can tell whose a number is.
        *self = Self::default();
        numbers.hold(old.highest());
        self.take(services, Some(old), numbers, limits)
    }

    /// The frontends that nobody has since the last change, though who had them is still there.
    pub(crate) fn given_up(&self) -> &[Frontend] {
        &self.given_up
    }

    fn take(&mut self, services: &Services, read: Option<&Compiled>, numbers: &mut Numbers, limits: &Limits) -> Arc<Compiled> {
        let before = std::mem::replace(&mut self.services, services.clone());
        let mut affected = self.affected(&before);
        // There may be room now.
        affected.append(&mut self.held);
        let mut others = Compiled::clone(&self.compiled);
        // All rows go before any comes: a frontend may pass from one to the other.
        let mut former: BTreeMap<Owner, BTreeMap<View, Rows>> = BTreeMap::new();
        for owner in affected {
            let rows = self.views.remove(&owner).unwrap_or_default();
            rows.values().for_each(|rows| rows.remove(&mut others));
            others.troubles.remove(&owner);
            former.insert(owner, rows);
        }
        let old = read.unwrap_or(&self.compiled);
        let change = Change { services, claims: &self.claims, old, is_read: read.is_some(), former: &former };
        let mut given = numbers.clone();
        let (mut views, mut next) = change.make(others.clone(), &mut given, &BTreeMap::new(), &BTreeSet::new());
        let added = |views: &Views, next: &Compiled| -> BTreeMap<Owner, fit::Counts> {
            views.iter().map(|(owner, views)| (owner.clone(), fit::added(views.values(), next, old))).collect()
        };
        let held = fit::held(added(&views, &next), old, limits);
        if !held.is_empty() {
            // No number is spent on what does not fit, however often it is tried.
            given = numbers.clone();
            (views, next) = change.make(others.clone(), &mut given, &held, &BTreeSet::new());
            let added = added(&views, &next);
            if !fit::held(added.clone(), old, limits).is_empty() {
                // Not even the tables of what is left of them.
                let kept = added.into_iter().filter(|(owner, added)| held.contains_key(owner) && !added.is_empty()).map(|(owner, _)| owner);
                given = numbers.clone();
                (views, next) = change.make(others, &mut given, &held, &kept.collect());
            }
        }
        *numbers = given;
        self.views.extend(views);
        self.held = held.into_keys().collect();
        self.compiled = Arc::new(next);
        self.compiled.clone()
    }

    /// Moves the claims on, and tells of whom rows may be different.
    fn affected(&mut self, before: &Services) -> BTreeSet<Owner> {
        let after = &self.services;
        let claiming: BTreeSet<Owner> = if before.place == after.place {
            let services = before.services.differences(&after.services).into_iter().map(|different| Owner::Service(different.key.clone()));
            let pods = before.host_ports.differences(&after.host_ports).into_iter().map(|different| Owner::Pod(different.key.clone()));
            services.chain(pods).collect()
        } else {
            let services = before.services.keys().chain(after.services.keys()).cloned().map(Owner::Service);
            services.chain(before.host_ports.keys().chain(after.host_ports.keys()).cloned().map(Owner::Pod)).collect()
        };
        let mut touched = BTreeMap::new();
        for owner in &claiming {
            self.claims.exchange(owner, Wanted::of(before, owner), Wanted::of(after, owner), &mut touched);
        }
        let listing = before.slices.differences(&after.slices).into_iter().map(|different| Owner::Service(different.key.clone()));
        let mut affected: BTreeSet<Owner> = listing.collect();
        affected.extend(claiming);
        let is_there = |owner: &Owner| match owner {
            Owner::Service(name) => after.services.contains_key(name),
            Owner::Pod(interface) => after.host_ports.contains_key(interface),
        };
        self.given_up.clear();
        for (frontend, first) in touched {
            if first.as_ref().is_some_and(|first| is_there(first.owner())) && self.claims.first(&frontend).is_none() {
                self.given_up.push(frontend);
            }
            if first.as_ref() != self.claims.first(&frontend) {
                // Who had it and claims it no more is among those that claim otherwise.
                affected.extend(self.claims.claimants(&frontend).cloned());
            }
        }
        affected
    }
}

impl Change<'_> {
    /// What those have after the change whose rows may be different, and all rows: theirs beside those of the others. Who is `held` back goes on
    /// at the frontends that are there with those of its backends that are there and still listed; one that is gone may be somebody else's by
    /// now. Whoever is among the `kept`, with all that is there.
    fn make(&self, others: Compiled, numbers: &mut Numbers, held: &BTreeMap<Owner, Trouble>, kept: &BTreeSet<Owner>) -> (Views, Compiled) {
        let mut recovered = self.is_read.then(|| Recovered::new(self.old));
        let (mut all, mut next) = (BTreeMap::new(), others);
        for (owner, former) in self.former {
            let Some(wanted) = Wanted::of(self.services, owner) else { continue };
            let got = self.claims.got(owner, wanted);
            let mut made = BTreeMap::new();
            for (view, frontends) in got.views {
                let known = match &mut recovered {
                    Some(recovered) => recovered.known(&frontends),
                    None => former.get(&view).map(|rows| rows.known(self.old)).unwrap_or_default(),
                };
                let is_held = held.contains_key(owner);
                let frontends = if is_held { known.own(frontends, self.old) } else { frontends };
                let rows = if kept.contains(owner) {
                    Rows::keep(frontends, known, self.old, &mut next)
                } else if is_held && frontends.is_empty() {
                    None
                } else {
                    let is_used = |target: &Target| !is_held || known.backends.contains_key(target);
                    Some(behind(self.services, owner, &view, is_used, |listed, choices, affinity| {
                        Rows::write(frontends, (listed, choices), affinity, &known, numbers, &mut next)
                    }))
                };
                made.extend(rows.map(|rows| (view, rows)));
            }
            let mut wrong = wrong(self.services, owner, got.missed);
            wrong.extend(held.get(owner).cloned());
            if !made.is_empty() {
                all.insert(owner.clone(), made);
            }
            if !wrong.is_empty() {
                next.troubles.insert(owner.clone(), wrong);
            }
        }
        (all, next)
    }
}

/// Tells `with` what stands behind a view, of that which is used: all endpoints, those that take new flows, and for how many seconds a client
/// stays with one.
fn behind<T>(
    services: &Services,
    owner: &Owner,
    view: &View,
    is_used: impl Fn(&Target) -> bool,
    with: impl FnOnce(&Listed<'_>, Choices, u32) -> T,
) -> T {
    let place = &services.place;
    match owner {
        Owner::Service(name) => {
            let none = BTreeMap::new();
            let slices = services.slices.get(name).map_or(&none, |slices| slices);
            let mut listed = listed(slices, &view.port, view.protocol, view.is_ipv6);
            listed.retain(|target, _| is_used(target));
            let service = &services.services[name];
            with(&listed, choices(&listed, service, view.side, place), service.affinity.unwrap_or_default())
        }
        Owner::Pod(interface) => {
            let pod = &services.host_ports[interface];
            let own = pod.addresses.iter().find(|address| address.is_ipv6() == view.is_ipv6);
            let endpoint = own.map(|&address| Endpoint {
                address,
                ready: true,
                serving: true,
                terminating: false,
                node: Some(place.node.clone()),
                zones: BTreeSet::new(),
                nodes: BTreeSet::new(),
            });
            let mut listed: Listed<'_> = endpoint.iter().map(|endpoint| ((endpoint.address, view.target), endpoint)).collect();
            listed.retain(|target, _| is_used(target));
            let choose = || choose(&listed, TrafficPolicy::Cluster, place);
            with(&listed, Choices { inside: choose(), outside: Some(choose()) }, 0)
        }
    }
}

/// What is wrong with somebody's frontends and endpoints.
fn wrong(services: &Services, owner: &Owner, missed: Vec<(Frontend, Owner)>) -> Vec<Trouble> {
    let taken = missed.into_iter().map(|(frontend, by)| Trouble::Taken { frontend, by });
    match owner {
        Owner::Service(name) => {
            let service = &services.services[name];
            if service.kind != ServiceKind::Addressed {
                return Vec::new();
            }
            let mut wrong = said_wrongly(service);
            wrong.extend(taken);
            if let Some(slices) = services.slices.get(name).filter(|_| !service.cluster_ips.is_empty()) {
                wrong.extend(troubles(slices, &service.cluster_ips));
            }
            wrong
        }
        Owner::Pod(interface) => misplaced(&services.host_ports[interface], &services.place).chain(taken).collect(),
    }
}

/// The host ports of a pod at addresses where it cannot have them.
fn misplaced(pod: &HostPorts, place: &Place) -> impl Iterator<Item = Trouble> {
    pod.ports.iter().filter_map(move |port| {
        let address = port.address?;
        let frontend = Frontend { address, protocol: port.protocol, port: port.port };
        if host_addresses(port, place).next().is_none() {
            return Some(Trouble::NotOfNode(frontend));
        }
        let has_family = pod.addresses.iter().any(|own| own.is_ipv6() == address.is_ipv6());
        (!has_family).then_some(Trouble::PodFamily(frontend))
    })
}

/// Which endpoints clients reach. Those of the cluster do not come from outside, also where they name an address of the outside.
fn choices(listed: &Listed<'_>, service: &Service, side: Side, place: &Place) -> Choices {
    match side {
        Side::Inside => Choices { inside: choose(listed, service.internal_policy, place), outside: None },
        Side::Outside => {
            Choices { inside: choose(listed, TrafficPolicy::Cluster, place), outside: Some(choose(listed, service.external_policy, place)) }
        }
    }
}

/// What a service says wrongly of itself.
fn said_wrongly(service: &Service) -> Vec<Trouble> {
    if service.cluster_ips.is_empty() {
        return vec![Trouble::NoClusterIp];
    }
    let foreign = service.external.iter().filter(|address| !is_reached_in(service, address.is_ipv6()));
    foreign.map(|&address| Trouble::ExternalFamily(address)).collect()
}
