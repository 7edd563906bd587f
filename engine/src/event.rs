//! What the packet path tells the other members, and hears from them.

use serde::{Deserialize, Serialize};

use crate::addr::Ip;
use crate::id::{Generation, RuleId, SessionId, ZoneId, ZonePair};
use crate::reset::BothEdges;
use crate::session::{Close, Establish, HalfOpen};
use crate::traffic::TrafficDelta;
use crate::tuple::{Direction, PerDirection, Protocol, Tuple};
use crate::verdict::{HoldKey, Reason};
use crate::worker_set::WorkerSet;

/// A consequence of a packet, besides its verdict. The worker sends it on and does not wait for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Tell all other members, at once, unlogged.
    Hint(Hint),
    /// Put it into the log. Every packet that depends on it is held until it is applied here.
    Propose(Proposal),
    /// Wake the packets that these workers of this member hold for a key.
    Wake {
        /// The workers.
        workers: WorkerSet,
        /// The key.
        key: HoldKey,
    },
    /// Write it to the connection log: its rule says `log`.
    Log(LoggedDecision),
}

/// A decision about a connection whose rule says `log`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoggedDecision {
    /// The tuple of the connection's first packet.
    pub tuple: Tuple,
    /// The zones that this packet came from, and would leave to.
    pub zones: ZonePair,
    /// The policy that decided.
    pub generation: Generation,
    /// The rule that decided.
    pub rule: RuleId,
    /// What was decided.
    pub decision: ConnectionDecision,
}

/// What was decided about a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnectionDecision {
    /// Its first packet passed. Not of TCP: a TCP connection is open when its establishment is applied.
    Opened(SessionId),
    /// It was idle for too long, and was not established before.
    Unestablished(SessionId),
    /// Its first packet was discarded.
    Dropped(Reason),
    /// Its first packet was discarded, and its sender is told.
    Rejected(Reason),
}

/// A command that the packet path wants committed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Proposal {
    /// A completed handshake.
    Establish(Box<Establish>),
    /// A finished session.
    Close(Close),
    /// A packet is held of a session that may be about to end because all members found it idle.
    Refresh(SessionId),
}

/// A small unlogged message about a session that is opening or closing. Losing one costs a retransmission, never
/// safety: a hint alone admits only the packets of a handshake that the policy allowed at its sender.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Hint {
    /// A half-open session was made or learned its server's ISN. Receivers merge it with what they have.
    HalfOpen(Box<HalfOpen>),
    /// A half-open session ended without establishment (a RST answered the SYN).
    Abort(SessionId),
    /// A FIN of an established session was seen.
    Fin {
        /// The session.
        id: SessionId,
        /// Who sent it.
        direction: Direction,
        /// The sequence number after the FIN.
        end: u32,
    },
    /// A valid RST of an established session was seen; the Close is under way.
    Rst {
        /// The session.
        id: SessionId,
    },
    /// A packet with this tuple waits for a hint: members that know a half-open session of it send its hint again.
    Query(Tuple),
    /// The reply about an established TCP session.
    Progress {
        /// The session.
        id: SessionId,
        /// What the sender knows of it.
        snapshot: TcpSnapshot,
        /// Its recent segments that passed provisionally, with their directions.
        provisional: Vec<(Direction, ProvisionalSegment)>,
    },
    /// The first fragment of a datagram was forwarded: its later fragments may pass at any member.
    FirstFragment {
        /// The datagram.
        datagram: FragmentKey,
        /// Where the first fragment's data end, in bytes.
        end: u16,
        /// The zone that it was forwarded to. The later ones may leave by no other.
        egress: ZoneId,
    },
    /// A fragment waits for the first one: members that know it send its hint again.
    FragmentQuery(FragmentKey),
    /// An administrator has ended the TCP connection with this tuple, and both ends are to be told: segments that still come of it
    /// are answered by RSTs.
    Reset(Tuple),
    /// The answer to [`Hint::Reset`] of a member that has seen packets of the connection.
    Ended {
        /// Client to server.
        original: Tuple,
        /// What each end may expect.
        edges: BothEdges,
    },
}

impl Hint {
    /// Whether it must leave room for other hints in a queue. Each fragmented datagram causes such a hint, whatever its session,
    /// and one command may end a million connections: a flood of them must not displace the hints of handshakes.
    #[must_use]
    pub fn is_low_priority(&self) -> bool {
        matches!(self, Hint::FirstFragment { .. } | Hint::FragmentQuery(_) | Hint::Reset(_) | Hint::Ended { .. })
    }
}

/// The key that the fragments of one datagram share (RFC 791 section 3.2, RFC 8200 section 4.5), and the zone that they come
/// from: a fragment from another zone does not belong to it. Each member hashes it with its own seed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct FragmentKey {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// The protocol. For IPv6 that of the fragment header itself, [`Protocol::IPV6_FRAG`]: the next header that it names counts
    /// in the first fragment only.
    pub protocol: Protocol,
    /// The identification.
    pub id: u32,
    /// The zone that it comes from.
    pub ingress: ZoneId,
}

/// What a member knows of an established TCP connection: the reply to a snapshot query, and part of [`Progress`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TcpSnapshot {
    /// The client's end and the server's.
    pub endpoints: PerDirection<EndpointSnapshot>,
    /// The end that one direction alone asserted there after a member was lost.
    pub unconfirmed: Option<UnconfirmedEdge>,
    /// Whether packets of the connection passed there lately.
    pub live: bool,
    /// Whether the member may have missed packets of the connection.
    pub history_incomplete: bool,
}

/// A highest sequence number that packets of one direction assert, and that those of the opposite direction have not confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UnconfirmedEdge {
    /// The direction whose sender's number it is.
    pub of: Direction,
    /// The direction of the packets that assert it.
    pub by: Direction,
    /// The highest sequence number sent.
    pub seq_end: u32,
}

/// The numbers of a segment that passed provisionally, because no live member knew those of its connection. A segment of
/// the opposite direction that is close to them shows that both are genuine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProvisionalSegment {
    /// The sequence number after the segment.
    pub seq_end: u32,
    /// The number that it acknowledged.
    pub ack: u32,
    /// The time since it passed, in ms.
    pub age_ms: u32,
}

/// Progress of a live session at one member, which it publishes several times a second, unlogged. Numbers and times are
/// merged so that order and copies make no difference. Traffic in a lost message is not counted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Progress {
    /// The session.
    pub id: SessionId,
    /// The time since its last packet passed there, in ms.
    pub idle_ms: u32,
    /// For TCP: what the member knows of the connection.
    pub tcp: Option<TcpSnapshot>,
    /// What was forwarded there since the last publication. `None`: the bandwidth did not suffice, and it follows later.
    pub traffic: Option<PerDirection<TrafficDelta>>,
}

/// What a member knows of one end of a TCP connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointSnapshot {
    /// The highest sequence number sent (conntrack's `td_end`).
    pub seq_end: u32,
    /// The highest sequence number acknowledged by the other end (RFC 9293: SND.UNA).
    pub snd_una: u32,
    /// The right edge of the window that the other end advertised (conntrack's `td_maxend`).
    pub window_end: u32,
    /// The largest window that this end advertised, unscaled (conntrack's `td_maxwin`).
    pub max_window: u16,
    /// The time since `seq_end` was confirmed, in ms. `None`: never.
    pub age_ms: Option<u32>,
    /// The sequence number after its FIN, if that is known.
    pub fin_end: Option<u32>,
}
