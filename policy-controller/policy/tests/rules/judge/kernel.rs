//! The maps as a simulated kernel holds them: one write at a time.

use palisade_datapath_core::abi::{Address, Direction, PolicyEntry, PolicyKey, PortEntry, REASON_NONE, SUBJECT_NONE, V4, V6};
use palisade_datapath_core::epoch;
use palisade_datapath_core::verdict::{self, Decision, Side, Tables, Verdict};
use palisade_identity::Signature;
use palisade_policy::generate::Random;
use palisade_policy::model::ObjectName;
use palisade_policy::rules::RuleSet;
use palisade_policy::{Compiled, Numbers, Reason, Step};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Maps, and the subject in each endpoint's row.
#[derive(Clone, Default)]
pub struct Kernel {
    pub rows: Compiled,
    pub endpoints: BTreeMap<ObjectName, u32>,
    pub epoch: u32,
}

impl Kernel {
    /// One write.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::WritePort { key, length, entry } => {
                self.rows.ports.insert((*key, *length), *entry);
            }
            Step::WritePolicy { key, entry } => {
                self.rows.policy.insert(*key, *entry);
            }
            Step::WritePrefix { prefix, identity } => {
                assert_eq!(*prefix, prefix.trunc(), "host bits in a prefix");
                self.rows.prefixes.insert(*prefix, *identity);
            }
            Step::WriteAddress { address, identity } => {
                self.rows.addresses.insert(*address, *identity);
            }
            Step::Flip { pod, subject, audit } => {
                self.endpoints.insert(pod.clone(), *subject);
                self.rows.audits.remove(pod);
                if *audit != SUBJECT_NONE {
                    self.rows.audits.insert(pod.clone(), *audit);
                }
            }
            Step::AwaitPrograms => {}
            Step::UnsettleEpoch => self.epoch = epoch::unsettled(self.epoch),
            Step::BumpEpoch => self.epoch = epoch::next(self.epoch),
            Step::RemoveAddress(address) => assert!(self.rows.addresses.remove(address).is_some(), "no row for {address}"),
            Step::RemovePrefix(prefix) => assert!(self.rows.prefixes.remove(prefix).is_some(), "no row for {prefix}"),
            Step::RemovePolicy(key) => assert!(self.rows.policy.remove(key).is_some(), "no row for {key:?}"),
            Step::RemovePort(key, length) => {
                assert!(self.rows.ports.remove(&(*key, *length)).is_some(), "no row for {key:?}/{length}");
            }
        }
    }

    /// What an agent that starts reads back.
    pub fn read_back(&self) -> Compiled {
        let subjects = self.endpoints.iter().filter(|(_, subject)| **subject != SUBJECT_NONE);
        Compiled { subjects: subjects.map(|(pod, subject)| (pod.clone(), *subject)).collect(), ..self.rows.clone() }
    }

    /// What an agent does that takes over what another one, or a change that failed, left: it ends the epoch of the change, and reads.
    pub fn take_over(&mut self) -> Compiled {
        if !epoch::settled(self.epoch) {
            self.epoch = epoch::next(self.epoch);
        }
        self.read_back()
    }

    /// What the policy of a pod says of a peer.
    pub fn side(&self, ask: &Ask) -> Side {
        match self.endpoints.get(&ask.pod).copied().unwrap_or(SUBJECT_NONE) {
            // An endpoint that is no subject is closed: the programs do not even ask.
            SUBJECT_NONE => Side { decision: Decision::Missing, reason: REASON_NONE },
            subject => side(&self.rows, subject, ask),
        }
    }
}

/// A program that is slow: between two of its reads any number of writes may be made. It reads the subject, the identity of the peer, then rows.
pub struct SlowProgram<'a> {
    /// What the maps held since the program began, and at what moment it is.
    moments: &'a [Kernel],
    at: Cell<usize>,
    random: RefCell<&'a mut Random>,
}

impl<'a> SlowProgram<'a> {
    /// A program that begins with the first of these moments.
    pub fn new(moments: &'a [Kernel], random: &'a mut Random) -> Self {
        Self { moments, at: Cell::new(0), random: RefCell::new(random) }
    }

    /// What it says of a peer.
    pub fn side(&self, ask: &Ask) -> Side {
        match self.read().endpoints.get(&ask.pod).copied().unwrap_or(SUBJECT_NONE) {
            SUBJECT_NONE => Side { decision: Decision::Missing, reason: REASON_NONE },
            subject => side(self, subject, ask),
        }
    }

    /// What it says of a flow by which the pod reaches itself through a service.
    pub fn itself(&self, ask: &Ask) -> Verdict {
        itself(self, self.read().endpoints.get(&ask.pod).copied().unwrap_or(SUBJECT_NONE), ask)
    }

    /// The maps at its next read.
    fn read(&self) -> &'a Kernel {
        let (at, mut random) = (self.at.get(), self.random.borrow_mut());
        if random.chance(60) {
            self.at.set(at + random.below(self.moments.len() - at));
        }
        &self.moments[self.at.get()]
    }
}

impl<A: Address> Tables<A> for SlowProgram<'_>
where
    Compiled: Tables<A>,
{
    fn identity(&self, address: &A) -> u32 {
        Tables::<A>::identity(&self.read().rows, address)
    }

    fn policy(&self, key: &PolicyKey) -> Option<PolicyEntry> {
        Tables::<A>::policy(&self.read().rows, key)
    }

    fn port(&self, table: u32, protocol: u8, port: u16) -> Option<PortEntry> {
        Tables::<A>::port(&self.read().rows, table, protocol, port)
    }
}

/// A question to one pod's policy.
#[derive(Clone, Debug)]
pub struct Ask {
    pub pod: ObjectName,
    pub direction: Direction,
    pub peer: IpAddr,
    pub protocol: u8,
    pub port: u16,
}

/// What a subject's rows say of a peer.
pub fn side<T: Tables<V4> + Tables<V6>>(tables: &T, subject: u32, ask: &Ask) -> Side {
    match ask.peer {
        IpAddr::V4(peer) => verdict::side(tables, ask.direction, subject, &peer.octets(), ask.protocol, ask.port),
        IpAddr::V6(peer) => verdict::side(tables, ask.direction, subject, &peer.octets(), ask.protocol, ask.port),
    }
}

/// What a subject's rows say of a flow to itself through a service, both sides in one run.
pub fn itself<T: Tables<V4> + Tables<V6>>(tables: &T, subject: u32, ask: &Ask) -> Verdict {
    match ask.peer {
        IpAddr::V4(own) => verdict::verdict_of_itself(tables, subject, &own.octets(), ask.protocol, ask.port),
        IpAddr::V6(own) => verdict::verdict_of_itself(tables, subject, &own.octets(), ask.protocol, ask.port),
    }
}

/// What a row says, numbers resolved: verdict and reason, then the ports with theirs.
type Said = (u8, Option<Reason>, BTreeMap<(u8, [u8; 2], u8), (u8, Option<Reason>)>);

/// Rows with every number resolved to its content.
#[derive(Debug, PartialEq, Eq)]
pub struct Resolved {
    pods: BTreeMap<ObjectName, RuleSet>,
    audits: BTreeMap<ObjectName, RuleSet>,
    addresses: BTreeMap<IpAddr, Signature>,
    prefixes: BTreeMap<String, Signature>,
    rows: BTreeMap<(RuleSet, u8, Signature), Said>,
    tables: usize,
}

/// Rows with every number resolved. Panics where a number has no content.
pub fn resolved(rows: &Compiled, numbers: &Numbers) -> Resolved {
    let signature = |number: &u32| match number {
        0 => Signature::default(),
        number => numbers.identity(*number).unwrap_or_else(|| panic!("identity {number} has no content")).clone(),
    };
    let rule_set = |number: &u32| numbers.subject(*number).unwrap_or_else(|| panic!("subject {number} has no content")).clone();
    let reason =
        |number: u32| (number != 0).then(|| numbers.reason(number).unwrap_or_else(|| panic!("reason {number} has no content")).clone());
    let said = |entry: &PolicyEntry| -> Said {
        let table = rows.ports.iter().filter(|((key, _), _)| entry.ports != 0 && key.table == entry.ports);
        let ports = table.map(|((key, length), port)| ((key.protocol, key.port, *length), (port.verdict, reason(port.reason))));
        (entry.verdict, reason(entry.reason), ports.collect())
    };
    let of_pods = |numbers: &BTreeMap<ObjectName, u32>| numbers.iter().map(|(pod, number)| (pod.clone(), rule_set(number))).collect();
    Resolved {
        pods: of_pods(&rows.subjects),
        audits: of_pods(&rows.audits),
        addresses: rows.addresses.iter().map(|(address, number)| (*address, signature(number))).collect(),
        prefixes: rows.prefixes.iter().map(|(prefix, number)| (prefix.to_string(), signature(number))).collect(),
        rows: rows.policy.iter().map(|(key, entry)| ((rule_set(&key.subject), key.direction, signature(&key.peer)), said(entry))).collect(),
        tables: rows.ports.keys().map(|(key, _)| key.table).collect::<BTreeSet<_>>().len(),
    }
}
