//! The programs at the sockets of the node's own processes: whom they lead to, also while maps are replaced by larger ones under them.

mod stage;

use std::{
    fs,
    io::Result,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    sync::mpsc::{self, TryRecvError},
    thread,
    time::{Duration, Instant},
};

use aya::maps::MapData;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};
use palisade_datapath_core::abi::{Backend, CHUNK, ChunkKey, Hook, ServiceEntry, backend_flag, map};
use palisade_loader::{Cgroup, Datapath, InstallStep, LoaderError, PinDir, Sizes};
use palisade_test_support::skipped;
use stage::{alone, chain, open_with, sizes, soon};

const PORT: u16 = 53;
const UDP: u8 = 17;
/// The names of backends.
const ONE: u8 = 1;
const TWO: u8 = 2;

/// The cgroups of the machine, mounted as long as a test runs.
struct Cgroups(tempfile::TempDir);

impl Cgroups {
    fn mounted() -> Self {
        let directory = tempfile::tempdir().unwrap();
        mount(None::<&str>, directory.path(), Some("cgroup2"), MsFlags::empty(), None::<&str>).unwrap();
        Self(directory)
    }

    fn root(&self) -> Cgroup {
        Cgroup::open(self.0.path()).unwrap()
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// Room for so many sockets that none is evicted: what is shows its socket the backend.
const MANY: u32 = 16_384;
/// Room for fewer sockets than there are. The kernel makes room by up to 128 rows at once (`LOCAL_FREE_TARGET`).
const FEW: u32 = 256;

/// Opens the datapath with small maps, but for that of sockets, and for that of who stays with a backend.
fn open(base: &Path, sockets: u32) -> Datapath {
    open_with(base, &Sizes { sockets, affinity: 16_384, ..sizes() })
}

/// Runs `test` on a node that serves its own sockets, with a backend of each family, [`ONE`]; it is skipped, visibly, where this kernel cannot.
fn served(test: impl FnOnce(&Path, Datapath, &Cgroup, [SocketAddr; 2]) + Send) {
    served_with(MANY, test);
}

/// As [`served`], with room for so many sockets.
fn served_with(sockets: u32, test: impl FnOnce(&Path, Datapath, &Cgroup, [SocketAddr; 2]) + Send) {
    alone(|base| {
        let mut datapath = open(base, sockets);
        let (mounted, backends) = (Cgroups::mounted(), backends(ONE));
        let cgroup = mounted.root();
        match datapath.serve_sockets(&cgroup) {
            Err(LoaderError::NoNamespaceCookie { .. }) => skipped("this kernel does not tell the cookie of a network namespace"),
            other => {
                other.unwrap_or_else(|error| panic!("{}", chain(&error)));
                test(base, datapath, &cgroup, backends);
            }
        }
        // What is at the root of all cgroups would stay as long as a link is pinned or open.
        fs::remove_dir_all(base).unwrap();
    });
}

/// A backend of each family, which answers every datagram with its name. Its thread ends with the process.
fn backends(name: u8) -> [SocketAddr; 2] {
    [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].map(|address| {
        let socket = UdpSocket::bind((address, 0)).unwrap();
        let bound = socket.local_addr().unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 16];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&[name], from);
            }
        });
        bound
    })
}

/// The rows of a service with one backend in each family, by its number; its frontends.
fn serve(datapath: &mut Datapath, number: u16, backends: [SocketAddr; 2]) -> [SocketAddr; 2] {
    lead(datapath, number, (number, backends), 0)
}

/// Lets a service, by its number, lead to backends under a number of theirs, from all slots; a client stays with one for some seconds. Its frontends.
fn lead(datapath: &mut Datapath, service: u16, (number, backends): (u16, [SocketAddr; 2]), affinity: u32) -> [SocketAddr; 2] {
    backends.map(|backend| {
        let mut address = [0; 16];
        let (frontend, version): (IpAddr, _) = match backend.ip() {
            IpAddr::V4(ip) => {
                address[..4].copy_from_slice(&ip.octets());
                (Ipv4Addr::from(0x0a60_0000 + u32::from(service)).into(), 4)
            }
            IpAddr::V6(ip) => {
                address = ip.octets();
                (Ipv6Addr::from((0xfd96 << 112) | u128::from(service)).into(), 6)
            }
        };
        let [service, id] = [service, number].map(|number| 2 * u32::from(number) + u32::from(backend.is_ipv6()));
        let (port, flags) = (backend.port().to_be_bytes(), backend_flag::CHOSEN | backend_flag::SERVING);
        datapath.backends.insert(&id, &Backend { address, service, port, version, flags }).unwrap();
        datapath.chunks.insert(&ChunkKey { table: id, chunk: 0 }, &[id; CHUNK]).unwrap();
        let entry = ServiceEntry { service, table: id, affinity, bits: 6, ..ServiceEntry::default() };
        datapath.services.insert((frontend, PORT, UDP), &entry).unwrap();
        (frontend, PORT).into()
    })
}

/// A socket by which a frontend can be asked.
fn socket_for(frontend: SocketAddr) -> Result<UdpSocket> {
    let any: IpAddr = if frontend.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(socket)
}

/// Hears the answer: from where, and who it is.
fn hears(socket: &UdpSocket) -> Result<(SocketAddr, u8)> {
    let mut buffer = [0; 16];
    let (length, from) = socket.recv_from(&mut buffer)?;
    assert_eq!(length, 1);
    Ok((from, buffer[0]))
}

/// Who answers a new socket, which connects or does not: it must see the service alone.
fn answerer(connects: bool, frontend: SocketAddr) -> Result<u8> {
    let socket = socket_for(frontend)?;
    if connects {
        socket.connect(frontend)?;
        assert_eq!(socket.peer_addr()?, frontend);
        socket.send(b"ask")?;
    } else {
        socket.send_to(b"ask", frontend)?;
    }
    let (from, who) = hears(&socket)?;
    assert_eq!(from, frontend);
    Ok(who)
}

/// Asks a service of [`ONE`] by a socket that connects and by one that does not.
fn ask(frontend: SocketAddr) -> Result<()> {
    for connects in [true, false] {
        assert_eq!(answerer(connects, frontend)?, ONE);
    }
    Ok(())
}

fn ask_all(frontends: [SocketAddr; 2]) {
    for frontend in frontends {
        ask(frontend).unwrap_or_else(|error| panic!("{frontend}: {error}"));
    }
}

/// All maps, each for one row more than it has room for.
fn one_more(datapath: &Datapath) -> Vec<(&'static str, usize)> {
    datapath.room().into_iter().map(|room| (room.map, room.rows as usize + 1)).collect()
}

#[test]
fn sockets_reach_services_without_a_gap_while_maps_grow_and_then_those_of_the_larger_ones() {
    served(|_, mut datapath, _, backends| {
        let first = serve(&mut datapath, 1, backends);
        let asked = thread::scope(|scope| {
            let (end, ended) = mpsc::channel::<()>();
            let asking = scope.spawn(move || {
                let mut asked = 0;
                while ended.try_recv() == Err(TryRecvError::Empty) {
                    ask_all(first);
                    asked += 1;
                }
                asked
            });
            for number in 2..10 {
                let needs = one_more(&datapath);
                datapath.grow(&needs).unwrap_or_else(|error| panic!("{}", chain(&error)));
                assert!(datapath.serves_sockets().unwrap());
                ask_all(serve(&mut datapath, number, backends));
            }
            drop(end);
            asking.join()
        });
        let asked = asked.unwrap_or_else(|panic| resume_unwind(panic));
        println!("asked {asked} times while maps grew");
        assert!(asked > 8, "{asked}");
    });
}

#[test]
fn sockets_reach_services_after_a_growth_that_was_killed_and_those_of_the_next_agent() {
    served(|base, mut datapath, _, backends| {
        let mut frontends = serve(&mut datapath, 1, backends);
        let steps = [InstallStep::Made, InstallStep::Loaded, InstallStep::Attached(Hook::ToNet), InstallStep::MapNamed(map::BACKENDS)];
        for (number, killed_after) in (2..).zip(steps) {
            let needs = one_more(&datapath);
            let killed = catch_unwind(AssertUnwindSafe(|| {
                datapath.grow_watched(&needs, &mut |step| {
                    if step == killed_after {
                        resume_unwind(Box::new(()))
                    }
                })
            }));
            assert!(killed.is_err(), "{killed_after:?}");
            drop(datapath);
            ask_all(frontends);
            datapath = open(base, MANY);
            assert!(datapath.serves_sockets().unwrap(), "{killed_after:?}");
            ask_all(frontends);
            frontends = serve(&mut datapath, number, backends);
            ask_all(frontends);
        }
    });
}

#[test]
fn sockets_are_served_from_the_old_maps_where_a_growth_is_undone() {
    served(|base, mut datapath, _, backends| {
        ask_all(serve(&mut datapath, 1, backends));
        // No link, but a map, where the link of an endpoint should be.
        let foreign = PinDir::new(base).links_dir().join("4711-to_pod");
        pin_a_map(&foreign);
        let needs = one_more(&datapath);
        assert!(matches!(datapath.grow(&needs), Err(LoaderError::Grow { .. })));
        fs::remove_file(foreign).unwrap();
        assert!(datapath.serves_sockets().unwrap());
        ask_all(serve(&mut datapath, 2, backends));
    });
}

#[test]
fn a_program_of_sockets_that_cannot_be_replaced_keeps_no_map_from_growing_is_missed_and_can_be_attached_anew() {
    served(|base, mut datapath, cgroup, backends| {
        let link = PinDir::new(base).sockets_dir().join("connect4");
        fs::remove_file(&link).unwrap();
        pin_a_map(&link);
        let needs = one_more(&datapath);
        datapath.grow(&needs).unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert!(!datapath.serves_sockets().unwrap() && !link.exists());
        let frontends = serve(&mut datapath, 1, backends);
        soon("a service's address is nothing to a socket that connects", || ask(frontends[0]).is_err());
        ask(frontends[1]).unwrap();
        datapath.serve_sockets(cgroup).unwrap();
        assert!(datapath.serves_sockets().unwrap());
        ask_all(frontends);
    });
}

#[test]
fn of_more_sockets_than_there_is_room_for_the_newest_see_their_service_and_none_sees_another_s() {
    served_with(FEW, |_, mut datapath, _, backends| {
        // A row makes room for others of the CPU that it was written on.
        let mut cpus = CpuSet::new();
        cpus.set(sched_getcpu().unwrap()).unwrap();
        sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
        // Of the same backends.
        let (own, others) = (serve(&mut datapath, 1, backends), serve(&mut datapath, 2, backends));
        for ((own, other), backend) in own.into_iter().zip(others).zip(backends) {
            let (connected, free) = (socket_for(own).unwrap(), socket_for(own).unwrap());
            connected.connect(own).unwrap();
            connected.send(b"ask").unwrap();
            free.send_to(b"ask", own).unwrap();
            let connects = || {
                let socket = socket_for(other).unwrap();
                socket.connect(other).unwrap();
                socket
            };
            (0..10 * FEW).for_each(|_| drop(connects()));
            let newest: Vec<UdpSocket> = (0..64).map(|_| connects()).collect();
            assert!(newest.iter().all(|socket| socket.peer_addr().unwrap() == other));
            // Who is forgotten sees the backend, which it goes on talking to.
            assert_eq!(connected.peer_addr().unwrap(), backend);
            assert_eq!([&connected, &free].map(|socket| hears(socket).unwrap().0), [backend; 2]);
            connected.send(b"ask").unwrap();
            assert_eq!(hears(&connected).unwrap().0, backend);
            // And who asks anew the service, as before.
            connected.connect(own).unwrap();
            assert_eq!(connected.peer_addr().unwrap(), own);
            connected.send(b"ask").unwrap();
            free.send_to(b"ask", own).unwrap();
            assert_eq!([&connected, &free].map(|socket| hears(socket).unwrap().0), [own; 2]);
        }
    });
}

#[test]
fn a_socket_s_datagrams_leave_their_backend_once_the_frontend_is_another_service_s() {
    served(|_, mut datapath, _, first| {
        let frontends = serve(&mut datapath, 1, first);
        let others = backends(TWO);
        let asks = frontends.map(|frontend| {
            let socket = socket_for(frontend).unwrap();
            move || {
                socket.send_to(b"ask", frontend).unwrap();
                hears(&socket).unwrap()
            }
        });
        for (ask, frontend) in asks.iter().zip(frontends) {
            assert_eq!(ask(), (frontend, ONE));
            assert_eq!(ask(), (frontend, ONE));
        }
        // The first service lives on, and so does its backend; its addresses are another one's.
        let of_another = serve(&mut datapath, 2, others);
        for (frontend, other) in frontends.into_iter().zip(of_another) {
            let [key, theirs] = [frontend, other].map(|frontend| (frontend.ip(), PORT, UDP));
            let entry = datapath.services.get(theirs).unwrap().unwrap();
            datapath.services.insert(key, &entry).unwrap();
        }
        for (ask, frontend) in asks.iter().zip(frontends) {
            assert_eq!(ask(), (frontend, TWO));
        }
    });
}

/// For how many seconds a client stays with its backend.
const STAYS: u32 = 1;

fn answerers(connects: bool, frontends: [SocketAddr; 2]) -> [u8; 2] {
    frontends.map(|frontend| answerer(connects, frontend).unwrap_or_else(|error| panic!("{frontend}: {error}")))
}

/// The frontends of a service that led to the first of the backends, and to the others since a client has asked it: it was answered by the first ones
/// for longer than their time, as it asked again and again. `None`: this machine was too busy to ask so often.
fn kept_by_asking(datapath: &mut Datapath, number: u16, [first, others]: [[SocketAddr; 2]; 2], connects: bool) -> Option<[SocketAddr; 2]> {
    let time = Duration::from_secs(STAYS.into());
    let begun = Instant::now();
    let frontends = lead(datapath, number, (number, first), STAYS);
    assert_eq!(answerers(connects, frontends), [ONE; 2]);
    lead(datapath, number, (number + 1, others), STAYS);
    let mut last = begun;
    while begun.elapsed() < 2 * time {
        let now = Instant::now();
        let answered = answerers(connects, frontends);
        if last.elapsed() > time / 2 {
            return None;
        }
        assert_eq!(answered, [ONE; 2], "{:?} after it was asked", last.elapsed());
        last = now;
        thread::sleep(time / 20);
    }
    Some(frontends)
}

#[test]
fn processes_stay_with_a_backend_until_they_have_not_asked_for_the_time_of_their_service() {
    served(|_, mut datapath, _, ones| {
        let twos = backends(TWO);
        for (number, connects) in [(1, true), (101, false)] {
            // A service of its own each time: its client stays with nobody yet.
            let kept = (0..5).find_map(|attempt| kept_by_asking(&mut datapath, number + 2 * attempt, [ones, twos], connects));
            let frontends = kept.expect("in one of five attempts this machine asks in time");
            thread::sleep(Duration::from_millis(1_500 * u64::from(STAYS)));
            assert_eq!(answerers(connects, frontends), [TWO; 2], "connects: {connects}");
        }
    });
}

/// Pins what is no link.
fn pin_a_map(path: &Path) {
    let map: aya::maps::HashMap<MapData, u32, u32> = aya::maps::HashMap::create(1, 0).unwrap();
    map.pin(path).unwrap();
}
