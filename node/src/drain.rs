//! Draining: `palisade drain`, `palisade cluster leave` and SIGTERM turn traffic away in the same sequence.
//!
//! ```text
//!  fallback (/readyz, health) ───┬── routers turn away, until hardly any packet is forwarded here ──┬── drained
//!                                └── leadership goes to another member, which keeps it ─────────────┘
//! ```
//!
//! Packets that still arrive are forwarded during a drain and after it: routers only prefer other members. Before the member
//! stops or leaves, the rest of its readiness is withdrawn. It leads only if no other member can. A restart ends the drain,
//! because nothing of it is stored.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use palisade_engine::Time;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::clock;
use crate::replication::ElectionPriority;

/// Packets in a second up to which a member counts as drained: idle connections that end, a probe of some monitoring.
const MAX_QUIET_PACKETS: u64 = 10;
/// The time over which packets are counted.
const PACKET_WINDOW: Duration = Duration::from_secs(1);
/// Interval between two readings of the packet counter.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// How long a drain waits for another member to take over leadership.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(5);

/// What a drain needs of a member.
pub(crate) trait Drainable: Send + Sync + 'static {
    /// Packets that were forwarded so far; `None` if the member captures none.
    fn forwarded(&self) -> Option<u64>;
    /// Whether the member leads although others could.
    fn is_leader(&self) -> bool;
    /// Sets whether the member campaigns for leadership, and whether it keeps it.
    fn set_election_priority(&self, priority: ElectionPriority);
}

/// Why traffic is turned away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DrainReason {
    /// `palisade drain`: until `palisade undrain`.
    Operator,
    /// The member leaves its cluster.
    Leaving,
    /// The daemon ends.
    Stopping,
}

impl DrainReason {
    fn election_priority(self) -> ElectionPriority {
        match self {
            DrainReason::Operator => ElectionPriority::LastResort,
            DrainReason::Leaving | DrainReason::Stopping => ElectionPriority::Never,
        }
    }

    /// The reason as `/readyz` reports it.
    pub(crate) fn explanation(self) -> &'static str {
        match self {
            DrainReason::Operator => "this member is drained: `palisade undrain` takes that back",
            DrainReason::Leaving => "this member is about to leave its cluster",
            DrainReason::Stopping => "this member is about to stop",
        }
    }
}

/// The progress of a drain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Draining {
    pub(crate) reason: DrainReason,
    /// Since when this member is not ready.
    pub(crate) since: Time,
    /// Packets that were forwarded in the last second, or since `since` if that is shorter.
    pub(crate) packets: u64,
    /// Whether hardly any packet was forwarded for a second.
    pub(crate) quiet: bool,
    /// Whether the member still leads although others could.
    pub(crate) leader: bool,
    /// Whether the wait for traffic to move away is over, and the member is about to stop or to leave.
    pub(crate) over: bool,
}

impl Draining {
    /// Whether there is nothing left to wait for.
    fn is_done(&self, now: Time) -> bool {
        self.quiet && (!self.leader || now.since(self.since) > TRANSFER_TIMEOUT)
    }
}

/// How the wait for traffic to move away ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DrainOutcome {
    /// Hardly any packet is forwarded here.
    Drained(Draining),
    /// The time was over.
    TimedOut(Draining),
    /// By `palisade undrain`, or because the member is gone.
    Cancelled,
}

/// Whether this machine turns traffic away.
#[derive(Debug)]
pub(crate) struct Drain {
    state: watch::Sender<Option<Draining>>,
    sampler: Mutex<Option<AbortHandle>>,
}

impl Drain {
    pub(crate) fn new() -> Drain {
        Drain { state: watch::channel(None).0, sampler: Mutex::new(None) }
    }

    /// The progress now; `None`: this member takes traffic.
    pub(crate) fn now(&self) -> Option<Draining> {
        *self.state.borrow()
    }

    /// The progress from now on.
    pub(crate) fn follow(&self) -> watch::Receiver<Option<Draining>> {
        self.state.subscribe()
    }

    /// Withdraws readiness and gives leadership away. A drain that is in progress goes on with the new reason.
    pub(crate) fn begin(&self, reason: DrainReason, member: &Arc<impl Drainable>) {
        member.set_election_priority(reason.election_priority());
        let mut sampler = self.sampler.lock();
        self.state.send_modify(|state| match state {
            Some(draining) => (draining.reason, draining.over) = (reason, false),
            None => {
                let since = clock::now();
                *state = Some(Draining { reason, since, packets: 0, quiet: false, leader: true, over: false });
            }
        });
        if sampler.as_ref().is_none_or(AbortHandle::is_finished) {
            let sampling = sample(Arc::downgrade(member), self.state.clone());
            *sampler = Some(tokio::spawn(sampling).abort_handle());
        }
    }

    /// Withdraws what is left of the readiness, because nothing passes soon.
    pub(crate) fn withdraw(&self) {
        self.state.send_modify(|state| {
            if let Some(draining) = state {
                draining.over = true;
            }
        });
    }

    /// Takes traffic again.
    pub(crate) fn end(&self, member: Option<&impl Drainable>) {
        if let Some(sampler) = self.sampler.lock().take() {
            sampler.abort();
        }
        self.state.send_replace(None);
        if let Some(member) = member {
            member.set_election_priority(ElectionPriority::Normal);
        }
    }

    /// Waits until traffic has moved away and another member leads, for at most `timeout`.
    pub(crate) fn wait_drained(&self, timeout: Duration) -> impl Future<Output = DrainOutcome> + Send + use<> {
        let mut state = self.state.subscribe();
        async move {
            let done = state.wait_for(|s| s.is_none_or(|draining| draining.is_done(clock::now())));
            let done = tokio::time::timeout(timeout, done).await.map(|s| s.ok().and_then(|s| *s));
            match done {
                Ok(Some(draining)) => DrainOutcome::Drained(draining),
                Ok(None) => DrainOutcome::Cancelled,
                Err(_) => state.borrow().map_or(DrainOutcome::Cancelled, DrainOutcome::TimedOut),
            }
        }
    }
}

/// Keeps the progress up to date while the member exists.
async fn sample(member: Weak<impl Drainable>, state: watch::Sender<Option<Draining>>) {
    let mut counter = PacketWindow::default();
    let mut interval = tokio::time::interval(SAMPLE_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let Some(member) = member.upgrade() else { return };
        let forwarded = member.forwarded();
        let (packets, complete) = counter.sample(clock::now(), forwarded.unwrap_or(0));
        // A member that captures nothing has no traffic to wait for.
        let quiet = forwarded.is_none() || (complete && packets <= MAX_QUIET_PACKETS);
        let leader = member.is_leader();
        drop(member);
        state.send_modify(|state| {
            if let Some(draining) = state {
                (draining.packets, draining.quiet, draining.leader) = (packets, quiet, leader);
            }
        });
    }
}

/// Readings of the packet counter within [`PACKET_WINDOW`].
#[derive(Default)]
struct PacketWindow(VecDeque<(Time, u64)>);

impl PacketWindow {
    /// Adds a reading. Returns the packets within the window, and whether the readings span it completely.
    fn sample(&mut self, now: Time, forwarded: u64) -> (u64, bool) {
        self.0.push_back((now, forwarded));
        // The oldest reading that is kept is the newest one outside the window.
        while self.0.get(1).is_some_and(|(at, _)| now.since(*at) >= PACKET_WINDOW) {
            self.0.pop_front();
        }
        let (begin, before) = self.0.front().copied().unwrap_or((now, forwarded));
        (forwarded.saturating_sub(before), now.since(begin) >= PACKET_WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_window_counts_the_last_second() {
        let mut window = PacketWindow::default();
        let mut now = Time(5_000_000_000);
        let mut forwarded = 70_000;
        let mut sample = |packets: u64| {
            now = now + SAMPLE_INTERVAL;
            forwarded += packets;
            window.sample(now, forwarded)
        };
        // 20 every 100 ms; counting begins at the first reading.
        assert_eq!(sample(20), (0, false));
        for n in 1..10 {
            assert_eq!(sample(20), (20 * n, false));
        }
        for _ in 0..30 {
            assert_eq!(sample(20), (200, true));
        }
        for n in 1..=10 {
            assert_eq!(sample(0), (200 - 20 * n, true));
        }
    }

    #[test]
    fn drain_waits_for_a_leadership_transfer_until_its_timeout() {
        let since = Time(1_000_000_000);
        let at = |reason, leader, quiet| Draining { reason, since, packets: 0, quiet, leader, over: false };
        let soon = since + Duration::from_secs(1);
        assert!(at(DrainReason::Operator, false, true).is_done(soon));
        assert!(!at(DrainReason::Operator, true, true).is_done(soon));
        assert!(!at(DrainReason::Operator, false, false).is_done(soon));
        assert!(at(DrainReason::Stopping, true, true).is_done(since + TRANSFER_TIMEOUT + SAMPLE_INTERVAL));
    }
}
