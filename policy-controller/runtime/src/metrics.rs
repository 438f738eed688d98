//! What the agent counts, and the HTTP server that shows it.

use crate::error::AgentError;
use crate::kernel::KernelHandle;
use crate::state::{NodeServices, State};
use crate::status::kind_and_name;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use palisade_datapath_core::abi::{Counter as PacketCounter, Outcome};
use palisade_loader::Swept;
use palisade_policy::model::PolicyName;
use palisade_service::Trouble;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpListener;

/// Upper bounds of the buckets of a change's duration, in seconds.
const RECONCILE_BUCKETS: [f64; 11] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0];

/// What the agent counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    packets: Family<OutcomeLabels, Counter>,
    bytes: Family<OutcomeLabels, Counter>,
    rows: Family<MapLabels, Gauge>,
    room: Family<MapLabels, Gauge>,
    limits: Family<MapLabels, Gauge>,
    grown: Family<MapLabels, Counter>,
    endpoints: Gauge,
    identities: Gauge,
    subjects: Gauge,
    services: Gauge,
    service_backends: Gauge,
    node_services: Gauge,
    service_problems: Gauge,
    uplinks_missing: Gauge,
    refused: Gauge,
    too_many: Family<TooManyLabels, Gauge>,
    ready: Gauge,
    epoch: Gauge,
    reconciles: Histogram,
    reconcile_failures: Counter,
    rows_changed: Counter,
    events_suppressed: Counter,
    events_lost: Counter,
    watch_restarts: Family<KindLabels, Counter>,
    expired: Counter,
    ranges: Family<WayLabels, Gauge>,
    node_faults: Family<FaultLabels, Gauge>,
    addresses_refused: Family<OfLabels, Counter>,
    frontends_passed_on: Counter,
    frontends_given_up: Counter,
    pod_mtu: Gauge,
    told: Family<WhatLabels, Counter>,
    not_told: Family<WhatLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: String,
    passes: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MapLabels {
    map: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TooManyLabels {
    map: String,
    kind: String,
    object: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WayLabels {
    way: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FaultLabels {
    fault: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhatLabels {
    what: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLabels {
    of: &'static str,
}

/// Who has an address for which a pod is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A node.
    Node,
    /// A pod of another node.
    Pod,
}

impl Owner {
    const ALL: [Self; 2] = [Self::Node, Self::Pod];

    fn labels(self) -> OfLabels {
        let of = match self {
            Self::Node => "node",
            Self::Pod => "pod",
        };
        OfLabels { of }
    }
}

/// What is told to the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Told {
    /// What this node enforces.
    Report,
    /// That this agent writes statuses.
    Lease,
    /// The status of an object.
    Status,
    /// An event about an object.
    Event,
}

impl Told {
    fn labels(self) -> WhatLabels {
        let what = match self {
            Self::Report => "report",
            Self::Lease => "lease",
            Self::Status => "status",
            Self::Event => "event",
        };
        WhatLabels { what: what.to_owned() }
    }
}

impl Metrics {
    /// Everything at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("palisade"),
            packets: Family::default(),
            bytes: Family::default(),
            rows: Family::default(),
            room: Family::default(),
            limits: Family::default(),
            grown: Family::default(),
            endpoints: Gauge::default(),
            identities: Gauge::default(),
            subjects: Gauge::default(),
            services: Gauge::default(),
            service_backends: Gauge::default(),
            node_services: Gauge::default(),
            service_problems: Gauge::default(),
            uplinks_missing: Gauge::default(),
            refused: Gauge::default(),
            too_many: Family::default(),
            ready: Gauge::default(),
            epoch: Gauge::default(),
            reconciles: Histogram::new(RECONCILE_BUCKETS),
            reconcile_failures: Counter::default(),
            rows_changed: Counter::default(),
            events_suppressed: Counter::default(),
            events_lost: Counter::default(),
            watch_restarts: Family::default(),
            expired: Counter::default(),
            ranges: Family::default(),
            node_faults: Family::default(),
            addresses_refused: Family::default(),
            frontends_passed_on: Counter::default(),
            frontends_given_up: Counter::default(),
            pod_mtu: Gauge::default(),
            told: Family::default(),
            not_told: Family::default(),
        };
        metrics.register();
        // There before the first, so that an increase shows.
        Owner::ALL.iter().for_each(|owner| drop(metrics.addresses_refused.get_or_create(&owner.labels())));
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("packets", "Packets by what became of them", self.packets.clone());
        registry.register_with_unit("traffic", "Bytes of packets by what became of them", Unit::Bytes, self.bytes.clone());
        registry.register("map_rows", "Rows in a BPF map; of flows, as many as the last sweep found", self.rows.clone());
        registry.register("map_room", "Rows that a BPF map has room for", self.room.clone());
        registry.register("map_limit", "Rows that a BPF map may have room for", self.limits.clone());
        registry.register("map_growths", "How often a BPF map was replaced by a larger one", self.grown.clone());
        registry.register("endpoints", "Pod interfaces on this node", self.endpoints.clone());
        registry.register("identities", "Identities in use on this node", self.identities.clone());
        registry.register("subjects", "Distinct effective policies on this node", self.subjects.clone());
        registry.register("services", "Services in the kernel of this node", self.services.clone());
        registry.register("service_backends", "Backends of the services' ports, in each family", self.service_backends.clone());
        registry.register("node_services", "1 when the node's own processes are served services", self.node_services.clone());
        registry.register("service_problems", "What is not served as a service or a host port asks", self.service_problems.clone());
        registry.register(
            "uplinks_missing",
            "Interfaces without the programs for clients outside that should have them",
            self.uplinks_missing.clone(),
        );
        registry.register("refused_objects", "Objects that could not be used as they are", self.refused.clone());
        registry.register(
            "rows_too_many",
            "Rows that a policy or service that was held back is over the limit of a map",
            self.too_many.clone(),
        );
        registry.register("node_ranges", "Pod ranges of other nodes, by the way to them", self.ranges.clone());
        registry.register("node_faults", "What is wrong with Node objects, each fault of each node", self.node_faults.clone());
        registry.register(
            "addresses_refused",
            "Pods that were refused since somebody else has their address, by who that is",
            self.addresses_refused.clone(),
        );
        registry.register(
            "frontends_passed_on",
            "Addresses and ports of services that have become another service's, whose flows have ended by that",
            self.frontends_passed_on.clone(),
        );
        registry.register(
            "frontends_given_up",
            "Addresses and ports that are nobody's any more though who had them is there, whose flows have ended by that",
            self.frontends_given_up.clone(),
        );
        registry.register_with_unit("pod_mtu", "MTU of new pods", Unit::Bytes, self.pod_mtu.clone());
        registry.register("ready", "1 when everything was read and is in the kernel", self.ready.clone());
        registry.register("policy_epoch", "Moves with every change that could alter a verdict", self.epoch.clone());
        registry.register_with_unit(
            "reconcile",
            "Time from a changed model to its rows in the kernel",
            Unit::Seconds,
            self.reconciles.clone(),
        );
        registry.register("api_writes", "Writes to the API server, by what they tell", self.told.clone());
        registry.register("api_write_failures", "Writes that the API server did not take", self.not_told.clone());
        registry.register("reconcile_failures", "Changes that could not be put into the kernel", self.reconcile_failures.clone());
        registry.register("rows_changed", "Rows written and removed", self.rows_changed.clone());
        registry.register("events_suppressed", "Events that the datapath's rate limit swallowed", self.events_suppressed.clone());
        registry.register("events_lost", "Events that observers were too slow for", self.events_lost.clone());
        registry.register("watch_restarts", "Watches of the API server that broke off", self.watch_restarts.clone());
        registry.register("connections_expired", "Connections that the sweep removed", self.expired.clone());
    }

    /// A change was put into the kernel.
    pub fn reconciled(&self, duration: Duration, rows_changed: usize) {
        self.reconciles.observe(duration.as_secs_f64());
        self.rows_changed.inc_by(rows_changed as u64);
    }

    /// A change could not be put into the kernel.
    pub fn reconcile_failed(&self) {
        self.reconcile_failures.inc();
    }

    /// The datapath's rate limit swallowed events.
    pub fn events_suppressed(&self, count: u64) {
        self.events_suppressed.inc_by(count);
    }

    /// A map was replaced by a larger one.
    pub fn map_grown(&self, map: &str) {
        self.grown.get_or_create(&MapLabels { map: map.to_owned() }).inc();
    }

    /// An observer was too slow for events.
    pub fn events_lost(&self, count: u64) {
        self.events_lost.inc_by(count);
    }

    /// A watch of the API server broke off.
    pub fn watch_restarted(&self, kind: &'static str) {
        self.watch_restarts.get_or_create(&KindLabels { kind: kind.to_owned() }).inc();
    }

    /// Something was told to the API server.
    pub fn told(&self, what: Told) {
        self.told.get_or_create(&what.labels()).inc();
    }

    /// Something could not be told to the API server.
    pub fn not_told(&self, what: Told) {
        self.not_told.get_or_create(&what.labels()).inc();
    }

    /// A pod was refused, since somebody else has its address.
    pub fn address_refused(&self, owner: Owner) {
        self.addresses_refused.get_or_create(&owner.labels()).inc();
    }

    /// A frontend of one service has become another's.
    pub fn frontend_passed_on(&self) {
        self.frontends_passed_on.inc();
    }

    /// A frontend is nobody's any more, though the service or the pod that had it is there.
    pub fn frontend_given_up(&self) {
        self.frontends_given_up.inc();
    }

    /// A table of flows was swept. They do not grow: their room is their limit.
    pub fn connections_swept(&self, &Swept { map, found, removed, room }: &Swept) {
        let labels = MapLabels { map: map.to_owned() };
        self.rows.get_or_create(&labels).set(found as i64);
        self.room.get_or_create(&labels).set(room.into());
        self.limits.get_or_create(&labels).set(room.into());
        self.expired.inc_by(removed as u64);
    }

    /// The text that Prometheus reads.
    fn text(&self, state: &State, counters: &[(Outcome, PacketCounter)]) -> Result<String, std::fmt::Error> {
        for (outcome, counter) in counters {
            let labels = OutcomeLabels { outcome: outcome.name().to_owned(), passes: outcome.passes().to_string() };
            self.packets.get_or_create(&labels).inner().store(counter.packets, Ordering::Relaxed);
            self.bytes.get_or_create(&labels).inner().store(counter.bytes, Ordering::Relaxed);
        }
        let published = state.published();
        for size in &published.sizes {
            let labels = MapLabels { map: size.map.to_owned() };
            self.rows.get_or_create(&labels).set(size.rows as i64);
            self.room.get_or_create(&labels).set(size.room.into());
            self.limits.get_or_create(&labels).set(size.limit.into());
            drop(self.grown.get_or_create(&labels));
        }
        let counts = crate::status::counts(&published);
        self.endpoints.set(counts.endpoints as i64);
        self.identities.set(counts.identities as i64);
        self.subjects.set(counts.subjects as i64);
        self.services.set(counts.services as i64);
        self.service_backends.set(counts.backends as i64);
        self.node_services.set((published.node_services == NodeServices::Served).into());
        let problems = published.served.problems().count() + state.health_checks_missing();
        self.service_problems.set(problems as i64);
        self.uplinks_missing.set(state.uplinks_missing().len() as i64);
        self.refused.set(crate::status::refused(state, &published).len() as i64);
        self.too_many.clear();
        for (PolicyName { kind, object }, (map, rows)) in &published.too_many {
            let labels = TooManyLabels { map: (*map).to_owned(), kind: kind.to_string(), object: object.to_string() };
            self.too_many.get_or_create(&labels).set(*rows as i64);
        }
        for problem in published.served.problems() {
            let Trouble::NoRoom { map, rows, limit } = problem.what else { continue };
            let (kind, object) = kind_and_name(&problem.owner);
            let labels = TooManyLabels { map: map.to_owned(), kind: kind.to_owned(), object };
            self.too_many.get_or_create(&labels).set(rows.saturating_sub(limit as usize) as i64);
        }
        if let Some(network) = state.network() {
            for (way, count) in network.counts() {
                self.ranges.get_or_create(&WayLabels { way: way.to_string() }).set(count as i64);
            }
            for (fault, count) in network.fault_counts() {
                self.node_faults.get_or_create(&FaultLabels { fault: fault.to_owned() }).set(count as i64);
            }
        }
        self.pod_mtu.set(state.node_config().map_or(0, |config| config.mtu.into()));
        self.ready.set(state.not_ready().is_empty().into());
        self.epoch.set(published.epoch.into());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Listens for scrapes.
///
/// # Errors
/// [`AgentError::Metrics`] when the address is taken or not ours.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, AgentError> {
    TcpListener::bind(address).await.map_err(|error| AgentError::Metrics { address, error })
}

/// Serves `/metrics`, `/healthz` (the process lives) and `/readyz` (503 and the problems while the agent is not ready).
pub async fn serve(state: Arc<State>, kernel: KernelHandle, listener: TcpListener) -> std::io::Result<()> {
    let ready = Arc::clone(&state);
    let routes = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(async move || readiness(&ready)))
        .route("/metrics", get(async move || scrape(&state, &kernel).await));
    axum::serve(listener, routes).await
}

fn readiness(state: &State) -> (StatusCode, String) {
    match state.not_ready() {
        problems if problems.is_empty() => (StatusCode::OK, "ready\n".to_owned()),
        problems => (StatusCode::SERVICE_UNAVAILABLE, problems.join("\n") + "\n"),
    }
}

async fn scrape(state: &State, kernel: &KernelHandle) -> impl IntoResponse + use<> {
    let counters = kernel.run(|kernel| kernel.counters()).await;
    match state.metrics.text(state, &counters) {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AgentConfig, Source};
    use crate::route::{Fault, Network, Wrong};

    fn state() -> State {
        State::new(AgentConfig::new("node", Source::Directory("/nowhere".into())))
    }

    #[test]
    fn every_outcome_is_a_series_of_its_own() {
        let state = state();
        let counters: Vec<_> = Outcome::ALL.iter().map(|outcome| (*outcome, PacketCounter { packets: 7, bytes: 70 })).collect();
        let text = state.metrics.text(&state, &counters).unwrap();
        for outcome in Outcome::ALL {
            let line = format!("palisade_packets_total{{outcome=\"{}\",passes=\"{}\"}} 7", outcome.name(), outcome.passes());
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
        assert!(text.contains("palisade_traffic_bytes_total{outcome=\"arp\",passes=\"true\"} 70"), "{text}");
        for line in [
            "palisade_ready 0",
            "palisade_services 0",
            "palisade_service_backends 0",
            "palisade_node_services 0",
            "palisade_service_problems 0",
            "palisade_uplinks_missing 0",
            "palisade_addresses_refused_total{of=\"node\"} 0",
            "palisade_addresses_refused_total{of=\"pod\"} 0",
            "palisade_frontends_passed_on_total 0",
            "palisade_frontends_given_up_total 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn faults_of_nodes_and_ways_to_them_are_counted() {
        let state = state();
        let fault = |node: &str| Fault { node: node.to_owned(), what: Wrong::NoRange };
        state.set_network(Network { faults: [fault("b"), fault("c")].into(), mtu: 1450, ..Network::default() });
        let text = state.metrics.text(&state, &[]).unwrap();
        for line in [
            "palisade_node_faults{fault=\"no-pod-range\"} 2",
            "palisade_node_faults{fault=\"overlapping-pod-range\"} 0",
            "palisade_node_ranges{way=\"vxlan\"} 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_sweep_tells_how_full_the_tables_of_flows_are() {
        let state = state();
        for (found, removed) in [(90, 3), (70, 4)] {
            state.metrics.connections_swept(&Swept { map: "CONNECTIONS_V6", found, removed, room: 100 });
        }
        let text = state.metrics.text(&state, &[]).unwrap();
        for line in [
            "palisade_map_rows{map=\"CONNECTIONS_V6\"} 70",
            "palisade_map_room{map=\"CONNECTIONS_V6\"} 100",
            "palisade_map_limit{map=\"CONNECTIONS_V6\"} 100",
            "palisade_connections_expired_total 7",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn readiness_names_the_problems() {
        let (code, text) = readiness(&state());
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.contains("source: the objects have not been read yet"), "{text}");
    }
}
