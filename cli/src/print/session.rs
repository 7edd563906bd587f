//! What `palisade session` prints.

use std::net::IpAddr;
use std::time::Duration;

use palisade_engine::{PerDirection, SessionId, Tuple};
use palisade_proto::admin::v1;
use palisade_proto::convert::admin::{AdminError, Session};
use serde::Serialize;

use super::{Table, answer, date, json_line, many, out, time};
use crate::args::Output;
use crate::exit::Failure;

#[derive(Serialize)]
struct Json<'a> {
    id: String,
    protocol: String,
    state: &'a str,
    half_open: bool,
    original: JsonTuple,
    reply: JsonTuple,
    ingress: &'a str,
    egress: &'a str,
    generation: u64,
    rule: u32,
    rule_name: &'a str,
    idle_ms: u128,
    timeout_ms: u128,
    original_packets: u64,
    original_bytes: u64,
    reply_packets: u64,
    reply_bytes: u64,
}

#[derive(Serialize)]
struct JsonTuple {
    src: IpAddr,
    dst: IpAddr,
    src_port: u16,
    dst_port: u16,
}

impl From<Tuple> for JsonTuple {
    fn from(t: Tuple) -> JsonTuple {
        JsonTuple { src: t.src.into(), dst: t.dst.into(), src_port: t.src_port, dst_port: t.dst_port }
    }
}

impl<'a> Json<'a> {
    fn new(s: &'a Session) -> Json<'a> {
        Json {
            id: s.id.to_string(),
            protocol: s.original.protocol.to_string(),
            state: &s.state,
            half_open: s.half_open,
            original: s.original.into(),
            reply: s.reply.into(),
            ingress: &s.ingress,
            egress: &s.egress,
            generation: s.generation.0,
            rule: s.rule.0,
            rule_name: &s.rule_name,
            idle_ms: s.idle.as_millis(),
            timeout_ms: s.timeout.as_millis(),
            original_packets: s.traffic.original.packets,
            original_bytes: s.traffic.original.bytes,
            reply_packets: s.traffic.reply.packets,
            reply_bytes: s.traffic.reply.bytes,
        }
    }
}

/// A sorted list. One of more than [`PART`] sessions is sorted, aligned and printed in parts, so that millions of them need no
/// memory.
#[derive(Debug)]
pub struct List {
    output: Output,
    rows: Vec<Session>,
    printed: u64,
}

/// Some hundred bytes each.
const PART: usize = 100_000;

impl List {
    /// An empty one.
    #[must_use]
    pub fn new(output: Output) -> List {
        List { output, rows: Vec::new(), printed: 0 }
    }

    /// Adds a session.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn add(&mut self, session: Session) -> Result<(), Failure> {
        self.rows.push(session);
        if self.rows.len() >= PART { self.print() } else { Ok(()) }
    }

    fn print(&mut self) -> Result<(), Failure> {
        let mut rows = std::mem::take(&mut self.rows);
        rows.sort_unstable_by_key(order);
        let first = self.printed == 0;
        self.printed += rows.len() as u64;
        match self.output {
            Output::Table => {
                let mut table =
                    Table::new(&["ID", "PROTO", "SOURCE", "DESTINATION", "ZONES", "STATE", "IDLE", "TIMEOUT", "RULE"]);
                rows.iter().for_each(|s| table.row(cells(s)));
                let mut text = Vec::new();
                table.write(&mut text)?;
                let skip = if first { 0 } else { text.iter().position(|b| *b == b'\n').map_or(0, |n| n + 1) };
                out(|out| out.write_all(text.get(skip..).unwrap_or_default()))
            }
            Output::Json => rows.iter().try_for_each(|s| json_line(&Json::new(s))),
        }
    }

    /// Prints the rest.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn finish(mut self) -> Result<(), Failure> {
        if !self.rows.is_empty() {
            return self.print();
        }
        match (self.output, self.printed) {
            (Output::Table, 0) => out(|out| writeln!(out, "no sessions")),
            _ => Ok(()),
        }
    }
}

/// Sessions of one client are together, and among them those to one server.
fn order(s: &Session) -> (IpAddr, IpAddr, u8, u16, u16, SessionId) {
    let t = &s.original;
    (t.src.into(), t.dst.into(), t.protocol.0, t.dst_port, t.src_port, s.id)
}

/// The rule's name, or its number where the name is not known any longer.
fn rule(s: &Session) -> String {
    if s.rule_name.is_empty() { format!("rule {}", s.rule.0) } else { s.rule_name.clone() }
}

fn ends(t: &Tuple) -> (String, String) {
    let end = |ip: palisade_engine::Ip, port: u16| match (ip.is_v4(), port) {
        (_, 0) => ip.to_string(),
        (true, port) => format!("{ip}:{port}"),
        (false, port) => format!("[{ip}]:{port}"),
    };
    (end(t.src, t.src_port), end(t.dst, t.dst_port))
}

fn cells(s: &Session) -> [String; 9] {
    let (src, dst) = ends(&s.original);
    let zones = format!("{}>{}", s.ingress, s.egress);
    let protocol = s.original.protocol.to_string();
    [s.id.to_string(), protocol, src, dst, zones, s.state.clone(), time(s.idle), time(s.timeout), rule(s)]
}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    session: Json<'a>,
    rule_text: Option<&'a str>,
}

/// One session in full.
///
/// # Errors
/// Standard output cannot be written.
pub fn show(output: Output, s: &Session, rule_text: Option<&str>) -> Result<(), Failure> {
    answer(
        output,
        || Shown { session: Json::new(s), rule_text },
        |out| {
            writeln!(out, "session   {}", s.id)?;
            writeln!(out, "original  {}", s.original)?;
            writeln!(out, "reply     {}", s.reply)?;
            writeln!(out, "zones     {} > {}", s.ingress, s.egress)?;
            writeln!(out, "state     {}{}", s.state, if s.half_open { " (half-open)" } else { "" })?;
            let text = rule_text.map_or(String::new(), |t| format!(": {t}"));
            let name = if s.rule_name.is_empty() { String::new() } else { format!(" ({})", s.rule_name) };
            writeln!(out, "rule      {}{name} of policy generation {}{text}", s.rule.0, s.generation)?;
            writeln!(out, "idle      {} (as known here), ends after {} more", time(s.idle), time(s.timeout))?;
            let PerDirection { original, reply } = s.traffic;
            writeln!(
                out,
                "forwarded {} packets, {} bytes; reply {} packets, {} bytes (by all members, as known here)",
                original.packets, original.bytes, reply.packets, reply.bytes
            )
        },
    )
}

#[derive(Serialize)]
struct Event<'a> {
    change: &'static str,
    time: String,
    index: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    forbidden_by: Option<u64>,
    session: Json<'a>,
}

/// One change.
///
/// # Errors
/// Standard output cannot be written, or the member's answer makes no sense.
pub fn event(output: Output, event: v1::SessionEvent) -> Result<(), Failure> {
    let change = match event.change() {
        v1::SessionChange::Established => "established",
        v1::SessionChange::Closed => "closed",
        v1::SessionChange::Expired => "expired",
        v1::SessionChange::Revoked => "revoked",
        v1::SessionChange::Unspecified => "unknown",
    };
    let (time, index, forbidden_by) = (date(event.unix_ms), event.index, event.forbidden_by);
    let s: Session = event.session.ok_or(AdminError::Missing("session"))?.try_into()?;
    match output {
        Output::Json => json_line(&Event { change, time, index, forbidden_by, session: Json::new(&s) }),
        Output::Table => {
            let [id, protocol, src, dst, zones, .., rule] = cells(&s);
            let by = forbidden_by
                .map_or(String::new(), |generation| format!("  forbidden by policy generation {generation}"));
            out(|out| {
                writeln!(out, "{time}  {change:<11}  {id:<14}  {protocol:<5}  {src} -> {dst}  {zones}  {rule}{by}")
            })
        }
    }
}

#[derive(Serialize)]
struct Lost {
    lost: u64,
}

/// The reader was too slow.
///
/// # Errors
/// Standard output cannot be written.
pub fn lost(output: Output, lost: u64) -> Result<(), Failure> {
    match output {
        Output::Json => json_line(&Lost { lost }),
        Output::Table => out(|out| writeln!(out, "({lost} events were lost: they came faster than they were read)")),
    }
}

#[derive(Serialize)]
struct Killed {
    killed: u64,
    half_open_skipped: u64,
    certain_after_ms: u64,
}

/// After `kill`.
///
/// # Errors
/// Standard output cannot be written.
pub fn killed(output: Output, k: &v1::SessionKillResponse) -> Result<(), Failure> {
    let (killed, half_open_skipped, certain_after_ms) = (k.killed, k.half_open_skipped, k.certain_after_ms);
    answer(
        output,
        || Killed { killed, half_open_skipped, certain_after_ms },
        |out| {
            match killed {
                0 => writeln!(out, "no session was killed: none matches")?,
                n => {
                    let limit = time(Duration::from_millis(certain_after_ms));
                    let what = many(n, "session");
                    writeln!(out, "{what} killed; a member that is cut off may pass packets of them for {limit} more")?;
                }
            }
            match half_open_skipped {
                0 => Ok(()),
                n => writeln!(out, "{} left alone: half-open, so they end by themselves", many(n, "session")),
            }
        },
    )
}

#[derive(Serialize)]
struct Count {
    sessions: u64,
    half_open: u64,
}

/// How many.
///
/// # Errors
/// Standard output cannot be written.
pub fn count(output: Output, c: &v1::SessionCountResponse) -> Result<(), Failure> {
    let (sessions, half_open) = (c.sessions, c.half_open);
    answer(
        output,
        || Count { sessions, half_open },
        |out| writeln!(out, "{}, and {half_open} half-open", many(sessions, "session")),
    )
}

#[cfg(test)]
mod tests {
    use palisade_engine::{Generation, Ip, MemberId, Protocol, RuleId, Traffic};

    use super::*;

    fn session() -> Session {
        let original = Tuple {
            src: Ip::V4([192, 0, 2, 7]),
            dst: Ip::V6([0x20; 16]),
            src_port: 40000,
            dst_port: 443,
            protocol: Protocol::TCP,
        };
        Session {
            id: SessionId { member: MemberId(2), counter: 0x1a3f },
            original,
            reply: original.inverse(),
            ingress: "outside".into(),
            egress: "dmz".into(),
            generation: Generation(4),
            rule: RuleId(3),
            rule_name: "public web".into(),
            state: "ESTABLISHED".into(),
            half_open: false,
            idle: Duration::from_millis(1500),
            timeout: Duration::from_secs(7200),
            traffic: PerDirection {
                original: Traffic { packets: 10, bytes: 1000 },
                reply: Traffic { packets: 9, bytes: 9000 },
            },
        }
    }

    /// Field names are what scripts rely on: a change here is a change of the interface.
    #[test]
    fn json_is_stable() {
        let value = serde_json::to_value(Json::new(&session())).unwrap();
        let expected = serde_json::json!({
            "id": "2-1a3f", "protocol": "tcp", "state": "ESTABLISHED", "half_open": false,
            "original": {"src": "192.0.2.7", "dst": "2020:2020:2020:2020:2020:2020:2020:2020", "src_port": 40000, "dst_port": 443},
            "reply": {"src": "2020:2020:2020:2020:2020:2020:2020:2020", "dst": "192.0.2.7", "src_port": 443, "dst_port": 40000},
            "ingress": "outside", "egress": "dmz", "generation": 4, "rule": 3, "rule_name": "public web", "idle_ms": 1500, "timeout_ms": 7_200_000,
            "original_packets": 10, "original_bytes": 1000, "reply_packets": 9, "reply_bytes": 9000
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn sessions_are_in_the_order_of_their_addresses() {
        let with = |src: u8, dst_port, counter| {
            let mut s = session();
            s.original = Tuple { src: Ip::V4([192, 0, 2, src]), dst_port, ..s.original };
            s.id.counter = counter;
            s
        };
        let mut list = [with(9, 80, 1), with(10, 80, 2), with(9, 443, 4), with(9, 80, 3)];
        list.sort_unstable_by_key(order);
        assert_eq!(list.map(|s| s.id.counter), [1, 3, 4, 2]);
        let nameless = Session { rule_name: String::new(), ..session() };
        assert_eq!(rule(&nameless), "rule 3", "its policy is not in the history any longer");
    }

    #[test]
    fn rows_read_well() {
        let row = cells(&session()).join(" ");
        assert_eq!(
            row,
            "2-1a3f tcp 192.0.2.7:40000 [2020:2020:2020:2020:2020:2020:2020:2020]:443 outside>dmz ESTABLISHED 1s 2h0m public web"
        );
    }
}
