use super::call::Call;
use super::delegate::Delegate;
use super::undo::Undo;
use super::{reconcile, wire};
use crate::ipam::IpamError;
use crate::link::everything;
use crate::spec::{CniResult, Code, Demand, Error, Route};
use ipnet::IpNet;
use palisade_protocol::NodeConfig;
use serde_json::{Map, Value};
use std::cell::Cell;
use std::net::IpAddr;
use std::time::SystemTime;

/// What an attachment is given, by us or by the IPAM plugin that the configuration names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Given {
    /// At most one per family, all in the node's ranges.
    pub(super) addresses: Vec<IpAddr>,
    /// Where the pod's packets may go; all of it by the one next hop that a pod has.
    pub(super) routes: Vec<IpNet>,
    /// What else the result is to say: `dns`, keys that we do not know.
    pub(super) others: Map<String, Value>,
}

/// Gives an attachment its addresses. `undo` is told how to take them back before there are any: an IPAM plugin that failed is asked
/// to DEL, too. As long as they are not `used`, they are taken back without a rest: pods that wait and try again, each every few
/// seconds, would have the whole range rest.
pub(super) fn give<'a>(
    call: &'a Call,
    demand: &Demand,
    node: &NodeConfig,
    used: &'a Cell<bool>,
    undo: &mut Undo<'a>,
) -> Result<Given, Error> {
    let ranges = wire::usable_ranges(&node.ranges)?;
    let store = call.store();
    reconcile::at_start(call)?;
    // Of an ADD that was killed, perhaps, with its links up.
    used.set(!store.addresses(&call.owner())?.is_empty());
    let Some(delegate) = &call.delegate else {
        let lease = || store.lease(&call.owner(), &ranges, &demand.addresses, SystemTime::now());
        let addresses = match lease() {
            // Perhaps by one whose DEL never came.
            Err(IpamError::Full { .. } | IpamError::Taken { .. }) if reconcile::free(call)? => lease()?,
            other => other?,
        };
        undo.remember("the addresses", || release(call, used.get()));
        return Ok(Given {
            routes: addresses.iter().map(|address| everything(address.is_ipv6())).collect(),
            addresses,
            others: Map::new(),
        });
    };
    delegate.require()?;
    undo.remember("what the IPAM plugin gave", || delegate.del(&call.owner()));
    let result = match delegate.add() {
        // Perhaps for want of an address that one has whose DEL never came. A further ADD needs a DEL before it.
        Err(refused) if reconcile::free(call)? => delegate.del(&call.owner()).map_err(|_| refused).and_then(|()| delegate.add())?,
        other => other?,
    };
    let given = usable(delegate, result, &ranges)?;
    require_demanded(delegate, demand, &given)?;
    undo.remember("the addresses", || release(call, used.get()));
    let adopt = || store.adopt(&call.owner(), &given.addresses, true, SystemTime::now());
    let mut adopted = adopt();
    // The plugin has forgotten a holder that we have not, as when its own files were lost.
    while let Err(IpamError::Taken { holder, .. }) = &adopted
        && reconcile::free_given_away(call, holder)?
    {
        adopted = adopt();
    }
    adopted?;
    Ok(given)
}

fn release(call: &Call, used: bool) -> Result<(), Error> {
    let (store, owner, now) = (call.store(), call.owner(), SystemTime::now());
    if used { store.release(&owner, now) } else { store.release_unused(&owner, now) }?;
    Ok(())
}

/// Whoever asks for an address relies on it: another one is not what was asked for.
fn require_demanded(delegate: &Delegate, demand: &Demand, given: &Given) -> Result<(), Error> {
    let Some(missing) = demand.addresses.iter().find(|address| !given.addresses.contains(address)) else { return Ok(()) };
    let gave: Vec<String> = given.addresses.iter().map(ToString::to_string).collect();
    let message = format!(
        "{missing} is asked for (\"ips\", or IP in CNI_ARGS), but it gave {}: name one in \"ipam\" that does as it is asked, such as static, or ask for no address",
        gave.join(" and ")
    );
    Err(delegate.error(Code::InvalidConfig, message))
}

/// What of a result can be made true. A pod has one address per family, which every node routes to the node that the range belongs
/// to, and one next hop per family, whatever its number.
fn usable(delegate: &Delegate, result: CniResult, ranges: &[IpNet]) -> Result<Given, Error> {
    let refused = |message: String| Err(delegate.error(Code::InvalidConfig, message));
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in result.ips.iter().map(|ip| ip.address.addr()) {
        if let Some(other) = addresses.iter().find(|other| other.is_ipv4() == address.is_ipv4()) {
            return refused(format!("it gave both {other} and {address}, but a pod has one address per family: let it give one of each"));
        }
        if !ranges.iter().any(|range| range.contains(&address)) {
            let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
            return refused(format!(
                "it gave {address}, which no other node would send here: let it give addresses of this node's pod ranges, {}",
                ranges.join(", ")
            ));
        }
        addresses.push(address);
    }
    if addresses.is_empty() {
        return refused("it gave no address".to_owned());
    }
    let mut routes: Vec<IpNet> = Vec::new();
    for Route { dst, gw, unknown } in &result.routes {
        if let Some((key, value)) = unknown.iter().next() {
            let message = format!("its route to {dst} has \"{key}\": {value}, which is not supported");
            return Err(delegate.error(Code::UnsupportedField, message));
        }
        if let Some(gw) = gw.filter(|gw| !result.ips.iter().any(|ip| ip.gateway == Some(*gw))) {
            return refused(format!("its route to {dst} goes by {gw}, but a pod has one next hop, the node: leave \"gw\" out"));
        }
        if !routes.contains(&dst.trunc()) {
            routes.push(dst.trunc());
        }
    }
    for ipv6 in [false, true] {
        let same_family = |route: &IpNet| route.addr().is_ipv6() == ipv6;
        if !addresses.iter().any(|address| address.is_ipv6() == ipv6) {
            routes.retain(|route| !same_family(route));
        } else if !routes.iter().any(same_family) {
            // An address that leads nowhere is of no use to a pod.
            routes.push(everything(ipv6));
        }
    }
    let mut others = result.unknown;
    if others.get("dns").and_then(Value::as_object).is_some_and(Map::is_empty) {
        others.remove("dns");
    }
    Ok(Given { addresses, routes, others })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Environment, NetworkConfig};
    use serde_json::json;

    fn given(result: Value) -> Result<Given, Error> {
        let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "palisade-cni", "ipam": {"type": "theirs"}}).to_string();
        let config = NetworkConfig::parse(config.as_bytes(), "/run/palisade").unwrap();
        let delegate = Delegate::of(&config, &Environment::default(), b"").unwrap();
        usable(&delegate, CniResult::read(result).unwrap(), &["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()])
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn addresses_routes_and_dns_of_an_ipam_plugin_are_used() {
        let result = json!({
            "cniVersion": "1.0.0",
            "ips": [{"address": "10.0.0.7/24", "gateway": "10.0.0.1"}, {"address": "fd00::7/64"}],
            "routes": [{"dst": "192.0.2.9/24"}, {"dst": "198.51.100.0/24", "gw": "10.0.0.1"}],
            "dns": {"nameservers": ["192.0.2.53"]},
        });
        let given = given(result).unwrap();
        assert_eq!(given.addresses, ["10.0.0.7".parse::<IpAddr>().unwrap(), "fd00::7".parse().unwrap()]);
        assert_eq!(given.routes, nets(&["192.0.2.0/24", "198.51.100.0/24", "::/0"]), "a family without a route gets the default one");
        assert_eq!(Value::Object(given.others), json!({"dns": {"nameservers": ["192.0.2.53"]}}));
    }

    #[test]
    fn a_route_of_a_family_without_address_and_an_empty_dns_say_nothing() {
        let result = json!({"ips": [{"address": "10.0.0.7/24"}], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}], "dns": {}});
        let given = given(result).unwrap();
        assert_eq!((given.routes, given.others), (nets(&["0.0.0.0/0"]), Map::new()));
    }

    #[test]
    fn what_cannot_be_made_true_is_refused_with_what_to_do() {
        let ip = |address: &str| json!([{"address": address, "gateway": "10.0.0.1"}]);
        for (result, code, said) in [
            (json!({}), Code::InvalidConfig, "no address"),
            (json!({"ips": ip("10.9.0.7/24")}), Code::InvalidConfig, "10.0.0.0/24, fd00::/64"),
            (json!({"ips": [{"address": "10.0.0.7/24"}, {"address": "10.0.0.8/24"}]}), Code::InvalidConfig, "one address per family"),
            (json!({"ips": ip("10.0.0.7/24"), "routes": [{"dst": "192.0.2.0/24", "gw": "10.0.0.9"}]}), Code::InvalidConfig, "10.0.0.9"),
            (json!({"ips": ip("10.0.0.7/24"), "routes": [{"dst": "192.0.2.0/24", "table": 7}]}), Code::UnsupportedField, "\"table\": 7"),
        ] {
            let error = given(result).unwrap_err();
            assert_eq!(error.code, code);
            assert!(error.message.contains(said) && error.message.contains("theirs"), "{}", error.message);
        }
    }
}
