//! Packets that leave the node by one of its own interfaces: what a backend sends to a client outside the cluster comes from the frontend
//! that the client asked.
//!
//! The stack has had its say, masquerading too: of a backend on another node, connection tracking has restored the addresses that the packets
//! had before they were masqueraded.

use palisade_datapath_core::abi::{Hook, V4, V6, cell};
use palisade_datapath_core::packet::Bytes;
use palisade_datapath_core::packet::ethernet::{self, ether_type};

use crate::event::drop_packet;
use crate::flow;
use crate::frame::{Frame, action};
use crate::maps::{self, Family, Scratch};
use crate::outside;

const HOOK: Hook = Hook::ToNet;

/// Runs the program.
#[inline(always)]
pub fn run(frame: &Frame) -> i32 {
    if maps::config(cell::OUTSIDE) == 0 || frame.vlan() {
        return action::PASS;
    }
    frame.gather();
    let Some(header) = frame.head::<0, { ethernet::LENGTH }>() else { return action::PASS };
    let ether_type = ethernet::Header::read(&header).ether_type;
    if ether_type != frame.protocol() {
        return action::PASS;
    }
    match ether_type {
        ether_type::IPV4 => v4(frame),
        ether_type::IPV6 => v6(frame),
        _ => action::PASS,
    }
}

// Subprograms, so that the packets of both families do not add up on the stack.
#[inline(never)]
fn v4(frame: &Frame) -> i32 {
    let Some(Scratch { packet, quoted, judgement, via }) = V4::scratch() else { return action::PASS };
    if flow::read_v4(frame, packet).is_err() {
        return action::PASS;
    }
    match outside::answer_as_frontend(frame, packet, quoted, via) {
        Ok(()) => action::PASS,
        Err(outcome) => drop_packet(frame, HOOK, outcome, packet, judgement),
    }
}

#[inline(never)]
fn v6(frame: &Frame) -> i32 {
    let Some(Scratch { packet, quoted, judgement, via }) = V6::scratch() else { return action::PASS };
    if flow::read_v6(frame, packet).is_err() {
        return action::PASS;
    }
    match outside::answer_as_frontend(frame, packet, quoted, via) {
        Ok(()) => action::PASS,
        Err(outcome) => drop_packet(frame, HOOK, outcome, packet, judgement),
    }
}
