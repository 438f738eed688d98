//! The course of a lab: the agent, the pods, the probes, the table, and then, if wanted, the edits.

use super::cni::{Cni, Sandbox};
use super::control;
use super::expect::{self, Expectations};
use super::flow::{Asked, Member, Party, Port, Report, probes};
use super::listener::Listeners;
use super::manifests::{Manifests, PodSpec};
use super::node::{Failures, LabNode, blocking};
use super::probe::{self, Attempt};
use super::progress::{say, step};
use super::questions::{self, Question};
use super::service;
use super::several::Several;
use super::witness::Witness;
use super::{LabOptions, manifests, outside, paths, socket, truth_table, watch};
use crate::arguments::{Output, RoutingMode};
use crate::error::CliError;
use crate::print;
use crate::table::{Paint, count};
use palisade_cni::link::{Namespace, Netlink};
use palisade_k8s::index::Index;
use palisade_policy::model::ObjectName;
use palisade_protocol::{Explained, NODE_SERVED, ServiceStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// So many pods are wired at the same time.
const WIRED_AT_ONCE: usize = 4;
/// How long services may take until the kernel serves them as the files say; what it does not serve then, packets show.
const SERVED_WITHIN: Duration = Duration::from_secs(5);

/// A pod with its network.
pub(super) struct Wired {
    pub sandbox: Sandbox,
    pub member: Member,
    /// What answers on its ports.
    listeners: Listeners,
}

/// A running lab.
pub struct Session {
    pub(super) cni: Cni,
    /// By name.
    pub(super) nodes: BTreeMap<String, LabNode>,
    /// What there is besides where there are several.
    pub(super) several: Option<Several>,
    pub(super) pods: BTreeMap<ObjectName, Wired>,
    generation: u64,
    /// Where agents tell that they ended.
    pub(super) failures: Failures,
    /// The nodes' and the outside host's: all of them listen on whatever some pod declares.
    common: Vec<(Member, Listeners)>,
    at_once: usize,
    /// What the files say.
    pub(super) files: Index,
    /// Knows who got what is sent.
    witness: Witness,
}

/// Runs a lab until its table is printed, or with `--keep` and `--watch` until `stop`.
pub async fn run(options: &LabOptions, stop: impl Future<Output = ()>) -> Result<(), CliError> {
    tokio::pin!(stop);
    let first = async {
        let expectations = read_expectations(options)?;
        let found = manifests::read(&options.named, options.expect.as_deref(), None)?;
        let (session, failed) = Session::start(options, &found).await?;
        // From now on: whoever gives an order waits until it is obeyed.
        let orders = session.several.is_some().then(control::listen).transpose()?;
        let report = session.probe().await?;
        let notes: Vec<String> =
            routing(options, &session).into_iter().chain(found.notes.iter().cloned()).chain(session.problems().await?).collect();
        let verdict = shown(options, &notes, &report, expectations.as_ref());
        Ok::<_, CliError>((session, failed, orders, found, report, verdict))
    };
    let (mut session, mut failed, orders, found, report, verdict) = tokio::select! {
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
    tokio::select! {
        ended = watch::follow(options, &mut session, found, report, orders) => ended,
        Some(problem) = failed.recv() => Err(CliError::Environment(problem)),
        () = &mut stop => Ok(()),
    }
}

fn read_expectations(options: &LabOptions) -> Result<Option<Expectations>, CliError> {
    options.expect.as_deref().map(Expectations::read).transpose()
}

/// What is to be said of the routing mode.
fn routing(options: &LabOptions, session: &Session) -> Option<String> {
    let mode = palisade_runtime::RoutingMode::from(options.mode).name();
    match session.several {
        Some(_) => Some(format!("Routing mode: {mode}")),
        None if options.mode == RoutingMode::default() => None,
        None => Some(format!("Ignored: --mode {mode}: without Node objects all pods are on one node")),
    }
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

impl Session {
    async fn start(options: &LabOptions, found: &Manifests) -> Result<(Self, mpsc::UnboundedReceiver<String>), CliError> {
        let open_files = socket::raise_open_files();
        let cni = Cni::find(Some(&options.cni)).map_err(|error| CliError::Environment(error.to_string()))?;
        // A probe takes a socket here and one at its target; the rest is for the agents and the listeners.
        let at_once = usize::try_from(open_files.saturating_sub(500) / 3).unwrap_or(1).clamp(100, 4000);
        let (failures, failed) = mpsc::unbounded_channel();
        let mut session = Self {
            cni,
            nodes: BTreeMap::new(),
            several: None,
            pods: BTreeMap::new(),
            generation: 0,
            failures,
            common: Vec::new(),
            at_once,
            files: Index::new(),
            witness: Witness::default(),
        };
        match &found.cluster {
            Some(_) => session.several = Some(Several::create(options.mode)?),
            None => {
                outside::create().map_err(|error| CliError::Environment(format!("cannot make the lab's node: {error}")))?;
                let mut node = LabNode::only(&options.directory);
                step("starting the agent and loading the datapath", node.start(&session.failures)).await?;
                session.nodes.insert(node.name().to_owned(), node);
            }
        }
        session.follow(found).await?;
        Ok((session, failed))
    }

    /// Makes the lab as the files say: nodes and pods that are gone go, those that are new come, listeners follow the declared ports.
    pub async fn follow(&mut self, found: &Manifests) -> Result<(), CliError> {
        let wanted = &found.pods;
        self.files = found.index.clone();
        let stays = |name: &ObjectName, wired: &Wired| wanted.iter().any(|pod| pod.name == *name && pod.node == wired.sandbox.node);
        let gone: Vec<ObjectName> = self.pods.iter().filter(|(name, wired)| !stays(name, wired)).map(|(name, _)| name.clone()).collect();
        for name in gone {
            self.unwire(&name).await?;
        }
        if let Some(cluster) = &found.cluster {
            self.follow_nodes(cluster).await?;
        }
        let runs = |pod: &&PodSpec| self.nodes.get(&pod.node).is_some_and(LabNode::runs);
        let new: Vec<PodSpec> = wanted.iter().filter(|pod| !self.pods.contains_key(&pod.name)).filter(runs).cloned().collect();
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
        if let Some(cluster) = &found.cluster {
            self.record(cluster).await?;
        }
        self.follow_common(wanted).await
    }

    async fn follow_common(&mut self, pods: &[PodSpec]) -> Result<(), CliError> {
        let ports: BTreeSet<Port> = pods.iter().flat_map(|pod| pod.ports.iter().copied()).collect();
        let mut wanted: Vec<Member> =
            self.nodes.values().filter(|node| node.runs()).map(|node| self.node_member(node.name(), &ports)).collect();
        let nodes = if self.several.is_some() { outside::Nodes::Several } else { outside::Nodes::One };
        wanted.push(Member { party: Party::Outside, addresses: outside::addresses(nodes).to_vec(), ports, confined: None });
        if self.common.iter().map(|(member, _)| member).eq(&wanted) {
            return Ok(());
        }
        self.close_common().await;
        for member in wanted {
            let listeners = open_listeners(&member, &self.witness)?;
            self.common.push((member, listeners));
        }
        Ok(())
    }

    /// Closes what listens on nodes and outside; [`follow`](Self::follow) opens it anew.
    pub(super) async fn close_common(&mut self) {
        for (_, listeners) in self.common.drain(..) {
            listeners.close().await;
        }
    }

    fn node_member(&self, name: &str, ports: &BTreeSet<Port>) -> Member {
        let addresses = match &self.several {
            Some(several) => several.addresses(name),
            None => outside::node_addresses().to_vec(),
        };
        Member { party: Party::Node(name.to_owned()), addresses, ports: ports.clone(), confined: self.confined(name) }
    }

    /// The link that packets of a node's pods stay on, where they stay on one.
    fn confined(&self, node: &str) -> Option<super::topology::Link> {
        self.several.as_ref().and_then(|several| several.confined(node))
    }

    async fn wire(&mut self, pods: Vec<PodSpec>) -> Result<(), CliError> {
        let mut waiting = pods.into_iter();
        let mut tasks = JoinSet::new();
        loop {
            while tasks.len() < WIRED_AT_ONCE
                && let Some(pod) = waiting.next()
            {
                self.generation += 1;
                let confined = self.confined(&pod.node);
                let sandbox = Sandbox { pod: pod.name.clone(), generation: self.generation, node: pod.node };
                let cni = self.cni.clone();
                tasks.spawn(blocking(move || {
                    let (party, addresses) = add(&cni, &sandbox)?;
                    Ok((sandbox, Member { party, addresses, ports: pod.ports, confined }))
                }));
            }
            let Some(ended) = tasks.join_next().await else { return Ok(()) };
            let (sandbox, member) = ended.unwrap_or_else(|error| Err(CliError::Failed(format!("wiring a pod broke: {error}"))))?;
            let listeners = open_listeners(&member, &self.witness)?;
            self.pods.insert(sandbox.pod.clone(), Wired { sandbox, member, listeners });
        }
    }

    /// Unwires a pod, whether or not its agent runs.
    pub(super) async fn unwire(&mut self, name: &ObjectName) -> Result<(), CliError> {
        let Some(wired) = self.pods.remove(name) else { return Ok(()) };
        let cni = self.cni.clone();
        // Its sockets would keep the namespace.
        wired.listeners.close().await;
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
        let mut to_services = Vec::new();
        for node in self.nodes.values().filter(|node| node.runs()) {
            let services = service::services(&self.files_on(node.name()), &members, &node.services().await?);
            let serves_itself = node.status().await?.node_services == NODE_SERVED;
            let here = |member: &&Member| match &member.party {
                Party::Pod(name) => self.node_of(name) == Some(node.name()),
                Party::Node(name) => name == node.name() && serves_itself,
                Party::Service(_) | Party::Outside => false,
            };
            to_services.extend(service::probes(&services, members.iter().filter(here)));
        }
        let flows = probes(&members);
        let address = |party: &Party, family| {
            let member = members.iter().find(|member| member.party == *party).and_then(|member| member.address(family));
            member.ok_or_else(|| CliError::Failed(format!("{party} has no address of a family over which it is tried")))
        };
        let mut asked_of = Vec::new();
        for (probe, target, _) in &flows {
            let from = (probe.from.clone(), address(&probe.from, probe.family)?);
            let (protocol, port, family) = (probe.protocol.to_string(), probe.port, probe.family);
            asked_of.push(Question { from, to: (Some(probe.to.clone()), *target), protocol, port, family, service: false });
        }
        for to_service in &to_services {
            let probe = &to_service.probe;
            asked_of.extend(to_service.targets().map(|(address, port)| {
                let party = members.iter().find(|member| member.addresses.contains(&address)).map(|member| member.party.clone());
                let (from, protocol) = ((probe.from.clone(), to_service.client), probe.protocol.to_string());
                Question { from, to: (party, address), protocol, port, family: probe.family, service: true }
            }));
        }
        let pods = self.pods.iter().map(|(name, wired)| (name, wired.sandbox.node.as_str())).collect();
        let mut explained = questions::sides(&self.nodes, &pods, &asked_of).await?.into_iter();
        let mut asked = Vec::with_capacity(flows.len() + to_services.len());
        for ((probe, target, unrouted), Explained { egress, ingress, .. }) in flows.into_iter().zip(explained.by_ref()) {
            asked.push(Asked { probe, target, egress, ingress, service: None, unrouted });
        }
        for to_service in to_services {
            let number = to_service.targets().count();
            let behind = to_service.behind(&members, explained.by_ref().take(number));
            let (egress, ingress) = behind.sides();
            let (probe, target) = (to_service.probe, to_service.target);
            asked.push(Asked { probe, target, egress, ingress, service: Some(behind), unrouted: false });
        }
        asked.sort_by(|a, b| a.probe.cmp(&b.probe));
        Ok(asked)
    }

    /// What of services cannot be had as it is written, a sentence each.
    pub async fn problems(&self) -> Result<Vec<String>, CliError> {
        let of = |status: &ServiceStatus| -> Vec<String> {
            status.problems.iter().map(|problem| format!("Not as written: {problem}")).collect()
        };
        let mut problems: Vec<String> = Vec::new();
        for node in self.nodes.values().filter(|node| node.runs()) {
            for problem in node.services().await?.iter().flat_map(of) {
                // Each node has the same services.
                if !problems.contains(&problem) {
                    problems.push(problem);
                }
            }
        }
        Ok(problems)
    }

    /// Everybody who takes part: pods of nodes that are away do not.
    pub(super) fn members(&self) -> Vec<Member> {
        let runs = |wired: &&Wired| self.nodes.get(&wired.sandbox.node).is_some_and(LabNode::runs);
        let wired = self.pods.values().filter(runs).map(|wired| &wired.member);
        wired.chain(self.common.iter().map(|(member, _)| member)).cloned().collect()
    }

    fn node_of(&self, pod: &ObjectName) -> Option<&str> {
        self.pods.get(pod).map(|wired| wired.sandbox.node.as_str())
    }

    /// What the files say, as the agent of a node has to take it.
    fn files_on(&self, node: &str) -> Index {
        let mut files = self.files.clone();
        if self.several.is_some() {
            files.set_host(node, &[]);
        }
        files
    }

    /// Waits until the kernels serve what the files say.
    async fn served(&self) -> Result<(), CliError> {
        let members = self.members();
        let since = tokio::time::Instant::now();
        for node in self.nodes.values().filter(|node| node.runs()) {
            let files = self.files_on(node.name());
            loop {
                let told = node.services().await?;
                let missing = service::missing(&service::services(&files, &members, &told), &told);
                match missing {
                    None => break,
                    Some(missing) if since.elapsed() > SERVED_WITHIN => {
                        say(&format!("the kernel does not serve as the files say: {missing}"));
                        return Ok(());
                    }
                    Some(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        }
        Ok(())
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
fn add(cni: &Cni, sandbox: &Sandbox) -> Result<(Party, Vec<std::net::IpAddr>), CliError> {
    let party = Party::Pod(sandbox.pod.clone());
    let loopback = || {
        let namespace = Namespace::create_at(&paths::namespace(&party))?;
        let inside = Netlink::open_in(&namespace)?;
        inside.link("lo")?.map_or(Ok(()), |link| inside.set_up(link.index))
    };
    loopback().map_err(|error| CliError::Environment(format!("cannot make the namespace of {party}: {error}")))?;
    let addresses = cni.add(sandbox).map_err(|error| CliError::Failed(error.to_string()))?;
    Ok((party, addresses))
}
