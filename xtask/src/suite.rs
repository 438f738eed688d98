//! `cargo xtask test`: every suite in order, one closing line over all.

use crate::product::{builder, cargo};
use anyhow::{Context, Result, anyhow, bail};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// A suite that takes longer hangs; it is ended and has failed.
const LIMIT: Duration = Duration::from_secs(25 * 60);

/// All that is built and tested here. The BPF programs are built for their own target, by the loader.
const WORKSPACE: &[&str] = &["--workspace", "--exclude", "palisade-datapath-programs"];

/// What a suite needs of the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    /// A kernel in which it may make network namespaces and load programs.
    Root,
    Cluster,
}

/// What a suite does.
enum Work {
    /// A cargo command that succeeds or not: one test.
    Check(fn() -> Vec<&'static str>),
    /// What clippy says of the workspace: no warning.
    Lint,
    /// The tests inside of the crates.
    Inside,
    /// The tests beside the crates, in the `tests` folders of these packages.
    Beside(&'static [&'static str]),
}

/// Tests that are run together.
pub struct Suite {
    name: &'static str,
    needs: Needs,
    /// Whether its tests wait for what comes in time, so that nothing else may run beside them.
    alone: bool,
    work: Work,
}

const SUITES: &[Suite] = &[
    Suite { name: "format", needs: Needs::Nothing, alone: false, work: Work::Check(|| vec!["fmt", "--all", "--check"]) },
    Suite { name: "tidy", needs: Needs::Nothing, alone: false, work: Work::Check(|| vec!["xtask", "tidy"]) },
    Suite { name: "clippy", needs: Needs::Nothing, alone: false, work: Work::Lint },
    Suite { name: "unit", needs: Needs::Nothing, alone: false, work: Work::Inside },
    Suite {
        name: "property",
        needs: Needs::Nothing,
        alone: false,
        work: Work::Beside(&[
            "palisade-datapath-core",
            "palisade-identity",
            "palisade-policy",
            "palisade-service",
            "palisade-k8s",
            "palisade-protocol",
        ]),
    },
    // As it is installed: tests are compiled otherwise.
    Suite { name: "binary", needs: Needs::Nothing, alone: false, work: Work::Check(|| vec!["xtask", "plugin"]) },
    Suite { name: "packet", needs: Needs::Root, alone: false, work: Work::Beside(&["palisade-loader"]) },
    Suite {
        name: "namespace",
        needs: Needs::Root,
        alone: true,
        work: Work::Beside(&["palisade-test-support", "palisade-cni", "palisade-runtime", "palisade-agent", "palisade", "palisade-bench"]),
    },
    Suite { name: "cluster", needs: Needs::Cluster, alone: true, work: Work::Beside(&["palisade-e2e"]) },
];

/// A test program that cargo built.
pub struct Program {
    pub executable: PathBuf,
    pub package: String,
    /// Where it expects to be started.
    pub folder: PathBuf,
    pub target: String,
    beside: bool,
}

/// Of tests.
#[derive(Clone, Copy, Default)]
pub struct Counts {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl Counts {
    const PASSED: Self = Self { passed: 1, failed: 0, skipped: 0 };
    const FAILED: Self = Self { passed: 0, failed: 1, skipped: 0 };

    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// A line of the closing table.
    pub fn line(self, name: &str, took: Duration) -> String {
        let Self { passed, failed, skipped } = self;
        format!("{name:<10} {passed:>5} passed {failed:>4} failed {skipped:>4} skipped  {:>4} s", took.as_secs())
    }

    /// Prints the last line, which counts over all.
    pub fn close(self) -> ExitCode {
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
        if self.failed == 0 && self.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// The suites named, or all.
fn named(names: &[String]) -> Result<Vec<&'static Suite>> {
    if let Some(unknown) = names.iter().find(|name| !SUITES.iter().any(|suite| suite.name == name.as_str())) {
        let names: Vec<&str> = SUITES.iter().map(|suite| suite.name).collect();
        bail!("no suite is called `{unknown}`; there are: {}", names.join(", "));
    }
    Ok(SUITES.iter().filter(|suite| names.is_empty() || names.iter().any(|name| name == suite.name)).collect())
}

/// Those that need nothing but a kernel, of the suites named or of all.
pub fn of_kernel(names: &[String]) -> Result<Vec<&'static Suite>> {
    let suites = named(names)?;
    if let Some(other) = suites.iter().find(|suite| !names.is_empty() && suite.needs != Needs::Root) {
        bail!("the suite `{}` does not depend on the kernel alone", other.name);
    }
    Ok(suites.into_iter().filter(|suite| suite.needs == Needs::Root).collect())
}

/// Runs the suites named, or all; the last line of output counts over all of them.
pub fn run(root: &Path, only: &[String]) -> Result<ExitCode> {
    let mut total = Counts::default();
    let mut lines = Vec::new();
    let mut failures = Vec::new();
    let mut programs = None;
    let chosen = named(only)?;
    let mut preparation = if chosen.iter().any(|suite| suite.needs == Needs::Cluster) { Preparation::begin(root)? } else { None };
    for suite in chosen {
        println!("==> {}", suite.name);
        let begin = Instant::now();
        let counts = match &suite.work {
            Work::Check(arguments) => check(root, &arguments())?,
            Work::Lint => built(root, &mut programs)?.lint(),
            Work::Inside | Work::Beside(_) => {
                let programs = &built(root, &mut programs)?.programs;
                tests(root, suite, programs, preparation.take_if(|_| suite.alone), &mut failures)?
            }
        };
        total.add(counts);
        lines.push(counts.line(suite.name, begin.elapsed()));
    }
    // Once more, where whoever reads the end finds it.
    for line in failures.into_iter().chain([String::new()]).chain(lines) {
        println!("{line}");
    }
    Ok(total.close())
}

/// A command that is ended when it takes too long.
fn limited(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after", "20", &LIMIT.as_secs().to_string()]).arg(program);
    command
}

fn check(root: &Path, arguments: &[&str]) -> Result<Counts> {
    let status = limited(cargo()).args(arguments).current_dir(root).status().context("starting cargo")?;
    Ok(if status.success() { Counts::PASSED } else { Counts::FAILED })
}

/// What was built for the suites.
pub struct Built {
    pub programs: Vec<Program>,
    /// What some of them start: the product's binaries, and those of the tests.
    pub binaries: Vec<PathBuf>,
    warnings: usize,
}

impl Built {
    fn lint(&self) -> Counts {
        if self.warnings == 0 { Counts::PASSED } else { Counts::FAILED }
    }
}

/// The compiler of all that the suites run: clippy's, which says what it finds and compiles like rustc. To check everything and
/// then to compile it would take half as long again. What is released is compiled by rustc.
const COMPILER: (&str, &str) = ("RUSTC_WORKSPACE_WRAPPER", "clippy-driver");
/// Of the image, too: so that it is made of what was built for the tests.
const PROFILE: (&str, &str) = (crate::product::PROFILE, "dev");

fn built<'a>(root: &Path, built: &'a mut Option<Built>) -> Result<&'a Built> {
    if built.is_none() {
        *built = Some(build(root)?);
    }
    built.as_ref().context("nothing was built")
}

/// Builds every test of the workspace at once: with one choice of packages, each dependency is compiled once.
pub fn build(root: &Path) -> Result<Built> {
    eprintln!("building the tests: several minutes the first time");
    let output = builder()
        .args(["test", "--locked", "--no-run", "--message-format", "json"])
        .args(WORKSPACE)
        .current_dir(root)
        .env(COMPILER.0, COMPILER.1)
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    let messages = String::from_utf8(output.stdout)?;
    let messages = messages.lines().map(serde_json::from_str).collect::<Result<Vec<serde_json::Value>, _>>()?;
    let mut warnings = 0;
    for message in messages.iter().filter(|message| message["reason"] == "compiler-message").map(|message| &message["message"]) {
        eprint!("{}", message["rendered"].as_str().unwrap_or_default());
        warnings += usize::from(message["level"] == "warning");
    }
    if !output.status.success() {
        bail!("the tests do not build; what the compiler says stands above");
    }
    let mut programs = Vec::new();
    let mut binaries = Vec::new();
    for message in &messages {
        let Some(executable) = message["executable"].as_str() else { continue };
        if message["profile"]["test"] != true {
            binaries.push(executable.into());
            continue;
        }
        let manifest = Path::new(message["manifest_path"].as_str().unwrap_or_default());
        let program = Program {
            executable: executable.into(),
            package: package_name(message["package_id"].as_str().unwrap_or_default()).to_owned(),
            folder: manifest.parent().unwrap_or(root).to_owned(),
            target: message["target"]["name"].as_str().unwrap_or_default().to_owned(),
            beside: message["target"]["kind"][0] == "test",
        };
        if program.beside && !SUITES.iter().any(|suite| suite.holds(&program)) {
            bail!("the test {} of {} belongs to no suite (xtask/src/suite.rs)", program.target, program.package);
        }
        programs.push(program);
    }
    programs.sort_by(|a, b| (&a.package, &a.target).cmp(&(&b.package, &b.target)));
    Ok(Built { programs, binaries, warnings })
}

/// The package's name in an id such as `path+file:///checkout/cli#palisade@0.1.0` or `path+file:///checkout/xtask#0.1.0`.
fn package_name(id: &str) -> &str {
    let (path, name) = id.rsplit_once('#').unwrap_or_default();
    match name.split_once('@') {
        Some((name, _)) => name,
        None => path.rsplit('/').next().unwrap_or_default(),
    }
}

impl Suite {
    pub fn holds(&self, program: &Program) -> bool {
        match self.work {
            Work::Check(_) | Work::Lint => false,
            Work::Inside => !program.beside,
            Work::Beside(packages) => program.beside && packages.contains(&program.package.as_str()),
        }
    }
}

fn tests(root: &Path, suite: &Suite, programs: &[Program], preparation: Option<Preparation>, failures: &mut Vec<String>) -> Result<Counts> {
    let programs: Vec<&Program> = programs.iter().filter(|program| suite.holds(program)).collect();
    if suite.needs != Needs::Nothing && !is_root() {
        return skipped(suite, &programs, "needs root: network namespaces and BPF");
    }
    if let Some(preparation) = preparation {
        let begin = Instant::now();
        preparation.end()?;
        println!("cluster: waited {} s for what it is made of", begin.elapsed().as_secs());
    }
    let counts =
        if suite.needs == Needs::Cluster { on_cluster(root, suite, &programs, failures)? } else { all(suite, &programs, &[], failures)? };
    if counts.passed + counts.failed == 0 {
        eprintln!("{}: no test ran, which is a failure", suite.name);
        return Ok(Counts { failed: 1, ..counts });
    }
    Ok(counts)
}

/// The programs of the cluster suite that change nothing of the cluster but what is their own: those of a list run one after the other,
/// beside those of the other lists. They wait for most of their time. The first list has all that need ClusterNetworkPolicy to be defined, or not to be.
const LANES: [&[&str]; 3] = [
    &["cluster_policies", "nodes", "truth_tables", "verdicts"],
    &["examples", "identities", "service_kinds", "services"],
    &["attribution", "birth", "chart", "metrics"],
];

fn all(suite: &Suite, programs: &[&Program], environment: &[(&str, String)], failures: &mut Vec<String>) -> Result<Counts> {
    let of_lane =
        |program: &Program| LANES.iter().position(|lane| suite.needs == Needs::Cluster && lane.contains(&program.target.as_str()));
    let of = |wanted: Option<usize>| programs.iter().filter(move |program| of_lane(program) == wanted);
    let run = |programs: &mut dyn Iterator<Item = &&Program>| -> Result<(Counts, Vec<String>)> {
        let (mut counts, mut failures) = (Counts::default(), Vec::new());
        for program in programs {
            let begin = Instant::now();
            counts.add(one(suite, program, of_lane(program).is_some(), environment, &mut failures)?);
            println!("--- {} {}: {} s", program.package, program.target, begin.elapsed().as_secs());
        }
        Ok((counts, failures))
    };
    let mut results = vec![run(&mut of(None))?];
    std::thread::scope(|scope| -> Result<()> {
        let lanes: Vec<_> = (0..LANES.len()).map(|lane| scope.spawn(move || run(&mut of(Some(lane))))).collect();
        for lane in lanes {
            results.push(lane.join().map_err(|_| anyhow!("a thread that runs test programs died"))??);
        }
        Ok(())
    })?;
    let mut total = Counts::default();
    for (counts, mut failed) in results {
        total.add(counts);
        failures.append(&mut failed);
    }
    Ok(total)
}

/// Runs a program. Where others run beside it, each line says whose it is.
fn one(suite: &Suite, program: &Program, beside: bool, environment: &[(&str, String)], failures: &mut Vec<String>) -> Result<Counts> {
    println!("--- {} {}", program.package, program.target);
    let whose = if beside { format!("{}: ", program.target) } else { String::new() };
    let mut command = match environment.iter().find(|(name, _)| *name == NETWORK) {
        Some((_, namespace)) => {
            let mut command = limited("nsenter");
            command.arg(format!("--net={namespace}")).arg("--").arg(&program.executable);
            command
        }
        None => limited(&program.executable),
    };
    let mut child = command
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir(&program.folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", program.executable.display()))?;
    let mut counts = Counts::default();
    let mut failed = Failures::default();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| -> Result<()> {
        let errors = scope.spawn(|| read(stderr, |line| eprintln!("{whose}{line}")));
        let told = read(stdout, |line| {
            println!("{whose}{line}");
            failed.hear(line);
        });
        counts.add(told?);
        counts.add(errors.join().map_err(|_| anyhow!("the thread that reads the errors of a test program died"))??);
        Ok(())
    })?;
    let status = child.wait()?;
    if !status.success() && counts.failed == 0 {
        eprintln!("{}: {} of {} ended with {status} though no test reported a failure", suite.name, program.target, program.package);
        counts.failed += 1;
    }
    if !failed.lines.is_empty() {
        failures.push(format!("\n--- {} {}: what failed", program.package, program.target));
        failures.append(&mut failed.lines);
    }
    Ok(counts)
}

/// What a test program says of the tests that failed, from the first line `failures:` to the second.
#[derive(Default)]
struct Failures {
    lines: Vec<String>,
    headings: usize,
    /// Lines about the present test.
    of_one: usize,
}

impl Failures {
    /// Lines about one test, and characters of a line, that are said once more.
    const LIMIT: (usize, usize) = (12, 600);

    fn hear(&mut self, line: &str) {
        if line == "failures:" {
            self.headings += 1;
        } else if self.headings == 1 && !line.is_empty() {
            self.of_one = if line.starts_with("---- ") { 0 } else { self.of_one + 1 };
            if self.of_one < Self::LIMIT.0 {
                self.lines.push(line.chars().take(Self::LIMIT.1).collect());
            }
        }
    }
}

/// Hands on what a test program prints, and counts what it says.
fn read(stream: Option<impl Read>, mut show: impl FnMut(&str)) -> Result<Counts> {
    let mut counts = Counts::default();
    for line in stream.into_iter().flat_map(|stream| BufReader::new(stream).split(b'\n')) {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        show(&line);
        counts.add(said(&line));
    }
    Ok(counts)
}

/// What a line of a test program says: its result, or that a test, or a part of one, is not run and why. Such a test is among
/// those that passed, too: the harness knows no other end of it.
pub fn said(line: &str) -> Counts {
    match (line.strip_prefix("test result: "), line.starts_with("skipped: ")) {
        (Some(result), _) => parse_result(result),
        (None, true) => Counts { skipped: 1, ..Counts::default() },
        (None, false) => Counts::default(),
    }
}

/// Reads `ok. 3 passed; 0 failed; 1 ignored; ...`.
fn parse_result(result: &str) -> Counts {
    let number = |word: &str| {
        let mut parts = result.split([';', '.']).filter_map(|part| part.trim().strip_suffix(word));
        parts.find_map(|number| number.trim().parse().ok()).unwrap_or(0)
    };
    Counts { passed: number(" passed"), failed: number(" failed"), skipped: number(" ignored") }
}

/// A suite that cannot run here: its tests are counted as skipped, with the reason in plain sight.
fn skipped(suite: &Suite, programs: &[&Program], reason: &str) -> Result<Counts> {
    let mut skipped = 0;
    for program in programs {
        let output = Command::new(&program.executable).arg("--list").current_dir(&program.folder).output()?;
        skipped += String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.ends_with(": test")).count();
    }
    println!("{}: {skipped} tests SKIPPED: {reason}", suite.name);
    Ok(Counts { skipped, ..Counts::default() })
}

/// Names the cluster to test on. Not `KUBECONFIG` itself: who has that exported means other commands, and the tests
/// restart the agents of the cluster that they run on.
const CLUSTER: &str = "PALISADE_TEST_KUBECONFIG";

/// The network namespace that a test program runs in: where the nodes of the cluster are reached, as from outside.
const NETWORK: &str = "PALISADE_TEST_NETWORK";

/// How many tests of a program run at once; else as many as there are processors.
const THREADS: &str = "RUST_TEST_THREADS";

/// What the cluster is made of, as it is made while the other suites are built and run, up to those that are to run alone: in processor
/// time that nothing else wants, of which there is some while a large crate compiles or a test waits.
struct Preparation(Child);

impl Preparation {
    /// `None` where no cluster is to be made here.
    fn begin(root: &Path) -> Result<Option<Self>> {
        if !is_root() || std::env::var_os(CLUSTER).is_some() {
            return Ok(None);
        }
        let log = root.join("target/cluster-preparation.log");
        println!("cluster: what it is made of is made meanwhile ({})", log.display());
        let file = std::fs::File::create(&log).with_context(|| format!("writing {}", log.display()))?;
        let mut command = Command::new("chrt");
        command.args(["--idle", "0", "tests/e2e/kind/up", "--prepare"]).current_dir(root).stdin(Stdio::null());
        match command.stdout(file.try_clone()?).stderr(file).spawn() {
            Ok(child) => Ok(Some(Self(child))),
            Err(error) => {
                println!("cluster: it is made when its turn comes: chrt (of util-linux) does not start: {error}");
                Ok(None)
            }
        }
    }

    /// Waits for it. What failed is tried again, and reported, when the cluster is made.
    fn end(mut self) -> Result<()> {
        self.0.wait().context("waiting for what the cluster is made of")?;
        Ok(())
    }
}

impl Drop for Preparation {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            // It ends what it has started; a second signal would keep it from that.
            let _ = Command::new("kill").arg(self.0.id().to_string()).status();
            let _ = self.0.wait();
        }
    }
}

/// The cluster suite: on the cluster that [`CLUSTER`] names, else on one that is made for it and removed.
fn on_cluster(root: &Path, suite: &Suite, programs: &[&Program], failures: &mut Vec<String>) -> Result<Counts> {
    // What the tests install. Where they run there may be no way out; mostly the preparation and the tests of the plugin have fetched it.
    let built = programs.first().and_then(|program| program.executable.ancestors().nth(3)).unwrap_or(root);
    let needs = [
        ("kind/upstream-definitions", None, "ClusterNetworkPolicy"),
        ("kind/build", Some(PathBuf::from("kube-proxy")), "kube-proxy"),
        // Where its tests look: `CARGO_TARGET_TMPDIR`.
        ("libcni/build", Some(built.join("tmp/go")), "libcni"),
    ];
    for (script, arguments, needed) in needs {
        let script = root.join("tests/e2e").join(script);
        let fetched = Command::new(&script).args(arguments).stdout(Stdio::null()).status();
        if !fetched.with_context(|| format!("starting {}", script.display()))?.success() {
            eprintln!("cluster: the tests that need {needed} will fail, or be skipped");
        }
    }
    if let Ok(kubeconfig) = std::env::var(CLUSTER) {
        println!("cluster: using the cluster of {CLUSTER}={kubeconfig}");
        return all(suite, programs, &[("KUBECONFIG", kubeconfig)], failures);
    }
    let kubeconfig = root.join("target/cluster/kubeconfig");
    let ours = !kubeconfig.exists();
    let make =
        |target: &str| Command::new("make").arg(target).current_dir(root).envs([COMPILER, PROFILE]).status().context("starting make");
    let mut counts = if make("cluster")?.success() {
        let path = format!("{}:{}", root.join("target/cluster/bin").display(), std::env::var("PATH").unwrap_or_default());
        let mut environment = vec![("KUBECONFIG", kubeconfig.display().to_string()), ("PATH", path)];
        // An engine of the cluster's own has a network of its own.
        if let Ok(namespace) = std::fs::read_to_string(root.join("target/cluster/network")) {
            environment.push((NETWORK, namespace.trim().to_owned()));
        }
        // They wait for the cluster more than they work.
        if std::env::var_os(THREADS).is_none() {
            environment.push((THREADS, "4".to_owned()));
        }
        all(suite, programs, &environment, failures)
    } else {
        eprintln!("cluster: `make cluster` failed");
        Ok(Counts::FAILED)
    };
    // Also where a program could not be run.
    if ours && !make("cluster-down")?.success() {
        eprintln!("cluster: `make cluster-down` failed");
        counts.iter_mut().for_each(|counts| counts.add(Counts::FAILED));
    }
    counts
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_the_result_line() {
        let counts = parse_result("FAILED. 12 passed; 3 failed; 2 ignored; 0 measured; 1 filtered out; finished in 0.10s");
        assert_eq!((counts.passed, counts.failed, counts.skipped), (12, 3, 2));
    }

    #[test]
    fn what_a_test_says_that_it_skips_is_counted() {
        let skipped = said("skipped: this kernel has no TCX: a_test");
        assert_eq!((skipped.passed, skipped.failed, skipped.skipped), (0, 0, 1));
        assert_eq!(said("a line about what was skipped: nothing").skipped, 0);
        assert_eq!(said("test result: ok. 2 passed; 0 failed; 0 ignored").passed, 2);
    }

    #[test]
    fn what_failed_is_said_once_more_without_what_is_long() {
        let mut failed = Failures::default();
        let long = "x".repeat(700);
        let before = ["test a ... FAILED", "", "failures:", "", "---- a stdout ----"].into_iter();
        before.chain([long.as_str(); 20]).chain(["---- b stdout ----", "why", "", "failures:", "    a"]).for_each(|line| failed.hear(line));
        assert_eq!((failed.lines[0].as_str(), failed.lines[1].len(), failed.lines.len()), ("---- a stdout ----", 600, 14));
        assert_eq!(failed.lines[12..], ["---- b stdout ----", "why"]);
    }

    #[test]
    fn an_unknown_suite_is_refused() {
        assert!(run(Path::new("."), &["nonsense".to_owned()]).is_err());
    }

    #[test]
    fn a_package_is_known_by_its_id() {
        assert_eq!(package_name("path+file:///checkout/cli#palisade@0.1.0"), "palisade");
        assert_eq!(package_name("path+file:///checkout/xtask#0.1.0"), "xtask");
    }
}
