//! The way to the pods of other nodes: kernel routes by their addresses or through the overlay, and forwarding.

mod apply;
mod complaint;
mod device;
mod error;
mod forwarding;
mod mtu;
mod network;
mod watch;
mod way;

pub use apply::uplink_mtu;
pub use device::DEVICE;
pub use error::RouteError;
pub use forwarding::{enable_forwarding, keep_forwarding};
pub use mtu::{IPV6_LEAST, cost};
pub use network::{Network, status};
pub use survey::Peer;
#[cfg(test)]
pub use survey::{Fault, Wrong};
pub use way::{Hop, Reach, Way};

use crate::config::Forwarding;
use crate::kernel::{KernelHandle, NodeRows, PastTheStack};
use crate::problem::Part;
use crate::state::State;
use apply::{Asked, apply, look};
use network::{Seen, strays};
use palisade_k8s::survey::{self, Survey};
use palisade_loader::{PinDir, Role, pinned_links};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use watch::{touched, watch};

/// How often the kernel's routes are compared with what they should be, changes or not.
const INTERVAL: Duration = Duration::from_secs(30);
/// How long a burst of changes may grow before it is looked at.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// After a failure it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps the ways to the pods of all other nodes as the Node objects and the routing mode say, for ever.
pub async fn follow(state: Arc<State>, kernel: KernelHandle) -> Infallible {
    let complaints = Notify::new();
    tokio::select! {
        never = complaint::follow(&kernel, &complaints) => never,
        never = keep(&state, &kernel, &complaints) => never,
    }
}

async fn keep(state: &State, kernel: &KernelHandle, complaints: &Notify) -> Infallible {
    let (mut changes, mut publications, mut uplinks) = (state.changes(), state.publications(), state.uplink_changes());
    let (watch, mut seen) = (watch(), Seen::default());
    // What was put into the kernel last; `None` where it must be looked at again in any case.
    let mut done: Option<(Arc<Survey>, Instant)> = None;
    loop {
        changes.borrow_and_update();
        publications.borrow_and_update();
        uplinks.borrow_and_update();
        // Before everything was read, a node that is not there may only not have been listed yet.
        let survey = {
            let index = state.index();
            index.synced().then(|| index.survey())
        };
        let fresh = |(before, at): &(Arc<Survey>, Instant)| at.elapsed() < INTERVAL && survey.as_ref() == Some(before);
        // Most changes are of pods and policies.
        if let Some(survey) = survey.as_ref().filter(|_| !done.as_ref().is_some_and(fresh)) {
            done = match put(state, kernel, survey, &mut seen).await {
                Ok(()) => {
                    state.problems.clear(Part::Routes);
                    Some((Arc::clone(survey), Instant::now()))
                }
                Err(problem) => {
                    state.problems.set(Part::Routes, format!("the way to pods of other nodes: {problem}"));
                    None
                }
            };
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = touched(watch.as_ref()) => done = None,
            _ = uplinks.changed() => done = None,
            () = complaints.notified() => done = None,
            // The datapath may be open only now.
            _ = publications.changed(), if done.is_none() => {}
            () = tokio::time::sleep(if done.is_some() { INTERVAL } else { RETRY }) => {}
        }
        tokio::time::sleep(DEBOUNCE).await;
    }
}

/// Puts the ways to the other nodes into the kernel: first the rows by which the overlay knows them, then its device and the routes, and last goes
/// what leads nowhere any more.
async fn put(state: &State, kernel: &KernelHandle, survey: &Survey, seen: &mut Seen) -> Result<(), String> {
    let (asked, mode) = (survey.clone(), state.config.routing.mode);
    let pin = PinDir::new(&state.config.pin_dir);
    let for_uplinks = pin.clone();
    let (looked, uplinks) = blocking(move || Ok((look(&asked, mode)?, pinned_links(&for_uplinks, Role::Uplink)?))).await?;
    let past_the_stack = PastTheStack {
        // What the node encrypts would leave in clear.
        allowed: state.config.routing.forwarding == Forwarding::Direct && !looked.ipsec,
        uplinks,
        hops: looked.hops.clone(),
        // What is longer than the narrowest of the ways is left to the stack, too, where somebody has set a larger MTU: it knows each way.
        mtu: state.config.mtu.map_or(looked.mtu, |set| set.min(looked.mtu)),
    };
    let rows = NodeRows::of(&survey.own, &survey.peers, &looked.reaches, state.config.routing.overlay(), &past_the_stack);
    let (for_rows, device_stays) = (rows.clone(), looked.device.is_some());
    let written = kernel.run(move |kernel| kernel.write_nodes(&for_rows, device_stays)).await;
    let asked = Asked {
        port: state.config.routing.port(),
        // Nothing is led into the overlay before the rows are there by which it knows where to.
        overlay: written.is_ok(),
        own: survey.own.clone(),
        looked: looked.clone(),
    };
    let applied = blocking(move || apply(&asked, &pin)).await;
    let troubles = applied.as_ref().map(|applied| applied.troubles.clone()).unwrap_or_default();
    let published = state.published();
    let strays = strays(&survey.own, published.endpoints.values().map(|endpoint| &endpoint.spec.addresses[..]));
    let misplaced = state.index().misplaced();
    let network = Network {
        mtu: looked.mtu,
        device: looked.device.filter(|_| applied.is_ok()).map(|device| device.mtu),
        troubles: troubles.into_iter().chain(looked.troubles(&survey.own)).collect(),
        reaches: looked.reaches,
        faults: survey.faults.iter().chain(&looked.faults).cloned().chain(strays).chain(misplaced).collect(),
    };
    seen.tell(&state.config.node, &survey.own, &network);
    seen.tell_of_ipsec(looked.ipsec);
    state.set_network(network);
    let device = applied.as_ref().ok().and_then(|applied| applied.device);
    // In any case: what is gone would else be believed as long as anything of what is there is refused.
    let pruned = kernel.run(move |kernel| kernel.prune_nodes(&rows, device)).await;
    written.map_err(|error| error.to_string())?;
    applied?;
    pruned.map_err(|error| error.to_string())
}

/// Runs what blocks on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, RouteError> + Send + 'static) -> Result<T, String> {
    let result = tokio::task::spawn_blocking(work).await;
    result.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::RoutingMode;
    use apply::Looked;
    use device::{DEVICE, Programs};
    use palisade_cni::link::{Change, InterfaceAddress, MacAddress, Namespace, Netlink, ROUTE_PROTOCOL, Route, Veth, Watch, sysctl};
    use palisade_datapath_core::abi::OVERLAY_MAC;
    use palisade_loader::LoaderError;
    use palisade_policy::model::Node;
    use palisade_policy::shared::SharedMap;
    use std::cell::RefCell;
    use std::net::IpAddr;
    use way::Blocked;

    fn survey(own: &str, nodes: &SharedMap<String, Node>) -> Survey {
        survey::survey(own, nodes)
    }

    /// A node with these addresses and pod ranges.
    pub(crate) fn node(addresses: &[&str], ranges: &[&str]) -> Node {
        Node {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            pod_ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            ..Node::default()
        }
    }

    /// Notes what is attached and swept; whether the device was down when it was.
    #[derive(Default)]
    struct Noted(RefCell<Vec<String>>);

    impl Programs for Noted {
        fn attach(&self, index: u32) -> Result<(), LoaderError> {
            let link = Netlink::open().unwrap().link_by_index(index).unwrap().unwrap();
            self.0.borrow_mut().push(format!("attach {} {}", link.name, if link.up { "up" } else { "down" }));
            Ok(())
        }

        fn sweep(&self, kept: Option<u32>) -> Result<(), LoaderError> {
            self.0.borrow_mut().push(format!("sweep but {}", if kept.is_some() { DEVICE } else { "none" }));
            Ok(())
        }
    }

    /// Needs root, as all tests with network namespaces do.
    fn in_namespace(test: fn(&Stage)) {
        Namespace::create().unwrap().enter(|| test(&Stage::new())).unwrap();
    }

    /// Node `a` with 192.0.2.1/24 and 2001:db8::1/64 on a link, and a router at 192.0.2.254 to everywhere else.
    struct Stage {
        netlink: Netlink,
        link: u32,
        programs: Noted,
    }

    impl Stage {
        fn new() -> Self {
            let netlink = Netlink::open().unwrap();
            let veth = Veth {
                name: "up",
                mac: MacAddress::local(1),
                peer_name: "down",
                peer_mac: MacAddress::local(2),
                peer_namespace: None,
                mtu: 1500,
            };
            let link = netlink.create_veth(&veth).unwrap().index;
            netlink.add_address(link, "192.0.2.1/24".parse().unwrap()).unwrap();
            netlink.add_address(link, "2001:db8::1/64".parse().unwrap()).unwrap();
            netlink.set_up(link).unwrap();
            netlink.set_up(netlink.link("down").unwrap().unwrap().index).unwrap();
            let gateway = Route { protocol: 4, ..Route::default_via("192.0.2.254".parse().unwrap(), link) };
            netlink.add_route(&gateway).unwrap();
            Self { netlink, link, programs: Noted::default() }
        }

        fn try_put(&self, nodes: &SharedMap<String, Node>, mode: RoutingMode, port: u16) -> Result<Looked, RouteError> {
            let survey = survey("a", nodes);
            let looked = look(&survey, mode)?;
            apply(&Asked { port, overlay: true, own: survey.own, looked: looked.clone() }, &self.programs)?;
            Ok(looked)
        }

        fn put(&self, nodes: &SharedMap<String, Node>, mode: RoutingMode) -> Looked {
            self.try_put(nodes, mode, 4789).unwrap()
        }

        /// The routes to pod ranges: by which address, or by the overlay and from which address.
        fn routes(&self) -> Vec<String> {
            let device = self.device().map(|link| link.index);
            let ours = self.netlink.routes().unwrap().into_iter().filter(|route| route.protocol == ROUTE_PROTOCOL);
            let mut shown: Vec<_> = ours
                .map(|route| match (route.gateway, route.link == device && device.is_some()) {
                    (Some(gateway), _) => format!("{} via {gateway}", route.destination),
                    (None, true) => {
                        format!("{} vxlan from {}", route.destination, route.source.map_or("any".to_owned(), |source| source.to_string()))
                    }
                    (None, false) => format!("{} {:?}", route.destination, route.kind),
                })
                .collect();
            shown.sort();
            shown
        }

        fn device(&self) -> Option<palisade_cni::link::Link> {
            self.netlink.link(DEVICE).unwrap()
        }
    }

    #[test]
    fn routes_follow_the_nodes_and_leave_those_of_others_alone() {
        in_namespace(|stage| {
            // What is not ours to touch: a route of the administrator and one to a pod.
            let foreign = Route { protocol: 4, ..Route::via("10.9.0.0/24".parse().unwrap(), "192.0.2.9".parse().unwrap(), stage.link) };
            stage.netlink.add_route(&foreign).unwrap();
            stage.netlink.add_route(&Route::direct("10.1.0.5/32".parse().unwrap(), stage.link)).unwrap();
            let pod = "10.1.0.5/32 Unicast";

            let mut nodes = SharedMap::from([
                ("a".to_owned(), node(&["192.0.2.1"], &["10.1.0.0/24"])),
                ("b".to_owned(), node(&["192.0.2.2", "2001:db8::2"], &["10.2.0.0/24", "fd00:2::/64"])),
            ]);
            for mode in [RoutingMode::Native, RoutingMode::Auto] {
                let looked = stage.put(&nodes, mode);
                let wanted = ["10.1.0.0/24 Unreachable", pod, "10.2.0.0/24 via 192.0.2.2", "fd00:2::/64 via 2001:db8::2"];
                assert_eq!((stage.routes(), looked.mtu), (wanted.map(str::to_owned).to_vec(), 1500), "{mode:?}");
                assert_eq!(stage.device(), None, "everybody is on the link");
            }

            nodes.insert("b".to_owned(), node(&["192.0.2.7"], &["10.2.0.0/24"]));
            stage.put(&nodes, RoutingMode::Auto);
            assert_eq!(stage.routes(), ["10.1.0.0/24 Unreachable", pod, "10.2.0.0/24 via 192.0.2.7"]);

            // Another range of this node: what has an address of the old one keeps its route.
            nodes.remove(&"b".to_owned());
            nodes.insert("a".to_owned(), node(&["192.0.2.1"], &["10.7.0.0/24"]));
            stage.put(&nodes, RoutingMode::Auto);
            assert_eq!(stage.routes(), [pod, "10.7.0.0/24 Unreachable"]);
            let left: Vec<_> = stage.netlink.routes().unwrap().into_iter().map(|route| route.destination.to_string()).collect();
            assert!(left.contains(&"10.9.0.0/24".to_owned()), "{left:?}");
        });
    }

    #[test]
    fn the_overlay_carries_what_is_not_on_the_link_and_goes_with_the_last_that_needs_it() {
        in_namespace(|stage| {
            let mut nodes = SharedMap::from([
                ("a".to_owned(), node(&["192.0.2.1", "2001:db8::1"], &["10.1.0.0/24"])),
                ("b".to_owned(), node(&["192.0.2.2"], &["10.2.0.0/24"])),
                ("c".to_owned(), node(&["198.51.100.3"], &["10.3.0.0/24", "fd00:3::/64"])),
            ]);
            let looked = stage.put(&nodes, RoutingMode::Auto);
            let wanted = [
                "10.1.0.0/24 Unreachable",
                "10.2.0.0/24 via 192.0.2.2",
                "10.3.0.0/24 vxlan from 192.0.2.1",
                "fd00:3::/64 vxlan from 2001:db8::1",
            ];
            assert_eq!((stage.routes(), looked.mtu), (wanted.map(str::to_owned).to_vec(), 1450));
            let device = stage.device().unwrap();
            assert_eq!((device.mtu, device.up, device.mac), (1450, true, Some(MacAddress(OVERLAY_MAC))));
            let mode = device.vxlan.unwrap();
            assert!(mode.external && mode.port == 4789, "{mode:?}");
            assert_eq!(sysctl::read("net/ipv4/conf/palisade_vxlan/rp_filter").unwrap(), "0");
            let of_device = stage.netlink.addresses_of(device.index).unwrap();
            assert!(of_device.is_empty(), "{of_device:?}");
            assert_eq!(*stage.programs.0.borrow(), ["attach palisade_vxlan down", "sweep but palisade_vxlan"]);

            // The same again changes nothing; the MTU of the way does.
            stage.put(&nodes, RoutingMode::Auto);
            assert_eq!(stage.device().unwrap(), device);
            stage.netlink.set_mtu(stage.link, 1400).unwrap();
            assert_eq!(stage.put(&nodes, RoutingMode::Auto).mtu, 1350);
            assert_eq!(stage.device().unwrap(), palisade_cni::link::Link { mtu: 1350, ..device.clone() });

            // A route to `c` on the link: the overlay is of no use any more, and what goes there never has no route.
            let near = Route { protocol: 4, ..Route::direct("198.51.100.0/24".parse().unwrap(), stage.link) };
            stage.netlink.add_route(&near).unwrap();
            nodes.insert("c".to_owned(), node(&["198.51.100.3"], &["10.3.0.0/24"]));
            assert_eq!(stage.put(&nodes, RoutingMode::Auto).mtu, 1400);
            assert_eq!(stage.routes(), ["10.1.0.0/24 Unreachable", "10.2.0.0/24 via 192.0.2.2", "10.3.0.0/24 via 198.51.100.3"]);
            assert_eq!(stage.device(), None);
            assert_eq!(stage.programs.0.borrow().last().unwrap(), "sweep but none");

            // All by the overlay, and back.
            stage.put(&nodes, RoutingMode::Vxlan);
            assert_eq!(stage.routes()[1..], ["10.2.0.0/24 vxlan from 192.0.2.1", "10.3.0.0/24 vxlan from 192.0.2.1"]);
            stage.put(&nodes, RoutingMode::Native);
            assert_eq!(stage.routes()[1..], ["10.2.0.0/24 via 192.0.2.2", "10.3.0.0/24 via 198.51.100.3"]);
            assert_eq!(stage.device(), None);
        });
    }

    #[test]
    fn a_device_of_another_port_is_made_anew_and_one_of_somebody_else_is_left_alone() {
        in_namespace(|stage| {
            let nodes = SharedMap::from([
                ("a".to_owned(), node(&["192.0.2.1"], &["10.1.0.0/24"])),
                ("b".to_owned(), node(&["192.0.2.2"], &["10.2.0.0/24"])),
                ("c".to_owned(), node(&["198.51.100.3"], &["10.3.0.0/24"])),
            ]);
            stage.put(&nodes, RoutingMode::Auto);
            let before = stage.device().unwrap();
            stage.try_put(&nodes, RoutingMode::Auto, 8472).unwrap();
            let after = stage.device().unwrap();
            assert!(after.index != before.index && after.vxlan.unwrap().port == 8472 && after.up, "{after:?}");
            assert!(stage.routes().contains(&"10.3.0.0/24 vxlan from 192.0.2.1".to_owned()), "{:?}", stage.routes());

            // Somebody takes it down: its routes go, and come back.
            stage.netlink.set_down(after.index).unwrap();
            stage.try_put(&nodes, RoutingMode::Auto, 8472).unwrap();
            assert!(stage.device().unwrap().up && stage.routes().contains(&"10.3.0.0/24 vxlan from 192.0.2.1".to_owned()));

            stage.netlink.delete_link(after.index).unwrap();
            let [mac, other] = [MacAddress::local(8), MacAddress::local(9)];
            let veth = Veth { name: DEVICE, mac, peer_name: "other", peer_mac: other, peer_namespace: None, mtu: 1500 };
            let foreign = stage.netlink.create_veth(&veth).unwrap();
            let error = stage.try_put(&nodes, RoutingMode::Auto, 4789).unwrap_err();
            assert!(matches!(&error, RouteError::Foreign { kind } if kind == "veth"), "{error}");
            assert_eq!(stage.device(), Some(foreign), "it is not ours to remove");
            assert!(stage.routes().contains(&"10.2.0.0/24 via 192.0.2.2".to_owned()), "the native ones are set all the same");
            // Where nothing needs the overlay, nobody minds it.
            stage.put(&nodes, RoutingMode::Native);
        });
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        in_namespace(|stage| {
            let taken = std::net::UdpSocket::bind("0.0.0.0:4789").unwrap();
            let nodes = SharedMap::from([("c".to_owned(), node(&["198.51.100.3"], &["10.3.0.0/24"]))]);
            let error = stage.try_put(&nodes, RoutingMode::Vxlan, 4789).unwrap_err();
            assert!(matches!(error, RouteError::PortTaken { port: 4789 }), "{error}");
            drop(taken);
            stage.put(&nodes, RoutingMode::Vxlan);
            assert!(stage.device().unwrap().up);
        });
    }

    #[test]
    fn without_rows_nothing_new_goes_by_the_overlay() {
        in_namespace(|stage| {
            let nodes = SharedMap::from([
                ("a".to_owned(), node(&["192.0.2.1"], &["10.1.0.0/24"])),
                ("c".to_owned(), node(&["198.51.100.3"], &["10.3.0.0/24"])),
            ]);
            let survey = survey("a", &nodes);
            let looked = look(&survey, RoutingMode::Auto).unwrap();
            let asked = |overlay| Asked { port: 4789, overlay, own: survey.own.clone(), looked: looked.clone() };
            apply(&asked(false), &stage.programs).unwrap();
            assert_eq!((stage.device(), stage.routes()), (None, vec!["10.1.0.0/24 Unreachable".to_owned()]));
            apply(&asked(true), &stage.programs).unwrap();
            let (device, routes) = (stage.device(), stage.routes());
            assert_eq!(routes, ["10.1.0.0/24 Unreachable", "10.3.0.0/24 vxlan from 192.0.2.1"]);
            apply(&asked(false), &stage.programs).unwrap();
            assert_eq!((stage.device(), stage.routes()), (device, routes), "what was there goes on");
        });
    }

    #[test]
    fn a_route_that_is_refused_keeps_no_other_waiting_and_what_is_gone_goes() {
        in_namespace(|stage| {
            let mut nodes = SharedMap::from([
                ("a".to_owned(), node(&["192.0.2.1"], &["10.1.0.0/24"])),
                ("b".to_owned(), node(&["192.0.2.2"], &["10.2.0.0/24"])),
                ("c".to_owned(), node(&["192.0.2.3"], &["10.3.0.0/24"])),
            ]);
            stage.put(&nodes, RoutingMode::Native);
            nodes.remove(&"c".to_owned());
            nodes.insert("b".to_owned(), node(&["192.0.2.7"], &["10.2.0.0/24"]));
            nodes.insert("d".to_owned(), node(&["192.0.2.4"], &["10.4.0.0/24"]));
            let survey = survey("a", &nodes);
            let mut looked = look(&survey, RoutingMode::Native).unwrap();
            // The link of the way to `b` is gone meanwhile.
            looked.reaches[0].way = Way::Native { gateway: "192.0.2.7".parse().unwrap(), link: 999 };
            let asked = Asked { port: 4789, overlay: true, own: survey.own, looked };
            let error = apply(&asked, &stage.programs).unwrap_err();
            assert!(error.to_string().contains("10.2.0.0/24"), "{error}");
            let wanted = ["10.1.0.0/24 Unreachable", "10.2.0.0/24 via 192.0.2.2", "10.4.0.0/24 via 192.0.2.4"];
            assert_eq!(stage.routes(), wanted, "the old way to `b` stays until there is a new one");
        });
    }

    #[test]
    fn a_node_without_ipv6_reaches_the_pods_of_ipv4_and_names_what_it_does_not_reach() {
        in_namespace(|stage| {
            let nodes = SharedMap::from([
                ("a".to_owned(), node(&["192.0.2.1", "2001:db8::1"], &["10.1.0.0/24", "fd00:1::/64"])),
                ("b".to_owned(), node(&["192.0.2.2", "2001:db8::2"], &["10.2.0.0/24", "fd00:2::/64"])),
                ("c".to_owned(), node(&["2001:db8:9::3", "198.51.100.3"], &["10.3.0.0/24", "fd00:3::/64"])),
            ]);
            stage.put(&nodes, RoutingMode::Auto);
            assert_eq!(stage.routes().len(), 6);
            sysctl::write("net/ipv6/conf/all/disable_ipv6", "1").unwrap();
            sysctl::write("net/ipv6/conf/default/disable_ipv6", "1").unwrap();
            let looked = stage.put(&nodes, RoutingMode::Auto);
            let wanted = ["10.1.0.0/24 Unreachable", "10.2.0.0/24 via 192.0.2.2", "10.3.0.0/24 vxlan from 192.0.2.1"];
            assert_eq!(stage.routes(), wanted);
            assert_eq!(looked.device.map(|device| device.ipv6), Some(false));
            let nowhere: Vec<_> = looked.reaches.iter().filter(|reach| reach.way == Way::Nowhere(Blocked::NoIpv6)).collect();
            assert_eq!(nowhere.iter().map(|reach| reach.range.to_string()).collect::<Vec<_>>(), ["fd00:2::/64", "fd00:3::/64"]);
            let troubles: Vec<_> = looked.troubles(&survey("a", &nodes).own).collect();
            assert!(troubles.len() == 1 && troubles[0].contains("no IPv6"), "{troubles:?}");
        });
    }

    #[test]
    fn a_pod_range_where_this_machine_has_a_network_of_its_own_or_somebodys_route_is_left_alone_and_named() {
        in_namespace(|stage| {
            for address in ["10.9.0.5/24", "fd00:1::5/64", "10.8.0.129/25"] {
                stage.netlink.add_address(stage.link, address.parse().unwrap()).unwrap();
            }
            let foreign = Route { protocol: 4, ..Route::via("10.3.0.0/24".parse().unwrap(), "192.0.2.9".parse().unwrap(), stage.link) };
            stage.netlink.add_route(&foreign).unwrap();
            let others =
                || -> Vec<Route> { stage.netlink.routes().unwrap().into_iter().filter(|route| route.protocol != ROUTE_PROTOCOL).collect() };
            let before = others();
            let nodes = SharedMap::from([
                // The connected network itself; for `b`, something around it.
                ("a".to_owned(), node(&["192.0.2.1"], &["10.9.0.0/24", "fd00:1::/64"])),
                ("b".to_owned(), node(&["192.0.2.2", "2001:db8::2"], &["10.8.0.0/24", "fd00:2::/64"])),
                ("c".to_owned(), node(&["198.51.100.3"], &["10.3.0.0/24"])),
                ("d".to_owned(), node(&["192.0.2.4"], &["10.4.0.0/24"])),
            ]);
            let looked = stage.put(&nodes, RoutingMode::Auto);
            let after = others();
            assert!(before.iter().all(|route| after.contains(route)), "nothing is taken away: {before:?} {after:?}");
            assert_eq!(stage.routes(), ["10.4.0.0/24 via 192.0.2.4", "fd00:2::/64 via 2001:db8::2"]);
            let named: Vec<_> = looked.faults.iter().map(|fault| (fault.node.as_str(), fault.what.kind(), fault.what.in_use())).collect();
            let fault = |node, range: &str| (node, "pod-range-in-use", Some(range.parse().unwrap()));
            assert_eq!(named, [fault("a", "10.9.0.0/24"), fault("a", "fd00:1::/64"), fault("b", "10.8.0.0/24"), fault("c", "10.3.0.0/24")]);
            let way = |name: &str| looked.reaches.iter().find(|reach| reach.node == name).unwrap().way.clone();
            assert_eq!((way("b"), way("c")), (Way::Nowhere(Blocked::InUse), Way::Nowhere(Blocked::InUse)));
        });
    }

    #[test]
    fn an_overlay_that_takes_no_ipv6_carries_ipv4_and_says_so() {
        in_namespace(|stage| {
            let nodes = SharedMap::from([
                ("a".to_owned(), node(&["192.0.2.1"], &["10.1.0.0/24"])),
                ("c".to_owned(), node(&["198.51.100.3"], &["10.3.0.0/24", "fd00:3::/64"])),
            ]);
            // 1250 bytes for the overlay's device: the kernel gives it no IPv6.
            stage.netlink.set_mtu(stage.link, 1300).unwrap();
            let survey = survey("a", &nodes);
            let asked = || Asked { port: 4789, overlay: true, own: survey.own.clone(), looked: look(&survey, RoutingMode::Auto).unwrap() };
            let troubles = apply(&asked(), &stage.programs).unwrap().troubles;
            assert_eq!(stage.routes(), ["10.1.0.0/24 Unreachable", "10.3.0.0/24 vxlan from 192.0.2.1"]);
            assert!(troubles.iter().any(|trouble| trouble.contains("IPv6")), "{troubles:?}");
            // A device that had none before is given it once it can be.
            stage.netlink.set_mtu(stage.link, 1500).unwrap();
            sysctl::write("net/ipv6/conf/default/disable_ipv6", "1").unwrap();
            let troubles = apply(&asked(), &stage.programs).unwrap().troubles;
            assert!(stage.routes().iter().any(|route| route.starts_with("fd00:3::/64")) && troubles.is_empty(), "{troubles:?}");
        });
    }

    #[test]
    fn ipsec_policies_of_the_node_are_seen() {
        in_namespace(|stage| {
            let nodes = SharedMap::from([("b".to_owned(), node(&["198.51.100.2"], &["10.2.0.0/24"]))]);
            assert!(!stage.put(&nodes, RoutingMode::Auto).ipsec);
            let policy = "xfrm policy add src 192.0.2.1 dst 198.51.100.2 proto udp dport 4789 dir out action block";
            assert!(std::process::Command::new("ip").args(policy.split(' ')).status().unwrap().success());
            assert!(stage.put(&nodes, RoutingMode::Auto).ipsec);
        });
    }

    #[test]
    fn no_route_comes_from_an_address_of_which_duplicates_are_still_looked_for() {
        in_namespace(|stage| {
            stage.netlink.set_down(stage.link).unwrap();
            sysctl::write("net/ipv6/conf/up/dad_transmits", "100").unwrap();
            stage.netlink.set_up(stage.link).unwrap();
            // The kernel makes the address of the link once it has noticed that the link is up.
            let found = (0..200).find_map(|_| {
                std::thread::sleep(Duration::from_millis(10));
                stage.netlink.addresses_of(stage.link).unwrap().into_iter().find(|address| address.tentative)
            });
            let tentative = found.expect("an address of the link").address.addr().to_string();
            let nodes = SharedMap::from([("a".to_owned(), node(&["192.0.2.1", &tentative], &["10.1.0.0/24"]))]);
            let sources = look(&survey("a", &nodes), RoutingMode::Auto).unwrap().sources;
            assert_eq!(sources, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        });
    }

    #[test]
    fn the_node_is_never_looked_for_behind_the_overlay_or_a_pod() {
        in_namespace(|stage| {
            let nodes = SharedMap::from([("c".to_owned(), node(&["198.51.100.3"], &["10.3.0.0/24"]))]);
            stage.put(&nodes, RoutingMode::Vxlan);
            let device = stage.device().unwrap().index;
            stage.netlink.add_route(&Route { protocol: 4, ..Route::direct("198.51.100.3/32".parse().unwrap(), device) }).unwrap();
            let way = |looked: Looked| looked.reaches[0].clone();
            let reach = way(look(&survey("a", &nodes), RoutingMode::Auto).unwrap());
            assert_eq!((reach.way, reach.mtu), (Way::Vxlan("198.51.100.3".parse::<IpAddr>().unwrap()), None));
        });
    }

    #[test]
    fn changes_of_links_addresses_and_routes_are_told() {
        in_namespace(|stage| {
            let watch = Watch::open().unwrap();
            // Others come as well: that a link carries, the kernel tells a moment after it is up.
            let told = |wanted: &dyn Fn(&Change) -> bool| {
                let began = Instant::now();
                while !watch.changes().unwrap().iter().any(wanted) {
                    assert!(began.elapsed() < Duration::from_secs(10), "it is not told");
                    std::thread::sleep(Duration::from_millis(10));
                }
            };
            stage.netlink.set_mtu(stage.link, 1400).unwrap();
            told(&|change| matches!(change, Change::Link(link) if link.name == "up" && link.mtu == 1400));
            // As a machine makes it, and not we: it is tentative at first, and the end of that is told, too.
            let added = std::process::Command::new("ip").args("address add 2001:db8::7/64 dev up".split(' ')).status().unwrap();
            assert!(added.success());
            for wanted in [true, false] {
                let is = |address: &InterfaceAddress| address.address == "2001:db8::7/64".parse().unwrap() && address.tentative == wanted;
                told(&|change| matches!(change, Change::Address(address) if is(address)));
            }
            stage.netlink.delete_link(stage.link).unwrap();
            told(&|change| matches!(change, Change::LinkGone(link) if link.name == "up"));
        });
    }
}
