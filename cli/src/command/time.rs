//! Durations on the command line.

use std::time::Duration;

use palisade_engine::duration::{self, DurationError, Unit};

/// A parser of durations from 1 s to `max`, such as `90s`, `30m`, `1h` or `2d`.
pub(super) fn up_to(max: Duration) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    move |text| {
        let too_long = || format!("write a time of at most {}", crate::print::time(max));
        match duration::parse(text, &[Unit::Second, Unit::Minute, Unit::Hour, Unit::Day]) {
            Ok(Duration::ZERO) => Err("write a time of at least 1s".to_owned()),
            Ok(time) if time > max => Err(too_long()),
            Ok(time) => Ok(time),
            Err(DurationError::TooLong) => Err(too_long()),
            Err(DurationError::Syntax | DurationError::NoUnit) => {
                Err("write a number and its unit: 90s, 30m, 1h".to_owned())
            }
        }
    }
}

/// Milliseconds, as admin.proto has them.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
