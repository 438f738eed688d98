//! What the parts of the agent share: the index, what was last put into the kernel, and what is wrong.

use crate::config::{AgentConfig, Source};
use crate::event::Hub;
use crate::metrics::Metrics;
use crate::problem::{Part, Problems};
use crate::route::Network;
use crate::source::kubernetes::READ_AFRESH;
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use palisade_k8s::index::{Digests, Index};
use palisade_loader::{AttachKind, PinDir};
use palisade_policy::model::{Model, ObjectName, PolicyName};
use palisade_policy::shared::SharedMap;
use palisade_policy::{Compiled, Numbers};
use palisade_protocol::{Attachment, EndpointSpec, NODE_SERVED, NodeConfig};
use palisade_service::model::Services;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::SystemTime;
use tokio::sync::watch;

/// What the parts of the agent share.
#[derive(Debug)]
pub struct State {
    /// What the agent was told at its start.
    pub config: AgentConfig,
    /// What keeps it from being ready.
    pub problems: Problems,
    /// What it counts.
    pub metrics: Metrics,
    /// Live verdicts.
    pub events: Hub,
    index: Mutex<Index>,
    generation: watch::Sender<u64>,
    published: RwLock<Arc<Published>>,
    publications: watch::Sender<u64>,
    node: watch::Sender<Option<NodeRanges>>,
    network: watch::Sender<Option<Arc<Network>>>,
    uplinks: watch::Sender<Vec<String>>,
    /// The interfaces that should be uplinks and are not, and why.
    uplinks_missing: Mutex<Vec<String>>,
    /// The services whose port for health checks cannot be had, and why.
    health_checks: Mutex<BTreeMap<ObjectName, String>>,
    /// Why the node's own processes reach no service by SCTP, where they should.
    associations: Mutex<Option<String>>,
}

/// Whether the node's own processes are served services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodeServices {
    /// Nobody wants it.
    #[default]
    Off,
    /// They are.
    Served,
    /// They are not, and why.
    Failed(String),
}

impl std::fmt::Display for NodeServices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Served => f.write_str(NODE_SERVED),
            Self::Failed(reason) => f.write_str(reason),
        }
    }
}

/// What is in the kernel, as of the last change.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// Whether the model of the source has been put into the kernel yet.
    pub reconciled: bool,
    /// How programs are attached; `None` until the datapath is open.
    pub attach: Option<AttachKind>,
    /// The policy epoch.
    pub epoch: u32,
    /// The model that the rows were compiled from.
    pub model: Arc<Model>,
    /// Which versions of the objects it was made from.
    pub digests: Digests,
    /// The rows.
    pub compiled: Arc<Compiled>,
    /// What the numbers in the rows stand for.
    pub numbers: Arc<Numbers>,
    /// The endpoints of this node.
    pub endpoints: BTreeMap<Attachment, Realised>,
    /// Policies whose present version does not fit into the maps, with the reason and what is in force instead.
    pub held: BTreeMap<PolicyName, String>,
    /// The map that has no room for such a policy, and how many rows are too many.
    pub too_many: BTreeMap<PolicyName, (&'static str, usize)>,
    /// Whose an address is, as events show it.
    pub names: SharedMap<IpAddr, Arc<str>>,
    /// The services that the rows were made from.
    pub services: Services,
    /// Whether the node's own processes are served.
    pub node_services: NodeServices,
    /// The rows of services.
    pub served: Arc<palisade_service::Compiled>,
    /// Number of rows of each map that the agent writes, and how many it has and may have room for.
    pub sizes: Vec<MapSize>,
}

/// An endpoint of this node, as it is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realised {
    /// What was realised.
    pub spec: EndpointSpec,
    /// Number of its effective policy.
    pub subject: u32,
    /// Number of what policies in audit mode would make of it.
    pub audit: u32,
    /// When it was realised first, as RFC 3339 in UTC writes it.
    pub since: String,
}

/// A time as RFC 3339 in UTC writes it: of two, the earlier one comes first.
pub fn since(time: SystemTime) -> String {
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH).strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapSize {
    /// Its name.
    pub map: &'static str,
    /// Rows in it.
    pub rows: usize,
    /// Rows that it has room for.
    pub room: u32,
    /// Rows that it may have room for.
    pub limit: u32,
}

/// The node's pod ranges and the MTU of its pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRanges {
    /// At most one per family.
    pub ranges: Vec<IpNet>,
    /// In bytes.
    pub mtu: u32,
}

impl State {
    /// The state of an agent that knows nothing yet.
    pub fn new(config: AgentConfig) -> Self {
        let problems = Problems::default();
        problems.set(Part::Source, "the objects have not been read yet");
        problems.set(Part::Datapath, "the programs are not loaded yet");
        problems.set(Part::Node, "the node's pod ranges are not known yet");
        problems.set(Part::Services, "they are not in the kernel yet");
        let mut index = Index::new();
        index.set_host(&config.node, &config.ranges);
        Self {
            config,
            problems,
            metrics: Metrics::new(),
            events: Hub::new(),
            index: Mutex::new(index),
            generation: watch::Sender::new(0),
            published: RwLock::default(),
            publications: watch::Sender::new(0),
            node: watch::Sender::new(None),
            network: watch::Sender::new(None),
            uplinks: watch::Sender::new(Vec::new()),
            uplinks_missing: Mutex::default(),
            health_checks: Mutex::default(),
            associations: Mutex::default(),
        }
    }

    /// The index, to be read. Not to be held across an await or a system call.
    pub fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().expect("no holder of this lock panics")
    }

    /// Changes the index. `change` tells whether anything that policy or services need is different; then the reconciler and
    /// whoever waits for an object wake up.
    pub fn change(&self, change: impl FnOnce(&mut Index) -> bool) {
        let change = |index: &mut Index| {
            let changed = change(index);
            // In files nobody gives a service its addresses, or keeps its endpoints.
            if changed && matches!(self.config.source, Source::Directory(_)) {
                index.assign_cluster_ips(&self.config.service_ranges);
                index.derive_endpoints();
            }
            changed
        };
        if change(&mut self.index()) {
            self.generation.send_modify(|generation| *generation += 1);
        }
    }

    /// How many nodes are known.
    pub fn nodes_known(&self) -> usize {
        self.index().nodes_known()
    }

    /// Tells of every change of the index.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// What is in the kernel.
    pub fn published(&self) -> Arc<Published> {
        Arc::clone(&self.published.read().expect("no holder of this lock panics"))
    }

    /// Tells what is in the kernel now.
    pub fn publish(&self, published: Published) {
        *self.published.write().expect("no holder of this lock panics") = Arc::new(published);
        self.publications.send_modify(|publication| *publication += 1);
    }

    /// Tells what numbers stand for, before rows with them are written. What older rows hold keeps its meaning: a number is
    /// given to others only by a later change.
    pub fn name_numbers(&self, numbers: Arc<Numbers>) {
        let mut published = self.published.write().expect("no holder of this lock panics");
        if !Arc::ptr_eq(&published.numbers, &numbers) {
            Arc::make_mut(&mut published).numbers = numbers;
        }
    }

    /// Tells of every change of what is in the kernel.
    pub fn publications(&self) -> watch::Receiver<u64> {
        self.publications.subscribe()
    }

    /// Tells what the node's pods get, once it is known.
    pub fn set_node(&self, ranges: NodeRanges) {
        self.node.send_if_modified(|node| {
            let new = node.as_ref() != Some(&ranges);
            *node = Some(ranges);
            new
        });
    }

    /// The ways to the other nodes, as they were put into the kernel last; `None` before they were looked at.
    pub fn network(&self) -> Option<Arc<Network>> {
        self.network.borrow().clone()
    }

    /// Tells of every change of the ways to the other nodes.
    pub fn network_changes(&self) -> watch::Receiver<Option<Arc<Network>>> {
        self.network.subscribe()
    }

    /// Tells the ways to the other nodes.
    pub fn set_network(&self, network: Network) {
        self.network.send_if_modified(|known| {
            let new = known.as_deref() != Some(&network);
            if new {
                *known = Some(Arc::new(network));
            }
            new
        });
    }

    /// What `palisade-cni` needs to know to wire a pod; `None` until ranges and MTU are known.
    pub fn node_config(&self) -> Option<NodeConfig> {
        let node = self.node.borrow();
        let node = node.as_ref()?;
        Some(NodeConfig {
            node: self.config.node.clone(),
            ranges: node.ranges.clone(),
            mtu: node.mtu,
            pin_dir: PinDir::new(&self.config.pin_dir).root().display().to_string(),
        })
    }

    fn lock_health_checks(&self) -> MutexGuard<'_, BTreeMap<ObjectName, String>> {
        self.health_checks.lock().expect("no holder of this lock panics")
    }

    /// Tells by which interfaces clients outside the cluster come, and by which they should and do not.
    pub fn set_uplinks(&self, uplinks: Vec<String>, missing: Vec<String>) {
        *self.uplinks_missing.lock().expect("no holder of this lock panics") = missing;
        self.uplinks.send_if_modified(|known| {
            let new = *known != uplinks;
            *known = uplinks;
            new
        });
    }

    /// The interfaces by which clients outside the cluster should come and do not, each with the reason.
    pub fn uplinks_missing(&self) -> Vec<String> {
        self.uplinks_missing.lock().expect("no holder of this lock panics").clone()
    }

    /// By which interfaces clients outside the cluster come.
    pub fn uplinks(&self) -> Vec<String> {
        self.uplinks.borrow().clone()
    }

    /// Tells when these are others.
    pub fn uplink_changes(&self) -> watch::Receiver<Vec<String>> {
        self.uplinks.subscribe()
    }

    /// Tells which services' ports for health checks cannot be had, and why; each is logged when it is new.
    pub fn set_health_checks(&self, taken: BTreeMap<ObjectName, String>) {
        let mut known = self.lock_health_checks();
        for (name, problem) in taken.iter().filter(|(name, problem)| known.get(name) != Some(problem)) {
            tracing::warn!(service = %name, problem, "a service is not served as it is written");
        }
        *known = taken;
    }

    /// How many services have a port for health checks that cannot be had.
    pub fn health_checks_missing(&self) -> usize {
        self.lock_health_checks().len()
    }

    /// Why the port for health checks of a service cannot be had.
    pub fn health_check(&self, service: &ObjectName) -> Option<String> {
        self.lock_health_checks().get(service).cloned()
    }

    /// Tells why the node's own processes reach no service by SCTP, where they should; logged when it is new. It keeps nobody from being ready.
    pub fn set_associations(&self, problem: Option<String>) {
        let mut known = self.associations.lock().expect("no holder of this lock panics");
        if *known != problem {
            match &problem {
                Some(problem) => tracing::warn!(problem, "services are not served to the node's own processes by SCTP"),
                None => tracing::info!("services are served to the node's own processes by SCTP"),
            }
            *known = problem;
        }
    }

    /// Whether the node's own processes are served services, in words.
    pub fn node_services(&self) -> String {
        let by_sockets = self.published().node_services.to_string();
        match &*self.associations.lock().expect("no holder of this lock panics") {
            Some(problem) => format!("{by_sockets}; by SCTP: {problem}"),
            None => by_sockets,
        }
    }

    /// Why the agent is not ready; empty when it is.
    pub fn not_ready(&self) -> Vec<String> {
        let mut problems = self.problems.list();
        if problems.is_empty() && !self.published().reconciled {
            problems.push("policy: the rows are being written".to_owned());
        }
        problems
    }

    /// Why no pod can be connected now, as whoever asks for an endpoint is told; empty where one can. What is wrong with ways, services or
    /// records keeps no new pod waiting, and what was read stays in force.
    pub fn refuses_pods(&self) -> Vec<String> {
        let synced = self.index().synced();
        let mut refuses = self.problems.list_of(|part| match part {
            Part::Datapath | Part::Node | Part::Reconcile => true,
            Part::Watch(kind) => !synced || READ_AFRESH.contains(&kind),
            Part::Source | Part::Definition(_) => !synced,
            Part::Services | Part::Records | Part::Forwarding | Part::Routes | Part::Masquerade | Part::Uplinks => false,
        });
        if refuses.is_empty() && !synced {
            refuses.push(format!("{}: not all objects have been listed yet", Part::Source));
        }
        refuses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn synced() -> State {
        let state = State::new(AgentConfig::new("node", Source::Directory("/nowhere".into())));
        let parts = [Part::Source, Part::Datapath, Part::Node, Part::Services];
        parts.into_iter().for_each(|part| state.problems.clear(part));
        let nothing = palisade_k8s::manifest::Manifest::default();
        state.change(|index| nothing.feed(index) | index.set_nodes(BTreeMap::new()));
        state
    }

    #[test]
    fn what_keeps_a_pod_waiting_is_told_from_what_does_not() {
        let waits = |part: Part| {
            let state = synced();
            assert!(state.refuses_pods().is_empty());
            state.problems.set(part, "broken");
            assert_eq!(state.problems.list(), [format!("{part}: broken")]);
            !state.refuses_pods().is_empty()
        };
        for part in [Part::Datapath, Part::Node, Part::Reconcile, Part::Watch("pods"), Part::Watch("networkpolicies")] {
            assert!(waits(part), "{part}");
        }
        for part in [Part::Routes, Part::Forwarding, Part::Masquerade, Part::Uplinks, Part::Services, Part::Records] {
            assert!(!waits(part), "{part}");
        }
        // What was read stays in force, and what users install need not be there.
        for part in [Part::Source, Part::Watch("endpointslices"), Part::Definition("identitypolicies")] {
            assert!(!waits(part), "{part}");
        }
    }

    #[test]
    fn before_everything_was_read_pods_wait_and_are_told_for_what() {
        let state = State::new(AgentConfig::new("node", Source::Directory("/nowhere".into())));
        [Part::Datapath, Part::Node].into_iter().for_each(|part| state.problems.clear(part));
        assert_eq!(state.refuses_pods(), ["source: the objects have not been read yet"]);
        state.problems.clear(Part::Source);
        assert_eq!(state.refuses_pods().len(), 1, "though no part has a problem");
    }

    #[test]
    fn it_is_not_ready_before_services_are_in_the_kernel_though_policies_are() {
        let state = State::new(AgentConfig::new("node", Source::Directory("/nowhere".into())));
        [Part::Source, Part::Datapath, Part::Node].into_iter().for_each(|part| state.problems.clear(part));
        state.publish(Published { reconciled: true, ..Published::default() });
        assert_eq!(state.not_ready(), ["services: they are not in the kernel yet"]);
        state.problems.clear(Part::Services);
        assert!(state.not_ready().is_empty());
    }
}
