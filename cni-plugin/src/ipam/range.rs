use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The first and the last address of a range that a pod may have; `None` where there is none.
pub(super) fn usable(range: &IpNet) -> Option<(IpAddr, IpAddr)> {
    let (network, last) = (range.network(), range.broadcast());
    let hosts = u32::from(range.max_prefix_len() - range.prefix_len());
    let (first, last) = match (range, hosts) {
        // Too small to leave anything out.
        (_, 0 | 1) => (network, last),
        // Network, node ... broadcast.
        (IpNet::V4(_), _) => (plus(network, 2)?, minus(last, 1)?),
        // The routers' anycast address, node ... (IPv6 knows no broadcast).
        (IpNet::V6(_), _) => (plus(network, 2)?, last),
    };
    (first <= last).then_some((first, last))
}

/// The next address, of the same family.
pub(super) fn next(address: IpAddr) -> Option<IpAddr> {
    plus(address, 1)
}

fn plus(address: IpAddr, step: u32) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => u32::from(v4).checked_add(step).map(|number| Ipv4Addr::from(number).into()),
        IpAddr::V6(v6) => u128::from(v6).checked_add(step.into()).map(|number| Ipv6Addr::from(number).into()),
    }
}

fn minus(address: IpAddr, step: u32) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => u32::from(v4).checked_sub(step).map(|number| Ipv4Addr::from(number).into()),
        IpAddr::V6(v6) => u128::from(v6).checked_sub(step.into()).map(|number| Ipv6Addr::from(number).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_node_and_broadcast_addresses_are_left_out() {
        for (range, first, last) in [
            ("10.1.2.0/24", "10.1.2.2", "10.1.2.254"),
            ("10.1.2.77/24", "10.1.2.2", "10.1.2.254"),
            ("10.1.2.0/30", "10.1.2.2", "10.1.2.2"),
            ("10.1.2.4/31", "10.1.2.4", "10.1.2.5"),
            ("10.1.2.4/32", "10.1.2.4", "10.1.2.4"),
            ("255.255.255.0/24", "255.255.255.2", "255.255.255.254"),
            ("fd00::/64", "fd00::2", "fd00::ffff:ffff:ffff:ffff"),
            ("fd00::/126", "fd00::2", "fd00::3"),
            ("fd00::4/127", "fd00::4", "fd00::5"),
        ] {
            let expected = (first.parse().unwrap(), last.parse().unwrap());
            assert_eq!(usable(&range.parse().unwrap()), Some(expected), "{range}");
        }
    }

    #[test]
    fn the_last_address_of_all_has_no_next() {
        assert_eq!(next("10.0.0.255".parse().unwrap()), Some("10.0.1.0".parse().unwrap()));
        assert_eq!(next("255.255.255.255".parse().unwrap()), None);
    }
}
