//! DNS: a question, an answer, and nothing more ever.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use palisade_lab::Lab;
use palisade_tests::overload::lossless;
use palisade_tests::program::dns;

/// dnsmasq answers at most 100 questions in one TCP connection.
const NAMES: u32 = 100;

/// Each question from another port.
pub(crate) async fn udp(lab: &Lab, to: IpAddr) -> Result<String> {
    let _server = dns::start(lab).await?;
    lossless(lab, async || {
        let answers = dns::many(lab, to, NAMES, &["+notcp"]).await?;
        Ok(u64::from(NAMES) - u64::try_from(answers)?)
    })
    .await?;
    Ok(format!("{NAMES} answers"))
}

/// A connection for each question, one for all, and one for an answer that was truncated over UDP (RFC 7766 section 5).
pub(crate) async fn tcp(lab: &Lab, to: IpAddr) -> Result<String> {
    let _server = dns::start(lab).await?;
    for how in [&["+tcp"][..], &["+tcp", "+keepopen"]] {
        let answers = dns::many(lab, to, NAMES, how).await?;
        ensure!(answers == usize::try_from(NAMES)?, "{how:?}: {answers} of {NAMES} answers");
    }
    let records = dns::big(lab, to, &["+bufsize=1232"]).await?;
    ensure!(records == dns::BIG_RECORDS, "{records} of {} records", dns::BIG_RECORDS);
    Ok(format!("{} answers, one of them truncated over UDP before", 2 * NAMES + 1))
}

/// Answers of 3 KiB over UDP (RFC 6891), in three fragments each.
pub(crate) async fn fragments(lab: &Lab, to: IpAddr) -> Result<String> {
    let _server = dns::start(lab).await?;
    lossless(lab, async || {
        let mut lost = 0;
        for _ in 0..20 {
            let records = dns::big(lab, to, &["+bufsize=4096", "+ignore"]).await?;
            lost += u64::from(records != dns::BIG_RECORDS);
        }
        Ok(lost)
    })
    .await?;
    Ok("20 answers of 3 KiB".to_owned())
}
