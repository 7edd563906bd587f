//! `[log]`: the connection log.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::absolute_path;
use super::reader::{Problem, Table};

/// What becomes of the events of connections whose rule says `log`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Log {
    /// Most events of one rule in a second.
    pub rate: u32,
    /// Whether they go to the daemon's own log.
    pub daemon: bool,
    /// The collector that they are sent to.
    pub syslog: Option<SyslogTarget>,
    /// The file that they are written to.
    pub file: Option<PathBuf>,
    /// The size at which a new file is begun.
    pub file_bytes: usize,
}

/// A collector of syslog messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SyslogTarget {
    /// How it is reached.
    pub protocol: SyslogProtocol,
    /// Where.
    pub address: SocketAddr,
}

/// How syslog messages are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SyslogProtocol {
    /// RFC 5426.
    Udp,
    /// RFC 6587, with octet counting.
    Tcp,
}

impl Log {
    pub(super) fn read(mut t: Table<'_>, problems: &mut Vec<Problem>) -> Option<Log> {
        let rate = t.or(problems, "rate", 100, |v| v.count(1, 1_000_000));
        let daemon = t.or(problems, "daemon", true, |v| v.boolean());
        let address = t.optional(problems, "syslog", |v| v.address());
        let protocol = t.or(problems, "syslog_protocol", SyslogProtocol::Udp, |v| {
            v.choice(&[("udp", SyslogProtocol::Udp), ("tcp", SyslogProtocol::Tcp)])
        });
        let file = t.optional(problems, "file", absolute_path);
        let file_bytes = t.or(problems, "file_bytes", 100_000_000, |v| v.count(100_000, 1_000_000_000_000));
        t.finish(problems);
        let protocol = protocol?;
        Some(Log {
            rate: u32::try_from(rate?).unwrap_or(u32::MAX),
            daemon: daemon?,
            syslog: address?.map(|address| SyslogTarget { protocol, address }),
            file: file?,
            file_bytes: file_bytes?,
        })
    }
}
