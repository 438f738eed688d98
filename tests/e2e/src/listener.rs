//! A server outside the cluster: in the process of the test, on this machine.

use crate::request::{Target, Way};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Its name, with which it answers.
pub const NAME: &str = "outside";
/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers by TCP and by UDP, as a backend does, and writes down who asks; it ends with this, also by a panic.
#[derive(Debug)]
pub struct Listener {
    targets: [Target; 2],
    over: Arc<AtomicBool>,
    seen: Arc<Mutex<BTreeSet<(&'static str, IpAddr)>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Listener {
    /// Listens at an address of this machine.
    pub fn start(address: IpAddr) -> Result<Self> {
        let (over, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(BTreeSet::new())));
        let listener = TcpListener::bind((address, 0)).with_context(|| format!("listening at {address}"))?;
        let socket = UdpSocket::bind((address, 0)).with_context(|| format!("listening at {address}"))?;
        let targets = [Target { way: Way::Tcp, to: listener.local_addr()? }, Target { way: Way::Udp, to: socket.local_addr()? }];
        let note = |way: &'static str| {
            let (over, seen) = (over.clone(), seen.clone());
            // Whether it goes on.
            move |from: SocketAddr| {
                let goes_on = !over.load(Ordering::Relaxed);
                if goes_on {
                    seen.lock().unwrap_or_else(PoisonError::into_inner).insert((way, from.ip()));
                }
                goes_on
            }
        };
        let (by_tcp, by_udp) = (note("tcp"), note("udp"));
        let threads = vec![
            std::thread::spawn(move || {
                while let Ok((stream, from)) = listener.accept()
                    && by_tcp(from)
                {
                    // Who went away gets no answer.
                    let _ = answer(stream);
                }
            }),
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                loop {
                    match socket.recv_from(&mut buffer) {
                        Ok((_, from)) if by_udp(from) => drop(socket.send_to(NAME.as_bytes(), from)),
                        // What an answer that nobody took has left.
                        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                        _ => return,
                    }
                }
            }),
        ];
        Ok(Self { targets, over, seen, threads })
    }

    /// Where it is asked.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Under which addresses it was asked, and how.
    pub fn seen(&self) -> BTreeSet<(&'static str, IpAddr)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Answers a request of HTTP.
fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut buffer = [0; 256];
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        request.extend(&buffer[..length]);
    }
    stream.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{NAME}").as_bytes())
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // They look at that when somebody comes.
        let [tcp, udp] = self.targets.map(|target| target.to);
        let _ = TcpStream::connect_timeout(&tcp, PATIENCE);
        let _ = UdpSocket::bind((udp.ip(), 0)).and_then(|socket| socket.send_to(b"over", udp));
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Answer, ask_from_here};

    #[test]
    fn it_answers_as_a_backend_and_knows_who_asked_and_ends() {
        let here = IpAddr::from([127, 0, 0, 1]);
        let listener = Listener::start(here).unwrap();
        let said = ask_from_here(listener.targets(), 2, PATIENCE);
        assert_eq!(said.len(), 4);
        assert!(said.iter().all(|said| said.answer == Answer::From(NAME.into())), "{said:?}");
        assert_eq!(listener.seen(), BTreeSet::from([("tcp", here), ("udp", here)]));
        let tcp = listener.targets()[..1].to_vec();
        drop(listener);
        assert_eq!(ask_from_here(&tcp, 1, PATIENCE)[0].answer, Answer::Refused);
    }
}
