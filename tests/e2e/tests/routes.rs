//! By which ways the nodes reach each other's pods; Node objects that come, change and go: the routes of every node follow, and no other route is
//! touched.

use anyhow::{Context, Result, ensure};
use palisade_e2e::administrator::{ON_NODE, administrator};
use palisade_e2e::agent::Agent;
use palisade_e2e::cluster::{Cluster, Namespace, items};
use palisade_e2e::pod::{self, Pod, named};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often the node comes, changes and goes.
const ROUNDS: usize = 5;
/// How long a change is waited for, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// How soon a change of routes is there (docs/user/network.md): in the quickest of the rounds at least, as machines are busy.
const PROMISED: Duration = Duration::from_secs(1);
/// What takes as long as it takes to ask one agent after the other.
const AS_AGENTS_SAY: &str = "it has another address, as agents say";
/// Where a node's changes of routes are written, each with the time, in nanoseconds since 1970.
const LOG: &str = "/tmp/routes";

/// Another address or range like this one: its number differs by these bits.
fn with_bits(address: IpAddr, shift: u32, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from(u32::from(address) ^ u32::from(bits) << shift).into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) ^ u128::from(bits) << shift).into(),
    }
}

/// A pod range like this one.
fn another_range(range: &str, bits: u8) -> Result<String> {
    let (address, length) = range.split_once('/').context("a range has a length")?;
    let (address, length): (IpAddr, u32) = (address.parse()?, length.parse()?);
    let width = if address.is_ipv6() { 128 } else { 32 };
    Ok(format!("{}/{length}", with_bits(address, width - length, bits)))
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

fn addresses(node: &Value) -> Vec<IpAddr> {
    let all = node["status"]["addresses"].as_array().into_iter().flatten();
    all.filter(|address| address["type"] == "InternalIP").filter_map(|address| address["address"].as_str()?.parse().ok()).collect()
}

/// A Node object without a node; deleted when this is dropped.
struct Ghost<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl Ghost<'_> {
    /// The object. No pod is meant for it, of no DaemonSet either.
    fn object(&self, addresses: &[IpAddr], ranges: &[String]) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": self.name },
            "spec": { "podCIDR": ranges[0], "podCIDRs": ranges, "taints": [{ "key": "palisade.dev/e2e", "effect": "NoSchedule" }] },
            "status": Self::status(addresses),
        })
    }

    fn status(addresses: &[IpAddr]) -> Value {
        json!({ "addresses": addresses.iter().map(|address| json!({ "type": "InternalIP", "address": address })).collect::<Vec<_>>() })
    }

    fn create(&self, addresses: &[IpAddr], ranges: &[String]) -> Result<()> {
        let object = self.object(addresses, ranges).to_string();
        let output = self.cluster.output(&["create", "--filename", "-"], &object, PATIENCE)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn readdress(&self, addresses: &[IpAddr]) -> Result<()> {
        let patch = json!({ "status": Self::status(addresses) }).to_string();
        self.cluster.run(&["patch", "node", &self.name, "--subresource=status", "--type=merge", "--patch", &patch]).map(drop)
    }

    fn delete(&self) -> Result<()> {
        self.cluster.run(&["delete", "node", &self.name, "--ignore-not-found", "--wait=false"]).map(drop)
    }
}

impl Drop for Ghost<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.delete() {
            eprintln!("the node {} may be left: {error:#}", self.name);
        }
    }
}

/// A change of a route that a node's kernel told of.
struct Change {
    /// Nanoseconds since 1970.
    at: u128,
    gone: bool,
    range: String,
    text: String,
}

/// What every node's kernel tells of its routes.
struct Watched<'a> {
    cluster: &'a Cluster,
    pods: Vec<Pod>,
}

impl Watched<'_> {
    fn start<'a>(cluster: &'a Cluster, namespace: &Namespace, nodes: &[String]) -> Result<Watched<'a>> {
        let administrators: Vec<Value> = nodes.iter().map(|node| administrator(&format!("at-{node}"), node)).collect();
        let pods = pod::start(namespace, &administrators)?;
        for pod in &pods {
            let tell = r#"while read -r line; do echo "$(date +%s%N) $line"; done"#;
            pod.shell(cluster, &format!("{ON_NODE} sh -c 'ip monitor route | {tell}' >{LOG} 2>&1 </dev/null &"))?;
        }
        Ok(Watched { cluster, pods })
    }

    /// What a node has told.
    fn changes(&self, pod: &Pod) -> Result<Vec<Change>> {
        let log = pod.shell(self.cluster, &format!("cat {LOG}"))?;
        let change = |line: &str| {
            let (at, text) = line.split_once(' ')?;
            let words: Vec<&str> =
                text.split_whitespace().filter(|word| !["Deleted", "unicast", "local", "broadcast"].contains(word)).collect();
            let range = (*words.first()?).to_owned();
            Some(Change { at: at.parse().ok()?, gone: text.starts_with("Deleted"), range, text: text.to_owned() })
        };
        Ok(log.lines().filter_map(change).collect())
    }

    /// Waits until the last that each node has told of each range is as wanted, and how long after `since` the last of them was so.
    fn until(&self, what: &str, since: u128, ranges: &[String], wanted: impl Fn(&Change, usize) -> bool) -> Result<Duration> {
        let deadline = Instant::now() + PATIENCE;
        let mut last = since;
        for pod in &self.pods {
            loop {
                let late = Instant::now() > deadline;
                let changes = self.changes(pod)?;
                let of: Vec<Option<&Change>> = ranges.iter().map(|range| changes.iter().rfind(|change| change.range == *range)).collect();
                if of.iter().enumerate().all(|(index, change)| change.is_some_and(|change| wanted(change, index))) {
                    last = of.iter().flatten().map(|change| change.at).fold(last, u128::max);
                    break;
                }
                let told: Vec<&str> = changes.iter().map(|change| change.text.as_str()).collect();
                ensure!(!late, "{what}: {} has told {told:#?}", pod.node);
            }
        }
        Ok(Duration::from_nanos(u64::try_from(last - since)?))
    }
}

fn now() -> Result<u128> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())
}

/// The mode that an agent says it has, and the ways to the ranges of a node.
fn ways(agent: &Agent, node: &str) -> Result<(String, Vec<Value>)> {
    let status = agent.ask(&["status"])?;
    let routing = &status["routing"];
    let mode = routing["mode"].as_str().with_context(|| format!("{}: no mode", agent.node))?;
    let ranges = routing["ranges"].as_array().with_context(|| format!("{}: no ranges", agent.node))?;
    Ok((mode.to_owned(), ranges.iter().filter(|range| range["node"] == node).cloned().collect()))
}

/// Waits until every agent leads each range of the node there; `wanted` looks at the mode and at a way. How long after `since` it was so.
fn until_led(what: &str, agents: &[Agent], node: &str, since: u128, wanted: impl Fn(&str, &Value) -> bool) -> Result<Duration> {
    let deadline = Instant::now() + PATIENCE;
    for agent in agents {
        loop {
            let late = Instant::now() > deadline;
            let (mode, ranges) = ways(agent, node)?;
            if !ranges.is_empty() && ranges.iter().all(|range| wanted(&mode, range)) {
                break;
            }
            ensure!(!late, "{what}: {} says, with the mode {mode}: {ranges:?}", agent.node);
        }
    }
    Ok(Duration::from_nanos(u64::try_from(now()? - since)?))
}

/// Whether a way leads to one of the addresses.
fn leads_to(range: &Value, addresses: &[IpAddr]) -> bool {
    range["address"].as_str().and_then(|address| address.parse().ok()).is_some_and(|address: IpAddr| addresses.contains(&address))
}

#[test]
fn routes_follow_node_objects_and_no_other_route_is_touched() -> Result<()> {
    let cluster = Cluster::connect();
    let names = cluster.nodes()?;
    let namespace = Namespace::create(&cluster, "routes", &[])?;
    let list = cluster.json(&["get", "nodes"])?;
    let real: Vec<&Value> = items(&list).collect();
    let taken: Vec<String> = real.iter().flat_map(|node| texts(&node["spec"]["podCIDRs"])).collect();
    let ranges = texts(&real[0]["spec"]["podCIDRs"]);
    let like = |bits| ranges.iter().map(|range| another_range(range, bits)).collect::<Result<Vec<_>>>();
    let (first, second) = (like(0xfa)?, like(0xf5)?);
    // On the link of the nodes, where nobody is.
    let at = |bits| addresses(real[0]).into_iter().map(|address| with_bits(address, 0, bits)).collect::<Vec<_>>();
    let (here, there) = (at(0xa0), at(0xb0));
    // On no link of theirs, of the ranges for documentation.
    let documented = |address: &IpAddr| -> IpAddr {
        if address.is_ipv6() { Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7).into() } else { Ipv4Addr::new(192, 0, 2, 7).into() }
    };
    let beyond: Vec<IpAddr> = here.iter().map(documented).collect();
    let agents = Agent::all(&cluster)?;
    let watched = Watched::start(&cluster, &namespace, &names)?;
    let ghost = Ghost { cluster: &cluster, name: format!("{}-ghost", namespace.name) };

    let by = |change: &Change, next: &[IpAddr]| {
        // Through the overlay a route names no node.
        let natively = change.text.contains(" via ");
        !change.gone && (!natively || next.iter().any(|address| change.text.contains(&format!(" via {address} "))))
    };
    let mut taken_time: Vec<(&str, Vec<Duration>)> = Vec::new();
    let mut note = |what, after| match taken_time.iter_mut().find(|(name, _)| *name == what) {
        Some((_, all)) => all.push(after),
        None => taken_time.push((what, vec![after])),
    };
    for _ in 0..ROUNDS {
        let since = now()?;
        ghost.create(&here, &first)?;
        note("a node comes", watched.until("a node comes", since, &first, |change, _| by(change, &here))?);
        let since = now()?;
        ghost.readdress(&there)?;
        let routed = watched.until("it has another address", since, &first, |change, _| by(change, &there))?;
        // A route into the overlay stays as it is: the agents say when the outer address is the other one.
        let led = until_led("it has another address", &agents, &ghost.name, since, |_, range| leads_to(range, &there))?;
        match routed.is_zero() {
            true => note(AS_AGENTS_SAY, led),
            false => note("it has another address", routed),
        }
        let since = now()?;
        ghost.delete()?;
        note("it goes", watched.until("it goes", since, &first, |change, _| change.gone)?);
        let since = now()?;
        ghost.create(&there, &second)?;
        note("it comes with another range", watched.until("it comes with another range", since, &second, |change, _| by(change, &there))?);
        ghost.delete()?;
        watched.until("it goes again", since, &second, |change, _| change.gone)?;
    }
    for pod in &watched.pods {
        let changes = watched.changes(pod)?;
        let others: Vec<&str> = changes.iter().filter(|change| taken.contains(&change.range)).map(|change| change.text.as_str()).collect();
        assert!(others.is_empty(), "{}: routes of other nodes were touched: {others:#?}", pod.node);
        // Comes, another next hop where it is native, goes; comes, goes.
        let (of_first, of_second) = (count(&changes, &first), count(&changes, &second));
        let readdressed = if changes.iter().any(|change| first.contains(&change.range) && change.text.contains(" via ")) { 3 } else { 2 };
        assert_eq!((of_first, of_second), (readdressed * ROUNDS * first.len(), 2 * ROUNDS * second.len()), "{}", pod.node);
    }
    // It goes behind a router: auto takes the overlay, and native leaves it to the network.
    let since = now()?;
    ghost.create(&there, &second)?;
    watched.until("it comes once more", since, &second, |change, _| by(change, &there))?;
    ghost.readdress(&beyond)?;
    until_led("it is behind a router", &agents, &ghost.name, since, |mode, range| match mode {
        "native" => range["way"] == "network",
        _ => range["way"] == "vxlan" && leads_to(range, &beyond),
    })?;
    let is_native = ways(&agents[0], &ghost.name)?.0 == "native";
    let by_overlay = |change: &Change| !change.gone && !change.text.contains(" via ");
    watched.until("it is behind a router", since, &second, |change, _| if is_native { change.gone } else { by_overlay(change) })?;
    for (what, mut all) in taken_time {
        all.sort_unstable();
        assert!(what == AS_AGENTS_SAY || all[0] < PROMISED, "{what}: {all:?}");
        println!(
            "{what}: median {:?}, longest {:?}, on the last of {} nodes, with kubectl's own time",
            all[all.len() / 2],
            all[all.len() - 1],
            watched.pods.len()
        );
    }
    Ok(())
}

#[test]
fn each_node_is_reached_as_the_mode_and_the_routes_of_the_others_say() -> Result<()> {
    let cluster = Cluster::connect();
    let namespace = Namespace::create(&cluster, "ways", &[])?;
    // Not those that the other scenario makes, and no node is behind.
    let nodes = cluster.nodes()?;
    let is_real = |of: &&Value| nodes.iter().any(|name| of["node"] == *name);
    let mut seen = 0;
    for agent in Agent::all(&cluster)? {
        let name = format!("at-{}", agent.node);
        let pods = pod::start(&namespace, &[administrator(&name, &agent.node)])?;
        let administrator = named(&pods, &name)?;
        let routing = &agent.ask(&["status"])?["routing"];
        let list = |what: &str| routing[what].as_array().with_context(|| format!("{}: no {what}", agent.node));
        let faults: Vec<&Value> = list("faults")?.iter().filter(is_real).collect();
        assert!(faults.is_empty(), "{}: {faults:?}", agent.node);
        for range in list("ranges")?.iter().filter(is_real) {
            // What the network between the nodes carries is sent to no node's address.
            let route = match range["address"].as_str() {
                Some(address) => administrator.shell(&cluster, &format!("{ON_NODE} ip -o route get {address}"))?,
                None => " via the network".to_owned(),
            };
            let way = match (routing["mode"].as_str(), route.contains(" via ")) {
                (Some("vxlan"), _) | (Some("auto"), true) => "vxlan",
                (Some("native"), true) => "network",
                _ => "native",
            };
            assert_eq!(range["way"], way, "{}: {range}, and its way is {route}", agent.node);
            println!("{} reaches {} of {} by the way `{way}`", agent.node, range["range"], range["node"]);
            seen += 1;
        }
    }
    assert!(seen > 1, "each node reaches another");
    Ok(())
}

fn count(changes: &[Change], ranges: &[String]) -> usize {
    changes.iter().filter(|change| ranges.contains(&change.range)).count()
}
