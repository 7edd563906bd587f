//! The few things that the lab asks of rtnetlink(7).

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, anyhow, bail};
use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteNextHop};
use rtnetlink::{Handle, IpVersion, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder, RouteNextHopBuilder};

/// One netlink socket of one namespace.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
}

/// A next hop of a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHop {
    /// The neighbour's address.
    pub via: IpAddr,
    /// The interface's index.
    pub ifindex: u32,
}

/// One direction of a connection, as the kernel hashes it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flow {
    /// The IP protocol number.
    pub protocol: u8,
    /// Source address.
    pub src: IpAddr,
    /// Source port.
    pub sport: u16,
    /// Destination address.
    pub dst: IpAddr,
    /// Destination port.
    pub dport: u16,
}

impl Flow {
    /// The opposite direction.
    #[must_use]
    pub fn reversed(self) -> Flow {
        Flow { src: self.dst, sport: self.dport, dst: self.src, dport: self.sport, ..self }
    }
}

impl Netlink {
    /// Opens a socket in the namespace of the calling thread, and serves it on the calling runtime.
    pub(super) fn open() -> Result<Netlink> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Netlink { handle })
    }

    /// An interface's index.
    ///
    /// # Errors
    /// There is no such interface.
    pub async fn index(&self, name: &str) -> Result<u32> {
        Ok(self.link(name).await?.header.index)
    }

    async fn link(&self, name: &str) -> Result<LinkMessage> {
        let mut links = self.handle.link().get().match_name(name.to_owned()).execute();
        links
            .try_next()
            .await
            .with_context(|| format!("interface {name}"))?
            .ok_or_else(|| anyhow!("there is no interface {name}"))
    }

    /// Packets and bytes that an interface has sent.
    ///
    /// # Errors
    /// There is no such interface.
    pub async fn sent(&self, name: &str) -> Result<(u64, u64)> {
        let link = self.link(name).await?;
        let stats = link.attributes.iter().find_map(|a| match a {
            LinkAttribute::Stats64(s) => Some((s.tx_packets, s.tx_bytes)),
            _ => None,
        });
        stats.ok_or_else(|| anyhow!("no statistics for {name}"))
    }

    /// Makes a veth pair, one end here, the other in `peer_netns`. Both are down.
    ///
    /// # Errors
    /// The name is taken, or the kernel has no veth.
    pub async fn add_veth(&self, name: &str, peer: &str, peer_netns: &File) -> Result<()> {
        let far = LinkUnspec::new_with_name(peer).setns_by_fd(peer_netns.as_raw_fd()).build();
        let pair = LinkVeth::new(name, peer).set_info_data(InfoData::Veth(InfoVeth::Peer(far)));
        self.handle.link().add(pair.build()).execute().await.with_context(|| format!("the veth pair {name} – {peer}"))
    }

    /// Makes a bridge.
    ///
    /// # Errors
    /// The kernel has no bridge.
    pub async fn add_bridge(&self, name: &str) -> Result<()> {
        self.handle.link().add(LinkBridge::new(name).build()).execute().await.with_context(|| format!("bridge {name}"))
    }

    /// Puts an interface into a bridge.
    ///
    /// # Errors
    /// One of them does not exist.
    pub async fn enslave(&self, name: &str, bridge: &str) -> Result<()> {
        let controller = self.index(bridge).await?;
        let message = LinkUnspec::new_with_name(name).controller(controller).build();
        self.handle.link().set(message).execute().await.with_context(|| format!("{name} into {bridge}"))
    }

    /// Sets an interface up.
    ///
    /// # Errors
    /// There is no such interface.
    pub async fn up(&self, name: &str) -> Result<()> {
        let message = LinkUnspec::new_with_name(name).up().build();
        self.handle.link().set(message).execute().await.with_context(|| format!("{name} up"))
    }

    /// Sets an interface down.
    ///
    /// # Errors
    /// There is no such interface.
    pub async fn down(&self, name: &str) -> Result<()> {
        let message = LinkUnspec::new_with_name(name).down().build();
        self.handle.link().set(message).execute().await.with_context(|| format!("{name} down"))
    }

    /// Removes an interface, and with it the other end of a veth pair.
    ///
    /// # Errors
    /// There is no such interface.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let index = self.index(name).await?;
        self.handle.link().del(index).execute().await.with_context(|| format!("remove {name}"))
    }

    /// Sets the largest packet that an interface sends, in bytes.
    ///
    /// # Errors
    /// There is no such interface, or the value is not to be had there.
    pub async fn set_mtu(&self, name: &str, bytes: u32) -> Result<()> {
        let message = LinkUnspec::new_with_name(name).mtu(bytes).build();
        self.handle.link().set(message).execute().await.with_context(|| format!("MTU {bytes} for {name}"))
    }

    /// Adds an address.
    ///
    /// # Errors
    /// There is no such interface, or the address is there already.
    pub async fn add_address(&self, interface: &str, address: IpAddr, prefix: u8) -> Result<()> {
        let index = self.index(interface).await?;
        let request = self.handle.address().add(index, address, prefix);
        request.execute().await.with_context(|| format!("{address}/{prefix} on {interface}"))
    }

    /// Puts a route in place, in one step also where there was one before: no packet meets an empty table.
    ///
    /// # Errors
    /// No next hop, mixed families, or a next hop that is not on the link.
    pub async fn replace_route(
        &self,
        (network, prefix): (IpAddr, u8),
        source: Option<IpAddr>,
        hops: &[NextHop],
    ) -> Result<()> {
        let what = || format!("the route to {network}/{prefix} by {hops:?}");
        let mut route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(network, prefix).with_context(what)?;
        if let Some(source) = source {
            route = route.pref_source(source).with_context(what)?;
        }
        let route = match hops {
            [] => bail!("a route to {network}/{prefix} needs a next hop"),
            [one] => route.gateway(one.via).with_context(what)?.output_interface(one.ifindex),
            many => route.multipath(many.iter().map(|hop| next_hop(*hop)).collect::<Result<_>>().with_context(what)?),
        };
        self.handle.route().add(route.build()).replace().execute().await.with_context(what)
    }

    /// The interface on which a packet of `flow`, sent from here, would leave now: the kernel's own answer,
    /// with the hash that it uses for a socket that had its port before it was connected.
    ///
    /// # Errors
    /// There is no route.
    pub async fn egress(&self, flow: Flow) -> Result<u32> {
        let family = if flow.dst.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
        let mut message: RouteMessage = match family {
            IpVersion::V4 => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            IpVersion::V6 => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        };
        let length = if flow.dst.is_ipv4() { 32 } else { 128 };
        message.header.source_prefix_length = length;
        message.header.destination_prefix_length = length;
        message.attributes = vec![
            RouteAttribute::Destination(address(flow.dst)),
            RouteAttribute::Source(address(flow.src)),
            RouteAttribute::IpProto(flow.protocol),
            RouteAttribute::Sport(flow.sport),
            RouteAttribute::Dport(flow.dport),
        ];
        let answer = self.handle.route().get(message).execute().try_next().await;
        let route = answer.with_context(|| format!("the route of {flow:?}"))?;
        let out = route.and_then(|r| {
            r.attributes.iter().find_map(|a| match a {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            })
        });
        out.ok_or_else(|| anyhow!("the kernel names no interface for {flow:?}"))
    }
}

fn address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

fn next_hop(hop: NextHop) -> Result<RouteNextHop> {
    let family = if hop.via.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    Ok(RouteNextHopBuilder::new(family).interface(hop.ifindex).via(hop.via)?.build())
}
