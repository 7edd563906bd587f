//! RSTs to both ends of connections that an administrator has ended (`palisade session kill --reset`), at a bounded rate.
//!
//! [`palisade_engine::ConnectionResets`] says which RSTs end a connection. The member that got the command sends them, after
//! the log has taken the end; a task keeps the rate, and a worker of the datapath sends.

use std::sync::{Arc, Weak};
use std::time::Duration;

use palisade_engine::{ConnectionResets, Hint, Reset};
use tokio::sync::mpsc;

use crate::clock;
use crate::member::Member;
use crate::queue;
use crate::replication::ReplicationMetrics;

/// RSTs that wait.
const QUEUE: usize = 16_384;
/// RSTs that are sent at once …
const BURST: usize = 50;
/// … and the time between two bursts: a thousand a second.
const INTERVAL: Duration = Duration::from_millis(50);

/// Takes the connections whose ends are to be told.
pub(crate) struct ResetQueue {
    resets: mpsc::Sender<Reset>,
    hints: mpsc::Sender<Hint>,
    metrics: Arc<ReplicationMetrics>,
}

/// The other end of a [`ResetQueue`].
pub(crate) struct Resets(mpsc::Receiver<Reset>);

impl ResetQueue {
    /// A queue, which also sends hints about these connections to the other members.
    pub(crate) fn new(hints: mpsc::Sender<Hint>, metrics: Arc<ReplicationMetrics>) -> (ResetQueue, Resets) {
        let (resets, waiting) = mpsc::channel(QUEUE);
        (ResetQueue { resets, hints, metrics }, Resets(waiting))
    }

    /// Has both ends of a connection that has ended told. Whether both are told without a segment of their own.
    pub(crate) fn tell(&self, member: &Member, ended: &ConnectionResets) -> bool {
        member.engine.answer_with_resets(clock::now(), &ended.original);
        if !queue::offer_hint(&self.hints, Hint::Reset(ended.original)) {
            self.metrics.hints_dropped.inc();
        }
        let mut told = [false; 2];
        if member.datapath().is_none() {
            return false;
        }
        for reset in &ended.resets {
            if self.resets.try_send(*reset).is_ok() {
                told[usize::from(reset.tuple == ended.original)] = true;
            } else {
                self.metrics.kill_resets.dropped.inc();
            }
        }
        told == [true; 2]
    }
}

/// Sends what is queued, until the member ends.
pub(crate) async fn run(member: Weak<Member>, mut waiting: Resets) {
    let mut batch = Vec::with_capacity(BURST);
    while waiting.0.recv_many(&mut batch, BURST).await > 0 {
        // No handle is kept during the wait: the member's end waits until all are dropped.
        let Some(member) = member.upgrade() else { return };
        let metrics = member.replication.metrics();
        // The tuple may have another connection by now.
        let queued = batch.len();
        batch.retain(|reset| !member.engine.is_known(&reset.tuple));
        metrics.kill_resets.superseded.add((queued - batch.len()) as u64);
        match member.datapath() {
            Some(datapath) => {
                metrics.kill_resets.sent.add(batch.len() as u64);
                datapath.send_resets(std::mem::replace(&mut batch, Vec::with_capacity(BURST)));
            }
            None => metrics.kill_resets.dropped.add(batch.len() as u64),
        }
        batch.clear();
        drop(member);
        tokio::time::sleep(INTERVAL).await;
    }
}
