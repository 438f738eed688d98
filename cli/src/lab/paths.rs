//! Where things lie inside a lab. The directory is a file system of the lab's own, which ends with it.

use super::outside;
use std::path::PathBuf;

/// Outside of any lab: the directory of the registry. Inside: the lab's own file system.
pub const ROOT: &str = "/run/palisade-lab";

/// What a node's agent and CNI plugin keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The agent's run directory.
    pub run: PathBuf,
    /// The address store of `palisade-cni`.
    pub state: PathBuf,
    /// Below the lab's bpffs.
    pub pins: PathBuf,
}

impl Places {
    /// Those of a node, by its name.
    pub fn of(node: &str) -> Self {
        // No node of several has this name.
        if node == outside::NODE {
            let below = |name| PathBuf::from(ROOT).join(name);
            return Self { run: below("run"), state: below("ipam"), pins: bpffs().join("palisade") };
        }
        let own = nodes().join(node);
        Self { run: own.join("run"), state: own.join("ipam"), pins: bpffs().join(node) }
    }
}

/// Where several nodes have their directories; absent in a lab of one.
pub fn nodes() -> PathBuf {
    PathBuf::from(ROOT).join("nodes")
}

/// What a lab of several nodes has in place of an API server: a directory of manifests, with the nodes and addresses of pods.
pub fn record() -> PathBuf {
    PathBuf::from(ROOT).join("record")
}

/// The socket by which a lab of several nodes takes orders.
pub fn control() -> PathBuf {
    PathBuf::from(ROOT).join("control.sock")
}

/// Mount point of the lab's bpffs.
pub fn bpffs() -> PathBuf {
    PathBuf::from(ROOT).join("bpf")
}

/// Where the network namespaces of pods, of the outside host, and of nodes where there are several, are bound.
pub fn namespaces() -> PathBuf {
    PathBuf::from(ROOT).join("netns")
}

/// The network namespace of a pod, of `outside`, or of one of several nodes.
pub fn namespace(party: &super::flow::Party) -> PathBuf {
    // A pod's namespace cannot contain an underscore, so no two pods share a file.
    namespaces().join(party.to_string().replace('/', "_"))
}
