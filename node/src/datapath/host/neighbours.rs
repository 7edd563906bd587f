//! What else runs on this machine, as far as its interfaces show: bridges, XDP programs, VRFs.

use std::io;

use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    InfoKind, InfoPortKind, LinkAttribute, LinkInfo, LinkMessage, LinkXdp, XdpAttached,
};

use super::netlink::Netlink;
use crate::datapath::gate::Bridge;

/// An interface, and what others made of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Neighbour {
    pub(crate) index: u32,
    pub(crate) name: String,
    mac: Option<[u8; 6]>,
    is_bridge: bool,
    /// The interface that it is a part of, by index.
    master: Option<u32>,
    /// What it is there.
    pub(crate) port: Option<InfoPortKind>,
    /// Whether an XDP program sees its packets first.
    pub(crate) xdp: bool,
}

impl Neighbour {
    fn new(message: LinkMessage) -> Neighbour {
        let mut link = Neighbour { index: message.header.index, ..Neighbour::default() };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
                LinkAttribute::Controller(index) => link.master = Some(index),
                LinkAttribute::Xdp(xdp) => {
                    link.xdp = xdp.iter().any(|x| matches!(x, LinkXdp::Attached(how) if *how != XdpAttached::None));
                }
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(InfoKind::Bridge) => link.is_bridge = true,
                            LinkInfo::PortKind(kind) => link.port = Some(kind),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}

/// All interfaces.
pub(crate) fn neighbours(netlink: &mut Netlink) -> io::Result<Vec<Neighbour>> {
    let answers = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let links =
        answers.into_iter().filter_map(|m| if let RouteNetlinkMessage::NewLink(m) = m { Some(m) } else { None });
    Ok(links.map(Neighbour::new).collect())
}

/// The bridges among them, with the machine's own addresses there.
pub(crate) fn bridges(links: &[Neighbour]) -> Vec<Bridge> {
    let bridges = links.iter().filter(|link| link.is_bridge);
    bridges
        .map(|bridge| {
            let stations = links.iter().filter(|l| l.index == bridge.index || l.master == Some(bridge.index));
            Bridge { index: bridge.index, own: stations.filter_map(|link| link.mac).collect() }
        })
        .filter(|bridge| !bridge.own.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridges_know_the_addresses_of_their_ports() {
        let link = |index, is_bridge, master| Neighbour {
            index,
            mac: Some([2, 0, 0, 0, 0, u8::try_from(index).unwrap()]),
            is_bridge,
            master,
            ..Neighbour::default()
        };
        let links = [link(1, false, None), link(2, true, None), link(3, false, Some(2)), link(4, false, Some(9))];
        let own = vec![[2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 3]];
        assert_eq!(bridges(&links), [Bridge { index: 2, own }]);
    }
}
