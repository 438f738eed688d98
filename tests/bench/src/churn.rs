//! Pods that come and go, many at once, through the real plugin, while the agent is killed and started again.

use crate::statistics::Samples;
use anyhow::{Context, Result, bail, ensure};
use palisade_cni::ipam::Store;
use palisade_cni::link::{Netlink, ROUTE_PROTOCOL};
use palisade_loader::{Datapath, PinDir, Sizes};
use palisade_protocol::{Call, Client, Reply, SOCKET_NAME, Status};
use palisade_test_support::{Host, Snapshot, private_host};
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take that is waited for: an agent to be ready, what is left to go, a pod to be added in the end.
const PATIENCE: Duration = Duration::from_secs(90);
/// Pause of a runtime between a try and the next.
const PAUSE: Duration = Duration::from_millis(200);
/// Room for every pod at once: none has to wait until an address has rested.
const RANGES: &str = "10.77.0.0/16,fd77::/64";
const TRY_AGAIN: u64 = 11;

/// What comes and goes.
#[derive(Clone, Debug)]
pub struct Churn {
    /// Pods in all: each is added once and deleted once.
    pub pods: u32,
    /// Pods that are added or deleted at once.
    pub at_once: u32,
    /// How often the agent is killed (SIGKILL) and started again meanwhile.
    pub restarts: u32,
    /// The program of the agent.
    pub agent: PathBuf,
    /// The program of the plugin.
    pub plugin: PathBuf,
}

/// How long calls of the plugin took, from the start of the process to its end.
#[derive(Clone, Debug, Serialize)]
pub struct ChurnRow {
    /// Pods that came and went.
    pub pods: u32,
    /// Pods that were added or deleted at once.
    pub at_once: u32,
    /// Restarts of the agent meanwhile.
    pub restarts: u32,
    /// ADDs that were told to try again, because no agent was there.
    pub tried_again: u32,
    /// Median of those ADDs that succeeded, in ms.
    pub add_median: f64,
    /// Of a hundred of them, the last but one, in ms.
    pub add_p99: f64,
    /// Median of the DELs, in ms.
    pub del_median: f64,
    /// Of a hundred of them, the last but one, in ms.
    pub del_p99: f64,
    /// All of it, in seconds.
    pub seconds: f64,
}

impl Churn {
    /// With the programs that lie in a folder, where cargo puts them.
    ///
    /// # Errors
    /// They are not there.
    pub fn with_programs_in(folder: &Path, pods: u32, at_once: u32, restarts: u32) -> Result<Self> {
        let program = |name: &str| {
            let path = folder.join(name);
            ensure!(
                path.is_file(),
                "there is no {}: build it first, with `cargo build -p palisade-agent -p palisade-cni` and the same profile",
                path.display()
            );
            Ok(path)
        };
        Ok(Self { pods, at_once, restarts, agent: program("palisade-agent")?, plugin: program("palisade-cni")? })
    }

    /// Runs it, on a host that ends with it; nothing may be left of any pod. `None` without root.
    ///
    /// # Panics
    /// A call failed for good, or a link, route, row, pin, file or address is left.
    pub fn run(&self) -> Option<ChurnRow> {
        let mut row = None;
        private_host(|host| {
            let stage = Stage { churn: self, host, objects: host.directory().join("objects"), log: host.directory().join("agent.log") };
            // What is left after an error would hide it.
            row = Some(stage.play().unwrap_or_else(|error| panic!("{error:#}\n{}", stage.end_of_log())));
        });
        row
    }
}

/// A host on which pods come and go.
struct Stage<'a> {
    churn: &'a Churn,
    host: &'a Host,
    /// The directory that the agent reads.
    objects: PathBuf,
    /// What the agents said.
    log: PathBuf,
}

/// The process of the agent; killed when it goes out of scope.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How long each call of the plugin took, in ms.
#[derive(Default)]
struct Times {
    add: Samples,
    del: Samples,
    tried_again: u32,
}

/// Rows of the maps that the agent fills, by map.
type Rows = [usize; 7];

impl Stage<'_> {
    fn play(&self) -> Result<ChurnRow> {
        std::fs::create_dir(&self.objects)?;
        std::fs::write(self.objects.join("pods.yaml"), manifests(self.churn.pods))?;
        let mut agent = self.start()?;
        self.ready()?;
        // What the first pod leaves for all of them is there before anything is compared.
        self.come_and_go(0, &Mutex::default())?;
        self.ready()?;
        drop(agent);
        let rows = self.rows()?;
        agent = self.start()?;
        self.ready()?;
        let clean = self.settled()?;

        let began = Instant::now();
        let (times, agent) = self.many(agent)?;
        let seconds = began.elapsed().as_secs_f64();

        self.ready()?;
        wait("nothing is left", || {
            let left = clean.difference(&self.host.snapshot()?);
            Ok(if left.is_empty() { Ok(()) } else { Err(left) })
        })?;
        let leases = Store::new(self.host.state_dir().join("ipam")).owners()?;
        ensure!(leases.is_empty(), "{} attachments have addresses still", leases.len());
        drop(agent);
        let left = self.rows()?;
        ensure!(left == rows, "rows by map before and after: {rows:?}, {left:?}");
        self.clear()?;
        let Times { add, del, tried_again } = times;
        Ok(ChurnRow {
            pods: self.churn.pods,
            at_once: self.churn.at_once,
            restarts: self.churn.restarts,
            tried_again,
            add_median: add.median(),
            add_p99: add.quantile(0.99),
            del_median: del.median(),
            del_p99: del.quantile(0.99),
            seconds,
        })
    }

    /// All pods, many at once, while the agent is killed and started again.
    fn many(&self, mut agent: Agent) -> Result<(Times, Agent)> {
        let (next, gone) = (AtomicU32::new(0), AtomicU32::new(0));
        let times = Mutex::default();
        let Churn { pods, at_once, restarts, .. } = *self.churn;
        std::thread::scope(|scope| -> Result<()> {
            let work = || -> Result<()> {
                loop {
                    let pod = next.fetch_add(1, Ordering::Relaxed);
                    if pod >= pods {
                        return Ok(());
                    }
                    // One that fails ends all: the others are not to wait for it.
                    self.come_and_go(pod, &times).inspect_err(|_| next.store(pods, Ordering::Relaxed))?;
                    gone.fetch_add(1, Ordering::Relaxed);
                }
            };
            let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
            for restart in 1..=restarts {
                while gone.load(Ordering::Relaxed) < pods * restart / (restarts + 1) && !workers.iter().all(|worker| worker.is_finished()) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                // Killed before the next begins: a second one on a node refuses to run.
                let _ = agent.0.kill();
                agent.0.wait()?;
                agent = self.start()?;
            }
            workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| bail!("a thread panicked")))
        })?;
        Ok((times.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()), agent))
    }

    /// One pod: added, by tries with sandboxes of their own as the kubelet makes them, and deleted.
    fn come_and_go(&self, pod: u32, times: &Mutex<Times>) -> Result<()> {
        let began = Instant::now();
        for attempt in 0.. {
            let sandbox = format!("p{pod}-{attempt}");
            drop(self.host.create_pod(&sandbox)?);
            let (added, answer) = self.call("ADD", pod, &sandbox)?;
            let success = match answer {
                Ok(_) => true,
                Err(error) if error["code"] == TRY_AGAIN && began.elapsed() < PATIENCE => false,
                Err(error) => bail!("ADD of pod {pod}, try {attempt}: {error}"),
            };
            let (deleted, answer) = self.call("DEL", pod, &sandbox)?;
            if let Err(error) = answer {
                bail!("DEL of pod {pod}, try {attempt}: {error}");
            }
            self.host.remove_pod(&sandbox)?;
            let mut times = times.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            times.del.push(deleted);
            if success {
                times.add.push(added);
                break;
            }
            times.tried_again += 1;
            drop(times);
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Calls the plugin; how many milliseconds its process took, and the result or the error object.
    fn call(&self, verb: &str, pod: u32, sandbox: &str) -> Result<(f64, Result<Value, Value>)> {
        let config = json!({
            "cniVersion": "1.1.0", "name": "palisade", "type": "palisade-cni",
            "runDir": self.host.run_dir(), "stateDir": self.host.state_dir(), "agentTimeoutSeconds": 20,
        });
        let mut command = Command::new(&self.churn.plugin);
        command.env_clear().env("CNI_COMMAND", verb).env("CNI_CONTAINERID", sandbox).env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", self.host.pod_path(sandbox)).env("CNI_PATH", "/opt/cni/bin");
        command.env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=churn;K8S_POD_NAME=p{pod}"));
        let began = Instant::now();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("start the plugin")?;
        child.stdin.take().context("its standard input")?.write_all(config.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        let took = began.elapsed().as_secs_f64() * 1e3;
        let printed = if output.stdout.is_empty() { Value::Null } else { serde_json::from_slice(&output.stdout)? };
        Ok((took, if output.status.success() { Ok(printed) } else { Err(printed) }))
    }

    fn start(&self) -> Result<Agent> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.churn.agent);
        command.env_clear().args(["--node", "node", "--ranges", RANGES]).arg("--directory").arg(&self.objects);
        command.arg("--run-dir").arg(self.host.run_dir()).arg("--pin-dir").arg(self.pin_dir());
        Ok(Agent(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().context("start the agent")?))
    }

    fn pin_dir(&self) -> PathBuf {
        self.host.bpffs().join("palisade")
    }

    /// Waits until the agent serves, and knows no endpoint.
    fn ready(&self) -> Result<()> {
        wait("the agent is ready and has no endpoint", || {
            let reply = Client::connect(&self.host.run_dir().join(SOCKET_NAME), PATIENCE).and_then(|mut client| client.call(Call::Status));
            Ok(match reply {
                Ok(Reply::Status(Status { ready: true, counts, .. })) if (counts.endpoints, counts.subjects) == (0, 0) => Ok(()),
                other => Err(format!("{other:?}")),
            })
        })
    }

    /// The host, once the agent has made what it makes by itself.
    fn settled(&self) -> Result<Snapshot> {
        let mut last = self.host.snapshot()?;
        wait("nothing changes any more", || {
            std::thread::sleep(Duration::from_secs(1));
            let now = self.host.snapshot()?;
            let same = now == last;
            last = now.clone();
            Ok(if same { Ok(now) } else { Err("it does") })
        })
    }

    /// How many rows the agent's maps have, while no agent runs.
    fn rows(&self) -> Result<Rows> {
        let maps = Datapath::open(&PinDir::new(self.pin_dir()), &Sizes::default())?;
        Ok([
            maps.endpoints.rows()?.len(),
            maps.local.rows()?.len(),
            maps.addresses.rows()?.len(),
            maps.prefixes.rows()?.len(),
            maps.policy.rows()?.len(),
            maps.ports.rows()?.len(),
            maps.services.rows()?.len(),
        ])
    }

    /// Removes what agents leave for their successors.
    fn clear(&self) -> Result<()> {
        let netlink = Netlink::open()?;
        for route in netlink.routes()?.into_iter().filter(|route| route.protocol == ROUTE_PROTOCOL) {
            netlink.delete_route(&route)?;
        }
        std::fs::remove_dir_all(self.pin_dir())?;
        std::fs::remove_dir_all(&self.objects)?;
        std::fs::remove_file(&self.log)?;
        for file in [SOCKET_NAME, "agent.lock", "numbers.json"] {
            std::fs::remove_file(self.host.run_dir().join(file)).with_context(|| format!("remove {file}"))?;
        }
        Ok(())
    }

    /// The last that the agents said.
    fn end_of_log(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// Waits until something comes, not longer than [`PATIENCE`]; what it was instead is in the error.
fn wait<T, W: std::fmt::Display>(what: &str, mut look: impl FnMut() -> Result<std::result::Result<T, W>>) -> Result<T> {
    let began = Instant::now();
    loop {
        match look()? {
            Ok(found) => return Ok(found),
            Err(instead) => ensure!(began.elapsed() < PATIENCE, "not in time: {what}: {instead}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The pods, which take from each other what a rule names.
fn manifests(pods: u32) -> String {
    let mut text = "
apiVersion: v1
kind: Namespace
metadata: {name: churn}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: each-other, namespace: churn}
spec: {podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}
"
    .to_owned();
    for pod in 0..pods {
        let _ = writeln!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{pod}, namespace: churn}}\nspec: {{containers: [{{name: c, image: c}}]}}"
        );
    }
    text
}
