//! ARP between a pod and its link.

use crate::abi::{Outcome, V4};

/// Length in bytes of an ARP packet for Ethernet and IPv4.
pub const LENGTH: usize = 28;

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const UNSPECIFIED: V4 = [0; 4];

/// Whether an ARP packet that a pod sent speaks for the pod alone: its sender is the pod, or, in a probe, nobody yet.
#[inline(always)]
pub fn check(packet: &[u8; LENGTH], pod_mac: &[u8; 6], pod: &V4) -> Result<(), Outcome> {
    // Ethernet, IPv4, address lengths 6 and 4, operation.
    let [0, 1, 8, 0, 6, 4, 0, operation, m0, m1, m2, m3, m4, m5, a0, a1, a2, a3, ..] = *packet else {
        return Err(Outcome::ArpInvalid);
    };
    let own = *pod != UNSPECIFIED && [a0, a1, a2, a3] == *pod;
    let probe = operation == REQUEST && [a0, a1, a2, a3] == UNSPECIFIED;
    if !matches!(operation, REQUEST | REPLY) || [m0, m1, m2, m3, m4, m5] != *pod_mac || !(own || probe) {
        return Err(Outcome::ArpInvalid);
    }
    Ok(())
}
