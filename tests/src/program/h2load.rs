//! h2load: many HTTP/2 streams at once (RFC 9113) in few connections.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use palisade_lab::program;
use palisade_lab::{Lab, WAIT};

/// Asks for `/file` over TLS from the client's side, `requests` times, with 10 streams at once in each connection; answers
/// how many succeeded.
///
/// # Errors
/// It fails, or what it spoke was not HTTP/2.
pub async fn run(lab: &Lab, to: SocketAddr, connections: u32, requests: u32) -> Result<u32> {
    let (connections, requests, url) = (connections.to_string(), requests.to_string(), format!("https://{to}/file"));
    let args = ["-c", &connections, "-m", "10", "-n", &requests, "-T", "60", &url];
    let text = program::run(lab.client(), lab.dir(), WAIT, "h2load", &args).await?;
    parse(&text)
}

fn parse(text: &str) -> Result<u32> {
    if !text.lines().any(|l| l.trim() == "Application protocol: h2") {
        bail!("it was not HTTP/2:\n{text}");
    }
    // "requests: 9 total, 9 started, 9 done, 9 succeeded, 0 failed, …"
    let line = text.lines().find_map(|l| l.strip_prefix("requests: ")).unwrap_or_default();
    let succeeded = line.split(", ").find_map(|part| part.strip_suffix(" succeeded")?.parse().ok());
    succeeded.with_context(|| format!("h2load said:\n{text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_words_are_understood() {
        let line = "requests: 9 total, 9 started, 9 done, 8 succeeded, 1 failed, 0 errored, 0 timeout";
        assert_eq!(parse(&format!("Application protocol: h2\n{line}\n")).unwrap(), 8);
        assert!(parse(line).is_err());
        assert!(parse("Application protocol: h2\n").is_err());
    }
}
