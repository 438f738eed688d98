use super::{Link, LinkError, MacAddress, Netlink};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use nix::errno::Errno;

const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_UDP_ZERO_CSUM6_RX: u16 = 20;
const IFLA_VXLAN_COLLECT_METADATA: u16 = 25;

/// A VXLAN device to be made, in external mode: where a packet goes, and in which network, is said packet by packet by a program, and
/// nothing is learned or asked for. It comes into being down.
#[derive(Clone, Copy, Debug)]
pub struct Vxlan<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its Ethernet address.
    pub mac: MacAddress,
    /// The UDP port that it sends to and listens on.
    pub port: u16,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// How a VXLAN device tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanMode {
    /// The UDP port that it sends to and listens on.
    pub port: u16,
    /// Whether a program says where each packet goes.
    pub external: bool,
    /// Whether it takes outer packets of IPv6 that have no UDP checksum (RFC 6935).
    pub takes_unsummed: bool,
}

impl Vxlan<'_> {
    /// How the device tunnels once it is made.
    pub fn mode(&self) -> VxlanMode {
        VxlanMode { port: self.port, external: true, takes_unsummed: true }
    }
}

impl VxlanMode {
    pub(super) fn read(data: &[u8]) -> Self {
        let mut mode = Self { port: 0, external: false, takes_unsummed: false };
        for attribute in NlasIterator::new(data).filter_map(Result::ok) {
            let value = attribute.value();
            match attribute.kind() {
                IFLA_VXLAN_PORT => mode.port = value.try_into().map_or(0, u16::from_be_bytes),
                IFLA_VXLAN_UDP_ZERO_CSUM6_RX => mode.takes_unsummed = value.first().is_some_and(|set| *set != 0),
                // Up to some kernel a flag that says yes by being there, later a number.
                IFLA_VXLAN_COLLECT_METADATA => mode.external = value.first().is_none_or(|set| *set != 0),
                _ => {}
            }
        }
        mode
    }
}

impl Netlink {
    /// Makes a VXLAN device. [`LinkError::is_exists`] when the name is taken.
    pub fn create_vxlan(&self, vxlan: &Vxlan<'_>) -> Result<Link, LinkError> {
        let data =
            vec![InfoVxlan::CollectMetadata(true), InfoVxlan::Port(vxlan.port), InfoVxlan::Learning(false), InfoVxlan::UDPZeroCsumRX(true)];
        let mut message = LinkMessage::default();
        // Nobody on the other side answers: the next hop has the device's own address.
        message.header.flags = LinkFlags::Noarp;
        message.header.change_mask = LinkFlags::Noarp;
        message.attributes = vec![
            LinkAttribute::IfName(vxlan.name.to_owned()),
            LinkAttribute::Address(vxlan.mac.0.to_vec()),
            LinkAttribute::Mtu(vxlan.mtu),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))]),
        ];
        let action = || format!("create the VXLAN device {}", vxlan.name);
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, action)?;
        self.link(vxlan.name)?.ok_or_else(|| LinkError::Refused {
            action: action(),
            errno: Errno::ENODEV,
            detail: Some("it vanished right after it was made".into()),
        })
    }
}
