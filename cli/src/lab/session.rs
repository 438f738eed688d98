//! The course of a lab: the agent, the pods, the probes, the table, and then, if wanted, the edits.

use super::cni::{Cni, Sandbox};
use super::expect::{self, Expectations};
use super::flow::{Member, Party, Probe, ProbeResult, Report, Service, passes, probes};
use super::listener::Listeners;
use super::manifests::{Manifests, PodSpec};
use super::probe::{self, Attempt};
use super::progress::{say, step};
use super::{LabOptions, manifests, outside, paths, socket, truth_table, watch};
use crate::agent;
use crate::arguments::Output;
use crate::error::CliError;
use crate::print;
use crate::table::{Paint, count};
use palisade_cni::link::{Namespace, Netlink};
use palisade_policy::model::ObjectName;
use palisade_protocol::{Call, Client, Explained, FlowEnd, FlowQuery, Reply, SOCKET_NAME, Status};
use palisade_runtime::{AgentConfig, Source};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::{JoinSet, spawn_blocking};

/// So many pods are wired at the same time.
const WIRED_AT_ONCE: usize = 4;
/// How long the agent may take until it is ready, or until what keeps it from that is another thing.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// A pod with its network.
struct Wired {
    sandbox: Sandbox,
    member: Member,
    /// What answers on its ports.
    listeners: Listeners,
}

/// A running lab.
pub struct Session {
    cni: Cni,
    pods: BTreeMap<ObjectName, Wired>,
    generation: u64,
    /// The node's and the outside host's: both listen on whatever some pod declares.
    common: Vec<(Member, Listeners)>,
    at_once: usize,
}

/// Runs a lab until its table is printed, or with `--keep` and `--watch` until `stop`.
pub async fn run(options: &LabOptions, stop: impl Future<Output = ()>) -> Result<(), CliError> {
    tokio::pin!(stop);
    let first = async {
        let expectations = read_expectations(options)?;
        let found = manifests::read(&options.named, options.expect.as_deref())?;
        let (session, agent_ended) = Session::start(options, &found).await?;
        let report = session.probe().await?;
        let verdict = shown(options, &found, &report, expectations.as_ref());
        Ok::<_, CliError>((session, agent_ended, found, report, verdict))
    };
    let (mut session, agent_ended, found, report, verdict) = tokio::select! {
        first = first => first?,
        () = &mut stop => return Err(CliError::Interrupted),
    };
    if !options.watch && !options.keep {
        return verdict;
    }
    match &verdict {
        Err(error @ (CliError::Differs(_) | CliError::Disagrees(_))) => say(&error.to_string()),
        Err(_) => return verdict,
        Ok(()) => {}
    }
    say(&format!("{}; Ctrl-C ends the lab and removes everything", if options.watch { "watching for edits" } else { "the lab stays" }));
    let stay =
        async { if options.watch { watch::follow(options, &mut session, found, report).await } else { std::future::pending().await } };
    tokio::select! {
        ended = stay => ended,
        ended = agent_ended => Err(CliError::Environment(agent_failure(ended))),
        () = &mut stop => Ok(()),
    }
}

fn read_expectations(options: &LabOptions) -> Result<Option<Expectations>, CliError> {
    options.expect.as_deref().map(Expectations::read).transpose()
}

/// Prints the result and judges it.
fn shown(options: &LabOptions, found: &Manifests, report: &Report, expectations: Option<&Expectations>) -> Result<(), CliError> {
    let paint = Paint::for_stdout();
    match options.output {
        Output::Json => {
            found.notes.iter().for_each(|note| say(note));
            print::json(report)?;
        }
        Output::Table => {
            let notes: String = found.notes.iter().map(|note| format!("{note}\n")).collect();
            let blank = if notes.is_empty() { "" } else { "\n" };
            print::text(&format!("{notes}{blank}{}", truth_table::rendered(report, paint)))?;
        }
    }
    let disagreements = report.disagreements().count();
    if disagreements > 0 {
        return Err(CliError::Disagrees(format!(
            "{} went another way than the compiled policy says",
            count(disagreements, "probe", "probes")
        )));
    }
    let Some(expectations) = expectations else { return Ok(()) };
    let differences = expectations.differences(&report.probes);
    if differences.is_empty() {
        let word = "all as expected";
        match options.output {
            Output::Json => say(word),
            Output::Table => print::text(&format!("{word}\n"))?,
        }
        return Ok(());
    }
    let table = expect::rendered(&differences, paint);
    match options.output {
        Output::Json => say(&format!("not as expected:\n{table}")),
        Output::Table => print::text(&format!("\nNot as expected\n{table}"))?,
    }
    Err(CliError::Differs(format!("{} not as expected", count(differences.len(), "result is", "results are"))))
}

type AgentEnd = oneshot::Receiver<Result<(), String>>;

fn agent_failure(ended: Result<Result<(), String>, oneshot::error::RecvError>) -> String {
    match ended {
        Ok(Err(problem)) => problem,
        Ok(Ok(())) | Err(_) => "the agent ended by itself".into(),
    }
}

/// Runs the agent's code, in a thread of its own as it would run in a process of its own.
fn start_agent(directory: &Path) -> Result<AgentEnd, CliError> {
    let mut config = AgentConfig::new("node", Source::Directory(directory.to_owned()));
    config.pin_dir = paths::bpffs().join("palisade");
    config.run_dir = paths::run_dir();
    config.ranges = outside::pod_ranges();
    config.node_addresses = outside::node_addresses().to_vec();
    let (tell, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("agent".into())
        .spawn(move || {
            let result = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .map_err(|error| error.to_string())
                .and_then(|runtime| {
                    runtime.block_on(palisade_runtime::run(config, std::future::pending())).map_err(|error| error.to_string())
                });
            let _ = tell.send(result);
        })
        .map_err(|error| CliError::Environment(format!("cannot start the agent's thread: {error}")))?;
    Ok(ended)
}

/// Waits until the agent has read everything and filled the tables.
async fn ready(ended: &mut AgentEnd) -> Result<(), CliError> {
    let mut problems = Vec::new();
    let mut since = tokio::time::Instant::now();
    loop {
        match ask_status().await {
            Ok(status) if status.ready => return Ok(()),
            Ok(status) if status.problems != problems => {
                problems = status.problems;
                since = tokio::time::Instant::now();
            }
            // Nothing new, or not listening yet.
            Ok(_) | Err(_) => {}
        }
        tokio::select! {
            ended = &mut *ended => return Err(CliError::Environment(agent_failure(ended))),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
        if since.elapsed() > READY_WITHIN {
            let why = if problems.is_empty() { "it does not answer".to_owned() } else { problems.join("; ") };
            return Err(CliError::Environment(format!("the agent does not get ready: {why}")));
        }
    }
}

/// The agent's state.
async fn ask_status() -> Result<Status, CliError> {
    blocking(|| match client()?.call(Call::Status)? {
        Reply::Status(status) => Ok(status),
        other => Err(agent::unexpected(&other)),
    })
    .await
}

fn client() -> Result<Client, CliError> {
    Ok(Client::connect(&paths::run_dir().join(SOCKET_NAME), agent::PATIENCE)?)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, CliError> + Send + 'static) -> Result<T, CliError> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(CliError::Failed(format!("a step of the lab broke: {error}"))))
}

impl Session {
    async fn start(options: &LabOptions, found: &Manifests) -> Result<(Self, AgentEnd), CliError> {
        let open_files = socket::raise_open_files();
        let mut agent_ended = start_agent(&options.directory)?;
        step("starting the agent and loading the datapath", ready(&mut agent_ended)).await?;
        let cni = Cni::find(Some(&options.cni)).map_err(|error| CliError::Environment(error.to_string()))?;
        // A probe takes a socket here and one at its target; the rest is for the agent and the listeners.
        let at_once = usize::try_from(open_files.saturating_sub(500) / 3).unwrap_or(1).clamp(100, 4000);
        let mut session = Self { cni, pods: BTreeMap::new(), generation: 0, common: Vec::new(), at_once };
        session.follow(&found.pods).await?;
        Ok((session, agent_ended))
    }

    /// Makes the pods those of `wanted`: unwires and wires what differs, and opens the listeners anew where ports do.
    pub async fn follow(&mut self, wanted: &[PodSpec]) -> Result<(), CliError> {
        let gone: Vec<ObjectName> = self.pods.keys().filter(|name| !wanted.iter().any(|pod| pod.name == **name)).cloned().collect();
        for name in gone {
            self.unwire(&name).await?;
        }
        let new: Vec<PodSpec> = wanted.iter().filter(|pod| !self.pods.contains_key(&pod.name)).cloned().collect();
        if !new.is_empty() {
            step(&format!("wiring {}", count(new.len(), "pod", "pods")), self.wire(new)).await?;
        }
        for pod in wanted {
            if let Some(wired) = self.pods.get_mut(&pod.name)
                && wired.member.services != pod.services
            {
                wired.member.services.clone_from(&pod.services);
                // The old ones close first: a port that stays is wanted again.
                std::mem::replace(&mut wired.listeners, Listeners::none()).close().await;
                wired.listeners = open_listeners(&wired.member)?;
            }
        }
        self.follow_common(wanted).await
    }

    async fn follow_common(&mut self, pods: &[PodSpec]) -> Result<(), CliError> {
        let services: BTreeSet<Service> = pods.iter().flat_map(|pod| pod.services.iter().copied()).collect();
        if self.common.first().is_some_and(|(member, _)| member.services == services) {
            return Ok(());
        }
        for (_, listeners) in self.common.drain(..) {
            listeners.close().await;
        }
        for (party, addresses) in [(Party::Node, outside::node_addresses()), (Party::Outside, outside::addresses())] {
            let member = Member { party, addresses: addresses.to_vec(), services: services.clone() };
            let listeners = open_listeners(&member)?;
            self.common.push((member, listeners));
        }
        Ok(())
    }

    async fn wire(&mut self, pods: Vec<PodSpec>) -> Result<(), CliError> {
        let mut waiting = pods.into_iter();
        let mut tasks = JoinSet::new();
        loop {
            while tasks.len() < WIRED_AT_ONCE
                && let Some(pod) = waiting.next()
            {
                self.generation += 1;
                let sandbox = Sandbox { pod: pod.name.clone(), generation: self.generation };
                let cni = self.cni.clone();
                tasks.spawn(blocking(move || add(&cni, sandbox, pod.services)));
            }
            let Some(ended) = tasks.join_next().await else { return Ok(()) };
            let (sandbox, member) = ended.unwrap_or_else(|error| Err(CliError::Failed(format!("wiring a pod broke: {error}"))))?;
            let listeners = open_listeners(&member)?;
            self.pods.insert(sandbox.pod.clone(), Wired { sandbox, member, listeners });
        }
    }

    async fn unwire(&mut self, name: &ObjectName) -> Result<(), CliError> {
        let Some(wired) = self.pods.remove(name) else { return Ok(()) };
        let cni = self.cni.clone();
        blocking(move || {
            cni.delete(&wired.sandbox).map_err(|error| CliError::Failed(error.to_string()))?;
            Namespace::unpin(&paths::namespace(&wired.member.party)).map_err(|error| CliError::Failed(error.to_string()))?;
            Ok(())
        })
        .await
    }

    /// What the compiled policies say of every flow.
    pub async fn explained(&self) -> Result<Vec<Explained>, CliError> {
        explain(self.flows().iter().map(|(probe, _)| query(probe)).collect()).await
    }

    /// Every flow with the address of its target.
    fn flows(&self) -> Vec<(Probe, IpAddr)> {
        let wired = self.pods.values().map(|wired| &wired.member);
        let members: Vec<Member> = wired.chain(self.common.iter().map(|(member, _)| member)).cloned().collect();
        probes(&members)
    }

    /// Tries every flow, and asks the compiled policies about each.
    pub async fn probe(&self) -> Result<Report, CliError> {
        let flows = self.flows();
        let queries: Vec<FlowQuery> = flows.iter().map(|(probe, _)| query(probe)).collect();
        let explained = step("asking what the policies say", explain(queries)).await?;
        let attempts: Vec<Attempt> = flows
            .into_iter()
            .zip(&explained)
            .map(|((probe, target), explained)| Attempt { probe, target, allowed: passes(explained) })
            .collect();
        let seen = step(&format!("probing {}", count(attempts.len(), "flow", "flows")), probe::run(&attempts, self.at_once))
            .await
            .map_err(|error| CliError::Environment(error.to_string()))?;
        let results = attempts.into_iter().zip(seen).zip(explained);
        let probes = results.map(|((attempt, seen), explained)| ProbeResult::new(attempt.probe, seen, explained)).collect();
        Ok(Report { probes })
    }
}

fn open_listeners(member: &Member) -> Result<Listeners, CliError> {
    Listeners::open(member).map_err(|error| CliError::Failed(error.to_string()))
}

/// Makes a sandbox as a container runtime does, and has it wired.
fn add(cni: &Cni, sandbox: Sandbox, services: BTreeSet<Service>) -> Result<(Sandbox, Member), CliError> {
    let party = Party::Pod(sandbox.pod.clone());
    let loopback = || {
        let namespace = Namespace::create_at(&paths::namespace(&party))?;
        let inside = Netlink::open_in(&namespace)?;
        inside.link("lo")?.map_or(Ok(()), |link| inside.set_up(link.index))
    };
    loopback().map_err(|error| CliError::Environment(format!("cannot make the namespace of {party}: {error}")))?;
    let addresses = cni.add(&sandbox).map_err(|error| CliError::Failed(error.to_string()))?;
    Ok((sandbox, Member { party, addresses, services }))
}

fn query(probe: &Probe) -> FlowQuery {
    let end = |party: &Party| match party {
        Party::Pod(name) => FlowEnd::Pod(name.to_string()),
        Party::Node => FlowEnd::Node,
        Party::Outside => FlowEnd::Address(outside::address(probe.family)),
    };
    FlowQuery {
        from: end(&probe.from),
        to: end(&probe.to),
        protocol: probe.protocol.to_string(),
        port: probe.port,
        family: probe.family,
        rules: false,
    }
}

async fn explain(queries: Vec<FlowQuery>) -> Result<Vec<Explained>, CliError> {
    blocking(move || {
        let mut client = client()?;
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
