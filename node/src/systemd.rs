//! Notifications to systemd: sd_notify(3) without its library.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// Sends a state, such as `READY=1`. Does nothing without systemd.
pub(crate) fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&path, state) {
        tracing::debug!(%error, "systemd was not told {state}");
    }
}

fn send(path: &std::ffi::OsStr, state: &str) -> std::io::Result<()> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::SocketAddr;
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

/// The interval for `WATCHDOG=1`: half of the time within which systemd expects it.
pub(crate) fn watchdog_interval() -> Option<Duration> {
    let timeout_us: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    let pid = std::env::var("WATCHDOG_PID").ok();
    let ours = pid.is_none_or(|pid| pid.parse() == Ok(std::process::id()));
    (ours && timeout_us > 0).then(|| Duration::from_micros(timeout_us / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notify_sends_the_state_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), "READY=1").unwrap();
        let mut bytes = [0; 32];
        let n = socket.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..n], b"READY=1");
    }
}
