//! The capture sockets of one interface, and what one of them receives.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::ring::{Ring, SLOT_BYTES, Slot};
use crate::datapath::sys;
use crate::datapath::vnet::{LENGTH as VNET, VnetHeader};

/// The largest frame: an IP packet of 64 KiB, its link-layer header and the virtio header, with room to detect a larger one.
pub(crate) const MAX_FRAME_BYTES: usize = 65536 + 256;

/// The socket's receive buffer, for oversized frames. GSO packets of 64 KiB count with more than their length.
const RECEIVE_BUFFER_BYTES: i32 = 16 << 20;

/// A frame for this interface's own MAC address.
const PACKET_HOST: u8 = 0;
/// A broadcast, and a multicast that this machine listens to or not.
const PACKET_BROADCAST: u8 = 1;
const PACKET_MULTICAST: u8 = 2;
/// One that this machine sends.
const PACKET_OUTGOING: u8 = 4;

/// What a socket received.
#[derive(Debug)]
pub(crate) enum Received<'a> {
    /// An IP packet for this machine to deliver or to forward.
    Packet {
        /// When it came: nanoseconds since 1970, wall clock.
        at: u64,
        /// Its virtio header.
        vnet: VnetHeader,
        /// Its bytes from the IP header on, perhaps with Ethernet padding.
        packet: &'a [u8],
    },
    /// A broadcast or a multicast.
    Group {
        /// Its length.
        length: u32,
        /// Its bytes from the IP header on, as far as the slot has them.
        packet: &'a [u8],
    },
    /// A frame with a foreign MAC address or a VLAN tag.
    NotForUs {
        /// Its length.
        length: u32,
    },
    /// A frame that did not fit, the queue of oversized ones being full.
    Truncated {
        /// Its length.
        length: u32,
    },
    /// A packet for a device that is stacked on this interface: a VLAN, a macvlan, a bond.
    Stacked {
        /// That device's index.
        index: u32,
        /// The frame's length.
        length: u32,
        /// Its bytes from the IP header on, as far as the slot has them.
        packet: &'a [u8],
    },
    /// Nothing of interest.
    Nothing,
}

/// One capture socket: of one interface, one EtherType and one worker.
#[derive(Debug)]
pub(crate) struct Capture {
    // Before the socket, so that it is unmapped first.
    ring: Ring,
    fd: OwnedFd,
    index: u32,
    /// Whether a frame was there since [`Capture::missed`] was called last.
    received: bool,
}

/// What a socket has lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Missed {
    /// Frames that the kernel dropped.
    pub(crate) frames: u64,
    /// It dropped them although the ring was empty all the time. It will do so for ever: when the virtio header cannot
    /// express a frame's segmentation (UFO, SCTP, before Linux 6.2 UDP), the kernel drops it and never again uses the slot
    /// that it had chosen.
    pub(crate) stalled: bool,
}

impl Capture {
    /// Opens the sockets for an interface and an EtherType, one for each worker. All are in one fanout group, in the
    /// workers' order: so both directions of a flow, by whatever interface, meet the same worker. They discard everything until
    /// [`Capture::start`].
    pub(crate) fn open(index: u32, ethertype: u16, workers: usize, slots: u32) -> io::Result<Vec<Capture>> {
        let mut group = None;
        (0..workers).map(|_| Capture::open_one(index, ethertype, slots, (workers > 1).then_some(&mut group))).collect()
    }

    fn open_one(index: u32, ethertype: u16, slots: u32, group: Option<&mut Option<u16>>) -> io::Result<Capture> {
        let socket = sys::packet_socket()?;
        let fd = socket.as_fd();
        // Between its bind and its joining the group, a socket would receive what the others also receive.
        sys::drop_all(fd, true)?;
        let set = |name: i32, value: i32| sys::set_option(fd, libc::SOL_PACKET, name, &value);
        set(libc::PACKET_VERSION, 1 /* TPACKET_V2 */)?;
        set(libc::PACKET_VNET_HDR, 1)?;
        set(libc::PACKET_COPY_THRESH, i32::try_from(SLOT_BYTES).unwrap_or(i32::MAX))?;
        // Since Linux 4.20; we look at `PACKET_OUTGOING` ourselves too.
        let _ = set(libc::PACKET_IGNORE_OUTGOING, 1);
        // Beyond the system's limit where we may (not in a user namespace), else up to it.
        if sys::set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &RECEIVE_BUFFER_BYTES).is_err() {
            sys::set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &RECEIVE_BUFFER_BYTES)?;
        }
        let ring = Ring::map(fd, slots)?;
        sys::bind_packet(fd, index, ethertype)?;
        if let Some(group) = group {
            join(fd, group)?;
        }
        Ok(Capture { ring, fd: socket, index, received: false })
    }

    /// Receives from now on.
    pub(crate) fn start(&self) -> io::Result<()> {
        sys::drop_all(self.fd.as_fd(), false)
    }

    /// Receives nothing more.
    pub(crate) fn stop(&self) -> io::Result<()> {
        sys::drop_all(self.fd.as_fd(), true)
    }

    /// Receives one frame, if there is one. `large` (of [`MAX_FRAME_BYTES`] bytes) takes what does not fit into a slot.
    pub(crate) fn receive<R>(&mut self, large: &mut [u8], take: impl FnOnce(Received<'_>) -> R) -> Option<R> {
        let slot = self.ring.peek()?;
        let result = take(slot.map_or(Received::Nothing, |slot| classify(slot, self.index, self.fd.as_fd(), large)));
        self.ring.release();
        self.received = true;
        Some(result)
    }

    /// Clears the socket's error, such as ENETDOWN, so that poll waits again.
    pub(crate) fn clear_error(&self) {
        let _ = sys::option_words::<1>(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_ERROR);
    }

    /// What was lost since the last call.
    pub(crate) fn missed(&mut self) -> Missed {
        // `struct tpacket_stats`: packets, drops; reading sets them to zero.
        let frames = sys::option_words::<2>(self.fd.as_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS)
            .map_or(0, |[_, drops]| u64::from(drops));
        // A ring that was full has frames still, or had some since the last call.
        let received = std::mem::take(&mut self.received) || self.ring.ready();
        Missed { frames, stalled: frames > 0 && !received }
    }
}

impl AsFd for Capture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn join(fd: BorrowedFd<'_>, group: &mut Option<u16>) -> io::Result<()> {
    // Lower half: the group; upper half: PACKET_FANOUT_HASH, which is 0, and flags. The hash is symmetric.
    let argument = group.map_or(libc::PACKET_FANOUT_FLAG_UNIQUEID << 16, u32::from);
    sys::set_option(fd, libc::SOL_PACKET, libc::PACKET_FANOUT, &argument)?;
    if group.is_none() {
        let [word] = sys::option_words::<1>(fd, libc::SOL_PACKET, libc::PACKET_FANOUT)?;
        *group = Some(u16::try_from(word & 0xffff).unwrap_or(0));
    }
    Ok(())
}

fn classify<'a>(slot: Slot<'a>, bound: u32, fd: BorrowedFd<'_>, large: &'a mut [u8]) -> Received<'a> {
    let Slot { frame, vnet, packet } = slot;
    // The queue goes in step with the ring: its part must be taken whatever becomes of the frame.
    let oversized = frame.queued.then(|| dequeue(fd, large));
    if frame.kind == PACKET_OUTGOING {
        return Received::Nothing;
    }
    // Frames of a device stacked on this one are seen here too, but belong to that: to its own sockets if it is a data
    // interface, else to the gate.
    if frame.index != bound {
        return match frame.kind {
            PACKET_HOST => Received::Stacked { index: frame.index, length: frame.length, packet },
            _ => Received::Nothing,
        };
    }
    if frame.kind != PACKET_HOST || frame.tagged {
        let group = matches!(frame.kind, PACKET_BROADCAST | PACKET_MULTICAST) && !frame.tagged;
        return match group {
            true => Received::Group { length: frame.length, packet },
            false => Received::NotForUs { length: frame.length },
        };
    }
    if frame.captured >= frame.length {
        return Received::Packet { at: frame.at, vnet, packet };
    }
    let Some(Some(received)) = oversized else {
        return Received::Truncated { length: frame.length };
    };
    let start = VNET + usize::from(frame.link);
    match (large.first_chunk(), large.get(start..received)) {
        (Some(header), Some(packet)) => {
            Received::Packet { at: frame.at, vnet: VnetHeader::read(*header, frame.link), packet }
        }
        _ => Received::Truncated { length: frame.length },
    }
}

/// Takes the oldest oversized frame off the queue. `None` if there was none, or it was too large.
fn dequeue(fd: BorrowedFd<'_>, large: &mut [u8]) -> Option<usize> {
    loop {
        match recv(fd.as_raw_fd(), large, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
            Ok(length) => return (length <= large.len()).then_some(length),
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}
