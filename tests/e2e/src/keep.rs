//! Connections that stay, with a request on each every now and then: whether they live through what happens to who is behind them.
//!
//! The prober keeps them in a pod ([`keep`]) and prints what came of each request; a scenario looks on ([`Kept`]). agnhost's `netexec`
//! leaves a connection open after an answer.

use crate::pod::Pod;
use crate::request::{Answer, Said, Target, Way};
use crate::service::{Served, soon};
use anyhow::Result;
use std::io::{BufRead, BufReader, Error, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// From one request on a connection to the next.
pub const PACE: Duration = Duration::from_millis(250);
/// How long one may take, on a machine that is busy: none of them may fail.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How many answers in a row show who is behind a connection now.
const IN_A_ROW: usize = 3;
/// Whose are the connections of this machine.
const HERE: &str = "outside";

/// One connection.
enum Connection {
    Tcp(BufReader<TcpStream>),
    /// Connected, it sends from one port to one address, and takes answers from there alone.
    Udp(UdpSocket),
}

impl Connection {
    fn open(target: Target) -> std::io::Result<Self> {
        match target.way {
            Way::Tcp => {
                let stream = TcpStream::connect_timeout(&target.to, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Ok(Self::Tcp(BufReader::new(stream)))
            }
            Way::Udp => {
                let any: IpAddr = if target.to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
                let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
                socket.connect(target.to)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                Ok(Self::Udp(socket))
            }
            Way::Sctp => Err(Error::other("no kernel here keeps an association")),
        }
    }

    /// Asks once more who is at the other end.
    fn ask(&mut self) -> std::io::Result<String> {
        match self {
            Self::Tcp(stream) => {
                stream.get_mut().write_all(b"GET /hostname HTTP/1.1\r\nHost: kept\r\n\r\n")?;
                answer(stream)
            }
            Self::Udp(socket) => {
                socket.send(b"hostname")?;
                let mut buffer = [0; 256];
                let length = socket.recv(&mut buffer)?;
                Ok(String::from_utf8_lossy(&buffer[..length]).trim().to_owned())
            }
        }
    }
}

/// Reads one answer of HTTP, after which another may come.
fn answer(from: &mut impl BufRead) -> std::io::Result<String> {
    let mut length = None;
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        match line.split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.trim().parse::<usize>().ok(),
            None if !line.contains(" 200 ") => return Err(Error::other(line)),
            _ => {}
        }
    }
    let mut body = vec![0; length.ok_or_else(|| Error::other("an answer without its length"))?];
    from.read_exact(&mut body)?;
    Ok(String::from_utf8_lossy(&body).trim().to_owned())
}

/// Opens a connection for each of the targets and asks on it for as long as `goes_on`; `said` is told of each request. A connection on which
/// one has failed is not asked any more, and none is opened in its place; a socket for datagrams is.
pub fn keep(targets: &[Target], goes_on: impl Fn() -> bool + Sync, said: impl Fn(Said) + Sync) {
    let (goes_on, said) = (&goes_on, &said);
    std::thread::scope(|scope| {
        for target in targets {
            scope.spawn(move || {
                let mut begun = Instant::now();
                let tell = |answer: Answer, begun: Instant| said(Said { target: *target, answer, after: begun.elapsed() });
                let mut connection = match Connection::open(*target) {
                    Ok(connection) => connection,
                    Err(error) => return tell(Answer::failed(&error), begun),
                };
                while goes_on() {
                    begun = Instant::now();
                    let answer = connection.ask();
                    let over = answer.is_err() && matches!(connection, Connection::Tcp(_));
                    tell(answer.map_or_else(|error| Answer::failed(&error), Answer::From), begun);
                    if over {
                        return;
                    }
                    std::thread::sleep(PACE.saturating_sub(begun.elapsed()));
                }
            });
        }
    });
}

/// Connections that pods and this machine keep.
#[derive(Debug)]
pub struct Kept<'a> {
    served: &'a Served,
    pods: Vec<&'a Pod>,
    here: Here,
    /// Whose each is, and where it goes.
    all: Vec<(String, Target)>,
}

/// What was answered on a connection.
#[derive(Debug)]
pub struct Course {
    /// Whose it is.
    pub of: String,
    /// Where it goes.
    pub target: Target,
    /// All answers, in their order.
    pub answers: Vec<Answer>,
}

impl Course {
    /// The answers, without those that are as the one before.
    pub fn turns(&self) -> Vec<Answer> {
        let mut turns = self.answers.clone();
        turns.dedup();
        turns
    }
}

impl<'a> Kept<'a> {
    /// Lets each of the pods open a connection to each of its targets, and this machine to those of `from_here`.
    pub fn begin(served: &'a Served, by_pods: &[(&'a Pod, Vec<Target>)], from_here: &[Target]) -> Result<Self> {
        let mut all: Vec<(String, Target)> = from_here.iter().map(|target| (HERE.to_owned(), *target)).collect();
        for (pod, targets) in by_pods {
            served.begin_keeping(pod, targets)?;
            all.extend(targets.iter().map(|target| (pod.name.clone(), *target)));
        }
        let pods = by_pods.iter().map(|(pod, _)| *pod).collect();
        Ok(Self { served, pods, here: Here::begin(from_here.to_vec()), all })
    }

    /// Asserts that soon, from now on, this pod answers on every connection, and that one every socket for datagrams.
    ///
    /// # Panics
    /// With what came instead.
    pub fn expect(&self, when: &str, on_connections: &str, datagrams: &str) -> Result<()> {
        let before: Vec<usize> = self.courses()?.iter().map(|course| course.answers.len()).collect();
        soon(when, || {
            let courses = self.courses()?;
            let wrong = courses.iter().zip(&before).filter_map(|(course, before)| {
                let wanted = Answer::From(if course.target.way == Way::Tcp { on_connections } else { datagrams }.to_owned());
                let since = course.answers.get(*before..).unwrap_or_default();
                let right = since.len() >= IN_A_ROW && since.iter().rev().take(IN_A_ROW).all(|answer| *answer == wanted);
                (!right).then(|| format!("{} -> {}: {:?}, expected: {wanted}", course.of, course.target, course.turns()))
            });
            Ok(wrong.collect())
        })
    }

    /// Ends them; all that was answered on each.
    pub fn end(mut self) -> Result<Vec<Course>> {
        self.here.end();
        let mut said = self.here.said();
        for pod in &self.pods {
            said.extend(of(pod, self.served.end_load(pod)?));
        }
        Ok(self.sort(&said))
    }

    fn courses(&self) -> Result<Vec<Course>> {
        let mut said = self.here.said();
        for pod in &self.pods {
            said.extend(of(pod, self.served.said_so_far(pod)?));
        }
        Ok(self.sort(&said))
    }

    fn sort(&self, said: &[(String, Said)]) -> Vec<Course> {
        let course = |(of, target): &(String, Target)| {
            let own = said.iter().filter(|(who, said)| who == of && said.target == *target);
            Course { of: of.clone(), target: *target, answers: own.map(|(_, said)| said.answer.clone()).collect() }
        };
        self.all.iter().map(course).collect()
    }
}

fn of(pod: &Pod, said: Vec<Said>) -> impl Iterator<Item = (String, Said)> {
    said.into_iter().map(|said| (pod.name.clone(), said))
}

/// The connections of this machine; they end with this, also by a panic.
#[derive(Debug)]
struct Here {
    over: Arc<AtomicBool>,
    said: Arc<Mutex<Vec<Said>>>,
    thread: Option<JoinHandle<()>>,
}

impl Here {
    fn begin(targets: Vec<Target>) -> Self {
        let (over, all) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (is_over, said) = (over.clone(), all.clone());
        let thread = std::thread::spawn(move || {
            let tell = |one: Said| said.lock().unwrap_or_else(PoisonError::into_inner).push(one);
            keep(&targets, || !is_over.load(Ordering::Relaxed), tell);
        });
        Self { over, said: all, thread: Some(thread) }
    }

    fn said(&self) -> Vec<(String, Said)> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.iter().map(|said| (HERE.to_owned(), said.clone())).collect()
    }

    fn end(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // One that panicked has said nothing more, which is missed where it counts.
            let _ = thread.join();
        }
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_answer_is_read_and_the_next_is_left() {
        let text = "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 4\r\n\r\nnearHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nfar";
        let mut stream = text.as_bytes();
        assert_eq!(answer(&mut stream).unwrap(), "near");
        assert_eq!(answer(&mut stream).unwrap(), "far");
        assert_eq!(answer(&mut stream).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        for wrong in [
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nnear",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnear",
        ] {
            assert!(answer(&mut wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
