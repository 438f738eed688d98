//! What is asked of one flow, and answered.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A flow to be explained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowQuery {
    /// Who opens the flow.
    pub from: FlowEnd,
    /// Towards whom.
    pub to: FlowEnd,
    /// IP protocol: `TCP`, `UDP`, `SCTP` or `ICMP`.
    pub protocol: String,
    /// Port at the destination; 0 for ICMP.
    pub port: u16,
    /// Address family: `ipv4` or `ipv6`; picks the pod's address.
    pub family: Family,
    /// Whether the flow goes to a service behind which `to` stands: a pod that reaches itself so is judged, by ClusterNetworkPolicies.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub service: bool,
    /// Whether the rules that were considered are wanted too, and what is to be expected of ends that this node does not judge: both cost a walk
    /// over all objects.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole: bool,
}

/// An end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowEnd {
    /// `namespace/name`.
    Pod(String),
    /// An address.
    Address(IpAddr),
    /// The node's own processes.
    Node,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// What the compiled policies say of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// The opener's side.
    pub egress: SideVerdict,
    /// The responder's side.
    pub ingress: SideVerdict,
    /// Why this node does not judge the opener, where that is a pod that it does not judge. What is said of the side is then what its own node will
    /// say if it knows the same objects; [`VerdictName::None`] where nobody asked for the whole answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_unjudged: Option<Unjudged>,
    /// The same of the responder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_unjudged: Option<Unjudged>,
    /// What the opener's side would say, were the policies in audit mode enforced, where one of these selects it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_audit: Option<SideVerdict>,
    /// The same of the responder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_audit: Option<SideVerdict>,
    /// What becomes of the flow whatever policies say; then neither side is judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<Settled>,
    /// Where the flow goes to a service, or to a host port: what stands behind it. Policy is asked about each backend; the sides here say nothing then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<Behind>,
    /// The rules that the opener's side considered, in the order in which they are asked.
    #[serde(default)]
    pub egress_rules: Vec<RuleSaid>,
    /// The rules that the responder's side considered.
    #[serde(default)]
    pub ingress_rules: Vec<RuleSaid>,
}

impl Explained {
    /// What both sides say, without the rules that they considered.
    pub const fn new(egress: SideVerdict, ingress: SideVerdict) -> Self {
        Self {
            egress,
            ingress,
            egress_unjudged: None,
            ingress_unjudged: None,
            egress_audit: None,
            ingress_audit: None,
            settled: None,
            behind: None,
            egress_rules: Vec::new(),
            ingress_rules: Vec::new(),
        }
    }

    /// Whether the flow passes; `None` where no side that is known refuses it, and what the other says was not asked for; and where it passes to some
    /// backends of a service and not to others.
    pub fn passes(&self) -> Option<bool> {
        if let Some(behind) = &self.behind {
            let mut each = behind.backends.iter().map(|backend| backend.explained.passes());
            // Where there is none, nothing passes.
            let first = each.next().unwrap_or(Some(false));
            return first.filter(|_| behind.left_out == 0 && each.all(|other| other == first));
        }
        let allowed = self.settled != Some(Settled::Link) && self.egress.passes() && self.ingress.passes();
        let sides = [(&self.egress, &self.egress_unjudged), (&self.ingress, &self.ingress_unjudged)];
        let known = sides.into_iter().all(|(said, unjudged)| unjudged.is_none() || said.verdict != VerdictName::None);
        (known || !allowed).then_some(allowed)
    }
}

/// What stands behind a service, or behind a pod's host port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Behind {
    /// Whose it is: `service NAMESPACE/NAME`, or `pod NAMESPACE/NAME`.
    pub of: String,
    /// The backends that new flows of this node go to; where there is none, they are refused or dropped.
    pub backends: Vec<BackendExplained>,
    /// How many more there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: usize,
}

// As serde wants it.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// What the policies say of a flow to one backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendExplained {
    /// The backend: a pod, or an address of none.
    pub to: FlowEnd,
    /// Its port.
    pub port: u16,
    /// What is said.
    #[serde(flatten)]
    pub explained: Explained,
}

/// Why the agent that was asked does not judge an end that is a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unjudged {
    /// It is on the node of this name, whose agent knows.
    OtherNode(String),
    /// It is on the agent's own node and not wired yet.
    NotWired,
    /// No node is known to have its address.
    UnknownNode,
}

/// What becomes of a flow that no policy is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Settled {
    /// It passes: a pod always reaches itself at its own address.
    Itself,
    /// It passes: the node always reaches its own pods.
    OwnNode,
    /// It is dropped: no pod reaches the node's end of its link, which no policy can name.
    Link,
}

/// A rule that one side considered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleSaid {
    /// `Admin` or `Baseline` and the priority, or `Workload`.
    pub tier: String,
    /// Kind and name of its policy.
    pub policy: String,
    /// Its index in the policy's list.
    pub rule: usize,
    /// Its name, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it does with a flow that matches.
    pub action: RuleAction,
    /// Whether its policy is in audit mode. Then nothing came of it, and `fate` is what would have, were all such policies enforced.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub audit: bool,
    /// What came of it.
    pub fate: RuleFate,
    /// The identities that it names and that there are none of: by them a rule that allows matches nobody, and one that denies everybody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_identities: Vec<String>,
}

/// What a rule does with a flow that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleAction {
    /// The flow passes.
    Allow,
    /// The flow is refused.
    Deny,
    /// The next tier decides.
    Pass,
}

/// What came of a rule that was considered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleFate {
    /// It matches and decides.
    Decides,
    /// It matches, and leaves the flow to the next tier.
    Passes,
    /// The other end is none of its peers.
    PeerDiffers,
    /// Protocol and port do not match.
    PortDiffers,
    /// Something before it decided, or passed.
    NotAsked,
}

/// What one side says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SideVerdict {
    /// `allow`, `deny`, `default-deny`, or `none` where this side is not judged.
    pub verdict: VerdictName,
    /// The rule, or the policies that isolate; empty for `none`.
    pub reason: String,
}

impl SideVerdict {
    /// Whether this side does not refuse the flow.
    pub const fn passes(&self) -> bool {
        matches!(self.verdict, VerdictName::Allow | VerdictName::None)
    }
}

/// The verdict of one side, as users read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerdictName {
    /// The flow passes.
    Allow,
    /// A rule denies it.
    Deny,
    /// No rule allows it and policies isolate the subject.
    DefaultDeny,
    /// Not judged on this side.
    None,
    /// The rows are missing: an error, closed.
    Error,
}
