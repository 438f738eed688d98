//! `last-good.json`: the versions that are in force of policies whose present version does not fit, or cannot be used, for the next agent.

use super::fit::Held;
use crate::record::replace_file;
use palisade_k8s::index::{self, Digest};
use palisade_policy::model::{Policy, PolicyName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Of the file; one of another version is not read.
const VERSION: u32 = 2;

/// The last good versions that an earlier agent has left, and the file that they are kept in.
#[derive(Debug)]
pub(super) struct LastGood {
    path: PathBuf,
    /// What an earlier agent has left; nothing once this one knows by itself what was in force.
    found: Policies,
    /// What the file says, where that is known.
    saved: Option<Policies>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    /// Of `policies`, as they are written.
    digest: Digest,
    policies: Policies,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Policies {
    without_room: Vec<Entry>,
    unusable: Vec<Unusable>,
}

/// Of a policy whose present version cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Unusable {
    policy: PolicyName,
    uid: Option<String>,
    /// Of the version that cannot be used.
    refused: Digest,
    last_good: Policy,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    policy: PolicyName,
    /// Of the version that does not fit.
    refused: Digest,
    last_good: Policy,
}

/// Why the file is of no use.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("it is of version {0}, not {VERSION}")]
    Version(u32),
    #[error("its content does not have the digest that it states: it was damaged or altered")]
    Altered,
    #[error(transparent)]
    Malformed(#[from] serde_json::Error),
}

impl LastGood {
    /// What a run directory holds of it, not read yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, found: Policies::default(), saved: None }
    }

    /// Reads the file. One that cannot be used counts as none, with a warning: policies that do not fit allow nothing then.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn load(&mut self) -> io::Result<()> {
        self.found = Policies::default();
        let text = match std::fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.saved = Some(Policies::default());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        match parse(&text) {
            Ok(entries) => {
                self.found.clone_from(&entries);
                self.saved = Some(entries);
            }
            Err(error) => {
                self.saved = None;
                tracing::warn!(
                    path = %self.path.display(),
                    %error,
                    "the last good versions of policies that do not fit, or that cannot be used, cannot be read: these policies allow nothing, and what only such a version isolates is not isolated"
                );
            }
        }
        Ok(())
    }

    /// The last good version that an earlier agent has left of a policy. None where the policy was changed since: then nobody knows whether
    /// it is the same object still.
    pub fn of(&self, name: &PolicyName, policy: &Policy) -> Option<&Policy> {
        let entry = self.found.without_room.iter().find(|entry| entry.policy == *name)?;
        if digest(policy).is_some_and(|digest| digest == entry.refused) {
            return Some(&entry.last_good);
        }
        tracing::warn!(policy = %name, "its last good version is not used: the policy was changed while no agent ran");
        None
    }

    /// The last good versions that an earlier agent has left of policies that could not be used.
    pub fn unusable(&self) -> BTreeMap<PolicyName, index::LastGood> {
        let unusable = self.found.unusable.iter().cloned();
        let known = |Unusable { policy, uid, refused, last_good }| (policy, index::LastGood { uid, refused, policy: Arc::new(last_good) });
        unusable.map(known).collect()
    }

    /// Writes down what is held back, and what is refused, from now on; what an earlier agent has left is of no use any more.
    ///
    /// # Errors
    /// The file cannot be written; it is tried again at the next call.
    pub fn save(&mut self, held: &BTreeMap<PolicyName, Held>, refused: &BTreeMap<PolicyName, index::LastGood>) -> io::Result<()> {
        self.found = Policies::default();
        let entry = |(name, held): (&PolicyName, &Held)| {
            Some(Entry { policy: name.clone(), refused: digest(&held.refused)?, last_good: held.instead.clone() })
        };
        let unusable = |(policy, known): (&PolicyName, &index::LastGood)| Unusable {
            policy: policy.clone(),
            uid: known.uid.clone(),
            refused: known.refused,
            last_good: Policy::clone(&known.policy),
        };
        let entries = Policies {
            without_room: held.iter().filter(|(_, held)| held.last_good).filter_map(entry).collect(),
            unusable: refused.iter().map(unusable).collect(),
        };
        if self.saved.as_ref() == Some(&entries) {
            return Ok(());
        }
        self.saved = None;
        if entries == Policies::default() {
            match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        } else {
            let file = File { version: VERSION, digest: Digest::of(&serde_json::to_vec(&entries)?), policies: entries.clone() };
            replace_file(&self.path, &serde_json::to_vec(&file)?)?;
        }
        self.saved = Some(entries);
        Ok(())
    }
}

fn parse(text: &[u8]) -> Result<Policies, FileError> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let Head { version } = serde_json::from_slice(text)?;
    if version != VERSION {
        return Err(FileError::Version(version));
    }
    let File { digest, policies, .. } = serde_json::from_slice(text)?;
    if Digest::of(&serde_json::to_vec(&policies)?) == digest { Ok(policies) } else { Err(FileError::Altered) }
}

/// `None` for what has no JSON, which no policy is.
fn digest(policy: &Policy) -> Option<Digest> {
    serde_json::to_vec(policy).ok().map(|text| Digest::of(&text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_policy::model::{Mode, ObjectName, PodSet, PolicyKind, Rule, Tier};
    use std::sync::Arc;

    fn name() -> PolicyName {
        PolicyName::new(PolicyKind::NetworkPolicy, ObjectName::new("shop", "web"))
    }

    /// A policy with that many rules.
    fn policy(rules: usize) -> Policy {
        Policy {
            tier: Tier::Workload,
            mode: Mode::Enforce,
            subject: PodSet::default(),
            ingress: Some(vec![Rule::deny_all(); rules]),
            egress: None,
        }
    }

    fn held(last_good: bool) -> BTreeMap<PolicyName, Held> {
        let held =
            Held { refused: Arc::new(policy(3)), instead: policy(1), beside: None, last_good, reason: String::new(), too_many: None };
        BTreeMap::from([(name(), held)])
    }

    fn loaded(path: &std::path::Path) -> LastGood {
        let mut file = LastGood::new(path.to_owned());
        file.load().unwrap();
        file
    }

    #[test]
    fn the_next_agent_finds_the_last_good_version_of_the_policy_that_was_held_back_and_of_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("last-good.json");
        loaded(&path).save(&held(true), &BTreeMap::new()).unwrap();
        let next = loaded(&path);
        assert_eq!(next.of(&name(), &policy(3)), Some(&policy(1)));
        assert_eq!(next.of(&name(), &policy(2)), None, "another version, maybe of another object of the name");
        let other = PolicyName::new(PolicyKind::NetworkPolicy, ObjectName::new("shop", "other"));
        assert_eq!(next.of(&other, &policy(3)), None);
    }

    #[test]
    fn the_next_agent_finds_the_last_good_version_of_a_policy_that_could_not_be_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("last-good.json");
        let refused = BTreeMap::from([(
            name(),
            index::LastGood { uid: Some("7".to_owned()), refused: Digest::of(b"why"), policy: Arc::new(policy(1)) },
        )]);
        loaded(&path).save(&BTreeMap::new(), &refused).unwrap();
        let mut next = loaded(&path);
        assert_eq!(next.unusable(), refused);
        assert_eq!(next.of(&name(), &policy(3)), None, "it is not for want of room");
        next.save(&BTreeMap::new(), &BTreeMap::new()).unwrap();
        assert!(!path.exists() && next.unusable().is_empty());
    }

    #[test]
    fn the_file_goes_when_nothing_is_held_back_or_no_version_was_good() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("last-good.json");
        for nothing in [BTreeMap::new(), held(false)] {
            let mut file = loaded(&path);
            file.save(&held(true), &BTreeMap::new()).unwrap();
            assert!(path.exists());
            assert_eq!(file.of(&name(), &policy(3)), None, "this agent knows by itself from here on");
            file.save(&nothing, &BTreeMap::new()).unwrap();
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_file_that_was_damaged_or_is_of_another_version_is_ignored_and_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("last-good.json");
        loaded(&path).save(&held(true), &BTreeMap::new()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let altered = [
            text.replace("\"version\":2", "\"version\":1"),
            text.replace("\"mode\":\"enforce\"", "\"mode\":\"audit\""),
            text.replace("\"egress\":null", "\"egress\":null,\"more\":1"),
            text[..text.len() / 2].to_owned(),
            String::new(),
        ];
        for altered in altered {
            assert_ne!(altered, text);
            std::fs::write(&path, &altered).unwrap();
            let mut file = loaded(&path);
            assert_eq!(file.of(&name(), &policy(3)), None, "{altered}");
            file.save(&held(true), &BTreeMap::new()).unwrap();
            assert_eq!(loaded(&path).of(&name(), &policy(3)), Some(&policy(1)));
        }
        std::fs::write(&path, "nonsense").unwrap();
        loaded(&path).save(&BTreeMap::new(), &BTreeMap::new()).unwrap();
        assert!(!path.exists());
    }
}
