//! Pods of two nodes, past the stack of either.

use nix::net::if_::if_nametoindex;
use palisade_datapath_core::abi::{Tunnel, tunnel_way};

use crate::stage::{alone, kind, run};
use crate::talk::{receive, socket, stream, talk};
use crate::{DEVICE, DOUBT, FAMILIES, Family, Node, PATIENCE, node, pod, two_nodes};

impl Node {
    /// The stack forwards again.
    fn open_the_stack(&self) {
        self.space.inside(|| (0..3).flat_map(|_| ["-4", "-6"]).for_each(|version| drop(run(&format!("ip {version} rule del pref 1")))));
    }

    /// Says that pods of other nodes are reached past the stack, which forwards nothing any more.
    fn pass_the_stack(&mut self, way: u8) {
        self.attach_uplink("wire");
        let link = self.space.inside(|| {
            // After what is for the node itself, which the first rule is about.
            for (version, interface) in ["-4", "-6"].into_iter().flat_map(|version| ["pod", "wire", DEVICE].map(|name| (version, name))) {
                run(&format!("ip {version} rule add iif {interface} prohibit pref 1"));
            }
            if_nametoindex("wire").unwrap()
        });
        for (range, tunnel) in self.datapath.tunnels.rows().unwrap() {
            self.datapath.tunnels.insert(&range, &Tunnel { way, ifindex: link, mtu: 1400, ..tunnel }).unwrap();
        }
        self.datapath.set_overlay_device(Some(self.device)).unwrap();
    }
}

#[test]
fn pods_of_two_nodes_reach_each_other_past_the_stack_of_either() {
    alone(|base| {
        for (way, outer) in [(tunnel_way::OVERLAY, Family::V4), (tunnel_way::LINK, Family::V4), (tunnel_way::LINK, Family::V6)] {
            let base = base.join(format!("{way}-{outer:?}"));
            let mut nodes = two_nodes(&base, kind(), outer);
            for node in &mut nodes {
                node.pass_the_stack(way);
            }
            // By the overlay pods of both families, by the link those of its own.
            for family in FAMILIES.into_iter().filter(|family| way == tunnel_way::OVERLAY || *family == outer) {
                let [(first, one), (second, two)] = [1, 2].map(|number| {
                    let node = &nodes[usize::from(number) - 1];
                    (&node.pod, socket(&node.pod, (pod(number, family), 0).into()))
                });
                for length in [1, 1300] {
                    talk(&one, &two, length);
                    talk(&two, &one, length);
                }
                stream(first, second, pod(2, family));
                stream(second, first, pod(1, family));
            }
            for node in &nodes {
                node.assert_nothing_is_dropped();
            }
        }
    });
}

#[test]
fn what_a_node_itself_sends_to_a_pod_of_another_comes_by_the_stack_through_which_the_answer_goes() {
    alone(|base| {
        let mut nodes = two_nodes(base, kind(), Family::V4);
        nodes.iter_mut().for_each(|node| node.pass_the_stack(tunnel_way::OVERLAY));
        let [a, b] = &nodes;
        let server = socket(&a.pod, (pod(1, Family::V4), 0).into());
        let process = socket(&b.space, (node(2, Family::V4), 0).into());
        server.set_read_timeout(Some(DOUBT)).unwrap();
        process.send_to(b"by the stack", server.local_addr().unwrap()).unwrap();
        assert!(receive(&server, &mut [0; 32]).is_err(), "it came past the stack, which does not see it before its answer");
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        a.open_the_stack();
        talk(&process, &server, 100);
    });
}
