//! Admission: the leader lets in a machine that knows a token's secret.

use std::sync::Arc;
use std::time::Duration;

use palisade_engine::MemberInfo;
use palisade_engine::replica::{Command, MemberChange, Outcome};
use palisade_engine::{Engine, Level, Levels, MemberId};
use tokio::sync::mpsc;
use tonic::Status;

use crate::clock;
use crate::membership::token;
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
    /// On the leader: admits a machine that knows a token's secret. Returns the cluster and the new member's id.
    /// Its program must know the level in force: else it could not read the log.
    pub(crate) async fn admit(
        &self,
        secret: &[u8],
        info: MemberInfo,
        levels: Option<Levels>,
    ) -> Result<(String, MemberId), Status> {
        self.register_is_recent().await?;
        let digest = token::digest(secret);
        let now = clock::unix_ms();
        let cluster = self.engine.cluster_state();
        if !cluster.tokens.iter().any(|(known, end)| *known == digest && *end > now) {
            return Err(Status::permission_denied(
                "the join token is unknown or has expired; make a new one with `palisade cluster token`",
            ));
        }
        if !levels.is_some_and(|levels| levels.contains(cluster.level)) {
            return Err(unknown_level(&info.name, levels, cluster.level));
        }
        let name = info.name.clone();
        let join = Command::Member(MemberChange::Join(info.clone()));
        let outcome = propose_and_wait(&self.requests, join, ADMISSION_TIMEOUT).await;
        match outcome.map_err(|e| Status::unavailable(e.to_string()))? {
            Outcome::Member(id) => {
                // The reconciler would do it too, but only in its next round.
                if let Err(error) = self.raft.add_learner(id, info, false).await {
                    tracing::info!(%id, %error, "the new member becomes a learner later");
                }
                Ok((self.cluster.to_string(), id))
            }
            Outcome::Conflict => Err(Status::already_exists(format!(
                "a member named `{name}` exists; choose another name, or `palisade cluster remove {name}` if it is gone"
            ))),
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
