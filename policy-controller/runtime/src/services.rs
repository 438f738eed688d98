//! `Call::Services`: what the kernel of this node has of each service.

use crate::kernel::{interface, pod_name};
use crate::policies::reason;
use crate::state::{Published, State};
use crate::status::refused;
use palisade_datapath_core::abi::{Backend, ServiceEntry, TABLE_NONE, backend_flag, service_flag};
use palisade_policy::model::ObjectName;
use palisade_protocol::{EndpointSpec, FrontendState, FrontendView, Refused, ServiceBackend, ServiceFrontend, ServicePort, ServiceStatus};
use palisade_service::frontend::target;
use palisade_service::model::{HostPorts, Owner, Place, Service, ServiceKind, Services};
use palisade_service::{Frontend, Problem, Trouble};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// The kind of a service, as its refusal names it.
const SERVICE: &str = "Service";
/// And that of its endpoints.
const SLICE: &str = "EndpointSlice";

/// The services that are in the kernel: those of these namespaces (none: of all), or the one of a name; with what stands behind each frontend where `backends` says so.
pub fn services(state: &State, namespaces: &[String], object: Option<&str>, backends: bool) -> Vec<ServiceStatus> {
    let published = state.published();
    let mut statuses = statuses(&published, &refused(state, &published), namespaces, object, backends);
    for status in &mut statuses {
        let name = ObjectName::new(&status.namespace, &status.name);
        let told = state.health_check(&name).map(|problem| format!("service {name}: {problem}"));
        status.problems.extend(told);
    }
    statuses
}

/// What is wrong with a pod's host ports, as far as the kernel of this node has them.
pub fn host_port_problems(state: &State, published: &Published, spec: &EndpointSpec) -> Vec<String> {
    let mut problems = problems(published, &Owner::Pod(interface(spec)));
    problems.extend(closed_outside(spec).filter(|_| !state.config.serves_outside()));
    problems
}

/// What becomes of a pod's host ports where clients outside the cluster are not served; `None` where it has none.
pub fn closed_outside(spec: &EndpointSpec) -> Option<String> {
    let ports: Vec<String> = spec.host_ports.iter().map(|port| format!("{}/{}", port.host_port, port.protocol)).collect();
    (!ports.is_empty()).then(|| {
        format!(
            "pod {} is not reached from outside by its host ports ({}), but from this node alone: this node does not serve clients outside (--services-outside; servicesOutside of the chart)",
            pod_name(spec),
            ports.join(", ")
        )
    })
}

/// What is wrong with somebody's frontends and endpoints; a service that does not fit is refused, and says so there.
fn problems(published: &Published, owner: &Owner) -> Vec<String> {
    let troubles = published.served.troubles.get(owner).into_iter().flatten();
    let is_refusal = |trouble: &&Trouble| matches!((trouble, owner), (Trouble::NoRoom { .. }, Owner::Service(_)));
    troubles.filter(|trouble| !is_refusal(trouble)).map(|what| Problem { owner: owner.clone(), what: what.clone() }.to_string()).collect()
}

fn statuses(published: &Published, refused: &[Refused], namespaces: &[String], object: Option<&str>, backends: bool) -> Vec<ServiceStatus> {
    let rows = Rows::new(published);
    let wanted = |name: &ObjectName| {
        (namespaces.is_empty() || namespaces.contains(&name.namespace)) && object.is_none_or(|object| name.to_string() == object)
    };
    let services = published.services.services.iter().filter(|(name, _)| wanted(name));
    services.map(|(name, service)| rows.status(name, service, refused, backends)).collect()
}

/// The rows of services.
struct Rows<'p> {
    published: &'p Published,
    /// The backends, by the number of the service's port that they are behind.
    backends: HashMap<u32, Vec<&'p Backend>>,
}

impl<'p> Rows<'p> {
    fn new(published: &'p Published) -> Self {
        let mut backends = HashMap::<u32, Vec<&'p Backend>>::new();
        for backend in published.served.backends.values() {
            backends.entry(backend.service).or_default().push(backend);
        }
        Self { published, backends }
    }

    /// What there is of a service; `whole`: with the backends of each frontend.
    fn status(&self, name: &ObjectName, service: &Service, refused: &[Refused], whole: bool) -> ServiceStatus {
        let owner = Owner::Service(name.clone());
        let troubles = self.published.served.troubles.get(&owner).map(Vec::as_slice).unwrap_or_default();
        let entries = self.entries(name, service, troubles);
        let ports: BTreeSet<u32> = entries.iter().map(|(_, _, entry)| entry.service).collect();
        let behind: Vec<&Backend> = ports.iter().flat_map(|port| self.behind(*port)).collect();
        let known: BTreeSet<(IpAddr, u16)> = behind.iter().copied().filter_map(target).collect();
        let chosen = behind.iter().copied().filter(|backend| backend.flags & (backend_flag::CHOSEN | backend_flag::CHOSEN_OUTSIDE) != 0);
        let chosen: BTreeSet<(IpAddr, u16)> = chosen.filter_map(target).collect();
        let frontend = |(view, frontend, entry): &(FrontendView, Frontend, &ServiceEntry)| ServiceFrontend {
            address: frontend.address,
            port: frontend.port,
            protocol: frontend.protocol.to_string(),
            view: *view,
            state: state(entry.table, entry.flags & service_flag::DROP != 0),
            outside: (entry.flags & service_flag::OUTSIDE != 0)
                .then(|| state(entry.outside_table, entry.flags & service_flag::OUTSIDE_DROP != 0)),
            affinity: Some(entry.affinity).filter(|seconds| *seconds != 0),
            backends: if whole { self.backends(entry.service) } else { Vec::new() },
        };
        ServiceStatus {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            kind: kind(service.kind),
            ports: ports_of(service),
            frontends: entries.iter().map(frontend).collect(),
            backends_known: known.len(),
            backends_chosen: chosen.len(),
            problems: problems(self.published, &owner).into_iter().chain(self.of_slices(name, refused)).collect(),
            refused: reason(refused, SERVICE, &name.to_string()),
        }
    }

    /// Why the EndpointSlices of a service are not used as they are written.
    fn of_slices(&self, name: &ObjectName, refused: &[Refused]) -> Vec<String> {
        let slices = self.published.services.slices.get(name).into_iter().flat_map(|slices| slices.keys());
        let told = slices.filter_map(|slice| {
            let reason = reason(refused, SLICE, &ObjectName::new(&name.namespace, slice).to_string())?;
            Some(format!("service {name} has EndpointSlice {slice}, of which not all is used: {reason}"))
        });
        told.collect()
    }

    /// The rows of the frontends that a service has, cluster IPs first.
    fn entries(&self, name: &ObjectName, service: &Service, troubles: &[Trouble]) -> Vec<(FrontendView, Frontend, &'p ServiceEntry)> {
        let rows = &self.published.served.frontends;
        let lost = |frontend: &Frontend| troubles.iter().any(|trouble| is_taken(trouble, frontend, name));
        let claimed = claimed(service, &self.published.services.place);
        let had = claimed.into_iter().filter(|(frontend, _)| !lost(frontend));
        let mut entries: Vec<_> = had.filter_map(|(frontend, view)| Some((view, frontend, rows.get(&frontend)?))).collect();
        entries.sort_by_key(|(view, frontend, _)| (*view, *frontend));
        entries
    }

    /// The rows of the backends behind a service's port.
    fn behind(&self, port: u32) -> impl Iterator<Item = &'p Backend> {
        self.backends.get(&port).into_iter().flatten().copied()
    }

    fn backends(&self, port: u32) -> Vec<ServiceBackend> {
        let backend = |row: &Backend| {
            let (address, port) = target(row)?;
            Some(ServiceBackend {
                address,
                port,
                name: self.published.names.get(&address).map(|name| name.to_string()).unwrap_or_default(),
                chosen: row.flags & backend_flag::CHOSEN != 0,
                chosen_outside: row.flags & backend_flag::CHOSEN_OUTSIDE != 0,
                serving: row.flags & backend_flag::SERVING != 0,
            })
        };
        let mut backends: Vec<ServiceBackend> = self.behind(port).filter_map(backend).collect();
        backends.sort_by_key(|backend| (backend.address, backend.port));
        backends
    }
}

/// Where a service wants to be reached. What is one of its cluster IPs and one of the outside's addresses counts as the first.
fn claimed(service: &Service, place: &Place) -> BTreeMap<Frontend, FrontendView> {
    let is_reached =
        |address: IpAddr| service.kind == ServiceKind::Addressed && service.cluster_ips.iter().any(|ip| ip.is_ipv6() == address.is_ipv6());
    let mut claimed = BTreeMap::new();
    for port in &service.ports {
        let mut claim = |view: FrontendView, address: IpAddr, number: u16| {
            if is_reached(address) {
                let frontend = Frontend { address, protocol: port.protocol, port: number };
                let first = claimed.entry(frontend).or_insert(view);
                *first = view.min(*first);
            }
        };
        service.cluster_ips.iter().for_each(|&address| claim(FrontendView::Cluster, address, port.port));
        service.external.iter().for_each(|&address| claim(FrontendView::External, address, port.port));
        if let Some(number) = port.node_port {
            place.addresses.iter().for_each(|&address| claim(FrontendView::External, address, number));
        }
    }
    claimed
}

/// Whose a frontend is, as [`Owner`] is shown.
pub fn owner_of(services: &Services, frontend: &Frontend) -> String {
    let has = |service: &Service| claimed(service, &services.place).contains_key(frontend);
    let service = services.services.iter().find(|(_, service)| has(service)).map(|(name, _)| Owner::Service(name.clone()));
    let leads = |ports: &HostPorts| ports.ports.iter().any(|port| (port.protocol, port.port) == (frontend.protocol, frontend.port));
    let pod = || services.host_ports.iter().find(|(_, ports)| leads(ports)).map(|(interface, _)| Owner::Pod(interface.clone()));
    service.or_else(pod).map_or_else(|| "somebody".to_owned(), |owner| owner.to_string())
}

/// Whether the trouble is that somebody else has a frontend.
fn is_taken(trouble: &Trouble, of: &Frontend, name: &ObjectName) -> bool {
    matches!(trouble, Trouble::Taken { frontend, by } if frontend == of && !matches!(by, Owner::Service(by) if by == name))
}

const fn state(table: u32, drops: bool) -> FrontendState {
    if table != TABLE_NONE {
        FrontendState::Served
    } else if drops {
        FrontendState::Dropped
    } else {
        FrontendState::Refused
    }
}

const fn kind(kind: ServiceKind) -> palisade_protocol::ServiceKind {
    match kind {
        ServiceKind::Addressed => palisade_protocol::ServiceKind::Addressed,
        ServiceKind::Headless => palisade_protocol::ServiceKind::Headless,
        ServiceKind::ExternalName => palisade_protocol::ServiceKind::ExternalName,
    }
}

fn ports_of(service: &Service) -> Vec<ServicePort> {
    let ports = service.ports.iter();
    ports
        .map(|port| ServicePort {
            name: port.name.clone(),
            protocol: port.protocol.to_string(),
            port: port.port,
            node_port: port.node_port,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::without_room;
    use palisade_datapath_core::abi::map;
    use palisade_identity::Protocol;
    use palisade_policy::shared::SharedMap;
    use palisade_service::model::{self, Endpoint, HostPort, HostPorts, PodInterface, Services, Slice, SlicePort, TrafficPolicy};
    use palisade_service::{Compiled, Limits, Numbers, Planner, compile};

    const IP: &str = "10.96.0.1";

    fn address(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    fn port(name: &str) -> model::ServicePort {
        model::ServicePort { name: name.to_owned(), protocol: Protocol::Tcp, port: 80, node_port: None }
    }

    fn service(cluster_ips: &[&str]) -> Service {
        Service {
            uid: None,
            created: None,
            kind: ServiceKind::Addressed,
            cluster_ips: cluster_ips.iter().map(|ip| address(ip)).collect(),
            external: BTreeSet::new(),
            ports: vec![port("")],
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity: None,
            health_check_node_port: None,
        }
    }

    fn endpoint(address: &str, ready: bool, serving: bool) -> Endpoint {
        Endpoint {
            address: self::address(address),
            ready,
            serving,
            terminating: !ready,
            node: Some("elsewhere".to_owned()),
            zones: BTreeSet::new(),
            nodes: BTreeSet::new(),
        }
    }

    /// Services of the namespace `shop`, each with the endpoints of its one slice, in the kernel of the node `here`.
    fn published(services: impl IntoIterator<Item = (&'static str, Service, Vec<Endpoint>)>) -> Published {
        let place = Place { node: "here".to_owned(), zone: None, addresses: [address("192.168.0.1")].into() };
        let mut known = Services { place, ..Services::default() };
        for (name, service, endpoints) in services {
            let name = ObjectName::new("shop", name);
            let ports = vec![SlicePort { name: String::new(), protocol: Protocol::Tcp, port: 8080 }];
            known.services.insert(name.clone(), service);
            known.slices.insert(name, BTreeMap::from([("slice".to_owned(), Slice { ports, endpoints })]));
        }
        let served = compile(&known, &Compiled::default(), &mut Numbers::default()).into();
        let names = SharedMap::from([(address("10.1.0.1"), "shop/web-0")]);
        Published { services: known, served, names, ..Published::default() }
    }

    fn get(published: &Published, name: &str) -> ServiceStatus {
        let mut found = statuses(published, &[], &[], Some(name), true);
        assert_eq!(found.len(), 1, "{name}");
        found.remove(0)
    }

    fn places(status: &ServiceStatus) -> Vec<(FrontendView, String, u16)> {
        status.frontends.iter().map(|frontend| (frontend.view, frontend.address.to_string(), frontend.port)).collect()
    }

    #[test]
    fn a_service_is_told_with_every_frontend_and_what_each_backend_still_takes() {
        let service = Service {
            external: [address("203.0.113.1")].into(),
            ports: vec![model::ServicePort { node_port: Some(30_080), ..port("") }],
            affinity: Some(60),
            ..service(&[IP])
        };
        let endpoints = vec![endpoint("10.1.0.3", false, false), endpoint("10.1.0.2", false, true), endpoint("10.1.0.1", true, true)];
        let status = get(&published([("web", service, endpoints)]), "shop/web");
        assert_eq!(
            places(&status),
            [
                (FrontendView::Cluster, IP.to_owned(), 80),
                (FrontendView::External, "192.168.0.1".to_owned(), 30_080),
                (FrontendView::External, "203.0.113.1".to_owned(), 80)
            ]
        );
        assert_eq!((status.backends_known, status.backends_chosen), (3, 1));
        assert_eq!(status.ports, [ServicePort { name: String::new(), protocol: "TCP".to_owned(), port: 80, node_port: Some(30_080) }]);
        for frontend in &status.frontends {
            assert_eq!((frontend.state, frontend.affinity), (FrontendState::Served, Some(60)), "{frontend:?}");
            let backends: Vec<_> =
                frontend.backends.iter().map(|it| (it.address.to_string(), it.port, it.name.as_str(), it.chosen, it.serving)).collect();
            let expected = [
                ("10.1.0.1".to_owned(), 8080, "shop/web-0", true, true),
                ("10.1.0.2".to_owned(), 8080, "", false, true),
                ("10.1.0.3".to_owned(), 8080, "", false, false),
            ];
            assert_eq!(backends, expected, "{frontend:?}");
        }
        assert!(status.problems.is_empty() && status.refused.is_none(), "{status:?}");
    }

    #[test]
    fn without_an_endpoint_a_frontend_refuses_and_without_one_here_it_drops() {
        let local = Service { internal_policy: TrafficPolicy::Local, external: [address("203.0.113.1")].into(), ..service(&["10.96.0.2"]) };
        let published = published([("none", service(&[IP]), Vec::new()), ("local", local, vec![endpoint("10.1.0.1", true, true)])]);
        let states = |name: &str| get(&published, name).frontends.iter().map(|frontend| frontend.state).collect::<Vec<_>>();
        assert_eq!(states("shop/none"), [FrontendState::Refused]);
        assert_eq!(states("shop/local"), [FrontendState::Dropped, FrontendState::Served]);
    }

    #[test]
    fn a_frontend_is_told_of_the_service_that_has_it_and_the_other_one_says_why_it_has_it_not() {
        let external = || BTreeSet::from([address("2001:db8::1")]);
        let published = published([
            ("a", Service { external: external(), ..service(&[IP]) }, Vec::new()),
            ("b", Service { ports: vec![port(""), port("again")], ..service(&[IP, "10.96.0.2"]) }, Vec::new()),
            ("c", Service { external: external(), ..service(&["fd00::1"]) }, Vec::new()),
        ]);
        let [a, b, c] = ["shop/a", "shop/b", "shop/c"].map(|name| get(&published, name));
        assert_eq!(places(&a), [(FrontendView::Cluster, IP.to_owned(), 80)], "an address of another family is not its own");
        assert_eq!(places(&b), [(FrontendView::Cluster, "10.96.0.2".to_owned(), 80)], "two ports of one number are one frontend");
        assert_eq!(places(&c), [(FrontendView::Cluster, "fd00::1".to_owned(), 80), (FrontendView::External, "2001:db8::1".to_owned(), 80)]);
        let said = "service shop/b is not reached at 10.96.0.1:80/TCP, which service shop/a has";
        assert!(b.problems.iter().any(|problem| problem.starts_with(said)), "{:?}", b.problems);
        assert!(c.problems.is_empty(), "{:?}", c.problems);
    }

    #[test]
    fn what_has_no_addresses_of_its_own_has_no_frontends() {
        for (of, told) in [
            (ServiceKind::Headless, palisade_protocol::ServiceKind::Headless),
            (ServiceKind::ExternalName, palisade_protocol::ServiceKind::ExternalName),
        ] {
            let service = Service { kind: of, ..service(&[]) };
            let status = get(&published([("web", service, vec![endpoint("10.1.0.1", true, true)])]), "shop/web");
            assert_eq!((status.kind, status.frontends.len(), status.problems.len()), (told, 0, 0));
        }
    }

    #[test]
    fn a_list_is_of_the_namespaces_that_are_wanted_and_without_backends() {
        let mut published = published([("web", service(&[IP]), vec![endpoint("10.1.0.1", true, true)])]);
        published.services.services.insert(ObjectName::new("other", "web"), service(&[]));
        let names = |namespaces: &[&str]| {
            let namespaces: Vec<String> = namespaces.iter().map(|&name| name.to_owned()).collect();
            let found = statuses(&published, &[], &namespaces, None, false);
            found.iter().map(|status| format!("{}/{}", status.namespace, status.name)).collect::<Vec<_>>()
        };
        assert_eq!(names(&[]), ["other/web", "shop/web"]);
        assert_eq!(names(&["other", "shop"]), ["other/web", "shop/web"]);
        assert_eq!(names(&["shop"]), ["shop/web"]);
        assert!(names(&["nowhere"]).is_empty());
        let listed = statuses(&published, &[], &["shop".to_owned()], None, false);
        assert_eq!((listed[0].backends_known, listed[0].frontends[0].backends.len()), (1, 0));
    }

    #[test]
    fn a_service_that_was_refused_says_why() {
        let published = published([("web", service(&[IP]), Vec::new())]);
        let of = |kind: &str| Refused { kind: kind.to_owned(), object: "shop/web".to_owned(), reason: "spec.ports: no".to_owned() };
        let told = |kind: &str| statuses(&published, &[of(kind)], &[], None, false)[0].refused.clone();
        assert_eq!(told("Service").as_deref(), Some("spec.ports: no"));
        assert_eq!(told("NetworkPolicy"), None);
    }

    #[test]
    fn a_service_says_which_of_its_slices_is_not_used_as_it_is_written() {
        let published = published([("web", service(&[IP]), Vec::new()), ("other", service(&["10.96.0.2"]), Vec::new())]);
        let mut refused = vec![Refused { kind: "EndpointSlice".to_owned(), object: "shop/slice".to_owned(), reason: "no".to_owned() }];
        let told = |refused: &[Refused]| statuses(&published, refused, &[], Some("shop/web"), false)[0].problems.clone();
        assert_eq!(told(&refused), ["service shop/web has EndpointSlice slice, of which not all is used: no"]);
        refused[0].object = "other/slice".to_owned();
        assert!(told(&refused).is_empty());
    }

    #[test]
    fn a_service_that_does_not_fit_is_refused_and_says_so_once() {
        let mut published = published([("web", service(&[IP]), vec![endpoint("10.1.0.1", true, true)])]);
        let limits = Limits::from([(map::BACKENDS, 0)]);
        let plan = Planner::new().plan_within(&Compiled::default(), &published.services, &mut Numbers::default(), &limits);
        published.served = plan.next;
        let refused = without_room(&published);
        assert_eq!((refused[0].kind.as_str(), refused[0].object.as_str()), (SERVICE, "shop/web"));
        let status = &statuses(&published, &refused, &[], None, false)[0];
        assert!(status.refused.as_ref().is_some_and(|reason| reason.contains("BACKENDS has room for 0 rows")), "{status:?}");
        assert!(status.problems.is_empty() && status.frontends.is_empty(), "{status:?}");
    }

    #[test]
    fn a_frontend_says_whether_the_outside_is_served_and_each_backend_whether_it_is_for_it() {
        let local = Service {
            external: [address("203.0.113.1")].into(),
            external_policy: TrafficPolicy::Local,
            ports: vec![model::ServicePort { node_port: Some(30_080), ..port("") }],
            ..service(&[IP])
        };
        let here = Endpoint { node: Some("here".to_owned()), ..endpoint("10.1.0.2", true, true) };
        let status = |endpoints| get(&published([("web", local.clone(), endpoints)]), "shop/web");
        let seen = |status: &ServiceStatus| status.frontends.iter().map(|frontend| frontend.outside).collect::<Vec<_>>();
        let both = status(vec![endpoint("10.1.0.1", true, true), here]);
        let served = Some(FrontendState::Served);
        assert_eq!(seen(&both), [None, served, served]);
        for frontend in &both.frontends[1..] {
            let backends: Vec<_> = frontend.backends.iter().map(|it| (it.address.to_string(), it.chosen, it.chosen_outside)).collect();
            assert_eq!(backends, [("10.1.0.1".to_owned(), true, false), ("10.1.0.2".to_owned(), true, true)]);
        }
        let elsewhere = status(vec![endpoint("10.1.0.1", true, true)]);
        assert_eq!(seen(&elsewhere), [None, Some(FrontendState::Dropped), Some(FrontendState::Dropped)]);
        assert!(elsewhere.frontends.iter().all(|frontend| frontend.state == FrontendState::Served), "{:?}", elsewhere.frontends);
        assert_eq!(seen(&status(Vec::new())), [None, Some(FrontendState::Refused), Some(FrontendState::Refused)]);
    }

    #[test]
    fn who_loses_a_port_to_a_pod_is_told_and_so_is_the_pod_that_loses_one() {
        let at = |number: u16| Service { ports: vec![model::ServicePort { node_port: Some(number), ..port("") }], ..service(&[IP]) };
        let mut published = published([("web", at(30_080), Vec::new())]);
        let pod = PodInterface { pod: ObjectName::new("shop", "db"), interface: "container/eth0".to_owned() };
        let ports = [30_080, 30_081].map(|port| HostPort { address: None, protocol: Protocol::Tcp, port, target: 80 });
        let ports =
            HostPorts { created: Some("2026-01-01T00:00:00Z".to_owned()), addresses: [address("10.1.0.1")].into(), ports: ports.to_vec() };
        published.services.host_ports.insert(pod.clone(), ports);
        let compile = |published: &mut Published| {
            published.served = compile(&published.services, &Compiled::default(), &mut Numbers::default()).into();
        };
        compile(&mut published);
        // Nobody knows how old the service is.
        let status = get(&published, "shop/web");
        assert_eq!(places(&status), [(FrontendView::Cluster, IP.to_owned(), 80)], "what the pod has is not its own");
        assert!(status.problems[0].contains("192.168.0.1:30080/TCP, which pod shop/db has"), "{:?}", status.problems);
        assert!(problems(&published, &Owner::Pod(pod.clone())).is_empty());
        let name = ObjectName::new("shop", "web");
        published.services.services.insert(name, Service { created: Some("2025-01-01T00:00:00Z".to_owned()), ..at(30_081) });
        compile(&mut published);
        let told = problems(&published, &Owner::Pod(pod));
        assert!(told[0].starts_with("pod shop/db is not reached at 192.168.0.1:30081/TCP, which service shop/web has"), "{told:?}");
    }
}
