//! When this member stands for election: as soon as its promise to the leader has run out, in turns.
//!
//! openraft's own timer is switched off. It waits, after the lease, for a random time of about the same length again: the
//! time that a vote may take, and what keeps candidates apart. Here the order of the members' ids keeps them apart, so the
//! first in turn need not wait, and the next one a little.
//!
//! ```text
//!  the leader's last sign ─── lease ───┬ the first in turn asks ─ 20 ms ─ asks again ─ … ─ the time of a vote ─ asks again ─ …
//!                                      └─ 30 ms ─ the second asks ─ …
//! ```
//!
//! Asking (pre-vote) changes nothing: openraft refuses it here, and at every other member, while the lease there has not
//! run out; and so does a leader that a majority has answered within a lease. Only a majority that has not heard of
//! its leader for a lease can replace it, and nothing that is decided by the log depends on a lease
//! ([`crate::raft::current`]).
//!
//! Silence is only what this member was awake to hear. When its machine is so busy that it does not run, its leader may
//! well have spoken; the more so as whatever keeps one member from running often keeps the others on that host, too.

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
use crate::raft::handover::Candidacy;
use crate::replication::PalisadeRaft;

/// How much later than the one before it each next member asks. The other members know by then that one stands.
const STAGGER: Duration = Duration::from_millis(30);
/// openraft hears of the leader a little later than we do, so its lease ends a little later.
const MARGIN: Duration = Duration::from_millis(4);
/// How soon a member asks again: another one's lease has perhaps run out by then.
const AGAIN: Duration = Duration::from_millis(20);
/// As often it does; then there is no majority, and it asks less often.
const OFTEN: u32 = 8;
/// Silence is listened to in pieces of this length, at most; a piece that took longer than it should counts as no longer
/// than `LATE` more.
const PIECE: Duration = Duration::from_millis(20);
const LATE: Duration = Duration::from_millis(5);

/// When the leader of which term was last heard of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Signs(Arc<Mutex<(u64, Time)>>);

impl Signs {
    /// A message of the leader of this term came. Not any longer if one of a later term is known.
    pub(crate) fn of(&self, term: u64) {
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

/// Stands for election.
pub(crate) struct Election {
    pub(crate) me: MemberId,
    pub(crate) raft: PalisadeRaft,
    pub(crate) signs: Signs,
    /// openraft's lease.
    pub(crate) lease: Duration,
    /// The time that a vote may take.
    pub(crate) vote: Duration,
    pub(crate) candidacy: watch::Receiver<Candidacy>,
}

/// How long nothing was heard of the leader, or the candidate, that the vote is for.
#[derive(Debug, Default)]
struct Silence {
    last: Option<Time>,
    length: Duration,
    /// How often it was asked meanwhile.
    asked: u32,
}

impl Silence {
    /// A piece that was to take `piece` began at `begin` and ends now. `last`: the last sign.
    fn listened(&mut self, last: Option<Time>, begin: Time, piece: Duration, now: Time) {
        if last > self.last {
            *self = Silence { last, ..Silence::default() };
        }
        let begin = last.map_or(begin, |last| begin.max(last));
        self.length += now.since(begin).min(piece + LATE);
    }
}

impl Election {
    pub(crate) async fn run(self) {
        self.raft.runtime_config().elect(false);
        // An error, here and below, means that openraft has ended.
        drop(self.stand().await);
    }

    async fn stand(&self) -> Result<(), Fatal<TypeConfig>> {
        let mut changes = self.raft.server_metrics();
        let mut known = changes.borrow_and_update().clone();
        let mut vote = self.vote_now().await?;
        let mut silence = Silence::default();
        loop {
            let candidacy = *self.candidacy.borrow();
            let due = turn(self.me, candidacy, &known, &vote).map(|turn| self.due(&vote, turn, silence.asked));
            let piece = due.map_or(PIECE, |due| due.saturating_sub(silence.length).min(PIECE));
            let begin = clock::now();
            let changed = tokio::time::timeout(piece, changes.changed()).await;
            silence.listened(self.signs.last(vote.leader_id.term), begin, piece, clock::now());
            let over = due.is_some_and(|due| silence.length >= due);
            match changed {
                Ok(Ok(())) => known = changes.borrow_and_update().clone(),
                Ok(Err(_)) => return Ok(()),
                Err(_) if !over => continue,
                Err(_) => {}
            }
            let now = self.vote_now().await?;
            if now != vote {
                // Somebody stands, or leads.
                (vote, silence) = (now, Silence::default());
            } else if changed.is_err() {
                self.raft.trigger().elect(true).await?;
                silence.asked += 1;
            }
        }
    }

    /// The vote as it is, not as the metrics have it once it is on the disk. openraft hears of nothing while it saves a vote;
    /// what is sent to it meanwhile would come to it afterwards, and start the next election in the midst of this one.
    async fn vote_now(&self) -> Result<Vote, Fatal<TypeConfig>> {
        self.raft.with_raft_state(|state| *state.vote_ref()).await
    }

    /// The length of silence after which a member asks that has so often asked in vain.
    fn due(&self, vote: &Vote, turn: u32, asked: u32) -> Duration {
        let promised = if vote.committed { self.lease + MARGIN } else { self.vote };
        promised + STAGGER * turn + AGAIN * asked.min(OFTEN) + self.vote * asked.saturating_sub(OFTEN)
    }
}

/// How many of those who may stand come before this member; `None` if it may not, or leads.
fn turn(me: MemberId, candidacy: Candidacy, known: &RaftServerMetrics<TypeConfig>, vote: &Vote) -> Option<u32> {
    if known.state == ServerState::Leader || candidacy == Candidacy::Withdrawn {
        return None;
    }
    // The leader that is lost will not stand; but one that was started anew and led before may.
    let lost = vote.committed.then_some(vote.leader_id.node_id).filter(|lost| *lost != me);
    let may: Vec<MemberId> = known.membership_config.voter_ids().filter(|id| Some(*id) != lost).collect();
    // A drained member comes after all that may not be.
    let behind = if candidacy == Candidacy::LastResort { may.len() } else { 0 };
    let turn = may.iter().position(|id| *id == me).map(|at| behind + at);
    turn.and_then(|turn| u32::try_from(turn).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(3);

    #[test]
    fn what_a_member_slept_through_is_no_silence() {
        let mut silence = Silence::default();
        let mut now = Time(1_000_000_000);
        let mut listen = |silence: &mut Silence, last, took| {
            let begin = now;
            now = now + took;
            silence.listened(last, begin, PIECE, now);
            now
        };
        for _ in 0..4 {
            listen(&mut silence, None, PIECE);
        }
        assert_eq!(silence.length, 4 * PIECE);
        listen(&mut silence, None, PAUSE);
        assert_eq!(silence.length, 5 * PIECE + LATE);
        silence.asked = 3;
        // A sign in the midst of a piece: the rest of the piece is silence again.
        let sign = listen(&mut silence, None, PIECE) + PIECE / 2;
        listen(&mut silence, Some(sign), PIECE);
        assert_eq!((silence.length, silence.asked), (PIECE / 2, 0));
        listen(&mut silence, Some(sign), PIECE);
        assert_eq!(silence.length, PIECE / 2 + PIECE);
    }
}
