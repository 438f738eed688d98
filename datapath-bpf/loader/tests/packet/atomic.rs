//! A change of policy while packets come: planned, and written row by row, beside another CPU that runs the program.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use aya::programs::SchedClassifier;
use aya::{TestRun as _, TestRunOptions};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use palisade_datapath_core::abi::{Endpoint, SUBJECT_NONE};
use palisade_loader::Datapath;
use palisade_policy::model::{Mode, Model, Node, ObjectName, Peer, Peers, Pod, PodSet, Policy, PolicyKind, PolicyName, Ports, Rule, Tier};
use palisade_policy::{Compiled, Numbers, Plan, Step, plan};

use crate::world::{DROP, Family, PASS, UPLINK, World, each_family};

const CHANGES: u64 = 1_000;

/// Three peers beyond the node.
fn peer(family: Family, which: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 9, 0, which]),
        Family::V6 => IpAddr::from([0xfd09, 0, 0, 0, 0, 0, 0, u16::from(which)]),
    }
}

const A: u8 = 1;
const B: u8 = 2;
const C: u8 = 3;

/// Pod B of the world accepts two of the peers.
fn model(world: &World, allowed: [u8; 2]) -> Model {
    let blocks = allowed.iter().flat_map(|which| [Family::V4, Family::V6].map(|family| peer(family, *which)));
    let peers = blocks.map(|address| Peer::Block { block: address.into(), except: Vec::new() }).collect();
    let policy = Policy {
        tier: Tier::Workload,
        mode: Mode::Enforce,
        subject: PodSet::default(),
        ingress: Some(vec![Rule::allow(Peers::Of(peers), Ports::Any)]),
        egress: None,
    };
    let addresses = [Family::V4, Family::V6].map(|family| world.b.address(family)).into();
    Model {
        namespaces: [("n".to_owned(), std::collections::BTreeMap::<String, String>::new())].into(),
        pods: [(pod(), Pod { addresses, ..Pod::default() })].into(),
        nodes: [("node".to_owned(), Node::default())].into(),
        policies: [(PolicyName::new(PolicyKind::NetworkPolicy, ObjectName::new("n", "p")), policy)].into(),
        ..Model::default()
    }
}

fn pod() -> ObjectName {
    ObjectName::new("n", "b")
}

/// Makes one write.
fn write(datapath: &mut Datapath, ifindex: u32, step: &Step) {
    match step {
        Step::WritePort { key, length, entry } => datapath.ports.insert(&(*key, *length), entry).unwrap(),
        Step::WritePolicy { key, entry } => datapath.policy.insert(key, entry).unwrap(),
        Step::WritePrefix { prefix, identity } => datapath.prefixes.insert(prefix, identity).unwrap(),
        Step::WriteAddress { address, identity } => datapath.addresses.insert(address, identity).unwrap(),
        Step::Flip { subject, audit, .. } => {
            let row = datapath.endpoints.get(&ifindex).unwrap().unwrap();
            datapath.endpoints.insert(&ifindex, &Endpoint { subject: *subject, audit: *audit, ..row }).unwrap();
        }
        Step::AwaitPrograms => datapath.await_programs(),
        Step::UnsettleEpoch => datapath.unsettle_epoch().unwrap(),
        Step::BumpEpoch => drop(datapath.bump_epoch().unwrap()),
        Step::RemoveAddress(address) => drop(datapath.addresses.remove(address).unwrap()),
        Step::RemovePrefix(prefix) => drop(datapath.prefixes.remove(prefix).unwrap()),
        Step::RemovePolicy(key) => drop(datapath.policy.remove(key).unwrap()),
        Step::RemovePort(key, length) => drop(datapath.ports.remove(&(*key, *length)).unwrap()),
    }
}

/// Sends first packets of flows through the pinned program, on any CPU, and further ones of one flow a peer.
struct Sender {
    program: SchedClassifier,
    world: crate::world::Pod,
    family: Family,
    port: u16,
}

/// A packet of a peer.
#[derive(Clone, Copy)]
enum Flow {
    /// That opens a flow.
    New,
    /// Of the flow that this peer has had all the time.
    Established,
}

impl Sender {
    /// Whether a packet of a peer passes.
    fn passes(&mut self, which: u8, flow: Flow) -> bool {
        let port = match flow {
            Flow::New => {
                self.port = if self.port == u16::MAX { 1024 } else { self.port + 1 };
                self.port
            }
            Flow::Established => 1000,
        };
        let packet = self.world.from(peer(self.family, which)).udp(port, 53);
        let mut context = [0; 44];
        context[36..40].copy_from_slice(&UPLINK.to_ne_bytes());
        context[40..44].copy_from_slice(&self.world.ifindex.to_ne_bytes());
        let mut out = vec![0; packet.len() + 256];
        let options = TestRunOptions {
            data_in: Some(&packet),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            repeat: 1,
            ..TestRunOptions::default()
        };
        match self.program.test_run(options).unwrap().return_value as i32 {
            PASS => true,
            DROP => false,
            other => panic!("action {other}"),
        }
    }
}

#[test]
fn no_packet_sees_a_mixture_of_the_old_policy_and_the_new_one() {
    each_family(|world, family| {
        world.clear();
        let models = [model(world, [A, B]), model(world, [B, C])];
        let local = [pod()].into();
        let mut numbers = Numbers::default();
        let (b, ifindex) = (world.b, world.b.ifindex);
        world.datapath.endpoints.insert(&ifindex, &Endpoint { subject: SUBJECT_NONE, ..b.endpoint() }).unwrap();
        world.datapath.local.insert(&b.address(family), &b.local()).unwrap();
        let Plan { steps, mut next } = plan(&Compiled::default(), &models[0], &local, &mut numbers);
        steps.iter().for_each(|step| write(&mut world.datapath, ifindex, step));

        let path = world.datapath.pin_dir().root().join("programs/to_pod");
        // The number of the change that was begun last: odd ones lead from the first policy to the second.
        let (begun, ended) = (AtomicU64::new(0), AtomicBool::new(false));
        let watched = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut every = CpuSet::new();
                (0..CpuSet::count().min(64)).for_each(|cpu| every.set(cpu).unwrap());
                sched_setaffinity(Pid::from_raw(0), &every).unwrap();
                let mut sender = Sender { program: SchedClassifier::from_pin(&path).unwrap(), world: b, family, port: 1024 };
                let mut watched = 0_u64;
                let mut opened = [0_u64; 2];
                // Who comes with a new flow, and who with that of old: both ways round, and both alike.
                let turns =
                    [[Flow::New, Flow::New], [Flow::New, Flow::Established], [Flow::Established, Flow::New], [Flow::Established; 2]];
                for [first, second] in turns.into_iter().cycle() {
                    if ended.load(Ordering::SeqCst) {
                        break;
                    }
                    let change = begun.load(Ordering::SeqCst);
                    // Whom the change lets in, and then whom it shuts out.
                    let (entering, leaving) = if change % 2 == 1 { (C, A) } else { (A, C) };
                    let (entered, stayed) = (sender.passes(entering, first), sender.passes(leaving, second));
                    assert!(sender.passes(B, first) && sender.passes(B, second), "change {change}: B is allowed by both");
                    let open = if change % 2 == 1 { [stayed, entered] } else { [entered, stayed] };
                    opened.iter_mut().zip(open).for_each(|(times, open)| *times += u64::from(open));
                    if begun.load(Ordering::SeqCst) == change {
                        assert!(!(entered && stayed), "change {change}: a peer of each policy at once");
                        watched += 1;
                    }
                }
                (watched, opened)
            });
            for change in 1..=CHANGES {
                begun.store(change, Ordering::SeqCst);
                let Plan { steps, next: planned } = plan(&next, &models[(change % 2) as usize], &local, &mut numbers);
                assert!(!steps.is_empty(), "the policies differ");
                steps.iter().for_each(|step| write(&mut world.datapath, ifindex, step));
                next = planned;
            }
            ended.store(true, Ordering::SeqCst);
            watcher.join()
        });
        let (watched, [a, c]) = match watched {
            Ok(watched) => watched,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        println!("{CHANGES} changes, {watched} times watched");
        assert!(watched >= CHANGES / 10, "too little was seen: {watched}");
        assert!(a > 0 && c > 0, "A was let in {a} times, C {c} times: one of the policies was never in force");
    });
}
