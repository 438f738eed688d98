//! The checksum of SCTP (RFC 9260, appendix A) after a change of the packet's first word, its ports, without a look at the rest.
//!
//! A CRC is linear: that of a packet with some bits flipped is its old one, with the CRC of those bits alone flipped into it.

/// The polynomial, lowest power first.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// A product modulo the polynomial; the highest power stands in the lowest bit.
const fn multiply(one: u32, other: u32) -> u32 {
    let (mut product, mut shifted, mut bit) = (0, other, 0);
    while bit < 32 {
        if one >> (31 - bit) & 1 != 0 {
            product ^= shifted;
        }
        shifted = if shifted & 1 != 0 { (shifted >> 1) ^ POLYNOMIAL } else { shifted >> 1 };
        bit += 1;
    }
    product
}

/// For each k, and for each four bits of a CRC, what they become when 2^k bytes that are zero are appended.
static APPENDED: [[[u32; 16]; 8]; 16] = {
    let mut tables = [[[0; 16]; 8]; 16];
    // x to the power of 8 times 2^k.
    let (mut power, mut k) = (1 << 23, 0);
    while k < 16 {
        let mut part = 0;
        while part < 8 {
            let mut bits = 0;
            while bits < 16 {
                tables[k][part][bits] = multiply((bits as u32) << (4 * part), power);
                bits += 1;
            }
            part += 1;
        }
        power = multiply(power, power);
        k += 1;
    }
    tables
};

/// A CRC after 2^k bytes that are zero. Without a branch: each one doubles what the kernel's verifier has to walk.
#[inline(always)]
fn append(crc: u32, k: usize) -> u32 {
    let (mut appended, mut part) = (0, 0);
    while part < 8 {
        appended ^= APPENDED[k][part][(crc >> (4 * part)) as usize & 15];
        part += 1;
    }
    appended
}

/// The checksum, as it stands in the packet, of an SCTP packet of `length` bytes (at least 12, at most 65 535) whose first four bytes
/// were `old` and are `new`, and whose checksum was `checksum`.
#[inline(always)]
pub fn replaced(checksum: [u8; 4], old: [u8; 4], new: [u8; 4], length: u32) -> [u8; 4] {
    let flipped = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
    // The CRC of four bytes is what they would be, had they four that are zero behind them.
    let mut change = append(flipped, 2);
    let behind = length - 4;
    let mut k = 0;
    while k < 16 {
        let appended = append(change, k);
        let wanted = 0u32.wrapping_sub((behind >> k) & 1);
        change = (appended & wanted) | (change & !wanted);
        k += 1;
    }
    (u32::from_le_bytes(checksum) ^ change).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit by bit, as the specification has it.
    fn plain(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            }
        }
        !crc
    }

    #[test]
    fn the_plain_reading_gives_the_check_value() {
        assert_eq!(plain(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_changed_port_changes_the_checksum_as_if_it_were_made_anew() {
        for length in [12, 13, 16, 31, 100, 1_500, 9_001, 65_535] {
            let mut packet: [u8; 65_535] = core::array::from_fn(|at| (at * 7 + at / 251) as u8);
            let packet = &mut packet[..length];
            packet[8..12].fill(0);
            let before = plain(packet).to_le_bytes();
            let old = [packet[0], packet[1], packet[2], packet[3]];
            for new in [[0, 80, 1, 187], [255; 4], old] {
                packet[..4].copy_from_slice(&new);
                assert_eq!(replaced(before, old, new, length as u32), plain(packet).to_le_bytes(), "{length} {new:?}");
            }
        }
    }
}
