//! What the members dropped, by reason, and which of it was INVALID.

use std::collections::BTreeMap;
use std::fmt;

use crate::Lab;
use crate::counters::metric;
use anyhow::{Result, bail};
use palisade_engine::Reason;

/// Whether this reason says that the packet was INVALID: broken, or of no session. The others are the policy's, or those of a
/// member that cannot or must not do more. The list is complete: a new reason does not compile until it has its place.
#[must_use]
pub fn is_invalid(reason: Reason) -> bool {
    match reason {
        Reason::Truncated
        | Reason::Malformed
        | Reason::BadChecksum
        | Reason::IpOption
        | Reason::Martian
        | Reason::Antispoof
        | Reason::Fragment
        | Reason::NoSession
        | Reason::TcpFlags
        | Reason::TcpWindow
        | Reason::TcpRst
        | Reason::IcmpUnrelated
        | Reason::IcmpType
        | Reason::WrongZone => true,
        Reason::NoRoute
        | Reason::NoDataInterface
        | Reason::EgressMismatch
        | Reason::Policy
        | Reason::PolicyReject
        | Reason::HalfOpenFull
        | Reason::TableFull
        | Reason::Conflict
        | Reason::HoldFull
        | Reason::HoldExpired
        | Reason::LeaseGrace
        | Reason::LeaseExpired
        | Reason::Stale
        | Reason::NotForUs
        | Reason::InjectFailed => false,
    }
}

/// Whether this reason says that the machine was too slow just then.
#[must_use]
pub fn is_overload(reason: Reason) -> bool {
    matches!(reason, Reason::HoldFull | Reason::HoldExpired | Reason::LeaseGrace | Reason::Stale)
}

/// Packets dropped, by the member's number and the reason; what did not happen is not in it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Drops(BTreeMap<(usize, Reason), u64>);

impl Drops {
    /// Reads the counters of all members.
    ///
    /// # Errors
    /// One does not answer.
    pub async fn read(lab: &Lab) -> Result<Drops> {
        let mut all = BTreeMap::new();
        for member in lab.members() {
            let (status, text) = member.http("/metrics").await?;
            if status != 200 {
                bail!("{}: /metrics answers {status}", member.name());
            }
            for reason in Reason::ALL {
                let label = format!("reason=\"{}\"", reason.label());
                // Counts of packets are far below 2^53.
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                match metric(&text, "palisade_packets_total", &[&label])?.unwrap_or(0.0) as u64 {
                    0 => {}
                    count => drop(all.insert((member.number(), *reason), count)),
                }
            }
        }
        Ok(Drops(all))
    }

    /// What came since `before`.
    #[must_use]
    pub fn since(mut self, before: &Drops) -> Drops {
        for (key, count) in &before.0 {
            if let Some(now) = self.0.get_mut(key) {
                *now = now.saturating_sub(*count);
            }
        }
        self.0.retain(|_, count| *count > 0);
        self
    }

    /// Only those with reasons of some kind.
    #[must_use]
    pub fn only(&self, kind: impl Fn(Reason) -> bool) -> Drops {
        Drops(self.0.iter().filter(|((_, reason), _)| kind(*reason)).map(|(k, v)| (*k, *v)).collect())
    }

    /// How many packets in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

impl fmt::Display for Drops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (place, ((member, reason), count)) in self.0.iter().enumerate() {
            let comma = if place > 0 { ", " } else { "" };
            write!(f, "{comma}{count} {} at fw{member}", reason.label())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_compared_and_chosen() {
        let of = |list: &[(usize, Reason, u64)]| Drops(list.iter().map(|(m, r, n)| ((*m, *r), *n)).collect());
        let before = of(&[(1, Reason::Policy, 2), (2, Reason::TcpRst, 3)]);
        let after =
            of(&[(1, Reason::Policy, 4), (2, Reason::TcpRst, 3), (3, Reason::Stale, 1), (3, Reason::TcpRst, 5)]);
        let new = after.since(&before);
        assert_eq!(new.to_string(), "2 policy at fw1, 5 tcp_rst at fw3, 1 stale at fw3");
        assert_eq!(new.only(is_invalid).to_string(), "5 tcp_rst at fw3");
        assert_eq!((new.only(is_overload).total(), new.total()), (1, 8));
        assert_eq!(new.clone().since(&new).to_string(), "none");
    }
}
