//! The maps, as the datapath reads them.

use palisade_datapath_core::abi::{Address, Backend, CHUNK, ChunkKey, ServiceEntry, TABLE_NONE, backend_flag, service_flag};
use palisade_datapath_core::packet::Packet;
use palisade_datapath_core::service::{place, slot};
use palisade_service::model::Services;
use palisade_service::oracle::{self, Answer};
use palisade_service::{Compiled, Frontend, Numbers, Step, frontend};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The maps, and a program that may have begun at any time since the last wait.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    pub frontends: BTreeMap<Frontend, ServiceEntry>,
    pub chunks: BTreeMap<ChunkKey, [u32; CHUNK]>,
    pub backends: BTreeMap<u32, Backend>,
    /// The cell that outlives the agent.
    pub highest: u32,
    /// Rows of frontends that a program may have read and still go on from.
    read: BTreeSet<(Frontend, ServiceEntry)>,
}

impl Kernel {
    /// The maps after all of what `compiled` says.
    pub fn holding(compiled: &Compiled, numbers: &Numbers) -> Self {
        Self {
            frontends: compiled.frontends.iter().map(|(frontend, entry)| (*frontend, *entry)).collect(),
            chunks: compiled.chunks().collect(),
            backends: compiled.backends.iter().map(|(number, backend)| (number.0, *backend)).collect(),
            highest: numbers.highest(),
            read: BTreeSet::new(),
        }
    }

    /// Makes one write, and checks what must hold after each.
    pub fn make(&mut self, step: &Step) {
        self.read.extend(self.frontends.iter().map(|(frontend, entry)| (*frontend, *entry)));
        match step {
            Step::RaiseNumber(highest) => {
                assert!(*highest > self.highest, "{step:?} after {}", self.highest);
                self.highest = *highest;
            }
            Step::WriteBackend(number, backend) => {
                if let Some(before) = self.backends.insert(*number, *backend) {
                    assert_eq!(Backend { flags: backend.flags, ..before }, *backend, "a number is given once");
                }
            }
            Step::WriteChunk(key, chunk) => assert_eq!(self.chunks.insert(*key, **chunk), None, "a table is never altered: {key:?}"),
            Step::WriteFrontend(frontend, entry) => drop(self.frontends.insert(*frontend, *entry).is_some()),
            Step::RemoveFrontend(frontend) => assert!(self.frontends.remove(frontend).is_some(), "{step:?}"),
            Step::AwaitPrograms => self.read.clear(),
            Step::RemoveChunk(key) => assert!(self.chunks.remove(key).is_some(), "{step:?}"),
            Step::RemoveBackend(number) => assert!(self.backends.remove(number).is_some(), "{step:?}"),
        }
        assert!(self.numbers().all(|number| number <= self.highest), "after {step:?}: a number that was not raised to");
        for (frontend, entry) in &self.read {
            Client::BOTH.into_iter().for_each(|client| drop(self.reach(client, frontend, Some(entry))));
        }
    }

    fn numbers(&self) -> impl Iterator<Item = u32> {
        let entries = self.frontends.values().flat_map(|entry| [entry.service, entry.table, entry.outside_table]);
        entries.chain(self.chunks.keys().map(|key| key.table)).chain(self.backends.keys().copied())
    }

    /// What an agent that starts again reads.
    pub fn read(&self) -> (Compiled, Numbers) {
        (Compiled::read(self.frontends.clone(), self.backends.clone(), self.chunks.clone()), Numbers::after(self.highest))
    }

    /// What becomes of new flows of a client to a frontend: all that any of them may find.
    pub fn answer(&self, client: Client, frontend: &Frontend) -> Answer {
        self.reach(client, frontend, self.frontends.get(frontend))
    }

    /// What becomes of new flows for which this row was read. Every slot and backend must be there.
    fn reach(&self, client: Client, frontend: &Frontend, entry: Option<&ServiceEntry>) -> Answer {
        let Some(entry) = entry.filter(|entry| client.is_served(entry)) else { return Answer::NoService };
        let (table, bits) = client.table(entry);
        if table == TABLE_NONE {
            return if entry.flags & client.drop_flag() == 0 { Answer::Refused } else { Answer::Dropped };
        }
        let parts = (0..1 << bits >> 6).map(|chunk| ChunkKey { table, chunk });
        let part = |key| self.chunks.get(&key).unwrap_or_else(|| panic!("{frontend}: {entry:?} without {key:?}"));
        let numbers: BTreeSet<u32> = parts.flat_map(|key| part(key).iter().copied()).collect();
        Answer::OneOf(numbers.into_iter().map(|number| self.target(client, frontend, entry, number)).collect())
    }

    fn target(&self, client: Client, frontend: &Frontend, entry: &ServiceEntry, number: u32) -> (IpAddr, u16) {
        let backend = self.backends.get(&number).unwrap_or_else(|| panic!("{frontend}: no backend {number}"));
        assert_eq!(backend.service, entry.service, "{frontend}: {backend:?}");
        assert_ne!(backend.flags & client.chosen_flag(), 0, "{frontend}: {backend:?} of a table is not chosen");
        frontend::target(backend).expect("a version")
    }

    /// The backends that clients of each service's port may stay with.
    pub fn chosen(&self, client: Client) -> BTreeSet<(u32, (IpAddr, u16))> {
        chosen(client, self.backends.values())
    }

    /// Where the datapath sends the flow of a client's port.
    pub fn walk(&self, client: Client, frontend: &Frontend, number: u32, port: u16) -> Option<(IpAddr, u16)> {
        let entry = self.frontends.get(frontend).filter(|entry| client.is_served(entry) && client.table(entry).0 != TABLE_NONE)?;
        let (table, bits) = client.table(entry);
        let [a, b, c, d] = number.to_be_bytes();
        let slot = match frontend.address {
            IpAddr::V4(address) => slot(&packet([10, b, c, d], address.octets(), frontend, port), bits),
            IpAddr::V6(address) => {
                let client = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d];
                slot(&packet(client, address.octets(), frontend, port), bits)
            }
        };
        let (key, index) = place(table, slot);
        Some(self.target(client, frontend, entry, self.chunks[&key][index]))
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    Inside,
    Outside,
}

impl Client {
    pub const BOTH: [Self; 2] = [Self::Inside, Self::Outside];

    /// What the oracle says to this one.
    pub fn oracle(self, services: &Services, frontend: &Frontend) -> Answer {
        match self {
            Self::Inside => oracle::backends(services, frontend),
            Self::Outside => oracle::backends_outside(services, frontend),
        }
    }

    fn is_served(self, entry: &ServiceEntry) -> bool {
        self == Self::Inside || entry.flags & service_flag::OUTSIDE != 0
    }

    fn table(self, entry: &ServiceEntry) -> (u32, u8) {
        match self {
            Self::Inside => (entry.table, entry.bits),
            Self::Outside => (entry.outside_table, entry.outside_bits),
        }
    }

    fn drop_flag(self) -> u8 {
        match self {
            Self::Inside => service_flag::DROP,
            Self::Outside => service_flag::OUTSIDE_DROP,
        }
    }

    fn chosen_flag(self) -> u8 {
        match self {
            Self::Inside => backend_flag::CHOSEN,
            Self::Outside => backend_flag::CHOSEN_OUTSIDE,
        }
    }
}

/// The backends that are chosen for a client, with the numbers of their services' ports.
pub fn chosen<'a>(client: Client, backends: impl Iterator<Item = &'a Backend>) -> BTreeSet<(u32, (IpAddr, u16))> {
    let chosen = backends.filter(|backend| backend.flags & client.chosen_flag() != 0);
    chosen.filter_map(|backend| Some((backend.service, frontend::target(backend)?))).collect()
}

fn packet<A: Address + Default>(source: A, destination: A, frontend: &Frontend, port: u16) -> Packet<A> {
    Packet {
        source,
        destination,
        source_port: port.to_be_bytes(),
        destination_port: frontend.port.to_be_bytes(),
        protocol: frontend.protocol.number(),
        ..Packet::default()
    }
}
