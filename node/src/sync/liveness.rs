//! Reception of progress: which peers are alive, and from when to when their progress is not known.
//!
//! A peer that was not heard from for [`SUSPECT_AFTER`] is silent. What it may have forwarded in a gap of its progress, or
//! while it is silent, is not known here, and the engine judges accordingly ([`Engine::mark_blind`]).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use palisade_engine::{Engine, MemberId, Progress, Time};
use palisade_proto::convert::level;
use palisade_proto::member::v1 as wire;
use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval};

use super::progress::MAX_SESSIONS_BYTES;
use crate::clock;
use crate::grace::PeerGrace;
use crate::replication_metrics::ReplicationMetrics;
use crate::wake::{SharedWake, Waker};

/// A peer that was not heard from for this long is silent: three and a half progress intervals.
pub(crate) const SUSPECT_AFTER: Duration = Duration::from_millis(350);
/// Interval at which silent peers are detected.
const DETECTOR_INTERVAL: Duration = Duration::from_millis(50);
/// Number of messages whose delays are compared to estimate the difference of the clocks.
const DELAY_SAMPLES: usize = 64;

/// A failure detector: when each peer was last heard from, and up to when its progress is complete.
#[derive(Clone, Default)]
pub(crate) struct PeerLiveness(Arc<Mutex<BTreeMap<MemberId, PeerState>>>);

struct PeerState {
    /// When its last message came.
    heard_at: Time,
    /// Up to when its progress is complete, by this member's clock.
    complete_until: Time,
    /// The same by its own clock, in nanoseconds.
    peer_complete_until: u64,
    /// For its last messages, the time of arrival here minus the time of sending there: the clocks' difference and the delay.
    delays: VecDeque<i128>,
}

impl PeerState {
    /// A peer that was not heard from yet.
    fn new(now: Time) -> PeerState {
        PeerState { heard_at: now, complete_until: now, peer_complete_until: 0, delays: VecDeque::new() }
    }

    /// A time of its clock, by this member's clock. Rather too early than too late, because the shortest delay counts.
    fn local_time(&self, theirs: u64) -> Time {
        let offset = self.delays.iter().min().copied().unwrap_or(0);
        Time(u64::try_from((i128::from(theirs) + offset).max(1)).unwrap_or(u64::MAX))
    }

    /// Takes in a message that is complete between two times of its clock. Returns the gap before, if there is one.
    fn on_message(&mut self, now: Time, sent: u64, from: u64, until: u64) -> Option<(Time, Time)> {
        if self.delays.len() >= DELAY_SAMPLES {
            self.delays.pop_front();
        }
        self.delays.push_back(i128::from(now.0) - i128::from(sent));
        let gap = (from != self.peer_complete_until).then(|| (self.complete_until, self.local_time(from)));
        self.heard_at = now;
        self.peer_complete_until = until;
        self.complete_until = self.local_time(until).min(now);
        gap.filter(|(begin, end)| begin < end)
    }
}

/// What was taken in of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Taken {
    /// Sessions whose progress was merged.
    pub(crate) sessions: u64,
    /// Those whose progress could not be decoded.
    pub(crate) skipped: u64,
}

impl PeerLiveness {
    /// A new stream of `member` begins. After a restart its clock may differ.
    pub(crate) fn on_stream_start(&self, member: MemberId) {
        if let Some(peer) = self.0.lock().get_mut(&member) {
            peer.delays.clear();
            peer.peer_complete_until = 0;
        }
    }

    /// Takes in a message. What cannot be decoded of it is skipped: its sender is heard all the same, but what it said of those
    /// sessions is as unknown as if it had not been sent.
    pub(crate) fn on_message(&self, engine: &Engine, from: MemberId, batch: &wire::ProgressBatch) -> Taken {
        let now = clock::now();
        let mut taken = Taken::default();
        let sessions = batch.sessions.get(..MAX_SESSIONS_BYTES).unwrap_or(&batch.sessions);
        for progress in Progress::decode(level(batch.level), sessions) {
            match progress {
                Ok(progress) => {
                    engine.merge_progress(now, from, &progress);
                    taken.sessions += 1;
                }
                Err(error) => {
                    taken.skipped += 1;
                    tracing::debug!(%from, %error, "a session's progress was skipped");
                }
            }
        }
        let (gap, skipped) = {
            let mut all = self.0.lock();
            let peer = all.entry(from).or_insert_with(|| PeerState::new(now));
            let complete_until = peer.complete_until;
            let gap = peer.on_message(now, batch.sent, batch.from, batch.until);
            (gap, (taken.skipped > 0).then_some((complete_until, peer.complete_until)))
        };
        for (begin, end) in gap.into_iter().chain(skipped.filter(|(begin, end)| begin < end)) {
            engine.mark_blind(begin, end);
        }
        taken
    }

    /// Reports silent peers to the engine, forever.
    pub(crate) async fn run_failure_detector(
        self,
        me: MemberId,
        engine: Arc<Engine>,
        wake: Box<dyn SharedWake>,
        metrics: Arc<ReplicationMetrics>,
        grace: PeerGrace,
    ) {
        let mut wake = Waker(wake);
        let mut ticks = interval(DETECTOR_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let silent = self.detect_silent(me, &engine, clock::now(), grace.expiry());
            engine.set_silent_peers(silent, &mut wake);
            metrics.members_silent.set(silent);
        }
    }

    /// The number of silent peers. Marks blind what they may have forwarded meanwhile.
    fn detect_silent(&self, me: MemberId, engine: &Engine, now: Time, dead: Duration) -> u32 {
        let cluster = engine.cluster_state();
        let mut all = self.0.lock();
        for id in cluster.members.keys().filter(|id| **id != me && cluster.may_forward(**id)) {
            all.entry(*id).or_insert_with(|| PeerState::new(now));
        }
        // A member that was removed may not know it, but its lease has expired after `dead`: it forwards nothing then.
        all.retain(|id, peer| cluster.members.contains_key(id) || now.since(peer.complete_until) < dead);
        let mut silent = 0;
        for (id, peer) in all.iter().filter(|(id, _)| !cluster.joining.contains_key(id)) {
            if (SUSPECT_AFTER..dead).contains(&now.since(peer.complete_until)) {
                engine.mark_blind(peer.complete_until, now);
            }
            silent += u32::from(cluster.may_forward(*id) && now.since(peer.heard_at) >= SUSPECT_AFTER);
        }
        silent
    }
}

/// Takes in a peer's stream of progress, to its end. `require_member`: whether the peer is a member still.
pub(crate) async fn receive(
    liveness: &PeerLiveness,
    engine: &Engine,
    metrics: &ReplicationMetrics,
    from: MemberId,
    require_member: impl Fn() -> Result<(), tonic::Status>,
    mut batches: impl Stream<Item = Result<wire::ProgressBatch, tonic::Status>> + Unpin,
) -> Result<(), tonic::Status> {
    liveness.on_stream_start(from);
    while let Some(batch) = batches.next().await {
        require_member()?;
        let Taken { sessions, skipped } = liveness.on_message(engine, from, &batch?);
        metrics.progress_sessions.received.add(sessions);
        metrics.progress_invalid.add(skipped);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn progress_gap_is_what_no_message_covers() {
        let mut peer = PeerState::new(Time(1_000 * MS));
        // Its clock is 500 ms behind; messages take 1 to 30 ms.
        let at = |here: u64, delay: u64| (Time((here + delay) * MS), (here - 500) * MS);
        let (now, sent) = at(1_100, 30);
        assert_eq!(
            peer.on_message(now, sent, sent - 100 * MS, sent),
            Some((Time(1_000 * MS), Time(1_030 * MS))),
            "the first one"
        );
        let (now, next) = at(1_200, 1);
        assert_eq!(peer.on_message(now, next, sent, next), None);
        assert_eq!(peer.complete_until, Time(1_201 * MS));
        // A message is lost.
        let (now, last) = at(1_400, 10);
        let begin = next + 100 * MS;
        assert_eq!(peer.on_message(now, last, begin, last), Some((Time(1_201 * MS), Time(1_301 * MS))));
        assert_eq!(peer.complete_until, Time(1_401 * MS), "the shortest delay counts");
    }
}
