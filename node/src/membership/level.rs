//! Raising the level in force: by an administrator, or by the leader if the setting `level.raise` says so.

use std::sync::Arc;
use std::time::Duration;

use palisade_engine::replica::{Command, InvalidReason, LevelRaise, Outcome};
use palisade_engine::{ClusterState, Engine, Level, Levels};
use tokio::sync::mpsc;

use crate::clock;
use crate::membership::error::MembershipError;
use crate::membership::register::Membership;
use crate::raft::config::PalisadeRaft;
use crate::raft::requests::{AdminRequest, REQUEST_TIMEOUT, propose_and_wait};

/// Time between two looks of the leader at what the members can.
const LEVEL_CHECK_INTERVAL: Duration = Duration::from_secs(5);

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
    fn refused(reason: InvalidReason, cluster: &ClusterState) -> MembershipError {
        let error = match reason {
            InvalidReason::LevelBeyondMember { member, lowest, highest } => RaiseError::BeyondMember {
                name: cluster.member_name(member),
                program: cluster.capabilities.get(&member).map(|known| known.program.clone()).unwrap_or_default(),
                levels: Levels { lowest, highest },
            },
            InvalidReason::NoCapabilities(member) => RaiseError::NotRegistered { name: cluster.member_name(member) },
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
                Outcome::Invalid(reason) => return Err(RaiseError::refused(reason, &self.engine.cluster_state())),
                other => return Err(MembershipError::Refused(format!("{other:?}"))),
            }
        }
    }
}

/// The leader's task that raises the level in force when every member has known the next one for as long as the setting says. A
/// new leader counts from its own election.
pub(crate) struct LevelRaiser {
    pub(crate) raft: PalisadeRaft,
    pub(crate) engine: Arc<Engine>,
    pub(crate) requests: mpsc::Sender<AdminRequest>,
}

impl LevelRaiser {
    pub(crate) async fn run(self) {
        let mut possible_since = None;
        loop {
            tokio::time::sleep(LEVEL_CHECK_INTERVAL).await;
            let cluster = self.engine.cluster_state();
            let is_possible = self.raft.is_leader() && cluster.possible_level() > cluster.level;
            let LevelRaise::After(delay) = cluster.settings.values.level_raise() else {
                possible_since = None;
                continue;
            };
            if !is_possible {
                possible_since = None;
                continue;
            }
            let now = clock::now();
            if now.since(*possible_since.get_or_insert(now)) < delay {
                continue;
            }
            possible_since = None;
            let level = cluster.level.next();
            match propose_and_wait(&self.requests, Command::Level(level), REQUEST_TIMEOUT).await {
                Ok(Outcome::Accepted) => {
                    tracing::info!(%level, "the level in force was raised, as the setting level.raise says")
                }
                Ok(outcome) => tracing::warn!(%level, ?outcome, "the level in force was not raised"),
                Err(error) => tracing::info!(%level, %error, "the level in force was not raised; trying again"),
            }
        }
    }
}
