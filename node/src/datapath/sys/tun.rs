//! The ioctls of TUN devices (linux/if_tun.h).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A setting of a TUN device, or of one of its queues.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Setting {
    /// The user who may attach queues without `CAP_NET_ADMIN`.
    Owner(u32),
    /// Whether the device outlives its queues.
    Persist(bool),
    /// The offloads of packets that are read from the device.
    ReadOffloads(u32),
    /// The bytes of the virtio header in front of each packet.
    VnetHeaderBytes(i32),
    /// Whether the numbers in it are little-endian instead of the machine's.
    VnetLittleEndian(bool),
    /// Whether they are big-endian instead of the machine's.
    VnetBigEndian(bool),
    /// Bytes of packets that may be in flight from one queue.
    SendBufferBytes(i32),
    /// No program selects the queue of a packet that is read.
    NoSteering,
    /// No program filters packets that are read.
    NoFilter,
}

/// Makes a TUN device of this name, which must not exist, and attaches an open `/dev/net/tun` to it as its first queue.
pub(crate) fn create(fd: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    set_interface(fd, name, libc::IFF_TUN_EXCL)
}

/// Attaches an open `/dev/net/tun` to one more queue of the TUN device of this name. A device that is not there is made.
pub(crate) fn attach(fd: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    set_interface(fd, name, 0)
}

fn set_interface(fd: BorrowedFd<'_>, name: &str, more_flags: i32) -> io::Result<()> {
    // SAFETY: `ifreq` is plain integers and bytes, for which zero is a value.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE | more_flags;
    // `IFF_TUN_EXCL` is the sign bit of the field.
    let [low, high, ..] = flags.to_le_bytes();
    request.ifr_ifru.ifru_flags = libc::c_short::from_le_bytes([low, high]);
    // SAFETY: `TUNSETIFF` reads and writes one `ifreq`, which `request` is.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Changes a setting of the device to which `fd` is attached.
pub(crate) fn set(fd: BorrowedFd<'_>, setting: Setting) -> io::Result<()> {
    let by_value = |request, value: u32| {
        // SAFETY: this request takes its argument by value.
        unsafe { libc::ioctl(fd.as_raw_fd(), request, libc::c_ulong::from(value)) }
    };
    let by_pointer = |request, value: i32| {
        // SAFETY: this request reads one `int`, which `value` is.
        unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw const value) }
    };
    let done = match setting {
        Setting::Owner(uid) => by_value(libc::TUNSETOWNER, uid),
        Setting::Persist(on) => by_value(libc::TUNSETPERSIST, on.into()),
        Setting::ReadOffloads(flags) => by_value(libc::TUNSETOFFLOAD, flags),
        Setting::VnetHeaderBytes(bytes) => by_pointer(libc::TUNSETVNETHDRSZ, bytes),
        Setting::VnetLittleEndian(on) => by_pointer(libc::TUNSETVNETLE, on.into()),
        Setting::VnetBigEndian(on) => by_pointer(libc::TUNSETVNETBE, on.into()),
        Setting::SendBufferBytes(bytes) => by_pointer(libc::TUNSETSNDBUF, bytes),
        Setting::NoSteering => by_pointer(libc::TUNSETSTEERINGEBPF, -1),
        Setting::NoFilter => by_pointer(libc::TUNSETFILTEREBPF, -1),
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
