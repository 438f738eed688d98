//! A link that is narrower than those before it, and what hosts learn of it.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    path::Path,
};

use nix::libc;

use super::talk::receive;
use super::{DOUBT, Space, run, soon, towards};

/// Longest packet on a narrow link: the least that IPv6 has.
const NARROW: u32 = 1280;
/// Bytes of a datagram that the links of pods take whole, and that is longer than a narrow one takes.
const LONG: usize = 1350;

/// Puts a host behind a router by a narrow link. `networks`: the addresses of router and host in each network on it.
pub fn put_behind(router: &Space, host: &Space, networks: &[[IpAddr; 2]]) {
    let (thread, ends) = (host.thread, networks.to_vec());
    router.inside(move || {
        for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            fs::write(Path::new("/proc/sys").join(setting), "1").unwrap();
        }
        run(&format!("ip link add name lower type veth peer name upper netns {thread}"));
        run(&format!("ip link set lower mtu {NARROW} up"));
        for [end, _] in ends {
            run(&format!("ip address add {} dev lower", in_network(end)));
        }
    });
    let ends = networks.to_vec();
    host.inside(move || {
        run(&format!("ip link set upper mtu {NARROW} up"));
        for [gateway, end] in ends {
            run(&format!("ip address add {} dev upper", in_network(end)));
            // It says nothing of its own link's width.
            run(&format!("ip route add default via {gateway} advmss 1440"));
        }
    });
}

fn in_network(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { "24" } else { "64 nodad" })
}

/// Sends a long datagram until one comes, and tells from where: in fragments, for the first is lost on the way, and the sender told that it is too long.
pub fn comes_in_fragments(from: &UdpSocket, to: SocketAddr, receiver: &UdpSocket) -> SocketAddr {
    let mut source = None;
    receiver.set_read_timeout(Some(DOUBT)).unwrap();
    soon("a datagram comes in fragments", || {
        from.send_to(&[7; LONG], to).unwrap();
        source = receive(receiver, &mut [0; 2000]).ok().filter(|(length, _)| *length == LONG).map(|(_, source)| source);
        source.is_some()
    });
    source.unwrap()
}

/// That a host has learnt how narrow its way to another one is, and sends nothing longer that must not be cut to pieces.
#[track_caller]
pub fn assert_learnt(host: &Space, to: IpAddr) {
    let (route, sent) = host.inside(move || (run(&format!("ip route get {to}")), send_whole(to)));
    assert!(route.contains(&format!("mtu {NARROW}")), "{route}");
    assert_eq!(sent.unwrap_err().raw_os_error(), Some(libc::EMSGSIZE), "{to}");
}

/// Sends a long datagram that nobody may cut to pieces, the sender's kernel neither.
fn send_whole(to: IpAddr) -> io::Result<usize> {
    let (level, option) =
        if to.is_ipv4() { (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER) } else { (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER) };
    let socket = towards(to);
    // In both families the same number.
    let always = libc::IP_PMTUDISC_DO;
    let length = size_of_val(&always) as libc::socklen_t;
    // SAFETY: the kernel reads so many bytes of the value, which outlives the call.
    let answer = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const always).cast(), length) };
    assert_eq!(answer, 0, "{}", io::Error::last_os_error());
    socket.send_to(&[7; LONG], (to, 9))
}

/// The kernel of this namespace forgets what it was told of ways.
pub fn forget_ways() {
    for version in ["-4", "-6"] {
        run(&format!("ip {version} route flush cache"));
    }
}
