//! Elections: when this member campaigns. It does so as soon as its leader lease has run out, ranked by member id.
//!
//! openraft's own timer is switched off. After the lease it waits for a random time of about the same length again: the time
//! that a vote may take, and what keeps candidates apart. Here the order of the members' ids keeps them apart, so the first
//! member need not wait, and the next ones wait a little.
//!
//! ```text
//!  last contact ─── leader lease ───┬ rank 0 campaigns ─ 20 ms ─ again ─ … ─ the time of a vote ─ again ─ …
//!                                   └─ 30 ms ─ rank 1 campaigns ─ …
//! ```
//!
//! A pre-vote changes nothing: openraft refuses it on every member whose leader lease has not run out, and on a leader that a
//! majority has answered within a lease. Only a majority without contact to its leader for a lease can replace it. Nothing
//! that is decided in the log depends on a leader lease ([`crate::raft::lease`]).
//!
//! Only time in which this member ran counts as silence of its leader. When a machine is so busy that a member does not run,
//! the leader may well have sent messages; and what keeps one member from running often keeps the others on that host, too.

use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::Fatal;
use openraft::metrics::RaftServerMetrics;
use palisade_engine::{MemberId, Time};
use palisade_raft_store::{TypeConfig, Vote};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::clock;
use crate::raft::config::PalisadeRaft;
use crate::raft::handle::RaftHandle;
use crate::raft::priority::ElectionPriority;

/// How much later the member of the next rank campaigns. By then it knows that another member campaigns.
const RANK_DELAY: Duration = Duration::from_millis(30);
/// openraft handles a message of the leader a little later than it is seen here, so its lease ends a little later.
const LEASE_MARGIN: Duration = Duration::from_millis(4);
/// Time between two of the first campaigns: the lease of another member may have run out by then.
const CAMPAIGN_RETRY_DELAY: Duration = Duration::from_millis(20);
/// Fast retries; after that, back off: there is no majority.
const FAST_RETRIES: u32 = 8;
/// The timer advances in slices of at most this length. A slice that took longer counts as at most [`SLICE_OVERRUN`] more.
const TIMER_SLICE: Duration = Duration::from_millis(20);
const SLICE_OVERRUN: Duration = Duration::from_millis(5);

/// The time of the last message of a leader, and its term.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeaderContact(Arc<Mutex<(u64, Time)>>);

impl LeaderContact {
    /// Notes a message of the leader of this term, unless a later term is known.
    pub(crate) fn record(&self, term: u64) {
        let mut last = self.0.lock();
        if term >= last.0 {
            *last = (term, clock::now());
        }
    }

    fn last(&self, term: u64) -> Option<Time> {
        let (known, at) = *self.0.lock();
        (known == term).then_some(at)
    }
}

/// The task that campaigns.
pub(crate) struct Election {
    pub(crate) me: MemberId,
    pub(crate) raft: PalisadeRaft,
    pub(crate) leader_contact: LeaderContact,
    /// The leader lease.
    pub(crate) lease: Duration,
    /// How long a vote may take.
    pub(crate) vote: Duration,
    pub(crate) priority: watch::Receiver<ElectionPriority>,
}

/// How long the leader, or the candidate, that this member has voted for was silent.
#[derive(Debug, Default)]
struct ElectionTimer {
    last: Option<Time>,
    silence: Duration,
    /// Campaigns meanwhile.
    campaigns: u32,
}

impl ElectionTimer {
    /// Adds a slice that was to take `slice`, began at `begin` and ends now. `last` is the last message of the leader.
    fn observe(&mut self, last: Option<Time>, begin: Time, slice: Duration, now: Time) {
        if last > self.last {
            *self = ElectionTimer { last, ..ElectionTimer::default() };
        }
        let begin = last.map_or(begin, |last| begin.max(last));
        self.silence += now.since(begin).min(slice + SLICE_OVERRUN);
    }
}

impl Election {
    pub(crate) async fn run(self) {
        self.raft.runtime_config().elect(false);
        // An error, here and below, means that openraft has ended.
        drop(self.campaign().await);
    }

    async fn campaign(&self) -> Result<(), Fatal<TypeConfig>> {
        let mut changes = self.raft.server_metrics();
        let mut known = changes.borrow_and_update().clone();
        let mut vote = self.vote_now().await?;
        let mut timer = ElectionTimer::default();
        loop {
            let priority = *self.priority.borrow();
            let timeout = rank(self.me, priority, &known, &vote).map(|rank| self.timeout(&vote, rank, timer.campaigns));
            let slice = timeout.map_or(TIMER_SLICE, |timeout| timeout.saturating_sub(timer.silence).min(TIMER_SLICE));
            let begin = clock::now();
            let changed = tokio::time::timeout(slice, changes.changed()).await;
            timer.observe(self.leader_contact.last(vote.leader_id.term), begin, slice, clock::now());
            let over = timeout.is_some_and(|timeout| timer.silence >= timeout);
            match changed {
                Ok(Ok(())) => known = changes.borrow_and_update().clone(),
                Ok(Err(_)) => return Ok(()),
                Err(_) if !over => continue,
                Err(_) => {}
            }
            let now = self.vote_now().await?;
            if now != vote {
                // Another member campaigns, or leads.
                (vote, timer) = (now, ElectionTimer::default());
            } else if changed.is_err() {
                self.raft.trigger().elect(true).await?;
                timer.campaigns += 1;
            }
        }
    }

    /// The vote as it is, not as the metrics show it once it is on the disk. openraft handles nothing while it saves a vote. A
    /// request to campaign that is sent meanwhile would be handled afterwards, and start the next election during this one.
    async fn vote_now(&self) -> Result<Vote, Fatal<TypeConfig>> {
        self.raft.read_state(|state| *state.vote_ref()).await
    }

    /// The silence after which a member of this rank campaigns, after this number of campaigns in vain.
    fn timeout(&self, vote: &Vote, rank: u32, campaigns: u32) -> Duration {
        let lease = if vote.committed { self.lease + LEASE_MARGIN } else { self.vote };
        lease
            + RANK_DELAY * rank
            + CAMPAIGN_RETRY_DELAY * campaigns.min(FAST_RETRIES)
            + self.vote * campaigns.saturating_sub(FAST_RETRIES)
    }
}

/// The number of candidates before this member; `None` if it must not campaign, or leads.
fn rank(me: MemberId, priority: ElectionPriority, known: &RaftServerMetrics<TypeConfig>, vote: &Vote) -> Option<u32> {
    if known.state == ServerState::Leader || priority == ElectionPriority::Never {
        return None;
    }
    // The lost leader does not campaign; but this member may, if it led before it was restarted.
    let lost = vote.committed.then_some(vote.leader_id.node_id).filter(|lost| *lost != me);
    let candidates: Vec<MemberId> = known.membership_config.voter_ids().filter(|id| Some(*id) != lost).collect();
    // A drained member comes after all others, which may not be drained.
    let behind = if priority == ElectionPriority::LastResort { candidates.len() } else { 0 };
    let rank = candidates.iter().position(|id| *id == me).map(|at| behind + at);
    rank.and_then(|rank| u32::try_from(rank).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(3);

    #[test]
    fn election_timer_ignores_time_in_which_the_member_did_not_run() {
        let mut timer = ElectionTimer::default();
        let mut now = Time(1_000_000_000);
        let mut slice = |timer: &mut ElectionTimer, last, took| {
            let begin = now;
            now = now + took;
            timer.observe(last, begin, TIMER_SLICE, now);
            now
        };
        for _ in 0..4 {
            slice(&mut timer, None, TIMER_SLICE);
        }
        assert_eq!(timer.silence, 4 * TIMER_SLICE);
        slice(&mut timer, None, STALL);
        assert_eq!(timer.silence, 5 * TIMER_SLICE + SLICE_OVERRUN);
        timer.campaigns = 3;
        // A message within a slice: the rest of the slice is silence again.
        let message = slice(&mut timer, None, TIMER_SLICE) + TIMER_SLICE / 2;
        slice(&mut timer, Some(message), TIMER_SLICE);
        assert_eq!((timer.silence, timer.campaigns), (TIMER_SLICE / 2, 0));
        slice(&mut timer, Some(message), TIMER_SLICE);
        assert_eq!(timer.silence, TIMER_SLICE / 2 + TIMER_SLICE);
    }
}
