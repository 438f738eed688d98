//! `palisade-agent`: the node agent, and the installer of the CNI plugin.

mod install;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use palisade_runtime::protocol::{DEFAULT_PIN_DIR, DEFAULT_RUN_DIR};
use palisade_runtime::{
    AgentConfig, AgentError, DEFAULT_OVERLAY_NETWORK, DEFAULT_OVERLAY_PORT, Lifetimes, Masquerading, Routing, Sizes, Source, set_timeout,
};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The node agent of Palisade: keeps the kernel of this node enforcing the cluster's network policies.
///
/// Exit codes: 0 ended by SIGTERM or SIGINT; 1 a part of the agent died; 2 wrong arguments; 3 the run directory cannot be
/// used; 4 another agent runs on it; 5 the metrics address cannot be used. What can pass by itself (no API server, no bpf
/// file system) is no reason to end: `palisade status` and /readyz name it, and the agent tries again.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
    /// How to write the log.
    #[arg(long, global = true, env = "PALISADE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the agent; what happens without a command, too.
    Run(Box<Run>),
    /// Makes a node ready for its agent: bpf file system, forwarding, CNI plugin and configuration.
    InstallCni(install::Install),
}

#[derive(Args, Clone, Debug)]
struct Run {
    /// Read manifests from a directory instead of the API server; unless it has Node objects, all pods in it are on this node.
    #[arg(long, env = "PALISADE_DIRECTORY", value_name = "DIR", conflicts_with = "api_server")]
    directory: Option<PathBuf>,
    /// Name of this node.
    #[arg(long, env = "NODE_NAME", default_value = "")]
    node: String,
    /// The run directory: node socket and endpoint records.
    #[arg(long, env = "PALISADE_RUN_DIR", value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// A directory in a bpf file system: maps, programs and links.
    #[arg(long, env = "PALISADE_PIN_DIR", value_name = "DIR", default_value = DEFAULT_PIN_DIR)]
    pin_dir: PathBuf,
    /// host:port or URL of the API server; default: as the service account's environment or KUBECONFIG says.
    #[arg(long, env = "PALISADE_API_SERVER", value_name = "ADDRESS")]
    api_server: Option<String>,
    /// Address and port of /metrics, /healthz and /readyz.
    #[arg(long, env = "PALISADE_METRICS", value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
    /// Namespace in which the agents report what their nodes enforce, and elect the one that writes the status of policies; default: no
    /// status is written.
    #[arg(long, env = "PALISADE_STATUS_NAMESPACE", value_name = "NAMESPACE", conflicts_with = "directory")]
    status_namespace: Option<String>,
    /// The node's pod ranges, one per family; default: spec.podCIDRs of the Node.
    #[arg(long, env = "PALISADE_RANGES", value_name = "CIDR", value_delimiter = ',')]
    ranges: Vec<IpNet>,
    /// Where services of a directory that name no cluster IP get one; default: nowhere, and such a service is not reached.
    #[arg(long, env = "PALISADE_SERVICE_RANGES", value_name = "CIDR", value_delimiter = ',', requires = "directory")]
    service_ranges: Vec<IpNet>,
    /// Rows that a map has room for at first, e.g. policy=65536; also ports, addresses, prefixes, endpoints, services, backends, chunks, nodes,
    /// affinity, sockets, connections, outside, fragments, events-bytes.
    #[arg(long, env = "PALISADE_MAP_SIZE", value_name = "NAME=ROWS", value_delimiter = ',')]
    map_size: Vec<String>,
    /// Rows that a map may have room for at most, e.g. policy=4194304; also ports, addresses, prefixes, endpoints, services,
    /// backends, chunks, nodes.
    #[arg(long, env = "PALISADE_MAP_LIMIT", value_name = "NAME=ROWS", value_delimiter = ',')]
    map_limit: Vec<String>,
    /// Seconds that a flow may be silent before it is judged afresh, e.g. udp=60; also tcp-established, tcp-half-open, tcp-closed, udp-answered,
    /// icmp.
    #[arg(long, env = "PALISADE_CONNECTION_TIMEOUT", value_name = "NAME=SECONDS", value_delimiter = ',')]
    connection_timeout: Vec<String>,
    /// Whether packets of pods leave for the outside under the node's IPv4 address; auto: with the API server.
    #[arg(long, env = "PALISADE_MASQUERADE_IPV4", value_enum, default_value_t = Switch::Auto)]
    masquerade_ipv4: Switch,
    /// The same of IPv6; auto: with the API server, where the pod range is of unique local addresses (fc00::/7).
    #[arg(long, env = "PALISADE_MASQUERADE_IPV6", value_enum, default_value_t = Switch::Auto)]
    masquerade_ipv6: Switch,
    /// Destinations outside that see the pods' own addresses, such as a data centre that routes them.
    #[arg(long, env = "PALISADE_MASQUERADE_EXCLUDE", value_name = "CIDR", value_delimiter = ',')]
    masquerade_exclude: Vec<IpNet>,
    /// How pods of other nodes are reached: by routes (native), through a VXLAN overlay (vxlan), or each node by a route where it is on a
    /// link of this one, else through the overlay (auto).
    #[arg(long, env = "PALISADE_ROUTING_MODE", value_enum, default_value_t = RoutingMode::Auto)]
    routing_mode: RoutingMode,
    /// Whether packets between pods of two nodes go past the stacks of the nodes (direct), or through them, where netfilter, IPsec and traffic
    /// control see them (stack).
    #[arg(long, env = "PALISADE_FORWARDING", value_enum, default_value_t = Forwarding::Direct)]
    forwarding: Forwarding,
    /// UDP port of the overlay, the same on all nodes.
    #[arg(long, env = "PALISADE_OVERLAY_PORT", value_name = "PORT", default_value_t = DEFAULT_OVERLAY_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    overlay_port: u16,
    /// VXLAN network identifier of the overlay, the same on all nodes.
    #[arg(long, env = "PALISADE_OVERLAY_NETWORK", value_name = "NUMBER", default_value_t = DEFAULT_OVERLAY_NETWORK)]
    overlay_network: u32,
    /// Whether the node's own processes and hostNetwork pods are served services; auto: with the API server. Where the kernel
    /// cannot (before Linux 5.14), the log and `palisade status` say so.
    #[arg(long, env = "PALISADE_NODE_SERVICES", value_enum, default_value_t = Switch::Auto)]
    node_services: Switch,
    /// The cgroup (version 2) of those processes; default: the root of the file system where it is mounted. In a container, the node's
    /// must be mounted and named.
    #[arg(long, env = "PALISADE_CGROUP", value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// Whether clients outside the cluster reach services by this node: node ports, external addresses, host ports; auto: with the API server.
    #[arg(long, env = "PALISADE_SERVICES_OUTSIDE", value_enum, default_value_t = Switch::Auto)]
    services_outside: Switch,
    /// Names of the interfaces by which they come, * for any characters; default: Ethernet devices with an address of the node or a default route.
    #[arg(long, env = "PALISADE_UPLINKS", value_name = "NAME", value_delimiter = ',')]
    uplinks: Vec<String>,
    /// MTU of pod interfaces in bytes; default: that of the ways to the other nodes and out, less what the overlay costs.
    #[arg(long, env = "PALISADE_MTU", value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1280..=65535))]
    mtu: Option<u32>,
}

impl Run {
    /// How pods of other nodes are reached.
    fn routing(&self) -> Result<Routing, AgentError> {
        let invalid = || AgentError::Config(format!("--overlay-network: {} has more than 24 bits", self.overlay_network));
        let mut routing = Routing::new(self.routing_mode.into(), self.overlay_port, self.overlay_network).ok_or_else(invalid)?;
        routing.forwarding = self.forwarding.into();
        Ok(routing)
    }

    /// The first sizes of maps, and their limits.
    fn sizes(&self) -> Result<Sizes, AgentError> {
        let mut sizes = Sizes::default();
        for written in &self.map_limit {
            sizes.set_limit(written).map_err(|error| AgentError::Config(format!("--map-limit: {error}")))?;
        }
        for written in &self.map_size {
            sizes.set(written).map_err(|error| AgentError::Config(format!("--map-size: {error}")))?;
        }
        Ok(sizes)
    }

    /// How long flows may be silent.
    fn lifetimes(&self) -> Result<Lifetimes, AgentError> {
        let mut lifetimes = Lifetimes::DEFAULT;
        for written in &self.connection_timeout {
            set_timeout(&mut lifetimes, written).map_err(|error| AgentError::Config(format!("--connection-timeout: {error}")))?;
        }
        Ok(lifetimes)
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Switch {
    Auto,
    On,
    Off,
}

impl From<Switch> for palisade_runtime::Switch {
    fn from(switch: Switch) -> Self {
        match switch {
            Switch::Auto => Self::Auto,
            Switch::On => Self::On,
            Switch::Off => Self::Off,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RoutingMode {
    Native,
    Vxlan,
    Auto,
}

impl From<RoutingMode> for palisade_runtime::RoutingMode {
    fn from(mode: RoutingMode) -> Self {
        match mode {
            RoutingMode::Native => Self::Native,
            RoutingMode::Vxlan => Self::Vxlan,
            RoutingMode::Auto => Self::Auto,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Forwarding {
    Direct,
    Stack,
}

impl From<Forwarding> for palisade_runtime::Forwarding {
    fn from(forwarding: Forwarding) -> Self {
        match forwarding {
            Forwarding::Direct => Self::Direct,
            Forwarding::Stack => Self::Stack,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // A part that panics must not leave an agent that only half works: what is pinned enforces without it, and it is started anew.
    let show = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        show(panic);
        std::process::abort();
    }));
    start_log(arguments.log_format);
    match arguments.command {
        Some(Command::InstallCni(install)) => match install::run(&install) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!("{error:#}");
                ExitCode::FAILURE
            }
        },
        Some(Command::Run(run)) => agent(*run),
        None => agent(arguments.run),
    }
}

fn start_log(format: LogFormat) {
    let mut filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // It logs each request that fails without saying which; the agent says it once, with the cause and what to do.
    if let Ok(silent) = "kube_client::client::builder=off".parse() {
        filter = filter.add_directive(silent);
    }
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

fn agent(run: Run) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(async { palisade_runtime::run(configuration(run)?, shutdown()?).await.map_err(anyhow::Error::from) }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(error.downcast_ref::<AgentError>().map_or(1, exit_code))
        }
    }
}

fn configuration(run: Run) -> Result<AgentConfig, AgentError> {
    let (sizes, lifetimes, routing) = (run.sizes()?, run.lifetimes()?, run.routing()?);
    let source = match run.directory {
        Some(directory) => Source::Directory(directory),
        None => Source::Kubernetes { server: run.api_server },
    };
    Ok(AgentConfig {
        sizes,
        lifetimes,
        pin_dir: run.pin_dir,
        run_dir: run.run_dir,
        ranges: run.ranges,
        service_ranges: run.service_ranges,
        mtu: run.mtu,
        routing,
        metrics: run.metrics,
        masquerade: Masquerading { ipv4: run.masquerade_ipv4.into(), ipv6: run.masquerade_ipv6.into(), exclude: run.masquerade_exclude },
        node_services: run.node_services.into(),
        cgroup: run.cgroup,
        services_outside: run.services_outside.into(),
        uplinks: run.uplinks.into_iter().filter(|name| !name.is_empty()).collect(),
        status_namespace: run.status_namespace.filter(|namespace| !namespace.is_empty()),
        ..AgentConfig::new(run.node, source)
    })
}

/// Ready when the agent is told to end.
fn shutdown() -> Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn exit_code(error: &AgentError) -> u8 {
    match error {
        AgentError::Ended { .. } => 1,
        AgentError::Config(_) => 2,
        AgentError::RunDir { .. } | AgentError::Socket { .. } => 3,
        AgentError::Running(_) => 4,
        AgentError::Metrics { .. } => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use palisade_runtime::Limits;

    #[test]
    fn the_arguments_are_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_agent_runs_with_and_without_the_word_run() {
        let bare =
            Arguments::try_parse_from(["palisade-agent", "--directory", "d", "--node", "n", "--ranges", "10.0.0.0/24,fd00::/64"]).unwrap();
        assert!(bare.command.is_none());
        assert_eq!(bare.run.ranges.len(), 2);
        let word =
            Arguments::try_parse_from(["palisade-agent", "run", "--node=n", "--api-server=https://192.0.2.1:6443", "--log-format=json"])
                .unwrap();
        assert!(matches!(word.command, Some(Command::Run(_))));
    }

    #[test]
    fn sizes_and_limits_are_set_by_name_and_a_wrong_one_is_a_wrong_argument() {
        let run = |arguments: &[&str]| Arguments::try_parse_from(["palisade-agent"].iter().chain(arguments)).unwrap().run.sizes();
        let limits = Limits { policy: 9, ..Limits::DEFAULT };
        let sizes = run(&["--map-size", "policy=9,ports=8", "--map-limit", "policy=9"]).unwrap();
        assert_eq!(sizes, Sizes { policy: 9, ports: 8, limits, ..Sizes::default() });
        for (arguments, words) in [
            (["--map-size", "rows=9"], "--map-size: there is no size \"rows\""),
            (["--map-limit", "connections=9"], "--map-limit: there is no limit \"connections\""),
            (["--map-size", "policy=9999999"], "above its limit"),
        ] {
            let error = run(&arguments).unwrap_err();
            assert!(error.to_string().contains(words) && exit_code(&error) == 2, "{error}");
        }
    }

    #[test]
    fn time_outs_are_set_by_name_and_a_wrong_one_is_a_wrong_argument() {
        let run = |argument| {
            let run = Arguments::try_parse_from(["palisade-agent", "--connection-timeout", argument]).unwrap().run;
            configuration(run).map(|configuration| configuration.lifetimes)
        };
        let set = Lifetimes { datagram: 60, established: 7_200, ..Lifetimes::DEFAULT };
        assert_eq!(run("udp=60,tcp-established=7200").unwrap(), set);
        let error = run("tcp=60").unwrap_err();
        assert!(error.to_string().contains("--connection-timeout: there is no time-out \"tcp\"") && exit_code(&error) == 2, "{error}");
    }

    #[test]
    fn the_overlay_has_a_port_and_a_network_of_24_bits() {
        let run = |arguments: &[&str]| {
            Arguments::try_parse_from(["palisade-agent"].iter().chain(arguments)).map(|arguments| arguments.run.routing())
        };
        assert_eq!(run(&[]).unwrap().unwrap(), Routing::default());
        let routing = run(&["--routing-mode=native", "--overlay-port=8472", "--overlay-network=16777215"]).unwrap().unwrap();
        assert_eq!((routing.mode.name(), routing.port(), routing.overlay()), ("native", 8472, None));
        let forwarding = |arguments: &[&str]| run(arguments).unwrap().unwrap().forwarding;
        assert_eq!(forwarding(&["--forwarding=stack"]), palisade_runtime::Forwarding::Stack);
        let error = run(&["--overlay-network=16777216"]).unwrap().unwrap_err();
        assert!(error.to_string().contains("24 bits") && exit_code(&error) == 2, "{error}");
        assert!(run(&["--overlay-port=0"]).is_err() && run(&["--routing-mode=ipip"]).is_err());
    }

    #[test]
    fn service_ranges_are_for_a_directory_alone() {
        let run = |arguments: &[&str]| Arguments::try_parse_from(["palisade-agent"].iter().chain(arguments));
        let arguments = run(&["--directory", "d", "--service-ranges", "10.96.0.0/16,fd96::/112"]).unwrap();
        assert_eq!(arguments.run.service_ranges.len(), 2);
        assert!(run(&["--service-ranges", "10.96.0.0/16"]).is_err(), "the API server gives addresses itself");
    }

    #[test]
    fn a_directory_and_an_api_server_exclude_each_other() {
        assert!(Arguments::try_parse_from(["palisade-agent", "--directory", "d", "--api-server", "a:1"]).is_err());
    }
}
