//! Benchmarks against a direct veth pair and plain kernel routing.
