//! Scenarios of the truth tables: what is done, and what the table should be then.

use crate::claim::Claims;
use crate::table::{FAMILIES, Found, Name, Question, differences, print};
use crate::world::{World, base_labels};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

/// How long a change may take to be enforced.
const SOON: Duration = Duration::from_secs(10);
/// How long a pod waits for an answer.
const PATIENCE: Duration = Duration::from_millis(600);
/// And one that should get it, where the machine is busy.
const LONG_PATIENCE: Duration = Duration::from_secs(4);

/// Steps, from a table in which everybody reaches everybody.
#[derive(Clone, Debug, Default)]
pub struct Scenario {
    steps: Vec<Step>,
    doing: Vec<Action>,
}

#[derive(Clone, Debug)]
struct Step {
    actions: Vec<Action>,
    claims: String,
}

#[derive(Clone, Debug)]
enum Action {
    Apply(String),
    Delete { kind: &'static str, namespace: Option<&'static str>, name: String },
    LabelPod(Name, &'static str),
    LabelNamespace(&'static str, &'static str),
    Recreate(Name, (&'static str, &'static str)),
}

impl Scenario {
    /// Makes or changes the NetworkPolicy `NAMESPACE/NAME`; its `spec` is YAML. In any text, `$ns(x)` is the name of the
    /// namespace in the cluster, `$4(x/a)` and `$6(x/a)` are the pod's addresses; of a family that pods do not have, one that nobody has.
    pub fn policy(self, place: &'static str, spec: &str) -> Self {
        let (namespace, name) = split(place);
        self.objects(&format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: $ns({namespace})}}, spec: {spec}}}"
        ))
    }

    /// Makes or changes the IdentityPolicy `NAMESPACE/NAME`.
    pub fn identity_policy(self, place: &'static str, spec: &str) -> Self {
        let (namespace, name) = split(place);
        self.objects(&format!(
            "{{apiVersion: palisade.dev/v1alpha1, kind: IdentityPolicy, metadata: {{name: {name}, namespace: $ns({namespace})}}, spec: {spec}}}"
        ))
    }

    /// Makes or changes an Identity. Its name in the cluster is unlike that of any other run: `$ns(x)-NAME`.
    pub fn identity(self, name: &str, spec: &str) -> Self {
        self.objects(&format!("{{apiVersion: palisade.dev/v1alpha1, kind: Identity, metadata: {{name: $ns(x)-{name}}}, spec: {spec}}}"))
    }

    /// Makes or changes a ClusterNetworkPolicy, named as an Identity is. Its subjects have to be of these namespaces alone, by their names.
    pub fn cluster_policy(self, name: &str, spec: &str) -> Self {
        let version = "policy.networking.k8s.io/v1alpha2";
        self.objects(&format!("{{apiVersion: {version}, kind: ClusterNetworkPolicy, metadata: {{name: $ns(x)-{name}}}, spec: {spec}}}"))
    }

    /// Makes or changes an object.
    pub fn objects(mut self, yaml: &str) -> Self {
        self.doing.push(Action::Apply(yaml.to_owned()));
        self
    }

    /// Deletes the NetworkPolicy `NAMESPACE/NAME`.
    pub fn delete_policy(mut self, place: &'static str) -> Self {
        let (namespace, name) = split(place);
        self.doing.push(Action::Delete { kind: "networkpolicy", namespace: Some(namespace), name: name.to_owned() });
        self
    }

    /// Deletes an object that is in no namespace, made as `name`.
    pub fn delete(mut self, kind: &'static str, name: &str) -> Self {
        self.doing.push(Action::Delete { kind, namespace: None, name: format!("$ns(x)-{name}") });
        self
    }

    /// Sets (`KEY=VALUE`) or takes away (`KEY-`) a label of a pod.
    ///
    /// # Panics
    /// If there is no such pod.
    pub fn label_pod(mut self, pod: &str, label: &'static str) -> Self {
        self.doing.push(Action::LabelPod(Name::parse(pod).expect("a pod of the tables"), label));
        self
    }

    /// Sets or takes away a label of a namespace.
    pub fn label_namespace(mut self, namespace: &'static str, label: &'static str) -> Self {
        self.doing.push(Action::LabelNamespace(namespace, label));
        self
    }

    /// Deletes the pod and makes another one of the name and the addresses, with this one label.
    ///
    /// # Panics
    /// If there is no such pod.
    pub fn recreate(mut self, pod: &str, label: (&'static str, &'static str)) -> Self {
        self.doing.push(Action::Recreate(Name::parse(pod).expect("a pod of the tables"), label));
        self
    }

    /// What the table should be after all that was said since the last table; see [`Claims`].
    pub fn gives(mut self, claims: &str) -> Self {
        self.steps.push(Step { actions: std::mem::take(&mut self.doing), claims: claims.to_owned() });
        self
    }

    /// Why the scenario would show nothing: a claim that cannot be read, a step after which the table should be what it
    /// was before, so that a change that never arrives would pass, or something done whose table nobody looks at.
    pub fn check(&self) -> Result<()> {
        self.shows(&FAMILIES)
    }

    /// As [`Scenario::check`], where pods have addresses of these families alone.
    pub fn shows(&self, families: &[bool]) -> Result<()> {
        ensure!(!self.steps.is_empty() && self.doing.is_empty(), "it does not end with a table");
        let mut before = Claims::default();
        for (index, step) in self.steps.iter().enumerate() {
            let claims = Claims::parse(&step.claims)?;
            ensure!(
                Question::of(families).any(|question| claims.reached(question) != before.reached(question)),
                "step {}: the table is what it was before",
                index + 1
            );
            before = claims;
        }
        Ok(())
    }

    /// Runs the steps and takes back all that they did. The error has the tables that differ.
    pub fn run(&self, world: &mut World) -> Result<()> {
        self.check()?;
        settle(world, &Claims::default()).context("before the first step")?;
        let mut applied = Vec::new();
        let outcome = self.steps.iter().enumerate().try_for_each(|(index, step)| {
            for action in &step.actions {
                action.run(world, &mut applied)?;
            }
            settle(world, &Claims::parse(&step.claims)?).with_context(|| format!("step {}", index + 1))
        });
        let restored = self.restore(world, &applied);
        outcome.and(restored)
    }

    fn restore(&self, world: &mut World, applied: &[Value]) -> Result<()> {
        if !applied.is_empty() {
            world.cluster().delete(applied)?;
        }
        let mut labels = false;
        for action in self.steps.iter().flat_map(|step| &step.actions) {
            match action {
                Action::LabelNamespace(namespace, label) => {
                    let key = label.split('=').next().unwrap_or_default().trim_end_matches('-');
                    world.label_namespace(namespace, &format!("{key}-"))?;
                }
                Action::LabelPod(..) | Action::Recreate(..) => labels = true,
                Action::Apply(_) | Action::Delete { .. } => {}
            }
        }
        if labels { world.restore_labels() } else { Ok(()) }
    }
}

impl Action {
    fn run(&self, world: &mut World, applied: &mut Vec<Value>) -> Result<()> {
        match self {
            Self::Apply(yaml) => {
                let text = fill(world, yaml)?;
                // Else the namespace `y` would be `true`, as YAML 1.1 has it.
                let options = serde_saphyr::options! { strict_booleans: true };
                let object: Value = serde_saphyr::from_str_with_options(&text, options).with_context(|| format!("reading {text}"))?;
                applied.push(object.clone());
                world.cluster().apply(&[object])
            }
            Self::Delete { kind, namespace, name } => {
                let name = fill(world, name)?;
                let mut arguments = vec!["delete", *kind, &name];
                if let Some(namespace) = namespace {
                    arguments.extend(["--namespace", world.namespace(namespace)?]);
                }
                world.cluster().run(&arguments).map(drop)
            }
            Self::LabelPod(pod, label) => world.label_pod(*pod, label),
            Self::LabelNamespace(namespace, label) => world.label_namespace(namespace, label),
            Self::Recreate(pod, (key, value)) => {
                let mut labels = base_labels(*pod);
                labels.insert((*key).to_owned(), (*value).to_owned());
                world.recreate(*pod, &labels)
            }
        }
    }
}

/// Waits until the table is as claimed, and asks once more: it has to stay so.
fn settle(world: &mut World, claims: &Claims) -> Result<()> {
    let families = world.families().to_vec();
    let deadline = Instant::now() + SOON;
    let expected = |question: Question| claims.reached(question);
    loop {
        // A question that is asked in time counts, however long it takes.
        let begun = Instant::now();
        let observed = ask(world, expected)?;
        if differences(&families, expected, &observed).is_empty() {
            break;
        }
        if begun > deadline {
            bail!("the table differs after {} s\n{}", SOON.as_secs(), print(&families, expected, &observed));
        }
    }
    let observed = ask(world, expected)?;
    if !differences(&families, expected, &observed).is_empty() {
        bail!("the table was right and did not stay so\n{}", print(&families, expected, &observed));
    }
    Ok(())
}

/// Asks for the whole table. Silence where an answer should be may be a machine that is busy, so these are asked again,
/// with more patience; an answer where silence should be is none.
fn ask(world: &mut World, expected: impl Fn(Question) -> bool) -> Result<BTreeMap<Question, Found>> {
    let families = world.families().to_vec();
    let mut observed = world.ask(Question::of(&families), PATIENCE)?;
    let (shut, open): (Vec<Question>, Vec<Question>) =
        differences(&families, &expected, &observed).into_iter().partition(|question| expected(*question));
    if open.is_empty() {
        observed.extend(world.ask(shut.into_iter(), LONG_PATIENCE)?);
    }
    Ok(observed)
}

/// Puts names and addresses in the place of `$ns(x)`, `$4(x/a)`, `$6(x/a)`.
fn fill(world: &World, text: &str) -> Result<String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        let (what, after) = after.split_once('(').context("`$` without `(`")?;
        let (name, after) = after.split_once(')').context("`$` without `)`")?;
        let pod = || Name::parse(name).with_context(|| format!("there is no pod {name}"));
        filled += before;
        filled += &match what {
            "ns" => world.namespace(name)?.to_owned(),
            "4" => address(world, pod()?, false)?.to_string(),
            "6" => address(world, pod()?, true)?.to_string(),
            _ => bail!("`${what}` is not known"),
        };
        rest = after;
    }
    Ok(filled + rest)
}

/// A pod's address of a family; where pods have none of that, one that nobody has: what is said of it is said of nobody, as the claims say.
fn address(world: &World, name: Name, ipv6: bool) -> Result<IpAddr> {
    if world.families().contains(&ipv6) {
        return world.address(name, ipv6);
    }
    // Of the ranges for documentation.
    Ok(if ipv6 { Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into() } else { Ipv4Addr::new(192, 0, 2, 1).into() })
}

fn split(place: &'static str) -> (&'static str, &'static str) {
    place.split_once('/').unwrap_or(("", place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_that_would_show_nothing_is_found() {
        let closed = |scenario: Scenario| scenario.policy("x/p", "{podSelector: {}}");
        assert!(closed(Scenario::default()).gives("to x/* only from nobody").check().is_ok());
        assert!(closed(Scenario::default()).gives("").check().is_err(), "the table stays open");
        assert!(closed(Scenario::default()).gives("to x/* only from x/d").check().is_err(), "there is no such pod");
        assert!(closed(closed(Scenario::default()).gives("to x/* only from nobody")).check().is_err(), "nobody looks");
        let again = closed(closed(Scenario::default()).gives("to x/* only from nobody")).gives("to x/* only from nobody");
        assert!(again.check().is_err(), "the second step changes nothing");
    }

    #[test]
    fn a_scenario_about_one_family_shows_nothing_with_the_other() {
        let scenario = |claims: &str| Scenario::default().policy("x/p", "{podSelector: {}}").gives(claims);
        let never = scenario("never from y/* to x/* by v6");
        assert!(never.check().is_ok() && never.shows(&[true]).is_ok() && never.shows(&[false]).is_err());
        assert!(scenario("to x/* only from y/* by v6").shows(&[false]).is_ok(), "nobody is let in by the other one");
    }
}
