//! The directory of manifests: read as a whole, read again when it changes, never half.

use crate::problem::Part;
use crate::state::State;
use palisade_cni::link::{LinkError, Netlink};
use palisade_k8s::manifest::{self, Manifest, ManifestErrors};
use palisade_policy::model::Node;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::oneshot;

/// How often the directory is looked at.
const INTERVAL: Duration = Duration::from_millis(200);
/// How old an edit must be before the file's time tells it from a later one.
const SETTLED: Duration = Duration::from_secs(1);

/// Names, sizes and times of what lies in the directory: cheap to take, different after every edit.
type Fingerprint = BTreeMap<PathBuf, (u64, Option<SystemTime>)>;

/// Keeps the index as the directory says, for ever. An error anywhere keeps the last good state whole, and is shown. `declares_nodes` is told
/// once Node objects were read there.
pub async fn follow(state: Arc<State>, directory: PathBuf, declares_nodes: oneshot::Sender<()>) -> Infallible {
    let mut seen: Option<Fingerprint> = None;
    let mut declares_nodes = Some(declares_nodes);
    loop {
        let (path, before) = (directory.clone(), seen.clone());
        let looked = tokio::task::spawn_blocking(move || look(&path, before.as_ref())).await;
        if let Ok(Some((fingerprint, read))) = looked {
            // A file can be edited twice within one tick of the file system's clock: as long as an edit is fresh, what was
            // read is not taken for the last of it.
            seen = is_settled(&fingerprint).then_some(fingerprint);
            let nodes = read.as_ref().is_ok_and(|manifest| !manifest.nodes.is_empty());
            take(&state, read);
            if let Some(tell) = declares_nodes.take_if(|_| nodes) {
                let _ = tell.send(());
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

fn is_settled(fingerprint: &Fingerprint) -> bool {
    let fresh = |time: &SystemTime| time.elapsed().is_ok_and(|age| age < SETTLED);
    !fingerprint.values().any(|(_, time)| time.as_ref().is_some_and(fresh))
}

/// Reads the directory if it is different from `before`.
fn look(directory: &Path, before: Option<&Fingerprint>) -> Option<(Fingerprint, Result<Manifest, ManifestErrors>)> {
    let mut fingerprint = fingerprint(directory);
    if before == Some(&fingerprint) {
        return None;
    }
    // An editor may be writing while we read: what counts is what was there before and after.
    loop {
        let read = manifest::read(directory);
        let after = self::fingerprint(directory);
        if after == fingerprint {
            return Some((fingerprint, read));
        }
        fingerprint = after;
    }
}

fn fingerprint(directory: &Path) -> Fingerprint {
    let paths = match std::fs::read_dir(directory) {
        Ok(entries) => entries.filter_map(Result::ok).map(|entry| entry.path()).collect(),
        // One file, or nothing that can be read; the reader says which.
        Err(_) => vec![directory.to_owned()],
    };
    let look = |path: PathBuf| {
        // Through links: a mounted ConfigMap changes by where its links point.
        let metadata = std::fs::metadata(&path).ok();
        let seen = metadata.map_or((0, None), |metadata| (metadata.len(), metadata.modified().ok()));
        (path, seen)
    };
    paths.into_iter().map(look).collect()
}

fn take(state: &State, read: Result<Manifest, ManifestErrors>) {
    let result = match read {
        Ok(manifest) if !manifest.nodes.is_empty() => Ok((manifest, None)),
        Ok(_) if state.config.ranges.is_empty() => {
            Err("it has no Node objects, which tell the node's pod ranges; --ranges 10.0.0.0/24,fd00::/64 does so, too".to_owned())
        }
        Ok(manifest) => {
            own_node(state).map_err(|error| format!("the node's addresses cannot be read: {error}")).map(|node| (manifest, Some(node)))
        }
        Err(errors) => Err(errors.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
    };
    match result {
        Ok((manifest, node)) => {
            state.change(|index| {
                let nodes = node.is_some_and(|node| index.set_nodes(BTreeMap::from([(state.config.node.clone(), node)])));
                let changed = manifest.feed(index) | nodes;
                if changed {
                    tracing::info!(pods = manifest.pods.len(), policies = manifest.policies.len(), "the directory is read");
                }
                changed
            });
            state.problems.clear(Part::Source);
        }
        Err(problem) => {
            let kept = if state.index().synced() { "the last good state stays in force" } else { "nothing was taken" };
            state.problems.set(Part::Source, format!("{kept}: {problem}"));
        }
    }
}

/// This node, where the directory has no Node objects.
fn own_node(state: &State) -> Result<Node, LinkError> {
    let addresses = if state.config.node_addresses.is_empty() { own_addresses()? } else { state.config.node_addresses.clone() };
    Ok(Node { addresses, pod_ranges: state.config.ranges.clone(), ..Node::default() })
}

/// The addresses of this network namespace's interfaces by which others reach it.
fn own_addresses() -> Result<Vec<IpAddr>, LinkError> {
    let reaches = |address: IpAddr| match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local() && !address.is_unspecified(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local() && !address.is_unspecified(),
    };
    let addresses: BTreeSet<IpAddr> = Netlink::open()?.addresses()?.into_iter().map(|entry| entry.address.addr()).collect();
    Ok(addresses.into_iter().filter(|address| reaches(*address)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AgentConfig, Source};
    use std::fs;

    const PODS: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\nspec: {containers: [{name: web, image: web}]}\n";

    fn state(directory: &Path) -> State {
        let mut config = AgentConfig::new("node", Source::Directory(directory.to_owned()));
        config.node_addresses = vec!["192.0.2.1".parse().unwrap()];
        config.ranges = vec!["10.0.0.0/24".parse().unwrap()];
        State::new(config)
    }

    #[test]
    fn a_broken_file_keeps_the_last_good_state_whole_and_is_shown() {
        let directory = tempfile::tempdir().unwrap();
        let state = state(directory.path());
        fs::write(directory.path().join("pods.yaml"), PODS).unwrap();
        let (seen, read) = look(directory.path(), None).unwrap();
        take(&state, read);
        let good = state.index().model();
        assert_eq!((good.pods.len(), good.nodes.len(), state.index().synced()), (1, 1, true));

        // A second pod that would be fine, beside a file that is not.
        fs::write(
            directory.path().join("more.yaml"),
            PODS.replace("name: web, namespace", "name: db, namespace")
                .replace("kind: Namespace\nmetadata: {name: shop}", "kind: Namespace\nmetadata: {name: other}"),
        )
        .unwrap();
        fs::write(directory.path().join("policy.yaml"), "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: nonsense}}]}]}\n").unwrap();
        let (_, read) = look(directory.path(), Some(&seen)).unwrap();
        take(&state, read);
        assert_eq!(state.index().model(), good);
        let problem = state.problems.of(Part::Source).unwrap();
        assert!(problem.contains("policy.yaml:4") && problem.contains("cidr") && problem.contains("last good state"), "{problem}");
    }

    #[test]
    fn services_of_files_get_addresses_of_the_ranges_and_who_goes_without_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = AgentConfig::new("node", Source::Directory(directory.path().to_owned()));
        config.node_addresses = vec!["192.0.2.1".parse().unwrap()];
        config.ranges = vec!["10.0.0.0/24".parse().unwrap()];
        config.service_ranges = vec!["10.96.0.1/32".parse().unwrap()];
        let state = State::new(config);
        let service = |name: &str| {
            format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{port: 80}}]}}\n")
        };
        fs::write(directory.path().join("all.yaml"), PODS.to_owned() + &service("a") + &service("b")).unwrap();
        let (_, read) = look(directory.path(), None).unwrap();
        take(&state, read);
        let (old, mut numbers) = (palisade_service::Compiled::default(), palisade_service::Numbers::default());
        let rows = palisade_service::compile(&state.index().services(), &old, &mut numbers);
        let problems: Vec<String> = rows.problems().map(|problem| problem.to_string()).collect();
        assert!(problems.len() == 1 && problems[0].starts_with("service shop/b has no cluster IP"), "{problems:?}");
    }

    #[test]
    fn node_objects_take_the_place_of_what_the_configuration_says_of_this_node() {
        let directory = tempfile::tempdir().unwrap();
        let state = state(directory.path());
        let node = |name: &str, number: u8| {
            format!(
                "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDRs: [10.{number}.0.0/24]}}\nstatus: {{addresses: [{{type: InternalIP, address: 192.0.2.{number}}}]}}\n"
            )
        };
        let placed =
            PODS.replace("containers", "nodeName: other, containers").replace("spec:", "status: {podIPs: [{ip: 10.2.0.5}]}\nspec:");
        fs::write(directory.path().join("all.yaml"), placed + &node("node", 1) + &node("other", 2)).unwrap();
        let (_, read) = look(directory.path(), None).unwrap();
        take(&state, read);
        let model = state.index().model();
        assert_eq!((model.nodes.len(), model.nodes[&"node".to_owned()].pod_ranges.len()), (2, 1));
        assert_eq!(model.pods.values().next().unwrap().addresses, ["10.2.0.5".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn without_node_objects_the_configuration_has_to_tell_the_ranges() {
        let directory = tempfile::tempdir().unwrap();
        let state = State::new(AgentConfig::new("node", Source::Directory(directory.path().to_owned())));
        fs::write(directory.path().join("all.yaml"), PODS).unwrap();
        take(&state, look(directory.path(), None).unwrap().1);
        let problem = state.problems.of(Part::Source).unwrap();
        assert!(!state.index().synced() && problem.contains("--ranges"), "{problem}");
    }

    #[test]
    fn an_unchanged_directory_is_not_read_again() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("pods.yaml"), PODS).unwrap();
        let (seen, _) = look(directory.path(), None).unwrap();
        assert!(look(directory.path(), Some(&seen)).is_none());
        fs::write(directory.path().join("pods.yaml"), PODS.replace("shop", "shops")).unwrap();
        assert!(look(directory.path(), Some(&seen)).is_some());
    }

    #[test]
    fn a_directory_that_is_missing_at_first_is_a_problem_and_no_view() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("later");
        let state = state(&path);
        let (seen, read) = look(&path, None).unwrap();
        take(&state, read);
        assert!(!state.index().synced());
        assert!(state.problems.of(Part::Source).unwrap().contains("later"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("pods.yaml"), PODS).unwrap();
        let (_, read) = look(&path, Some(&seen)).unwrap();
        take(&state, read);
        assert!(state.index().synced());
        assert_eq!(state.problems.of(Part::Source), None);
    }
}
