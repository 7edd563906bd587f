//! Reading counters: the kernel's of a namespace, and a member's metrics.

use anyhow::{Context, Result};

use super::netns::Netns;

/// One counter of `/proc/net/snmp`, `netstat` or `snmp6`, as `("Tcp", "RetransSegs")`, `("TcpExt", "TCPSynRetrans")` or
/// `("Udp6", "RcvbufErrors")`.
///
/// # Errors
/// This kernel has no such counter.
pub async fn kernel(netns: &Netns, group: &str, name: &str) -> Result<u64> {
    for file in ["netstat", "snmp"] {
        if let Some(value) = find(&netns.proc_net(file).await?, group, name) {
            return Ok(value);
        }
    }
    if let Some(value) = find6(&netns.proc_net("snmp6").await?, group, name) {
        return Ok(value);
    }
    anyhow::bail!("the kernel has no counter {group} {name}")
}

/// SYNs and SYN-ACKs that the kernel of a namespace sent again.
///
/// # Errors
/// This kernel does not count them.
pub async fn syn_retransmits(netns: &Netns) -> Result<u64> {
    kernel(netns, "TcpExt", "TCPSynRetrans").await
}

/// Each group is a line of names and a line of values, both beginning with the group's name and a colon.
fn find(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':')).filter(|(g, _)| *g == group);
    let (names, values) = (lines.next()?.1, lines.next()?.1);
    let at = names.split_whitespace().position(|n| n == name)?;
    values.split_whitespace().nth(at)?.parse().ok()
}

/// Each counter is a line, its name that of the group and its own in one.
fn find6(text: &str, group: &str, name: &str) -> Option<u64> {
    let (_, value) = text
        .lines()
        .filter_map(|line| line.split_once(char::is_whitespace))
        .find(|(counter, _)| counter.strip_prefix(group) == Some(name))?;
    value.trim().parse().ok()
}

/// The sum of all samples of one metric whose labels contain every one of `labels` (as `verdict="drop"`).
///
/// # Errors
/// A sample that is not a number.
pub fn metric(text: &str, name: &str, labels: &[&str]) -> Result<Option<f64>> {
    let mut sum = None;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let (metric, set) = series.split_once('{').unwrap_or((series, ""));
        if metric == name && labels.iter().all(|label| set.contains(label)) {
            let value: f64 = value.parse().with_context(|| format!("metric {line}"))?;
            *sum.get_or_insert(0.0) += value;
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_counters_are_found_by_name_and_group() {
        let text = "TcpExt: SyncookiesSent TCPSynRetrans X\nTcpExt: 1 42 3\nIpExt: TCPSynRetrans\nIpExt: 7\n";
        assert_eq!(find(text, "TcpExt", "TCPSynRetrans"), Some(42));
        assert_eq!(find(text, "IpExt", "TCPSynRetrans"), Some(7));
        assert_eq!(find(text, "Tcp", "TCPSynRetrans"), None);
        assert_eq!(find(text, "TcpExt", "Absent"), None);
        let text = "Udp6InErrors      \t3\nUdp6RcvbufErrors      \t12\n";
        assert_eq!(find6(text, "Udp6", "RcvbufErrors"), Some(12));
        assert_eq!(find6(text, "Udp", "RcvbufErrors"), None);
    }

    #[test]
    fn metrics_are_summed_over_matching_labels() {
        let text = "# HELP a b\na_total{v=\"x\",r=\"1\"} 2\na_total{v=\"x\",r=\"2\"} 3\na_total{v=\"y\"} 4\nb 1\n";
        assert_eq!(metric(text, "a_total", &["v=\"x\""]).unwrap(), Some(5.0));
        assert_eq!(metric(text, "a_total", &[]).unwrap(), Some(9.0));
        assert_eq!(metric(text, "b", &[]).unwrap(), Some(1.0));
        assert_eq!(metric(text, "c", &[]).unwrap(), None);
        assert!(metric("a x", "a", &[]).is_err());
    }
}
