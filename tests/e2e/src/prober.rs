//! Runs in the pods of the truth tables: serves its name on every port of the table, and asks others when told to. And in
//! those of services: asks who is behind them.
//!
//! A process that is there already asks hundreds of addresses in the time in which a shell starts its first command.
//!
//! * `prober NAME`: serves, says `ready`, and then answers each line `MILLISECONDS TARGET...` of its input with one
//!   line, a word for each target: `reached`, `silent`, or what else came of it. A target is `PORT,ADDRESS,NAME` with
//!   PORT one of `tcp/80`, `udp/80`, `sctp/80`, `echo`, and NAME whom the answer has to come from. It ends with its
//!   input.
//! * `prober requests COUNT PACE PATIENCE TARGET...`: asks each target, `tcp/ADDRESS:PORT`, or one by `udp` or `sctp`, who it
//!   is, and prints what came of it (`palisade_e2e::request`). PACE and PATIENCE are milliseconds.
//! * `prober keep TARGET...`: opens one connection to each target and asks who it is on that one again and again
//!   (`palisade_e2e::keep`), until it is told to stop (`palisade_e2e::request::STOP`).
//! * `prober names PATIENCE SERVER NAME`: asks a name server, `udp/ADDRESS:PORT` or `tcp/ADDRESS:PORT`, for the addresses of a
//!   name (`palisade_e2e::names`).
//! * `prober associations NAME PORT`: serves by SCTP alone, at this port, until it is ended.
//! * `prober end-rest DIRECTORY ADDRESS...`: makes the address store in the directory give out next the addresses that
//!   were just given back.

use anyhow::{Context, Result, bail};
use palisade_e2e::{keep, names, raw, request, sctp};
use serde_json::{Value, json};
use socket2::Protocol;
use std::io::{BufRead, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// The ports that are served. `palisade_e2e::table::Port` has the same.
const TCP_PORTS: [u16; 2] = [80, 81];
const UDP_PORT: u16 = 80;
const SCTP_PORT: u16 = 80;
/// How long one packet is waited for before the next one is sent.
const ONE_TRY: Duration = Duration::from_millis(250);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [name] => {
            serve(name)?;
            answer_questions()
        }
        [verb, count, pace, patience, targets @ ..] if verb == "requests" => {
            let (pace, patience) = (Duration::from_millis(pace.parse()?), Duration::from_millis(patience.parse()?));
            request::make(count.parse()?, pace, patience, &targets.iter().map(|text| target(text)).collect::<Result<Vec<_>>>()?);
            Ok(())
        }
        [verb, targets @ ..] if verb == "keep" => {
            let targets = targets.iter().map(|text| target(text)).collect::<Result<Vec<_>>>()?;
            keep::keep(&targets, || !Path::new(request::STOP).exists(), |said| println!("{said}"));
            println!("{}", request::DONE);
            Ok(())
        }
        [verb, patience, server, name] if verb == "names" => {
            names::look_up(target(server)?, name, Duration::from_millis(patience.parse()?));
            Ok(())
        }
        [verb, name, port] if verb == "associations" => {
            sctp::serve(name, port.parse()?).context("opening a raw socket for SCTP")?;
            loop {
                std::thread::park();
            }
        }
        [verb, directory, addresses @ ..] if verb == "end-rest" => end_rest(Path::new(directory), addresses),
        _ => bail!(
            "usage: prober NAME | prober requests COUNT PACE PATIENCE TARGET... | prober keep TARGET... | \
             prober names PATIENCE SERVER NAME | prober associations NAME PORT | prober end-rest DIRECTORY ADDRESS..."
        ),
    }
}

fn target(text: &str) -> Result<request::Target> {
    request::Target::parse(text).with_context(|| format!("the target {text}"))
}

/// Says its name to everybody who connects, sends a datagram or opens an association.
fn serve(name: &str) -> Result<()> {
    // Takes IPv4, too.
    let everywhere = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    for port in TCP_PORTS {
        let listener = TcpListener::bind((everywhere, port)).with_context(|| format!("listening on TCP {port}"))?;
        let name = name.to_owned();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                // Who went away gets no answer.
                let _ = stream.write_all(name.as_bytes());
            }
        });
    }
    sctp::serve(name, SCTP_PORT).context("opening a raw socket for SCTP")?;
    let socket = UdpSocket::bind((everywhere, UDP_PORT)).with_context(|| format!("listening on UDP {UDP_PORT}"))?;
    let name = name.to_owned();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        loop {
            if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(name.as_bytes(), from);
            }
        }
    });
    println!("ready");
    Ok(())
}

fn answer_questions() -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        let patience = Duration::from_millis(words.next().context("a line without a time")?.parse()?);
        let targets =
            words.map(|target| Target::parse(target).with_context(|| format!("the target {target}"))).collect::<Result<Vec<_>>>()?;
        let asked: Vec<_> = targets.into_iter().map(|target| std::thread::spawn(move || target.ask(patience))).collect();
        let answers: Vec<String> =
            asked.into_iter().map(|thread| thread.join().unwrap_or_else(|_| "panicked".into()).replace(char::is_whitespace, "-")).collect();
        println!("{}", answers.join(" "));
    }
    Ok(())
}

enum Way {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    Sctp(SocketAddr),
    Echo(IpAddr),
}

struct Target {
    way: Way,
    name: String,
}

impl Target {
    fn parse(text: &str) -> Result<Self> {
        let [port, address, name] = text.split(',').collect::<Vec<_>>()[..] else { bail!("no PORT,ADDRESS,NAME") };
        let address: IpAddr = address.parse()?;
        let way = match port.split_once('/') {
            Some(("tcp", port)) => Way::Tcp((address, port.parse()?).into()),
            Some(("udp", port)) => Way::Udp((address, port.parse()?).into()),
            Some(("sctp", port)) => Way::Sctp((address, port.parse()?).into()),
            None if port == "echo" => Way::Echo(address),
            _ => bail!("no port {port}"),
        };
        Ok(Self { way, name: name.to_owned() })
    }

    /// What comes of it within a time. A packet that is lost, by a machine that is busy, is sent again.
    fn ask(&self, patience: Duration) -> String {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let once = left.clamp(Duration::from_millis(1), ONE_TRY);
            let answer = match self.way {
                Way::Tcp(to) => by_tcp(to, once),
                Way::Udp(to) => by_udp(to, once),
                Way::Sctp(to) => sctp::ask(to, once),
                // An echo cannot say whose it is.
                Way::Echo(to) => by_echo(to, once).map(|_| self.name.clone()),
            };
            match answer {
                Ok(name) if name == self.name => return "reached".into(),
                Ok(name) => return format!("answered-by-{name}"),
                Err(error) if !matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => return error.to_string(),
                Err(_) if Instant::now() >= deadline => return "silent".into(),
                Err(_) => {}
            }
        }
    }
}

fn by_tcp(to: SocketAddr, time: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, time)?;
    // Connected: the answer comes unless the packets of an allowed connection are lost.
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut name = String::new();
    stream.read_to_string(&mut name)?;
    Ok(name)
}

fn by_udp(to: SocketAddr, time: Duration) -> std::io::Result<String> {
    let any = if to.is_ipv6() { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(time))?;
    socket.send(b"who?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn by_echo(to: IpAddr, time: Duration) -> std::io::Result<()> {
    static COUNT: AtomicU16 = AtomicU16::new(1);
    // The type of a request and of its reply.
    let (protocol, request, reply) = match to {
        IpAddr::V4(_) => (Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Protocol::ICMPV6, 128, 129),
    };
    let socket = raw::open(to.is_ipv6(), protocol)?;
    socket.connect(SocketAddr::new(to, 0))?;
    let id = COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let mut packet = [request, 0, 0, 0, id[0], id[1], 0, 1];
    if to.is_ipv4() {
        // The kernel writes that of IPv6.
        let sum = checksum(&packet).to_be_bytes();
        packet[2..4].copy_from_slice(&sum);
    }
    socket.send(&packet)?;
    let is_reply = |message: &[u8]| message.first() == Some(&reply) && message.get(4..6) == Some(&id[..]);
    raw::answer(&socket, to.is_ipv6(), time, |message| is_reply(message).then_some(()))
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or_default()
}

/// Waits until the addresses were given back, and then takes away their rest: what half a minute, and a node that has
/// given out its whole range once, would come to.
fn end_rest(directory: &Path, addresses: &[String]) -> Result<()> {
    let store = directory.join("addresses.json");
    let lock = std::fs::File::options().write(true).open(directory.join("lock"))?;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        lock.lock()?;
        let mut records: Value = serde_json::from_slice(&std::fs::read(&store)?)?;
        let freed = records["freed"].as_object_mut().context("the store has no `freed`")?;
        if addresses.iter().all(|address| freed.contains_key(address)) {
            freed.retain(|address, _| !addresses.contains(address));
            let fresh = records["fresh"].as_object_mut().context("the store has no `fresh`")?;
            for (range, next) in fresh {
                let ipv6 = range.contains(':');
                let address = addresses.iter().find(|address| address.contains(':') == ipv6);
                *next = json!(address.with_context(|| format!("no address for {range}"))?);
            }
            let unfinished = store.with_extension("json.unfinished");
            std::fs::write(&unfinished, serde_json::to_vec_pretty(&records)?)?;
            std::fs::rename(unfinished, store)?;
            return Ok(());
        }
        lock.unlock()?;
        if Instant::now() > deadline {
            bail!("{addresses:?} were not given back");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
