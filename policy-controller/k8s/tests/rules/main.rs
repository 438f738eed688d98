//! What Kubernetes objects mean, by rule. One program, because the types are large and take their time to compile.

mod cluster_network_policy;
mod convert;
mod definition;
mod identity_policy;
mod index;
mod manifest;
mod refused;
mod status;
mod status_cost;
