//! The Internet checksum (RFC 1071), and SCTP's CRC32c (RFC 9260 section 6.8 and appendix A).

use crate::addr::Ip;
use crate::tuple::Protocol;

/// A running one's complement sum over 16-bit words, not complemented.
///
/// Words are added as big-endian 32-bit numbers into 64 bits. No carry is lost before [`Sum::fold`]: 64 KiB are at most 2^14
/// words.
#[derive(Clone, Copy, Default)]
pub(super) struct Sum(u64);

impl Sum {
    /// Adds bytes. An odd last byte counts as the upper half of a word. Only the last piece may be odd.
    pub(super) fn bytes(self, bytes: &[u8]) -> Sum {
        let (words, rest) = bytes.as_chunks::<4>();
        let mut sum = words.iter().fold(self.0, |sum, word| sum + u64::from(u32::from_be_bytes(*word)));
        let mut last = [0u8; 4];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        sum += u64::from(u32::from_be_bytes(last));
        Sum(sum)
    }

    /// Adds the pseudo-header of TCP, UDP (RFC 9293 section 3.1, RFC 768) and of everything over IPv6 (RFC 8200 section
    /// 8.1).
    pub(super) fn pseudo(self, src: Ip, dst: Ip, protocol: Protocol, length: usize) -> Sum {
        let addresses = match (src, dst) {
            (Ip::V4(src), Ip::V4(dst)) => self.bytes(&src).bytes(&dst),
            (Ip::V6(src), Ip::V6(dst)) => self.bytes(&src).bytes(&dst),
            // Unreachable: both come from one header.
            _ => self,
        };
        Sum(addresses.0 + u64::from(protocol.0) + length as u64)
    }

    /// The sum in 16 bits. It is 0xffff over bytes that contain their correct checksum.
    pub(super) fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        // `sum` is at most 0xffff here.
        sum as u16
    }

    /// Whether the bytes contain their correct checksum.
    pub(super) fn is_valid(self) -> bool {
        self.fold() == 0xffff
    }

    /// The checksum to write into the header.
    pub(super) fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// The place of the checksum in an SCTP packet.
const SCTP_CHECKSUM: std::ops::Range<usize> = 8..12;

/// The checksum of an SCTP packet in wire order: over the whole packet, with zeros for the checksum itself.
fn sctp(packet: &[u8]) -> [u8; 4] {
    let (before, after) =
        (packet.get(..SCTP_CHECKSUM.start).unwrap_or_default(), packet.get(SCTP_CHECKSUM.end..).unwrap_or_default());
    let sum = crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]);
    crc32c::crc32c_append(sum, after).to_le_bytes()
}

/// Whether an SCTP packet has its correct checksum.
pub(super) fn sctp_is_valid(packet: &[u8]) -> bool {
    packet.get(SCTP_CHECKSUM) == Some(&sctp(packet))
}

/// Writes the correct checksum into an SCTP packet, which begins with its common header. Shorter packets are left alone.
pub fn complete_sctp(packet: &mut [u8]) {
    let sum = sctp(packet);
    if let Some(field) = packet.get_mut(SCTP_CHECKSUM) {
        field.copy_from_slice(&sum);
    }
}
