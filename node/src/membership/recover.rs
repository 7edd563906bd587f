//! When the majority is lost for good: a survivor goes on alone, as a new cluster, with everything that it has.
//!
//! Nothing here makes Raft give up its majority. The member's state (its snapshot and all of its log) becomes the first
//! snapshot of a new log, of a cluster with a new id whose only member it is. The members of the old cluster, should one
//! come back, are refused by the check that every request passes ([`crate::peer::route`]), because they name another cluster.
//!
//! **Order.** The new store is written beside the old one and is durable before the identity is replaced, atomically, by
//! one that names the new cluster and the new store. Before that nothing has happened; after that the old store is never
//! opened again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use palisade_engine::replica::{MemberInfo, Replica};
use palisade_engine::{Engine, Generation, MemberId};
use palisade_raft_store::{Identity as StoreIdentity, Remains, Setup};

use crate::membership::change::{MembershipError, NoWake, random_cluster};
use crate::membership::identity::{Folder, Identity};
use crate::peer::route::{Lane, Peers};
use crate::replication::OpenError;
use crate::replication::Options;
use crate::replication::start::{blocking, open_store, store_options};

/// How long a member that is said to be lost may take to answer.
const ANSWER: Duration = Duration::from_secs(1);

/// Why a member can not go on alone.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The data folder, or its store.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It is no member any longer.
    #[error("this machine was removed from its cluster: it can not go on for the others. Use a member that was not")]
    Removed,
    /// There is nobody to strike off.
    #[error("this machine is its cluster's only member already: start its daemon")]
    Alone,
    /// The majority is there.
    #[error(
        "{} of {voters} voters are there ({answering}, and this one): that is a majority, so nothing is lost. Start \
         this daemon. If they answer but are broken, stop them first",
        answering.split(", ").count() + 1
    )]
    Majority {
        /// The names of those that answer.
        answering: String,
        /// How many vote.
        voters: usize,
    },
    /// Random numbers.
    #[error(transparent)]
    Membership(#[from] MembershipError),
}

/// A member that is to be struck off.
#[derive(Clone, Debug)]
pub struct Lost {
    /// Its id.
    pub id: MemberId,
    /// Its name, address and role.
    pub info: MemberInfo,
    /// Did it vote?
    pub voter: bool,
    /// Does it answer?
    pub answers: bool,
}

/// What going on alone means here.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The old cluster's id.
    pub cluster: String,
    /// This member.
    pub member: MemberId,
    /// Its name.
    pub name: String,
    /// Who is struck off.
    pub lost: Vec<Lost>,
    /// The index of the last entry in this member's log: later ones are lost.
    pub last_log: u64,
    /// The index of the last entry that this member knew to be committed: later ones up to `last_log` become so.
    pub committed: u64,
    /// The policy that will be in force.
    pub policy: Generation,
    /// The sessions that will be there.
    pub sessions: u64,
}

/// A member that may go on alone. Its data folder is locked; nothing has been changed yet.
pub struct Recovery {
    folder: Folder,
    identity: Identity,
    remains: Remains<Replica>,
    plan: Plan,
    info: MemberInfo,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The new cluster's id.
    pub cluster: String,
    /// This member.
    pub member: MemberId,
    /// Where the old log lies; nothing uses it any longer.
    pub old_store: PathBuf,
}

impl Recovery {
    /// Reads all that the member has, and looks who else is there. The daemon must not run.
    ///
    /// # Errors
    /// [`RecoverError`]
    pub async fn prepare(options: &Options) -> Result<Recovery, RecoverError> {
        let folder = Folder::lock(&options.data_dir).map_err(OpenError::from)?;
        let identity = folder.identity().map_err(OpenError::from)?.ok_or(OpenError::NotMember)?;
        let me = identity.member;
        let engine =
            Engine::new(palisade_engine::Config { member: me, start: identity.starts, ..options.engine.clone() });
        let (dir, machine) = (folder.store(&identity), Replica::new(engine.clone()));
        let owner = StoreIdentity { cluster: identity.cluster.clone(), member: me };
        let remains = blocking(move || {
            let mut store = open_store(&dir)?;
            if store.identity().is_none() {
                return Ok(None);
            }
            store.set_identity(owner)?;
            store.remains(Setup { machine, wake: Box::new(NoWake), observer: Arc::new(()) }).map(Some)
        });
        let remains = remains.await?.ok_or(OpenError::LostLog(me))?;

        let view = engine.view();
        let info = view.members.get(&me).cloned().ok_or(RecoverError::Removed)?;
        let peers = Peers::new(&identity.cluster, me).map_err(|s| OpenError::Raft(s.to_string()))?;
        let others = view.members.iter().filter(|(id, _)| **id != me);
        let lost = others.map(|(id, info)| async {
            let answers = answers(&peers, *id, &info.address).await;
            Lost { id: *id, info: info.clone(), voter: remains.voters.contains(id), answers }
        });
        let lost = futures::future::join_all(lost).await;
        if lost.is_empty() && remains.voters.iter().all(|id| *id == me) {
            return Err(RecoverError::Alone);
        }
        let there: Vec<&str> = lost.iter().filter(|l| l.voter && l.answers).map(|l| l.info.name.as_str()).collect();
        let voters = remains.voters.len();
        let own = usize::from(remains.voters.contains(&me));
        if !there.is_empty() && there.len() + own > voters / 2 {
            return Err(RecoverError::Majority { answering: there.join(", "), voters });
        }
        let index = |id: &Option<palisade_raft_store::LogId>| id.as_ref().map_or(0, |id| id.index);
        let plan = Plan {
            cluster: identity.cluster.clone(),
            member: me,
            name: info.name.clone(),
            lost,
            last_log: index(&remains.last),
            committed: index(&remains.committed),
            policy: engine.generation(),
            sessions: engine.counts().sessions.iter().map(|(_, _, n)| n).sum(),
        };
        Ok(Recovery { folder, identity, remains, plan, info })
    }

    /// What it means.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Does it. Afterwards the daemon starts as the only member of a new cluster.
    ///
    /// # Errors
    /// [`RecoverError`]; nothing has changed then.
    pub async fn carry_out(self) -> Result<Recovered, RecoverError> {
        let Recovery { folder, identity, remains, info, .. } = self;
        let (cluster, member) = (random_cluster()?, identity.member);
        let old_store = folder.store(&identity);
        let alone = identity.alone(&cluster);
        let dir = folder.clear_store(&alone).map_err(OpenError::from)?;
        let owner = StoreIdentity { cluster: cluster.clone(), member };
        blocking(move || {
            remains.machine(|machine| machine.go_on_alone(&owner.cluster, member));
            remains.found(&dir, store_options(), owner, info)
        })
        .await?;
        folder.replace(&alone).map_err(OpenError::from)?;
        Ok(Recovered { cluster, member, old_store })
    }
}

/// Does that member of that cluster answer there? Any that runs answers this question, with or without a majority.
async fn answers(peers: &Peers, id: MemberId, address: &str) -> bool {
    let Ok(mut client) = peers.client(id, address, Lane::Control) else { return false };
    let nothing = client.still_idle(palisade_proto::member::v1::Sessions::default());
    tokio::time::timeout(ANSWER, nothing).await.is_ok_and(|answer| answer.is_ok())
}
