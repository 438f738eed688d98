//! Floods of clients outside: what their tables forget is chosen for anew, and nobody is taken for another.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use palisade_datapath_core::abi::{Hook, Outcome, ServiceEntry};
use palisade_test_support::packet::{protocol, summed, tcp_flag::*};

use crate::flood::{FRONTENDS, NEWEST, TIMES, clients, run_all};
use crate::outside::{PORT, answering, asking, became, flip, node_port, remote, two};
use crate::service::{self, CLIENT, FRONTEND, TABLE, TARGET, ends, to_vip};
use crate::world::{Family, PASS, REDIRECT, World, each_family, node, outside, sizes};

/// Packets that come to the node; how many of them passed.
fn arrive_all(world: &World, packets: impl Iterator<Item = Vec<u8>>) -> u32 {
    run_all(world, Hook::FromNet, world.uplink(), packets)
}

#[test]
fn in_a_full_table_the_newest_flows_from_outside_win_and_no_answer_comes_from_another_s_frontend() {
    each_family(|world, family| {
        let (client, b, node) = (outside(family), world.b.address(family), node(family));
        two(world, family, protocol::TCP);
        let entry = world.datapath.services.get((node, PORT, protocol::TCP)).unwrap().unwrap();
        for number in 1..FRONTENDS {
            world.datapath.services.insert((node, PORT + number, protocol::TCP), &entry).unwrap();
        }
        let (ask, answer, flows) = (asking(world, family), answering(world, b, family), clients(sizes().outside));
        let asked = |port: u16| PORT + port % FRONTENDS;
        let requests = flows.iter().map(|port| summed(ask.tcp(*port, asked(*port), SYN)));
        assert_eq!(arrive_all(world, requests), flows.len() as u32);
        let rows = world.outside_legs(family);
        assert!(rows <= sizes().outside as usize, "{rows}");
        for (age, port) in flows.iter().rev().enumerate() {
            let crossed = world.leaves(summed(answer.tcp(TARGET, *port, SYN | ACK)));
            if crossed.packet == crossed.sent {
                // Whom it answers nobody knows any more.
                crossed.untouched();
                assert!(age >= NEWEST / 2, "{age} flows came later");
            } else {
                became(&crossed, 0, (node, asked(*port)), (client, *port));
                assert!(age < flows.len() - NEWEST / 2, "{age} flows came later");
            }
        }
        let lost = flows[0];
        let about = summed(world.leaving(node, client).tcp(asked(lost), lost, ACK))[14..].to_vec();
        world.arrives(summed(ask.port_unreachable(&about))).untouched();
        // Who lost goes on with what the client says next.
        became(&world.arrives(summed(ask.tcp(lost, asked(lost), ACK))), 0, (client, lost), (b, TARGET));
        became(&world.leaves(summed(answer.tcp(TARGET, lost, ACK))), 0, (node, asked(lost)), (client, lost));
    });
}

#[test]
fn a_flow_from_outside_that_goes_on_keeps_both_rows_in_a_table_that_others_overflow() {
    each_family(|world, family| {
        let (client, to_b) = ((outside(family), CLIENT), (world.b.address(family), TARGET));
        two(world, family, protocol::TCP);
        let (ask, answer) = (asking(world, family), answering(world, to_b.0, family));
        let _ = world.arrives(summed(ask.tcp(CLIENT, PORT, SYN)));
        // Without its row the connection would go elsewhere, as the others do.
        flip(world, family, protocol::TCP);
        let flood: Vec<_> = clients(sizes().outside).into_iter().map(|port| summed(ask.tcp(port, PORT, SYN))).collect();
        for some in flood.chunks(16) {
            assert_eq!(arrive_all(world, some.iter().cloned()), some.len() as u32);
            became(&world.arrives(summed(ask.tcp(CLIENT, PORT, ACK))), 0, client, to_b);
            became(&world.leaves(summed(answer.tcp(TARGET, CLIENT, ACK))), 0, (node(family), PORT), client);
        }
    });
}

/// As many clients as fill the table of those that stay so many times.
fn many(family: Family) -> Vec<IpAddr> {
    let address = |number: u32| match family {
        Family::V4 => IpAddr::from(Ipv4Addr::from(0xc612_0000 + number)),
        Family::V6 => IpAddr::from(Ipv6Addr::from((0x2001_0db8_u128 << 96) + u128::from(number))),
    };
    (1..=TIMES * sizes().affinity).map(address).collect()
}

/// A node port whose clients stay with their backends.
fn stay(world: &mut World, family: Family, outside_table: u32) {
    node_port(world, family, protocol::TCP, ServiceEntry { outside_table, affinity: 100, ..ServiceEntry::default() });
}

#[test]
fn in_a_full_table_the_newest_clients_stay_with_their_backend_and_all_others_are_led_by_the_table() {
    each_family(|world, family| {
        let (to_b, to_remote) = ((world.b.address(family), TARGET), (remote(family), TARGET));
        two(world, family, protocol::TCP);
        stay(world, family, TABLE);
        let (ask, clients) = (asking(world, family), many(family));
        let opening = |client: IpAddr, port: u16| summed(ask.from(client).tcp(port, PORT, SYN));
        assert_eq!(arrive_all(world, clients.iter().map(|client| opening(*client, 1))), clients.len() as u32);
        let goes = |world: &mut World, client: IpAddr, port: u16| ends(&world.arrives(opening(client, port)).packet)[1];
        stay(world, family, TABLE + 1);
        let (newest, lost) = (&clients[clients.len() - NEWEST / 2..], &clients[..NEWEST / 2]);
        for client in newest {
            assert_eq!(goes(world, *client, 2), to_b, "{client}");
        }
        for client in lost {
            assert_eq!(goes(world, *client, 2), to_remote, "{client}");
        }
        // Where they stay from now on.
        stay(world, family, TABLE);
        for client in lost {
            assert_eq!(goes(world, *client, 3), to_remote, "{client}");
        }
    });
}

#[test]
fn a_connection_does_not_leave_its_backend_where_others_have_ended_its_client_s_stay() {
    each_family(|world, family| {
        let (a, way) = (world.a.address(family), to_vip(world, family));
        let (to_b, to_outside) = ((world.b.address(family), TARGET), (outside(family), TARGET));
        service::two(world, family, protocol::TCP);
        let with = |table| ServiceEntry { table, affinity: 100, ..ServiceEntry::default() };
        service::frontend(world, family, protocol::TCP, with(TABLE));
        let _ = world.a_sends(summed(way.tcp(CLIENT, FRONTEND, SYN)));
        // Clients outside of the same service.
        stay(world, family, TABLE);
        let (ask, clients) = (asking(world, family), many(family));
        let openings = clients.iter().map(|client| summed(ask.from(*client).tcp(1, PORT, SYN)));
        assert_eq!(arrive_all(world, openings), clients.len() as u32);
        service::frontend(world, family, protocol::TCP, with(TABLE + 1));
        let seen = world.a_sends(summed(way.tcp(CLIENT, FRONTEND, ACK)));
        service::became(&seen, REDIRECT, Outcome::AllowedEstablished, (a, CLIENT), to_b);
        let seen = world.a_sends(summed(way.tcp(CLIENT + 1, FRONTEND, SYN)));
        service::became(&seen, PASS, Outcome::AllowedNew, (a, CLIENT + 1), to_outside);
    });
}
