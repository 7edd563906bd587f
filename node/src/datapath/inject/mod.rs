//! Re-injection: allowed packets go to the device `palisade0`, from which the kernel routes them. FIB, ECMP, neighbours, TTL,
//! ICMP errors and fragmentation are the kernel's own.

mod tun;
mod veth;

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::uio::writev;
use nix::unistd::write;

use super::error::StartError;
use super::host::links;
use super::host::netlink::Netlink;
use super::host::sysctl::{Family, Setting};
use super::vnet::{LENGTH as VNET, VnetHeader};

/// Packets up to this size are copied into one buffer: the copy is cheaper than the overhead of `writev` over `write`.
const MAX_COPIED_BYTES: usize = 256;
/// The length of an Ethernet header.
const ETHERNET: u16 = 14;

/// The kind of the re-injection device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Inject {
    /// TUN if `/dev/net/tun` can be opened, else veth.
    #[default]
    Auto,
    /// A multi-queue TUN device.
    Tun,
    /// A pair of veth interfaces.
    Veth,
}

/// A worker's queue of the re-injection device.
#[derive(Debug)]
pub(crate) struct Injector {
    fd: OwnedFd,
    ethernet: bool,
}

impl Injector {
    /// Re-injects one packet, which may be one of several segments.
    pub(crate) fn send(&mut self, vnet: &VnetHeader, packet: &[u8]) -> io::Result<()> {
        let mut headers = [0; VNET + veth::HEADER];
        let headers = if self.ethernet {
            headers[VNET..].copy_from_slice(&veth::header(packet));
            headers[..VNET].copy_from_slice(&vnet.write(ETHERNET));
            &headers[..]
        } else {
            headers[..VNET].copy_from_slice(&vnet.write(0));
            &headers[..VNET]
        };
        let length = headers.len() + packet.len();
        let mut small = [0; MAX_COPIED_BYTES];
        let written = if let Some(whole) = small.get_mut(..length) {
            let (front, back) = whole.split_at_mut(headers.len());
            front.copy_from_slice(headers);
            back.copy_from_slice(packet);
            write(&self.fd, whole)?
        } else {
            writev(&self.fd, &[IoSlice::new(headers), IoSlice::new(packet)])?
        };
        if written == length { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

/// The device, set up and ready.
pub(crate) struct Device {
    /// [`Inject::Tun`] or [`Inject::Veth`].
    pub(crate) kind: Inject,
    /// Its interface index.
    pub(crate) index: u32,
    /// One for each worker.
    pub(crate) injectors: Vec<Injector>,
}

/// Creates the device `name` and sets it up. A device that a dead daemon left is replaced.
pub(crate) fn open(netlink: &mut Netlink, kind: Inject, name: &str, queues: usize) -> Result<Device, StartError> {
    let failed = |source| StartError::Device { device: name.to_owned(), source };
    clear(netlink, name)?;
    let opened = match kind {
        Inject::Veth => None,
        Inject::Tun | Inject::Auto => match tun::open(netlink, name, queues) {
            Ok(fds) => Some(fds),
            Err(tun::OpenError::Intruder) => return Err(StartError::DeviceIntruder { device: name.to_owned() }),
            Err(tun::OpenError::System(error)) if kind == Inject::Tun => return Err(failed(error)),
            Err(tun::OpenError::System(error)) => {
                tracing::info!(%error, "no TUN device is available; re-injecting through a veth pair");
                None
            }
        },
    };
    let (kind, fds) = match opened {
        Some(fds) => (Inject::Tun, fds),
        None => (Inject::Veth, veth::open(netlink, name, queues).map_err(failed)?),
    };
    let ethernet = kind == Inject::Veth;
    let injectors = fds.into_iter().map(|fd| Injector { fd, ethernet }).collect();
    configure(name, &veth::outer(name), kind)?;
    let index = find(netlink, name).map_err(failed)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    links::up(netlink, index).map_err(failed)?;
    // Setting the link up may change some of them.
    configure(name, &veth::outer(name), kind)?;
    Ok(Device { kind, index, injectors })
}

/// Removes the device, where closing its queues does not.
pub(crate) fn remove(netlink: &mut Netlink, kind: Inject, name: &str) -> io::Result<()> {
    match find(netlink, name)? {
        Some(index) if kind == Inject::Veth => links::delete(netlink, index),
        _ => Ok(()),
    }
}

/// Makes the settings of the device itself, and returns how many had to be changed.
pub(crate) fn configure(name: &str, outer: &str, kind: Inject) -> Result<usize, StartError> {
    let mut changed = 0;
    let mut set = |family, interface: &str, key, value| {
        let setting = Setting::new(family, interface, key);
        match setting.set(value) {
            Ok(done) => {
                changed += usize::from(done);
                Ok(())
            }
            Err(source) => Err(StartError::Setting { setting: setting.to_string(), value, source }),
        }
    };
    for family in Family::present() {
        match family {
            Family::V4 => {
                // Re-injected packets have sources that are not routed to here, among them our own.
                for (key, value) in [("accept_local", 1), ("rp_filter", 0), ("forwarding", 1), ("send_redirects", 0)] {
                    set(family, name, key, value)?;
                }
            }
            Family::V6 => {
                for (key, value) in [("disable_ipv6", 0), ("addr_gen_mode", 1), ("forwarding", 1), ("accept_ra", 0)] {
                    set(family, name, key, value)?;
                }
                if kind == Inject::Veth {
                    // The sending end speaks no IP at all.
                    set(family, outer, "disable_ipv6", 1)?;
                }
            }
        }
    }
    Ok(changed)
}

/// Re-applies [`configure`] for a running device.
pub(crate) fn reconfigure(name: &str, kind: Inject) -> Result<usize, StartError> {
    configure(name, &veth::outer(name), kind)
}

pub(crate) fn find(netlink: &mut Netlink, name: &str) -> io::Result<Option<u32>> {
    Ok(links::links(netlink)?.into_iter().find(|link| link.name == name).map(|link| link.index))
}

/// Waits for a dying daemon's TUN device to go, removes its veth pair and a device that only a stranger's queue keeps, and
/// refuses if another daemon has the device.
fn clear(netlink: &mut Netlink, name: &str) -> Result<(), StartError> {
    let failed = |source| StartError::Device { device: name.to_owned(), source };
    for attempt in 0..20 {
        if attempt > 0 {
            std::thread::sleep(Duration::from_millis(100));
        }
        let Some(index) = find(netlink, name).map_err(failed)? else { return Ok(()) };
        if find(netlink, &veth::outer(name)).map_err(failed)?.is_some()
            || tun::is_abandoned(netlink, name).map_err(failed)?
        {
            links::delete(netlink, index).map_err(failed)?;
        }
    }
    Err(StartError::DeviceInUse { device: name.to_owned() })
}
