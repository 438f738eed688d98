//! What the status of an object says, who is told of a change, and that it comes to rest.

use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use palisade_k8s::api::{self, Identity, IdentityPolicy};
use palisade_k8s::index::{Digests, Index, Kind};
use palisade_k8s::report::{Report, Reports};
use palisade_k8s::status::{Condition as Said, Counts, Reason};
use palisade_k8s::sum::{Key, News, Snapshot, Sum, Told, Write};
use palisade_policy::model::{Node, ObjectName, PolicyKind, PolicyName};
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;

/// How long nodes have time to come to a version before anybody is told that they have not.
const SETTLE: i64 = 5;

pub fn identity_policy(name: &str, generation: i64, spec: &serde_json::Value) -> IdentityPolicy {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "generation": generation},
        "spec": spec,
    }))
    .unwrap()
}

pub fn good(name: &str, generation: i64) -> IdentityPolicy {
    identity_policy(name, generation, &json!({"subject": {}, "ingress": []}))
}

pub fn network_policy(name: &str, generation: i64) -> NetworkPolicy {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "generation": generation},
        "spec": {"podSelector": {}},
    }))
    .unwrap()
}

pub fn key(kind: Kind, name: &str) -> Key {
    (kind, ObjectName::new("shop", name))
}

/// A cluster as the agent that sums up sees it.
pub struct Cluster {
    pub index: Index,
    pub reports: Reports,
    pub sum: Sum,
    pub counts: BTreeMap<Key, Counts>,
    pub now: i64,
    pub nodes: Vec<String>,
}

impl Cluster {
    pub fn new(nodes: usize) -> Self {
        let mut cluster = Self {
            index: Index::new(),
            reports: Reports::default(),
            sum: Sum::default(),
            counts: BTreeMap::new(),
            now: 1000,
            nodes: (0..nodes).map(|node| format!("n{node:04}")).collect(),
        };
        cluster.index.set_nodes(cluster.nodes.iter().map(|node| (node.clone(), Node::default())).collect());
        cluster
    }

    pub fn digests(&self) -> Digests {
        self.index.versions().digests()
    }

    /// A node tells that it enforces what is known now.
    pub fn report(&mut self, node: usize) {
        let digests = self.digests();
        self.report_of(node, Report::new(digests, [], None));
    }

    pub fn report_of(&mut self, node: usize, report: Report) {
        self.reports.take(&self.nodes[node], report, self.now + 300);
    }

    pub fn compute(&mut self) {
        self.reports.compare(self.index.versions(), &self.nodes, self.now);
        self.sum.compute(&Snapshot::of(&self.index), &self.reports, &self.counts, self.now);
    }

    /// Writes what is due in one second, and returns it.
    pub fn tick(&mut self) -> Vec<Write> {
        let writes = self.sum.due(self.now, SETTLE, 20, 1);
        for write in &writes {
            self.sum.done(write, self.now);
        }
        self.now += 1;
        writes
    }

    pub fn settle(&mut self) -> Vec<Write> {
        self.compute();
        (0..2 * SETTLE).flat_map(|_| self.tick()).collect()
    }
}

fn one(writes: &[Write]) -> [(bool, Reason, &str); 2] {
    let [Write::Status { standing, .. }] = writes else { panic!("one status: {writes:?}") };
    standing.conditions.each_ref().map(|Said { holds, reason, message, .. }| (*holds, *reason, message.as_str()))
}

#[test]
fn a_policy_is_enforced_once_every_node_has_come_to_its_generation() {
    let mut cluster = Cluster::new(3);
    cluster.index.upsert(&good("p", 1));
    cluster.counts.insert(key(Kind::IdentityPolicy, "p"), Counts { pods: 12, addresses: 0 });
    (0..3).for_each(|node| cluster.report(node));
    let writes = cluster.settle();
    assert_eq!(
        one(&writes),
        [
            (true, Reason::Accepted, "it can be used as it is written"),
            (true, Reason::AllNodes, "3 of 3 nodes enforce generation 1; 12 pods selected")
        ]
    );
    cluster.index.upsert(&good("p", 4));
    cluster.report(1);
    let writes = cluster.settle();
    assert_eq!(one(&writes)[1], (false, Reason::Pending, "1 of 3 nodes enforces generation 4; 12 pods selected; not yet: n0000, n0002"));
    (0..3).for_each(|node| cluster.report(node));
    let writes = cluster.settle();
    assert_eq!(one(&writes)[1], (true, Reason::AllNodes, "3 of 3 nodes enforce generation 4; 12 pods selected"));
    let Write::Status { key, since, standing, .. } = &writes[0] else { unreachable!() };
    let status = api::status(key.0, standing, *since);
    assert_eq!((&status["podsSelected"], &status["nodesEnforcing"], &status["nodes"]), (&json!(12), &json!(3), &json!(3)));
    assert_eq!(status["conditions"][0]["observedGeneration"], json!(4));
    assert_eq!(status["conditions"][0]["lastTransitionTime"], json!("1970-01-01T00:16:40Z"), "it was accepted all the time");
    assert_eq!(status["conditions"][1]["lastTransitionTime"], json!("1970-01-01T00:17:00Z"));
}

#[test]
fn a_change_that_all_nodes_take_at_once_is_one_write() {
    let mut cluster = Cluster::new(3);
    cluster.index.upsert(&good("p", 1));
    cluster.compute();
    assert!(cluster.tick().is_empty(), "that nodes are on the way is no news yet");
    (0..3).for_each(|node| cluster.report(node));
    assert_eq!(one(&cluster.settle())[1].1, Reason::AllNodes);
}

#[test]
fn what_cannot_be_used_is_not_accepted_and_the_field_is_named_at_once() {
    let mut cluster = Cluster::new(2);
    cluster.index.upsert(&identity_policy(
        "p",
        1,
        &json!({"subject": {}, "ingress": [{"action": "Allow", "ports": [{"port": 9, "endPort": 8}]}]}),
    ));
    cluster.compute();
    let writes = cluster.tick();
    let [accepted, enforced] = one(&writes[1..]);
    assert_eq!((accepted.0, accepted.1), (false, Reason::InvalidField));
    assert!(accepted.2.starts_with("spec.ingress[0].ports[0].endPort: ") && accepted.2.contains("isolated"), "{}", accepted.2);
    assert_eq!((enforced.0, enforced.1), (false, Reason::NotAccepted));
    let Write::Event { news: News::NotAccepted, message, .. } = &writes[0] else { panic!("{writes:?}") };
    assert_eq!(message, accepted.2);
}

#[test]
fn a_policy_that_does_not_fit_on_a_node_names_the_node_and_the_map() {
    let mut cluster = Cluster::new(2);
    cluster.index.upsert(&good("p", 1));
    cluster.report(0);
    let held = BTreeMap::from([(
        PolicyName::new(PolicyKind::IdentityPolicy, ObjectName::new("shop", "p")),
        "POLICY has room for 8 rows".to_owned(),
    )]);
    cluster.report_of(1, Report::new(cluster.digests(), &held, None));
    let writes = cluster.settle();
    let (event, status) = writes.split_first().unwrap();
    assert!(matches!(event, Write::Event { news: News::NotEnforced, .. }), "{event:?}");
    let enforced = one(status)[1];
    assert_eq!(enforced.1, Reason::DoesNotFit);
    assert_eq!(enforced.2, "1 of 2 nodes enforces generation 1; 0 pods selected; n0001: POLICY has room for 8 rows");
    cluster.index.upsert(&good("p", 2));
    cluster.report(0);
    cluster.compute();
    let writes = cluster.settle();
    assert_eq!(one(&writes)[1].1, Reason::Pending, "what a node said of an older version says nothing of this one");
}

#[test]
fn a_policy_in_audit_mode_is_not_enforced_and_says_so() {
    let mut cluster = Cluster::new(1);
    cluster.index.upsert(&identity_policy("p", 1, &json!({"subject": {}, "mode": "Audit", "ingress": []})));
    cluster.report(0);
    let writes = cluster.settle();
    assert_eq!((one(&writes)[0].0, one(&writes)[1].0, one(&writes)[1].1), (true, false, Reason::Audit));
}

#[test]
fn an_identity_says_what_it_matches_and_whether_all_nodes_know_it() {
    let mut cluster = Cluster::new(1);
    let identity: Identity =
        serde_json::from_value(json!({"metadata": {"name": "db", "uid": "u", "generation": 1}, "spec": {"entities": ["World"]}})).unwrap();
    cluster.index.upsert(&identity);
    cluster.counts.insert((Kind::Identity, ObjectName::cluster("db")), Counts { pods: 1, addresses: 2 });
    cluster.report(0);
    let writes = cluster.settle();
    assert_eq!(one(&writes)[1].2, "1 of 1 node enforces generation 1; 1 pod and 2 addresses matched");
    let Write::Status { standing, since, .. } = &writes[0] else { unreachable!() };
    assert_eq!(api::status(Kind::Identity, standing, *since)["addresses"], json!(2));
}

#[test]
fn it_comes_to_rest_and_the_status_that_was_written_stirs_nothing() {
    let mut cluster = Cluster::new(2);
    let mut object = good("p", 1);
    cluster.index.upsert(&object);
    (0..2).for_each(|node| cluster.report(node));
    assert_eq!(cluster.settle().len(), 1);
    let before = cluster.digests();
    // The watch brings the object back with its status, and a version of its own.
    object.metadata.resource_version = Some("99".to_owned());
    assert!(!cluster.index.upsert(&object), "no node has anything to compile or to report");
    assert_eq!(cluster.digests(), before);
    for _ in 0..10 {
        assert_eq!(cluster.settle(), []);
    }
    assert!(cluster.sum.is_settled());
}

/// What was written, as the next who sums up reads it.
fn read_back(writes: &[Write]) -> Vec<(Key, Told)> {
    let statuses = writes.iter().filter_map(|write| match write {
        Write::Status { key, uid, standing, since } => {
            let conditions: Vec<Condition> = serde_json::from_value(api::status(key.0, standing, *since)["conditions"].clone()).unwrap();
            Some((key.clone(), Told::read(uid.clone(), &conditions).expect("what was written can be read")))
        }
        Write::Event { .. } => None,
    });
    statuses.collect()
}

#[test]
fn another_that_takes_over_repeats_nothing_also_while_a_node_lags() {
    let mut cluster = Cluster::new(2);
    cluster.index.upsert(&good("p", 1));
    cluster.index.upsert(&network_policy("n", 1));
    cluster.index.upsert(&identity_policy("broken", 1, &json!({"subject": {}})));
    (0..2).for_each(|node| cluster.report(node));
    let writes = cluster.settle();
    assert_eq!(writes.len(), 3, "two statuses and the event about the broken one: {writes:?}");
    // The next one has not seen what came before: the state that this node reports is none that it knows.
    let mut before = Cluster::new(1);
    before.index.upsert(&good("other", 1));
    let mut next = Cluster { sum: Sum::new(read_back(&writes)), ..Cluster::new(2) };
    for object in [good("p", 1), identity_policy("broken", 1, &json!({"subject": {}}))] {
        next.index.upsert(&object);
    }
    next.index.upsert(&network_policy("n", 1));
    next.report(0);
    next.report_of(1, Report::new(before.digests(), [], None));
    next.compute();
    assert_eq!(next.sum.due(next.now + 100, SETTLE, 20, 0), [], "numbers alone may differ");
    next.report(1);
    next.compute();
    assert_eq!(next.settle(), []);
}

#[test]
fn nodes_that_come_and_go_change_numbers_alone_and_these_one_at_a_time() {
    let mut cluster = Cluster::new(3);
    for policy in 0..30 {
        cluster.index.upsert(&good(&format!("p{policy}"), 1));
    }
    (0..3).for_each(|node| cluster.report(node));
    cluster.settle();
    cluster.nodes.truncate(2);
    cluster.compute();
    assert_eq!((0..30).map(|_| cluster.tick().len()).collect::<Vec<_>>(), [1; 30]);
    assert!(cluster.sum.is_settled());
}

#[test]
fn a_node_that_does_not_report_any_more_is_named_only_where_it_lacks_something() {
    let mut cluster = Cluster::new(2);
    cluster.index.upsert(&good("before", 1));
    (0..2).for_each(|node| cluster.report(node));
    cluster.settle();
    cluster.now += 1000;
    assert!(cluster.reports.aged(cluster.now));
    cluster.index.upsert(&good("after", 1));
    cluster.report(0);
    let writes = cluster.settle();
    assert_eq!(one(&writes)[1].2, "1 of 2 nodes enforces generation 1; 0 pods selected; not yet: n0001 (does not report)");
    assert!(!cluster.reports.aged(cluster.now));
}

#[test]
fn a_write_that_always_fails_keeps_no_other_waiting_and_is_tried_less_and_less() {
    let mut cluster = Cluster::new(1);
    // As many as are written at once fail, and one comes after them.
    for policy in 0..=20 {
        cluster.index.upsert(&good(&format!("p{policy:02}"), 1));
    }
    cluster.report(0);
    cluster.compute();
    let (mut tries, mut written) = (Vec::new(), None);
    for second in 0..2000 {
        let now = cluster.now + second;
        for write in cluster.sum.due(now, SETTLE, 20, 1) {
            let Write::Status { key, .. } = &write else { panic!("{write:?}") };
            match key.1.name.as_str() {
                "p20" => {
                    cluster.sum.done(&write, now);
                    written = Some(second);
                }
                name => {
                    let count = cluster.sum.failed(&write, now);
                    if name == "p00" {
                        tries.push(second);
                        assert_eq!(count as usize, tries.len());
                    }
                }
            }
        }
        // What did not change keeps its time.
        if second % 100 == 0 {
            cluster.compute();
        }
    }
    assert_eq!(written, Some(1));
    let pauses: Vec<i64> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(pauses, [2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300, 300]);
    // Another version may fare better.
    cluster.now += 2000;
    cluster.index.upsert(&good("p00", 2));
    cluster.report(0);
    cluster.compute();
    let due = cluster.sum.due(cluster.now, SETTLE, 20, 1);
    assert!(due.iter().any(|write| matches!(write, Write::Status { key, .. } if key.1.name == "p00")), "{due:?}");
}

#[test]
fn of_statuses_and_events_neither_keeps_the_other_from_half_of_the_writes() {
    let mut cluster = Cluster::new(1);
    for policy in 0..30 {
        cluster.index.upsert(&identity_policy(&format!("broken{policy:02}"), 1, &json!({"subject": {}})));
    }
    cluster.compute();
    let due = cluster.sum.due(cluster.now, SETTLE, 20, 1);
    let events = due.iter().filter(|write| matches!(write, Write::Event { .. })).count();
    assert_eq!((events, due.len()), (10, 20));
    // As long as both wait.
    for write in due.iter().chain(&cluster.sum.due(cluster.now, SETTLE, 100, 0)) {
        if matches!(write, Write::Status { .. }) {
            cluster.sum.done(write, cluster.now);
        }
    }
    assert_eq!(cluster.sum.due(cluster.now, SETTLE, 20, 1).len(), 20, "events alone");
}

#[test]
fn a_status_that_somebody_else_took_away_is_written_again_and_one_that_stands_is_not() {
    let mut cluster = Cluster::new(1);
    cluster.index.upsert(&good("p", 1));
    cluster.report(0);
    let writes = cluster.settle();
    cluster.sum.reread(read_back(&writes));
    assert_eq!(cluster.settle(), []);
    cluster.sum.reread([]);
    assert_eq!(one(&cluster.settle())[1].1, Reason::AllNodes);
}

#[test]
fn where_not_all_nodes_were_heard_of_it_is_unknown_whether_a_policy_is_enforced_unless_one_that_was_lacks_it() {
    let mut cluster = Cluster::new(2);
    cluster.index.upsert(&good("p", 1));
    cluster.report(0);
    cluster.compute();
    cluster.reports.doubt("nobody asked n0001");
    let (_, name) = key(Kind::IdentityPolicy, "p");
    let enforced = |cluster: &Cluster| {
        let version = cluster.index.versions().of(Kind::IdentityPolicy, &name).unwrap();
        let key = (Kind::IdentityPolicy, name.clone());
        let [_, enforced] = Snapshot::of(&cluster.index).standing(&key, version, Counts::default(), &cluster.reports, false).conditions;
        (enforced.status(), enforced.reason, enforced.message)
    };
    let text = "1 of 1 node enforces generation 1; 0 pods selected; nobody asked n0001; no report from: n0001";
    assert_eq!(enforced(&cluster), ("Unknown", Reason::Unknown, text.to_owned()));
    cluster.index.upsert(&good("p", 2));
    cluster.compute();
    let (status, reason, _) = enforced(&cluster);
    assert_eq!((status, reason), ("False", Reason::Pending));
}

#[test]
fn of_a_policy_in_audit_mode_that_cannot_be_used_it_is_not_said_that_pods_are_isolated() {
    let mut cluster = Cluster::new(1);
    let rule = json!({"action": "Allow", "ports": [{"port": 9, "endPort": 8}]});
    cluster.index.upsert(&identity_policy("p", 1, &json!({"subject": {}, "mode": "Audit", "ingress": [rule]})));
    cluster.report(0);
    cluster.compute();
    let writes = cluster.tick();
    let [accepted, enforced] = one(&writes[1..]);
    assert_eq!((accepted.1, enforced.1), (Reason::InvalidField, Reason::NotAccepted));
    for message in [accepted.2, enforced.2] {
        assert!(message.contains("in audit mode") && !message.contains("isolated"), "{message}");
    }
}

#[test]
fn an_object_that_was_made_anew_under_a_name_gets_a_status_of_its_own() {
    let mut cluster = Cluster::new(1);
    cluster.index.upsert(&good("p", 1));
    cluster.report(0);
    cluster.settle();
    let mut anew = good("p", 1);
    anew.metadata.uid = Some("another".to_owned());
    cluster.index.upsert(&anew);
    cluster.report(0);
    let writes = cluster.settle();
    let [Write::Status { uid, .. }] = &writes[..] else { panic!("{writes:?}") };
    assert_eq!(uid.as_deref(), Some("another"));
}

#[test]
fn a_report_is_read_back_as_it_was_written_and_stays_small() {
    let held: BTreeMap<_, _> = (0..1000)
        .map(|number| {
            (PolicyName::new(PolicyKind::NetworkPolicy, ObjectName::new("n".repeat(63), format!("{number:0253}"))), "é".repeat(1000))
        })
        .collect();
    let report = Report::new(Cluster::new(1).digests(), &held, Some(&"x".repeat(1000)));
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    assert_eq!((report.exceptions.len(), report.more_exceptions), (400, 600));
    // What the annotations of an object may hold, less what else is in them.
    assert!(text.len() < 256 * 1024 - 4096, "{}", text.len());
    let plain = serde_json::to_string(&Report::new(Cluster::new(1).digests(), [], None)).unwrap();
    assert!(plain.len() < 300, "{plain}");
}

#[test]
fn a_policy_that_a_node_may_hold_back_without_naming_it_is_not_said_to_be_enforced() {
    let mut cluster = Cluster::new(2);
    let held = |count: usize| -> BTreeMap<_, _> {
        let name = |number| PolicyName::new(PolicyKind::IdentityPolicy, ObjectName::new("shop", format!("p{number:04}")));
        (0..count).map(|number| (name(number), "no room".to_owned())).collect()
    };
    for number in [0, 16, 17, 500] {
        cluster.index.upsert(&good(&format!("p{number:04}"), 1));
    }
    let mut said = |count: usize| {
        let digests = cluster.digests();
        cluster.report(0);
        cluster.report_of(1, Report::new(digests, &held(count), None));
        cluster.compute();
        let snapshot = Snapshot::of(&cluster.index);
        ["p0000", "p0016", "p0500"].map(|name| {
            let (kind, object, version) = snapshot.objects().find(|(_, object, _)| object.name == name).unwrap();
            let standing = snapshot.standing(&(kind, object.clone()), version, Counts::default(), &cluster.reports, false);
            (standing.conditions[1].reason, standing.conditions[1].message.clone())
        })
    };
    let [first, later, free] = said(17);
    assert!(first.0 == Reason::DoesNotFit && first.1.contains("n0001: no room"), "{first:?}");
    assert!(later.0 == Reason::DoesNotFit && later.1.contains("n0001: held back; the log"), "{later:?}");
    assert_eq!(free.0, Reason::AllNodes);
    let [_, _, perhaps] = said(501);
    assert!(perhaps.0 == Reason::Unknown && perhaps.1.contains("1 of 2 nodes") && perhaps.1.contains("held back by: n0001"), "{perhaps:?}");
}

proptest! {
    /// Whichever writes fail: all others are made as soon as if none did.
    #[test]
    fn writes_that_fail_cost_the_others_no_time(fails in proptest::collection::vec(proptest::bool::ANY, 1..100)) {
        let mut cluster = Cluster::new(1);
        for policy in 0..fails.len() {
            cluster.index.upsert(&good(&format!("{policy}"), 1));
        }
        cluster.report(0);
        cluster.compute();
        let mut written = 0;
        for _ in 0..fails.len().div_ceil(20) {
            for write in cluster.sum.due(cluster.now, SETTLE, 20, 0) {
                let Write::Status { key, .. } = &write else { panic!("{write:?}") };
                if fails[key.1.name.parse::<usize>().unwrap()] {
                    cluster.sum.failed(&write, cluster.now);
                } else {
                    cluster.sum.done(&write, cluster.now);
                    written += 1;
                }
            }
            cluster.now += 1;
        }
        prop_assert_eq!(written, fails.iter().filter(|fails| !**fails).count());
    }

    /// Whatever happens to the objects, and however far a node is: it counts as enforcing a version exactly when it has it.
    #[test]
    fn a_node_enforces_what_it_has_and_nothing_else(changes in proptest::collection::vec((0usize..5, proptest::bool::weighted(0.2)), 1..40), at in 0usize..40) {
        let mut cluster = Cluster::new(1);
        let mut generations = [0i64; 5];
        let mut has: BTreeMap<usize, i64> = BTreeMap::new();
        let mut present: BTreeMap<usize, i64> = BTreeMap::new();
        for (number, (name, deleted)) in changes.iter().enumerate() {
            if number == at.min(changes.len() - 1) {
                cluster.report(0);
                has = present.clone();
            }
            let object = |generation| good(&format!("p{name}"), generation);
            if *deleted {
                cluster.index.delete(&object(0));
                present.remove(name);
            } else {
                generations[*name] += 1;
                cluster.index.upsert(&object(generations[*name]));
                present.insert(*name, generations[*name]);
            }
        }
        cluster.compute();
        for (name, generation) in present {
            let name_of = ObjectName::new("shop", format!("p{name}"));
            let step = cluster.index.versions().of(Kind::IdentityPolicy, &name_of).unwrap().step;
            let told = cluster.reports.of(Kind::IdentityPolicy, &name_of, step, false);
            prop_assert_eq!(told.enforcing == 1, has.get(&name) == Some(&generation));
            prop_assert_eq!(told.enforcing + told.behind_count, 1);
        }
    }
}
