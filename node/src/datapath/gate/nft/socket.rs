//! A netlink connection to nf_tables. It belongs to the network namespace of the thread that opened it, and owns the tables
//! that were made through it, until it is closed.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use super::wire::{self, Attributes, DUMP, GENERIC, HEADER, Message};
use crate::datapath::host::netlink::messages;
use crate::datapath::sys;

/// The receive timeout in seconds: a commit waits for other commits, and for all processors to leave the old rules.
const ANSWER_TIMEOUT: i64 = 10;
/// Room for a transaction's messages. Without the privilege the default is kept.
const SEND_BUFFER: i32 = 4 << 20;

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_DUMP_INTR`
const INTERRUPTED: u16 = 0x10;
/// `NFT_MSG_GETGEN`, `NFTA_GEN_ID`.
const GET_GENERATION: u16 = 16;
const GENERATION_ID: u16 = 1;

/// Why a transaction did not happen.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The message that was refused; `None`: all of it.
    pub(crate) message: Option<usize>,
    pub(crate) source: io::Error,
}

impl From<io::Error> for Refusal {
    fn from(source: io::Error) -> Refusal {
        Refusal { message: None, source }
    }
}

/// An object of a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Object {
    pub(crate) family: u8,
    /// Its attributes.
    pub(crate) body: Vec<u8>,
}

/// The header of an answer, and what follows it.
struct Answer<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    rest: &'a [u8],
}

fn parse(message: &[u8]) -> Option<Answer<'_>> {
    let short = |at: usize| message.get(at..)?.first_chunk().map(|b| u16::from_ne_bytes(*b));
    let sequence = u32::from_ne_bytes(*message.get(8..)?.first_chunk()?);
    Some(Answer { kind: short(4)?, flags: short(6)?, sequence, rest: message.get(HEADER..)? })
}

/// The result in an error message or at the end of a list: `None` for success.
fn error(answer: &Answer<'_>) -> Option<io::Error> {
    let code = answer.rest.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
    (code != 0).then(|| io::Error::from_raw_os_error(-code))
}

/// The connection.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Socket,
    sequence: u32,
    buffer: Box<[u8]>,
}

impl Connection {
    /// Opens a connection in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Connection> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_TIMEOUT))?;
        let _ = sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER);
        Ok(Connection { socket, sequence: 0, buffer: vec![0; 64 * 1024].into_boxed_slice() })
    }

    /// Carries out a transaction.
    pub(crate) fn commit(&mut self, batch: &[Message]) -> Result<(), Refusal> {
        let first = self.sequence.wrapping_add(1);
        let count = u32::try_from(batch.len()).unwrap_or(u32::MAX);
        self.sequence = first.wrapping_add(count).wrapping_add(1);
        self.socket.send(&wire::batch(batch, first), 0)?;
        let mut refused = None;
        loop {
            let length = self.receive()?;
            for message in messages(self.buffer.get(..length).unwrap_or_default()) {
                let Some(answer) = parse(message).filter(|a| a.kind == ERROR) else { continue };
                // A late answer to a request that timed out has an older number.
                let number = answer.sequence.wrapping_sub(first);
                if number > count {
                    continue;
                }
                let source = error(&answer);
                if number == 0 {
                    // The begin of the transaction is answered only if all of it is refused.
                    let source = source.unwrap_or_else(|| io::ErrorKind::Other.into());
                    return Err(Refusal { message: None, source });
                }
                if let Some(source) = source {
                    // The first one is the cause, later ones may follow from it.
                    let message = usize::try_from(number - 1).ok();
                    refused.get_or_insert(Refusal { message, source });
                }
                if number == count {
                    return refused.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// All objects of a kind (`NFT_MSG_GET*`) and a family (0: all).
    pub(crate) fn dump(&mut self, kind: u16, family: u8, attributes: &Attributes) -> io::Result<Vec<Object>> {
        // A list that changed while it was written may lack what was there all the time.
        for _ in 0..8 {
            if let Some(found) = self.dump_once(kind, family, attributes)? {
                return Ok(found);
            }
        }
        Err(io::Error::other("the ruleset changes all the time"))
    }

    fn dump_once(&mut self, kind: u16, family: u8, attributes: &Attributes) -> io::Result<Option<Vec<Object>>> {
        self.ask(kind, family, DUMP, attributes.clone())?;
        let mut found = Vec::new();
        let mut interrupted = false;
        loop {
            let length = self.receive()?;
            for message in messages(self.buffer.get(..length).unwrap_or_default()) {
                let Some(answer) = parse(message).filter(|a| a.sequence == self.sequence) else { continue };
                interrupted |= answer.flags & INTERRUPTED != 0;
                match answer.kind {
                    ERROR | DONE => match error(&answer) {
                        Some(e) if e.raw_os_error() == Some(libc::EINTR) => return Ok(None),
                        Some(e) => return Err(e),
                        None => return Ok((!interrupted).then_some(found)),
                    },
                    _ => found.extend(object(&answer)),
                }
            }
        }
    }

    /// The number of the ruleset, which every transaction changes.
    pub(crate) fn generation(&mut self) -> io::Result<u32> {
        self.ask(GET_GENERATION, 0, 0, Attributes::default())?;
        loop {
            let length = self.receive()?;
            for message in messages(self.buffer.get(..length).unwrap_or_default()) {
                let Some(answer) = parse(message).filter(|a| a.sequence == self.sequence) else { continue };
                if answer.kind == ERROR {
                    return Err(error(&answer).unwrap_or_else(|| io::ErrorKind::InvalidData.into()));
                }
                if let Some(object) = object(&answer) {
                    return wire::number(&object.body, GENERATION_ID).ok_or_else(|| io::ErrorKind::InvalidData.into());
                }
            }
        }
    }

    fn ask(&mut self, kind: u16, family: u8, flags: u16, attributes: Attributes) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = Message { kind, family, flags, attributes };
        self.socket.send(&wire::request(&message, self.sequence), 0).map(drop)
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                other => return Ok(other?),
            }
        }
    }
}

fn object(answer: &Answer<'_>) -> Option<Object> {
    let family = *answer.rest.first()?;
    Some(Object { family, body: answer.rest.get(GENERIC..)?.to_vec() })
}
