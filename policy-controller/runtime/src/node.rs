//! What the pods of this node get: its pod ranges and the MTU of its uplink.

use crate::config::DEFAULT_MTU;
use crate::problem::Part;
use crate::state::{NodeRanges, State};
use ipnet::IpNet;
use palisade_cni::link::{LinkError, Netlink, Route};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// How often the uplink's MTU is looked at again.
const INTERVAL: Duration = Duration::from_secs(30);

/// Finds the node's ranges and MTU, and follows them, for ever.
pub async fn follow(state: Arc<State>) -> Infallible {
    let mut changes = state.changes();
    loop {
        changes.borrow_and_update();
        match find(&state).await {
            Ok(node) => {
                state.set_node(node);
                state.problems.clear(Part::Node);
            }
            Err(problem) => state.problems.set(Part::Node, problem),
        }
        let _ = tokio::time::timeout(INTERVAL, changes.changed()).await;
        // One look for a burst of changes.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn find(state: &State) -> Result<NodeRanges, String> {
    let ranges = if state.config.ranges.is_empty() { ranges_of_node(state)? } else { state.config.ranges.clone() };
    let mtu = match state.config.mtu {
        Some(mtu) => mtu,
        None => tokio::task::spawn_blocking(uplink_mtu)
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| format!("the uplink's MTU cannot be read: {error}; --mtu sets it"))?,
    };
    Ok(NodeRanges { ranges, mtu })
}

fn ranges_of_node(state: &State) -> Result<Vec<IpNet>, String> {
    let name = &state.config.node;
    let index = state.index();
    let Some(node) = index.node(name) else {
        return Err(format!("there is no Node {name} yet; the agent's node name (--node, NODE_NAME) must be that of its Node object"));
    };
    if node.pod_ranges.is_empty() {
        return Err(format!(
            "Node {name} has no spec.podCIDRs yet; the controller manager gives them (--allocate-node-cidrs), or --ranges does"
        ));
    }
    Ok(node.pod_ranges.clone())
}

/// The MTU of the interface with the best default route; [`DEFAULT_MTU`] without one.
fn uplink_mtu() -> Result<u32, LinkError> {
    let netlink = Netlink::open()?;
    let routes = netlink.routes()?;
    let Some(link) = uplink(&routes) else { return Ok(DEFAULT_MTU) };
    Ok(netlink.link_by_index(link)?.map_or(DEFAULT_MTU, |link| link.mtu))
}

/// The interface with the best default route; IPv4's before IPv6's.
fn uplink(routes: &[Route]) -> Option<u32> {
    let defaults = routes.iter().filter(|route| route.destination.prefix_len() == 0);
    defaults
        .filter_map(|route| Some((route.destination.addr().is_ipv6(), route.metric.unwrap_or(0), route.link?)))
        .min()
        .map(|(_, _, link)| link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uplink_has_the_best_default_route() {
        let default = |gateway: &str, link, metric| Route { metric, ..Route::default_via(gateway.parse().unwrap(), link) };
        let routes = [
            Route::direct("10.0.0.0/24".parse().unwrap(), 9),
            default("fd00::1", 2, Some(1)),
            default("10.0.0.1", 3, Some(100)),
            default("10.0.1.1", 4, None),
        ];
        assert_eq!(uplink(&routes), Some(4));
        assert_eq!(uplink(&routes[..2]), Some(2));
        assert_eq!(uplink(&routes[..1]), None);
    }
}
