//! Questions to a name server (RFC 1035), by datagrams and by connections: a static program has no resolver of the system's.

use crate::request::{Answer, DONE, Target, Way};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::io::{Error, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// Length of the header of a message.
const HEADER: usize = 12;
/// The class of the Internet.
const CLASS: u16 = 1;
/// Types of records: addresses of IPv4 and of IPv6.
const TYPES: [u16; 2] = [1, 28];
/// The number of each question; a socket of its own gets the answer.
const ID: u16 = 0x7061;

/// Asks a server for the addresses of a name, of both families, and prints what came of it; [`read`] reads that.
pub fn look_up(server: Target, name: &str, patience: Duration) {
    let asked: std::io::Result<Vec<Vec<IpAddr>>> = TYPES.iter().map(|of_type| ask(server, name, *of_type, patience)).collect();
    match asked {
        Ok(addresses) => {
            addresses.concat().iter().for_each(|address| println!("{address}"));
            println!("{DONE}");
        }
        Err(error) => println!("{}", Answer::failed(&error)),
    }
}

/// What [`look_up`] has printed: the addresses, or why there are none. A name that is not there has none.
pub fn read(said: &str) -> Result<Result<BTreeSet<IpAddr>, Answer>> {
    let said = said.trim_end();
    if let Some(addresses) = said.strip_suffix(DONE) {
        let addresses = addresses.lines().map(|line| line.parse().with_context(|| format!("the prober said `{line}`")));
        return Ok(Ok(addresses.collect::<Result<_>>()?));
    }
    match Answer::parse(said) {
        Some(answer) => Ok(Err(answer)),
        None => bail!("the prober said `{said}`"),
    }
}

fn ask(server: Target, name: &str, of_type: u16, patience: Duration) -> std::io::Result<Vec<IpAddr>> {
    let question = question(name, of_type);
    let message = match server.way {
        Way::Udp => by_datagram(server.to, &question, patience)?,
        Way::Tcp => by_connection(server.to, &question, patience)?,
        Way::Sctp => return Err(Error::other("nobody asks for names by SCTP")),
    };
    addresses(&message, of_type).ok_or_else(|| Error::other("no answer to the question"))?
}

fn by_datagram(to: SocketAddr, question: &[u8], patience: Duration) -> std::io::Result<Vec<u8>> {
    let any: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(question)?;
    let mut buffer = [0; 1024];
    let length = socket.recv(&mut buffer)?;
    Ok(buffer[..length].to_vec())
}

/// By a connection each message has its length before it.
fn by_connection(to: SocketAddr, question: &[u8], patience: Duration) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut message = u16::try_from(question.len()).map_err(Error::other)?.to_be_bytes().to_vec();
    message.extend(question);
    stream.write_all(&message)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

/// A message that asks for the records of a type.
fn question(name: &str, of_type: u16) -> Vec<u8> {
    /// The server is to ask others where it has to.
    const RECURSE: u16 = 0x0100;
    let mut message: Vec<u8> = [ID, RECURSE, 1, 0, 0, 0].into_iter().flat_map(u16::to_be_bytes).collect();
    for label in name.trim_end_matches('.').split('.') {
        message.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        message.extend(label.bytes());
    }
    message.push(0);
    message.extend([of_type, CLASS].into_iter().flat_map(u16::to_be_bytes));
    message
}

/// The addresses of a type that an answer has; `None` where it is none to such a question, an error where the server has none to give.
fn addresses(message: &[u8], of_type: u16) -> Option<std::io::Result<Vec<IpAddr>>> {
    const IS_ANSWER: u16 = 0x8000;
    const CUT_SHORT: u16 = 0x0200;
    let number = |at: usize| Some(u16::from_be_bytes(*message.get(at..)?.first_chunk()?));
    let (flags, questions, answers) = (number(2)?, number(4)?, number(6)?);
    if number(0)? != ID || flags & IS_ANSWER == 0 {
        return None;
    }
    match flags & 0x000f {
        0 if flags & CUT_SHORT != 0 => return Some(Err(Error::other("the answer is cut short"))),
        0 => {}
        // There is no such name.
        3 => return Some(Ok(Vec::new())),
        code => return Some(Err(Error::other(format!("the name server failed with {code}")))),
    }
    let mut at = HEADER;
    for _ in 0..questions {
        at = after_name(message, at)? + 4;
    }
    let mut addresses = Vec::new();
    for _ in 0..answers {
        // Name, type, class, two numbers of time, length, data.
        at = after_name(message, at)?;
        let data = message.get(at + 10..)?.get(..usize::from(number(at + 8)?))?;
        if (number(at)?, number(at + 2)?) == (of_type, CLASS) {
            addresses.push(match data.len() {
                4 => IpAddr::from(*data.first_chunk::<4>()?),
                _ => IpAddr::from(*data.first_chunk::<16>()?),
            });
        }
        at += 10 + data.len();
    }
    Some(Ok(addresses))
}

/// Where a name ends that begins there: with an empty label, or with a pointer to the rest of it.
fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer with a name of its own and one that points to the question's.
    fn answer(of_type: u16, addresses: &[&str]) -> Vec<u8> {
        let mut message = question("both.shop.svc.cluster.local", of_type);
        message[2] |= 0x80;
        message[7] = u8::try_from(addresses.len()).unwrap();
        for (index, address) in addresses.iter().enumerate() {
            if index == 0 {
                message.extend([4, b'b', b'o', b't', b'h', 0])
            } else {
                message.extend([0xc0, 12])
            }
            let data = match address.parse().unwrap() {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            message.extend([of_type, CLASS, 0, 30, data.len() as u16].into_iter().flat_map(u16::to_be_bytes));
            message.extend(data);
        }
        message
    }

    #[test]
    fn a_question_is_that_of_the_specification() {
        let expected = [0x70, 0x61, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 2, b'b', b'c', 0, 0, 28, 0, 1];
        assert_eq!(question("a.bc", 28), expected);
        assert_eq!(question("a.bc.", 28), expected);
    }

    #[test]
    fn an_answer_has_the_addresses_of_its_type() {
        for (of_type, listed) in [(1, ["10.244.0.7", "10.244.1.8"]), (28, ["fd00:10:244::7", "fd00:10:244:1::8"])] {
            let found = addresses(&answer(of_type, &listed), of_type).unwrap().unwrap();
            assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), listed);
            assert!(addresses(&answer(of_type, &listed), 5).unwrap().unwrap().is_empty(), "of another type");
        }
    }

    #[test]
    fn what_is_no_answer_is_none_and_a_name_that_is_not_there_has_no_addresses() {
        let good = answer(1, &["10.244.0.7"]);
        assert!(addresses(&question("a", 1), 1).is_none(), "a question");
        for length in 0..good.len() {
            assert!(addresses(&good[..length], 1).is_none(), "{length}");
        }
        let with_code = |code: u8| addresses(&[&good[..3], &[code], &good[4..]].concat(), 1).unwrap();
        assert!(with_code(3).unwrap().is_empty());
        assert!(with_code(2).is_err() && with_code(5).is_err());
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let addresses = BTreeSet::from(["10.244.0.7".parse().unwrap(), "fd00::7".parse().unwrap()]);
        assert_eq!(read("10.244.0.7\nfd00::7\ndone\n").unwrap(), Ok(addresses));
        assert_eq!(read("done\n").unwrap(), Ok(BTreeSet::new()));
        assert_eq!(read("silent\n").unwrap(), Err(Answer::Silent));
        assert!(read("").is_err() && read("10.244.0.\ndone\n").is_err());
    }
}
