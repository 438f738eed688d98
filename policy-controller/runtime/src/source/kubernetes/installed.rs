//! Kinds that users install: whether the API server has them, and in which version.

use super::{NOT_FOUND, Reader, Watch};
use crate::problem::Part;
use crate::source::fault::SourceError;
use crate::state::State;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::ApiResource;
use kube::runtime::watcher::Event;
use std::time::Duration;

/// How often a kind is looked for that the API server does not know.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// How the API server serves a kind.
enum Served {
    /// In the version that is read here.
    Here,
    /// In these versions alone.
    Elsewhere(Vec<String>),
    /// Not at all.
    Nowhere,
}

impl Reader {
    /// The API server has no such resource. Where it says that it does not know the kind, there are no objects of it, until it comes;
    /// anything else is a fault, and what is known stays in force.
    pub(super) async fn without_the_kind(&self, state: &State, watch: &Watch, api: &Api<DynamicObject>) {
        let (part, definition) = (Part::Watch(watch.plural), Part::Definition(watch.plural));
        let taken = |event| drop((watch.take)(self, state, event));
        let mut told = false;
        loop {
            let ApiResource { group, version, .. } = &watch.resource;
            match self.served(watch).await {
                Ok(Served::Nowhere) if !state.index().holds(watch.kind) => {
                    if !std::mem::replace(&mut told, true) {
                        taken(Event::Init);
                        taken(Event::InitDone);
                        tracing::info!(kind = %watch.kind, "the API server does not know this kind; it is looked for every {} s", LOOK_AGAIN.as_secs());
                    }
                    state.problems.clear(part);
                    state.problems.clear(definition);
                }
                Ok(Served::Nowhere) => {
                    state.problems.clear(part);
                    state.problems.set(
                        definition,
                        format!("the API server serves no {} of {group}/{version} any more; what was known stays in force", watch.plural),
                    );
                }
                // There may be some that deny: without them more would be open.
                Ok(Served::Elsewhere(versions)) => {
                    state.problems.clear(part);
                    state.problems.set(
                        definition,
                        format!(
                            "the API server serves {} of {group} in {} alone, and this agent reads {version}: install a version of Palisade that reads the other, \
                             or let the definition serve {version} too; until then policy stays as it was last put in force",
                            watch.plural,
                            versions.join(" and ")
                        ),
                    );
                }
                Ok(Served::Here) => {}
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
        state.problems.clear(definition);
    }

    /// What the API server says of a kind. That one answer was "not found" says little: a proxy may have given it.
    async fn served(&self, watch: &Watch) -> Result<Served, SourceError> {
        let asked = watch.asked(&self.server, "discover");
        let groups = self.client.list_api_groups().await.map_err(|error| SourceError::of(&error, asked))?;
        let ApiResource { group, version, .. } = &watch.resource;
        let mut elsewhere = Vec::new();
        for known in groups.groups.iter().filter(|known| known.name == *group).flat_map(|known| &known.versions) {
            let resources = self.client.list_api_group_resources(&known.group_version).await;
            let resources = resources.map_err(|error| SourceError::of(&error, asked))?;
            if !resources.resources.iter().any(|resource| resource.name == watch.plural) {
                continue;
            }
            if known.version == *version {
                return Ok(Served::Here);
            }
            elsewhere.push(known.version.clone());
        }
        Ok(if elsewhere.is_empty() { Served::Nowhere } else { Served::Elsewhere(elsewhere) })
    }
}
