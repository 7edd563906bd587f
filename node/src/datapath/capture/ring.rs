//! A `TPACKET_V2` receive ring: memory that the kernel writes frames to and we read them from, slot by slot.
//!
//! A slot belongs to the kernel while its status word is 0, otherwise to us. Both sides write only that word. V2 and not V3,
//! because V3 hands over blocks and adds up to a millisecond of latency.
#![expect(unsafe_code, reason = "memory that the kernel writes to as well")]

use std::io;
use std::num::NonZero;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::datapath::sys;
use crate::datapath::vnet::{LENGTH as VNET, VnetHeader};

/// The size of a slot. A full Ethernet frame fits; larger ones come from the socket's queue.
pub(crate) const SLOT_BYTES: usize = 2048;
/// Slots a block (64 KiB, so that the kernel finds the memory also when it is fragmented).
const BLOCK_SLOTS: u32 = 32;
/// `struct sockaddr_ll` follows the header.
const SOCKADDR_OFFSET: usize = 32;

const STATUS_COPY: u32 = 1 << 1;
const STATUS_VLAN_VALID: u32 = 1 << 4;

/// One slot's header, as `struct tpacket2_hdr` has it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Header {
    status: u32,
    length: u32,
    captured: u32,
    mac: u16,
    net: u16,
    seconds: u32,
    nanoseconds: u32,
    vlan_tci: u16,
    vlan_tpid: u16,
    padding: [u8; 4],
}

/// A slot's description of its frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Frame {
    /// When the kernel received it: nanoseconds since 1970, wall clock.
    pub(crate) at: u64,
    /// The frame's length, and that of its part in the slot.
    pub(crate) length: u32,
    pub(crate) captured: u32,
    /// The length of the link-layer header.
    pub(crate) link: u16,
    /// The interface that it came in by.
    pub(crate) index: u32,
    /// `PACKET_HOST` …
    pub(crate) kind: u8,
    /// It carries a VLAN tag.
    pub(crate) tagged: bool,
    /// All of it waits in the socket's queue.
    pub(crate) queued: bool,
}

/// A slot that is ours.
#[derive(Debug)]
pub(crate) struct Slot<'a> {
    /// What it says.
    pub(crate) frame: Frame,
    /// The virtio header, with offsets from the IP header.
    pub(crate) vnet: VnetHeader,
    /// The captured bytes from the IP header on.
    pub(crate) packet: &'a [u8],
}

/// Reads a slot. `None`: its offsets make no sense (never by any kernel that we know).
fn decode<'a>(header: &Header, slot: &'a [u8]) -> Option<Slot<'a>> {
    let (mac, net) = (usize::from(header.mac), usize::from(header.net));
    let link = header.net.checked_sub(header.mac)?;
    let end = mac.checked_add(usize::try_from(header.captured).ok()?)?;
    // A frame that is cut inside its link-layer header has no packet.
    let packet = slot.get(net.min(end)..end)?;
    // `sockaddr_ll`: the interface at 4, the packet's kind at 10.
    let address = slot.get(SOCKADDR_OFFSET..SOCKADDR_OFFSET + 12)?;
    let index = u32::from_ne_bytes(*address.get(4..)?.first_chunk()?);
    let kind = *address.get(10)?;
    let vnet = VnetHeader::read(*slot.get(mac.checked_sub(VNET)?..)?.first_chunk()?, link);
    let frame = Frame {
        at: u64::from(header.seconds) * 1_000_000_000 + u64::from(header.nanoseconds),
        length: header.length,
        captured: header.captured,
        link,
        index,
        kind,
        tagged: header.status & STATUS_VLAN_VALID != 0,
        queued: header.status & STATUS_COPY != 0,
    };
    Some(Slot { frame, vnet, packet })
}

/// The ring of one socket.
#[derive(Debug)]
pub(crate) struct Ring {
    memory: NonNull<u8>,
    length: usize,
    slots: u32,
    next: u32,
}

// SAFETY: the memory is a mapping of its own, reached only through this value; no thread-local state belongs to it.
unsafe impl Send for Ring {}

impl Ring {
    /// Gives the socket a ring of at most this many slots, in whole blocks but at least one, and maps it.
    pub(crate) fn map(fd: BorrowedFd<'_>, slots: u32) -> io::Result<Ring> {
        let blocks = (slots / BLOCK_SLOTS).max(1);
        let slots = blocks * BLOCK_SLOTS;
        let slot_size = u32::try_from(SLOT_BYTES).unwrap_or(0);
        let request = libc::tpacket_req {
            tp_block_size: slot_size * BLOCK_SLOTS,
            tp_block_nr: blocks,
            tp_frame_size: slot_size,
            tp_frame_nr: slots,
        };
        sys::set_option(fd, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        let length = usize::try_from(slots).unwrap_or(0) * SLOT_BYTES;
        let size = NonZero::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh shared mapping at an address that the kernel chooses; it overlaps nothing of ours.
        let memory = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, fd, 0) }?.cast();
        Ok(Ring { memory, length, slots, next: 0 })
    }

    fn slot(&self) -> NonNull<u8> {
        // SAFETY: `next` < `slots`, and the mapping is `slots` × `SLOT_BYTES` bytes long.
        unsafe { self.memory.add(usize::try_from(self.next).unwrap_or(0) * SLOT_BYTES) }
    }

    fn status(&self) -> &AtomicU32 {
        // SAFETY: a slot begins with its status word, is aligned to `SLOT_BYTES`, and lives as long as `self`; the kernel and
        // we access this word only atomically while the slot is not ours.
        unsafe { AtomicU32::from_ptr(self.slot().cast().as_ptr()) }
    }

    /// Whether there is a frame.
    pub(super) fn ready(&self) -> bool {
        self.status().load(Ordering::Acquire) != 0
    }

    /// The oldest frame, if one is there: `Some(None)` if it cannot be read. [`Ring::release`] gives the slot back.
    pub(crate) fn peek(&self) -> Option<Option<Slot<'_>>> {
        if !self.ready() {
            return None;
        }
        let slot = self.slot();
        // SAFETY: the status was not 0 (acquired above), so the kernel does not write to this slot until `release`,
        // which needs `&mut self` and so outlives no borrow of this one. The slot is `SLOT_BYTES` bytes of the mapping.
        let (header, bytes) = unsafe {
            (slot.cast::<Header>().read(), std::slice::from_raw_parts(slot.as_ptr().cast_const(), SLOT_BYTES))
        };
        Some(decode(&header, bytes))
    }

    /// Gives the oldest slot back to the kernel.
    pub(crate) fn release(&mut self) {
        self.status().store(0, Ordering::Release);
        self.next = if self.next + 1 == self.slots { 0 } else { self.next + 1 };
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length and nothing borrows from it any more. The only error
        // is a wrong argument.
        let _ = unsafe { munmap(self.memory.cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_header_is_the_kernels() {
        assert_eq!(size_of::<Header>(), size_of::<libc::tpacket2_hdr>());
        assert_eq!(size_of::<Header>().next_multiple_of(16), SOCKADDR_OFFSET);
        assert_eq!(std::mem::offset_of!(Header, nanoseconds), std::mem::offset_of!(libc::tpacket2_hdr, tp_nsec));
        assert_eq!(std::mem::offset_of!(Header, mac), std::mem::offset_of!(libc::tpacket2_hdr, tp_mac));
        assert_eq!((STATUS_COPY, STATUS_VLAN_VALID), (libc::TP_STATUS_COPY, libc::TP_STATUS_VLAN_VALID));
    }

    fn slot(header: &Header) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..SLOT_BYTES).map(|i| u8::try_from(i % 251).unwrap()).collect();
        bytes[SOCKADDR_OFFSET + 4..SOCKADDR_OFFSET + 8].copy_from_slice(&7u32.to_ne_bytes());
        bytes[SOCKADDR_OFFSET + 10] = 3;
        let vnet = VnetHeader { flags: 1, csum_start: 34, csum_offset: 16, ..VnetHeader::default() };
        let at = usize::from(header.mac) - VNET;
        bytes[at..at + VNET].copy_from_slice(&vnet.write(0));
        bytes
    }

    #[test]
    fn ring_slot_is_decoded() {
        let header = Header {
            status: 1 | STATUS_VLAN_VALID,
            length: 74,
            captured: 74,
            mac: 92,
            net: 106,
            seconds: 2,
            nanoseconds: 5,
            ..Header::default()
        };
        let bytes = slot(&header);
        let slot = decode(&header, &bytes).unwrap();
        assert_eq!(slot.packet, &bytes[106..166]);
        assert_eq!(slot.vnet.csum_start, 20);
        let Frame { at, link, index, kind, tagged, queued, .. } = slot.frame;
        assert_eq!((at, link, index, kind, tagged, queued), (2_000_000_005, 14, 7, 3, true, false));
    }

    #[test]
    fn ring_slot_with_impossible_offsets_is_refused() {
        let good = Header { status: 1, length: 60, captured: 60, mac: 92, net: 106, ..Header::default() };
        let bytes = slot(&good);
        assert!(decode(&good, &bytes).is_some());
        for bad in [
            Header { mac: 107, ..good },
            Header { mac: 4, ..good },
            Header { captured: 2000, ..good },
            Header { captured: u32::MAX, ..good },
        ] {
            assert!(decode(&bad, &bytes).is_none(), "{bad:?}");
        }
        let short = Header { captured: 10, ..good };
        assert!(decode(&short, &bytes).unwrap().packet.is_empty());
    }
}
