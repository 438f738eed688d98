//! The frame at hand: the only place that touches its bytes and its kernel context.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_skb_load_bytes, bpf_skb_pull_data};
use palisade_datapath_core::packet::Bytes;

/// What a program tells the kernel to do with the frame.
pub mod action {
    use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT};

    /// It goes on its way through the stack.
    pub const PASS: i32 = TC_ACT_OK;
    /// It is dropped.
    pub const DROP: i32 = TC_ACT_SHOT;
}

/// Ethernet, IPv6 and TCP without options: what is read at fixed offsets.
const HEADERS: u32 = 14 + 40 + 20;

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
