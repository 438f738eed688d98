//! How the pods of other nodes are reached.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// How the pods of other nodes are reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoutingStatus {
    /// `native`, `vxlan` or `auto`.
    pub mode: String,
    /// MTU of new pods in bytes.
    pub mtu: u32,
    /// The overlay, where something goes by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<OverlayStatus>,
    /// The pod ranges of the other nodes.
    pub ranges: Vec<RangeStatus>,
    /// What is wrong with Node objects, and with a setting of this node.
    pub faults: Vec<NodeFault>,
}

/// The overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OverlayStatus {
    /// Name of its device.
    pub device: String,
    /// Its UDP port.
    pub port: u16,
    /// Its VXLAN network identifier.
    pub network: u32,
    /// MTU of its device in bytes.
    pub mtu: u32,
}

/// A pod range of another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RangeStatus {
    /// Name of the node.
    pub node: String,
    /// The range.
    pub range: IpNet,
    /// The way to it.
    pub way: WayName,
    /// The node's address by which, or to which, packets go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Why it is not reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A way to pods of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WayName {
    /// By a route of ours, via the node's address.
    Native,
    /// By routes that the network between the nodes has.
    Network,
    /// Through the overlay, to the node's address.
    Vxlan,
    /// None.
    Nowhere,
}

impl std::fmt::Display for WayName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Network => "network",
            Self::Vxlan => "vxlan",
            Self::Nowhere => "nowhere",
        })
    }
}

/// Something that is wrong with a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeFault {
    /// Name of the node.
    pub node: String,
    /// What is wrong, and what comes of it.
    pub fault: String,
}
