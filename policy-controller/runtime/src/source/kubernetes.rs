//! The API server: one watch per kind, and fresh reads for a pod that is about to start.
//!
//! Nothing of an object is kept but what the index makes of it, at once when it arrives.

use super::fault::{Asked, SourceError};
use super::order::{Order, Use, version};
use crate::agent::Agent;
use crate::problem::Part;
use crate::reconcile::Backoff;
use crate::state::State;
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ListParams};
use kube::config::KubeConfigOptions;
use kube::core::ObjectList;
use kube::runtime::watcher::{self, Event};
use kube::{Client, Config, Resource};
use palisade_k8s::api::{ClusterNetworkPolicy, Identity, IdentityPolicy};
use palisade_k8s::index::{Index, Indexed};
use palisade_policy::model::{ObjectName, PolicyKind};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt::Debug;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Where Kubernetes mounts the service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long one watch lasts, in seconds; also the time after which a silent connection counts as dead.
const WATCH_SECONDS: u32 = 60;
/// How long a connection may take, and an answer that is no watch.
const PATIENCE: Duration = Duration::from_secs(5);
const LONGEST_SILENCE: Duration = Duration::from_secs(90);
/// How often a kind is looked for that the API server does not know.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The code of the answer about a kind that the API server does not know.
const NOT_FOUND: u16 = 404;

/// Reads single objects afresh, in order with the watches.
#[derive(Clone)]
pub struct Reader {
    client: Client,
    server: String,
    order: Arc<Mutex<Order>>,
}

impl Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("server", &self.server).finish_non_exhaustive()
    }
}

/// A kind that is watched.
trait Watched: Indexed + Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static {
    /// Its name in permissions and problems, in plural.
    const PLURAL: &'static str;
    /// A label that all objects of interest have.
    const LABEL: Option<&'static str> = None;
    /// Whether the API server may not know the kind: its definition is installed, or not. Then there are none.
    const INSTALLED_BY_USERS: bool = false;
}

impl Watched for Namespace {
    const PLURAL: &'static str = "namespaces";
}
impl Watched for Pod {
    const PLURAL: &'static str = "pods";
}
impl Watched for Node {
    const PLURAL: &'static str = "nodes";
}
impl Watched for EndpointSlice {
    const PLURAL: &'static str = "endpointslices";
    const LABEL: Option<&'static str> = Some("kubernetes.io/service-name=kubernetes");
}
impl Watched for NetworkPolicy {
    const PLURAL: &'static str = "networkpolicies";
}
impl Watched for Identity {
    const PLURAL: &'static str = "identities";
    const INSTALLED_BY_USERS: bool = true;
}
impl Watched for IdentityPolicy {
    const PLURAL: &'static str = "identitypolicies";
    const INSTALLED_BY_USERS: bool = true;
}
impl Watched for ClusterNetworkPolicy {
    const PLURAL: &'static str = "clusternetworkpolicies";
    const INSTALLED_BY_USERS: bool = true;
}

/// Keeps the index as the API server says, for ever.
pub async fn watch(agent: Arc<Agent>, server: Option<String>) -> Infallible {
    let mut backoff = Backoff::new();
    let reader = loop {
        match Reader::connect(server.as_deref()).await {
            Ok(reader) => break reader,
            Err(error) => agent.state.problems.set(Part::Source, error.to_string()),
        }
        tokio::time::sleep(backoff.pause()).await;
    };
    let reader = agent.reader.get_or_init(async || reader).await;
    let state = &agent.state;
    tokio::select! {
        never = reader.follow::<Namespace>(state) => never,
        never = reader.follow::<Pod>(state) => never,
        never = reader.follow::<Node>(state) => never,
        never = reader.follow::<EndpointSlice>(state) => never,
        never = reader.follow::<NetworkPolicy>(state) => never,
        never = reader.follow::<Identity>(state) => never,
        never = reader.follow::<IdentityPolicy>(state) => never,
        never = reader.follow::<ClusterNetworkPolicy>(state) => never,
    }
}

impl Reader {
    async fn connect(server: Option<&str>) -> Result<Self, SourceError> {
        let config = configuration(server, Path::new(SERVICE_ACCOUNT)).await?;
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|error| SourceError::Configuration(error.to_string()))?;
        tracing::info!(server, "watching the API server");
        Ok(Self { client, server, order: Arc::default() })
    }

    /// A client of the API server.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Watches one kind, for ever.
    async fn follow<K: Watched>(&self, state: &State) -> Infallible {
        let api = Api::<K>::all(self.client.clone());
        let asked = Asked { server: &self.server, verb: "watch", resource: K::PLURAL };
        let narrowed = watcher::Config { label_selector: K::LABEL.map(str::to_owned), ..watcher::Config::default() };
        let begin = || Box::pin(watcher::watcher(api.clone(), narrowed.clone().timeout(WATCH_SECONDS)));
        let mut events = begin();
        let mut backoff = Backoff::new();
        loop {
            let error = match events.try_next().await {
                Ok(Some(event)) => {
                    backoff.reset();
                    self.take(state, event);
                    continue;
                }
                // The stream of a watcher has no end.
                Ok(None) => std::future::pending().await,
                Err(error) => error,
            };
            if K::INSTALLED_BY_USERS && is_not_found(&error) {
                self.without_the_kind(state, &api).await;
                // A watch goes on from where it was, and would not list what came meanwhile.
                events = begin();
                continue;
            }
            state.metrics.watch_restarted(K::PLURAL);
            let Some(fault) = SourceError::of_watch(&error, asked) else {
                // Not at once: a server that says it again and again would be listed as often.
                tokio::time::sleep(backoff.pause()).await;
                continue;
            };
            state.problems.set(Part::Watch(K::PLURAL), fault.to_string());
            // A watch on which nothing happens does not tell that it works again; a small list does.
            loop {
                tokio::time::sleep(backoff.pause()).await;
                match api.list_metadata(&ListParams::default().limit(1)).await {
                    Ok(_) => break,
                    Err(kube::Error::Api(status)) if K::INSTALLED_BY_USERS && status.code == NOT_FOUND => break,
                    Err(error) => {
                        let fault = SourceError::of(&error, Asked { verb: "list", ..asked });
                        state.problems.set(Part::Watch(K::PLURAL), fault.to_string());
                    }
                }
            }
            state.problems.clear(Part::Watch(K::PLURAL));
        }
    }

    /// The API server has no such resource. Where it says that it does not know the kind, there are no objects of it, until it comes;
    /// anything else is a fault, and what is known stays in force.
    async fn without_the_kind<K: Watched>(&self, state: &State, api: &Api<K>) {
        let part = Part::Watch(K::PLURAL);
        let mut told = false;
        loop {
            match self.knows::<K>().await {
                Ok(false) if !state.index().holds(K::KIND) => {
                    if !std::mem::replace(&mut told, true) {
                        self.take::<K>(state, Event::Init);
                        self.take::<K>(state, Event::InitDone);
                        tracing::info!(kind = %K::KIND, "the API server does not know this kind; it is looked for every {} s", LOOK_AGAIN.as_secs());
                    }
                    state.problems.clear(part);
                }
                Ok(false) => {
                    let (group, version) = (K::group(&()), K::version(&()));
                    state.problems.set(
                        part,
                        format!("the API server serves no {} of {group}/{version} any more; what was known stays in force", K::PLURAL),
                    );
                }
                Ok(true) => {}
                Err(fault) => state.problems.set(part, fault.to_string()),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            match api.list_metadata(&ListParams::default().limit(1)).await {
                Err(kube::Error::Api(status)) if status.code == NOT_FOUND => {}
                // Whatever else is wrong, the watch says.
                _ => break,
            }
        }
        state.problems.clear(part);
    }

    /// Whether the API server says that it knows a kind. That one answer was "not found" says little: a proxy may have given it.
    async fn knows<K: Watched>(&self) -> Result<bool, SourceError> {
        let asked = Asked { server: &self.server, verb: "discover", resource: K::PLURAL };
        let groups = self.client.list_api_groups().await.map_err(|error| SourceError::of(&error, asked))?;
        let (group, version) = (K::group(&()), K::version(&()));
        let served = groups.groups.iter().any(|known| known.name == group && known.versions.iter().any(|known| known.version == version));
        if !served {
            return Ok(false);
        }
        let resources = self.client.list_api_group_resources(&format!("{group}/{version}")).await;
        let resources = resources.map_err(|error| SourceError::of(&error, asked))?;
        Ok(resources.resources.iter().any(|resource| resource.name == K::PLURAL))
    }

    /// Feeds what a watch brings into the index.
    fn take<K: Watched>(&self, state: &State, event: Event<K>) {
        // Held while the index changes, so that no list comes in between.
        let mut order = self.order.lock().expect("no holder of this lock panics");
        match event {
            Event::Init => {
                order.begin_listing(K::KIND);
                state.change(|index| {
                    index.resync_begin::<K>();
                    false
                });
            }
            Event::InitApply(object) | Event::Apply(object) => {
                if order.watched(K::KIND, object.meta()) {
                    state.change(|index| index.upsert(&object));
                }
            }
            Event::Delete(object) => {
                if order.watched(K::KIND, object.meta()) {
                    state.change(|index| index.delete(&object));
                }
            }
            Event::InitDone => {
                order.end_listing(K::KIND);
                state.change(|index| index.resync_end::<K>());
                tracing::info!(kind = %K::KIND, "all objects are listed");
                if state.index().synced() {
                    state.problems.clear(Part::Source);
                } else {
                    let kinds: Vec<String> = state.index().not_synced().iter().map(ToString::to_string).collect();
                    state.problems.set(Part::Source, format!("not all objects of {} have been listed yet", kinds.join(", ")));
                }
            }
        }
    }

    /// Brings the index up to what is true now for a pod that is about to start: the pod, its namespace and the policies
    /// in it, read from the API server's own store and not from a watch that may lag.
    ///
    /// # Errors
    /// The API server cannot be asked. Then nothing can be said of the pod's policy.
    pub async fn read_afresh(&self, state: &State, pod: &ObjectName) -> Result<(), SourceError> {
        loop {
            match self.try_read_afresh(state, pod).await {
                // The caller bounds the wait.
                Err(SourceError::Listing(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
                result => return result,
            }
        }
    }

    async fn try_read_afresh(&self, state: &State, pod: &ObjectName) -> Result<(), SourceError> {
        let namespaced = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace);
        let named = |name: &str| ListParams::default().fields(&format!("metadata.name={name}"));
        let (pods, namespaces, policies, identity_policies, cluster_policies) = futures::try_join!(
            self.list(namespaced, named(&pod.name)),
            self.list(Api::<Namespace>::all(self.client.clone()), named(&pod.namespace)),
            self.list(Api::<NetworkPolicy>::namespaced(self.client.clone(), &pod.namespace), ListParams::default()),
            self.list_if_installed(Api::<IdentityPolicy>::namespaced(self.client.clone(), &pod.namespace)),
            self.list_if_installed(Api::<ClusterNetworkPolicy>::all(self.client.clone())),
        )?;
        let metadata = |namespace: Option<&str>, name: &str| ObjectMeta {
            namespace: namespace.map(str::to_owned),
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        };
        let mut order = self.order.lock().expect("no holder of this lock panics");
        let known = |_: &Index| vec![metadata(Some(&pod.namespace), &pod.name)];
        adopt(state, &mut order, &metadata(Some(&pod.namespace), &pod.name), &pods, known, |metadata| Pod { metadata, ..Pod::default() })?;
        let known = |_: &Index| vec![metadata(None, &pod.namespace)];
        adopt(state, &mut order, &metadata(None, &pod.namespace), &namespaces, known, |metadata| Namespace {
            metadata,
            ..Namespace::default()
        })?;
        let of = |kind, namespace: Option<&str>| {
            let namespace = namespace.map(str::to_owned);
            move |index: &Index| -> Vec<ObjectMeta> {
                let names = index.policies_of(kind, namespace.as_deref().unwrap_or_default());
                names.iter().map(|name| metadata(namespace.as_deref(), &name.name)).collect()
            }
        };
        let own = Some(pod.namespace.as_str());
        if let Some(policies) = identity_policies {
            let known = of(PolicyKind::IdentityPolicy, own);
            let bare = |metadata| IdentityPolicy { metadata, ..IdentityPolicy::default() };
            adopt(state, &mut order, &metadata(own, ""), &policies, known, bare)?;
        }
        if let Some(policies) = cluster_policies {
            let known = of(PolicyKind::ClusterNetworkPolicy, None);
            let bare = |metadata| ClusterNetworkPolicy { metadata, ..ClusterNetworkPolicy::default() };
            adopt(state, &mut order, &metadata(None, ""), &policies, known, bare)?;
        }
        let known = of(PolicyKind::NetworkPolicy, own);
        let bare = |metadata| NetworkPolicy { metadata, ..NetworkPolicy::default() };
        adopt(state, &mut order, &metadata(own, ""), &policies, known, bare)
    }

    /// Lists all objects of a kind that the API server may not know.
    async fn list_if_installed<K: Watched>(&self, api: Api<K>) -> Result<Option<ObjectList<K>>, SourceError> {
        let asked = Asked { server: &self.server, verb: "list", resource: K::PLURAL };
        match api.list(&ListParams::default()).await {
            Ok(list) => Ok(Some(list)),
            Err(kube::Error::Api(status)) if status.code == NOT_FOUND => Ok(None),
            Err(error) => Err(SourceError::of(&error, asked)),
        }
    }

    /// Lists without a resource version: answered from the present, not from a cache.
    async fn list<K: Watched>(&self, api: Api<K>, parameters: ListParams) -> Result<ObjectList<K>, SourceError> {
        let asked = Asked { server: &self.server, verb: "list", resource: K::PLURAL };
        api.list(&parameters).await.map_err(|error| SourceError::of(&error, asked))
    }
}

/// Whether a watch ended because the API server does not know the kind.
fn is_not_found(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code == NOT_FOUND,
        _ => false,
    }
}

/// Makes the index like a list that is newer than what the watch has brought: `known` are the objects of the list's scope
/// that may be in the index, and those that are not in the list are gone.
fn adopt<K: Watched>(
    state: &State,
    order: &mut Order,
    scope: &ObjectMeta,
    list: &ObjectList<K>,
    known: impl FnOnce(&Index) -> Vec<ObjectMeta>,
    bare: impl Fn(ObjectMeta) -> K,
) -> Result<(), SourceError> {
    match order.read(K::KIND, scope, version(list.metadata.resource_version.as_deref())) {
        Use::Wait => return Err(SourceError::Listing(K::PLURAL)),
        Use::Skip => return Ok(()),
        Use::Take => {}
    }
    let present: BTreeSet<&Option<String>> = list.items.iter().map(|object| &object.meta().name).collect();
    state.change(|index| {
        let mut changed = false;
        for metadata in known(index) {
            if !present.contains(&metadata.name) {
                changed |= index.delete(&bare(metadata));
            }
        }
        for object in &list.items {
            changed |= index.upsert(object);
        }
        changed
    });
    Ok(())
}

/// How to reach the API server and as whom.
async fn configuration(server: Option<&str>, account: &Path) -> Result<Config, SourceError> {
    let token = account.join("token");
    let mut config = if token.exists() {
        let url = match server {
            Some(server) => url(server),
            None => environment_url()?,
        };
        let mut config = Config::new(url.parse().map_err(|error| SourceError::Configuration(format!("{url}: {error}")))?);
        config.auth_info.token_file = Some(token.display().to_string());
        // Read from the file, again and again: it may be renewed. No other authority is trusted.
        config.root_cert = Some(Vec::new());
        config.root_cert_file = Some(account.join("ca.crt"));
        config
    } else if std::env::var_os("KUBECONFIG").is_some() {
        let mut config = Config::from_kubeconfig(&KubeConfigOptions::default())
            .await
            .map_err(|error| SourceError::Configuration(format!("KUBECONFIG: {error}")))?;
        if let Some(server) = server {
            let url = url(server);
            config.cluster_url = url.parse().map_err(|error| SourceError::Configuration(format!("{url}: {error}")))?;
        }
        config
    } else {
        return Err(SourceError::Configuration(format!(
            "there is no service account at {} and KUBECONFIG is not set; --directory reads manifests from a directory instead",
            account.display()
        )));
    };
    config.connect_timeout = Some(PATIENCE);
    config.read_timeout = Some(LONGEST_SILENCE);
    config.reset_reader_on_write = true;
    Ok(config)
}

/// `host:port` as a URL.
fn url(server: &str) -> String {
    if server.contains("://") { server.to_owned() } else { format!("https://{server}") }
}

/// The address that every pod has in its environment.
fn environment_url() -> Result<String, SourceError> {
    let variable = |name: &str| {
        std::env::var(name)
            .map_err(|_| SourceError::Configuration(format!("{name} is not set; --api-server host:port says where the API server is")))
    };
    let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
    Ok(if host.contains(':') { format!("https://[{host}]:{port}") } else { format!("https://{host}:{port}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AgentConfig, Source};
    use kube::core::{ListMeta, TypeMeta};
    use palisade_k8s::index::Kind;

    fn state() -> State {
        let state = State::new(AgentConfig::new("node", Source::Kubernetes { server: None }));
        state.change(|index| {
            index.resync::<Namespace>([]);
            index.resync::<Pod>([]);
            index.resync::<Node>([]);
            index.resync::<EndpointSlice>([]);
            index.resync::<Identity>([]);
            index.resync::<IdentityPolicy>([]);
            index.resync::<ClusterNetworkPolicy>([]);
            index.resync::<NetworkPolicy>([])
        });
        state
    }

    fn policy(name: &str, version: u64) -> NetworkPolicy {
        let mut policy = NetworkPolicy::default();
        policy.metadata.namespace = Some("shop".to_owned());
        policy.metadata.name = Some(name.to_owned());
        policy.metadata.resource_version = Some(version.to_string());
        policy.spec = Some(Default::default());
        policy
    }

    fn list(version: u64, items: Vec<NetworkPolicy>) -> ObjectList<NetworkPolicy> {
        ObjectList {
            types: TypeMeta::default(),
            metadata: ListMeta { resource_version: Some(version.to_string()), ..ListMeta::default() },
            items,
        }
    }

    fn adopt_policies(state: &State, order: &mut Order, list: &ObjectList<NetworkPolicy>) -> Result<(), SourceError> {
        let known = |index: &Index| {
            index.policies_of(PolicyKind::NetworkPolicy, "shop").iter().map(|name| policy(&name.name, 0).metadata).collect()
        };
        adopt(state, order, &policy("", 0).metadata, list, known, |metadata| NetworkPolicy { metadata, ..NetworkPolicy::default() })
    }

    fn names(state: &State) -> Vec<String> {
        state.index().policies_of(PolicyKind::NetworkPolicy, "shop").into_iter().map(|name| name.name).collect()
    }

    #[test]
    fn a_fresh_list_brings_new_policies_and_takes_deleted_ones_away() {
        let (state, mut order) = (state(), Order::default());
        state.change(|index| index.upsert(&policy("deleted", 5)) | index.upsert(&policy("kept", 6)));
        adopt_policies(&state, &mut order, &list(20, vec![policy("kept", 6), policy("new", 19)])).unwrap();
        assert_eq!(names(&state), ["kept", "new"]);
    }

    #[test]
    fn a_list_that_is_older_than_the_watch_changes_nothing() {
        let (state, mut order) = (state(), Order::default());
        assert!(order.watched(Kind::NetworkPolicy, &policy("new", 30).metadata));
        state.change(|index| index.upsert(&policy("new", 30)));
        adopt_policies(&state, &mut order, &list(20, Vec::new())).unwrap();
        assert_eq!(names(&state), ["new"]);
    }

    #[test]
    fn a_list_beside_a_watch_that_begins_anew_is_refused_for_now() {
        let (state, mut order) = (state(), Order::default());
        order.begin_listing(Kind::NetworkPolicy);
        let refused = adopt_policies(&state, &mut order, &list(20, Vec::new()));
        assert_eq!(refused, Err(SourceError::Listing("networkpolicies")));
    }

    #[tokio::test]
    async fn the_service_account_is_used_with_the_address_that_was_given() {
        let account = tempfile::tempdir().unwrap();
        std::fs::write(account.path().join("token"), "secret").unwrap();
        let config = configuration(Some("192.0.2.1:6443"), account.path()).await.unwrap();
        assert_eq!(config.cluster_url.to_string(), "https://192.0.2.1:6443/");
        assert_eq!(config.root_cert_file.as_deref(), Some(account.path().join("ca.crt").as_path()));
        assert_eq!(config.auth_info.token_file.as_deref(), account.path().join("token").to_str());
    }

    #[test]
    fn an_address_without_a_scheme_is_reached_by_https() {
        assert_eq!(url("192.0.2.1:6443"), "https://192.0.2.1:6443");
        assert_eq!(url("http://[::1]:8080"), "http://[::1]:8080");
    }
}
