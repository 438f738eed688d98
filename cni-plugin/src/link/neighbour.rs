use super::{LinkError, MacAddress, Netlink};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourHeader, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::RouteType;
use nix::libc;
use std::net::IpAddr;

const HEADER: usize = 12;

/// What an interface knows of an address on its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Index of the interface.
    pub link: u32,
    /// The address.
    pub address: IpAddr,
    /// The Ethernet address, where it is known.
    pub mac: Option<MacAddress>,
    /// Whether it was set by hand: never asked for, never forgotten.
    pub permanent: bool,
}

impl Netlink {
    /// Sets the Ethernet address of an address on a link for good, whatever was known of it. It goes when the link
    /// is set down.
    pub fn set_neighbour(&self, link: u32, address: IpAddr, mac: MacAddress) -> Result<(), LinkError> {
        let mut message = message(link, address);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        let action = || format!("set neighbour {address} of link number {link} to {mac}");
        self.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE, action)
    }

    /// The neighbours of all interfaces, both families.
    pub fn neighbours(&self) -> Result<Vec<Neighbour>, LinkError> {
        self.list(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()), || "list neighbours".into(), read)
    }
}

fn message(link: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = super::family(address);
    message.header.ifindex = link;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

fn read(payload: &[u8]) -> Result<Option<Neighbour>, String> {
    let header = NeighbourHeader::parse(payload).map_err(|error| error.to_string())?;
    let (mut address, mut mac) = (None, None);
    for attribute in NlasIterator::new(payload.get(HEADER..).unwrap_or_default()) {
        let attribute = attribute.map_err(|error| error.to_string())?;
        match attribute.kind() {
            libc::NDA_DST => address = super::ip(attribute.value()),
            libc::NDA_LLADDR => mac = attribute.value().try_into().ok().map(MacAddress),
            _ => {}
        }
    }
    let permanent = header.state == NeighbourState::Permanent;
    Ok(address.map(|address| Neighbour { link: header.ifindex, address, mac, permanent }))
}
