//! A node of a lab, and the agent on it.

use super::flow::Party;
use super::outside;
use super::paths::{self, Places};
use crate::agent;
use crate::arguments::RoutingMode;
use crate::error::CliError;
use palisade_cni::link::{LinkError, Namespace};
use palisade_protocol::{Call, Client, Explained, FlowQuery, Reply, SOCKET_NAME, ServiceStatus, Status};
use palisade_runtime::{AgentConfig, Source, Switch};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;

/// How long the agent may take until it is ready, or until what keeps it from that is another thing.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// Connections that each of several nodes has room for: a lab has few, and each table is there from the start.
const CONNECTIONS: u32 = 16_384;

/// A node.
#[derive(Debug)]
pub struct LabNode {
    name: String,
    config: AgentConfig,
    agent: Option<RunningAgent>,
}

/// Tells why an agent ended that nobody has stopped.
pub type Failures = mpsc::UnboundedSender<String>;

#[derive(Debug)]
struct RunningAgent {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
    /// Why it ended by itself.
    problem: Arc<OnceLock<String>>,
}

/// Runs `work` in the network namespace of a node.
pub fn within<T: Send>(node: &str, work: impl FnOnce() -> T + Send) -> Result<T, LinkError> {
    if node == outside::NODE {
        return Ok(work());
    }
    Namespace::open(&paths::namespace(&Party::Node(node.to_owned())))?.enter(work)
}

impl LabNode {
    /// The only node of a lab, in the namespace of the lab itself, with the objects of the user's files.
    pub fn only(directory: &Path) -> Self {
        let mut config = configuration(outside::NODE, directory);
        config.ranges = outside::pod_ranges();
        config.service_ranges = outside::service_ranges();
        config.node_addresses = outside::node_addresses().to_vec();
        Self { name: outside::NODE.to_owned(), config, agent: None }
    }

    /// One of several, whose namespace is made already, with the objects of the lab's record.
    pub fn of_several(name: &str, mode: RoutingMode) -> Result<Self, CliError> {
        let mut config = configuration(name, &paths::record());
        config.sizes.connections = CONNECTIONS;
        config.routing.mode = mode.into();
        // As in a cluster: nodes reach each other's pods past the stack, and ports of the nodes are served.
        config.services_outside = Switch::On;
        // As there: nobody outside routes the pods of a lab.
        config.masquerade.ipv4 = Switch::On;
        config.masquerade.ipv6 = Switch::On;
        let made = [&config.run_dir, &Places::of(name).state].into_iter().try_for_each(std::fs::create_dir_all);
        made.map_err(|error| CliError::Environment(format!("cannot make the directories of node {name}: {error}")))?;
        Ok(Self { name: name.to_owned(), config, agent: None })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether its agent runs.
    pub const fn runs(&self) -> bool {
        self.agent.is_some()
    }

    /// Runs the agent's code, in a thread of its own as it would run in a process of its own, and waits until it has read everything and
    /// filled the tables.
    pub async fn start(&mut self, failures: &Failures) -> Result<(), CliError> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (name, config, failures) = (self.name.clone(), self.config.clone(), failures.clone());
        let problem = Arc::new(OnceLock::new());
        let told = Arc::clone(&problem);
        let thread = std::thread::Builder::new()
            .name("agent".into())
            .spawn(move || {
                let run = || {
                    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
                    let runtime = runtime.map_err(|error| error.to_string())?;
                    // An end of the line without a word is none: whoever holds it is gone with all of the lab.
                    let shutdown = async {
                        if stopped.await.is_err() {
                            std::future::pending::<()>().await;
                        }
                    };
                    let ended = runtime.block_on(palisade_runtime::run(config, shutdown)).map_err(|error| error.to_string());
                    runtime.shutdown_timeout(Duration::from_secs(5));
                    ended
                };
                let entered = || within(&name, run).unwrap_or_else(|error| Err(error.to_string()));
                // A panic has been shown; the lab must end with it all the same.
                let ended = catch_unwind(AssertUnwindSafe(entered)).unwrap_or_else(|_| Err("the agent ended by itself".to_owned()));
                if let Err(problem) = ended {
                    let _ = told.set(problem.clone());
                    let _ = failures.send(problem);
                }
            })
            .map_err(|error| CliError::Environment(format!("cannot start the agent's thread: {error}")))?;
        self.agent = Some(RunningAgent { stop, thread, problem });
        self.ready().await
    }

    /// Ends the agent; what is pinned goes on enforcing.
    pub async fn stop(&mut self) {
        let Some(RunningAgent { stop, thread, .. }) = self.agent.take() else { return };
        let _ = stop.send(());
        // A panic in it has been shown.
        let _ = spawn_blocking(move || thread.join()).await;
    }

    /// Ends the agent and removes all that it has pinned and kept: the programs of pods end with their interfaces.
    pub async fn remove(mut self) -> Result<(), CliError> {
        self.stop().await;
        let gone = |path: &Path| match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(CliError::Failed(format!("cannot remove {}: {error}", path.display())))
            }
            _ => Ok(()),
        };
        gone(&self.config.pin_dir)?;
        gone(&paths::nodes().join(&self.name))
    }

    async fn ready(&self) -> Result<(), CliError> {
        let mut problems = Vec::new();
        let mut since = tokio::time::Instant::now();
        loop {
            match self.status().await {
                Ok(status) if status.ready => return Ok(()),
                Ok(status) if status.problems != problems => {
                    problems = status.problems;
                    since = tokio::time::Instant::now();
                }
                // Nothing new, or not listening yet.
                Ok(_) | Err(_) => {}
            }
            if let Some(agent) = self.agent.as_ref().filter(|agent| agent.thread.is_finished()) {
                return Err(CliError::Environment(agent.problem.get().map_or("the agent ended by itself", String::as_str).to_owned()));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            if since.elapsed() > READY_WITHIN {
                let why = if problems.is_empty() { "it does not answer".to_owned() } else { problems.join("; ") };
                let whose = if self.name == outside::NODE { String::new() } else { format!(" of {}", self.name) };
                return Err(CliError::Environment(format!("the agent{whose} does not get ready: {why}")));
            }
        }
    }

    /// The agent's state.
    pub async fn status(&self) -> Result<Status, CliError> {
        self.ask(|client| match client.call(Call::Status)? {
            Reply::Status(status) => Ok(status),
            other => Err(agent::unexpected(&other)),
        })
        .await
    }

    /// The pod ranges that the agent gives addresses of.
    pub async fn ranges(&self) -> Result<Vec<ipnet::IpNet>, CliError> {
        self.ask(|client| match client.call(Call::Node)? {
            Reply::Node(node) => Ok(node.ranges),
            other => Err(agent::unexpected(&other)),
        })
        .await
    }

    /// The services, as the node's kernel serves them.
    pub async fn services(&self) -> Result<Vec<ServiceStatus>, CliError> {
        self.ask(|client| match client.call(Call::Services { namespaces: Vec::new(), object: None, backends: true })? {
            Reply::Services(services) => Ok(services),
            other => Err(agent::unexpected(&other)),
        })
        .await
    }

    /// What the policies on the node say of flows, in their order.
    pub async fn explain(&self, queries: Vec<FlowQuery>) -> Result<Vec<Explained>, CliError> {
        self.ask(move |client| {
            let mut answers = Vec::with_capacity(queries.len());
            for query in queries {
                match client.call(Call::Explain(query))? {
                    Reply::Explained(explained) => answers.push(explained),
                    other => return Err(agent::unexpected(&other)),
                }
            }
            Ok(answers)
        })
        .await
    }

    /// Which of some pods, each asked about by a flow of one family to `far`, have an address there by what is in the node's kernel.
    pub async fn knows(&self, queries: Vec<FlowQuery>) -> Result<Vec<bool>, CliError> {
        self.ask(move |client| {
            let ask = |query| match client.call(Call::Explain(query)) {
                Ok(Reply::Explained(_)) => Ok(true),
                Err(palisade_protocol::ClientError::Refused(_)) => Ok(false),
                Ok(other) => Err(agent::unexpected(&other)),
                Err(error) => Err(error.into()),
            };
            queries.into_iter().map(ask).collect()
        })
        .await
    }

    async fn ask<T: Send + 'static>(&self, ask: impl FnOnce(&mut Client) -> Result<T, CliError> + Send + 'static) -> Result<T, CliError> {
        let socket = self.config.run_dir.join(SOCKET_NAME);
        blocking(move || ask(&mut Client::connect(&socket, agent::PATIENCE)?)).await
    }
}

/// What an agent is told, in whatever lab.
fn configuration(node: &str, directory: &Path) -> AgentConfig {
    let places = Places::of(node);
    let mut config = AgentConfig::new(node, Source::Directory(directory.to_owned()));
    config.pin_dir = places.pins;
    config.run_dir = places.run;
    // Where the kernel cannot, nothing is asked from the node.
    config.node_services = Switch::On;
    config
}

/// Runs what blocks on a thread of its own.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, CliError> + Send + 'static) -> Result<T, CliError> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(CliError::Failed(format!("a step of the lab broke: {error}"))))
}
