//! ClusterNetworkPolicy with the definition that upstream publishes: installed while the agents run, both channels.

use anyhow::Result;
use palisade_e2e::cluster::Cluster;
use palisade_e2e::definition::{Installed, NOTICED};
use palisade_e2e::pod::TCP_PORT;
use palisade_e2e::probe::Outcome::{Reached, Silent};
use palisade_e2e::request::{Answer, Way};
use palisade_e2e::scene::Scene;
use palisade_e2e::service::{Served, by, from};
use serde_json::{Value, json};
use std::sync::Mutex;

fn cluster_policy(cluster: &Cluster, name: &str, spec: &Value) -> Result<()> {
    let version = "policy.networking.k8s.io/v1alpha2";
    cluster.apply(&[json!({ "apiVersion": version, "kind": "ClusterNetworkPolicy", "metadata": { "name": name }, "spec": spec })])
}

/// The definition belongs to the whole cluster: one test at a time.
static DEFINITION: Mutex<()> = Mutex::new(());

#[test]
fn upstream_s_definition_is_noticed_and_tiers_priorities_and_pass_decide() -> Result<()> {
    let _alone = DEFINITION.lock();
    let scene = Scene::start("cluster-policy")?;
    let cluster = scene.cluster().clone();
    scene.expect("without the definition", &Reached, &Reached);
    let installed = Installed::channel(&cluster, "standard")?;
    std::thread::sleep(NOTICED);

    let of = |name: &str| json!({ "matchLabels": { "kubernetes.io/metadata.name": name } });
    let (servers, clients) = (of(&scene.servers_in.name), of(&scene.clients_in.name));
    let ingress = |tier: &str, priority: u16, rules: Value| json!({ "tier": tier, "priority": priority, "subject": { "namespaces": servers }, "ingress": rules });
    let rule = |action: &str, protocols: Value| {
        let mut rule = json!({ "name": "clients", "action": action, "from": [{ "namespaces": clients }] });
        if !protocols.is_null() {
            rule["protocols"] = protocols;
        }
        rule
    };
    let udp = json!([{ "udp": { "destinationPort": { "range": { "start": 1, "end": 65535 } } } }]);

    cluster_policy(&cluster, "e2e-baseline", &ingress("Baseline", 0, json!([rule("Deny", Value::Null)])))?;
    scene.expect("with a Baseline that denies", &Silent, &Silent);
    scene.policy("open", &json!({ "podSelector": {}, "ingress": [{}] }))?;
    scene.expect("with a NetworkPolicy that allows", &Reached, &Reached);
    cluster_policy(&cluster, "e2e-admin", &ingress("Admin", 20, json!([rule("Deny", Value::Null)])))?;
    scene.expect("with an Admin that denies", &Silent, &Silent);
    cluster.run(&["annotate", "cnp", "e2e-admin", "palisade.dev/mode=Audit"])?;
    scene.expect("with an Admin in audit mode that would deny", &Reached, &Reached);
    scene.expect_audited("with an Admin in audit mode that would deny", "ClusterNetworkPolicy e2e-admin")?;
    cluster.run(&["annotate", "cnp", "e2e-admin", "palisade.dev/mode-"])?;
    scene.expect("with the Admin enforced again", &Silent, &Silent);
    cluster_policy(&cluster, "e2e-earlier", &ingress("Admin", 10, json!([rule("Pass", udp)])))?;
    scene.expect("with UDP passed on before", &Silent, &Reached);
    cluster_policy(&cluster, "e2e-earlier", &ingress("Admin", 10, json!([rule("Accept", Value::Null)])))?;
    scene.expect("with everything accepted before", &Reached, &Reached);

    // The experimental channel knows peers that this version does not: they fail closed.
    let experimental = Installed::channel(&cluster, "experimental")?;
    let names = json!([{ "action": "Accept", "to": [{ "domainNames": ["example.org"] }] }, { "action": "Deny", "to": [{ "namespaces": servers }] }]);
    let egress = json!({ "tier": "Admin", "priority": 0, "subject": { "namespaces": clients }, "egress": names });
    cluster_policy(&cluster, "e2e-names", &egress)?;
    scene.expect("with an Accept by domain names, which matches nothing, before a Deny", &Silent, &Silent);
    cluster.run(&["wait", "--for=condition=Accepted=false", "cnp", "e2e-names", "--timeout=60s"])?;

    cluster.run(&["delete", "cnp", "e2e-names", "e2e-baseline", "e2e-admin", "e2e-earlier"])?;
    scene.expect("after the policies were deleted", &Reached, &Reached);
    cluster_policy(&cluster, "e2e-last", &ingress("Admin", 0, json!([rule("Deny", Value::Null)])))?;
    scene.expect("with one more", &Silent, &Silent);
    drop(experimental);
    drop(installed);
    std::thread::sleep(NOTICED);
    scene.expect("after the definition was deleted", &Reached, &Reached);
    Ok(())
}

#[test]
fn a_cluster_policy_judges_a_pod_that_reaches_itself_through_its_service() -> Result<()> {
    let _alone = DEFINITION.lock();
    let served = Served::start("subject", env!("CARGO_BIN_EXE_prober").as_ref())?;
    let cluster = served.cluster().clone();
    let services = ["near", "far"].map(|at| served.serve(at, json!({ "selector": { "app": "backend", "at": at } })));
    let [near, far] = &served.backends;
    let [to_near, to_far] = services;
    let (to_near, to_far) = (to_near?, to_far?);
    let _definition = Installed::channel(&cluster, "standard")?;
    std::thread::sleep(NOTICED);

    let pods = |at: &str| {
        let namespace = json!({ "matchLabels": { "kubernetes.io/metadata.name": served.namespace.name } });
        json!({ "pods": { "namespaceSelector": namespace, "podSelector": { "matchLabels": { "app": "backend", "at": at } } } })
    };
    let tcp = json!([{ "tcp": { "destinationPort": { "number": TCP_PORT } } }]);
    let rules = json!([{ "action": "Deny", "from": [pods("near")], "protocols": tcp }]);
    let name = format!("{}-itself", served.namespace.name);
    cluster_policy(&cluster, &name, &json!({ "tier": "Admin", "priority": 0, "subject": pods("near"), "ingress": rules }))?;
    served.expect("itself, by the port that is denied", near, &by(&to_near, Way::Tcp), 1, &[Answer::Silent])?;
    served.expect("itself, by a port that is not named", near, &by(&to_near, Way::Udp), 3, &from(&["near"]))?;
    served.expect("a pod that is no subject", far, &to_far, 3, &from(&["far"]))?;
    served.expect("a peer that is not named", far, &to_near, 3, &from(&["near"]))?;
    cluster.run(&["delete", "clusternetworkpolicy", &name])?;
    served.expect("after the policy went", near, &to_near, 3, &from(&["near"]))
}
