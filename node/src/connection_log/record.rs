//! One event of the connection log, and its form as JSON.

use std::net::IpAddr;
use std::sync::Arc;

use palisade_engine::{EndCause, PerDirection, SessionId, Traffic, Tuple};
use serde::Serialize;

/// What happened to a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnectionEvent {
    /// It was opened: TCP when its handshake is complete, everything else when its first packet passed.
    Opened,
    /// Its first packet was denied.
    Denied,
    /// It ended.
    Closed,
    /// Events of its rule were left out, because of their rate.
    Limited,
}

impl ConnectionEvent {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ConnectionEvent::Opened => "opened",
            ConnectionEvent::Denied => "denied",
            ConnectionEvent::Closed => "closed",
            ConnectionEvent::Limited => "limited",
        }
    }
}

/// The end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    /// Why it ended.
    pub cause: EndCause,
    /// How long it was open; absent if it was never established.
    pub duration_ms: Option<u64>,
    /// What all members forwarded, as far as the logging member knows; absent if it was never established.
    pub traffic: Option<PerDirection<Traffic>>,
}

impl End {
    /// The name of the cause.
    #[must_use]
    pub fn cause(&self) -> &'static str {
        match self.cause {
            EndCause::Fin => "fin",
            EndCause::Rst => "rst",
            EndCause::Idle => "idle",
            EndCause::Revoked => "revoked",
            EndCause::Forbidden(_) => "policy",
        }
    }

    /// The generation of the policy that ended it, if one did.
    #[must_use]
    pub fn forbidden_by(&self) -> Option<u64> {
        match self.cause {
            EndCause::Forbidden(generation) => Some(generation.0),
            EndCause::Fin | EndCause::Rst | EndCause::Idle | EndCause::Revoked => None,
        }
    }
}

/// One event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// When, by the member's wall clock, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The name of the member that logs it.
    pub member: Arc<str>,
    /// What happened.
    pub event: ConnectionEvent,
    /// The name of the rule that decided.
    pub rule: Arc<str>,
    /// The generation of its policy.
    pub generation: u64,
    /// The connection, unless events were left out.
    pub connection: Option<Connection>,
    /// The number of events of this rule that were left out before this one.
    pub left_out: u64,
}

/// The connection of an event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connection {
    /// Its session, unless it was denied.
    pub session: Option<SessionId>,
    /// The zone that its first packet came from.
    pub ingress: Arc<str>,
    /// The zone that it leaves to.
    pub egress: Arc<str>,
    /// The tuple of its first packet.
    pub tuple: Tuple,
    /// What was decided: `accept`, `drop` or `reject`.
    pub verdict: &'static str,
    /// Why it was denied; otherwise empty.
    pub reason: &'static str,
    /// How it ended.
    pub end: Option<End>,
}

#[derive(Serialize)]
struct Json<'a> {
    time: String,
    member: &'a str,
    event: &'static str,
    rule: &'a str,
    generation: u64,
    #[serde(flatten)]
    connection: Option<JsonConnection<'a>>,
    #[serde(skip_serializing_if = "is_zero")]
    left_out: u64,
}

#[derive(Serialize)]
struct JsonConnection<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    ingress: &'a str,
    egress: &'a str,
    protocol: String,
    src: IpAddr,
    src_port: u16,
    dst: IpAddr,
    dst_port: u16,
    verdict: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    #[serde(flatten)]
    end: Option<JsonEnd>,
}

#[derive(Serialize)]
struct JsonEnd {
    cause: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    forbidden_by: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
    #[serde(flatten)]
    traffic: Option<JsonTraffic>,
}

#[derive(Serialize)]
struct JsonTraffic {
    original_packets: u64,
    original_bytes: u64,
    reply_packets: u64,
    reply_bytes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it in")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Record {
    /// The event as one line of JSON, without the line's end.
    #[must_use]
    pub fn json(&self) -> String {
        let connection = self.connection.as_ref().map(|c| JsonConnection {
            session: c.session.map(|id| id.to_string()),
            ingress: &c.ingress,
            egress: &c.egress,
            protocol: c.tuple.protocol.to_string(),
            src: c.tuple.src.into(),
            src_port: c.tuple.src_port,
            dst: c.tuple.dst.into(),
            dst_port: c.tuple.dst_port,
            verdict: c.verdict,
            reason: c.reason,
            end: c.end.as_ref().map(|end| JsonEnd {
                cause: end.cause(),
                forbidden_by: end.forbidden_by(),
                duration_ms: end.duration_ms,
                traffic: end.traffic.map(|t| JsonTraffic {
                    original_packets: t.original.packets,
                    original_bytes: t.original.bytes,
                    reply_packets: t.reply.packets,
                    reply_bytes: t.reply.bytes,
                }),
            }),
        });
        let json = Json {
            time: rfc3339(self.unix_ms),
            member: &self.member,
            event: self.event.name(),
            rule: &self.rule,
            generation: self.generation,
            connection,
            left_out: self.left_out,
        };
        // Strings and numbers always have a form as JSON.
        serde_json::to_string(&json).unwrap_or_default()
    }
}

/// Milliseconds since 1970 as RFC 3339 in UTC.
pub(super) fn rfc3339(unix_ms: u64) -> String {
    format!("{}.{:03}Z", date_and_time(unix_ms), unix_ms % 1000)
}

/// Milliseconds since 1970 as date and time in UTC, to the second: RFC 3339 without what follows the second.
#[must_use]
pub fn date_and_time(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a civil date: the calendar repeats every 400 years, and a year begins in March, so that the leap day is its last.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", rest / 3600, rest % 3600 / 60, rest % 60)
}

#[cfg(test)]
pub(super) mod tests {
    use palisade_engine::{Generation, Ip, MemberId, Protocol};

    use super::*;

    /// The end of a TCP connection.
    pub(in crate::connection_log) fn closed() -> Record {
        let (src, dst) = (Ip::V4([192, 0, 2, 7]), Ip::V4([10, 20, 0, 1]));
        let tuple = Tuple { src, dst, src_port: 40000, dst_port: 443, protocol: Protocol::TCP };
        let traffic =
            PerDirection { original: Traffic { packets: 10, bytes: 1000 }, reply: Traffic { packets: 9, bytes: 9000 } };
        Record {
            unix_ms: 1_709_251_199_025,
            member: "fw1".into(),
            event: ConnectionEvent::Closed,
            rule: "public \\ web]".into(),
            generation: 4,
            connection: Some(Connection {
                session: Some(SessionId { member: MemberId(2), counter: 0x1a3f }),
                ingress: "outside".into(),
                egress: "dmz".into(),
                tuple,
                verdict: "accept",
                reason: "",
                end: Some(End { cause: EndCause::Fin, duration_ms: Some(1500), traffic: Some(traffic) }),
            }),
            left_out: 3,
        }
    }

    /// Field names are what programs rely on: a change here is a change of the interface.
    #[test]
    fn record_json_is_stable() {
        let value: serde_json::Value = serde_json::from_str(&closed().json()).unwrap();
        let expected = serde_json::json!({
            "time": "2024-02-29T23:59:59.025Z", "member": "fw1", "event": "closed", "rule": "public \\ web]",
            "generation": 4, "session": "2-1a3f", "ingress": "outside", "egress": "dmz", "protocol": "tcp",
            "src": "192.0.2.7", "src_port": 40000, "dst": "10.20.0.1", "dst_port": 443, "verdict": "accept",
            "cause": "fin", "duration_ms": 1500, "original_packets": 10, "original_bytes": 1000, "reply_packets": 9,
            "reply_bytes": 9000, "left_out": 3
        });
        assert_eq!(value, expected);
        let mut forbidden = closed();
        let end = forbidden.connection.as_mut().and_then(|c| c.end.as_mut()).unwrap();
        end.cause = EndCause::Forbidden(Generation(5));
        let value: serde_json::Value = serde_json::from_str(&forbidden.json()).unwrap();
        assert_eq!((&value["cause"], &value["forbidden_by"]), (&"policy".into(), &5.into()));
        let limited = Record { event: ConnectionEvent::Limited, connection: None, ..closed() };
        let value: serde_json::Value = serde_json::from_str(&limited.json()).unwrap();
        assert_eq!((&value["event"], &value["left_out"], value.get("src")), (&"limited".into(), &3.into(), None));
    }
}
