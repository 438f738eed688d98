//! Who has which frontend.

use crate::frontend::Frontend;
use crate::model::{HostPort, HostPorts, Owner, Place, Service, ServiceKind, Services};
use palisade_identity::Protocol;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// From where a frontend is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    /// By its cluster IPs.
    Inside,
    /// By addresses that the world outside reaches, too: external ones, and those of nodes.
    Outside,
}

/// A port of a service or of a pod, of one family and seen from one side: what has a number, tables and backends of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct View {
    pub side: Side,
    /// As [`ServicePort::name`](crate::model::ServicePort::name); of a pod empty.
    pub port: String,
    /// A pod's own port; of a service zero, for its slices say it.
    pub target: u16,
    pub protocol: Protocol,
    pub is_ipv6: bool,
}

/// Whose a claim is; the first one has what several claim of one side.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claimant {
    /// Nobody knows how old something is that does not say when it was made: the others go first.
    is_undated: bool,
    created: Option<String>,
    owner: Owner,
}

/// That somebody wants a frontend for one of their views.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Claim {
    /// A cluster IP is given by the API server, and to one service only: nobody takes it by writing it among external addresses.
    side: Side,
    claimant: Arc<Claimant>,
    view: View,
}

impl Claim {
    /// Who claims.
    pub(crate) fn owner(&self) -> &Owner {
        &self.claimant.owner
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

/// What somebody claims.
#[derive(Debug)]
pub(crate) struct Wanted {
    created: Option<String>,
    frontends: BTreeSet<(Frontend, View)>,
}

/// What somebody gets of what they claim.
#[derive(Debug, Default)]
pub(crate) struct Got {
    /// The frontends that each of their views has: at least one.
    pub views: BTreeMap<View, Vec<Frontend>>,
    /// The frontends that they miss, and who has each.
    pub missed: Vec<(Frontend, Owner)>,
}

/// Whether a service is reached in a family: where it has a cluster IP of it.
pub(crate) fn is_reached_in(service: &Service, is_ipv6: bool) -> bool {
    service.kind == ServiceKind::Addressed && service.cluster_ips.iter().any(|address| address.is_ipv6() == is_ipv6)
}

/// The addresses of a node at which a host port is asked for, whether or not the pod has an address of their family.
pub(crate) fn host_addresses<'a>(port: &HostPort, place: &'a Place) -> impl Iterator<Item = &'a IpAddr> {
    let asked = port.address;
    place.addresses.iter().filter(move |address| match asked {
        None => true,
        Some(asked) if asked.is_unspecified() => asked.is_ipv6() == address.is_ipv6(),
        Some(asked) => asked == **address,
    })
}

impl Wanted {
    /// What somebody claims on a node.
    pub(crate) fn of(services: &Services, owner: &Owner) -> Option<Self> {
        let place = &services.place;
        match owner {
            Owner::Service(name) => Some(Self::of_service(services.services.get(name)?, place)),
            Owner::Pod(interface) => Some(Self::of_pod(services.host_ports.get(interface)?, place)),
        }
    }

    fn of_service(service: &Service, place: &Place) -> Self {
        let mut frontends = BTreeSet::new();
        for port in &service.ports {
            let mut claim = |side: Side, address: IpAddr, number: u16| {
                let is_ipv6 = address.is_ipv6();
                if is_reached_in(service, is_ipv6) {
                    let view = View { side, port: port.name.clone(), target: 0, protocol: port.protocol, is_ipv6 };
                    frontends.insert((Frontend { address, protocol: port.protocol, port: number }, view));
                }
            };
            service.cluster_ips.iter().for_each(|&address| claim(Side::Inside, address, port.port));
            service.external.iter().for_each(|&address| claim(Side::Outside, address, port.port));
            if let Some(number) = port.node_port {
                place.addresses.iter().for_each(|&address| claim(Side::Outside, address, number));
            }
        }
        Self { created: service.created.clone(), frontends }
    }

    fn of_pod(pod: &HostPorts, place: &Place) -> Self {
        let mut frontends = BTreeSet::new();
        for port in &pod.ports {
            for &address in host_addresses(port, place) {
                let is_ipv6 = address.is_ipv6();
                if pod.addresses.iter().any(|own| own.is_ipv6() == is_ipv6) {
                    let view = View { side: Side::Outside, port: String::new(), target: port.target, protocol: port.protocol, is_ipv6 };
                    frontends.insert((Frontend { address, protocol: port.protocol, port: port.port }, view));
                }
            }
        }
        Self { created: pod.created.clone(), frontends }
    }
}

impl Claims {
    /// Exchanges what somebody claims. `touched` gets the frontends concerned, with who had each before it was touched first.
    pub(crate) fn exchange(
        &mut self,
        owner: &Owner,
        before: Option<Wanted>,
        after: Option<Wanted>,
        touched: &mut BTreeMap<Frontend, Option<Claim>>,
    ) {
        for (frontend, _) in before.into_iter().flat_map(|before| before.frontends) {
            self.touch(&frontend, touched);
            if let Some(claims) = self.claims.get_mut(&frontend) {
                claims.retain(|claim| claim.owner() != owner);
                if claims.is_empty() {
                    self.claims.remove(&frontend);
                }
            }
        }
        let Some(Wanted { created, frontends }) = after else { return };
        let claimant = Arc::new(Claimant { is_undated: created.is_none(), created, owner: owner.clone() });
        for (frontend, view) in frontends {
            self.touch(&frontend, touched);
            let claims = self.claims.entry(frontend).or_default();
            claims.push(Claim { side: view.side, claimant: claimant.clone(), view });
            claims.sort();
        }
    }

    fn touch(&self, frontend: &Frontend, touched: &mut BTreeMap<Frontend, Option<Claim>>) {
        touched.entry(*frontend).or_insert_with(|| self.first(frontend).cloned());
    }

    /// The claim of who has a frontend.
    pub(crate) fn first(&self, frontend: &Frontend) -> Option<&Claim> {
        self.claims.get(frontend)?.first()
    }

    /// All who claim a frontend.
    pub(crate) fn claimants(&self, frontend: &Frontend) -> impl Iterator<Item = &Owner> {
        self.claims.get(frontend).into_iter().flatten().map(Claim::owner)
    }

    /// What somebody gets of what they claim.
    pub(crate) fn got(&self, owner: &Owner, wanted: Wanted) -> Got {
        let mut got = Got::default();
        for (frontend, view) in wanted.frontends {
            match self.first(&frontend) {
                Some(first) if first.owner() == owner && *first.view() == view => got.views.entry(view).or_default().push(frontend),
                Some(first) => got.missed.push((frontend, first.owner().clone())),
                None => {}
            }
        }
        got
    }
}
