//! Protocols without states of their own: UDP, ICMP echo, and all others by addresses.
//!
//! ```text
//!            initiator's packet          reply               initiator's packet
//!   (none) ────────────────────> UNREPLIED ─────> REPLIED ──────────────────────> ASSURED ── idle ──> (none)
//!            policy                                          Establish proposed,
//!                                                            applied later
//! ```
//!
//! Nothing is held for the establishment: until it is applied, both directions pass on the half-open entry, which every
//! member knows by hints. All other combinations change nothing. A packet of either direction renews the session's time.

use super::State;
use crate::event::HandshakeState;
use crate::parse::Kind;
use crate::tuple::Direction;

/// May a packet of this kind go this way? Echo replies never ask, and requests never answer; an identifier of 0 makes
/// their tuples look alike.
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
