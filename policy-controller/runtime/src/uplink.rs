//! The interfaces by which clients outside the cluster reach services, and the programs on them.

use crate::kernel::chain;
use crate::news::Told;
use crate::problem::Part;
use crate::route::DEVICE;
use crate::state::State;
use palisade_cni::command::is_host_interface;
use palisade_cni::link::{InterfaceAddress, Link, LinkError, Netlink, Route};
use palisade_loader::{LoaderError, PinDir, Role, attach, detach, is_attached, pinned_links};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// How often the interfaces are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Why an uplink may be without its programs.
#[derive(Debug, thiserror::Error)]
enum UplinkError {
    /// The interfaces cannot be asked for.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It cannot be asked which interfaces have programs.
    #[error("{}", chain(.0))]
    Loader(#[from] LoaderError),
}

/// Which interfaces are uplinks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// The names that they are known by, `*` for any characters; none: by addresses and routes.
    names: Vec<String>,
    /// The addresses of the node.
    addresses: BTreeSet<IpAddr>,
    /// Those that are none in any case: the pods'.
    endpoints: BTreeSet<u32>,
}

/// What became of the uplinks.
#[derive(Debug, Default, PartialEq, Eq)]
struct Kept {
    /// Those that have the programs, by their indices.
    attached: BTreeMap<u32, String>,
    /// What could not be done, and why; the others do not wait for it.
    failed: Vec<String>,
}

/// What there is on the node.
#[derive(Debug, Default)]
struct Seen {
    links: Vec<Link>,
    addresses: Vec<InterfaceAddress>,
    routes: Vec<Route>,
}

/// Keeps the programs on the uplinks of the node, and on no other interface, for ever. What is attached stays when the agent ends; where the
/// outside is not served, what an earlier agent has left is removed.
pub async fn follow(state: Arc<State>) -> Infallible {
    let mut warned = false;
    let mut told = Told::default();
    loop {
        // The programs are pinned, and what an earlier agent has attached is replaced by then. Before everything was read, the node's addresses
        // may only not have been listed yet.
        if state.problems.of(Part::Datapath).is_none() && state.index().synced() {
            let wanted = state.config.serves_outside().then(|| wanted(&state));
            let pin = PinDir::new(&state.config.pin_dir);
            let result = tokio::task::spawn_blocking(move || keep(&pin, Role::Uplink, wanted.as_ref())).await;
            let (attached, failed) = match result
                .map_err(|error| error.to_string())
                .and_then(|result| result.map_err(|error| error.to_string()))
            {
                Ok(kept) => {
                    let none = kept == Kept::default() && state.config.serves_outside();
                    if none && !warned {
                        tracing::warn!(
                            "no interface has an address of the node or a default route: services are not reached from outside; --uplinks names interfaces"
                        );
                    }
                    warned = none;
                    (kept.attached.into_values().collect(), kept.failed)
                }
                // Who has the programs keeps them.
                Err(error) => (state.uplinks(), vec![error]),
            };
            for failure in told.news(failed.clone(), String::eq) {
                tracing::warn!(failure, "an uplink is not as it should be; it is tried again every second, and the others go on");
            }
            tell(&state, attached, failed);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Tells which uplinks have the programs, and what failed. The node is not ready where none has them of those that should.
fn tell(state: &State, attached: Vec<String>, failed: Vec<String>) {
    match attached.is_empty() && !failed.is_empty() && state.config.serves_outside() {
        true => {
            let failed = failed.join("; ");
            state.problems.set(Part::Uplinks, format!("clients outside reach no service by this node: {failed}"));
        }
        false => state.problems.clear(Part::Uplinks),
    }
    state.set_uplinks(attached, failed);
}

fn wanted(state: &State) -> Wanted {
    let addresses = state.index().services().place.addresses;
    let endpoints = state.published().endpoints.values().map(|endpoint| endpoint.spec.host_index).collect();
    Wanted { names: state.config.uplinks.clone(), addresses, endpoints }
}

/// Gives the programs of a role to those that are wanted, and takes them from all others; `None`: nobody is to have them. One interface where
/// that fails keeps no other from it.
fn keep(pin: &PinDir, role: Role, wanted: Option<&Wanted>) -> Result<Kept, UplinkError> {
    // Asked first: an index that is pinned then, and stands for no interface afterwards, was not given anew in between.
    let pinned = pinned_links(pin, role)?;
    let mut kept = Kept::default();
    let uplinks = match wanted {
        Some(wanted) => {
            let seen = look(wanted)?;
            kept.failed.extend(unfit(wanted, &seen));
            choose(wanted, &seen)
        }
        None => BTreeMap::new(),
    };
    for index in pinned.into_iter().filter(|index| !uplinks.contains_key(index)) {
        match detach(pin, role, index) {
            Ok(()) => tracing::info!(index, "an interface is no uplink any more"),
            Err(error) => kept.failed.push(format!("the interface of index {index} keeps the programs: {}", chain(&error))),
        }
    }
    for (index, name) in uplinks {
        match give(pin, role, &name, index) {
            Ok(()) => drop(kept.attached.insert(index, name)),
            // It went meanwhile, or has another name: seen at the next look.
            Err(LoaderError::InterfaceMissing { .. }) => {}
            Err(error) => kept.failed.push(format!("{name}: {}", chain(&error))),
        }
    }
    Ok(kept)
}

/// Gives an interface the programs where it does not have them.
fn give(pin: &PinDir, role: Role, name: &str, index: u32) -> Result<(), LoaderError> {
    if !is_attached(pin, role, name, index)? {
        attach(pin, role, name, index)?;
        tracing::info!(interface = name, index, "clients outside reach services by this interface");
    }
    Ok(())
}

fn look(wanted: &Wanted) -> Result<Seen, LinkError> {
    let netlink = Netlink::open()?;
    let links = netlink.links()?;
    // Names say it all.
    if !wanted.names.is_empty() {
        return Ok(Seen { links, ..Seen::default() });
    }
    Ok(Seen { links, addresses: netlink.addresses()?, routes: netlink.routes()? })
}

/// The uplinks among the interfaces, by their indices: Ethernet devices that carry an address of the node or a default route, or that are named.
fn choose(wanted: &Wanted, seen: &Seen) -> BTreeMap<u32, String> {
    let has_address = |index| seen.addresses.iter().any(|own| own.link == index && wanted.addresses.contains(&own.address.addr()));
    let has_default_route = |index| seen.routes.iter().any(|route| route.link == Some(index) && route.destination.prefix_len() == 0);
    let is_chosen = |link: &Link| {
        if !wanted.names.is_empty() {
            return wanted.names.iter().any(|name| fits(name, &link.name));
        }
        // A bridge may have a default route into a network of containers or guests.
        let is_bridge = link.kind.as_deref() == Some("bridge");
        has_address(link.index) || (!is_bridge && has_default_route(link.index))
    };
    // What comes by the overlay is no client outside the cluster, nor is a pod, also one that is just being wired and is no endpoint yet.
    let is_other = |link: &Link| !wanted.endpoints.contains(&link.index) && !is_host_interface(&link.name) && link.name != DEVICE;
    let uplinks = seen.links.iter().filter(|link| is_ethernet(link) && is_other(link) && is_chosen(link));
    uplinks.map(|link| (link.index, link.name.clone())).collect()
}

/// The loopback device has an address of Ethernet's length, of zeroes.
fn is_ethernet(link: &Link) -> bool {
    link.mac.is_some_and(|mac| mac.0 != [0; 6])
}

/// What keeps interfaces that are named, each by all of its name, from being uplinks.
fn unfit(wanted: &Wanted, seen: &Seen) -> impl Iterator<Item = String> {
    let named = seen.links.iter().filter(|link| !is_ethernet(link) && wanted.names.contains(&link.name));
    named.map(|link| {
        format!("{}: it has no Ethernet headers: take it from --uplinks, and let services be reached by another interface", link.name)
    })
}

/// Whether a name fits a pattern in which `*` stands for any characters.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(before) else { return false };
    (0..=rest.len()).filter_map(|from| rest.get(from..)).any(|rest| fits(after, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AgentConfig, Source, Switch};
    use palisade_cni::link::{MacAddress, Veth};
    use palisade_loader::{Datapath, Sizes};
    use palisade_test_support::private_host;

    fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
        let mac = if name == "lo" { MacAddress([0; 6]) } else { MacAddress::local(index.into()) };
        Link { index, name: name.to_owned(), mac: Some(mac), mtu: 1500, up: true, kind: kind.map(str::to_owned), peer: None, vxlan: None }
    }

    fn wanted(addresses: &[&str]) -> Wanted {
        Wanted { addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(), ..Wanted::default() }
    }

    fn names(wanted: &Wanted, seen: &Seen) -> Vec<String> {
        choose(wanted, seen).into_values().collect()
    }

    /// A node with two networks, containers of somebody else, an overlay, a tunnel and a pod.
    fn node() -> Seen {
        let address = |link, address: &str| InterfaceAddress { link, address: address.parse().unwrap(), tentative: false };
        let default = |link| Route::default_via("192.0.2.254".parse().unwrap(), link);
        Seen {
            links: vec![
                link(1, "lo", None),
                link(2, "eth0", None),
                link(3, "eth1", None),
                link(4, "docker0", Some("bridge")),
                link(5, "palisade_vxlan", Some("vxlan")),
                Link { mac: None, ..link(6, "tun0", Some("tun")) },
                link(7, "pal06d4a1cd542", Some("veth")),
                link(8, "br0", Some("bridge")),
                link(9, "delegated", Some("veth")),
            ],
            addresses: vec![
                address(1, "192.0.2.2/32"),
                address(2, "192.0.2.1/24"),
                address(4, "172.17.0.1/16"),
                address(5, "192.0.2.1/32"),
                address(6, "192.0.2.1/32"),
                address(7, "169.254.1.1/32"),
                address(8, "2001:db8::1/64"),
            ],
            routes: vec![default(3), default(4), default(6), Route::direct("192.0.2.0/24".parse().unwrap(), 7)],
        }
    }

    #[test]
    fn an_uplink_is_an_ethernet_device_with_an_address_of_the_node_or_a_default_route() {
        assert_eq!(names(&wanted(&["192.0.2.1", "192.0.2.2", "2001:db8::1"]), &node()), ["eth0", "eth1", "br0"]);
        assert_eq!(names(&wanted(&[]), &node()), ["eth1"]);
    }

    #[test]
    fn named_uplinks_are_those_alone_and_never_a_pods_interface_nor_the_overlays_device() {
        let named = |names: &[&str]| Wanted {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            endpoints: [9].into(),
            ..wanted(&["192.0.2.1"])
        };
        assert_eq!(names(&named(&["eth1"]), &node()), ["eth1"]);
        assert_eq!(names(&named(&["eth*", "docker0"]), &node()), ["eth0", "eth1", "docker0"]);
        // One pod's is an endpoint's, the other's is just being wired.
        assert_eq!(names(&named(&["*"]), &node()), ["eth0", "eth1", "docker0", "br0"]);
        assert!(names(&named(&["pal*", "palisade_vxlan", "pal06d4a1cd542"]), &node()).is_empty());
        assert!(names(&named(&["wlan0"]), &node()).is_empty());
        let told = |names: &[&str]| unfit(&named(names), &node()).collect::<Vec<_>>();
        let of_tunnel = told(&["eth0", "tun0"]);
        assert!(of_tunnel.len() == 1 && of_tunnel[0].starts_with("tun0: it has no Ethernet headers"), "{of_tunnel:?}");
        assert!(told(&["*", "eth1"]).is_empty());
    }

    #[test]
    fn an_asterisk_stands_for_any_characters() {
        for (pattern, name) in [("eth0", "eth0"), ("eth*", "eth"), ("en*s*", "enp0s3"), ("*", "x"), ("*0", "eth10"), ("a**b", "ab")] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("eth", "eth0"), ("eth0", "eth"), ("*1", "eth0"), ("en*s*", "enp0"), ("", "eth0")] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }

    /// Needs root, as all tests with network namespaces do.
    #[test]
    fn programs_follow_the_uplinks_and_nothing_is_left_where_the_outside_is_not_served() {
        private_host(|host| {
            let base = host.bpffs().join("palisade");
            programs_follow(&base);
            std::fs::remove_dir_all(base).unwrap();
        });
    }

    fn programs_follow(base: &std::path::Path) {
        // Which programs is not the question.
        const ROLE: Role = Role::Endpoint;
        let pin = PinDir::new(base);
        let _datapath = Datapath::open(&pin, &Sizes::default()).unwrap();
        let netlink = Netlink::open().unwrap();
        let make = |name: &str, peer_name: &str, number: u64| {
            let [mac, peer_mac] = [number, number + 100].map(MacAddress::local);
            netlink.create_veth(&Veth { name, mac, peer_name, peer_mac, peer_namespace: None, mtu: 1500 }).unwrap().index
        };
        let (first, second) = (make("first", "one", 1), make("second", "two", 2));
        let own = "192.0.2.1/24".parse().unwrap();
        netlink.add_address(first, own).unwrap();
        let wanted = wanted(&["192.0.2.1"]);
        let keep = |wanted: Option<&Wanted>| keep(&pin, ROLE, wanted).unwrap().attached.into_keys().collect::<Vec<_>>();
        let attached = || [("first", first), ("second", second)].map(|(name, index)| is_attached(&pin, ROLE, name, index).unwrap());
        assert_eq!((keep(Some(&wanted)), attached()), (vec![first], [true, false]));
        assert_eq!((keep(Some(&wanted)), attached()), (vec![first], [true, false]), "nothing changes");
        // Somebody takes them off.
        detach(&pin, ROLE, first).unwrap();
        assert_eq!((keep(Some(&wanted)), attached()), (vec![first], [true, false]));
        // The address moves.
        netlink.delete_address(first, own).unwrap();
        netlink.add_address(second, own).unwrap();
        assert_eq!((keep(Some(&wanted)), attached()), (vec![second], [false, true]));
        // The interface goes, and with it what is pinned.
        netlink.delete_link(second).unwrap();
        assert_eq!((keep(Some(&wanted)), pinned_links(&pin, ROLE).unwrap()), (vec![], BTreeSet::new()));
        netlink.add_address(first, own).unwrap();
        assert_eq!(keep(Some(&wanted)), [first]);
        // Switched off.
        assert_eq!((keep(None), attached(), pinned_links(&pin, ROLE).unwrap()), (vec![], [false, false], BTreeSet::new()));
        netlink.delete_link(first).unwrap();
    }

    /// Needs root, as all tests with network namespaces do.
    #[test]
    fn an_uplink_that_cannot_have_the_programs_keeps_no_other_from_them_and_is_tried_again() {
        private_host(|host| {
            let base = host.bpffs().join("palisade");
            one_fails(&base);
            std::fs::remove_dir_all(base).unwrap();
        });
    }

    fn one_fails(base: &std::path::Path) {
        const ROLE: Role = Role::Endpoint;
        let pin = PinDir::new(base);
        let _datapath = Datapath::open(&pin, &Sizes::default()).unwrap();
        let netlink = Netlink::open().unwrap();
        let [mac, peer_mac] = [1, 2].map(MacAddress::local);
        let veth = Veth { name: "first", mac, peer_name: "second", peer_mac, peer_namespace: None, mtu: 1500 };
        let first = netlink.create_veth(&veth).unwrap().index;
        let second = netlink.link("second").unwrap().unwrap().index;
        let wanted = Wanted { names: vec!["first".to_owned(), "second".to_owned()], ..Wanted::default() };
        // A link cannot take the name of a directory.
        let in_the_way = |index: u32| pin.links_dir().join(format!("{index}-from_pod"));
        std::fs::create_dir_all(in_the_way(first)).unwrap();
        let config = AgentConfig::new("node", Source::Directory("/nowhere".into()));
        let state = State::new(AgentConfig { services_outside: Switch::On, ..config });
        let tell = |kept: Kept| tell(&state, kept.attached.into_values().collect(), kept.failed);
        let problem = |state: &State| state.problems.of(Part::Uplinks);
        for _ in 0..2 {
            let kept = keep(&pin, ROLE, Some(&wanted)).unwrap();
            assert_eq!(kept.attached.keys().copied().collect::<Vec<_>>(), [second]);
            assert!(kept.failed.len() == 1 && kept.failed[0].starts_with("first: "), "{:?}", kept.failed);
            tell(kept);
            assert_eq!((problem(&state), state.uplinks(), state.uplinks_missing().len()), (None, vec!["second".to_owned()], 1));
        }
        // Where none is left, the node is not ready.
        let only = Wanted { names: vec!["first".to_owned()], ..Wanted::default() };
        tell(keep(&pin, ROLE, Some(&only)).unwrap());
        assert!(problem(&state).is_some_and(|problem| problem.contains("first: ")), "{:?}", problem(&state));
        std::fs::remove_dir(in_the_way(first)).unwrap();
        let kept = keep(&pin, ROLE, Some(&wanted)).unwrap();
        assert_eq!((kept.attached.len(), &kept.failed[..]), (2, &[][..]));
        tell(kept);
        assert_eq!((problem(&state), state.uplinks_missing().len()), (None, 0));
        keep(&pin, ROLE, None).unwrap();
        netlink.delete_link(first).unwrap();
    }
}
