//! Presence: every member asks every other one twice a second how it is. The answers say who answers at all, who turns
//! traffic away, and whether this member is one still.
//!
//! A member that was removed may not learn so from the log: nobody sends it entries any longer. So every member that has
//! applied the removal says it. Ids are never used again, so an old answer is as true as a new one, and no majority is needed
//! for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use palisade_engine::{Engine, MemberId};
use palisade_proto::member::v1 as wire;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::grace::PeerGrace;
use crate::peer::connections::{Lane, Members, Peers};

/// Time between two rounds of questions.
const PRESENCE_INTERVAL: Duration = Duration::from_millis(500);
/// How long a member may take to answer. Longer than a busy machine makes a process wait.
pub(crate) const PRESENCE_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval at which this member looks whether the log has removed it.
const REGISTER_INTERVAL: Duration = Duration::from_millis(50);

/// How a member is that answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Presence {
    /// Whether it turns traffic away.
    pub(crate) draining: bool,
    /// Whether its lease is valid.
    pub(crate) lease_valid: bool,
}

/// The members that answered when they were last asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roster(Arc<Mutex<BTreeMap<MemberId, Presence>>>);

impl Roster {
    /// How a member is; `None` if it does not answer.
    pub(crate) fn get(&self, member: MemberId) -> Option<Presence> {
        self.0.lock().get(&member).copied()
    }

    fn set(&self, member: MemberId, presence: Option<Presence>) {
        match presence {
            Some(presence) => _ = self.0.lock().insert(member, presence),
            None => _ = self.0.lock().remove(&member),
        }
    }

    fn retain(&self, members: &Members) {
        self.0.lock().retain(|id, _| members.contains_key(id));
    }
}

/// The task that asks the others.
pub(crate) struct PresencePoller {
    pub(crate) me: MemberId,
    pub(crate) engine: Arc<Engine>,
    pub(crate) peers: Peers,
    pub(crate) members: watch::Receiver<Members>,
    pub(crate) roster: Roster,
    /// Learns which settings all members have applied.
    pub(crate) grace: PeerGrace,
    /// Becomes true once this member was removed.
    pub(crate) removed: watch::Sender<bool>,
}

impl PresencePoller {
    pub(crate) async fn run(self) {
        futures::join!(self.ask_others(), self.watch_register());
    }

    async fn ask_others(&self) {
        loop {
            let members = self.members.borrow().clone();
            self.roster.retain(&members);
            let answers = self.peers.fan_out(&members, Lane::Control, PRESENCE_TIMEOUT, |mut client| async move {
                client.presence(wire::PresenceRequest {}).await
            });
            let mut answers = std::pin::pin!(answers);
            let mut revisions = BTreeMap::new();
            while let Some((id, answer)) = answers.next().await {
                if let Ok(answer) = &answer
                    && answer.removed
                {
                    self.note_removal();
                }
                if let Ok(answer) = &answer {
                    revisions.insert(id, answer.settings_revision);
                }
                let presence = |answer: wire::PresenceResponse| Presence {
                    draining: answer.draining,
                    lease_valid: answer.lease_valid,
                };
                self.roster.set(id, answer.ok().map(presence));
            }
            self.note_revisions(revisions);
            tokio::time::sleep(PRESENCE_INTERVAL).await;
        }
    }

    /// Notes which settings all members have applied, if all have answered that are in the register now: it has all that joined
    /// before the settings that are in force here.
    fn note_revisions(&self, mut revisions: BTreeMap<MemberId, u64>) {
        let cluster = self.engine.cluster_state();
        revisions.insert(self.me, cluster.settings.revision);
        let applied: Option<Vec<u64>> = cluster.members.keys().map(|id| revisions.get(id).copied()).collect();
        if let Some(least) = applied.and_then(|all| all.into_iter().min()) {
            self.grace.note_applied_by_all(least);
        }
    }

    async fn watch_register(&self) {
        loop {
            if self.engine.cluster_state().has_left(self.me) {
                self.note_removal();
            }
            tokio::time::sleep(REGISTER_INTERVAL).await;
        }
    }

    fn note_removal(&self) {
        self.removed.send_if_modified(|removed| !std::mem::replace(removed, true));
    }
}
