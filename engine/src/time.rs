//! Time, which is an argument everywhere.
//!
//! The engine never reads a clock. Its callers pass [`Time`], nanoseconds on one member's own boot-time clock
//! (`CLOCK_BOOTTIME`, which counts suspended time too). A [`Time`] never leaves its member: the clocks of different members
//! are not comparable, and nothing replicated contains one.

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

/// A [`Time`] in four bytes, in units of 2^`SHIFT` nanoseconds. Zero: never. It wraps: after 2^32 units an age seems shorter than
/// it is, never longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stamp<const SHIFT: u32>(u32);

/// A stamp in units of 17 ms, for 834 days.
pub(crate) type Stamp17ms = Stamp<24>;

/// A stamp in units of 4 ms, for 208 days.
pub(crate) type Stamp4ms = Stamp<22>;

impl<const SHIFT: u32> Stamp<SHIFT> {
    pub(crate) const NEVER: Stamp<SHIFT> = Stamp(0);
    pub(crate) const UNIT: Duration = Duration::from_nanos(1 << SHIFT);
    /// By how many units a stamp may be later than `now`, because workers read the clock one after another.
    const MAX_UNITS_AHEAD: u32 = 1 << 16;

    /// A stamp that is rounded down: ages are never too short.
    pub(crate) fn new(time: Time) -> Stamp<SHIFT> {
        match (time.0 >> SHIFT) as u32 {
            0 => Stamp(u32::MAX),
            units => Stamp(units),
        }
    }

    /// A stamp that is rounded up: ages are never too long.
    pub(crate) fn rounded_up(time: Time) -> Stamp<SHIFT> {
        match (time + (Self::UNIT - Duration::from_nanos(1))).0 >> SHIFT {
            units if units as u32 == 0 => Stamp(1),
            units => Stamp(units as u32),
        }
    }

    /// The time since the stamp. `None`: never.
    pub(crate) fn age(self, now: Time) -> Option<Duration> {
        let units = ((now.0 >> SHIFT) as u32).wrapping_sub(self.0);
        if self == Stamp::NEVER {
            None
        } else if units > u32::MAX - Self::MAX_UNITS_AHEAD {
            Some(Duration::ZERO)
        } else {
            Some(Duration::from_nanos(u64::from(units) << SHIFT | now.0 & ((1 << SHIFT) - 1)))
        }
    }

    /// Whether the stamp is later than `other`. [`Stamp::NEVER`] is earlier than all others.
    pub(crate) fn is_after(self, other: Stamp<SHIFT>) -> bool {
        let later = self.0.wrapping_sub(other.0) as i32 > 0;
        self != Stamp::NEVER && (other == Stamp::NEVER || later)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamp_rounds_to_its_side_and_wraps() {
        let day = Duration::from_secs(86_400);
        let wrap = Stamp17ms::UNIT * u32::MAX + Stamp17ms::UNIT;
        let years = Time((1_u64 << 62) + 12_345);
        for start in
            [Time(1), Time(1 << 24), Time(777_777_777_777), years, Time::ZERO + (wrap - Duration::from_secs(2))]
        {
            for age in [Duration::ZERO, Duration::from_millis(3), Duration::from_secs(5), day, 400 * day] {
                let now = start + age;
                let (down, up) = (Stamp17ms::new(start).age(now), Stamp17ms::rounded_up(start).age(now));
                let down = down.unwrap_or_default();
                assert!((age..age + Stamp17ms::UNIT * 2).contains(&down), "{start:?} {age:?} {down:?}");
                let up = up.unwrap_or_default();
                assert!(up <= age && age < up + Stamp17ms::UNIT * 2, "{start:?} {age:?} {up:?}");
                assert_eq!(Stamp17ms::new(now).is_after(Stamp17ms::new(start)), age > Stamp17ms::UNIT);
                assert!(!Stamp17ms::new(start).is_after(Stamp17ms::new(now)));
            }
        }
        assert_eq!(Stamp17ms::new(years).age(years - Duration::from_secs(60)), Some(Duration::ZERO), "another clock");
        assert_eq!(Stamp17ms::NEVER.age(years), None);
        assert!(Stamp17ms::new(years).is_after(Stamp17ms::NEVER) && !Stamp17ms::NEVER.is_after(Stamp17ms::new(years)));
    }
}
