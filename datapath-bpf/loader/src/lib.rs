//! Loads, attaches and pins the BPF programs, and gives the maps typed tables.
//!
//! Two kinds of process use this crate. The agent opens the [`Datapath`]: it loads the object, takes over what an
//! earlier agent has pinned, and writes rows. The CNI plugin only attaches the programs that the agent has pinned
//! ([`attach_endpoint`]); it builds this crate without the feature `load`, so that it does not carry the object.
//!
//! Everything that outlives a process is pinned below one [`PinDir`]:
//!
//! ```text
//! <base>/v1/maps/<MAP>                 the tables
//! <base>/v1/programs/{from_pod,to_pod}  the programs that are attached to new endpoints
//! <base>/v1/links/<ifindex>-<program>   the TCX link of an endpoint
//! <base>/v1/links/<ifindex>-clsact      an empty directory: the endpoint has clsact filters instead of links
//! ```
//!
//! This crate knows nothing of policies, pods or Kubernetes.

mod attach;
mod error;
mod filter;
mod pin;

#[cfg(feature = "load")]
mod connections;
#[cfg(feature = "load")]
mod copy;
#[cfg(feature = "load")]
mod datapath;
#[cfg(feature = "load")]
mod events;
#[cfg(feature = "load")]
mod install;
#[cfg(feature = "load")]
mod layout;
#[cfg(feature = "load")]
mod object;
#[cfg(feature = "load")]
mod packet_run;
#[cfg(feature = "load")]
mod probe;
#[cfg(feature = "load")]
mod row;
#[cfg(feature = "load")]
mod service;
#[cfg(feature = "load")]
mod sizes;
#[cfg(feature = "load")]
mod table;
#[cfg(feature = "load")]
mod takeover;

pub use attach::{AttachKind, attach_endpoint, attach_endpoint_with, detach_endpoint, endpoint_attached, pinned_links, supported_kind};
pub use error::LoaderError;
pub use pin::PinDir;

#[cfg(feature = "load")]
pub use crate::{
    datapath::{Datapath, Grown, Room},
    events::EventRing,
    install::InstallStep,
    layout::Layout,
    object::{object, redirect_object},
    packet_run::{PacketContext, TestRun},
    probe::{probe_attach_kind, probe_attach_kind_of},
    service::{FrontendKey, ServiceTable},
    sizes::{Limits, SizeError, Sizes},
    table::{AddressTable, PortTable, PrefixTable, Table},
};
