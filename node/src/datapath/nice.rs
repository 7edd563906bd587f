//! Priorities of the daemon's threads: packets must not starve Raft.
//!
//! A flood keeps the packet workers busy for ever. Heartbeats, votes and lease renewals need little time, but need it within some
//! ten milliseconds, or members take their leader for dead. So the workers run at a higher nice value than all other threads
//! of the daemon. The default number of workers leaves a processor free besides, where there is more than one.

use super::sys;

/// What the workers' nice value is above that of the other threads. Each step is a tenth of processor time: ten steps are a
/// factor of ten.
const DISTANCE: i32 = 10;

/// Gives the calling thread, and those that it makes later, precedence over the packet workers. Where this is not permitted,
/// the workers step back instead.
pub fn prefer_raft() {
    if sys::nice() == 0 && sys::set_nice(-DISTANCE).is_err() {
        tracing::debug!("no permission for a negative nice value: the packet workers get a positive one");
    }
}

/// Lets the daemon's other threads run before the calling one. Without a negative nice value to start from it keeps half of the
/// distance, because other programs of the machine run before it then, too.
pub(super) fn yield_to_raft() {
    let now = sys::nice();
    let wanted = if now < 0 { now + DISTANCE } else { now + DISTANCE / 2 };
    if let Err(error) = sys::set_nice(wanted.min(19)) {
        tracing::warn!(%error, "a packet worker's nice value cannot be set");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_is_behind_the_thread_that_started_it() {
        let (before, after) = std::thread::spawn(|| {
            prefer_raft();
            let before = sys::nice();
            let worker = std::thread::spawn(|| {
                yield_to_raft();
                sys::nice()
            });
            (before, worker.join().unwrap())
        })
        .join()
        .unwrap();
        assert!(after > before || before == 19, "{after} after {before}");
    }
}
