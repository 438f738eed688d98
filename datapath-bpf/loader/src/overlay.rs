/// What all outer packets of the overlay have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlay {
    port: u16,
    network: u32,
}

impl Overlay {
    /// The overlay whose device listens on a UDP port, with a VXLAN network identifier. `None` for port zero, and for an
    /// identifier of more than 24 bits.
    pub const fn new(port: u16, network: u32) -> Option<Self> {
        if port == 0 || network >> 24 != 0 { None } else { Some(Self { port, network }) }
    }

    /// The UDP port.
    pub const fn port(self) -> u16 {
        self.port
    }

    /// The VXLAN network identifier.
    pub const fn network(self) -> u32 {
        self.network
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_has_a_port_and_an_identifier_of_24_bits() {
        assert_eq!(Overlay::new(0, 1), None);
        assert_eq!(Overlay::new(4789, 1 << 24), None);
        let overlay = Overlay::new(4789, (1 << 24) - 1).unwrap();
        assert_eq!((overlay.port(), overlay.network()), (4789, 0xff_ffff));
    }
}
