//! The overlay's device: made when the first range needs it, with its programs before anything passes, and removed after the last.

use super::RouteError;
use nix::errno::Errno;
use palisade_cni::link::{Link, LinkError, MacAddress, Netlink, Vxlan, sysctl};
use palisade_datapath_core::abi::OVERLAY_MAC;
use palisade_loader::{LoaderError, PinDir, Role, attach, detach, is_attached, pinned_links};

/// Name of the device.
pub const DEVICE: &str = "palisade_vxlan";

/// What attaches programs to the device. In tests there are none.
pub trait Programs {
    /// Makes sure that they are attached.
    ///
    /// # Errors
    /// They are not pinned yet, or the kernel refuses.
    fn attach(&self, index: u32) -> Result<(), LoaderError>;

    /// Removes what is left of them on devices that are gone; `kept` is the index of the one that is not.
    ///
    /// # Errors
    /// A pin cannot be removed.
    fn sweep(&self, kept: Option<u32>) -> Result<(), LoaderError>;
}

impl Programs for PinDir {
    fn attach(&self, index: u32) -> Result<(), LoaderError> {
        if !is_attached(self, Role::Overlay, DEVICE, index)? {
            attach(self, Role::Overlay, DEVICE, index)?;
        }
        Ok(())
    }

    fn sweep(&self, kept: Option<u32>) -> Result<(), LoaderError> {
        let pinned = pinned_links(self, Role::Overlay)?;
        pinned.into_iter().filter(|index| Some(*index) != kept).try_for_each(|index| detach(self, Role::Overlay, index))
    }
}

/// The device as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its UDP port.
    pub port: u16,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether pods of IPv6 are behind it.
    pub ipv6: bool,
}

/// The device, where there is one.
///
/// # Errors
/// [`RouteError::Foreign`]: something else has its name.
pub fn find(netlink: &Netlink) -> Result<Option<Link>, RouteError> {
    match netlink.link(DEVICE)? {
        Some(link) if link.vxlan.is_none() || link.mac != Some(MacAddress(OVERLAY_MAC)) => {
            Err(RouteError::Foreign { kind: link.kind.unwrap_or_else(|| "hardware".to_owned()) })
        }
        found => Ok(found),
    }
}

/// Makes the device, or what of it is different, and returns its index. Its programs are attached before it is up.
///
/// # Errors
/// Something else has its name or its port; the programs cannot be attached; the kernel refuses.
pub fn ensure(netlink: &Netlink, wanted: &Wanted, programs: &dyn Programs) -> Result<u32, RouteError> {
    let vxlan = Vxlan { name: DEVICE, mac: MacAddress(OVERLAY_MAC), port: wanted.port, mtu: wanted.mtu };
    let mut link = match find(netlink)? {
        Some(link) if link.vxlan == Some(vxlan.mode()) => link,
        Some(other) => {
            tracing::info!(device = DEVICE, was = ?other.vxlan, "made anew: its port or mode is another");
            netlink.delete_link(other.index)?;
            netlink.create_vxlan(&vxlan)?
        }
        None => {
            tracing::info!(device = DEVICE, port = wanted.port, mtu = wanted.mtu, "the overlay's device is made");
            netlink.create_vxlan(&vxlan)?
        }
    };
    programs.attach(link.index)?;
    if link.mtu != wanted.mtu {
        netlink.set_mtu(link.index, wanted.mtu)?;
        tracing::info!(device = DEVICE, from = link.mtu, to = wanted.mtu, "the overlay's MTU follows the way's");
    }
    if !link.up {
        settle(netlink, link.index)?;
        netlink.set_up(link.index).map_err(|error| match error.errno() {
            Some(Errno::EADDRINUSE) => RouteError::PortTaken { port: wanted.port },
            _ => error.into(),
        })?;
        link.up = true;
    }
    // Where IPv6 is off by default, the routes would be refused. Whether an agent in a container may write it is told by `without_ipv6`.
    if wanted.ipv6
        && let Err(error) = sysctl::write(&ipv6_setting(), "0")
    {
        tracing::debug!(%error, "left as it is");
    }
    Ok(link.index)
}

/// Removes the device; fine where there is none. What has its name and is not ours stays.
///
/// # Errors
/// The kernel refuses; a pin cannot be removed.
pub fn remove(netlink: &Netlink, programs: &dyn Programs) -> Result<(), RouteError> {
    if let Ok(Some(link)) = find(netlink) {
        netlink.delete_link(link.index)?;
        tracing::info!(device = DEVICE, "the overlay's device is removed: nothing goes by it any more");
    }
    Ok(programs.sweep(None)?)
}

/// What others would have to say on the device, turned off before it is up.
fn settle(netlink: &Netlink, index: u32) -> Result<(), LinkError> {
    netlink.make_no_addresses(index)?;
    // What other nodes themselves send comes from addresses to which the way back is not this device. An agent in a container cannot write it;
    // whether it bites is told by `reverse_path`.
    let filter = format!("net/ipv4/conf/{DEVICE}/rp_filter");
    if let Err(error) = sysctl::write(&filter, "0") {
        tracing::debug!(%error, "left as it is");
    }
    Ok(())
}

fn ipv6_setting() -> String {
    format!("net/ipv6/conf/{DEVICE}/disable_ipv6")
}

/// Why the device takes no IPv6: it was not given any, for a link below 1280 bytes has none, or it is turned off.
///
/// # Errors
/// The setting cannot be read.
pub fn without_ipv6() -> Result<Option<String>, LinkError> {
    Ok(match sysctl::read_if_any(&ipv6_setting())?.as_deref() {
        Some("0") => None,
        Some(_) => Some(format!("net.ipv6.conf.{DEVICE}.disable_ipv6 cannot be set to 0: pods of IPv6 are not reached by the overlay")),
        None => Some(format!("{DEVICE} has no IPv6: pods of IPv6 are not reached by the overlay")),
    })
}

/// What is wrong with the check of the way back (`rp_filter`) on the device: the kernel takes the larger of two settings.
///
/// # Errors
/// A setting cannot be read.
pub fn reverse_path() -> Result<Option<String>, LinkError> {
    let read = |of: &str| -> Result<u8, LinkError> {
        let value = sysctl::read_if_any(&format!("net/ipv4/conf/{of}/rp_filter"))?;
        Ok(value.and_then(|value| value.parse().ok()).unwrap_or(0))
    };
    let (all, own) = (read("all")?, read(DEVICE)?);
    let of = if all == 1 { "all" } else { DEVICE };
    Ok((all.max(own) == 1).then(|| {
        format!(
            "net.ipv4.conf.{of}.rp_filter=1 drops what other nodes themselves (not their pods) send to pods through {DEVICE}: set it to 0 or 2"
        )
    }))
}
