//! Real packets: a TCP connection and four bytes there and back, a UDP datagram and its echo, an ICMP echo and its reply, an
//! SCTP association.

use super::flow::{Party, Probe, Protocol, family_of};
use super::packet::{self, Echo, Init};
use super::socket::{self, SocketsError, Way};
use super::witness::Question;
use socket2::Socket;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::task::JoinSet;

/// How long no answer must be missing until a flow counts as refused, where policy says that it is.
const REFUSED_AFTER: Duration = Duration::from_secs(1);
/// The same where policy allows it: a busy machine must not look like a defect.
const LOST_AFTER: Duration = Duration::from_secs(5);
/// A datagram or a packet of our own is sent again after this long without an answer.
const RESEND: Duration = Duration::from_millis(200);

/// A probe to be made.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The flow.
    pub probe: Probe,
    /// Address of the target.
    pub target: IpAddr,
    /// What it sends.
    pub question: Question,
    /// Whether an answer is due.
    pub is_answered: bool,
}

/// How a flow ended: an answer, or how it went without.
pub type Seen = Result<(), Unanswered>;

/// How a flow ended without an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// It was refused at once.
    #[error("connection refused: nobody listens")]
    Refused,
    /// Something else came back.
    #[error("a wrong answer")]
    WrongAnswer,
    /// The connection was closed first.
    #[error("closed without an answer")]
    Closed,
    /// Nothing came for so long.
    #[error("no answer within {} s", .0.as_secs())]
    Silence(Duration),
    /// The system would not.
    #[error("{0}")]
    Failed(String),
    /// It was never tried: a defect of the lab.
    #[error("not tried")]
    Untried,
}

/// Makes all attempts, at most `at_once` at the same time, and returns what was seen of each, in order.
pub async fn run(attempts: &[Attempt], at_once: usize) -> Result<Vec<Seen>, SocketsError> {
    let mut seen = Vec::with_capacity(attempts.len());
    for batch in attempts.chunks(at_once.max(1)) {
        seen.extend(run_batch(batch).await?);
    }
    Ok(seen)
}

async fn run_batch(attempts: &[Attempt]) -> Result<Vec<Seen>, SocketsError> {
    let mut sockets = open(attempts)?;
    let mut tasks = JoinSet::new();
    for (index, attempt) in attempts.iter().enumerate() {
        let Some(socket) = sockets.remove(&index) else { continue };
        let (protocol, target) = (attempt.probe.protocol, SocketAddr::new(attempt.target, attempt.probe.port));
        let patience = if attempt.is_answered { LOST_AFTER } else { REFUSED_AFTER };
        let question = attempt.question;
        tasks.spawn(async move { (index, tried(socket, protocol, target, question, patience).await) });
    }
    let mut seen = vec![Err(Unanswered::Untried); attempts.len()];
    while let Some(ended) = tasks.join_next().await {
        if let Ok((index, result)) = ended {
            seen[index] = result;
        }
    }
    Ok(seen)
}

/// One socket per attempt, each opened in the namespace of its party; one visit per namespace.
fn open(attempts: &[Attempt]) -> Result<BTreeMap<usize, Socket>, SocketsError> {
    let mut by_party: BTreeMap<&Party, Vec<usize>> = BTreeMap::new();
    for (index, attempt) in attempts.iter().enumerate() {
        by_party.entry(&attempt.probe.from).or_default().push(index);
    }
    let mut sockets = BTreeMap::new();
    for (party, indices) in by_party {
        let opened: Result<Vec<_>, SocketsError> = socket::within(party, || {
            let one = |&index: &usize| {
                let attempt = &attempts[index];
                let any = SocketAddr::new(socket::unspecified(attempt.target), 0);
                Ok((index, socket::bound(party, attempt.probe.protocol, any)?))
            };
            indices.iter().map(one).collect()
        })?;
        sockets.extend(opened?);
    }
    Ok(sockets)
}

async fn tried(socket: Socket, protocol: Protocol, target: SocketAddr, question: Question, patience: Duration) -> Seen {
    let exchange = async {
        match socket::way(protocol) {
            Way::Connection => connection(socket, target, question).await,
            Way::Datagram => datagram(socket, target, question).await,
            Way::Association => {
                let init = Init::asking(target.port(), question);
                asked(socket, target.ip(), &init.message(), |message| init.is_answered_by(message)).await
            }
            Way::Echo => {
                let echo = Echo::fresh(family_of(target.ip()));
                asked(socket, target.ip(), &echo.message(), |message| echo.is_answered_by(message)).await
            }
        }
    };
    match tokio::time::timeout(patience, exchange).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(unanswered(&error)),
        Err(_) => Err(Unanswered::Silence(patience)),
    }
}

async fn connection(socket: Socket, target: SocketAddr, question: Question) -> std::io::Result<()> {
    let mut stream = TcpSocket::from_std_stream(socket.into()).connect(target).await?;
    stream.write_all(&question.bytes()).await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    if answer == question.bytes() { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}

async fn datagram(socket: Socket, target: SocketAddr, question: Question) -> std::io::Result<()> {
    let socket = UdpSocket::from_std(socket.into())?;
    socket.connect(target).await?;
    let mut answer = [0; 16];
    loop {
        socket.send(&question.bytes()).await?;
        match tokio::time::timeout(RESEND, socket.recv(&mut answer)).await {
            Ok(received) => return if answer[..received?] == question.bytes() { Ok(()) } else { Err(ErrorKind::InvalidData.into()) },
            Err(_) => continue,
        }
    }
}

/// Sends a packet of our own until one comes back that answers it.
async fn asked(socket: Socket, target: IpAddr, message: &[u8], answers: impl Fn(&[u8]) -> bool) -> std::io::Result<()> {
    let socket = UdpSocket::from_std(socket.into())?;
    // From now on it gets what comes from there only. A raw socket has no port.
    socket.connect((target, 0)).await?;
    loop {
        socket.send(message).await?;
        match tokio::time::timeout(RESEND, answered(&socket, target, &answers)).await {
            Ok(ended) => return ended,
            Err(_) => continue,
        }
    }
}

/// Waits for the answer: a raw socket gets all that its peer sends of the protocol.
async fn answered(socket: &UdpSocket, peer: IpAddr, answers: impl Fn(&[u8]) -> bool) -> std::io::Result<()> {
    let mut bytes = [0; 2048];
    loop {
        let length = socket.recv(&mut bytes).await?;
        if answers(packet::message(&bytes[..length], family_of(peer))) {
            return Ok(());
        }
    }
}

fn unanswered(error: &std::io::Error) -> Unanswered {
    match error.kind() {
        ErrorKind::ConnectionRefused => Unanswered::Refused,
        ErrorKind::InvalidData => Unanswered::WrongAnswer,
        ErrorKind::UnexpectedEof => Unanswered::Closed,
        _ => Unanswered::Failed(error.to_string()),
    }
}
