//! Ethernet II and VLAN headers (IEEE 802.3, 802.1Q, 802.1ad).

use pnet_packet::ethernet::{EtherTypes, EthernetPacket};

use super::ip::u16_at;
use crate::verdict::Reason;

/// An Ethernet header, VLAN tags included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    /// The destination's MAC address.
    pub destination: [u8; 6],
    /// The source's MAC address.
    pub source: [u8; 6],
    /// The VLAN tags (priority, DEI and VLAN id, as on the wire), outermost first.
    pub tags: [Option<u16>; 2],
    /// The ethertype behind the tags.
    pub ethertype: u16,
    /// The offset of the layer 3 header.
    pub offset: usize,
}

impl Frame {
    /// The ethertype of IPv4.
    pub const IPV4: u16 = EtherTypes::Ipv4.0;
    /// The ethertype of IPv6.
    pub const IPV6: u16 = EtherTypes::Ipv6.0;

    /// Whether the destination is a group: broadcast or multicast.
    #[must_use]
    pub fn is_group(&self) -> bool {
        self.destination[0] & 1 != 0
    }

    /// The VLAN id of the outermost tag.
    #[must_use]
    pub fn vlan(&self) -> Option<u16> {
        self.tags[0].map(|tag| tag & 0x0fff)
    }
}

/// Reads the Ethernet header at `bytes[0]` and at most two VLAN tags.
///
/// # Errors
/// [`Reason::Truncated`], or [`Reason::Malformed`] for more tags and for 802.3 length fields (LLC), which carry no IP.
pub fn frame(bytes: &[u8]) -> Result<Frame, Reason> {
    let header = EthernetPacket::new(bytes).ok_or(Reason::Truncated)?;
    let (destination, source) = (header.get_destination().octets(), header.get_source().octets());
    let mut frame = Frame {
        destination,
        source,
        tags: [None; 2],
        ethertype: header.get_ethertype().0,
        offset: ETHERNET_HEADER_LENGTH,
    };
    for tag in &mut frame.tags {
        if !is_tag(frame.ethertype) {
            break;
        }
        *tag = Some(u16_at(bytes, frame.offset)?);
        frame.ethertype = u16_at(bytes, frame.offset + 2)?;
        frame.offset += 4;
    }
    if is_tag(frame.ethertype) || frame.ethertype < 0x0600 { Err(Reason::Malformed) } else { Ok(frame) }
}

/// The length of an Ethernet header without tags, in bytes.
const ETHERNET_HEADER_LENGTH: usize = 14;

/// Whether an ethertype is that of a VLAN tag: 802.1Q, 802.1ad, or the number that some switches used before 802.1ad.
fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, 0x8100 | 0x88a8 | 0x9100)
}
