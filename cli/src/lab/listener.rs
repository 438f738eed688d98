//! What answers the probes on each port that a party declares: it echoes what it gets, or accepts an association.

use super::flow::{Member, Party, Protocol, family_of};
use super::packet::{self, Init};
use super::socket::{self, SocketsError, Way};
use super::witness::{Arrival, Question, Witness};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

/// A connection that says nothing for this long is closed.
const IDLE: Duration = Duration::from_secs(10);

/// The listeners of one party; they end with the value.
#[derive(Debug)]
pub struct Listeners {
    tasks: JoinSet<()>,
}

impl Listeners {
    /// Opens all listeners of `member`, both families, and serves them; `witness` is told what they get. Needs a tokio runtime, and
    /// blocks for a moment.
    pub fn open(member: &Member, witness: &Witness) -> Result<Self, SocketsError> {
        let wanted: Vec<(Protocol, SocketAddr)> = member
            .ports
            .iter()
            .flat_map(|&(protocol, port)| {
                member.addresses.iter().map(move |&address| {
                    // The node has many addresses, and answers from the one that was asked only when bound to it.
                    let bind = if matches!(member.party, Party::Node(_)) { address } else { socket::unspecified(address) };
                    (protocol, SocketAddr::new(bind, port))
                })
            })
            .collect();
        let party = &member.party;
        let sockets: Vec<_> = socket::within(party, || {
            wanted
                .iter()
                .map(|&(protocol, address)| Ok((protocol, address, socket::bound(party, protocol, address)?)))
                .collect::<Result<_, SocketsError>>()
        })??;
        let mut tasks = JoinSet::new();
        for (protocol, address, socket) in sockets {
            let desk = Desk { party: party.clone(), port: address.port(), witness: witness.clone() };
            let failed = |source| SocketsError::Open { party: party.clone(), protocol, address, source };
            match socket::way(protocol) {
                Way::Connection => {
                    let listener = TcpListener::from_std(socket.into()).map_err(failed)?;
                    tasks.spawn(accept(listener, Arc::new(desk)));
                }
                Way::Datagram => {
                    let socket = UdpSocket::from_std(socket.into()).map_err(failed)?;
                    tasks.spawn(echo_datagrams(socket, desk));
                }
                Way::Association => {
                    let socket = UdpSocket::from_std(socket.into()).map_err(failed)?;
                    tasks.spawn(answer_openings(socket, desk));
                }
                // The kernel answers.
                Way::Echo => {}
            }
        }
        Ok(Self { tasks })
    }

    /// Nothing that listens.
    pub fn none() -> Self {
        Self { tasks: JoinSet::new() }
    }

    /// Closes all of them; their ports are free afterwards.
    pub async fn close(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Where questions come in.
struct Desk {
    party: Party,
    port: u16,
    witness: Witness,
}

impl Desk {
    fn got(&self, question: Option<Question>, peer: SocketAddr) {
        if let Some(question) = question {
            self.witness.saw(question, Arrival { party: self.party.clone(), port: self.port, peer: peer.ip() });
        }
    }
}

async fn accept(listener: TcpListener, desk: Arc<Desk>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => { connections.spawn(echo(stream, peer, Arc::clone(&desk))); }
                // Out of files, or the peer is gone again: the next one may do better.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn echo(mut stream: TcpStream, peer: SocketAddr, desk: Arc<Desk>) {
    let mut bytes = [0; 1024];
    while let Ok(Ok(length @ 1..)) = tokio::time::timeout(IDLE, stream.read(&mut bytes)).await {
        desk.got(Question::read(&bytes[..length]), peer);
        if stream.write_all(&bytes[..length]).await.is_err() {
            break;
        }
    }
}

async fn echo_datagrams(socket: UdpSocket, desk: Desk) {
    let mut bytes = [0; 2048];
    loop {
        match socket.recv_from(&mut bytes).await {
            Ok((length, peer)) => {
                desk.got(Question::read(&bytes[..length]), peer);
                let _ = socket.send_to(&bytes[..length], peer).await;
            }
            // An ICMP error about an earlier answer.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// Answers each INIT to the port. The raw socket gets all of the protocol: also what is for other ports, and the answers
/// to what the party itself asks.
async fn answer_openings(socket: UdpSocket, desk: Desk) {
    let mut bytes = [0; 2048];
    loop {
        match socket.recv_from(&mut bytes).await {
            Ok((length, peer)) => {
                let opening = Init::read(packet::message(&bytes[..length], family_of(peer.ip())));
                if let Some(opening) = opening.filter(|opening| opening.destination() == desk.port) {
                    desk.got(Some(opening.question()), peer);
                    let _ = socket.send_to(&opening.answer(), peer).await;
                }
            }
            Err(_) => tokio::task::yield_now().await,
        }
    }
}
