//! Where things lie inside a lab. The directory is a file system of the lab's own, which ends with it.

use std::path::PathBuf;

/// Outside of any lab: the directory of the registry. Inside: the lab's own file system.
pub const ROOT: &str = "/run/palisade-lab";

/// The agent's run directory.
pub fn run_dir() -> PathBuf {
    PathBuf::from(ROOT).join("run")
}

/// The address store of `palisade-cni`.
pub fn state_dir() -> PathBuf {
    PathBuf::from(ROOT).join("ipam")
}

/// Mount point of the lab's bpffs.
pub fn bpffs() -> PathBuf {
    PathBuf::from(ROOT).join("bpf")
}

/// Where the network namespaces of pods and of the outside host are bound.
pub fn namespaces() -> PathBuf {
    PathBuf::from(ROOT).join("netns")
}

/// The network namespace of a pod, or of `outside`.
pub fn namespace(party: &super::flow::Party) -> PathBuf {
    // A pod's namespace cannot contain an underscore, so no two pods share a file.
    namespaces().join(party.to_string().replace('/', "_"))
}
