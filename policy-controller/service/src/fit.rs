//! Who is served as written where the maps have no room for all.

use crate::compile::Compiled;
use crate::model::Owner;
use crate::problem::Trouble;
use crate::views::Rows;
use palisade_datapath_core::abi::{CHUNK, map};
use std::collections::BTreeMap;

/// How many rows each map may have, by its name; one that is not named may have any number.
pub type Limits = BTreeMap<&'static str, u32>;

/// Numbers of rows, by their maps; none of them zero.
pub(crate) type Counts = BTreeMap<&'static str, usize>;

/// How many rows the maps hold.
fn held_by(compiled: &Compiled) -> Counts {
    let of_v4 = compiled.frontends.keys().filter(|frontend| frontend.address.is_ipv4()).count();
    Counts::from([
        (map::SERVICES_V4, of_v4),
        (map::SERVICES_V6, compiled.frontends.len() - of_v4),
        (map::BACKENDS, compiled.backends.len()),
        (map::CHUNKS, compiled.tables.values().map(|slots| slots.len() / CHUNK).sum::<usize>() + compiled.remnants.len()),
    ])
}

/// The rows of somebody that maps do not hold yet.
pub(crate) fn added<'a>(views: impl Iterator<Item = &'a Rows>, next: &Compiled, old: &Compiled) -> Counts {
    let mut added = Counts::new();
    let mut add = |map: &'static str, rows: usize| {
        if rows > 0 {
            *added.entry(map).or_default() += rows;
        }
    };
    for rows in views {
        for frontend in rows.frontends.iter().filter(|frontend| !old.frontends.contains_key(*frontend)) {
            add(if frontend.address.is_ipv4() { map::SERVICES_V4 } else { map::SERVICES_V6 }, 1);
        }
        let numbers = rows.backends.values().filter(|number| !old.backends.contains_key(&crate::Number(**number)));
        add(map::BACKENDS, numbers.count());
        for table in rows.tables().into_iter().map(crate::Number).filter(|table| !old.tables.contains_key(table)) {
            add(map::CHUNKS, next.tables.get(&table).map_or(0, |slots| slots.len() / CHUNK));
        }
    }
    added
}

/// Those who are held back, of those who add rows while a change is made and nothing is removed yet: who adds least goes first, so that as
/// few as possible are, and one that is too large for a map keeps no other from it.
pub(crate) fn held(added: BTreeMap<Owner, Counts>, old: &Compiled, limits: &Limits) -> BTreeMap<Owner, Trouble> {
    let mut taken = held_by(old);
    let mut all = taken.clone();
    for (map, rows) in added.values().flatten() {
        *all.entry(map).or_default() += rows;
    }
    let limit = |map: &str| limits.get(map).map_or(usize::MAX, |limit| *limit as usize);
    let scarce = |map: &str| all.get(map).is_some_and(|rows| *rows > limit(map));
    let weight = |counts: &Counts| counts.iter().filter(|(map, _)| scarce(map)).map(|(_, rows)| rows).sum::<usize>();
    let mut candidates: Vec<(usize, Owner, Counts)> =
        added.into_iter().map(|(owner, counts)| (weight(&counts), owner, counts)).filter(|(weight, ..)| *weight > 0).collect();
    candidates.sort();
    let mut held = BTreeMap::new();
    for (_, owner, counts) in candidates {
        let with = |map: &str, rows: usize| taken.get(map).copied().unwrap_or_default() + rows;
        let lacking = counts.iter().map(|(map, rows)| (*map, with(map, *rows))).find(|(map, rows)| *rows > limit(map));
        match lacking {
            Some((map, rows)) => {
                let limit = limits.get(map).copied().unwrap_or_default();
                held.insert(owner, Trouble::NoRoom { map, rows, limit });
            }
            None => counts.into_iter().for_each(|(map, rows)| *taken.entry(map).or_default() += rows),
        }
    }
    held
}
