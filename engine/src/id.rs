//! The identities of members, sessions, policies, rules and zones.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A member's stable id, given at its join and never used again after it left. It is openraft's node id.
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

/// A session's id: the member that opened it, and that member's counter. A counter is never used twice, also not
/// across restarts: its upper half is the member's start count.
///
/// The id is given with the half-open entry at the SYN, by the member that saw the SYN, and travels in its hints, so
/// that whichever member sees the ACK proposes the same id: proposals of the same opening are idempotent by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct SessionId {
    /// The member that saw the first packet.
    pub member: MemberId,
    /// Its counter.
    pub counter: u64,
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:x}", self.member, self.counter)
    }
}

/// A session id that does not read as `MEMBER-COUNTER` (decimal, hexadecimal).
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

/// The number of a policy. Generation 0 is the policy of a new cluster: default drop, no rules.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A rule of one policy generation: its position from 1; 0 is the default action.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct RuleId(pub u32);

/// A zone. Zone names get their numbers when a policy first names them; the numbers stay for the life of the cluster,
/// so that sessions outlive policies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct ZoneId(pub u16);

impl ZoneId {
    /// The zone of interfaces whose zone no policy has named: no rule but `any` matches it.
    pub const UNKNOWN: ZoneId = ZoneId(0);
}

/// The zones that a session's original direction comes from and leaves to; the reply direction goes the other way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZonePair {
    /// The zone of the client's side.
    pub ingress: ZoneId,
    /// The zone of the server's side.
    pub egress: ZoneId,
}
