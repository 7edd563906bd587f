//! Commands: entries of the replicated log, applied in its order.
//!
//! Everything that had to be chosen (ids, times, ports) travels in the command, so that applying it is a function of
//! the state and the command alone. The encoding is `postcard`'s: variants and fields are never reordered or removed,
//! only added at the end behind a raised feature level.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cluster_state::MemberInfo;
use crate::id::{Generation, MemberId, SessionId};
use crate::session::{Close, Establish};

/// One entry of the log: what one member's proposals were while its last batch was in flight.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Batch {
    /// Who proposes.
    pub proposer: MemberId,
    /// The number of the first command: the commands of a proposer are numbered without gaps, and a batch that is
    /// proposed again has the same numbers again.
    pub first: u64,
    /// The proposer's lowest number that it has not seen applied. Outcomes below it are forgotten; a command below it
    /// is a late copy and does nothing.
    pub floor: u64,
    /// The proposer's wall clock, milliseconds since 1970. For people (`since`), never for decisions.
    pub unix_ms: u64,
    /// The commands.
    pub commands: Vec<Command>,
}

/// For logs: who, which numbers. Never the commands themselves, of which there may be thousands.
impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} commands of member {} from {}", self.commands.len(), self.proposer, self.first)
    }
}

/// A change of the replicated state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Adds a session, if its policy generation is the one in force ([`Outcome::Stale`] otherwise), its tuples are
    /// free or held by the closed session that it supersedes ([`Outcome::Conflict`]), and there is room
    /// ([`Outcome::Full`]). The same session id again: the outcome of the first time.
    Establish(Box<Establish>),
    /// Turns a session into TIME_WAIT: it still passes what belongs to it, and its tuple may be superseded.
    Close(Close),
    /// Removes sessions that all members found idle, or whose TIME_WAIT is over. Unknown ids do nothing.
    Expire(Vec<SessionId>),
    /// Removes sessions that an administrator or a new policy does not want any longer.
    Revoke(Vec<SessionId>),
    /// Puts a policy in force from this index on, if `base` is the generation in force ([`Outcome::Stale`]).
    Policy(Box<PolicyChange>),
    /// Changes the list of members.
    Member(MemberChange),
    /// Keeps sessions alive of which a packet is held, because all members may have said that they are idle. Unknown and
    /// closed ones stay as they are.
    Refresh(Vec<SessionId>),
    /// Removes open sessions that all members found idle, unless that may no longer be so.
    ExpireIdle(ExpireIdle),
    /// The proposer begins to pass packets (again), and remembers nothing of what it said about idle sessions.
    Resume,
}

/// Sessions that are to end because all members found them idle.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExpireIdle {
    /// How many times members had resumed ([`Command::Resume`]) when the first one was asked. If one has since, nothing
    /// ends: what it said, or would have said, does not bind it any longer.
    pub resumes: u64,
    /// The sessions, and how often each had been refreshed when the first member was asked. One that has been since stays.
    pub sessions: Vec<(SessionId, u16)>,
}

/// A new policy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PolicyChange {
    /// The generation that it replaces.
    pub base: Generation,
    /// The policy's text, canonical form. It was checked before it was proposed; should it not compile nevertheless,
    /// it is refused ([`Outcome::Invalid`]) and the old one stays.
    pub text: String,
    /// Who applied it, for the history.
    pub author: String,
}

/// A change of the list of members. Who votes is openraft's membership; this is the register of ids and names.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MemberChange {
    /// The first member of a new cluster, with the cluster's id.
    Init {
        /// The cluster's random id, as hexadecimal text.
        cluster_id: String,
        /// The member: id 1.
        member: MemberInfo,
    },
    /// Accepts a join secret until `expires_unix_ms`.
    Token {
        /// SHA-256 or another one-way digest of the secret, as the join service computes it.
        secret_digest: Vec<u8>,
        /// When it ends, on the leader's wall clock.
        expires_unix_ms: u64,
    },
    /// Registers a member, with the next free id ([`Outcome::Member`]). Its name must be free ([`Outcome::Conflict`]).
    Join(MemberInfo),
    /// Strikes a member off. Its id is never used again.
    Leave(MemberId),
}

/// What applying a command did. Committed is not accepted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// Done.
    Accepted,
    /// Judged by a generation that is no longer in force: judge again.
    Stale(Generation),
    /// Another session, or member, has that tuple, or name.
    Conflict,
    /// No room.
    Full,
    /// The command can not be applied; the text says why.
    Invalid(String),
    /// The policy is in force under this generation.
    Policy(Generation),
    /// The member is registered under this id.
    Member(MemberId),
    /// A copy of a command that was answered long ago.
    Forgotten,
}

/// What became of a command that was applied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    /// Its answer: of a copy the same as of the first one.
    pub outcome: Outcome,
    /// Did it change the replicated state? A copy does not, nor does what was so already: a session that is established
    /// under the same id, closed or ended twice. Of several sessions to end: any of them.
    pub changed: bool,
    /// The sessions that it ended.
    pub ended: Vec<SessionId>,
}

impl Applied {
    /// The answers alone, for whoever proposed.
    #[must_use]
    pub fn outcomes(all: &[Applied]) -> Vec<Outcome> {
        all.iter().map(|applied| applied.outcome.clone()).collect()
    }
}
