//! The least that takes a packet from one pod to another: what `from_pod` is measured against. No policy, no
//! connection, no check; never attached to anything but the endpoints of a benchmark.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::btf_maps::HashMap;
    use aya_ebpf::helpers::generated::bpf_redirect_peer;
    use aya_ebpf::macros::{btf_map, classifier};
    use aya_ebpf::programs::TcContext;
    use palisade_datapath_core::abi::{LocalPod, V4};

    /// Offset in an Ethernet frame of the IPv4 destination address.
    const DESTINATION: usize = 14 + 16;
    /// What a classifier returns so that the packet goes on through the stack.
    const PASS: i32 = aya_ebpf::bindings::TC_ACT_OK;

    #[btf_map]
    static LOCAL_V4: HashMap<V4, LocalPod, 64> = HashMap::new();

    /// Looks up where the destination is reached, rewrites the hardware addresses, redirects.
    #[classifier]
    pub fn redirect_only(context: TcContext) -> i32 {
        let (start, end) = (context.data(), context.data_end());
        if start + DESTINATION + 4 > end {
            return PASS;
        }
        // SAFETY: the range was compared with the frame's end; an array of bytes needs no alignment.
        let destination = unsafe { *((start + DESTINATION) as *const V4) };
        // SAFETY: rows are written before packets come, and never changed.
        let Some(pod) = (unsafe { LOCAL_V4.get(destination) }) else { return PASS };
        let mut addresses = [0; 12];
        addresses[..6].copy_from_slice(&pod.pod_mac);
        addresses[6..].copy_from_slice(&pod.host_mac);
        // SAFETY: as above, the first 12 bytes lie before the destination address.
        unsafe { *(start as *mut [u8; 12]) = addresses };
        // SAFETY: the helper takes numbers only.
        unsafe { bpf_redirect_peer(pod.ifindex, 0) as i32 }
    }

    #[unsafe(no_mangle)]
    #[unsafe(link_section = "license")]
    static LICENSE: [u8; 4] = *b"GPL\0";

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo) -> ! {
        loop {}
    }
}

/// The program exists for the BPF target alone; on others this binary is empty.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
