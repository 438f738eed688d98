//! From services to the rows of the maps, and from a change of services to a change of the rows.
//!
//! There is one way to compile: as the change from what was compiled before, which at first is nothing.

use crate::choice::{choose, listed, troubles};
use crate::claims::{Claims, Side, View, is_reached_in};
use crate::compile::Compiled;
use crate::frontend::Frontend;
use crate::model::{Service, ServiceKind, Services, TrafficPolicy};
use crate::numbers::Numbers;
use crate::problem::Trouble;
use crate::views::{Known, Recovered, Rows};
use palisade_policy::model::ObjectName;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Compiles services one time after the other.
#[derive(Debug, Default)]
pub(crate) struct Compiler {
    /// What was compiled last, and its rows.
    services: Services,
    compiled: Arc<Compiled>,
    claims: Claims,
    /// What each service has in the maps, by its views.
    views: HashMap<ObjectName, BTreeMap<View, Rows>>,
}

impl Compiler {
    /// The rows for `services` where the maps hold `old`.
    pub(crate) fn compile(&mut self, services: &Services, old: &Compiled, numbers: &mut Numbers) -> Arc<Compiled> {
        if std::ptr::eq(&*self.compiled, old) {
            return self.take(services, None, numbers);
        }
        // Others wrote the maps, or not all of what was planned: only the rows can tell whose a number is.
        *self = Self::default();
        numbers.hold(old.highest());
        self.take(services, Some(Recovered::new(old)), numbers)
    }

    fn take(&mut self, services: &Services, mut recovered: Option<Recovered<'_>>, numbers: &mut Numbers) -> Arc<Compiled> {
        let before = std::mem::replace(&mut self.services, services.clone());
        let affected = self.affected(&before);
        let mut next = Compiled::clone(&self.compiled);
        // All rows go before any comes: a frontend may pass from one to the other.
        let mut views: BTreeMap<&ObjectName, BTreeMap<View, Rows>> = BTreeMap::new();
        for name in &affected {
            let rows = self.views.remove(name).unwrap_or_default();
            rows.values().for_each(|rows| rows.remove(&mut next));
            next.troubles.remove(name);
            views.insert(name, rows);
        }
        for (name, mut rows) in views {
            let Some(service) = services.services.get(name) else { continue };
            let known = |view: &View, frontends: &[Frontend]| match &mut recovered {
                Some(recovered) => recovered.known(frontends),
                None => rows.remove(view).map(|rows| rows.known(&self.compiled)).unwrap_or_default(),
            };
            let made = self.write(name, service, known, numbers, &mut next);
            if !made.is_empty() {
                self.views.insert(name.clone(), made);
            }
        }
        self.compiled = Arc::new(next);
        self.compiled.clone()
    }

    /// Moves the claims on, and tells of which services rows may be different.
    fn affected(&mut self, before: &Services) -> BTreeSet<ObjectName> {
        let after = &self.services;
        let claiming: BTreeSet<&ObjectName> = if before.place == after.place {
            before.services.differences(&after.services).into_iter().map(|difference| difference.key).collect()
        } else {
            before.services.keys().chain(after.services.keys()).collect()
        };
        let mut touched = BTreeMap::new();
        for &name in &claiming {
            let of = |services: &'_ Services| services.services.get(name).cloned();
            let (old, new) = (of(before), of(after));
            let old = old.as_deref().map(|service| (service, &before.place));
            self.claims.exchange(name, old, new.as_deref().map(|service| (service, &after.place)), &mut touched);
        }
        let listing = before.slices.differences(&after.slices).into_iter().map(|difference| difference.key);
        let mut affected: BTreeSet<ObjectName> = claiming.into_iter().chain(listing).cloned().collect();
        for (frontend, owner) in touched {
            if owner.as_ref() != self.claims.owner(&frontend) {
                // Who had it and claims it no more is among those that claim otherwise.
                affected.extend(self.claims.claimants(&frontend).cloned());
            }
        }
        affected
    }

    /// Makes and writes all rows of a service.
    fn write(
        &self,
        name: &ObjectName,
        service: &Service,
        mut known: impl FnMut(&View, &[Frontend]) -> Known,
        numbers: &mut Numbers,
        next: &mut Compiled,
    ) -> BTreeMap<View, Rows> {
        let place = &self.services.place;
        let none = BTreeMap::new();
        let slices = self.services.slices.get(name).map_or(&none, |slices| slices);
        let got = self.claims.of(name, service, place);
        let mut made = BTreeMap::new();
        for (view, frontends) in got.views {
            let listed = listed(slices, &view.port, view.protocol, view.is_ipv6);
            let choice = choose(&listed, policy(service, view.side), place);
            let known = known(&view, &frontends);
            let rows = Rows::write(frontends, (&listed, choice), service.affinity.unwrap_or_default(), &known, numbers, next);
            made.insert(view, rows);
        }
        let mut wrong = Vec::new();
        if service.kind == ServiceKind::Addressed {
            wrong = said_wrongly(service);
            wrong.extend(got.missed.into_iter().map(|(frontend, by)| Trouble::Taken { frontend, by }));
            wrong.extend(if service.cluster_ips.is_empty() { Vec::new() } else { troubles(slices, &service.cluster_ips) });
        }
        if !wrong.is_empty() {
            next.troubles.insert(name.clone(), wrong);
        }
        made
    }
}

/// Which endpoints clients of the cluster reach. They do not come from outside, also where they name an address of the outside.
const fn policy(service: &Service, side: Side) -> TrafficPolicy {
    match side {
        Side::Inside => service.internal_policy,
        Side::Outside => TrafficPolicy::Cluster,
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
