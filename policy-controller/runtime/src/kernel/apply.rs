//! A change of the model, put into the kernel.

use super::fit::{self, Fitting, Held};
use super::{Good, Kernel, KernelError, chain, pod_name};
use palisade_datapath_core::abi::{Endpoint, SUBJECT_NONE};
use palisade_k8s::index::Elsewhere;
use palisade_policy::model::{Model, ObjectName, PolicyName};
use palisade_policy::{Compiled, Plan, Step};
use palisade_protocol::EndpointSpec;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

/// How many writes there were, what was put into the kernel, and the policies that are held back.
type Applied = (usize, Arc<Model>, BTreeMap<PolicyName, Held>);

impl Kernel {
    /// Puts the model of what is known now into the kernel.
    ///
    /// A write that fails ends the change: endpoints keep their subjects, the last model that was whole in the kernel is
    /// put back, and the error is for the caller to show and to try again.
    ///
    /// # Errors
    /// The datapath is not open, not everything was read yet, or a write failed.
    pub fn reconcile(&mut self) -> Result<(), KernelError> {
        self.mend()?;
        let (model, digests, refused) = {
            let index = self.state.index();
            let missing = index.not_synced();
            if !missing.is_empty() {
                let kinds: Vec<String> = missing.iter().map(ToString::to_string).collect();
                return Err(KernelError::NotSynced(format!("all objects of {} are still to be listed", kinds.join(", "))));
            }
            (Arc::new(index.model()), index.versions().digests(), index.last_good())
        };
        let local = self.local();
        let began = Instant::now();
        self.close_endpoints()?;
        let kept = self.still_held(&model).map(|fitting| self.apply_fitting(fitting, &local));
        // What went may have made room for what is held back.
        let tried_anew = self.still_held(&model).is_none();
        let applied = match kept {
            Some(Err(KernelError::TooLarge { .. })) | None => self.apply_or_hold(model, &local, None),
            Some(Ok(kept)) if tried_anew => self.apply_or_hold(model, &local, Some(kept)),
            Some(kept) => kept,
        };
        match applied {
            Ok((rows_changed, model, held)) => {
                self.good = Some(Good { model, digests, local });
                for (policy, held) in held.iter().filter(|(policy, held)| self.held.get(*policy) != Some(*held)) {
                    tracing::warn!(%policy, reason = held.reason, "the policy does not fit");
                }
                self.held = held;
                if let Err(error) = self.last_good.save(&self.held, &refused) {
                    tracing::warn!(%error, "the last good versions of policies that do not fit or cannot be used cannot be written down for the next agent");
                }
                if tried_anew {
                    self.note_room(began);
                }
                self.state.metrics.reconciled(began.elapsed(), rows_changed);
                if rows_changed > 0 {
                    tracing::debug!(rows_changed, duration = ?began.elapsed(), "the model is in the kernel");
                }
                let completed = if self.incomplete { self.complete_endpoints() } else { Ok(()) };
                self.publish()?;
                completed
            }
            Err(error) => {
                self.state.metrics.reconcile_failed();
                self.put_back();
                Err(error)
            }
        }
    }

    /// Puts the model into the kernel, without the policies that do not fit. What was `kept` out of it before, and is in the
    /// kernel, stays as it is unless fewer have to be.
    fn apply_or_hold(&mut self, model: Arc<Model>, local: &BTreeSet<ObjectName>, kept: Option<Applied>) -> Result<Applied, KernelError> {
        let error = match self.apply(&model, local) {
            Ok(rows) => return Ok((rows, model, BTreeMap::new())),
            Err(error @ KernelError::TooLarge { .. }) => error,
            Err(error) => return Err(error),
        };
        let fewer =
            |held: &BTreeMap<_, _>, (_, _, kept): &Applied| held.len() < kept.len() && held.keys().all(|name| kept.contains_key(name));
        match (self.fitting(&model, local, &error), kept) {
            (Some(fitting), kept) if kept.as_ref().is_none_or(|kept| fewer(&fitting.held, kept)) => self.apply_fitting(fitting, local),
            (_, Some(kept)) => Ok(kept),
            (_, None) => Err(error),
        }
    }

    fn apply_fitting(&mut self, fitting: Fitting, local: &BTreeSet<ObjectName>) -> Result<Applied, KernelError> {
        let model = Arc::new(fitting.model);
        self.apply(&model, local).map(|rows| (rows, model, fitting.held))
    }

    /// Makes the writes from what the maps hold to what the model wants. Returns how many there were.
    fn apply(&mut self, model: &Model, local: &BTreeSet<ObjectName>) -> Result<usize, KernelError> {
        let old = match self.applied.take() {
            Some(applied) => applied,
            None => Arc::new(self.read_back()?),
        };
        let Plan { steps, next } = self.planner.plan(&old, model, local, &mut self.numbering.numbers);
        if let Err(error) = fit::check(self.datapath()?, &old, &steps).and_then(|needs| self.grow(&needs)) {
            self.applied = Some(old);
            return Err(error);
        }
        // Before the first row: a restarted agent must know every number that it may meet.
        if let Err(error) = self.numbering.save() {
            self.applied = Some(old);
            return Err(error.into());
        }
        // Packets meet the new rows before this change is over, and events tell of them.
        self.state.name_numbers(self.numbering.shared());
        for step in &steps {
            self.make(step)?;
        }
        self.applied = Some(next);
        Ok(steps.len())
    }

    /// Makes one write.
    fn make(&mut self, step: &Step) -> Result<(), KernelError> {
        if let Step::Flip { pod, subject, audit } = step {
            return self.flip(pod, *subject, *audit);
        }
        let datapath = self.datapath()?;
        match step {
            Step::WritePort { key, length, entry } => datapath.ports.insert(&(*key, *length), entry)?,
            Step::WritePolicy { key, entry } => datapath.policy.insert(key, entry)?,
            Step::WritePrefix { prefix, identity } => datapath.prefixes.insert(prefix, identity)?,
            Step::WriteAddress { address, identity } => datapath.addresses.insert(address, identity)?,
            Step::Flip { .. } => {}
            Step::AwaitPrograms => datapath.await_programs(),
            Step::UnsettleEpoch => datapath.unsettle_epoch()?,
            Step::BumpEpoch => drop(datapath.bump_epoch()?),
            Step::RemoveAddress(address) => drop(datapath.addresses.remove(address)?),
            Step::RemovePrefix(prefix) => drop(datapath.prefixes.remove(prefix)?),
            Step::RemovePolicy(key) => drop(datapath.policy.remove(key)?),
            Step::RemovePort(key, length) => drop(datapath.ports.remove(&(*key, *length))?),
        }
        Ok(())
    }

    /// Gives every endpoint of a pod another subject: each one map write, by which the change takes effect.
    fn flip(&mut self, pod: &ObjectName, subject: u32, audit: u32) -> Result<(), KernelError> {
        let attachments: Vec<_> =
            self.endpoints.iter().filter(|(_, endpoint)| pod_name(&endpoint.spec) == *pod).map(|(name, _)| name.clone()).collect();
        for attachment in attachments {
            let spec = &self.endpoints[&attachment].spec;
            let index = spec.host_index;
            let closed = self.reason_to_close(spec).is_some();
            let (subject, audit) = if closed { (SUBJECT_NONE, SUBJECT_NONE) } else { (subject, audit) };
            // It is opened when nothing keeps it closed any more.
            self.incomplete |= closed;
            let datapath = self.datapath()?;
            // An endpoint that is just being realised has no row yet; it gets one with this subject at the end.
            if let Some(row) = datapath.endpoints.get(&index)? {
                datapath.endpoints.insert(&index, &Endpoint { subject, audit, ..row })?;
            }
            if let Some(endpoint) = self.endpoints.get_mut(&attachment) {
                (endpoint.subject, endpoint.audit) = (subject, audit);
            }
        }
        Ok(())
    }

    /// Whether a newer pod has the name of an endpoint's.
    pub(super) fn is_former(&self, spec: &EndpointSpec) -> bool {
        self.state.index().is_another_pod(&pod_name(spec), spec.uid.as_deref())
    }

    /// Why nothing may pass an endpoint, whatever the policy says: a newer pod has its name, and so the rows and maybe the addresses are that one's; or a
    /// pod of another node has its address, and for all other nodes what it sends would come from that one.
    pub(super) fn reason_to_close(&self, spec: &EndpointSpec) -> Option<KernelError> {
        if self.is_former(spec) { Some(KernelError::PodGone(pod_name(spec))) } else { self.taken(spec) }
    }

    /// An address of an endpoint that a pod of another node has by right.
    pub(super) fn taken(&self, spec: &EndpointSpec) -> Option<KernelError> {
        let index = self.state.index();
        spec.addresses.iter().find_map(|&address| {
            let Elsewhere { pod, node } = index.elsewhere(address)?;
            Some(KernelError::Taken { address, pod: pod.clone(), node: node.to_owned() })
        })
    }

    /// Closes endpoints of which nobody knows the policy any more, since a newer pod, here or on another node, has their name; and those whose address
    /// is by now a pod's of another node.
    fn close_endpoints(&mut self) -> Result<(), KernelError> {
        let open = self.endpoints.iter().filter(|(_, endpoint)| endpoint.subject != SUBJECT_NONE);
        let lost: Vec<_> = open
            .filter_map(|(attachment, endpoint)| {
                Some((attachment.clone(), endpoint.spec.host_index, self.reason_to_close(&endpoint.spec)?))
            })
            .collect();
        for (attachment, index, reason) in lost {
            let datapath = self.datapath()?;
            if let Some(row) = datapath.endpoints.get(&index)? {
                datapath.endpoints.insert(&index, &Endpoint { subject: SUBJECT_NONE, audit: SUBJECT_NONE, ..row })?;
                datapath.bump_epoch()?;
            }
            match &reason {
                KernelError::Taken { address, pod, node } => {
                    tracing::warn!(container = attachment.container_id, %address, %pod, node, "a pod of another node has the endpoint's address: closed");
                }
                _ => tracing::info!(container = attachment.container_id, "a newer pod has the name of the endpoint's: closed"),
            }
            self.incomplete = true;
            if let Some(endpoint) = self.endpoints.get_mut(&attachment) {
                (endpoint.subject, endpoint.audit) = (SUBJECT_NONE, SUBJECT_NONE);
            }
        }
        Ok(())
    }

    /// After a change that failed: takes what it had written away again, as far as the kernel lets us, so that what is
    /// enforced, shown and explained is the last good model. Every state on the way has the old verdicts or the new ones.
    fn put_back(&mut self) {
        if self.applied.is_some() {
            return;
        }
        let Some(good) = &self.good else { return };
        let (model, local) = (Arc::clone(&good.model), good.local.clone());
        if let Err(error) = self.apply(&model, &local) {
            tracing::warn!(error = chain(&error), "what a failed change had written is still there; it is read back at the next change");
        }
    }

    /// What the maps hold. Endpoints of which nobody knows whose policy is right are closed: their numbers are given out anew.
    pub(super) fn read_back(&mut self) -> Result<Compiled, KernelError> {
        // A newer pod has the name of a former one: what is closed says nothing of the one that is open.
        let pods: BTreeMap<u32, ObjectName> = self
            .endpoints
            .values()
            .filter(|endpoint| !self.is_former(&endpoint.spec))
            .map(|endpoint| (endpoint.spec.host_index, pod_name(&endpoint.spec)))
            .collect();
        let datapath = self.datapath()?;
        let rows = datapath.endpoints.rows()?;
        let mut found: BTreeMap<&ObjectName, BTreeSet<u32>> = BTreeMap::new();
        for (index, row) in &rows {
            if let Some(pod) = pods.get(index) {
                found.entry(pod).or_default().extend(Some(row.subject).filter(|subject| *subject != SUBJECT_NONE));
            }
        }
        let (mut subjects, mut audits) = (BTreeMap::new(), BTreeMap::new());
        let mut closed = false;
        for (index, row) in &rows {
            let pod = pods.get(index);
            let one = pod.and_then(|pod| found.get(pod)).is_some_and(|subjects| subjects.len() <= 1);
            if let Some(pod) = pod {
                let subject = found.get(pod).filter(|_| one).and_then(BTreeSet::first).copied();
                subjects.insert(pod.clone(), subject.unwrap_or(SUBJECT_NONE));
                if one && row.audit != SUBJECT_NONE {
                    audits.insert(pod.clone(), row.audit);
                }
            }
            // Its record cannot be read, or the endpoints of a pod differ, since a flip was cut short.
            if !one && row.subject != SUBJECT_NONE {
                datapath.endpoints.insert(index, &Endpoint { subject: SUBJECT_NONE, audit: SUBJECT_NONE, ..*row })?;
                closed = true;
            }
        }
        datapath.settle_epoch(closed)?;
        let compiled = Compiled {
            subjects,
            audits,
            addresses: datapath.addresses.rows()?.into_iter().collect(),
            prefixes: datapath.prefixes.rows()?,
            policy: datapath.policy.rows()?,
            ports: datapath.ports.rows()?,
        };
        // One of two endpoints of a pod may be closed that the plan finds as it should be.
        self.incomplete = true;
        Ok(compiled)
    }
}
