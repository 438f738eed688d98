//! What must leave under the node's own address: what pods send to the outside, and what the datapath marks. One table of nf_tables, of up to
//! five rules and four sets.

use super::LinkError;
use super::nftables::{
    Batch, FAMILY_IPV4, FAMILY_IPV6, META_FAMILY, Message, NETWORK_HEADER, NEW_ELEMENTS, NEW_SET, NLM_F_CREATE, NOT_EQUAL, REGISTER,
    SECOND_REGISTER, THIRD_REGISTER, Table, compare, expression, immediate, meta_is, octets, payload, replace, translate,
};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;

/// The name of the table; its family is `inet`.
pub const TABLE: &str = "palisade";
/// Its one chain.
const CHAIN: &str = "postrouting";
/// `NF_INET_POST_ROUTING`.
const HOOK: u32 = 4;
/// Where source addresses are translated: `NF_IP_PRI_NAT_SRC`.
const PRIORITY: i32 = 100;
/// Elements of a set in one message; an attribute holds at most 64 KiB.
const ELEMENTS: usize = 500;

/// Which packets leave under the node's address: those from the pods of this node to the outside, and those that are marked.
///
/// They leave from one of [`PORTS`]. Where a packet has one already, and nobody else uses it, it keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masquerade {
    /// The pods' addresses.
    pub sources: BTreeSet<IpNet>,
    /// Destinations that see the pods' own addresses. Multicast and link-local ones always do.
    pub inside: BTreeSet<IpNet>,
    /// The bits of a packet's mark of which each says that it is to be masqueraded, wherever it goes; zero: none does.
    pub mark: u32,
    /// Under which address what is marked leaves by which device, where the kernel's choice is not right: one of a family at most.
    pub by_device: BTreeSet<(String, IpAddr)>,
}

/// The ports from which masqueraded packets leave. An answer to one comes to the node's address, where the datapath looks for services before
/// the kernel looks for the connection: so none of them is among those that Kubernetes gives out as node ports, 30000 to 32767.
pub const PORTS: RangeInclusive<u16> = 32_768..=u16::MAX;

impl Masquerade {
    /// Makes the table of the calling thread's network namespace say this, in one step; where nothing is to be masqueraded there is none. Connections that are
    /// translated already go on as they are.
    ///
    /// # Errors
    /// The kernel has no nf_tables, or the caller may not.
    pub fn apply(&self) -> Result<(), LinkError> {
        replace(self)
    }

    /// Whether no packet is masqueraded.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty() && self.mark == 0
    }
}

impl Table for Masquerade {
    const NAME: &'static str = TABLE;

    fn is_empty(&self) -> bool {
        self.is_empty()
    }

    fn write(&self, batch: &mut Batch) {
        batch.nat_chain::<Self>(CHAIN, HOOK, PRIORITY);
        if self.mark != 0 {
            for (device, address) in &self.by_device {
                batch.rule::<Self>(CHAIN, |rule| device_rule(rule, self.mark, device, *address));
            }
            // First: a destination inside the cluster is no reason to leave what is marked alone.
            batch.rule::<Self>(CHAIN, |rule| marked_rule(rule, self.mark));
        }
        for ipv6 in [false, true] {
            self.write_family(batch, ipv6);
        }
    }
}

impl Masquerade {
    fn write_family(&self, batch: &mut Batch, ipv6: bool) {
        let of_family =
            |blocks: &BTreeSet<IpNet>| -> Vec<IpNet> { blocks.iter().filter(|block| is_ipv6(block) == ipv6).copied().collect() };
        let sources = of_family(&self.sources);
        if sources.is_empty() {
            return;
        }
        let mut inside = of_family(&self.inside);
        let always: &[&str] = if ipv6 { &["ff00::/8", "fe80::/10"] } else { &["224.0.0.0/4", "169.254.0.0/16", "255.255.255.255/32"] };
        inside.extend(always.iter().filter_map(|block| block.parse::<IpNet>().ok()));
        let (pods, other) = if ipv6 { ("pods6", "inside6") } else { ("pods4", "inside4") };
        for (id, (name, blocks)) in (1 + 2 * u32::from(ipv6)..).zip([(pods, sources), (other, inside)]) {
            batch.message(NEW_SET, NLM_F_CREATE, |message| set(message, name, id, ipv6));
            for elements in ranges(&blocks).chunks(ELEMENTS) {
                batch.message(NEW_ELEMENTS, NLM_F_CREATE, |message| write_elements(message, name, id, elements));
            }
        }
        batch.rule::<Self>(CHAIN, |rule| pods_rule(rule, pods, other, ipv6));
    }
}

fn is_ipv6(block: &IpNet) -> bool {
    block.addr().is_ipv6()
}

/// A set of intervals of addresses.
fn set(message: &mut Message, name: &str, id: u32, ipv6: bool) {
    const INTERVAL: u32 = 4;
    message.text(1, TABLE);
    message.text(2, name);
    message.number(3, INTERVAL);
    // The type is what `nft` shows elements by.
    message.number(4, if ipv6 { 8 } else { 7 });
    message.number(5, if ipv6 { 16 } else { 4 });
    message.number(10, id);
}

fn write_elements(message: &mut Message, name: &str, id: u32, elements: &[(IpAddr, Option<IpAddr>)]) {
    const INTERVAL_END: u32 = 1;
    message.text(1, TABLE);
    message.text(2, name);
    message.number(4, id);
    message.nested(3, |list| {
        let mut element = |address: &IpAddr, flags: u32| {
            list.nested(1, |element| {
                element.nested(1, |key| key.attribute(1, &octets(address)));
                if flags != 0 {
                    element.number(3, flags);
                }
            });
        };
        for (first, after) in elements {
            element(first, 0);
            // The last address of all has none after it.
            after.iter().for_each(|after| element(after, INTERVAL_END));
        }
    });
}

/// `meta mark and MARK != 0 masquerade to :PORTS fully-random`.
fn marked_rule(list: &mut Message, mark: u32) {
    is_marked(list, mark);
    // Clients behind many ports meet at few backends: two packets that look for a free port at once should not find the same.
    masquerade(list, RANDOM_FULLY);
}

/// `meta mark and MARK != 0 meta oifname DEVICE snat to ADDRESS:PORTS fully-random`.
fn device_rule(list: &mut Message, mark: u32, device: &str, address: IpAddr) {
    const OUT_INTERFACE_NAME: u32 = 7;
    const NAME_LENGTH: usize = 16;
    const SOURCE: u32 = 0;
    is_marked(list, mark);
    let mut name = device.as_bytes().to_vec();
    name.resize(NAME_LENGTH, 0);
    meta_is(list, OUT_INTERFACE_NAME, &name);
    ports(list, SECOND_REGISTER, THIRD_REGISTER);
    translate(list, SOURCE, address, RANDOM_FULLY);
}

/// `meta mark and MARK != 0`.
fn is_marked(list: &mut Message, mark: u32) {
    const MARK: u32 = 3;
    expression(list, "meta", |meta| {
        meta.number(1, REGISTER);
        meta.number(2, MARK);
    });
    // The mark of a packet is in the machine's byte order.
    expression(list, "bitwise", |bitwise| {
        bitwise.number(1, REGISTER);
        bitwise.number(2, REGISTER);
        bitwise.number(3, size_of_val(&mark) as u32);
        bitwise.nested(4, |mask| mask.attribute(1, &mark.to_ne_bytes()));
        bitwise.nested(5, |xor| xor.attribute(1, &0_u32.to_ne_bytes()));
    });
    compare(list, NOT_EQUAL, &0_u32.to_ne_bytes());
}

/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
const RANDOM_FULLY: u32 = 1 << 4;

/// Puts the bounds of [`PORTS`] into registers.
fn ports(list: &mut Message, first: u32, last: u32) {
    immediate(list, first, &PORTS.start().to_be_bytes());
    immediate(list, last, &PORTS.end().to_be_bytes());
}

/// `masquerade to :PORTS`.
fn masquerade(list: &mut Message, flags: u32) {
    const PORTS_SPECIFIED: u32 = 1 << 1;
    ports(list, REGISTER, SECOND_REGISTER);
    expression(list, "masq", |masq| {
        masq.number(1, PORTS_SPECIFIED | flags);
        masq.number(2, REGISTER);
        masq.number(3, SECOND_REGISTER);
    });
}

/// `meta nfproto FAMILY saddr @pods daddr != @inside masquerade to :PORTS`.
fn pods_rule(list: &mut Message, pods: &str, inside: &str, ipv6: bool) {
    const INVERTED: u32 = 1;
    let (family, source, destination, length) = if ipv6 { (FAMILY_IPV6, 8, 24, 16) } else { (FAMILY_IPV4, 12, 16, 4) };
    meta_is(list, META_FAMILY, &[family]);
    for (set, offset, flags) in [(pods, source, 0), (inside, destination, INVERTED)] {
        payload(list, NETWORK_HEADER, offset, length);
        expression(list, "lookup", |lookup| {
            lookup.text(1, set);
            lookup.number(2, REGISTER);
            lookup.number(5, flags);
        });
    }
    masquerade(list, 0);
}

/// The addresses of blocks as intervals that neither overlap nor touch: the first of each, and the one after its last.
fn ranges(blocks: &[IpNet]) -> Vec<(IpAddr, Option<IpAddr>)> {
    let bounds = |block: &IpNet| (number(&block.network()), number(&block.broadcast()));
    let mut bounds: Vec<(u128, u128)> = blocks.iter().map(bounds).collect();
    bounds.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (first, last) in bounds {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    let ipv6 = blocks.iter().any(is_ipv6);
    let most = if ipv6 { u128::MAX } else { u128::from(u32::MAX) };
    let address = |number: u128| if ipv6 { IpAddr::from(Ipv6Addr::from(number)) } else { IpAddr::from((number as u32).to_be_bytes()) };
    merged.into_iter().map(|(first, last)| (address(first), (last < most).then(|| address(last + 1)))).collect()
}

fn number(address: &IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(*address).into(),
        IpAddr::V6(address) => u128::from(*address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn intervals_neither_overlap_nor_touch() {
        let shown = |texts: &[&str]| -> Vec<String> {
            let shown =
                |(first, after): (IpAddr, Option<IpAddr>)| format!("{first} {}", after.map(|it| it.to_string()).unwrap_or_default());
            ranges(&blocks(texts)).into_iter().map(shown).collect()
        };
        assert_eq!(shown(&["10.0.1.0/24", "10.0.0.0/24", "10.0.0.7/32", "10.0.3.0/24"]), ["10.0.0.0 10.0.2.0", "10.0.3.0 10.0.4.0"]);
        assert_eq!(shown(&["255.255.255.255/32"]), ["255.255.255.255 "]);
        assert_eq!(shown(&["0.0.0.0/0", "10.0.0.0/8"]), ["0.0.0.0 "]);
        assert_eq!(shown(&["fd00::/64", "ff00::/8"]), ["fd00:: fd00:0:0:1::", "ff00:: "]);
        assert!(ranges(&[]).is_empty());
    }
}
