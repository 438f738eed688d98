//! Forwarding, which every node with pods must do.

use crate::problem::{Part, Problems};
use crate::state::State;
use palisade_cni::link::{LinkError, Netlink, sysctl};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// How often the settings are looked at: somebody else may write them, or make them writable.
const INTERVAL: Duration = Duration::from_secs(30);

/// Keeps forwarding on, for ever.
pub async fn keep_forwarding(state: Arc<State>) -> Infallible {
    loop {
        look(&state.problems);
        tokio::time::sleep(INTERVAL).await;
    }
}

fn look(problems: &Problems) {
    match enable_forwarding() {
        Ok(()) => problems.clear(Part::Forwarding),
        Err(error) => problems.set(Part::Forwarding, format!("packets are not forwarded: {error}")),
    }
}

/// Lets this node forward packets.
///
/// # Errors
/// A setting that cannot be read or written, for example in a container whose `/proc/sys` is read-only.
pub fn enable_forwarding() -> Result<(), LinkError> {
    sysctl::write("net/ipv4/ip_forward", "1")?;
    if sysctl::read_if_any("net/ipv6/conf/all/forwarding")?.as_deref() != Some("0") {
        return Ok(());
    }
    // A router ignores router advertisements, by which the node may have its own default route, unless told otherwise.
    for link in Netlink::open()?.links()? {
        let name = format!("net/ipv6/conf/{}/accept_ra", link.name);
        if sysctl::read_if_any(&name)?.as_deref() == Some("1") {
            sysctl::write(&name, "2")?;
        }
    }
    sysctl::write("net/ipv6/conf/all/forwarding", "1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_cni::link::Namespace;

    /// Needs root, as all tests with network namespaces do.
    #[test]
    fn forwarding_that_somebody_turns_off_is_turned_on_again_and_its_problem_is_over() {
        let settings = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];
        let namespace = Namespace::create().unwrap();
        let read = || namespace.enter(|| settings.map(|name| sysctl::read(name).unwrap())).unwrap();
        let problems = Problems::default();
        for _ in 0..2 {
            namespace.enter(|| settings.iter().for_each(|name| sysctl::write(name, "0").unwrap())).unwrap();
            problems.set(Part::Forwarding, "it could not be written");
            namespace.enter(|| look(&problems)).unwrap();
            assert_eq!(read(), ["1", "1"]);
            assert_eq!(problems.of(Part::Forwarding), None);
        }
    }
}
