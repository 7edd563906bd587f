//! Losses that a machine which is too slow explains, told apart from those that it does not.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::sleep;

use palisade_lab::Lab;
use palisade_lab::counters::kernel;
use palisade_lab::drops::{Drops, is_overload};
use palisade_lab::lateness::Lateness;

/// After this, whatever was held is forwarded or dropped, and counted.
pub const SETTLED: Duration = Duration::from_millis(400);

/// The shortest time after which somebody here takes an answer for lost: that of a SYN (RFC 6298 section 2).
const RETRANSMISSION: Duration = Duration::from_secs(1);

/// How often something is tried that lost packets only because the machine was too slow.
const ATTEMPTS: usize = 5;

/// Does something in which nothing may be lost; `attempt` answers how much was. A packet may be lost only if a member counts
/// it as dropped for want of time or room, or a kernel's queue was full; then the attempt says nothing and is repeated. Where
/// every attempt loses packets in that way, each of them is accounted for, and that is all that can be asked of the machine.
///
/// # Errors
/// More was lost than the machine's slowness explains.
pub async fn lossless(lab: &Lab, mut attempt: impl AsyncFnMut() -> Result<u64>) -> Result<()> {
    let (mut lost, mut late) = (Vec::new(), Lateness::watch(lab.dir())?);
    while lost.len() < ATTEMPTS {
        late.reset();
        let (drops, full) = (Drops::read(lab).await?, full_queues(lab).await?);
        match attempt().await? {
            0 => return Ok(()),
            count => lost.push(count),
        }
        sleep(SETTLED).await;
        let dropped = Drops::read(lab).await?.since(&drops).only(is_overload);
        let full = full_queues(lab).await? - full;
        // What nobody dropped may have come after its sender's time was up.
        let excuse = late.excuses(RETRANSMISSION);
        if dropped.total() + full < lost[lost.len() - 1] && excuse.is_none() {
            bail!("lost, by attempt: {lost:?}; of the last ones too late: {dropped}; full queues: {full}");
        }
        eprintln!("lost: {lost:?}; too late: {dropped}; full queues: {full}; {}", excuse.unwrap_or_default());
    }
    eprintln!("this machine is too slow to say more: lost, by attempt: {lost:?}, each packet accounted for");
    Ok(())
}

/// Datagrams that the ends' own kernels had no room for, and frames that the members' capture rings had none for.
///
/// # Errors
/// A member does not answer.
pub async fn full_queues(lab: &Lab) -> Result<u64> {
    let mut full = 0;
    for host in [lab.client(), lab.server()] {
        full += kernel(host, "Udp", "RcvbufErrors").await? + kernel(host, "Udp6", "RcvbufErrors").await?;
    }
    for member in lab.members() {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let missed = member.metric("palisade_capture_dropped_total", &[]).await? as u64;
        full += missed;
    }
    Ok(full)
}
