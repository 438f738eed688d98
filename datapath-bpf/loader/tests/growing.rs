//! Maps that are replaced by larger ones, with packets all the while.

mod stage;

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use aya::{
    maps::MapData,
    programs::{SchedClassifier, links::FdLink, links::PinnedLink, loaded_programs},
};
use ipnet::{IpNet, Ipv4Net};
use palisade_datapath_core::abi::{
    Backend, CHUNK, ChunkKey, Direction, Endpoint, Hook, LocalPod, Node, Outcome, PolicyEntry, PolicyKey, PortEntry, PortKey, ServiceEntry,
    Tunnel, map,
};
use palisade_loader::{AttachKind, Datapath, Grown, InstallStep, Limits, LoaderError, PacketContext, PinDir, Role, Sizes, attach_with};
use stage::{Pod, allow, alone, kind, kinds, names, open, open_with, programs, run, sizes};

const PASS: i32 = -1;
const SHOT: i32 = 2;
const GROWING: [&str; 17] = [
    map::POLICY,
    map::PORTS,
    map::ADDRESS_V4,
    map::ADDRESS_V6,
    map::PREFIX_V4,
    map::PREFIX_V6,
    map::ENDPOINTS,
    map::LOCAL_V4,
    map::LOCAL_V6,
    map::SERVICES_V4,
    map::SERVICES_V6,
    map::CHUNKS,
    map::BACKENDS,
    map::TUNNELS_V4,
    map::TUNNELS_V6,
    map::NODES_V4,
    map::NODES_V6,
];

/// All maps, each for one row more than it has room for.
fn one_more(datapath: &Datapath) -> Vec<(&'static str, usize)> {
    datapath.room().into_iter().map(|room| (room.map, room.rows as usize + 1)).collect()
}

/// Rows in every map that grows, `of` each.
fn fill(datapath: &mut Datapath, of: u16) {
    for number in 0..of {
        let wide = u32::from(number);
        let v4 = IpAddr::from(Ipv4Addr::from(0x0a40_0000 + wide));
        let v6 = IpAddr::from(Ipv6Addr::from((0xfd40 << 112) | u128::from(number)));
        let local = LocalPod { ifindex: wide, pod_mac: [1; 6], host_mac: [2; 6], since: wide };
        let prefix = |address: IpAddr| IpNet::new(address, if address.is_ipv4() { 30 } else { 127 }).unwrap();
        let (high, low) = (
            IpAddr::from(Ipv4Addr::from(0x0a80_0000 + 4 * wide)),
            IpAddr::from(Ipv6Addr::from((0xfd80 << 112) | (2 * u128::from(number)))),
        );
        datapath
            .policy
            .insert(&PolicyKey::new(1000 + wide, Direction::Egress, 7), &PolicyEntry { reason: wide, ..PolicyEntry::default() })
            .unwrap();
        datapath.ports.insert(&(PortKey::new(9, 6, 2 * number), 15), &PortEntry { reason: wide, ..PortEntry::default() }).unwrap();
        for address in [v4, v6] {
            datapath.addresses.insert(&address, &wide).unwrap();
            datapath.nodes.insert(&address, &Node::routed(wide)).unwrap();
        }
        for address in [high, low] {
            datapath.prefixes.insert(&prefix(address), &wide).unwrap();
            datapath.tunnels.insert(&prefix(address), &Tunnel { node: wide, ..Tunnel::default() }).unwrap();
        }
        if number < of.min(12) {
            datapath.endpoints.insert(&(5000 + wide), &Endpoint { ifindex: 5000 + wide, subject: wide, ..Endpoint::default() }).unwrap();
            datapath.local.insert(&v4, &local).unwrap();
            datapath.local.insert(&v6, &local).unwrap();
        }
        let service = ServiceEntry { service: wide, table: wide, ..ServiceEntry::default() };
        for address in [v4, v6] {
            datapath.services.insert((address, number, 6), &service).unwrap();
        }
        datapath.chunks.insert(&ChunkKey { table: wide, chunk: 1 }, &[wide; CHUNK]).unwrap();
        datapath.backends.insert(&wide, &Backend { service: wide, ..Backend::default() }).unwrap();
    }
}

/// All rows that the agent writes.
fn rows(datapath: &Datapath) -> Vec<String> {
    let mut text = Vec::new();
    text.extend(datapath.endpoints.rows().unwrap().iter().map(|row| format!("endpoint {row:?}")));
    text.extend(datapath.local.rows().unwrap().iter().map(|row| format!("local {row:?}")));
    text.extend(datapath.addresses.rows().unwrap().iter().map(|row| format!("address {row:?}")));
    text.extend(datapath.prefixes.rows().unwrap().iter().map(|row| format!("prefix {row:?}")));
    text.extend(datapath.policy.rows().unwrap().iter().map(|row| format!("policy {row:?}")));
    text.extend(datapath.ports.rows().unwrap().iter().map(|row| format!("port {row:?}")));
    text.extend(datapath.services.rows().unwrap().iter().map(|row| format!("service {row:?}")));
    text.extend(datapath.chunks.rows().unwrap().iter().map(|row| format!("chunk {row:?}")));
    text.extend(datapath.backends.rows().unwrap().iter().map(|row| format!("backend {row:?}")));
    text.extend(datapath.tunnels.rows().unwrap().iter().map(|row| format!("tunnel {row:?}")));
    text.extend(datapath.nodes.rows().unwrap().iter().map(|row| format!("node {row:?}")));
    text
}

/// The ids of the pinned maps, in the order of their names.
fn maps(pin: &PinDir) -> Vec<(String, u32)> {
    let id = |name: &str| MapData::from_pin(pin.maps_dir().join(name)).unwrap().info().unwrap().id();
    names(&pin.maps_dir()).into_iter().map(|name| (name.clone(), id(&name))).collect()
}

/// The maps that a program reads, by id, but for those that hold its constants.
fn maps_of(program: u32, names: &BTreeSet<String>) -> BTreeSet<(String, u32)> {
    // Other tests' programs come and go while the list is read: what is gone when it is asked for is not the one.
    let info = loaded_programs().flatten().find(|info| info.id() == program).expect("the program is loaded");
    let ids = info.map_ids().unwrap().expect("the kernel tells the maps of a program");
    let named = ids.into_iter().map(|id| (MapData::from_id(id).unwrap().info().unwrap().name_as_str().unwrap().to_owned(), id));
    named.filter(|(name, _)| names.contains(name)).collect()
}

fn pinned_program(pin: &PinDir, name: &str) -> u32 {
    SchedClassifier::from_pin(pin.programs_dir().join(name)).unwrap().info().unwrap().id()
}

/// The program that an endpoint runs at a hook.
fn attached_program(pin: &PinDir, pod: &Pod, kind: AttachKind, name: &str) -> u32 {
    match kind {
        AttachKind::Tcx => {
            let link = PinnedLink::from_pin(pin.links_dir().join(format!("{}-{name}", pod.index))).unwrap();
            FdLink::from(link).info().unwrap().program_id()
        }
        AttachKind::Clsact => {
            let hook = if name == "from_pod" { "ingress" } else { "egress" };
            let shown = run(&format!("tc filter show dev {} {hook}", pod.host));
            let id = shown.split_whitespace().skip_while(|word| *word != "id").nth(1).unwrap_or_else(|| panic!("no filter: {shown}"));
            id.parse().unwrap()
        }
    }
}

/// That the pinned directory is whole: every endpoint runs the pinned programs, and they read the pinned maps and no others.
fn assert_whole(pin: &PinDir, pods: &[(&Pod, AttachKind)]) {
    let pinned: BTreeSet<(String, u32)> = maps(pin).into_iter().collect();
    let names_of_maps = pinned.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names(&pin.programs_dir()), programs());
    for name in programs() {
        let read = maps_of(pinned_program(pin, &name), &names_of_maps);
        assert!(!read.is_empty(), "{name}");
        assert!(read.is_subset(&pinned), "{name} reads maps that are not pinned: {read:?}, {:?}", maps(pin));
    }
    for name in ["from_pod", "to_pod"] {
        let program = pinned_program(pin, name);
        for (pod, kind) in pods {
            assert_eq!(attached_program(pin, pod, *kind, name), program, "{name} of {} by {kind}", pod.host);
        }
    }
}

fn room(datapath: &Datapath, name: &str) -> u32 {
    datapath.room().into_iter().find(|room| room.map == name).unwrap().rows
}

/// How two pods are attached: by each kind where there are two.
fn both() -> [AttachKind; 2] {
    [kind(), AttachKind::Clsact]
}

/// Two pods, one by each kind of attaching that there is, with rows that allow both.
fn two_pods(pin: &PinDir, datapath: &mut Datapath) -> [(Pod, AttachKind); 2] {
    allow(datapath, 1);
    let mut number = 0;
    both().map(|kind| {
        number += 1;
        let pod = Pod::new(number);
        datapath.endpoints.insert(&pod.index, &pod.endpoint(1)).unwrap();
        attach_with(pin, kind, Role::Endpoint, &pod.host, pod.index).unwrap();
        (pod, kind)
    })
}

#[test]
fn each_map_that_the_agent_writes_grows_with_its_rows_and_the_others_stay_the_same() {
    alone(|base| {
        let pin = PinDir::new(base);
        let mut datapath = open(base);
        fill(&mut datapath, 64);
        let (before, ids, directory) = (rows(&datapath), maps(&pin), names(&pin.maps_dir()));
        for name in GROWING {
            let from = room(&datapath, name);
            let grown = datapath.grow(&[(name, from as usize + 1)]).unwrap();
            let [Grown { map, from: old, to, .. }] = grown[..] else { panic!("one map: {grown:?}") };
            assert_eq!((map, old, to), (name, from, 2 * from));
            assert_eq!(room(&datapath, name), 2 * from);
            assert_eq!(rows(&datapath), before, "{name}");
            assert_eq!(names(&pin.maps_dir()), directory, "{name}");
            assert_whole(&pin, &[]);
        }
        for ((name, old), (_, new)) in ids.iter().zip(maps(&pin)) {
            assert_eq!(*old != new, GROWING.contains(&name.as_str()), "{name}");
        }
        assert!(datapath.grow(&[(map::POLICY, 128), (map::LOCAL_V6, 1)]).unwrap().is_empty(), "there is room");
        // All at once, and the room is there.
        let all = one_more(&datapath);
        assert_eq!(datapath.grow(&all).unwrap().len(), GROWING.len());
        fill(&mut datapath, 200);
        assert_eq!(datapath.policy.rows().unwrap().len(), 200);
        // The next agent has the same rows, though its first sizes are smaller.
        let now = rows(&datapath);
        drop(datapath);
        let next = open(base);
        assert_eq!((rows(&next), room(&next, map::POLICY)), (now, 256));
    });
}

#[test]
fn a_need_beyond_the_limit_is_refused_with_how_many_rows_are_too_many_and_changes_nothing() {
    alone(|base| {
        let pin = PinDir::new(base);
        let limits = Limits { ports: 100, ..Limits::DEFAULT };
        let mut datapath = open_with(base, &Sizes { limits, ..sizes() });
        let ids = maps(&pin);
        let error = datapath.grow(&[(map::POLICY, 65), (map::PORTS, 103)]).unwrap_err();
        assert!(matches!(error, LoaderError::TooManyRows { map: map::PORTS, rows: 103, limit: 100 }), "{error}");
        assert!(error.to_string().contains("3 too many"), "{error}");
        assert_eq!(maps(&pin), ids);
        let grown = datapath.grow(&[(map::PORTS, 100)]).unwrap();
        assert_eq!((grown[0].from, grown[0].to), (64, 100), "to the limit and no further");
    });
}

#[test]
fn a_first_size_above_what_is_pinned_replaces_the_map_when_the_datapath_opens() {
    alone(|base| {
        let pin = PinDir::new(base);
        let mut datapath = open(base);
        fill(&mut datapath, 64);
        let pods = two_pods_in(&pin, &mut datapath, 65);
        let before = rows(&datapath);
        drop(datapath);
        let larger = Sizes { policy: 256, addresses: 100, endpoints: 32, ..sizes() };
        let datapath = open_with(base, &larger);
        assert_eq!(rows(&datapath), before);
        assert_eq!([map::POLICY, map::ADDRESS_V6, map::LOCAL_V4, map::PORTS].map(|name| room(&datapath, name)), [256, 100, 32, 64]);
        assert_whole(&pin, &[(&pods[0].0, pods[0].1), (&pods[1].0, pods[1].1)]);
        assert!(pods.iter().all(|(pod, _)| pod.reaches_host()));
    });
}

/// Two pods in a policy table that is full: it is made larger first.
fn two_pods_in(pin: &PinDir, datapath: &mut Datapath, rows: usize) -> [(Pod, AttachKind); 2] {
    datapath.grow(&[(map::POLICY, rows)]).unwrap();
    two_pods(pin, datapath)
}

#[test]
fn a_growth_that_is_killed_after_any_step_loses_no_packet_and_is_mended_by_the_next_run() {
    // What steps there are is learnt from a growth that is not killed.
    let mut steps = Vec::new();
    alone(|base| drop(open(base).grow_watched(&NEEDS, &mut |step| steps.push(step)).unwrap()));
    assert_eq!(steps.len(), 2 + 2 * NEEDS.len() + 2 * programs().len(), "{steps:?}");
    // Two at a time: each loads all programs four times over.
    let (some, others) = steps.split_at(steps.len() / 2);
    thread::scope(|scope| {
        let some = scope.spawn(|| some.iter().for_each(|step| kill_and_mend(*step)));
        others.iter().for_each(|step| kill_and_mend(*step));
        some.join().unwrap_or_else(|panic| resume_unwind(panic));
    });
}

/// What a growth needs that is killed.
const NEEDS: [(&str, usize); 3] = [(map::POLICY, 65), (map::PREFIX_V6, 65), (map::ENDPOINTS, 17)];

/// Ends a growth after a step, and lets another run go on.
fn kill_and_mend(killed_after: InstallStep) {
    alone(|base| {
        let pin = PinDir::new(base);
        let mut datapath = open(base);
        fill(&mut datapath, 12);
        let pods = two_pods(&pin, &mut datapath);
        let closed = Pod::new(3);
        attach_with(&pin, kind(), Role::Endpoint, &closed.host, closed.index).unwrap();
        let (before, directory) = (rows(&datapath), names(&pin.maps_dir()));
        let killed = catch_unwind(AssertUnwindSafe(|| {
            datapath.grow_watched(&NEEDS, &mut |step| {
                if step == killed_after {
                    resume_unwind(Box::new(()))
                }
            })
        }));
        assert!(killed.is_err(), "{killed_after:?}");
        drop(datapath);
        for (pod, kind) in &pods {
            assert!(pod.reaches_host(), "without an agent, after {killed_after:?} by {kind}");
        }
        // What the plugin attaches now is as good.
        let late = Pod::new(4);
        attach_with(&pin, kind(), Role::Endpoint, &late.host, late.index).unwrap();

        let mut next = open(base);
        assert_eq!(rows(&next), before, "{killed_after:?}");
        assert_eq!(names(&pin.maps_dir()), directory, "{killed_after:?}");
        let attached: Vec<_> = pods.iter().map(|(pod, kind)| (pod, *kind)).collect();
        assert_whole(&pin, &attached);
        assert_whole(&pin, &[(&late, kind()), (&closed, kind())]);
        assert!(closed.is_cut_off(), "{killed_after:?}");
        // What is written from now on is what packets meet.
        next.endpoints.insert(&closed.index, &closed.endpoint(1)).unwrap();
        assert!(closed.reaches_host(), "{killed_after:?}");
        assert!(next.grow(&[(map::POLICY, 129)]).unwrap().len() == 1, "and it grows");
    });
}

#[test]
fn a_growth_that_fails_while_programs_are_replaced_is_undone() {
    alone(|base| {
        let pin = PinDir::new(base);
        let mut datapath = open(base);
        let pods = two_pods(&pin, &mut datapath);
        let ids = maps(&pin);
        // No link, but a map, where the link of an endpoint should be.
        let foreign: aya::maps::HashMap<MapData, u32, u32> = aya::maps::HashMap::create(1, 0).unwrap();
        foreign.pin(pin.links_dir().join("4711-to_pod")).unwrap();
        let error = datapath.grow(&[(map::POLICY, 65)]).unwrap_err();
        assert!(matches!(&error, LoaderError::Grow { maps, .. } if maps == map::POLICY), "{}", stage::chain(&error));
        assert!(stage::chain(&error).contains("4711-to_pod"), "{}", stage::chain(&error));
        assert_eq!(maps(&pin), ids);
        let attached: Vec<_> = pods.iter().map(|(pod, kind)| (pod, *kind)).collect();
        assert_whole(&pin, &attached);
        // The handle is as good as before.
        datapath.endpoints.remove(&pods[0].0.index).unwrap();
        assert!(pods[0].0.is_cut_off() && pods[1].0.reaches_host());
        fs::remove_file(pin.links_dir().join("4711-to_pod")).unwrap();
        assert_eq!(datapath.grow(&[(map::POLICY, 65)]).unwrap().len(), 1);
        assert_whole(&pin, &attached);
    });
}

#[test]
fn a_growth_that_can_neither_be_finished_nor_undone_says_so_and_opening_mends_it() {
    alone(|base| {
        let pin = PinDir::new(base);
        let mut datapath = open(base);
        fill(&mut datapath, 12);
        let pods = two_pods(&pin, &mut datapath);
        let before = rows(&datapath);
        let program = pin.programs_dir().join("from_pod");
        let in_the_way = program.clone();
        let error = datapath
            .grow_watched(&[(map::POLICY, 65)], &mut |step| {
                if step == InstallStep::Attached(Hook::ToPod) {
                    // A directory cannot be replaced by a file.
                    fs::remove_file(&in_the_way).unwrap();
                    fs::create_dir(&in_the_way).unwrap();
                }
            })
            .unwrap_err();
        assert!(matches!(error, LoaderError::Torn { .. }), "{}", stage::chain(&error));
        assert!(pods.iter().all(|(pod, _)| pod.reaches_host()));
        fs::remove_dir(&program).unwrap();
        drop(datapath);
        let next = open(base);
        assert_eq!(rows(&next), before);
        let attached: Vec<_> = pods.iter().map(|(pod, kind)| (pod, *kind)).collect();
        assert_whole(&pin, &attached);
    });
}

/// A new flow of a pod, judged by the pinned program of the moment.
fn judge(program: &Path, ifindex: u32, pod: &Endpoint, port: u16) -> i32 {
    use aya::{TestRun as _, TestRunOptions};
    let program = SchedClassifier::from_pin(program).unwrap();
    let from = IpAddr::from(pod.ipv4);
    let way = palisade_test_support::packet::Way::new(pod.pod_mac, from, pod.host_mac, "192.0.2.9".parse().unwrap());
    let packet = way.udp(port, 53);
    let mut context = [0; 44];
    context[36..40].copy_from_slice(&ifindex.to_ne_bytes());
    context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
    let mut out = vec![0; packet.len() + 256];
    let options =
        TestRunOptions { data_in: Some(&packet), data_out: Some(&mut out), ctx_in: Some(&context), repeat: 1, ..TestRunOptions::default() };
    program.test_run(options).unwrap().return_value as i32
}

#[test]
fn no_packet_is_lost_or_judged_otherwise_while_maps_grow_and_connections_stay() {
    const GROWTHS: u32 = 12;
    for kind in kinds() {
        alone(|base| {
            let pin = PinDir::new(base);
            let mut datapath = open(base);
            let pod = Pod::new(1);
            allow(&mut datapath, 1);
            datapath.endpoints.insert(&pod.index, &pod.endpoint(1)).unwrap();
            // Two more endpoints, for runs over packets: one that may send, and one that may not.
            run("ip link add open type veth peer name shut");
            let index = |name: &str| nix::net::if_::if_nametoindex(name).unwrap();
            let row = |ifindex, subject, last| {
                let (pod_mac, host_mac) = ([2; 6], [4; 6]);
                Endpoint { ifindex, subject, ipv4: [10, 7, 0, last], pod_mac, host_mac, ..Endpoint::default() }
            };
            let (open, shut) = (index("open"), index("shut"));
            let judged = [(open, row(open, 1, 1), PASS), (shut, row(shut, 2, 2), SHOT)];
            for (index, row, _) in &judged {
                datapath.endpoints.insert(index, row).unwrap();
            }
            let denies = PolicyEntry { verdict: palisade_datapath_core::abi::RowVerdict::Deny as u8, ..PolicyEntry::default() };
            datapath.policy.insert(&PolicyKey::new(2, Direction::Egress, palisade_datapath_core::abi::IDENTITY_ANY), &denies).unwrap();
            attach_with(&pin, kind, Role::Endpoint, &pod.host, pod.index).unwrap();
            assert!(pod.reaches_host(), "{kind}");

            let (stop, trips, echo) = ping_pong(&pod);
            // The flow is established; from here on nothing of it is judged anew.
            while trips.load(Ordering::SeqCst) < 10 {
                thread::sleep(Duration::from_millis(1));
            }
            let program = pin.programs_dir().join("from_pod");
            let ended = AtomicBool::new(false);
            let runs = thread::scope(|scope| {
                let judge_all = || {
                    let mut runs = 0_u64;
                    let mut port = 1024_u16;
                    while !ended.load(Ordering::SeqCst) {
                        port = port.checked_add(1).unwrap_or(1024);
                        for (index, row, expected) in &judged {
                            assert_eq!(judge(&program, *index, row, port), *expected, "run {runs}, by {kind}");
                            runs += 1;
                        }
                    }
                    runs
                };
                let judging = scope.spawn(judge_all);
                let judged_anew = |datapath: &Datapath| datapath.counters().unwrap()[Outcome::AllowedNew as usize].1.packets;
                for round in 0..GROWTHS {
                    let before = trips.load(Ordering::SeqCst);
                    let needs: Vec<_> =
                        datapath.room().into_iter().map(|room| (room.map, (room.rows as usize + 1).min(room.limit as usize))).collect();
                    let began = Instant::now();
                    let grown = datapath.grow(&needs).unwrap_or_else(|error| panic!("{}", stage::chain(&error)));
                    assert!(!grown.is_empty());
                    fill(&mut datapath, 12 + u16::try_from(round).unwrap());
                    println!(
                        "{kind}: {} maps in {:?}, {} round trips meanwhile",
                        grown.len(),
                        began.elapsed(),
                        trips.load(Ordering::SeqCst) - before
                    );
                }
                ended.store(true, Ordering::SeqCst);
                let runs = judging.join();
                // Every run over a packet that passed was a new flow; what is above that was judged anew.
                (runs, judged_anew(&datapath))
            });
            let (Ok(runs), judged_anew) = runs else { panic!("a packet was judged otherwise") };
            stop.send(()).unwrap();
            let lost = echo.recv().unwrap();
            let trips = trips.load(Ordering::SeqCst);
            assert!(!lost, "a packet was lost after {trips} round trips by {kind}");
            assert!(trips > 100 && runs > 100, "{trips} round trips, {runs} runs");
            println!("{kind}: {trips} round trips, {runs} runs over packets, {judged_anew} flows judged");
            assert_eq!(
                datapath.counters().unwrap()[Outcome::EndpointMissing as usize].1.packets,
                0,
                "no packet found a map without its rows"
            );
            assert_whole(&pin, &[(&pod, kind)]);
            // Unlike the runs over packets, of which half are new flows or those of an earlier round, the ping-pong was judged once or twice.
            assert!(judged_anew <= runs / 2 + 4, "{judged_anew} flows were judged, {} of them in runs", runs / 2);
            assert!(pod.reaches_host());
        });
    }
}

/// A ping-pong of a pod with its host, without pause or repetition: one lost packet ends it. How to end it, how many round trips
/// there were, and, at its end, whether a packet was lost.
fn ping_pong(pod: &Pod) -> (mpsc::Sender<()>, std::sync::Arc<AtomicU64>, mpsc::Receiver<bool>) {
    let [a, b, c, _] = pod.address;
    let server = UdpSocket::bind((Ipv4Addr::new(a, b, c, 1), 0)).unwrap();
    let to = server.local_addr().unwrap();
    let patience = Some(Duration::from_secs(20));
    server.set_read_timeout(patience).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((length, from)) = server.recv_from(&mut buffer) {
            server.send_to(&buffer[..length], from).unwrap();
            if &buffer[..length] == b"end" {
                break;
            }
        }
    });
    let trips = std::sync::Arc::new(AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&trips);
    let (stop, stopped) = mpsc::channel::<()>();
    let (done, result) = mpsc::channel();
    pod.start(move || {
        let client = UdpSocket::bind("0.0.0.0:0").unwrap();
        client.set_read_timeout(patience).unwrap();
        let mut buffer = [0; 16];
        let lost = loop {
            let ending = stopped.try_recv().is_ok();
            client.send_to(if ending { b"end" } else { b"trip" }, to).unwrap();
            if client.recv(&mut buffer).is_err() {
                break true;
            }
            counted.fetch_add(1, Ordering::SeqCst);
            if ending {
                break false;
            }
        };
        let _ = done.send(lost);
    });
    (stop, trips, result)
}

#[test]
fn an_endpoint_that_is_attached_while_maps_grow_has_the_programs_of_the_new_ones() {
    alone(|base| {
        let pin = PinDir::new(base);
        let mut datapath = open(base);
        let pods = [Pod::new(1), Pod::new(2)];
        let ended = AtomicBool::new(false);
        let attached = thread::scope(|scope| {
            let plugin = scope.spawn(|| {
                let mut attached = 0;
                while !ended.load(Ordering::SeqCst) {
                    for (pod, kind) in pods.iter().zip(both()) {
                        attach_with(&pin, kind, Role::Endpoint, &pod.host, pod.index).unwrap();
                    }
                    attached += 1;
                }
                attached
            });
            for _ in 0..8 {
                let all = one_more(&datapath);
                datapath.grow(&all).unwrap_or_else(|error| panic!("{}", stage::chain(&error)));
            }
            ended.store(true, Ordering::SeqCst);
            plugin.join().unwrap()
        });
        println!("attached {attached} times");
        assert_whole(&pin, &[(&pods[0], both()[0]), (&pods[1], both()[1])]);
    });
}

#[test]
fn thirty_thousand_addresses_and_ten_thousand_networks_are_written_from_small_first_sizes() {
    alone(|base| {
        let mut datapath = open(base);
        let needs = [
            (map::ADDRESS_V4, 30_000),
            (map::ADDRESS_V6, 30_000),
            (map::PREFIX_V4, 10_000),
            (map::PREFIX_V6, 10_000),
            (map::POLICY, 10_000),
        ];
        let grown = datapath.grow(&needs).unwrap();
        assert_eq!(grown.iter().map(|grown| grown.to).collect::<BTreeSet<_>>(), [16_384, 65_536].into());
        let began = Instant::now();
        for number in 0..30_000_u32 {
            datapath.addresses.insert(&Ipv4Addr::from(0x0a00_0000 + number).into(), &number).unwrap();
            datapath.addresses.insert(&Ipv6Addr::from((0xfd00 << 112) | u128::from(number)).into(), &number).unwrap();
        }
        let network = |number: u32| IpNet::from(Ipv4Net::new(Ipv4Addr::from(0x2000_0000 + 512 * number), 24).unwrap());
        for number in 0..10_000 {
            datapath.prefixes.insert(&network(number), &number).unwrap();
            datapath.policy.insert(&PolicyKey::new(1, Direction::Egress, number), &PolicyEntry::default()).unwrap();
        }
        println!("80000 rows written in {:?}", began.elapsed());
        // Once more, full as they are: what copying costs.
        let grown = datapath.grow(&needs.map(|(map, rows)| (map, 3 * rows))).unwrap();
        println!("{grown:?}");
        assert_eq!(grown.iter().map(|grown| grown.copied).sum::<usize>(), 80_000);
        assert_eq!(datapath.addresses.rows().unwrap().len(), 60_000);
        assert_eq!(datapath.prefixes.lookup(&"32.0.2.1".parse().unwrap()).unwrap(), Some(1));
        assert_eq!(datapath.prefixes.rows().unwrap().len(), 10_000);
        let context = PacketContext::default();
        assert_eq!(datapath.test_run(Hook::FromPod, &[0; 64], &context).unwrap().action, SHOT, "the handle runs the new programs");
    });
}
