//! What the pods of this node get: its pod ranges and their MTU.

use crate::config::Source;
use crate::problem::Part;
use crate::route;
use crate::state::{NodeRanges, State};
use ipnet::IpNet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked at again, changes or not.
const INTERVAL: Duration = Duration::from_secs(30);

/// Finds the node's ranges and MTU, and follows them, for ever.
pub async fn follow(state: Arc<State>) -> Infallible {
    let (mut changes, mut ways) = (state.changes(), state.network_changes());
    loop {
        changes.borrow_and_update();
        ways.borrow_and_update();
        match find(&state).await {
            Ok(node) => {
                tell(&state, node.mtu);
                state.set_node(node);
                state.problems.clear(Part::Node);
            }
            Err(problem) => state.problems.set(Part::Node, problem),
        }
        tokio::select! {
            _ = changes.changed() => {}
            _ = ways.changed() => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
        // One look for a burst of changes.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Logs another MTU than before. A pod's own interface cannot be reached from here without entering its network namespace, for which the agent
/// has no permission; and the host's end must not be shorter than the pod's, or it would drop in silence what the pod sends. So pods that run keep
/// theirs, and learn of a way that takes less from the ICMP errors of their node.
fn tell(state: &State, mtu: u32) {
    if let Some(before) = state.node_config().map(|config| config.mtu).filter(|before| *before != mtu) {
        let pods = state.published().endpoints.len();
        tracing::info!(before, now = mtu, pods, "the MTU of pods is another: new ones get it, those that run learn of it packet by packet");
    }
}

async fn find(state: &State) -> Result<NodeRanges, String> {
    let ranges = if state.config.ranges.is_empty() { ranges_of_node(state)? } else { state.config.ranges.clone() };
    let mtu = match (state.config.mtu, state.network()) {
        (Some(mtu), _) => mtu,
        (None, Some(network)) => network.mtu,
        (None, None) if matches!(state.config.source, Source::Kubernetes { .. }) || state.nodes_known() > 1 => {
            return Err("the ways to the other nodes, which the MTU of pods depends on, are not known yet".to_owned());
        }
        (None, None) => tokio::task::spawn_blocking(route::uplink_mtu)
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
