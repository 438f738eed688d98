//! What the compiler does not check: the architecture's promises.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Longest file of code, in lines: what is longer is two things in one.
const LONGEST_FILE: usize = 600;

/// Which crate may depend on which, outside of tests. Any other edge is an error: knowledge flows one way.
const EDGES: &[(&str, &[&str])] = &[
    ("palisade-datapath-core", &[]),
    ("palisade-identity", &[]),
    ("palisade-protocol", &[]),
    ("palisade-datapath-programs", &["palisade-datapath-core"]),
    ("palisade-loader", &["palisade-datapath-core"]),
    ("palisade-policy", &["palisade-datapath-core", "palisade-identity"]),
    ("palisade-service", &["palisade-datapath-core", "palisade-identity", "palisade-policy"]),
    ("palisade-k8s", &["palisade-identity", "palisade-policy", "palisade-service"]),
    ("palisade-cni", &["palisade-loader", "palisade-protocol"]),
    (
        "palisade-runtime",
        &[
            "palisade-cni",
            "palisade-datapath-core",
            "palisade-identity",
            "palisade-k8s",
            "palisade-loader",
            "palisade-policy",
            "palisade-protocol",
            "palisade-service",
        ],
    ),
    ("palisade-agent", &["palisade-runtime"]),
    (
        "palisade",
        &[
            "palisade-cni",
            "palisade-identity",
            "palisade-k8s",
            "palisade-policy",
            "palisade-protocol",
            "palisade-runtime",
            "palisade-service",
        ],
    ),
    ("palisade-test-support", &["palisade-cni", "palisade-datapath-core"]),
    ("palisade-e2e", &[]),
    (
        "palisade-bench",
        &[
            "palisade-cni",
            "palisade-datapath-core",
            "palisade-identity",
            "palisade-k8s",
            "palisade-loader",
            "palisade-policy",
            "palisade-protocol",
            "palisade-service",
            "palisade-test-support",
        ],
    ),
    ("xtask", &[]),
];

/// Crates that no pure crate may name in its dependencies.
const EFFECTS: &[&str] = &["aya", "kube", "k8s-openapi", "tokio", "nix", "libbpf-rs", "rtnetlink"];
const PURE: &[&str] = &["palisade-datapath-core", "palisade-identity", "palisade-policy", "palisade-protocol", "palisade-service"];

/// Where `unsafe` may stand, each use with a SAFETY line.
const UNSAFE_PLACES: &[&str] = &["datapath-bpf/loader/", "datapath-bpf/programs/", "cni-plugin/src/link/"];

/// File names that say nothing.
const EMPTY_NAMES: &[&str] = &["utils", "util", "helpers", "helper", "common", "manager", "misc"];

/// Runs every check; the exit code says whether all hold.
pub fn run(root: &Path) -> Result<ExitCode> {
    let files = tracked(root)?;
    let mut faults = edges(root)?;
    for file in &files {
        check_name(file, &mut faults);
        // A file that git knows and the disk does not is about to be removed; a binary has no lines.
        let Ok(text) = std::fs::read_to_string(root.join(file)) else { continue };
        check_file(file, &text, &mut faults);
    }
    faults.extend(unreached(root, &files));
    faults.extend(semantics(root, &files)?);
    if faults.is_empty() {
        println!("tidy: {} files, all rules hold", files.len());
        return Ok(ExitCode::SUCCESS);
    }
    for fault in &faults {
        eprintln!("tidy: {fault}");
    }
    eprintln!("tidy: {} faults", faults.len());
    Ok(ExitCode::FAILURE)
}

fn tracked(root: &Path) -> Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("git ls-files: is git installed?")?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let files: BTreeSet<String> = String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect();
    Ok(files.into_iter().collect())
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    license: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

fn edges(root: &Path) -> Result<Vec<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(["metadata", "--format-version", "1", "--no-deps", "--locked"]).current_dir(root).output()?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout)?;
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    let ours: BTreeSet<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    let mut faults = Vec::new();
    for package in &metadata.packages {
        let name = package.name.as_str();
        if package.license.is_none() {
            faults.push(format!("{name}: no licence in its Cargo.toml"));
        }
        let Some(allowed) = allowed.get(name) else {
            faults.push(format!("{name}: not in the list of allowed edges (xtask/src/tidy.rs): say what it may know"));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| dependency.kind.as_deref() != Some("dev")) {
            let dependency = dependency.name.as_str();
            if ours.contains(dependency) && !allowed.contains(&dependency) {
                faults.push(format!("{name} depends on {dependency}, which is not an allowed edge"));
            }
            if PURE.contains(&name) && EFFECTS.contains(&dependency) {
                faults.push(format!("{name} is pure and depends on {dependency}"));
            }
        }
    }
    Ok(faults)
}

/// Where each rule is said to be tested, and the lines that there is a row for.
const TABLES: [(&str, RangeInclusive<u32>); 2] = [("docs/design/semantics.md", 1..=50), ("docs/design/connections.md", 1..=15)];

/// What is wrong with the tables of rules.
fn semantics(root: &Path, files: &[String]) -> Result<Vec<String>> {
    let sources = files.iter().filter(|file| file.ends_with(".rs")).filter_map(|file| std::fs::read_to_string(root.join(file)).ok());
    let sources: Vec<String> = sources.collect();
    let tests = sources.iter().flat_map(|text| tests_of(text)).collect();
    let mut faults = Vec::new();
    for (name, lines) in TABLES {
        let table = std::fs::read_to_string(root.join(name)).with_context(|| format!("reading {name}"))?;
        faults.extend(check_table(name, lines, &table, &tests));
    }
    Ok(faults)
}

/// Lines of a table that are missing or there twice, and names that are no tests.
fn check_table(name: &str, lines: RangeInclusive<u32>, table: &str, tests: &BTreeSet<&str>) -> Vec<String> {
    // Number, rule, tests.
    fn row(line: &str) -> Option<(u32, &str)> {
        let mut cells = line.split('|').skip(1);
        Some((cells.next()?.trim().parse().ok()?, cells.nth(1)?))
    }
    let rows: Vec<(u32, &str)> = table.lines().filter_map(row).collect();
    let mut faults = Vec::new();
    if !rows.iter().map(|(line, _)| *line).eq(lines.clone()) {
        faults.push(format!("{name}: the rows must be the lines of {lines:?}, each once and in order"));
    }
    for (line, cell) in rows {
        let unknown = cell.split('`').skip(1).step_by(2).filter(|test| !tests.contains(test));
        faults.extend(unknown.map(|test| format!("{name}: line {line}: there is no test {test}")));
    }
    faults
}

/// The tests of a source file: functions that carry `#[test]` and run, and the scenarios that it lists.
fn tests_of(text: &str) -> Vec<&str> {
    let mut tests = Vec::new();
    let (mut is_test, mut is_ignored) = (false, false);
    for line in text.lines().map(str::trim) {
        is_test |= line == "#[test]";
        is_ignored |= line.starts_with("#[ignore");
        if let Some(function) = line.strip_prefix("fn ") {
            tests.extend(function.split('(').next().filter(|_| is_test && !is_ignored));
            (is_test, is_ignored) = (false, false);
        }
    }
    for list in text.split("scenarios![").skip(1) {
        let names = list.split(']').next().unwrap_or_default().split(',').map(str::trim);
        tests.extend(names.filter(|name| !name.is_empty()));
    }
    tests
}

fn check_name(file: &str, faults: &mut Vec<String>) {
    for part in Path::new(file).iter() {
        let stem = Path::new(part).file_stem().unwrap_or(part).to_string_lossy();
        if EMPTY_NAMES.contains(&stem.as_ref()) {
            faults.push(format!("{file}: the name `{stem}` says nothing of what is in it"));
        }
    }
}

fn check_file(file: &str, text: &str, faults: &mut Vec<String>) {
    let code = [".rs", ".go", ".sh", ".py"].iter().any(|ending| file.ends_with(ending));
    let lines = text.lines().count();
    if code && lines > LONGEST_FILE {
        faults.push(format!("{file}: {lines} lines, more than {LONGEST_FILE}: it is two files"));
    }
    if file == "xtask/src/tidy.rs" {
        return;
    }
    for (index, line) in text.lines().enumerate() {
        let place = || format!("{file}:{}", index + 1);
        if file.ends_with(".rs") && is_unsafe(line) && !UNSAFE_PLACES.iter().any(|allowed| file.starts_with(allowed)) {
            faults.push(format!("{}: `unsafe` outside {}", place(), UNSAFE_PLACES.join(", ")));
        }
        // Checksums of Go modules can look like paths.
        if !file.ends_with("/go.sum")
            && let Some(path) = machine_path(line)
        {
            faults.push(format!("{}: `{path}` is a path of one machine", place()));
        }
    }
}

/// Whether the line opens an unsafe block, function, impl or trait (the attribute form and the lints do not count).
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    ["unsafe {", "unsafe fn", "unsafe impl", "unsafe trait", "unsafe extern"].iter().any(|word| code.contains(word))
}

/// The first `/NAME/` of the line that opens a path no system is sure to have: a home, a checkout, a mount of one machine.
/// What is named is what may stand (the Filesystem Hierarchy Standard's folders), so a machine no one thought of is found too.
fn machine_path(line: &str) -> Option<&str> {
    const SYSTEM: &[&str] =
        &["bin", "boot", "dev", "etc", "lib", "media", "mnt", "opt", "proc", "run", "sbin", "srv", "sys", "tmp", "usr", "var"];
    // Not files of a machine: paths of the Kubernetes API, of JSON pointers, of the image of a kind node, of the BPF file system, of this repository.
    const OTHERS: &[&str] =
        &["api", "apis", "v1", "definitions", "metadata", "kind", "host", "bpf", "links", "src", "status", "tests", "nonexistent"];
    line.match_indices('/').find_map(|(at, _)| {
        let before = line[..at].chars().next_back();
        if before.is_some_and(|character| character.is_alphanumeric() || "_.-/}$".contains(character)) {
            return None;
        }
        let (name, _) = line[at + 1..].split_once('/')?;
        let named = name.starts_with(|character: char| character.is_ascii_alphabetic())
            && name.chars().all(|character| character.is_ascii_alphanumeric() || "_.-".contains(character));
        (named && !SYSTEM.contains(&name) && !OTHERS.contains(&name)).then(|| &line[at..at + name.len() + 2])
    })
}

/// Source files that no `mod` line and no target of their crate reaches: they compile into nothing.
fn unreached(root: &Path, files: &[String]) -> Vec<String> {
    let sources: BTreeMap<&str, String> = files
        .iter()
        .filter(|file| file.ends_with(".rs"))
        .filter_map(|file| std::fs::read_to_string(root.join(file)).ok().map(|text| (file.as_str(), text)))
        .collect();
    let mut faults = Vec::new();
    for file in sources.keys() {
        let path = PathBuf::from(file);
        let (Some(stem), Some(folder)) = (path.file_stem().and_then(|stem| stem.to_str()), path.parent()) else { continue };
        let target = folder.ends_with("tests") || folder.ends_with("benches") || folder.ends_with("bin") || folder.ends_with("examples");
        if matches!(stem, "main" | "lib" | "build") || (target && stem != "mod") {
            continue;
        }
        let (module, parents) = if stem == "mod" {
            let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            (name, folder.parent().map(module_files).unwrap_or_default())
        } else {
            (stem.to_owned(), module_files(folder))
        };
        let declared = |text: &String| {
            text.lines().any(|line| {
                let line = line.trim().trim_end_matches(';');
                line.ends_with(&format!("mod {module}"))
                    || line.ends_with(&format!("mod {module} {{"))
                    || line.contains(&format!("{stem}.rs\""))
            })
        };
        // A module of an integration test may be declared by any of the tests beside it.
        let beside =
            sources.iter().filter(|(other, _)| Path::new(other).parent() == Some(folder) || Some(Path::new(other)) == folder.parent());
        let by_parent = parents.iter().filter_map(|parent| sources.get(parent.to_string_lossy().as_ref())).any(declared);
        let in_tests = file.contains("/tests/");
        let manifest = root.join(file.split("/src/").next().unwrap_or_default()).join("Cargo.toml");
        let bin = std::fs::read_to_string(manifest).is_ok_and(|text| text.contains(&format!("{stem}.rs\"")));
        if !by_parent && !bin && !(in_tests && (beside.map(|(_, text)| text).any(declared) || sources.values().any(declared))) {
            faults.push(format!("{file}: no `mod {module}` reaches it"));
        }
    }
    faults
}

/// The files that may declare a module of `folder`.
fn module_files(folder: &Path) -> Vec<PathBuf> {
    ["mod.rs", "lib.rs", "main.rs", "build.rs"].iter().map(|name| folder.join(name)).chain([folder.with_extension("rs")]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_in_a_comment_or_a_lint_does_not_count() {
        assert!(is_unsafe("    let x = unsafe { *p };"));
        assert!(!is_unsafe("// an unsafe { block } in words"));
        assert!(!is_unsafe("#![forbid(unsafe_code)]"));
    }

    #[test]
    fn a_path_of_one_machine_is_found_and_a_path_in_a_url_is_not() {
        for top in ["home", "root", "Users", "any-checkout"] {
            assert_eq!(machine_path(&format!("see /{top}/x/main")), Some(format!("/{top}/").as_str()));
        }
        assert_eq!(machine_path(&format!("/run/palisade and /{}/x", "home")), Some(format!("/{}/", "home").as_str()));
        assert_eq!(machine_path("/sys/fs/bpf/palisade, /apis/policy.networking.k8s.io"), None);
        assert_eq!(machine_path("https://example.org/home/page"), None);
    }

    #[test]
    fn a_test_carries_the_attribute_or_is_listed_as_a_scenario_and_is_not_ignored() {
        let text = "fn no() {}\n #[test]\n #[should_panic]\n fn one() {}\nfn neither() {}\n\
            #[test]\n#[ignore = \"slow\"]\nfn never() {}\n#[ignore]\n#[test]\nfn nor_this() {}\n\
            scenarios![\n two,\n three,\n];\nfn two() {}";
        assert_eq!(tests_of(text), ["one", "two", "three"]);
    }

    #[test]
    fn the_table_has_each_line_once_and_names_tests_alone() {
        let check = |table: &str, tests: &BTreeSet<&str>| check_table("table", 1..=9, table, tests);
        let whole: Vec<String> = (1..=9).map(|line| format!("| {line} | `{{}}` | `one`, `two` | unit |")).collect();
        let tests = BTreeSet::from(["one", "two"]);
        assert_eq!(check(&format!("| line | rule | tests | layer |\n|---|---|---|---|\n{}", whole.join("\n")), &tests), [""; 0]);
        assert_eq!(check(&whole[1..].join("\n"), &tests).len(), 1);
        let unknown = check(&whole.join("\n").replacen("`two`", "`three`", 1), &tests);
        assert_eq!(unknown, ["table: line 1: there is no test three"]);
    }

    #[test]
    fn a_long_file_and_a_foreign_unsafe_are_faults() {
        let mut faults = Vec::new();
        check_file("cli/src/x.rs", &"let a = 1;\n".repeat(LONGEST_FILE + 1), &mut faults);
        check_file("cli/src/y.rs", "unsafe { f() }", &mut faults);
        check_file("datapath-bpf/loader/src/z.rs", "unsafe { f() }", &mut faults);
        assert_eq!(faults.len(), 2, "{faults:?}");
    }
}
