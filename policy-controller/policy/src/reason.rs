//! Why a verdict is what it is.

use crate::model::{PolicyName, Tier};
use palisade_datapath_core::abi::Direction;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a verdict is owed to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// A rule of a policy.
    Rule {
        /// The policy.
        policy: PolicyName,
        /// When the policy is asked.
        tier: Tier,
        /// Index of the rule in its list, from 0.
        rule: usize,
        /// The rule's name, where it has one.
        name: Option<String>,
        /// Which of the policy's lists.
        #[serde(with = "direction")]
        direction: Direction,
    },
    /// Policies isolate the subject and none of their rules allows the flow.
    Default {
        /// All the policies that isolate the subject in this direction, in order of their names.
        policies: Vec<PolicyName>,
        /// Which direction.
        #[serde(with = "direction")]
        direction: Direction,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule { policy, tier, rule, name, direction } => {
                write!(f, "{policy}")?;
                match tier {
                    Tier::Admin(priority) => write!(f, " (Admin tier, priority {priority})")?,
                    Tier::Baseline(priority) => write!(f, " (Baseline tier, priority {priority})")?,
                    Tier::Workload => {}
                }
                write!(f, " {} rule {rule}", direction_name(*direction))?;
                name.as_ref().map_or(Ok(()), |name| write!(f, " {name:?}"))
            }
            Self::Default { policies, direction } => {
                write!(f, "default deny of {} by ", direction_name(*direction))?;
                for (index, policy) in policies.iter().enumerate() {
                    write!(f, "{}{policy}", if index == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
        }
    }
}

/// `ingress` or `egress`.
pub const fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress | Direction::SelfIngress => "ingress",
        Direction::Egress | Direction::SelfEgress => "egress",
    }
}

/// The kernel-shared enum as the word that users read.
mod direction {
    use super::{Direction, direction_name};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(direction: &Direction, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(direction_name(*direction))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Direction, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "ingress" => Ok(Direction::Ingress),
            "egress" => Ok(Direction::Egress),
            other => Err(D::Error::unknown_variant(other, &["ingress", "egress"])),
        }
    }
}
