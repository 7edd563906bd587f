//! Progress: several times a second each member tells the others of the live sessions that passed packets there, and
//! notices who falls silent.
//!
//! One task tells, with one queue and one stream per peer; another one watches how long ago each of the others was last
//! heard. Each message says between which times of its sender's clock it tells everything, so that a message that was
//! dropped, and a stream that broke, leave a gap that the receiver sees: what passed in it is not known here, and the engine
//! judges accordingly ([`Engine::mark_blind`]). Nothing waits for an acknowledgement.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use palisade_engine::replica::Role;
use palisade_engine::{Engine, MemberId, Time};
use palisade_proto::convert::{decode_progress, encode_progress};
use palisade_proto::member::v1 as wire;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::clock;
use crate::peer::route::{Lane, Peers};
use crate::replication::service::{SharedWake, Waker};
use crate::replication_metrics::ReplicationMetrics;
use crate::sync::hints::Members;
use crate::sync::streams::{Streams, Waiting, keep_open};

/// Between two tellings.
const EVERY: Duration = Duration::from_millis(100);
/// A member that was not heard for so long is silent: three tellings and a half.
const SILENT: Duration = Duration::from_millis(350);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Beyond the cut-off limit, because clocks of machines need not run equally fast.
const MARGIN: Duration = Duration::from_secs(2);
/// Bytes that one session takes in a message, with its traffic; without it about 10 less.
const BYTES: u64 = 72;
/// Tellings that are this late leave out what can wait.
const LATE: Duration = Duration::from_secs(1);
/// Messages that wait for one peer.
const QUEUE: usize = 8;
/// Most bytes of sessions in a message: far more than this version sends in one.
const MOST: usize = 4 << 20;
/// Messages whose delays are compared to find how far a peer's clock is ahead.
const DELAYS: usize = 64;

/// Tells the others.
pub(crate) struct Telling {
    pub(crate) me: MemberId,
    pub(crate) peers: Peers,
    pub(crate) engine: Arc<Engine>,
    pub(crate) metrics: Arc<ReplicationMetrics>,
    pub(crate) members: watch::Receiver<Members>,
    /// Bytes a second to each peer.
    pub(crate) rate: u64,
}

impl Telling {
    /// Runs until the members' list is closed: the replication is shut down then.
    pub(crate) async fn run(mut self) {
        let mut streams = Streams::new(self.me, QUEUE);
        self.aim(&mut streams);
        let most = usize::try_from(self.rate / BYTES / 10).unwrap_or(usize::MAX).clamp(1, MOST / BYTES as usize);
        let mut told = clock::now();
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                changed = self.members.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.aim(&mut streams);
                }
                _ = every.tick() => {
                    let batch = self.tell(&mut told, most);
                    for queue in streams.queues() {
                        if queue.try_send(batch.clone()).is_err() {
                            self.metrics.progress_dropped.add(1);
                        }
                    }
                }
            }
        }
    }

    fn tell(&self, told: &mut Time, most: usize) -> wire::ProgressBatch {
        let now = clock::now();
        let full = now.since(*told) < LATE;
        let (mut bytes, mut sessions) = (Vec::new(), 0);
        let until = self.engine.collect_progress(now, most, full, &mut |progress| match encode_progress(
            progress, &mut bytes,
        ) {
            Ok(()) => sessions += 1,
            Err(error) => tracing::error!(%error, "a session's progress can not be encoded"),
        });
        let from = *told;
        *told = until.max(from);
        self.metrics.progress_told.add(sessions);
        self.metrics.progress_lag_ms.set(u64::try_from(now.since(*told).as_millis()).unwrap_or(u64::MAX));
        wire::ProgressBatch { sent: now.0, from: from.0, until: told.0, sessions: bytes.into() }
    }

    fn aim(&mut self, streams: &mut Streams<wire::ProgressBatch>) {
        let peers = &self.peers;
        let members = self.members.borrow_and_update();
        streams.aim(&members, |to, address, waiting| send(peers.clone(), to, address, waiting));
    }
}

/// Sends to one peer. What waits while there is no stream becomes a gap: old news are not sent.
async fn send(peers: Peers, to: MemberId, address: String, waiting: Waiting<wire::ProgressBatch>) {
    keep_open("progress", peers, to, address, Lane::Progress, |mut client| {
        let stream = stream(waiting.clone());
        async move { client.progress(stream).await.map(drop) }
    })
    .await;
}

fn stream(waiting: Waiting<wire::ProgressBatch>) -> impl Stream<Item = wire::ProgressBatch> + Send + 'static {
    futures::stream::unfold((waiting, true), |(waiting, begins)| async move {
        let batch = {
            let mut queue = waiting.lock().await;
            while begins && queue.try_recv().is_ok() {}
            queue.recv().await
        };
        batch.map(|batch| (batch, (waiting, false)))
    })
}

/// When each of the others was last heard, and up to when it told everything.
#[derive(Clone, Default)]
pub(crate) struct Ears(Arc<Mutex<BTreeMap<MemberId, Peer>>>);

struct Peer {
    /// When its last message came.
    heard: Time,
    /// Up to when it told everything: by this member's clock, and by its own.
    until: Time,
    told: u64,
    /// By how much its last messages seem to have come after they were sent: the difference of the clocks, and the delay.
    delays: VecDeque<i128>,
}

impl Peer {
    /// One of whom nothing was heard yet.
    fn new(now: Time) -> Peer {
        Peer { heard: now, until: now, told: 0, delays: VecDeque::new() }
    }

    /// A time of its clock by this member's: rather too early than too late, because the shortest delay counts.
    fn here(&self, theirs: u64) -> Time {
        let ahead = self.delays.iter().min().copied().unwrap_or(0);
        Time(u64::try_from((i128::from(theirs) + ahead).max(1)).unwrap_or(u64::MAX))
    }

    /// A message came that tells everything between two times of its clock; the gap before that, if there is one.
    fn hear(&mut self, now: Time, sent: u64, from: u64, until: u64) -> Option<(Time, Time)> {
        if self.delays.len() >= DELAYS {
            self.delays.pop_front();
        }
        self.delays.push_back(i128::from(now.0) - i128::from(sent));
        let gap = (from != self.told).then(|| (self.until, self.here(from)));
        self.heard = now;
        self.told = until;
        self.until = self.here(until).min(now);
        gap.filter(|(begin, end)| begin < end)
    }
}

impl Ears {
    /// A new stream of `member` begins: its clock may be another one.
    pub(crate) fn begin(&self, member: MemberId) {
        if let Some(peer) = self.0.lock().get_mut(&member) {
            peer.delays.clear();
            peer.told = 0;
        }
    }

    /// Takes in a message.
    pub(crate) fn hear(
        &self,
        engine: &Engine,
        from: MemberId,
        batch: &wire::ProgressBatch,
    ) -> Result<u64, palisade_proto::convert::MemberError> {
        let now = clock::now();
        let mut sessions = 0;
        for progress in decode_progress(batch.sessions.get(..MOST).unwrap_or(&batch.sessions)) {
            engine.merge_progress(now, from, &progress?);
            sessions += 1;
        }
        let gap = {
            let mut all = self.0.lock();
            all.entry(from).or_insert_with(|| Peer::new(now)).hear(now, batch.sent, batch.from, batch.until)
        };
        if let Some((begin, end)) = gap {
            engine.mark_blind(begin, end);
        }
        Ok(sessions)
    }

    /// Notices who is silent, for as long as the members' list is open.
    pub(crate) async fn watch(
        self,
        me: MemberId,
        engine: Arc<Engine>,
        wake: Box<dyn SharedWake>,
        metrics: Arc<ReplicationMetrics>,
        cut_off_limit: Duration,
    ) {
        let mut wake = Waker(wake);
        let mut every = tokio::time::interval(LOOK);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let silent = self.look(me, &engine, clock::now(), cut_off_limit + MARGIN);
            engine.set_silent_peers(silent, &mut wake);
            metrics.members_silent.set(silent.into());
        }
    }

    /// How many members are silent; what they may have passed meanwhile is not known.
    fn look(&self, me: MemberId, engine: &Engine, now: Time, dead: Duration) -> u32 {
        let view = engine.view();
        let mut all = self.0.lock();
        for (id, _) in view.members.iter().filter(|(id, info)| **id != me && info.role == Role::Firewall) {
            all.entry(*id).or_insert_with(|| Peer::new(now));
        }
        // One that left may not have heard of it, but passes nothing any longer once its time is over.
        all.retain(|id, peer| view.members.contains_key(id) || now.since(peer.until) < dead);
        let mut silent = 0;
        for (id, peer) in all.iter() {
            if (SILENT..dead).contains(&now.since(peer.until)) {
                engine.mark_blind(peer.until, now);
            }
            let forwards = view.members.get(id).is_some_and(|info| info.role == Role::Firewall);
            silent += u32::from(forwards && now.since(peer.heard) >= SILENT);
        }
        silent
    }
}

/// Takes in a member's stream, to its end.
pub(crate) async fn receive(
    ears: &Ears,
    engine: &Engine,
    metrics: &ReplicationMetrics,
    from: MemberId,
    known: impl Fn() -> Result<(), tonic::Status>,
    mut batches: impl Stream<Item = Result<wire::ProgressBatch, tonic::Status>> + Unpin,
) -> Result<(), tonic::Status> {
    ears.begin(from);
    while let Some(batch) = batches.next().await {
        known()?;
        let learned = ears.hear(engine, from, &batch?);
        metrics.progress_learned.add(learned.map_err(|e| tonic::Status::invalid_argument(e.to_string()))?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_gap_is_what_no_message_told() {
        let mut peer = Peer::new(Time(1_000 * MS));
        // Its clock is 500 ms behind; messages take 1 to 30 ms.
        let at = |here: u64, delay: u64| (Time((here + delay) * MS), (here - 500) * MS);
        let (now, sent) = at(1_100, 30);
        assert_eq!(
            peer.hear(now, sent, sent - 100 * MS, sent),
            Some((Time(1_000 * MS), Time(1_030 * MS))),
            "the first one"
        );
        let (now, next) = at(1_200, 1);
        assert_eq!(peer.hear(now, next, sent, next), None);
        assert_eq!(peer.until, Time(1_201 * MS));
        // One is lost.
        let (now, last) = at(1_400, 10);
        let begin = next + 100 * MS;
        assert_eq!(peer.hear(now, last, begin, last), Some((Time(1_201 * MS), Time(1_301 * MS))));
        assert_eq!(peer.until, Time(1_401 * MS), "the shortest delay counts");
    }
}
