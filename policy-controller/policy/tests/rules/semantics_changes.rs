//! What becomes of a change: the numbered lines of the rules about state that rows can show.

use crate::judge::kernel::{Ask, Kernel};
use crate::judge::world::{World, from, object, own, pods, rule, tcp};
use palisade_datapath_core::abi::{Direction, SUBJECT_NONE};
use palisade_datapath_core::epoch;
use palisade_datapath_core::verdict::Decision;
use palisade_policy::model::{Model, ObjectName};
use palisade_policy::{Compiled, Numbers, Planner, Step};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// A node that runs every pod of a model, and follows its changes write by write.
#[derive(Default)]
struct Node {
    kernel: Kernel,
    held: Arc<Compiled>,
    planner: Planner,
    numbers: Numbers,
}

impl Node {
    fn new(model: &Model) -> Self {
        let mut node = Self::default();
        node.follow(model, |_, _| {});
        node
    }

    /// Goes on to `model`; `look` sees the kernel after each write. Returns the writes.
    fn follow(&mut self, model: &Model, mut look: impl FnMut(&Kernel, &Step)) -> Vec<Step> {
        let local: BTreeSet<ObjectName> = model.pods.keys().cloned().collect();
        let planned = self.planner.plan(&self.held, model, &local, &mut self.numbers);
        for step in &planned.steps {
            self.kernel.apply(step);
            look(&self.kernel, step);
        }
        self.held = planned.next;
        planned.steps
    }

    fn passes(&self, pod: &str, direction: Direction, peer: &str) -> bool {
        passes(&self.kernel, pod, direction, peer)
    }
}

/// Whether a pod's policy lets TCP 80 from or to an address pass.
fn passes(kernel: &Kernel, pod: &str, direction: Direction, peer: &str) -> bool {
    let peer: IpAddr = peer.parse().expect("an address");
    kernel.side(&Ask { pod: object(pod), direction, peer, protocol: 6, port: 80 }).decision.passes()
}

const WEB: &str = "10.1.0.1";
const DB: &str = "10.1.0.2";
const BANK: &str = "10.1.0.3";

fn world() -> World {
    World::new().pod("shop/web", "app=web", 1).pod("shop/db", "app=db", 2).pod("bank/web", "app=web", 3)
}

// Line 6.
#[test]
fn a_label_of_a_pod_counts_for_it_as_peer_and_as_subject_gained_and_lost() {
    let base = world().ingress("shop/db", "app=db", [from([own("app=web")])]);
    let mut node = Node::new(&base.model);
    assert!(node.passes("shop/db", Direction::Ingress, WEB));
    assert!(node.passes("shop/web", Direction::Ingress, BANK));
    // As a peer it loses, as a subject it is isolated now.
    let relabelled = base.clone().pod("shop/web", "app=db", 1);
    node.follow(&relabelled.model, |_, _| {});
    assert!(!node.passes("shop/db", Direction::Ingress, WEB));
    assert!(!node.passes("shop/web", Direction::Ingress, BANK));
    node.follow(&base.model, |_, _| {});
    assert!(node.passes("shop/db", Direction::Ingress, WEB));
    assert!(node.passes("shop/web", Direction::Ingress, BANK));
}

// Line 6.
#[test]
fn a_label_of_a_namespace_counts_for_all_its_pods_gained_and_lost() {
    let base = world().ingress("shop/db", "app=db", [from([pods("team=bank", "")])]);
    let mut node = Node::new(&base.model);
    assert!(node.passes("shop/db", Direction::Ingress, BANK));
    let relabelled = base.clone().namespace("bank", "team=other").namespace("shop", "team=bank");
    node.follow(&relabelled.model, |_, _| {});
    assert!(!node.passes("shop/db", Direction::Ingress, BANK));
    assert!(node.passes("shop/db", Direction::Ingress, WEB));
    node.follow(&base.model, |_, _| {});
    assert!(node.passes("shop/db", Direction::Ingress, BANK));
    assert!(!node.passes("shop/db", Direction::Ingress, WEB));
}

// Line 8.
#[test]
fn a_pod_that_has_finished_is_neither_subject_nor_peer_from_the_first_write_on() {
    let base = world().ingress("shop/db", "app=db", [from([own("app=web")])]);
    let mut node = Node::new(&base.model);
    let mut finished = base.model.clone();
    finished.pods.remove(&object("shop/web"));
    let steps = node.follow(&finished, |_, _| {});
    let stopped = Step::Flip { pod: object("shop/web"), subject: SUBJECT_NONE, audit: SUBJECT_NONE };
    assert_eq!(steps[..2], [Step::UnsettleEpoch, stopped], "its own packets stop first");
    assert!(!node.passes("shop/web", Direction::Egress, DB));
    assert!(!node.passes("shop/db", Direction::Ingress, WEB));
}

// Line 9.
#[test]
fn an_address_that_changes_hands_is_taken_for_its_new_owner_and_a_late_delete_strips_nobody() {
    let base = world().ingress("shop/db", "app=db", [from([own("app=web")])]);
    let mut node = Node::new(&base.model);
    // The new pod is there before the old one is deleted: nobody is taken for the other.
    let both = base.clone().pod("shop/heir", "app=other", 1);
    node.follow(&both.model, |_, _| {});
    assert!(!node.passes("shop/db", Direction::Ingress, WEB));
    let mut heir = both.model.clone();
    heir.pods.remove(&object("shop/web"));
    let heir = World { model: heir }.ingress("shop/db", "app=db", [from([own("app=other")])]);
    node.follow(&heir.model, |_, _| {});
    assert!(node.passes("shop/db", Direction::Ingress, WEB));
}

// Line 10.
#[test]
fn deleting_a_policy_leaves_what_the_others_say() {
    let one = world().ingress("shop/one", "app=db", [from([own("app=web")])]);
    let both = one.clone().ingress("shop/two", "app=db", [from([pods("team=bank", "")])]);
    let mut node = Node::new(&both.model);
    assert!(node.passes("shop/db", Direction::Ingress, BANK));
    node.follow(&one.model, |kernel, step| assert!(passes(kernel, "shop/db", Direction::Ingress, WEB), "{step:?}"));
    assert!(!node.passes("shop/db", Direction::Ingress, BANK));
    node.follow(&world().model, |kernel, step| assert!(passes(kernel, "shop/db", Direction::Ingress, WEB), "{step:?}"));
    assert!(node.passes("shop/db", Direction::Ingress, BANK));
}

// Line 21: what was judged is judged again, packet by packet from before the first write that alters a verdict until after the last.
#[test]
fn the_epoch_moves_around_the_flip_and_only_for_changes_that_alter_a_verdict() {
    let base = world().ingress("shop/db", "app=db", [from([own("app=web")])]);
    let mut node = Node::new(&base.model);
    let epoch = node.kernel.epoch;
    let steps = node.follow(&base.clone().ingress("shop/db", "app=db", []).model, |_, _| {});
    let position = |wanted: fn(&Step) -> bool| steps.iter().rposition(wanted).expect("such a step");
    let flips = position(|step| matches!(step, Step::Flip { .. }));
    assert!(position(|step| *step == Step::UnsettleEpoch) < flips && flips < position(|step| *step == Step::BumpEpoch));
    assert_eq!(node.kernel.epoch, epoch::next(epoch));
    // A pod elsewhere of whom no policy of this node speaks.
    let mut node = Node::new(&base.model);
    let elsewhere = base.pod("bank/new", "app=new", 9).model;
    let local: BTreeSet<ObjectName> = elsewhere.pods.keys().filter(|pod| pod.name != "new").cloned().collect();
    let planned = node.planner.plan(&node.held, &elsewhere, &local, &mut node.numbers);
    assert!(!planned.steps.is_empty() && !planned.steps.contains(&Step::BumpEpoch), "{:?}", planned.steps);
}

// Line 47.
#[test]
fn without_rows_every_subject_is_closed() {
    let kernel = Kernel { endpoints: [(object("shop/db"), 7)].into(), ..Kernel::default() };
    for direction in [Direction::Ingress, Direction::Egress] {
        let ask = Ask { pod: object("shop/db"), direction, peer: WEB.parse().expect("an address"), protocol: 6, port: 80 };
        assert_eq!(kernel.side(&ask).decision, Decision::Missing);
    }
}

#[test]
fn a_policy_that_flips_between_two_contents_is_never_a_mixture() {
    let base = world().pod("shop/b", "app=b", 4).pod("shop/c", "app=c", 5);
    let (a, b, c) = (WEB, "10.1.0.4", "10.1.0.5");
    let first = base.clone().ingress("shop/db", "app=db", [rule([own("app=web"), own("app=b")], [tcp(80)])]).model;
    let second = base.ingress("shop/db", "app=db", [rule([own("app=b"), own("app=c")], [tcp(80)])]).model;
    let mut node = Node::new(&first);
    for turn in 0..100 {
        let model = if turn % 2 == 0 { &second } else { &first };
        let steps = node.follow(model, |kernel, step| {
            let [a, b, c] = [a, b, c].map(|peer| passes(kernel, "shop/db", Direction::Ingress, peer));
            assert!(b && a != c, "turn {turn}: after {step:?}: {a} {b} {c}");
        });
        assert_eq!(steps.iter().filter(|step| matches!(step, Step::Flip { .. })).count(), 1, "one write makes it effective");
    }
    let used = node.held.used();
    assert!(used.subjects.last().is_some_and(|&last| last < 20), "subject numbers grow: {used:?}");
    assert!(used.identities.last().is_some_and(|&last| last < 20), "identity numbers grow: {used:?}");
}

// A denial that moves from the sender's side to the receiver's lets no packet slip through between.
#[test]
fn a_denial_that_moves_to_the_other_side_leaves_no_gap() {
    let sender = world().egress("shop/out", "app=web", []).ingress("shop/in", "app=db", [from([own("")])]).model;
    let receiver = world().egress("shop/out", "app=web", [from([own("")])]).ingress("shop/in", "app=db", []).model;
    let mut node = Node::new(&sender);
    for model in [&receiver, &sender, &receiver] {
        node.follow(model, |kernel, step| {
            let both = passes(kernel, "shop/web", Direction::Egress, DB) && passes(kernel, "shop/db", Direction::Ingress, WEB);
            assert!(!both, "after {step:?}");
        });
    }
}
