//! A node for the tests of the binary: a host of its own with the real programs pinned, and an agent that can be told
//! to fail.

mod agent;
mod call;

pub use agent::{Behaviour, FakeAgent};
pub use call::{Answer, Call, least_config};

use palisade_cni::link::{Link, Namespace, Netlink};
use palisade_loader::{Datapath, Limits, PinDir, Sizes};
use palisade_test_support::{Host, Snapshot, private_host};
use serde_json::Value;
use std::path::PathBuf;

/// A node on which pods can be wired.
pub struct Node<'a> {
    pub host: &'a Host,
    pub agent: FakeAgent,
    clean: Snapshot,
}

/// Small tables: many nodes live at once.
const SIZES: Sizes = Sizes {
    policy: 64,
    ports: 64,
    addresses: 64,
    prefixes: 64,
    endpoints: 64,
    services: 64,
    backends: 64,
    chunks: 64,
    nodes: 64,
    affinity: 64,
    sockets: 64,
    connections: 64,
    outside: 64,
    fragments: 64,
    events_bytes: 4096,
    limits: Limits::DEFAULT,
};

/// Runs a test on a node whose agent has pinned the programs and serves these pod ranges.
pub fn node(ranges: &[&str], test: impl FnOnce(&Node<'_>) + Send) {
    private_host(|host| {
        let base = host.bpffs().join("palisade");
        let pins = PinDir::new(&base);
        drop(Datapath::open(&pins, &SIZES).expect("the programs are loaded and pinned"));
        let agent = FakeAgent::start(&host.run_dir(), ranges, pins.root());
        let clean = host.snapshot().unwrap();
        test(&Node { host, agent, clean });
        std::fs::remove_dir_all(base).unwrap();
    });
}

/// Both families, room for many pods.
pub const DUAL: &[&str] = &["10.77.0.0/24", "fd77::/64"];

impl Node<'_> {
    /// Prepares a call about the pod; its container id is the pod's name.
    pub fn call(&self, verb: &str, pod: &str) -> Call {
        Call::new(self.host, verb, pod)
    }

    /// Makes a pod's namespace and connects it; the result.
    pub fn add(&self, pod: &str) -> Value {
        self.host.create_pod(pod).unwrap();
        self.call("ADD", pod).run().success()
    }

    /// Disconnects a pod and removes its namespace.
    pub fn remove(&self, pod: &str) {
        self.call("DEL", pod).run().silent();
        self.host.remove_pod(pod).unwrap();
    }

    /// The link of a result's interface on the node.
    pub fn host_link(&self, result: &Value) -> Link {
        let name = result["interfaces"][0]["name"].as_str().unwrap();
        Netlink::open().unwrap().link(name).unwrap().unwrap_or_else(|| panic!("{name} is there"))
    }

    /// The netlink of a pod, and the index of its `eth0`.
    pub fn inside(&self, pod: &str) -> (Netlink, u32) {
        let netlink = Netlink::open_in(&Namespace::open(&self.host.pod_path(pod)).unwrap()).unwrap();
        let index = netlink.link("eth0").unwrap().unwrap().index;
        (netlink, index)
    }

    /// What is different from the node without pods; empty when nothing is. Namespaces that the test made count.
    pub fn left(&self) -> String {
        self.clean.difference(&self.host.snapshot().unwrap())
    }

    /// Number of attachments that have addresses.
    pub fn leases(&self) -> usize {
        let file = self.store();
        let Ok(text) = std::fs::read(file) else { return 0 };
        serde_json::from_slice::<Value>(&text).unwrap()["leases"].as_array().unwrap().len()
    }

    /// The file of the addresses.
    pub fn store(&self) -> PathBuf {
        self.host.state_dir().join("ipam/addresses.json")
    }
}
