//! The one clock of the daemon: boot time, which goes on while the machine sleeps.

use nix::time::{ClockId, clock_gettime};
use palisade_engine::Time;

/// Now. Costs about 30 ns (vDSO). On the packet path only the worker calls it, once after every receive.
#[must_use]
pub fn now() -> Time {
    #[cfg(feature = "simulation")]
    if let Some(now) = crate::simulation::with(|host| host.now()) {
        return now;
    }
    // Cannot fail: the clock exists since Linux 2.6.39 and the address is ours.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Time::ZERO, |t| {
        let secs = u64::try_from(t.tv_sec()).unwrap_or(0);
        let nanos = u64::try_from(t.tv_nsec()).unwrap_or(0);
        Time(secs.saturating_mul(1_000_000_000).saturating_add(nanos))
    })
}

/// The wall clock in milliseconds since 1970. For people and for join tokens, never for packets.
#[must_use]
pub fn unix_ms() -> u64 {
    #[cfg(feature = "simulation")]
    if let Some(ms) = crate::simulation::with(|host| host.unix_ms()) {
        return ms;
    }
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Waits until `time`; without one, for ever.
pub(crate) async fn sleep_until(time: Option<Time>) {
    match time {
        Some(time) => tokio::time::sleep(time.since(now())).await,
        None => std::future::pending().await,
    }
}
