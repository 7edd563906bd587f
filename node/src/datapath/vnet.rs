//! `virtio_net_hdr`: what the kernel and we tell each other about a packet's checksum and segmentation
//! (Virtual I/O Device specification 1.2, section 5.1.6; here always the 10-byte legacy form in native byte order).

use palisade_engine::Protocol;
use palisade_engine::parse::Checksum;

/// The length of the header.
pub(crate) const LENGTH: usize = 10;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
/// TCP over IPv4, in segments.
pub(crate) const GSO_TCPV4: u8 = 1;
/// TCP over IPv6, in segments.
pub(crate) const GSO_TCPV6: u8 = 4;
/// UDP, in datagrams of equal size.
pub(crate) const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Where the checksum lies that the kernel completes in a transport header of this protocol (SCTP's CRC32c: we do).
pub(crate) fn checksum_offset(protocol: Protocol) -> Option<u16> {
    match protocol {
        Protocol::TCP => Some(16),
        Protocol::UDP => Some(6),
        Protocol::SCTP => Some(8),
        _ => None,
    }
}

/// The header. Offsets count from the beginning of the IP packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct VnetHeader {
    /// What is known of the checksum.
    pub(crate) flags: u8,
    /// How the packet is to be segmented.
    pub(crate) gso_type: u8,
    /// How much of it is headers (a hint).
    pub(crate) header_length: u16,
    /// Payload bytes a segment.
    pub(crate) gso_size: u16,
    /// Where the sum begins that is to be completed.
    pub(crate) csum_start: u16,
    /// Where, from there, it is to be put.
    pub(crate) csum_offset: u16,
}

impl VnetHeader {
    /// Reads a header whose offsets count from `link` bytes before the IP packet.
    pub(crate) fn read(b: [u8; LENGTH], link: u16) -> VnetHeader {
        let word = |at: usize| u16::from_ne_bytes([b[at], b[at + 1]]);
        VnetHeader {
            flags: b[0],
            gso_type: b[1],
            header_length: word(2).saturating_sub(link),
            gso_size: word(4),
            // No packet reaches to `u16::MAX`: a place in the link-layer header is refused later.
            csum_start: if b[0] & NEEDS_CSUM == 0 { 0 } else { word(6).checked_sub(link).unwrap_or(u16::MAX) },
            csum_offset: word(8),
        }
    }

    /// The header for a packet that has `link` bytes in front of its IP header. Of the flags only NEEDS_CSUM goes out:
    /// the others speak of what was received.
    pub(crate) fn write(&self, link: u16) -> [u8; LENGTH] {
        let mut b = [0; LENGTH];
        let partial = self.flags & NEEDS_CSUM != 0;
        b[0] = self.flags & NEEDS_CSUM;
        b[1] = self.gso_type;
        let mut put = |at: usize, value: u16| b[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        if self.is_gso() {
            put(2, self.header_length.saturating_add(link));
            put(4, self.gso_size);
        }
        if partial {
            put(6, self.csum_start.saturating_add(link));
            put(8, self.csum_offset);
        }
        b
    }

    /// What the engine must know of the checksum.
    pub(crate) fn checksum(&self) -> Checksum {
        if self.flags & NEEDS_CSUM != 0 {
            Checksum::Partial
        } else if self.flags & DATA_VALID != 0 {
            Checksum::Verified
        } else {
            Checksum::Complete
        }
    }

    /// Is it a packet of several segments?
    pub(crate) fn is_gso(&self) -> bool {
        self.gso_type & !GSO_ECN != GSO_NONE && self.gso_size != 0
    }

    /// The segmentation without its ECN flag.
    pub(crate) fn segmentation(&self) -> u8 {
        self.gso_type & !GSO_ECN
    }

    /// Whether a checksum is left to be completed.
    pub(crate) fn needs_checksum(&self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }

    /// Whether the checksum that is left to be completed is that of the transport header at `at`.
    pub(crate) fn completes(&self, at: usize, protocol: Protocol) -> bool {
        self.needs_checksum()
            && usize::from(self.csum_start) == at
            && checksum_offset(protocol) == Some(self.csum_offset)
    }

    /// Whether the segmentation is that of this transport protocol over IPv4 or IPv6. In a tunnel it may still be that of the
    /// packet inside: the kernel reports VXLAN, GRE and IP in IP by their innermost protocol, but takes no such packet back.
    pub(crate) fn merges(&self, v4: bool, protocol: Protocol) -> bool {
        match self.segmentation() {
            GSO_TCPV4 => v4 && protocol == Protocol::TCP,
            GSO_TCPV6 => !v4 && protocol == Protocol::TCP,
            GSO_UDP_L4 => protocol == Protocol::UDP,
            _ => false,
        }
    }

    /// The header for a merged packet whose checksum, that of the transport header at `at`, is left to be completed.
    pub(crate) fn to_complete(self, at: usize, protocol: Protocol) -> Option<VnetHeader> {
        let (csum_start, csum_offset) = (u16::try_from(at).ok()?, checksum_offset(protocol)?);
        Some(VnetHeader { flags: NEEDS_CSUM, csum_start, csum_offset, ..self })
    }

    /// The same, its checksum counted as verified: GRO merges no packet whose checksum is wrong.
    pub(crate) fn verified(self, at: usize) -> VnetHeader {
        VnetHeader { flags: DATA_VALID, csum_start: u16::try_from(at).unwrap_or(u16::MAX), ..self }
    }

    /// Into how many packets it will be cut, `length` being the IP packet's.
    pub(crate) fn segments(&self, length: u32) -> u64 {
        if !self.is_gso() {
            return 1;
        }
        let payload = u64::from(length).saturating_sub(u64::from(self.csum_start) + 20).max(1);
        payload.div_ceil(u64::from(self.gso_size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vnet_offsets_move_with_the_link_header() {
        let on_wire = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV4,
            header_length: 54,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
        };
        let read = VnetHeader::read(on_wire.write(0), 14);
        assert_eq!((read.csum_start, read.header_length), (20, 40));
        assert_eq!(read.write(14), on_wire.write(0));
        assert_eq!(read.checksum(), Checksum::Partial);
    }

    #[test]
    fn vnet_writes_only_needs_csum() {
        let header = VnetHeader { flags: DATA_VALID, csum_start: 99, ..VnetHeader::default() };
        assert_eq!(header.checksum(), Checksum::Verified);
        assert_eq!(header.write(0), [0; LENGTH]);
    }

    #[test]
    fn vnet_checksum_in_the_link_header_is_nowhere() {
        let header = VnetHeader { flags: NEEDS_CSUM, csum_start: 12, csum_offset: 2, ..VnetHeader::default() };
        assert_eq!(VnetHeader::read(header.write(0), 14).csum_start, u16::MAX);
    }

    #[test]
    fn vnet_checksum_and_segmentation_of_a_tunnel_are_not_its_own() {
        let mut header = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV4 | GSO_ECN,
            header_length: 40,
            gso_size: 1448,
            csum_start: 20,
            csum_offset: 16,
        };
        assert!(header.merges(true, Protocol::TCP) && header.completes(20, Protocol::TCP));
        assert!(!header.merges(false, Protocol::TCP), "TCPv4 segmentation of an IPv6 packet");
        assert!(!header.merges(true, Protocol::UDP) && !header.completes(20, Protocol::UDP));
        header.csum_start = 70;
        assert!(!header.completes(20, Protocol::TCP), "the checksum of an inner header");
        assert_eq!(header.segments(90 + 2 * 1448 + 1), 3);
    }
}
