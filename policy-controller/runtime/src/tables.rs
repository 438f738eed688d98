//! Keeps our tables of nf_tables: what leaves under the node's own address, and where the node's own associations go.

use crate::problem::Part;
use crate::state::State;
use crate::{associations, masquerade};
use palisade_cni::link::nftables::{generation, is_unsupported};
use palisade_cni::link::{Associations, LinkError, Masquerade};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the tables are looked at, changes or not.
const INTERVAL: Duration = Duration::from_secs(30);
/// As long as what is in the kernel is not known yet.
const SOON: Duration = Duration::from_secs(1);

/// What the tables are to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub masquerade: Masquerade,
    /// `None`: that of before, whoever wrote it.
    pub associations: Option<Associations>,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    masquerade: Option<Masquerade>,
    associations: Option<Associations>,
    /// The generation of all tables right after; `None` where the kernel has no tables, and none is needed.
    pub generation: Option<u32>,
}

/// Keeps the tables as the configuration, the Node objects and the services in the kernel say, for ever. What was written stays when the agent ends.
pub async fn follow(state: Arc<State>) -> Infallible {
    let (mut changes, mut publications) = (state.changes(), state.publications());
    let mut before: Option<(Wanted, Written)> = None;
    let mut looked = Instant::now();
    loop {
        changes.borrow_and_update();
        publications.borrow_and_update();
        let mut pause = INTERVAL;
        // Before everything was read, a node that is not there may only not have been listed yet.
        if state.index().synced() {
            let (associations, left_out) = associations(&state).unzip();
            let wanted = Wanted { masquerade: masquerade::of(&state), associations };
            if wanted.associations.is_none() {
                pause = SOON;
            }
            // Most changes are of pods and policies; the kernel is asked now and then alone.
            if before.as_ref().is_none_or(|(before, _)| *before != wanted) || looked.elapsed() >= INTERVAL {
                looked = Instant::now();
                let (asked, written) = (wanted.clone(), before.take().map(|(_, written)| written));
                match tokio::task::spawn_blocking(move || write(asked, written)).await.map_err(|error| error.to_string()) {
                    Ok((written, masquerade, associations)) => {
                        before = Some((wanted, written));
                        match masquerade {
                            None => state.problems.clear(Part::Masquerade),
                            Some(error) => state.problems.set(
                                Part::Masquerade,
                                format!("what leaves the cluster, and what comes by a service, finds no way back: {error}"),
                            ),
                        }
                        // Where nobody knew what to write, what was wrong with it is so still.
                        if let Some(left_out) = left_out {
                            let too_many =
                                (left_out > 0).then(|| format!("{left_out} backends of frontends are left out: there are too many"));
                            state.set_associations(associations.or(too_many));
                        }
                    }
                    Err(error) => state.problems.set(Part::Masquerade, error),
                }
            }
        }
        tokio::select! {
            _ = changes.changed() => {}
            _ = publications.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Where associations go, and how many backends are left out; `None` until the kernel has the services that are known.
fn associations(state: &State) -> Option<(Associations, usize)> {
    if !state.config.serves_node() {
        return Some((Associations::default(), 0));
    }
    state.problems.of(Part::Services).is_none().then(|| associations::of(&state.published().served))
}

/// Writes each table that is to say something else than before; all of them where somebody has changed any table meanwhile, which may have been ours. An
/// agent that has written none yet writes them in any case: an earlier one may have left others. What keeps either from being written comes after
/// what was.
pub fn write(wanted: Wanted, before: Option<Written>) -> (Written, Option<String>, Option<String>) {
    let mut written = before.unwrap_or_default();
    let is_known = written.masquerade.as_ref() == Some(&wanted.masquerade);
    let mut now = generation().ok();
    if written.generation.is_none() || now != written.generation {
        written = Written::default();
    }
    // Each write makes one more. Where it is another in the end, somebody else has written meanwhile, maybe over ours.
    let mut wrote = |problem: &Option<String>| {
        if problem.is_none() {
            now = now.map(|generation| generation.wrapping_add(1));
        }
    };
    let mut problems = [None, None];
    if written.masquerade.as_ref() != Some(&wanted.masquerade) {
        let masquerade = &wanted.masquerade;
        problems[0] = problem(masquerade.apply(), masquerade.is_empty());
        if problems[0].is_none() && !is_known && !masquerade.is_empty() {
            let (sources, inside) = (masquerade.sources.len(), masquerade.inside.len());
            tracing::info!(sources, inside, marked = masquerade.mark != 0, "wrote the table that masquerades");
        }
        wrote(&problems[0]);
        written.masquerade = problems[0].is_none().then_some(wanted.masquerade);
    }
    if let Some(associations) = wanted.associations
        && written.associations.as_ref() != Some(&associations)
    {
        // Where nobody is to be led, nobody misses the table.
        problems[1] = problem(associations.apply(), associations.0.is_empty()).filter(|_| !associations.0.is_empty());
        wrote(&problems[1]);
        written.associations = problems[1].is_none().then_some(associations);
    }
    written.generation = generation().ok().filter(|generation| Some(*generation) == now);
    let [masquerade, associations] = problems;
    (written, masquerade, associations)
}

/// What keeps a table from being written; nothing where the kernel has no tables, and this one is `empty`.
fn problem(result: Result<(), LinkError>, empty: bool) -> Option<String> {
    result.err().filter(|error| !(empty && is_unsupported(error))).map(|error| error.to_string())
}
