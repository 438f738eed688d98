//! The time of one run of `from_pod`, by BPF_PROG_TEST_RUN, against a program that only redirects.

use crate::palisade::Palisade;
use crate::path::{End, Family};
use crate::plan::Plan;
use crate::statistics::Samples;
use crate::traffic::Traffic;
use anyhow::{Context, Result, ensure};
use aya::maps::HashMap;
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader, TestRun as _, TestRunOptions};
use palisade_cni::link::MacAddress;
use palisade_datapath_core::abi::{Hook, LocalPod, Outcome, map};
use palisade_loader::{PacketContext, redirect_object};
use palisade_test_support::packet::Way;
use std::net::IpAddr;
use zerocopy::IntoBytes;

/// How often a program runs over a packet in one call. A packet that is redirected loses a hop each time.
const REPEAT: u32 = 200;
/// Calls per program and round.
const CALLS: u32 = 20;
/// `lo`: a test run's interface must exist.
const CLIENT_IFINDEX: u32 = 1;
/// Nothing is really sent there in a test run.
const SERVER_IFINDEX: u32 = 1_000_000;
/// The number of these addresses' path; those of traffic are smaller.
const PATH: u8 = 9;
/// What a program returns that redirects.
const REDIRECT: i32 = 7;
/// What a program returns that drops.
const DROP: i32 = 2;
/// TCP flags.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A kind of packet, or the program that others are measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Case {
    /// The program that only redirects.
    RedirectOnly,
    /// A packet of a known flow.
    Established,
    /// A packet that default deny refuses.
    Denied,
    /// A packet that opens a flow again: both verdicts, and the entry is written over.
    Judged,
    /// A packet that opens a flow nobody knows: both verdicts, and an entry is made.
    New,
}

impl Case {
    /// Every case.
    pub const ALL: &[Case] = &[Case::RedirectOnly, Case::Established, Case::Denied, Case::Judged, Case::New];

    /// Its name in results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RedirectOnly => "redirect-only",
            Self::Established => "established",
            Self::Denied => "denied",
            Self::Judged => "judged-again",
            Self::New => "new",
        }
    }
}

/// Nanoseconds of one run, by case, a sample per round.
pub type Times = std::collections::BTreeMap<Case, Samples>;

struct Bench<'a> {
    palisade: &'a Palisade,
    redirect: Ebpf,
    way: Way,
    flows: u16,
}

/// Measures all cases, round by round, every other round backwards.
pub fn measure(plan: &Plan, palisade: &mut Palisade) -> Result<Times> {
    // One hardware address for all, so that a frame that was rewritten still comes from its pod.
    let mac = MacAddress::local(PATH.into());
    let end = |number| End { pod_mac: mac, host_mac: mac, ..End::new(PATH, number, Family::Ipv4) };
    let (client, server) = (end(1), end(2));
    palisade.realise(client, CLIENT_IFINDEX)?;
    palisade.realise(server, SERVER_IFINDEX)?;
    let mut bench = Bench {
        palisade,
        redirect: redirect_only(server)?,
        way: Way::new(mac.0, client.address, mac.0, server.address).hop_limit(255),
        flows: 0,
    };
    bench.run(Case::New, 1)?;
    let mut times = Times::new();
    for round in 0..plan.program_rounds {
        let mut order = Case::ALL.to_vec();
        if round % 2 == 1 {
            order.reverse();
        }
        for case in order {
            let time = if case == Case::New { bench.new_flows(plan.new_flows)? } else { bench.mean(case, REPEAT, CALLS)? };
            times.entry(case).or_default().push(time);
        }
    }
    Ok(times)
}

/// Loads the program that only redirects, with the row of one pod.
fn redirect_only(pod: End) -> Result<Ebpf> {
    let mut redirect = EbpfLoader::new().load(redirect_object()).context("load redirect_only")?;
    let IpAddr::V4(address) = pod.address else { anyhow::bail!("redirect_only knows IPv4") };
    let local = LocalPod { ifindex: SERVER_IFINDEX, pod_mac: pod.pod_mac.0, host_mac: pod.host_mac.0, since: 0 };
    let mut row = [0; size_of::<LocalPod>()];
    row.copy_from_slice(local.as_bytes());
    let table = redirect.map_mut(map::LOCAL_V4).context("redirect_only has no table")?;
    HashMap::<_, [u8; 4], [u8; size_of::<LocalPod>()]>::try_from(table)?.insert(address.octets(), row, 0)?;
    let program: &mut SchedClassifier = redirect.program_mut("redirect_only").context("there is no redirect_only")?.try_into()?;
    program.load()?;
    Ok(redirect)
}

impl Bench<'_> {
    /// Mean nanoseconds of one run, over several calls.
    fn mean(&mut self, case: Case, repeat: u32, calls: u32) -> Result<f64> {
        let mut sum = 0.0;
        for _ in 0..calls {
            sum += self.run(case, repeat)?;
        }
        Ok(sum / f64::from(calls))
    }

    /// Nanoseconds of opening a flow that nobody knows. Such a packet can run only once per call, and a single run
    /// finds cold caches and carries the cost of the clock; as much as a single run of an established packet takes
    /// longer than one of many is taken off.
    fn new_flows(&mut self, flows: u32) -> Result<f64> {
        let (mut opening, mut single) = (Samples::default(), Samples::default());
        for _ in 0..flows {
            opening.push(self.run(Case::New, 1)?);
            single.push(self.run(Case::Established, 1)?);
        }
        Ok(opening.median() - (single.median() - self.mean(Case::Established, REPEAT, CALLS)?))
    }

    /// Mean nanoseconds of one run in one call. Fails when the program does not do what the case says.
    fn run(&mut self, case: Case, repeat: u32) -> Result<f64> {
        let open = Traffic::RequestResponse.port();
        let packet = match case {
            Case::RedirectOnly | Case::Established => self.way.tcp(1, open, ACK),
            Case::Denied => self.way.tcp(1, 9, SYN),
            Case::Judged => self.way.tcp(1, open, SYN),
            Case::New => {
                // The first flow of all is the one that the established packets belong to.
                self.flows = self.flows.checked_add(1).unwrap_or(2);
                self.way.tcp(self.flows, open, SYN)
            }
        };
        let (outcome, action) = match case {
            Case::RedirectOnly => return self.run_redirect_only(&packet, repeat),
            Case::Established => (Outcome::AllowedEstablished, REDIRECT),
            Case::Denied => (Outcome::EgressDefaultDenied, DROP),
            Case::Judged | Case::New => (Outcome::AllowedNew, REDIRECT),
        };
        let before = self.palisade.packets(outcome)?;
        let context = PacketContext { ifindex: CLIENT_IFINDEX, ingress_ifindex: CLIENT_IFINDEX, mark: 0, repeat };
        let run = self.palisade.datapath().test_run(Hook::FromPod, &packet, &context)?;
        let counted = self.palisade.packets(outcome)? - before;
        ensure!(
            (run.action, counted) == (action, repeat.into()),
            "{}: the program returned {} and counted {counted} of {repeat} packets as {}",
            case.name(),
            run.action,
            outcome.name()
        );
        Ok(run.duration.as_nanos() as f64)
    }

    fn run_redirect_only(&mut self, packet: &[u8], repeat: u32) -> Result<f64> {
        let program: &mut SchedClassifier = self.redirect.program_mut("redirect_only").context("there is no redirect_only")?.try_into()?;
        let mut out = vec![0; packet.len() + 256];
        let run = program.test_run(TestRunOptions { data_in: Some(packet), data_out: Some(&mut out), repeat, ..Default::default() })?;
        ensure!(run.return_value as i32 == REDIRECT, "redirect_only returned {}", run.return_value);
        Ok(run.duration.as_nanos() as f64)
    }
}
