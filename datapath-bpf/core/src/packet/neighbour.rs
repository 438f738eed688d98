//! IPv6 neighbour, router and multicast-listener messages between a pod and its link.

use super::{Fragment, Packet, Segment};
use crate::abi::{Outcome, V6};

/// Offset in a neighbour solicitation or advertisement of its target address.
pub const TARGET: u32 = 8;

const ROUTER_SOLICITATION: u8 = 133;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

const UNSPECIFIED: V6 = [0; 16];

/// The link-local address that an interface gives itself from its hardware address (RFC 4291, modified EUI-64).
#[inline(always)]
pub const fn eui64(mac: &[u8; 6]) -> V6 {
    let [a, b, c, d, e, f] = *mac;
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 0x02, b, c, 0xff, 0xfe, d, e, f]
}

/// Whether an address means something on one link only: link-local, or multicast of interface or link scope.
#[inline(always)]
pub const fn on_link(address: &V6) -> bool {
    (address[0] == 0xfe && address[1] & 0xc0 == 0x80) || (address[0] == 0xff && matches!(address[1] & 0x0f, 1 | 2))
}

#[inline(always)]
const fn multicast(address: &V6) -> bool {
    address[0] == 0xff
}

/// Whether a message that a pod sent is one that a host may send on its own link.
///
/// `target` is the address at [`TARGET`], where the message has one. Router advertisements and redirects are
/// refused: a pod is no router, and the node would take routes from it.
#[inline(always)]
pub fn check(packet: &Packet<V6>, target: Option<V6>, pod_mac: &[u8; 6], pod: &V6) -> Result<(), Outcome> {
    let link_local = eui64(pod_mac);
    let own = |address: &V6| *address == link_local || (*pod != UNSPECIFIED && *address == *pod);
    let unspecified = packet.source == UNSPECIFIED;
    let invalid = Err(Outcome::NeighbourDiscoveryInvalid);
    // RFC 6980: fragments would hide what they claim.
    if !matches!(packet.fragment(), Fragment::Whole) || !(unspecified || own(&packet.source)) {
        return invalid;
    }
    if matches!(packet.segment, Segment::Listener) {
        return if packet.hop_limit == 1 && multicast(&packet.destination) { Ok(()) } else { invalid };
    }
    // A router would have lowered it: 255 proves that the message is from this link.
    if packet.hop_limit != 255 || !on_link(&packet.destination) {
        return invalid;
    }
    match (packet.icmp_type, target) {
        (ROUTER_SOLICITATION, _) => Ok(()),
        // From nobody: it asks whether the address that it wants is taken.
        (NEIGHBOUR_SOLICITATION, Some(target)) if !unspecified || own(&target) => Ok(()),
        (NEIGHBOUR_ADVERTISEMENT, Some(target)) if !unspecified && own(&target) => Ok(()),
        _ => invalid,
    }
}
