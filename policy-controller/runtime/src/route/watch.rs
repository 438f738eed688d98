//! What tells that somebody else has changed links, addresses or routes.

use super::{INTERVAL, RETRY};
use palisade_cni::command::is_host_interface;
use palisade_cni::link::{Change, ROUTE_PROTOCOL, Watch};
use std::future::pending;
use std::net::IpAddr;
use tokio::io::unix::AsyncFd;

/// What tells of links, addresses and routes that others change; without it they are looked at now and then.
pub fn watch() -> Option<AsyncFd<Watch>> {
    // As in `event`: what replaces it is `unsafe`, and a `Watch` owns its descriptor.
    #[expect(deprecated, reason = "sound here, and `unsafe` has no place in this crate")]
    let register = AsyncFd::new;
    let opened = Watch::open().map_err(|error| error.to_string());
    let watch = opened.and_then(|watch| register(watch).map_err(|error| error.to_string()));
    watch.inspect_err(|error| tracing::warn!(error, "changes of links, addresses and routes are noticed only every {INTERVAL:?}")).ok()
}

/// Ends when somebody has changed a link, an address or a route that the ways to other nodes may depend on.
pub async fn touched(watch: Option<&AsyncFd<Watch>>) {
    let Some(watch) = watch else { return pending().await };
    loop {
        let Ok(mut ready) = watch.readable().await else { return pending().await };
        let changes = ready.get_inner().changes();
        ready.clear_ready();
        match changes {
            Ok(changes) if changes.iter().any(matters) => return,
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "changes of links, addresses and routes cannot be read");
                return tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Whether a change may be one of the way to other nodes. Pods come and go all the time, and what is written here is known here.
fn matters(change: &Change) -> bool {
    match change {
        Change::Link(link) | Change::LinkGone(link) => !is_host_interface(&link.name),
        // Where this node sends from, once the search for duplicates has ended, which no route tells of. Nobody sends to other nodes from one of a link.
        Change::Address(address) => !is_link_local(address.address.addr()),
        Change::Route(route) => route.protocol != ROUTE_PROTOCOL,
        Change::RouteGone(route) => route.protocol != ROUTE_PROTOCOL || route.destination.prefix_len() < route.destination.max_prefix_len(),
        Change::Anything => true,
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_cni::link::{InterfaceAddress, Route};

    #[test]
    fn what_pods_do_all_the_time_does_not_matter() {
        let route = |text: &str| Route::direct(text.parse().unwrap(), 7);
        assert!(!matters(&Change::RouteGone(route("10.1.0.5/32"))) && !matters(&Change::Route(route("10.1.0.5/32"))));
        assert!(matters(&Change::RouteGone(route("10.2.0.0/24"))), "somebody removed one of ours");
        assert!(matters(&Change::Route(Route { protocol: 4, ..route("10.2.0.0/24") })));
        assert!(matters(&Change::Anything));
        let address = |text: &str| Change::Address(InterfaceAddress { link: 7, address: text.parse().unwrap(), tentative: false });
        assert!(!matters(&address("fe80::1/64")) && !matters(&address("169.254.1.1/32")));
        assert!(matters(&address("192.0.2.1/24")) && matters(&address("2001:db8::1/64")));
    }
}
