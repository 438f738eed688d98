//! One write: a status, by server-side apply, or an event.

use super::{Failed, To, answered, hash};
use crate::metrics::Told;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Resource};
use palisade_k8s::api::{self, ClusterNetworkPolicy, Identity, IdentityPolicy};
use palisade_k8s::index::Kind;
use palisade_k8s::sum::{Key, News, Write};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;

/// Who the API server notes as the writer of a status, and users see as the source of an event.
const WRITER: &str = "palisade";
/// How long the text of an event may be, in bytes.
const LONGEST_NOTE: usize = 1000;

/// Makes a write.
pub async fn write(to: &To, write: &Write) -> Result<Told, Failed> {
    match write {
        Write::Status { key, uid, standing, since } => {
            let (kind, name) = key;
            let status = json!({ "status": api::status(*kind, standing, *since) });
            match kind {
                Kind::Identity => apply(&Api::<Identity>::all(to.client.clone()), key, uid.as_deref(), status).await,
                Kind::ClusterNetworkPolicy => {
                    apply(&Api::<ClusterNetworkPolicy>::all(to.client.clone()), key, uid.as_deref(), status).await
                }
                Kind::IdentityPolicy => {
                    apply(&Api::<IdentityPolicy>::namespaced(to.client.clone(), &name.namespace), key, uid.as_deref(), status).await
                }
                // The others have none.
                _ => Ok(()),
            }?;
            Ok(Told::Status)
        }
        Write::Event { key, uid, generation, revision, news, message } => {
            // Of what the annotation alone has changed, the revision tells one time from another. What is wrong is told again by no writer to come.
            let revision = revision.as_deref().filter(|_| matches!(news, News::Audit | News::Enforced));
            let version = format!("{} {}", generation.unwrap_or_default(), revision.unwrap_or_default());
            let event = event(to, key, uid.clone(), &version, *news, message);
            let namespace = event.metadata.namespace.clone().unwrap_or_default();
            let made = answered(Api::<Event>::namespaced(to.client.clone(), &namespace).create(&PostParams::default(), &event)).await;
            match made {
                // It was told before, or its namespace is going.
                Err(error) if matches!(error.code(), Some(404 | 409)) || error.says("being terminated") => Ok(Told::Event),
                made => made.map(|_| Told::Event),
            }
        }
    }
}

/// Applies a status. With the UID, so that another object of the name is left alone.
async fn apply<K>(api: &Api<K>, key: &Key, uid: Option<&str>, mut body: Value) -> Result<(), Failed>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    body["apiVersion"] = json!(K::api_version(&()));
    body["kind"] = json!(K::kind(&()));
    let mut metadata = json!({ "name": key.1.name });
    for (field, value) in [("namespace", Some(key.1.namespace.as_str()).filter(|namespace| !namespace.is_empty())), ("uid", uid)] {
        if let Some(value) = value {
            metadata[field] = json!(value);
        }
    }
    body["metadata"] = metadata;
    answered(api.patch_status(&key.1.name, &PatchParams::apply(WRITER).force(), &Patch::Apply(body))).await.map(drop)
}

/// The event, under a name that the same news has again: it is made once, whoever makes it.
fn event(to: &To, key: &Key, uid: Option<String>, version: &str, news: News, message: &str) -> Event {
    let (kind, object) = key;
    // Not of the message: numbers of nodes in it change, and what another agent puts in the place of an object may be something else.
    let same = format!("{kind} {} {} {}", uid.as_deref().unwrap_or_default(), version, news.name());
    let name: String = object.name.chars().take(200).collect();
    let name = format!("{}.{:016x}", name.trim_end_matches(['.', '-']), hash(&same));
    let namespace = if object.namespace.is_empty() { "default" } else { &object.namespace };
    Event {
        metadata: ObjectMeta { name: Some(name), namespace: Some(namespace.to_owned()), ..ObjectMeta::default() },
        event_time: Some(MicroTime(Timestamp::now())),
        reporting_controller: Some(format!("{}/{WRITER}", palisade_k8s::api::GROUP)),
        reporting_instance: Some(to.node.chars().take(128).collect()),
        action: Some(if news == News::NotAccepted { "Read" } else { "Enforce" }.to_owned()),
        reason: Some(news.name().to_owned()),
        type_: Some(if news.warns() { "Warning" } else { "Normal" }.to_owned()),
        note: Some(shortened(message)),
        regarding: Some(ObjectReference {
            api_version: Some(api_version(*kind)),
            kind: Some(kind.to_string()),
            namespace: Some(object.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            name: Some(object.name.clone()),
            uid,
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}

fn api_version(kind: Kind) -> String {
    fn of<K: k8s_openapi::Resource>() -> String {
        K::API_VERSION.to_owned()
    }
    match kind {
        Kind::Identity => of::<Identity>(),
        Kind::IdentityPolicy => of::<IdentityPolicy>(),
        Kind::ClusterNetworkPolicy => of::<ClusterNetworkPolicy>(),
        _ => of::<NetworkPolicy>(),
    }
}

fn shortened(text: &str) -> String {
    if text.len() <= LONGEST_NOTE {
        return text.to_owned();
    }
    let end = (0..=LONGEST_NOTE).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{failure, server};
    use super::*;
    use palisade_policy::model::ObjectName;

    #[tokio::test]
    async fn an_event_that_tells_the_same_has_the_same_name_whatever_its_numbers_and_another_has_another() {
        let to = server(|_, _| failure(500, "", "nobody asks")).await;
        let key = (Kind::NetworkPolicy, ObjectName::new("shop", "p"));
        let name =
            |uid: &str, version, news, message| event(&to, &key, Some(uid.to_owned()), version, news, message).metadata.name.unwrap();
        let first = name("u", "1 7", News::NotEnforced, "1 of 3 nodes");
        assert_eq!(first, name("u", "1 7", News::NotEnforced, "2 of 3 nodes"));
        // What is there already was named by an agent that ran before.
        assert_eq!(first, "p.164c4f37ab4420b9");
        let others = [
            ("v", "1 7", News::NotEnforced),
            ("u", "2 7", News::NotEnforced),
            ("u", "1 8", News::NotEnforced),
            ("u", "1 7", News::Pending),
        ];
        for other in others.map(|(uid, version, news)| name(uid, version, news, "")) {
            assert_ne!(first, other);
        }
    }
}
