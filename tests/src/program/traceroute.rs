//! traceroute: which routers say that a packet's time is exceeded.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use palisade_lab::program;
use palisade_lab::{Netns, WAIT};

/// What the probes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Probe {
    /// UDP to ports where nobody listens, each to another one.
    Udp,
    /// ICMP echo requests.
    Icmp,
    /// SYNs to a port.
    Tcp(u16),
}

/// Who answered the two probes of each distance; `None`: nobody.
///
/// # Errors
/// It fails.
pub async fn run(netns: &Netns, dir: &Path, to: IpAddr, probe: Probe) -> Result<Vec<Vec<Option<IpAddr>>>> {
    let (to, port) = (to.to_string(), if let Probe::Tcp(port) = probe { port.to_string() } else { String::new() });
    let how: &[&str] = match probe {
        Probe::Udp => &[],
        Probe::Icmp => &["-I"],
        Probe::Tcp(_) => &["-T", "-p", &port],
    };
    let args = [&["-n", "-q", "2", "-w", "5", "-m", "12"], how, &[&to]].concat();
    let text = program::run(netns, dir, WAIT, "traceroute", &args).await?;
    parse(&text).with_context(|| format!("traceroute said:\n{text}"))
}

/// Each line is "3  10.1.1.2  0.1 ms 10.1.2.2  0.1 ms": an address stands for all times that follow it.
fn parse(text: &str) -> Option<Vec<Vec<Option<IpAddr>>>> {
    let mut hops = Vec::new();
    for line in text.lines().skip(1) {
        let mut words = line.split_whitespace();
        if words.next()?.parse::<usize>().ok()? != hops.len() + 1 {
            return None;
        }
        let (mut hop, mut who) = (Vec::new(), None);
        for word in words {
            match word.parse().ok() {
                Some(address) => who = Some(address),
                None if word == "*" => hop.push(None),
                None if word == "ms" => hop.push(who),
                None => {}
            }
        }
        hops.push(hop);
    }
    (!hops.is_empty()).then_some(hops)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_words_are_understood() {
        let text = "traceroute to x (x), 12 hops max, 60 byte packets\n 1  10.0.0.1  0.1 ms  0.2 ms\n \
                    2  * fd01:1::2  0.1 ms\n 3  10.0.0.1  0.1 ms 10.0.0.2  1.1 ms\n";
        let at = |s: &str| Some(s.parse().unwrap());
        let hops = parse(text).unwrap();
        assert_eq!(hops[0], [at("10.0.0.1"), at("10.0.0.1")]);
        assert_eq!(hops[1], [None, at("fd01:1::2")]);
        assert_eq!(hops[2], [at("10.0.0.1"), at("10.0.0.2")]);
        assert_eq!(parse("traceroute to x\n 2  *\n"), None);
        assert_eq!(parse(""), None);
    }
}
