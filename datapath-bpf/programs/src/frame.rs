//! The frame at hand: the only place that touches its bytes and its kernel context.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{
    __sk_buff, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_DONT_FRAGMENT, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR,
    BPF_F_RECOMPUTE_CSUM, BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_tunnel_key,
};
use aya_ebpf::helpers::generated::{
    bpf_csum_update, bpf_get_hash_recalc, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_tail,
    bpf_skb_get_tunnel_key, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_set_tunnel_key, bpf_skb_store_bytes,
};
use palisade_datapath_core::abi::{V4, V6};
use palisade_datapath_core::packet::{Bytes, crc32c, ethernet, vxlan};

/// What a program tells the kernel to do with the frame.
pub mod action {
    use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};

    /// It goes on its way through the stack, after other filters had their say: those that a later plugin of the chain has put
    /// there to limit the pod's bandwidth. (For TCX, `TCX_NEXT` has the same number.)
    pub const PASS: i32 = TC_ACT_UNSPEC;
    /// It is dropped.
    pub const DROP: i32 = TC_ACT_SHOT;
}

/// Ethernet, IPv6 and TCP without options: what is read at fixed offsets.
const HEADERS: u32 = 14 + 40 + 20;

/// From `linux/if_packet.h`.
const PACKET_HOST: u32 = 0;

/// A frame and its context.
pub struct Frame {
    skb: *mut __sk_buff,
}

impl Frame {
    /// The frame of a context that the kernel gave.
    #[inline(always)]
    pub const fn new(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }

    /// Index of the interface at which the program runs.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: the kernel gives a context that is valid while the program runs.
        unsafe { (*self.skb).ifindex }
    }

    /// Index of the interface through which the packet came to this node; 0 where a process of the node made it.
    #[inline(always)]
    pub fn ingress_ifindex(&self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.skb).ingress_ifindex }
    }

    /// Whether the frame carries a VLAN tag that the device has taken out of its bytes.
    #[inline(always)]
    pub fn vlan(&self) -> bool {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.skb).vlan_present != 0 }
    }

    /// What the device takes the frame to carry: an ether type in host byte order.
    #[inline(always)]
    pub fn protocol(&self) -> u16 {
        // SAFETY: as in `ifindex`.
        u16::from_be(unsafe { (*self.skb).protocol } as u16)
    }

    /// Whether the frame came to the hardware address of its device: not to a group, and not to another host whose frames the device
    /// hears too.
    #[inline(always)]
    pub fn is_for_host(&self) -> bool {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.skb).pkt_type == PACKET_HOST }
    }

    /// Bytes of payload in each packet that a device is to cut this one into; zero where it is to go as it is.
    #[inline(always)]
    pub fn segment_size(&self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.skb).gso_size }
    }

    /// Sets bits of the packet's mark.
    #[inline(always)]
    pub fn mark(&self, bits: u32) {
        // SAFETY: as in `ifindex`. Volatile, so that the write is not made one with another: the kernel allows it alone.
        unsafe { (&raw mut (*self.skb).mark).write_volatile((*self.skb).mark | bits) };
    }

    /// Clears bits of the packet's mark.
    #[inline(always)]
    pub fn unmark(&self, bits: u32) {
        // SAFETY: as in `mark`.
        unsafe { (&raw mut (*self.skb).mark).write_volatile((*self.skb).mark & !bits) };
    }

    /// Brings the headers into the part of the frame that programs see directly, where they are not.
    #[inline(always)]
    pub fn gather(&self) {
        // SAFETY: as in `ifindex`.
        let (start, end, length) = unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize, (*self.skb).len) };
        let direct = (end - start) as u32;
        if direct < HEADERS && direct < length {
            // Where it fails, the headers are found truncated.
            // SAFETY: the helper checks the length; no pointer into the frame is kept across it.
            unsafe { bpf_skb_pull_data(self.skb, length.min(HEADERS)) };
        }
    }

    #[inline(always)]
    fn direct<const OFFSET: usize, const N: usize>(&self) -> Option<*mut [u8; N]> {
        // SAFETY: as in `ifindex`.
        let (start, end) = unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize) };
        // The verifier knows this comparison, and that the bytes below `end` may be read and written.
        if start + OFFSET + N > end { None } else { Some((start + OFFSET) as *mut [u8; N]) }
    }

    /// Writes bytes at an offset that is known when the program is compiled; whether it could.
    #[inline(always)]
    pub fn write<const OFFSET: usize, const N: usize>(&self, bytes: &[u8; N]) -> bool {
        match self.direct::<OFFSET, N>() {
            Some(target) => {
                // SAFETY: `direct` compared the range with the frame's end; an array of bytes needs no alignment.
                unsafe { target.write(*bytes) };
                true
            }
            None => false,
        }
    }
}

/// Changes of a packet: all of them may move it in memory, so no pointer into it is kept across them.
impl Frame {
    /// Writes bytes at any offset; whether it could.
    #[inline(always)]
    pub fn store<const N: usize>(&self, offset: u32, bytes: &[u8; N]) -> bool {
        // SAFETY: the helper checks the range, and reads `N` bytes.
        unsafe { bpf_skb_store_bytes(self.skb, offset, bytes.as_ptr().cast(), N as u32, 0) == 0 }
    }

    /// As [`store`](Self::store), where nothing else makes up for the change in a checksum that a device has made over the whole packet.
    #[inline(always)]
    pub fn store_summed<const N: usize>(&self, offset: u32, bytes: &[u8; N]) -> bool {
        // SAFETY: as in `store`.
        unsafe { bpf_skb_store_bytes(self.skb, offset, bytes.as_ptr().cast(), N as u32, BPF_F_RECOMPUTE_CSUM as u64) == 0 }
    }

    /// Makes up for a change in the checksum of an IPv4 header; see `Family::checksum_change`.
    #[inline(always)]
    pub fn repair_header(&self, offset: u32, change: u64) -> bool {
        // SAFETY: the helper checks the offset and takes numbers.
        unsafe { bpf_l3_csum_replace(self.skb, offset, 0, change, 0) == 0 }
    }

    /// Makes up for a changed address in a transport checksum, of which a device may have to do the rest.
    #[inline(always)]
    pub fn repair_pseudo(&self, offset: u32, change: u64, may_be_absent: bool) -> bool {
        let flags = BPF_F_PSEUDO_HDR | if may_be_absent { BPF_F_MARK_MANGLED_0 } else { 0 };
        // SAFETY: as above.
        unsafe { bpf_l4_csum_replace(self.skb, offset, 0, change, flags as u64) == 0 }
    }

    /// Adds a change for which nothing in the packet makes up to the sum that a device has made over all of it, if one has. Of an IPv6
    /// address it is needed also where [`repair_pseudo`](Self::repair_pseudo) made up for it: the helper takes the change off that sum,
    /// as if the header had a checksum that changes too (so every kernel, unless told otherwise from 6.16 on: BPF_F_IPV6).
    #[inline(always)]
    pub fn sum_up(&self, change: u64) {
        // SAFETY: the helper takes numbers. It fails where there is no such sum.
        unsafe { bpf_csum_update(self.skb, change as u32) };
    }

    /// Makes up for a change of what a transport checksum covers itself.
    #[inline(always)]
    pub fn repair_by(&self, offset: u32, change: u64) -> bool {
        // SAFETY: as above.
        unsafe { bpf_l4_csum_replace(self.skb, offset, 0, change, 0) == 0 }
    }

    /// Makes up for two changed bytes, at an even offset, in a transport checksum.
    #[inline(always)]
    pub fn repair(&self, offset: u32, old: [u8; 2], new: [u8; 2], may_be_absent: bool) -> bool {
        let flags = 2 | if may_be_absent { BPF_F_MARK_MANGLED_0 } else { 0 };
        let (old, new) = (u16::from_ne_bytes(old) as u64, u16::from_ne_bytes(new) as u64);
        // SAFETY: as above.
        unsafe { bpf_l4_csum_replace(self.skb, offset, old, new, flags as u64) == 0 }
    }

    /// Makes up for changed ports in the checksum of an SCTP packet of `length` bytes. Where it is zero, a device is still to make it,
    /// and wants to find it so.
    #[inline(always)]
    pub fn repair_crc(&self, transport: u32, length: u32, old: [u8; 4], new: [u8; 4]) -> bool {
        let Some(checksum) = self.at::<4>(transport + 8) else { return false };
        checksum == [0; 4] || self.store(transport + 8, &crc32c::replaced(checksum, old, new, length))
    }

    /// Makes room of `bytes` bytes between the link-layer header and the IP header.
    #[inline(always)]
    pub fn open_before_network(&self, bytes: u32) -> bool {
        // SAFETY: the helper checks the length and takes numbers.
        unsafe { bpf_skb_adjust_room(self.skb, bytes as i32, BPF_ADJ_ROOM_MAC, 0) == 0 }
    }

    /// Makes room for so many bytes that the overlay puts around a packet, over IPv4 or IPv6, and tells devices which cut packets or sum them up what
    /// is outer now and what inner. False where the kernel knows no such packets (before 5.13), or none like this: it is as it was.
    #[inline(always)]
    pub fn open_for_overlay(&self, bytes: u32, version: u8) -> bool {
        const INNER_LINK: u64 = (ethernet::LENGTH as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;
        // What a large packet is cut into is no shorter than before: pods' interfaces leave room for what is put around it.
        const VXLAN: u32 = BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_FIXED_GSO;
        let ip = if version == 4 { BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 } else { BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 };
        // SAFETY: the helper checks the length and takes numbers.
        unsafe { bpf_skb_adjust_room(self.skb, bytes as i32, BPF_ADJ_ROOM_MAC, INNER_LINK | (VXLAN | ip) as u64) == 0 }
    }

    /// What is the same for all packets of a flow.
    #[inline(always)]
    pub fn hash(&self) -> u32 {
        // SAFETY: the helper takes the context alone.
        unsafe { bpf_get_hash_recalc(self.skb) }
    }

    /// Cuts the frame off after `length` bytes.
    #[inline(always)]
    pub fn cut(&self, length: u32) -> bool {
        // SAFETY: as above.
        unsafe { bpf_skb_change_tail(self.skb, length, 0) == 0 }
    }
}

/// What was around a packet that came out of a tunnel.
pub struct Outer {
    /// The VXLAN network identifier.
    pub network: u32,
    /// The sender's address.
    pub source: Source,
}

/// An address of either family.
pub enum Source {
    /// IPv4.
    V4(V4),
    /// IPv6.
    V6(V6),
}

/// Bytes of the key that every kernel knows: up to what 5.18 has added.
const TUNNEL_KEY: usize = core::mem::offset_of!(bpf_tunnel_key, __bindgen_anon_3);

/// Tunnels: what the device has taken off a packet, or is to put around it.
impl Frame {
    /// What was around the packet; `None` where it came out of no tunnel.
    #[inline(always)]
    pub fn outer(&self) -> Option<Outer> {
        // SAFETY: integers, and unions of integers, may be zero.
        let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
        // SAFETY: the helper writes so many bytes of the key, which is longer, or fails; all of it was written before.
        let mut get = |flags: u32| unsafe { bpf_skb_get_tunnel_key(self.skb, &mut key, TUNNEL_KEY as u32, flags as u64) == 0 };
        // The helper fails where the address is of the other family.
        let version_4 = get(0);
        if !version_4 && !get(BPF_F_TUNINFO_IPV6) {
            return None;
        }
        // SAFETY: all of the union was written, and every pattern of bits is an integer.
        let (v4, v6) = unsafe { (key.__bindgen_anon_1.remote_ipv4, key.__bindgen_anon_1.remote_ipv6) };
        // IPv4 comes in host byte order, IPv6 as it stands in the packet.
        let source = if version_4 { Source::V4(v4.to_be_bytes()) } else { Source::V6(bytes(v6)) };
        Some(Outer { network: key.tunnel_id, source })
    }

    /// Says what the device is to put around the packet, to a node's address as a row has it; whether it could.
    #[inline(always)]
    pub fn wrap(&self, network: u32, address: &[u8; 16], version: u8) -> bool {
        // SAFETY: as above.
        let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
        key.tunnel_id = network;
        key.tunnel_ttl = vxlan::HOP_LIMIT;
        // An outer packet that does not fit is an error of somebody's MTU: in fragments it would pass, slowly, and nobody would know why.
        let mut flags = BPF_F_DONT_FRAGMENT;
        if version == 4 {
            // The inner checksums cover all that matters. Over IPv6, whose header has none of its own, the device can make one: so it does.
            flags |= BPF_F_ZERO_CSUM_TX;
            let [a, b, c, d, ..] = *address;
            key.__bindgen_anon_1.remote_ipv4 = u32::from_be_bytes([a, b, c, d]);
        } else {
            flags |= BPF_F_TUNINFO_IPV6;
            key.__bindgen_anon_1.remote_ipv6 = words(*address);
        }
        // SAFETY: the helper reads so many bytes of the key, all of which were written.
        unsafe { bpf_skb_set_tunnel_key(self.skb, &mut key, TUNNEL_KEY as u32, flags as u64) == 0 }
    }
}

/// The bytes of an address that the kernel shows as four words, as they stand in memory.
#[inline(always)]
const fn bytes(words: [u32; 4]) -> V6 {
    // SAFETY: both are sixteen bytes of which every pattern is good.
    unsafe { core::mem::transmute(words) }
}

/// The inverse of [`bytes`].
#[inline(always)]
pub const fn words(bytes: V6) -> [u32; 4] {
    // SAFETY: as above; the value is moved, so that its alignment is no matter.
    unsafe { core::mem::transmute(bytes) }
}

impl Bytes for Frame {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.skb).len }
    }

    #[inline(always)]
    fn head<const OFFSET: usize, const N: usize>(&self) -> Option<[u8; N]> {
        let bytes = self.direct::<OFFSET, N>()?;
        // SAFETY: `direct` compared the range with the frame's end; an array of bytes needs no alignment.
        Some(unsafe { bytes.read() })
    }

    #[inline(always)]
    fn at<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes all `N` bytes, or fails.
        if unsafe { bpf_skb_load_bytes(self.skb.cast(), offset, bytes.as_mut_ptr().cast(), N as u32) } != 0 {
            return None;
        }
        // SAFETY: the helper succeeded.
        Some(unsafe { bytes.assume_init() })
    }
}
