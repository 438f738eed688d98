//! Routes of this machine, in the network namespace in which the scenarios run.

use anyhow::{Context, Result, ensure};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::process::Command;

/// A route to one address by way of a neighbour, such as a node; taken away when this is dropped, also by a panic.
#[derive(Debug)]
pub struct Route {
    to: IpAddr,
    by: IpAddr,
}

impl Route {
    /// Makes the route. One that a run left, which was killed, gives way.
    pub fn add(to: IpAddr, by: IpAddr) -> Result<Self> {
        change("replace", to, by)?;
        Ok(Self { to, by })
    }

    /// Makes a route to each of the addresses by that one of the neighbour's addresses which is of the same family.
    pub fn to_all(addresses: &[IpAddr], neighbour: &[IpAddr]) -> Result<Vec<Self>> {
        let to = |address: &IpAddr| {
            let by = neighbour.iter().find(|by| by.is_ipv6() == address.is_ipv6());
            Self::add(*address, *by.with_context(|| format!("no neighbour of the family of {address}: {neighbour:?}"))?)
        };
        addresses.iter().map(to).collect()
    }
}

/// The address under which this machine reaches another.
pub fn own_address(to: IpAddr) -> Result<IpAddr> {
    let any: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    // Sends nothing: the port does not matter.
    socket.connect((to, 9)).with_context(|| format!("this machine has no route to {to}"))?;
    Ok(socket.local_addr()?.ip())
}

fn change(verb: &str, to: IpAddr, by: IpAddr) -> Result<()> {
    let (family, length) = if to.is_ipv6() { ("-6", 128) } else { ("-4", 32) };
    let (to, by) = (format!("{to}/{length}"), by.to_string());
    let arguments = [family, "route", verb, &to, "via", &by];
    let output = Command::new("ip").args(arguments).output().context("starting ip (of iproute2)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}; this machine must be on one link with the nodes", arguments.join(" "), said.trim());
    Ok(())
}

impl Drop for Route {
    fn drop(&mut self) {
        if let Err(error) = change("del", self.to, self.by) {
            eprintln!("the route to {} could not be taken away: {error:#}", self.to);
        }
    }
}
