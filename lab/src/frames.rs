//! Frames put on a wire as they are, whatever a kernel would think of them.

use std::fmt;
use std::io::ErrorKind;
use std::time::Duration;

use crate::Netns;
use anyhow::{Context, Result, anyhow, bail};
use pnet::datalink::{self, Channel, DataLinkReceiver, DataLinkSender, MacAddr, NetworkInterface};

/// The longest that [`Wire::receive`] waits.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(1);

/// An interface of a namespace, open for frames.
pub struct Wire {
    sender: Box<dyn DataLinkSender>,
    receiver: Box<dyn DataLinkReceiver>,
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
    /// There is none of that name, or it cannot be opened.
    pub async fn open(netns: &Netns, interface: &str) -> Result<Wire> {
        let found = find(netns, interface).await?;
        let mac = found.mac.with_context(|| format!("{interface} has no MAC address"))?;
        // A socket belongs to the namespace in which it is opened.
        let config =
            datalink::Config { read_timeout: Some(RECEIVE_TIMEOUT), read_buffer_size: 1 << 16, ..Default::default() };
        let channel = netns.run(async move { datalink::channel(&found, config) }).await??;
        match channel {
            Channel::Ethernet(sender, receiver) => Ok(Wire { sender, receiver, mac }),
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

    /// The next frame that came in by the interface since it was opened. `None`: a second passed without one.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn receive(&mut self) -> Result<Option<&[u8]>> {
        match self.receiver.next() {
            Ok(frame) => Ok(Some(frame)),
            Err(e) if e.kind() == ErrorKind::TimedOut => Ok(None),
            Err(e) => Err(e).context("receiving a frame"),
        }
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
