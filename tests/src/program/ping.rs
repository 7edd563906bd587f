//! ping: ICMP and ICMPv6 echo.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use palisade_lab::program;
use palisade_lab::{Netns, WAIT};

/// What it found.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Requests that it sent.
    pub sent: u32,
    /// Those that were answered.
    pub received: u32,
    /// The router on the way that named an MTU, and the MTU, if one did.
    pub mtu: Option<(IpAddr, u32)>,
    /// All it said.
    pub text: String,
}

/// As fast as the answers come (`ping -f`).
///
/// # Errors
/// It cannot be understood.
pub async fn flood(netns: &Netns, dir: &Path, to: IpAddr, count: u32) -> Result<Outcome> {
    ping(netns, dir, to, &["-f", "-q", "-c", &count.to_string()]).await
}

/// Three requests with this many bytes of data, which nobody may fragment (`ping -M do`).
///
/// # Errors
/// It cannot be understood.
pub async fn whole(netns: &Netns, dir: &Path, to: IpAddr, data: u32) -> Result<Outcome> {
    ping(netns, dir, to, &["-M", "do", "-i", "0.2", "-W", "5", "-c", "3", "-s", &data.to_string()]).await
}

async fn ping(netns: &Netns, dir: &Path, to: IpAddr, args: &[&str]) -> Result<Outcome> {
    let to = to.to_string();
    // It fails if an answer is missing, which is for the caller to judge.
    let args = [args, &["-n", &to]].concat();
    let (_, text) = program::output(netns, dir, WAIT, "ping", &args).await?;
    parse(text)
}

fn parse(text: String) -> Result<Outcome> {
    let line = text.lines().find(|l| l.contains(" packets transmitted, ")).unwrap_or_default();
    let number = |end: &str| line.split(", ").find_map(|part| part.strip_suffix(end)?.parse().ok());
    let (sent, received) =
        number(" packets transmitted").zip(number(" received")).with_context(|| format!("ping said:\n{text}"))?;
    // A router's words: "From 10.20.0.1 icmp_seq=1 Frag needed and DF set (mtu = 1300)", "From fd20::1 icmp_seq=1 Packet
    // too big: mtu=1300". Our own kernel says "local error: message too long" of what it has learned from that.
    let mtu = text.lines().find_map(|l| {
        let (router, said) = l.strip_prefix("From ")?.split_once(' ')?;
        let number = said.split_once("mtu")?.1.trim_matches(|c: char| !c.is_ascii_digit());
        router.parse().ok().zip(number.parse().ok())
    });
    Ok(Outcome { sent, received, mtu, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_words_are_understood() {
        let end = "3 packets transmitted, 1 received, +2 errors, 66% packet loss, time 403ms\n";
        let v4 = "From 10.20.0.1 icmp_seq=1 Frag needed and DF set (mtu = 1300)\n";
        let v6 = "From fd20::1 icmp_seq=1 Packet too big: mtu=1280\n";
        let local = "ping: local error: message too long, mtu: 1300\n";
        let of = |said: &str| parse(format!("{said}{end}")).unwrap();
        assert_eq!((of("").sent, of("").received, of("").mtu), (3, 1, None));
        assert_eq!(of(v4).mtu, Some(("10.20.0.1".parse().unwrap(), 1300)));
        assert_eq!(of(v6).mtu, Some(("fd20::1".parse().unwrap(), 1280)));
        assert_eq!(of(local).mtu, None);
        assert!(parse("ping: no".to_owned()).is_err());
    }
}
