//! Scenarios on a real cluster with Palisade in it. They need a `KUBECONFIG` and `kubectl`, and nothing else.
//!
//! Every probe runs inside a pod (`kubectl exec`), so what is tested is what an application sees. The pods run
//! `agnhost`, the image of Kubernetes' own tests.

pub mod administrator;
pub mod agent;
pub mod arrived;
pub mod chart;
pub mod claim;
pub mod cluster;
pub mod definition;
pub mod expectation;
pub mod keep;
pub mod listener;
pub mod names;
pub mod pod;
pub mod probe;
pub mod raw;
pub mod request;
pub mod requirement;
pub mod route;
pub mod scenario;
pub mod scene;
pub mod sctp;
pub mod service;
pub mod table;
pub mod world;
