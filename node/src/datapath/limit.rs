//! A token bucket that limits the packets which others can make us send.

use std::time::Duration;

use palisade_engine::Time;

/// A token is added after this time …
const TOKEN_INTERVAL: Duration = Duration::from_millis(1);
/// … up to this number. (The kernel's own limit to ICMP errors is the same: icmp(7),
/// `icmp_msgs_per_sec`, `icmp_msgs_burst`.)
const MAX_TOKENS: u32 = 50;

/// ICMP errors that a worker may send (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    tokens: u32,
    /// Up to when tokens have come.
    since: Time,
}

impl Bucket {
    /// A full one.
    pub(crate) fn new(now: Time) -> Bucket {
        Bucket { tokens: MAX_TOKENS, since: now }
    }

    /// Takes a token, if there is one.
    pub(crate) fn take(&mut self, now: Time) -> bool {
        let come = now.since(self.since).as_nanos() / TOKEN_INTERVAL.as_nanos();
        match u32::try_from(come) {
            Ok(come) if come < MAX_TOKENS - self.tokens => {
                self.tokens += come;
                // What is left over of the time counts for the next token.
                self.since = self.since + TOKEN_INTERVAL * come;
            }
            _ => *self = Bucket::new(now),
        }
        let taken = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let begin = Time(1_000_000_000);
        let mut bucket = Bucket::new(begin);
        let taken = |bucket: &mut Bucket, now| (0..1000).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, begin), 50);
        assert_eq!(taken(&mut bucket, begin + Duration::from_micros(999)), 0);
        assert_eq!(taken(&mut bucket, begin + Duration::from_micros(2500)), 2);
        assert_eq!(taken(&mut bucket, begin + Duration::from_micros(3000)), 1, "the half token was not lost");
        assert_eq!(taken(&mut bucket, begin + Duration::from_secs(3600)), 50, "no more are kept");
        let second: usize = (0..10_000u32)
            .map(|n| taken(&mut bucket, begin + Duration::from_secs(3600) + Duration::from_micros(100) * n))
            .sum();
        assert!((999..=1000).contains(&second), "{second}");
    }
}
