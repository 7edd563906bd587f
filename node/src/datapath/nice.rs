//! Priorities of the daemon's threads: a flood must not starve Raft.
//!
//! A flood keeps the packet workers busy for ever. Heartbeats, votes and lease renewals need little time, but need it within some
//! ten milliseconds, or members take their leader for dead. So a worker whose capture rings overflow lets all other threads of
//! the daemon run before it, until nothing has been lost for a while. The default number of workers leaves a processor free
//! besides, where there is more than one.
//!
//! Without a loss all threads have the same priority, on purpose. Precedence for Raft lets it commit each handshake the moment it
//! arrives, instead of all that arrived during the last commit. On two busy processors this took twice the time per connection
//! and two fifths of the new connections per second.

use std::time::Duration;

use palisade_engine::Time;

use super::sys;

/// By how much an overloaded worker raises its nice value. Each step is a tenth of processor time: ten steps are a factor of ten.
const DISTANCE: i32 = 10;

/// How long nothing must be lost before a worker takes its usual nice value again.
const QUIET: Duration = Duration::from_secs(1);

/// When a worker is overloaded: its rings overflow.
#[derive(Debug, Default)]
struct Overload {
    /// When a loss was seen last; None if it is not overloaded.
    last_loss: Option<Time>,
}

impl Overload {
    /// Takes the number of frames lost since the last call. Returns whether the worker is overloaded, if this is new.
    fn observe(&mut self, now: Time, lost: u64) -> Option<bool> {
        if lost > 0 {
            return self.last_loss.replace(now).is_none().then_some(true);
        }
        let over = self.last_loss.is_some_and(|last| now.since(last) >= QUIET);
        if over {
            self.last_loss = None;
        }
        over.then_some(false)
    }
}

/// The priority of the calling thread, a worker.
#[derive(Debug)]
pub(super) struct Priority {
    usual: i32,
    overload: Overload,
    permitted: bool,
}

impl Priority {
    /// That of the calling thread. It changes only if the thread may take its usual nice value again afterwards: `CAP_SYS_NICE`, or a
    /// resource limit (`LimitNICE=+0` in the unit).
    pub(super) fn of_worker() -> Priority {
        let usual = sys::nice();
        let permitted = sys::set_nice((usual + 1).min(19)).and_then(|()| sys::set_nice(usual)).is_ok();
        if !permitted {
            tracing::debug!("no permission to lower a nice value: a flood may delay Raft");
        }
        Priority { usual, overload: Overload::default(), permitted }
    }

    /// Takes the number of frames that were lost since the last call.
    pub(super) fn observe(&mut self, now: Time, lost: u64) {
        let Some(overloaded) = self.overload.observe(now, lost).filter(|_| self.permitted) else { return };
        let nice = if overloaded { (self.usual + DISTANCE).min(19) } else { self.usual };
        match sys::set_nice(nice) {
            Ok(()) => tracing::info!(overloaded, nice, "a packet worker's rings overflow, or do so no longer"),
            Err(error) => tracing::warn!(%error, "a packet worker's nice value cannot be set"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn worker_is_overloaded_from_its_first_loss_until_a_second_without_one() {
        let mut overload = Overload::default();
        let steps = [(0, 0), (100, 3), (200, 1), (1100, 0), (1199, 0), (1200, 0), (1300, 0), (1400, 1)];
        let seen = steps.map(|(time, lost)| overload.observe(at(time), lost));
        assert_eq!(seen, [None, Some(true), None, None, None, Some(false), None, Some(true)]);
    }

    #[test]
    fn overloaded_worker_is_behind_other_threads_and_returns() {
        let nice = std::thread::spawn(|| {
            let mut priority = Priority::of_worker();
            let mut seen = vec![sys::nice()];
            for (time, lost) in [(100, 1), (1100, 0)] {
                priority.observe(at(time), lost);
                seen.push(sys::nice());
            }
            priority.permitted.then_some(seen)
        })
        .join()
        .unwrap();
        let Some(nice) = nice else { return };
        assert!(nice[1] > nice[0] || nice[0] == 19, "{nice:?}");
        assert_eq!(nice[2], nice[0]);
    }
}
