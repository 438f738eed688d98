//! What is wrong with a service or with host ports, for who wrote it to be told.

use crate::frontend::Frontend;
use crate::model::Owner;
use std::net::IpAddr;

/// Something of a service, or of a pod's host ports, that cannot be had as it is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Whose.
    pub owner: Owner,
    /// What is wrong.
    pub what: Trouble,
}

/// What can be wrong with a service, or with a pod's host ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// It has no cluster IP: nothing of it is reached.
    NoClusterIp,
    /// It claims a frontend that somebody else has, or another port of its own.
    Taken {
        /// The frontend.
        frontend: Frontend,
        /// Who has it.
        by: Owner,
    },
    /// A host port is asked for at an address that is none of this node's.
    NotOfNode(Frontend),
    /// A host port is asked for at an address of a family of which the pod has none.
    PodFamily(Frontend),
    /// It has no cluster IP of the family of one of its external addresses, where it is not reached.
    ExternalFamily(IpAddr),
    /// The endpoints of an EndpointSlice are of a family in which the service has no cluster IP; nothing is sent there.
    SliceFamily {
        /// Name of the slice.
        slice: String,
    },
    /// A map has no room for what it needs: it is held back, and goes on with those of its backends that are there.
    NoRoom {
        /// Name of the map.
        map: &'static str,
        /// Rows that the map would have to hold at once.
        rows: usize,
        /// Rows that it may have room for.
        limit: u32,
    },
}

impl Trouble {
    /// Whether it is what was told before: how much room is missing changes with every service.
    pub fn is_still(&self, before: &Self) -> bool {
        match (self, before) {
            (Self::NoRoom { map, .. }, Self::NoRoom { map: before, .. }) => map == before,
            (now, before) => now == before,
        }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoClusterIp => {
                f.write_str(
                    "has no cluster IP, and is not reached; where `spec.clusterIP` is empty the API server gives one, or with files the agent, while its --service-ranges last",
                )
            }
            Self::Taken { frontend, by } => {
                write!(
                    f,
                    "is not reached at {frontend}, which {by} has (the older of two has it); give one of them another address or port"
                )
            }
            Self::NotOfNode(frontend) => {
                write!(f, "is not reached at {frontend}: that is no address of this node; name one of the Node's addresses as `hostIP`, or none")
            }
            Self::PodFamily(frontend) => {
                write!(f, "is not reached at {frontend}: the pod has no address of that family; name another address as `hostIP`, or none")
            }
            Self::ExternalFamily(address) => {
                write!(f, "is not reached at {address}: it has no cluster IP of that family; name the family in `spec.ipFamilies`")
            }
            Self::SliceFamily { slice } => {
                write!(f, "has EndpointSlice {slice}, of a family in which it has no cluster IP; its endpoints get no flows")
            }
            Self::NoRoom { map, rows, limit } => {
                write!(
                    f,
                    "does not fit: {map} has room for {limit} rows at most and the change needs {rows}, {} too many; it goes on with the backends that it has and that are still its own, or without any; raise the limit (--map-limit), or use fewer services or endpoints",
                    rows.saturating_sub(*limit as usize)
                )
            }
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.owner, self.what)
    }
}
