use super::{LinkError, Netlink};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeader, AddressHeaderFlags, AddressMessage, AddressScope, CacheInfo,
};
use nix::libc;
use std::net::IpAddr;

const HEADER: usize = 8;

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// Index of the interface.
    pub link: u32,
    /// The address, with the length of its network.
    pub address: IpNet,
    /// Whether it cannot be used yet because duplicates are still looked for (IPv6).
    pub tentative: bool,
}

impl Netlink {
    /// Gives an interface an address, or does nothing when it has it. IPv6 addresses are usable at once: no search
    /// for duplicates is made, because whoever assigns addresses here knows that there are none.
    pub fn add_address(&self, link: u32, address: IpNet) -> Result<(), LinkError> {
        let mut message = message(link, address);
        if address.addr().is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let action = || format!("add address {address} to link number {link}");
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE, action)
    }

    /// Gives an interface an address that answers, but that the node's own packets do not choose as their source as
    /// long as there is another: the address of a gateway that has no other purpose.
    pub fn add_gateway_address(&self, link: u32, address: IpNet) -> Result<(), LinkError> {
        let mut message = message(link, address);
        if address.addr().is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            // Valid for ever, preferred never: what the kernel calls deprecated.
            let mut lifetime = CacheInfo::default();
            lifetime.ifa_valid = u32::MAX;
            message.attributes.push(AddressAttribute::CacheInfo(lifetime));
        } else {
            message.header.scope = AddressScope::Host;
        }
        let action = || format!("add gateway address {address} to link number {link}");
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE, action)
    }

    /// Takes an address away from an interface. False: it did not have it.
    pub fn delete_address(&self, link: u32, address: IpNet) -> Result<bool, LinkError> {
        let action = || format!("delete address {address} of link number {link}");
        match self.change(RouteNetlinkMessage::DelAddress(message(link, address)), 0, action) {
            Err(error) if error.is_missing() => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// The addresses of all interfaces, both families.
    pub fn addresses(&self) -> Result<Vec<InterfaceAddress>, LinkError> {
        self.list(RouteNetlinkMessage::GetAddress(AddressMessage::default()), || "list addresses".into(), read)
    }

    /// The addresses of one interface, both families.
    pub fn addresses_of(&self, link: u32) -> Result<Vec<InterfaceAddress>, LinkError> {
        Ok(self.addresses()?.into_iter().filter(|address| address.link == link).collect())
    }
}

fn message(link: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = super::family(address.addr());
    message.header.index = link;
    message.header.prefix_len = address.prefix_len();
    message.header.scope = match address.addr() {
        IpAddr::V4(v4) if v4.is_link_local() => AddressScope::Link,
        IpAddr::V6(v6) if v6.is_unicast_link_local() => AddressScope::Link,
        _ => AddressScope::Universe,
    };
    message.attributes = vec![AddressAttribute::Address(address.addr()), AddressAttribute::Local(address.addr())];
    message
}

pub(super) fn read(payload: &[u8]) -> Result<Option<InterfaceAddress>, String> {
    let header = AddressHeader::parse(payload).map_err(|error| error.to_string())?;
    let mut flags = u32::from(header.flags.bits());
    let (mut local, mut address) = (None, None);
    for attribute in NlasIterator::new(payload.get(HEADER..).unwrap_or_default()) {
        let attribute = attribute.map_err(|error| error.to_string())?;
        match attribute.kind() {
            libc::IFA_LOCAL => local = super::ip(attribute.value()),
            libc::IFA_ADDRESS => address = super::ip(attribute.value()),
            libc::IFA_FLAGS => flags = super::device::number(attribute.value()).unwrap_or(flags),
            _ => {}
        }
    }
    // On a point-to-point link IFA_ADDRESS is the other end's; IPv6 has no IFA_LOCAL then.
    let Some(ip) = local.or(address) else { return Ok(None) };
    let address = IpNet::new(ip, header.prefix_len).map_err(|error| error.to_string())?;
    let tentative = flags & AddressFlags::Tentative.bits() != 0;
    Ok(Some(InterfaceAddress { link: header.index, address, tentative }))
}
