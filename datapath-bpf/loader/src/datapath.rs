use std::time::{Duration, Instant};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData, MapError, PerCpuArray},
    programs::Program,
};
use nix::fcntl::FlockArg;
use palisade_datapath_core::{
    abi::{Backend, CHUNK, ChunkKey, Counter, Endpoint, Hook, LocalPod, Node, Outcome, PolicyEntry, PolicyKey, Tunnel, cell, map},
    epoch,
    packet::connection::Lifetimes,
};

use crate::{
    AddressTable, AttachKind, EventRing, InstallStep, LoaderError, Overlay, PacketContext, PinDir, PortTable, PrefixTable, ServiceTable,
    Sizes, Table, TestRun, attach,
    cgroup::{self, Cgroup, namespace_cookie},
    connections::{self, Connections, Swept},
    error::{Cause, cannot_open, refuse},
    install::{Installation, await_programs, classifier, program_missing},
    layout::Larger,
    packet_run,
    probe::try_clsact,
    row::Row,
    sizes::roomy,
    sockets,
};

/// How many rows a map has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Its name.
    pub map: &'static str,
    /// Rows that it has room for now.
    pub rows: u32,
    /// Rows that it may have room for at most.
    pub limit: u32,
}

/// A map that was replaced by a larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grown {
    /// Its name.
    pub map: &'static str,
    /// Rows that the old one had room for.
    pub from: u32,
    /// Rows that the new one has room for.
    pub to: u32,
    /// Rows that were copied.
    pub copied: usize,
    /// How long the replacement took, together with those of other maps at the same time.
    pub duration: Duration,
}

/// The agent's handle: the loaded programs and the tables that they read.
///
/// Dropping it changes nothing: programs, links and tables stay pinned and go on working.
pub struct Datapath {
    pin: PinDir,
    sizes: Sizes,
    lifetimes: Lifetimes,
    kind: AttachKind,
    programs: Ebpf,
    config: Array<MapData, u32>,
    counters: PerCpuArray<MapData, Row<Counter>>,
    connections: Connections,
    /// The pod interfaces of this node, by the index of the host's end.
    pub endpoints: Table<u32, Endpoint>,
    /// Where the pods of this node are reached.
    pub local: AddressTable<LocalPod>,
    /// The identities of whole addresses.
    pub addresses: AddressTable<u32>,
    /// The identities of prefixes.
    pub prefixes: PrefixTable,
    /// What each subject's policy says of each identity.
    pub policy: Table<PolicyKey, PolicyEntry>,
    /// The port tables.
    pub ports: PortTable,
    /// What stands behind each frontend.
    pub services: ServiceTable,
    /// The parts of the tables of backends.
    pub chunks: Table<ChunkKey, [u32; CHUNK]>,
    /// The backends.
    pub backends: Table<u32, Backend>,
    /// The pod ranges of the other nodes.
    pub tunnels: PrefixTable<Tunnel>,
    /// The nodes, by their addresses.
    pub nodes: AddressTable<Node>,
}

impl Datapath {
    /// Loads the programs of this build and takes over what is pinned; makes what is missing. A map that is pinned with less room
    /// than its first size is replaced by a larger one.
    ///
    /// Every packet is judged all the while: pinned maps are compared with what the programs want before anything is
    /// touched; the programs are loaded over those maps; each attached endpoint is given them in place; then they are pinned under
    /// their names by a rename, so that the CNI plugin finds the old or the new ones and never none.
    /// A run that was killed on the way is finished by the next.
    ///
    /// # Errors
    /// [`LoaderError::NotBpffs`], [`LoaderError::Permission`], [`LoaderError::NoAttachKind`], [`LoaderError::NewerAbi`],
    /// [`LoaderError::Layout`], [`LoaderError::Load`]: endpoints keep the programs that they had. [`LoaderError::Pin`], [`LoaderError::Attach`]:
    /// some may have the new ones.
    pub fn open(pin: &PinDir, sizes: &Sizes) -> Result<Self, LoaderError> {
        Self::open_timed(pin, sizes, &Lifetimes::DEFAULT)
    }

    /// As [`open`](Self::open), with how long flows may be silent. Entries that are there already are measured by it from now on.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_timed(pin: &PinDir, sizes: &Sizes, lifetimes: &Lifetimes) -> Result<Self, LoaderError> {
        pin.check()?;
        pin.prepare()?;
        let _lock = pin.lock(FlockArg::LockExclusive)?;
        let began = Instant::now();
        let mut next = Installation::prepare(pin, sizes, lifetimes, &[], &mut |_| ())?;
        let kind = attach::supported_kind()?;
        if kind == AttachKind::Clsact && !try_clsact(classifier(&mut next.programs, Hook::FromPod)?)? {
            // Where the agent has no CAP_SYS_ADMIN, `palisade-agent install-cni` has tried it before.
            tracing::debug!("no network namespace can be made to try clsact filters");
        }
        let mut config: Array<MapData, u32> = open_map(pin, map::CONFIG)?;
        // The programs have no other way to know how long a jiffy is.
        let hertz = connections::hertz(connections::tick());
        config.set(cell::HERTZ, hertz, 0).map_err(|error| row_refused(map::CONFIG, "write", cell::HERTZ, error))?;
        let replaced = next.attach(pin, &mut |_| ())?;
        next.name(pin, &mut |_| ())?;
        tell(&next.larger, began);
        tracing::info!(directory = %pin.root().display(), %kind, replaced, "the datapath is loaded");
        let tables = Tables::open(pin)?;
        Ok(Self {
            config,
            counters: open_map(pin, map::COUNTERS)?,
            connections: Connections::open(pin)?,
            endpoints: tables.endpoints,
            local: tables.local,
            addresses: tables.addresses,
            prefixes: tables.prefixes,
            policy: tables.policy,
            ports: tables.ports,
            services: tables.services,
            chunks: tables.chunks,
            backends: tables.backends,
            tunnels: tables.tunnels,
            nodes: tables.nodes,
            pin: pin.clone(),
            sizes: sizes.clone(),
            lifetimes: *lifetimes,
            kind,
            programs: next.programs,
        })
    }

    /// Makes room: each map for at least so many rows. Maps that have too little are replaced by larger ones, with
    /// half of the rows to spare, all at once and without a packet that is judged otherwise. Returns those that were replaced.
    ///
    /// No row may be written meanwhile; the caller is the only one who writes them.
    ///
    /// A program of sockets that cannot be replaced is taken away, and the growth goes on: pods do not need it. Whether that came to pass,
    /// [`serves_sockets`](Self::serves_sockets) says.
    ///
    /// # Errors
    /// [`LoaderError::TooManyRows`] where a map would pass its limit; [`LoaderError::Grow`]: all is as before.
    /// [`LoaderError::Torn`]: this handle must not be used any more; [`open`](Self::open) mends what is pinned.
    pub fn grow(&mut self, needs: &[(&'static str, usize)]) -> Result<Vec<Grown>, LoaderError> {
        self.grow_watched(needs, &mut |_| ())
    }

    /// As [`grow`](Self::grow); `watch` is told of each step, so that a test sees what packets meet there.
    ///
    /// # Errors
    /// As [`grow`](Self::grow).
    pub fn grow_watched(&mut self, needs: &[(&'static str, usize)], watch: &mut dyn FnMut(InstallStep)) -> Result<Vec<Grown>, LoaderError> {
        let room = self.room();
        let mut wanted = Vec::new();
        for (map, rows) in needs {
            let Some(room) = room.iter().find(|room| room.map == *map) else { continue };
            if *rows > room.limit as usize {
                return Err(LoaderError::TooManyRows { map, rows: *rows, limit: room.limit });
            }
            if *rows > room.rows as usize {
                wanted.push((*map, roomy(*rows, room.limit)));
            }
        }
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let began = Instant::now();
        let _lock = self.pin.lock(FlockArg::LockExclusive)?;
        let names = || wanted.iter().map(|(map, _)| *map).collect::<Vec<_>>().join(", ");
        let failed = |error: LoaderError| LoaderError::Grow { maps: names(), source: Box::new(error) };
        let torn = |error: LoaderError| LoaderError::Torn { maps: names(), source: Box::new(error) };
        let mut next = match Installation::prepare(&self.pin, &self.sizes, &self.lifetimes, &wanted, watch) {
            Ok(next) => next,
            Err(error) => {
                // What cannot be removed now is removed by the next one.
                drop(self.pin.remove_leftovers());
                return Err(failed(error));
            }
        };
        if let Err(error) = next.attach(&self.pin, watch) {
            next.detach(&self.pin, &mut self.programs).map_err(torn)?;
            return Err(failed(error));
        }
        next.name(&self.pin, watch).map_err(torn)?;
        let tables = Tables::open(&self.pin).map_err(torn)?;
        self.endpoints = tables.endpoints;
        self.local = tables.local;
        self.addresses = tables.addresses;
        self.prefixes = tables.prefixes;
        self.policy = tables.policy;
        self.ports = tables.ports;
        self.services = tables.services;
        self.chunks = tables.chunks;
        self.backends = tables.backends;
        self.tunnels = tables.tunnels;
        self.nodes = tables.nodes;
        self.programs = next.programs;
        Ok(tell(&next.larger, began))
    }

    /// How this kernel attaches the programs of new endpoints.
    pub fn attach_kind(&self) -> AttachKind {
        self.kind
    }

    /// Where everything is pinned.
    pub fn pin_dir(&self) -> &PinDir {
        &self.pin
    }

    /// The policy epoch.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn epoch(&self) -> Result<u32, LoaderError> {
        self.cell(cell::EPOCH)
    }

    /// Begins the [epoch](palisade_datapath_core::epoch) of a change, unless it has begun: every packet is judged by itself until
    /// [`bump_epoch`](Self::bump_epoch).
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn unsettle_epoch(&mut self) -> Result<(), LoaderError> {
        self.set_cell(cell::EPOCH, epoch::unsettled(self.epoch()?))
    }

    /// Moves the policy epoch on, so that every flow is judged again at its next packet. Returns the new one, which is settled.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn bump_epoch(&mut self) -> Result<u32, LoaderError> {
        let next = epoch::next(self.epoch()?);
        self.set_cell(cell::EPOCH, next)?;
        Ok(next)
    }

    /// Moves the policy epoch on where verdicts were `altered`, and where a change that was cut short has left one in which every packet is judged
    /// by itself.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn settle_epoch(&mut self, altered: bool) -> Result<(), LoaderError> {
        if altered || !epoch::settled(self.epoch()?) {
            self.bump_epoch()?;
        }
        Ok(())
    }

    /// Waits until every program has ended that runs now, so that nobody has read what is about to go. Some ten milliseconds.
    pub fn await_programs(&self) {
        await_programs();
    }

    /// The highest number that was given to a service's port, a table of backends or a backend.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn service_number(&self) -> Result<u32, LoaderError> {
        self.cell(cell::SERVICE_NUMBER)
    }

    /// Writes down the highest number that is about to be given.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn raise_service_number(&mut self, highest: u32) -> Result<(), LoaderError> {
        self.set_cell(cell::SERVICE_NUMBER, highest)
    }

    /// The overlay; `None` while there is none.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn overlay(&self) -> Result<Option<Overlay>, LoaderError> {
        let port = u16::try_from(self.cell(cell::OVERLAY_PORT)?).unwrap_or(0);
        Ok(Overlay::new(port, self.cell(cell::OVERLAY_NETWORK)?))
    }

    /// Says what the overlay is: from here on pods cannot send to its port, and flows that do already are judged again. `None` where there
    /// is none, or none any more: then nothing passes the device.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn set_overlay(&mut self, overlay: Option<Overlay>) -> Result<(), LoaderError> {
        if let Some(overlay) = overlay {
            self.set_cell(cell::OVERLAY_NETWORK, overlay.network())?;
        }
        self.set_cell(cell::OVERLAY_PORT, overlay.map_or(0, |overlay| overlay.port().into()))?;
        self.bump_epoch().map(drop)
    }

    /// The device by which pods' packets enter the overlay past the stack.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn overlay_device(&self) -> Result<Option<u32>, LoaderError> {
        Ok(Some(self.cell(cell::OVERLAY_DEVICE)?).filter(|index| *index != 0))
    }

    /// Names that device, once it is up with its programs. `None`, before it goes: packets go through the stack.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn set_overlay_device(&mut self, index: Option<u32>) -> Result<(), LoaderError> {
        self.set_cell(cell::OVERLAY_DEVICE, index.unwrap_or(0))
    }

    /// What moves when somebody on the way has complained, by ICMP, of an outer packet of this node's. What the kernel made of it, its routes say.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn outer_errors(&self) -> Result<u32, LoaderError> {
        self.cell(cell::OUTER_ERRORS)
    }

    /// Makes new flows that are allowed report events too, or no more.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn observe_allowed(&mut self, on: bool) -> Result<(), LoaderError> {
        self.set_cell(cell::OBSERVE_ALLOWED, on.into())
    }

    /// Packets and bytes by outcome, all CPUs together, every outcome in the order of its number.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn counters(&self) -> Result<Vec<(Outcome, Counter)>, LoaderError> {
        Outcome::ALL
            .iter()
            .map(|outcome| {
                let key = *outcome as u32;
                let values = self.counters.get(&key, 0).map_err(|error| row_refused(map::COUNTERS, "read", key, error))?;
                let sum = values.iter().fold(Counter::default(), |sum, Row(one)| Counter {
                    packets: sum.packets.wrapping_add(one.packets),
                    bytes: sum.bytes.wrapping_add(one.bytes),
                });
                Ok((*outcome, sum))
            })
            .collect()
    }

    /// The maps that rows are written to, and how much room each has.
    pub fn room(&self) -> Vec<Room> {
        let mut now = vec![(self.policy.name(), self.policy.max_entries()), self.ports.room()];
        now.extend(self.addresses.room());
        now.extend(self.prefixes.room());
        now.push((self.endpoints.name(), self.endpoints.max_entries()));
        now.extend(self.local.room());
        now.extend(self.services.room());
        now.push((self.chunks.name(), self.chunks.max_entries()));
        now.push((self.backends.name(), self.backends.max_entries()));
        now.extend(self.tunnels.room());
        now.extend(self.nodes.room());
        let limit = |map, rows| self.sizes.limit(map).map_or(rows, |limit| limit.max(rows));
        now.into_iter().map(|(map, rows)| Room { map, rows, limit: limit(map, rows) }).collect()
    }

    /// The ring of events. Read it in one place only: all readers share one position.
    ///
    /// # Errors
    /// [`LoaderError::Pin`].
    pub fn events(&mut self) -> Result<EventRing, LoaderError> {
        EventRing::open(&self.pin)
    }

    /// Removes the entries of flows whose time-out has passed, those of flows from outside too. Says of each table how many, and how full it
    /// was before, or what failed ([`LoaderError::Table`]): that keeps no other from being swept.
    ///
    /// For the sake of memory: the programs take an expired entry for none. (An idle connection from outside ends for them with its row.)
    pub fn sweep_connections(&mut self) -> [Result<Swept, LoaderError>; 4] {
        self.connections.sweep(&self.lifetimes)
    }

    /// Gives the sockets of the calling thread's network namespace that are in a cgroup services, by programs that stay there without this
    /// process. What is attached already gets the programs of this build in place.
    ///
    /// # Errors
    /// [`LoaderError::NoNamespaceCookie`], [`LoaderError::Load`], [`LoaderError::AttachToCgroup`]: none are served.
    pub fn serve_sockets(&mut self, cgroup: &Cgroup) -> Result<(), LoaderError> {
        let served = self.try_serve_sockets(cgroup);
        if served.is_err() {
            // A socket that is led to a backend and sees it there would be worse off than without.
            self.release_sockets()?;
        }
        served
    }

    fn try_serve_sockets(&mut self, cgroup: &Cgroup) -> Result<(), LoaderError> {
        let cookie = namespace_cookie()?;
        cgroup::load(&mut self.programs)?;
        self.set_cell(cell::NETNS_HIGH, (cookie >> 32) as u32)?;
        self.set_cell(cell::NETNS_LOW, cookie as u32)?;
        cgroup::attach(&self.pin, &mut self.programs, cgroup)
    }

    /// Whether all programs of sockets are attached: one that could not be replaced was taken away, and those of a cgroup that was
    /// removed are gone with it.
    ///
    /// # Errors
    /// [`LoaderError::Pin`].
    pub fn serves_sockets(&self) -> Result<bool, LoaderError> {
        cgroup::is_whole(&self.pin)
    }

    /// Takes the programs of sockets away; fine when there are none.
    ///
    /// # Errors
    /// [`LoaderError::Table`], [`LoaderError::Pin`].
    pub fn release_sockets(&mut self) -> Result<(), LoaderError> {
        cgroup::detach(&self.pin)?;
        self.set_cell(cell::NETNS_LOW, 0)?;
        self.set_cell(cell::NETNS_HIGH, 0)
    }

    /// Ends the sockets of the calling thread's network namespace that are connected for datagrams through a service to a backend that, by its
    /// number, does not serve: their processes get an error and connect anew. Returns how many there were.
    ///
    /// # Errors
    /// [`LoaderError::Sockets`], [`LoaderError::Table`].
    pub fn end_datagrams(&self, serves: impl Fn(u32) -> bool) -> Result<usize, LoaderError> {
        sockets::end_datagrams(&Table::open(&self.pin, map::SOCKETS)?, serves)
    }

    /// Runs a program over a packet, without sending it anywhere. Maps are read and written as by real packets.
    ///
    /// # Errors
    /// [`LoaderError::TestRun`]: a packet shorter than an Ethernet header, an interface that does not exist in this thread's network namespace.
    pub fn test_run(&self, hook: Hook, packet: &[u8], context: &PacketContext) -> Result<TestRun, LoaderError> {
        let Some(Program::SchedClassifier(program)) = self.programs.program(hook.program()) else {
            return Err(program_missing(hook));
        };
        packet_run::run(program, hook, packet, context)
    }

    fn cell(&self, index: u32) -> Result<u32, LoaderError> {
        self.config.get(&index, 0).map_err(|error| row_refused(map::CONFIG, "read", index, error))
    }

    fn set_cell(&mut self, index: u32, value: u32) -> Result<(), LoaderError> {
        self.config.set(index, value, 0).map_err(|error| row_refused(map::CONFIG, "write", index, error))
    }
}

/// The tables of the maps that grow.
struct Tables {
    endpoints: Table<u32, Endpoint>,
    local: AddressTable<LocalPod>,
    addresses: AddressTable<u32>,
    prefixes: PrefixTable,
    policy: Table<PolicyKey, PolicyEntry>,
    ports: PortTable,
    services: ServiceTable,
    chunks: Table<ChunkKey, [u32; CHUNK]>,
    backends: Table<u32, Backend>,
    tunnels: PrefixTable<Tunnel>,
    nodes: AddressTable<Node>,
}

impl Tables {
    fn open(pin: &PinDir) -> Result<Self, LoaderError> {
        Ok(Self {
            endpoints: Table::open(pin, map::ENDPOINTS)?,
            local: AddressTable::open(pin, map::LOCAL_V4, map::LOCAL_V6)?,
            addresses: AddressTable::open(pin, map::ADDRESS_V4, map::ADDRESS_V6)?,
            prefixes: PrefixTable::open(pin, map::PREFIX_V4, map::PREFIX_V6)?,
            policy: Table::open(pin, map::POLICY)?,
            ports: PortTable::open(pin, map::PORTS)?,
            services: ServiceTable::open(pin)?,
            chunks: Table::open(pin, map::CHUNKS)?,
            backends: Table::open(pin, map::BACKENDS)?,
            tunnels: PrefixTable::open(pin, map::TUNNELS_V4, map::TUNNELS_V6)?,
            nodes: AddressTable::open(pin, map::NODES_V4, map::NODES_V6)?,
        })
    }
}

/// Logs the maps that were replaced.
fn tell(larger: &[(Larger, usize)], began: Instant) -> Vec<Grown> {
    let duration = began.elapsed();
    let grown = larger.iter().map(|(Larger { map, from, to }, copied)| {
        tracing::info!(map, from, to, copied, ?duration, "a map was replaced by a larger one");
        Grown { map, from: *from, to: *to, copied: *copied, duration }
    });
    grown.collect()
}

fn row_refused(map: &'static str, operation: &'static str, key: u32, error: MapError) -> LoaderError {
    refuse(
        error,
        || format!("to {operation} a row of {map}"),
        |source: Cause| LoaderError::Table { map, operation, key: key.to_string(), source },
    )
}

fn open_map<M: TryFrom<Map, Error = MapError>>(pin: &PinDir, name: &'static str) -> Result<M, LoaderError> {
    let path = pin.map(name);
    let opened = MapData::from_pin(&path).and_then(Map::from_map_data).map_err(|error| cannot_open(&path, error))?;
    M::try_from(opened)
        .map_err(|error| LoaderError::Object { what: format!("its map {name} does not have the shared types' layout: {error}") })
}
