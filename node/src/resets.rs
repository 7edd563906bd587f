//! RSTs to both ends of connections that an administrator has ended (`palisade session kill --reset`), at a bounded rate.
//!
//! [`palisade_engine::Engine::resets`] says which RSTs end a connection. The member that got the command sends them, a moment
//! after the log has taken the end: by then the others have said what they have seen of the connection. A task keeps the
//! rate, and a worker of the datapath sends.

use std::sync::{Arc, Weak};
use std::time::Duration;

use palisade_engine::{Hint, Time, Tuple};
use tokio::sync::mpsc;

use crate::clock;
use crate::member::Member;
use crate::queue;
use crate::replication::ReplicationMetrics;

/// Connections that wait.
const QUEUE: usize = 16_384;
/// How long the others have: they apply the end, and answer within a tenth of a second.
const DELAY: Duration = Duration::from_millis(400);
/// Connections whose ends are told at once …
const BURST: usize = 20;
/// … and the time between two bursts: 400 a second, with at most four RSTs each.
const INTERVAL: Duration = Duration::from_millis(50);

/// Takes the connections whose ends are to be told.
pub(crate) struct ResetQueue {
    ended: mpsc::Sender<Ended>,
    hints: mpsc::Sender<Hint>,
    metrics: Arc<ReplicationMetrics>,
}

struct Ended {
    original: Tuple,
    due: Time,
}

/// The other end of a [`ResetQueue`].
pub(crate) struct Resets(mpsc::Receiver<Ended>);

impl ResetQueue {
    /// A queue, which also sends hints about these connections to the other members.
    pub(crate) fn new(hints: mpsc::Sender<Hint>, metrics: Arc<ReplicationMetrics>) -> (ResetQueue, Resets) {
        let (ended, waiting) = mpsc::channel(QUEUE);
        (ResetQueue { ended, hints, metrics }, Resets(waiting))
    }

    /// Has both ends of a connection told that has ended. Whether they are, without a segment of their own.
    pub(crate) fn tell(&self, member: &Member, original: Tuple) -> bool {
        let now = clock::now();
        let is_answered = member.engine.answer_with_resets(now, &original);
        if !queue::offer_hint(&self.hints, Hint::Reset(original)) {
            self.metrics.hints_dropped.inc();
        }
        // A witness sends no packets.
        let queued = is_answered
            && member.datapath().is_some()
            && self.ended.try_send(Ended { original, due: now + DELAY }).is_ok();
        if !queued {
            self.metrics.kill_resets.left_out.inc();
        }
        queued
    }
}

/// Sends what is queued, until the member ends.
pub(crate) async fn run(member: Weak<Member>, mut waiting: Resets) {
    let mut batch = Vec::with_capacity(BURST);
    while waiting.0.recv_many(&mut batch, BURST).await > 0 {
        clock::sleep_until(batch.last().map(|ended: &Ended| ended.due)).await;
        // No handle is kept during the wait: the member's end waits until all are dropped.
        let Some(member) = member.upgrade() else { return };
        let metrics = member.replication.metrics();
        let mut resets = Vec::with_capacity(4 * BURST);
        for Ended { original, .. } in batch.drain(..) {
            let before = resets.len();
            member.engine.resets(&original, &mut |reset| resets.push(reset));
            if resets.len() == before {
                metrics.kill_resets.left_out.inc();
            }
        }
        if let Some(datapath) = member.datapath() {
            metrics.kill_resets.sent.add(resets.len() as u64);
            datapath.send_resets(resets);
        }
        drop(member);
        tokio::time::sleep(INTERVAL).await;
    }
}
