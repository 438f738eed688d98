use super::names;
use crate::ipam::Owner;
use crate::link::{LinkError, MacAddress, Namespace, Netlink, Route, Veth, sysctl};
use crate::spec::{Code, Error};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where a pod's IPv4 packets go. Every host-side interface answers for it; nobody outside sees it.
pub(super) const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Where a pod's IPv6 packets go.
pub(super) const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// A pod's veth.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) host: Netlink,
    pub(super) host_interface: String,
    pub(super) host_index: u32,
    pub(super) host_mac: MacAddress,
    pub(super) pod: Netlink,
    pub(super) pod_index: u32,
    pub(super) pod_mac: MacAddress,
}

/// The gateway of an address's family.
pub(super) fn gateway(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => GATEWAY_V4.into(),
        IpAddr::V6(_) => GATEWAY_V6.into(),
    }
}

/// Those of the node's ranges whose family the node speaks.
pub(super) fn usable_ranges(ranges: &[IpNet]) -> Result<Vec<IpNet>, Error> {
    let ipv6 = sysctl::ipv6_is_on()?;
    let usable: Vec<IpNet> = ranges.iter().copied().filter(|range| ipv6 || range.addr().is_ipv4()).collect();
    if usable.is_empty() && !ranges.is_empty() {
        let message = "the node has only an IPv6 pod range, but IPv6 is turned off on it: set the sysctl net.ipv6.conf.all.disable_ipv6=0";
        return Err(Error::new(Code::Network, message));
    }
    Ok(usable)
}

impl Wire {
    /// Fails when a name that the veth needs is taken, before anything is made. What has it is left alone.
    pub(super) fn require_free(owner: &Owner, namespace: &Namespace) -> Result<(), Error> {
        let interface = &owner.attachment.interface;
        let host_interface = names::host_interface(owner);
        if Netlink::open_in(namespace)?.link(interface)?.is_some() {
            let message = format!("the container already has an interface {interface}: send DEL before ADD, or choose another CNI_IFNAME");
            return Err(Error::new(Code::InvalidEnvironment, message));
        }
        if Netlink::open()?.link(&host_interface)?.is_some() {
            let message = format!("the node already has the interface {host_interface} of this attachment: send DEL before ADD");
            return Err(Error::new(Code::InvalidEnvironment, message));
        }
        Ok(())
    }

    /// Makes the veth, both ends down; the pod's with this Ethernet address, where one is asked for.
    pub(super) fn create(owner: &Owner, namespace: &Namespace, mtu: u32, mac: Option<MacAddress>) -> Result<Self, Error> {
        let host = Netlink::open()?;
        let pod = Netlink::open_in(namespace)?;
        let interface = &owner.attachment.interface;
        let host_interface = names::host_interface(owner);
        let (host_mac, pod_mac) = (names::host_mac(owner), mac.unwrap_or_else(|| names::pod_mac(owner)));
        let link = host.create_veth(&Veth {
            name: &host_interface,
            mac: host_mac,
            peer_name: interface,
            peer_mac: pod_mac,
            peer_namespace: Some(namespace),
            mtu,
        })?;
        let found = pod.link(interface).and_then(|link| {
            link.ok_or_else(|| LinkError::NoNamespace {
                path: interface.into(),
                reason: "the interface vanished right after it was made".into(),
            })
        });
        match found {
            Ok(found) => Ok(Self { host, host_interface, host_index: link.index, host_mac, pod, pod_index: found.index, pod_mac }),
            Err(error) => {
                let _ = host.delete_link(link.index);
                Err(error.into())
            }
        }
    }

    /// Removes both ends; fine when they are gone.
    pub(super) fn remove(host_interface: &str) -> Result<(), Error> {
        let host = Netlink::open()?;
        if let Some(link) = host.link(host_interface)? {
            host.delete_link(link.index)?;
        }
        Ok(())
    }

    /// Settings and addresses of both ends, while they are still down.
    pub(super) fn configure(&self, interface: &str, namespace: &Namespace, addresses: &[IpAddr]) -> Result<(), Error> {
        let host = &self.host_interface;
        sysctl::write(&format!("net/ipv4/conf/{host}/forwarding"), "1")?;
        // Strict is right here: the route to the pod is this interface.
        sysctl::write(&format!("net/ipv4/conf/{host}/rp_filter"), "1")?;
        sysctl::write(&format!("net/ipv4/conf/{host}/accept_redirects"), "0")?;
        sysctl::write(&format!("net/ipv4/conf/{host}/send_redirects"), "0")?;
        // The host's end has the gateway's address and no other; it believes no router of a pod.
        ipv6_settings(host, &[("addr_gen_mode", "1"), ("accept_dad", "0"), ("accept_ra", "0"), ("accept_redirects", "0")])?;
        let ipv6 = addresses.iter().any(IpAddr::is_ipv6);
        if ipv6 {
            ipv6_settings(host, &[("disable_ipv6", "0"), ("forwarding", "1")])?;
            // Link-local address from the Ethernet address: the datapath knows it by that.
            let pod = [("disable_ipv6", "0"), ("addr_gen_mode", "0"), ("accept_dad", "0"), ("accept_ra", "0"), ("accept_redirects", "0")];
            namespace.enter(|| ipv6_settings(interface, &pod))??;
        }
        for address in addresses {
            let prefix = if address.is_ipv6() { 64 } else { 32 };
            self.host.add_gateway_address(self.host_index, IpNet::new_assert(gateway(*address), prefix))?;
            self.pod.add_address(self.pod_index, IpNet::from(*address))?;
        }
        Ok(())
    }

    /// Sets both ends up, and adds what needs them up: neighbours and routes.
    pub(super) fn raise(&self, addresses: &[IpAddr], routes: &[IpNet]) -> Result<(), Error> {
        self.host.set_up(self.host_index)?;
        self.pod.set_up(self.pod_index)?;
        for address in addresses {
            let gateway = gateway(*address);
            self.host.set_neighbour(self.host_index, *address, self.pod_mac)?;
            self.pod.set_neighbour(self.pod_index, gateway, self.host_mac)?;
            // Not replaced: an address that another pod has must not be taken away from it.
            self.host.add_route(&Route::direct(IpNet::from(*address), self.host_index)).map_err(|error| {
                let other = if error.is_exists() { ": another interface of this node has the address; remove its route" } else { "" };
                Error::new(Code::Network, format!("{error}{other}"))
            })?;
        }
        for route in routes {
            self.pod.add_route(&Route::via(*route, gateway(route.addr()), self.pod_index))?;
        }
        Ok(())
    }
}

/// Writes IPv6 settings of an interface, where there is IPv6.
fn ipv6_settings(interface: &str, settings: &[(&str, &str)]) -> Result<(), LinkError> {
    for (setting, value) in settings {
        let name = format!("net/ipv6/conf/{interface}/{setting}");
        if sysctl::read_if_any(&name)?.is_some() {
            sysctl::write(&name, value)?;
        }
    }
    Ok(())
}
