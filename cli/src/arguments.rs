//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use palisade_protocol::{DEFAULT_RUN_DIR, Family};
use std::ffi::OsString;
use std::path::PathBuf;

/// Palisade: pods' networks with identity-based policy, and a reason for every verdict.
#[derive(Debug, Parser)]
#[command(name = "palisade", version, about, disable_help_subcommand = true)]
#[command(after_help = "Exit codes: 0 done, 1 an expectation differs, 2 bad input, 3 not possible here (rights, kernel, no agent),\n\
    4 packets and compiled policy disagree, 5 failed, 130 interrupted.")]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build a network of namespaces from manifests, probe who reaches whom, and say why not
    Lab(LabArguments),
    /// The state of the agent: ready or why not, numbers of things, packets by outcome
    Status(Asking),
    /// Live verdicts of the datapath, with names and the rule
    Observe(ObserveArguments),
    /// The pods' interfaces of this node
    Endpoint {
        /// What of them.
        #[command(subcommand)]
        command: EndpointCommand,
    },
    /// The policies that the agent of this node knows, and what it makes of them
    Policy {
        /// What of them.
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// The identities that it knows, and what they match
    Identity {
        /// What of them.
        #[command(subcommand)]
        command: IdentityCommand,
    },
    /// The services in the kernel of this node, and what stands behind them
    Service {
        /// What of them.
        #[command(subcommand)]
        command: ServiceCommand,
    },
    /// What the policies say of one flow, at both ends, with the rule
    Explain(ExplainArguments),
    /// The first process inside a lab; started by `palisade lab`.
    #[command(name = "lab-init", hide = true)]
    LabInit {
        /// The lab's options as JSON.
        options: String,
    },
}

/// How output looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// How the nodes of a lab reach each other's pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoutingMode {
    /// By routes where they share a link, through the overlay else.
    #[default]
    Auto,
    /// By routes, on one link.
    Native,
    /// Through the overlay.
    Vxlan,
}

impl From<RoutingMode> for palisade_runtime::RoutingMode {
    fn from(mode: RoutingMode) -> Self {
        match mode {
            RoutingMode::Auto => Self::Auto,
            RoutingMode::Native => Self::Native,
            RoutingMode::Vxlan => Self::Vxlan,
        }
    }
}

/// Which agent is asked, and how the answer looks.
#[derive(Debug, Args)]
pub struct Asking {
    /// Which agent.
    #[command(flatten)]
    pub agent: AgentArguments,
    /// How the answer looks
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// Which agent is asked.
#[derive(Debug, Args)]
pub struct AgentArguments {
    /// The run directory, as it was given.
    // Not clap's `env`: what an environment holds would conflict with options as if somebody had typed it.
    #[arg(long, value_name = "DIR", help = format!(
        "The run directory of the agent on this node [env: {RUN_DIR_VARIABLE}] [default: {DEFAULT_RUN_DIR}]"
    ))]
    pub run_dir: Option<PathBuf>,
    /// Ask a running lab instead; `=DIR` or `=PID` where several run
    #[arg(long, value_name = "DIR|PID", num_args = 0..=1, require_equals = true)]
    pub lab: Option<Option<String>>,
    /// Which node's agent, in a lab of several nodes
    #[arg(long, value_name = "NAME", requires = "lab")]
    pub node: Option<String>,
}

/// Names the run directory where no option does.
const RUN_DIR_VARIABLE: &str = "PALISADE_RUN_DIR";

impl AgentArguments {
    /// The run directory: the one given, else that of the environment, else the usual one.
    pub fn run_dir(&self) -> PathBuf {
        self.run_dir_or(std::env::var_os(RUN_DIR_VARIABLE))
    }

    fn run_dir_or(&self, variable: Option<OsString>) -> PathBuf {
        let named = || variable.filter(|value| !value.is_empty()).map(PathBuf::from);
        self.run_dir.clone().or_else(named).unwrap_or_else(|| DEFAULT_RUN_DIR.into())
    }
}

/// Arguments of `palisade lab`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct LabArguments {
    /// `exec`.
    #[command(subcommand)]
    pub command: Option<LabCommand>,
    /// The lab itself.
    #[command(flatten)]
    pub run: LabRun,
}

/// What can be done with a running lab.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Run a command in the network of a pod of a running lab (one that has --keep or --watch)
    Exec(ExecArguments),
    /// Take a node of a running lab away, or bring it back
    Node {
        /// Which of both.
        #[command(subcommand)]
        command: NodeCommand,
    },
}

/// What can be done with a node of a running lab.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Pull its cable and end its agent; its pods are no endpoints of services until it is back
    Stop(NodeArguments),
    /// Bring it back
    Start(NodeArguments),
}

/// Which node of which lab.
#[derive(Debug, Args)]
pub struct NodeArguments {
    /// Which lab, where several run: its directory, or its process id
    #[arg(long, value_name = "DIR|PID")]
    pub lab: Option<String>,
    /// The name of the Node object
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// Arguments of a lab.
#[derive(Debug, Args)]
pub struct LabRun {
    /// Directory of manifests: Namespace, Node, Pod, Deployment, Service, EndpointSlice, NetworkPolicy, ClusterNetworkPolicy, Identity, IdentityPolicy
    #[arg(value_name = "DIR", required = true)]
    pub directory: Option<PathBuf>,
    /// Compare with the expectations in FILE; end with 1 and a table of differences if they differ
    #[arg(long, value_name = "FILE")]
    pub expect: Option<PathBuf>,
    /// How nodes reach each other's pods, where the directory has Node objects
    #[arg(long, value_enum, default_value_t)]
    pub mode: RoutingMode,
    /// How the result looks
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
    /// Stay, apply edits of the files and print what changed, until Ctrl-C
    #[arg(long)]
    pub watch: bool,
    /// Stay after the table, for `palisade lab exec`, `explain --lab` and `observe --lab`, until Ctrl-C
    #[arg(long)]
    pub keep: bool,
    /// The CNI binary; else `palisade-cni` beside this one
    #[arg(long, value_name = "PATH", env = "PALISADE_CNI")]
    pub cni: Option<PathBuf>,
}

/// Arguments of `palisade lab exec`.
#[derive(Debug, Args)]
pub struct ExecArguments {
    /// Which lab, where several run: its directory, or its process id
    #[arg(long, value_name = "DIR|PID")]
    pub lab: Option<String>,
    /// `namespace/pod`, `node` (`node:NAME` of several) or `outside`
    #[arg(value_name = "NS/POD")]
    pub target: String,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// Arguments of `palisade observe`.
#[derive(Debug, Args)]
pub struct ObserveArguments {
    /// Which agent.
    #[command(flatten)]
    pub asking: Asking,
    /// New flows that are allowed, too
    #[arg(long)]
    pub allowed: bool,
    /// Only where one end is this pod (`namespace/name`); may be given more than once
    #[arg(long, value_name = "NS/POD")]
    pub pod: Vec<String>,
    /// Only where one end is in this namespace; may be given more than once
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Vec<String>,
    /// Only these verdicts: `allowed`, `dropped`, `audited`, `deny`, `default-deny`, or the name of an outcome; may be given more than once
    #[arg(long, value_name = "VERDICT")]
    pub verdict: Vec<String>,
    /// End after this many verdicts
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
}

/// What can be asked of endpoints.
#[derive(Debug, Subcommand)]
pub enum EndpointCommand {
    /// List them: pod, addresses, interface, and which policies isolate it
    List(Asking),
}

/// What can be asked of policies.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// List them: tier, mode, rules, pods selected, and whether this node's kernel enforces them
    List(Asking),
    /// One of them, with the pods that it selects
    Get(AskingFor),
}

/// What can be asked of identities.
#[derive(Debug, Subcommand)]
pub enum IdentityCommand {
    /// List them: how much each matches, and the policies that name it
    List(Asking),
    /// One of them, with what it matches
    Get(AskingFor),
}

/// What can be asked of services.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// List them: frontends, backends that take new flows of those that are known, and what is wrong
    List(AskingIn),
    /// One of them: each frontend with its backends, which of them take new flows, and which only go on
    Get(AskingFor),
}

/// In which namespaces objects are asked for, and of which agent.
#[derive(Debug, Args)]
pub struct AskingIn {
    /// Only those of this namespace; may be given more than once
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Vec<String>,
    /// Those of all namespaces, as without either option
    #[arg(long, short = 'A', conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Which agent, and how the answer looks.
    #[command(flatten)]
    pub asking: Asking,
}

impl AskingIn {
    /// The namespaces; none: all.
    pub fn namespaces(&self) -> Vec<String> {
        if self.all_namespaces { Vec::new() } else { self.namespace.clone() }
    }
}

/// Which object is asked for, and of which agent.
#[derive(Debug, Args)]
pub struct AskingFor {
    /// `namespace/name`; the name alone for what lives in no namespace
    #[arg(value_name = "NAME")]
    pub object: String,
    /// Which agent, and how the answer looks.
    #[command(flatten)]
    pub asking: Asking,
}

/// Arguments of `palisade explain`.
#[derive(Debug, Args)]
pub struct ExplainArguments {
    /// Who opens the flow: `namespace/pod`, `node` or an address (in a lab also `outside`)
    #[arg(long, value_name = "NS/POD")]
    pub from: String,
    /// Towards whom: the same forms
    #[arg(long, value_name = "NS/POD|ADDRESS")]
    pub to: String,
    /// Port at the destination and protocol, e.g. `80`, `53/UDP`, or `ICMP`
    #[arg(long, short, value_name = "PORT[/PROTOCOL]", value_parser = flow_port)]
    pub port: FlowPort,
    /// The flow goes to a service behind which the destination stands: a pod that reaches itself so is judged, by ClusterNetworkPolicies
    #[arg(long)]
    pub service: bool,
    /// Answer from the manifests in DIR, with no agent and no privileges
    #[arg(long, short, value_name = "DIR", conflicts_with_all = ["lab", "run_dir"])]
    pub file: Option<PathBuf>,
    /// Only this family; else each that both ends have
    #[arg(long, value_parser = family)]
    pub family: Option<Family>,
    /// Which agent, and how the answer looks.
    #[command(flatten)]
    pub asking: Asking,
}

/// A port and protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowPort {
    /// 0 for ICMP.
    pub port: u16,
    /// In capitals.
    pub protocol: String,
}

impl std::fmt::Display for FlowPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.protocol)?;
        if self.port == 0 { Ok(()) } else { write!(f, " {}", self.port) }
    }
}

fn flow_port(text: &str) -> Result<FlowPort, String> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
    let protocol = protocol.to_uppercase();
    if port.eq_ignore_ascii_case("ICMP") && !text.contains('/') {
        return Ok(FlowPort { port: 0, protocol: "ICMP".into() });
    }
    if !["TCP", "UDP", "SCTP"].contains(&protocol.as_str()) {
        return Err(format!("{protocol} has no ports here: write a port with /TCP, /UDP or /SCTP, or ICMP alone"));
    }
    let port = port.parse().ok().filter(|port| *port != 0).ok_or("a port is a number from 1 to 65535")?;
    Ok(FlowPort { port, protocol })
}

fn family(text: &str) -> Result<Family, String> {
    match text {
        "ipv4" | "4" => Ok(Family::Ipv4),
        "ipv6" | "6" => Ok(Family::Ipv6),
        _ => Err("neither ipv4 nor ipv6".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }

    fn parsed(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn a_lab_takes_a_directory_or_exec() {
        let Ok(Arguments { command: Command::Lab(lab) }) = parsed("palisade lab examples/shop --keep") else { panic!("refused") };
        assert_eq!(lab.run.directory, Some("examples/shop".into()));
        let Ok(Arguments { command: Command::Lab(lab) }) = parsed("palisade lab exec a/b -- ping -c 1 x") else { panic!("refused") };
        let Some(LabCommand::Exec(exec)) = lab.command else { panic!("no exec") };
        assert_eq!(exec.command, ["ping", "-c", "1", "x"]);
        assert!(parsed("palisade lab").is_err(), "a lab without a directory");
        assert!(parsed("palisade lab exec a/b").is_err(), "exec without a command");
    }

    #[test]
    fn explain_wants_both_ends_and_a_port_or_icmp() {
        assert!(parsed("palisade explain --from a/b --to c/d").is_err());
        assert!(parsed("palisade explain --to c/d --port 80").is_err());
        for (written, shown) in [("80", "TCP 80"), ("53/udp", "UDP 53"), ("7/SCTP", "SCTP 7"), ("icmp", "ICMP")] {
            assert_eq!(flow_port(written).unwrap().to_string(), shown);
        }
        for wrong in ["pg", "0", "70000", "/UDP", "x/TCP"] {
            let error = parsed(&format!("palisade explain --from a/b --to c/d --port {wrong}")).unwrap_err().to_string();
            assert!(error.contains("a port is a number from 1 to 65535"), "{error}");
        }
        for wrong in ["80/ICMP", "80/quic", "icmp/80"] {
            assert!(flow_port(wrong).is_err(), "{wrong}");
        }
        assert!(parsed("palisade explain --from a/b --to c/d --port 80 --file x --lab").is_err(), "a directory or a lab");
    }

    #[test]
    fn a_run_directory_that_is_given_goes_before_that_of_the_environment_and_not_with_files() {
        let agent = |line: &str| match parsed(line) {
            Ok(Arguments { command: Command::Status(asking) }) => asking.agent,
            other => panic!("{other:?}"),
        };
        let (given, none) = (agent("palisade status --run-dir /a"), agent("palisade status"));
        let variable = |value: &str| Some(OsString::from(value));
        assert_eq!(given.run_dir_or(variable("/b")), PathBuf::from("/a"));
        assert_eq!(none.run_dir_or(variable("/b")), PathBuf::from("/b"));
        assert_eq!(none.run_dir_or(variable("")), PathBuf::from(DEFAULT_RUN_DIR));
        assert_eq!(none.run_dir_or(None), PathBuf::from(DEFAULT_RUN_DIR));
        assert!(parsed("palisade explain --from a/b --to c/d --port 80 --file x --run-dir /a").is_err(), "files or an agent");
    }

    /// What a command's `--help` says of one argument.
    fn help(command: &str, argument: &str) -> String {
        let top = <Arguments as clap::CommandFactory>::command();
        let argument = top.find_subcommand(command).and_then(|of| of.get_arguments().find(|one| one.get_id() == argument));
        argument.and_then(clap::Arg::get_help).unwrap().to_string()
    }

    #[test]
    fn help_names_every_kind_that_is_used_and_every_verdict() {
        let kinds = help("lab", "directory");
        for kind in [
            "Namespace",
            "Pod",
            "Deployment",
            "Service",
            "EndpointSlice",
            "NetworkPolicy",
            "ClusterNetworkPolicy",
            "Identity",
            "IdentityPolicy",
        ] {
            assert!(kinds.split([' ', ',']).any(|word| word == kind), "{kind}: {kinds}");
        }
        let verdicts = help("observe", "verdict");
        for verdict in crate::observe::VERDICTS {
            assert!(verdicts.contains(&format!("`{verdict}`")), "{verdict}: {verdicts}");
        }
    }

    #[test]
    fn services_are_listed_of_some_namespaces_or_of_all_and_one_is_got_by_its_name() {
        let namespaces = |line: &str| match parsed(line) {
            Ok(Arguments { command: Command::Service { command: ServiceCommand::List(asking) } }) => asking.namespaces(),
            other => panic!("{other:?}"),
        };
        assert_eq!(namespaces("palisade service list -n a --namespace b -o json"), ["a", "b"]);
        for all in ["palisade service list", "palisade service list -A", "palisade service list --all-namespaces --lab"] {
            assert!(namespaces(all).is_empty(), "{all}");
        }
        assert!(parsed("palisade service list -A -n a").is_err(), "all or some");
        let Ok(Arguments { command: Command::Service { command: ServiceCommand::Get(asking) } }) =
            parsed("palisade service get shop/web --output json")
        else {
            panic!("refused")
        };
        assert_eq!((asking.object.as_str(), asking.asking.output), ("shop/web", Output::Json));
        assert!(parsed("palisade service get").is_err(), "none is named");
    }

    #[test]
    fn a_lab_to_ask_may_be_named() {
        let Ok(Arguments { command: Command::Status(asking) }) = parsed("palisade status --lab") else { panic!("refused") };
        assert_eq!(asking.agent.lab, Some(None));
        let Ok(Arguments { command: Command::Status(asking) }) = parsed("palisade status --lab=x") else { panic!("refused") };
        assert_eq!(asking.agent.lab, Some(Some("x".into())));
    }
}
