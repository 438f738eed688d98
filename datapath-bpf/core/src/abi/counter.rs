/// Packets and bytes with one outcome, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct Counter {
    /// Number of packets.
    pub packets: u64,
    /// Number of bytes, link-layer header included.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Counter>() == 16);

macro_rules! outcomes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal $name:literal $passes:literal,)*) => {
        /// What became of a packet: each its own counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Outcome {
            $($(#[$doc])* $variant = $number,)*
        }

        impl Outcome {
            /// Every outcome, in the order of their numbers.
            pub const ALL: &[Outcome] = &[$(Outcome::$variant,)*];

            /// The outcome of a number.
            #[inline(always)]
            pub const fn from_byte(byte: u8) -> Option<Self> {
                match byte { $($number => Some(Self::$variant),)* _ => None }
            }

            /// The name that metrics, events and the CLI show.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Whether the packet went on its way.
            #[inline(always)]
            pub const fn passes(self) -> bool {
                match self { $(Self::$variant => $passes,)* }
            }
        }
    };
}

outcomes! {
    /// First packet of a flow that policy allows, or one judged again after a change.
    AllowedNew = 0 "allowed-new" true,
    /// Packet of an established flow, from the end that opened it.
    AllowedEstablished = 1 "allowed-established" true,
    /// Packet of an established flow, from the other end.
    AllowedReply = 2 "allowed-reply" true,
    /// ICMP error that quotes a packet of an allowed flow.
    AllowedRelated = 3 "allowed-related" true,
    /// ARP between the pod and its link.
    Arp = 4 "arp" true,
    /// IPv6 neighbour, router or multicast-listener message between the pod and its link.
    NeighbourDiscovery = 5 "neighbour-discovery" true,
    /// A rule of the subject's egress policy denies.
    EgressDenied = 6 "egress-denied" false,
    /// No rule of the policies that isolate the subject's egress allows.
    EgressDefaultDenied = 7 "egress-default-denied" false,
    /// A rule of the subject's ingress policy denies.
    IngressDenied = 8 "ingress-denied" false,
    /// No rule of the policies that isolate the subject's ingress allows.
    IngressDefaultDenied = 9 "ingress-default-denied" false,
    /// The subject has no rows, or a row has no meaning: an error of the agent, closed.
    PolicyMissing = 10 "policy-missing" false,
    /// The interface belongs to no realised endpoint yet, or no more.
    EndpointMissing = 11 "endpoint-missing" false,
    /// A header ends before its last byte.
    Truncated = 12 "truncated" false,
    /// The version or a length of the IP header contradicts the packet.
    HeaderInvalid = 13 "header-invalid" false,
    /// The source address is not the endpoint's own, or, to a pod, one that cannot come from there.
    SourceAddressForeign = 14 "source-address-foreign" false,
    /// The source hardware address is not the endpoint's own.
    SourceMacForeign = 15 "source-mac-foreign" false,
    /// The frame is neither IP nor ARP.
    EtherTypeUnknown = 16 "ether-type-unknown" false,
    /// The transport protocol is none that policy can judge.
    ProtocolUnknown = 17 "protocol-unknown" false,
    /// More IPv6 extension headers than the bound of the walk.
    ExtensionHeaders = 18 "extension-headers" false,
    /// The first fragment is too short to hold its ports.
    FragmentShort = 19 "fragment-short" false,
    /// A later fragment whose first was not seen.
    FragmentUnknown = 20 "fragment-unknown" false,
    /// An ICMP error that quotes no packet of an allowed flow, or an echo reply that nobody asked for.
    IcmpUnrelated = 21 "icmp-unrelated" false,
    /// An ICMP message that is neither echo nor an error about a flow.
    IcmpTypeUnknown = 22 "icmp-type-unknown" false,
    /// An ARP packet that is malformed or speaks for a foreign address.
    ArpInvalid = 23 "arp-invalid" false,
    /// A neighbour-discovery message with a wrong hop limit or a foreign source.
    NeighbourDiscoveryInvalid = 24 "neighbour-discovery-invalid" false,
    /// Rewriting the frame failed.
    RewriteFailed = 25 "rewrite-failed" false,
    /// To a pod: the destination is not the pod's address. From a pod: the node by the address of the pod's link, or by a loopback address.
    /// From the overlay: neither this node nor a pod of it.
    DestinationForeign = 26 "destination-foreign" false,
    /// As `AllowedNew`, and policies in audit mode would have denied it.
    AllowedAudited = 27 "allowed-audited" true,
    /// A service that no backend stands behind: the sender is told that nobody listens.
    ServiceRefused = 28 "service-refused" false,
    /// A service none of whose backends may be reached from this node.
    ServiceDropped = 29 "service-dropped" false,
    /// A service whose rows are not all there: an error of the agent, closed.
    ServiceMissing = 30 "service-missing" false,
    /// From the overlay: the outer source is no other node, or the inner source is nobody of that node.
    OverlayForged = 31 "overlay-forged" false,
    /// From a pod: to the overlay's own port, at anything but a pod.
    OverlayPort = 32 "overlay-port" false,
    /// To the overlay: the destination belongs to no other node.
    TunnelMissing = 33 "tunnel-missing" false,
    /// From a pod: longer than the way to another node takes, which is reached by the overlay; the sender is told how long it may
    /// be. Counted beside what policy has said of it.
    PacketTooLong = 34 "packet-too-long" false,
}

impl Outcome {
    /// Rows of the `COUNTERS` map: more than there are outcomes, so that a later version, which knows more of them, finds a map of the same size.
    pub const ROWS: u32 = 64;
}
