//! Commands: entries of the replicated log, applied in its order.
//!
//! Everything that had to be chosen (ids, times, ports) is in the command, so that applying it is a function of the state
//! and the command alone. How they are encoded: [`crate::encoding`]. New variants are added at the end.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::settings::SettingsChange;
use crate::cluster_state::{JoinRequest, MemberInfo};
use crate::id::{Generation, MemberId, SessionId};
use crate::level::{Capabilities, Level};
use crate::policy::{Policy, PolicyHash};
use crate::replicated::InvalidReason;
use crate::session::{Close, EndedSession, Establish};

/// One entry of the log: the commands that one member proposed while its last batch was in flight.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Batch {
    /// The member that proposes.
    pub proposer: MemberId,
    /// The serial number of the first command. A proposer numbers its commands without gaps, and a batch that is proposed
    /// again has the same numbers.
    pub first_serial: u64,
    /// The proposer's lowest serial number that it has not seen applied. Outcomes below it are dropped; a command below it
    /// is a late copy and has no effect.
    pub lowest_outstanding: u64,
    /// The proposer's wall clock, milliseconds since 1970. For people (`since`), and for what ends at a time of day: join tokens.
    pub unix_ms: u64,
    /// The commands.
    pub commands: Vec<Command>,
}

/// For logs: the proposer and the serial numbers, never the commands themselves: there may be thousands.
impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} commands of member {} from {}", self.commands.len(), self.proposer, self.first_serial)
    }
}

/// A change of the replicated state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Adds a session, if its policy generation is the active one ([`Outcome::Stale`] otherwise), its tuples are free or
    /// held by the closed session that it supersedes ([`Outcome::Conflict`]), and there is room ([`Outcome::Full`]). A
    /// session that is there already is accepted.
    Establish(Box<Establish>),
    /// Closes a session (TIME_WAIT, CLOSE): its packets still pass, and another session may supersede it.
    Close(Close),
    /// Removes sessions whose TIME_WAIT is over. Unknown ids have no effect.
    Expire(Vec<SessionId>),
    /// Removes sessions that an administrator revokes. Unknown ids have no effect.
    Revoke(Vec<SessionId>),
    /// Makes a policy the candidate, in place of the one before, if `base` is the generation in force ([`Outcome::Stale`]
    /// otherwise). Members compile it, each beside its packet path; [`Command::Enact`] puts it in force.
    Policy(Box<PolicyChange>),
    /// Changes the list of members.
    Member(MemberChange),
    /// Keeps sessions alive that members may have reported as idle: each begins its next activity epoch, and the packet that
    /// a member holds passes. Unknown and closed ones stay as they are.
    Refresh(Vec<SessionId>),
    /// Removes open sessions that all members reported as idle, unless a report may have become void since.
    ExpireIdle(ExpireIdle),
    /// Begins the next resume epoch: the proposer forwards packets (again), and is not bound by what it reported about idle
    /// sessions before.
    Resume,
    /// Raises the level in force to the next one, if every member has registered that its program knows it.
    Level(Level),
    /// Removes open sessions that an older policy allowed and the one in force forbids.
    RevokeForbidden(ForbiddenSessions),
    /// Changes settings, if the members afford them and nobody else changed them meanwhile ([`Outcome::Invalid`] otherwise).
    Settings(Box<SettingsChange>),
    /// Puts the candidate in force from this index on ([`Outcome::Policy`]), if it has this hash and `base` is the generation in
    /// force ([`Outcome::Stale`] otherwise). A candidate of the same batch is refused: a member looks once, before it applies
    /// a batch, whether it has compiled what the batch puts in force.
    Enact(Box<Enact>),
    /// Removes the candidate, if it has this hash and base: a member refused it, or too few have compiled it in time.
    Withdraw(Withdraw),
    /// A command of level 2: notes a number. It must stay the last one.
    #[cfg(feature = "next-level")]
    Note(u64),
}

/// The approximate size of a command in bytes, for bounds only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommandSize {
    /// In the log. It bounds a batch.
    pub encoded: usize,
    /// In memory, heap included. It bounds the log entries that are kept in memory.
    pub in_memory: usize,
}

impl Command {
    /// The command's approximate size.
    #[must_use]
    pub fn size(&self) -> CommandSize {
        let (encoded, in_memory) = match self {
            Command::Establish(_) => (112, 224),
            Command::Close(_) => (16, 48),
            Command::Expire(ids) | Command::Revoke(ids) | Command::Refresh(ids) => {
                (8 + 12 * ids.len(), 48 + 16 * ids.len())
            }
            Command::RevokeForbidden(forbidden) => {
                (16 + 12 * forbidden.sessions.len(), 64 + 16 * forbidden.sessions.len())
            }
            Command::ExpireIdle(idle) => (16 + 14 * idle.sessions.len(), 48 + 24 * idle.sessions.len()),
            Command::Resume | Command::Level(_) => (4, 16),
            #[cfg(feature = "next-level")]
            Command::Note(_) => (10, 16),
            Command::Policy(policy) => {
                let names: usize = policy.zones.iter().map(|name| name.len() + 2).sum();
                let more = policy.text.len() + policy.author.len() + names + 8 * policy.overridden.len();
                (128 + more, 192 + more + 24 * policy.zones.len())
            }
            Command::Enact(enact) => (48 + 8 * enact.without.len(), 96 + 8 * enact.without.len()),
            Command::Withdraw(_) => (48, 64),
            Command::Member(MemberChange::Zones { zones, .. }) => {
                let names: usize = zones.iter().map(String::len).sum();
                (64 + 2 * zones.len() + names, 96 + 24 * zones.len() + names)
            }
            Command::Member(_) => (512, 512),
            Command::Settings(change) => (64 + change.len(), 128 + 2 * change.len()),
        };
        CommandSize { encoded, in_memory }
    }
}

/// Sessions to remove because all members reported them as idle.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExpireIdle {
    /// The resume epoch when the first member was asked. If a member has resumed since ([`Command::Resume`]), nothing is
    /// removed: its report does not bind it any longer.
    pub resume_epoch: u64,
    /// The sessions, with their activity epochs when the first member was asked. One that was refreshed since
    /// ([`Command::Refresh`]) stays.
    pub sessions: Vec<(SessionId, u16)>,
}

/// Sessions that a policy forbids.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ForbiddenSessions {
    /// The policy's generation. If another one is in force, nothing is removed ([`Outcome::Stale`]).
    pub generation: Generation,
    /// The sessions. One that was opened under this policy stays, and one that is closed.
    pub sessions: Vec<SessionId>,
}

/// A new policy.
///
/// Applying it does not look into the text. What has to be known of it there is beside it, made by the proposer; every member
/// that compiles the text compares, and refuses a policy of which it is not true.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PolicyChange {
    /// The generation that it replaces.
    pub base: Generation,
    /// The policy's text, as its author wrote it.
    pub text: String,
    /// Who applied it, for the history.
    pub author: String,
    /// The hash of the text.
    pub hash: PolicyHash,
    /// The zones that the text declares, in its order. They are registered with the candidate, so that members can compile it.
    pub zones: Vec<String>,
    /// Members whose refusal does not stop it, as the administrator said.
    pub overridden: Vec<MemberId>,
}

impl PolicyChange {
    /// A change to this text. A text with errors gets no zones, and every member will refuse it.
    #[must_use]
    pub fn new(base: Generation, text: String, author: String) -> PolicyChange {
        let zones = Policy::parse("policy", &text).map(|policy| policy.zones().to_vec()).unwrap_or_default();
        PolicyChange { base, hash: PolicyHash::of(&text), text, author, zones, overridden: Vec::new() }
    }

    /// The second step: it puts this policy in force.
    #[must_use]
    pub fn enactment(&self) -> Enact {
        Enact { hash: self.hash, base: self.base, without: Vec::new() }
    }
}

/// Puts the candidate in force.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Enact {
    /// The candidate's.
    pub hash: PolicyHash,
    /// The generation that it replaces.
    pub base: Generation,
    /// Members that had not compiled it when this was proposed, for the history.
    pub without: Vec<MemberId>,
}

/// Removes the candidate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Withdraw {
    /// The candidate's.
    pub hash: PolicyHash,
    /// The generation that it was to replace.
    pub base: Generation,
}

/// A change of the register of members: ids, names, addresses. Who votes is openraft's membership.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MemberChange {
    /// The first member of a new cluster, with the cluster's id.
    Init {
        /// The cluster's random id, as hexadecimal text.
        cluster_id: String,
        /// The member: id 1.
        member: MemberInfo,
        /// The first level in force: the highest one that the member's program knows.
        level: Level,
    },
    /// Accepts a join secret until `expires_unix_ms`.
    Token {
        /// SHA-256 or another one-way digest of the secret, as the join service computes it.
        secret_digest: Vec<u8>,
        /// When it ends, on the leader's wall clock.
        expires_unix_ms: u64,
    },
    /// Registers a member, with the next free id, or with the one that the same request was given before ([`Outcome::Member`]).
    /// Its name and its address must be free ([`Outcome::Conflict`]).
    Join(Box<Join>),
    /// Removes a member. Its id is never used again.
    Leave(MemberId),
    /// Names the zones that a member's interfaces are in, in place of those that it named before. Each gets a number; one that
    /// nobody names any longer is forgotten.
    Zones {
        /// The member.
        member: MemberId,
        /// Their names.
        zones: Vec<String>,
    },
    /// Registers what a member can, in place of what it registered before. Each member proposes it at its start, before
    /// anything else, if it has changed.
    Capabilities {
        /// The member.
        member: MemberId,
        /// What it can.
        capabilities: Capabilities,
    },
    /// Gives a member another name, another address, or both. They must be free ([`Outcome::Conflict`]).
    Update {
        /// The member.
        member: MemberId,
        /// Its new name, if it changes.
        name: Option<String>,
        /// Its new address, if it changes.
        address: Option<String>,
    },
}

/// A machine that joins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Join {
    /// The machine's own number of this join. Until it has held a lease, it is registered once under it.
    pub request: JoinRequest,
    /// The digest of the join token's secret. The token must be valid, unless the request was taken before.
    pub secret_digest: Vec<u8>,
    /// What becomes of the machine.
    pub member: MemberInfo,
}

/// What applying a command did. Committed is not accepted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// It was applied.
    Accepted,
    /// The command was based on a policy generation that is no longer active. This one is.
    Stale(Generation),
    /// Another session, or member, has that tuple, or name.
    Conflict,
    /// No room.
    Full,
    /// The command cannot be applied, for this reason.
    Invalid(InvalidReason),
    /// The policy is in force under this generation.
    Policy(Generation),
    /// The member is registered under this id.
    Member(MemberId),
    /// A copy of a command whose outcome is no longer kept.
    SerialExpired,
}

/// The effect of a command on the replicated state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    /// The outcome. A copy has that of the first one.
    pub outcome: Outcome,
    /// Whether the replicated state changed. A copy does not change it, nor does a command that asks for what is so already:
    /// a session that is established under the same id, closed or removed twice.
    pub changed: bool,
    /// The sessions that it removed, without one that was superseded.
    pub removed: Vec<SessionId>,
    /// The open sessions that it closed or removed.
    pub ended: Vec<EndedSession>,
}

impl Applied {
    /// The outcomes alone, for the proposer.
    #[must_use]
    pub fn outcomes(all: &[Applied]) -> Vec<Outcome> {
        all.iter().map(|applied| applied.outcome.clone()).collect()
    }
}
