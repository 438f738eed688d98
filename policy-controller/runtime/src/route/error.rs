//! What can go wrong with the ways to other nodes.

use super::device::DEVICE;
use palisade_cni::link::LinkError;
use palisade_loader::LoaderError;

/// Why the ways to other nodes are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The kernel refused a link, a route or a setting.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The overlay's programs are not attached.
    #[error("the overlay's programs cannot be attached: {0}")]
    Loader(#[from] LoaderError),
    /// Something else has the name of the overlay's device.
    #[error(
        "there is an interface {} ({kind}) that is not ours: remove it, or give it another name; pods that are reached by the overlay are not reached until then",
        DEVICE
    )]
    Foreign {
        /// What it is.
        kind: String,
    },
    /// Something else listens on the overlay's port.
    #[error(
        "UDP port {port} is taken, by another VXLAN device or by a program: --overlay-port takes another one, which must be the same on all nodes"
    )]
    PortTaken {
        /// The port.
        port: u16,
    },
}
