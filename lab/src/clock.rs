//! The clock of the lab: boot time, as the members use it, so that times of both can be compared.

use nix::time::{ClockId, clock_gettime};
use palisade_engine::Time;

/// The current boot time.
#[must_use]
pub fn now() -> Time {
    // Cannot fail: the clock exists since Linux 2.6.39, and the address is ours.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Time::ZERO, |t| {
        let secs = u64::try_from(t.tv_sec()).unwrap_or(0);
        let nanos = u64::try_from(t.tv_nsec()).unwrap_or(0);
        Time(secs.saturating_mul(1_000_000_000).saturating_add(nanos))
    })
}
