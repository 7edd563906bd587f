//! Turning traffic away: the one sequence that `palisade drain`, `palisade cluster leave` and SIGTERM share.
//!
//! ```text
//!  not ready (/readyz, health) ──┬── routers turn away: until hardly a packet passes here ──┬── drained
//!                                └── the lead goes to another member, which keeps it ───────┘
//! ```
//!
//! What still comes is forwarded all the while, and afterwards: a drained member is only not ready. It does not lead, unless
//! nobody else can. A restart ends it: nothing of it is stored.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use palisade_engine::Time;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::clock;
use crate::node::Member;
use crate::replication::ElectionPriority;

/// As many packets in a second still count as quiet: a connection that dies of old age, a probe of somebody's monitoring.
const QUIET: u64 = 10;
/// Over how long packets are counted, and how often they are looked at.
const WINDOW: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(100);
/// How long another member may take to take the lead; then it is not waited for any longer.
const HAND_OVER: Duration = Duration::from_secs(5);

/// Why traffic is turned away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Why {
    /// `palisade drain`: until `palisade undrain`.
    Drained,
    /// It leaves its cluster.
    Leaving,
    /// The daemon ends.
    Stopping,
}

impl Why {
    fn candidacy(self) -> ElectionPriority {
        match self {
            Why::Drained => ElectionPriority::LastResort,
            Why::Leaving | Why::Stopping => ElectionPriority::Never,
        }
    }

    /// What `/readyz` says.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Why::Drained => "this member is drained: `palisade undrain` takes that back",
            Why::Leaving => "this member is about to leave its cluster",
            Why::Stopping => "this member is about to stop",
        }
    }
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Draining {
    pub(crate) why: Why,
    /// Since when this member is not ready.
    pub(crate) since: Time,
    /// Packets that were forwarded here in the last second, or since it is not ready if that is shorter.
    pub(crate) passing: u64,
    /// Hardly any for a second.
    pub(crate) quiet: bool,
    /// It still leads, and others could.
    pub(crate) leads: bool,
}

impl Draining {
    /// Is there nothing left to wait for?
    fn over(&self, now: Time) -> bool {
        self.quiet && (!self.leads || now.since(self.since) > HAND_OVER)
    }
}

/// How waiting for traffic to move away ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    /// Hardly anything passes here.
    Quiet(Draining),
    /// The time was over.
    Late(Draining),
    /// `palisade undrain`, or the member is gone.
    Undone,
}

/// Whether this machine turns traffic away.
#[derive(Debug)]
pub(crate) struct Drain {
    state: watch::Sender<Option<Draining>>,
    meter: Mutex<Option<AbortHandle>>,
}

impl Drain {
    pub(crate) fn new() -> Drain {
        Drain { state: watch::channel(None).0, meter: Mutex::new(None) }
    }

    /// How far it is; `None`: this member takes traffic.
    pub(crate) fn now(&self) -> Option<Draining> {
        *self.state.borrow()
    }

    /// Follows it.
    pub(crate) fn follow(&self) -> watch::Receiver<Option<Draining>> {
        self.state.subscribe()
    }

    /// Withdraws readiness and gives the lead away. One that was drained before goes on from there.
    pub(crate) fn begin(&self, why: Why, member: &Arc<Member>) {
        member.replication.set_election_priority(why.candidacy());
        let mut meter = self.meter.lock();
        self.state.send_modify(|state| match state {
            Some(draining) => draining.why = why,
            None => {
                let since = clock::now();
                *state = Some(Draining { why, since, passing: 0, quiet: false, leads: true });
            }
        });
        if meter.as_ref().is_none_or(AbortHandle::is_finished) {
            let counting = count(Arc::downgrade(member), self.state.clone());
            *meter = Some(tokio::spawn(counting).abort_handle());
        }
    }

    /// Takes traffic again.
    pub(crate) fn end(&self, member: Option<&Member>) {
        if let Some(meter) = self.meter.lock().take() {
            meter.abort();
        }
        self.state.send_replace(None);
        if let Some(member) = member {
            member.replication.set_election_priority(ElectionPriority::Normal);
        }
    }

    /// Waits until traffic has moved away and somebody else leads, for `limit` at most.
    pub(crate) fn moved_away(&self, limit: Duration) -> impl Future<Output = Ended> + Send + use<> {
        let mut state = self.state.subscribe();
        async move {
            let over = state.wait_for(|s| s.is_none_or(|draining| draining.over(clock::now())));
            let over = tokio::time::timeout(limit, over).await.map(|s| s.ok().and_then(|s| *s));
            match over {
                Ok(Some(draining)) => Ended::Quiet(draining),
                Ok(None) => Ended::Undone,
                Err(_) => state.borrow().map_or(Ended::Undone, Ended::Late),
            }
        }
    }
}

/// Counts what still passes, for as long as the member is there.
async fn count(member: Weak<Member>, state: watch::Sender<Option<Draining>>) {
    let mut looks = VecDeque::new();
    let mut every = tokio::time::interval(LOOK);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let Some(member) = member.upgrade() else { return };
        let datapath = member.datapath();
        let forwarded = datapath.as_ref().map_or(0, |d| d.metrics().forwarded());
        let (passing, whole) = passing(&mut looks, clock::now(), forwarded);
        // Where no packets are captured, there is nobody to wait for.
        let quiet = datapath.is_none() || (whole && passing <= QUIET);
        let leads = member.replication.is_replaceable_leader();
        drop((datapath, member));
        state.send_modify(|state| {
            if let Some(draining) = state {
                (draining.passing, draining.quiet, draining.leads) = (passing, quiet, leads);
            }
        });
    }
}

/// Takes a reading of the counter in; answers how many packets passed within the window, and whether it is as long as
/// it should be.
fn passing(looks: &mut VecDeque<(Time, u64)>, now: Time, forwarded: u64) -> (u64, bool) {
    looks.push_back((now, forwarded));
    // The oldest one that is kept is the youngest that is old enough.
    while looks.get(1).is_some_and(|(at, _)| now.since(*at) >= WINDOW) {
        looks.pop_front();
    }
    let (begin, before) = looks.front().copied().unwrap_or((now, forwarded));
    (forwarded.saturating_sub(before), now.since(begin) >= WINDOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_the_last_second_are_counted() {
        let mut looks = VecDeque::new();
        let mut now = Time(5_000_000_000);
        let mut forwarded = 70_000;
        let mut look = |packets: u64| {
            now = now + LOOK;
            forwarded += packets;
            passing(&mut looks, now, forwarded)
        };
        // 20 every 100 ms: the first reading is where counting begins.
        assert_eq!(look(20), (0, false));
        for n in 1..10 {
            assert_eq!(look(20), (20 * n, false));
        }
        for _ in 0..30 {
            assert_eq!(look(20), (200, true));
        }
        for n in 1..=10 {
            assert_eq!(look(0), (200 - 20 * n, true));
        }
    }

    #[test]
    fn a_leader_is_waited_for_but_not_for_ever() {
        let since = Time(1_000_000_000);
        let at = |why, leads, quiet| Draining { why, since, passing: 0, quiet, leads };
        let soon = since + Duration::from_secs(1);
        assert!(at(Why::Drained, false, true).over(soon));
        assert!(!at(Why::Drained, true, true).over(soon));
        assert!(!at(Why::Drained, false, false).over(soon));
        assert!(at(Why::Stopping, true, true).over(since + HAND_OVER + LOOK));
    }
}
