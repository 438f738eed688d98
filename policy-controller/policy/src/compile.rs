//! The rows of the maps.

use crate::compiler::Compiler;
use crate::model::{Model, ObjectName};
use crate::numbers::Numbers;
use crate::shared::SharedMap;
use ipnet::IpNet;
use palisade_datapath_core::abi::{PolicyEntry, PolicyKey, PortEntry, PortKey};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The rows that one node's maps should hold, or do hold.
///
/// The fields are public so that the owner of the maps can fill one from what the kernel holds (`subjects` from
/// the rows of its endpoints) and plan a change from there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// The subject number of each pod of this node that the model knows.
    pub subjects: BTreeMap<ObjectName, u32>,
    /// The number of what policies in audit mode would make of it, for the pods that such a policy selects.
    pub audits: BTreeMap<ObjectName, u32>,
    /// Whole addresses, of the cluster's pods and nodes, to identities.
    pub addresses: SharedMap<IpAddr, u32>,
    /// Prefixes to identities; host bits are zero.
    pub prefixes: BTreeMap<IpNet, u32>,
    /// Rows of the policy table.
    pub policy: BTreeMap<PolicyKey, PolicyEntry>,
    /// Rows of the port tables, by key and length of the port's prefix in bits (0 to 16).
    pub ports: BTreeMap<(PortKey, u8), PortEntry>,
}

/// The rows for `model` on a node whose pods are `local`, compiled from nothing.
///
/// The rows depend on the model alone; which numbers they carry, on what `numbers` has given out before. Nothing
/// is released here: [`plan`](crate::plan::plan) does that, for it knows what the kernel still refers to.
pub fn compile(model: &Model, local: &BTreeSet<ObjectName>, numbers: &mut Numbers) -> Compiled {
    let compiled = Compiler::new().compile(model, local, numbers);
    std::sync::Arc::unwrap_or_clone(compiled)
}
