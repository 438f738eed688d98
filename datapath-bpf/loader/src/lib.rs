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
//! <base>/v1/programs/<program>          the programs that are attached to new interfaces
//! <base>/v1/links/<ifindex>-<program>   the TCX link of an interface
//! <base>/v1/links/<ifindex>-clsact      an empty directory: the endpoint has clsact filters instead of links
//! <base>/v1/sockets/<program>           the link of a program at the sockets of a cgroup
//! ```
//!
//! This crate knows nothing of policies, pods or Kubernetes.

mod attach;
mod error;
mod filter;
mod pin;

#[cfg(feature = "load")]
mod cgroup;
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
mod overlay;
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
mod sockets;
#[cfg(feature = "load")]
mod table;
#[cfg(feature = "load")]
mod takeover;
#[cfg(feature = "load")]
mod timeout;

pub use attach::{
    AttachKind, attach, attach_endpoint, attach_with, detach, detach_endpoint, endpoint_attached, is_attached, pinned_links, supported_kind,
};
pub use error::LoaderError;
pub use pin::{PinDir, Role};

#[cfg(feature = "load")]
pub use crate::{
    cgroup::Cgroup,
    connections::Swept,
    datapath::{Datapath, Grown, Room},
    events::EventRing,
    install::InstallStep,
    layout::Layout,
    object::{object, redirect_object},
    overlay::Overlay,
    packet_run::{PacketContext, TestRun},
    probe::{probe_attach_kind, probe_attach_kind_of},
    service::{FrontendKey, ServiceTable},
    sizes::{Limits, SizeError, Sizes},
    table::{AddressTable, PortTable, PrefixTable, Table},
    timeout::{TimeoutError, set_timeout},
};
#[cfg(feature = "load")]
pub use palisade_datapath_core::packet::connection::Lifetimes;
