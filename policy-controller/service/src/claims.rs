//! Which service has which frontend.

use crate::frontend::Frontend;
use crate::model::{Place, Service, ServiceKind};
use palisade_identity::Protocol;
use palisade_policy::model::ObjectName;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// From where a service is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    /// By its cluster IPs.
    Inside,
    /// By addresses that the world outside reaches, too: external ones, and those of nodes.
    Outside,
}

/// A port of a service, of one family and seen from one side: what has a number, a table and backends of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct View {
    pub side: Side,
    /// As [`ServicePort::name`](crate::model::ServicePort::name).
    pub port: String,
    pub protocol: Protocol,
    pub is_ipv6: bool,
}

/// Whose a claim is; the first one has what several claim of one side.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claimant {
    /// Nobody knows how old a service is that does not say when it was made: the others go first.
    is_undated: bool,
    created: Option<String>,
    service: ObjectName,
}

/// That a service wants a frontend for one of its views.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Claim {
    /// A cluster IP is given by the API server, and to one service only: nobody takes it by writing it among external addresses.
    side: Side,
    claimant: Arc<Claimant>,
    view: View,
}

impl Claim {
    /// The service that claims.
    pub(crate) fn service(&self) -> &ObjectName {
        &self.claimant.service
    }

    /// What it claims it for.
    pub(crate) fn view(&self) -> &View {
        &self.view
    }
}

/// All claims.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// In order, never empty.
    claims: BTreeMap<Frontend, Vec<Claim>>,
}

/// What a service gets of what it claims.
#[derive(Debug, Default)]
pub(crate) struct Got {
    /// The frontends that each of its views has: at least one.
    pub views: BTreeMap<View, Vec<Frontend>>,
    /// The frontends that it misses, and which service has each.
    pub missed: Vec<(Frontend, ObjectName)>,
}

/// Whether a service is reached in a family: where it has a cluster IP of it.
pub(crate) fn is_reached_in(service: &Service, is_ipv6: bool) -> bool {
    service.kind == ServiceKind::Addressed && service.cluster_ips.iter().any(|address| address.is_ipv6() == is_ipv6)
}

/// What a service claims on a node.
fn wanted(service: &Service, place: &Place) -> BTreeSet<(Frontend, View)> {
    let mut wanted = BTreeSet::new();
    for port in &service.ports {
        let mut claim = |side: Side, address: IpAddr, number: u16| {
            let is_ipv6 = address.is_ipv6();
            if is_reached_in(service, is_ipv6) {
                let view = View { side, port: port.name.clone(), protocol: port.protocol, is_ipv6 };
                wanted.insert((Frontend { address, protocol: port.protocol, port: number }, view));
            }
        };
        service.cluster_ips.iter().for_each(|&address| claim(Side::Inside, address, port.port));
        service.external.iter().for_each(|&address| claim(Side::Outside, address, port.port));
        if let Some(number) = port.node_port {
            place.addresses.iter().for_each(|&address| claim(Side::Outside, address, number));
        }
    }
    wanted
}

impl Claims {
    /// Exchanges what a service claims. `touched` gets the frontends concerned, with who had each before it was touched first.
    pub(crate) fn exchange(
        &mut self,
        name: &ObjectName,
        before: Option<(&Service, &Place)>,
        after: Option<(&Service, &Place)>,
        touched: &mut BTreeMap<Frontend, Option<Claim>>,
    ) {
        for (frontend, _) in before.into_iter().flat_map(|(service, place)| wanted(service, place)) {
            self.touch(&frontend, touched);
            if let Some(claims) = self.claims.get_mut(&frontend) {
                claims.retain(|claim| claim.service() != name);
                if claims.is_empty() {
                    self.claims.remove(&frontend);
                }
            }
        }
        let Some((service, place)) = after else { return };
        let created = service.created.clone();
        let claimant = Arc::new(Claimant { is_undated: created.is_none(), created, service: name.clone() });
        for (frontend, view) in wanted(service, place) {
            self.touch(&frontend, touched);
            let claims = self.claims.entry(frontend).or_default();
            claims.push(Claim { side: view.side, claimant: claimant.clone(), view });
            claims.sort();
        }
    }

    fn touch(&self, frontend: &Frontend, touched: &mut BTreeMap<Frontend, Option<Claim>>) {
        touched.entry(*frontend).or_insert_with(|| self.owner(frontend).cloned());
    }

    /// Who has a frontend.
    pub(crate) fn owner(&self, frontend: &Frontend) -> Option<&Claim> {
        self.claims.get(frontend)?.first()
    }

    /// All who claim a frontend.
    pub(crate) fn claimants(&self, frontend: &Frontend) -> impl Iterator<Item = &ObjectName> {
        self.claims.get(frontend).into_iter().flatten().map(Claim::service)
    }

    /// What a service gets of what it claims.
    pub(crate) fn of(&self, name: &ObjectName, service: &Service, place: &Place) -> Got {
        let mut got = Got::default();
        for (frontend, view) in wanted(service, place) {
            match self.owner(&frontend) {
                Some(owner) if owner.service() == name && *owner.view() == view => got.views.entry(view).or_default().push(frontend),
                Some(owner) => got.missed.push((frontend, owner.service().clone())),
                None => {}
            }
        }
        got
    }
}
