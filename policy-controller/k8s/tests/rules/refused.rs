//! The index: what stands for objects that cannot be taken as they are.

use super::index::{cluster_policy, identity, identity_policy, n, policy, with_uid};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use palisade_k8s::api::ClusterNetworkPolicy;
use palisade_k8s::index::{Index, Indexed, Instead, Kind};
use palisade_k8s::{FieldError, FieldPath, Problem};
use palisade_policy::model::{self, Action, Entity, Peer, Peers, Policy, PolicyKind, PolicyName};
use serde_json::json;

fn isolated(index: &Index) -> Policy {
    let name = PolicyName::new(PolicyKind::NetworkPolicy, n("p"));
    Policy::clone(&index.model().policies[&name])
}

#[test]
fn a_policy_that_is_refused_isolates_when_there_is_no_good_version() {
    let mut index = Index::new();
    assert!(index.upsert(&policy("p", "x", 70000)));
    let stands = isolated(&index);
    assert_eq!((stands.ingress, stands.egress), (Some(vec![]), None));
    let refused = index.refused().remove(0);
    assert_eq!((refused.kind, refused.object.as_str(), refused.instead), (Kind::NetworkPolicy, "n/p", Instead::Isolated));
    assert_eq!(
        refused.to_string(),
        "NetworkPolicy n/p: spec.ingress[0].ports[0].port: 70000 is no port: ports are 1 to 65535 (the pods that it selects are isolated)"
    );
}

#[test]
fn a_policy_that_is_refused_keeps_its_last_good_version() {
    let mut index = Index::new();
    index.upsert(&policy("p", "x", 80));
    let good = isolated(&index);
    index.upsert(&policy("p", "x", 70000));
    index.upsert(&policy("p", "x", 70001));
    assert_eq!(isolated(&index), good);
    assert_eq!(index.refused()[0].instead, Instead::LastGood);
    index.upsert(&policy("p", "x", 81));
    assert_ne!(isolated(&index), good);
    assert_eq!(index.refused(), []);
}

/// What isolates beside the last good version of the policy `n/p`.
fn beside(index: &Index) -> Option<Policy> {
    let name = PolicyName::new(PolicyKind::NetworkPolicy, n("p (refused version)"));
    index.model().policies.get(&name).map(|policy| Policy::clone(policy))
}

#[test]
fn a_refused_version_isolates_what_it_selects_beside_the_last_good_one_which_opens_nothing_meanwhile() {
    // The new version selects other pods.
    let mut index = Index::new();
    index.upsert(&policy("p", "x", 80));
    let good = isolated(&index);
    index.upsert(&policy("p", "y", 70000));
    assert_eq!((isolated(&index), index.refused()[0].instead), (good.clone(), Instead::LastGoodAndIsolated));
    let stands = beside(&index).expect("the pods that it selects are isolated");
    assert_eq!((stands.ingress, stands.egress, stands.subject == good.subject), (Some(vec![]), None, false));
    index.upsert(&policy("p", "x", 70000));
    assert_eq!((beside(&index), index.refused()[0].instead), (None, Instead::LastGood), "the same pods");
    index.upsert(&policy("p", "y", 70000));
    index.upsert(&policy("p", "y", 81));
    assert_eq!((beside(&index), index.refused()), (None, vec![]));
    index.upsert(&policy("p", "z", 70000));
    index.delete(&policy("p", "z", 70000));
    assert!(index.model().policies.is_empty());
    // The new version isolates egress too.
    let mut index = Index::new();
    index.upsert(&policy("p", "x", 80));
    let mut wider = policy("p", "x", 70000);
    wider.spec.as_mut().expect("a spec").policy_types = Some(vec!["Ingress".to_owned(), "Egress".to_owned()]);
    index.upsert(&wider);
    assert_eq!(isolated(&index), good);
    let stands = beside(&index).expect("egress is isolated");
    assert_eq!((stands.ingress, stands.egress), (Some(vec![]), Some(vec![])));
    // Deleted and created anew, it is another policy: nothing of the old one lives on.
    let mut index = Index::new();
    index.upsert(&policy("p", "x", 80));
    index.delete(&policy("p", "x", 80));
    index.upsert(&policy("p", "x", 70000));
    assert_eq!(isolated(&index).ingress, Some(vec![]));
}

// A watch that broke off shows what is there now: nobody has seen the old object go.
#[test]
fn an_object_that_was_made_anew_under_a_name_has_no_last_good_version_of_the_old_one() {
    let mut index = Index::new();
    index.resync(&[with_uid(policy("p", "x", 80), Some("1"))]);
    index.resync(&[with_uid(policy("p", "x", 70000), Some("2"))]);
    assert_eq!((isolated(&index).ingress, index.refused()[0].instead), (Some(vec![]), Instead::Isolated));
    index.resync(&[with_uid(policy("p", "x", 70000), Some("1"))]);
    assert_eq!(isolated(&index).ingress, Some(vec![]), "it was forgotten");
    let mut index = Index::new();
    index.resync(&[with_uid(identity("i", "World"), Some("1"))]);
    index.resync(&[with_uid(identity("i", "Moon"), Some("2"))]);
    assert_eq!((index.model().identities.len(), index.refused()[0].instead), (0, Instead::Unknown));
}

#[test]
fn a_late_delete_of_an_older_policy_or_identity_of_the_same_name_changes_nothing() {
    let mut index = Index::new();
    index.upsert(&with_uid(policy("p", "x", 80), Some("2")));
    index.upsert(&with_uid(identity("i", "World"), Some("2")));
    let versions = index.versions().digests();
    assert!(!index.delete(&with_uid(policy("p", "x", 80), Some("1"))));
    assert!(!index.delete(&with_uid(identity("i", "World"), Some("1"))));
    assert_eq!((index.model().policies.len(), index.model().identities.len()), (1, 1));
    assert_eq!(index.versions().digests(), versions);
    assert!(index.delete(&with_uid(policy("p", "x", 80), Some("2"))));
    assert!(index.delete(&identity("i", "World")), "who gives no UID means the object by its name");
}

#[test]
fn a_last_good_version_in_audit_mode_does_not_stand_for_one_that_is_to_be_enforced() {
    let mut index = Index::new();
    let annotated = |mode: &str| {
        let mut policy = policy("p", "x", 80);
        policy.metadata.annotations = Some([("palisade.dev/mode".to_owned(), mode.to_owned())].into());
        policy
    };
    index.upsert(&annotated("Audit"));
    index.upsert(&annotated("enforce"));
    let stands = beside(&index).expect("it is enforced");
    assert_eq!((stands.mode, stands.ingress), (model::Mode::Enforce, Some(vec![])));
    // The other way round it may: it isolates more.
    index.upsert(&annotated("Enforce"));
    let mut refused = annotated("Audit");
    refused.spec.as_mut().expect("a spec").policy_types = Some(vec!["Both".to_owned()]);
    index.upsert(&refused);
    assert_eq!((isolated(&index).mode, beside(&index).map(|beside| beside.mode)), (model::Mode::Enforce, Some(model::Mode::Audit)));
    assert_eq!(index.refused()[0].instead, Instead::LastGood, "nobody is told of an isolation that drops nothing");
    let mut index = Index::new();
    index.upsert(&refused);
    assert_eq!((isolated(&index).mode, index.refused()[0].instead), (model::Mode::Audit, Instead::Audited));
    // A ClusterNetworkPolicy isolates nobody: the sentence is true of it, too.
    let mut index = Index::new();
    let mut audited = cluster_policy("c", 1, "Log");
    audited.metadata.annotations = Some([("palisade.dev/mode".to_owned(), "Audit".to_owned())].into());
    index.upsert(&audited);
    let refused = index.refused().remove(0).to_string();
    assert!(refused.ends_with("(it is in audit mode: nothing is dropped for it, and events tell what would be)"), "{refused}");
}

#[test]
fn a_policy_or_identity_with_an_unknown_field_keeps_its_last_good_version_and_is_closed_without_one() {
    let mut later = identity_policy("p", "x", 80);
    later.spec.ingress.as_mut().expect("a rule")[0].unknown.insert("future".to_owned(), true.into());
    let stands = |index: &Index| Policy::clone(&index.model().policies[&PolicyName::new(PolicyKind::IdentityPolicy, n("p"))]);
    let mut index = Index::new();
    index.upsert(&later);
    assert_eq!((stands(&index).ingress, index.refused()[0].instead), (Some(vec![]), Instead::Isolated));
    index.upsert(&identity_policy("p", "x", 80));
    let good = stands(&index);
    index.upsert(&later);
    assert_eq!((stands(&index), index.refused()[0].instead), (good, Instead::LastGood));
    let mut later = identity("i", "World");
    later.spec.unknown.insert("future".to_owned(), true.into());
    let mut index = Index::new();
    index.upsert(&later);
    assert_eq!((index.model().identities.len(), index.refused()[0].instead), (0, Instead::Unknown));
}

#[test]
fn of_a_policy_that_cannot_be_read_at_all_what_is_in_force_stays_and_a_new_one_isolates_its_namespace() {
    fn unreadable<K: Indexed>(index: &mut Index, object: &K, metadata: ObjectMeta) {
        let error = FieldError::new(FieldPath::of("spec"), Problem::WrongType("no map".to_owned()));
        index.upsert(object);
        let before = index.model();
        index.upsert_unreadable::<K>(&metadata, error.clone()).expect("a policy");
        assert_eq!((index.model(), index.refused()[0].instead), (before.clone(), Instead::LastGood));
        let mut next = Index::new();
        next.recall(index.last_good());
        next.upsert_unreadable::<K>(&metadata, error.clone()).expect("a policy");
        assert_eq!((next.model().policies, next.refused()[0].instead), (before.policies, Instead::LastGood), "after a restart");
        index.delete(object);
        index.upsert_unreadable::<K>(&metadata, error).expect("a policy");
    }
    for (mut index, isolates) in [(Index::new(), true), (Index::new(), false)] {
        if isolates {
            let policy = policy("p", "x", 80);
            unreadable(&mut index, &policy, policy.metadata.clone());
        } else {
            let policy = cluster_policy("p", 1, "Accept");
            unreadable(&mut index, &policy, policy.metadata.clone());
        }
        let stands = index.model().policies.values().next().cloned().expect("a policy");
        assert_eq!((stands.ingress.is_some(), stands.egress.is_some()), (isolates, isolates));
        assert_eq!(stands.subject.pods, palisade_identity::LabelSelector::everything());
        assert_eq!(index.refused()[0].instead, if isolates { Instead::Isolated } else { Instead::Nothing });
    }
    // Of other kinds there is no version that cannot be read: their watch says it.
    let error = FieldError::new(FieldPath::root(), Problem::Missing);
    assert!(Index::new().upsert_unreadable::<Namespace>(&ObjectMeta::default(), error).is_err());
}

#[test]
fn the_annotation_of_other_kinds_is_no_way_into_audit_mode_for_an_identity_policy() {
    let mut policy = identity_policy("p", "x", 80);
    let mut index = Index::new();
    index.upsert(&policy);
    let enforced = index.model();
    policy.metadata.annotations = Some([("palisade.dev/mode".to_owned(), "Audit".to_owned())].into());
    index.upsert(&policy);
    assert_eq!(index.model(), enforced);
    let refused = index.refused().remove(0).to_string();
    assert!(refused.contains("metadata.annotations[\"palisade.dev/mode\"]: an IdentityPolicy says its mode in spec.mode"), "{refused}");
}

#[test]
fn of_several_rules_that_are_not_understood_one_that_denies_is_named() {
    let names = |action: &str| json!({ "action": action, "to": [{ "domainNames": ["example.org"] }] });
    for (actions, named) in [(["Accept", "Deny"], 1), (["Deny", "Accept"], 0), (["Accept", "Accept"], 0), (["Accept", "Pass"], 1)] {
        let spec = json!({ "tier": "Admin", "priority": 1, "subject": { "namespaces": {} }, "egress": actions.map(names) });
        let policy =
            serde_json::from_value::<ClusterNetworkPolicy>(json!({ "metadata": { "name": "p" }, "spec": spec })).expect("a policy");
        let mut index = Index::new();
        index.upsert(&policy);
        let refused = index.refused().remove(0).to_string();
        assert!(refused.contains(&format!("spec.egress[{named}].")), "{refused}");
    }
}

#[test]
fn what_a_cluster_policy_says_in_another_form_closes_the_rule_that_says_it_and_no_other() {
    let spec = |rule: serde_json::Value, subject: serde_json::Value| {
        let rules = json!([rule, { "action": "Deny", "to": [{ "networks": ["192.0.2.0/24"] }] }]);
        let metadata = json!({ "name": "p" });
        let spec = json!({ "tier": "Admin", "priority": 1, "subject": subject, "egress": rules });
        serde_json::from_value::<ClusterNetworkPolicy>(json!({ "metadata": metadata, "spec": spec })).expect("it can be read")
    };
    let everybody = json!({ "namespaces": {} });
    let stands = |policy: &ClusterNetworkPolicy| {
        let mut index = Index::new();
        index.upsert(policy);
        let egress = index.model().policies.values().next().cloned().expect("a policy").egress.clone().expect("rules");
        let [refused] = &index.refused()[..] else { panic!("one object is refused") };
        (egress, refused.error.to_string())
    };
    // Names and networks are objects in some later version, and so is what stands where there is a list today.
    for (action, denies) in [("Accept", false), ("Deny", true), ("Pass", true)] {
        for (to, field) in [
            (json!([{ "networks": [{ "cidr": "10.0.0.0/8" }] }]), "spec.egress[0].to"),
            (json!({ "networks": ["10.0.0.0/8"] }), "spec.egress[0].to"),
            (json!([{ "domainNames": [{ "name": "example.org" }] }]), "spec.egress[0].to"),
        ] {
            let (egress, error) = stands(&spec(json!({ "action": action, "to": to }), everybody.clone()));
            assert_eq!(egress.len(), 2);
            assert_eq!(
                (egress[0].action == Action::Deny, &egress[0].peers),
                (denies, &if denies { Peers::Any } else { Peers::Of(vec![]) })
            );
            assert!(egress[1].action == Action::Deny && egress[1].peers != Peers::Any, "the other rule holds as it is written");
            assert!(error.contains(field), "{error}");
        }
    }
    let (egress, _) = stands(&spec(json!("a rule"), everybody));
    assert_eq!((egress[0].action, &egress[0].peers), (Action::Deny, &Peers::Any));
    let (egress, error) =
        stands(&spec(json!({ "action": "Accept", "to": [{ "networks": ["10.0.0.0/8"] }] }), json!({ "namespaces": "all" })));
    assert_eq!(egress[0].peers, Peers::Of(vec![]), "nobody knows for whom it accepts");
    assert!(error.contains("spec.subject.namespaces"), "{error}");
}

#[test]
fn the_last_good_version_of_a_policy_that_is_refused_is_known_to_the_next_agent() {
    let mut first = Index::new();
    first.upsert(&policy("p", "x", 80));
    let good = first.model();
    assert!(first.last_good().is_empty());
    let mut later = policy("p", "y", 80);
    later.metadata.annotations = Some([("palisade.dev/mode".to_owned(), "Foo".to_owned())].into());
    first.upsert(&later);
    let known = first.last_good();
    let mut next = Index::new();
    next.recall(known.clone());
    next.upsert(&later);
    assert_eq!((next.model(), next.last_good()), (first.model(), known.clone()), "as one that saw both versions");
    assert_ne!(next.model(), good);
    // One that was edited meanwhile: what the last known version isolates stays isolated, and it allows nothing.
    let mut edited = later.clone();
    edited.metadata.generation = Some(7);
    let mut index = Index::new();
    index.recall(known.clone());
    index.upsert(&edited);
    let stands = |index: &Index| Policy::clone(&index.model().policies[&PolicyName::new(PolicyKind::NetworkPolicy, n("p"))]);
    assert_eq!(stands(&index), stands(&first).closed());
    assert_ne!(stands(&index), stands(&first));
    // Another object of the name, and one of which nothing is recalled.
    for (uid, recalled) in [(Some("other".to_owned()), known), (later.metadata.uid.clone(), [].into())] {
        let mut index = Index::new();
        index.recall(recalled);
        let mut object = later.clone();
        object.metadata.uid = uid;
        index.upsert(&object);
        assert_eq!((index.model().policies.len(), index.last_good().len()), (1, 0));
    }
}

#[test]
fn an_identity_that_is_refused_keeps_its_last_good_version_and_is_unknown_without_one() {
    let mut index = Index::new();
    index.upsert(&identity("i", "Moon"));
    assert_eq!((index.model().identities.len(), index.refused()[0].instead), (0, Instead::Unknown));
    index.upsert(&identity("i", "World"));
    index.upsert(&identity("i", "Moon"));
    assert_eq!(index.model().identities[&"i".to_owned()], [Peer::Entity(Entity::World)]);
    assert_eq!(index.refused()[0].instead, Instead::LastGood);
}

#[test]
fn a_cluster_policy_that_is_not_understood_is_closed_at_once_whatever_it_was_before() {
    let mut index = Index::new();
    index.upsert(&cluster_policy("c", 1, "Accept"));
    index.upsert(&cluster_policy("c", 1, "Log"));
    assert_eq!(index.refused()[0].instead, Instead::RuleByRule);
    let policy = index.model().policies.values().next().cloned().expect("never a no-op");
    assert_eq!(policy.ingress.as_ref().expect("a rule")[0].action, model::Action::Deny);
}
