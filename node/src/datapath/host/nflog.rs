//! Packets that a netfilter rule logs to a group (linux/netfilter/nfnetlink_log.h).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

use super::netlink::messages;
use crate::datapath::sys;

/// `NFNL_SUBSYS_ULOG`, in the upper byte of a message's type.
const SUBSYSTEM: u16 = 4 << 8;
const PACKET: u16 = SUBSYSTEM;
const CONFIG: u16 = SUBSYSTEM | 1;
/// `NLM_F_REQUEST | NLM_F_ACK`
const REQUEST: u16 = 1 | 4;
/// `NLMSG_ERROR`
const ERROR: u16 = 2;
/// `struct nlmsghdr` and `struct nfgenmsg`.
const HEADER: usize = 20;
/// The socket's receive buffer: a few hundred packets.
const BUFFER_BYTES: i32 = 256 << 10;
/// What is kept of a packet: its IP header with extension headers, and the ports.
const COPIED_BYTES: u32 = 256;

/// A logged packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Logged<'a> {
    /// The index of the interface by which it would have left.
    pub(crate) outgoing: u32,
    /// Its beginning, from the IP header on.
    pub(crate) packet: &'a [u8],
}

/// What [`Nflog::read`] found besides packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Read {
    /// Packets that found the socket's buffer full.
    pub(crate) lost: u64,
}

/// A group's socket, in the network namespace of the thread that opened it.
pub(crate) struct Nflog {
    socket: Socket,
    /// The number of the next packet.
    sequence: Option<u32>,
    buffer: Box<[u8]>,
}

impl Nflog {
    /// The most packets that one [`Nflog::read`] hands out.
    pub(crate) const MAX_PACKETS: usize = 256;

    /// Subscribes to a group. A group has one reader: another one is refused.
    pub(crate) fn open(group: u16) -> io::Result<Nflog> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        let _ = sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, &BUFFER_BYTES);
        let mut log = Nflog { socket, sequence: None, buffer: vec![0; 64 << 10].into_boxed_slice() };
        let copy = [COPIED_BYTES.to_be_bytes().as_slice(), &[2 /* NFULNL_COPY_PACKET */, 0]].concat();
        // NFULA_CFG_CMD: bind.
        log.configure(group, &[(1, &[1])])?;
        // NFULA_CFG_MODE; NFULA_CFG_QTHRESH: each packet at once; NFULA_CFG_FLAGS: with sequence numbers.
        log.configure(group, &[(2, &copy), (5, &1u32.to_be_bytes()), (6, &1u16.to_be_bytes())])?;
        log.socket.set_non_blocking(true)?;
        Ok(log)
    }

    fn configure(&mut self, group: u16, attributes: &[(u16, &[u8])]) -> io::Result<()> {
        self.socket.send(&config(group, attributes), 0)?;
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            for message in messages(self.buffer.get(..length).unwrap_or_default()) {
                if kind(message) != Some(ERROR) {
                    continue;
                }
                let code = message.get(16..).and_then(|rest| rest.first_chunk()).map_or(0, |b| i32::from_ne_bytes(*b));
                return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
        }
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Hands out the packets that were logged, up to [`Nflog::MAX_PACKETS`].
    pub(crate) fn read(&mut self, mut found: impl FnMut(Logged<'_>)) -> io::Result<Read> {
        let Nflog { socket, sequence, buffer } = self;
        let mut read = Read::default();
        for _ in 0..Nflog::MAX_PACKETS {
            match recv(socket.as_raw_fd(), buffer, MsgFlags::empty()) {
                Ok(length) => {
                    for message in messages(buffer.get(..length).unwrap_or_default()) {
                        let Some((number, logged)) = packet(message) else { continue };
                        let missing = sequence.zip(number).map_or(0, |(next, now)| now.wrapping_sub(next));
                        // After a wrap or a restart of the group the difference means nothing.
                        read.lost += u64::from(if missing < 1 << 20 { missing } else { 0 });
                        *sequence = number.map(|now| now.wrapping_add(1));
                        found(logged);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                // Packets were lost; their numbers tell how many.
                Err(Errno::ENOBUFS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(read)
    }
}

fn config(group: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut message = vec![0; 4];
    message.extend(CONFIG.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    // struct nfgenmsg: no family, version 0, the group.
    message.extend([0, 0]);
    message.extend(group.to_be_bytes());
    for (kind, value) in attributes {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(*value);
        message.resize(message.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    if let Some(field) = message.first_chunk_mut() {
        *field = length.to_ne_bytes();
    }
    message
}

fn kind(message: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(*message.get(4..)?.first_chunk()?))
}

/// A logged packet, and its number in the group.
fn packet(message: &[u8]) -> Option<(Option<u32>, Logged<'_>)> {
    if kind(message)? != PACKET {
        return None;
    }
    let (mut outgoing, mut payload, mut number) = (None, None, None);
    let mut rest = message.get(HEADER..)?;
    while let Some(header) = rest.first_chunk::<4>() {
        let [a, b, c, d] = *header;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let Some(value) = rest.get(4..length) else { break };
        let word = || value.first_chunk().map(|b| u32::from_be_bytes(*b));
        match u16::from_ne_bytes([c, d]) & 0x3fff {
            5 => outgoing = word(),
            9 => payload = Some(value),
            12 => number = word(),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some((number, Logged { outgoing: outgoing?, packet: payload? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = config(7, attributes);
        message[4..6].copy_from_slice(&PACKET.to_ne_bytes());
        message
    }

    #[test]
    fn nflog_message_is_a_packet_with_its_outgoing_interface() {
        let all = message(&[(4, &[0, 0, 0, 2]), (5, &[0, 0, 0, 3]), (9, &[0x45, 0, 0]), (12, &[0, 0, 1, 0])]);
        assert_eq!(packet(&all), Some((Some(256), Logged { outgoing: 3, packet: &[0x45, 0, 0] })));
        assert_eq!(packet(&message(&[(9, &[0x45])])), None, "it was not to leave");
        assert_eq!(packet(&config(7, &[(5, &[0, 0, 0, 3]), (9, &[0x45])])), None, "another message");
    }

    #[test]
    fn nflog_message_of_any_length_is_read_without_panic() {
        let all = message(&[(5, &[0, 0, 0, 3]), (9, &[0x45, 0, 0, 9]), (12, &[0, 0, 1, 0])]);
        for end in 0..all.len() {
            let _ = packet(&all[..end]);
            let mut odd = all[..end].to_vec();
            odd.iter_mut().skip(HEADER).for_each(|b| *b |= 3);
            let _ = packet(&odd);
        }
    }
}
