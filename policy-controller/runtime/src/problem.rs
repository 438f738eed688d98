//! What keeps the agent from being ready, in words.

use std::collections::BTreeMap;
use std::sync::Mutex;

/// Which part has a problem. Each has at most one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Loading and pinning programs and maps.
    Datapath,
    /// Reading objects: all kinds of one source.
    Source,
    /// Watching one kind, by its plural name.
    Watch(&'static str),
    /// How the API server serves one kind that users install, by its plural name.
    Definition(&'static str),
    /// Writing rows.
    Reconcile,
    /// Writing what stands behind services.
    Services,
    /// Endpoint records.
    Records,
    /// The node's ranges and MTU.
    Node,
    /// Forwarding of packets.
    Forwarding,
    /// Routes to other nodes.
    Routes,
    /// The node's address on what pods send to the outside.
    Masquerade,
    /// Programs on the interfaces by which the node is reached.
    Uplinks,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Datapath => f.write_str("datapath"),
            Self::Source => f.write_str("source"),
            Self::Watch(kind) => write!(f, "watch of {kind}"),
            Self::Definition(kind) => write!(f, "definition of {kind}"),
            Self::Reconcile => f.write_str("policy"),
            Self::Services => f.write_str("services"),
            Self::Records => f.write_str("endpoint records"),
            Self::Node => f.write_str("node"),
            Self::Forwarding => f.write_str("forwarding"),
            Self::Routes => f.write_str("routes"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::Uplinks => f.write_str("uplinks"),
        }
    }
}

/// The problems of all parts, for status and readiness.
#[derive(Debug, Default)]
pub struct Problems {
    current: Mutex<BTreeMap<Part, String>>,
}

impl Problems {
    /// Notes the problem of a part, in place of its last one; logged when it is new.
    pub fn set(&self, part: Part, message: impl Into<String>) {
        let message = message.into();
        let mut current = self.current.lock().expect("no holder of this lock panics");
        if current.get(&part) != Some(&message) {
            tracing::warn!(%part, problem = %message, "not ready");
            current.insert(part, message);
        }
    }

    /// The part works.
    pub fn clear(&self, part: Part) {
        if self.current.lock().expect("no holder of this lock panics").remove(&part).is_some() {
            tracing::info!(%part, "works again");
        }
    }

    /// The problem of one part.
    pub fn of(&self, part: Part) -> Option<String> {
        self.current.lock().expect("no holder of this lock panics").get(&part).cloned()
    }

    /// All problems, each with its part.
    pub fn list(&self) -> Vec<String> {
        self.list_of(|_| true)
    }

    /// The problems of some parts, each with its part.
    pub fn list_of(&self, wanted: impl Fn(Part) -> bool) -> Vec<String> {
        let current = self.current.lock().expect("no holder of this lock panics");
        current.iter().filter(|(part, _)| wanted(**part)).map(|(part, message)| format!("{part}: {message}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_one_problem_at_a_time() {
        let problems = Problems::default();
        problems.set(Part::Source, "unreachable");
        problems.set(Part::Source, "forbidden");
        problems.set(Part::Datapath, "no bpffs");
        assert_eq!(problems.list(), ["datapath: no bpffs", "source: forbidden"]);
        problems.clear(Part::Source);
        assert_eq!(problems.list(), ["datapath: no bpffs"]);
    }
}
