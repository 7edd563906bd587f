//! Protocols without TCP's states: UDP, ICMP echo, and all others, which are tracked by addresses.
//!
//! ```text
//!            initiator's packet          reply               initiator's packet
//!   (none) ────────────────────> UNREPLIED ─────> REPLIED ──────────────────────> ASSURED ── idle ──> (none)
//!            policy                                          Establish proposed,
//!                                                            applied later
//! ```
//!
//! No packet is held for the establishment. Until it is applied, both directions pass on the half-open entry, which all members
//! know from hints. All other combinations change nothing. A packet of either direction restarts the idle timeout.

use super::State;
use crate::parse::Kind;
use crate::session::HandshakeState;
use crate::tuple::Direction;

/// Whether a packet of this kind may go in this direction. Echo requests come from the client and replies from the server,
/// whose tuples look alike if the identifier is 0.
pub(crate) fn fits(kind: &Kind, direction: Direction) -> bool {
    match kind {
        Kind::EchoRequest => direction == Direction::Original,
        Kind::EchoReply => direction == Direction::Reply,
        _ => true,
    }
}

/// The state of a half-open session.
pub(crate) fn half_open_state(opening: &HandshakeState) -> State {
    match opening {
        HandshakeState::Tcp { server: None, .. } => State::SynSent,
        HandshakeState::Tcp { server: Some(_), .. } => State::SynRecv,
        HandshakeState::Generic { replied: false } => State::Unreplied,
        HandshakeState::Generic { replied: true } => State::Replied,
    }
}
