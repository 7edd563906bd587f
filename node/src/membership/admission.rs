//! Admission: the leader lets in a machine that knows a token's secret.

use std::sync::Arc;
use std::time::Duration;

use palisade_engine::replica::{Command, InvalidReason, Join, MemberChange, Outcome};
use palisade_engine::{ClusterState, Engine, Level, Levels, MemberId, MemberInfo};
use tokio::sync::mpsc;
use tonic::Status;

use crate::affordable::{UnaffordableError, bytes_for};
use crate::clock;
use crate::raft::config::PalisadeRaft;
use crate::raft::read_index::ReadIndex;
use crate::raft::requests::{AdminRequest, propose_and_wait};

/// How long the leader may take to admit a member.
pub(crate) const ADMISSION_TIMEOUT: Duration = Duration::from_secs(5);

/// What the member port needs to admit machines.
pub(crate) struct Admission {
    pub(crate) cluster: Arc<str>,
    pub(crate) raft: PalisadeRaft,
    pub(crate) read_index: ReadIndex,
    pub(crate) engine: Arc<Engine>,
    pub(crate) requests: mpsc::Sender<AdminRequest>,
}

impl Admission {
    /// On the leader: admits a machine that knows a token's secret, or that was admitted before by the same request. Returns the
    /// cluster and the member's id. Applying the command decides; what it would surely refuse is not put into the log. The
    /// machine's program must know the level in force: else it could not read the log. A machine that affords fewer sessions than
    /// the settings ask for could not start as a member.
    pub(crate) async fn admit(
        &self,
        join: Join,
        levels: Option<Levels>,
        affords: u64,
    ) -> Result<(String, MemberId), Status> {
        self.register_is_recent().await?;
        let cluster = self.engine.cluster_state();
        if !may_join(&cluster, &join, clock::unix_ms()) {
            return Err(no_valid_token());
        }
        if !levels.is_some_and(|levels| levels.contains(cluster.level)) {
            return Err(unknown_level(&join.member.name, levels, cluster.level));
        }
        let needed = cluster.settings.values.affordable_sessions();
        if affords < needed {
            let error = UnaffordableError { needed, affords };
            let memory = bytes_for(needed);
            return Err(Status::invalid_argument(format!(
                "{error}; set `limits.memory` in its node.toml to {memory} or more, restart it, and join again"
            )));
        }
        let info = join.member.clone();
        let command = Command::Member(MemberChange::Join(Box::new(join)));
        let outcome = propose_and_wait(&self.requests, command, ADMISSION_TIMEOUT).await;
        match outcome.map_err(|e| Status::unavailable(e.to_string()))? {
            Outcome::Member(id) => {
                // The reconciler would do it too, but only in its next round.
                if let Err(error) = self.raft.add_learner(id, info, false).await {
                    tracing::info!(%id, %error, "the new member becomes a learner later");
                }
                Ok((self.cluster.to_string(), id))
            }
            Outcome::Conflict => Err(Status::already_exists(conflict(&self.engine.cluster_state(), None, &info))),
            Outcome::Invalid(why) => Err(Status::permission_denied(why.to_string())),
            other => Err(Status::internal(format!("the log answered {other:?}"))),
        }
    }

    /// Waits until everything committed before this call is applied: the token may have been made a moment ago, elsewhere.
    async fn register_is_recent(&self) -> Result<(), Status> {
        let index = self.read_index.read().await.map_err(|e| Status::unavailable(e.to_string()))?;
        let applied = self.raft.wait(Some(ADMISSION_TIMEOUT)).applied_index_at_least(Some(index), "an admission").await;
        applied.map(drop).map_err(|e| Status::unavailable(e.to_string()))
    }
}

/// Refuses a machine whose program does not know the level in force.
fn unknown_level(name: &str, levels: Option<Levels>, in_force: Level) -> Status {
    let known = levels.map_or_else(|| "no level".to_owned(), |levels| levels.to_string());
    let advice = match levels {
        Some(levels) if levels.lowest > in_force => {
            "raise the level of the cluster first, or install an older version of Palisade there"
        }
        _ => "install the version of Palisade that the members run there, and join again",
    };
    Status::invalid_argument(format!(
        "the cluster is at level {in_force}, and the program on `{name}` knows {known}: {advice}"
    ))
}

/// On the leader: gives a member another name or another address.
pub(crate) async fn update(
    requests: &mpsc::Sender<AdminRequest>,
    engine: &Engine,
    member: MemberId,
    name: Option<String>,
    address: Option<String>,
) -> Result<(), Status> {
    let update = MemberChange::Update { member, name: name.clone(), address: address.clone() };
    let outcome = propose_and_wait(requests, Command::Member(update), ADMISSION_TIMEOUT).await;
    match outcome.map_err(|e| Status::unavailable(e.to_string()))? {
        Outcome::Accepted => Ok(()),
        Outcome::Conflict => {
            let info = MemberInfo {
                name: name.unwrap_or_default(),
                address: address.unwrap_or_default(),
                ..MemberInfo::default()
            };
            Err(Status::already_exists(conflict(&engine.cluster_state(), Some(member), &info)))
        }
        Outcome::Invalid(why) => Err(Status::invalid_argument(why.to_string())),
        other => Err(Status::internal(format!("the log answered {other:?}"))),
    }
}

/// Whether the register, as it is here, would take a join.
fn may_join(cluster: &ClusterState, join: &Join, now: u64) -> bool {
    let known = cluster.joining.values().any(|request| *request == join.request);
    known || cluster.tokens.iter().any(|(digest, end)| *digest == join.secret_digest && *end > now)
}

fn no_valid_token() -> Status {
    Status::permission_denied(InvalidReason::JoinToken.to_string())
}

/// Who has the name, or the address, that another member was to get.
fn conflict(cluster: &ClusterState, but: Option<MemberId>, wanted: &MemberInfo) -> String {
    let mut others = cluster.members.iter().filter(|(id, _)| Some(**id) != but).map(|(_, info)| info);
    let found = others.find(|other| other.name == wanted.name || other.address == wanted.address);
    let name = found.map_or(wanted.name.as_str(), |other| other.name.as_str());
    let what = match found {
        Some(other) if other.name != wanted.name => format!("member `{name}` has the address {}", other.address),
        _ => format!("a member named `{name}` exists"),
    };
    format!("{what}; choose another one, or `palisade cluster remove {name}` if it is gone")
}
