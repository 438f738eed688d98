#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod agent;
mod associations;
mod config;
mod error;
mod event;
mod explain;
mod health_check;
mod kernel;
mod lock;
mod masquerade;
mod metrics;
mod news;
mod node;
mod policies;
mod problem;
mod realise;
mod reconcile;
mod record;
mod route;
mod services;
mod socket;
mod source;
mod state;
mod status;
mod tables;
mod tell;
mod uplink;

pub use config::{
    AgentConfig, DEFAULT_MTU, DEFAULT_OVERLAY_NETWORK, DEFAULT_OVERLAY_PORT, DEFAULT_STATE_DIR, Forwarding, Masquerading, Routing,
    RoutingMode, Source, Switch,
};
pub use error::AgentError;
pub use event::outcome_names;
pub use explain::{View, explained};
pub use palisade_loader::{Lifetimes, Limits, SizeError, Sizes, TimeoutError, probe_attach_kind, set_timeout};
pub use palisade_protocol as protocol;
pub use route::enable_forwarding;

use agent::Agent;
use kernel::{Kernel, KernelHandle};
use lock::RunLock;
use socket::NodeSocket;
use state::State;
use std::convert::Infallible;
use std::fmt::Display;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::{OnceCell, oneshot};
use tokio::task::JoinSet;

/// Runs an agent until `shutdown` is ready, or a part of it ends that never should.
///
/// All threads of the calling runtime must be in the network namespace of the node: interfaces, routes and settings are
/// those of that namespace. Nothing is global, so many agents can run in one process, each with directories of its own.
/// When it returns, or is dropped, what is pinned goes on enforcing.
///
/// # Errors
/// What no waiting would mend: directories that cannot be used, another agent on them, an address that is taken, a
/// configuration that makes no sense; [`AgentError::Ended`] for a part that died. Everything else is in the agent's status.
pub fn run(config: AgentConfig, shutdown: impl Future<Output = ()> + Send + 'static) -> Running {
    boxed(config, Box::pin(shutdown))
}

/// A running agent.
pub type Running = Pin<Box<dyn Future<Output = Result<(), AgentError>> + Send>>;

/// Of one type, so that the agent is compiled here, once, and not anew in every program that runs it.
fn boxed(config: AgentConfig, shutdown: Pin<Box<dyn Future<Output = ()> + Send>>) -> Running {
    Box::pin(run_parts(config, shutdown))
}

async fn run_parts(config: AgentConfig, shutdown: Pin<Box<dyn Future<Output = ()> + Send>>) -> Result<(), AgentError> {
    check(&config)?;
    let lock = RunLock::take(&config.run_dir)?;
    let scrapes = match config.metrics {
        Some(address) => Some(metrics::listen(address).await?),
        None => None,
    };
    let state = Arc::new(State::new(config));
    let run_dir = state.config.run_dir.clone();
    let kernel = Kernel::new(Arc::clone(&state), lock).map_err(|error| AgentError::RunDir { path: run_dir, error })?;
    let kernel = KernelHandle::new(kernel);
    let socket = NodeSocket::bind(&state.config.socket())?;
    let agent =
        Arc::new(Agent { state: Arc::clone(&state), kernel: kernel.clone(), reader: OnceCell::new(), listed: tell::Listed::default() });
    tracing::info!(node = state.config.node, source = %state.config.source, run_dir = %state.config.run_dir.display(), "palisade-agent runs");

    let mut parts: JoinSet<AgentError> = JoinSet::new();
    let for_rows = kernel.clone();
    let (for_forwarding, for_tables) = (Arc::clone(&state), Arc::clone(&state));
    parts.spawn(forever("forwarding", async { Ok::<_, Infallible>(route::keep_forwarding(for_forwarding).await) }));
    parts.spawn(forever("tables", async { Ok::<_, Infallible>(tables::follow(for_tables).await) }));
    let (for_uplinks, for_checks) = (Arc::clone(&state), Arc::clone(&state));
    parts.spawn(forever("uplinks", async { Ok::<_, Infallible>(uplink::follow(for_uplinks).await) }));
    let for_news = Arc::clone(&state);
    parts.spawn(forever("news of objects", async { Ok::<_, Infallible>(news::follow(for_news).await) }));
    parts.spawn(forever("health checks", async { Ok::<_, Infallible>(health_check::follow(for_checks).await) }));
    parts.spawn(forever("datapath", reconcile::datapath(Arc::clone(&state), kernel.clone())));
    parts.spawn(forever("node socket", socket.serve(Arc::clone(&agent))));
    if let Some(listener) = scrapes {
        parts.spawn(forever("metrics server", metrics::serve(Arc::clone(&state), kernel, listener)));
    }
    match state.config.source.clone() {
        Source::Kubernetes { server } => {
            let (for_node, for_routes) = (Arc::clone(&state), Arc::clone(&state));
            if let Some(namespace) = state.config.status_namespace.clone() {
                let agent = Arc::clone(&agent);
                parts.spawn(forever("status", async { Ok::<_, Infallible>(tell::follow(agent, namespace).await) }));
            }
            parts.spawn(forever("watches", async { Ok::<_, Infallible>(source::kubernetes::watch(agent, server).await) }));
            parts.spawn(forever("node watch", async { Ok::<_, Infallible>(node::follow(for_node).await) }));
            parts.spawn(forever("routes", async { Ok::<_, Infallible>(route::follow(for_routes, for_rows).await) }));
        }
        Source::Directory(directory) => {
            let (for_node, for_routes) = (Arc::clone(&state), Arc::clone(&state));
            let (tell_nodes, nodes) = oneshot::channel();
            let watch = source::directory::follow(state, directory, tell_nodes);
            parts.spawn(forever("directory watch", async { Ok::<_, Infallible>(watch.await) }));
            parts.spawn(forever("node watch", async { Ok::<_, Infallible>(node::follow(for_node).await) }));
            // A node without others has nobody to route to, and the routes of its machine are left alone.
            parts.spawn(forever("routes", async {
                nodes.await?;
                Ok::<_, oneshot::error::RecvError>(route::follow(for_routes, for_rows).await)
            }));
        }
    }
    // Dropping the set on the way out ends every part.
    tokio::select! {
        () = shutdown => {
            tracing::info!("palisade-agent ends; what is pinned goes on enforcing");
            Ok(())
        }
        Some(ended) = parts.join_next() => Err(ended.unwrap_or_else(|error| AgentError::Ended { part: "task", reason: error.to_string() })),
    }
}

fn check(config: &AgentConfig) -> Result<(), AgentError> {
    if config.node.is_empty() {
        return Err(AgentError::Config("the node's name is missing: --node, or NODE_NAME from the field spec.nodeName".to_owned()));
    }
    let ranges = |ipv6: bool| config.ranges.iter().filter(|range| range.addr().is_ipv6() == ipv6).count();
    if ranges(false) > 1 || ranges(true) > 1 {
        return Err(AgentError::Config("--ranges takes at most one range per family".to_owned()));
    }
    for services in &config.service_ranges {
        if let Some(pods) = config.ranges.iter().find(|pods| pods.contains(services) || services.contains(*pods)) {
            let message =
                format!("--service-ranges has {services}, which overlaps the pod range {pods}: services and pods share no address");
            return Err(AgentError::Config(message));
        }
    }
    Ok(())
}

/// Turns a part that should run for ever into the error that its end is.
async fn forever<T, E: Display>(part: &'static str, work: impl Future<Output = Result<T, E>>) -> AgentError {
    let reason = match work.await {
        Ok(_) => "it came to an end".to_owned(),
        Err(error) => error.to_string(),
    };
    tracing::error!(part, reason, "a part of the agent ended");
    AgentError::Ended { part, reason }
}
