//! ClusterNetworkPolicy with the definition that upstream publishes: installed while the agents run, both channels.

use anyhow::{Context, Result, bail};
use palisade_e2e::cluster::Cluster;
use palisade_e2e::probe::Outcome::{Reached, Silent};
use palisade_e2e::scene::Scene;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The Go module that upstream publishes the definition in.
const MODULE: &str = "sigs.k8s.io/network-policy-api";
const MODULE_VERSION: &str = "v0.2.0";
const DEFINITION: &str = "clusternetworkpolicies.policy.networking.k8s.io";
/// The agents look for the kind every 5 seconds.
const NOTICED: Duration = Duration::from_secs(12);

/// The definition of a channel, as a file.
fn upstream(channel: &str) -> Result<PathBuf> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let archive = directory.join(format!("network-policy-api-{MODULE_VERSION}.zip"));
    let run = |command: &mut Command| -> Result<Vec<u8>> {
        let output = command.output().with_context(|| format!("starting {command:?}: is it installed?"))?;
        if !output.status.success() {
            bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(output.stdout)
    };
    if !archive.exists() {
        let part = archive.with_extension("part");
        let url = format!("https://proxy.golang.org/{MODULE}/@v/{MODULE_VERSION}.zip");
        run(Command::new("curl").args(["-fsSL", "-o"]).arg(&part).arg(url))?;
        std::fs::rename(&part, &archive)?;
    }
    let inside = format!("{MODULE}@{MODULE_VERSION}/config/crd/{channel}/policy.networking.k8s.io_clusternetworkpolicies.yaml");
    let text = run(Command::new("unzip").arg("-p").arg(&archive).arg(inside))?;
    let file = directory.join(format!("clusternetworkpolicies-{channel}.yaml"));
    std::fs::write(&file, text)?;
    Ok(file)
}

/// The definition, installed; taken away at the end where it was not there before.
struct Installed {
    cluster: Cluster,
    ours: bool,
}

impl Installed {
    fn channel(cluster: &Cluster, channel: &str) -> Result<Self> {
        let ours =
            cluster.run(&["get", "customresourcedefinition", DEFINITION, "--ignore-not-found", "--output", "name"])?.trim().is_empty();
        let file = upstream(channel)?;
        cluster.run(&["apply", "--server-side", "--force-conflicts", "--filename", file.to_str().context("a path that is no text")?])?;
        cluster.run(&["wait", "--for=condition=Established", "customresourcedefinition", DEFINITION, "--timeout=60s"])?;
        Ok(Self { cluster: cluster.clone(), ours })
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = self.cluster.run(&["delete", "customresourcedefinition", DEFINITION, "--timeout=60s"])
        {
            eprintln!("the definition could not be deleted: {error:#}");
        }
    }
}

fn cluster_policy(cluster: &Cluster, name: &str, spec: &Value) -> Result<()> {
    let version = "policy.networking.k8s.io/v1alpha2";
    cluster.apply(&[json!({ "apiVersion": version, "kind": "ClusterNetworkPolicy", "metadata": { "name": name }, "spec": spec })])
}

// One test: the definition belongs to the whole cluster.
#[test]
fn upstream_s_definition_is_noticed_and_tiers_priorities_and_pass_decide() -> Result<()> {
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
