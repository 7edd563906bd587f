//! Frames put on a wire as they are, whatever a kernel would think of them.

use std::fmt;

use anyhow::{Context, Result, anyhow, bail};
use palisade_cli::lab::Netns;
use pnet::datalink::{self, Channel, DataLinkSender, MacAddr, NetworkInterface};

/// An interface of a namespace, open for frames.
pub struct Wire {
    sender: Box<dyn DataLinkSender>,
    mac: MacAddr,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("mac", &self.mac).finish_non_exhaustive()
    }
}

impl Wire {
    /// Opens an interface.
    ///
    /// # Errors
    /// There is none of that name, or it can not be opened.
    pub async fn open(netns: &Netns, interface: &str) -> Result<Wire> {
        let found = find(netns, interface).await?;
        let mac = found.mac.with_context(|| format!("{interface} has no MAC address"))?;
        // A socket belongs to the namespace in which it is opened.
        let channel = netns.run(async move { datalink::channel(&found, datalink::Config::default()) }).await??;
        match channel {
            Channel::Ethernet(sender, _) => Ok(Wire { sender, mac }),
            _ => bail!("{interface} is no Ethernet interface"),
        }
    }

    /// The interface's own address.
    #[must_use]
    pub fn mac(&self) -> MacAddr {
        self.mac
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// The kernel does not take it.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.sender.send_to(frame, None).ok_or_else(|| anyhow!("the frame does not fit"))?.context("sending a frame")
    }
}

/// The MAC address of an interface.
///
/// # Errors
/// There is no such interface.
pub async fn mac(netns: &Netns, interface: &str) -> Result<MacAddr> {
    find(netns, interface).await?.mac.with_context(|| format!("{interface} has no MAC address"))
}

async fn find(netns: &Netns, interface: &str) -> Result<NetworkInterface> {
    let all = netns.run(async { datalink::interfaces() }).await?;
    let found = all.into_iter().find(|i| i.name == interface);
    found.with_context(|| format!("{} has no interface {interface}", netns.name()))
}
