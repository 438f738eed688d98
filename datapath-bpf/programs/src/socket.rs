//! The programs at the sockets of the node's own processes: what they connect or send to a service's frontend goes to a backend, and
//! they see the frontend all the same. No packet is touched, and no policy asked: it does not judge what the node sends.
//!
//! A cgroup has the sockets of many network namespaces. Those of pods are left alone: `from_pod` translates what pods send, and has
//! to see to which service. TCP and UDP alone have such hooks; what a process of the node sends to a service by SCTP is led by connection tracking, as the agent tells it.
//!
//! A service without backends refuses at once. Where there are backends, but the traffic policy is Local and none is here, a process is told at
//! once, too, that the host is unreachable: a destination that is left as it is would go to whoever has that address beyond the node.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use palisade_datapath_core::abi::{
    AffinityKey, Backend, ServiceEntry, ServiceKey, SocketEntry, SocketKey, TABLE_NONE, V4, V6, backend_flag, cell, service_flag,
    socket_end,
};
use palisade_datapath_core::packet::protocol;
use palisade_datapath_core::service::slot_of_socket;

use crate::maps::{self, Family, SOCKETS};
use crate::service::pick;

/// What a program returns so that the call goes on.
const PASS: i32 = 1;
/// What a program returns so that the call fails.
const FAIL: i32 = 0;

/// The state of a socket that has a peer (`TCP_ESTABLISHED`), of UDP too.
const CONNECTED: u32 = 1;

const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

/// Not zero: the kernel lets a program of a socket say with which error the call fails (`bpf_set_retval`, Linux 6.1); else it fails with
/// EPERM. The loader, which can ask the kernel, sets it.
#[unsafe(no_mangle)]
static SAYS_ERROR: u32 = 0;

/// As whom the node's own processes stay with a backend: all of them are one client.
const NODE: [u8; 16] = [0; 16];

#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    let call = Call(context.sock_addr);
    call.is_of_node().then(|| call.leads::<V4>(false, call.ipv4(), |address| call.set_ipv4(address))).unwrap_or(PASS)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(context: SockAddrContext) -> i32 {
    let call = Call(context.sock_addr);
    call.is_of_node().then(|| call.leads::<V4>(true, call.ipv4(), |address| call.set_ipv4(address))).unwrap_or(PASS)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    let call = Call(context.sock_addr);
    call.is_of_node().then(|| call.leads_ipv6(false)).unwrap_or(PASS)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(context: SockAddrContext) -> i32 {
    let call = Call(context.sock_addr);
    call.is_of_node().then(|| call.leads_ipv6(true)).unwrap_or(PASS)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(context: SockAddrContext) -> i32 {
    Call(context.sock_addr).shows_ipv4();
    PASS
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(context: SockAddrContext) -> i32 {
    Call(context.sock_addr).shows_ipv6();
    PASS
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(context: SockAddrContext) -> i32 {
    Call(context.sock_addr).shows_ipv4();
    PASS
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(context: SockAddrContext) -> i32 {
    Call(context.sock_addr).shows_ipv6();
    PASS
}

/// A system call about a socket, with the address that it names.
#[derive(Clone, Copy)]
struct Call(*mut bpf_sock_addr);

// The kernel checks each access to the context by its offset and width: volatile, so that none of them is merged with another.
impl Call {
    /// Whether the socket is of the node's own network namespace.
    #[inline(always)]
    fn is_of_node(self) -> bool {
        let node = maps::config(cell::NETNS_LOW) as u64 | (maps::config(cell::NETNS_HIGH) as u64) << 32;
        // SAFETY: the helper takes the context that the program was given.
        node != 0 && unsafe { bpf_get_netns_cookie(self.0.cast()) } == node
    }

    #[inline(always)]
    fn cookie(self) -> u64 {
        // SAFETY: as above.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }

    #[inline(always)]
    fn protocol(self) -> u8 {
        // SAFETY: the context is the program's.
        unsafe { (&raw const (*self.0).protocol).read_volatile() as u8 }
    }

    /// Whether the socket has a peer.
    #[inline(always)]
    fn is_connected(self) -> bool {
        // SAFETY: as above; the socket is there as long as the program runs.
        unsafe { (&raw const (*(&raw const (*self.0).__bindgen_anon_1.sk).read_volatile()).state).read_volatile() == CONNECTED }
    }

    #[inline(always)]
    fn ipv4(self) -> V4 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).user_ip4).read_volatile() }.to_ne_bytes()
    }

    #[inline(always)]
    fn set_ipv4(self, address: &V4) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).user_ip4).write_volatile(u32::from_ne_bytes(*address)) }
    }

    /// A word of the IPv6 address.
    #[inline(always)]
    fn word(self, at: usize) -> [u8; 4] {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).user_ip6[at]).read_volatile() }.to_ne_bytes()
    }

    #[inline(always)]
    fn set_word(self, at: usize, word: [u8; 4]) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).user_ip6[at]).write_volatile(u32::from_ne_bytes(word)) }
    }

    #[inline(always)]
    fn ipv6(self) -> V6 {
        let ([a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]) = (self.word(0), self.word(1), self.word(2), self.word(3));
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    #[inline(always)]
    fn set_ipv6(self, address: &V6) {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
        self.set_word(0, [a, b, c, d]);
        self.set_word(1, [e, f, g, h]);
        self.set_word(2, [i, j, k, l]);
        self.set_word(3, [m, n, o, p]);
    }

    /// Whether the IPv6 address stands for an IPv4 address: ::ffff:a.b.c.d.
    #[inline(always)]
    fn is_mapped(self) -> bool {
        self.word(0) == [0; 4] && self.word(1) == [0; 4] && self.word(2) == [0, 0, 0xff, 0xff]
    }

    /// The port, network byte order.
    #[inline(always)]
    fn port(self) -> [u8; 2] {
        // SAFETY: as above. The word's first two bytes in memory are the port.
        (unsafe { (&raw const (*self.0).user_port).read_volatile() } as u16).to_ne_bytes()
    }

    #[inline(always)]
    fn set_port(self, port: [u8; 2]) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).user_port).write_volatile(u16::from_ne_bytes(port) as u32) }
    }

    /// Whom the socket talks to under an address, or may talk to.
    #[inline(always)]
    fn key<A: Family>(self, address: &A, port: [u8; 2], end: u8) -> SocketKey {
        SocketKey {
            cookie: self.cookie(),
            address: address.wide(),
            port,
            protocol: self.protocol(),
            version: A::VERSION,
            end,
            reserved: [0; 3],
        }
    }

    #[inline(always)]
    fn leads_ipv6(self, each: bool) -> i32 {
        if self.is_mapped() {
            self.leads::<V4>(each, self.word(3), |address| self.set_word(3, *address))
        } else {
            self.leads::<V6>(each, self.ipv6(), |address| self.set_ipv6(address))
        }
    }

    /// Leads the call to a backend where its address is a frontend's. What the program returns. `each`: every datagram asks, and stays with
    /// its backend; else the call is for all that the socket sends.
    #[inline(always)]
    fn leads<A: Family>(self, each: bool, address: A, set: impl FnOnce(&A)) -> i32 {
        match self.backend(each, &address) {
            Ok(Some((backend, port))) => {
                set(&backend);
                self.set_port(port);
                PASS
            }
            Ok(None) => PASS,
            Err(error) => {
                // SAFETY: a static can be read. Volatile, since the loader has written it.
                if unsafe { (&raw const SAYS_ERROR).read_volatile() } != 0 {
                    // SAFETY: the helper takes a number.
                    unsafe { bpf_set_retval(-error) };
                }
                FAIL
            }
        }
    }

    /// The backend where the address is a frontend's: its address and port. An error is the call's.
    #[inline(always)]
    fn backend<A: Family>(self, each: bool, address: &A) -> Result<Option<(A, [u8; 2])>, i32> {
        let (protocol, port) = (self.protocol(), self.port());
        if protocol != protocol::TCP && protocol != protocol::UDP {
            return Ok(None);
        }
        let frontend = ServiceKey { address: *address, port, protocol, reserved: 0 };
        let Some(service) = A::service(&frontend) else {
            // The socket may have talked to it through a service before. One that is connected still does: of a socket of IPv6 whose peer
            // has an IPv4 address, each datagram comes here with the peer's.
            let direct = self.key(address, port, socket_end::BACKEND);
            // SAFETY: only whether there is a row is looked at.
            if !(each && self.is_connected()) && unsafe { SOCKETS.get(direct) }.is_some() {
                let _ = SOCKETS.remove(direct);
            }
            return Ok(None);
        };
        let to = self.key(address, port, socket_end::FRONTEND);
        let seen = |number| SocketEntry { address: address.wide(), backend: number, port, reserved: [0; 2] };
        let (number, backend) = match if each { stays::<A>(&to, &service) } else { None } {
            Some(known) => known,
            None if service.table == TABLE_NONE => {
                return Err(if service.flags & service_flag::DROP != 0 { EHOSTUNREACH } else { ECONNREFUSED });
            }
            None => {
                let slot = slot_of_socket(self.cookie(), &frontend, service.bits);
                let jiffies = maps::jiffies();
                let (number, backend) = pick::<A>(&service, backend_flag::CHOSEN, NODE, slot, jiffies).ok_or(EHOSTUNREACH)?;
                if service.affinity != 0 {
                    maps::stay(&AffinityKey { client: NODE, service: service.service }, number, jiffies);
                }
                if each {
                    // An error lets the next datagram be chosen for anew.
                    let _ = SOCKETS.insert(to, seen(number), 0);
                }
                (number, backend)
            }
        };
        let (address, port) = (A::narrow(&backend.address), backend.port);
        let from = self.key(&address, port, socket_end::BACKEND);
        // SAFETY: a plain comparison; what is torn in it is written anew.
        if unsafe { SOCKETS.get(from) }.is_none_or(|known| *known != seen(number)) {
            // An error lets the socket see the backend.
            let _ = SOCKETS.insert(from, seen(number), 0);
        }
        Ok(Some((address, port)))
    }

    #[inline(always)]
    fn shows_ipv4(self) {
        if self.is_of_node() {
            self.shows::<V4>(self.ipv4(), |address| self.set_ipv4(address));
        }
    }

    #[inline(always)]
    fn shows_ipv6(self) {
        if !self.is_of_node() {
            return;
        }
        if self.is_mapped() {
            self.shows::<V4>(self.word(3), |address| self.set_word(3, *address));
        } else {
            self.shows::<V6>(self.ipv6(), |address| self.set_ipv6(address));
        }
    }

    /// Shows the frontend in the place of the backend that the socket came to through it.
    #[inline(always)]
    fn shows<A: Family>(self, address: A, set: impl FnOnce(&A)) {
        let key = self.key(&address, self.port(), socket_end::BACKEND);
        // SAFETY: a plain copy.
        let Some(entry) = unsafe { SOCKETS.get(key) }.copied() else { return };
        set(&A::narrow(&entry.address));
        self.set_port(entry.port);
    }
}

/// The backend that a socket's datagrams to a frontend go to already, as long as it answers.
#[inline(always)]
fn stays<A: Family>(to: &SocketKey, service: &ServiceEntry) -> Option<(u32, Backend)> {
    // SAFETY: a plain copy.
    let number = unsafe { SOCKETS.get(to) }?.backend;
    let backend = maps::backend(number)?;
    let is_same = backend.version == A::VERSION && backend.service == service.service && backend.flags & backend_flag::SERVING != 0;
    is_same.then_some((number, backend))
}
