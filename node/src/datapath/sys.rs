//! The system calls that neither `std` nor `nix` has: packet-socket options, their bind, the ioctls of TUN devices.
#![expect(unsafe_code, reason = "system calls that no safe library has")]

pub(crate) mod tun;

use std::collections::BTreeSet;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// An `AF_PACKET` raw socket of protocol 0: it receives nothing until it is bound to one.
pub(crate) fn packet_socket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?)
}

/// `setsockopt` with a plain C value.
pub(crate) fn set_option<T: Copy>(fd: BorrowedFd<'_>, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: the pointer is to `length` readable bytes that outlive the call; the kernel only reads them.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `getsockopt` of a structure of 32-bit words, zero where the kernel writes less.
pub(crate) fn option_words<const N: usize>(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<[u32; N]> {
    let mut value = [0u32; N];
    let mut length = libc::socklen_t::try_from(size_of::<[u32; N]>()).unwrap_or(0);
    // SAFETY: the pointer is to `length` writable bytes of plain integers, and `length` is a valid in-out argument.
    let done = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length) };
    if done == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Binds a packet socket to an interface and an EtherType (host byte order; 0: it only sends).
pub(crate) fn bind_packet(fd: BorrowedFd<'_>, index: u32, ethertype: u16) -> io::Result<()> {
    let index = i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: `sockaddr_ll` is plain integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { MaybeUninit::zeroed().assume_init() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or(0);
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = index;
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or(0);
    // SAFETY: the pointer is to `length` readable bytes that outlive the call.
    let done = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The largest number of interfaces in a filter of [`accept_only`]: a jump of the filter's language reaches 255 instructions.
pub(crate) const MAX_INDICES: usize = 64;

/// Lets the socket receive only what came in by the interfaces with these indices.
pub(crate) fn accept_only(fd: BorrowedFd<'_>, indices: &BTreeSet<u32>) -> io::Result<()> {
    // `SKF_AD_OFF + SKF_AD_IFINDEX` (linux/filter.h): the index of the interface by which the packet came.
    const INTERFACE: u32 = (-0x1000_i32).cast_unsigned() + 8;
    let statement = |code: u16, k: u32| libc::sock_filter { code, jt: 0, jf: 0, k };
    let count = u8::try_from(indices.len()).ok().filter(|n| usize::from(*n) <= MAX_INDICES);
    let count = count.ok_or(io::ErrorKind::InvalidInput)?;
    let mut program = vec![statement(0x20 /* BPF_LD | BPF_W | BPF_ABS */, INTERFACE)];
    for (index, left) in indices.iter().zip((0..count).rev()) {
        // Equal: to the last instruction, which accepts, behind those that are left and the one that drops.
        program.push(libc::sock_filter {
            code: 0x15, /* BPF_JMP | BPF_JEQ | BPF_K */
            jt: left + 1,
            jf: 0,
            k: *index,
        });
    }
    program.push(statement(0x06 /* BPF_RET | BPF_K */, 0));
    program.push(statement(0x06, u32::MAX));
    let length = libc::c_ushort::try_from(program.len()).unwrap_or(0);
    let program = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// `SO_MEMINFO` (asm-generic/socket.h), which the crate lacks.
const SO_MEMINFO: i32 = 55;

/// Packets to a socket that the kernel dropped: `SK_MEMINFO_DROPS`, the last word of `SO_MEMINFO`. Zero if it does not say.
pub(crate) fn dropped(fd: BorrowedFd<'_>) -> u32 {
    option_words::<9>(fd, libc::SOL_SOCKET, SO_MEMINFO).map_or(0, |words| words[8])
}

/// Lets the socket discard everything (`true`) or nothing (`false`).
pub(crate) fn drop_all(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    if !on {
        return set_option(fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0i32);
    }
    let mut code = [libc::sock_filter { code: 0x06 /* BPF_RET | BPF_K */, jt: 0, jf: 0, k: 0 }];
    let program = libc::sock_fprog { len: 1, filter: code.as_mut_ptr() };
    set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// The calling thread's nice value.
pub(crate) fn nice() -> i32 {
    // SAFETY: no pointers. (-1 is a value as well as the error, which cannot occur for the calling thread.)
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// Sets the calling thread's nice value. Threads that it makes later inherit it.
pub(crate) fn set_nice(value: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    let done = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, value) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
