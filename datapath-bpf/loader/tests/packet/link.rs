//! Between a pod and its link: ARP, neighbour discovery, multicast listeners.

use std::net::{IpAddr, Ipv6Addr};

use palisade_datapath_core::abi::{Direction, Hook, Outcome};
use palisade_datapath_core::packet::neighbour::eui64;
use palisade_test_support::packet::{Mac, Way, arp, ethernet, extension, protocol, set};

use crate::world::{Family, UPLINK, World, world};

const GATEWAY: [u8; 4] = [169, 254, 1, 1];
const BROADCAST: Mac = [0xff; 6];

fn arp_frame(world: &World, packet: &[u8]) -> Vec<u8> {
    ethernet(BROADCAST, world.a.mac, 0x0806, packet)
}

fn link_local(world: &World) -> IpAddr {
    Ipv6Addr::from(eui64(&world.a.mac)).into()
}

fn on_link(world: &World, source: IpAddr, destination: &str) -> Way {
    world.a.to(destination.parse().unwrap()).from(source).hop_limit(255)
}

/// A message about a target.
fn about(target: IpAddr) -> Vec<u8> {
    let IpAddr::V6(target) = target else { panic!("{target} is not of IPv6") };
    target.octets().to_vec()
}

#[test]
fn arp_of_the_pod_about_itself_goes_to_the_stack() {
    world(|world| {
        let (mac, own) = (world.a.mac, world.a.v4);
        for packet in [
            arp(1, mac, own, [0; 6], GATEWAY.into()),
            arp(2, mac, own, world.a.host_mac, GATEWAY.into()),
            arp(1, mac, [0, 0, 0, 0].into(), [0; 6], own),
        ] {
            let frame = arp_frame(world, &packet);
            world.a_sends(frame).passed(Outcome::Arp);
        }
    });
}

#[test]
fn arp_that_speaks_for_another_is_dropped() {
    world(|world| {
        let (mac, own) = (world.a.mac, world.a.v4);
        let good = arp(1, mac, own, [0; 6], GATEWAY.into());
        for packet in [
            arp(1, mac, world.b.v4, [0; 6], GATEWAY.into()),
            arp(2, world.b.mac, own, [0; 6], GATEWAY.into()),
            arp(2, mac, [0, 0, 0, 0].into(), [0; 6], GATEWAY.into()),
            arp(3, mac, own, [0; 6], GATEWAY.into()),
            set(good.clone(), 0, &[0, 6]),
            set(good.clone(), 2, &[0x86, 0xdd]),
            set(good.clone(), 4, &[8]),
        ] {
            let frame = arp_frame(world, &packet);
            world.a_sends(frame).dropped_silently(Outcome::ArpInvalid);
        }
        let frame = arp_frame(world, &good[..27]);
        world.a_sends(frame).dropped(Outcome::Truncated);
    });
}

#[test]
fn arp_to_the_pod_passes_from_the_node_alone() {
    world(|world| {
        let request = arp(1, world.b.host_mac, GATEWAY.into(), [0; 6], world.b.v4);
        let frame = ethernet(world.b.mac, world.b.host_mac, 0x0806, &request);
        world.host_sends(frame.clone()).passed(Outcome::Arp);
        world.network_sends(frame).dropped(Outcome::ArpInvalid);
    });
}

#[test]
fn neighbour_discovery_of_the_pod_goes_to_the_stack_though_it_is_isolated() {
    world(|world| {
        for direction in [Direction::Egress, Direction::Ingress] {
            world.isolate(world.a, direction, 42);
        }
        let (own, local, nobody) = (world.a.v6.into(), link_local(world), IpAddr::from(Ipv6Addr::UNSPECIFIED));
        let gateway = about("fe80::1".parse().unwrap());
        for (name, frame) in [
            ("solicitation", on_link(world, own, "ff02::1:ff00:1").icmp(135, 0, [0; 4], &gateway)),
            ("solicitation to the gateway", on_link(world, local, "fe80::1").icmp(135, 0, [0; 4], &gateway)),
            ("duplicate address detection", on_link(world, nobody, "ff02::1:ff00:1").icmp(135, 0, [0; 4], &about(own))),
            ("advertisement", on_link(world, own, "fe80::1").icmp(136, 0, [0x60, 0, 0, 0], &about(own))),
            ("router solicitation", on_link(world, local, "ff02::2").icmp(133, 0, [0; 4], &[])),
        ] {
            let seen = world.a_sends(frame);
            assert_eq!(seen.outcome, Outcome::NeighbourDiscovery, "{name}");
            seen.passed(Outcome::NeighbourDiscovery);
        }
        assert!(world.connections(Family::V6).is_empty());
    });
}

#[test]
fn neighbour_discovery_that_lies_is_dropped() {
    world(|world| {
        let (own, local, other) = (world.a.v6.into(), link_local(world), IpAddr::from(world.b.v6));
        let nobody = IpAddr::from(Ipv6Addr::UNSPECIFIED);
        let gateway = about("fe80::1".parse().unwrap());
        for (name, frame) in [
            ("hop limit 254", on_link(world, own, "fe80::1").hop_limit(254).icmp(135, 0, [0; 4], &gateway)),
            ("a foreign source", on_link(world, other, "fe80::1").icmp(135, 0, [0; 4], &gateway)),
            ("a foreign link-local source", on_link(world, "fe80::2".parse().unwrap(), "fe80::1").icmp(135, 0, [0; 4], &gateway)),
            ("to another pod", world.a.to(other).hop_limit(255).icmp(135, 0, [0; 4], &about(other))),
            ("it speaks for another pod", on_link(world, own, "fe80::1").icmp(136, 0, [0; 4], &about(other))),
            ("it speaks for the gateway", on_link(world, own, "ff02::1").icmp(136, 0, [0; 4], &gateway)),
            ("it claims another's address", on_link(world, nobody, "ff02::1:ff00:2").icmp(135, 0, [0; 4], &about(other))),
            ("a router advertisement", on_link(world, local, "ff02::1").icmp(134, 0, [0; 4], &[0; 8])),
            ("a redirect", on_link(world, local, "fe80::1").icmp(137, 0, [0; 4], &[0; 32])),
            ("no target", on_link(world, own, "fe80::1").icmp(135, 0, [0; 4], &[0; 15])),
        ] {
            let seen = world.a_sends(frame);
            assert_eq!(seen.outcome, Outcome::NeighbourDiscoveryInvalid, "{name}");
            seen.dropped_silently(Outcome::NeighbourDiscoveryInvalid);
        }
    });
}

#[test]
fn neighbour_discovery_in_fragments_is_dropped() {
    world(|world| {
        let body = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &about("fe80::1".parse().unwrap())].concat();
        let frame = on_link(world, world.a.v6.into(), "fe80::1").fragment(9, 0, true, protocol::ICMPV6, &body);
        world.a_sends(frame).dropped(Outcome::NeighbourDiscoveryInvalid);
    });
}

#[test]
fn multicast_listener_reports_pass_behind_their_router_alert() {
    world(|world| {
        let report = |kind: u8| [&extension::options(protocol::ICMPV6)[..], &[kind, 0, 0, 0, 0, 0, 0, 0], &[0; 16]].concat();
        for source in [link_local(world), Ipv6Addr::UNSPECIFIED.into()] {
            for kind in [131, 132, 143] {
                let frame = on_link(world, source, "ff02::16").hop_limit(1).packet(extension::HOP_BY_HOP, &report(kind));
                world.a_sends(frame).passed(Outcome::NeighbourDiscovery);
            }
        }
        let frame = on_link(world, link_local(world), "ff02::16").hop_limit(2).packet(extension::HOP_BY_HOP, &report(143));
        world.a_sends(frame).dropped(Outcome::NeighbourDiscoveryInvalid);
        let frame = on_link(world, "fe80::2".parse().unwrap(), "ff02::16").hop_limit(1).packet(extension::HOP_BY_HOP, &report(143));
        world.a_sends(frame).dropped(Outcome::NeighbourDiscoveryInvalid);
    });
}

#[test]
fn neighbour_discovery_to_the_pod_passes_from_the_node_alone() {
    world(|world| {
        let way = world.b.from("fe80::1".parse().unwrap()).to("ff02::1:ff00:2".parse().unwrap()).hop_limit(255);
        let solicitation = way.icmp(135, 0, [0; 4], &about(world.b.v6.into()));
        world.host_sends(solicitation.clone()).passed(Outcome::NeighbourDiscovery);
        world.network_sends(solicitation).dropped(Outcome::NeighbourDiscoveryInvalid);
        let way = world.b.from("fe80::1".parse().unwrap()).hop_limit(255);
        let advertisement = way.icmp(134, 0, [0; 4], &[0; 8]);
        world.run(Hook::ToPod, world.b.ifindex, UPLINK, advertisement).dropped(Outcome::NeighbourDiscoveryInvalid);
    });
}
