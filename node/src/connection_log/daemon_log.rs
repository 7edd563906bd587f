//! The connection log in the daemon's own log: as fields of the journal if the daemon runs under systemd, otherwise as an event
//! on standard error.

use std::fmt::Write as _;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use palisade_engine::Time;

use super::output::Output;
use super::record::{Record, rfc3339};
use crate::clock;

/// Where journald takes messages with fields (systemd's native journal protocol).
const JOURNAL: &str = "/run/systemd/journal/socket";
/// Events in each second. journald takes 10,000 messages of a service in 30 seconds (journald.conf(5), `RateLimitBurst=`) and
/// drops all further ones: events must leave room for the daemon's own messages.
const MAX_EVENTS_PER_SECOND: u32 = 200;

/// The daemon's log.
pub(super) struct DaemonLog {
    journal: Option<UnixDatagram>,
    second: Time,
    events: u32,
}

impl DaemonLog {
    pub(super) fn new() -> DaemonLog {
        // systemd sets it if standard error is the journal's.
        let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| connect(Path::new(JOURNAL)).ok());
        DaemonLog { journal, second: Time::ZERO, events: 0 }
    }

    fn is_within_rate(&mut self) -> bool {
        let now = clock::now();
        if now.since(self.second) >= Duration::from_secs(1) {
            (self.second, self.events) = (now, 0);
        }
        self.events += 1;
        self.events <= MAX_EVENTS_PER_SECOND
    }
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    Ok(socket)
}

impl Output for DaemonLog {
    fn name(&self) -> &'static str {
        "daemon"
    }

    fn write(&mut self, record: &Record) -> io::Result<bool> {
        if !self.is_within_rate() {
            return Ok(false);
        }
        match &self.journal {
            Some(journal) => {
                journal.send(fields(record).as_bytes())?;
            }
            None => trace(record),
        }
        Ok(true)
    }
}

/// The event on standard error, with its fields.
fn trace(record: &Record) {
    let c = record.connection.as_ref();
    let end = c.and_then(|c| c.end.as_ref());
    let traffic = end.and_then(|end| end.traffic);
    tracing::info!(
        target: "palisade::connections",
        event = record.event.name(),
        rule = &*record.rule,
        generation = record.generation,
        connection = c.map(|c| display(c.tuple)),
        ingress = c.map(|c| &*c.ingress),
        egress = c.map(|c| &*c.egress),
        verdict = c.map(|c| c.verdict),
        reason = c.map(|c| c.reason).filter(|reason| !reason.is_empty()),
        session = c.and_then(|c| c.session).map(display),
        cause = end.map(|end| end.cause()),
        forbidden_by = end.and_then(|end| end.forbidden_by()),
        duration_ms = end.and_then(|end| end.duration_ms),
        original_packets = traffic.map(|t| t.original.packets),
        original_bytes = traffic.map(|t| t.original.bytes),
        reply_packets = traffic.map(|t| t.reply.packets),
        reply_bytes = traffic.map(|t| t.reply.bytes),
        left_out = Some(record.left_out).filter(|n| *n > 0),
    );
}

/// The event as a line for people.
fn text(record: &Record) -> String {
    let mut text = format!("{} rule=\"{}\" generation={}", record.event.name(), record.rule, record.generation);
    // Writing to a String cannot fail.
    if let Some(c) = &record.connection {
        let _ = write!(text, " {} zones={}>{} verdict={}", c.tuple, c.ingress, c.egress, c.verdict);
        if !c.reason.is_empty() {
            let _ = write!(text, " reason={}", c.reason);
        }
        if let Some(id) = c.session {
            let _ = write!(text, " session={id}");
        }
        if let Some(end) = &c.end {
            let _ = write!(text, " cause={}", end.cause());
            if let Some(generation) = end.forbidden_by() {
                let _ = write!(text, " forbidden_by={generation}");
            }
            if let Some(duration) = end.duration_ms {
                let _ = write!(text, " duration_ms={duration}");
            }
            if let Some(t) = end.traffic {
                let (o, r) = (t.original, t.reply);
                let _ = write!(text, " packets={}+{} bytes={}+{}", o.packets, r.packets, o.bytes, r.bytes);
            }
        }
    }
    if record.left_out > 0 {
        let _ = write!(text, " left_out={}", record.left_out);
    }
    text
}

/// The event as journal fields. No value has a line break: a policy refuses names with one.
fn fields(record: &Record) -> String {
    let mut out = format!("PRIORITY=6\nSYSLOG_IDENTIFIER=palisade\nMESSAGE={}\n", text(record));
    let mut add = |name: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(out, "PALISADE_{name}={value}");
    };
    add("TIME", &rfc3339(record.unix_ms));
    add("MEMBER", &record.member);
    add("EVENT", &record.event.name());
    add("RULE", &record.rule);
    add("GENERATION", &record.generation);
    if let Some(c) = &record.connection {
        add("INGRESS", &c.ingress);
        add("EGRESS", &c.egress);
        add("PROTOCOL", &c.tuple.protocol);
        add("SRC", &c.tuple.src);
        add("SRC_PORT", &c.tuple.src_port);
        add("DST", &c.tuple.dst);
        add("DST_PORT", &c.tuple.dst_port);
        add("VERDICT", &c.verdict);
        if !c.reason.is_empty() {
            add("REASON", &c.reason);
        }
        if let Some(id) = c.session {
            add("SESSION", &id);
        }
        if let Some(end) = &c.end {
            add("CAUSE", &end.cause());
            if let Some(generation) = end.forbidden_by() {
                add("FORBIDDEN_BY", &generation);
            }
            if let Some(duration) = end.duration_ms {
                add("DURATION_MS", &duration);
            }
            if let Some(t) = end.traffic {
                add("ORIGINAL_PACKETS", &t.original.packets);
                add("ORIGINAL_BYTES", &t.original.bytes);
                add("REPLY_PACKETS", &t.reply.packets);
                add("REPLY_BYTES", &t.reply.bytes);
            }
        }
    }
    if record.left_out > 0 {
        add("LEFT_OUT", &record.left_out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::closed;
    use super::*;

    #[test]
    fn daemon_log_sends_the_journal_fields_and_stays_below_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        journald.set_nonblocking(true).unwrap();
        let mut log = DaemonLog { journal: Some(connect(&path).unwrap()), second: clock::now(), events: 0 };
        assert!(log.write(&closed()).unwrap());
        let mut message = [0; 4096];
        let length = journald.recv(&mut message).unwrap();
        let message = std::str::from_utf8(&message[..length]).unwrap();
        for field in [
            "MESSAGE=closed rule=\"public \\ web]\" generation=4 tcp 192.0.2.7:40000 -> 10.20.0.1:443 zones=outside>dmz \
             verdict=accept session=2-1a3f cause=fin duration_ms=1500 packets=10+9 bytes=1000+9000 left_out=3",
            "PALISADE_EVENT=closed",
            "PALISADE_DST_PORT=443",
            "PALISADE_REPLY_BYTES=9000",
            "SYSLOG_IDENTIFIER=palisade",
        ] {
            assert!(message.lines().any(|line| line == field), "{field} is not in\n{message}");
        }
        log.events = MAX_EVENTS_PER_SECOND;
        log.second = clock::now() + Duration::from_secs(3600);
        assert!(!log.write(&closed()).unwrap());
    }
}
