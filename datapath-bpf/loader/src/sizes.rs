use palisade_datapath_core::abi::map;

/// How many rows the maps have room for: at first, and at most.
///
/// The maps that the agent writes start small and are replaced by larger ones when a change needs more, up to their limit
/// ([`Datapath::grow`](crate::Datapath::grow)). Connections, fragments and the event ring keep the size that they were made with: they are
/// written by the programs (as are flows from outside and who stays with which backend), and make room for what is new by forgetting what is old.
///
/// A hash map takes 16 bytes for each row that it has room for and about 100 for each that it holds; a trie only about 130 for
/// each that it holds. The connection and fragment tables take theirs at once: about 100 bytes a flow and family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Rows of the policy table.
    pub policy: u32,
    /// Rows of all port tables together.
    pub ports: u32,
    /// Whole addresses (pods and nodes of the cluster), each family.
    pub addresses: u32,
    /// Prefixes that policies name, each family.
    pub prefixes: u32,
    /// Pod interfaces of this node.
    pub endpoints: u32,
    /// Frontends of services: each address with each port, each family.
    pub services: u32,
    /// Backends of services: each endpoint of each port of each service, of both families together.
    pub backends: u32,
    /// Parts of the tables of backends, of 64 slots each: one for each port of a service with up to four backends, 16 slots for each further one.
    pub chunks: u32,
    /// Addresses of nodes and pod ranges of other nodes, each family.
    pub nodes: u32,
    /// Clients that stay with a backend, of both families together; the longest unused one makes room.
    pub affinity: u32,
    /// Whom sockets of the node talk to through services, of both families together; the longest unused one makes room.
    pub sockets: u32,
    /// Flows, each family; the longest unused one makes room.
    pub connections: u32,
    /// Legs of flows from outside the cluster, two for each flow, each family; the longest unused one makes room.
    pub outside: u32,
    /// Datagrams in fragments, each family; the longest unused one makes room.
    pub fragments: u32,
    /// Bytes of the event ring; rounded up to a power of two of pages.
    pub events_bytes: u32,
    /// How far those that grow may grow.
    pub limits: Limits,
}

/// How many rows the maps that grow may have room for at most. A limit below the first size is none: such a map does not grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows of the policy table.
    pub policy: u32,
    /// Rows of all port tables together.
    pub ports: u32,
    /// Whole addresses, each family.
    pub addresses: u32,
    /// Prefixes, each family.
    pub prefixes: u32,
    /// Pod interfaces of this node.
    pub endpoints: u32,
    /// Frontends of services, each family.
    pub services: u32,
    /// Backends of services.
    pub backends: u32,
    /// Parts of the tables of backends.
    pub chunks: u32,
    /// Addresses of nodes and pod ranges of other nodes, each family.
    pub nodes: u32,
}

impl Limits {
    /// The limits of a node that is told none.
    pub const DEFAULT: Self = Self {
        // A hundred pods, each with rules of its own, of which one lists 10 000 networks. Full: 16 MiB of buckets and about 100 MiB of rows.
        policy: 1 << 20,
        // Full: about 130 MiB.
        ports: 1 << 20,
        // The largest cluster that Kubernetes supports has 150 000 pods. Full: 4 MiB of buckets and 16 to 24 MiB of rows a family.
        addresses: 1 << 18,
        // A dozen lists of 10 000 networks, twice. Full: about 30 MiB a family.
        prefixes: 1 << 18,
        // Sixteen times the pods that a large node runs.
        endpoints: 1 << 12,
        // Ten thousand services of six ports, or with node ports. Full: about 8 MiB a family.
        services: 1 << 16,
        // Full: about 30 MiB.
        backends: 1 << 18,
        // Full: about 40 MiB.
        chunks: 1 << 17,
        // The largest cluster that Kubernetes supports has 5 000 nodes. Full: about 4 MiB a family.
        nodes: 1 << 14,
    };
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            // A node with a few dozen different policies; 256 KiB of buckets.
            policy: 1 << 14,
            // A trie costs nothing before it is filled: large enough that most nodes never replace it.
            ports: 1 << 16,
            // A cluster of 16 000 pods; 256 KiB of buckets a family.
            addresses: 1 << 14,
            // As for ports.
            prefixes: 1 << 15,
            // Kubelet's default is 110 pods, and large nodes run 250.
            endpoints: 1 << 9,
            services: 1 << 12,
            backends: 1 << 13,
            chunks: 1 << 12,
            nodes: 1 << 10,
            affinity: 16_384,
            // A connection has one row, a socket that sends datagrams two for each service: about 4 MiB.
            sockets: 32_768,
            connections: 131_072,
            outside: 65_536,
            fragments: 4_096,
            events_bytes: 1 << 20,
            limits: Limits::DEFAULT,
        }
    }
}

/// A size that cannot be set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// It has no value, or none that is a number.
    #[error("{0:?} is no size: write NAME=ROWS, such as policy=65536")]
    Malformed(String),
    /// There is no size of this name.
    #[error(
        "there is no size {0:?}: policy, ports, addresses, prefixes, endpoints, services, backends, chunks, nodes, affinity, sockets, connections, outside, fragments and events-bytes are"
    )]
    Unknown(String),
    /// There is no limit of this name.
    #[error(
        "there is no limit {0:?}: policy, ports, addresses, prefixes, endpoints, services, backends, chunks and nodes grow; other maps keep their size"
    )]
    NoLimit(String),
    /// The first size is above the limit.
    #[error("{name} would begin with room for {first} rows, above its limit of {limit}: raise the limit too")]
    AboveLimit {
        /// The name of the size.
        name: &'static str,
        /// The first size, in rows.
        first: u32,
        /// The limit, in rows.
        limit: u32,
    },
}

impl Sizes {
    /// Sets one first size, written as `NAME=ROWS`; a row at least. Limits are set before: [`set_limit`](Self::set_limit).
    ///
    /// # Errors
    /// [`SizeError`].
    pub fn set(&mut self, written: &str) -> Result<(), SizeError> {
        let (name, rows) = parse(written)?;
        match name {
            "connections" => self.connections = rows,
            "outside" => self.outside = rows,
            "fragments" => self.fragments = rows,
            "affinity" => self.affinity = rows,
            "sockets" => self.sockets = rows,
            "events-bytes" => self.events_bytes = rows,
            name => {
                let (name, first, limit) = self.growing(name).ok_or_else(|| SizeError::Unknown(name.to_owned()))?;
                if rows > *limit {
                    return Err(SizeError::AboveLimit { name, first: rows, limit: *limit });
                }
                *first = rows;
            }
        }
        Ok(())
    }

    /// Sets one limit, written as `NAME=ROWS`; a row at least. A first size above it is lowered to it.
    ///
    /// # Errors
    /// [`SizeError::Malformed`], [`SizeError::NoLimit`].
    pub fn set_limit(&mut self, written: &str) -> Result<(), SizeError> {
        let (name, rows) = parse(written)?;
        let (_, first, limit) = self.growing(name).ok_or_else(|| SizeError::NoLimit(name.to_owned()))?;
        *limit = rows;
        *first = (*first).min(rows);
        Ok(())
    }

    /// A size that grows, with its limit.
    fn growing(&mut self, name: &str) -> Option<(&'static str, &mut u32, &mut u32)> {
        let limits = &mut self.limits;
        Some(match name {
            "policy" => ("policy", &mut self.policy, &mut limits.policy),
            "ports" => ("ports", &mut self.ports, &mut limits.ports),
            "addresses" => ("addresses", &mut self.addresses, &mut limits.addresses),
            "prefixes" => ("prefixes", &mut self.prefixes, &mut limits.prefixes),
            "endpoints" => ("endpoints", &mut self.endpoints, &mut limits.endpoints),
            "services" => ("services", &mut self.services, &mut limits.services),
            "backends" => ("backends", &mut self.backends, &mut limits.backends),
            "chunks" => ("chunks", &mut self.chunks, &mut limits.chunks),
            "nodes" => ("nodes", &mut self.nodes, &mut limits.nodes),
            _ => return None,
        })
    }

    /// The first size of a map by its name; `None` for a map whose size is part of its meaning.
    pub(crate) fn of(&self, name: &str) -> Option<u32> {
        Some(match name {
            map::POLICY => self.policy,
            map::PORTS => self.ports,
            map::ADDRESS_V4 | map::ADDRESS_V6 => self.addresses,
            map::PREFIX_V4 | map::PREFIX_V6 => self.prefixes,
            map::ENDPOINTS | map::LOCAL_V4 | map::LOCAL_V6 => self.endpoints,
            map::SERVICES_V4 | map::SERVICES_V6 => self.services,
            map::BACKENDS => self.backends,
            map::CHUNKS => self.chunks,
            map::TUNNELS_V4 | map::TUNNELS_V6 | map::NODES_V4 | map::NODES_V6 => self.nodes,
            map::AFFINITY => self.affinity,
            map::SOCKETS => self.sockets,
            map::CONNECTIONS_V4 | map::CONNECTIONS_V6 => self.connections,
            map::OUTSIDE_V4 | map::OUTSIDE_V6 => self.outside,
            map::FRAGMENTS_V4 | map::FRAGMENTS_V6 => self.fragments,
            map::EVENTS => self.events_bytes,
            _ => return None,
        })
    }

    /// How far a map may grow, by its name; `None` for a map that does not grow.
    pub(crate) fn limit(&self, name: &str) -> Option<u32> {
        let limit = match name {
            map::POLICY => self.limits.policy,
            map::PORTS => self.limits.ports,
            map::ADDRESS_V4 | map::ADDRESS_V6 => self.limits.addresses,
            map::PREFIX_V4 | map::PREFIX_V6 => self.limits.prefixes,
            map::ENDPOINTS | map::LOCAL_V4 | map::LOCAL_V6 => self.limits.endpoints,
            map::SERVICES_V4 | map::SERVICES_V6 => self.limits.services,
            map::BACKENDS => self.limits.backends,
            map::CHUNKS => self.limits.chunks,
            map::TUNNELS_V4 | map::TUNNELS_V6 | map::NODES_V4 | map::NODES_V6 => self.limits.nodes,
            _ => return None,
        };
        self.of(name).map(|first| limit.max(first))
    }
}

fn parse(written: &str) -> Result<(&str, u32), SizeError> {
    let malformed = || SizeError::Malformed(written.to_owned());
    let (name, rows) = written.split_once('=').ok_or_else(malformed)?;
    Ok((name, rows.parse().ok().filter(|rows| *rows > 0).ok_or_else(malformed)?))
}

/// The size of a map that needs `rows` and may have `limit`: with half of them to spare, so that a map that fills slowly is not
/// replaced at every change; a power of two, since that is what the kernel makes of a hash map's buckets.
pub(crate) fn roomy(rows: usize, limit: u32) -> u32 {
    let rows = u32::try_from(rows).unwrap_or(u32::MAX);
    rows.saturating_add(rows / 2).checked_next_power_of_two().unwrap_or(u32::MAX).min(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_set_by_its_name_and_anything_else_is_refused() {
        let mut sizes = Sizes::default();
        sizes.set("ports=7").unwrap();
        sizes.set("events-bytes=65536").unwrap();
        assert_eq!(sizes, Sizes { ports: 7, events_bytes: 65_536, ..Sizes::default() });
        for wrong in ["ports", "ports=", "ports=0", "ports=-1", "ports=x"] {
            assert_eq!(sizes.set(wrong), Err(SizeError::Malformed(wrong.into())));
            assert_eq!(sizes.set_limit(wrong), Err(SizeError::Malformed(wrong.into())));
        }
        assert_eq!(sizes.set("port=7"), Err(SizeError::Unknown("port".into())));
        assert_eq!(sizes.set_limit("connections=7"), Err(SizeError::NoLimit("connections".into())));
    }

    #[test]
    fn a_first_size_is_never_above_its_limit() {
        let mut sizes = Sizes::default();
        sizes.set_limit("policy=100").unwrap();
        assert_eq!((sizes.policy, sizes.limits.policy), (100, 100), "lowered with it");
        assert_eq!(sizes.set("policy=101"), Err(SizeError::AboveLimit { name: "policy", first: 101, limit: 100 }));
        sizes.set("policy=10").unwrap();
        assert_eq!((sizes.of(map::POLICY), sizes.limit(map::POLICY)), (Some(10), Some(100)));
        assert_eq!(Sizes { policy: 200, ..sizes }.limit(map::POLICY), Some(200), "a map that does not grow");
        assert_eq!(Sizes::default().limit(map::CONNECTIONS_V4), None);
    }

    #[test]
    fn a_map_grows_with_half_to_spare_and_never_beyond_its_limit() {
        assert_eq!(roomy(65, 1 << 20), 128);
        assert_eq!(roomy(100, 1 << 20), 256);
        assert_eq!(roomy(100, 120), 120);
        assert_eq!(roomy(100, 100), 100);
        assert_eq!(roomy(usize::MAX / 2, u32::MAX), u32::MAX);
    }
}
