//! The API server: one watch per kind, and fresh reads for a pod that is about to start.
//!
//! Nothing of an object is kept but what the index makes of it, at once when it arrives.

mod installed;

use super::access::configuration;
use super::fault::{Asked, SourceError};
use super::order::{Order, Use, version};
use crate::agent::Agent;
use crate::problem::Part;
use crate::reconcile::Backoff;
use crate::state::State;
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::{ApiResource, ObjectList};
use kube::runtime::watcher::{self, Event};
use kube::{Client, Resource};
use palisade_k8s::api::{ClusterNetworkPolicy, Identity, IdentityPolicy};
use palisade_k8s::index::{Index, Indexed, Kind};
use palisade_k8s::{FieldError, FieldPath, Problem, Segment};
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
    /// What the labels of all objects of interest are like.
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
impl Watched for Service {
    const PLURAL: &'static str = "services";
}
impl Watched for EndpointSlice {
    const PLURAL: &'static str = "endpointslices";
    /// Those of headless services are for DNS: nobody's packets go to such a service.
    const LABEL: Option<&'static str> = Some("!service.kubernetes.io/headless");
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

/// The kinds that are read afresh for a pod that is about to start: without them it is not connected.
pub const READ_AFRESH: [&str; 5] =
    [Pod::PLURAL, Namespace::PLURAL, NetworkPolicy::PLURAL, IdentityPolicy::PLURAL, ClusterNetworkPolicy::PLURAL];

/// A kind that is watched, as a value: what asks the API server is compiled once for all, and objects are read when they arrive.
struct Watch {
    resource: ApiResource,
    kind: Kind,
    plural: &'static str,
    label: Option<&'static str>,
    installed_by_users: bool,
    take: fn(&Reader, &State, Event<DynamicObject>) -> Result<(), SourceError>,
}

impl Watch {
    fn of<K: Watched>() -> Self {
        Self {
            resource: ApiResource::erase::<K>(&()),
            kind: K::KIND,
            plural: K::PLURAL,
            label: K::LABEL,
            installed_by_users: K::INSTALLED_BY_USERS,
            take: Reader::take::<K>,
        }
    }

    fn asked<'a>(&self, server: &'a str, verb: &'static str) -> Asked<'a> {
        Asked { server, verb, resource: self.plural }
    }
}

/// An object as what it is; where it cannot be read as that, its metadata and the first field that is wrong.
type Read<K> = Result<K, Box<(ObjectMeta, FieldError)>>;

fn read<K: Watched>(object: DynamicObject) -> Read<K> {
    let refused = |field: FieldPath, error: &dyn std::error::Error| {
        Box::new((object.metadata.clone(), FieldError::new(field, Problem::WrongType(error.to_string()))))
    };
    let value = serde_json::to_value(&object).map_err(|error| refused(FieldPath::root(), &error))?;
    // Only what fails is read with an eye on where.
    K::deserialize(&value)
        .or_else(|_| serde_path_to_error::deserialize(&value).map_err(|error| refused(field(error.path()), error.inner())))
}

fn field(path: &serde_path_to_error::Path) -> FieldPath {
    let segments = path.iter().filter_map(|segment| match segment {
        serde_path_to_error::Segment::Seq { index } => Some(Segment::Index(*index)),
        serde_path_to_error::Segment::Map { key } => Some(Segment::Key(key.clone())),
        serde_path_to_error::Segment::Enum { .. } | serde_path_to_error::Segment::Unknown => None,
    });
    segments.collect()
}

fn metadata<K: Watched>(object: &Read<K>) -> &ObjectMeta {
    match object {
        Ok(object) => object.meta(),
        Err(unreadable) => &unreadable.0,
    }
}

/// Puts an object into the index. Tells whether anything that policy or services need is different now.
fn upsert<K: Watched>(index: &mut Index, object: &Read<K>, asked: Asked<'_>) -> Result<bool, SourceError> {
    let (metadata, error) = match object {
        Ok(object) => return Ok(index.upsert(object)),
        Err(unreadable) => &**unreadable,
    };
    index.upsert_unreadable::<K>(metadata, error.clone()).map_err(|error| SourceError::Answer {
        server: asked.server.to_owned(),
        verb: asked.verb,
        resource: asked.resource,
        message: format!("{} cannot be read: {error}", metadata.name.as_deref().unwrap_or_default()),
    })
}

/// Changes the index by what may fail.
fn change(state: &State, change: impl FnOnce(&mut Index) -> Result<bool, SourceError>) -> Result<(), SourceError> {
    let mut result = Ok(());
    state.change(|index| {
        change(index).unwrap_or_else(|error| {
            result = Err(error);
            // Some of it may have been made.
            true
        })
    });
    result
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
        never = reader.follow(state, Watch::of::<Namespace>()) => never,
        never = reader.follow(state, Watch::of::<Pod>()) => never,
        never = reader.follow(state, Watch::of::<Node>()) => never,
        never = reader.follow(state, Watch::of::<Service>()) => never,
        never = reader.follow(state, Watch::of::<EndpointSlice>()) => never,
        never = reader.follow(state, Watch::of::<NetworkPolicy>()) => never,
        never = reader.follow(state, Watch::of::<Identity>()) => never,
        never = reader.follow(state, Watch::of::<IdentityPolicy>()) => never,
        never = reader.follow(state, Watch::of::<ClusterNetworkPolicy>()) => never,
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
    async fn follow(&self, state: &State, watch: Watch) -> Infallible {
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &watch.resource);
        let asked = watch.asked(&self.server, "watch");
        let part = Part::Watch(watch.plural);
        let narrowed = watcher::Config { label_selector: watch.label.map(str::to_owned), ..watcher::Config::default() };
        let begin = || Box::pin(watcher::watcher(api.clone(), narrowed.clone().timeout(WATCH_SECONDS)));
        let mut events = begin();
        let mut backoff = Backoff::new();
        loop {
            let error = match events.try_next().await {
                Ok(Some(event)) => {
                    // A list begins well though one of its objects may be none.
                    let whole = !matches!(event, Event::Init | Event::InitApply(_));
                    if let Err(fault) = (watch.take)(self, state, event) {
                        // What is known stays in force. The watch does not go on as if it had been taken.
                        state.problems.set(part, fault.to_string());
                        tokio::time::sleep(backoff.pause()).await;
                        events = begin();
                    } else if whole {
                        backoff.reset();
                    }
                    continue;
                }
                // The stream of a watcher has no end.
                Ok(None) => std::future::pending().await,
                Err(error) => error,
            };
            if watch.installed_by_users && is_not_found(&error) {
                self.without_the_kind(state, &watch, &api).await;
                // A watch goes on from where it was, and would not list what came meanwhile.
                events = begin();
                continue;
            }
            state.metrics.watch_restarted(watch.plural);
            let Some(fault) = SourceError::of_watch(&error, asked) else {
                // Not at once: a server that says it again and again would be listed as often.
                tokio::time::sleep(backoff.pause()).await;
                continue;
            };
            state.problems.set(part, fault.to_string());
            // A watch on which nothing happens does not tell that it works again; a small list does.
            loop {
                tokio::time::sleep(backoff.pause()).await;
                match api.list_metadata(&ListParams::default().limit(1)).await {
                    Ok(_) => break,
                    Err(kube::Error::Api(status)) if watch.installed_by_users && status.code == NOT_FOUND => break,
                    Err(error) => {
                        let fault = SourceError::of(&error, Asked { verb: "list", ..asked });
                        state.problems.set(part, fault.to_string());
                    }
                }
            }
            state.problems.clear(part);
        }
    }

    /// Feeds what a watch brings into the index.
    ///
    /// # Errors
    /// An object is none of its kind, and nothing can stand in its place.
    fn take<K: Watched>(&self, state: &State, event: Event<DynamicObject>) -> Result<(), SourceError> {
        let asked = Asked { server: &self.server, verb: "watch", resource: K::PLURAL };
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
                let object = read::<K>(object);
                if order.watched(K::KIND, metadata(&object)) {
                    change(state, |index| upsert(index, &object, asked))?;
                }
            }
            Event::Delete(object) => {
                if order.watched(K::KIND, &object.metadata) {
                    state.change(|index| index.delete_of::<K>(&object.metadata));
                }
            }
            Event::InitDone => {
                order.end_listing(K::KIND);
                state.change(|index| index.resync_end::<K>());
                state.problems.clear(Part::Watch(K::PLURAL));
                tracing::info!(kind = %K::KIND, "all objects are listed");
                if state.index().synced() {
                    state.problems.clear(Part::Source);
                } else {
                    let kinds: Vec<String> = state.index().not_synced().iter().map(ToString::to_string).collect();
                    state.problems.set(Part::Source, format!("not all objects of {} have been listed yet", kinds.join(", ")));
                }
            }
        }
        Ok(())
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
        let own = Some(pod.namespace.as_str());
        let named = |name: &str| ListParams::default().fields(&format!("metadata.name={name}"));
        let (pods, namespaces, policies, identity_policies, cluster_policies) = futures::try_join!(
            self.list(Watch::of::<Pod>(), own, named(&pod.name)),
            self.list(Watch::of::<Namespace>(), None, named(&pod.namespace)),
            self.list(Watch::of::<NetworkPolicy>(), own, ListParams::default()),
            self.list(Watch::of::<IdentityPolicy>(), own, ListParams::default()),
            self.list(Watch::of::<ClusterNetworkPolicy>(), None, ListParams::default()),
        )?;
        let metadata = |namespace: Option<&str>, name: &str| ObjectMeta {
            namespace: namespace.map(str::to_owned),
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        };
        let of = |kind, namespace: Option<&str>| {
            let namespace = namespace.map(str::to_owned);
            move |index: &Index| -> Vec<ObjectMeta> {
                let names = index.policies_of(kind, namespace.as_deref().unwrap_or_default());
                names.iter().map(|name| metadata(namespace.as_deref(), &name.name)).collect()
            }
        };
        let mut order = self.order.lock().expect("no holder of this lock panics");
        let asked = |resource| Asked { server: &self.server, verb: "list", resource };
        if let Some(pods) = pods {
            let known = |_: &Index| vec![metadata(own, &pod.name)];
            adopt::<Pod>(state, &mut order, &metadata(own, &pod.name), pods, known, asked(Pod::PLURAL))?;
        }
        if let Some(namespaces) = namespaces {
            let known = |_: &Index| vec![metadata(None, &pod.namespace)];
            adopt::<Namespace>(state, &mut order, &metadata(None, &pod.namespace), namespaces, known, asked(Namespace::PLURAL))?;
        }
        if let Some(policies) = identity_policies {
            let known = of(PolicyKind::IdentityPolicy, own);
            adopt::<IdentityPolicy>(state, &mut order, &metadata(own, ""), policies, known, asked(IdentityPolicy::PLURAL))?;
        }
        if let Some(policies) = cluster_policies {
            let known = of(PolicyKind::ClusterNetworkPolicy, None);
            adopt::<ClusterNetworkPolicy>(state, &mut order, &metadata(None, ""), policies, known, asked(ClusterNetworkPolicy::PLURAL))?;
        }
        if let Some(policies) = policies {
            let known = of(PolicyKind::NetworkPolicy, own);
            adopt::<NetworkPolicy>(state, &mut order, &metadata(own, ""), policies, known, asked(NetworkPolicy::PLURAL))?;
        }
        Ok(())
    }

    /// Lists without a resource version: answered from the present, not from a cache. `None`: the API server does not know the
    /// kind, which it need not.
    async fn list(
        &self,
        watch: Watch,
        namespace: Option<&str>,
        parameters: ListParams,
    ) -> Result<Option<ObjectList<DynamicObject>>, SourceError> {
        let api = match namespace {
            Some(namespace) => Api::<DynamicObject>::namespaced_with(self.client.clone(), namespace, &watch.resource),
            None => Api::all_with(self.client.clone(), &watch.resource),
        };
        match api.list(&parameters).await {
            Ok(list) => Ok(Some(list)),
            Err(kube::Error::Api(status)) if watch.installed_by_users && status.code == NOT_FOUND => Ok(None),
            Err(error) => Err(SourceError::of(&error, watch.asked(&self.server, "list"))),
        }
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
    list: ObjectList<DynamicObject>,
    known: impl FnOnce(&Index) -> Vec<ObjectMeta>,
    asked: Asked<'_>,
) -> Result<(), SourceError> {
    match order.read(K::KIND, scope, version(list.metadata.resource_version.as_deref())) {
        Use::Wait => return Err(SourceError::Listing(K::PLURAL)),
        Use::Skip => return Ok(()),
        Use::Take => {}
    }
    let objects: Vec<Read<K>> = list.items.into_iter().map(read).collect();
    let present: BTreeSet<&Option<String>> = objects.iter().map(|object| &metadata(object).name).collect();
    change(state, |index| {
        let mut changed = false;
        for metadata in known(index) {
            if !present.contains(&metadata.name) {
                changed |= index.delete_of::<K>(&metadata);
            }
        }
        for object in &objects {
            changed |= upsert(index, object, asked)?;
        }
        Ok(changed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AgentConfig, Source};
    use kube::core::{ListMeta, TypeMeta};
    use serde::Serialize;

    fn state() -> State {
        let state = State::new(AgentConfig::new("node", Source::Kubernetes { server: None }));
        state.change(|index| {
            index.resync::<Namespace>([]);
            index.resync::<Pod>([]);
            index.resync::<Node>([]);
            index.resync::<Service>([]);
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

    fn dynamic(object: impl Serialize) -> DynamicObject {
        serde_json::from_value(serde_json::to_value(object).unwrap()).unwrap()
    }

    fn list(version: u64, items: Vec<NetworkPolicy>) -> ObjectList<DynamicObject> {
        ObjectList {
            types: TypeMeta::default(),
            metadata: ListMeta { resource_version: Some(version.to_string()), ..ListMeta::default() },
            items: items.into_iter().map(dynamic).collect(),
        }
    }

    const ASKED: Asked<'static> = Asked { server: "server", verb: "list", resource: "networkpolicies" };

    fn adopt_policies(state: &State, order: &mut Order, list: ObjectList<DynamicObject>) -> Result<(), SourceError> {
        let known = |index: &Index| {
            index.policies_of(PolicyKind::NetworkPolicy, "shop").iter().map(|name| policy(&name.name, 0).metadata).collect()
        };
        adopt::<NetworkPolicy>(state, order, &policy("", 0).metadata, list, known, ASKED)
    }

    fn names(state: &State) -> Vec<String> {
        state.index().policies_of(PolicyKind::NetworkPolicy, "shop").into_iter().map(|name| name.name).collect()
    }

    #[test]
    fn a_fresh_list_brings_new_policies_and_takes_deleted_ones_away() {
        let (state, mut order) = (state(), Order::default());
        state.change(|index| index.upsert(&policy("deleted", 5)) | index.upsert(&policy("kept", 6)));
        adopt_policies(&state, &mut order, list(20, vec![policy("kept", 6), policy("new", 19)])).unwrap();
        assert_eq!(names(&state), ["kept", "new"]);
    }

    #[test]
    fn a_list_that_is_older_than_the_watch_changes_nothing() {
        let (state, mut order) = (state(), Order::default());
        assert!(order.watched(Kind::NetworkPolicy, &policy("new", 30).metadata));
        state.change(|index| index.upsert(&policy("new", 30)));
        adopt_policies(&state, &mut order, list(20, Vec::new())).unwrap();
        assert_eq!(names(&state), ["new"]);
    }

    #[test]
    fn a_list_beside_a_watch_that_begins_anew_is_refused_for_now() {
        let (state, mut order) = (state(), Order::default());
        order.begin_listing(Kind::NetworkPolicy);
        let refused = adopt_policies(&state, &mut order, list(20, Vec::new()));
        assert_eq!(refused, Err(SourceError::Listing("networkpolicies")));
    }

    #[test]
    fn an_object_that_is_none_of_its_kind_is_refused_alone_and_by_its_field() {
        let state = state();
        let apply = |object: serde_json::Value| {
            let object = serde_json::from_value(object).unwrap();
            change(&state, |index| upsert(index, &read::<IdentityPolicy>(object), ASKED)).unwrap();
        };
        let object = |name: &str, port: serde_json::Value| {
            let rule = serde_json::json!({"action": "Allow", "ports": [{"port": port}]});
            serde_json::json!({"apiVersion": "palisade.dev/v1alpha1", "kind": "IdentityPolicy", "metadata": {"namespace": "shop", "name": name},
                "spec": {"subject": {}, "ingress": [rule]}})
        };
        apply(object("bad", "a string".into()));
        apply(object("good", 80.into()));
        let refused = state.index().refused();
        assert_eq!(refused.iter().map(|refused| refused.object.as_str()).collect::<Vec<_>>(), ["shop/bad"]);
        assert_eq!(refused[0].error.field.to_string(), "spec.ingress[0].ports[0].port", "{}", refused[0]);
        assert_eq!(state.index().policies_of(PolicyKind::IdentityPolicy, "shop").len(), 2, "never a no-op");
        // What was good stays.
        apply(object("good", "a string".into()));
        let index = state.index();
        assert_eq!(index.refused()[1].instead, palisade_k8s::index::Instead::LastGood);
    }
}
