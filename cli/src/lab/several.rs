//! What a lab of several nodes has besides: the network between them, the record, and nodes that come and go.

use super::control::Order;
use super::flow::{Member, Party};
use super::manifests::Cluster;
use super::node::LabNode;
use super::paths;
use super::progress::{say, step};
use super::questions;
use super::record::Record;
use super::session::Session;
use super::topology::{Link, NodePlan, Topology};
use super::world::World;
use crate::arguments::RoutingMode;
use crate::error::CliError;
use palisade_cni::link::LinkError;
use palisade_policy::model::ObjectName;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// How long agents may take until they have read the record; what they do not know then, packets show.
const KNOWN_WITHIN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// What a lab of several nodes has besides.
pub struct Several {
    world: World,
    record: Record,
    mode: RoutingMode,
    /// The nodes that are there.
    topology: Topology,
}

impl Several {
    /// The network, and no node yet.
    pub fn create(mode: RoutingMode) -> Result<Self, CliError> {
        std::fs::create_dir(paths::nodes())
            .map_err(|error| CliError::Environment(format!("cannot make {}: {error}", paths::nodes().display())))?;
        let world = World::create().map_err(network)?;
        Ok(Self { world, record: Record::default(), mode, topology: Topology::default() })
    }

    /// The addresses of a node.
    pub fn addresses(&self, node: &str) -> Vec<IpAddr> {
        self.topology.0.get(node).map(|plan| plan.addresses.clone()).unwrap_or_default()
    }

    /// The link that packets of a node's pods stay on, where they stay on one.
    pub fn confined(&self, node: &str) -> Option<Link> {
        let plan = self.topology.0.get(node).filter(|_| self.mode == RoutingMode::Native)?;
        Some(plan.link.clone())
    }
}

impl Session {
    /// Makes the nodes as they are planned: those that are gone go, those that are new come, and the pods of those whose ranges are others
    /// are made anew.
    pub(super) async fn follow_nodes(&mut self, cluster: &Cluster) -> Result<(), CliError> {
        let Some(several) = &self.several else { return Ok(()) };
        let (old, new) = (several.topology.0.clone(), &cluster.topology.0);
        let same_place =
            |name: &String, plan: &NodePlan| new.get(name).is_some_and(|new| (&new.link, &new.addresses) == (&plan.link, &plan.addresses));
        for name in old.iter().filter(|(name, plan)| !same_place(name, plan)).map(|(name, _)| name) {
            self.remove_node(name).await?;
        }
        let mut renumbered = Vec::new();
        for (name, plan) in new {
            let Some(several) = &mut self.several else { break };
            if several.topology.0.get(name).is_some_and(|there| there.ranges != plan.ranges) {
                several.world.route(name, &plan.ranges).map_err(network)?;
                several.topology.0.insert(name.clone(), plan.clone());
                self.unwire_all_of(name).await?;
                renumbered.push(name);
            }
        }
        // An agent that starts finds its Node there; one whose Node is another gives addresses of the new ranges.
        self.write_record(cluster)?;
        for name in renumbered {
            self.renumbered(name, &new[name]).await?;
        }
        let missing = |name: &&String| self.several.as_ref().is_some_and(|several| !several.topology.0.contains_key(*name));
        for name in new.keys().filter(missing).cloned().collect::<Vec<_>>() {
            self.add_node(&name, &new[&name]).await?;
        }
        Ok(())
    }

    async fn add_node(&mut self, name: &str, plan: &NodePlan) -> Result<(), CliError> {
        let Some(several) = &mut self.several else { return Ok(()) };
        if let Err(error) = several.world.add(name, plan) {
            // The next edit may try again.
            let _ = several.world.remove(name);
            return Err(network(error));
        }
        several.topology.0.insert(name.to_owned(), plan.clone());
        let mut node = LabNode::of_several(name, several.mode)?;
        let started = step(&format!("starting the agent of {name} and loading its datapath"), node.start(&self.failures)).await;
        self.nodes.insert(name.to_owned(), node);
        started
    }

    async fn remove_node(&mut self, name: &str) -> Result<(), CliError> {
        self.unwire_all_of(name).await?;
        // What listens in the node's namespace would keep it.
        self.close_common().await;
        if let Some(node) = self.nodes.remove(name) {
            node.remove().await?;
        }
        let Some(several) = &mut self.several else { return Ok(()) };
        several.topology.0.remove(name);
        several.world.remove(name).map_err(network)
    }

    async fn unwire_all_of(&mut self, node: &str) -> Result<(), CliError> {
        let pods: Vec<ObjectName> =
            self.pods.iter().filter(|(_, wired)| wired.sandbox.node == node).map(|(name, _)| name.clone()).collect();
        for pod in pods {
            self.unwire(&pod).await?;
        }
        Ok(())
    }

    /// Waits until a node gives addresses of its new ranges.
    async fn renumbered(&self, name: &str, plan: &NodePlan) -> Result<(), CliError> {
        let Some(node) = self.nodes.get(name).filter(|node| node.runs()) else { return Ok(()) };
        let since = tokio::time::Instant::now();
        let wanted: BTreeSet<_> = plan.ranges.iter().copied().collect();
        while !node.ranges().await.is_ok_and(|ranges| ranges.into_iter().collect::<BTreeSet<_>>() == wanted) {
            if since.elapsed() > KNOWN_WITHIN {
                return Err(CliError::Failed(format!("the agent of {name} does not take its new pod ranges")));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Writes who is where now, and waits until every agent has it in its kernel.
    pub(super) async fn record(&mut self, cluster: &Cluster) -> Result<(), CliError> {
        self.write_record(cluster)?;
        let up = self.up();
        let pods: Vec<&Member> = self.pods.values().map(|wired| &wired.member).collect();
        let expected: Vec<bool> = self.pods.keys().map(|name| up.contains_key(name)).collect();
        let since = tokio::time::Instant::now();
        for node in self.nodes.values().filter(|node| node.runs()) {
            while questions::knows(node, &pods).await? != expected {
                if since.elapsed() > KNOWN_WITHIN {
                    say(&format!("the agent of {} does not know all pods as they are", node.name()));
                    return Ok(());
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    fn write_record(&mut self, cluster: &Cluster) -> Result<(), CliError> {
        let up = self.up();
        if let Some(several) = &mut self.several {
            self.files = several.record.write(cluster, &up)?;
        }
        Ok(())
    }

    /// The addresses of pods whose nodes run: in a cluster, others would no longer be ready.
    fn up(&self) -> BTreeMap<ObjectName, Vec<IpAddr>> {
        let members = self.members().into_iter();
        members.filter_map(|member| if let Party::Pod(name) = member.party { Some((name, member.addresses)) } else { None }).collect()
    }

    /// Obeys an order, as far as the node itself goes; the rest of the lab follows. Says what was done.
    pub async fn obey(&mut self, order: &Order) -> Result<String, CliError> {
        let (Order::Stop(name) | Order::Start(name)) = order;
        let names = || self.nodes.keys().cloned().collect::<Vec<_>>().join(", ");
        let Some(runs) = self.nodes.get(name).map(LabNode::runs) else {
            return Err(CliError::Input(format!("there is no node {name}; there are {}", names())));
        };
        let starts = matches!(order, Order::Start(_));
        if runs == starts {
            return Err(CliError::Input(format!("node {name} {} already", if runs { "runs" } else { "is stopped" })));
        }
        if !starts && self.nodes.values().filter(|node| node.runs()).count() == 1 {
            return Err(CliError::Input(format!("node {name} is the last one that runs: nobody would be left to see it")));
        }
        if let Some(several) = &self.several {
            several.world.plug(name, starts).map_err(network)?;
        }
        let Some(node) = self.nodes.get_mut(name) else { return Ok(String::new()) };
        if starts {
            node.start(&self.failures).await?;
            return Ok(format!("node {name} is back"));
        }
        node.stop().await;
        Ok(format!("node {name} is away"))
    }
}

fn network(error: LinkError) -> CliError {
    CliError::Environment(format!("cannot make the network between the nodes: {error}"))
}
