//! Raising the level in force.

use palisade_engine::replica::{Command, InvalidReason, Outcome};
use palisade_engine::{ClusterState, Level, Levels, MemberId};

use crate::membership::error::MembershipError;
use crate::membership::register::Membership;
use crate::raft::requests::{REQUEST_TIMEOUT, propose_and_wait};

/// Why the level in force was not raised.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum RaiseError {
    /// A member's program does not know the level.
    #[error("{name} runs Palisade {program}, which knows {levels}: the level in force stays")]
    #[diagnostic(help("upgrade {name} first; `palisade cluster level show` shows what each member can"))]
    BeyondMember {
        /// The member.
        name: String,
        /// Its program's version.
        program: String,
        /// The levels that its program knows.
        levels: Levels,
    },
    /// A member has not registered what it can.
    #[error("{name} has not registered which levels its program knows: the level in force stays")]
    #[diagnostic(help(
        "a member does so when it starts: start {name}, or remove it if it is gone for good (`palisade cluster remove {name}`)"
    ))]
    NotRegistered {
        /// The member.
        name: String,
    },
    /// The level in force is above the one asked for.
    #[error("the level in force is {in_force}: it cannot be lowered to {asked}")]
    #[diagnostic(help("a raise is for good: programs that do not know level {in_force} cannot be members any longer"))]
    Lowered {
        /// The level in force.
        in_force: Level,
        /// The level asked for.
        asked: Level,
    },
}

impl RaiseError {
    /// A refusal of the log, with the members' names.
    fn new(reason: InvalidReason, cluster: &ClusterState) -> MembershipError {
        let name =
            |id: MemberId| cluster.members.get(&id).map_or_else(|| format!("member {id}"), |info| info.name.clone());
        let error = match reason {
            InvalidReason::LevelBeyondMember { member, lowest, highest } => RaiseError::BeyondMember {
                name: name(member),
                program: cluster.capabilities.get(&member).map(|known| known.program.clone()).unwrap_or_default(),
                levels: Levels { lowest, highest },
            },
            InvalidReason::NoCapabilities(member) => RaiseError::NotRegistered { name: name(member) },
            InvalidReason::LevelNotNext { in_force, asked } => RaiseError::Lowered { in_force, asked },
            other => return MembershipError::Refused(other.to_string()),
        };
        MembershipError::Raise(error)
    }
}

impl Membership {
    /// Raises the level in force, one by one, until it is `to`.
    pub(crate) async fn raise_level(&self, to: Level) -> Result<(), MembershipError> {
        loop {
            let in_force = self.engine.cluster_state().level;
            if in_force == to {
                return Ok(());
            }
            if in_force > to {
                return Err(MembershipError::Raise(RaiseError::Lowered { in_force, asked: to }));
            }
            match propose_and_wait(&self.requests, Command::Level(in_force.next()), REQUEST_TIMEOUT).await? {
                Outcome::Accepted => {}
                // Somebody else has raised it meanwhile.
                Outcome::Invalid(InvalidReason::LevelNotNext { in_force: now, .. }) if now > in_force => {}
                Outcome::Invalid(reason) => return Err(RaiseError::new(reason, &self.engine.cluster_state())),
                other => return Err(MembershipError::Refused(format!("{other:?}"))),
            }
        }
    }
}
