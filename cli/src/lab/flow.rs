//! Who takes part in a lab, and what is probed between them.

use super::outside::NODE;
use super::probe::Seen;
use super::service::{Behind, Fate};
use super::topology::Link;
use super::witness::Arrival;
use palisade_policy::model::ObjectName;
use palisade_protocol::{Explained, Family, SideVerdict, VerdictName};
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// One end of a probe. Pods come first in every table, then services, the node, and the outside host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// A pod.
    Pod(ObjectName),
    /// A service, by its cluster IPs. Nothing comes from there.
    Service(ObjectName),
    /// A process of the node of this name.
    Node(String),
    /// A host that is no part of the cluster.
    Outside,
}

impl std::fmt::Display for Party {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod(name) => name.fmt(f),
            Self::Service(name) => write!(f, "svc/{name}"),
            Self::Node(name) if name == NODE => f.write_str(name),
            Self::Node(name) => write!(f, "node:{name}"),
            Self::Outside => f.write_str("outside"),
        }
    }
}

impl Serialize for Party {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a probe speaks: the protocols whose ports policies name, and ICMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP or ICMPv6: an echo.
    Icmp,
}

impl Protocol {
    /// The IP protocol number (IANA).
    pub const fn number(self, family: Family) -> u8 {
        match (self, family) {
            (Self::Tcp, _) => palisade_identity::Protocol::Tcp.number(),
            (Self::Udp, _) => palisade_identity::Protocol::Udp.number(),
            (Self::Sctp, _) => palisade_identity::Protocol::Sctp.number(),
            (Self::Icmp, Family::Ipv4) => 1,
            (Self::Icmp, Family::Ipv6) => 58,
        }
    }
}

impl From<palisade_identity::Protocol> for Protocol {
    fn from(protocol: palisade_identity::Protocol) -> Self {
        match protocol {
            palisade_identity::Protocol::Tcp => Self::Tcp,
            palisade_identity::Protocol::Udp => Self::Udp,
            palisade_identity::Protocol::Sctp => Self::Sctp,
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
            Self::Icmp => "ICMP",
        })
    }
}

/// Why packets do not arrive that no policy denies.
const APART: &str = "pods are not routed from one link to another: the routing mode is native";

/// A port on which somebody listens, or [`ECHO`].
pub type Port = (Protocol, u16);

/// What everybody answers without a listener. An echo has no port, which is written as 0.
pub const ECHO: Port = (Protocol::Icmp, 0);

/// A port as users write it; an echo as its protocol alone.
pub fn port_name(port: Port) -> String {
    match port {
        ECHO => Protocol::Icmp.to_string(),
        (protocol, port) => format!("{protocol} {port}"),
    }
}

/// A party with its addresses and the ports on which it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who it is.
    pub party: Party,
    /// Its addresses, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// The ports on which it listens.
    pub ports: BTreeSet<Port>,
    /// The link that its packets stay on: that of its node, where pods are not routed beyond. `None`: they go everywhere.
    pub confined: Option<Link>,
}

impl Member {
    /// Its address of one family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == (family == Family::Ipv4))
    }

    /// Whether no route leads from it to another, or back.
    pub fn is_apart_from(&self, other: &Self) -> bool {
        self.confined.is_some() && other.confined.is_some() && self.confined != other.confined
    }
}

/// One flow that is tried.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Probe {
    /// Who opens the flow.
    pub from: Party,
    /// Towards whom.
    pub to: Party,
    /// Over which family.
    pub family: Family,
    /// The protocol.
    pub protocol: Protocol,
    /// The port at `to`; 0 for ICMP.
    pub port: u16,
}

impl Probe {
    /// What it tries.
    pub const fn tried(&self) -> Port {
        (self.protocol, self.port)
    }
}

impl std::fmt::Display for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {} {} ({})", self.from, self.to, port_name(self.tried()), family_name(self.family))
    }
}

/// The family of an address.
pub const fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
}

/// A family as users write it.
pub const fn family_name(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "ipv4",
        Family::Ipv6 => "ipv6",
    }
}

/// All probes between members, by each port and by echo: every two pods, pods and the node, pods and the outside host,
/// both ways. A flow that no pod takes part in has no policy, so it is not tried; neither is a pod with itself, which
/// never leaves it. Each with the address it goes to, and whether no route leads there.
pub fn probes(members: &[Member]) -> Vec<(Probe, IpAddr, bool)> {
    let mut probes = Vec::new();
    for from in members {
        for to in members {
            let with_pod = matches!(from.party, Party::Pod(_)) || matches!(to.party, Party::Pod(_));
            if from.party == to.party || !with_pod {
                continue;
            }
            for (protocol, port) in to.ports.iter().copied().chain([ECHO]) {
                for family in [Family::Ipv4, Family::Ipv6] {
                    if let (Some(_), Some(address)) = (from.address(family), to.address(family)) {
                        let probe = Probe { from: from.party.clone(), to: to.party.clone(), family, protocol, port };
                        probes.push((probe, address, from.is_apart_from(to)));
                    }
                }
            }
        }
    }
    probes.sort();
    probes
}

/// A probe that is to be made, and what the rules say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The probe.
    pub probe: Probe,
    /// Address of its target.
    pub target: IpAddr,
    /// The opener's side.
    pub egress: SideVerdict,
    /// The responder's side.
    pub ingress: SideVerdict,
    /// Of a service: who is behind it.
    pub service: Option<Behind>,
    /// Whether no route leads to its target, or back.
    pub unrouted: bool,
}

impl Asked {
    /// How many flows are tried.
    pub fn flows(&self) -> usize {
        self.service.as_ref().map_or(1, Behind::flows)
    }

    /// Whether an answer to every flow is due, be it that nothing stands there.
    pub fn is_answered(&self) -> bool {
        match &self.service {
            Some(behind) => matches!(behind.fate, Fate::Reached | Fate::Refused),
            None => side_passes(&self.egress) && side_passes(&self.ingress) && !self.unrouted,
        }
    }

    /// Joins what was seen of each flow with what the rules say.
    pub fn result(self, flows: impl IntoIterator<Item = (Seen, Option<Arrival>)>) -> ProbeResult {
        let Self { probe, egress, ingress, service, unrouted, .. } = self;
        let Some(mut behind) = service else {
            let seen =
                flows.into_iter().next().map_or_else(|| Err("not tried".to_owned()), |(seen, _)| seen.map_err(|how| how.to_string()));
            return ProbeResult::new(probe, seen, Explained::new(egress, ingress), unrouted);
        };
        let mut reached = behind.fate != Fate::Mixed;
        let mut disagreement = None;
        for (seen, arrival) in flows {
            reached &= seen.is_ok();
            let contradicted = behind.judge(&probe, &seen, arrival.as_ref());
            disagreement = disagreement.or(contradicted);
        }
        ProbeResult { probe, reached, egress, ingress, service: Some(behind), unrouted, disagreement }
    }
}

/// What came of a probe, and what the compiled policies say of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProbeResult {
    /// The flow.
    #[serde(flatten)]
    pub probe: Probe,
    /// Whether an answer came back; of a service: to every flow, and not by luck alone.
    pub reached: bool,
    /// The opener's side; of a service: that of the flow to the first backend that does not answer, else to the first.
    pub egress: SideVerdict,
    /// The responder's side.
    pub ingress: SideVerdict,
    /// Of a service: who is behind it.
    #[serde(flatten)]
    pub service: Option<Behind>,
    /// Whether no route leads to it, or back.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unrouted: bool,
    /// Where packets and policy disagree: what was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disagreement: Option<String>,
}

impl ProbeResult {
    /// Joins what was seen of a party (`Err`: no answer, and how it ended) with what the policies say.
    pub fn new(probe: Probe, seen: Result<(), String>, explained: Explained, unrouted: bool) -> Self {
        let passes = side_passes(&explained.egress) && side_passes(&explained.ingress);
        let disagreement = match &seen {
            Ok(()) if !passes => Some("reached, although policy denies it".to_owned()),
            Ok(()) if unrouted => Some("reached, although no route leads there".to_owned()),
            Err(how) if passes && !unrouted => Some(format!("{how}, although policy allows it")),
            _ => None,
        };
        let reached = seen.is_ok();
        Self { probe, reached, egress: explained.egress, ingress: explained.ingress, service: None, unrouted, disagreement }
    }

    /// What becomes of flows to a service, by the rules.
    pub fn fate(&self) -> Option<Fate> {
        self.service.as_ref().map(|behind| behind.fate)
    }

    /// Why it is not reached, or not by every flow, each cause once: `egress` or `ingress` and the reason, `service` and what it lacks, or `network` and
    /// what that does not do.
    pub fn causes(&self) -> BTreeSet<(&'static str, &str)> {
        let sides: Vec<(&'static str, &SideVerdict)> = match &self.service {
            Some(behind) => behind.backends.iter().flat_map(|backend| both(&backend.egress, &backend.ingress)).collect(),
            None => both(&self.egress, &self.ingress).to_vec(),
        };
        let denials = sides.into_iter().filter(|(_, side)| !side_passes(side)).map(|(direction, side)| match side.verdict {
            VerdictName::Error if side.reason.is_empty() => (direction, "the policy's rows are missing"),
            _ => (direction, side.reason.as_str()),
        });
        let of_service = self.service.as_ref().and_then(Behind::why).map(|why| ("service", why));
        let unrouted = self.unrouted || self.service.as_ref().is_some_and(|behind| behind.backends.iter().any(|backend| backend.unrouted));
        denials.chain(of_service).chain(unrouted.then_some(("network", APART))).collect()
    }
}

fn both<'s>(egress: &'s SideVerdict, ingress: &'s SideVerdict) -> [(&'static str, &'s SideVerdict); 2] {
    [("egress", egress), ("ingress", ingress)]
}

/// Whether one side lets the flow pass.
pub fn side_passes(side: &SideVerdict) -> bool {
    matches!(side.verdict, VerdictName::Allow | VerdictName::None)
}

/// The result of a lab, as `--output json` prints it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// All probes, sorted.
    pub probes: Vec<ProbeResult>,
}

impl Report {
    /// The probes where packets and policy disagree.
    pub fn disagreements(&self) -> impl Iterator<Item = &ProbeResult> {
        self.probes.iter().filter(|result| result.disagreement.is_some())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A party as users write it.
    pub(crate) fn party(text: &str) -> Party {
        match text.split('/').collect::<Vec<_>>()[..] {
            ["svc", namespace, name] => Party::Service(ObjectName::new(namespace, name)),
            [namespace, name] => Party::Pod(ObjectName::new(namespace, name)),
            ["node"] => Party::Node(NODE.to_owned()),
            [text] if text.starts_with("node:") => Party::Node(text["node:".len()..].to_owned()),
            _ => Party::Outside,
        }
    }

    /// A result over one family to TCP 80, denied on ingress with `reason` where there is one.
    pub(crate) fn result(from: &str, to: &str, family: Family, reason: Option<&str>) -> ProbeResult {
        let allow = SideVerdict { verdict: VerdictName::Allow, reason: String::new() };
        let ingress = match reason {
            Some(reason) => SideVerdict { verdict: VerdictName::DefaultDeny, reason: reason.into() },
            None => allow.clone(),
        };
        let probe = Probe { from: party(from), to: party(to), family, protocol: Protocol::Tcp, port: 80 };
        let seen = if reason.is_some() { Err("no answer".to_owned()) } else { Ok(()) };
        ProbeResult::new(probe, seen, Explained::new(allow, ingress), false)
    }

    fn member(text: &str, ports: &[Port]) -> Member {
        let addresses = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        Member { party: party(text), addresses, ports: ports.iter().copied().collect(), confined: None }
    }

    #[test]
    fn nine_pods_with_three_ports_are_648_probes_among_pods_and_from_the_node_and_more_with_outside() {
        let ports = [(Protocol::Tcp, 80), (Protocol::Tcp, 81), (Protocol::Udp, 53)];
        let mut members: Vec<Member> = (0..9).map(|number| member(&format!("a/p{number}"), &ports)).collect();
        members.push(member("node", &ports));
        members.push(member("outside", &ports));
        let probes = probes(&members);
        let to_pods_from_cluster = probes.iter().filter(|(probe, ..)| matches!(probe.to, Party::Pod(_)) && probe.from != Party::Outside);
        assert_eq!(to_pods_from_cluster.count(), 648, "three ports and an echo");
        assert_eq!(probes.len(), 648 + 3 * 9 * 4 * 2);
        assert!(!probes.iter().any(|(probe, ..)| probe.from == probe.to));
    }

    #[test]
    fn a_family_that_one_end_lacks_is_not_tried() {
        let mut single = member("a/single", &[(Protocol::Tcp, 80)]);
        single.addresses.pop();
        let probes = probes(&[single, member("a/dual", &[(Protocol::Tcp, 80)])]);
        assert!(probes.iter().all(|(probe, address, _)| probe.family == Family::Ipv4 && address.is_ipv4()));
        assert_eq!(probes.len(), 4, "the port and an echo, both ways");
    }

    #[test]
    fn an_echo_has_a_name_without_a_port_and_comes_last() {
        let tried: Vec<String> = probes(&[member("a/x", &[]), member("a/y", &[(Protocol::Tcp, 80), (Protocol::Sctp, 9)])])
            .iter()
            .filter(|(probe, ..)| probe.from == party("a/x") && probe.family == Family::Ipv6)
            .map(|(probe, ..)| probe.to_string())
            .collect();
        assert_eq!(tried, ["a/x -> a/y TCP 80 (ipv6)", "a/x -> a/y SCTP 9 (ipv6)", "a/x -> a/y ICMP (ipv6)"]);
    }

    #[test]
    fn packets_and_policy_disagree_in_both_directions() {
        let denied = result("a/x", "b/y", Family::Ipv4, Some("r"));
        assert_eq!(denied.disagreement, None);
        let explained = |result: &ProbeResult| Explained::new(result.egress.clone(), result.ingress.clone());
        let leak = ProbeResult::new(denied.probe.clone(), Ok(()), explained(&denied), false);
        assert_eq!(leak.disagreement.as_deref(), Some("reached, although policy denies it"));
        let allowed = result("a/x", "b/y", Family::Ipv4, None);
        let lost = ProbeResult::new(allowed.probe.clone(), Err("no answer".into()), explained(&allowed), false);
        assert_eq!(lost.disagreement.as_deref(), Some("no answer, although policy allows it"));
        let new = |seen| ProbeResult::new(allowed.probe.clone(), seen, explained(&allowed), true);
        let apart = new(Err("no answer".into()));
        assert_eq!((&apart.disagreement, apart.causes()), (&None, [("network", APART)].into()));
        assert_eq!(new(Ok(())).disagreement.as_deref(), Some("reached, although no route leads there"));
    }

    #[test]
    fn the_json_has_the_documented_keys_and_words() {
        let report = Report { probes: vec![result("a/x", "b/y", Family::Ipv6, Some("why"))] };
        assert_eq!(
            serde_json::to_value(&report).unwrap(),
            serde_json::json!({"probes": [{
                "from": "a/x", "to": "b/y", "family": "ipv6", "protocol": "TCP", "port": 80, "reached": false,
                "egress": {"verdict": "allow", "reason": ""},
                "ingress": {"verdict": "default-deny", "reason": "why"},
            }]})
        );
    }
}
