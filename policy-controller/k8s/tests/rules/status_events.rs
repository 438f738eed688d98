//! What events tell of policies, and how often.

use crate::status::{Cluster, good, key, network_policy};
use palisade_k8s::index::Kind;
use palisade_k8s::report::Report;
use palisade_k8s::sum::{News, Write};
use std::collections::BTreeSet;

#[test]
fn an_event_tells_of_each_generation_of_a_network_policy_once_and_of_none_that_was_there_before() {
    let mut cluster = Cluster::new(1);
    cluster.index.upsert(&network_policy("n", 1));
    cluster.report(0);
    assert_eq!(cluster.settle(), [], "it has no status, and it is no news that it is enforced");
    cluster.index.upsert(&network_policy("n", 2));
    cluster.compute();
    assert_eq!(cluster.tick(), [], "not yet");
    cluster.report(0);
    let writes = cluster.settle();
    let [Write::Event { key: about, generation: Some(2), news: News::Enforced, .. }] = &writes[..] else { panic!("{writes:?}") };
    assert_eq!(*about, key(Kind::NetworkPolicy, "n"));
    assert_eq!(cluster.settle(), []);
    let mut audited = network_policy("n", 2);
    audited.metadata.annotations = Some([("palisade.dev/mode".to_owned(), "Foo".to_owned())].into());
    cluster.index.upsert(&audited);
    cluster.report(0);
    let writes = cluster.settle();
    let [Write::Event { news: News::NotAccepted, message, .. }] = &writes[..] else { panic!("{writes:?}") };
    assert!(message.contains("palisade.dev/mode") && message.contains("Foo"), "{message}");
}

/// The API server counts no generation for an annotation.
#[test]
fn each_time_that_a_network_policy_goes_into_audit_mode_and_back_an_event_says_so() {
    let mut cluster = Cluster::new(1);
    cluster.index.upsert(&network_policy("n", 1));
    cluster.report(0);
    cluster.settle();
    let mut told = BTreeSet::new();
    for revision in 2..6 {
        let mut policy = network_policy("n", 1);
        policy.metadata.resource_version = Some(revision.to_string());
        if revision % 2 == 0 {
            policy.metadata.annotations = Some([("palisade.dev/mode".to_owned(), "Audit".to_owned())].into());
        }
        cluster.index.upsert(&policy);
        cluster.report(0);
        let writes = cluster.settle();
        let [Write::Event { news, revision: Some(of), .. }] = &writes[..] else { panic!("{revision}: {writes:?}") };
        assert_eq!(*news, if revision % 2 == 0 { News::Audit } else { News::Enforced });
        assert!(told.insert((*news, of.clone())), "an event of its own");
        assert_eq!(cluster.settle(), []);
        // A label is no news.
        policy.metadata.resource_version = Some(format!("{revision}0"));
        cluster.index.upsert(&policy);
        cluster.report(0);
        assert_eq!(cluster.settle(), []);
    }
}

#[test]
fn of_a_network_policy_that_nodes_lack_or_that_is_in_audit_mode_an_event_says_so() {
    let mut cluster = Cluster::new(2);
    (0..2).for_each(|node| cluster.report(node));
    cluster.compute();
    cluster.index.upsert(&network_policy("n", 1));
    cluster.compute();
    assert_eq!(cluster.tick(), [], "that nodes are on the way is no news yet");
    cluster.report(0);
    let writes = cluster.settle();
    let [Write::Event { news: News::Pending, message, .. }] = &writes[..] else { panic!("{writes:?}") };
    assert_eq!(message, "1 of 2 nodes enforces generation 1; 0 pods selected; not yet: n0001", "as it is when it is told");
    cluster.report(1);
    let writes = cluster.settle();
    assert!(matches!(&writes[..], [Write::Event { news: News::Enforced, .. }]), "{writes:?}");
    // A node that comes and of which it is not known yet how far it is.
    let mut other = Cluster::new(1);
    other.index.upsert(&good("other", 1));
    cluster.nodes.push("n0002".to_owned());
    cluster.report_of(2, Report::new(other.digests(), [], None));
    assert_eq!(cluster.settle(), [], "it was told that this generation is enforced");
    cluster.nodes.pop();
    let mut audited = network_policy("n", 1);
    audited.metadata.annotations = Some([("palisade.dev/mode".to_owned(), "Audit".to_owned())].into());
    cluster.index.upsert(&audited);
    (0..2).for_each(|node| cluster.report(node));
    let writes = cluster.settle();
    let [Write::Event { news: News::Audit, message, .. }] = &writes[..] else { panic!("{writes:?}") };
    assert!(message.contains("as if it were absent"), "{message}");
    assert!(News::Pending.warns() && !News::Audit.warns());
}
