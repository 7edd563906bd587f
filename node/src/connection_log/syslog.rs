//! The connection log over syslog: RFC 5424, via UDP (RFC 5426) or TCP with octet counting (RFC 6587 section 3.4.1).

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use palisade_engine::Time;

use super::output::Output;
use super::record::{Record, rfc3339};
use crate::clock;
use crate::config::{SyslogProtocol, SyslogTarget};

/// How long a connection may take to open, and a write to be accepted.
const IO_TIMEOUT: Duration = Duration::from_secs(2);
/// The time after a failed connection before the next attempt.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);
/// Facility local0 (16), severity informational (6): RFC 5424 section 6.2.1.
const PRIORITY: u8 = 16 * 8 + 6;

/// A collector.
pub(super) struct Syslog {
    member: String,
    target: SyslogTarget,
    connection: Option<Connection>,
    /// When the last connection failed.
    failed: Option<Time>,
}

enum Connection {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Connection {
    fn open(target: &SyslogTarget) -> io::Result<Connection> {
        match target.protocol {
            SyslogProtocol::Udp => {
                let any: SocketAddr =
                    if target.address.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
                let socket = UdpSocket::bind(any)?;
                socket.connect(target.address)?;
                socket.set_write_timeout(Some(IO_TIMEOUT))?;
                Ok(Connection::Udp(socket))
            }
            SyslogProtocol::Tcp => {
                let stream = TcpStream::connect_timeout(&target.address, IO_TIMEOUT)?;
                stream.set_write_timeout(Some(IO_TIMEOUT))?;
                Ok(Connection::Tcp(stream))
            }
        }
    }

    fn send(&mut self, message: &str) -> io::Result<()> {
        match self {
            Connection::Udp(socket) => socket.send(message.as_bytes()).map(drop),
            Connection::Tcp(stream) => stream.write_all(format!("{} {message}", message.len()).as_bytes()),
        }
    }
}

impl Syslog {
    pub(super) fn new(member: &str, target: SyslogTarget) -> Syslog {
        Syslog { member: member.to_owned(), target, connection: None, failed: None }
    }

    /// The message: its text is the event as JSON.
    fn message(&self, record: &Record) -> String {
        let (time, event, process) = (rfc3339(record.unix_ms), record.event.name(), std::process::id());
        format!("<{PRIORITY}>1 {time} {} palisade {process} {event} - {}", self.member, record.json())
    }
}

impl Output for Syslog {
    fn name(&self) -> &'static str {
        "syslog"
    }

    fn write(&mut self, record: &Record) -> io::Result<bool> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            closed => {
                let now = clock::now();
                if self.failed.is_some_and(|at| now.since(at) < RECONNECT_INTERVAL) {
                    return Ok(false);
                }
                match Connection::open(&self.target) {
                    Ok(opened) => closed.insert(opened),
                    Err(error) => {
                        self.failed = Some(now);
                        return Err(error);
                    }
                }
            }
        };
        let _ = connection;
        let message = self.message(record);
        let Some(connection) = &mut self.connection else { return Ok(false) };
        if let Err(error) = connection.send(&message) {
            // The next record finds a new one. A part of this message may be on its way, so the old one cannot be used.
            self.connection = None;
            return Err(error);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::super::record::tests::closed;
    use super::*;

    fn target(protocol: SyslogProtocol, address: SocketAddr) -> SyslogTarget {
        SyslogTarget { protocol, address }
    }

    fn is_whole(message: &str) {
        let head = format!("<134>1 2024-02-29T23:59:59.025Z fw1 palisade {} closed - {{", std::process::id());
        assert!(message.starts_with(&head) && message.ends_with('}'), "{message}");
    }

    #[test]
    fn syslog_over_udp_is_one_message_a_datagram() {
        let collector = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut syslog = Syslog::new("fw1", target(SyslogProtocol::Udp, collector.local_addr().unwrap()));
        assert!(syslog.write(&closed()).unwrap());
        let mut datagram = [0; 2048];
        let length = collector.recv(&mut datagram).unwrap();
        is_whole(std::str::from_utf8(&datagram[..length]).unwrap());
    }

    #[test]
    fn syslog_over_tcp_connects_again() {
        let collector = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = collector.local_addr().unwrap();
        let mut syslog = Syslog::new("fw1", target(SyslogProtocol::Tcp, address));
        assert!(syslog.write(&closed()).unwrap());
        let (mut stream, _) = collector.accept().unwrap();
        let mut text = vec![0; 4];
        stream.read_exact(&mut text).unwrap();
        let length: usize = std::str::from_utf8(&text).unwrap().trim_end().parse().unwrap();
        let mut message = vec![0; length];
        stream.read_exact(&mut message).unwrap();
        is_whole(std::str::from_utf8(&message).unwrap());

        // The collector is restarted.
        drop((stream, collector));
        let lost = (0..1000).find(|_| syslog.write(&closed()).is_err());
        assert!(lost.is_some(), "a write to a closed connection fails sooner or later");
        let collector = TcpListener::bind(address).unwrap();
        syslog.failed = None;
        assert!(syslog.write(&closed()).unwrap());
        assert!(collector.accept().unwrap().0.read(&mut [0; 16]).unwrap() > 0);
    }
}
