//! What the rules of one tier say of ports, and what the tiers say together.

use crate::ports::Flattener;
use palisade_datapath_core::abi::PortEntry;

/// What a rule does with the ports that it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// It decides.
    Decides(PortEntry),
    /// It leaves them to the next tier.
    Passes,
}

/// What the rules of one tier say, the first that takes a port for all that come later.
#[derive(Default)]
pub(crate) struct Layer {
    pub ports: Flattener<Said>,
    /// Of every port and protocol that `ports` does not name; `None` where no rule says anything.
    pub otherwise: Option<Said>,
}

/// What a tier and all that come after it say together.
pub(crate) struct Settled {
    pub ports: Flattener<PortEntry>,
    pub otherwise: PortEntry,
}

impl Settled {
    /// What is said of everything where no tier decides.
    pub fn always(entry: PortEntry) -> Self {
        Self { ports: Flattener::default(), otherwise: entry }
    }
}

impl Layer {
    /// This tier, asked before `below`.
    pub fn over(self, below: Settled) -> Settled {
        let mut ports = Flattener::default();
        for (protocol, first, last, said) in self.ports.ranges() {
            match said {
                Said::Decides(entry) => ports.add(protocol, first, last, entry),
                Said::Passes => {
                    for (first, last, entry) in below.ports.within(protocol, first, last) {
                        ports.add(protocol, first, last, entry);
                    }
                    ports.add(
                        protocol,
                        first,
                        last,
                        faulty!(below.otherwise, PassedPortsFallThrough => PortEntry { verdict: 1, ..below.otherwise }),
                    );
                }
            }
        }
        if let Some(Said::Decides(otherwise)) = faulty!(self.otherwise, TiersDecideNothing => None) {
            return Settled { ports, otherwise };
        }
        for (protocol, first, last, entry) in below.ports.ranges() {
            ports.add(protocol, first, last, entry);
        }
        Settled { ports, otherwise: below.otherwise }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn entry(reason: u32) -> PortEntry {
        PortEntry { reason, verdict: 1, reserved: [0; 3] }
    }

    fn layer(ports: &[(u16, u16, Said)], otherwise: Option<Said>) -> Layer {
        let mut layer = Layer { otherwise, ..Layer::default() };
        ports.iter().for_each(|&(first, last, said)| layer.ports.add(6, first, last, said));
        layer
    }

    fn said(settled: &Settled, protocol: u8, port: u16) -> u32 {
        settled.ports.within(protocol, port, port).next().map_or(settled.otherwise.reason, |(_, _, entry)| entry.reason)
    }

    #[test]
    fn a_port_that_passes_is_decided_by_the_next_tier_and_by_no_later_rule_of_its_own() {
        let below = layer(&[(0, 99, Said::Decides(entry(1)))], Some(Said::Decides(entry(2)))).over(Settled::always(entry(9)));
        let above = layer(&[(80, 120, Said::Passes)], Some(Said::Decides(entry(3)))).over(below);
        let expected = [(6, 79, 3), (6, 80, 1), (6, 99, 1), (6, 100, 2), (6, 120, 2), (6, 121, 3), (17, 80, 3), (1, 0, 3)];
        for (protocol, port, reason) in expected {
            assert_eq!(said(&above, protocol, port), reason, "{protocol}/{port}");
        }
    }

    #[test]
    fn what_no_rule_names_is_left_to_the_next_tier() {
        for otherwise in [None, Some(Said::Passes)] {
            let below =
                layer(&[(80, 80, Said::Decides(entry(1))), (90, 90, Said::Decides(entry(2)))], None).over(Settled::always(entry(9)));
            let above = layer(&[(80, 80, Said::Decides(entry(3)))], otherwise).over(below);
            for (port, reason) in [(80, 3), (90, 2), (91, 9)] {
                assert_eq!(said(&above, 6, port), reason, "{port}");
            }
        }
    }
}
