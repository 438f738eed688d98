//! The MTU: that of the way to the other nodes, less what the mode adds to each packet.

use super::way::{Reach, Way};
use palisade_datapath_core::packet::vxlan;
use std::net::IpAddr;

/// Bytes that each way of IPv6 takes at least (RFC 8200, section 5).
pub const IPV6_LEAST: u32 = 1280;

/// What the overlay adds to a packet, in bytes, when the outer packet goes to `outer`.
pub const fn cost(outer: IpAddr) -> u32 {
    match outer {
        IpAddr::V4(_) => vxlan::LENGTH_V4 as u32,
        IpAddr::V6(_) => vxlan::LENGTH_V6 as u32,
    }
}

/// The MTU of pods: the longest packet that gets to every pod range, and out by the uplink.
pub fn of_pods(uplink: u32, reaches: &[Reach]) -> u32 {
    reaches.iter().filter_map(|reach| of(uplink, reach)).fold(uplink, u32::min)
}

/// The MTU of the overlay's device; `None` where nothing goes by it.
pub fn of_overlay(uplink: u32, reaches: &[Reach]) -> Option<u32> {
    reaches.iter().filter(|reach| matches!(reach.way, Way::Vxlan(_))).filter_map(|reach| of(uplink, reach)).min()
}

/// The longest packet that gets to a pod range. Where nobody knows a route to its node, as if it went by the uplink.
fn of(uplink: u32, reach: &Reach) -> Option<u32> {
    reach.mtu.or(match reach.way {
        Way::Vxlan(outer) => Some(uplink.saturating_sub(cost(outer))),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(way: Way, mtu: Option<u32>) -> Reach {
        Reach { node: "b".to_owned(), range: "10.2.0.0/24".parse().unwrap(), way, outer: None, hop: None, mtu }
    }

    #[test]
    fn the_overlay_costs_what_its_headers_are_long() {
        assert_eq!(cost("192.0.2.1".parse().unwrap()), 50);
        assert_eq!(cost("2001:db8::1".parse().unwrap()), 70);
    }

    #[test]
    fn pods_have_the_smallest_mtu_that_any_peer_needs() {
        let native = reach(Way::Native { gateway: "192.0.2.2".parse().unwrap(), link: 2 }, Some(1500));
        let vxlan = reach(Way::Vxlan("198.51.100.2".parse().unwrap()), Some(1450));
        let unknown = reach(Way::Vxlan("2001:db8::2".parse().unwrap()), None);
        assert_eq!(of_pods(1500, &[]), 1500);
        assert_eq!((of_pods(1500, std::slice::from_ref(&native)), of_overlay(1500, std::slice::from_ref(&native))), (1500, None));
        assert_eq!(of_pods(9000, &[native.clone(), vxlan.clone()]), 1450);
        assert_eq!(of_overlay(9000, &[native, vxlan.clone()]), Some(1450));
        let both = [vxlan, unknown];
        assert_eq!((of_overlay(1500, &both), of_pods(1500, &both)), (Some(1430), 1430));
    }
}
