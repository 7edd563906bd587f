//! A GET and nothing more: what a router needs to watch a member, and a test to read its figures.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Longer bodies are refused; the figures of a member are some hundred kilobytes at most.
const MAX_BODY: u64 = 16 << 20;

/// A connection that is kept between requests, so that a member's death is seen at once.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects, from the namespace of the calling thread.
    ///
    /// # Errors
    /// As connect(2).
    pub async fn open(to: SocketAddr) -> io::Result<Connection> {
        Connection::new(TcpStream::connect(to).await?)
    }

    /// Takes a connection that is open.
    ///
    /// # Errors
    /// It is closed again.
    pub fn new(stream: TcpStream) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        Ok(Connection { stream: BufReader::new(stream) })
    }

    /// Asks for `path`; answers status and body.
    ///
    /// # Errors
    /// The connection failed, or what came is not HTTP/1.1 with a length.
    pub async fn get(&mut self, path: &str) -> io::Result<(u16, String)> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: member\r\nAccept: */*\r\n\r\n");
        self.stream.write_all(request.as_bytes()).await?;
        let status = self.line().await?;
        let status = status.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| malformed("status"))?;
        let mut length = 0u64;
        loop {
            let line = self.line().await?;
            let Some((name, value)) = line.split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().map_err(|_| malformed("length"))?;
            }
            if name.eq_ignore_ascii_case("transfer-encoding") {
                return Err(malformed("length: chunked"));
            }
        }
        if length > MAX_BODY {
            return Err(malformed("length"));
        }
        let mut body = String::new();
        (&mut self.stream).take(length).read_to_string(&mut body).await?;
        if body.len() as u64 == length { Ok((status, body)) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        (&mut self.stream).take(8192).read_line(&mut line).await?;
        if line.ends_with('\n') { Ok(line.trim_end().to_owned()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("an HTTP answer with a bad {what}"))
}
