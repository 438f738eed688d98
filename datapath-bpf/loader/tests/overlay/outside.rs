//! Clients outside the cluster of a node whose backend is a pod of another node.

use std::net::{IpAddr, SocketAddr, TcpListener};

use crate::forward::two_nodes_by_the_overlay;
use crate::stage::narrow::{assert_learnt, comes_in_fragments, forget_ways, put_behind};
use crate::stage::talk::{socket, stream_through, talk_through};
use crate::stage::{Space, alone, answers, kind, run, soon};
use crate::{FAMILIES, Family, Node, TARGET, address, node, pod, two_nodes};

impl Node {
    /// Who reaches this node through a router, and that by a link which is narrower than those of pods. The client and the router.
    fn client_behind_a_narrow_link(&self, family: Family) -> ([Space; 2], IpAddr) {
        let (router, of_router) = self.client_outside(family);
        let client = Space::new();
        let ends = [1, 2].map(|end| address(family, [198, 18, 0, end], [0x2001, 0xdb8, 1, 0, 0, 0, 0, end.into()]));
        put_behind(&router, &client, &[ends]);
        let (of_client, of_node) = (ends[1], node(self.number, family));
        self.space.inside(move || drop(run(&format!("ip route add {of_client} via {of_router}"))));
        soon("the client reaches the node through the router", || client.inside(move || answers(of_node)));
        ([client, router], of_client)
    }
}

/// Whoever complains of an answer that is too long knows the frontend alone, at a node that has not sent it.
#[test]
fn a_backend_of_another_node_learns_of_a_narrow_link_to_a_client_outside() {
    for (by_overlay, family) in [false, true].into_iter().flat_map(|by_overlay| FAMILIES.map(|family| (by_overlay, family))) {
        alone(|base| {
            // The backend answers the other node by the link, or by the overlay and past the stack of its own.
            let [mut a, b] = if by_overlay { two_nodes_by_the_overlay(base, family) } else { two_nodes(base, kind(), family) };
            if by_overlay {
                a.open_the_stack();
            }
            let ([client, _router], of_client) = a.client_behind_a_narrow_link(family);
            a.serve(family, pod(2, family));
            let (frontend, backend, seen) = (a.node_port(family), SocketAddr::from((pod(2, family), TARGET)), node(1, family));
            let (asking, server) = (socket(&client, (of_client, 0).into()), socket(&b.pod, backend));
            let asked_from = talk_through(frontend, &asking, &server, 5);
            assert_eq!(asked_from.ip(), seen, "{family:?} {by_overlay}");
            assert_eq!(comes_in_fragments(&server, asked_from, &asking), frontend, "{family:?} {by_overlay}");
            assert_learnt(&b.pod, seen);
            // What a datagram has taught, a connection has to learn itself.
            b.pod.inside(forget_ways);
            let listener = b.pod.inside(move || TcpListener::bind(backend).unwrap());
            assert_eq!(stream_through(frontend, &client, &listener), seen, "{family:?} {by_overlay}");
            assert_learnt(&b.pod, seen);
            for node in [a, b] {
                node.assert_nothing_is_dropped();
            }
        });
    }
}
