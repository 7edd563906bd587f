//! A small blocking rtnetlink connection. The datapath's threads send the kernel few requests, one after another, and must
//! not depend on an async runtime. A socket belongs to the network namespace of the thread that opened it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_MULTIPART, NLM_F_REQUEST,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_XFRM};
use rtnetlink::sys::{Socket, SocketAddr};

use crate::datapath::sys;

/// The receive timeout. A kernel that does not answer must not hang a worker.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The length of `struct nlmsghdr`, in bytes.
const HEADER: usize = 16;

/// A connection for requests.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    /// Whether objects changed while the kernel wrote the last dump.
    interrupted: bool,
    buffer: Box<[u8]>,
}

impl Netlink {
    /// Opens a connection in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        let timeout = TimeVal::milliseconds(i64::try_from(ANSWER_TIMEOUT.as_millis()).unwrap_or(i64::MAX));
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)?;
        Ok(Netlink { socket, sequence: 0, interrupted: false, buffer: vec![0; 64 * 1024].into_boxed_slice() })
    }

    /// Makes the kernel filter dumps by their header (a routing table) instead of dumping everything.
    pub(crate) fn strict(self) -> io::Result<Netlink> {
        self.socket.set_netlink_get_strict_chk(true)?;
        Ok(self)
    }

    /// All objects of a kind.
    pub(crate) fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        // One that the crate cannot parse (from a newer kernel) is no answer to a request made here.
        Ok(self.dump_bytes(message)?.iter().filter_map(parse).collect())
    }

    /// All objects of a kind: the message type of each, and its bytes behind the netlink header.
    pub(crate) fn dump_bytes(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<(u16, Vec<u8>)>> {
        // A list that changed while it was written may lack objects that were there all the time. After three attempts the
        // last list is used: each change is also a notification, after which everything is read again.
        for _ in 0..3 {
            let found = self.request(message.clone(), NLM_F_DUMP)?;
            if !self.interrupted {
                return Ok(found);
            }
        }
        self.request(message, NLM_F_DUMP)
    }

    /// One object.
    pub(crate) fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        Ok(self.request(message, 0)?.iter().rev().find_map(parse))
    }

    /// Creates an object that must not exist yet.
    pub(crate) fn create(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.request(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Creates an object beside those that are there, whatever the kernel takes for equal.
    pub(crate) fn add(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.request(message, NLM_F_ACK | NLM_F_CREATE).map(drop)
    }

    /// Changes or deletes an object.
    pub(crate) fn change(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.request(message, NLM_F_ACK).map(drop)
    }

    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<(u16, Vec<u8>)>> {
        self.sequence = self.sequence.wrapping_add(1);
        self.interrupted = false;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut found = Vec::new();
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            for one in messages(self.buffer.get(..length).unwrap_or_default()) {
                let Some(header) = Header::read(one).filter(|h| h.sequence == self.sequence) else {
                    continue; // a late answer to a request that timed out
                };
                self.interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                let body = one.get(HEADER..).unwrap_or_default();
                match header.kind {
                    DONE => return Ok(found),
                    ERROR => {
                        let code = body.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
                        return if code == 0 { Ok(found) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    kind => {
                        found.push((kind, body.to_vec()));
                        if header.flags & NLM_F_MULTIPART == 0 && flags & NLM_F_ACK == 0 {
                            return Ok(found);
                        }
                    }
                }
            }
        }
    }
}

/// `NLMSG_ERROR`, `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// The part of `struct nlmsghdr` that answers are told apart by.
struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

impl Header {
    fn read(message: &[u8]) -> Option<Header> {
        let short = |at: usize| message.get(at..)?.first_chunk().map(|b| u16::from_ne_bytes(*b));
        let sequence = u32::from_ne_bytes(*message.get(8..)?.first_chunk()?);
        Some(Header { kind: short(4)?, flags: short(6)?, sequence })
    }
}

/// An object as the crate has it.
fn parse((kind, body): &(u16, Vec<u8>)) -> Option<RouteNetlinkMessage> {
    let mut header = NetlinkHeader::default();
    header.message_type = *kind;
    RouteNetlinkMessage::deserialize(&header, body).ok()
}

/// The IPsec policies or states, each behind its netlink header.
pub(crate) fn dump_xfrm(kind: u16, flags: u16) -> io::Result<Vec<Vec<u8>>> {
    let mut socket = Socket::new(NETLINK_XFRM)?;
    socket.bind_auto()?;
    let timeout = TimeVal::milliseconds(i64::try_from(ANSWER_TIMEOUT.as_millis()).unwrap_or(i64::MAX));
    setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)?;
    let mut request = Vec::with_capacity(HEADER);
    request.extend(16u32.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend(1u32.to_ne_bytes());
    request.extend([0; 4]);
    socket.send(&request, 0)?;
    let mut found = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        for one in messages(buffer.get(..length).unwrap_or_default()) {
            let Some(header) = Header::read(one) else { continue };
            let body = one.get(HEADER..).unwrap_or_default();
            match header.kind {
                DONE => return Ok(found),
                ERROR => {
                    let code = body.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
                    return if code == 0 { Ok(found) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                _ => found.push(body.to_vec()),
            }
        }
    }
}

/// The netlink messages in a datagram.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let one = bytes.get(..length).filter(|one| one.len() >= HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(one)
    })
}

/// What changed in the kernel since the last call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Changes {
    /// Interfaces.
    pub(crate) links: bool,
    /// The table `local`: which destinations are this machine's.
    pub(crate) local: bool,
    /// Routes.
    pub(crate) routes: bool,
    /// Policy rules.
    pub(crate) rules: bool,
    /// Per-interface settings: `rp_filter`, `forwarding` …
    pub(crate) settings: bool,
    /// The nftables ruleset.
    pub(crate) nft: bool,
}

impl Changes {
    /// Everything may have changed.
    pub(crate) const ALL: Changes =
        Changes { links: true, local: true, routes: true, rules: true, settings: true, nft: true };

    /// Adds one message of a monitor.
    fn add(&mut self, message: &[u8], netfilter: bool) {
        if netfilter {
            self.nft = true;
            return;
        }
        // `nlmsg_type`, and of `struct rtmsg` the fifth byte: the table.
        let kind = message.get(4..6).map_or(0, |b| u16::from_ne_bytes([b[0], b[1]]));
        match kind {
            libc::RTM_NEWLINK | libc::RTM_DELLINK => self.links = true,
            libc::RTM_NEWADDR | libc::RTM_DELADDR => self.local = true,
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
                self.routes = true;
                self.local |= message.get(HEADER + 4).is_none_or(|&table| table == libc::RT_TABLE_LOCAL);
            }
            libc::RTM_NEWRULE | libc::RTM_DELRULE => self.rules = true,
            80 | 81 /* RTM_NEWNETCONF, RTM_DELNETCONF */ => self.settings = true,
            _ => {}
        }
    }
}

/// The index of the interface that a notification says is gone. (For bridges the same message means "no longer its port".)
fn gone(message: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?);
    // Of `struct ifinfomsg` the first byte: the family; the second word: the index.
    let index = u32::from_ne_bytes(*message.get(HEADER + 4..)?.first_chunk()?);
    (kind == libc::RTM_DELLINK && message.get(HEADER) == Some(&0)).then_some(index)
}

/// The kernel's notifications.
pub(crate) struct Monitor {
    route: Socket,
    netfilter: Option<Socket>,
    /// Interfaces that were removed, perhaps only for a moment.
    gone: Vec<u32>,
    buffer: Box<[u8]>,
}

impl Monitor {
    /// Subscribes to notifications from now on.
    pub(crate) fn open() -> io::Result<Monitor> {
        let mut route = Socket::new(NETLINK_ROUTE)?;
        route.bind(&SocketAddr::new(0, 0))?;
        // RTNLGRP_LINK, IPV4 and IPV6 IFADDR, ROUTE, RULE, NETCONF (linux/rtnetlink.h).
        for group in [1, 5, 9, 7, 11, 8, 19, 24, 25] {
            route.add_membership(group)?;
        }
        route.set_non_blocking(true)?;
        // Room for the notifications of a routing daemon that converges. Without the privilege the default is kept.
        let _ = sys::set_option(route.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(4i32 << 20));
        let netfilter = Socket::new(NETLINK_NETFILTER).and_then(|mut socket| {
            socket.bind(&SocketAddr::new(0, 0))?;
            socket.add_membership(7)?; // NFNLGRP_NFTABLES
            socket.set_non_blocking(true)?;
            Ok(socket)
        });
        Ok(Monitor {
            route,
            netfilter: netfilter.ok(),
            gone: Vec::new(),
            buffer: vec![0; 64 * 1024].into_boxed_slice(),
        })
    }

    /// The descriptors to poll.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.route.as_fd()).chain(self.netfilter.as_ref().map(AsFd::as_fd))
    }

    /// Reads all pending notifications.
    pub(crate) fn changes(&mut self) -> Changes {
        let mut changes = Changes::default();
        let Monitor { route, netfilter, gone: deleted, buffer } = self;
        for (socket, is_netfilter) in
            std::iter::once((&*route, false)).chain(netfilter.as_ref().map(|socket| (socket, true)))
        {
            // Bounded, so that constant changes of routes do not keep the watcher from its work.
            for _ in 0..4096 {
                match recv(socket.as_raw_fd(), buffer, MsgFlags::empty()) {
                    Ok(length) => messages(buffer.get(..length).unwrap_or_default()).for_each(|message| {
                        changes.add(message, is_netfilter);
                        if !is_netfilter {
                            deleted.extend(gone(message));
                        }
                    }),
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) => break,
                    // ENOBUFS: notifications were lost.
                    Err(_) => {
                        changes = Changes::ALL;
                        break;
                    }
                }
            }
        }
        changes
    }

    /// Takes the indices of the interfaces that were removed since the last call. An interface that comes back from another
    /// namespace may have the same index, but the sockets on it stay dead.
    pub(crate) fn gone(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.gone)
    }
}

/// The kernel's notifications about interfaces and their addresses only: a socket that says that something changed.
pub(crate) struct LinkMonitor(Socket);

impl LinkMonitor {
    /// Subscribes to notifications from now on.
    pub(crate) fn open() -> io::Result<LinkMonitor> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        // RTNLGRP_LINK, IPV4_IFADDR, IPV6_IFADDR (linux/rtnetlink.h).
        for group in [1, 5, 9] {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        Ok(LinkMonitor(socket))
    }

    /// Discards the notifications that are there, and the error that some were lost.
    pub(crate) fn clear(&mut self) {
        let mut discarded = [0; 64];
        // Bounded; what is left wakes the next wait.
        for _ in 0..4096 {
            if let Err(Errno::EAGAIN) = recv(self.0.as_raw_fd(), &mut discarded, MsgFlags::MSG_TRUNC) {
                return;
            }
        }
    }
}

impl AsFd for LinkMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netlink_messages_end_at_a_wrong_length() {
        let mut bytes = Vec::new();
        for length in [16u32, 18, 20] {
            bytes.extend(length.to_ne_bytes());
            bytes.resize(bytes.len() + (length as usize).next_multiple_of(4) - 4, 0);
        }
        bytes.extend(400u32.to_ne_bytes());
        assert_eq!(messages(&bytes).map(<[u8]>::len).collect::<Vec<_>>(), [16, 18, 20]);
        bytes.truncate(3);
        assert_eq!(messages(&bytes).count(), 0);
    }

    #[test]
    fn netlink_tells_a_removed_interface_from_one_that_left_its_bridge() {
        let message = |kind: u16, family: u8| {
            let mut m = vec![0; HEADER + 16];
            m[4..6].copy_from_slice(&kind.to_ne_bytes());
            m[HEADER] = family;
            m[HEADER + 4..HEADER + 8].copy_from_slice(&7u32.to_ne_bytes());
            m
        };
        assert_eq!(gone(&message(libc::RTM_DELLINK, 0)), Some(7));
        assert_eq!(gone(&message(libc::RTM_DELLINK, 7 /* AF_BRIDGE */)), None);
        assert_eq!(gone(&message(libc::RTM_NEWLINK, 0)), None);
        assert_eq!(gone(&[0; HEADER]), None);
    }

    #[test]
    fn netlink_changes_of_the_local_table_only_mark_local() {
        let message = |kind: u16, table: u8| {
            let mut m = vec![0; HEADER + 12];
            m[4..6].copy_from_slice(&kind.to_ne_bytes());
            m[HEADER + 4] = table;
            m
        };
        let mut changes = Changes::default();
        changes.add(&message(libc::RTM_NEWROUTE, libc::RT_TABLE_MAIN), false);
        assert_eq!(changes, Changes { routes: true, ..Changes::default() });
        changes.add(&message(libc::RTM_DELROUTE, libc::RT_TABLE_LOCAL), false);
        assert!(changes.local);
        changes.add(&message(80, 0), false);
        assert!(changes.settings && !changes.nft && !changes.links);
    }
}
