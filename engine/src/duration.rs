//! Durations as people write them: a number and its unit, such as `250ms`, `30s` or `5d`.

use std::time::Duration;

/// A unit of time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// `ms`.
    Millisecond,
    /// `s`.
    Second,
    /// `m`.
    Minute,
    /// `h`.
    Hour,
    /// `d`: 24 hours.
    Day,
}

impl Unit {
    /// The symbol that follows the number.
    #[must_use]
    pub const fn symbol(self) -> &'static str {
        match self {
            Unit::Millisecond => "ms",
            Unit::Second => "s",
            Unit::Minute => "m",
            Unit::Hour => "h",
            Unit::Day => "d",
        }
    }

    const fn millis(self) -> u64 {
        match self {
            Unit::Millisecond => 1,
            Unit::Second => 1000,
            Unit::Minute => 60 * 1000,
            Unit::Hour => 3600 * 1000,
            Unit::Day => 86_400 * 1000,
        }
    }
}

/// The reason why a text is not a duration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DurationError {
    /// There is no number, or the unit is not one of those accepted.
    #[error("not a time")]
    Syntax,
    /// The unit is missing.
    #[error("a time without a unit")]
    NoUnit,
    /// The duration is longer than 2^64 ms.
    #[error("a time that is too long")]
    TooLong,
}

/// Parses a number and one of `units`, with or without spaces between them.
///
/// # Errors
/// The text is not a duration in one of the units. The caller checks its own bounds.
pub fn parse(text: &str, units: &[Unit]) -> Result<Duration, DurationError> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, symbol) = text.split_at(digits);
    let symbol = symbol.trim_start();
    if number.is_empty() {
        return Err(DurationError::Syntax);
    }
    if symbol.is_empty() {
        return Err(DurationError::NoUnit);
    }
    let unit = units.iter().find(|unit| unit.symbol() == symbol).ok_or(DurationError::Syntax)?;
    // The number consists of digits only, so it cannot be parsed only if it is too large.
    let number: u64 = number.parse().map_err(|_| DurationError::TooLong)?;
    number.checked_mul(unit.millis()).map(Duration::from_millis).ok_or(DurationError::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Unit; 5] = [Unit::Millisecond, Unit::Second, Unit::Minute, Unit::Hour, Unit::Day];

    #[test]
    fn duration_has_a_number_and_an_accepted_unit() {
        for (text, seconds) in [("1500ms", 1.5), ("5s", 5.0), ("10m", 600.0), ("2h", 7200.0), ("2 d", 172_800.0)] {
            assert_eq!(parse(text, &ALL), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
        assert_eq!(parse("0s", &ALL), Ok(Duration::ZERO));
        assert_eq!(parse("5ms", &[Unit::Second, Unit::Day]), Err(DurationError::Syntax));
        for text in ["", "s", " 5s", "5s ", "-5s", "+5s", "1.5h", "5S", "5 s s", "5sm"] {
            assert_eq!(parse(text, &ALL), Err(DurationError::Syntax), "{text}");
        }
        assert_eq!(parse("5", &ALL), Err(DurationError::NoUnit));
    }

    #[test]
    fn duration_that_overflows_is_too_long() {
        for text in ["18446744073709551616ms", "18446744073709551615s", "213503982335d", "99999999999999999999999m"] {
            assert_eq!(parse(text, &ALL), Err(DurationError::TooLong), "{text}");
        }
        assert!(parse("18446744073709551615ms", &ALL).is_ok());
    }
}
