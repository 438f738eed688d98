//! The programs at the sockets of the node's own processes, under which maps are replaced by larger ones.

mod stage;

use std::{
    fs,
    io::Result,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    sync::mpsc::{self, TryRecvError},
    thread,
    time::Duration,
};

use aya::maps::MapData;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use palisade_datapath_core::abi::{Backend, CHUNK, ChunkKey, Hook, ServiceEntry, backend_flag, map};
use palisade_loader::{Cgroup, Datapath, InstallStep, LoaderError, PinDir, Sizes};
use palisade_test_support::skipped;
use stage::{alone, chain, open_with, sizes, soon};

const PORT: u16 = 53;
const UDP: u8 = 17;

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

/// Opens the datapath with small maps, but for that of sockets: what is evicted from it shows its socket the backend.
fn open(base: &Path) -> Datapath {
    open_with(base, &Sizes { sockets: 16_384, ..sizes() })
}

/// Runs `test` on a node that serves its own sockets, with a backend of each family; it is skipped, visibly, where this kernel cannot.
fn served(test: impl FnOnce(&Path, Datapath, &Cgroup, [SocketAddr; 2]) + Send) {
    alone(|base| {
        let mut datapath = open(base);
        let (mounted, backends) = (Cgroups::mounted(), [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].map(echo));
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

/// Answers every datagram with itself. Its thread ends with the process.
fn echo(address: IpAddr) -> SocketAddr {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    let bound = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    bound
}

/// The rows of a service with one backend in each family, by its number; its frontends.
fn serve(datapath: &mut Datapath, number: u16, backends: [SocketAddr; 2]) -> [SocketAddr; 2] {
    backends.map(|backend| {
        let mut address = [0; 16];
        let (frontend, id, version): (IpAddr, _, _) = match backend.ip() {
            IpAddr::V4(ip) => {
                address[..4].copy_from_slice(&ip.octets());
                (Ipv4Addr::from(0x0a60_0000 + u32::from(number)).into(), 2 * u32::from(number), 4)
            }
            IpAddr::V6(ip) => {
                address = ip.octets();
                (Ipv6Addr::from((0xfd96 << 112) | u128::from(number)).into(), 2 * u32::from(number) + 1, 6)
            }
        };
        let (port, flags) = (backend.port().to_be_bytes(), backend_flag::CHOSEN | backend_flag::SERVING);
        datapath.backends.insert(&id, &Backend { address, service: id, port, version, flags }).unwrap();
        datapath.chunks.insert(&ChunkKey { table: id, chunk: 0 }, &[id; CHUNK]).unwrap();
        let entry = ServiceEntry { service: id, table: id, bits: 6, ..ServiceEntry::default() };
        datapath.services.insert((frontend, PORT, UDP), &entry).unwrap();
        (frontend, PORT).into()
    })
}

/// Asks a service by a socket that connects and by one that does not; both must see the service alone.
fn ask(frontend: SocketAddr) -> Result<()> {
    let any: IpAddr = if frontend.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let mut buffer = [0; 16];
    for connects in [true, false] {
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        if connects {
            socket.connect(frontend)?;
            assert_eq!(socket.peer_addr()?, frontend);
            socket.send(b"ask")?;
        } else {
            socket.send_to(b"ask", frontend)?;
        }
        let (length, from) = socket.recv_from(&mut buffer)?;
        assert_eq!((&buffer[..length], from), (&b"ask"[..], frontend));
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
            datapath = open(base);
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

/// Pins what is no link.
fn pin_a_map(path: &Path) {
    let map: aya::maps::HashMap<MapData, u32, u32> = aya::maps::HashMap::create(1, 0).unwrap();
    map.pin(path).unwrap();
}
