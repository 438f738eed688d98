//! Where what the node's own processes send to services by SCTP goes: no program at a socket sees an association, so connection tracking leads it.
//! One table of nf_tables, of a rule for each backend of a frontend.

use super::LinkError;
use super::nftables::{
    Batch, EQUAL, META_FAMILY, Message, NETWORK_HEADER, NOT_EQUAL, REGISTER, SECOND_REGISTER, THIRD_REGISTER, Table, compare, expression,
    family_of, immediate, meta_is, octets, payload, replace, translate,
};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// The name of the table; its family is `inet`.
pub const TABLE: &str = "palisade-associations";
/// Its one chain.
const CHAIN: &str = "output";
/// `NF_INET_LOCAL_OUT`.
const HOOK: u32 = 3;
/// Where destinations are translated, `NF_IP_PRI_NAT_DST`, and before anybody else's rules there: who translates a flow first has it.
const PRIORITY: i32 = -101;
/// `IPPROTO_SCTP`.
const SCTP: u8 = 132;

/// Where associations that the node's own processes open go, by the frontend that they name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Associations(pub BTreeMap<SocketAddr, Lead>);

/// Where the associations to a frontend go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lead {
    /// Each to one of these, all of the frontend's family, with the same chance; at least one.
    Backends(Vec<SocketAddr>),
    /// Nowhere: nobody is there. Who opens one gets an ICMP error.
    Refused,
    /// Nowhere: nobody who may answer is on this node. Who opens one gets an ICMP error.
    Unreachable,
}

impl Associations {
    /// Makes the table of the calling thread's network namespace say this, in one step; where there are no frontends there is none. Associations
    /// that have begun go on as they are.
    ///
    /// # Errors
    /// The kernel has no nf_tables, or the caller may not.
    pub fn apply(&self) -> Result<(), LinkError> {
        replace(self)
    }
}

impl Table for Associations {
    const NAME: &'static str = TABLE;

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn write(&self, batch: &mut Batch) {
        batch.nat_chain::<Self>(CHAIN, HOOK, PRIORITY);
        batch.rule::<Self>(CHAIN, others_rule);
        for (frontend, lead) in &self.0 {
            match lead {
                Lead::Backends(backends) => {
                    for (index, backend) in backends.iter().enumerate() {
                        batch.rule::<Self>(CHAIN, |rule| backend_rule(rule, *frontend, *backend, backends.len() - index));
                    }
                }
                Lead::Refused => batch.rule::<Self>(CHAIN, |rule| refusal_rule(rule, *frontend, PORT_UNREACHABLE)),
                Lead::Unreachable => batch.rule::<Self>(CHAIN, |rule| refusal_rule(rule, *frontend, HOST_UNREACHABLE)),
            }
        }
    }
}

/// `meta l4proto != sctp accept`: every other flow of the node passes one rule.
fn others_rule(list: &mut Message) {
    const TRANSPORT: u32 = 16;
    const VERDICT_REGISTER: u32 = 0;
    const ACCEPT: u32 = 1;
    expression(list, "meta", |meta| {
        meta.number(1, REGISTER);
        meta.number(2, TRANSPORT);
    });
    compare(list, NOT_EQUAL, &[SCTP]);
    expression(list, "immediate", |immediate| {
        immediate.number(1, VERDICT_REGISTER);
        immediate.nested(2, |data| data.nested(2, |verdict| verdict.number(1, ACCEPT)));
    });
}

/// `meta nfproto FAMILY daddr ADDRESS sctp dport PORT`.
fn goes_to(list: &mut Message, frontend: SocketAddr) {
    const TRANSPORT_HEADER: u32 = 2;
    let offset = if frontend.is_ipv6() { 24 } else { 16 };
    let address = octets(&frontend.ip());
    meta_is(list, META_FAMILY, &[family_of(frontend.ip())]);
    payload(list, NETWORK_HEADER, offset, address.len() as u32);
    compare(list, EQUAL, &address);
    payload(list, TRANSPORT_HEADER, 2, 2);
    compare(list, EQUAL, &frontend.port().to_be_bytes());
}

/// `... numgen random mod LEFT == 0 dnat to BACKEND`: one chance in so many as there are backends from here on.
fn backend_rule(list: &mut Message, frontend: SocketAddr, backend: SocketAddr, left: usize) {
    const RANDOM: u32 = 1;
    const DESTINATION: u32 = 1;
    /// `NF_NAT_RANGE_PROTO_SPECIFIED`.
    const PORT_SPECIFIED: u32 = 1 << 1;
    goes_to(list, frontend);
    if left > 1 {
        expression(list, "numgen", |number| {
            number.number(1, REGISTER);
            number.number(2, left as u32);
            number.number(3, RANDOM);
            number.number(4, 0);
        });
        // The number is in the machine's byte order.
        compare(list, EQUAL, &0_u32.to_ne_bytes());
    }
    for register in [SECOND_REGISTER, THIRD_REGISTER] {
        immediate(list, register, &backend.port().to_be_bytes());
    }
    translate(list, DESTINATION, backend.ip(), PORT_SPECIFIED);
}

/// `NFT_REJECT_ICMPX_PORT_UNREACH`.
const PORT_UNREACHABLE: u8 = 1;
/// `NFT_REJECT_ICMPX_HOST_UNREACH`.
const HOST_UNREACHABLE: u8 = 2;

/// `... reject with icmpx REASON`.
fn refusal_rule(list: &mut Message, frontend: SocketAddr, reason: u8) {
    /// `NFT_REJECT_ICMPX_UNREACH`: of the packet's family.
    const UNREACHABLE: u32 = 2;
    goes_to(list, frontend);
    expression(list, "reject", |reject| {
        reject.number(1, UNREACHABLE);
        reject.attribute(2, &[reason]);
    });
}
