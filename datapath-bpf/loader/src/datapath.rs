use std::{collections::BTreeMap, fs};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, MapData, MapError, PerCpuArray},
    programs::{Program, SchedClassifier},
};
use nix::fcntl::FlockArg;
use palisade_datapath_core::abi::{Counter, Endpoint, Hook, LocalPod, Outcome, PolicyEntry, PolicyKey, cell, map};

use crate::{
    AddressTable, AttachKind, EventRing, LoaderError, PacketContext, PinDir, PortTable, PrefixTable, Sizes, Table, TestRun, attach,
    connections::{self, Connections},
    error::{Cause, cannot_open, refuse},
    layout::{self, Layout},
    object::OBJECT,
    packet_run,
    pin::{HOOKS, program_name},
    probe::try_clsact,
    row::Row,
    takeover,
};

/// The agent's handle: the loaded programs and the tables that they read.
///
/// Dropping it changes nothing: programs, links and tables stay pinned and go on working.
pub struct Datapath {
    pin: PinDir,
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
}

impl Datapath {
    /// Loads the programs of this build and takes over what is pinned; makes what is missing.
    ///
    /// The order keeps every packet judged: pinned maps are compared with what the programs want before anything is
    /// touched; the programs are loaded over those maps; they are pinned under their names by a rename, so that the CNI
    /// plugin finds the old or the new ones and never none; then each attached endpoint is given them in place.
    /// A run that was killed on the way is finished by the next.
    ///
    /// # Errors
    /// [`LoaderError::NotBpffs`], [`LoaderError::Permission`], [`LoaderError::NoAttachKind`], [`LoaderError::NewerAbi`],
    /// [`LoaderError::Layout`]: nothing was changed. [`LoaderError::Load`], [`LoaderError::Pin`]: endpoints keep the programs that they had.
    pub fn open(pin: &PinDir, sizes: &Sizes) -> Result<Self, LoaderError> {
        pin.check()?;
        pin.prepare()?;
        let _lock = pin.lock(FlockArg::LockExclusive)?;
        pin.remove_leftovers()?;
        let mut layouts = layout::declared(OBJECT, sizes)?;
        layout::reconcile(pin, sizes, &mut layouts)?;
        let mut programs = load(pin, &layouts)?;
        let kind = attach::supported_kind()?;
        for hook in HOOKS {
            let program = classifier(&mut programs, hook)?;
            program.load().map_err(|error| load_refused(error, &format!("the program {}", program_name(hook))))?;
        }
        if kind == AttachKind::Clsact && !try_clsact(classifier(&mut programs, Hook::FromPod)?)? {
            // Where the agent has no CAP_SYS_ADMIN, `palisade-agent install-cni` has tried it before.
            tracing::debug!("no network namespace can be made to try clsact filters");
        }
        let mut config: Array<MapData, u32> = open_map(pin, map::CONFIG)?;
        // The programs have no other way to know how long a jiffy is.
        let hertz = connections::hertz(connections::tick());
        config.set(cell::HERTZ, hertz, 0).map_err(|error| row_refused(map::CONFIG, "write", cell::HERTZ, error))?;
        for hook in HOOKS {
            pin_program(pin, hook, classifier(&mut programs, hook)?)?;
        }
        let mut replaced = 0;
        for hook in HOOKS {
            replaced += takeover::replace_all(pin, hook, classifier(&mut programs, hook)?)?;
        }
        tracing::info!(directory = %pin.root().display(), %kind, replaced, "the datapath is loaded");
        Ok(Self {
            config,
            counters: open_map(pin, map::COUNTERS)?,
            connections: Connections::open(pin)?,
            endpoints: Table::open(pin, map::ENDPOINTS)?,
            local: AddressTable::open(pin, map::LOCAL_V4, map::LOCAL_V6)?,
            addresses: AddressTable::open(pin, map::ADDRESS_V4, map::ADDRESS_V6)?,
            prefixes: PrefixTable::open(pin, map::PREFIX_V4, map::PREFIX_V6)?,
            policy: Table::open(pin, map::POLICY)?,
            ports: PortTable::open(pin, map::PORTS)?,
            pin: pin.clone(),
            kind,
            programs,
        })
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

    /// Moves the policy epoch on, so that every flow is judged again at its next packet. Returns the new one.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn bump_epoch(&mut self) -> Result<u32, LoaderError> {
        let next = self.epoch()?.wrapping_add(1);
        self.set_cell(cell::EPOCH, next)?;
        Ok(next)
    }

    /// Whether new flows that are allowed make events too.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn observes_allowed(&self) -> Result<bool, LoaderError> {
        Ok(self.cell(cell::OBSERVE_ALLOWED)? != 0)
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

    /// The maps that rows are written to, and how many rows each has room for.
    pub fn limits(&self) -> Vec<(&'static str, u32)> {
        let mut limits = vec![(self.policy.name(), self.policy.max_entries()), self.ports.limit()];
        limits.extend(self.addresses.limits());
        limits.extend(self.prefixes.limits());
        limits.push((self.endpoints.name(), self.endpoints.max_entries()));
        limits.extend(self.local.limits());
        limits
    }

    /// The ring of events. Read it in one place only: all readers share one position.
    ///
    /// # Errors
    /// [`LoaderError::Pin`].
    pub fn events(&mut self) -> Result<EventRing, LoaderError> {
        EventRing::open(&self.pin)
    }

    /// Removes the entries of flows whose time-out has passed. Returns how many.
    ///
    /// Only for the sake of memory: the programs judge an expired entry as none.
    ///
    /// # Errors
    /// [`LoaderError::Table`].
    pub fn sweep_connections(&mut self) -> Result<usize, LoaderError> {
        self.connections.sweep()
    }

    /// Runs a program over a packet, without sending it anywhere. Maps are read and written as by real packets.
    ///
    /// # Errors
    /// [`LoaderError::TestRun`]: a packet shorter than an Ethernet header, an interface that does not exist in this thread's network namespace.
    pub fn test_run(&self, hook: Hook, packet: &[u8], context: &PacketContext) -> Result<TestRun, LoaderError> {
        let Some(Program::SchedClassifier(program)) = self.programs.program(program_name(hook)) else {
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

/// Makes the maps that are not pinned yet, pins them, and relocates the programs to all of them.
fn load(pin: &PinDir, layouts: &BTreeMap<String, Layout>) -> Result<Ebpf, LoaderError> {
    let mut loader = EbpfLoader::new();
    for (name, layout) in layouts {
        // aya maps the ring by the size that the object declares, so it is told that of a pinned one too.
        loader.map_pin_path(name, pin.map(name)).map_max_entries(name, layout.max_entries);
    }
    loader.load(OBJECT).map_err(|error| load_refused(error, "the maps of the datapath"))
}

pub(crate) fn load_refused(error: impl std::error::Error + Send + Sync + 'static, what: &str) -> LoaderError {
    refuse(error, || format!("to load {what}"), |source| LoaderError::Load { what: what.to_owned(), source })
}

fn row_refused(map: &'static str, operation: &'static str, key: u32, error: MapError) -> LoaderError {
    refuse(
        error,
        || format!("to {operation} a row of {map}"),
        |source: Cause| LoaderError::Table { map, operation, key: key.to_string(), source },
    )
}

fn program_missing(hook: Hook) -> LoaderError {
    LoaderError::Object { what: format!("it has no classifier {}", program_name(hook)) }
}

fn classifier(programs: &mut Ebpf, hook: Hook) -> Result<&mut SchedClassifier, LoaderError> {
    programs.program_mut(program_name(hook)).and_then(|program| program.try_into().ok()).ok_or_else(|| program_missing(hook))
}

/// Pins a program under its name; one that is pinned already is replaced without a moment in between.
fn pin_program(pin: &PinDir, hook: Hook, program: &mut SchedClassifier) -> Result<(), LoaderError> {
    let (next, path) = (pin.next_program(hook), pin.program(hook));
    program.pin(&next).map_err(|error| {
        refuse(error, || format!("to pin {}", next.display()), |source| LoaderError::Pin { action: "pin", path: next.clone(), source })
    })?;
    fs::rename(&next, &path).map_err(|error| pin.failed("rename the new program to", &path, error))
}

fn open_map<M: TryFrom<Map, Error = MapError>>(pin: &PinDir, name: &'static str) -> Result<M, LoaderError> {
    let path = pin.map(name);
    let opened = MapData::from_pin(&path).and_then(Map::from_map_data).map_err(|error| cannot_open(&path, error))?;
    M::try_from(opened)
        .map_err(|error| LoaderError::Object { what: format!("its map {name} does not have the shared types' layout: {error}") })
}
