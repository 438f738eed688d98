//! What outlives the agent, and how the next one takes it over.

mod stage;

use std::{fs, os::unix::fs::PermissionsExt, os::unix::process::CommandExt, path::Path, process::Command};

use aya::{
    maps::MapData,
    programs::{SchedClassifier, TcAttachType, links::FdLink, links::PinnedLink},
};
use palisade_datapath_core::abi::{ABI_VERSION, Hook, LocalPod, map};
use palisade_loader::{
    AttachKind, Datapath, LoaderError, PinDir, Role, Sizes, attach_with, detach_endpoint, endpoint_attached, pinned_links,
};
use palisade_test_support::for_every_user;
use stage::{Pod, allow, alone, chain, has_tcx, kind, kinds, names, open, open_with, programs, run, sizes, tcx_programs};

fn program(path: &Path) -> u32 {
    SchedClassifier::from_pin(path).unwrap().info().unwrap().id()
}

fn link(path: &Path) -> (u32, u32) {
    let info = FdLink::from(PinnedLink::from_pin(path).unwrap()).info().unwrap();
    (info.id(), info.program_id())
}

fn map_id(pin: &PinDir, name: &str) -> u32 {
    MapData::from_pin(pin.maps_dir().join(name)).unwrap().info().unwrap().id()
}

#[test]
fn takeover_keeps_rows_and_links_and_replaces_programs() {
    if !has_tcx() {
        return;
    }
    alone(|base| {
        let pin = PinDir::new(base);
        let pod = Pod::new(1);
        let mut first = open(base);
        assert_eq!(first.attach_kind(), AttachKind::Tcx);
        let row = LocalPod { ifindex: pod.index, pod_mac: [1; 6], host_mac: [2; 6], since: 0 };
        first.local.insert(&"10.9.1.2".parse().unwrap(), &row).unwrap();
        let epoch = first.bump_epoch().unwrap();
        attach_with(&pin, AttachKind::Tcx, Role::Endpoint, &pod.host, pod.index).unwrap();
        let paths: Vec<_> = ["from_pod", "to_pod"]
            .map(|name| (pin.programs_dir().join(name), pin.links_dir().join(format!("{}-{name}", pod.index))))
            .into_iter()
            .collect();
        let before: Vec<u32> = paths.iter().map(|(path, _)| program(path)).collect();
        let links: Vec<(u32, u32)> = paths.iter().map(|(_, path)| link(path)).collect();
        let endpoints = map_id(&pin, map::ENDPOINTS);
        drop(first);

        let second = open(base);
        assert_eq!(second.local.get(&"10.9.1.2".parse().unwrap()).unwrap(), Some(row));
        assert_eq!(second.epoch().unwrap(), epoch);
        assert_eq!(map_id(&pin, map::ENDPOINTS), endpoints);
        for (number, (program_path, link_path)) in paths.iter().enumerate() {
            let (id, runs) = link(link_path);
            assert_eq!(id, links[number].0, "the link is the same");
            assert_ne!(runs, links[number].1, "it has another program");
            assert_ne!(program(program_path), before[number]);
            assert_eq!(program(program_path), runs, "new endpoints get the program that the old ones have");
        }
        assert_eq!(names(&pin.programs_dir()), programs());
        assert_eq!(pinned_links(&pin, Role::Endpoint).unwrap().into_iter().collect::<Vec<_>>(), [pod.index]);
    });
}

#[test]
fn no_packet_is_lost_while_programs_are_replaced() {
    for kind in kinds() {
        alone(|base| {
            let pin = PinDir::new(base);
            let pod = Pod::new(1);
            let mut datapath = open(base);
            allow(&mut datapath, 1);
            datapath.endpoints.insert(&pod.index, &pod.endpoint(1)).unwrap();
            attach_with(&pin, kind, Role::Endpoint, &pod.host, pod.index).unwrap();
            drop(datapath);
            assert!(pod.reaches_host(), "{kind}");

            // A ping-pong without pause or repetition: one lost packet ends it.
            let server = std::net::UdpSocket::bind("10.9.1.1:0").unwrap();
            let to = server.local_addr().unwrap();
            server.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
            let (stop, stopped) = std::sync::mpsc::channel::<()>();
            let echo = std::thread::spawn(move || {
                let mut buffer = [0; 16];
                while let Ok((length, from)) = server.recv_from(&mut buffer) {
                    server.send_to(&buffer[..length], from).unwrap();
                    if &buffer[..length] == b"end" {
                        break;
                    }
                }
            });
            let (done, result) = std::sync::mpsc::channel();
            pod.start(move || {
                let client = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
                client.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
                let (mut buffer, mut trips) = ([0; 16], 0_u32);
                let lost = loop {
                    let ending = stopped.try_recv().is_ok();
                    client.send_to(if ending { b"end" } else { b"trip" }, to).unwrap();
                    if client.recv(&mut buffer).is_err() {
                        break true;
                    }
                    trips += 1;
                    if ending {
                        break false;
                    }
                };
                done.send((trips, lost)).unwrap();
            });
            for _ in 0..5 {
                drop(open(base));
            }
            stop.send(()).unwrap();
            let (trips, lost) = result.recv().unwrap();
            echo.join().unwrap();
            assert!(!lost, "a packet was lost after {trips} round trips by {kind}");
            assert!(trips > 10, "{trips} round trips");
        });
    }
}

#[test]
fn a_pinned_map_of_another_layout_is_refused_and_left() {
    alone(|base| {
        let pin = PinDir::new(base);
        fs::create_dir_all(pin.maps_dir()).unwrap();
        let foreign: aya::maps::HashMap<MapData, u64, u64> = aya::maps::HashMap::create(8, 0).unwrap();
        foreign.pin(pin.maps_dir().join(map::POLICY)).unwrap();
        let id = map_id(&pin, map::POLICY);

        let error = Datapath::open(&pin, &sizes()).err().expect("refused");
        let text = error.to_string();
        assert!(matches!(&error, LoaderError::Layout { map: name, .. } if name == map::POLICY), "{text}");
        assert!(text.contains("hash with 8-byte keys, 8-byte values, 8 entries"), "what is pinned: {text}");
        assert!(text.contains("hash with 12-byte keys, 12-byte values, 64 entries"), "what is wanted: {text}");
        assert_eq!(map_id(&pin, map::POLICY), id);
        assert_eq!(names(&pin.maps_dir()), [map::POLICY], "nothing was made beside it");
        assert!(names(&pin.programs_dir()).is_empty());
    });
}

#[test]
fn a_pinned_map_of_another_kind_is_refused() {
    alone(|base| {
        let pin = PinDir::new(base);
        fs::create_dir_all(pin.maps_dir()).unwrap();
        // Sizes of keys and values as of CONFIG.
        let foreign: aya::maps::HashMap<MapData, u32, u32> = aya::maps::HashMap::create(3, 0).unwrap();
        foreign.pin(pin.maps_dir().join(map::CONFIG)).unwrap();
        let error = Datapath::open(&pin, &sizes()).err().expect("refused");
        assert!(matches!(&error, LoaderError::Layout { map: name, .. } if name == map::CONFIG), "{error}");
    });
}

#[test]
fn a_pinned_map_that_is_larger_or_does_not_grow_keeps_its_size() {
    alone(|base| {
        drop(open(base));
        let other = Sizes { policy: 32, ports: 65, connections: 512, events_bytes: 8192, ..sizes() };
        let mut datapath = open_with(base, &other);
        let rows = |name: &str| datapath.room().into_iter().find(|room| room.map == name).unwrap().rows;
        assert_eq!((rows(map::POLICY), rows(map::PORTS)), (64, 65), "the one is large enough, the other is replaced");
        assert_eq!(MapData::from_pin(PinDir::new(base).maps_dir().join(map::CONNECTIONS_V4)).unwrap().info().unwrap().max_entries(), 256);
        // Mapping a ring by another size than it has would fail.
        assert!(datapath.events().unwrap().next().unwrap().is_none());
    });
}

#[test]
fn a_run_that_was_killed_half_way_is_finished_by_the_next() {
    alone(|base| {
        let pin = PinDir::new(base);
        let mut first = open(base);
        first.endpoints.insert(&7, &palisade_datapath_core::abi::Endpoint { subject: 3, ..Default::default() }).unwrap();
        drop(first);
        // Killed between the map pins, and between pinning a program and giving it its name.
        for name in [map::PORTS, map::EVENTS] {
            fs::remove_file(pin.maps_dir().join(name)).unwrap();
        }
        fs::remove_file(pin.programs_dir().join("to_pod")).unwrap();
        fs::rename(pin.programs_dir().join("from_pod"), pin.programs_dir().join("from_pod-next")).unwrap();

        let second = open(base);
        assert_eq!(second.endpoints.get(&7).unwrap().map(|row| row.subject), Some(3));
        assert_eq!(names(&pin.programs_dir()), programs());
        assert!(pin.maps_dir().join(map::PORTS).exists() && pin.maps_dir().join(map::EVENTS).exists());
    });
}

#[test]
fn maps_without_programs_are_taken_over() {
    alone(|base| {
        let pin = PinDir::new(base);
        drop(open(base));
        let endpoints = map_id(&pin, map::ENDPOINTS);
        for name in programs() {
            fs::remove_file(pin.programs_dir().join(name)).unwrap();
        }
        drop(open(base));
        assert_eq!(map_id(&pin, map::ENDPOINTS), endpoints);
        assert_eq!(names(&pin.programs_dir()), programs());
    });
}

#[test]
fn state_of_a_newer_version_is_refused_by_name_and_left() {
    alone(|base| {
        let newer = base.join(format!("v{}", ABI_VERSION + 1));
        fs::create_dir_all(newer.join("maps")).unwrap();
        let error = Datapath::open(&PinDir::new(base), &sizes()).err().expect("refused");
        assert!(
            matches!(&error, LoaderError::NewerAbi { path, found, ours } if *path == newer && *found == ABI_VERSION + 1 && *ours == ABI_VERSION),
            "{error}"
        );
        assert!(error.to_string().contains(&newer.display().to_string()), "{error}");
        assert_eq!(names(base), [format!("v{}", ABI_VERSION + 1)], "nothing was made beside it");
    });
}

#[test]
fn a_directory_outside_of_a_bpf_file_system_is_refused_with_the_way_to_mount_one() {
    let directory = tempfile::tempdir().unwrap();
    let error = Datapath::open(&PinDir::new(directory.path().join("deep/palisade")), &sizes()).err().expect("refused");
    assert!(matches!(&error, LoaderError::NotBpffs { path } if path == directory.path()), "{error}");
    assert!(error.to_string().contains("mount -t bpf"), "{error}");
    assert!(names(directory.path()).is_empty(), "nothing was made");
}

/// The test runs this very binary as another user; the child opens the datapath and prints the error.
#[test]
fn without_capabilities_the_error_names_them() {
    const CHILD: &str = "PALISADE_UNPRIVILEGED_BASE";
    if let Some(base) = std::env::var_os(CHILD) {
        match Datapath::open(&PinDir::new(base), &sizes()) {
            Ok(_) => println!("OPENED"),
            Err(error) => println!("REFUSED {}", chain(&error)),
        }
        return;
    }
    alone(|base| {
        fs::set_permissions(base.parent().unwrap(), fs::Permissions::from_mode(0o777)).unwrap();
        let (_place, program) = for_every_user(&std::env::current_exe().unwrap());
        let output = Command::new(program)
            .args(["--exact", "without_capabilities_the_error_names_them", "--nocapture"])
            .env(CHILD, base)
            .uid(65_534)
            .gid(65_534)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("REFUSED") && text.contains("CAP_BPF") && text.contains("CAP_NET_ADMIN"), "{text}");
    });
}

/// As in the agent's container: root, with nothing but the capabilities that the chart grants.
#[test]
fn three_capabilities_are_enough_to_take_over_and_to_attach() {
    const CHILD: &str = "PALISADE_THREE_CAPABILITIES_BASE";
    if let Some(base) = std::env::var_os(CHILD) {
        let pin = PinDir::new(base);
        drop(Datapath::open(&pin, &sizes()).unwrap_or_else(|error| panic!("{}", chain(&error))));
        let index = nix::net::if_::if_nametoindex("mine").unwrap();
        for kind in kinds().into_iter().rev() {
            attach_with(&pin, kind, Role::Endpoint, "mine", index).unwrap_or_else(|error| panic!("{}", chain(&error)));
            attach_with(&pin, kind, Role::Endpoint, "mine", index).unwrap_or_else(|error| panic!("again: {}", chain(&error)));
            assert!(endpoint_attached(&pin, "mine", index).unwrap_or_else(|error| panic!("{}", chain(&error))));
        }
        drop(Datapath::open(&pin, &sizes()).unwrap_or_else(|error| panic!("{}", chain(&error))));
        detach_endpoint(&pin, index).unwrap();
        println!("TAKEN OVER");
        return;
    }
    alone(|base| {
        run("ip link add mine type veth peer name peer");
        let output = Command::new("setpriv")
            .args(["--bounding-set", "-all,+bpf,+net_admin,+perfmon", "--inh-caps", "-all"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "three_capabilities_are_enough_to_take_over_and_to_attach", "--nocapture"])
            .env(CHILD, base)
            .output()
            .unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && text.contains("TAKEN OVER"), "{text}");
    });
}

#[test]
fn links_of_interfaces_that_are_gone_are_swept_when_the_datapath_opens() {
    alone(|base| {
        let pin = PinDir::new(base);
        let pods = [(kind(), Pod::new(1)), (AttachKind::Clsact, Pod::new(2))];
        drop(open(base));
        for (kind, pod) in &pods {
            attach_with(&pin, *kind, Role::Endpoint, &pod.host, pod.index).unwrap();
        }
        assert_eq!(pinned_links(&pin, Role::Endpoint).unwrap().len(), 2);
        for (_, pod) in &pods {
            run(&format!("ip link delete {}", pod.host));
        }
        drop(open(base));
        assert!(names(&pin.links_dir()).is_empty(), "{:?}", names(&pin.links_dir()));
    });
}

#[test]
fn a_link_of_an_interface_that_is_gone_does_not_hinder_the_next_one_of_its_index() {
    for kind in kinds() {
        alone(|base| {
            let pin = PinDir::new(base);
            drop(open(base));
            run("ip link add first index 77 type veth peer name peer");
            attach_with(&pin, kind, Role::Endpoint, "first", 77).unwrap();
            run("ip link delete first");
            run("ip link add second index 77 type veth peer name peer");
            assert!(!endpoint_attached(&pin, "second", 77).unwrap(), "{kind}");
            attach_with(&pin, kind, Role::Endpoint, "second", 77).unwrap();
            assert!(endpoint_attached(&pin, "second", 77).unwrap(), "{kind}");
            detach_endpoint(&pin, 77).unwrap();
        });
    }
}

#[test]
fn an_interface_without_our_filter_is_left_alone_though_it_has_the_index_of_a_former_endpoint() {
    alone(|base| {
        let pin = PinDir::new(base);
        drop(open(base));
        run("ip link add first index 77 type veth peer name peer");
        attach_with(&pin, AttachKind::Clsact, Role::Endpoint, "first", 77).unwrap();
        run("ip link delete first");
        run("ip link add uplink index 77 type veth peer name peer");
        drop(open(base));
        assert!(!run("tc qdisc show dev uplink").contains("clsact"));
        assert_eq!(tcx_programs("uplink", TcAttachType::Ingress), 0);
    });
}

#[test]
fn the_agent_and_the_plugin_agree_on_the_directory() {
    alone(|base| {
        let datapath = open(base);
        assert_eq!(&PinDir::from_abi_dir(datapath.pin_dir().root()), datapath.pin_dir());
        // A packet of an interface that is no endpoint is dropped and counted.
        let run = datapath.test_run(Hook::FromPod, &[0; 64], &palisade_loader::PacketContext::default()).unwrap();
        assert_eq!(run.action, 2, "TC_ACT_SHOT");
    });
}
