//! Traffic: small generators of our own, a client thread and a server thread with blocking sockets.

use crate::path::Path;
use anyhow::{Context, Result, anyhow};
use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;
use palisade_identity::Protocol;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a socket waits before the measurement is given up.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes per call of a stream.
const CHUNK: usize = 256 * 1024;
/// Bytes of a datagram.
const DATAGRAM: usize = 64;
/// The request that ends a server.
const LAST: u8 = b'.';

/// A kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Traffic {
    /// As many bytes as one TCP connection takes, one way.
    Stream,
    /// One byte there and one back over one TCP connection, one at a time.
    RequestResponse,
    /// A TCP connection for each byte there and back, one at a time, ended by a reset.
    ConnectRequestClose,
    /// UDP datagrams of 64 bytes, one way, as many as arrive.
    Datagrams,
}

impl Traffic {
    /// Every kind.
    pub const ALL: &[Traffic] = &[Traffic::Stream, Traffic::RequestResponse, Traffic::ConnectRequestClose, Traffic::Datagrams];

    /// Its name in results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stream => "tcp-stream",
            Self::RequestResponse => "tcp-request-response",
            Self::ConnectRequestClose => "tcp-connect-request-close",
            Self::Datagrams => "udp-64-bytes",
        }
    }

    /// What its rate counts.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Stream => "Gbit/s",
            Self::RequestResponse => "exchanges/s",
            Self::ConnectRequestClose => "connections/s",
            Self::Datagrams => "packets/s",
        }
    }

    /// The server's port.
    pub const fn port(self) -> u16 {
        match self {
            Self::Stream => 7001,
            Self::RequestResponse => 7002,
            Self::ConnectRequestClose => 7003,
            Self::Datagrams => 7004,
        }
    }

    /// The protocol that carries it.
    pub const fn protocol(self) -> Protocol {
        match self {
            Self::Stream | Self::RequestResponse | Self::ConnectRequestClose => Protocol::Tcp,
            Self::Datagrams => Protocol::Udp,
        }
    }

    /// Where the server of a path listens.
    pub fn server(self, path: &Path) -> SocketAddr {
        SocketAddr::new(path.server_address, self.port())
    }

    /// Runs it over a path. Returns the rate, in [`unit`](Self::unit)s.
    pub fn run(self, path: &Path, duration: Duration) -> Result<f64> {
        self.run_to(path, self.server(path), duration)
    }

    /// Runs it over a path whose client sends to `to`: the server's own address, or one that stands for it.
    pub fn run_to(self, path: &Path, to: SocketAddr, duration: Duration) -> Result<f64> {
        let server = self.server(path);
        match self {
            Self::Stream => stream(path, server, to, duration),
            Self::RequestResponse => request_response(path, server, to, duration),
            Self::ConnectRequestClose => connect_request_close(path, server, to, duration),
            Self::Datagrams => datagrams(path, server, to, duration),
        }
    }
}

impl std::fmt::Display for Traffic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Runs both sides: the server on the last CPU, the client on the first one.
fn both<T: Send, S: Send>(path: &Path, serve: impl FnOnce() -> Result<S> + Send, ask: impl FnOnce() -> Result<T> + Send) -> Result<(T, S)> {
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            run_on(Cpu::Last)?;
            serve().context("server")
        });
        let client = path.client.enter(|| {
            run_on(Cpu::First)?;
            ask().context("client")
        })?;
        let server = server.join().map_err(|_| anyhow!("the server panicked"))?;
        // A client that failed tells more than its server that waited in vain.
        Ok((client?, server?))
    })
}

enum Cpu {
    First,
    Last,
}

/// Keeps the calling thread on one CPU, so that rounds do not differ by where the scheduler puts them.
fn run_on(cpu: Cpu) -> Result<()> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let mut numbers = (0..CpuSet::count()).filter(|&number| allowed.is_set(number).unwrap_or(false));
    let number = match cpu {
        Cpu::First => numbers.next(),
        Cpu::Last => numbers.next_back(),
    };
    let mut only = CpuSet::new();
    only.set(number.context("there is no CPU to run on")?)?;
    sched_setaffinity(Pid::from_raw(0), &only)?;
    Ok(())
}

fn listen(path: &Path, server: SocketAddr) -> Result<TcpListener> {
    let listener = path.server.enter(|| TcpListener::bind(server))?.with_context(|| format!("listen on {server}"))?;
    // On a listening socket this bounds how long accept waits.
    setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::milliseconds(PATIENCE.as_millis() as i64))?;
    Ok(listener)
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let (stream, _) = listener.accept().context("no client came")?;
    prepare(stream)
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    prepare(TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connect to {to}"))?)
}

fn prepare(stream: TcpStream) -> Result<TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn stream(path: &Path, server: SocketAddr, to: SocketAddr, duration: Duration) -> Result<f64> {
    let listener = listen(path, server)?;
    let receive = || {
        let mut stream = accept(&listener)?;
        let mut buffer = vec![0; CHUNK];
        let (mut bytes, start) = (0, Instant::now());
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(bytes as f64 / start.elapsed().as_secs_f64()),
                read => bytes += read,
            }
        }
    };
    let send = || {
        let mut stream = connect(to)?;
        let buffer = vec![0; CHUNK];
        let start = Instant::now();
        while start.elapsed() < duration {
            stream.write_all(&buffer)?;
        }
        Ok(())
    };
    let ((), bytes_per_second) = both(path, receive, send)?;
    Ok(bytes_per_second * 8.0 / 1e9)
}

fn request_response(path: &Path, server: SocketAddr, to: SocketAddr, duration: Duration) -> Result<f64> {
    let listener = listen(path, server)?;
    let answer = || {
        let mut stream = accept(&listener)?;
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 {
            stream.write_all(&byte)?;
        }
        Ok(())
    };
    let ask = || {
        let mut stream = connect(to)?;
        count(duration, || exchange(&mut stream, b'?'))
    };
    Ok(both(path, answer, ask)?.0)
}

fn connect_request_close(path: &Path, server: SocketAddr, to: SocketAddr, duration: Duration) -> Result<f64> {
    let listener = listen(path, server)?;
    let answer = || {
        let mut byte = [0];
        loop {
            let mut stream = accept(&listener)?;
            stream.read_exact(&mut byte)?;
            stream.write_all(&byte)?;
            if byte == [LAST] {
                return Ok(());
            }
            // The client closes, by a reset.
            let _ = stream.read(&mut byte);
        }
    };
    let visit = |request| {
        let mut stream = connect(to)?;
        // No connection stays behind in TIME_WAIT: thousands a second would use up the client's ports.
        setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        exchange(&mut stream, request)
    };
    let ask = || {
        let rate = count(duration, || visit(b'?'))?;
        visit(LAST)?;
        Ok(rate)
    };
    Ok(both(path, answer, ask)?.0)
}

/// One byte there and one back.
fn exchange(stream: &mut TcpStream, request: u8) -> Result<()> {
    let mut byte = [request];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)?;
    Ok(())
}

/// How often a second something can be done, one at a time.
fn count(duration: Duration, mut what: impl FnMut() -> Result<()>) -> Result<f64> {
    let (mut times, start) = (0_u64, Instant::now());
    loop {
        what()?;
        times += 1;
        let elapsed = start.elapsed();
        if elapsed >= duration {
            return Ok(times as f64 / elapsed.as_secs_f64());
        }
    }
}

fn datagrams(path: &Path, server: SocketAddr, to: SocketAddr, duration: Duration) -> Result<f64> {
    let socket = path.server.enter(|| UdpSocket::bind(server))?.with_context(|| format!("bind {server}"))?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let sent = AtomicBool::new(false);
    let receive = || {
        let mut buffer = [0; DATAGRAM];
        let mut received = 0_u64;
        loop {
            match socket.recv(&mut buffer) {
                Ok(_) => received += 1,
                // What was sent has arrived by now, or never will.
                Err(_) if sent.load(Ordering::Acquire) => return Ok(received),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    };
    let send = || {
        let outcome = flood(to, duration);
        sent.store(true, Ordering::Release);
        outcome
    };
    let (elapsed, received) = both(path, receive, send)?;
    Ok(received as f64 / elapsed.as_secs_f64())
}

fn flood(to: SocketAddr, duration: Duration) -> Result<Duration> {
    let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    let start = Instant::now();
    loop {
        // The clock is read once for several: it costs as much as a part of a packet.
        for _ in 0..32 {
            socket.send(&[0; DATAGRAM])?;
        }
        let elapsed = start.elapsed();
        if elapsed >= duration {
            return Ok(elapsed);
        }
    }
}
