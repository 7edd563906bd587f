//! `virtio_net_hdr`: what the kernel and we tell each other about a packet's checksum and segmentation
//! (Virtual I/O Device specification 1.2, section 5.1.6; here always the 10-byte legacy form in native byte order).

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
            csum_start: if b[0] & NEEDS_CSUM == 0 { 0 } else { word(6).saturating_sub(link) },
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

    /// Is the segmentation that of this packet's own transport header, and not of one that lies in a tunnel inside? The
    /// kernel reports VXLAN, GRE and IP-in-IP by their innermost protocol, but takes no such packet back.
    pub(crate) fn matches(&self, packet: &[u8], transport: u16) -> bool {
        if !self.is_gso() {
            return true;
        }
        let version = packet.first().map_or(0, |b| b >> 4);
        let own = self.flags & NEEDS_CSUM != 0 && self.csum_start == transport;
        // With its sum where TCP or UDP has it, and at the packet's own transport header, it is that protocol.
        match self.segmentation() {
            GSO_TCPV4 => own && version == 4 && self.csum_offset == 16,
            GSO_TCPV6 => own && version == 6 && self.csum_offset == 16,
            GSO_UDP_L4 => own && self.csum_offset == 6,
            _ => false,
        }
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
    fn vnet_segmentation_of_a_tunnel_does_not_match() {
        let mut header = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV4 | GSO_ECN,
            header_length: 40,
            gso_size: 1448,
            csum_start: 20,
            csum_offset: 16,
        };
        assert!(header.matches(&[0x45], 20));
        assert!(!header.matches(&[0x60], 20), "TCPv4 segmentation on an IPv6 packet");
        header.csum_start = 70;
        assert!(!header.matches(&[0x45], 20), "the checksum of an inner header");
        assert_eq!(header.segments(90 + 2 * 1448 + 1), 3);
    }
}
