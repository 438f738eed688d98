//! A client outside, on a link by which the node is reached.

use palisade_cni::link::{MacAddress, Namespace, Netlink, Veth};
use std::io::{ErrorKind, Result};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

/// The node's end of the link.
pub const UPLINK: &str = "uplink";
/// The node's addresses, from which it sends.
pub const NODE: [&str; 2] = ["192.0.2.77", "2001:db8::77"];
/// Further addresses of the node.
pub const OTHER: [&str; 2] = ["192.0.2.78", "2001:db8::78"];
/// The client's addresses.
pub const CLIENT: [&str; 2] = ["192.0.2.9", "2001:db8::9"];

/// The client, and the link as long as this is there. It knows the node alone, and no way to pods.
pub struct Outside(pub Namespace);

impl Outside {
    /// Joins it to the node, which has its addresses from then on.
    pub fn join() -> Self {
        let (node, namespace) = (Netlink::open().unwrap(), Namespace::create().unwrap());
        let [mac, peer_mac] = [1, 2].map(MacAddress::local);
        node.create_veth(&Veth { name: UPLINK, mac, peer_name: UPLINK, peer_mac, peer_namespace: Some(&namespace), mtu: 1500 }).unwrap();
        let client = Netlink::open_in(&namespace).unwrap();
        for (netlink, addresses) in [(&node, [NODE, OTHER].concat()), (&client, CLIENT.to_vec())] {
            addresses.into_iter().for_each(|address| give(netlink, address));
            netlink.set_up(netlink.link(UPLINK).unwrap().unwrap().index).unwrap();
        }
        Self(namespace)
    }

    /// Opens a connection, with time for more than one SYN.
    pub fn connect(&self, to: SocketAddr) -> Result<TcpStream> {
        let stream = self.connect_within(to, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Ok(stream)
    }

    /// Whether it is told nothing of a connection, neither that it may nor that it may not.
    pub fn hears_nothing(&self, from: SocketAddr) -> bool {
        self.connect_within(from, Duration::from_millis(300)).is_err_and(|error| error.kind() == ErrorKind::TimedOut)
    }

    fn connect_within(&self, to: SocketAddr, patience: Duration) -> Result<TcpStream> {
        self.0.enter(|| TcpStream::connect_timeout(&to, patience)).unwrap()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        if let Ok(node) = Netlink::open()
            && let Ok(Some(link)) = node.link(UPLINK)
        {
            let _ = node.delete_link(link.index);
        }
    }
}

/// Gives an end of the link an address.
pub fn give(end: &Netlink, address: &str) {
    let link = end.link(UPLINK).unwrap().unwrap().index;
    let length = if address.contains(':') { 64 } else { 24 };
    end.add_address(link, format!("{address}/{length}").parse().unwrap()).unwrap();
}

/// A port at an address.
pub fn at(address: &str, port: u16) -> SocketAddr {
    (address.parse::<IpAddr>().unwrap(), port).into()
}
