//! `cargo xtask test`: every suite in order, one closing line over all.

use crate::product::cargo;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// What a suite needs of the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Root,
    Cluster,
}

/// How a suite runs.
enum Work {
    /// A check that holds or not: one test.
    Check(&'static [&'static str]),
    /// `cargo test` with these arguments; its own counts are added up.
    Tests(&'static [&'static str]),
}

struct Suite {
    name: &'static str,
    needs: Needs,
    work: Work,
    /// A suite that takes longer hangs; it is ended and has failed.
    limit: Duration,
}

const SUITES: &[Suite] = &[
    Suite::check("format", &["fmt", "--all", "--check"]),
    Suite::check("tidy", &["xtask", "tidy"]),
    Suite::check(
        "clippy",
        &[
            "clippy",
            "--release",
            "--locked",
            "--workspace",
            "--exclude",
            "palisade-datapath-programs",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ],
    ),
    Suite::tests("unit", Needs::Nothing, &["--workspace", "--exclude", "palisade-datapath-programs", "--lib", "--bins"]),
    Suite::tests(
        "property",
        Needs::Nothing,
        &["--package", "palisade-policy", "--package", "palisade-identity", "--package", "palisade-k8s", "--test", "*"],
    ),
    Suite::tests("packet", Needs::Root, &["--package", "palisade-loader", "--test", "*"]),
    Suite::tests(
        "namespace",
        Needs::Root,
        &["--package", "palisade-cni", "--package", "palisade-runtime", "--package", "palisade", "--test", "*"],
    ),
    Suite::tests("cluster", Needs::Cluster, &["--package", "palisade-e2e", "--test", "*"]),
];

impl Suite {
    const fn check(name: &'static str, arguments: &'static [&'static str]) -> Self {
        Self { name, needs: Needs::Nothing, work: Work::Check(arguments), limit: Duration::from_secs(25 * 60) }
    }

    const fn tests(name: &'static str, needs: Needs, arguments: &'static [&'static str]) -> Self {
        Self { name, needs, work: Work::Tests(arguments), limit: Duration::from_secs(25 * 60) }
    }
}

#[derive(Clone, Copy, Default)]
struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Counts {
    const PASSED: Self = Self { passed: 1, failed: 0, skipped: 0 };
    const FAILED: Self = Self { passed: 0, failed: 1, skipped: 0 };

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Runs the suites named, or all; the last line of output counts over all of them.
pub fn run(root: &Path, only: &[String]) -> Result<ExitCode> {
    if let Some(unknown) = only.iter().find(|name| !SUITES.iter().any(|suite| suite.name == name.as_str())) {
        let names: Vec<&str> = SUITES.iter().map(|suite| suite.name).collect();
        bail!("no suite is called `{unknown}`; there are: {}", names.join(", "));
    }
    let mut total = Counts::default();
    let mut lines = Vec::new();
    for suite in SUITES.iter().filter(|suite| only.is_empty() || only.iter().any(|name| name == suite.name)) {
        println!("==> {}", suite.name);
        let begin = Instant::now();
        let counts = run_suite(root, suite)?;
        total.add(counts);
        lines.push(format!(
            "{:<10} {:>5} passed {:>4} failed {:>4} skipped  {:>4} s",
            suite.name,
            counts.passed,
            counts.failed,
            counts.skipped,
            begin.elapsed().as_secs()
        ));
    }
    println!();
    for line in lines {
        println!("{line}");
    }
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    Ok(if total.failed == 0 && total.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_suite(root: &Path, suite: &Suite) -> Result<Counts> {
    match suite.work {
        Work::Check(arguments) => {
            let status = timed(suite).args(arguments).current_dir(root).status().context("starting cargo")?;
            Ok(if status.success() { Counts::PASSED } else { Counts::FAILED })
        }
        Work::Tests(arguments) => {
            if suite.needs != Needs::Nothing && !is_root() {
                return skipped(root, suite, arguments, "needs root: network namespaces and BPF");
            }
            if suite.needs == Needs::Cluster {
                return cluster(root, suite, arguments);
            }
            tests(root, suite, arguments, &[])
        }
    }
}

/// `cargo`, ended when the suite takes too long.
fn timed(suite: &Suite) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after", "20", &suite.limit.as_secs().to_string()]).arg(cargo());
    command
}

fn tests(root: &Path, suite: &Suite, arguments: &[&str], environment: &[(&str, String)]) -> Result<Counts> {
    let mut child = timed(suite)
        .args(["test", "--release", "--locked", "--no-fail-fast"])
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo")?;
    let mut counts = Counts::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            if let Some(result) = line.strip_prefix("test result: ") {
                counts.add(parse_result(result));
            }
        }
    }
    let status = child.wait()?;
    if !status.success() && counts.failed == 0 {
        eprintln!("{}: ended with {status} though no test reported a failure", suite.name);
        counts.failed += 1;
    }
    if counts.passed + counts.failed == 0 {
        eprintln!("{}: no test ran, which is a failure", suite.name);
        counts.failed += 1;
    }
    Ok(counts)
}

/// Reads `ok. 3 passed; 0 failed; 1 ignored; ...`.
fn parse_result(result: &str) -> Counts {
    let number = |word: &str| {
        result
            .split([';', '.'])
            .filter_map(|part| part.trim().strip_suffix(word))
            .find_map(|number| number.trim().parse().ok())
            .unwrap_or(0)
    };
    Counts { passed: number(" passed"), failed: number(" failed"), skipped: number(" ignored") }
}

/// A suite that cannot run here: its tests are counted as skipped, with the reason in plain sight.
fn skipped(root: &Path, suite: &Suite, arguments: &[&str], reason: &str) -> Result<Counts> {
    let output = timed(suite)
        .args(["test", "--release", "--locked"])
        .args(arguments)
        .args(["--", "--list"])
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()?;
    let skipped = String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.ends_with(": test")).count();
    if !output.status.success() {
        return Ok(Counts::FAILED);
    }
    println!("{}: {skipped} tests SKIPPED: {reason}", suite.name);
    Ok(Counts { skipped, ..Counts::default() })
}

/// The cluster suite: the cluster of a given KUBECONFIG, else one that is made for it and removed.
fn cluster(root: &Path, suite: &Suite, arguments: &[&str]) -> Result<Counts> {
    if let Ok(kubeconfig) = std::env::var("KUBECONFIG") {
        println!("cluster: using the cluster of KUBECONFIG={kubeconfig}");
        return tests(root, suite, arguments, &[]);
    }
    let kubeconfig = root.join("target/cluster/kubeconfig");
    let ours = !kubeconfig.exists();
    let up = Command::new("make").arg("cluster").current_dir(root).status().context("starting make cluster")?;
    let counts = if up.success() {
        let path = format!("{}:{}", root.join("target/cluster/bin").display(), std::env::var("PATH").unwrap_or_default());
        tests(root, suite, arguments, &[("KUBECONFIG", kubeconfig.display().to_string()), ("PATH", path)])?
    } else {
        eprintln!("cluster: `make cluster` failed");
        Counts::FAILED
    };
    if ours {
        let down = Command::new("make").arg("cluster-down").current_dir(root).status()?;
        if !down.success() {
            eprintln!("cluster: `make cluster-down` failed");
            return Ok(Counts { failed: counts.failed + 1, ..counts });
        }
    }
    Ok(counts)
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
    fn an_unknown_suite_is_refused() {
        assert!(run(Path::new("."), &["nonsense".to_owned()]).is_err());
    }
}
