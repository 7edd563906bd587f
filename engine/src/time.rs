//! Time as an argument.
//!
//! The engine never asks a clock. Its callers pass [`Time`], nanoseconds on one member's own boot-time clock
//! (`CLOCK_BOOTTIME`, so that a suspended machine notices). A [`Time`] never leaves its member: clocks of different
//! members are not comparable, and nothing replicated contains one.

use std::ops::{Add, Sub};
use std::time::Duration;

/// Nanoseconds on this member's boot-time clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time(pub u64);

impl Time {
    /// The beginning of the clock.
    pub const ZERO: Time = Time(0);

    /// The time since `earlier`; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Time;

    fn add(self, rhs: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Time {
    type Output = Time;

    fn sub(self, rhs: Duration) -> Time {
        Time(self.0.saturating_sub(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}
