//! What lies behind the lab's own routers: on either side one router more, and a host behind it.
//!
//! ```text
//!   host ──────────── inner router ──────────── client or server of the lab ── members
//!   .102, ::66   .101, ::65    .98, ::62   .97, ::61
//! ```
//!
//! The addresses are of the side's own networks, so that the members know the way. The link between the two routers may be
//! given a smaller MTU than all others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::netlink::NextHop;
use crate::{Lab, Netns, Side, no_address_detection};
use anyhow::Result;

use crate::program::run;

/// A table and the preference of the rule that leads to it.
const TABLE: &str = "100";

/// A router and a host behind one of the lab's routers.
#[derive(Debug)]
pub struct RemoteNetwork {
    side: Side,
    edge: Netns,
    router: Netns,
    host: Netns,
}

impl RemoteNetwork {
    /// Makes them.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn attach(lab: &Lab, side: Side) -> Result<RemoteNetwork> {
        let edge = lab.host(side).clone();
        let (router, host) = (Netns::new("inner").await?, Netns::new("remote").await?);
        for netns in [&edge, &router, &host] {
            netns.sysctl("net/ipv4/ip_forward", "1").await?;
            netns.sysctl("net/ipv6/conf/all/forwarding", "1").await?;
            no_address_detection(netns).await?;
        }
        for (from, interface, to, peer, link) in
            [(&edge, "inner", &router, "edge", 96), (&router, "host", &host, "eth", 100)]
        {
            from.netlink().add_veth(interface, peer, to.file()).await?;
            for (netns, interface, place) in [(from, interface, link + 1), (to, peer, link + 2)] {
                for (address, prefix) in addresses(side, place).into_iter().zip([30, 126]) {
                    netns.netlink().add_address(interface, address, prefix).await?;
                }
                netns.netlink().up(interface).await?;
            }
        }
        let network = RemoteNetwork { side, edge, router, host };
        network.add_routes().await?;
        Ok(network)
    }

    async fn add_routes(&self) -> Result<()> {
        let everything = [(Ipv4Addr::UNSPECIFIED.into(), 0), (Ipv6Addr::UNSPECIFIED.into(), 0)];
        for family in [0, 1] {
            let link = (addresses(self.side, 100)[family], [30, 126][family]);
            for (netns, network, interface, place) in [
                (&self.edge, link, "inner", 98),
                (&self.router, everything[family], "edge", 97),
                (&self.host, everything[family], "eth", 101),
            ] {
                let ifindex = netns.netlink().index(interface).await?;
                let via = addresses(self.side, place)[family];
                netns.netlink().replace_route(network, None, &[NextHop { via, ifindex }]).await?;
            }
        }
        Ok(())
    }

    /// Where it is.
    #[must_use]
    pub fn side(&self) -> Side {
        self.side
    }

    /// The host behind both routers.
    #[must_use]
    pub fn host(&self) -> &Netns {
        &self.host
    }

    /// Its addresses.
    #[must_use]
    pub fn hosts(&self) -> [IpAddr; 2] {
        addresses(self.side, 102)
    }

    /// The inner router's addresses, as the host sees it.
    #[must_use]
    pub fn inner(&self) -> [IpAddr; 2] {
        addresses(self.side, 101)
    }

    /// The inner router's addresses, as the lab's own router sees it.
    #[must_use]
    pub fn inner_outside(&self) -> [IpAddr; 2] {
        addresses(self.side, 98)
    }

    /// The addresses of the lab's own router, as the inner one sees it.
    #[must_use]
    pub fn edge(&self) -> [IpAddr; 2] {
        addresses(self.side, 97)
    }

    /// Routers answer every packet that they cannot forward, not some of them in a second.
    ///
    /// # Errors
    /// The kernel has no such setting.
    pub async fn answer_everything(lab: &Lab, networks: [&RemoteNetwork; 2]) -> Result<()> {
        let members = lab.members().iter().map(|m| m.netns());
        for netns in networks.into_iter().flat_map(|n| [&n.edge, &n.router, &n.host]).chain(members) {
            netns.sysctl("net/ipv4/icmp_ratelimit", "0").await?;
            netns.sysctl("net/ipv6/icmp/ratelimit", "0").await?;
        }
        Ok(())
    }

    /// The largest packet on the link between the routers, in bytes.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub async fn set_mtu(&self, bytes: u32) -> Result<()> {
        self.edge.netlink().set_mtu("inner", bytes).await?;
        self.router.netlink().set_mtu("edge", bytes).await
    }
}

/// Has the lab's router on one side send all ICMP by way of one member, whatever way other packets go. `None`: no more.
///
/// # Errors
/// `ip` fails.
pub async fn steer_icmp(lab: &Lab, side: Side, member: Option<usize>) -> Result<()> {
    let opposite = side.opposite().networks();
    for (family, protocol) in [("-4", "icmp"), ("-6", "ipv6-icmp")] {
        let index = usize::from(family == "-6");
        let (network, prefix) = opposite[index];
        let network = format!("{network}/{prefix}");
        let ip = |args: Vec<String>| async move {
            let args: Vec<&str> = [family].into_iter().chain(args.iter().map(String::as_str)).collect();
            run(lab.host(side), lab.dir(), Duration::from_secs(5), "ip", &args).await
        };
        let words = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<String>>();
        let Some(number) = member else {
            ip(words(format!("rule del pref {TABLE}"))).await?;
            continue;
        };
        let (via, src) = (side.link(number, 2)[index].0, side.hosts()[index]);
        ip(words(format!("route replace {network} via {via} src {src} table {TABLE}"))).await?;
        if !ip(words("rule show".to_owned())).await?.contains(&format!("lookup {TABLE}")) {
            ip(words(format!("rule add pref {TABLE} ipproto {protocol} lookup {TABLE}"))).await?;
        }
    }
    Ok(())
}

/// The addresses with a number in a side's networks.
fn addresses(side: Side, number: u8) -> [IpAddr; 2] {
    side.networks().map(|(network, _)| match network {
        IpAddr::V4(network) => IpAddr::V4(Ipv4Addr::from_bits(network.to_bits() | u32::from(number))),
        IpAddr::V6(network) => IpAddr::V6(Ipv6Addr::from_bits(network.to_bits() | u128::from(number))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_match_the_diagram() {
        assert_eq!(addresses(Side::Server, 102).map(|a| a.to_string()), ["10.20.0.102", "fd20::66"]);
        assert_eq!(addresses(Side::Client, 97).map(|a| a.to_string()), ["10.10.0.97", "fd10::61"]);
    }
}
