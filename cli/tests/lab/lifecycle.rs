//! Labs beside each other, commands in them, and what is left when they end.

use crate::runner::{Manifests, PALISADE, Running, labs_run_here, namespace, palisade, pod, run, shop};
use nix::sys::signal::Signal;
use palisade_test_support::Snapshot;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const STAYS: &str = "the lab stays";

/// The first process of the lab that `command` started.
fn first_process(command: &Running) -> i32 {
    let found = children(command.pid());
    assert_eq!(found.len(), 1, "one child: the lab's first process");
    found[0]
}

/// The children of a process, as the kernel has them.
fn children(pid: i32) -> Vec<i32> {
    let parent = |stat: &str| stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<i32>().ok();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| {
            let child = process.file_name().to_str()?.parse().ok()?;
            (parent(&std::fs::read_to_string(process.path().join("stat")).ok()?)? == pid).then_some(child)
        })
        .collect()
}

/// The kinds of namespaces that a lab has of its own.
const KINDS: [&str; 3] = ["pid", "mnt", "net"];

/// What a lab is made of, as seen from here.
#[derive(Debug)]
struct Traces {
    /// Its PID, mount and network namespaces. As long as they are open, no namespace of another test's lab gets their numbers.
    namespaces: Vec<File>,
    /// Ids of its BPF maps and programs.
    maps: BTreeSet<u32>,
    programs: BTreeSet<u32>,
}

impl Traces {
    fn of(pid: i32) -> Self {
        let of = |pid: &str| KINDS.map(|kind| File::open(format!("/proc/{pid}/ns/{kind}")).unwrap());
        let mut namespaces = Vec::from(of(&pid.to_string()));
        let pods = std::fs::read_dir(format!("/proc/{pid}/root/run/palisade-lab/netns")).unwrap();
        namespaces.extend(pods.flatten().map(|file| File::open(file.path()).unwrap()));
        assert!(inodes(&of("self")).is_disjoint(&inodes(&namespaces)), "the lab is in namespaces of its own");
        let (mut maps, mut programs) = (BTreeSet::new(), BTreeSet::new());
        for file in std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap().flatten() {
            let text = std::fs::read_to_string(file.path()).unwrap_or_default();
            let number = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u32>().ok());
            maps.extend(number("map_id:"));
            programs.extend(number("prog_id:"));
        }
        assert!(!maps.is_empty(), "the lab's agent holds its maps");
        Self { namespaces, maps, programs }
    }

    /// Demands that nothing is left; the kernel takes namespaces down after the last process is gone, and who holds them open has let go.
    fn expect_gone(self) {
        let Self { namespaces, maps, programs } = self;
        let own = inodes(&namespaces);
        let processes = || std::fs::read_dir("/proc").unwrap().flatten().map(|process| process.path());
        expect_none(|| processes().flat_map(|process| within(&process, &own)).collect());
        drop(namespaces);
        expect_none(|| {
            let maps = aya::maps::loaded_maps().flatten().map(|map| map.id()).filter(|id| maps.contains(id));
            let programs = aya::programs::loaded_programs().flatten().map(|program| program.id()).filter(|id| programs.contains(id));
            maps.map(|id| format!("map {id}")).chain(programs.map(|id| format!("program {id}"))).collect()
        });
    }
}

fn inodes(namespaces: &[File]) -> BTreeSet<u64> {
    namespaces.iter().map(|namespace| namespace.metadata().unwrap().ino()).collect()
}

/// In which of the namespaces a process is.
fn within(process: &Path, namespaces: &BTreeSet<u64>) -> Vec<String> {
    let is_one = |kind: &&str| std::fs::metadata(process.join("ns").join(kind)).is_ok_and(|meta| namespaces.contains(&meta.ino()));
    KINDS.iter().copied().filter(is_one).map(|kind| format!("process {} in its {kind} namespace", process.display())).collect()
}

/// Waits until nothing is left.
fn expect_none(left: impl Fn() -> Vec<String>) {
    let start = Instant::now();
    loop {
        let left = left();
        if left.is_empty() {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(15), "left behind: {left:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn staying_lab(directory: &std::path::Path) -> Running {
    let lab = Running::lab(directory, &["--keep"]);
    lab.wait_for_errors(STAYS);
    lab
}

fn leaves_nothing_after(signal: Signal, directory: &Path) {
    let nothing = tempfile::tempdir().unwrap();
    let before = Snapshot::take(nothing.path()).unwrap();
    let mut lab = staying_lab(directory);
    let first = first_process(&lab);
    let traces = Traces::of(first);
    assert_eq!(before.difference(&Snapshot::take(nothing.path()).unwrap()), "", "a running lab shows nothing on the host");
    lab.signal(signal);
    let status = lab.wait_for_end();
    if signal != Signal::SIGKILL {
        assert_eq!(status.code(), Some(0), "the user ends a lab that stays: {}", lab.errors());
    }
    traces.expect_gone();
    assert_eq!(before.difference(&Snapshot::take(nothing.path()).unwrap()), "", "after {signal}");
    // Whoever looks next sweeps what a killed lab left in the registry.
    let asked = run(palisade(["status".to_owned(), format!("--lab={first}")]));
    assert_ne!(asked.code, Some(0), "the lab is no longer known");
    assert!(!PathBuf::from(format!("/run/palisade-lab/{first}.json")).exists(), "its entry is swept");
}

#[test]
fn a_lab_that_is_killed_leaves_nothing() {
    if labs_run_here() {
        leaves_nothing_after(Signal::SIGKILL, &shop());
    }
}

#[test]
fn a_lab_that_the_user_ends_leaves_nothing() {
    if labs_run_here() {
        leaves_nothing_after(Signal::SIGINT, &shop());
    }
}

#[test]
fn a_lab_of_several_nodes_that_is_ended_or_killed_leaves_nothing() {
    if labs_run_here() {
        for signal in [Signal::SIGINT, Signal::SIGKILL] {
            leaves_nothing_after(signal, &shop().with_file_name("two-subnets"));
        }
    }
}

#[test]
fn a_lab_that_is_interrupted_before_its_table_says_so_with_130() {
    if !labs_run_here() {
        return;
    }
    let mut lab = Running::lab(&shop(), &[]);
    while children(lab.pid()).is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    lab.signal(Signal::SIGTERM);
    assert_eq!(lab.wait_for_end().code(), Some(130), "{}\n{}", lab.output(), lab.errors());
    assert_eq!(lab.output(), "");
}

#[test]
fn two_labs_at_once_do_not_meet() {
    if !labs_run_here() {
        return;
    }
    let manifests = |name: &str| Manifests::new(&(namespace("same") + &pod("same", name, "{containerPort: 80}")));
    let (left, right) = (manifests("left"), manifests("right"));
    let labs = [staying_lab(left.path()), staying_lab(right.path())];
    for (directory, own) in [(&left, "left"), (&right, "right")] {
        let lab = format!("--lab={}", directory.path().display());
        let endpoints = run(palisade(["endpoint", "list", "--output", "json", &lab])).expect_code(0).json();
        let names: Vec<&Value> = endpoints.as_array().unwrap().iter().map(|endpoint| &endpoint["pod"]).collect();
        assert_eq!(names, [&Value::from(own)]);
    }
    let unclear = run(palisade(["status", "--lab"]));
    assert!(unclear.code != Some(0) && unclear.errors.contains("several labs"), "{}", unclear.errors);
    drop(labs);
}

/// The address of a pod of the lab in `directory`.
fn address(directory: &std::path::Path, pod: &str, ipv6: bool) -> String {
    let lab = format!("--lab={}", directory.canonicalize().unwrap().display());
    let endpoints = run(palisade(["endpoint", "list", "-o", "json", &lab])).expect_code(0).json();
    let endpoint = endpoints
        .as_array()
        .unwrap()
        .iter()
        .find(|endpoint| format!("{}/{}", endpoint["namespace"].as_str().unwrap(), endpoint["pod"].as_str().unwrap()) == pod);
    let addresses = endpoint.unwrap_or_else(|| panic!("no {pod} in {endpoints}"))["addresses"].as_array().unwrap().clone();
    addresses.iter().filter_map(Value::as_str).find(|address| address.contains(':') == ipv6).unwrap().to_owned()
}

#[test]
fn a_running_lab_answers_and_runs_commands_in_its_pods() {
    if !labs_run_here() {
        return;
    }
    // A copy, so that no lab of another test has the same directory.
    let manifests = Manifests::new("");
    for file in ["namespaces.yaml", "pods.yaml", "policy.yaml"] {
        manifests.write(file, &std::fs::read_to_string(shop().join(file)).unwrap());
    }
    std::fs::remove_file(manifests.path().join("all.yaml")).unwrap();
    let running = staying_lab(manifests.path());
    let lab = format!("--lab={}", manifests.path().display());
    let in_pod = |pod: &str, script: &str| {
        let mut command = palisade(["lab", "exec", &lab, pod, "--"]);
        command.args(["bash", "-c", script]);
        run(command)
    };
    let own = in_pod("frontend/web-0", "cat /proc/net/if_inet6 && ls /sys/class/net").expect_code(0).output;
    assert!(own.contains("eth0") && own.contains("fd00"), "the pod's own interface: {own}");
    in_pod("frontend/web-0", "exit 7").expect_code(7);
    in_pod("frontend/web-0", "kill -9 $$").expect_code(137);
    let unknown = in_pod("frontend/nobody", "true").expect_code(2);
    assert!(unknown.errors.contains("frontend/web-0"), "the pods that there are: {}", unknown.errors);

    let api = address(manifests.path(), "backend/api", false);
    let connect = format!("exec 3<>/dev/tcp/{api}/80 && echo connected");
    assert_eq!(in_pod("frontend/web-0", &connect).expect_code(0).output, "connected\n");

    // What is refused is seen, with names and the rule.
    let mut observe = palisade(["observe", &lab, "--output", "json", "--pod", "guest/visitor", "--count", "1"]);
    observe.stdout(std::process::Stdio::piped());
    let mut observing = Running::start(observe);
    let refuse_until_it_is_seen = |observing: &Running| {
        let start = Instant::now();
        while observing.output().is_empty() {
            assert!(start.elapsed() < crate::runner::LONG, "no event: {}", observing.errors());
            assert_ne!(in_pod("guest/visitor", &format!("timeout 1 bash -c '{connect}'")).code, Some(0), "guest is refused");
        }
    };
    refuse_until_it_is_seen(&observing);
    assert_eq!(observing.wait_for_end().code(), Some(0));
    let event: Value = serde_json::from_str(observing.output().lines().next().unwrap()).unwrap();
    assert_eq!((&event["source"]["name"], &event["destination"]["name"]), (&"guest/visitor".into(), &"backend/api".into()));
    assert!(event["ingress"]["reason"].as_str().unwrap().contains("backend/allow-frontend"), "{event}");

    let status = run(palisade(["status", &lab, "-o", "json"])).expect_code(0).json();
    assert_eq!((&status["ready"], &status["counts"]["endpoints"]), (&true.into(), &4.into()), "{status}");
    let table = run(palisade(["endpoint", "list", &lab])).expect_code(0).output;
    assert!(table.lines().any(|line| line.contains("backend/api") && line.contains("backend/allow-frontend")), "{table}");

    let policies = run(palisade(["policy", "list", &lab, "-o", "json"])).expect_code(0).json();
    let policy = &policies[0];
    assert_eq!((policies.as_array().unwrap().len(), &policy["object"]), (1, &"backend/allow-frontend".into()), "{policies}");
    assert_eq!(
        (&policy["enforced"], &policy["pods"], &policy["podsHere"], &policy["ingressRules"]),
        (&true.into(), &1.into(), &1.into(), &1.into())
    );
    let one = run(palisade(["policy", "get", &lab, "backend/allow-frontend"])).expect_code(0).output;
    assert!(one.contains("NetworkPolicy backend/allow-frontend selects backend/api\n"), "{one}");
    let none = run(palisade(["policy", "get", &lab, "backend/other"])).expect_code(2);
    assert!(none.errors.contains("no policy backend/other"), "{}", none.errors);
    run(palisade(["identity", "get", &lab, "payments-db"])).expect_code(2);
    assert_eq!(run(palisade(["identity", "list", &lab, "-o", "json"])).expect_code(0).output, "[]\n");
    for namespaces in ["-A", "-nbackend"] {
        assert_eq!(run(palisade(["service", "list", &lab, namespaces, "-o", "json"])).expect_code(0).output, "[]\n");
    }
    let none = run(palisade(["service", "get", &lab, "backend/api"])).expect_code(2);
    assert!(none.errors.contains("no service backend/api"), "{}", none.errors);

    let explain = |from: &str, to: &str, port: &str| {
        run(palisade(["explain", &lab, "--from", from, "--to", to, "--port", port, "-o", "json"])).expect_code(0).json()
    };
    let refused = explain("guest/visitor", "backend/api", "80");
    assert_eq!(refused.as_array().unwrap().len(), 2, "both families");
    assert!(
        refused[0]["passes"] == false && refused[0]["ingress"]["reason"].as_str().unwrap().contains("backend/allow-frontend"),
        "{refused}"
    );
    assert_eq!(explain("frontend/web-0", "backend/api", "80")[1]["passes"], true);
    assert_eq!(explain("outside", "guest/visitor", "80")[0]["passes"], true);
    let unknown = run(palisade(["explain", &lab, "--from", "guest/nobody", "--to", "backend/api", "--port", "80"]));
    assert!(unknown.code == Some(2) && unknown.errors.contains("guest/nobody"), "{}", unknown.errors);
    assert!(unknown.errors.contains("the pods here: ") && unknown.errors.contains("guest/visitor"), "{}", unknown.errors);

    // By the process that the user started, too; and an observer sees the end of the lab as what it is.
    let mut observe = palisade(["observe", &format!("--lab={}", running.pid())]);
    observe.stdout(std::process::Stdio::piped());
    let mut observing = Running::start(observe);
    refuse_until_it_is_seen(&observing);
    running.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(observing.wait_for_end().code(), Some(3));
    assert!(observing.errors().contains("the lab has ended"), "{}", observing.errors());
}

#[test]
fn a_reader_that_hangs_up_is_no_failure() {
    if !labs_run_here() {
        return;
    }
    let script = format!("{PALISADE} lab {} | true; echo ${{PIPESTATUS[0]}}", shop().display());
    let output = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n");
    // A machine that is slow is told what takes so long.
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(errors.lines().find(|line| !line.ends_with(" ...")), None);
}
