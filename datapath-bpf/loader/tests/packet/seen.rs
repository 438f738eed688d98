//! What came of a packet, and what must have.

use palisade_datapath_core::abi::{DatapathEvent, Outcome};
use palisade_datapath_core::verdict::Decision;
use palisade_test_support::packet::{Mac, checksum};

use crate::world::{DROP, PASS, Pod, REDIRECT};

/// What became of a packet.
#[derive(Debug)]
#[must_use = "say what should have become of the packet"]
pub struct Seen {
    /// As it was.
    pub sent: Vec<u8>,
    pub action: i32,
    pub packet: Vec<u8>,
    pub outcome: Outcome,
    pub event: Option<DatapathEvent>,
}

/// What a program of the node's own interface made of a packet.
#[derive(Debug)]
#[must_use = "say what should have become of the packet"]
pub struct Crossed {
    /// As it was.
    pub sent: Vec<u8>,
    pub action: i32,
    pub packet: Vec<u8>,
    pub mark: u32,
    /// What it was counted as, where it was.
    pub outcome: Option<Outcome>,
}

impl Crossed {
    /// It goes on as it was, unmarked and uncounted.
    #[track_caller]
    pub fn untouched(&self) {
        assert_eq!((self.action, self.outcome, self.mark), (PASS, None, 0));
        assert_eq!(self.packet, self.sent);
    }

    /// It was dropped.
    #[track_caller]
    pub fn dropped(&self, outcome: Outcome) {
        assert_eq!((self.action, self.outcome), (DROP, Some(outcome)));
    }

    /// It goes on, marked so.
    #[track_caller]
    pub fn passed(&self, mark: u32) {
        assert_eq!((self.action, self.outcome, self.mark), (PASS, None, mark));
        assert_eq!(self.packet[..12], self.sent[..12], "hardware addresses are the stack's");
    }
}

impl Seen {
    /// It was dropped, and an event told of it.
    #[track_caller]
    pub fn dropped(self, outcome: Outcome) -> DatapathEvent {
        self.dropped_silently(outcome);
        self.event.unwrap_or_else(|| panic!("no event tells of {outcome:?}"))
    }

    /// It was dropped; the event may have been swallowed by the limit of its flow.
    #[track_caller]
    pub fn dropped_silently(&self, outcome: Outcome) {
        assert_eq!(self.outcome, outcome);
        assert_eq!(self.action, DROP);
        assert_eq!(self.packet, self.sent, "a packet that is dropped is not changed");
    }

    /// It goes on through the stack, as it was.
    #[track_caller]
    pub fn passed(self, outcome: Outcome) {
        assert_eq!((self.outcome, self.action), (outcome, PASS));
        assert_eq!(self.packet, self.sent, "the stack gets the packet as it was");
    }

    /// It goes straight to a pod: both hardware addresses are rewritten and the hop limit is one lower, nothing else.
    #[track_caller]
    pub fn redirected_to(self, pod: Pod, outcome: Outcome) {
        self.redirected([pod.mac, pod.host_mac], outcome);
    }

    /// It leaves for another node past the stack: the hop limit is one lower, nothing else; who takes it further sets hardware addresses.
    #[track_caller]
    pub fn left(self, outcome: Outcome) {
        let mac = |from: usize| self.sent[from..from + 6].try_into().unwrap();
        let macs = [mac(0), mac(6)];
        self.redirected(macs, outcome);
    }

    #[track_caller]
    fn redirected(self, [destination, source]: [Mac; 2], outcome: Outcome) {
        assert_eq!((self.outcome, self.action), (outcome, REDIRECT));
        let mut expected = self.sent;
        expected[..6].copy_from_slice(&destination);
        expected[6..12].copy_from_slice(&source);
        if expected[12..14] == [8, 0] {
            expected[22] -= 1;
            expected[24..26].fill(0);
            let header = 14 + usize::from(expected[14] & 0x0f) * 4;
            let sum = checksum(&expected[14..header]).to_be_bytes();
            expected[24..26].copy_from_slice(&sum);
        } else {
            expected[21] -= 1;
        }
        assert_eq!(self.packet, expected);
    }
}

/// The decisions of an event, each with its reason.
pub fn decisions(event: &DatapathEvent) -> [(Decision, u32); 2] {
    let decision = |byte| Decision::from_byte(byte).unwrap();
    [(decision(event.egress), event.egress_reason), (decision(event.ingress), event.ingress_reason)]
}
