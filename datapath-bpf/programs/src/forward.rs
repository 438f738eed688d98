//! Ways past the stack: straight into a pod of this node, and to the pods of another.
//!
//! What goes between pods of two nodes passes no stack at either end, in neither direction. Where it passed one in one direction alone,
//! connection tracking would see half of each connection, and take the rest for invalid.

use aya_ebpf::bindings::{bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer};
use palisade_datapath_core::abi::{LocalPod, Outcome, Tunnel, cell, tunnel_way};
use palisade_datapath_core::packet::{Bytes, Packet, ethernet, protocol};

use crate::frame::{Frame, action, words};
use crate::maps::{self, Family};
use crate::overlay;

/// From `linux/socket.h`.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// What is no action: the packet could not be rewritten.
pub const FAILED: i32 = i32::MIN;

#[inline(always)]
fn rewritten(action: i32) -> Result<i32, Outcome> {
    if action == FAILED { Err(Outcome::RewriteFailed) } else { Ok(action) }
}

/// What forwards a packet: nothing on its last hop. The stack tells its sender.
#[inline(always)]
pub fn may_go_on<A>(packet: &Packet<A>) -> bool {
    packet.hop_limit > 1
}

/// Takes a packet into the namespace of a pod of this node.
#[inline(always)]
pub fn into_pod<A: Family>(frame: &Frame, packet: &Packet<A>, local: &LocalPod) -> Result<i32, Outcome> {
    rewritten(send_into_pod(frame, packet, local))
}

/// A function of its own: Linux 5.10 counts the stack of each call in steps of 32 bytes, and all calls together have 512.
#[inline(never)]
fn send_into_pod<A: Family>(frame: &Frame, packet: &Packet<A>, local: &LocalPod) -> i32 {
    let mut addresses = [0; 12];
    addresses[..6].copy_from_slice(&local.pod_mac);
    addresses[6..].copy_from_slice(&local.host_mac);
    if !frame.write::<0, 12>(&addresses) || !A::lower_hop_limit(frame, packet.hop_limit) {
        return FAILED;
    }
    // SAFETY: the helper takes numbers only.
    unsafe { bpf_redirect_peer(local.ifindex, 0) as i32 }
}

/// Sends a pod's packet to the node whose pods' range holds its destination, or which has that itself; leaves any other to the stack.
#[inline(always)]
pub fn to_node<A: Family>(frame: &Frame, packet: &Packet<A>) -> Result<i32, Outcome> {
    rewritten(send_to_node(frame, packet))
}

/// A function of its own, as [`send_into_pod`] is.
#[inline(never)]
fn send_to_node<A: Family>(frame: &Frame, packet: &Packet<A>) -> i32 {
    let Some(tunnel) = packet.destination.tunnel() else { return send_to_node_itself(frame, packet) };
    let device = match tunnel.way {
        _ if tunnel.is_overlay() => maps::config(cell::OVERLAY_DEVICE),
        tunnel_way::LINK => tunnel.ifindex,
        _ => 0,
    };
    if device == 0 || !fits(frame, packet, tunnel.mtu) {
        return action::PASS;
    }
    if !A::lower_hop_limit(frame, packet.hop_limit) {
        return FAILED;
    }
    if tunnel.is_overlay() {
        return overlay::enter(frame, packet, &tunnel, device);
    }
    to_neighbour(device, &tunnel)
}

/// Sends a pod's packet to another node itself, where that and its pods are reached by the overlay: the network between them may know no pods, and
/// take what comes from one for forged. By the device, which finds the way to each address.
#[inline(never)]
fn send_to_node_itself<A: Family>(frame: &Frame, packet: &Packet<A>) -> i32 {
    let node = packet.destination.node();
    let device = if node.mtu == 0 { 0 } else { maps::config(cell::OVERLAY_DEVICE) };
    if device == 0 || !fits(frame, packet, node.mtu) {
        return action::PASS;
    }
    if !A::lower_hop_limit(frame, packet.hop_limit) {
        return FAILED;
    }
    to_device(device)
}

/// No way between nodes takes less of IPv4 (RFC 791, section 3.2: 576 bytes), what the overlay adds taken off.
const SHORTEST: u16 = 500;

/// Whether a pod's packet is for another node itself that is reached by the overlay, and longer than the way takes. The stack would send it by the
/// network between the nodes, as the pod's, and that tells its sender nothing.
#[inline(never)]
pub fn is_too_long<A: Family>(frame: &Frame, packet: &Packet<A>) -> i32 {
    // Nobody here can tell how long the packets are into which the kernel cuts a large one of another protocol (SCTP).
    let is_measured = frame.segment_size() == 0 || matches!(packet.protocol, protocol::TCP | protocol::UDP);
    if !is_measured || fits(frame, packet, SHORTEST) || !may_go_on(packet) {
        return 0;
    }
    let mtu = packet.destination.node().mtu;
    let is_by_overlay = mtu != 0 && maps::config(cell::OVERLAY_DEVICE) != 0;
    (is_by_overlay && !fits(frame, packet, mtu) && packet.destination.tunnel().is_none()) as i32
}

/// Sends a packet, or what was put around it, to a node on a link of this one.
#[inline(always)]
pub fn to_neighbour(device: u32, tunnel: &Tunnel) -> i32 {
    let nh_family = if tunnel.version == 4 { AF_INET } else { AF_INET6 };
    // An IPv4 address is the first of these words. All are written: Linux 5.10 lets no program read what it has not.
    let next = bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: words(tunnel.address) };
    let mut hop = bpf_redir_neigh { nh_family, __bindgen_anon_1: next };
    // SAFETY: the helper reads so many bytes of the next hop, all of which were written.
    unsafe { bpf_redirect_neigh(device, &mut hop, size_of::<bpf_redir_neigh>() as i32, 0) as i32 }
}

/// Sends a packet as the kernel's routes say that have it leave by an interface.
#[inline(always)]
pub fn to_router(device: u32) -> i32 {
    // SAFETY: without a next hop the helper takes numbers only.
    unsafe { bpf_redirect_neigh(device, core::ptr::null_mut(), 0, 0) as i32 }
}

/// Puts a packet into the queue of a device.
#[inline(always)]
pub fn to_device(device: u32) -> i32 {
    // SAFETY: the helper takes numbers only.
    unsafe { bpf_redirect(device, 0) as i32 }
}

/// Whether a packet, or each that a device will cut a large one into, is no longer than this.
#[inline(always)]
pub fn fits<A: Family>(frame: &Frame, packet: &Packet<A>, mtu: u16) -> bool {
    let link = ethernet::LENGTH as u32;
    let segment = frame.segment_size();
    if segment == 0 {
        return frame.length() - link <= mtu as u32;
    }
    let header = match packet.protocol {
        // The header's length in words of four bytes is in the upper half of this byte (RFC 9293, 3.1).
        protocol::TCP => match frame.at::<1>(packet.transport + 12) {
            Some([words]) => (words >> 4) as u32 * 4,
            None => return false,
        },
        protocol::UDP => 8,
        _ => return false,
    };
    packet.transport - link + header + segment <= mtu as u32
}
