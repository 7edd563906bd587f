//! What the packet path tells the other members, and hears from them.

use serde::{Deserialize, Serialize};

use crate::addr::Ip;
use crate::id::{Generation, RuleId, SessionId, ZoneId};
use crate::replica::{Close, Establish};
use crate::traffic::TrafficDelta;
use crate::tuple::{Direction, PerDirection, Protocol, Tuple};
use crate::verdict::HoldKey;

/// A consequence of a packet, beside its verdict. The worker sends it on; it never waits for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Tell all other members, at once, unlogged.
    Hint(Hint),
    /// Put it into the log. Every packet that depends on it is held until it is applied here.
    Propose(Proposal),
    /// Wake packets that workers of this member (bit n: worker n) hold for this key.
    Wake {
        /// The workers.
        workers: u64,
        /// The key.
        key: HoldKey,
    },
}

/// A command that the packet path wants committed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Proposal {
    /// A completed handshake.
    Establish(Box<Establish>),
    /// A finished session.
    Close(Close),
    /// A session that may be about to end because all members found it idle, and of which a packet is held.
    Refresh(SessionId),
}

/// A small unlogged message about a session that is opening or closing. Losing one costs a retransmission, never
/// safety: a hint alone admits nothing but the packets of a handshake that policy allowed at its sender.
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
    /// A packet with this tuple waits for a hint: whoever knows a half-open session of it sends it again.
    Query(Tuple),
    /// The answer about an established TCP session: what this member knows of its two ends, the client first.
    Progress {
        /// The session.
        id: SessionId,
        /// What is known.
        snapshot: TcpSnapshot,
        /// What segments of either direction said lately where nobody knew.
        provisional: Vec<(Direction, ProvisionalSegment)>,
    },
    /// The first fragment of a datagram was forwarded: the others may follow it through any member.
    FirstFragment {
        /// The datagram.
        datagram: Datagram,
        /// Where the first fragment's data end, in bytes.
        end: u16,
    },
    /// A fragment waits for the first one: whoever knows of that says so again.
    FragmentQuery(Datagram),
}

impl Hint {
    /// Must it leave room for others? One packet of a fragmented datagram makes one such hint, whatever session it is of:
    /// a flood of them must not displace what handshakes need.
    #[must_use]
    pub fn is_low_priority(&self) -> bool {
        matches!(self, Hint::FirstFragment { .. } | Hint::FragmentQuery(_))
    }
}

/// What the fragments of one datagram have in common (RFC 791 section 3.2, RFC 8200 section 4.5), and where they come
/// from: a fragment from elsewhere does not belong to it. Members hash it each with their own seed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Datagram {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// The protocol. For IPv6 that of the fragment header itself, [`Protocol::IPV6_FRAG`]: what it says of the next header
    /// counts in the first fragment only.
    pub protocol: Protocol,
    /// The identification.
    pub id: u32,
    /// The zone that it comes from.
    pub ingress: ZoneId,
}

/// What a member knows of an established TCP connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TcpSnapshot {
    /// Client and server.
    pub endpoints: [EndpointSnapshot; 2],
    /// What one direction alone said there after a member was lost.
    pub unconfirmed: Option<UnconfirmedEdge>,
    /// Packets of it passed there lately.
    pub live: bool,
    /// The member may once have known more.
    pub history_incomplete: bool,
}

/// How far an end is, as packets of one direction say, and those of the other have not confirmed yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UnconfirmedEdge {
    /// Whose number: that of the packets of this direction's sender.
    pub of: Direction,
    /// Which direction's packets say so.
    pub by: Direction,
    /// The highest sequence number sent.
    pub seq_end: u32,
}

/// What a segment said of its connection's numbers, which nobody alive knew. One of the other direction that agrees with it
/// shows that both are right.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProvisionalSegment {
    /// The sequence number after it.
    pub seq_end: u32,
    /// What it acknowledged.
    pub ack: u32,
    /// How many milliseconds ago it passed.
    pub age_ms: u32,
}

/// What passed of a live session at one member, as it tells the others several times a second, unlogged. Numbers and times
/// are merged so that any order, and copies, give the same; what is lost of the traffic is not counted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Progress {
    /// The session.
    pub id: SessionId,
    /// How many milliseconds ago its last packet passed there.
    pub idle_ms: u32,
    /// TCP: what is known of the two ends.
    pub tcp: Option<TcpSnapshot>,
    /// What was forwarded there since the last publication. `None`: the bandwidth did not suffice, and it follows later.
    pub traffic: Option<PerDirection<TrafficDelta>>,
}

/// What a member knows of one end of a TCP connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointSnapshot {
    /// Highest sequence number sent.
    pub seq_end: u32,
    /// Highest sequence number acknowledged by the other end.
    pub snd_una: u32,
    /// Highest sequence number that the other end allowed.
    pub window_end: u32,
    /// The largest window that it advertised, unscaled.
    pub max_window: u16,
    /// How many milliseconds ago `edge` was confirmed.
    pub age_ms: Option<u32>,
    /// The sequence number after its FIN.
    pub fin_end: Option<u32>,
}

/// A session whose establishment is not yet complete, as members tell it each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HalfOpen {
    /// The id that the session will have.
    pub id: SessionId,
    /// Client to server, as the client sends it.
    pub original: Tuple,
    /// Server to client, as the server sends it; the inverse of `original` but for NAT.
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
    /// TCP, before the server's end is known: what an ACK acknowledged by which the server answered the SYN because it still
    /// has an earlier connection. The client's RST, which ends that one, has this number (RFC 9293 section 3.5.1).
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
