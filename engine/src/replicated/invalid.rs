//! Why a command was refused: a code, because it is part of the replicated state. The texts are for people, are made where they
//! are shown, and may differ between programs.

use serde::{Deserialize, Serialize};

use super::dedup::MAX_OUTSTANDING;
use super::settings::SettingsRefusal;
use super::zones::MAX_MEMBER_ZONES;
use crate::id::MemberId;
use crate::level::{Level, Levels};
use crate::policy::{MAX_TEXT, MAX_ZONES};

/// Why a command cannot be applied. Its encoding is in outcomes: new reasons are added at the end, and a reason that a later
/// level adds is given only at that level.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum InvalidReason {
    /// The proposer has left.
    #[error("member {0} has left")]
    HasLeft(MemberId),
    /// The serial number is out of range.
    #[error("the serial number is more than {MAX_OUTSTANDING} above the proposer's lowest outstanding one")]
    SerialOutOfRange,
    /// An establishment with address translation.
    #[error("the reply tuple is not the inverse of the original one: there is no address translation")]
    ReplyNotInverse,
    /// An establishment of TCP without a SYN-ACK.
    #[error("the server's SYN parameters are missing")]
    NoServer,
    /// An establishment whose parts do not fit.
    #[error("the handshake state is not of the tuple's protocol")]
    HandshakeProtocol,
    /// A policy's text is too long.
    #[error("a policy can have at most {MAX_TEXT} bytes")]
    PolicyLength,
    /// What is said beside a policy is too long.
    #[error("the author's name, or the list of members, is too long")]
    PolicyRemarks,
    /// A policy with too many zones.
    #[error("a policy can have at most {MAX_ZONES} zones")]
    TooManyPolicyZones,
    /// There is no candidate of this hash and base: another policy was proposed since, or it was withdrawn.
    #[error("there is no such candidate any longer")]
    NoCandidate,
    /// A policy is put in force in the batch that proposes it.
    #[error("the candidate is of the same batch")]
    CandidateOfBatch,
    /// Too many zone names.
    #[error("a cluster can have at most 65,534 zone names")]
    TooManyZones,
    /// `Init` without an id.
    #[error("the cluster id cannot be empty")]
    NoClusterId,
    /// A member's change before `Init`.
    #[error("the cluster is not initialized")]
    NotInitialized,
    /// There is no such member.
    #[error("there is no member {0}")]
    NoMember(MemberId),
    /// A member with too many zones.
    #[error("a member can have at most {MAX_MEMBER_ZONES} zones")]
    TooManyMemberZones,
    /// The zone at this position, from 0, cannot have its name.
    #[error("zone name number {} cannot be the name of a zone", .0 + 1)]
    ZoneName(u32),
    /// A member's capabilities are none.
    #[error("the capabilities of a member need a range of levels and a version of at most {} bytes", MAX_PROGRAM_BYTES)]
    Capabilities,
    /// A member does not know the level in force.
    #[error("the level in force is {level}, and member {member} knows {}", Levels { lowest: *.lowest, highest: *.highest })]
    LevelUnknown {
        /// The member.
        member: MemberId,
        /// The lowest level that it knows.
        lowest: Level,
        /// The highest level that it knows.
        highest: Level,
        /// The level that it does not know.
        level: Level,
    },
    /// The level can only rise, one by one.
    #[error("the level in force is {in_force}: it can be raised to the next one only, not to {asked}")]
    LevelNotNext {
        /// The level in force.
        in_force: Level,
        /// The one that was asked for.
        asked: Level,
    },
    /// A member has not registered what it can.
    #[error("member {0} has not registered which levels its program knows: it has not started since it joined")]
    NoCapabilities(MemberId),
    /// A member's program does not know the level.
    #[error("the program of member {member} knows {}", Levels { lowest: *.lowest, highest: *.highest })]
    LevelBeyondMember {
        /// The member.
        member: MemberId,
        /// The lowest level that it knows.
        lowest: Level,
        /// The highest level that it knows.
        highest: Level,
    },
    /// The command, or something in it, exists from this level on only.
    #[error("this exists from level {0} on (`palisade cluster level`)")]
    NeedsLevel(Level),
    /// A change of settings.
    #[error(transparent)]
    Settings(SettingsRefusal),
    /// A join without a valid token.
    #[error("the join token is unknown or has expired; make a new one with `palisade cluster token`")]
    JoinToken,
    /// A member cannot have this name or this address.
    #[error("a member's name has 1 to 63 characters, and its address is `host:port`")]
    MemberInfo,
}

/// Maximum length of a program's version, in bytes.
pub(super) const MAX_PROGRAM_BYTES: usize = 64;
