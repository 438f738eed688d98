//! What the policies mean, held against the oracle, the rules' numbered lines and a simulated kernel.
//!
//! One test program: it is linked once.

mod change;
mod compiler_against_oracle;
mod explain;
mod judge;
mod scale;
mod semantics_changes;
mod semantics_identities;
mod semantics_peers;
mod semantics_ports;
mod semantics_tiers;
