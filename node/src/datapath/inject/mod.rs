//! Re-injection: allowed packets go to a device from which the kernel routes them. FIB, ECMP, neighbours, TTL, ICMP errors and
//! fragmentation are the kernel's own.
//!
//! Each zone of this machine has a device, and the gate lets what comes from it leave by the interfaces of that zone only. So
//! a packet leaves by the zone that its verdict was about, or not at all, whatever the kernel's routes say.

mod names;
mod tun;
mod veth;

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::uio::writev;
use nix::unistd::write;
use palisade_engine::ZoneId;

pub use names::DeviceNames;

use super::error::StartError;
use super::host::links;
use super::host::netlink::Netlink;
use super::host::sysctl::{Family, Setting};
use super::vnet::{LENGTH as VNET, VnetHeader};

/// Packets up to this size are copied into one buffer: the copy is cheaper than the overhead of `writev` over `write`.
const MAX_COPIED_BYTES: usize = 256;
/// The length of an Ethernet header.
const ETHERNET: u16 = 14;

/// The kind of the re-injection devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Inject {
    /// TUN if `/dev/net/tun` can be opened, else veth.
    #[default]
    Auto,
    /// Multi-queue TUN devices.
    Tun,
    /// Pairs of veth interfaces.
    Veth,
}

/// A worker's queue of a re-injection device.
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

/// A worker's queues of all devices.
#[derive(Debug)]
pub(crate) struct Injectors {
    control: Injector,
    /// By the zone's place in [`DeviceNames::zones`].
    zones: Vec<Injector>,
    /// The zone of each port, as its place in `zones`.
    zone_of_port: Vec<usize>,
    /// By zone number, the place in `zones`.
    by_number: Vec<Option<u16>>,
}

impl Injectors {
    /// Sets the numbers that the zones of the ports have now. A zone without a number of its own has no device.
    pub(crate) fn set_zones(&mut self, numbers: &[ZoneId]) {
        self.by_number.clear();
        for (number, place) in numbers.iter().zip(&self.zone_of_port) {
            let (at, place) = (usize::from(number.0), u16::try_from(*place).ok());
            if *number == ZoneId::UNKNOWN {
                continue;
            }
            if self.by_number.len() <= at {
                self.by_number.resize(at + 1, None);
            }
            if let Some(entry) = self.by_number.get_mut(at) {
                *entry = place;
            }
        }
    }

    /// The device that leads to a zone.
    #[inline]
    pub(crate) fn for_zone(&mut self, zone: ZoneId) -> Option<&mut Injector> {
        let place = self.by_number.get(usize::from(zone.0)).copied().flatten()?;
        self.zones.get_mut(usize::from(place))
    }

    /// Replaces the queue of a device: of the zone with this place, or of the one for answers.
    pub(crate) fn replace(&mut self, place: Option<usize>, injector: Injector) {
        match place {
            None => self.control = injector,
            Some(place) => {
                if let Some(old) = self.zones.get_mut(place) {
                    *old = injector;
                }
            }
        }
    }

    /// The device for what the firewall itself sends. It leads to all data interfaces.
    pub(crate) fn answers(&mut self) -> &mut Injector {
        &mut self.control
    }
}

/// The devices, set up and ready.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Devices {
    /// [`Inject::Tun`] or [`Inject::Veth`].
    pub(crate) kind: Inject,
    pub(crate) names: DeviceNames,
    /// The index of the device for answers.
    control: u32,
    /// The indices of the zones' devices, in the order of [`DeviceNames::zones`].
    zones: Vec<u32>,
}

impl Devices {
    /// The device that the routes are asked for: what is re-injected comes in by one like it. Rules of the operator that name
    /// one of the devices as the incoming interface are not supported.
    pub(crate) fn incoming(&self) -> u32 {
        self.zones.first().copied().unwrap_or(self.control)
    }

    /// Makes a device anew that somebody has removed, with a queue for each worker.
    pub(crate) fn make_again(
        &mut self,
        netlink: &mut Netlink,
        name: &str,
        workers: usize,
    ) -> Result<MadeAgain, StartError> {
        let zone = self.names.zones().enumerate().find(|(_, (_, device))| device == name);
        let zone = zone.map(|(place, (zone, _))| (place, zone.to_owned()));
        let opened = open_one(netlink, self.kind, name, zone.as_ref().map(|(_, zone)| zone.as_str()), workers)?;
        let place = zone.map(|(place, _)| place);
        match place {
            None => self.control = opened.index,
            Some(place) => {
                if let Some(index) = self.zones.get_mut(place) {
                    *index = opened.index;
                }
            }
        }
        Ok(MadeAgain { place, injectors: opened.injectors })
    }

    /// Re-applies the settings of all devices, and returns how many had to be changed.
    pub(crate) fn reconfigure(&self) -> Result<usize, StartError> {
        self.names.all().try_fold(0, |changed, name| Ok(changed + configure(&name, self.kind)?))
    }

    /// Removes the devices, where closing their queues does not.
    pub(crate) fn remove(&self, netlink: &mut Netlink) -> io::Result<()> {
        if self.kind != Inject::Veth {
            return Ok(());
        }
        self.names.all().try_for_each(|name| match find(netlink, &name)? {
            Some(index) => links::delete(netlink, index),
            None => Ok(()),
        })
    }
}

/// Creates the devices and sets them up, with a queue of each for each worker. Devices that a dead daemon left are replaced.
/// `zones` are those of the data interfaces, in the order of the configuration.
pub(crate) fn open(
    netlink: &mut Netlink,
    kind: Inject,
    control: &str,
    zones: &[&str],
    workers: usize,
) -> Result<(Devices, Vec<Injectors>), StartError> {
    let names = DeviceNames::new(control, zones.iter().copied());
    names.check()?;
    let first = open_one(netlink, kind, control, None, workers)?;
    let mut devices = Devices { kind: first.kind, control: first.index, zones: Vec::new(), names };
    let zone_of_port: Vec<usize> = zones.iter().filter_map(|zone| devices.names.zone(zone)).collect();
    let injectors =
        |control| Injectors { control, zones: Vec::new(), zone_of_port: zone_of_port.clone(), by_number: Vec::new() };
    let mut workers_injectors: Vec<Injectors> = first.injectors.into_iter().map(injectors).collect();
    let zone_devices: Vec<(String, String)> =
        devices.names.zones().map(|(zone, device)| (zone.to_owned(), device)).collect();
    for (zone, name) in zone_devices {
        let opened = match open_one(netlink, devices.kind, &name, Some(&zone), workers) {
            Ok(opened) => opened,
            Err(error) => {
                let _ = devices.remove(netlink);
                return Err(error);
            }
        };
        devices.zones.push(opened.index);
        for (all, one) in workers_injectors.iter_mut().zip(opened.injectors) {
            all.zones.push(one);
        }
    }
    Ok((devices, workers_injectors))
}

/// A device that was made anew.
pub(crate) struct MadeAgain {
    /// Which one: see [`Injectors::replace`].
    pub(crate) place: Option<usize>,
    /// One for each worker.
    pub(crate) injectors: Vec<Injector>,
}

/// One device, set up and ready.
struct Opened {
    kind: Inject,
    index: u32,
    /// One for each worker.
    injectors: Vec<Injector>,
}

/// Creates the device `name`, for a zone or for answers.
fn open_one(
    netlink: &mut Netlink,
    kind: Inject,
    name: &str,
    zone: Option<&str>,
    queues: usize,
) -> Result<Opened, StartError> {
    let failed = |source| StartError::Device { device: name.to_owned(), source };
    clear(netlink, name)?;
    let opened = match kind {
        Inject::Veth => None,
        Inject::Tun | Inject::Auto => match tun::open(netlink, name, queues) {
            Ok(fds) => Some(fds),
            Err(tun::OpenError::Intruder) => return Err(StartError::DeviceIntruder { device: name.to_owned() }),
            Err(tun::OpenError::System(error)) if kind == Inject::Tun => return Err(failed(error)),
            Err(tun::OpenError::System(error)) => {
                tracing::info!(%error, "no TUN device is available; re-injecting through pairs of veth interfaces");
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
    configure(name, kind)?;
    let index = find(netlink, name).map_err(failed)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let alias = zone.map_or_else(|| "palisade: answers".to_owned(), |zone| format!("palisade: to zone {zone}"));
    links::set_alias(netlink, index, alias).map_err(failed)?;
    links::up(netlink, index).map_err(failed)?;
    // Setting the link up may change some of them.
    configure(name, kind)?;
    Ok(Opened { kind, index, injectors })
}

/// Makes the settings of a device itself, and returns how many had to be changed.
fn configure(name: &str, kind: Inject) -> Result<usize, StartError> {
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
                    set(family, &veth::outer(name), "disable_ipv6", 1)?;
                }
            }
        }
    }
    Ok(changed)
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
