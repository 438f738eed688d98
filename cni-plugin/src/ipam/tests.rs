use super::store::Step;
use super::{IpamError, Owner, Store};
use ipnet::IpNet;
use palisade_protocol::Attachment;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const COOL_DOWN: u64 = 30;

fn store(directory: &Path) -> Store {
    Store::with_cool_down(directory.join("ipam"), Duration::from_secs(COOL_DOWN))
}

fn owner(number: u32) -> Owner {
    let attachment = Attachment { container_id: format!("c{number}"), interface: "eth0".into() };
    Owner { network: "net".into(), attachment }
}

fn ranges(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn at(second: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000 + second)
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn both_families_are_given_and_the_same_owner_keeps_what_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let ranges = ranges(&["10.0.0.0/24", "fd00::/64"]);
    let expected = ips(&["10.0.0.2", "fd00::2"]);
    assert_eq!(store(directory.path()).lease(&owner(1), &ranges, &[], at(0)).unwrap(), expected);
    assert_eq!(store(directory.path()).lease(&owner(1), &ranges, &[], at(1)).unwrap(), expected);
    assert_eq!(store(directory.path()).addresses(&owner(1)).unwrap(), expected);
    assert_eq!(store(directory.path()).lease(&owner(2), &ranges, &[], at(1)).unwrap(), ips(&["10.0.0.3", "fd00::3"]));
    assert_eq!(store(directory.path()).owners().unwrap(), [owner(1), owner(2)]);
}

#[test]
fn an_owner_whose_addresses_no_longer_fit_the_ranges_gets_others() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    store.lease(&owner(1), &ranges(&["10.0.0.0/24"]), &[], at(0)).unwrap();
    assert_eq!(store.lease(&owner(1), &ranges(&["10.9.0.0/24"]), &[], at(0)).unwrap(), ips(&["10.9.0.2"]));
    assert_eq!(store.lease(&owner(1), &ranges(&["10.9.0.0/24", "fd00::/64"]), &[], at(0)).unwrap(), ips(&["10.9.0.3", "fd00::2"]));
}

#[test]
fn never_used_addresses_come_first_then_the_one_that_rested_longest() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let range = ranges(&["10.0.0.0/29"]);
    let lease = |number, second| store.lease(&owner(number), &range, &[], at(second)).map(|addresses| addresses[0].to_string());
    assert_eq!(lease(1, 0).unwrap(), "10.0.0.2");
    assert_eq!(lease(2, 0).unwrap(), "10.0.0.3");
    assert!(store.release(&owner(2), at(1)).unwrap());
    assert!(store.release(&owner(1), at(2)).unwrap());
    for (number, address) in [(3, "10.0.0.4"), (4, "10.0.0.5"), (5, "10.0.0.6")] {
        assert_eq!(lease(number, 100).unwrap(), address);
    }
    assert_eq!(lease(6, 100).unwrap(), "10.0.0.3");
    assert_eq!(lease(7, 100).unwrap(), "10.0.0.2");
    assert!(matches!(lease(8, 100).unwrap_err(), IpamError::Full { taken: 5, .. }));
}

#[test]
fn an_address_rests_before_it_is_given_again_and_the_error_says_how_long() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let range = ranges(&["10.0.0.0/30"]);
    store.lease(&owner(1), &range, &[], at(0)).unwrap();
    assert!(matches!(store.lease(&owner(2), &range, &[], at(0)).unwrap_err(), IpamError::Full { taken: 1, .. }));
    store.release(&owner(1), at(5)).unwrap();
    let error = store.lease(&owner(2), &range, &[], at(6)).unwrap_err();
    assert!(matches!(error, IpamError::Resting { seconds: 29, .. }), "{error}");
    assert!(store.lease(&owner(2), &range, &[], at(35)).is_ok());
}

#[test]
fn an_address_that_was_given_back_unused_needs_no_rest_and_others_do() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let range = ranges(&["10.0.0.0/29"]);
    // More often than there are addresses.
    for number in 1..=20 {
        store.lease(&owner(number), &range, &[], at(0)).unwrap();
        assert!(store.release_unused(&owner(number), at(0)).unwrap());
        assert!(!store.release_unused(&owner(number), at(0)).unwrap());
    }
    let held: BTreeSet<IpAddr> = (1..=5).map(|number| store.lease(&owner(number), &range, &[], at(0)).unwrap()[0]).collect();
    assert_eq!(held.len(), 5);
    store.release(&owner(1), at(1)).unwrap();
    assert!(matches!(store.lease(&owner(6), &range, &[], at(2)).unwrap_err(), IpamError::Resting { seconds: 29, .. }));
    let rested = store.lease(&owner(6), &range, &[], at(31)).unwrap();
    store.release_unused(&owner(6), at(31)).unwrap();
    assert_eq!(store.lease(&owner(7), &range, &[], at(31)).unwrap(), rested, "it had rested before");
}

#[test]
fn an_address_that_goes_back_unused_each_time_keeps_no_other_from_being_given() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let range = ranges(&["10.0.0.0/29"]);
    // Each was given once, and has rested.
    for number in 1..=5 {
        store.lease(&owner(number), &range, &[], at(0)).unwrap();
    }
    for number in 1..=5 {
        store.release(&owner(number), at(0)).unwrap();
    }
    let refused = store.lease(&owner(6), &range, &[], at(100)).unwrap();
    store.release_unused(&owner(6), at(100)).unwrap();
    let held: Vec<IpAddr> = (7..=10).map(|number| store.lease(&owner(number), &range, &[], at(100)).unwrap()[0]).collect();
    assert!(!held.contains(&refused[0]), "{held:?}");
    assert_eq!(store.lease(&owner(11), &range, &[], at(100)).unwrap(), refused, "it needs no rest");
}

#[test]
fn where_all_free_addresses_rest_the_error_says_how_many_do_and_how_many_are_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let range = ranges(&["10.0.0.0/29"]);
    for number in 1..=5 {
        store.lease(&owner(number), &range, &[], at(0)).unwrap();
    }
    store.release(&owner(1), at(5)).unwrap();
    store.release(&owner(2), at(6)).unwrap();
    let error = store.lease(&owner(6), &range, &[], at(7)).unwrap_err().to_string();
    assert!(error.starts_with("every free address of the pod range 10.0.0.0/29 (2; 3 are in use) rests"), "{error}");
    assert!(error.ends_with("try again in 28 s"), "{error}");
}

#[test]
fn an_address_that_is_asked_for_is_given_and_the_other_family_is_chosen() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let ranges = ranges(&["10.0.0.0/24", "fd00::/64"]);
    let lease = |number, asked: &[&str], second| store.lease(&owner(number), &ranges, &ips(asked), at(second));
    assert_eq!(lease(1, &["10.0.0.3"], 0).unwrap(), ips(&["10.0.0.3", "fd00::2"]));
    assert_eq!(lease(1, &["10.0.0.3"], 0).unwrap(), ips(&["10.0.0.3", "fd00::2"]), "done again");
    assert_eq!(lease(2, &["fd00::9", "10.0.0.9"], 0).unwrap(), ips(&["10.0.0.9", "fd00::9"]));
    // What was asked for is passed over by those who ask for nothing.
    assert_eq!(lease(3, &[], 0).unwrap(), ips(&["10.0.0.2", "fd00::3"]));
    assert_eq!(lease(4, &[], 0).unwrap(), ips(&["10.0.0.4", "fd00::4"]));
    let taken = lease(5, &["10.0.0.3"], 0).unwrap_err();
    assert!(matches!(&taken, IpamError::Taken { holder, .. } if *holder == owner(1)), "{taken}");
    store.release(&owner(1), at(1)).unwrap();
    assert!(matches!(lease(5, &["10.0.0.3"], 30).unwrap_err(), IpamError::Resting { seconds: 1, .. }));
    assert_eq!(lease(5, &["10.0.0.3"], 31).unwrap()[0], ips(&["10.0.0.3"])[0]);
    assert!(store.addresses(&owner(6)).unwrap().is_empty());
}

#[test]
fn an_address_that_no_pod_of_the_node_can_have_is_refused_with_the_ranges() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let ranges = ranges(&["10.0.0.0/24", "fd00::/64"]);
    for address in ["10.0.1.7", "10.0.0.0", "10.0.0.1", "10.0.0.255", "fd00::1", "fd01::7", "192.0.2.1"] {
        let error = store.lease(&owner(1), &ranges, &ips(&[address]), at(0)).unwrap_err();
        assert!(matches!(error, IpamError::NotUsable { .. }), "{error}");
        assert!(error.to_string().contains(address) && error.to_string().contains("10.0.0.0/24, fd00::/64"), "{error}");
    }
    assert!(store.owners().unwrap().is_empty());
}

#[test]
fn what_another_plugin_gave_is_nobody_else_s() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let ranges = ranges(&["10.0.0.0/24"]);
    store.adopt(&owner(1), &ips(&["10.0.0.2"]), true, at(0)).unwrap();
    assert_eq!(store.addresses(&owner(1)).unwrap(), ips(&["10.0.0.2"]));
    assert_eq!(store.lease(&owner(2), &ranges, &[], at(0)).unwrap(), ips(&["10.0.0.3"]));
    assert!(matches!(store.adopt(&owner(3), &ips(&["10.0.0.3"]), true, at(0)).unwrap_err(), IpamError::Taken { .. }));
    // The same attachment, whose configuration names no other plugin any more: ours gives anew.
    assert_eq!(store.lease(&owner(1), &ranges, &[], at(0)).unwrap(), ips(&["10.0.0.4"]));
}

#[test]
fn a_clock_that_goes_backwards_delays_but_does_not_block() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let range = ranges(&["10.0.0.0/30"]);
    store.lease(&owner(1), &range, &[], at(1_000_000)).unwrap();
    store.release(&owner(1), at(1_000_000)).unwrap();
    assert!(matches!(store.lease(&owner(2), &range, &[], at(0)).unwrap_err(), IpamError::Resting { .. }));
    // Any change writes the corrected time down.
    store.release(&owner(9), at(0)).unwrap();
    assert!(store.lease(&owner(2), &range, &[], at(COOL_DOWN)).is_ok());
}

#[test]
fn releasing_twice_or_what_was_never_given_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    assert!(!store.release(&owner(1), at(0)).unwrap());
    assert!(!directory.path().join("ipam").exists());
    store.lease(&owner(1), &ranges(&["10.0.0.0/24"]), &[], at(0)).unwrap();
    assert!(store.release(&owner(1), at(0)).unwrap());
    assert!(!store.release(&owner(1), at(0)).unwrap());
}

#[test]
fn a_damaged_file_is_left_untouched_and_the_error_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    store.lease(&owner(1), &ranges(&["10.0.0.0/24"]), &[], at(0)).unwrap();
    let file = directory.path().join("ipam/addresses.json");
    let whole = std::fs::read_to_string(&file).unwrap();
    let twice = whole.replace(
        "\"leases\": [",
        "\"leases\": [{\"network\":\"x\",\"containerId\":\"y\",\"interface\":\"z\",\"addresses\":[\"10.0.0.2\"]},",
    );
    let newer = whole.replace("\"version\": 1", "\"version\": 2");
    for damaged in ["", "\0\0\0\0", &whole[..whole.len() / 2], &twice, &newer] {
        std::fs::write(&file, damaged).unwrap();
        for error in [
            store.lease(&owner(2), &ranges(&["10.0.0.0/24"]), &[], at(0)).unwrap_err(),
            store.release(&owner(1), at(0)).unwrap_err(),
            store.addresses(&owner(1)).unwrap_err(),
        ] {
            assert!(matches!(error, IpamError::Damaged { .. }) && error.to_string().contains("drain this node"), "{error}");
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), damaged);
    }
}

#[test]
fn what_is_remembered_of_a_large_range_is_bounded() {
    let mut records = super::records::Records { version: 1, ..Default::default() };
    let range = ranges(&["fd00::/64"]);
    for number in 0..6000 {
        records.tidy(number * 100, COOL_DOWN);
        records.lease(&owner(1), &range, &[], number * 100, COOL_DOWN).unwrap();
        records.release(&owner(1), number * 100);
    }
    assert!(records.freed.len() <= 4097, "{}", records.freed.len());
}

#[derive(Clone, Debug)]
enum Action {
    Lease(u32),
    Release(u32),
    ReleaseUnused(u32),
    Wait(u64),
}

fn action() -> impl Strategy<Value = (Action, Option<Step>)> {
    let action = prop_oneof![
        5 => (0..12_u32).prop_map(Action::Lease),
        3 => (0..12_u32).prop_map(Action::Release),
        1 => (0..12_u32).prop_map(Action::ReleaseUnused),
        2 => (0..40_u64).prop_map(Action::Wait),
    ];
    let crash = prop_oneof![
        6 => Just(None),
        1 => Just(Some(Step::Torn)),
        1 => Just(Some(Step::Written)),
        1 => Just(Some(Step::Synced)),
        1 => Just(Some(Step::Renamed)),
    ];
    (action, crash)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is done and wherever the process dies while it writes: no address has two holders, none is given
    /// again before it has rested, none is lost, and the store stays readable.
    #[test]
    fn no_address_is_handed_out_twice_over_crashes(actions in prop::collection::vec(action(), 1..60)) {
        let directory = tempfile::tempdir().unwrap();
        let ranges = ranges(&["10.0.0.0/29", "fd00::/125"]);
        let mut now = 0;
        let mut held: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
        let mut freed: BTreeMap<IpAddr, u64> = BTreeMap::new();
        for (action, crash) in actions {
            // Every call is a process of its own.
            let store = store(directory.path());
            store.crash.set(crash);
            match action {
                Action::Wait(seconds) => now += seconds,
                Action::Lease(number) => match store.lease(&owner(number), &ranges, &[], at(now)) {
                    Ok(addresses) => {
                        prop_assert_eq!(addresses.len(), 2);
                        if let Some(before) = held.get(&number) {
                            prop_assert_eq!(before, &addresses);
                        }
                        for (other, theirs) in &held {
                            prop_assert!(*other == number || theirs.iter().all(|address| !addresses.contains(address)));
                        }
                        if !held.contains_key(&number) {
                            for address in &addresses {
                                prop_assert!(freed.get(address).is_none_or(|freed| now - freed >= COOL_DOWN), "{} too early", address);
                            }
                        }
                        held.insert(number, addresses);
                    }
                    Err(IpamError::Busy(_)) => {
                        // Died while writing: it has the addresses or not, but nothing in between.
                        let addresses = store.addresses(&owner(number)).unwrap();
                        if !addresses.is_empty() {
                            prop_assert_eq!(addresses.len(), 2);
                            held.insert(number, addresses);
                        }
                    }
                    Err(IpamError::Full { taken, .. }) => prop_assert_eq!(taken, 5),
                    Err(IpamError::Resting { .. }) => prop_assert!(held.len() < 6),
                    Err(error) => prop_assert!(false, "{}", error),
                },
                Action::Release(number) | Action::ReleaseUnused(number) => {
                    let rests = matches!(action, Action::Release(_));
                    let answer = if rests { store.release(&owner(number), at(now)) } else { store.release_unused(&owner(number), at(now)) };
                    let gone = store.addresses(&owner(number)).unwrap().is_empty();
                    prop_assert!(gone || matches!(answer, Err(IpamError::Busy(_))));
                    if gone && let Some(addresses) = held.remove(&number) && rests {
                        freed.extend(addresses.into_iter().map(|address| (address, now)));
                    }
                }
            }
            // What a new process reads is what was promised.
            for (number, addresses) in &held {
                prop_assert_eq!(&store.addresses(&owner(*number)).unwrap(), addresses);
            }
            prop_assert_eq!(store.owners().unwrap().len(), held.len());
        }
    }
}
