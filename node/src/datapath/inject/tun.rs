//! Re-injection through a multi-queue TUN device.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::datapath::sys;

/// Creates the device, with one queue for each worker. It exists as long as the queues.
pub(super) fn open(device: &str, queues: usize) -> io::Result<Vec<OwnedFd>> {
    (0..queues)
        .map(|_| {
            let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
            sys::attach_tun(file.as_fd(), device)?;
            Ok(file.into())
        })
        .collect()
}
