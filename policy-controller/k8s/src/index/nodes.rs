//! The nodes that are known, and what holds of what they claim.

use super::{Index, Kind, Record};
use crate::survey::{Survey, holders, survey};
use palisade_policy::model::Node;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

impl Index {
    /// Takes the nodes from a source that has no Node objects. Counts the kind as synced.
    pub fn set_nodes(&mut self, nodes: BTreeMap<String, Node>) -> bool {
        let nodes: BTreeMap<_, _> = nodes.into_iter().map(|(name, value)| (name, Record { value, refused: None })).collect();
        let changed = nodes != self.nodes;
        self.nodes = nodes;
        self.bring_up_nodes();
        self.synced.insert(Kind::Node) | changed
    }

    /// What holds of the claims of all nodes to pod ranges and addresses: what the model's nodes have.
    pub fn survey(&self) -> Arc<Survey> {
        Arc::clone(&self.survey)
    }

    /// A node that is known, with all that its object says.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name).map(|record| &record.value)
    }

    /// The names of the nodes that are known.
    pub fn node_names(&self) -> impl Iterator<Item = &String> {
        self.nodes.keys()
    }

    /// How many nodes are known.
    pub fn nodes_known(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn set_node(&mut self, name: String, mut record: Record<Node>) -> bool {
        if name == self.model.host && !self.host_ranges.is_empty() {
            record.value.pod_ranges.clone_from(&self.host_ranges);
        }
        let changed = self.nodes.get(&name) != Some(&record);
        if changed {
            self.nodes.insert(name, record);
            self.bring_up_nodes();
        }
        changed
    }

    pub(super) fn remove_node(&mut self, name: &str) -> bool {
        let known = self.nodes.remove(name).is_some();
        if known {
            self.bring_up_nodes();
        }
        known
    }

    /// Brings the model's nodes up to the endpoints of this node, where a node claims an address that one of them has or had.
    pub(super) fn bring_up_nodes_of(&mut self, endpoints: &[IpAddr]) {
        let mut claimed = self.nodes.values().flat_map(|record| &record.value.addresses);
        if claimed.any(|address| endpoints.contains(address)) {
            self.bring_up_nodes();
        }
    }

    /// Brings the model's nodes up to what holds of their claims, which depends on all of them: once at the end where all are listed.
    pub(super) fn bring_up_nodes(&mut self) {
        if self.unseen.contains_key(&Kind::Node) {
            return;
        }
        let mut survey = survey(&self.model.host, self.nodes.iter().map(|(name, record)| (name, &record.value)));
        let of_pods: BTreeSet<IpAddr> = self.local.values().flat_map(|local| &local.addresses).copied().collect();
        survey.leave_to_pods(&of_pods);
        let refused = survey.faults.iter().filter(|fault| fault.node != self.model.host);
        let refused: BTreeSet<(&str, IpAddr)> = refused.filter_map(|fault| Some((fault.node.as_str(), fault.what.no_address()?))).collect();
        let gone: Vec<String> = self.model.nodes.keys().filter(|name| !self.nodes.contains_key(*name)).cloned().collect();
        gone.iter().for_each(|name| drop(self.model.nodes.remove(name)));
        for peer in survey.peers.iter().chain([&survey.own]) {
            let Some(told) = self.nodes.get(&peer.name).map(|record| &record.value) else { continue };
            // An address that two nodes claim stays both's: a rule that selects one of them alone does not mean it. And what this node says
            // it has, no pod gets, wherever it lies.
            let holds = |address: &&IpAddr| !refused.contains(&(peer.name.as_str(), **address)) && !of_pods.contains(*address);
            let addresses = told.addresses.iter().filter(holds).copied().collect();
            let node = Node { addresses, pod_ranges: peer.ranges.clone(), labels: told.labels.clone(), created: told.created };
            if self.model.nodes.get(&peer.name) != Some(&node) {
                self.model.nodes.insert(peer.name.clone(), node);
            }
        }
        self.survey = Arc::new(survey);
        self.set_ranges(holders(self.nodes.iter().map(|(name, record)| (name, &record.value))));
        self.bring_up_place();
    }
}
