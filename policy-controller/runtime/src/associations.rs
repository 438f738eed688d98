//! What the node's own processes send to services by SCTP. TCP and UDP have programs at their sockets; for SCTP the kernel has no hook there, so
//! connection tracking sends an association to a backend.

use palisade_cni::link::{Associations, Lead};
use palisade_identity::Protocol;
use palisade_service::{Compiled, Frontend, Leads};
use std::net::SocketAddr;

/// Where the associations to each frontend of the rows go.
pub fn of(rows: &Compiled) -> Associations {
    let frontends = rows.frontends.keys().filter(|frontend| frontend.protocol == Protocol::Sctp);
    let lead = |frontend: &Frontend| Some((SocketAddr::new(frontend.address, frontend.port), lead(rows, frontend)?));
    Associations(frontends.filter_map(lead).collect())
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
    use palisade_policy::generate::Random;
    use palisade_service::{Numbers, compile, generate, oracle};

    #[test]
    fn an_association_goes_where_the_services_say_and_with_affinity_to_one_backend() {
        let (mut several, mut one, mut refused, mut unreachable) = (0, 0, 0, 0);
        for seed in 0..400 {
            let services = generate::services(&mut Random::new(seed));
            let rows = compile(&services, &Compiled::default(), &mut Numbers::after(0));
            let associations = of(&rows);
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
}
