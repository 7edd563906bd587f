//! Re-injection by a pair of veth interfaces, where there is no `/dev/net/tun` (in user namespaces): what is sent to the
//! one end comes in at the other, which is `palisade0` to everything above.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::datapath::host::links;
use crate::datapath::host::netlink::Netlink;
use crate::datapath::sys;

/// The length of an Ethernet header.
pub(super) const HEADER: usize = 14;

/// The MAC address of the end that packets come out of (locally administered).
const INNER: [u8; 6] = [0x02, 0x70, 0x61, 0x6c, 0x69, 0x00];
/// The MAC address of the end that we send into.
const OUTER: [u8; 6] = [0x02, 0x70, 0x61, 0x6c, 0x69, 0x01];

/// The end that we send into.
pub(super) fn outer(device: &str) -> String {
    format!("{device}x")
}

/// Makes the pair and a sending socket for each worker. The pair outlives them: see `remove` in the parent module.
pub(super) fn open(netlink: &mut Netlink, device: &str, queues: usize) -> io::Result<Vec<OwnedFd>> {
    let outer = outer(device);
    links::create_veth(netlink, [(device, INNER), (&outer, OUTER)])?;
    let index = links::links(netlink)?
        .into_iter()
        .find(|link| link.name == outer)
        .map(|link| link.index)
        .ok_or(io::ErrorKind::NotFound)?;
    links::up(netlink, index)?;
    (0..queues)
        .map(|_| {
            let socket = sys::packet_socket()?;
            let fd = socket.as_fd();
            sys::set_option(fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1i32)?;
            // There is no queue to wait in before a veth.
            let _ = sys::set_option(fd, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &1i32);
            sys::bind_packet(fd, index, 0)?;
            Ok(socket)
        })
        .collect()
}

/// The Ethernet header of a packet to re-inject.
pub(super) fn header(packet: &[u8]) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..6].copy_from_slice(&INNER);
    header[6..12].copy_from_slice(&OUTER);
    let ethertype: u16 = if packet.first().is_some_and(|b| b >> 4 == 6) { 0x86dd } else { 0x0800 };
    header[12..].copy_from_slice(&ethertype.to_be_bytes());
    header
}
