//! What Kubernetes objects mean, by rule. One program, because the types are large and take their time to compile.

mod cluster_network_policy;
mod convert;
mod definition;
mod endpoint_slice;
mod identity_policy;
mod index;
mod manifest;
mod nodes;
mod refused;
mod service;
mod services;
mod status;
mod status_cost;
mod status_events;
