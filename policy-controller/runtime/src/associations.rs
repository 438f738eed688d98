//! What the node's own processes send to services by SCTP. TCP and UDP have programs at their sockets; for SCTP the kernel has no hook there, so
//! connection tracking sends an association to a backend.

use palisade_cni::link::{Associations, Lead};
use palisade_identity::Protocol;
use palisade_service::{Compiled, Frontend, Leads};
use std::net::SocketAddr;

/// The most backends of one frontend, and of all: each is a rule.
const MOST: (usize, usize) = (256, 10_000);

/// Where the associations to each frontend of the rows go; and how many backends are left out since there are too many.
pub fn of(rows: &Compiled) -> (Associations, usize) {
    let (mut associations, mut rules, mut left_out) = (Associations::default(), 0, 0);
    for frontend in rows.frontends.keys().filter(|frontend| frontend.protocol == Protocol::Sctp) {
        let Some(mut lead) = lead(rows, frontend) else { continue };
        if let Lead::Backends(backends) = &mut lead {
            let room = MOST.0.min(MOST.1 - rules);
            left_out += backends.len().saturating_sub(room);
            backends.truncate(room);
            rules += backends.len();
            if backends.is_empty() {
                lead = Lead::Unreachable;
            }
        }
        associations.0.insert(SocketAddr::new(frontend.address, frontend.port), lead);
    }
    (associations, left_out)
}

fn lead(rows: &Compiled, frontend: &Frontend) -> Option<Lead> {
    Some(match rows.leads(frontend)? {
        Leads::Backends(backends) => {
            let entry = rows.frontends.get(frontend)?;
            // All processes of the node are one client: with affinity it stays with one backend, which a table seldom changes.
            let only = (entry.affinity != 0).then(|| rows.chosen(entry.table).next()).flatten();
            Lead::Backends(
                only.map_or_else(|| backends.into_iter().collect(), |only| vec![only]).into_iter().map(SocketAddr::from).collect(),
            )
        }
        Leads::Refused => Lead::Refused,
        Leads::Dropped => Lead::Unreachable,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_cni::link::Namespace;
    use palisade_cni::link::nftables::generation;
    use palisade_policy::generate::Random;
    use palisade_service::{Numbers, compile, generate, oracle};
    use std::collections::BTreeMap;

    #[test]
    fn an_association_goes_where_the_services_say_and_with_affinity_to_one_backend() {
        let (mut several, mut one, mut refused, mut unreachable) = (0, 0, 0, 0);
        for seed in 0..400 {
            let services = generate::services(&mut Random::new(seed));
            let rows = compile(&services, &Compiled::default(), &mut Numbers::after(0));
            let (associations, left_out) = of(&rows);
            assert_eq!(left_out, 0);
            for (frontend, entry) in rows.frontends.iter().filter(|(frontend, _)| frontend.protocol == Protocol::Sctp) {
                let lead = &associations.0[&SocketAddr::new(frontend.address, frontend.port)];
                match (lead, oracle::backends(&services, frontend)) {
                    (Lead::Backends(found), oracle::Answer::OneOf(expected)) => {
                        let expected: Vec<SocketAddr> = expected.into_iter().map(SocketAddr::from).collect();
                        if entry.affinity == 0 {
                            assert_eq!(*found, expected, "seed {seed}: {frontend}");
                            several += usize::from(expected.len() > 1);
                        } else {
                            assert!(found.len() == 1 && expected.contains(&found[0]), "seed {seed}: {frontend}: {found:?}");
                            one += usize::from(expected.len() > 1);
                        }
                    }
                    (Lead::Refused, oracle::Answer::Refused) => refused += 1,
                    (Lead::Unreachable, oracle::Answer::Dropped) => unreachable += 1,
                    differs => panic!("seed {seed}: {frontend}: {differs:?}"),
                }
            }
            assert_eq!(associations.0.len(), rows.frontends.keys().filter(|frontend| frontend.protocol == Protocol::Sctp).count());
        }
        assert!(several > 5 && one > 5 && refused > 5 && unreachable > 5, "{several} {one} {refused} {unreachable}");
    }

    /// The kernel answers as many messages at once as its socket has room for, which is fewer.
    #[test]
    fn a_table_of_thousands_of_backends_is_written_and_taken_away_whole() {
        let node = Namespace::create().unwrap();
        let backend = |number: u16| SocketAddr::from(([10, 1, (number >> 8) as u8, number as u8], 9000));
        let frontend = |number: u8| SocketAddr::from(([10, 96, 0, number], 80));
        let mut associations: BTreeMap<SocketAddr, Lead> =
            (1..20).map(|number| (frontend(number), Lead::Backends((0..256).map(backend).collect()))).collect();
        associations.insert(frontend(20), Lead::Refused);
        associations.insert("[fd00::1]:80".parse().unwrap(), Lead::Unreachable);
        for wanted in [Associations(associations.clone()), Associations(associations), Associations::default(), Associations::default()] {
            let (before, after) = node.enter(|| (generation().unwrap(), wanted.apply().map(|()| generation().unwrap()))).unwrap();
            assert_eq!(after.unwrap(), before + 1, "one change, and no error");
        }
    }
}
