//! The maps, under the names of `abi::map`, and what the programs ask of them.
//!
//! The sizes here are defaults: the loader sets the ones that a node wants.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::helpers::generated::bpf_csum_diff;
use aya_ebpf::macros::btf_map;
use palisade_datapath_core::abi::{
    Address, Affinity, AffinityKey, BACKEND_NONE, Backend, CHUNK, ChunkKey, Connection, ConnectionKey, Counter, Endpoint, EventBudget,
    EventKey, FragmentKey, FragmentPorts, IDENTITY_ANY, LocalPod, Node, Outcome, Outside, OutsideKey, PolicyEntry, PolicyKey, PortEntry,
    PortKey, ServiceEntry, ServiceKey, SocketEntry, SocketKey, Tunnel, V4, V6, cell,
};
use palisade_datapath_core::overlay::Owners;
use palisade_datapath_core::packet::connection::{Lifetimes, Now};
use palisade_datapath_core::packet::{Bytes, Packet, ethernet, ipv4};
use palisade_datapath_core::verdict::{Judgement, Tables};

use crate::frame::Frame;
use crate::service::Via;

// Rows that the agent replaces while packets read them. Without preallocation a new row is written before the old one is
// let go, so that a reader meets one or the other. But since 6.1 the memory of the old one may hold the agent's next row at
// once (`bpf_mem_cache_free`), also while a program looks at it: rows are copied as soon as they are found, and of an
// endpoint, whose row says most, it is checked that it is still the same.
const SHARED: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub static ENDPOINTS: HashMap<u32, Endpoint, 4096, SHARED> = HashMap::new();
#[btf_map]
static LOCAL_V4: HashMap<V4, LocalPod, 4096, SHARED> = HashMap::new();
#[btf_map]
static LOCAL_V6: HashMap<V6, LocalPod, 4096, SHARED> = HashMap::new();
#[btf_map]
static ADDRESS_V4: HashMap<V4, u32, 262_144, SHARED> = HashMap::new();
#[btf_map]
static ADDRESS_V6: HashMap<V6, u32, 262_144, SHARED> = HashMap::new();
#[btf_map]
static PREFIX_V4: LpmTrie<V4, u32, 65_536> = LpmTrie::new();
#[btf_map]
static PREFIX_V6: LpmTrie<V6, u32, 65_536> = LpmTrie::new();
#[btf_map]
static POLICY: HashMap<PolicyKey, PolicyEntry, 1_048_576, SHARED> = HashMap::new();
#[btf_map]
static PORTS: LpmTrie<PortKey, PortEntry, 262_144> = LpmTrie::new();
#[btf_map]
static CONNECTIONS_V4: LruHashMap<ConnectionKey<V4>, Connection, 262_144> = LruHashMap::new();
#[btf_map]
static CONNECTIONS_V6: LruHashMap<ConnectionKey<V6>, Connection, 262_144> = LruHashMap::new();
#[btf_map]
static FRAGMENTS_V4: LruHashMap<FragmentKey<V4>, FragmentPorts, 8192> = LruHashMap::new();
#[btf_map]
static FRAGMENTS_V6: LruHashMap<FragmentKey<V6>, FragmentPorts, 8192> = LruHashMap::new();
#[btf_map]
static SERVICES_V4: HashMap<ServiceKey<V4>, ServiceEntry, 16_384, SHARED> = HashMap::new();
#[btf_map]
static SERVICES_V6: HashMap<ServiceKey<V6>, ServiceEntry, 16_384, SHARED> = HashMap::new();
#[btf_map]
static CHUNKS: HashMap<ChunkKey, [u32; CHUNK], 16_384, SHARED> = HashMap::new();
#[btf_map]
static BACKENDS: HashMap<u32, Backend, 65_536, SHARED> = HashMap::new();
#[btf_map]
static AFFINITY: LruHashMap<AffinityKey, Affinity, 65_536> = LruHashMap::new();
#[btf_map]
static TUNNELS_V4: LpmTrie<V4, Tunnel, 16_384> = LpmTrie::new();
#[btf_map]
static TUNNELS_V6: LpmTrie<V6, Tunnel, 16_384> = LpmTrie::new();
#[btf_map]
static NODES_V4: HashMap<V4, Node, 16_384, SHARED> = HashMap::new();
#[btf_map]
static NODES_V6: HashMap<V6, Node, 16_384, SHARED> = HashMap::new();
#[btf_map]
pub static SOCKETS: LruHashMap<SocketKey, SocketEntry, 65_536> = LruHashMap::new();
#[btf_map]
static OUTSIDE_V4: LruHashMap<OutsideKey<V4>, Outside, 65_536> = LruHashMap::new();
#[btf_map]
static OUTSIDE_V6: LruHashMap<OutsideKey<V6>, Outside, 65_536> = LruHashMap::new();
#[btf_map]
static SCRATCH_V4: PerCpuArray<Scratch<V4>, 1> = PerCpuArray::new();
#[btf_map]
static SCRATCH_V6: PerCpuArray<Scratch<V6>, 1> = PerCpuArray::new();
#[btf_map]
static CONFIG: Array<u32, { cell::ROWS as usize }> = Array::new();
#[btf_map]
pub static COUNTERS: PerCpuArray<Counter, { Outcome::ROWS as usize }> = PerCpuArray::new();
// Its value type is left open: libbpf refuses a ring buffer that states one.
#[btf_map]
pub static EVENTS: RingBuf<(), 1_048_576> = RingBuf::new();
#[btf_map]
pub static EVENT_FLOWS: LruHashMap<EventKey, u64, 8192> = LruHashMap::new();
#[btf_map]
pub static EVENT_BUDGET: PerCpuArray<EventBudget, 1> = PerCpuArray::new();

/// The value of a cell of `CONFIG`.
#[inline(always)]
pub fn config(index: u32) -> u32 {
    CONFIG.get(index).copied().unwrap_or(0)
}

/// Notes that a client outside the cluster has reached a frontend.
#[inline(always)]
pub fn reached_from_outside() {
    if let Some(reached) = CONFIG.get_ptr_mut(cell::OUTSIDE) {
        // SAFETY: the row of an array lasts, and whoever writes it meanwhile writes the same.
        unsafe {
            if *reached == 0 {
                *reached = 1;
            }
        }
    }
}

/// Notes that somebody on the way has complained of an outer packet.
#[inline(always)]
pub fn outer_packet_failed() {
    if let Some(errors) = CONFIG.get_ptr_mut(cell::OUTER_ERRORS) {
        // SAFETY: the row of an array lasts. Of two that count at once one may be lost: all that matters is that it moves.
        unsafe { *errors = (*errors).wrapping_add(1) };
    }
}

/// The clock and the epoch, for a packet whose ends have been who they are since that epoch.
#[inline(always)]
pub fn now(since: u32) -> Now {
    Now { jiffies: jiffies(), hertz: config(cell::HERTZ), epoch: config(cell::EPOCH), since, lifetimes: lifetimes() }
}

/// How long flows may be silent, as an array of [`Lifetimes`]. The loader writes what the node is told.
#[unsafe(no_mangle)]
static LIFETIMES: [u32; Lifetimes::COUNT] = Lifetimes::DEFAULT.to_array();

/// How long flows may be silent.
#[inline(always)]
pub fn lifetimes() -> Lifetimes {
    Lifetimes::from_array([lifetime::<0>(), lifetime::<1>(), lifetime::<2>(), lifetime::<3>(), lifetime::<4>(), lifetime::<5>()])
}

#[inline(always)]
fn lifetime<const NUMBER: usize>() -> u32 {
    const { assert!(NUMBER < Lifetimes::COUNT) };
    // SAFETY: the number is within the array. Volatile, since the loader has written it.
    unsafe { (&raw const LIFETIMES).cast::<u32>().add(NUMBER).read_volatile() }
}

/// The kernel's jiffies.
#[inline(always)]
pub fn jiffies() -> u64 {
    // SAFETY: the helper takes nothing and gives a number.
    unsafe { aya_ebpf::helpers::generated::bpf_jiffies64() }
}

/// The endpoint behind a host-side interface. What was read of it counts once [`is_still`] has said so.
#[inline(always)]
pub fn endpoint(ifindex: u32) -> Option<&'static Endpoint> {
    // SAFETY: the memory of a row can be read as long as the program runs.
    unsafe { ENDPOINTS.get(ifindex) }
}

/// Whether the row is still that of the interface, and so everything that was read of it before.
#[inline(always)]
pub fn is_still(endpoint: &Endpoint, ifindex: u32) -> bool {
    compiler_fence(Ordering::SeqCst);
    // SAFETY: a reference can be read. Volatile, so that it is read now.
    unsafe { (&raw const endpoint.ifindex).read_volatile() == ifindex }
}

/// A backend, by its number.
#[inline(always)]
pub fn backend(number: u32) -> Option<Backend> {
    // SAFETY: a plain copy.
    unsafe { BACKENDS.get(number) }.copied()
}

/// The number of the backend in a slot, or [`BACKEND_NONE`].
#[inline(always)]
pub fn slot(key: &ChunkKey, at: usize) -> u32 {
    // SAFETY: the memory of a row can be read as long as the program runs.
    let Some(chunk) = (unsafe { CHUNKS.get(key) }) else { return BACKEND_NONE };
    chunk.get(at).copied().unwrap_or(BACKEND_NONE)
}

/// The backend that a client stays with.
#[inline(always)]
pub fn stays(key: &AffinityKey) -> Option<Affinity> {
    // SAFETY: a plain copy.
    unsafe { AFFINITY.get(key) }.copied()
}

/// Writes down the backend that a client stays with.
#[inline(always)]
pub fn stay(key: &AffinityKey, backend: u32, seen: u64) {
    // An error lets the client's next flow be chosen for anew.
    let _ = AFFINITY.insert(key, &Affinity { seen, backend, reserved: [0; 4] }, 0);
}

/// What a program knows of the packet at hand.
///
/// It lies in a map and not on the stack, since the verifier follows what stands there: each constant that a branch stores doubles what
/// it has to walk behind it. Of what lies in a map it knows nothing. One packet at a time: programs of TC run with softirqs off.
pub struct Scratch<A> {
    /// The packet.
    pub packet: Packet<A>,
    /// The packet that an ICMP error quotes.
    pub quoted: Packet<A>,
    /// What the policies said of it.
    pub judgement: Judgement,
    /// The frontend that it goes through.
    pub via: Via<A>,
}

/// Offset in the frame of the TTL, the protocol and the checksum of IPv4.
const TTL: usize = ethernet::LENGTH + 8;
/// Offset in the frame of the hop limit of IPv6.
const HOP_LIMIT: u32 = ethernet::LENGTH as u32 + 7;

/// The maps of one address family, and where its header has what.
pub trait Family: Address + Default + 'static {
    /// Offset in the frame of the IP header.
    const HEADER: u32 = 14;
    /// Offset in the frame of the source address.
    const SOURCE: u32;
    /// Offset in the frame of the destination address.
    const DESTINATION: u32;
    /// Memory for a packet, as if nothing were known of it.
    fn scratch() -> Option<&'static mut Scratch<Self>>;
    /// What stands behind a frontend.
    fn service(key: &ServiceKey<Self>) -> Option<ServiceEntry>;
    /// The address that sixteen bytes of a map stand for: the inverse of [`wide`](Self::wide).
    fn narrow(wide: &[u8; 16]) -> Self;
    /// By how much a checksum changes when one address takes the place of another.
    fn checksum_change(old: &Self, new: &Self) -> u64;
    /// Makes up for a changed address in the checksum of the IP header at an offset of the frame; IPv6 has none.
    fn repair_header(frame: &Frame, header: u32, change: u64) -> bool;
    /// Tells the IP header that its packet ends at an offset of the frame, and no more at another one.
    fn shorten(frame: &Frame, old: u32, new: u32) -> bool;
    /// Reads an address at an offset of the frame.
    fn load(frame: &Frame, offset: u32) -> Option<Self>;
    /// Writes an address at an offset of the frame.
    fn store(frame: &Frame, offset: u32, address: &Self) -> bool;
    /// Takes one off the TTL, or off a hop limit of so many.
    fn lower_hop_limit(frame: &Frame, limit: u8) -> bool;
    /// Where a pod of this node is reached.
    fn local(&self) -> Option<LocalPod>;
    /// The node whose pods' range holds the address.
    fn tunnel(&self) -> Option<Tunnel>;
    /// The node that has the address; one of number 0 where none has.
    fn node(&self) -> Node;
    /// The identity of an address by its own row, else by its longest prefix.
    fn identity(&self) -> u32;
    /// The entry of a connection, to be read and written in place.
    fn connection(key: &ConnectionKey<Self>) -> Option<*mut Connection>;
    /// Writes the entry of a connection.
    fn remember(key: &ConnectionKey<Self>, connection: &Connection);
    /// The record of a datagram's first fragment.
    fn fragment(key: &FragmentKey<Self>) -> Option<FragmentPorts>;
    /// Writes the record of a datagram's first fragment.
    fn remember_fragment(key: &FragmentKey<Self>, ports: &FragmentPorts);
    /// The row of a leg of a flow from outside, to be read and written in place.
    fn outside(key: &OutsideKey<Self>) -> Option<*mut Outside>;
    /// Writes the row of a leg of a flow from outside.
    fn remember_outside(key: &OutsideKey<Self>, row: &Outside);
    /// Removes the row of a leg of a flow from outside.
    fn forget_outside(key: &OutsideKey<Self>);
    /// The address as an event shows it.
    fn wide(&self) -> [u8; 16];
    /// The address of an endpoint in this family, or all zero.
    fn own(endpoint: &Endpoint) -> &Self;
}

macro_rules! family {
    ($address:ty, $bits:literal, $source:literal, $field:ident, $local:ident, $addresses:ident, $prefixes:ident, $connections:ident, $fragments:ident, $services:ident, $tunnels:ident, $nodes:ident, $outside:ident, $scratch:ident) => {
        impl Family for $address {
            #[inline(always)]
            fn local(&self) -> Option<LocalPod> {
                // SAFETY: a plain copy.
                unsafe { $local.get(self) }.copied()
            }

            #[inline(always)]
            fn tunnel(&self) -> Option<Tunnel> {
                $tunnels.get(&Key::new($bits, *self)).copied()
            }

            #[inline(always)]
            fn node(&self) -> Node {
                // SAFETY: a plain copy.
                unsafe { $nodes.get(self) }.copied().unwrap_or(Node::routed(0))
            }

            #[inline(always)]
            fn identity(&self) -> u32 {
                // SAFETY: a plain copy.
                if let Some(identity) = unsafe { $addresses.get(self) } {
                    return *identity;
                }
                $prefixes.get(&Key::new($bits, *self)).copied().unwrap_or(IDENTITY_ANY)
            }

            #[inline(always)]
            fn connection(key: &ConnectionKey<Self>) -> Option<*mut Connection> {
                $connections.get_ptr_mut(key)
            }

            #[inline(always)]
            fn remember(key: &ConnectionKey<Self>, connection: &Connection) {
                // A full table evicts; an error leaves the flow without entry: its next packet is judged again.
                let _ = $connections.insert(key, connection, 0);
            }

            #[inline(always)]
            fn fragment(key: &FragmentKey<Self>) -> Option<FragmentPorts> {
                // SAFETY: a plain copy; whatever was torn in it is judged by the connection table.
                unsafe { $fragments.get(key) }.copied()
            }

            #[inline(always)]
            fn remember_fragment(key: &FragmentKey<Self>, ports: &FragmentPorts) {
                // An error leaves the later fragments unknown: they are dropped.
                let _ = $fragments.insert(key, ports, 0);
            }

            #[inline(always)]
            fn outside(key: &OutsideKey<Self>) -> Option<*mut Outside> {
                $outside.get_ptr_mut(key)
            }

            #[inline(always)]
            fn remember_outside(key: &OutsideKey<Self>, row: &Outside) {
                // An error leaves the leg unknown until the client's next packet.
                let _ = $outside.insert(key, row, 0);
            }

            #[inline(always)]
            fn forget_outside(key: &OutsideKey<Self>) {
                // An error: somebody else has.
                let _ = $outside.remove(key);
            }

            #[inline(always)]
            fn wide(&self) -> [u8; 16] {
                let mut wide = [0; 16];
                wide[..$bits / 8].copy_from_slice(self);
                wide
            }

            #[inline(always)]
            fn own(endpoint: &Endpoint) -> &Self {
                &endpoint.$field
            }

            const SOURCE: u32 = $source;
            const DESTINATION: u32 = $source + $bits / 8;

            #[inline(always)]
            fn scratch() -> Option<&'static mut Scratch<Self>> {
                let scratch = $scratch.get_ptr_mut(0)?;
                // SAFETY: the memory is this CPU's, no other program runs on it meanwhile, and every field is written before any is read.
                unsafe {
                    scratch.write(Scratch {
                        packet: Packet::default(),
                        quoted: Packet::default(),
                        judgement: Judgement::NOT_JUDGED,
                        via: Via::default(),
                    });
                    Some(&mut *scratch)
                }
            }

            #[inline(always)]
            fn service(key: &ServiceKey<Self>) -> Option<ServiceEntry> {
                // SAFETY: a plain copy.
                unsafe { $services.get(key) }.copied()
            }

            #[inline(always)]
            fn narrow(wide: &[u8; 16]) -> Self {
                let mut address = [0; $bits / 8];
                address.copy_from_slice(&wide[..$bits / 8]);
                address
            }

            #[inline(always)]
            fn checksum_change(old: &Self, new: &Self) -> u64 {
                // SAFETY: the helper reads as many bytes of both as it is told that there are. It takes them for mutable and
                // writes none.
                unsafe { bpf_csum_diff(old.as_ptr().cast_mut().cast(), $bits / 8, new.as_ptr().cast_mut().cast(), $bits / 8, 0) as u64 }
            }

            #[inline(always)]
            fn repair_header(frame: &Frame, header: u32, change: u64) -> bool {
                $bits != 32 || frame.repair_header(header + 10, change)
            }

            #[inline(always)]
            fn lower_hop_limit(frame: &Frame, limit: u8) -> bool {
                if $bits == 32 {
                    // The header's checksum makes up for it.
                    return match frame.head::<TTL, 4>() {
                        Some(bytes) => frame.write::<TTL, 4>(&ipv4::lower_ttl(bytes)),
                        None => false,
                    };
                }
                frame.store_summed(HOP_LIMIT, &[limit - 1])
            }

            #[inline(always)]
            fn shorten(frame: &Frame, old: u32, new: u32) -> bool {
                let length = |end: u32| ((end - 14 - if $bits == 32 { 0 } else { 40 }) as u16).to_be_bytes();
                let (old, new) = (length(old), length(new));
                if $bits == 32 {
                    let change = V4::checksum_change(&[old[0], old[1], 0, 0], &[new[0], new[1], 0, 0]);
                    frame.repair_header(14 + 10, change) && frame.store(14 + 2, &new)
                } else {
                    frame.store(14 + 4, &new)
                }
            }

            #[inline(always)]
            fn load(frame: &Frame, offset: u32) -> Option<Self> {
                frame.at(offset)
            }

            #[inline(always)]
            fn store(frame: &Frame, offset: u32, address: &Self) -> bool {
                frame.store(offset, address)
            }
        }
    };
}

family!(
    V4,
    32,
    26,
    ipv4,
    LOCAL_V4,
    ADDRESS_V4,
    PREFIX_V4,
    CONNECTIONS_V4,
    FRAGMENTS_V4,
    SERVICES_V4,
    TUNNELS_V4,
    NODES_V4,
    OUTSIDE_V4,
    SCRATCH_V4
);
family!(
    V6,
    128,
    22,
    ipv6,
    LOCAL_V6,
    ADDRESS_V6,
    PREFIX_V6,
    CONNECTIONS_V6,
    FRAGMENTS_V6,
    SERVICES_V6,
    TUNNELS_V6,
    NODES_V6,
    OUTSIDE_V6,
    SCRATCH_V6
);

/// The tables of the verdict.
pub struct Kernel;

impl<A: Family> Tables<A> for Kernel {
    #[inline(always)]
    fn identity(&self, address: &A) -> u32 {
        address.identity()
    }

    #[inline(always)]
    fn policy(&self, key: &PolicyKey) -> Option<PolicyEntry> {
        // SAFETY: a plain copy.
        unsafe { POLICY.get(key) }.copied()
    }

    #[inline(always)]
    fn port(&self, table: u32, protocol: u8, port: u16) -> Option<PortEntry> {
        PORTS.get(&Key::new(PortKey::FIXED_BITS + 16, PortKey::new(table, protocol, port))).copied()
    }
}

impl<A: Family> Owners<A> for Kernel {
    #[inline(always)]
    fn node(&self, address: &A) -> u32 {
        address.node().number
    }

    #[inline(always)]
    fn pods_of(&self, address: &A) -> u32 {
        address.tunnel().map_or(0, |tunnel| tunnel.node)
    }

    #[inline(always)]
    fn is_local(&self, address: &A) -> bool {
        address.local().is_some()
    }
}
