//! Idle expiry: the leader ends sessions that are idle everywhere.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use palisade_engine::replica::{Command, Replica};
use palisade_engine::{Engine, MemberId, SessionId, Time};
use palisade_proto::member::v1 as wire;
use palisade_raft_store::Auditor;
use tokio::sync::mpsc;

use crate::clock;
use crate::grace::PeerGrace;
use crate::peer::connections::{Lane, Members, Peers};
use crate::raft::config::PalisadeRaft;
use crate::raft::contact::LastContact;
use crate::raft::handle::RaftHandle;
use crate::raft::requests::{AdminRequest, REQUEST_TIMEOUT, propose_in_background};

/// Sessions in one idle probe.
pub(crate) const MAX_PROBED_SESSIONS: usize = 4096;
/// Time between two rounds of probes.
const IDLE_PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// The same while there are more idle sessions than fit in one probe.
const IDLE_PROBE_BACKLOG_INTERVAL: Duration = Duration::from_millis(20);
/// A member that does not answer a probe within this time keeps the sessions alive.
const IDLE_PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Session ids in one command.
const MAX_EXPIRED_PER_COMMAND: usize = 256;

/// The leader's task that ends idle sessions.
pub(crate) struct IdleExpiry {
    pub(crate) raft: PalisadeRaft,
    pub(crate) engine: Arc<Engine>,
    pub(crate) peers: Peers,
    pub(crate) requests: mpsc::Sender<AdminRequest>,
    pub(crate) auditor: Auditor<Replica>,
    pub(crate) contact: LastContact,
    /// How long a member that cannot renew its lease still forwards.
    pub(crate) grace: PeerGrace,
}

impl IdleExpiry {
    /// Ends sessions that are idle on all members (`palisade_engine::idle` says how). The engine reports a session again
    /// that was not ended: because another member uses it, a member did not answer, or the command was lost.
    pub(crate) async fn run(self) {
        let mut found = Vec::new();
        let mut leads_since = clock::now();
        let mut pause = IDLE_PROBE_INTERVAL;
        loop {
            tokio::time::sleep(pause).await;
            pause = IDLE_PROBE_INTERVAL;
            // The timeouts are the policy's.
            if !self.raft.is_leader() || !self.engine.is_policy_compiled() {
                leads_since = clock::now();
                continue;
            }
            found.clear();
            if self.engine.idle(clock::now(), MAX_PROBED_SESSIONS, &mut found) {
                pause = IDLE_PROBE_BACKLOG_INTERVAL;
            }
            if found.is_empty() {
                continue;
            }
            let probe = self.engine.probe_idle(clock::now(), &found);
            let mut members = self.raft.members();
            // A witness forwards nothing, nor does a member that has not come yet. Looked up after the probe: one that resumes from
            // now on makes the probe void. One that was removed may not know it yet.
            let cluster = self.engine.cluster_state();
            members.retain(|id, _| cluster.may_forward(*id) || !cluster.members.contains_key(id));
            let asked: Vec<SessionId> = probe.ids().collect();
            let Some(idle) = self.probe(&members, &asked, leads_since).await else { continue };
            let (open, closed) = probe.commands(|id| idle.contains(id), MAX_EXPIRED_PER_COMMAND);
            let commands = open.into_iter().map(Command::ExpireIdle).chain(closed.into_iter().map(Command::Expire));
            for command in commands {
                if let Err(error) = propose_in_background(&self.requests, command, REQUEST_TIMEOUT).await {
                    tracing::info!(%error, "idle sessions could not be ended; trying again");
                    break;
                }
            }
        }
    }

    /// Those of `ids` that are idle at all `members` too; `None` if one of them did not answer. A member whose lease has
    /// certainly expired forwards nothing and need not answer: otherwise one dead member would keep all sessions alive,
    /// until the table is full.
    async fn probe(&self, members: &Members, ids: &[SessionId], leads_since: Time) -> Option<BTreeSet<SessionId>> {
        // Sessions that members do not know after this index have ended.
        let applied = self.auditor.applied().map_or(0, |id| id.index);
        let expiry = self.grace.expiry();
        let expired = |id: &MemberId| clock::now().since(self.contact.since(*id, leads_since)) > expiry;
        let live = members.iter().filter(|(id, _)| !expired(id));
        let answers = self.peers.fan_out(live, Lane::Control, IDLE_PROBE_TIMEOUT, |mut client| {
            let probe = wire::Sessions { applied, ..wire::Sessions::from(ids) };
            async move { client.confirm_idle(probe).await }
        });
        let idle = answers.map(|(_, answer)| answer.ok().map(|a| BTreeSet::from_iter(Vec::<SessionId>::from(a))));
        let idle: Vec<Option<BTreeSet<SessionId>>> = idle.collect().await;
        let idle: Vec<BTreeSet<SessionId>> = idle.into_iter().collect::<Option<_>>()?;
        Some(ids.iter().filter(|id| idle.iter().all(|idle| idle.contains(id))).copied().collect())
    }
}
