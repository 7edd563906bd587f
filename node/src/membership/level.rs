//! Raising the level in force: by an administrator, or by the leader if the setting `level.raise` says so.

use std::sync::Arc;
use std::time::Duration;

use palisade_engine::replica::{Command, InvalidReason, LevelRaise, Outcome};
use palisade_engine::{ClusterState, Engine, Level, Levels, Time};
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

/// Since when every member has known the next level, as this leader has seen it.
#[derive(Default)]
struct RaiseTimer(Option<(Level, Time)>);

impl RaiseTimer {
    /// The level to which it is to be raised now: the next one, when every member has known it for as long as the setting says.
    fn due(&mut self, is_leader: bool, cluster: &ClusterState, now: Time) -> Option<Level> {
        let next = cluster.level.next();
        let is_possible = is_leader && cluster.possible_level() >= next;
        let LevelRaise::After(delay) = cluster.settings.values.level_raise() else {
            self.0 = None;
            return None;
        };
        let known = self.0.filter(|(level, _)| *level == next);
        self.0 = is_possible.then(|| known.unwrap_or((next, now)));
        self.0.filter(|(_, since)| now.since(*since) >= delay).map(|(level, _)| level)
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
        let mut timer = RaiseTimer::default();
        loop {
            tokio::time::sleep(LEVEL_CHECK_INTERVAL).await;
            let cluster = self.engine.cluster_state();
            let Some(level) = timer.due(self.raft.is_leader(), &cluster, clock::now()) else { continue };
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

#[cfg(test)]
mod tests {
    use palisade_engine::replica::{SettingKey, Settings};
    use palisade_engine::{Capabilities, MemberId, MemberInfo};

    use super::*;

    const DELAY: Duration = Duration::from_secs(60);

    /// Members whose programs know the levels from 1 to these.
    fn cluster(highest: &[u16]) -> ClusterState {
        let mut cluster = ClusterState { level: Level(1), ..ClusterState::default() };
        for (id, highest) in (1..).map(MemberId).zip(highest) {
            cluster.members.insert(id, MemberInfo::default());
            let known = Capabilities { highest: Level(*highest), ..Capabilities::of_program(1, "1") };
            cluster.capabilities.insert(id, known);
        }
        cluster.settings.values = Settings::default().with(SettingKey::LevelRaise, DELAY.as_millis() as u64);
        cluster
    }

    #[test]
    fn level_is_raised_when_all_have_known_it_for_the_time_of_the_setting() {
        let at = |secs: u64| Time(0) + Duration::from_secs(secs);
        let all = cluster(&[2, 2, 2]);
        let mut timer = RaiseTimer::default();
        assert_eq!(timer.due(true, &all, at(100)), None, "it has just become possible");
        assert_eq!(timer.due(true, &all, at(159)), None);
        assert_eq!(timer.due(true, &all, at(160)), Some(Level(2)));
        assert_eq!(timer.due(true, &all, at(165)), Some(Level(2)), "again, if it was not confirmed");

        // What ends the wait begins it again.
        let mut by_hand = all.clone();
        by_hand.settings.values = Settings::default();
        for (is_leader, between) in [(true, cluster(&[2, 1, 2])), (false, all.clone()), (true, by_hand)] {
            let mut timer = RaiseTimer::default();
            assert_eq!(timer.due(true, &all, at(100)), None);
            assert_eq!(timer.due(is_leader, &between, at(300)), None);
            assert_eq!(timer.due(true, &all, at(310)), None);
            assert_eq!(timer.due(true, &all, at(369)), None);
            assert_eq!(timer.due(true, &all, at(370)), Some(Level(2)));
        }
        let mut unknown = all.clone();
        unknown.capabilities.remove(&MemberId(3));
        assert_eq!(timer.due(true, &unknown, at(1000)), None, "one has not said what it can");
    }

    #[test]
    fn each_level_waits_for_itself() {
        let at = |secs: u64| Time(0) + Duration::from_secs(secs);
        let mut timer = RaiseTimer::default();
        let mut cluster = cluster(&[3, 3]);
        assert_eq!(timer.due(true, &cluster, at(0)), None);
        assert_eq!(timer.due(true, &cluster, at(60)), Some(Level(2)));
        cluster.level = Level(2);
        assert_eq!(timer.due(true, &cluster, at(65)), None);
        assert_eq!(timer.due(true, &cluster, at(125)), Some(Level(3)));
        cluster.level = Level(3);
        assert_eq!(timer.due(true, &cluster, at(300)), None);
    }
}
