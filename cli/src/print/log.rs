//! What `palisade log` prints.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use palisade_engine::{SessionId, Tuple};
use palisade_proto::admin::v1;
use serde::Serialize;

use super::{date, json_line, out, time};
use crate::args::Output;
use crate::exit::Failure;

#[derive(Serialize)]
struct Json<'a> {
    time: String,
    unix_ms: u64,
    member: &'a str,
    event: &'a str,
    rule: &'a str,
    generation: u64,
    #[serde(flatten)]
    connection: Option<JsonConnection<'a>>,
    left_out: u64,
}

#[derive(Serialize)]
struct JsonConnection<'a> {
    session: Option<String>,
    ingress: &'a str,
    egress: &'a str,
    protocol: String,
    src: IpAddr,
    src_port: u16,
    dst: IpAddr,
    dst_port: u16,
    verdict: &'a str,
    reason: Option<&'a str>,
    cause: Option<&'a str>,
    forbidden_by: Option<u64>,
    duration_ms: Option<u64>,
    original_packets: Option<u64>,
    original_bytes: Option<u64>,
    reply_packets: Option<u64>,
    reply_bytes: Option<u64>,
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn json<'a>(e: &'a v1::ConnectionEvent, tuple: Option<&Tuple>) -> Json<'a> {
    let connection = tuple.map(|t| JsonConnection {
        session: e.session.map(|id| SessionId::from(id).to_string()),
        ingress: &e.ingress,
        egress: &e.egress,
        protocol: t.protocol.to_string(),
        src: t.src.into(),
        src_port: t.src_port,
        dst: t.dst.into(),
        dst_port: t.dst_port,
        verdict: &e.verdict,
        reason: some(&e.reason),
        cause: some(&e.cause),
        forbidden_by: e.forbidden_by,
        duration_ms: e.duration_ms,
        original_packets: e.original_traffic.map(|t| t.packets),
        original_bytes: e.original_traffic.map(|t| t.bytes),
        reply_packets: e.reply_traffic.map(|t| t.packets),
        reply_bytes: e.reply_traffic.map(|t| t.bytes),
    });
    Json {
        time: date(e.unix_ms),
        unix_ms: e.unix_ms,
        member: &e.member,
        event: &e.event,
        rule: &e.rule,
        generation: e.generation,
        connection,
        left_out: e.left_out,
    }
}

fn line(e: &v1::ConnectionEvent, tuple: Option<&Tuple>) -> String {
    let mut line = format!("{}  {}  {:<7}  \"{}\"", date(e.unix_ms), e.member, e.event, e.rule);
    // Writing to a String cannot fail.
    if let Some(tuple) = tuple {
        let _ = write!(line, "  {tuple}  {}>{}", e.ingress, e.egress);
    }
    if !e.reason.is_empty() {
        let _ = write!(line, "  {} ({})", e.verdict, e.reason);
    }
    if !e.cause.is_empty() {
        let _ = write!(line, "  {}", e.cause);
    }
    if let Some(generation) = e.forbidden_by {
        let _ = write!(line, " generation {generation}");
    }
    if let Some(ms) = e.duration_ms {
        let _ = write!(line, " after {}", time(Duration::from_millis(ms)));
    }
    if let (Some(o), Some(r)) = (e.original_traffic, e.reply_traffic) {
        let _ = write!(line, ", {}+{} packets, {}+{} bytes", o.packets, r.packets, o.bytes, r.bytes);
    }
    if e.left_out > 0 {
        let _ = write!(line, "  ({} events of this rule were left out)", e.left_out);
    }
    line
}

/// One event.
///
/// # Errors
/// Standard output cannot be written, or the member's answer makes no sense.
pub fn event(output: Output, event: &v1::ConnectionEvent) -> Result<(), Failure> {
    let tuple: Option<Tuple> = event.tuple.clone().map(TryInto::try_into).transpose()?;
    match output {
        Output::Json => json_line(&json(event, tuple.as_ref())),
        Output::Table => out(|out| writeln!(out, "{}", line(event, tuple.as_ref()))),
    }
}

#[derive(Serialize)]
struct Lost<'a> {
    member: &'a str,
    lost: u64,
}

/// Events were lost because they were not read fast enough.
///
/// # Errors
/// Standard output cannot be written.
pub fn lost(output: Output, loss: &v1::LogLoss) -> Result<(), Failure> {
    let (member, lost) = (loss.member.as_str(), loss.events);
    match output {
        Output::Json => json_line(&Lost { member, lost }),
        Output::Table => {
            out(|out| writeln!(out, "({lost} events of {member} were lost: they came faster than they were read)"))
        }
    }
}

#[derive(Serialize)]
struct Followed<'a> {
    member: &'a str,
    followed: bool,
    reason: Option<&'a str>,
}

/// Whether a member's events arrive.
///
/// # Errors
/// Standard output cannot be written.
pub fn member(output: Output, state: &v1::LogMember) -> Result<(), Failure> {
    let v1::LogMember { member, followed, reason } = state;
    match output {
        Output::Json => json_line(&Followed { member, followed: *followed, reason: some(reason) }),
        Output::Table if *followed => out(|out| writeln!(out, "(events of {member} from here on)")),
        Output::Table => out(|out| writeln!(out, "(no events of {member}: {reason})")),
    }
}
