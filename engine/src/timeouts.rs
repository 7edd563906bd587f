//! Idle timeouts of sessions: one for each state, as in nf_conntrack. `docs/policy.md` says why each default is as it is.
//!
//! They are part of the policy, so that all members have the same ones from the same log index on.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::duration::{self, DurationError, Unit};
use crate::track::State;
use crate::tuple::Protocol;

/// The shortest timeout, in seconds.
pub const MIN_TIMEOUT_SECS: u32 = 1;
/// The longest timeout, in seconds: 30 days.
pub const MAX_TIMEOUT_SECS: u32 = 30 * DAY;

const MINUTE: u32 = 60;
const HOUR: u32 = 60 * MINUTE;
const DAY: u32 = 24 * HOUR;

macro_rules! timeouts {
    ($($(#[$doc:meta])* $kind:ident = $name:literal, $default:expr;)*) => {
        /// A kind of timeout, with its name in policies.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum Timeout {
            $($(#[$doc])* $kind,)*
        }

        impl Timeout {
            /// All timeouts, in the order of the canonical form.
            pub const ALL: &'static [Timeout] = &[$(Timeout::$kind,)*];

            /// The timeout's name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Timeout::$kind => $name,)*
                }
            }
        }

        impl Timeouts {
            /// The defaults.
            pub const DEFAULT: Timeouts = Timeouts([$($default,)*]);
        }
    };
}

timeouts! {
    /// TCP: a SYN was seen.
    TcpSynSent = "tcp.syn_sent", 120;
    /// TCP: a SYN-ACK was seen.
    TcpSynRecv = "tcp.syn_recv", 60;
    /// TCP: established.
    TcpEstablished = "tcp.established", 5 * DAY;
    /// TCP: one end's FIN was seen. The other end may go on sending for as long as it likes, so this is as long as the minimum of
    /// an open connection (RFC 5382 section 5, RFC 6092 REC-35).
    TcpFinWait = "tcp.fin_wait", 2 * HOUR + 4 * MINUTE;
    /// TCP: one end's FIN was seen and acknowledged. The same.
    TcpCloseWait = "tcp.close_wait", 2 * HOUR + 4 * MINUTE;
    /// TCP: both ends' FINs were seen. Longer than the pause between two retransmissions of a FIN (RFC 7857 section 2.1).
    TcpLastAck = "tcp.last_ack", 4 * MINUTE;
    /// TCP: closed by FINs, in the log.
    TcpTimeWait = "tcp.time_wait", 120;
    /// TCP: ended by a RST.
    TcpClose = "tcp.close", 10;
    /// UDP, until the session is assured.
    UdpUnreplied = "udp.unreplied", 30;
    /// UDP, assured.
    UdpAssured = "udp.assured", 5 * MINUTE;
    /// ICMP and ICMPv6 echo.
    Icmp = "icmp", MINUTE;
    /// GRE, until the session is assured.
    GreUnreplied = "gre.unreplied", 30;
    /// GRE, assured.
    GreAssured = "gre.assured", 180;
    /// All other protocols.
    Generic = "generic", 600;
}

impl Timeout {
    /// The number of timeouts.
    pub const COUNT: usize = Timeout::ALL.len();

    /// The timeout with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Timeout> {
        Timeout::ALL.iter().copied().find(|timeout| timeout.name() == name)
    }

    /// The timeout of a session in this state.
    pub(crate) fn for_state(state: State, protocol: Protocol) -> Timeout {
        match state {
            State::SynSent => Timeout::TcpSynSent,
            State::SynRecv => Timeout::TcpSynRecv,
            State::Established => Timeout::TcpEstablished,
            State::FinWait => Timeout::TcpFinWait,
            State::CloseWait => Timeout::TcpCloseWait,
            State::LastAck => Timeout::TcpLastAck,
            State::TimeWait => Timeout::TcpTimeWait,
            State::Close => Timeout::TcpClose,
            State::Unreplied | State::Replied | State::Assured => match (protocol, state) {
                (Protocol::UDP, State::Assured) => Timeout::UdpAssured,
                (Protocol::UDP, _) => Timeout::UdpUnreplied,
                (Protocol::GRE, State::Assured) => Timeout::GreAssured,
                (Protocol::GRE, _) => Timeout::GreUnreplied,
                (Protocol::ICMP | Protocol::ICMPV6, _) => Timeout::Icmp,
                _ => Timeout::Generic,
            },
        }
    }
}

/// All timeouts, in seconds. `Display` writes those that are not the default, in the policy's syntax. `serde` writes the same
/// ones as a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts([u32; Timeout::COUNT]);

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts::DEFAULT
    }
}

impl Timeouts {
    /// The value of a timeout.
    #[must_use]
    pub fn get(&self, timeout: Timeout) -> Duration {
        Duration::from_secs(self.seconds(timeout).into())
    }

    fn seconds(&self, timeout: Timeout) -> u32 {
        self.0[timeout as usize]
    }

    /// Sets a timeout. Values out of bounds are clamped.
    pub fn set(&mut self, timeout: Timeout, seconds: u32) {
        self.0[timeout as usize] = seconds.clamp(MIN_TIMEOUT_SECS, MAX_TIMEOUT_SECS);
    }

    /// Whether all timeouts have their defaults.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Timeouts::DEFAULT
    }

    /// Whether any timeout is shorter than in `other`.
    pub(crate) fn any_shorter_than(&self, other: &Timeouts) -> bool {
        self.0.iter().zip(&other.0).any(|(ours, theirs)| ours < theirs)
    }

    /// The timeouts that are not the default, in order.
    pub(crate) fn non_default(&self) -> impl Iterator<Item = (Timeout, u32)> {
        let all = Timeout::ALL.iter().map(|&timeout| (timeout, self.seconds(timeout)));
        all.filter(|&(timeout, seconds)| seconds != Timeouts::DEFAULT.seconds(timeout))
    }
}

/// Parses a duration such as `30s`, `5m`, `2h` or `5d`, in seconds.
///
/// # Errors
/// The message for the user.
pub(crate) fn parse_seconds(text: &str) -> Result<u32, String> {
    let seconds = match duration::parse(text, &[Unit::Second, Unit::Minute, Unit::Hour, Unit::Day]) {
        Ok(duration) => u32::try_from(duration.as_secs()).ok(),
        Err(DurationError::Syntax) => return Err(format!("`{text}` is not a time")),
        Err(DurationError::NoUnit) => return Err(format!("`{text}` has no unit: s, m, h or d")),
        Err(DurationError::TooLong) => None,
    };
    seconds.filter(|seconds| (MIN_TIMEOUT_SECS..=MAX_TIMEOUT_SECS).contains(seconds)).ok_or_else(|| {
        format!("`{text}` is out of bounds: from {} to {}", Seconds(MIN_TIMEOUT_SECS), Seconds(MAX_TIMEOUT_SECS))
    })
}

/// A duration in the syntax of [`parse_seconds`], in the largest unit that needs no fraction.
pub(crate) struct Seconds(pub(crate) u32);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(DAY, "d"), (HOUR, "h"), (MINUTE, "m")];
        let (length, unit) = units.into_iter().find(|(length, _)| self.0.is_multiple_of(*length)).unwrap_or((1, "s"));
        write!(f, "{}{unit}", self.0 / length)
    }
}

impl fmt::Display for Timeouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.non_default().enumerate().try_for_each(|(at, (timeout, seconds))| {
            let separator = if at > 0 { ", " } else { "" };
            write!(f, "{separator}{} {}", timeout.name(), Seconds(seconds))
        })
    }
}

impl Serialize for Timeouts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer
            .collect_map(self.non_default().map(|(timeout, seconds)| (timeout.name(), Seconds(seconds).to_string())))
    }
}

impl<'de> Deserialize<'de> for Timeouts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Timeouts, D::Error> {
        struct Map;

        impl<'de> Visitor<'de> for Map {
            type Value = Timeouts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("timeouts by name, such as {\"tcp.established\": \"5d\"}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Timeouts, A::Error> {
                let mut timeouts = Timeouts::DEFAULT;
                let mut seen = BTreeSet::new();
                while let Some((name, time)) = map.next_entry::<String, String>()? {
                    let timeout = Timeout::named(&name).ok_or_else(|| A::Error::custom(unknown_timeout(&name)))?;
                    if !seen.insert(timeout) {
                        return Err(A::Error::custom(format!("the timeout `{name}` is set twice")));
                    }
                    timeouts.set(timeout, parse_seconds(&time).map_err(A::Error::custom)?);
                }
                Ok(timeouts)
            }
        }

        deserializer.deserialize_map(Map)
    }
}

/// The message about a name that no timeout has.
pub(crate) fn unknown_timeout(name: &str) -> String {
    format!("there is no timeout named `{name}`")
}

/// All names, for the help of an error.
pub(crate) fn timeout_names() -> String {
    Timeout::ALL.iter().map(|timeout| timeout.name()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_text_is_read_and_written() {
        for (text, is) in [("1s", 1), ("90s", 90), ("2m", 120), ("124m", 7440), ("2h", 7200), ("5d", 432_000)] {
            assert_eq!(parse_seconds(text), Ok(is));
            assert_eq!(Seconds(is).to_string(), text);
        }
        assert_eq!(parse_seconds("120s").map(|s| Seconds(s).to_string()), Ok("2m".to_owned()));
        assert_eq!(parse_seconds("30d"), Ok(MAX_TIMEOUT_SECS));
        for (text, why) in [
            ("", "not a time"),
            ("s", "not a time"),
            ("-5s", "not a time"),
            ("5ms", "not a time"),
            ("5S", "not a time"),
            ("1.5h", "not a time"),
            ("5", "no unit"),
            ("0s", "out of bounds: from 1s to 30d"),
            ("31d", "out of bounds"),
            ("4294967296s", "out of bounds"),
            ("99999999999999999999d", "out of bounds"),
            ("50000d", "out of bounds"),
        ] {
            assert!(parse_seconds(text).is_err_and(|error| error.contains(why)), "{text}: {:?}", parse_seconds(text));
        }
    }

    /// What the RFCs demand of translators and firewalls, of the sessions that are not easily forged.
    #[test]
    fn timeout_defaults_are_not_below_what_rfcs_demand() {
        for (timeout, minimum, why) in [
            (Timeout::TcpEstablished, 7440, "RFC 5382 REQ-5: an open connection"),
            (Timeout::TcpFinWait, 7440, "RFC 5382 section 5: closed by one end, it is open"),
            (Timeout::TcpCloseWait, 7440, "the same"),
            (Timeout::TcpLastAck, 240, "RFC 5382 REQ-5: a connection that closes"),
            (Timeout::UdpAssured, 300, "RFC 4787 REQ-5: five minutes are recommended"),
            (Timeout::Icmp, 60, "RFC 5508 REQ-2"),
            // Retransmissions of a SYN are at most 64 s apart, those of a SYN-ACK 32 s.
            (Timeout::TcpSynSent, 65, "Linux' tcp_syn_retries"),
            (Timeout::TcpSynRecv, 33, "Linux' tcp_synack_retries"),
        ] {
            assert!(Timeouts::DEFAULT.seconds(timeout) >= minimum, "{}: {why}", timeout.name());
        }
    }

    #[test]
    fn timeout_names_are_unique_and_defaults_within_bounds() {
        for timeout in Timeout::ALL {
            assert_eq!(Timeout::named(timeout.name()), Some(*timeout));
            assert!((MIN_TIMEOUT_SECS..=MAX_TIMEOUT_SECS).contains(&Timeouts::DEFAULT.seconds(*timeout)));
        }
        assert_eq!(Timeout::named("tcp"), None);
    }

    /// Every state of every protocol.
    #[test]
    fn timeout_exists_for_every_state() {
        let tcp = [
            (State::SynSent, "tcp.syn_sent", 120),
            (State::SynRecv, "tcp.syn_recv", 60),
            (State::Established, "tcp.established", 432_000),
            (State::FinWait, "tcp.fin_wait", 7440),
            (State::CloseWait, "tcp.close_wait", 7440),
            (State::LastAck, "tcp.last_ack", 240),
            (State::TimeWait, "tcp.time_wait", 120),
            (State::Close, "tcp.close", 10),
        ];
        let others = [
            (Protocol::UDP, [("udp.unreplied", 30), ("udp.unreplied", 30), ("udp.assured", 300)]),
            (Protocol::GRE, [("gre.unreplied", 30), ("gre.unreplied", 30), ("gre.assured", 180)]),
            (Protocol::ICMP, [("icmp", 60); 3]),
            (Protocol::ICMPV6, [("icmp", 60); 3]),
            (Protocol(132), [("generic", 600); 3]),
        ];
        let states = [State::Unreplied, State::Replied, State::Assured];
        let all = tcp.iter().map(|&(state, name, secs)| (state, Protocol::TCP, name, secs)).chain(
            others.iter().flat_map(|(protocol, each)| {
                states.into_iter().zip(each).map(|(state, &(name, secs))| (state, *protocol, name, secs))
            }),
        );
        let mut used = std::collections::BTreeSet::new();
        for (state, protocol, name, secs) in all {
            let timeout = Timeout::for_state(state, protocol);
            let default = Timeouts::default().get(timeout).as_secs();
            assert_eq!((timeout.name(), default), (name, secs), "{state:?} of {protocol}");
            used.insert(timeout);
        }
        assert_eq!(used.len(), Timeout::COUNT, "each is used");
    }
}
