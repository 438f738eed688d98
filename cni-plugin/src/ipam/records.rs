use super::{Owner, range};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Rested addresses that are remembered with the time they were given back. What is older is forgotten: it counts as
/// given back before all of them.
const REMEMBERED: usize = 4096;

/// What the file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Records {
    /// Version of this layout.
    pub(super) version: u32,
    /// Who has which addresses.
    pub(super) leases: Vec<Lease>,
    /// Addresses that were given back, with the second (Unix time) at which that was.
    pub(super) freed: BTreeMap<IpAddr, u64>,
    /// For each range, the first address that was never given out.
    pub(super) fresh: BTreeMap<IpNet, IpAddr>,
}

/// The addresses of one attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Lease {
    #[serde(flatten)]
    pub(super) owner: Owner,
    pub(super) addresses: Vec<IpAddr>,
    /// Another plugin gave them, and only that one takes them back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) delegated: bool,
}

/// Why a range has no address to give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoAddress {
    /// All are taken.
    Full { range: IpNet, taken: usize },
    /// So many are taken and all others rest, of which the first one will be ready in this many seconds.
    Resting { range: IpNet, taken: usize, resting: usize, seconds: u64 },
    /// The one that was asked for rests.
    AskedRests { address: IpAddr, seconds: u64 },
    /// The one that was asked for is another one's.
    AskedTaken { address: IpAddr, holder: Owner },
    /// The one that was asked for is none that can be given.
    AskedNotUsable { address: IpAddr },
}

impl Records {
    pub(super) const VERSION: u32 = 1;

    /// Fails, with the reason, when two attachments have one address or an attachment stands there twice: then the
    /// file was not written by this code.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.version != Self::VERSION {
            return Err(format!("it has version {}, this plugin reads version {}", self.version, Self::VERSION));
        }
        let (mut addresses, mut owners) = (BTreeSet::new(), BTreeSet::new());
        for lease in &self.leases {
            if !owners.insert(&lease.owner) {
                return Err(format!("{} stands in it twice", lease.owner));
            }
            if let Some(twice) = lease.addresses.iter().find(|address| !addresses.insert(**address)) {
                return Err(format!("address {twice} has two holders"));
            }
        }
        Ok(())
    }

    pub(super) fn lease_of(&self, owner: &Owner) -> Option<&Lease> {
        self.leases.iter().find(|lease| lease.owner == *owner)
    }

    /// Gives an owner one address of each range, that which is asked for where one is; what it has already, as long as that fits.
    pub(super) fn lease(
        &mut self,
        owner: &Owner,
        ranges: &[IpNet],
        asked: &[IpAddr],
        now: u64,
        cool_down: u64,
    ) -> Result<Vec<IpAddr>, NoAddress> {
        let can_be_given = |address: &&IpAddr| {
            let within = |range: &&IpNet| {
                range::usable(range).is_some_and(|(first, last)| range.contains(*address) && (first..=last).contains(*address))
            };
            ranges.iter().any(|range| within(&range))
        };
        if let Some(address) = asked.iter().find(|address| !can_be_given(address)) {
            return Err(NoAddress::AskedNotUsable { address: *address });
        }
        if let Some(lease) = self.lease_of(owner) {
            let fits = lease.addresses.len() == ranges.len()
                && !lease.delegated
                && asked.iter().all(|address| lease.addresses.contains(address))
                && ranges.iter().all(|range| lease.addresses.iter().any(|address| range.contains(address)));
            if fits {
                return Ok(lease.addresses.clone());
            }
            self.release(owner, now);
        }
        let taken: BTreeSet<IpAddr> = self.leases.iter().flat_map(|lease| lease.addresses.iter().copied()).collect();
        let mut addresses = Vec::new();
        for range in ranges {
            let address = match asked.iter().find(|address| range.contains(*address)) {
                Some(address) => self.give(*address, now, cool_down)?,
                None => self.choose(range, &taken, now, cool_down)?,
            };
            self.freed.remove(&address);
            addresses.push(address);
        }
        self.leases.push(Lease { owner: owner.clone(), addresses: addresses.clone(), delegated: false });
        Ok(addresses)
    }

    /// Writes down what an owner has, whoever gave it; else the first address that is another one's, and whose.
    pub(super) fn adopt(&mut self, owner: &Owner, addresses: &[IpAddr], delegated: bool, now: u64) -> Result<(), (IpAddr, Owner)> {
        let held = |address: &IpAddr| self.holder(address).filter(|holder| *holder != owner).map(|holder| (*address, holder.clone()));
        if let Some(taken) = addresses.iter().find_map(held) {
            return Err(taken);
        }
        self.release(owner, now);
        self.freed.retain(|address, _| !addresses.contains(address));
        self.leases.push(Lease { owner: owner.clone(), addresses: addresses.to_vec(), delegated });
        Ok(())
    }

    fn holder(&self, address: &IpAddr) -> Option<&Owner> {
        self.leases.iter().find(|lease| lease.addresses.contains(address)).map(|lease| &lease.owner)
    }

    /// An address that was asked for.
    fn give(&self, address: IpAddr, now: u64, cool_down: u64) -> Result<IpAddr, NoAddress> {
        if let Some(holder) = self.holder(&address) {
            return Err(NoAddress::AskedTaken { address, holder: holder.clone() });
        }
        match self.freed.get(&address).map(|freed| now.saturating_sub(*freed)).filter(|rested| *rested < cool_down) {
            Some(rested) => Err(NoAddress::AskedRests { address, seconds: cool_down - rested }),
            None => Ok(address),
        }
    }

    /// Takes an owner's addresses back. False: it had none.
    pub(super) fn release(&mut self, owner: &Owner, now: u64) -> bool {
        let Some(lease) = self.take(owner) else { return false };
        self.freed.extend(lease.addresses.into_iter().map(|address| (address, now)));
        true
    }

    /// Takes back addresses that nobody has met: they had rested when they were given, and need not rest again. Those that have rested longer come
    /// first all the same: one that the agent refuses for good is not given again and again. False: the owner had none.
    pub(super) fn release_unused(&mut self, owner: &Owner, now: u64, cool_down: u64) -> bool {
        self.release(owner, now.saturating_sub(cool_down))
    }

    fn take(&mut self, owner: &Owner) -> Option<Lease> {
        let place = self.leases.iter().position(|lease| lease.owner == *owner)?;
        Some(self.leases.remove(place))
    }

    /// Forgets what need not be remembered, and puts right what a clock that went backwards has done.
    pub(super) fn tidy(&mut self, now: u64, cool_down: u64) {
        for freed in self.freed.values_mut() {
            *freed = (*freed).min(now);
        }
        let excess = self.freed.len().saturating_sub(REMEMBERED);
        if excess > 0 {
            let mut rested: Vec<(u64, IpAddr)> =
                self.freed.iter().filter(|(_, freed)| now - **freed >= cool_down).map(|(address, freed)| (*freed, *address)).collect();
            rested.sort_unstable();
            for (_, address) in rested.into_iter().take(excess) {
                self.freed.remove(&address);
            }
        }
    }

    /// An address that was never given out; else one that was given back before all that is remembered; else the one
    /// that has rested longest.
    fn choose(&mut self, range: &IpNet, taken: &BTreeSet<IpAddr>, now: u64, cool_down: u64) -> Result<IpAddr, NoAddress> {
        let in_use = || taken.iter().filter(|address| range.contains(*address)).count();
        let full = || NoAddress::Full { range: *range, taken: in_use() };
        let (first, last) = range::usable(range).ok_or_else(full)?;
        let fresh = self.fresh.get(&range.trunc()).copied().unwrap_or(first);
        // As long as there are free addresses these searches end soon: only what is taken or remembered is passed over.
        let free = |address: &IpAddr| !taken.contains(address) && !self.freed.contains_key(address);
        let upwards =
            |from: IpAddr| std::iter::successors(Some(from), |address| range::next(*address)).take_while(|address| *address <= last);
        if let Some(address) = upwards(fresh).find(free) {
            if let Some(next) = range::next(address) {
                self.fresh.insert(range.trunc(), next);
            }
            return Ok(address);
        }
        if let Some(address) = upwards(first).find(free) {
            return Ok(address);
        }
        let usable = |address: &IpAddr| range.contains(address) && (first..=last).contains(address) && !taken.contains(address);
        let (address, freed) = self
            .freed
            .iter()
            .filter(|(address, _)| usable(address))
            .map(|(address, freed)| (*address, *freed))
            .min_by_key(|(address, freed)| (*freed, *address))
            .ok_or_else(full)?;
        let rested = now.saturating_sub(freed);
        if rested >= cool_down {
            return Ok(address);
        }
        let resting = self.freed.keys().filter(|address| usable(address)).count();
        Err(NoAddress::Resting { range: *range, taken: in_use(), resting, seconds: cool_down - rested })
    }
}
