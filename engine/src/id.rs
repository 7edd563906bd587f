//! The ids of members, sessions, policy generations, rules and zones.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A member's stable id, assigned at its join and never reused. It is openraft's node id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct MemberId(pub u64);

impl From<u64> for MemberId {
    fn from(id: u64) -> MemberId {
        MemberId(id)
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The bits of a number that count within a start.
const START_SHIFT: u32 = 40;

/// The first of the numbers that a member gives in its `start`-th start: to sessions, and to the commands that it proposes. They go on
/// by single steps, beyond 2^40 too: then they are those of the next starts, which the member counts as used before.
#[must_use]
pub fn first_number(start: u32) -> u64 {
    u64::from(start) << START_SHIFT
}

/// The start that a number belongs to.
#[must_use]
pub fn start_of_number(number: u64) -> u32 {
    // 24 bits.
    (number >> START_SHIFT) as u32
}

/// A session's id: the member that opened it, and a counter of that member ([`first_number`]). No value of it is used again,
/// not even after a restart.
///
/// The member that sees the SYN assigns the id with the half-open entry, and sends it in its hints. So any member that sees
/// the final ACK proposes the same id, which makes proposals of one handshake idempotent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct SessionId {
    /// The member that saw the first packet.
    pub member: MemberId,
    /// The counter of that member.
    pub counter: u64,
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:x}", self.member, self.counter)
    }
}

/// The error for a text that is not a session id: `MEMBER-COUNTER`, decimal and hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a session id is MEMBER-COUNTER, such as 2-1a3f")]
pub struct SessionIdError;

impl FromStr for SessionId {
    type Err = SessionIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (member, counter) = s.split_once('-').ok_or(SessionIdError)?;
        Ok(SessionId {
            member: MemberId(member.parse().map_err(|_| SessionIdError)?),
            counter: u64::from_str_radix(counter, 16).map_err(|_| SessionIdError)?,
        })
    }
}

/// The number of an activated policy. Generation 0 is the policy of a new cluster: default drop, no rules.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A rule of one policy generation: its position, starting at 1. 0 is the default action.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct RuleId(pub u32);

/// The number of a zone. A zone gets its number when a policy, or a member's node.toml, first names it. It keeps the number as
/// long as one of them does, so that sessions outlive policies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct ZoneId(pub u16);

impl ZoneId {
    /// No zone: that of interfaces that are no data interfaces, or whose zone has no number yet. Nothing passes there.
    pub const UNKNOWN: ZoneId = ZoneId(0);
}

/// The zones of a session. The original direction goes from `ingress` to `egress`, the reply direction the other way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZonePair {
    /// The client's zone.
    pub ingress: ZoneId,
    /// The server's zone.
    pub egress: ZoneId,
}
