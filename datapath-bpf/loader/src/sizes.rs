use palisade_datapath_core::abi::map;

/// How many rows the maps have room for.
///
/// Hash maps and tries take memory only for the rows that they hold. The connection and fragment tables take it
/// at once: about 100 bytes a flow and family. A map that is already pinned keeps its size.
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
    /// Flows, each family; the longest unused one makes room.
    pub connections: u32,
    /// Datagrams in fragments, each family; the longest unused one makes room.
    pub fragments: u32,
    /// Bytes of the event ring; rounded up to a power of two of pages.
    pub events_bytes: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            policy: 262_144,
            ports: 262_144,
            addresses: 262_144,
            prefixes: 65_536,
            endpoints: 4_096,
            connections: 131_072,
            fragments: 4_096,
            events_bytes: 1 << 20,
        }
    }
}

impl Sizes {
    /// The size of a map by its name; `None` for a map whose size is part of its meaning.
    pub(crate) fn of(&self, name: &str) -> Option<u32> {
        Some(match name {
            map::POLICY => self.policy,
            map::PORTS => self.ports,
            map::ADDRESS_V4 | map::ADDRESS_V6 => self.addresses,
            map::PREFIX_V4 | map::PREFIX_V6 => self.prefixes,
            map::ENDPOINTS | map::LOCAL_V4 | map::LOCAL_V6 => self.endpoints,
            map::CONNECTIONS_V4 | map::CONNECTIONS_V6 => self.connections,
            map::FRAGMENTS_V4 | map::FRAGMENTS_V6 => self.fragments,
            map::EVENTS => self.events_bytes,
            _ => return None,
        })
    }
}
