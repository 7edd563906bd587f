//! One TCP stream through the first member, as fast as it goes.

use anyhow::Result;

use crate::program::iperf3;
use palisade_lab::{Lab, Side};

/// What a stream was.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// As received.
    pub gigabits_per_second: f64,
    /// Frames from the client that the member received; a GSO packet is one.
    pub frames_in: u64,
    /// Frames that it sent to the server.
    pub frames_out: u64,
    /// The mean length of these.
    pub bytes_per_frame: u64,
}

/// Runs iperf3 for some seconds.
///
/// # Errors
/// It fails.
pub async fn stream(lab: &Lab, seconds: u64) -> Result<Stream> {
    let netns = lab.member(1).netns();
    let out = Side::Server.interface();
    let counted = async || -> Result<(u64, (u64, u64))> {
        // The client's end of the link: what it sends, the member receives.
        let sent = lab.client().netlink().sent("fw1").await?.0;
        Ok((sent, netns.netlink().sent(out).await?))
    };
    let before = counted().await?;
    let rate = iperf3::run(lab, Side::Server.v4(), seconds).await?;
    let after = counted().await?;
    let (frames_out, bytes) = (after.1.0 - before.1.0, after.1.1 - before.1.1);
    Ok(Stream {
        gigabits_per_second: rate / 1e9,
        frames_in: after.0 - before.0,
        frames_out,
        bytes_per_frame: bytes / frames_out.max(1),
    })
}
