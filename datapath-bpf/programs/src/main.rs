//! The TC programs: on the host side of a pod's veth `from_pod` at its ingress and `to_pod` at its egress; on the node's own interfaces
//! `from_net` and `to_net`; on the overlay's device `from_overlay` and `to_overlay`. And those at the sockets of the node's own processes.
//!
//! They fetch bytes and rows, and act. What a packet is and what becomes of it is decided in `palisade-datapath-core`.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod event;
#[cfg(target_arch = "bpf")]
mod flow;
#[cfg(target_arch = "bpf")]
mod forward;
#[cfg(target_arch = "bpf")]
mod frame;
#[cfg(target_arch = "bpf")]
mod from_net;
#[cfg(target_arch = "bpf")]
mod from_pod;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod outside;
#[cfg(target_arch = "bpf")]
mod overlay;
#[cfg(target_arch = "bpf")]
mod refuse;
#[cfg(target_arch = "bpf")]
mod service;
#[cfg(target_arch = "bpf")]
mod socket;
#[cfg(target_arch = "bpf")]
mod to_net;
#[cfg(target_arch = "bpf")]
mod to_pod;

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::macros::classifier;
    use aya_ebpf::programs::TcContext;

    use crate::frame::Frame;

    /// Packets that a pod sends.
    #[classifier]
    pub fn from_pod(context: TcContext) -> i32 {
        crate::from_pod::run(&Frame::new(context.skb.skb))
    }

    /// Packets that go to a pod through the node's stack.
    #[classifier]
    pub fn to_pod(context: TcContext) -> i32 {
        crate::to_pod::run(&Frame::new(context.skb.skb))
    }

    /// Packets that come from other nodes.
    #[classifier]
    pub fn from_overlay(context: TcContext) -> i32 {
        crate::overlay::receive(&Frame::new(context.skb.skb))
    }

    /// Packets that go to other nodes.
    #[classifier]
    pub fn to_overlay(context: TcContext) -> i32 {
        crate::overlay::send(&Frame::new(context.skb.skb))
    }

    /// Packets that come to the node.
    #[classifier]
    pub fn from_net(context: TcContext) -> i32 {
        crate::from_net::run(&Frame::new(context.skb.skb))
    }

    /// Packets that leave the node.
    #[classifier]
    pub fn to_net(context: TcContext) -> i32 {
        crate::to_net::run(&Frame::new(context.skb.skb))
    }

    #[unsafe(no_mangle)]
    #[unsafe(link_section = "license")]
    static LICENSE: [u8; 4] = *b"GPL\0";

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo) -> ! {
        loop {}
    }
}

/// The programs exist for the BPF target alone; on others this package is empty.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
