//! What is wrong with a service, for its owner to be told.

use crate::frontend::Frontend;
use palisade_policy::model::ObjectName;
use std::net::IpAddr;

/// Something of a service that cannot be had as it is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The service.
    pub service: ObjectName,
    /// What is wrong.
    pub what: Trouble,
}

/// What can be wrong with a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// It has no cluster IP: nothing of it is reached.
    NoClusterIp,
    /// It claims a frontend that another service has, or another port of its own.
    Taken {
        /// The frontend.
        frontend: Frontend,
        /// Who has it.
        by: ObjectName,
    },
    /// It has no cluster IP of the family of one of its external addresses, where it is not reached.
    ExternalFamily(IpAddr),
    /// An endpoint is of another family than the first of its EndpointSlice; nothing is sent there.
    MixedSlice {
        /// Name of the slice.
        slice: String,
        /// Address of the endpoint.
        address: IpAddr,
    },
    /// The endpoints of an EndpointSlice are of a family in which the service has no cluster IP; nothing is sent there.
    SliceFamily {
        /// Name of the slice.
        slice: String,
    },
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
                    "is not reached at {frontend}, which service {by} has (the older of two has it); give one of them another address or port"
                )
            }
            Self::ExternalFamily(address) => {
                write!(f, "is not reached at {address}: it has no cluster IP of that family; name the family in `spec.ipFamilies`")
            }
            Self::MixedSlice { slice, address } => {
                write!(
                    f,
                    "has the endpoint {address} in EndpointSlice {slice}, whose first endpoint is of another family; it gets no flows"
                )
            }
            Self::SliceFamily { slice } => {
                write!(f, "has EndpointSlice {slice}, of a family in which it has no cluster IP; its endpoints get no flows")
            }
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "service {} {}", self.service, self.what)
    }
}
