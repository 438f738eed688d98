//! The course of a lab: the agent, the pods, the probes, the table, and then, if wanted, the edits.

use super::cni::{Cni, Sandbox};
use super::expect::{self, Expectations};
use super::flow::{Asked, Member, Party, Port, Probe, Report, probes};
use super::listener::Listeners;
use super::manifests::{Manifests, PodSpec};
use super::probe::{self, Attempt};
use super::progress::{say, step};
use super::service::{self, ServiceProbe};
use super::witness::Witness;
use super::{LabOptions, manifests, outside, paths, socket, truth_table, watch};
use crate::agent;
use crate::arguments::Output;
use crate::error::CliError;
use crate::print;
use crate::table::{Paint, count};
use palisade_cni::link::{Namespace, Netlink};
use palisade_k8s::index::Index;
use palisade_policy::model::ObjectName;
use palisade_protocol::{Call, Client, Explained, Family, FlowEnd, FlowQuery, Reply, SOCKET_NAME, ServiceStatus, Status};
use palisade_runtime::{AgentConfig, Source};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::{JoinSet, spawn_blocking};

/// So many pods are wired at the same time.
const WIRED_AT_ONCE: usize = 4;
/// How long the agent may take until it is ready, or until what keeps it from that is another thing.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// How long services may take until the kernel serves them as the files say; what it does not serve then, packets show.
const SERVED_WITHIN: Duration = Duration::from_secs(5);

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
    /// What the files say.
    files: Index,
    /// Knows who got what is sent.
    witness: Witness,
}

/// Runs a lab until its table is printed, or with `--keep` and `--watch` until `stop`.
pub async fn run(options: &LabOptions, stop: impl Future<Output = ()>) -> Result<(), CliError> {
    tokio::pin!(stop);
    let first = async {
        let expectations = read_expectations(options)?;
        let found = manifests::read(&options.named, options.expect.as_deref())?;
        let (session, agent_ended) = Session::start(options, &found).await?;
        let report = session.probe().await?;
        let notes: Vec<String> = found.notes.iter().cloned().chain(session.problems().await?).collect();
        let verdict = shown(options, &notes, &report, expectations.as_ref());
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
fn shown(options: &LabOptions, notes: &[String], report: &Report, expectations: Option<&Expectations>) -> Result<(), CliError> {
    let paint = Paint::for_stdout();
    match options.output {
        Output::Json => {
            notes.iter().for_each(|note| say(note));
            print::json(report)?;
        }
        Output::Table => {
            let notes: String = notes.iter().map(|note| format!("{note}\n")).collect();
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
    let mut config = AgentConfig::new(outside::NODE, Source::Directory(directory.to_owned()));
    config.pin_dir = paths::bpffs().join("palisade");
    config.run_dir = paths::run_dir();
    config.ranges = outside::pod_ranges();
    config.service_ranges = outside::service_ranges();
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
        let (pods, common) = (BTreeMap::new(), Vec::new());
        let mut session = Self { cni, pods, generation: 0, common, at_once, files: Index::new(), witness: Witness::default() };
        session.follow(found).await?;
        Ok((session, agent_ended))
    }

    /// Makes the pods those of `found`: unwires and wires what differs, and opens the listeners anew where ports do.
    pub async fn follow(&mut self, found: &Manifests) -> Result<(), CliError> {
        let wanted = &found.pods;
        self.files = found.index.clone();
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
                && wired.member.ports != pod.ports
            {
                wired.member.ports.clone_from(&pod.ports);
                // The old ones close first: a port that stays is wanted again.
                std::mem::replace(&mut wired.listeners, Listeners::none()).close().await;
                wired.listeners = open_listeners(&wired.member, &self.witness)?;
            }
        }
        self.follow_common(wanted).await
    }

    async fn follow_common(&mut self, pods: &[PodSpec]) -> Result<(), CliError> {
        let ports: BTreeSet<Port> = pods.iter().flat_map(|pod| pod.ports.iter().copied()).collect();
        if self.common.first().is_some_and(|(member, _)| member.ports == ports) {
            return Ok(());
        }
        for (_, listeners) in self.common.drain(..) {
            listeners.close().await;
        }
        for (party, addresses) in [(Party::Node, outside::node_addresses()), (Party::Outside, outside::addresses())] {
            let member = Member { party, addresses: addresses.to_vec(), ports: ports.clone() };
            let listeners = open_listeners(&member, &self.witness)?;
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
                tasks.spawn(blocking(move || add(&cni, sandbox, pod.ports)));
            }
            let Some(ended) = tasks.join_next().await else { return Ok(()) };
            let (sandbox, member) = ended.unwrap_or_else(|error| Err(CliError::Failed(format!("wiring a pod broke: {error}"))))?;
            let listeners = open_listeners(&member, &self.witness)?;
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

    /// Every probe, and what the rules say of it now.
    pub async fn asked(&self) -> Result<Vec<Asked>, CliError> {
        let members = self.members();
        let services = service::services(&self.files, &members, &ask_services().await?);
        let (flows, to_services) = (probes(&members), service::probes(&services, &members));
        let queries = flows.iter().map(|(probe, _)| query(probe));
        let to_backends = to_services.iter().flat_map(|asked| backend_queries(asked, &members));
        let mut explained = explain(queries.chain(to_backends).collect()).await?.into_iter();
        let mut asked = Vec::with_capacity(flows.len() + to_services.len());
        for ((probe, target), Explained { egress, ingress, .. }) in flows.into_iter().zip(explained.by_ref()) {
            asked.push(Asked { probe, target, egress, ingress, service: None });
        }
        for to_service in to_services {
            let number = to_service.targets().count();
            let behind = to_service.behind(&members, explained.by_ref().take(number));
            let (egress, ingress) = behind.sides();
            asked.push(Asked { probe: to_service.probe, target: to_service.target, egress, ingress, service: Some(behind) });
        }
        asked.sort_by(|a, b| a.probe.cmp(&b.probe));
        Ok(asked)
    }

    /// What of services cannot be had as it is written, a sentence each.
    pub async fn problems(&self) -> Result<Vec<String>, CliError> {
        let told = ask_services().await?;
        let of = |status: &ServiceStatus| -> Vec<String> {
            status.problems.iter().map(|problem| format!("Not as written: {problem}")).collect()
        };
        Ok(told.iter().flat_map(of).collect())
    }

    /// Everybody who takes part.
    fn members(&self) -> Vec<Member> {
        let wired = self.pods.values().map(|wired| &wired.member);
        wired.chain(self.common.iter().map(|(member, _)| member)).cloned().collect()
    }

    /// Waits until the kernel serves what the files say.
    async fn served(&self) -> Result<(), CliError> {
        let members = self.members();
        let since = tokio::time::Instant::now();
        loop {
            let told = ask_services().await?;
            let missing = service::missing(&service::services(&self.files, &members, &told), &told);
            match missing {
                None => return Ok(()),
                Some(missing) if since.elapsed() > SERVED_WITHIN => {
                    say(&format!("the kernel does not serve as the files say: {missing}"));
                    return Ok(());
                }
                Some(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Tries every flow, and asks what the rules say of each.
    pub async fn probe(&self) -> Result<Report, CliError> {
        self.served().await?;
        let asked = step("asking what the policies say", self.asked()).await?;
        let flows = asked.iter().flat_map(|asked| std::iter::repeat_n(asked, asked.flows()));
        let attempts: Vec<Attempt> = flows
            .map(|asked| Attempt {
                probe: asked.probe.clone(),
                target: asked.target,
                question: self.witness.ask(),
                is_answered: asked.is_answered(),
            })
            .collect();
        let seen = step(&format!("probing {}", count(attempts.len(), "flow", "flows")), probe::run(&attempts, self.at_once))
            .await
            .map_err(|error| CliError::Environment(error.to_string()))?;
        let mut tried = seen.into_iter().zip(attempts.iter().map(|attempt| self.witness.end(attempt.question)));
        let probes = asked.into_iter().map(|asked| {
            let flows = asked.flows();
            asked.result(tried.by_ref().take(flows))
        });
        Ok(Report { probes: probes.collect() })
    }
}

fn open_listeners(member: &Member, witness: &Witness) -> Result<Listeners, CliError> {
    Listeners::open(member, witness).map_err(|error| CliError::Failed(error.to_string()))
}

/// Makes a sandbox as a container runtime does, and has it wired.
fn add(cni: &Cni, sandbox: Sandbox, ports: BTreeSet<Port>) -> Result<(Sandbox, Member), CliError> {
    let party = Party::Pod(sandbox.pod.clone());
    let loopback = || {
        let namespace = Namespace::create_at(&paths::namespace(&party))?;
        let inside = Netlink::open_in(&namespace)?;
        inside.link("lo")?.map_or(Ok(()), |link| inside.set_up(link.index))
    };
    loopback().map_err(|error| CliError::Environment(format!("cannot make the namespace of {party}: {error}")))?;
    let addresses = cni.add(&sandbox).map_err(|error| CliError::Failed(error.to_string()))?;
    Ok((sandbox, Member { party, addresses, ports }))
}

fn query(probe: &Probe) -> FlowQuery {
    FlowQuery {
        from: end(&probe.from, probe.family),
        to: end(&probe.to, probe.family),
        protocol: probe.protocol.to_string(),
        port: probe.port,
        family: probe.family,
        rules: false,
    }
}

fn end(party: &Party, family: Family) -> FlowEnd {
    match party {
        // Nobody asks of a service as such: its backends have policies.
        Party::Pod(name) | Party::Service(name) => FlowEnd::Pod(name.to_string()),
        Party::Node => FlowEnd::Node,
        Party::Outside => FlowEnd::Address(outside::address(family)),
    }
}

/// What is asked of the policies about a flow to each backend of a service.
fn backend_queries<'a>(asked: &'a ServiceProbe, members: &'a [Member]) -> impl Iterator<Item = FlowQuery> + 'a {
    asked.targets().map(move |(address, port)| {
        let to = members.iter().find(|member| member.addresses.contains(&address));
        let to = to.map_or(FlowEnd::Address(address), |member| end(&member.party, asked.probe.family));
        FlowQuery { to, port, ..query(&asked.probe) }
    })
}

/// The services, as the kernel serves them.
async fn ask_services() -> Result<Vec<ServiceStatus>, CliError> {
    blocking(|| match client()?.call(Call::Services { namespaces: Vec::new(), object: None, backends: true })? {
        Reply::Services(services) => Ok(services),
        other => Err(agent::unexpected(&other)),
    })
    .await
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
