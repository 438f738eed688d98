use crate::ipam::Owner;
use crate::link::MacAddress;

/// Name of the host's end of an attachment's veth: `pal` and 11 hexadecimal digits. The same in every call, so that
/// DEL finds it when nothing else is left to say so.
pub fn host_interface(owner: &Owner) -> String {
    format!("pal{:011x}", hash(owner, 0) & 0xfff_ffff_ffff)
}

/// Whether an interface of this name may be the host's end of an attachment's veth.
pub fn is_host_interface(name: &str) -> bool {
    name.strip_prefix("pal").is_some_and(|digits| digits.len() == 11 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// Ethernet address of the host's end.
pub(super) fn host_mac(owner: &Owner) -> MacAddress {
    MacAddress::local(hash(owner, 1))
}

/// Ethernet address of the pod's end.
pub(super) fn pod_mac(owner: &Owner) -> MacAddress {
    MacAddress::local(hash(owner, 2))
}

/// FNV-1a with a finish that lets every bit depend on every other. Not the standard library's hash, because a DEL may
/// be of another build than its ADD.
fn hash(owner: &Owner, salt: u8) -> u64 {
    let parts = [owner.network.as_bytes(), owner.attachment.container_id.as_bytes(), owner.attachment.interface.as_bytes(), &[salt]];
    // None of the parts contains a zero byte.
    let bytes = parts.join(&0);
    let mut hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::Attachment;
    use std::collections::BTreeSet;

    fn owner(network: &str, container_id: &str, interface: &str) -> Owner {
        Owner { network: network.into(), attachment: Attachment { container_id: container_id.into(), interface: interface.into() } }
    }

    #[test]
    fn a_name_is_the_same_in_every_build_and_fits_the_kernel() {
        let owner = owner("net", "0123456789abcdef", "eth0");
        assert_eq!(host_interface(&owner), "pal06d4a1cd542");
        assert!(is_host_interface("pal06d4a1cd542") && !is_host_interface("palisade_vxlan") && !is_host_interface("eth0"));
        assert_eq!((host_mac(&owner), pod_mac(&owner)), (host_mac(&owner), pod_mac(&owner)));
        assert_ne!(host_mac(&owner), pod_mac(&owner));
    }

    #[test]
    fn different_attachments_have_different_names() {
        let mut names = BTreeSet::new();
        for network in ["a", "b"] {
            for number in 0..1000 {
                for interface in ["eth0", "eth1"] {
                    let name = host_interface(&owner(network, &format!("c{number}"), interface));
                    assert_eq!(name.len(), 14);
                    assert!(names.insert(name));
                }
            }
        }
        assert_ne!(host_interface(&owner("ab", "c", "d")), host_interface(&owner("a", "bc", "d")));
    }
}
