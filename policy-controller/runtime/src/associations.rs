//! What the node's own processes send to services by SCTP. TCP and UDP have programs at their sockets; for SCTP the kernel has no hook there, so
//! connection tracking sends an association to a backend.

use palisade_cni::link::{Associations, Lead};
use palisade_datapath_core::abi::{ServiceEntry, TABLE_NONE, service_flag};
use palisade_identity::Protocol;
use palisade_service::frontend::target;
use palisade_service::{Compiled, Number};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Where the associations to each frontend of the rows go.
pub fn of(rows: &Compiled) -> Associations {
    let frontends = rows.frontends.iter().filter(|(frontend, _)| frontend.protocol == Protocol::Sctp);
    Associations(frontends.map(|(frontend, entry)| (SocketAddr::new(frontend.address, frontend.port), lead(rows, entry))).collect())
}

fn lead(rows: &Compiled, entry: &ServiceEntry) -> Lead {
    let slots = rows.tables.get(&Number(entry.table)).map(|slots| &slots[..]).unwrap_or_default();
    let reached = |number: &u32| rows.backends.get(&Number(*number)).and_then(target).map(SocketAddr::from);
    let backends: BTreeSet<SocketAddr> = slots.iter().collect::<BTreeSet<_>>().into_iter().filter_map(reached).collect();
    // All processes of the node are one client: with affinity it stays with one backend, which a table seldom changes.
    let backends = match slots.first().filter(|_| entry.affinity != 0).and_then(reached) {
        Some(only) => BTreeSet::from([only]),
        None => backends,
    };
    match entry.table {
        _ if !backends.is_empty() => Lead::Backends(backends.into_iter().collect()),
        TABLE_NONE if entry.flags & service_flag::DROP == 0 => Lead::Refused,
        _ => Lead::Unreachable,
    }
}
