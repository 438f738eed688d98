//! `--watch`: edits of the manifests, applied as they are saved.

use super::LabOptions;
use super::control::Request;
use super::expect::{self, Expectations};
use super::flow::{Asked, Probe, ProbeResult, Report};
use super::manifests::{self, Manifests};
use super::progress::say;
use super::service::Fate;
use super::session::Session;
use super::truth_table;
use crate::arguments::Output;
use crate::error::CliError;
use crate::print;
use crate::table::{Paint, Tone, count};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;

/// How often the directory is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// While the files rest, the agent is asked what it says after so many looks.
const LOOKS_PER_QUESTION: u32 = 5;

/// What is different after an edit.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Flows that are new, or that came out another way.
    pub probes: Vec<ProbeResult>,
    /// Flows that are refused as before, and for another reason.
    pub reasons: Vec<ProbeResult>,
    /// Flows that are no longer there.
    pub removed: Vec<Probe>,
}

impl Changes {
    /// What `after` says that `before` did not.
    pub fn between(before: &Report, after: &Report) -> Self {
        let old: BTreeMap<&Probe, &ProbeResult> = before.probes.iter().map(|result| (&result.probe, result)).collect();
        let new: BTreeMap<&Probe, &ProbeResult> = after.probes.iter().map(|result| (&result.probe, result)).collect();
        let mut changes = Self {
            removed: before.probes.iter().map(|result| &result.probe).filter(|probe| !new.contains_key(probe)).cloned().collect(),
            ..Self::default()
        };
        for result in &after.probes {
            match old.get(&result.probe) {
                Some(old) if (old.reached, old.fate(), &old.disagreement) == (result.reached, result.fate(), &result.disagreement) => {
                    if !result.reached && old.causes() != result.causes() {
                        changes.reasons.push(result.clone());
                    }
                }
                _ => changes.probes.push(result.clone()),
            }
        }
        changes
    }

    fn is_empty(&self) -> bool {
        self.probes.is_empty() && self.reasons.is_empty() && self.removed.is_empty()
    }

    /// How much is different, in words.
    fn counted(&self) -> String {
        let flows = match self.probes.len() + self.removed.len() {
            0 => "no flow changed".to_owned(),
            number => format!("{} changed", count(number, "flow", "flows")),
        };
        match self.reasons.len() {
            0 => flows,
            number => format!("{flows}, {number} refused for another reason"),
        }
    }

    fn rendered(&self, paint: Paint) -> String {
        let mut text = String::new();
        let mut groups: BTreeMap<String, Vec<&Probe>> = BTreeMap::new();
        let changed = self.probes.iter().map(|result| (result, "now refused"));
        for (result, refused) in changed.chain(self.reasons.iter().map(|result| (result, "refused for another reason"))) {
            let reasons: Vec<String> = result.causes().into_iter().map(|(direction, reason)| format!("{direction} {reason}")).collect();
            let title = match (&result.disagreement, result.reached) {
                (Some(how), _) => format!("DISAGREES with the policy: {how}"),
                (None, true) => "now reached".to_owned(),
                (None, false) if result.fate() == Some(Fate::Mixed) => format!("reached at some backends: {}", reasons.join("; ")),
                (None, false) => format!("{refused}: {}", reasons.join("; ")),
            };
            groups.entry(title).or_default().push(&result.probe);
        }
        if !self.removed.is_empty() {
            groups.entry("no longer there".to_owned()).or_default().extend(&self.removed);
        }
        for (title, probes) in groups {
            let tone = match title.as_str() {
                "now reached" => Tone::Good,
                "no longer there" => Tone::Faint,
                title if title.starts_with("DISAGREES") => Tone::Alarm,
                _ => Tone::Bad,
            };
            let _ = writeln!(text, "  {}", paint.text(tone, &title));
            for line in truth_table::flows(&probes) {
                let _ = writeln!(text, "    {line}");
            }
        }
        text
    }
}

/// Follows orders and, with `--watch`, the edits of the directory for ever. Files that cannot be used change nothing: what held goes on holding.
pub async fn follow(
    options: &LabOptions,
    session: &mut Session,
    found: Manifests,
    report: Report,
    orders: Option<mpsc::Receiver<Request>>,
) -> Result<(), CliError> {
    let (mut found, mut report, mut orders) = (found, report, orders);
    let mut seen = contents(&options.directory);
    loop {
        let wake = tokio::select! {
            wake = woken(&options.directory, &mut seen, session, &report), if options.watch => wake,
            request = next_of(&mut orders) => Wake::Order(request),
        };
        let next = match wake {
            Wake::Edit => manifests::read(&options.named, options.expect.as_deref(), Some(&found)),
            Wake::Policy => Ok(found.clone()),
            Wake::Order(request) => {
                match obeyed(options, session, &found, &report, &request).await {
                    Ok(after) => {
                        report = after;
                        request.answer(Ok(()));
                    }
                    Err(CliError::Output(error)) => return Err(error.into()),
                    Err(error) => request.answer(Err(error.to_string())),
                }
                continue;
            }
        };
        match next {
            Err(error) => say(&format!("{error}\npalisade lab: nothing is changed; what was applied before goes on")),
            Ok(next) => match apply(options, session, &found, &next, &report, None).await {
                Ok(after) => (found, report) = (next, after),
                Err(CliError::Output(error)) => return Err(error.into()),
                // A pod that cannot be wired now may be after the next edit.
                Err(error) => say(&format!("{error}\npalisade lab: not all of the edit is applied; waiting for the next")),
            },
        }
    }
}

/// Why there is something to do.
enum Wake {
    /// The files are different.
    Edit,
    /// The compiled policies say something else, although the files rest: the agent took its time.
    Policy,
    /// Somebody gave an order.
    Order(Request),
}

/// The next order; none ever comes to a lab that takes none.
async fn next_of(orders: &mut Option<mpsc::Receiver<Request>>) -> Request {
    match orders {
        Some(orders) => match orders.recv().await {
            Some(request) => request,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// Obeys an order, tries everything again and prints what changed.
async fn obeyed(
    options: &LabOptions,
    session: &mut Session,
    found: &Manifests,
    report: &Report,
    request: &Request,
) -> Result<Report, CliError> {
    let done = session.obey(&request.order).await?;
    apply(options, session, found, found, report, Some(&done)).await
}

/// Waits until the files differ from `seen` and rest (editors and git write in several steps), or until the policies
/// say something else than `report`.
async fn woken(directory: &Path, seen: &mut Contents, session: &Session, report: &Report) -> Wake {
    let mut last = seen.clone();
    for look in 1u32.. {
        tokio::time::sleep(LOOK).await;
        let now = contents(directory);
        if now != *seen && now == last {
            *seen = now;
            break;
        }
        let rests = now == *seen;
        last = now;
        if rests
            && look.is_multiple_of(LOOKS_PER_QUESTION)
            && let Ok(asked) = session.asked().await
            && !agrees(report, &asked)
        {
            return Wake::Policy;
        }
    }
    Wake::Edit
}

fn agrees(report: &Report, asked: &[Asked]) -> bool {
    let same = |(result, asked): (&ProbeResult, &Asked)| {
        let sides = result.egress == asked.egress && result.ingress == asked.ingress;
        sides && result.probe == asked.probe && result.fate() == asked.service.as_ref().map(|behind| behind.fate)
    };
    report.probes.len() == asked.len() && report.probes.iter().zip(asked).all(same)
}

/// Waits until the agent has applied what it has read: it looks at the files as often as we do.
async fn settled(session: &Session) -> Result<(), CliError> {
    let mut before = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let now = session.asked().await?;
        if before.as_ref() == Some(&now) {
            return Ok(());
        }
        before = Some(now);
    }
}

/// Applies an edit, or what follows from what was `done`, tries everything again and prints what changed.
async fn apply(
    options: &LabOptions,
    session: &mut Session,
    before: &Manifests,
    next: &Manifests,
    report: &Report,
    done: Option<&str>,
) -> Result<Report, CliError> {
    session.follow(next).await?;
    settled(session).await?;
    let mut after = session.probe().await?;
    if after.disagreements().next().is_some() {
        // The policy may have changed between the question and the packet; a defect shows again.
        settled(session).await?;
        after = session.probe().await?;
    }
    let changes = Changes::between(report, &after);
    let paint = Paint::for_stdout();
    match options.output {
        Output::Json => print::json_line(&changes)?,
        Output::Table => {
            let mut text = format!("{}\n", paint.text(Tone::Heading, &format!("Applied: {}", applied(before, next, &changes, done))));
            for note in next.notes.iter().filter(|note| !before.notes.contains(note)) {
                let _ = writeln!(text, "  {note}");
            }
            text.push_str(&changes.rendered(paint));
            let _ = writeln!(text, "  {}", truth_table::summary(&after));
            print::text(&text)?;
        }
    }
    if let Some(file) = &options.expect {
        match Expectations::read(file) {
            Err(error) => say(&error.to_string()),
            Ok(expectations) => match &expectations.differences(&after.probes)[..] {
                [] => say("all as expected"),
                differences => say(&format!("not as expected:\n{}", expect::rendered(differences, paint))),
            },
        }
    }
    Ok(after)
}

/// What is different, in a line.
fn applied(before: &Manifests, next: &Manifests, changes: &Changes, done: Option<&str>) -> String {
    let nodes = |of: &Manifests| of.cluster.iter().flat_map(|cluster| cluster.topology.0.keys().cloned()).collect::<BTreeSet<String>>();
    let names = |of: &Manifests, not: &Manifests| -> Vec<String> {
        of.pods.iter().filter(|pod| !not.pods.iter().any(|other| other.name == pod.name)).map(|pod| pod.name.to_string()).collect()
    };
    let (added, removed) = (names(next, before), names(before, next));
    let (old, new) = (nodes(before), nodes(next));
    let (came, went) = (new.difference(&old).cloned().collect(), old.difference(&new).cloned().collect());
    let mut parts: Vec<String> = done.map(str::to_owned).into_iter().collect();
    for (what, names) in [("nodes added", came), ("nodes removed", went), ("pods added", added), ("pods removed", removed)] {
        if !names.is_empty() {
            parts.push(format!("{what}: {}", names.join(", ")));
        }
    }
    if changes.is_empty() {
        parts.push("no flow changed".into());
    }
    if parts.is_empty() { changes.counted() } else { parts.join("; ") }
}

/// What tells one state of the files from another.
type Contents = BTreeMap<PathBuf, (Option<SystemTime>, u64)>;

fn contents(directory: &Path) -> Contents {
    let mut contents = Contents::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            match std::fs::metadata(&path) {
                Ok(meta) if meta.is_dir() && !path.is_symlink() => open.push(path),
                Ok(meta) => drop(contents.insert(path, (meta.modified().ok(), meta.len()))),
                Err(_) => {}
            }
        }
    }
    contents
}

#[cfg(test)]
mod tests {
    use super::super::flow::tests::result;
    use super::*;
    use palisade_protocol::Family::Ipv4;

    fn report(probes: Vec<ProbeResult>) -> Report {
        Report { probes }
    }

    #[test]
    fn a_flow_that_flips_is_told_with_its_reason() {
        let before = report(vec![result("a/x", "b/y", Ipv4, None), result("a/z", "b/y", Ipv4, Some("old"))]);
        let after = report(vec![result("a/x", "b/y", Ipv4, Some("default deny of ingress by b/p")), result("a/z", "b/y", Ipv4, None)]);
        assert_eq!(
            Changes::between(&before, &after).rendered(Paint::none()),
            "  now reached\n    a/z -> b/y: TCP 80 (ipv4)\n  now refused: ingress default deny of ingress by b/p\n    a/x -> b/y: TCP 80 (ipv4)\n"
        );
    }

    #[test]
    fn another_reason_is_a_change_and_the_same_result_is_none() {
        let before = report(vec![result("a/x", "b/y", Ipv4, Some("old")), result("c/x", "b/y", Ipv4, None)]);
        assert!(Changes::between(&before, &before).is_empty());
        let after = report(vec![result("a/x", "b/y", Ipv4, Some("new")), result("c/x", "b/y", Ipv4, None)]);
        let changes = Changes::between(&before, &after);
        assert_eq!((changes.probes.len(), changes.reasons.len(), changes.is_empty()), (0, 1, false));
    }

    #[test]
    fn a_flow_that_was_refused_before_is_told_apart_from_one_that_is_now_and_not_counted_as_changed() {
        let before = report(vec![result("a/x", "b/y", Ipv4, None), result("c/x", "b/y", Ipv4, Some("old"))]);
        let after = report(vec![result("a/x", "b/y", Ipv4, Some("new")), result("c/x", "b/y", Ipv4, Some("new"))]);
        let changes = Changes::between(&before, &after);
        assert_eq!(
            changes.rendered(Paint::none()),
            "  now refused: ingress new\n    a/x -> b/y: TCP 80 (ipv4)\n  \
             refused for another reason: ingress new\n    c/x -> b/y: TCP 80 (ipv4)\n"
        );
        assert_eq!(changes.counted(), "1 flow changed, 1 refused for another reason");
        let json = serde_json::to_value(&changes).unwrap();
        let openers = |key: &str| json[key].as_array().unwrap().iter().map(|probe| probe["from"].clone()).collect::<Vec<_>>();
        assert_eq!((openers("probes"), openers("reasons")), (vec!["a/x".into()], vec!["c/x".into()]));
        let reason_alone = Changes::between(&after, &report(vec![after.probes[0].clone(), result("c/x", "b/y", Ipv4, Some("old"))]));
        assert_eq!(reason_alone.counted(), "no flow changed, 1 refused for another reason");
    }

    #[test]
    fn flows_of_a_pod_that_is_gone_are_no_longer_there() {
        let before = report(vec![result("a/x", "b/y", Ipv4, None)]);
        let changes = Changes::between(&before, &Report::default());
        assert_eq!(changes.rendered(Paint::none()), "  no longer there\n    a/x -> b/y: TCP 80 (ipv4)\n");
    }
}
