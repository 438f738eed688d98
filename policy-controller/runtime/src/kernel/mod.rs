//! The one writer of the maps: rows, endpoints, and what is remembered of them in the run directory.
//!
//! Everything here is synchronous and blocks (BPF system calls, files, netlink); [`KernelHandle::run`] keeps it off
//! the threads of the asynchronous part, one operation at a time.

mod apply;
mod endpoint;
mod fit;
mod grow;
mod last_good;
mod nodes;
mod numbering;
mod service;
mod sockets;
mod takeover;

pub use nodes::{NodeRows, PastTheStack};

use fit::Held;
use nodes::{NodeCounts, NodeNumbers};

use crate::lock::RunLock;
use crate::record::Records;
use crate::state::{MapSize, NodeServices, Published, Realised, State};
use last_good::LastGood;
use numbering::Numbering;
use palisade_cni::link::LinkError;
use palisade_datapath_core::abi::{Counter, Outcome, map};
use palisade_k8s::index::Digests;
use palisade_loader::{Datapath, EventRing, LoaderError, PinDir};
use palisade_policy::model::{Model, ObjectName, PolicyName};
use palisade_policy::shared::SharedMap;
use palisade_policy::{Compiled, Planner};
use palisade_protocol::Attachment;
use palisade_service::model::Services;
use service::Served;
pub use service::interface;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

/// Why the kernel does not hold what it should.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The datapath is not open.
    #[error("the programs are not loaded: {0}")]
    Closed(String),
    /// Not everything was read yet.
    #[error("not everything has been read yet: {0}")]
    NotSynced(String),
    /// A BPF operation failed.
    #[error("{}", chain(.0))]
    Loader(#[from] LoaderError),
    /// A map has no room for what a change needs while it is made. Nothing was written.
    #[error(
        "{map} has room for {limit} rows at most and the change needs {rows}, {} too many; raise its limit (--map-limit), use fewer or broader policies, fewer services, or run fewer pods on this node",
        .rows - *.limit as usize
    )]
    TooLarge {
        /// Name of the map.
        map: &'static str,
        /// Rows that it would have to hold at once.
        rows: usize,
        /// Rows that it may have room for.
        limit: u32,
    },
    /// A file in the run directory could not be read or written.
    #[error("cannot write to the run directory: {0}")]
    Run(#[from] std::io::Error),
    /// The kernel could not be asked about interfaces.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The endpoint cannot be realised as it was asked.
    #[error("{0}")]
    Invalid(String),
    /// The pod went away, or lost its addresses to another, while it was realised.
    #[error("pod {0} is not known any more")]
    PodGone(ObjectName),
    /// A pod of another node has an address of the endpoint by right.
    #[error(
        "{address} is the address of pod {pod} on node {node}, in whose pod range it lies: the node's pod range was given away, or two nodes claim it; make the pod anew once each node has a pod range of its own"
    )]
    Taken {
        /// The address.
        address: IpAddr,
        /// The pod that has it.
        pod: ObjectName,
        /// The node of that pod.
        node: String,
    },
    /// No such endpoint.
    #[error("there is no endpoint {} of container {}", .0.interface, .0.container_id)]
    Unknown(Attachment),
    /// What the kernel holds is not what should be there.
    #[error("the kernel differs from what should be there: {0}")]
    Differs(String),
}

/// What events call a node's address.
const NODE: &str = "node";

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // An error may say what its cause says already.
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// The way to the [`Kernel`] for asynchronous callers.
#[derive(Clone, Debug)]
pub struct KernelHandle(Arc<Mutex<Kernel>>);

impl KernelHandle {
    /// A handle of a kernel that is not open yet.
    pub fn new(kernel: Kernel) -> Self {
        Self(Arc::new(Mutex::new(kernel)))
    }

    /// Runs `work` on a thread that may block, after what was asked before.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce(&mut Kernel) -> T + Send + 'static) -> T {
        let kernel = Arc::clone(&self.0);
        let work = move || work(&mut kernel.lock().expect("no holder of this lock panics"));
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // Cancelled: the runtime ends, and with it whoever waits.
            Err(_) => std::future::pending().await,
        }
    }
}

/// What the agent has in the kernel and in its run directory.
pub struct Kernel {
    state: Arc<State>,
    pin: PinDir,
    records: Records,
    numbering: Numbering,
    planner: Planner,
    datapath: Option<Datapath>,
    /// Whether the datapath must be opened anew, since maps were replaced only in part.
    torn: bool,
    endpoints: BTreeMap<Attachment, Realised>,
    /// What the maps hold; `None` when it must be read back first.
    applied: Option<Arc<Compiled>>,
    /// Whether rows of endpoints may be missing that an earlier agent was killed before it wrote.
    incomplete: bool,
    /// What was compiled into them.
    good: Option<Good>,
    /// Policies whose present version does not fit.
    held: BTreeMap<PolicyName, Held>,
    last_good: LastGood,
    /// What the maps hold of services.
    served: Served,
    /// The numbers by which the overlay knows the other nodes.
    node_numbers: NodeNumbers,
    /// How many rows are about nodes.
    node_counts: NodeCounts,
    /// Whether the node's own processes are served.
    node_services: NodeServices,
    /// How full the maps were when policies were found not to fit.
    without_room: Option<fit::Tried>,
    /// Held as long as anybody may write: an operation outlives the task that asked for it.
    _lock: RunLock,
}

/// The last model that is whole in the kernel.
struct Good {
    model: Arc<Model>,
    /// Which versions of the objects it was made from.
    digests: Digests,
    local: BTreeSet<ObjectName>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("pin", &self.pin).field("endpoints", &self.endpoints.len()).finish_non_exhaustive()
    }
}

impl Kernel {
    /// The kernel's side of an agent, with nothing open yet.
    ///
    /// # Errors
    /// The run directory cannot be read or written.
    pub fn new(state: Arc<State>, lock: RunLock) -> std::io::Result<Self> {
        let records = Records::open(state.config.records())?;
        let numbering = Numbering::new(state.config.numbers());
        let mut last_good = LastGood::new(state.config.last_good());
        last_good.load()?;
        state.index().recall(last_good.unusable());
        let pin = PinDir::new(&state.config.pin_dir);
        Ok(Self {
            state,
            pin,
            records,
            numbering,
            planner: Planner::new(),
            datapath: None,
            torn: false,
            endpoints: BTreeMap::new(),
            applied: None,
            incomplete: false,
            good: None,
            held: BTreeMap::new(),
            last_good,
            served: Served::default(),
            node_numbers: NodeNumbers::default(),
            node_counts: NodeCounts::default(),
            node_services: NodeServices::Off,
            without_room: None,
            _lock: lock,
        })
    }

    /// Loads the programs, takes over what an earlier agent has pinned, and sweeps what belongs to nobody. What is
    /// pinned goes on enforcing whether or not this succeeds.
    ///
    /// # Errors
    /// No bpffs, no way to attach, no permission, foreign layouts; files of the run directory.
    pub fn open(&mut self) -> Result<EventRing, KernelError> {
        let mut datapath = Datapath::open_timed(&self.pin, &self.state.config.sizes, &self.state.config.lifetimes)?;
        // An agent that was killed may have left it on; where maps had to be replaced, somebody may still want it.
        datapath.observe_allowed(*self.state.events.wanting_allowed().borrow() > 0)?;
        let ring = datapath.events()?;
        self.datapath = Some(datapath);
        let taken = self.take_over();
        if taken.is_err() {
            self.datapath = None;
        }
        taken?;
        self.serve_node();
        self.publish()?;
        Ok(ring)
    }

    /// Switches events of allowed flows. Without a datapath there is nothing to switch.
    pub fn observe_allowed(&mut self, on: bool) -> Result<(), KernelError> {
        if let Some(datapath) = &mut self.datapath {
            datapath.observe_allowed(on)?;
        }
        Ok(())
    }

    /// Packets by outcome; none while the datapath is not open.
    pub fn counters(&self) -> Vec<(Outcome, Counter)> {
        let counters = self.datapath.as_ref().map(Datapath::counters).transpose();
        counters
            .unwrap_or_else(|error| {
                tracing::error!(error = chain(&error), "the counters cannot be read");
                None
            })
            .unwrap_or_default()
    }

    /// Removes connections that have expired, endpoints whose interfaces vanished without a DEL, and pins of such. What fails keeps nothing
    /// else from being swept; all that failed is told.
    pub fn sweep(&mut self) -> Vec<KernelError> {
        let mut failed = Vec::new();
        if let Some(datapath) = &mut self.datapath {
            for swept in datapath.sweep_connections() {
                match swept {
                    Ok(swept) => self.state.metrics.connections_swept(&swept),
                    Err(error) => failed.push(error.into()),
                }
            }
            failed.extend(self.release_vanished().err());
            failed.extend(self.sweep_pins().err());
        }
        if self.mend_node_services() {
            failed.extend(self.publish().err());
        }
        failed
    }

    fn datapath(&mut self) -> Result<&mut Datapath, KernelError> {
        let problem = || self.state.problems.of(crate::problem::Part::Datapath).unwrap_or_else(|| "not opened yet".to_owned());
        self.datapath.as_mut().ok_or_else(|| KernelError::Closed(problem()))
    }

    /// The pods that have endpoints on this node.
    fn local(&self) -> BTreeSet<ObjectName> {
        self.endpoints.values().map(|endpoint| pod_name(&endpoint.spec)).collect()
    }

    /// Tells everybody what is in the kernel now.
    fn publish(&self) -> Result<(), KernelError> {
        let Some(datapath) = &self.datapath else { return Ok(()) };
        let before = self.state.published();
        let (model, reconciled) = match &self.good {
            Some(good) => (Arc::clone(&good.model), true),
            None => (Arc::clone(&before.model), false),
        };
        let digests = self.good.as_ref().map(|good| good.digests.clone()).unwrap_or_default();
        let compiled = self.applied.clone().unwrap_or_default();
        let names = renamed(before.names.clone(), &before.model, &model);
        let served = self.served.rows().unwrap_or_else(|| Arc::clone(&before.served));
        self.state.publish(Published {
            reconciled,
            attach: Some(datapath.attach_kind()),
            epoch: datapath.epoch()?,
            sizes: sizes(datapath, &compiled, &served, &self.endpoints, self.node_counts),
            services: before.services.clone(),
            node_services: self.node_services.clone(),
            served,
            model,
            digests,
            compiled,
            numbers: self.numbering.shared(),
            endpoints: self.endpoints.clone(),
            held: self.held.iter().map(|(name, held)| (name.clone(), held.reason.clone())).collect(),
            too_many: self.held.iter().filter_map(|(name, held)| Some((name.clone(), held.too_many?))).collect(),
            names,
        });
        Ok(())
    }

    /// Tells everybody which services are in the kernel now.
    fn publish_services(&self, services: Services) -> Result<(), KernelError> {
        let Some(datapath) = &self.datapath else { return Ok(()) };
        let before = self.state.published();
        let served = self.served.rows().unwrap_or_else(|| Arc::clone(&before.served));
        let sizes = sizes(datapath, &before.compiled, &served, &self.endpoints, self.node_counts);
        // Maps that grew for them may have cost the node its own.
        let node_services = self.node_services.clone();
        self.state.publish(Published { services, served, sizes, node_services, ..(*before).clone() });
        Ok(())
    }
}

/// The pod of an endpoint.
pub fn pod_name(spec: &palisade_protocol::EndpointSpec) -> ObjectName {
    ObjectName::new(&spec.namespace, &spec.pod)
}

/// Whose an address is, as events show it: `names` of the model `before`, brought up to `model`.
fn renamed(mut names: SharedMap<IpAddr, Arc<str>>, before: &Model, model: &Model) -> SharedMap<IpAddr, Arc<str>> {
    let pods = before.pods.differences(&model.pods);
    for address in pods.iter().filter_map(|pod| pod.before).flat_map(|pod| &pod.addresses) {
        names.remove(address);
        if model.nodes.values().any(|node| node.addresses.contains(address)) {
            names.insert(*address, NODE);
        }
    }
    for (name, pod) in pods.iter().filter_map(|pod| Some((pod.key, pod.after?))) {
        let name: Arc<str> = name.to_string().into();
        pod.addresses.iter().for_each(|address| drop(names.insert(*address, Arc::clone(&name))));
    }
    let nodes = before.nodes.differences(&model.nodes);
    let is_node = |names: &SharedMap<IpAddr, Arc<str>>, address: &IpAddr| names.get(address).is_none_or(|name| **name == *NODE);
    for address in nodes.iter().filter_map(|node| node.before).flat_map(|node| &node.addresses) {
        if is_node(&names, address) {
            names.remove(address);
        }
    }
    for address in nodes.iter().filter_map(|node| node.after).flat_map(|node| &node.addresses) {
        if is_node(&names, address) {
            names.insert(*address, NODE);
        }
    }
    names
}

fn sizes(
    datapath: &Datapath,
    compiled: &Compiled,
    served: &palisade_service::Compiled,
    endpoints: &BTreeMap<Attachment, Realised>,
    nodes: NodeCounts,
) -> Vec<MapSize> {
    let frontends_v4 = served.frontends.keys().filter(|frontend| frontend.address.is_ipv4()).count();
    let v4 = compiled.addresses.len_of_groups(IpAddr::is_ipv4);
    let prefixes_v4 = compiled.prefixes.keys().filter(|prefix| prefix.addr().is_ipv4()).count();
    let local_v4 = endpoints.values().filter(|endpoint| endpoint.spec.addresses.iter().any(IpAddr::is_ipv4)).count();
    let local_v6 = endpoints.values().filter(|endpoint| endpoint.spec.addresses.iter().any(IpAddr::is_ipv6)).count();
    let rows = |name: &str| match name {
        map::POLICY => compiled.policy.len(),
        map::PORTS => compiled.ports.len(),
        map::ADDRESS_V4 => v4,
        map::ADDRESS_V6 => compiled.addresses.len() - v4,
        map::PREFIX_V4 => prefixes_v4,
        map::PREFIX_V6 => compiled.prefixes.len() - prefixes_v4,
        map::LOCAL_V4 => local_v4,
        map::LOCAL_V6 => local_v6,
        map::SERVICES_V4 => frontends_v4,
        map::SERVICES_V6 => served.frontends.len() - frontends_v4,
        map::CHUNKS => served.chunks().count(),
        map::BACKENDS => served.backends.len(),
        name => nodes.of(name).unwrap_or(endpoints.len()),
    };
    datapath.room().into_iter().map(|room| MapSize { map: room.map, rows: rows(room.map), room: room.rows, limit: room.limit }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AgentConfig, Source};
    use palisade_protocol::{EndpointSpec, record_name};
    use palisade_test_support::private_host;

    #[test]
    fn a_cause_that_is_told_already_is_not_told_again() {
        let source = std::io::Error::from_raw_os_error(nix::libc::ENOENT).into();
        let error = KernelError::from(LoaderError::NoAttachKind { source });
        let text = chain(&error);
        assert_eq!(text.matches("neither TCX").count(), 1, "{text}");
        assert_eq!(text.matches("os error 2").count(), 1, "{text}");
    }

    /// An endpoint whose interface is on no node.
    fn vanished(container: &str, index: u32) -> Realised {
        let spec = EndpointSpec {
            attachment: Attachment { container_id: container.to_owned(), interface: "eth0".to_owned() },
            namespace: "shop".to_owned(),
            pod: container.to_owned(),
            uid: None,
            host_interface: format!("pal{index}"),
            host_index: index,
            pod_mac: "02:00:00:00:00:01".to_owned(),
            host_mac: "02:00:00:00:00:02".to_owned(),
            addresses: Vec::new(),
            host_ports: Vec::new(),
        };
        Realised { spec, subject: 0, audit: 0, since: String::new() }
    }

    /// Needs root, as all tests with network namespaces do.
    #[test]
    fn what_cannot_be_swept_keeps_nothing_else_from_being_swept_and_all_of_it_is_told() {
        private_host(|host| {
            let mut config = AgentConfig::new("node", Source::Directory("/nowhere".into()));
            (config.pin_dir, config.run_dir) = (host.bpffs().join("palisade"), host.run_dir());
            let pins = PinDir::new(&config.pin_dir);
            let records = config.records();
            let lock = RunLock::take(&config.run_dir).unwrap();
            let mut kernel = Kernel::new(Arc::new(State::new(config)), lock).unwrap();
            let _ring = kernel.open().unwrap();
            // The record of the first endpoint and a pin of the first interface cannot be removed: they are directories that are not empty.
            let endpoints = [("a", 9_997), ("b", 9_998)].map(|(container, index)| vanished(container, index));
            let in_the_way = [records.join(record_name(&endpoints[0].spec.host_interface)), pins.links_dir().join("9997-from_pod")];
            in_the_way.iter().for_each(|path| std::fs::create_dir_all(path.join("in-the-way")).unwrap());
            let pin = pins.links_dir().join("9999-from_pod");
            std::fs::create_dir(&pin).unwrap();
            kernel.endpoints = endpoints.into_iter().map(|endpoint| (endpoint.spec.attachment.clone(), endpoint)).collect();

            let failed = kernel.sweep();
            assert_eq!(failed.len(), 2, "{failed:?}");
            let left: Vec<_> = kernel.endpoints.keys().map(|attachment| attachment.container_id.as_str()).collect();
            assert!(!left.contains(&"b") && !pin.exists(), "{left:?} {}", pin.exists());

            in_the_way.iter().for_each(|path| std::fs::remove_dir_all(path).unwrap());
            assert!(kernel.sweep().is_empty() && kernel.endpoints.is_empty());
            drop(kernel);
            std::fs::remove_dir_all(host.bpffs().join("palisade")).unwrap();
            let _ = std::fs::remove_file(host.run_dir().join("agent.lock"));
        });
    }
}
