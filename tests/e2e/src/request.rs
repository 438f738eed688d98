//! Requests for the name of who answers, one after the other, each a flow of its own.
//!
//! The prober makes them in a pod ([`make`]) and prints what came of each; a scenario reads that ([`Said::parse`]). They are
//! answered by agnhost's `netexec`, with the name of its pod; those of SCTP by the prober itself ([`sctp::serve`]). Requests on one
//! connection that stays are those of [`keep`](crate::keep).

use crate::sctp;
use socket2::{Domain, Socket, Type};
use std::fmt;
use std::io::{Error, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// While this file is not in the pod, requests without a count go on.
pub const STOP: &str = "/tmp/stop-requests";
/// The last line: all requests were made.
pub const DONE: &str = "done";

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// By which protocol.
    pub way: Way,
    /// To which address and port.
    pub to: SocketAddr,
}

/// How a request is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By a new connection, from a new port.
    Tcp,
    /// By one datagram from a new port; it is not repeated.
    Udp,
    /// By one packet that opens an association, from a new port; it is not repeated.
    Sctp,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// The pod of this name has answered, under the address that was asked.
    From(String),
    /// It was refused: nobody is there.
    Refused,
    /// It was refused where it was asked: nobody who may answer is on this node, and it may go to no other.
    Unreachable,
    /// Nothing came back: what a refusal by policy looks like.
    Silent,
    /// Something else.
    Other(String),
}

/// A request that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Who was asked.
    pub target: Target,
    /// What came of it.
    pub answer: Answer,
    /// How soon.
    pub after: Duration,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.way {
            Way::Tcp => "tcp",
            Way::Udp => "udp",
            Way::Sctp => "sctp",
        };
        write!(f, "{way}/{}", self.to)
    }
}

impl Target {
    /// Reads what is displayed.
    pub fn parse(text: &str) -> Option<Self> {
        let (way, to) = text.split_once('/')?;
        let way = match way {
            "tcp" => Way::Tcp,
            "udp" => Way::Udp,
            "sctp" => Way::Sctp,
            _ => return None,
        };
        Some(Self { way, to: to.parse().ok()? })
    }

    /// Makes one request.
    fn ask(&self, patience: Duration) -> Answer {
        let name = match self.way {
            Way::Tcp => by_tcp(self.to, patience),
            Way::Udp => by_udp(self.to, patience),
            Way::Sctp => sctp::ask(self.to, patience),
        };
        name.map_or_else(|error| Answer::failed(&error), Answer::From)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From(name) => write!(f, "from/{name}"),
            Self::Refused => f.write_str("refused"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Silent => f.write_str("silent"),
            Self::Other(what) => write!(f, "other/{what}"),
        }
    }
}

impl Answer {
    /// What an error says of who was asked.
    pub fn failed(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::HostUnreachable => Self::Unreachable,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::Silent,
            _ => Self::Other(error.to_string().replace(char::is_whitespace, "-")),
        }
    }

    /// Reads what is displayed.
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once('/') {
            Some(("from", name)) => Some(Self::From(name.to_owned())),
            Some(("other", what)) => Some(Self::Other(what.to_owned())),
            None if text == "refused" => Some(Self::Refused),
            None if text == "unreachable" => Some(Self::Unreachable),
            None if text == "silent" => Some(Self::Silent),
            _ => None,
        }
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.target, self.answer, self.after.as_millis())
    }
}

impl Said {
    /// Reads a line of the prober.
    pub fn parse(line: &str) -> Option<Self> {
        let [target, answer, after] = line.split_whitespace().collect::<Vec<_>>()[..] else { return None };
        Some(Self { target: Target::parse(target)?, answer: Answer::parse(answer)?, after: Duration::from_millis(after.parse().ok()?) })
    }
}

/// Makes requests and prints a line for each. The targets are asked at the same time, each `count` times, begun `pace` apart,
/// or, where `count` is zero, until [`STOP`] is there.
pub fn make(count: u32, pace: Duration, patience: Duration, targets: &[Target]) {
    if let Some(next) = std::fs::read_to_string(NEXT_PORT_FILE).ok().and_then(|text| text.trim().parse().ok()) {
        NEXT_PORT.store(next, Ordering::Relaxed);
    }
    let goes_on = move |made: u32| if count == 0 { !Path::new(STOP).exists() } else { made < count };
    std::thread::scope(|scope| {
        for target in targets {
            scope.spawn(move || {
                for _ in (0..).take_while(|made| goes_on(*made)) {
                    let begun = Instant::now();
                    let answer = target.ask(patience);
                    println!("{}", Said { target: *target, answer, after: begun.elapsed() });
                    std::thread::sleep(pace.saturating_sub(begun.elapsed()));
                }
            });
        }
    });
    if let Err(error) = std::fs::write(NEXT_PORT_FILE, NEXT_PORT.load(Ordering::Relaxed).to_string()) {
        eprintln!("{NEXT_PORT_FILE}: {error}");
    }
    println!("{DONE}");
}

/// Asks each target `count` times from this machine, which is outside the cluster; the targets at the same time.
pub fn ask_from_here(targets: &[Target], count: u32, patience: Duration) -> Vec<Said> {
    let said = |target: &Target| {
        let begun = Instant::now();
        let answer = target.ask(patience);
        Said { target: *target, answer, after: begun.elapsed() }
    };
    std::thread::scope(|scope| {
        let asked: Vec<_> =
            targets.iter().map(|target| scope.spawn(move || (0..count).map(|_| said(target)).collect::<Vec<_>>())).collect();
        // Of a target whose thread panicked there is no answer, which is none that is expected.
        asked.into_iter().flat_map(|target| target.join().unwrap_or_default()).collect()
    })
}

/// Requests of this machine, which go on until they are ended, or this is dropped.
#[derive(Debug)]
pub struct Load {
    ends: Arc<AtomicBool>,
    asks: Vec<JoinHandle<Vec<Said>>>,
}

impl Load {
    /// Begins to ask each of the targets for itself, `pace` after it has answered.
    pub fn begin(targets: &[Target], pace: Duration, patience: Duration) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let ask = |target: &Target| {
            let (ended, target) = (ends.clone(), [*target]);
            std::thread::spawn(move || {
                let mut said = Vec::new();
                while !ended.load(Ordering::Relaxed) {
                    said.append(&mut ask_from_here(&target, 1, patience));
                    std::thread::sleep(pace);
                }
                said
            })
        };
        let asks = targets.iter().map(ask).collect();
        Self { ends, asks }
    }

    /// Ends them; all that was asked.
    pub fn end(mut self) -> Vec<Said> {
        self.ends.store(true, Ordering::Relaxed);
        // Of a target whose thread panicked there is no answer, which the caller misses.
        self.asks.drain(..).flat_map(|asks| asks.join().unwrap_or_default()).collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

/// An answer of HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its code.
    pub code: u16,
    /// What it says.
    pub body: String,
    /// The address under which it was asked for.
    pub from: SocketAddr,
}

/// Asks for a page.
pub fn page(to: SocketAddr, path: &str, patience: Duration) -> std::io::Result<Page> {
    let socket = from_new_port(to, Type::STREAM)?;
    socket.connect_timeout(&to.into(), patience)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let parts = text.split_once("\r\n\r\n");
    let code = parts.and_then(|(head, _)| head.split_whitespace().nth(1)?.parse().ok());
    match (parts, code) {
        (Some((_, body)), Some(code)) => Ok(Page { code, body: body.trim().to_owned(), from: stream.local_addr()? }),
        _ => Err(Error::other("no answer of HTTP")),
    }
}

fn by_tcp(to: SocketAddr, patience: Duration) -> std::io::Result<String> {
    match page(to, "/hostname", patience)? {
        Page { code: 200, body, .. } => Ok(body),
        _ => Err(Error::other("no answer of HTTP")),
    }
}

/// From where on the next requests of this process come; before the first one, nowhere.
static NEXT_PORT: AtomicU16 = AtomicU16::new(0);
/// The same for the next process in this pod.
const NEXT_PORT_FILE: &str = "/tmp/next-port";

/// A port that no request of this pod, or of this process, came from before, and that the kernel gives to nobody by itself: what comes from a port that
/// something came from a moment ago is the same flow, and goes to the same backend as long as that may be there. By another frontend of that backend
/// it even meets its own flow, which still has its answers.
pub(crate) fn next_port() -> u16 {
    /// Below are ports of services and of nodes, above those that the kernel gives out.
    const PORTS: std::ops::Range<u16> = 18_200..29_000;
    let anywhere = || {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        PORTS.start + (since.as_millis() % PORTS.len() as u128) as u16
    };
    let mut taken = 0;
    // The closure is called anew where another thread was first.
    let _ = NEXT_PORT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
        taken = match next {
            0 => anywhere(),
            next if PORTS.contains(&next) => next,
            _ => PORTS.start,
        };
        Some(taken + 1)
    });
    taken
}

/// A socket at such a port, for what goes to an address. (The kernel would choose the port of a connection for its destination, and give one port to two.)
fn from_new_port(to: SocketAddr, kind: Type) -> std::io::Result<Socket> {
    let any: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = Socket::new(Domain::for_address(to), kind, None)?;
    loop {
        match socket.bind(&SocketAddr::new(any, next_port()).into()) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            bound => return bound.map(|()| socket),
        }
    }
}

fn by_udp(to: SocketAddr, patience: Duration) -> std::io::Result<String> {
    let socket: UdpSocket = from_new_port(to, Type::DGRAM)?.into();
    // From now on it gets what comes from there only, and hears when it is refused.
    socket.connect(to)?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(b"hostname")?;
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_back() {
        let targets = [("tcp/10.96.0.7:8000", Way::Tcp), ("udp/[fd00:10:96::7]:8053", Way::Udp), ("sctp/10.96.0.7:8132", Way::Sctp)];
        let other = Answer::Other("no-route/at-all".into());
        let answers = [Answer::From("near".into()), Answer::Refused, Answer::Unreachable, Answer::Silent, other];
        for (text, way) in targets {
            let target = Target::parse(text).unwrap();
            assert_eq!((target.way, target.to_string().as_str()), (way, text));
            for answer in &answers {
                let said = Said { target, answer: answer.clone(), after: Duration::from_millis(12) };
                assert_eq!(Said::parse(&said.to_string()), Some(said));
            }
        }
        for text in ["done", "tcp/10.96.0.7:8000 from/near", "tcp/10.96.0.7:8000 near 1", "icmp/10.96.0.7:0 silent 1"] {
            assert_eq!(Said::parse(text), None, "{text}");
        }
    }
}
