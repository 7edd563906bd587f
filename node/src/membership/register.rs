//! Changes of the register that begin at this member: tokens, leaving, removing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use openraft::async_runtime::WatchReceiver;
use palisade_engine::replica::{Command, MemberChange};
use palisade_engine::{Engine, MemberId, MemberInfo};
use palisade_proto::member::v1 as wire;
use tokio::sync::{mpsc, watch};

use crate::clock;
use crate::membership::admission::{self, ADMISSION_TIMEOUT};
use crate::membership::error::{MembershipError, accepted};
use crate::membership::identity::{DataDir, Identity};
use crate::membership::presence::PRESENCE_TIMEOUT;
use crate::membership::token::{self, Token};
use crate::peer::connections::{Lane, Members, Peers};
use crate::raft::config::PalisadeRaft;
use crate::raft::leadership::Leadership;
use crate::raft::quorum::lacks_majority;
use crate::raft::requests::{AdminRequest, REQUEST_TIMEOUT, propose_and_wait};
use crate::raft::transfer::LeadershipTransfer;
use crate::random::random;

/// How often a member that leaves looks whether it has been removed.
const REMOVAL_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long the leader may take to say whether this member has been removed.
const REMOVAL_QUERY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a change of a name or an address may take: an election may be under way.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long one member may take to answer: the leader waits for the log at most for [`ADMISSION_TIMEOUT`].
const UPDATE_ANSWER_TIMEOUT: Duration = ADMISSION_TIMEOUT.saturating_add(Duration::from_secs(1));
/// Time between two rounds over the members.
const UPDATE_RETRY_DELAY: Duration = Duration::from_millis(500);
/// Members that are asked one after the other: the first one, the leader that it knows of, perhaps the next leader.
const MAX_REDIRECTS: usize = 3;
/// Addresses in a join token.
const MAX_TOKEN_ADDRESSES: usize = 4;

/// This member's place in the register of members.
pub(crate) struct Membership {
    pub(crate) identity: Identity,
    pub(crate) data_dir: Arc<DataDir>,
    pub(crate) raft: PalisadeRaft,
    pub(crate) engine: Arc<Engine>,
    pub(crate) requests: mpsc::Sender<AdminRequest>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) peers: Peers,
    pub(crate) transfer: LeadershipTransfer,
}

/// What a request to remove a member did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Removal {
    /// It is no member any longer.
    Removed(MemberId),
    /// It answers, so it can leave by itself: nothing was changed.
    Alive(MemberId),
}

impl Membership {
    /// Makes a join token that is good for `ttl`.
    pub(crate) async fn create_token(&self, ttl: Duration) -> Result<String, MembershipError> {
        let secret = random::<32>()?;
        let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let change = MemberChange::Token {
            secret_digest: token::digest(&secret),
            expires_unix_ms: clock::unix_ms().saturating_add(ttl),
        };
        self.change(change).await?;
        let cluster = self.engine.cluster_state();
        let (mine, others): (Vec<_>, Vec<_>) = cluster.members.iter().partition(|(id, _)| **id == self.identity.member);
        let addresses = mine.into_iter().chain(others).map(|(_, info)| info.address.clone());
        let addresses = addresses.take(MAX_TOKEN_ADDRESSES).collect();
        Ok(Token::new(self.identity.cluster.clone(), addresses, secret).to_string())
    }

    /// Transfers leadership if need be, is removed, and archives the identity.
    pub(crate) async fn leave(&self) -> Result<(), MembershipError> {
        let me = self.identity.member;
        if self.engine.cluster_state().is_last(me) {
            return Err(MembershipError::LastMember);
        }
        self.check_quorum_without(me).await?;
        // Best effort: a leader that is removed transfers leadership too, only later.
        if let Err(error) = self.transfer.transfer(None).await {
            tracing::debug!(%error, "leaving without a transfer of leadership");
        }
        self.change(MemberChange::Leave(me)).await?;
        let removed = tokio::time::timeout(2 * REQUEST_TIMEOUT, self.wait_removed()).await;
        removed.map_err(|_| MembershipError::Timeout("leaving"))?;
        Ok(self.data_dir.archive_identity()?)
    }

    /// Waits until this member neither votes nor is replicated to.
    pub(crate) async fn wait_removed(&self) {
        let me = self.identity.member;
        loop {
            let metrics = self.raft.server_metrics().borrow_watched().clone();
            if metrics.committed_membership_config.get_node(&me).is_none() {
                return;
            }
            // A removed member may never learn of it from the log: it asks the leader.
            let leader = self.leadership.borrow().leader.clone().filter(|leader| leader.id != me);
            if let Some(leader) = leader
                && let Ok(mut client) = self.peers.client(leader.id, &leader.address, Lane::Control)
            {
                let ask = client.read_index(wire::ReadIndexRequest { declines_leadership: true, policy: None });
                if let Ok(Err(status)) = tokio::time::timeout(REMOVAL_QUERY_TIMEOUT, ask).await
                    && status.code() == tonic::Code::PermissionDenied
                {
                    return;
                }
            }
            tokio::time::sleep(REMOVAL_POLL_INTERVAL).await;
        }
    }

    /// Removes another member. One that answers only if it is to be removed alive: it could leave by itself, and lose nothing.
    pub(crate) async fn remove(&self, name: &str, alive_too: bool) -> Result<Removal, MembershipError> {
        let cluster = self.engine.cluster_state();
        let id = cluster.member_named(name).ok_or_else(|| MembershipError::NoSuchMember(name.to_owned()))?;
        if id == self.identity.member {
            return Err(MembershipError::CannotRemoveSelf(name.to_owned()));
        }
        if self.answering(&cluster.members).await.contains(&id) {
            if !alive_too {
                return Ok(Removal::Alive(id));
            }
            self.check_quorum_without(id).await?;
        }
        self.change(MemberChange::Leave(id)).await?;
        Ok(Removal::Removed(id))
    }

    /// Gives a member another name, another address, or both. Whoever answers is asked, as by a machine that joins: a member that has
    /// moved cannot be reached by the others, so it does not know who leads.
    pub(crate) async fn update(
        &self,
        member: Option<&str>,
        name: Option<String>,
        address: Option<String>,
    ) -> Result<MemberId, MembershipError> {
        let cluster = self.engine.cluster_state();
        let id = match member {
            None => self.identity.member,
            Some(wanted) => {
                cluster.member_named(wanted).ok_or_else(|| MembershipError::NoSuchMember(wanted.to_owned()))?
            }
        };
        let request = wire::UpdateRequest { member: id.0, name, address };
        let updated = tokio::time::timeout(UPDATE_TIMEOUT, self.ask_to_update(&cluster.members, request)).await;
        updated.map_err(|_| MembershipError::Timeout("the change"))??;
        Ok(id)
    }

    /// Asks the leader, or the members one after the other, until one has done it or refuses.
    async fn ask_to_update(&self, members: &Members, request: wire::UpdateRequest) -> Result<(), MembershipError> {
        let me = self.identity.member;
        loop {
            if self.raft.is_leader() {
                let wire::UpdateRequest { member, name, address } = request.clone();
                match admission::update(&self.requests, &self.engine, MemberId(member), name, address).await {
                    Ok(()) => return Ok(()),
                    Err(status) if is_final(&status) => {
                        return Err(MembershipError::Refused(status.message().to_owned()));
                    }
                    // It does not lead any longer, or has no majority now.
                    Err(status) => tracing::info!(%status, "a change of a member was not confirmed; trying again"),
                }
            }
            for (id, info) in members.iter().filter(|(id, _)| **id != me) {
                if self.ask_one_to_update(*id, info.address.clone(), &request).await? {
                    return Ok(());
                }
            }
            tokio::time::sleep(UPDATE_RETRY_DELAY).await;
        }
    }

    /// Asks one member, and the leader that it names. Whether it is done.
    async fn ask_one_to_update(
        &self,
        mut member: MemberId,
        mut address: String,
        request: &wire::UpdateRequest,
    ) -> Result<bool, MembershipError> {
        use wire::update_response::Answer;
        for _ in 0..MAX_REDIRECTS {
            let answer = async {
                let mut client = self.peers.client_at(member, &address, Lane::Control)?;
                client.update(request.clone()).await
            };
            let answer = tokio::time::timeout(UPDATE_ANSWER_TIMEOUT, answer).await;
            match answer.map(|answer| answer.map(|response| response.into_inner().answer)) {
                Ok(Ok(Some(Answer::Updated(_)))) => return Ok(true),
                Ok(Ok(Some(Answer::Leader(leader)))) => (member, address) = (MemberId(leader.member), leader.address),
                Ok(Err(status)) if is_final(&status) => {
                    return Err(MembershipError::Refused(status.message().to_owned()));
                }
                Ok(Ok(None) | Err(_)) | Err(_) => return Ok(false),
            }
        }
        Ok(false)
    }

    /// How the register has this member, if its node.toml says otherwise.
    pub(crate) fn registered_otherwise(&self, own: &MemberInfo) -> Option<MemberInfo> {
        let cluster = self.engine.cluster_state();
        let registered = cluster.members.get(&self.identity.member)?;
        let same = (&registered.name, &registered.address) == (&own.name, &own.address);
        (!same).then(|| registered.clone())
    }

    /// The members that answer now, this one among them.
    async fn answering(&self, members: &Members) -> BTreeSet<MemberId> {
        let answers = self.peers.fan_out(members, Lane::Control, PRESENCE_TIMEOUT, |mut client| async move {
            client.presence(wire::PresenceRequest {}).await
        });
        let mut answering: BTreeSet<MemberId> =
            answers.filter_map(async |(id, answer)| answer.is_ok().then_some(id)).collect().await;
        answering.insert(self.identity.member);
        answering
    }

    /// Refuses to take a voter away that answers if the others are no majority without it: the change of the voters itself
    /// needs a majority of the new ones, so it could not end, and nothing else could be decided.
    async fn check_quorum_without(&self, leaving: MemberId) -> Result<(), MembershipError> {
        let metrics = self.raft.server_metrics().borrow_watched().clone();
        let mut rest: BTreeSet<MemberId> = metrics.membership_config.voter_ids().collect();
        if !rest.remove(&leaving) || rest.is_empty() {
            return Ok(());
        }
        let cluster = self.engine.cluster_state();
        let answering = self.answering(&cluster.members).await;
        if !lacks_majority(&rest, |id| answering.contains(&id)) {
            return Ok(());
        }
        let silent = rest.difference(&answering);
        let silent = silent.map(|id| cluster.members.get(id).map_or_else(|| id.to_string(), |info| info.name.clone()));
        Err(MembershipError::QuorumAtRisk { silent: silent.collect::<Vec<_>>().join(", ") })
    }

    /// Marks the data folder as that of a removed member.
    pub(crate) fn mark_removed(&self) -> Result<(), MembershipError> {
        Ok(self.data_dir.mark_removed()?)
    }

    /// Names the zones that this member's interfaces are in.
    pub(crate) async fn register_zones(&self, zones: &[String]) -> Result<(), MembershipError> {
        self.change(MemberChange::Zones { member: self.identity.member, zones: zones.to_vec() }).await
    }

    async fn change(&self, change: MemberChange) -> Result<(), MembershipError> {
        accepted(propose_and_wait(&self.requests, Command::Member(change), REQUEST_TIMEOUT).await?)
    }
}

/// Whether a refusal is the cluster's answer, and not only that of a member which cannot do it now.
fn is_final(status: &tonic::Status) -> bool {
    use tonic::Code;
    matches!(status.code(), Code::AlreadyExists | Code::InvalidArgument | Code::PermissionDenied)
}
