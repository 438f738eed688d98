use palisade_cni::link::Netlink;
use palisade_loader::{PinDir, endpoint_attached};
use palisade_protocol::{
    Call, Counts, EndpointSpec, ErrorKind, Failure, NodeConfig, PROTOCOL_VERSION, RECORDS_NAME, Release, Reply, Request, SOCKET_NAME,
    Status, record_name,
};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// What the agent does when it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    Works,
    /// Refuses for this reason.
    Refuses(ErrorKind),
    /// Never answers.
    Hangs,
    /// Dies in the middle of the answer.
    HangsUp,
}

/// An agent that answers as the real one does, except for the rows, and fails as it is told.
pub struct FakeAgent {
    shared: Arc<Shared>,
    socket: PathBuf,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    node: Mutex<NodeConfig>,
    run_dir: PathBuf,
    behaviours: Mutex<BTreeMap<&'static str, Behaviour>>,
    calls: Mutex<Vec<&'static str>>,
    endpoints: Mutex<Vec<EndpointSpec>>,
    /// What was wrong when the agent was asked to realise an endpoint.
    faults: Mutex<Vec<String>>,
    /// For what no pod can be connected, and what else is wrong.
    problems: Mutex<[Vec<String>; 2]>,
    stopped: Mutex<bool>,
}

impl FakeAgent {
    /// Starts an agent in the calling thread's namespaces.
    pub fn start(run_dir: &Path, ranges: &[&str], pin_dir: &Path) -> Self {
        let node = NodeConfig {
            node: "node-a".into(),
            ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            mtu: 1450,
            pin_dir: pin_dir.to_str().unwrap().into(),
        };
        let shared = Arc::new(Shared {
            node: Mutex::new(node),
            run_dir: run_dir.to_owned(),
            behaviours: Mutex::default(),
            calls: Mutex::default(),
            endpoints: Mutex::default(),
            faults: Mutex::default(),
            problems: Mutex::default(),
            stopped: Mutex::new(false),
        });
        std::fs::create_dir_all(run_dir.join(RECORDS_NAME)).unwrap();
        let socket = run_dir.join(SOCKET_NAME);
        let listener = UnixListener::bind(&socket).unwrap();
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || serve(&listener, &shared)
        });
        Self { shared, socket, thread: Mutex::new(Some(thread)) }
    }

    /// Tells how to answer a call (`node`, `realise`, `release`, `check`, `status`).
    pub fn behave(&self, call: &'static str, behaviour: Behaviour) {
        self.shared.behaviours.lock().unwrap().insert(call, behaviour);
    }

    /// Changes the pod ranges.
    pub fn set_ranges(&self, ranges: &[&str]) {
        self.shared.node.lock().unwrap().ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
    }

    /// Has its status say for what no pod can be connected now, and what else is wrong.
    pub fn set_problems(&self, refuses_pods: &[&str], others: &[&str]) {
        let texts = |problems: &[&str]| problems.iter().map(|problem| (*problem).to_owned()).collect();
        *self.shared.problems.lock().unwrap() = [texts(refuses_pods), texts(others)];
    }

    /// The calls so far, in order.
    pub fn calls(&self) -> Vec<&'static str> {
        self.shared.calls.lock().unwrap().clone()
    }

    /// The endpoints that are realised.
    pub fn endpoints(&self) -> Vec<EndpointSpec> {
        self.shared.endpoints.lock().unwrap().clone()
    }

    /// What was wrong with the links when endpoints were to be realised.
    pub fn faults(&self) -> Vec<String> {
        self.shared.faults.lock().unwrap().clone()
    }

    /// Ends the agent as a crash would: the socket stays, nobody listens.
    pub fn stop(&self) {
        *self.shared.stopped.lock().unwrap() = true;
        // Wakes the thread that waits for a connection.
        drop(UnixStream::connect(&self.socket));
        // As long as it lives it listens: who connects now would be hung up on.
        if let Some(thread) = self.thread.lock().unwrap().take() {
            let _ = thread.join();
        }
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn serve(listener: &UnixListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if *shared.stopped.lock().unwrap() {
            return;
        }
        let (stream, shared) = (stream.unwrap(), shared.clone());
        std::thread::spawn(move || answer(stream, &shared));
    }
}

fn answer(mut stream: UnixStream, shared: &Shared) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).is_err() || line.is_empty() {
        return;
    }
    let request: Request = serde_json::from_str(&line).unwrap();
    assert_eq!(request.version, PROTOCOL_VERSION);
    let name = match &request.call {
        Call::Node => "node",
        Call::Realise(_) => "realise",
        Call::Release(_) => "release",
        Call::Check(_) => "check",
        Call::Status => "status",
        other => panic!("palisade-cni does not ask for {other:?}"),
    };
    shared.calls.lock().unwrap().push(name);
    let behaviour = shared.behaviours.lock().unwrap().get(name).copied().unwrap_or(Behaviour::Works);
    let reply = match behaviour {
        Behaviour::Works => shared.work(request.call),
        Behaviour::Refuses(kind) => Reply::Error(Failure { kind, message: format!("the fake agent refuses to {name}") }),
        Behaviour::Hangs => {
            // Until the client gives up.
            let _ = reader.read_line(&mut line);
            return;
        }
        Behaviour::HangsUp => {
            let _ = stream.write_all(b"{\"reply\":");
            return;
        }
    };
    let _ = stream.write_all(format!("{}\n", serde_json::to_string(&reply).unwrap()).as_bytes());
}

impl Shared {
    fn work(&self, call: Call) -> Reply {
        match call {
            Call::Node => Reply::Node(self.node.lock().unwrap().clone()),
            Call::Realise(endpoint) => {
                let faults = self.inspect(&endpoint);
                self.faults.lock().unwrap().extend(faults);
                let record = self.run_dir.join(RECORDS_NAME).join(record_name(&endpoint.host_interface));
                std::fs::write(record, serde_json::to_string(&endpoint).unwrap()).unwrap();
                self.endpoints.lock().unwrap().push(endpoint);
                Reply::Done
            }
            Call::Release(Release { attachment, host_interface }) => {
                let is_it = |endpoint: &EndpointSpec| endpoint.attachment == attachment && endpoint.host_interface == host_interface;
                self.endpoints.lock().unwrap().retain(|endpoint| !is_it(endpoint));
                Reply::Done
            }
            Call::Check(attachment) if self.endpoints.lock().unwrap().iter().any(|endpoint| endpoint.attachment == attachment) => {
                Reply::Done
            }
            Call::Check(_) => Reply::Error(Failure { kind: ErrorKind::NotFound, message: "the endpoint is not known".into() }),
            Call::Status => Reply::Status(self.status()),
            other => panic!("{other:?} is not served"),
        }
    }

    fn status(&self) -> Status {
        let [refuses_pods, others] = self.problems.lock().unwrap().clone();
        let problems = [refuses_pods.clone(), others].concat();
        Status {
            version: "0".into(),
            node: "node-a".into(),
            source: "test".into(),
            ready: problems.is_empty(),
            problems,
            refuses_pods,
            attach: "tcx".into(),
            node_services: "off".into(),
            abi: 1,
            epoch: 0,
            counts: Counts::default(),
            outcomes: Vec::new(),
            refused: Vec::new(),
            routing: None,
            uplinks: Vec::new(),
            uplinks_missing: Vec::new(),
        }
    }

    /// What ADD must have done, and what it must not have done, before it asks for the policy.
    fn inspect(&self, endpoint: &EndpointSpec) -> Vec<String> {
        let mut faults = Vec::new();
        let pins = PinDir::from_abi_dir(&self.node.lock().unwrap().pin_dir);
        if !endpoint_attached(&pins, &endpoint.host_interface, endpoint.host_index).unwrap() {
            faults.push(format!("{}: no programs are attached", endpoint.host_interface));
        }
        match Netlink::open().unwrap().link(&endpoint.host_interface).unwrap() {
            Some(link) if link.up => faults.push(format!("{}: the link is up already", link.name)),
            Some(_) => {}
            None => faults.push(format!("{}: there is no such link", endpoint.host_interface)),
        }
        faults
    }
}
