//! A place of its own for each test: a mount and a network namespace with a private BPF file system, and pods in
//! further network namespaces. All of it ends with the test's threads, however the test ends.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod narrow;
pub mod talk;

use std::{
    fs,
    io::{ErrorKind, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use aya::programs::{SchedClassifier, TcAttachType};
use nix::{
    mount::{MsFlags, mount},
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
    unistd::{Pid, gettid},
};
use palisade_datapath_core::abi::{Direction, Endpoint, IDENTITY_ANY, PolicyEntry, PolicyKey, RowVerdict};
use palisade_loader::{AttachKind, Datapath, Limits, PinDir, Role, Sizes, supported_kind};

/// Small maps, so that many tests can run at once.
pub fn sizes() -> Sizes {
    Sizes {
        policy: 64,
        ports: 64,
        addresses: 64,
        prefixes: 64,
        endpoints: 16,
        services: 64,
        backends: 64,
        chunks: 64,
        nodes: 64,
        affinity: 64,
        sockets: 64,
        connections: 256,
        outside: 256,
        fragments: 64,
        events_bytes: 4096,
        limits: Limits::DEFAULT,
    }
}

/// Runs `test` with a base directory on a BPF file system, in namespaces of its own.
pub fn alone(test: impl FnOnce(&Path) + Send) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let outcome = thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("these tests make namespaces: run them as root");
                mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
                mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), None::<&str>).expect("a BPF file system can be mounted");
                run("ip link set lo up");
                test(&path.join("palisade"));
            })
            .join()
    });
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
}

/// The ways of attaching that this kernel has, the one that is chosen here first.
pub fn kinds() -> Vec<AttachKind> {
    let mut kinds = vec![kind(), AttachKind::Clsact];
    kinds.dedup();
    kinds
}

/// The way of attaching that is chosen here.
pub fn kind() -> AttachKind {
    supported_kind().unwrap()
}

/// Whether this kernel has TCX (Linux 6.6); a test that shows nothing without it is skipped, and says so past the test harness.
pub fn has_tcx() -> bool {
    let has = kind() == AttachKind::Tcx;
    if !has {
        // The name that the harness gave the thread is the test's.
        let line = format!("skipped: this kernel has no TCX: {}\n", thread::current().name().unwrap_or("a test"));
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
    has
}

/// Whether this kernel lets programs put an Ethernet frame in an outer packet (Linux 5.13: `BPF_F_ADJ_ROOM_ENCAP_L2_ETH`); before, the overlay's
/// device does all of it.
pub fn makes_outer_packets() -> bool {
    kernel() >= (5, 13)
}

/// Whether this kernel lets a test say by which interface a packet came (Linux 5.16: `ingress_ifindex` of BPF_PROG_TEST_RUN).
pub fn runs_packets_that_came_by_an_interface() -> bool {
    kernel() >= (5, 16)
}

/// The first two numbers of the kernel's release.
fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|character: char| !character.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Number of programs at a hook by TCX.
pub fn tcx_programs(interface: &str, hook: TcAttachType) -> usize {
    if kind() == AttachKind::Tcx { SchedClassifier::query_tcx(interface, hook).unwrap().1.len() } else { 0 }
}

/// The names of all programs, sorted.
pub fn programs() -> Vec<String> {
    let mut names: Vec<String> = Role::ALL.into_iter().flat_map(Role::hooks).map(|hook| hook.program().to_owned()).collect();
    names.sort();
    names
}

/// Opens the datapath with small maps.
pub fn open(base: &Path) -> Datapath {
    open_with(base, &sizes())
}

/// Opens the datapath.
pub fn open_with(base: &Path, sizes: &Sizes) -> Datapath {
    Datapath::open(&PinDir::new(base), sizes).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

/// A table that the programs write, as bytes.
pub fn table<const KEY: usize, const VALUE: usize>(pin: &PinDir, name: &str) -> HashMap<MapData, [u8; KEY], [u8; VALUE]> {
    let pinned = MapData::from_pin(pin.maps_dir().join(name)).unwrap();
    HashMap::try_from(Map::from_map_data(pinned).unwrap()).unwrap()
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Runs a command in this thread's namespaces and gives what it printed.
pub fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap_or_else(|error| panic!("{line}: {error}"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until something is so; the kernel ends links a moment after their last reference, later on a busy machine.
pub fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until an end of a pair carries packets. The kernel tells the end that was up first of its carrier a moment after the other end is
/// up, later on a busy machine (net/core/link_watch.c), and until then drops what it is to send.
pub fn carries(link: &str) {
    soon("the link carries packets", || run(&format!("ip -oneline link show dev {link}")).contains(" state UP "));
}

/// How long something may take that is expected: long, for busy machines.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long to wait for what is not expected.
const DOUBT: Duration = Duration::from_millis(300);

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace of its own, with a thread that lives in it.
pub struct Space {
    jobs: mpsc::Sender<Job>,
    /// The id of the thread, by which `ip` finds the namespace.
    pub thread: Pid,
}

impl Space {
    /// A namespace with nothing but `lo`, which is up.
    pub fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, thread) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ready.send(gettid()).unwrap();
            for job in queue {
                job();
            }
        });
        let space = Self { jobs, thread: thread.recv().unwrap() };
        space.inside(|| drop(run("ip link set lo up")));
        space
    }

    /// Runs something in the namespace.
    pub fn inside<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, result) = mpsc::channel();
        let job = move || drop(answer.send(catch_unwind(AssertUnwindSafe(job))));
        self.jobs.send(Box::new(job)).unwrap();
        match result.recv().unwrap() {
            Ok(value) => value,
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// A network namespace with one end of a veth pair whose other end is in the test's own.
pub struct Pod {
    /// Its namespace.
    pub space: Space,
    /// Name of the host's end.
    pub host: String,
    /// Index of the host's end.
    pub index: u32,
    /// The pod's IPv4 address; the host's ends in 1.
    pub address: [u8; 4],
}

impl Pod {
    /// A pod 10.9.N.2, its host at 10.9.N.1.
    pub fn new(number: u8) -> Self {
        let space = Space::new();
        let thread = space.thread;
        let host = format!("host{number}");
        run(&format!("ip link add {host} type veth peer name eth0 netns {thread}"));
        run(&format!("ip address add 10.9.{number}.1/24 dev {host}"));
        run(&format!("ip link set {host} up"));
        let index = if_nametoindex(host.as_str()).unwrap();
        let pod = Self { space, host, index, address: [10, 9, number, 2] };
        pod.inside(move || {
            run(&format!("ip address add 10.9.{number}.2/24 dev eth0"));
            run("ip link set eth0 up");
        });
        carries(&pod.host);
        pod
    }

    /// Runs something in the pod's namespace.
    pub fn inside<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        self.space.inside(job)
    }

    /// Starts something in the pod's namespace, in a thread of its own, without waiting for it.
    pub fn start(&self, job: impl FnOnce() + Send + 'static) {
        // A new thread starts in the namespaces of the one that makes it.
        self.inside(move || drop(thread::spawn(job)));
    }

    /// The pod's row, with the given subject.
    pub fn endpoint(&self, subject: u32) -> Endpoint {
        let pod_mac = self.inside(|| mac("eth0"));
        Endpoint { ifindex: self.index, subject, audit: 0, ipv4: self.address, ipv6: [0; 16], pod_mac, host_mac: mac(&self.host), since: 0 }
    }

    /// Whether a datagram of the pod reaches the host and its answer the pod.
    pub fn reaches_host(&self) -> bool {
        self.asks_host(PATIENCE)
    }

    /// Whether nothing of the pod reaches the host, or no answer the pod.
    pub fn is_cut_off(&self) -> bool {
        !self.asks_host(DOUBT)
    }

    fn asks_host(&self, patience: Duration) -> bool {
        let [a, b, c, _] = self.address;
        let server = UdpSocket::bind((Ipv4Addr::new(a, b, c, 1), 0)).unwrap();
        server.set_read_timeout(Some(patience)).unwrap();
        let to = server.local_addr().unwrap();
        let client = self.inside(move || {
            let client = UdpSocket::bind("0.0.0.0:0").unwrap();
            client.set_read_timeout(Some(patience)).unwrap();
            client.send_to(b"ask", to).unwrap();
            client
        });
        let mut buffer = [0; 16];
        let Ok((_, from)) = server.recv_from(&mut buffer) else { return false };
        server.send_to(b"answer", from).unwrap();
        client.recv(&mut buffer).is_ok()
    }
}

/// A socket from which datagrams can go to an address.
fn towards(address: IpAddr) -> UdpSocket {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0)).unwrap()
}

/// Whether a host says that nobody listens at a port of its: a link takes packets a while after both its ends are up.
pub fn answers(host: IpAddr) -> bool {
    let socket = towards(host);
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket.connect((host, 9)).unwrap();
    socket.send(b"?").is_ok() && socket.recv(&mut [0; 8]).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Lets a subject send to and receive from everywhere.
pub fn allow(datapath: &mut Datapath, subject: u32) {
    for direction in [Direction::Ingress, Direction::Egress] {
        let entry = PolicyEntry { verdict: RowVerdict::Allow as u8, ..PolicyEntry::default() };
        datapath.policy.insert(&PolicyKey::new(subject, direction, IDENTITY_ANY), &entry).unwrap();
    }
}

/// The hardware address of an interface of this namespace.
pub fn mac(interface: &str) -> [u8; 6] {
    let shown = run(&format!("ip -o link show dev {interface}"));
    let text = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// The names in a directory, sorted.
pub fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
