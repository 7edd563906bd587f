//! Frames with a virtio header, as a virtual machine or a host of this machine sends them: with work left to the kernel.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Segmentation types of `virtio_net_hdr`.
pub const TCPV4: u8 = 1;
pub const UFO: u8 = 3;

/// `struct virtio_net_hdr`: the checksum from `start` on is to be put to `start + offset`, and the packet to be cut.
#[derive(Clone, Copy, Default)]
pub struct Virtio {
    pub start: u16,
    pub offset: u16,
    pub gso_type: u8,
    pub gso_size: u16,
    pub headers: u16,
}

impl Virtio {
    /// The header in front of a frame.
    pub fn before(&self, frame: &[u8]) -> Vec<u8> {
        let mut out = vec![1, self.gso_type];
        for word in [self.headers, self.gso_size, self.start, self.offset] {
            out.extend(word.to_ne_bytes());
        }
        out.extend(frame);
        out
    }
}

/// The contents of two bytes at `at` with which the sum over `packet[start..]`, completed at `place`, is `wanted`.
pub fn choose(packet: &mut [u8], start: usize, place: usize, at: usize, wanted: u16) {
    for word in 0..=u16::MAX {
        packet[at..at + 2].copy_from_slice(&word.to_be_bytes());
        if sum(&packet[start..]) == wanted {
            return;
        }
    }
    panic!("no bytes at {at} give {wanted} at {place}");
}

/// The Internet checksum (RFC 1071).
pub fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// A packet socket that leaves the checksum to the device that sends the frame.
#[allow(unsafe_code, reason = "no crate here has this socket option")]
pub fn unfinished(interface: &str) -> OwnedFd {
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0, "a packet socket");
    // SAFETY: a fresh descriptor that nobody else has.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let one = 1i32;
    // SAFETY: the pointer is to four readable bytes that outlive the call.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, (&raw const one).cast(), 4)
    };
    assert_eq!(done, 0, "PACKET_VNET_HDR: {}", std::io::Error::last_os_error());
    let index = nix::net::if_::if_nametoindex(interface).unwrap();
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).unwrap(),
        sll_protocol: 0,
        sll_ifindex: i32::try_from(index).unwrap(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = u32::try_from(size_of_val(&address)).unwrap();
    // SAFETY: the pointer is to an address of this length that outlives the call.
    let done = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    assert_eq!(done, 0, "bind: {}", std::io::Error::last_os_error());
    socket
}

/// Makes a TAP device; what is written to it arrives there, as from a virtual machine.
#[allow(unsafe_code, reason = "no crate here has this ioctl")]
pub fn tap(name: &str) -> OwnedFd {
    let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: `ifreq` is plain integers and bytes, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap();
    // SAFETY: `TUNSETIFF` reads and writes one `ifreq`, which `request` is.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(done, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
    file.into()
}
