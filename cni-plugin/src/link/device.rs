use super::{LinkError, MacAddress, Namespace, Netlink, VxlanMode};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkHeader, LinkInfo, LinkMessage,
};
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsFd, AsRawFd};

const HEADER: usize = 16;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address, where it has one.
    pub mac: Option<MacAddress>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is set up by the administrator.
    pub up: bool,
    /// What it is (`veth`, `vxlan`, ...); `None` for hardware and `lo`.
    pub kind: Option<String>,
    /// Index of the interface it is tied to: the other end of a veth, in that end's namespace.
    pub peer: Option<u32>,
    /// How it tunnels, where it is a VXLAN device.
    pub vxlan: Option<VxlanMode>,
}

/// A veth pair to be made. Both ends come into being down, so that nothing passes before it is wanted.
#[derive(Debug)]
pub struct Veth<'a> {
    /// Name of this end, in the namespace of the conversation.
    pub name: &'a str,
    /// Ethernet address of this end. Given, so that no address policy of the host changes it afterwards.
    pub mac: MacAddress,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// Ethernet address of the other end.
    pub peer_mac: MacAddress,
    /// Namespace of the other end, where it is made at once; `None` for the namespace of the conversation.
    pub peer_namespace: Option<&'a Namespace>,
    /// MTU of both ends in bytes.
    pub mtu: u32,
}

impl Netlink {
    /// Makes a veth pair and returns this end. [`LinkError::is_exists`] when a name is taken on either side.
    pub fn create_veth(&self, veth: &Veth<'_>) -> Result<Link, LinkError> {
        let end = |name: &str, mac: MacAddress| {
            vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Address(mac.0.to_vec()), LinkAttribute::Mtu(veth.mtu)]
        };
        let mut peer = LinkMessage::default();
        peer.attributes = end(veth.peer_name, veth.peer_mac);
        peer.attributes.extend(veth.peer_namespace.map(|namespace| LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd())));
        let mut message = LinkMessage::default();
        message.attributes = end(veth.name, veth.mac);
        message
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)))]));
        let action = || format!("create veth {} with peer {}", veth.name, veth.peer_name);
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, action)?;
        self.link(veth.name)?.ok_or_else(|| LinkError::Refused {
            action: action(),
            errno: Errno::ENODEV,
            detail: Some("it vanished right after it was made: its peer's namespace is gone".into()),
        })
    }

    /// Makes a bridge, down, and returns it. [`LinkError::is_exists`] when the name is taken.
    pub fn create_bridge(&self, name: &str, mac: MacAddress, mtu: u32) -> Result<Link, LinkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        let action = || format!("create bridge {name}");
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, action)?;
        self.link(name)?.ok_or_else(|| LinkError::Refused { action: action(), errno: Errno::ENODEV, detail: None })
    }

    /// Makes a link a port of a bridge.
    pub fn set_bridge(&self, index: u32, bridge: u32) -> Result<(), LinkError> {
        self.set(index, LinkAttribute::Controller(bridge), || format!("make link number {index} a port of bridge number {bridge}"))
    }

    /// The link of this name, if there is one.
    pub fn link(&self, name: &str) -> Result<Option<Link>, LinkError> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ {
            return Ok(None);
        }
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.find(message, || format!("find link {name}"))
    }

    /// The link of this index, if there is one.
    pub fn link_by_index(&self, index: u32) -> Result<Option<Link>, LinkError> {
        self.find(with_index(index), || format!("find link number {index}"))
    }

    /// All links, `lo` included.
    pub fn links(&self) -> Result<Vec<Link>, LinkError> {
        self.list(RouteNetlinkMessage::GetLink(LinkMessage::default()), || "list links".into(), |payload| read(payload).map(Some))
    }

    /// Sets a link up.
    pub fn set_up(&self, index: u32) -> Result<(), LinkError> {
        self.set_flags(index, LinkFlags::Up, || format!("set link number {index} up"))
    }

    /// Sets a link down. Its routes and its permanent neighbours go with it.
    pub fn set_down(&self, index: u32) -> Result<(), LinkError> {
        self.set_flags(index, LinkFlags::empty(), || format!("set link number {index} down"))
    }

    /// Gives a link another MTU, in bytes.
    pub fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), LinkError> {
        self.set(index, LinkAttribute::Mtu(mtu), || format!("set the MTU of link number {index} to {mtu}"))
    }

    /// Lets a link have no IPv6 addresses but those that it is given: none of its own making, not even a link-local one. Fine where the kernel
    /// has no IPv6.
    pub fn make_no_addresses(&self, index: u32) -> Result<(), LinkError> {
        let inet6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let action = || format!("make no IPv6 addresses on link number {index}");
        match self.set(index, LinkAttribute::AfSpecUnspec(vec![inet6]), action) {
            Err(error) if error.errno() == Some(Errno::EAFNOSUPPORT) => Ok(()),
            other => other,
        }
    }

    /// Removes a link, of a veth both ends. False: there was none.
    pub fn delete_link(&self, index: u32) -> Result<bool, LinkError> {
        let message = RouteNetlinkMessage::DelLink(with_index(index));
        match self.change(message, 0, || format!("delete link number {index}")) {
            Err(error) if error.is_missing() => Ok(false),
            other => other.map(|()| true),
        }
    }

    fn find(&self, message: LinkMessage, action: impl Fn() -> String) -> Result<Option<Link>, LinkError> {
        match self.get(RouteNetlinkMessage::GetLink(message), action, read) {
            Err(error) if error.is_missing() => Ok(None),
            other => other,
        }
    }

    fn set_flags(&self, index: u32, flags: LinkFlags, action: impl Fn() -> String) -> Result<(), LinkError> {
        let mut message = with_index(index);
        message.header.flags = flags;
        message.header.change_mask = LinkFlags::Up;
        self.change(RouteNetlinkMessage::SetLink(message), 0, action)
    }

    fn set(&self, index: u32, attribute: LinkAttribute, action: impl Fn() -> String) -> Result<(), LinkError> {
        let mut message = with_index(index);
        message.attributes.push(attribute);
        self.change(RouteNetlinkMessage::SetLink(message), 0, action)
    }
}

fn with_index(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// Reads the few attributes that matter here, and no other: a link of a kind that the packet library does not know
/// must not hide the rest.
pub(super) fn read(payload: &[u8]) -> Result<Link, String> {
    let header = LinkHeader::parse(payload).map_err(|error| error.to_string())?;
    let up = header.flags.contains(LinkFlags::Up);
    let mut link = Link { index: header.index, name: String::new(), mac: None, mtu: 0, up, kind: None, peer: None, vxlan: None };
    for attribute in NlasIterator::new(payload.get(HEADER..).unwrap_or_default()) {
        let attribute = attribute.map_err(|error| error.to_string())?;
        let value = attribute.value();
        match attribute.kind() {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_ADDRESS => link.mac = value.try_into().ok().map(MacAddress),
            libc::IFLA_MTU => link.mtu = number(value).unwrap_or(0),
            libc::IFLA_LINK => link.peer = number(value).filter(|index| *index != 0),
            libc::IFLA_LINKINFO => {
                let mut inner = NlasIterator::new(value).filter_map(Result::ok);
                link.kind = inner.find(|inner| inner.kind() == libc::IFLA_INFO_KIND).map(|kind| text(kind.value()));
                let data = inner.find(|inner| inner.kind() == libc::IFLA_INFO_DATA);
                link.vxlan = data.filter(|_| link.kind.as_deref() == Some("vxlan")).map(|data| VxlanMode::read(data.value()));
            }
            _ => {}
        }
    }
    Ok(link)
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

/// A number in the machine's byte order, as netlink has them.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}
