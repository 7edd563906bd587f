//! Times on the command line.

use std::time::Duration;

/// A parser of times from 1 s to `max`.
pub(super) fn up_to(max: Duration) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    move |text| {
        let time = parse(text).ok_or_else(|| "write a number and its unit: 90s, 30m, 1h".to_owned())?;
        match time {
            Duration::ZERO => Err("write a time of at least 1s".to_owned()),
            time if time > max => Err(format!("write a time of at most {}", crate::print::time(max))),
            time => Ok(time),
        }
    }
}

/// Milliseconds, as admin.proto has them.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// `90s`, `30m`, `1h`, `2d`.
fn parse(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let number: u64 = number.parse().ok()?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.checked_mul(seconds).map(Duration::from_secs)
}
