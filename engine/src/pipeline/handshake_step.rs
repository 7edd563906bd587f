//! The classification of a packet by one half-open session: which step of its handshake the packet is.
//!
//! It only reads numbers. What follows from a step is in `half_open.rs`, whose module doc has the diagram.

use crate::parse::Tcp;
use crate::session::SynParams;
use crate::track::tcp::{MAX_SYN_DATA, max_advertisable_window, seq_diff};
use crate::tuple::Direction;
use crate::verdict::Reason;

/// What a packet is to a half-open session. Ordered by certainty, the surest last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum HandshakeStep {
    /// The server's ACK in answer to the SYN: it still has an older connection on this tuple (RFC 9293 section 3.5.1).
    ChallengeAck,
    /// The client's RST that ends the older connection. The client goes on opening this one.
    ChallengeRst,
    /// A SYN-ACK with another ISN than the known one.
    SynAckNewIsn,
    /// The server's SYN, which crosses the client's, or a copy of it. Unlike a SYN-ACK it proves nothing.
    SimultaneousSyn,
    /// A packet that may belong; the server's ISN, which would decide it, is not known.
    Ambiguous,
    /// The first SYN-ACK.
    FirstSynAck,
    /// A packet that belongs to the connection that this will be, but does not complete the handshake.
    EarlyData,
    /// A packet that follows the client's acknowledgement of the SYN-ACK.
    AckInWindow,
    /// The client's acknowledgement of exactly this SYN-ACK.
    FinalAck,
    /// A copy of the SYN.
    SynRetransmit,
    /// A copy of the SYN-ACK.
    SynAckRetransmit,
    /// The end of the attempt.
    Reset,
    /// Protocols without handshakes: a packet in the direction of the first one.
    ClientPacket,
    /// Protocols without handshakes: a packet in the other direction.
    ServerPacket,
}

impl HandshakeStep {
    /// Whether a packet of another connection with the same tuple could be taken for this step.
    pub(super) fn could_match_other_connection(self) -> bool {
        use HandshakeStep as S;
        matches!(self, S::Ambiguous | S::EarlyData | S::AckInWindow | S::Reset | S::ChallengeAck | S::ChallengeRst)
    }

    /// Whether the numbers of both ends identify the connection. Beside a live session on the same tuple only these steps
    /// count, or a forged SYN could divert the packets of that session.
    pub(super) fn identifies_connection(self) -> bool {
        use HandshakeStep as S;
        !matches!(self, S::Ambiguous | S::SimultaneousSyn | S::ChallengeAck | S::ChallengeRst)
    }
}

/// The numbers of a TCP half-open session.
#[derive(Clone, Copy)]
pub(crate) struct TcpHandshake<'a> {
    pub(crate) client: &'a SynParams,
    pub(crate) server: Option<&'a SynParams>,
    /// Whether this member has proposed the establishment.
    pub(crate) proposed: bool,
    /// See [`HalfOpen`](crate::session::HalfOpen).
    pub(crate) challenge: Option<u32>,
}

/// Whether a sequence or acknowledgement number lies at most `max` ahead of the expected one.
fn is_ahead_by(distance: i64, max: i64) -> bool {
    (0..=max).contains(&distance)
}

impl TcpHandshake<'_> {
    /// The step that a segment is, or why it is none.
    pub(crate) fn classify(&self, direction: Direction, tcp: &Tcp) -> Result<HandshakeStep, Reason> {
        let flags = tcp.flags & (Tcp::SYN | Tcp::ACK | Tcp::RST | Tcp::FIN);
        if matches!(flags, 0 | Tcp::FIN) || flags & (Tcp::FIN | Tcp::RST) == Tcp::FIN | Tcp::RST {
            return Err(Reason::TcpFlags);
        }
        match (flags, direction, self.server) {
            (Tcp::SYN, ..) => self.classify_syn(direction, tcp),
            (flags, ..) if flags == Tcp::SYN | Tcp::ACK => self.classify_syn_ack(direction, tcp),
            (flags, ..) if flags & Tcp::SYN != 0 => Err(Reason::TcpFlags),
            (_, Direction::Original, None) => self.classify_client(flags, tcp),
            (_, Direction::Reply, None) => self.classify_server(flags, tcp),
            (_, _, Some(server)) => self.classify_with_both_ends(server, direction, flags, tcp),
        }
    }

    /// The first sequence number after the client's SYN.
    fn client_first(&self) -> u32 {
        self.client.isn.wrapping_add(1)
    }

    fn classify_syn(&self, direction: Direction, tcp: &Tcp) -> Result<HandshakeStep, Reason> {
        match direction {
            Direction::Original if tcp.seq == self.client.isn => Ok(HandshakeStep::SynRetransmit),
            // A half-open session takes one ISN of the server from SYNs, or forged ones could try them all.
            Direction::Reply if self.server.is_none_or(|server| server.isn == tcp.seq) => {
                Ok(HandshakeStep::SimultaneousSyn)
            }
            Direction::Original | Direction::Reply => Err(Reason::TcpWindow),
        }
    }

    fn classify_syn_ack(&self, direction: Direction, tcp: &Tcp) -> Result<HandshakeStep, Reason> {
        let acknowledges = |isn: u32| is_ahead_by(seq_diff(tcp.ack, isn.wrapping_add(1)), MAX_SYN_DATA);
        match (direction, self.server) {
            (Direction::Reply, _) if !acknowledges(self.client.isn) => Err(Reason::TcpWindow),
            (Direction::Reply, None) => Ok(HandshakeStep::FirstSynAck),
            (Direction::Reply, Some(server)) if server.isn == tcp.seq => Ok(HandshakeStep::SynAckRetransmit),
            (Direction::Reply, Some(_)) => Ok(HandshakeStep::SynAckNewIsn),
            // After a simultaneous open the client, too, answers with a SYN-ACK.
            (Direction::Original, _) if tcp.seq != self.client.isn => Err(Reason::TcpWindow),
            (Direction::Original, None) => Ok(HandshakeStep::Ambiguous),
            (Direction::Original, Some(server)) if acknowledges(server.isn) => Ok(HandshakeStep::FinalAck),
            (Direction::Original, Some(_)) => Err(Reason::TcpWindow),
        }
    }

    /// A client's segment without SYN, before the server's ISN is known.
    fn classify_client(&self, flags: u8, tcp: &Tcp) -> Result<HandshakeStep, Reason> {
        if flags == Tcp::RST && self.challenge == Some(tcp.seq) {
            Ok(HandshakeStep::ChallengeRst)
        } else if flags & Tcp::RST != 0 {
            self.classify_rst(tcp.seq == self.client_first())
        } else if is_ahead_by(seq_diff(tcp.seq, self.client_first()), MAX_SYN_DATA) {
            Ok(HandshakeStep::Ambiguous)
        } else {
            Err(Reason::TcpWindow)
        }
    }

    /// A server's segment without SYN, before the server's ISN is known.
    fn classify_server(&self, flags: u8, tcp: &Tcp) -> Result<HandshakeStep, Reason> {
        let acknowledges_syn = is_ahead_by(seq_diff(tcp.ack, self.client_first()), MAX_SYN_DATA);
        if flags & Tcp::RST != 0 {
            // RFC 9293 section 3.10.7.3: in SYN-SENT a RST is valid if it acknowledges the SYN.
            self.classify_rst(tcp.has(Tcp::ACK) && acknowledges_syn)
        } else if acknowledges_syn {
            Ok(HandshakeStep::Ambiguous)
        } else if flags == Tcp::ACK && tcp.payload == 0 && self.challenge.is_none_or(|ack| ack == tcp.ack) {
            // A half-open session takes one number, or blind attackers could make the client send RSTs at will.
            Ok(HandshakeStep::ChallengeAck)
        } else {
            Err(Reason::TcpWindow)
        }
    }

    /// A segment without SYN, with both ISNs known.
    fn classify_with_both_ends(
        &self,
        server: &SynParams,
        direction: Direction,
        flags: u8,
        tcp: &Tcp,
    ) -> Result<HandshakeStep, Reason> {
        let (sender, receiver) = match direction {
            Direction::Original => (self.client, server),
            Direction::Reply => (server, self.client),
        };
        let seq = seq_diff(tcp.seq, sender.isn.wrapping_add(1));
        let ack = seq_diff(tcp.ack, receiver.isn.wrapping_add(1));
        // Before the handshake is complete the server may send what the client's SYN allows (RFC 7413), which is not scaled. A
        // larger bound would let a scaled window's worth of forged acknowledgements into the log.
        let max_ack = match direction {
            Direction::Original => MAX_SYN_DATA,
            Direction::Reply => max_advertisable_window(sender, receiver),
        };
        let fits = is_ahead_by(seq, max_advertisable_window(receiver, sender))
            && (flags & Tcp::ACK == 0 || is_ahead_by(ack, max_ack));
        match (flags & Tcp::RST != 0, direction) {
            (true, _) if !fits => Err(Reason::TcpRst),
            (true, _) => self.classify_rst(seq == 0),
            (false, _) if !fits => Err(Reason::TcpWindow),
            (false, Direction::Original) if ack == 0 => Ok(HandshakeStep::FinalAck),
            (false, Direction::Original) => Ok(HandshakeStep::AckInWindow),
            (false, Direction::Reply) => Ok(HandshakeStep::EarlyData),
        }
    }

    /// A RST. `exact`: it has the one number with which its receiver accepts it.
    fn classify_rst(&self, exact: bool) -> Result<HandshakeStep, Reason> {
        match (exact, self.proposed) {
            (true, false) => Ok(HandshakeStep::Reset),
            // The establishment is under way. Its session will judge.
            (_, true) => Ok(HandshakeStep::EarlyData),
            (false, false) => Err(Reason::TcpRst),
        }
    }
}
