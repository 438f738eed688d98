//! The overlay between nodes: whose packets may come out of it, and who may not put any in.

use crate::abi::{Address, NODE_SELF, Outcome};
use crate::packet::{Packet, protocol};

/// Whose addresses are whose.
pub trait Owners<A> {
    /// The number of the node that has the address itself; 0 where none has.
    fn node(&self, address: &A) -> u32;
    /// The number of the other node whose pods' range holds the address; 0 where none does.
    fn pods_of(&self, address: &A) -> u32;
    /// Whether a pod of this node has the address.
    fn is_local(&self, address: &A) -> bool;
}

/// Whose the source of a packet is that comes out of the overlay.
#[derive(Clone, Copy, Debug, Default)]
pub struct Source {
    /// The number of the node that has the address itself; 0 where none has.
    pub node: u32,
    /// The number of the other node whose pods' range holds the address; 0 where none does.
    pub pods_of: u32,
}

/// Whether a packet may come out of the overlay that `sender` has put in, the number of a node or 0: its source is the sender or a pod of
/// the sender, and it is `for_here`, which is this node or a pod of it.
#[inline(always)]
pub const fn arrives(sender: u32, source: Source, for_here: bool) -> Result<(), Outcome> {
    // A node's own address first: no range of pods that holds it makes it a pod's.
    let from = if source.node == 0 { source.pods_of } else { source.node };
    if sender == 0 || sender == NODE_SELF || from != sender {
        return Err(Outcome::OverlayForged);
    }
    // The overlay is no way through a node.
    if !for_here {
        return Err(Outcome::DestinationForeign);
    }
    Ok(())
}

/// Whether a pod's packet would come to the overlay of some node, whose UDP port is `port`, or 0 while there is no overlay.
///
/// Only to pods it cannot. That a destination is no node that is known here says nothing: nodes have addresses that they do not tell, and what
/// leaves the cluster leaves under this node's address, which the others believe.
#[inline(always)]
pub fn is_for_overlay<A: Address>(owners: &impl Owners<A>, port: u32, packet: &Packet<A>) -> bool {
    packet.protocol == protocol::UDP
        && port != 0
        && u16::from_be_bytes(packet.destination_port) as u32 == port
        && (owners.node(&packet.destination) != 0 || (!owners.is_local(&packet.destination) && owners.pods_of(&packet.destination) == 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::V4;

    const SELF: V4 = [192, 0, 2, 1];
    const OTHER: V4 = [192, 0, 2, 2];
    const THIRD: V4 = [192, 0, 2, 3];
    /// In the range of the other node.
    const AMONG_PODS: V4 = [10, 2, 0, 99];
    const LOCAL: V4 = [10, 1, 0, 5];
    const GONE: V4 = [10, 1, 0, 6];
    const OUTSIDE: V4 = [198, 51, 100, 1];

    struct Cluster;

    impl Owners<V4> for Cluster {
        fn node(&self, address: &V4) -> u32 {
            match *address {
                SELF => NODE_SELF,
                OTHER => 2,
                THIRD | AMONG_PODS => 3,
                _ => 0,
            }
        }

        fn pods_of(&self, address: &V4) -> u32 {
            match address {
                [10, node @ (2 | 3), ..] => (*node).into(),
                _ => 0,
            }
        }

        fn is_local(&self, address: &V4) -> bool {
            *address == LOCAL
        }
    }

    fn packet(source: V4, destination: V4) -> Packet<V4> {
        Packet { source, destination, ..Packet::default() }
    }

    fn comes(sender: u32, source: V4, destination: V4) -> Result<(), Outcome> {
        let for_here = Cluster.is_local(&destination) || Cluster.node(&destination) == NODE_SELF;
        arrives(sender, Source { node: Cluster.node(&source), pods_of: Cluster.pods_of(&source) }, for_here)
    }

    #[test]
    fn a_node_speaks_for_itself_and_its_pods_alone() {
        for (source, sender) in [([10, 2, 0, 7], 2), (OTHER, 2), ([10, 3, 0, 7], 3), (THIRD, 3), (AMONG_PODS, 3)] {
            for destination in [LOCAL, SELF] {
                assert_eq!(comes(sender, source, destination), Ok(()), "{source:?}");
                for other in [0, NODE_SELF, 4, 5 - sender] {
                    assert_eq!(comes(other, source, destination), Err(Outcome::OverlayForged), "{source:?} by {other}");
                }
            }
        }
        for source in [LOCAL, GONE, SELF, OUTSIDE, [0; 4]] {
            for sender in [0, NODE_SELF, 2, 3] {
                assert_eq!(comes(sender, source, LOCAL), Err(Outcome::OverlayForged), "{source:?} by {sender}");
            }
        }
    }

    #[test]
    fn the_overlay_is_no_way_through_a_node() {
        for destination in [GONE, OTHER, THIRD, [10, 3, 0, 7], OUTSIDE, [224, 0, 0, 1], [255; 4]] {
            assert_eq!(comes(2, [10, 2, 0, 7], destination), Err(Outcome::DestinationForeign), "{destination:?}");
        }
    }

    #[test]
    fn to_the_port_of_the_overlay_a_pod_sends_to_pods_alone() {
        let is_for = |destination, protocol, port: u16, overlay| {
            let packet = Packet { protocol, destination_port: port.to_be_bytes(), ..packet(LOCAL, destination) };
            is_for_overlay(&Cluster, overlay, &packet)
        };
        for destination in [SELF, OTHER, AMONG_PODS, OUTSIDE, GONE] {
            assert!(is_for(destination, protocol::UDP, 4789, 4789), "{destination:?}");
            assert!(!is_for(destination, protocol::UDP, 4789, 0), "there is no overlay");
            assert!(!is_for(destination, protocol::UDP, 4790, 4789));
            assert!(!is_for(destination, protocol::TCP, 4789, 4789));
        }
        for destination in [LOCAL, [10, 2, 0, 7], [10, 3, 0, 7]] {
            assert!(!is_for(destination, protocol::UDP, 4789, 4789), "{destination:?}");
        }
    }
}
