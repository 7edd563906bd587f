//! Re-injection through a multi-queue TUN device that belongs to root.
//!
//! What is written to the device is forwarded without any further check, so nobody else may have a queue of it. A device
//! without an owner gives one to any process that opens `/dev/net/tun`, and every device begins without an owner. So it is
//! made under a name that nobody knows, gets its owner, and is used only if no other process was faster: then from
//! that moment on nobody else can attach. A device that somebody attached to is removed, with the intruder's queue, and the next
//! one is made. Only a device that passed gets the name that the gate lets pass.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoTun, LinkAttribute, LinkInfo, LinkMessage};

use crate::datapath::host::links;
use crate::datapath::host::netlink::Netlink;
use crate::datapath::sys::tun::{self as sys, Setting};
use crate::random::random;

/// The owner: the kernel lets the owner attach queues without `CAP_NET_ADMIN`. The daemon has the capability, whoever it runs
/// as, and a process of its own user without the capability shall not attach.
const ROOT: u32 = 0;

/// How many devices are made until one has no stranger's queue. A single process that does nothing but attach wins about half
/// of the races.
const ATTEMPTS: u32 = 256;

/// The beginning of the names of devices in the making. The gate lets no such name pass.
const TEMPORARY: &str = "paltmp";

/// Why there is no device.
pub(super) enum OpenError {
    /// The kernel refuses.
    System(io::Error),
    /// Each device had a queue of somebody else.
    Intruder,
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> OpenError {
        OpenError::System(error)
    }
}

/// Creates the device, with one queue for each worker. It exists as long as the queues.
pub(super) fn open(netlink: &mut Netlink, device: &str, queues: usize) -> Result<Vec<OwnedFd>, OpenError> {
    remove_unfinished(netlink)?;
    let mut open = Vec::with_capacity(queues);
    let (first, owner, index) = create(netlink)?;
    open.push(first);
    links::rename(netlink, index, device)?;
    while open.len() < queues {
        let queue = control()?;
        sys::attach(queue.as_fd(), device)?;
        open.push(queue);
    }
    // If somebody removed it meanwhile, the last calls made another one, without an owner.
    let found = State::read(netlink, device)?.filter(|state| state.index == index && state.is_ours(owner, open.len()));
    if found.is_none() {
        return Err(io::Error::from(io::ErrorKind::NotFound).into());
    }
    Ok(open)
}

/// The first queue of a device that nobody else has a queue of, the device's owner and its index.
fn create(netlink: &mut Netlink) -> Result<(OwnedFd, u32, u32), OpenError> {
    for _ in 0..ATTEMPTS {
        let name = temporary_name()?;
        let queue = control()?;
        sys::create(queue.as_fd(), &name)?;
        let owner = set_owner(queue.as_fd())?;
        let Some(state) = State::read(netlink, &name)? else { continue };
        if state.is_ours(owner, 1) {
            reset(queue.as_fd())?;
            return Ok((queue, owner, state.index));
        }
        // Without this, it would live as long as the intruder's queue.
        links::delete(netlink, state.index)?;
    }
    Err(OpenError::Intruder)
}

/// Whether a device of this name is no daemon's: a TUN device without owner that ends with its last queue. It is a
/// stranger's queue that keeps it.
pub(super) fn is_abandoned(netlink: &mut Netlink, device: &str) -> io::Result<bool> {
    Ok(State::read(netlink, device)?.is_some_and(|state| state.is_tun && state.owner.is_none() && !state.persistent))
}

/// Removes what a daemon left that was killed while it made a device: somebody may have attached to it.
fn remove_unfinished(netlink: &mut Netlink) -> io::Result<()> {
    let unfinished = |name: &str| name.strip_prefix(TEMPORARY).is_some_and(|rest| rest.len() == 8);
    for link in links::links(netlink)?.into_iter().filter(|link| unfinished(&link.name)) {
        match links::delete(netlink, link.index) {
            Err(error) if error.raw_os_error() != Some(libc::ENODEV) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn control() -> io::Result<OwnedFd> {
    let options = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    Ok(options.into())
}

fn temporary_name() -> io::Result<String> {
    let bytes: [u8; 4] = random().map_err(io::Error::other)?;
    Ok(format!("{TEMPORARY}{:08x}", u32::from_ne_bytes(bytes)))
}

/// Gives the device to root. In a user namespace that has no root, to the daemon's user.
fn set_owner(queue: BorrowedFd<'_>) -> io::Result<u32> {
    match sys::set(queue, Setting::Owner(ROOT)) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let user = nix::unistd::geteuid().as_raw();
            sys::set(queue, Setting::Owner(user)).map(|()| user)
        }
        set => set.map(|()| ROOT),
    }
}

/// Sets what an intruder may have changed before it detached: a device's settings are those of all its queues. With another
/// length of the header, for example, the kernel would read a packet from another place than the engine did.
fn reset(queue: BorrowedFd<'_>) -> io::Result<()> {
    sys::set(queue, Setting::Persist(false))?;
    sys::set(queue, Setting::VnetHeaderBytes(i32::try_from(crate::datapath::vnet::LENGTH).unwrap_or(0)))?;
    sys::set(queue, Setting::VnetLittleEndian(false))?;
    sys::set(queue, Setting::SendBufferBytes(i32::MAX))?;
    sys::set(queue, Setting::ReadOffloads(0))?;
    // Kernels that do not have them refuse these.
    for optional in [Setting::VnetBigEndian(false), Setting::NoSteering, Setting::NoFilter] {
        match sys::set(queue, optional) {
            Err(error) if error.raw_os_error() != Some(libc::EINVAL) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The state of an interface, read at one moment.
#[derive(Debug, Default)]
struct State {
    index: u32,
    is_tun: bool,
    owner: Option<u32>,
    persistent: bool,
    /// The queues that processes have attached, those that they have disabled among them; `None` if the kernel does not say.
    queues: Option<u32>,
}

impl State {
    /// Reads it; `None` if there is no such interface.
    fn read(netlink: &mut Netlink, name: &str) -> io::Result<Option<State>> {
        let mut question = LinkMessage::default();
        question.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match netlink.get(RouteNetlinkMessage::GetLink(question)) {
            Ok(Some(RouteNetlinkMessage::NewLink(link))) => Ok(Some(State::from_link(&link))),
            Ok(_) => Err(io::ErrorKind::InvalidData.into()),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn from_link(link: &LinkMessage) -> State {
        let mut state = State { index: link.header.index, ..State::default() };
        let infos = link.attributes.iter().filter_map(|a| match a {
            LinkAttribute::LinkInfo(infos) => Some(infos.iter()),
            _ => None,
        });
        for info in infos.flatten() {
            match info {
                LinkInfo::Kind(InfoKind::Tun) => state.is_tun = true,
                LinkInfo::Data(InfoData::Tun(attributes)) => attributes.iter().for_each(|a| state.take(a)),
                _ => {}
            }
        }
        state
    }

    /// Takes one attribute (`IFLA_TUN_…` in linux/if_link.h).
    fn take(&mut self, attribute: &InfoTun) {
        let mut value = [0; 4];
        let length = attribute.value_len();
        let Some(bytes) = value.get_mut(..length) else { return };
        attribute.emit_value(bytes);
        let byte = value[0];
        let number = u32::from_ne_bytes(value);
        match (attribute.kind(), length) {
            (1, 4) => self.owner = Some(number),
            (6, 1) => self.persistent = byte != 0,
            (8 | 9, 4) => self.queues = Some(self.queues.unwrap_or(0).saturating_add(number)),
            _ => {}
        }
    }

    /// Whether this device is ours alone, with this number of queues.
    fn is_ours(&self, owner: u32, queues: usize) -> bool {
        let attached = self.queues.and_then(|n| usize::try_from(n).ok());
        self.is_tun && self.owner == Some(owner) && !self.persistent && attached == Some(queues)
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::DefaultNla;

    use super::*;

    fn link(attributes: &[(u16, &[u8])]) -> LinkMessage {
        let mut link = LinkMessage::default();
        let attributes = attributes.iter().map(|(kind, value)| InfoTun::Other(DefaultNla::new(*kind, value.to_vec())));
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Tun),
            LinkInfo::Data(InfoData::Tun(attributes.collect())),
        ]));
        link
    }

    #[test]
    fn tun_device_is_ours_only_with_our_owner_and_our_queues() {
        let (root, one, none, nobody) =
            (0u32.to_ne_bytes(), 1u32.to_ne_bytes(), 0u32.to_ne_bytes(), 65534u32.to_ne_bytes());
        let ours = |attributes: &[(u16, &[u8])]| State::from_link(&link(attributes)).is_ours(ROOT, 1);
        assert!(ours(&[(1, &root), (6, &[0]), (8, &one), (9, &none)]));
        assert!(!ours(&[(6, &[0]), (8, &one), (9, &none)]), "no owner");
        assert!(!ours(&[(1, &nobody), (6, &[0]), (8, &one), (9, &none)]), "an intruder's");
        assert!(!ours(&[(1, &root), (6, &[0]), (8, &one), (9, &one)]), "a disabled queue can be enabled again");
        assert!(!ours(&[(1, &root), (6, &[1]), (8, &one), (9, &none)]), "it would outlive us");
        assert!(!ours(&[(1, &root), (6, &[0])]), "a kernel that does not count");
        assert!(!State::from_link(&LinkMessage::default()).is_ours(ROOT, 1), "not a TUN device");
    }
}
