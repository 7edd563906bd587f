//! A session as members, commands and administrators see it: opening, established, closed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{Generation, RuleId, SessionId, ZoneId, ZonePair};
use crate::parse::Tcp;
use crate::traffic::Traffic;
use crate::tuple::{PerDirection, Protocol, Tuple};

/// A session whose establishment is not yet complete, as members tell it each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HalfOpen {
    /// The id that the session will have.
    pub id: SessionId,
    /// Client to server, as the client sends it.
    pub original: Tuple,
    /// Server to client, as the server sends it; without NAT the inverse of `original`.
    pub reply: Tuple,
    /// The zone that the original direction comes from.
    pub ingress: ZoneId,
    /// The zone that it leaves to, and the reply comes from.
    pub egress: ZoneId,
    /// The policy that allowed it.
    pub generation: Generation,
    /// The rule that allowed it.
    pub rule: RuleId,
    /// The closed session that it takes the tuple over from.
    pub supersedes: Option<SessionId>,
    /// TCP, before a SYN-ACK was seen: the acknowledgement number of the server's challenge ACK. A server that still holds
    /// an older connection on this tuple answers the SYN with an ACK; the client then resets that connection with a RST
    /// that carries this number (RFC 9293 section 3.5.1).
    pub challenge: Option<u32>,
    /// What the protocol adds.
    pub protocol: HandshakeState,
}

/// The part of an opening that depends on the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum HandshakeState {
    /// TCP: what the SYN said, and the SYN-ACK as soon as one was seen.
    Tcp {
        /// From the SYN.
        client: SynParams,
        /// From the SYN-ACK.
        server: Option<SynParams>,
    },
    /// UDP, ICMP echo and all others: has the reply been seen?
    Generic {
        /// A packet of the reply direction was seen.
        replied: bool,
    },
}

impl HandshakeState {
    /// Whether a packet of the server was seen.
    pub(crate) fn is_answered(&self) -> bool {
        match self {
            HandshakeState::Tcp { server, .. } => server.is_some(),
            HandshakeState::Generic { replied } => *replied,
        }
    }
}

/// What one end of a TCP connection said in its SYN.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SynParams {
    /// Initial sequence number: that of the SYN itself.
    pub isn: u32,
    /// Its window, unscaled as in every SYN (RFC 7323 section 2.2).
    pub window: u16,
    /// Window scale, if the option was there; used only if both ends sent it.
    pub wscale: Option<u8>,
    /// Were selective acknowledgements permitted (RFC 2018)?
    pub sack: bool,
}

impl From<&Tcp> for SynParams {
    /// The parameters of a segment with SYN.
    fn from(tcp: &Tcp) -> SynParams {
        SynParams { isn: tcp.seq, window: tcp.window, wscale: tcp.wscale, sack: tcp.sack_permitted }
    }
}

/// A session from its establishment on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Establish {
    /// The session's id: that of its half-open entry.
    pub id: SessionId,
    /// Client to server.
    pub original: Tuple,
    /// Server to client.
    pub reply: Tuple,
    /// Where the original direction comes from.
    pub ingress: ZoneId,
    /// Where the reply comes from.
    pub egress: ZoneId,
    /// The policy that it was judged by.
    pub generation: Generation,
    /// The rule that allowed it.
    pub rule: RuleId,
    /// The closed session whose tuple it takes over.
    pub supersedes: Option<SessionId>,
    /// For TCP `server` is always there.
    pub protocol: HandshakeState,
    /// A field of level 2, of no meaning. 0: none.
    #[cfg(feature = "next-level")]
    #[serde(skip)]
    pub tag: u32,
}

impl From<&HalfOpen> for Establish {
    /// What a half-open session becomes, however far its handshake is.
    fn from(open: &HalfOpen) -> Establish {
        Establish {
            id: open.id,
            original: open.original,
            reply: open.reply,
            ingress: open.ingress,
            egress: open.egress,
            generation: open.generation,
            rule: open.rule,
            supersedes: open.supersedes,
            protocol: open.protocol,
            #[cfg(feature = "next-level")]
            tag: 0,
        }
    }
}

/// The end of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Close {
    /// The session.
    pub id: SessionId,
    /// Why.
    pub cause: CloseCause,
}

/// How a session ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum CloseCause {
    /// Both FINs were seen.
    Fin,
    /// A valid RST was seen.
    Rst,
}

/// Why an open session ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndCause {
    /// Both FINs were seen.
    Fin,
    /// A valid RST was seen, or both ends began another connection with its tuple.
    Rst,
    /// It was idle for its timeout.
    Idle,
    /// An administrator ended it.
    Revoked,
    /// The policy of this generation forbids it.
    Forbidden(Generation),
}

impl From<CloseCause> for EndCause {
    fn from(cause: CloseCause) -> EndCause {
        match cause {
            CloseCause::Fin => EndCause::Fin,
            CloseCause::Rst => EndCause::Rst,
        }
    }
}

/// An open session that a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EndedSession {
    /// Its id.
    pub id: SessionId,
    /// Client to server.
    pub original: Tuple,
    /// The zones of the original direction.
    pub zones: ZonePair,
    /// The policy and rule that allowed it.
    pub rule: (Generation, RuleId),
    /// How long it was open, by the wall clocks of the members that proposed its establishment and its end; to a tenth of
    /// a second.
    pub duration: Duration,
    /// Why it ended.
    pub cause: EndCause,
    /// What all members forwarded, as far as this member knows. `None`: it is still in the table.
    pub traffic: Option<PerDirection<Traffic>>,
}

/// A session as an administrator sees it.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// Its id.
    pub id: SessionId,
    /// Client to server.
    pub original: Tuple,
    /// Server to client.
    pub reply: Tuple,
    /// The zones of the original direction.
    pub zones: ZonePair,
    /// The policy and rule that allowed it.
    pub rule: (Generation, RuleId),
    /// The protocol's state as conntrack(8) names it: `SYN_SENT`, `ESTABLISHED`, `TIME_WAIT`, `UNREPLIED`, `ASSURED` …
    pub state: &'static str,
    /// Half-open: not yet in the log.
    pub half_open: bool,
    /// Time since this member saw a packet of it.
    pub idle: Duration,
    /// Time until it ends if no packet comes.
    pub timeout: Duration,
    /// What all members forwarded, as far as this member knows.
    pub traffic: PerDirection<Traffic>,
}

/// Sizes of the table.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Sessions by protocol and state, as in [`SessionInfo::state`].
    pub sessions: Vec<(Protocol, &'static str, u64)>,
    /// Half-open sessions.
    pub half_open: u64,
    /// Half-open sessions that were evicted because there were too many.
    pub half_open_evicted: u64,
}
