//! Recovery from the loss of a majority: a survivor becomes the only member of a new cluster, with all of its state.
//!
//! Nothing here makes Raft give up its majority. The member's state (its snapshot and all of its log) becomes the first
//! snapshot of a new log, of a cluster with a new id whose only member it is. Members of the old cluster that come back are
//! refused by the address check of every request ([`crate::peer::addressing`]), because they name another cluster.
//!
//! **Order.** The new store is written beside the old one and is durable before the identity is replaced, atomically, by
//! one that names the new cluster and the new store. Before that nothing has changed; after that the old store is never
//! opened again.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use palisade_engine::replica::Replica;
use palisade_engine::{Engine, Generation, MemberId, MemberInfo};
use palisade_raft_store::{Setup, StoreError, StoreOwner, SurvivingState};

use crate::membership::identity::{DataDir, Identity, IdentityError};
use crate::membership::join::random_cluster_id;
use crate::membership::options::Options;
use crate::peer::connections::{Lane, Members, Peers};
use crate::peer::error::ClusterIdError;
use crate::raft::start::{open_store, store_options};
use crate::random::RandomError;
use crate::wake::NoWake;
use tokio::task::spawn_blocking;

/// How long a member that is said to be lost may take to answer.
const PRESENCE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a member cannot be recovered.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum RecoverError {
    /// The data folder.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Identity(#[from] IdentityError),
    /// Its store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A task on the store was cancelled, or panicked.
    #[error("the store was not read")]
    Task(#[from] tokio::task::JoinError),
    /// It never was a member.
    #[error("this machine is no member of a cluster yet")]
    #[diagnostic(help(
        "create a cluster with `palisade cluster init`, or join one with `palisade cluster join TOKEN`"
    ))]
    NotMember,
    /// The store is not the one that belongs to the identity.
    #[error("the log of member {0} is gone: there is nothing to recover from on this machine")]
    #[diagnostic(help("use another member"))]
    LostLog(MemberId),
    /// The cluster's id.
    #[error(transparent)]
    ClusterId(#[from] ClusterIdError),
    /// It was removed.
    #[error("this machine was removed from its cluster: it cannot go on for the others")]
    #[diagnostic(help("use a member that was not removed"))]
    Removed,
    /// There is no other member to remove.
    #[error("this machine is its cluster's only member already")]
    #[diagnostic(help("start its daemon"))]
    Alone,
    /// A majority is there.
    #[error(
        "{} of {voters} voters are there ({answering}, and this one): that is a majority, so nothing is lost",
        answering.split(", ").count() + 1
    )]
    #[diagnostic(help("start this daemon. If the others answer but are broken, stop them first"))]
    Majority {
        /// The names of the members that answer.
        answering: String,
        /// The number of voters.
        voters: usize,
    },
    /// Random numbers.
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// A member that is to be removed.
#[derive(Clone, Debug)]
pub struct RemovedMember {
    /// Its id.
    pub id: MemberId,
    /// Its name, address and role.
    pub info: MemberInfo,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it answers.
    pub answers: bool,
}

/// What a recovery would change.
#[derive(Clone, Debug)]
pub struct RecoveryPlan {
    /// The old cluster's id.
    pub cluster: String,
    /// This member.
    pub member: MemberId,
    /// Its name.
    pub name: String,
    /// The members that are removed.
    pub removed: Vec<RemovedMember>,
    /// The index of the last entry in this member's log: later entries are lost.
    pub last_log: u64,
    /// The index of the last entry that this member knew to be committed: later entries up to `last_log` become committed.
    pub committed: u64,
    /// The policy that will be active.
    pub policy: Generation,
    /// The number of sessions that will be there.
    pub sessions: u64,
}

/// A recovery that was prepared. The data folder is locked; nothing has been changed yet.
pub struct Recovery {
    data_dir: DataDir,
    identity: Identity,
    surviving: SurvivingState<Replica>,
    plan: RecoveryPlan,
    info: MemberInfo,
}

/// A recovery that was carried out.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The new cluster's id.
    pub cluster: String,
    /// This member.
    pub member: MemberId,
    /// The folder of the old log; it is no longer used.
    pub old_store: PathBuf,
}

impl Recovery {
    /// Reads the member's state, and asks which other members are there. The daemon must not run.
    ///
    /// # Errors
    /// [`RecoverError`]
    pub async fn prepare(options: &Options) -> Result<Recovery, RecoverError> {
        let data_dir = DataDir::lock(&options.data_dir)?;
        let Some(identity) = data_dir.identity()? else {
            let removed = data_dir.removed_identity()?.is_some();
            return Err(if removed { RecoverError::Removed } else { RecoverError::NotMember });
        };
        let me = identity.member;
        let engine =
            Engine::new(palisade_engine::Config { member: me, start: identity.starts, ..options.engine.clone() });
        let (dir, machine) = (data_dir.store(&identity), Replica::new(engine.clone()));
        let owner = StoreOwner { cluster: identity.cluster.clone(), member: me };
        let surviving = spawn_blocking(move || {
            let mut store = open_store(&dir)?;
            if store.owner().is_none() {
                return Ok(None);
            }
            store.set_owner(owner)?;
            store.surviving_state(Setup { state: machine, wake: Box::new(NoWake), observer: Arc::new(()) }).map(Some)
        });
        let surviving = surviving.await??.ok_or(RecoverError::LostLog(me))?;

        let cluster = engine.cluster_state();
        let info = cluster.members.get(&me).cloned().ok_or(RecoverError::Removed)?;
        let peers = Peers::new(&identity.cluster, me)?;
        let answering = answering(&peers, &cluster.members).await;
        let others = cluster.members.iter().filter(|(id, _)| **id != me);
        let removed = others.map(|(id, info)| {
            let (voter, answers) = (surviving.voters.contains(id), answering.contains(id));
            RemovedMember { id: *id, info: info.clone(), voter, answers }
        });
        let removed: Vec<RemovedMember> = removed.collect();
        if removed.is_empty() && surviving.voters.iter().all(|id| *id == me) {
            return Err(RecoverError::Alone);
        }
        let there: Vec<&str> = removed.iter().filter(|r| r.voter && r.answers).map(|r| r.info.name.as_str()).collect();
        let voters = surviving.voters.len();
        let own = usize::from(surviving.voters.contains(&me));
        if !there.is_empty() && there.len() + own > voters / 2 {
            return Err(RecoverError::Majority { answering: there.join(", "), voters });
        }
        let index = |id: &Option<palisade_raft_store::LogId>| id.as_ref().map_or(0, |id| id.index);
        let plan = RecoveryPlan {
            cluster: identity.cluster.clone(),
            member: me,
            name: info.name.clone(),
            removed,
            last_log: index(&surviving.last),
            committed: index(&surviving.committed),
            policy: engine.generation(),
            sessions: engine.counts().sessions.iter().map(|(_, _, n)| n).sum(),
        };
        Ok(Recovery { data_dir, identity, surviving, plan, info })
    }

    /// What it would change.
    #[must_use]
    pub fn plan(&self) -> &RecoveryPlan {
        &self.plan
    }

    /// Carries the recovery out. Afterwards the daemon starts as the only member of a new cluster.
    ///
    /// # Errors
    /// [`RecoverError`]; nothing has changed then.
    pub async fn carry_out(self) -> Result<Recovered, RecoverError> {
        let Recovery { data_dir, identity, surviving, info, .. } = self;
        let (cluster, member) = (random_cluster_id()?, identity.member);
        let old_store = data_dir.store(&identity);
        let alone = identity.for_new_cluster(&cluster);
        let dir = data_dir.clear_store(&alone)?;
        let owner = StoreOwner { cluster: cluster.clone(), member };
        spawn_blocking(move || {
            surviving.state(|state| state.force_new_cluster(&owner.cluster, member));
            surviving.bootstrap(&dir, store_options(), owner, info)
        })
        .await??;
        data_dir.replace_identity(&alone)?;
        Ok(Recovered { cluster, member, old_store })
    }
}

/// The members of the old cluster that answer. Every running member answers this question, with or without a majority.
async fn answering(peers: &Peers, members: &Members) -> BTreeSet<MemberId> {
    let answers = peers.fan_out(members, Lane::Control, PRESENCE_TIMEOUT, |mut client| async move {
        client.confirm_idle(palisade_proto::member::v1::Sessions::default()).await
    });
    answers.filter_map(async |(id, answer)| answer.is_ok().then_some(id)).collect().await
}
